// SPDX-License-Identifier: Apache-2.0
// Fibers: stacks that one OS thread switches between. Own switch on x86-64, ucontext elsewhere; both
// known to the address sanitizer.
#ifndef EMULATED_FIBER_H
#define EMULATED_FIBER_H

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define EMULATED_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMULATED_ASAN 1
#endif
#endif

#if !defined(__x86_64__) || defined(EMULATED_UCONTEXT)
#define EMULATED_SWITCH_UCONTEXT 1
#include <ucontext.h>
#endif

namespace emulation
{
struct fiber {
    void *stack_pointer = nullptr;
    void *stack = nullptr; // lowest usable address; null for the OS thread's own
    size_t stack_bytes = 0;
    void *fake_stack = nullptr; // the address sanitizer's
#ifdef EMULATED_SWITCH_UCONTEXT
    ucontext_t context;
#endif
};

// A fiber that will run entry(), which never returns, when it is first switched to; null if there is no
// memory. `number` spreads the stacks' tops over the cache's sets.
fiber *fiber_create(void (*entry)(), unsigned number);
void fiber_free(fiber *f);

#ifndef EMULATED_SWITCH_UCONTEXT
void switch_stack(void **from, void *to);
#endif
void before_switch(fiber *from, const fiber *to);
void after_switch(void *fake_stack);

// Goes on in `to`; comes back, perhaps on another OS thread, when something switches to `from`. Inlined:
// each frame less is memory less that a barrier touches.
inline __attribute__((always_inline)) void fiber_switch(fiber *from, fiber *to)
{
#ifdef EMULATED_ASAN
    before_switch(from, to);
#endif
#ifdef EMULATED_SWITCH_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    switch_stack(&from->stack_pointer, to->stack_pointer);
#endif
#ifdef EMULATED_ASAN
    after_switch(from->fake_stack);
#endif
}

// The first that entry() does.
inline void fiber_entered()
{
#ifdef EMULATED_ASAN
    after_switch(nullptr);
#endif
}
} // namespace emulation

#endif
