// SPDX-License-Identifier: Apache-2.0
#include "emulated_fiber.h"

#include <sys/mman.h>

#include <cstdint>

#ifdef EMULATED_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation
{
#ifdef EMULATED_ASAN
static const size_t STACK_BYTES = 512 * 1024; // instrumented frames are larger
#else
static const size_t STACK_BYTES = 128 * 1024;
#endif
// Nobody can touch this much below a stack: a large frame steps over a single page.
static const size_t GUARD_BYTES = 1 << 20;

#ifndef EMULATED_SWITCH_UCONTEXT
// Callee-saved registers on the old stack, then the new stack's. Control words are never changed here.
__attribute__((naked, noinline)) void switch_stack(void **, void *)
{
    __asm__("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
            "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
            "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#endif

fiber *fiber_create(void (*entry)(), unsigned number)
{
    char *memory =
        static_cast<char *>(mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED)
        return nullptr;
    mprotect(memory, GUARD_BYTES, PROT_NONE);
    fiber *f = new fiber;
    f->stack = memory + GUARD_BYTES;
    // Tops at the same place of a page would all fall into the same sets of the first-level cache.
    f->stack_bytes = STACK_BYTES - (size_t)(number % 32) * 320;
#ifdef EMULATED_SWITCH_UCONTEXT
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = f->stack_bytes;
    f->context.uc_link = nullptr;
    makecontext(&f->context, entry, 0);
#else
    void **top = reinterpret_cast<void **>(static_cast<char *>(f->stack) + f->stack_bytes);
    *--top = nullptr; // the return address of entry(): where backtraces end
    *--top = reinterpret_cast<void *>(entry);
    for (int saved = 0; saved < 6; saved++)
        *--top = nullptr;
    f->stack_pointer = top;
#endif
    return f;
}

void fiber_free(fiber *f)
{
#ifdef EMULATED_ASAN
    ASAN_UNPOISON_MEMORY_REGION(f->stack, STACK_BYTES);
#endif
    munmap(static_cast<char *>(f->stack) - GUARD_BYTES, STACK_BYTES + GUARD_BYTES);
    delete f;
}

#ifdef EMULATED_ASAN
static __thread fiber *switching_from;

// Not inlined: a fiber may come back on another OS thread, whose variable is another.
__attribute__((noinline)) void before_switch(fiber *from, const fiber *to)
{
    switching_from = from;
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
}

// The sanitizer tells where the stack is that was left: that of the OS thread is not known otherwise.
__attribute__((noinline)) void after_switch(void *fake_stack)
{
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
    if (!switching_from->stack) {
        switching_from->stack = const_cast<void *>(bottom);
        switching_from->stack_bytes = bytes;
    }
}
#endif

} // namespace emulation
