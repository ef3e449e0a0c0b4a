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

// A row of 16 sums; the compiler splits it where registers are shorter. No alignment is asked for.
typedef float row __attribute__((vector_size(64), aligned(4), may_alias));

// Products of bfloat16, half and TF32 values are exact in float, so that contraction would change
// nothing. Four rows at once keep the additions' latency hidden.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void multiply(float *d, const float *a, const float *b, int m, int n, int k)
{
    if (n != 16 || m % 4)
        fail("a matrix product of this size is not known");
    row *sums = reinterpret_cast<row *>(d);
    const row *factors = reinterpret_cast<const row *>(b);
    for (int i = 0; i < m; i += 4) {
        row s0 = sums[i], s1 = sums[i + 1], s2 = sums[i + 2], s3 = sums[i + 3];
        const float *a0 = a + i * k;
        for (int l = 0; l < k; l++) {
            const row f = factors[l];
            s0 += a0[l] * f;
            s1 += a0[k + l] * f;
            s2 += a0[2 * k + l] * f;
            s3 += a0[3 * k + l] * f;
        }
        sums[i] = s0;
        sums[i + 1] = s1;
        sums[i + 2] = s2;
        sums[i + 3] = s3;
    }
}
} // namespace matrix
} // namespace emulation
