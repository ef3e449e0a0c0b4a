/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any convolution, on CUDA cores: y[o] = epilogue(sum over kz, ky, kx, i of w[o][kz][ky][kx][i] *
 * x[voxel under the tap][i]), direct or transposed, with groups.
 *
 * Layouts: channels-last, views on both sides; w (O, kz, ky, kx, I/groups) in the input's type.
 * Preconditions: channels are multiples of groups; everything else is allowed: kernel, stride,
 * dilation, padding at either end, sizes, alignment, another element type of the result.
 *
 * Tile kernel (8 and more output channels per group): an implicit matrix product of 128 cells
 * (convolution.cuh) x 32 output channels, in steps of 16 of the (tap, channel) axis. 128 threads
 * gather both operands as floats into shared memory, the next step's while this one's are
 * multiplied; each thread has 8 cells x 4 channels. Transposed: the cells of one phase, so that no
 * step is spent on taps that fall between the input's voxels.
 * Direct kernel (fewer, so depthwise too): a thread makes one channel of one voxel, channels
 * fastest, so that a warp's loads of depthwise convolutions and all stores are coalesced.
 *
 * Per voxel: 2*taps*I/groups*O FLOPs; taps*I elements read per 32 output channels, all but I of
 * them from caches, O written.
 * The tile kernel reads 48 bytes of shared memory for 64 FLOPs of a thread: bound by the FMA units.
 *
 * Tolerance: both add in float, one fma per product, in the order kz, ky, kx, i from zero, then the
 * epilogue. The error of n additions of random signs grows like sqrt(n) * 2^-24 of the terms'
 * magnitude; taps outside the input add nothing or 0 * w, which is the same for finite weights.
 * So both kernels, and convolution_first.cu, give the same bytes.
 */
#include "kernels/convolution.cuh"

static constexpr unsigned tile_cells = 128, tile_channels = 32, tile_depth = 16;
static constexpr unsigned tile_threads = 128;
/* Floats from one depth to the next: multiples of 4, and not of 32 because rows are written along
 * the depth. */
static constexpr unsigned input_row = tile_cells + 4, weight_row = tile_channels + 4;
static constexpr unsigned result_row = tile_channels + 4;
static constexpr unsigned gathers = tile_cells * tile_depth / tile_threads;
static constexpr unsigned weights = tile_channels * tile_depth / tile_threads;
static constexpr unsigned rows_at_once = tile_threads / tile_depth;

/* A cell's input coordinates under a tap of offset 0; negative enough for a cell that is none. */
struct cell_origin {
    int z, y, x, unused;
};
static constexpr int no_cell = -(1 << 30);

/* Where one thread is on the (tap, channel) axis: the taps that the phase has, in order. */
struct tap_walk {
    int k[3];
    unsigned channel;
    bool more;
};

/* The first tap of axis a, from k on, that the phase has; the kernel's size if there is none. */
__device__ __forceinline__ int seek_tap(const device_convolution &convolution, int a, int k,
                                        unsigned phase)
{
    int offset;
    while (k < convolution.kernel[a] && !tap_offset(convolution, a, k, phase, &offset))
        k++;
    return k;
}

__device__ __forceinline__ void next_tap(const device_convolution &convolution,
                                         const unsigned phase[3], tap_walk *walk)
{
    bool carry = true;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
        int k = carry ? seek_tap(convolution, a, walk->k[a] + 1, phase[a]) : walk->k[a];
        carry = k >= convolution.kernel[a];
        walk->k[a] = carry ? seek_tap(convolution, a, 0, phase[a]) : k;
    }
    walk->more = !carry;
}

/* Forward by `by` of the axis. */
__device__ __forceinline__ void walk_on(const device_convolution &convolution,
                                        const unsigned phase[3], unsigned channels, unsigned by,
                                        tap_walk *walk)
{
    walk->channel += by;
    while (walk->more && walk->channel >= channels) {
        walk->channel -= channels;
        next_tap(convolution, phase, walk);
    }
}

__device__ __forceinline__ tap_walk walk_begin(const device_convolution &convolution,
                                               const unsigned phase[3])
{
    tap_walk walk = {{0, 0, 0}, 0, true};
#pragma unroll
    for (int a = 0; a < 3; a++) {
        walk.k[a] = seek_tap(convolution, a, 0, phase[a]);
        walk.more = walk.more && walk.k[a] < convolution.kernel[a];
    }
    return walk;
}

