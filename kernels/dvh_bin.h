/* SPDX-License-Identifier: Apache-2.0 */
/* Which DVH bin a dose falls into: the same arithmetic on every backend, so that the same dose
 * bytes give the same counts. Doubles, because float32 bin edges would move. */
#ifndef DOSEMAP_KERNELS_DVH_BIN_H
#define DOSEMAP_KERNELS_DVH_BIN_H

#include <stdint.h>

#if defined(__CUDACC__)
#define DM_SHARED_FN static __host__ __device__ inline
#else
#define DM_SHARED_FN static inline
#endif

/* Bounds the memory of a map in another unit (mGy, say), whose maximum would ask for millions. */
#define DVH_MAX_BINS 100000

/* maximum: finite, of one structure. 0.01, but at least 1000 and at most DVH_MAX_BINS bins. */
DM_SHARED_FN double dvh_bin_width(double maximum)
{
    double width = maximum > 0 && maximum < 10 ? maximum / 1000 : 0.01;
    return maximum > width * DVH_MAX_BINS ? maximum / DVH_MAX_BINS : width;
}

/* The number of bins from 0 to the one that holds the maximum. */
DM_SHARED_FN uint32_t dvh_bin_count(double maximum, double width)
{
    return maximum > 0 ? (uint32_t)(maximum / width) + 1 : 1;
}

/* dose: finite, at most the maximum; what is negative counts to the first bin. */
DM_SHARED_FN uint32_t dvh_bin(float dose, double width, uint32_t bins)
{
    double b = (double)dose / width;
    if (!(b > 0))
        return 0;
    return b >= (double)bins ? bins - 1 : (uint32_t)b;
}

#endif
