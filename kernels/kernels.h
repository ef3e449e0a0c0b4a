/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CUDA kernels as C functions. Every launcher is asynchronous on `stream` and returns what the
 * launch returned; nothing is launched for zero samples or voxels. Pointers are device pointers
 * unless they say host; structures are host structures that are copied into the launch.
 *
 * N samples; D, H, W (z, y, x) voxels; C channels. Element (n, z, y, x, c) of a tensor is
 * data[n*sample + ((z*H + y)*W + x)*pitch + c].
 */
#ifndef DOSEMAP_KERNELS_KERNELS_H
#define DOSEMAP_KERNELS_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dvh_value.h"
#include "kernels/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Tensors -------------------------------------------------------------------------------- */

typedef struct device_tensor {
    void *data;           /* channel 0 of voxel 0 of sample 0 */
    size_t sample, pitch; /* elements from one sample, one voxel, to the next */
    unsigned channels;
    unsigned dim[3]; /* z, y, x */
    element_type type;
} device_tensor;

/* A tensor that a chain reads; steps of 0 broadcast it. */
typedef struct device_operand {
    const void *data;
    size_t sample, z, y, x, c; /* elements from one to the next */
    element_type type;
} device_operand;

typedef struct device_link {
    chain_op op;
    float alpha;
    const float *scale, *shift; /* per channel; AFFINE: NULL counts as 1 and 0 */
    device_operand operand;     /* *_TENSOR */
} device_link;

/* Longer chains are continued by kernel_pointwise. */
#define DEVICE_MAX_LINKS 6

typedef struct device_epilogue {
    const float *bias; /* per channel of the result, NULL for none */
    unsigned n;
    device_link link[DEVICE_MAX_LINKS];
} device_epilogue;

/* ---- Pointwise (pointwise.cu) --------------------------------------------------------------- */

/* out = epilogue(in), also with another element type or pitch; in may be out. Both have the same
 * size, or in is 1 in some of D, H, W, C and repeated there. */
cudaError_t kernel_pointwise(const device_tensor *in, const device_tensor *out, unsigned samples,
                             const device_epilogue *epilogue, cudaStream_t stream);

/* ---- Normalisation (normalise.cu) ----------------------------------------------------------- */

/* Mean and 1/sqrt(variance + epsilon) of each sample and group of channels/groups channels, by
 * Welford or two passes: statistics[samples][groups][2], float32. workspace: normalise_workspace
 * bytes. The same bytes whatever the device does first. */
size_t normalise_workspace(const device_tensor *in, unsigned samples, unsigned groups);
cudaError_t kernel_normalise_statistics(const device_tensor *in, unsigned samples, unsigned groups,
                                        float epsilon, float *statistics, void *workspace,
                                        cudaStream_t stream);
/* out = epilogue((in - mean) * inverse deviation * scale[c] + shift[c]); scale, shift may be NULL.
 */
cudaError_t kernel_normalise_apply(const device_tensor *in, const device_tensor *out,
                                   unsigned samples, unsigned groups, const float *statistics,
                                   const float *scale, const float *shift,
                                   const device_epilogue *epilogue, cudaStream_t stream);
/* out (1x1x1) = epilogue(mean over all voxels), from statistics with groups = channels. */
cudaError_t kernel_global_average(const float *statistics, const device_tensor *out,
                                  unsigned samples, const device_epilogue *epilogue,
                                  cudaStream_t stream);

/* ---- Pooling (pool.cu) ---------------------------------------------------------------------- */

typedef struct device_pool {
    int kernel[3], stride[3], dilation[3], pad_begin[3], pad_end[3];
    bool maximum, count_include_pad;
} device_pool;
cudaError_t kernel_pool(const device_pool *pool, const device_tensor *in, const device_tensor *out,
                        unsigned samples, const device_epilogue *epilogue, cudaStream_t stream);

/* ---- Moving voxels (move_voxels.cu) --------------------------------------------------------- */

/* How one axis of the result falls onto the input: result i is
 * in[low[i]] + weight[i]*(in[high[i]] - in[low[i]]), or `fill` where low[i] is -1. */
typedef struct device_axis_map {
    const int *low, *high;
    const float *weight;
} device_axis_map;

/* Pad, slice, nearest resize: channel c of the result is channel channel_begin + c*channel_step of
 * one voxel of the input, low of each axis (z, y, x), or fill. */
cudaError_t kernel_take_voxels(const device_axis_map axis[3], unsigned channel_begin,
                               unsigned channel_step, float fill, const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream);
/* Linear resize. */
cudaError_t kernel_interpolate(const device_axis_map axis[3], const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream);

/* ---- Convolutions --------------------------------------------------------------------------- */

