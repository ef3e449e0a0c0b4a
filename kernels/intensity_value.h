/* SPDX-License-Identifier: Apache-2.0 */
/* A value through an intensity transform: the same arithmetic on every backend. */
#ifndef DOSEMAP_KERNELS_INTENSITY_VALUE_H
#define DOSEMAP_KERNELS_INTENSITY_VALUE_H

#include <math.h>

#include "kernels/types.h"

#if defined(__CUDACC__)
#define DM_SHARED_FN static __host__ __device__ inline
#else
#define DM_SHARED_FN static inline
#endif

/* One step. NaN stays NaN: clipping is written so, where fminf and fmaxf would hide it. */
DM_SHARED_FN float intensity_value(intensity_kind kind, float a, float b, float v)
{
    switch (kind) {
    case INTENSITY_SCALE:
#if defined(__CUDA_ARCH__)
        return __fadd_rn(__fmul_rn(a, v), b); /* nvcc would round once */
#else
        return a * v + b;
#endif
    case INTENSITY_CLIP:
        v = v < a ? a : v;
        return v > b ? b : v;
    case INTENSITY_LOG1P:
        return log1pf(v);
    case INTENSITY_EXPM1:
        return expm1f(v);
    case INTENSITY_SQRT:
        return sqrtf(v);
    case INTENSITY_SQUARE:
        return v * v;
    }
    return v;
}

/* All steps, in order. */
DM_SHARED_FN float intensity_transformed(const intensity_transform *transform, float v)
{
    for (size_t s = 0; s < transform->n; s++)
        v = intensity_value(transform->step[s].kind, transform->step[s].a, transform->step[s].b, v);
    return v;
}

#endif
