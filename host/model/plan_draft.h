/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of plan_build share. A plan is made in three passes: nodes become draft steps
 * (plan_draft.c), values become tensors that lie in buffers (plan_place.c), buffers get their place
 * in the arena (plan_arena.c). Until the second pass tensors are named by value ids.
 */
#ifndef DOSEMAP_MODEL_PLAN_DRAFT_H
#define DOSEMAP_MODEL_PLAN_DRAFT_H

#include "model/plan.h"

typedef struct draft_step {
    plan_step step; /* in, out and the chain's tensors are value ids */
    const graph_node
        *concat;          /* not NULL: no step yet, but the place where a concatenation is ready */
    float *weight, *bias; /* own copies, once something was folded into them */
} draft_step;

typedef struct plan_buffer {
    size_t bytes;       /* 0 after it was merged into another */
    size_t first, last; /* steps during which it is in use, counted from 1; 0 is before them */
    size_t offset;
} plan_buffer;

typedef struct plan_draft {
    const graph *g;
    const plan_options *options;
    plan *plan;
    dm_error *err;
    /* Per value of the graph, and one more each for all inputs side by side and for an output that
     * has to be copied. */
    size_t n_values;
    bool *needed; /* the output is made from it */
    size_t (*sizes)[3];
    int *alias;      /* the value that stands for it; itself, except behind Identity */
    int *uses;       /* how many node inputs (and graph outputs) read it */
    int *producer;   /* draft step, -1 for none */
    int *parent;     /* the concatenation that it lies in, -1 for none */
    size_t *start;   /* first channel inside the parent */
    int *tensor;     /* of the plan, -1 for none */
    int *buffer;     /* that a value outside any concatenation has */
    bool *conv_read; /* some convolution reads it that is not voxelwise */
    size_t n_steps;
    draft_step *steps;
    int input, output;
    int *tensor_buffer; /* per tensor of the plan */
    size_t n_buffers;
    plan_buffer *buffers;
} plan_draft;

/* y = scale[c]*x + shift[c], in double until it is folded or stored. */
typedef struct channel_affine {
    size_t channels;
    double *scale; /* owned, with shift in one allocation */
    double *shift;
} channel_affine;

/* All inputs side by side. */
int draft_joined(const plan_draft *d);
size_t draft_channels(const plan_draft *d, int value);
const char *draft_name(const plan_draft *d, int value);
bool is_convolution(const plan_step *step);

/* plan_draft.c: nodes to steps. */
dm_status draft_steps(plan_draft *d);

/* plan_fold.c. Is the node BatchNormalization, or arithmetic with a weight? */
bool node_is_affine(const graph *g, const graph_node *node);
dm_status affine_make(plan_draft *d, const graph_node *node, channel_affine *affine);
void affine_free(channel_affine *affine);
/* Into weights and bias of a convolution. */
dm_status affine_fold(plan_draft *d, draft_step *draft, const channel_affine *affine);
dm_status affine_link(plan_draft *d, const channel_affine *affine, chain_link *link);
/* PRelu's slopes, one per channel. */
dm_status slope_link(plan_draft *d, const graph_value *slope, size_t channels, chain_link *link);

/* plan_place.c: tensors, final steps and the buffer of each tensor. */
dm_status draft_place(plan_draft *d);

/* plan_arena.c: lifetimes, in-place steps and offsets. */
dm_status draft_arena(plan_draft *d);

/* plan_cost.c: fills flops and bytes of the steps and of the plan. */
void plan_cost(plan *p);

/* bytes rounded up to the alignment of buffers; false on overflow. */
bool buffer_bytes(size_t voxels, size_t channels, element_type type, size_t *bytes);

#endif