/* How long the (tap, channel) axis of the phase is. */
__device__ __forceinline__ unsigned walk_length(const device_convolution &convolution,
                                                const unsigned phase[3], unsigned channels)
{
    unsigned length = channels;
#pragma unroll
    for (int a = 0; a < 3; a++) {
        unsigned taps = 0;
        int offset;
        for (int k = 0; k < convolution.kernel[a]; k++)
            taps += tap_offset(convolution, a, k, phase[a], &offset);
        length *= taps;
    }
    return length;
}

/* One group's part of a convolution, for the block's tile. */
struct tile_task {
    unsigned sample, group;
    unsigned first_channel, channels; /* of the result */
    unsigned first_cell, rows;
    cell_grid cells;
};

__device__ __forceinline__ tile_task task_of(const device_convolution &convolution,
                                             const device_tensor &out)
{
    tile_task task;
    unsigned block = blockIdx.x, per_group = out.channels / convolution.groups;
    unsigned channel_tiles = (per_group + tile_channels - 1) / tile_channels;
    unsigned first = block % channel_tiles * tile_channels;
    block /= channel_tiles;
    task.channels = min(per_group - first, tile_channels);
    task.group = block % convolution.groups;
    task.first_channel = task.group * per_group + first;
    block /= convolution.groups;
    task.cells = cells_of(convolution, out.dim, 0);
    unsigned cells = task.cells.dim[0] * task.cells.dim[1] * task.cells.dim[2];
    unsigned tiles = (cells + tile_cells - 1) / tile_cells;
    task.first_cell = block % tiles * tile_cells;
    block /= tiles;
    task.rows = min(cells - task.first_cell, tile_cells);
    unsigned steps = task.cells.step[0] * task.cells.step[1] * task.cells.step[2];
    task.cells = cells_of(convolution, out.dim, block % steps);
    task.sample = block / steps;
    return task;
}

__device__ __forceinline__ void find_origins(const device_convolution &convolution,
                                             const tile_task &task, cell_origin *origins)
{
    for (unsigned row = threadIdx.x; row < tile_cells; row += blockDim.x) {
        place at = place_of(0, task.first_cell + row, task.cells.dim);
        cell_origin origin = {no_cell, no_cell, no_cell, 0};
        if (row < task.rows)
            origin = {static_cast<int>(at.z) * cell_stride(convolution, 0),
                      static_cast<int>(at.y) * cell_stride(convolution, 1),
                      static_cast<int>(at.x) * cell_stride(convolution, 2), 0};
        origins[row] = origin;
    }
}

/* The thread's elements of both operands at one step: one depth, every rows_at_once-th row. */
template <class T>
__device__ __forceinline__ void
fetch(const device_convolution &convolution, const device_tensor &in, const tile_task &task,
      const cell_origin *origins, const tap_walk &walk, float input[gathers], float weight[weights])
{
    unsigned per_group = in.channels / convolution.groups, row = threadIdx.x / tile_depth;
    const T *x = static_cast<const T *>(in.data) + task.sample * in.sample +
                 task.group * per_group + walk.channel;
    int offset[3];
#pragma unroll
    for (int a = 0; a < 3; a++)
        tap_offset(convolution, a, walk.k[a], task.cells.phase[a], &offset[a]);
#pragma unroll
    for (unsigned i = 0; i < gathers; i++) {
        cell_origin origin = origins[row + i * rows_at_once];
        int z = origin.z + offset[0], y = origin.y + offset[1];
        int from = origin.x + offset[2];
        input[i] = 0;
        if (walk.more && within(z, in.dim[0]) && within(y, in.dim[1]) && within(from, in.dim[2])) {
            unsigned voxel =
                (static_cast<unsigned>(z) * in.dim[1] + static_cast<unsigned>(y)) * in.dim[2] +
                static_cast<unsigned>(from);
            input[i] = to_float(x[voxel * in.pitch]);
        }
    }
    const int *kernel = convolution.kernel;
    size_t tap = static_cast<size_t>((walk.k[0] * kernel[1] + walk.k[1]) * kernel[2] + walk.k[2]);
    size_t taps = static_cast<size_t>(kernel[0] * kernel[1] * kernel[2]);
    const T *w = static_cast<const T *>(convolution.weight) + tap * per_group + walk.channel;
#pragma unroll
    for (unsigned i = 0; i < weights; i++) {
        unsigned o = row + i * rows_at_once;
        weight[i] = 0;
        if (walk.more && o < task.channels)
            weight[i] = to_float(w[(task.first_channel + o) * taps * per_group]);
    }
}

