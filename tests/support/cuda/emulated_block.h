/* SPDX-License-Identifier: Apache-2.0 */
/* Between cuda_runtime.h, mma.h and the emulation's scheduler: how a thread of a kernel waits for
 * others. Not for kernels. */
#ifndef EMULATED_BLOCK_H
#define EMULATED_BLOCK_H

#include <cstddef>
#include <cstdint>

#include "vector_types.h"

namespace emulation
{
enum class block_operation : uint8_t { sync, any, all, count };
enum class warp_operation : uint8_t { sync, shuffle, ballot, matrix };

/* Every live thread of the block: the combined predicate. */
int wait_block(block_operation operation, int predicate, const char *file, int line);

/* The lanes of mask. shuffle: the value of lane source; ballot: the lanes with a value other than 0;
 * matrix: the last lane to come calls combine() with the 32 pointers that were passed as values. */
typedef void (*combine_function)(void *const operand[32]);
uint64_t wait_warp(warp_operation operation, unsigned mask, uint64_t value, unsigned source,
                   combine_function combine, const char *file, int line);

/* A collective call that does not wait (matrix load and store): all lanes of the warp have to have made
 * the same ones when they next meet. */
void note_collective(uint64_t what);

unsigned lane();
/* Is this thread running a kernel? */
bool is_kernel();
[[noreturn]] void fail(const char *message);

typedef void (*call_function)(const void *kernel, const void *arguments);
struct launch {
    const void *kernel;
    call_function call;
    const void *arguments;
    size_t argument_bytes;
    dim3 grid, block;
    size_t shared_bytes;
};
/* Runs a whole grid. */
void run_grid(const launch &work);
} // namespace emulation

extern "C" void *emulation_dynamic_shared(void);

#endif
