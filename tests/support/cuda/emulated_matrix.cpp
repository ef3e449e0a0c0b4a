// SPDX-License-Identifier: Apache-2.0
#include "mma.h"

namespace emulation
{
namespace matrix
{
// As the programming guide asks: 256-bit alignment, rows or columns a multiple of 16 bytes apart. All
// lanes have to have come with the same arguments; that is checked when they next meet.
void check_pointer(const void *pointer, unsigned ldm, size_t element_bytes, int least)
{
    if (reinterpret_cast<uintptr_t>(pointer) % 32 != 0)
        fail("the pointer of a matrix load or store is not aligned to 32 bytes");
    if (ldm * element_bytes % 16 != 0 || ldm < (unsigned)least)
        fail("the leading dimension of a matrix load or store is too small, or no multiple of 16 "
             "bytes");
    note_collective((uint64_t) reinterpret_cast<uintptr_t>(pointer) * 31 + ldm);
}

// Products of bfloat16, half and TF32 values are exact in float, so that contraction would change
// nothing.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void multiply(float *__restrict__ d, const float *__restrict__ a, const float *__restrict__ b, int m,
              int n, int k)
{
    if (n != 16)
        fail("a matrix product of this size is not known");
    for (int i = 0; i < m; i++) {
        float sum[16];
        for (int j = 0; j < 16; j++)
            sum[j] = d[i * 16 + j];
        for (int l = 0; l < k; l++)
            for (int j = 0; j < 16; j++)
                sum[j] += a[i * k + l] * b[l * 16 + j];
        for (int j = 0; j < 16; j++)
            d[i * 16 + j] = sum[j];
    }
}
} // namespace matrix
} // namespace emulation