/* weight: (O, kz, ky, kx, I/groups) in the input's element type, for direct and transposed
 * convolutions alike. What lies beyond the input counts as zero; padding at the end follows from
 * the result's size. */
typedef struct device_convolution {
    int kernel[3], stride[3], dilation[3], pad_begin[3];
    unsigned groups;
    bool transposed;
    bool tf32; /* float32 products may be rounded to TF32 */
    const void *weight;
} device_convolution;

/* Any case, on CUDA cores, summed in float32 in the order kz, ky, kx, channel (convolution.cu). */
cudaError_t kernel_convolution(const device_convolution *convolution, const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream);

/* Implicit GEMM on tensor cores (convolution_tensor_core.cu): not transposed, one group, input
 * channels a multiple of 16 and output channels of 16, bf16, fp16, or float32 with tf32. */
bool convolution_tensor_core_takes(const device_convolution *convolution, const device_tensor *in,
                                   const device_tensor *out);
cudaError_t kernel_convolution_tensor_core(const device_convolution *convolution,
                                           const device_tensor *in, const device_tensor *out,
                                           unsigned samples, const device_epilogue *epilogue,
                                           cudaStream_t stream);

/* The same for 3x3x3, stride and dilation 1, at high resolutions (convolution_halo.cu): a block
 * fetches its box of the input once. bf16 or fp16; channels and alignment as above. */
bool convolution_halo_takes(const device_convolution *convolution, const device_tensor *in,
                            const device_tensor *out);
/* At least half of what it computes is part of a result of that size; for a choice without timing.
 */
bool convolution_halo_pays(const device_tensor *out);
cudaError_t kernel_convolution_halo(const device_convolution *convolution, const device_tensor *in,
                                    const device_tensor *out, unsigned samples,
                                    const device_epilogue *epilogue, cudaStream_t stream);

/* First layer: at most 4 input channels, one group, not transposed (convolution_first.cu). */
bool convolution_first_takes(const device_convolution *convolution, const device_tensor *in,
                             const device_tensor *out);
cudaError_t kernel_convolution_first(const device_convolution *convolution, const device_tensor *in,
                                     const device_tensor *out, unsigned samples,
                                     const device_epilogue *epilogue, cudaStream_t stream);

/* Second half of a transposed convolution whose kernel is its stride (unfold.cu): `blocks` holds
 * for each input voxel the kernel's voxels [kz][ky][kx][channels of out]; each becomes a voxel of
 * out. */
cudaError_t kernel_unfold(const int kernel[3], const device_tensor *blocks,
                          const device_tensor *out, unsigned samples,
                          const device_epilogue *epilogue, cudaStream_t stream);

/* Attention gate (Oktay et al. 2018), additive, on one grid (attention_gate.cu):
 * a = relu(coarse_weight coarse + skip_weight skip + bias), s = sigmoid(psi a + psi_bias),
 * out = skip * s. Weights (O, I) and psi (O) in the tensors' element type, biases float32.
 * Intermediates are rounded to the element type where separate steps would store them: coarse_weight
 * coarse + coarse_bias, a and s. */
typedef struct device_gate {
    const void *coarse_weight, *skip_weight, *psi_weight;
    const float *coarse_bias, *skip_bias, *psi_bias; /* NULL for none; psi_bias is one value */
    unsigned inner;                                  /* channels of a */
} device_gate;
bool attention_gate_takes(const device_gate *gate, const device_tensor *coarse,
                          const device_tensor *skip, const device_tensor *out);
cudaError_t kernel_attention_gate(const device_gate *gate, const device_tensor *coarse,
                                  const device_tensor *skip, const device_tensor *out,
                                  unsigned samples, cudaStream_t stream);

/* ---- Volumes -------------------------------------------------------------------------------- */

/* A box of a volume seen along the model's axes x, y, z: voxel i (of the whole volume) with
 * begin <= i < begin + dim lies at data[sum (i - begin)*stride]. Strides of flipped axes are
 * negative. */
typedef struct device_volume {
    float *data;
    ptrdiff_t stride[3];
    size_t begin[3], dim[3];
} device_volume;

/* Target index t takes sum over k < count[t] of weight[offset[t] + k] * source[first[t] + k]. */
typedef struct device_axis_table {
    const unsigned *first, *count, *offset;
    const float *weight;
} device_axis_table;

/* predict/tiling.h on the device; x, y, z. */
typedef struct device_tiling {
    size_t volume[3], tile[3], pad_before[3];
    unsigned n[3];
    const unsigned *start[3];
    const float *importance;
} device_tiling;

/* Where the windows of a batch are: `samples` window numbers; NO_WINDOW for an unused place, whose
 * input is zeros and whose output is not added. */
#define NO_WINDOW 0xffffffffu

/* The first fault in the order of windows and, within one, of z, y, x: window * voxels of a tile +
 * voxel in the tile. NO_FAULT before the first launch. */
