/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Windows back into a volume (predict/stitch.h):
 *
 *     sum += importance * output            for each window of the batch, in ascending order
 *     dose = factor * transform(sum / total importance)                          at the end
 *
 * The output is either stored (kernel_stitch) or computed here from the network's last feature map
 * (kernel_head_stitch): output = chain(bias + sum over taps and channels of weight * feature).
 *
 * Layouts: outputs (samples, tile z, y, x, 1) float32; features (samples, tile z, y, x, C) of any
 * element type; sum any strides, a box of the model's grid. Preconditions: windows ascend; the box
 * lies in the grid; a tile has fewer than 2^31 voxels.
 * Threads: patches of volume.cuh over the tile, blockIdx.y the place in the batch. Of all windows
 * of the batch that cover a voxel of the sum, the thread of the first owns the voxel: it reads the
 * sum once, adds these windows in order, and writes it once. No two threads own the same voxel, so
 * nothing is atomic and the bytes do not depend on how windows are batched. A block first lists in
 * shared memory, in order, the windows that overlap its patch; if an earlier one covers all of it,
 * nothing is left to do.
 * Bytes per voxel and window: output 4 (or the feature's C elements), importance 4 (from L2), and
 * at most 8 of the sum. FLOP: 2, and with the head 2 taps C. Memory bound but for a 3x3x3 head,
 * whose taps come from L1.
 * finish: 8 bytes a voxel and 4 of importance (L1, L2) for each window over it.
 * Tolerance: the CPU's bytes for stored outputs; with log1p or expm1 at the end within 2 ulp; the
 * head's sum is float32 in the order kz, ky, kx, channel.
 */
#include "kernels/epilogue.cuh"
#include "kernels/intensity_value.h"
#include "kernels/volume.cuh"

/* ---- The windows over a patch --------------------------------------------------------------- */

/* Places of a batch that one launch takes: 16 KiB of shared memory for their list. */
#define PLACES_AT_ONCE 1024u

struct listed_window {
    voxel start;
    unsigned place;
};

/* In shared memory, filled by the block's first warp. */
struct window_list {
    unsigned n;   /* windows that overlap the patch */
    unsigned own; /* which of them is the block's */
    bool is_done; /* an earlier one covers the whole patch */
    listed_window window[1];
};

static inline size_t window_list_bytes(unsigned places)
{
    return (sizeof(window_list) + places * sizeof(listed_window) + 15) / 16 * 16;
}

/* Voxels from low up to before high. */
struct voxel_box {
    voxel low, high;
};

__device__ __forceinline__ int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* The patch on the model's grid, for the window that starts there. */
__device__ __forceinline__ voxel_box patch_box(const patch_grid &g, const patch &p,
                                               const device_tiling &t, const voxel &start)
{
    const voxel at = in_axis_order(g, p.first[0], p.first[1], p.first[2]);
    const voxel size = in_axis_order(g, 1u << g.shift, PATCH_THREADS >> g.shift, PATCH_DEPTH);
    voxel_box box;
    box.low = {start.x + at.x, start.y + at.y, start.z + at.z};
    box.high = {start.x + smaller(at.x + size.x, static_cast<int>(t.tile[0])),
                start.y + smaller(at.y + size.y, static_cast<int>(t.tile[1])),
                start.z + smaller(at.z + size.z, static_cast<int>(t.tile[2]))};
    return box;
}

__device__ __forceinline__ bool overlaps(const device_tiling &t, const voxel &start,
                                         const voxel_box &box)
{
    return start.x < box.high.x && start.x + static_cast<int>(t.tile[0]) > box.low.x &&
           start.y < box.high.y && start.y + static_cast<int>(t.tile[1]) > box.low.y &&
           start.z < box.high.z && start.z + static_cast<int>(t.tile[2]) > box.low.z;
}

__device__ __forceinline__ bool covers(const device_tiling &t, const voxel &start,
                                       const voxel_box &box)
{
    return start.x <= box.low.x && start.x + static_cast<int>(t.tile[0]) >= box.high.x &&
           start.y <= box.low.y && start.y + static_cast<int>(t.tile[1]) >= box.high.y &&
           start.z <= box.low.z && start.z + static_cast<int>(t.tile[2]) >= box.high.z;
}

__device__ __forceinline__ bool covers(const device_tiling &t, const voxel &start, const voxel &v)
{
    return static_cast<unsigned>(v.x - start.x) < static_cast<unsigned>(t.tile[0]) &&
           static_cast<unsigned>(v.y - start.y) < static_cast<unsigned>(t.tile[1]) &&
           static_cast<unsigned>(v.z - start.z) < static_cast<unsigned>(t.tile[2]);
}

/* By one warp. */
__device__ __forceinline__ void list_windows(const device_tiling &t, const unsigned *windows,
                                             unsigned samples, const voxel_box &box,
                                             window_list *list)
{
    const unsigned lane = threadIdx.x % 32, self = blockIdx.y, all = 0xffffffffu;
    unsigned n = 0, own = 0;
    bool is_done = false;
    for (unsigned base = 0; base < samples; base += 32) {
        const unsigned place = base + lane;
        const unsigned window = place < samples ? __ldg(windows + place) : NO_WINDOW;
        listed_window entry = {{0, 0, 0}, place};
        bool taken = false;
        if (window != NO_WINDOW) {
            entry.start = window_start(t, window);
            taken = overlaps(t, entry.start, box);
        }
        const unsigned found = __ballot_sync(all, taken);
        if (taken)
            list->window[n + __popc(found & ((1u << lane) - 1))] = entry;
        if (base <= self && self < base + 32)
            own = n + __popc(found & ((1u << (self - base)) - 1));
        is_done = is_done || __any_sync(all, taken && place < self && covers(t, entry.start, box));
        n += __popc(found);
    }
    if (lane == 0) {
        list->n = n;
        list->own = own;
        list->is_done = is_done;
    }
}

/* ---- Adding --------------------------------------------------------------------------------- */

/* The sum at one voxel of the model's grid, by the thread of the batch's window `list->own`, if
 * that is the first to cover it. */
template <class Output>
__device__ __forceinline__ void stitch_voxel(const device_tiling &t, const window_list *list,
                                             const unsigned *windows, const voxel &model,
                                             const Output &output, const device_volume &sum,
                                             unsigned long long *fault)
{
    const unsigned own = list->own, n = list->n;
    for (unsigned i = 0; i < own; i++)
        if (covers(t, list->window[i].start, model))
            return;
    float *at = sum.data + volume_index(sum, model);
    float total = *at;
    for (unsigned i = own; i < n; i++) {
        const listed_window entry = list->window[i];
        if (!covers(t, entry.start, model))
            continue;
        const voxel v = {model.x - entry.start.x, model.y - entry.start.y, model.z - entry.start.z};
        const unsigned in_tile = tile_index(v, t.tile);
        const float value = output.value(entry.place, v, in_tile);
        total = add_product(total, __ldg(t.importance + in_tile), value);
        if (!is_finite(value))
            atomicMin(fault, static_cast<unsigned long long>(windows[entry.place]) *
                                     (t.tile[0] * t.tile[1] * t.tile[2]) +
                                 in_tile);
    }
    *at = total;
}

/* All voxels of a block. Every thread of the block comes here. */
template <class Output>
__device__ __forceinline__ void stitch_patch(const device_tiling &t, const patch_grid &patches,
                                             const unsigned *windows, unsigned samples,
                                             const Output &output, const device_volume &sum,
                                             unsigned long long *fault, window_list *list)
{
    const patch p = patch_of(patches, blockIdx.x);
    const voxel start = window_start(t, windows[blockIdx.y]);
    if (threadIdx.x < 32)
        list_windows(t, windows, samples, patch_box(patches, p, t, start), list);
    __syncthreads();
    if (list->is_done)
        return;
#pragma unroll 1
    for (unsigned step = 0; step < PATCH_DEPTH; step++) {
        voxel v;
        if (!patch_voxel(patches, p, step, &v))
            continue;
        const voxel model = {start.x + v.x, start.y + v.y, start.z + v.z};
        const voxel in_box = {model.x - static_cast<int>(sum.begin[0]),
                              model.y - static_cast<int>(sum.begin[1]),
                              model.z - static_cast<int>(sum.begin[2])};
        if (is_inside(in_box, sum.dim))
            stitch_voxel(t, list, windows, model, output, sum, fault);
    }
}

/* ---- Stored outputs ------------------------------------------------------------------------- */

struct stored_output {
    const float *data;
    size_t sample, pitch;

    __device__ __forceinline__ float value(unsigned place, const voxel &, unsigned in_tile) const
    {
        return __ldg(data + place * sample + in_tile * pitch);
    }
};

static __global__ void __launch_bounds__(PATCH_THREADS, PATCH_BLOCKS)
    stitch_kernel(device_tiling tiling, patch_grid patches, const unsigned *windows,
                  unsigned samples, stored_output output, device_volume sum,
                  unsigned long long *fault)
{
    if (windows[blockIdx.y] == NO_WINDOW)
        return;
    stitch_patch(tiling, patches, windows, samples, output, sum, fault,
                 dynamic_shared<window_list>());
}

/* ---- The head ------------------------------------------------------------------------------- */

/* Blocks on one multiprocessor: 64 registers. */
#define HEAD_BLOCKS 4

/* The network's last convolution of K^3 taps with its bias and chain, at one voxel. */
template <class T, int K> struct head_output {
    const T *data;
    size_t sample, pitch;
    unsigned channels;
    unsigned dim[3];     /* z, y, x */
    bool eight;          /* channels are read eight at a time */
    const float *weight; /* [tap][channel], shared memory */
    const device_epilogue *epilogue;

    __device__ __forceinline__ float add_tap(float sum, const T *feature, const float *w) const
    {
        if (eight) {
#pragma unroll 2
            for (unsigned c = 0; c < channels; c += 8) {
                const float8 f = load8(feature + c), g = load8(w + c);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    sum += g.v[i] * f.v[i];
            }
        } else {
#pragma unroll 4
            for (unsigned c = 0; c < channels; c++)
                sum += w[c] * to_float(feature[c]);
        }
        return sum;
    }

    __device__ __forceinline__ float value(unsigned place_in_batch, const voxel &v,
                                           unsigned in_tile) const
    {
        const T *centre = data + place_in_batch * sample + in_tile * pitch;
        float sum = 0;
        if (K == 1) {
            sum = add_tap(sum, centre, weight);
        } else {
            /* Taps around the voxel; those beyond the tile count as zero. */
#pragma unroll 1
            for (int tap = 0; tap < K * K * K; tap++) {
                const int dz = tap / (K * K) - K / 2, dy = tap / K % K - K / 2,
                          dx = tap % K - K / 2;
                if (static_cast<unsigned>(v.z + dz) >= dim[0] ||
                    static_cast<unsigned>(v.y + dy) >= dim[1] ||
                    static_cast<unsigned>(v.x + dx) >= dim[2])
                    continue;
                const ptrdiff_t away = (static_cast<ptrdiff_t>(dz) * dim[1] + dy) * dim[2] + dx;
                sum = add_tap(sum, centre + away * static_cast<ptrdiff_t>(pitch),
                              weight + tap * channels);
            }
        }
        const place at = {place_in_batch, static_cast<unsigned>(v.z), static_cast<unsigned>(v.y),
                          static_cast<unsigned>(v.x)};
        return epilogue_apply(*epilogue, at, 0, sum);
    }
};

template <class T, int K>
static __global__ void __launch_bounds__(PATCH_THREADS, HEAD_BLOCKS)
    head_stitch_kernel(device_tiling tiling, patch_grid patches, const unsigned *windows,
                       unsigned samples, head_output<T, K> output, const T *weight,
                       const __grid_constant__ device_epilogue epilogue, device_volume sum,
                       unsigned long long *fault)
{
    const unsigned n = K * K * K * output.channels;
    float *shared_weight = dynamic_shared<float>();
    if (windows[blockIdx.y] == NO_WINDOW)
        return;
    for (unsigned i = threadIdx.x; i < n; i += PATCH_THREADS)
        shared_weight[i] = to_float(weight[i]);
    output.weight = shared_weight;
    output.epilogue = &epilogue;
    /* The list begins at a multiple of 16 bytes behind the weights; its barrier is theirs too. */
    stitch_patch(tiling, patches, windows, samples, output, sum, fault,
                 reinterpret_cast<window_list *>(shared_weight + (n + 3) / 4 * 4));
}

/* ---- Finish --------------------------------------------------------------------------------- */

/* Windows [first, end) along one axis that cover a position on the model's grid. */
struct window_range {
    unsigned first, end;
};

/* How many of n ascending starts are at most `position`. */
__device__ __forceinline__ unsigned starts_up_to(const unsigned *start, unsigned n,
                                                 unsigned long long position)
{
    unsigned low = 0;
    while (low < n) {
        const unsigned middle = low + (n - low) / 2;
        if (__ldg(start + middle) <= position)
            low = middle + 1;
        else
            n = middle;
    }
    return low;
}

__device__ __forceinline__ window_range windows_over(const unsigned *start, unsigned n, size_t tile,
                                                     unsigned long long position)
{
    window_range range;
    range.end = starts_up_to(start, n, position);
    range.first = position < tile ? 0 : starts_up_to(start, n, position - tile);
    return range;
}

/* Those over `count` positions of the model's grid from `first` on, by the whole block. `axis` goes
 * through choices, because an index into the arguments would need local memory. */
__device__ __forceinline__ void list_ranges(const device_tiling &t, const device_volume &sum,
                                            int axis, unsigned first, unsigned count,
                                            window_range *range)
{
    const unsigned *start = axis == 0 ? t.start[0] : axis == 1 ? t.start[1] : t.start[2];
    const unsigned n = axis == 0 ? t.n[0] : axis == 1 ? t.n[1] : t.n[2];
    const size_t tile = axis == 0 ? t.tile[0] : axis == 1 ? t.tile[1] : t.tile[2];
    const size_t begin = axis == 0   ? sum.begin[0] + t.pad_before[0]
                         : axis == 1 ? sum.begin[1] + t.pad_before[1]
                                     : sum.begin[2] + t.pad_before[2];
    for (unsigned i = threadIdx.x; i < count; i += PATCH_THREADS)
        range[i] = windows_over(start, n, tile, begin + first + i);
}

/* Total importance at a voxel, in the order of windows: z, y, x. */
__device__ __forceinline__ float total_importance(const device_tiling &t, const voxel &model,
                                                  window_range x, window_range y, window_range z)
{
    const voxel padded = {model.x + static_cast<int>(t.pad_before[0]),
                          model.y + static_cast<int>(t.pad_before[1]),
                          model.z + static_cast<int>(t.pad_before[2])};
    float total = 0;
    for (unsigned iz = z.first; iz < z.end; iz++) {
        for (unsigned iy = y.first; iy < y.end; iy++) {
            const voxel row = {padded.x, padded.y - static_cast<int>(__ldg(t.start[1] + iy)),
                               padded.z - static_cast<int>(__ldg(t.start[2] + iz))};
            for (unsigned ix = x.first; ix < x.end; ix++)
                total += __ldg(t.importance + tile_index(row, t.tile) - __ldg(t.start[0] + ix));
        }
    }
    return total;
}

/* Shared memory: the windows over each position of the patch, along lanes, rows and depth. */
static __global__ void __launch_bounds__(PATCH_THREADS, PATCH_BLOCKS)
    finish_kernel(device_tiling tiling, patch_grid patches, device_volume sum,
                  const __grid_constant__ intensity_transform transform, float factor,
                  unsigned long long *fault)
{
    window_range *range = dynamic_shared<window_range>();
    const unsigned lanes = 1u << patches.shift, rows = PATCH_THREADS >> patches.shift;
    const patch p = patch_of(patches, blockIdx.x);
    list_ranges(tiling, sum, patches.axis[0], p.first[0], lanes, range);
    list_ranges(tiling, sum, patches.axis[1], p.first[1], rows, range + lanes);
    list_ranges(tiling, sum, patches.axis[2], p.first[2], PATCH_DEPTH, range + lanes + rows);
    __syncthreads();
#pragma unroll 1
    for (unsigned step = 0; step < PATCH_DEPTH; step++) {
        voxel v;
        if (!patch_voxel(patches, p, step, &v))
            continue;
        const voxel model = {v.x + static_cast<int>(sum.begin[0]),
                             v.y + static_cast<int>(sum.begin[1]),
                             v.z + static_cast<int>(sum.begin[2])};
        const voxel in_range =
            in_axis_order(patches, threadIdx.x & (lanes - 1),
                          lanes + (threadIdx.x >> patches.shift), lanes + rows + step);
        const float total = total_importance(tiling, model, range[in_range.x], range[in_range.y],
                                             range[in_range.z]);
        float *at = sum.data + volume_index(sum, model);
        const float dose = intensity_transformed(&transform, *at / total) * factor;
        *at = dose;
        if (!is_finite(dose))
            atomicMin(fault, static_cast<unsigned long long>(model.x) +
                                 tiling.volume[0] * (model.y + tiling.volume[1] * (size_t)model.z));
    }
}

/* ---- Launchers ------------------------------------------------------------------------------ */

/* Larger batches are cut, in order: `launch_places` gets the first place and how many. */
template <class Function>
static cudaError_t launch_in_parts(unsigned samples, Function launch_places)
{
    cudaError_t error = cudaSuccess;
    for (unsigned first = 0; first < samples && error == cudaSuccess; first += PLACES_AT_ONCE)
        error = launch_places(first,
                              samples - first < PLACES_AT_ONCE ? samples - first : PLACES_AT_ONCE);
    return error;
}

/* Lanes along x of the tile, rows along the axis in which the sum's neighbours lie. */
static patch_grid stitch_patches(const device_tiling *tiling, const device_volume *sum)
{
    const int fastest = fastest_axis(sum->stride);
    return patches_of(tiling->tile, 0, fastest == 0 ? 1 : fastest);
}

extern "C" cudaError_t kernel_stitch(const device_tiling *tiling, const unsigned *windows,
                                     unsigned samples, const device_tensor *output,
                                     const device_volume *sum, unsigned long long *fault,
                                     cudaStream_t stream)
{
    const patch_grid patches = stitch_patches(tiling, sum);
    const float *data = static_cast<const float *>(output->data);
    if (patches.count > INT32_MAX || output->type != ELEMENT_F32)
        return cudaErrorInvalidValue;
    return launch_in_parts(samples, [&](unsigned first, unsigned n) {
        const stored_output part = {data + first * output->sample, output->sample, output->pitch};
        return launch(stitch_kernel, dim3(static_cast<unsigned>(patches.count), n), PATCH_THREADS,
                      window_list_bytes(n), stream, *tiling, patches, windows + first, n, part,
                      *sum, fault);
    });
}

/* Shared memory for weights: with the list it fits what every device has without asking. */
#define HEAD_WEIGHT_BYTES (28u * 1024u)

extern "C" bool head_stitch_takes(const device_convolution *head, const device_tensor *in,
                                  const device_epilogue *epilogue)
{
    const int k = head->kernel[0];
    if ((k != 1 && k != 3) || head->groups != 1 || head->transposed)
        return false;
    for (int a = 0; a < 3; a++)
        if (head->kernel[a] != k || head->stride[a] != 1 || head->pad_begin[a] != k / 2 ||
            (k > 1 && head->dilation[a] != 1))
            return false;
    for (unsigned i = 0; i < epilogue->n; i++)
        if (epilogue->link[i].op <= CHAIN_RSUB_TENSOR)
            return false;
    return static_cast<size_t>(k * k * k) * in->channels * sizeof(float) <= HEAD_WEIGHT_BYTES;
}

template <class T, int K>
static cudaError_t launch_head(const device_convolution *head, const device_tensor *in,
                               const device_epilogue *epilogue, const device_tiling *tiling,
                               const unsigned *windows, unsigned samples, const device_volume *sum,
                               unsigned long long *fault, cudaStream_t stream)
{
    const patch_grid patches = stitch_patches(tiling, sum);
    const size_t weight_bytes = (K * K * K * in->channels + 3) / 4 * 4 * sizeof(float);
    const T *data = static_cast<const T *>(in->data);
    if (patches.count > INT32_MAX)
        return cudaErrorInvalidValue;
    return launch_in_parts(samples, [&](unsigned first, unsigned n) {
        head_output<T, K> output = {};
        output.data = data + first * in->sample;
        output.sample = in->sample;
        output.pitch = in->pitch;
        output.channels = in->channels;
        for (int a = 0; a < 3; a++)
            output.dim[a] = in->dim[a];
        output.eight = tensor_moves_8(in);
        return launch(head_stitch_kernel<T, K>, dim3(static_cast<unsigned>(patches.count), n),
                      PATCH_THREADS, weight_bytes + window_list_bytes(n), stream, *tiling, patches,
                      windows + first, n, output, static_cast<const T *>(head->weight), *epilogue,
                      *sum, fault);
    });
}

extern "C" cudaError_t kernel_head_stitch(const device_convolution *head, const device_tensor *in,
                                          const device_epilogue *epilogue,
                                          const device_tiling *tiling, const unsigned *windows,
                                          unsigned samples, const device_volume *sum,
                                          unsigned long long *fault, cudaStream_t stream)
{
    if (!head_stitch_takes(head, in, epilogue))
        return cudaErrorInvalidValue;
    return with_type(in->type, [&](auto zero) {
        using T = decltype(zero);
        return head->kernel[0] == 1 ? launch_head<T, 1>(head, in, epilogue, tiling, windows,
                                                        samples, sum, fault, stream)
                                    : launch_head<T, 3>(head, in, epilogue, tiling, windows,
                                                        samples, sum, fault, stream);
    });
}

extern "C" cudaError_t kernel_finish(const device_tiling *tiling, const device_volume *sum,
                                     const intensity_transform *transform, float factor,
                                     unsigned long long *fault, cudaStream_t stream)
{
    const int lanes = fastest_axis(sum->stride);
    const patch_grid patches = patches_of(sum->dim, lanes, fastest_axis(sum->stride, lanes));
    const size_t ranges = (1u << patches.shift) + (PATCH_THREADS >> patches.shift) + PATCH_DEPTH;
    if (patches.count > INT32_MAX)
        return cudaErrorInvalidValue;
    return launch(finish_kernel, dim3(static_cast<unsigned>(patches.count)), PATCH_THREADS,
                  ranges * sizeof(window_range), stream, *tiling, patches, *sum, *transform, factor,
                  fault);
}
