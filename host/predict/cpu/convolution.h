/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolutions as the CPU backend needs them: prepared once, run from many threads. Source,
 * destination and operands are dense and channels-last, (D, H, W, C), one sample: oneDNN 2.6
 * and 3.2 fall to their reference kernels (a hundredfold slower) on anything wider than its
 * channels, and gain nothing from several samples at once.
 */
#ifndef DOSEMAP_PREDICT_CPU_CONVOLUTION_H
#define DOSEMAP_PREDICT_CPU_CONVOLUTION_H

#include "model/plan.h"

/* An operation on the result before it is stored. */
typedef struct post_operation {
    chain_op op;       /* CHAIN_ADD_TENSOR or an activation without per-channel parameters */
    float alpha;       /* LEAKY_RELU, ELU */
    element_type type; /* ADD_TENSOR: of the operand, which has the size of the destination */
    bool in_place;     /* ADD_TENSOR: the operand is what the destination holds before the run,
                            unless that is staged */
} post_operation;

typedef struct convolution_spec {
    const char *name; /* for messages */
    unsigned threads; /* of the library's own, for each run; 0 counts as 1 */
    bool transposed;  /* the gradient of a convolution for its input: no bias, no post-operations */
    size_t in_channels, out_channels, groups;
    size_t in[3], out[3]; /* z, y, x */
    size_t kernel[3], stride[3], dilation[3], pad_begin[3];
    const float *weight;   /* (O, I/groups, kz, ky, kx), transposed (I, O/groups, kz, ky, kx) */
    const float *bias;     /* NULL for none */
    element_type type;     /* of source and weights */
    element_type out_type; /* of the destination when all post-operations are done */
    bool staged;           /* the destination is float32 in any case */
    size_t n_post;
    const post_operation *post;
} convolution_spec;

typedef struct convolution convolution;

/* Keeps nothing of the spec. *post_done says how many leading post-operations are done; fewer than
 * all where the library has only a reference kernel for more. With post_done < n_post the
 * destination is float32, so that the rest is applied before anything is rounded. Errors:
 * UNSUPPORTED where the CPU or the library has no such kernel. */
dm_status convolution_create(const convolution_spec *spec, convolution **conv, size_t *post_done,
                             dm_error *err);
void convolution_free(convolution *conv);
size_t convolution_scratch_bytes(const convolution *conv);
/* The library's name for the kernel it chose, and whether it is a reference (very slow) one. */
const char *convolution_kernel(const convolution *conv);
bool convolution_is_reference(const convolution *conv);

/* One thread's handles on a convolution, which must outlive them. */
typedef struct convolution_binding convolution_binding;
dm_status convolution_bind(const convolution *conv, convolution_binding **binding, dm_error *err);
void convolution_unbind(convolution_binding *binding);
/* operands: one for each post-operation done, NULL where it has none or is in place; may be NULL if
 * none has. scratch: 64-byte aligned, convolution_scratch_bytes. */
dm_status convolution_run(convolution_binding *binding, const void *source, void *destination,
                          const void *const *operands, void *scratch, dm_error *err);

const char *convolution_library(void);
/* Multiplications in this type for one in float32 at the same time. */
double convolution_gain(element_type type);
/* True where the CPU has instructions of its own for this type. */
bool convolution_is_native(element_type type);

#endif