#define NO_FAULT UINT64_MAX

/* Of the input tensor. */
#define DEVICE_MAX_CHANNELS 4

/* From stored values to a channel of the network's input. */
typedef struct device_channel {
    float factor;
    intensity_transform intensity;
} device_channel;

typedef struct device_gather {
    device_volume source; /* of the first channel's voxels, in the model's axes */
    ptrdiff_t apart;      /* floats from a voxel to the same one of the next channel */
    unsigned channels;
    unsigned air_channel; /* whose values tell air */
    bool exact;           /* no resampling: the tables are not read */
    device_axis_table table[3];
    bool nan_to_zero;
    device_channel channel[DEVICE_MAX_CHANNELS];
    device_tiling tiling;
} device_gather;

/* maximum[i] = largest quantity of the channel that tells air (before the intensity transform) in
 * window windows[i], NaN ignored, -infinity if there is none (gather.cu). */
cudaError_t kernel_window_maximum(const device_gather *gather, const unsigned *windows,
                                  unsigned samples, float *maximum, cudaStream_t stream);
/* out: (samples, tile z, y, x, channels); of 2 or 4 channels, data, sample and pitch are whole
 * voxels. fault: where a transform has no finite value, the first in the order of windows, channels
 * and voxels: (window * channels + channel) * voxels of a tile + voxel in the tile. */
cudaError_t kernel_gather(const device_gather *gather, const unsigned *windows, unsigned samples,
                          const device_tensor *out, unsigned long long *fault, cudaStream_t stream);

/* sum += importance * output of each window, in the order of the batch, which ascends (stitch.cu).
 * sum: the model grid, or the box of it that the batch touches; what lies outside the box is left
 * out. fault: an output that is not finite. output: (samples, tile z, y, x, 1). */
cudaError_t kernel_stitch(const device_tiling *tiling, const unsigned *windows, unsigned samples,
                          const device_tensor *output, const device_volume *sum,
                          unsigned long long *fault, cudaStream_t stream);
/* The same, fused with the network's last convolution (one output channel, stride 1, in's size) and
 * its chain, which has no tensors. */
bool head_stitch_takes(const device_convolution *head, const device_tensor *in,
                       const device_epilogue *epilogue);
cudaError_t kernel_head_stitch(const device_convolution *head, const device_tensor *in,
                               const device_epilogue *epilogue, const device_tiling *tiling,
                               const unsigned *windows, unsigned samples, const device_volume *sum,
                               unsigned long long *fault, cudaStream_t stream);
/* sum -> factor * transform(sum / total importance) over the box. fault: the linear index (x
 * fastest) in the model grid of the first voxel without a finite value. */
cudaError_t kernel_finish(const device_tiling *tiling, const device_volume *sum,
                          const intensity_transform *transform, float factor,
                          unsigned long long *fault, cudaStream_t stream);

/* Every voxel of the target's box from the source through the tables (resample.cu). */
cudaError_t kernel_resample(const device_axis_table table[3], const device_volume *source,
                            const device_volume *target, cudaStream_t stream);

/* ---- Voxels of structures (structure_voxels.cuh) -------------------------------------------- */

/* Sets of voxels, of labels or of a whole volume, as runs of consecutive voxels; sets may overlap.
 * Counted run by run and structure by structure, voxels have the places 0, 1, 2 ...; a tile is a
 * stretch of places within one structure, and what one block works on. */
typedef struct device_run {
    unsigned long long place, voxel; /* of its first voxel: place, linear index */
} device_run;
typedef struct device_tile {
    unsigned long long place; /* of its first voxel */
    size_t run;               /* that has this voxel */
    unsigned runs, voxels;
    unsigned structure;
} device_tile;
typedef struct device_structures {
    const device_run *run;
    const device_tile *tile;    /* those of structure s: first_tile[s] to first_tile[s + 1] - 1 */
    const unsigned *first_tile; /* [count + 1] */
    unsigned tiles, count;
} device_structures;

/* ---- Dose-volume histograms (dvh.cu) -------------------------------------------------------- */

/* Of a structure, or of a tile of it. */
typedef struct device_dvh_summary {
    dvh_sum sum;
    unsigned lowest, highest; /* dvh_key */
    unsigned long long fault; /* place of the first voxel that is not finite, or NO_FAULT */
} device_dvh_summary;

/* The voxel in that place of the order of doses, 0 being the hottest. */
typedef struct device_dvh_rank {
    unsigned long long rank; /* before: among all voxels; after: among those with the same key */
    unsigned key;            /* before: 0 */
    unsigned table;          /* before: 0; workspace */
} device_dvh_rank;

#define DEVICE_DVH_DIGITS 256 /* values of one digit of a key */

