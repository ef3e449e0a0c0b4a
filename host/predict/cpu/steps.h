/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of a plan that are not convolutions. Each makes its result in float32 a run of voxels
 * at a time, in a buffer that stays in the innermost cache; the step's chain is applied there, and
 * only then is the run rounded and stored (rows_finish). So there is one place for chains, for
 * element types and for views. Several threads may share a step: each makes its planes of the
 * result.
 *
 * Voxels of a tensor are counted z, y, x; a run is consecutive voxels, all channels of each.
 */
#ifndef DOSEMAP_PREDICT_CPU_STEPS_H
#define DOSEMAP_PREDICT_CPU_STEPS_H

#include "predict/step_axis.h"

/* Loops are compiled for several instruction sets and chosen when the program starts, since the
 * program itself is built for any x86-64. Multiplication and addition are never contracted (no
 * FMA), so every version gives the same bytes. Sanitizers run before the choice can be made. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) &&                             \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MANY_CPUS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MANY_CPUS
#endif

/* A tensor, or part of one, where it lies. */
typedef struct tensor_view {
    void *data; /* the first channel of voxel 0 */
    size_t channels, pitch;
    size_t dim[3]; /* z, y, x */
    element_type type;
} tensor_view;

size_t view_voxels(const tensor_view *view);
/* Planes z, z+1, ... of a view. */
tensor_view view_planes(const tensor_view *view, size_t z, size_t planes);
bool view_is_dense(const tensor_view *view);

/* A chain_link with its operand found. */
typedef struct bound_link {
    chain_op op;
    float alpha;
    const float *scale, *shift; /* AFFINE: NULL counts as 1 and 0 */
    tensor_view tensor;
} bound_link;

typedef struct bound_chain {
    size_t n;
    const bound_link *links;
} bound_chain;

/* A thread's buffers: `row` and `operand` hold row_floats each, at least one voxel of any step.
 * And its share of the step, of `shares` about equal ones. */
typedef struct step_buffers {
    unsigned share, shares;
    size_t row_floats;
    float *row, *operand;
} step_buffers;

/* What is between the two passes of a normalisation, for `channels` each. */
typedef struct norm_state {
    double *mean, *variance;
    float *centre, *scale, *shift;
} norm_state;

/* The share's part of n planes: from *first up to *end. */
void share_planes(const step_buffers *buffers, size_t n, size_t *first, size_t *end);
/* Voxels that fit a buffer. */
size_t rows_capacity(const step_buffers *buffers, size_t channels);
/* Voxels [first, first+n) of `like` as float32 into row, from a view of its size, or one that is
 * repeated along the dimensions and channels of which it has 1. */
void rows_load(const tensor_view *view, const tensor_view *like, size_t first, size_t n,
               float *row);
/* buffers->row holds voxels [first, first+n) of out: applies the chain and stores. */
void rows_finish(const step_buffers *buffers, const tensor_view *out, const bound_chain *chain,
                 size_t first, size_t n);
/* The chain alone, on a row of voxels [first, first+n) of `like`. */
void chain_apply(const bound_chain *chain, const step_buffers *buffers, const tensor_view *like,
                 size_t first, size_t n);

/* STEP_POINTWISE, STEP_COPY */
void step_pointwise(const step_buffers *buffers, const tensor_view *in, const tensor_view *out,
                    const bound_chain *chain);
/* A part of a larger result, not shared: in's voxel 0 is out's voxel `first`. */
void step_pointwise_part(const step_buffers *buffers, const tensor_view *in, size_t first,
                         const tensor_view *out, const bound_chain *chain);
/* Statistics of all voxels, by one thread; then the result, shared. */
void step_norm_measure(const step_buffers *buffers, const plan_step *step, const tensor_view *in,
                       norm_state *state);
void step_norm_apply(const step_buffers *buffers, const norm_state *state, const tensor_view *in,
                     const tensor_view *out, const bound_chain *chain);
void step_max_pool(const step_buffers *buffers, const graph_node *node, const tensor_view *in,
                   const tensor_view *out, const bound_chain *chain);
void step_average_pool(const step_buffers *buffers, const graph_node *node, const tensor_view *in,
                       const tensor_view *out, const bound_chain *chain);
/* Not shared. */
void step_global_average_pool(const step_buffers *buffers, norm_state *state, const tensor_view *in,
                              const tensor_view *out, const bound_chain *chain);
/* STEP_PAD, STEP_SLICE, STEP_RESIZE (nearest): every voxel comes from one voxel or is `fill`. */
void step_gather(const step_buffers *buffers, const step_axis map[3], size_t channel_begin,
                 size_t channel_step, float fill, const tensor_view *in, const tensor_view *out,
                 const bound_chain *chain);
/* STEP_RESIZE (linear) */
void step_interpolate(const step_buffers *buffers, const step_axis map[3], const tensor_view *in,
                      const tensor_view *out, const bound_chain *chain);
/* Second half of a transposed convolution whose kernel is its stride: `blocks` (float32, dense)
 * holds for each input voxel of planes z, z+1, ... the kernel's voxels [kz][ky][kx][channels]. */
void step_unfold(const step_buffers *buffers, const int kernel[3], const tensor_view *blocks,
                 size_t z, const tensor_view *out, const bound_chain *chain);

#endif