/* Adds tile_depth products to each of the thread's sums, in order. */
__device__ __forceinline__ void multiply(const float *inputs, const float *factors, float sum[8][4])
{
    const float *x = inputs + threadIdx.x / 8 * 8, *w = factors + threadIdx.x % 8 * 4;
#pragma unroll
    for (unsigned k = 0; k < tile_depth; k++) {
        float4 low = *reinterpret_cast<const float4 *>(x + k * input_row);
        float4 high = *reinterpret_cast<const float4 *>(x + k * input_row + 4);
        float4 b = *reinterpret_cast<const float4 *>(w + k * weight_row);
        float a[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sum[i][0] = fmaf(a[i], b.x, sum[i][0]);
            sum[i][1] = fmaf(a[i], b.y, sum[i][1]);
            sum[i][2] = fmaf(a[i], b.z, sum[i][2]);
            sum[i][3] = fmaf(a[i], b.w, sum[i][3]);
        }
    }
}

template <class T>
static __global__ void __launch_bounds__(tile_threads, 4)
    convolution_tile_kernel(device_convolution convolution, device_tensor in,
                            convolution_result result)
{
    float *inputs = dynamic_shared<float>(), *factors = inputs + tile_depth * input_row;
    cell_origin *origins = reinterpret_cast<cell_origin *>(factors + tile_depth * weight_row);
    tile_task task = task_of(convolution, result.out);
    const unsigned *phase = task.cells.phase;
    find_origins(convolution, task, origins);
    __syncthreads();

    unsigned channels = in.channels / convolution.groups;
    unsigned depth = threadIdx.x % tile_depth, row = threadIdx.x / tile_depth;
    tap_walk walk = walk_begin(convolution, phase);
    walk_on(convolution, phase, channels, depth, &walk);
    float input[gathers], weight[weights], sum[8][4] = {};
    fetch<T>(convolution, in, task, origins, walk, input, weight);
    unsigned length = walk_length(convolution, phase, channels);
#pragma unroll 1
    for (unsigned done = 0; done < length; done += tile_depth) {
#pragma unroll
        for (unsigned i = 0; i < gathers; i++)
            inputs[depth * input_row + row + i * rows_at_once] = input[i];
#pragma unroll
        for (unsigned i = 0; i < weights; i++)
            factors[depth * weight_row + row + i * rows_at_once] = weight[i];
        __syncthreads();
        walk_on(convolution, phase, channels, tile_depth, &walk);
        fetch<T>(convolution, in, task, origins, walk, input, weight);
        multiply(inputs, factors, sum);
        __syncthreads();
    }

    /* The operands are done with. */
    float *tile = inputs + threadIdx.x / 8 * 8 * result_row + threadIdx.x % 8 * 4;
#pragma unroll
    for (unsigned i = 0; i < 8; i++)
        *reinterpret_cast<float4 *>(tile + i * result_row) =
            make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    __syncthreads();
    tile_place part = {task.cells, task.sample,        task.first_cell,
                       task.rows,  task.first_channel, task.channels};
    store_tile<T>(result, part, inputs, result_row);
}

/* ---- Few output channels per group ---------------------------------------------------------- */

static constexpr unsigned direct_threads = 256;

/* The input's coordinate under tap k of axis a, or -1. */
__device__ __forceinline__ int coordinate_under(const device_convolution &convolution, int a, int k,
                                                unsigned out, unsigned n)
{
    int offset, i = convolution.transposed ? 0 : static_cast<int>(out) * convolution.stride[a];
    /* As if every result voxel were cell 0 of a phase of its own. */
    if (!tap_offset(convolution, a, k, out, &offset))
        return -1;
    return within(i + offset, n) ? i + offset : -1;
}