typedef struct device_dvh_statistics {
    const float *dose;
    device_structures structures;
    device_dvh_summary *summary; /* [count] out */
    device_dvh_rank *rank;       /* [count][DVH_RANKS] in and out */
    device_dvh_summary *partial; /* [tiles] workspace */
    unsigned long long *digits;  /* [count][DVH_RANKS][DEVICE_DVH_DIGITS] workspace */
} device_dvh_statistics;

/* Sum, lowest and highest key, first fault of each structure, and the keys of the ranks asked for:
 * exactly those that sorting would give. A structure without voxels has the sum 0, NO_FAULT and
 * meaningless keys; one with a fault, meaningless keys. */
cudaError_t kernel_dvh_statistics(const device_dvh_statistics *dvh, cudaStream_t stream);

/* Where the histogram of a structure is (dvh_bin.h). */
typedef struct device_dvh_bins {
    double width;
    size_t first; /* bin in the array of all */
    unsigned bins;
} device_dvh_bins;

/* histogram: voxels in each bin, all structures one after the other. passed: [count][thresholds+1],
 * voxels whose key passes (is at least) exactly i of the ascending threshold keys; not written
 * where there are none. */
cudaError_t kernel_dvh_histogram(const float *dose, const device_structures *structures,
                                 const device_dvh_bins *bins, unsigned long long *histogram,
                                 size_t histogram_bins, const unsigned *threshold,
                                 unsigned thresholds, unsigned long long *passed,
                                 cudaStream_t stream);

/* ---- Image metrics (image_metrics.cu) ------------------------------------------------------- */

/* Of a prediction a and a reference b over the voxels of a structure in which both are finite. */
typedef struct device_metric_sums {
    unsigned long long count, not_finite; /* voxels; others, which are left out */
    unsigned long long relative_count;    /* voxels with |b| above the threshold */
    double a, b, aa, bb, ab;
    double squared, absolute; /* (a - b)^2, |a - b| */
    double relative;          /* |a - b| / |b| over the relative_count voxels */
    double worst;             /* largest |a - b|; 0 without voxels */
    double lowest, highest;   /* of b; infinity and -infinity without voxels */
} device_metric_sums;

/* The same about the means, sum (a - mean a)^2 and so on: for deviations and correlation, which aa
 * and a would give as small differences of large numbers. */
typedef struct device_metric_moments {
    double aa, bb, ab;
} device_metric_moments;

typedef struct device_metrics {
    const float *a, *b;
    device_structures structures;
    double relative_above;          /* threshold, not negative */
    device_metric_sums *sums;       /* [count] out */
    device_metric_moments *moments; /* [count] out */
    device_metric_sums *partial;    /* [tiles] workspace */
} device_metrics;

cudaError_t kernel_metric_sums(const device_metrics *metrics, cudaStream_t stream);

/* Structural similarity (Wang et al. 2004, eq. 13) with K1 = 0.01 and K2 = 0.03. */
typedef enum ssim_window {
    SSIM_UNIFORM,  /* 7 x 7 x 7 voxels alike; sample covariances (n - 1) */
    SSIM_GAUSSIAN, /* sigma 1.5 voxels, cut off at 11 x 11 x 11; covariances of the whole */
    SSIM_WINDOWS
} ssim_window;

/* mean: its mean over all windows that lie inside the volume of dim voxels (x, y, z; x fastest), NAN
 * if there are none or if a voxel is not finite. range: of the values, above zero.
 * workspace: ssim_workspace bytes. */
size_t ssim_workspace(const size_t dim[3], ssim_window window);
cudaError_t kernel_ssim(const float *a, const float *b, const size_t dim[3], ssim_window window,
                        double range, double *mean, void *workspace, cudaStream_t stream);

/* ---- Comparisons (check.cu) ----------------------------------------------------------------- */

/* n elements one after the other: 8-bit values in [-1, 1) that follow from index and seed, the same
 * in every type. */
cudaError_t kernel_fill_random(void *data, size_t n, element_type type, unsigned seed,
                               cudaStream_t stream);

/* Of a part of two tensors. */
typedef struct device_deviation {
    double squares, scale;   /* sums of (got - want)^2 and want^2 */
    unsigned excess;         /* bits of the largest |got - want| - rounding * max(|got|, |want|),
                                at least 0; NaN if there is one */
    unsigned long long lost; /* elements that should be NaN and are not */
} device_deviation;

#define DEVICE_COMPARE_BLOCKS 512
/* partial: [compare_blocks(n)], to be joined in this order. rounding: relative, of which nothing
 * is counted as excess. */
unsigned compare_blocks(size_t n);
cudaError_t kernel_compare(const void *got, const void *want, size_t n, element_type type,
                           float rounding, device_deviation *partial, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
