/* SPDX-License-Identifier: Apache-2.0 */
/* Words that the plan, the CPU's loops and the CUDA kernels share. */
#ifndef DOSEMAP_KERNELS_TYPES_H
#define DOSEMAP_KERNELS_TYPES_H

#include <stddef.h>

typedef enum element_type { ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16 } element_type;

/* One pointwise operation on the running value v of a step. */
typedef enum chain_op {
    CHAIN_ADD_TENSOR,  /* v + t */
    CHAIN_MUL_TENSOR,  /* v * t */
    CHAIN_SUB_TENSOR,  /* v - t */
    CHAIN_RSUB_TENSOR, /* t - v */
    CHAIN_AFFINE,      /* scale[c]*v + shift[c] */
    CHAIN_RELU,
    CHAIN_LEAKY_RELU, /* alpha */
    CHAIN_PRELU,      /* scale[c] as slope */
    CHAIN_ELU,        /* alpha */
    CHAIN_GELU,
    CHAIN_GELU_TANH,
    CHAIN_SIGMOID,
    CHAIN_TANH,
    CHAIN_SOFTPLUS,
    CHAIN_AT_LEAST, /* alpha, where v is below it */
    CHAIN_AT_MOST   /* alpha, where v is above it */
} chain_op;

/* One step of an input's or output's intensity transform, y = f(x). */
typedef enum intensity_kind {
    INTENSITY_SCALE,
    INTENSITY_CLIP,
    INTENSITY_LOG1P,
    INTENSITY_EXPM1,
    INTENSITY_SQRT,
    INTENSITY_SQUARE
} intensity_kind;
typedef struct intensity_step {
    intensity_kind kind;
    float a, b; /* SCALE: a*x + b; CLIP: to [a, b]; others unused */
} intensity_step;
#define INTENSITY_MAX_STEPS 8
typedef struct intensity_transform {
    size_t n;
    intensity_step step[INTENSITY_MAX_STEPS];
} intensity_transform;

#endif
