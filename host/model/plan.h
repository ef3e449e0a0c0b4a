/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan: what a backend runs for one tile size. Made from a graph by folding BatchNormalization
 * into convolutions, joining pointwise operations to the step before, writing concatenations in
 * place, and laying all activations into one arena.
 *
 * Activations are channels-last: (N, D, H, W, C) with D, H, W = z, y, x. A tensor may be a view
 * into the channels of a wider one (`pitch` > `channels`): that is how concatenation costs nothing.
 */
#ifndef DOSEMAP_MODEL_PLAN_H
#define DOSEMAP_MODEL_PLAN_H

#include "model/graph.h"

size_t element_size(element_type type);

typedef struct plan_tensor {
    const char *name;
    size_t channels;
    size_t dim[3];        /* z, y, x */
    size_t pitch;         /* elements from one voxel to the next */
    size_t channel_start; /* of the view inside its buffer */
    element_type type;
    size_t offset;       /* bytes from the arena's start to the BUFFER (not the view), per sample:
                            at batch n the buffer starts at n*offset */
    size_t buffer_bytes; /* of the whole buffer, per sample, a multiple of 64 */
} plan_tensor;

/* One pointwise operation on the running value of a step. */
typedef struct chain_link {
    chain_op op;
    int tensor;  /* for *_TENSOR: same size as the result, or 1 channel and/or 1x1x1 voxels,
                   then broadcast */
    float alpha; /* LEAKY_RELU, ELU; AT_LEAST and AT_MOST: the bound */
    const float
        *scale; /* per channel, owned by the plan; AFFINE: NULL counts as 1, and for shift 0 */
    const float *shift;
} chain_link;

typedef enum step_kind {
    STEP_CONV,
    STEP_CONV_TRANSPOSE,
    STEP_NORM,      /* instance (groups == channels) or group normalisation, affine */
    STEP_POINTWISE, /* the chain alone, on in, which has out's size */
    STEP_MAX_POOL,
    STEP_AVERAGE_POOL,
    STEP_GLOBAL_AVERAGE_POOL,
    STEP_RESIZE,
    STEP_PAD,
    STEP_SLICE,
    STEP_COPY /* no chain: into a part of a concatenation that could not be written in place,
                 or into the output, then with conversion to float32 */
} step_kind;

typedef struct plan_step {
    step_kind kind;
    const char *name;
    const graph_node *node; /* attributes (kernel, stride, ...); NULL for STEP_COPY and POINTWISE */
    int in, out;            /* tensors */
    const float *weight;    /* STEP_CONV (O, I/g, kz, ky, kx), STEP_CONV_TRANSPOSE (I, O/g, kz, ky,
                               kx); folded */
    const float *bias;      /* per output channel, NULL for none */
    const float *scale, *shift; /* STEP_NORM: affine, NULL for none */
    size_t n_chain;
    chain_link *chain;   /* applied to each element in float before it is stored. out may lie where
                            one tensor of the chain lies, or for POINTWISE in: each element is
                            read, once, before it is written */
    double flops;        /* of convolutions, per sample, multiply and add counted as two, padding
                            taps included; other steps are bound by bytes and have 0 */
    double useful_flops; /* without taps on padding */
    double bytes;        /* read and written per sample, weights not counted */
    double weight_bytes;
} plan_step;

/* What a backend's convolutions can do, so that the plan can decide about views. */
typedef struct plan_options {
    size_t tile[3];         /* z, y, x */
    element_type type;      /* of activations; the network's output is always float32 */
    bool conv_reads_views;  /* convolutions read a view (pitch > channels) at full speed */
    bool conv_writes_views; /* ... and write one; otherwise a STEP_COPY follows */
    bool optimise;          /* false: one step per node, no folding, joining or aliasing: the
                               reference against which the plan is tested */
    bool direct;   /* CPU: 3x3x3 convolutions by the library, too, without minimal filtering:
                               nearer to exact arithmetic, in less memory, slower */
    size_t output; /* which of the graph's outputs; nodes that it does not need are left
                               out */
} plan_options;

typedef struct plan {
    const graph *graph;
    plan_options options;
    size_t n_tensors;
    plan_tensor *tensors;
    size_t n_steps;
    plan_step *steps;
    int input, output;  /* tensors; both dense (pitch == channels). Of several inputs, the channels
                           of all lie side by side in `input`, in the order of the ports */
    size_t arena_bytes; /* per sample; a multiple of 64 */
    double flops, useful_flops, bytes, weight_bytes;
    float **owned; /* folded weights and constants */
    size_t n_owned;
    graph_node *ports; /* [n_inputs] owned: STEP_SLICE that takes one of several inputs alone */
} plan;

/* What the CPU backend's convolutions can do (conv_reads_views, conv_writes_views). Here and not in
 * the backend, because describing a model needs no backend. */
void plan_options_cpu(plan_options *options);

/* Each input voxel alone makes one output voxel (1x1x1), or a block of its own (transposed, kernel
 * = stride). Backends run these as matrix products, a part of the voxels at a time, and gather and
 * scatter themselves; so they may read and write views whatever the options say. */
bool conv_is_voxelwise(const graph_node *node);

/* graph_sizes, where a plan can be made for the tile. Errors: VALUE, naming the nearest that fits. */
dm_status plan_sizes(const graph *g, const size_t tile[3], size_t (*sizes)[3], dm_error *err);

/* The graph must outlive the plan. Errors: VALUE if the tile does not fit the network,
 * UNSUPPORTED for operands broadcast along some spatial axes only. */
dm_status plan_build(const graph *g, const plan_options *options, plan **out, dm_error *err);
void plan_free(plan *p);

/* Does the step's result lie where a tensor that it reads lay? */
bool step_is_in_place(const plan *p, const plan_step *step);

#endif