/* The sum over one row of taps along x. */
template <class T>
__device__ __forceinline__ float add_row(const device_convolution &convolution,
                                         const device_tensor &in, const T *x, const T *w,
                                         unsigned out_x, float sum)
{
    unsigned per_group = in.channels / convolution.groups;
    for (int k = 0; k < convolution.kernel[2]; k++, w += per_group) {
        int from = coordinate_under(convolution, 2, k, out_x, in.dim[2]);
        if (from < 0)
            continue;
        const T *voxel = x + static_cast<unsigned>(from) * in.pitch;
        for (unsigned c = 0; c < per_group; c++)
            sum = fmaf(to_float(voxel[c]), to_float(w[c]), sum);
    }
    return sum;
}

template <class T>
static __global__ void __launch_bounds__(direct_threads)
    convolution_direct_kernel(device_convolution convolution, device_tensor in,
                              convolution_result result, size_t items)
{
    size_t item = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (item >= items)
        return;
    const device_tensor &out = result.out;
    unsigned o = static_cast<unsigned>(item % out.channels);
    size_t voxel = item / out.channels;
    unsigned voxels = out.dim[0] * out.dim[1] * out.dim[2];
    place at = place_of(static_cast<unsigned>(voxel / voxels),
                        static_cast<unsigned>(voxel % voxels), out.dim);
    const int *kernel = convolution.kernel;
    unsigned per_group = in.channels / convolution.groups;
    unsigned group = o / (out.channels / convolution.groups);
    size_t row_of_weights = static_cast<size_t>(kernel[2]) * per_group;
    const T *w = static_cast<const T *>(convolution.weight) +
                 o * row_of_weights * static_cast<unsigned>(kernel[0] * kernel[1]);
    const T *x = static_cast<const T *>(in.data) + at.sample * in.sample + group * per_group;
    float sum = 0;
    for (int kz = 0; kz < kernel[0]; kz++) {
        int z = coordinate_under(convolution, 0, kz, at.z, in.dim[0]);
        for (int ky = 0; ky < kernel[1]; ky++, w += row_of_weights) {
            int y = coordinate_under(convolution, 1, ky, at.y, in.dim[1]);
            if (z < 0 || y < 0)
                continue;
            unsigned row = static_cast<unsigned>(z) * in.dim[1] + static_cast<unsigned>(y);
            sum = add_row(convolution, in, x + row * in.dim[2] * in.pitch, w, at.x, sum);
        }
    }
    float value = epilogue_apply(result.epilogue, at, o, sum);
    size_t index =
        at.sample * out.sample + ((at.z * out.dim[1] + at.y) * out.dim[2] + at.x) * out.pitch + o;
    store_element(out.data, out.type, index, value);
}

/* ---- Launch --------------------------------------------------------------------------------- */

template <class T>
static cudaError_t launch_tiles(const device_convolution *convolution, const device_tensor *in,
                                const convolution_result &result, unsigned samples,
                                cudaStream_t stream)
{
    const device_tensor &out = result.out;
    cell_grid cells = cells_of(*convolution, out.dim, 0);
    size_t n = static_cast<size_t>(cells.dim[0]) * cells.dim[1] * cells.dim[2];
    size_t blocks = (n + tile_cells - 1) / tile_cells * convolution_phases(convolution) * samples;
    size_t per_group = out.channels / convolution->groups;
    blocks *= (per_group + tile_channels - 1) / tile_channels * convolution->groups;
    dim3 grid;
    if (!grid_of(blocks, &grid))
        return cudaErrorInvalidConfiguration;
    size_t operands =
        tile_depth * (input_row + weight_row) * sizeof(float) + tile_cells * sizeof(cell_origin);
    size_t results = tile_cells * result_row * sizeof(float);
    return launch(convolution_tile_kernel<T>, grid, dim3(tile_threads),
                  operands > results ? operands : results, stream, *convolution, *in, result);
}

cudaError_t kernel_convolution(const device_convolution *convolution, const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream)
{
    return with_type(in->type, [&](auto element) {
        using T = decltype(element);
        convolution_result result = result_of(out, epilogue, in->type);
        if (out->channels / convolution->groups >= 8)
            return launch_tiles<T>(convolution, in, result, samples, stream);
        size_t items = static_cast<size_t>(out->dim[0]) * out->dim[1] * out->dim[2];
        items *= static_cast<size_t>(samples) * out->channels;
        dim3 grid;
        if (!grid_of((items + direct_threads - 1) / direct_threads, &grid))
            return cudaErrorInvalidConfiguration;
        return launch(convolution_direct_kernel<T>, grid, dim3(direct_threads), 0, stream,
                      *convolution, *in, result, items);
    });
}
