/* SPDX-License-Identifier: Apache-2.0 */
/* Which DVH bin a dose falls into: the same arithmetic on every backend, so that the same dose bytes
 * give the same counts. */
#ifndef DOSEMAP_KERNELS_DVH_BIN_H
#define DOSEMAP_KERNELS_DVH_BIN_H

#include <stdint.h>

#if defined(__CUDACC__)
#define DM_SHARED_FN static __host__ __device__ inline
#else
#define DM_SHARED_FN static inline
#endif

/* dose >= 0 and finite; width > 0; bins >= 1. Doubles, because float32 bin edges would move. */
DM_SHARED_FN uint32_t dvh_bin(float dose, double width, uint32_t bins)
{
    double b = (double)dose / width;
    return b >= (double)bins ? bins - 1 : (uint32_t)b;
}

#endif
