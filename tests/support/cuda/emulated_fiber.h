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

// Goes on in `to`; comes back, perhaps on another OS thread, when something switches to `from`. entry()
// has to call fiber_entered() first.
void fiber_switch(fiber *from, fiber *to);
void fiber_entered();
} // namespace emulation

#endif
