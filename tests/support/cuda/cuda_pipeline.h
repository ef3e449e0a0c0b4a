// SPDX-License-Identifier: Apache-2.0
// The emulated toolkit's asynchronous copies from global to shared memory, by the functions that take
// no object (cuda_pipeline_primitives.h).
#ifndef EMULATED_CUDA_PIPELINE_H
#define EMULATED_CUDA_PIPELINE_H

#include <stddef.h>

namespace emulation
{
void copy_async(void *to, const void *from, size_t bytes, size_t zeros);
void commit_copies();
void wait_copies(size_t but_last_groups);
} // namespace emulation

static inline void __pipeline_memcpy_async(void *to, const void *from, size_t bytes,
                                           size_t zeros = 0)
{
    emulation::copy_async(to, from, bytes, zeros);
}
static inline void __pipeline_commit()
{
    emulation::commit_copies();
}
static inline void __pipeline_wait_prior(size_t groups)
{
    emulation::wait_copies(groups);
}

#endif
