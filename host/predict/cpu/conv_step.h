/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A convolution step round oneDNN's convolution, which takes and gives dense tensors only:
 *
 *   source view --pack--> dense --oneDNN--> dense float32 stage --bias, chain, unfold--> result
 *
 * or winograd.c's, which reads and writes views itself:
 *
 *   source view --filtering--> result, or a stage of a few planes --chain--> result
 *
 * Packing and the stage are left out where nothing needs them. Where each voxel's result depends on
 * its own input voxel only (1x1x1; transposed with kernel = stride, a 1x1x1 convolution to
 * kz*ky*kx*O channels), the step runs a few planes at a time, so that pack and stage stay in cache.
 *
 * Threads share a step by its pieces or planes of tiles; a step without either is one thread's, and
 * oneDNN's own threads share the convolution.
 */
#ifndef DOSEMAP_PREDICT_CPU_CONV_STEP_H
#define DOSEMAP_PREDICT_CPU_CONV_STEP_H

#include "predict/cpu/convolution.h"
#include "predict/cpu/steps.h"
#include "predict/cpu/winograd.h"

enum { CONV_STEP_MAX_POST = 8 };

typedef struct conv_step {
    convolution *conv; /* this one or the other */
    winograd *winograd;
    size_t post_done; /* leading links of the chain that either does */
    post_operation post[CONV_STEP_MAX_POST];
    bool pack, stage, unfold;
    bool bias_apart; /* the bias is left to the chain */
    size_t planes;   /* of the input, run at a time; divides it */
    bool pieces;     /* planes are independent of each other */
    size_t stage_channels;
    element_type source_type; /* that oneDNN reads */
    size_t pack_at, stage_at, scratch_bytes;
} conv_step;

/* threads: that run the step together */
dm_status conv_step_create(const plan *plan, const plan_step *step, unsigned threads,
                           conv_step *conv, dm_error *err);
bool conv_step_is_shared(const conv_step *conv);
void conv_step_free(conv_step *conv);
const char *conv_step_kernel(const conv_step *conv);

/* One thread's handles: views, the tensors of the links that are done (NULL for others), the
 * rest of the chain with the bias in front of it if it is apart. */
typedef struct bound_conv {
    const conv_step *conv;
    convolution_binding *binding; /* NULL for winograd */
    tensor_view in, out;
    const void *operands[CONV_STEP_MAX_POST];
    bound_chain rest;
} bound_conv;

/* The share of `buffers`; all of it if the step is not shared. */
dm_status conv_step_run(const bound_conv *bound, const plan_step *step, const step_buffers *buffers,
                        unsigned char *scratch, dm_error *err);

#endif
