/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A network's first layer: direct convolution of at most four input channels,
 * y[o] = epilogue(sum over kz, ky, kx, i of w[o][kz][ky][kx][i] * x[voxel under the tap][i]).
 *
 * Layouts: channels-last, views on both sides; w (O, kz, ky, kx, I) in the input's type.
 * Preconditions (convolution_first_takes): I <= 4, one group, not transposed, and the brick of
 * input with 8 channels of weights fits into shared memory, which 3x3x3 with stride 2 or dilation 2
 * and 5x5x5 do. O is any number; multiples of 8 in a result that moves eight at once are stored as
 * 16 bytes.
 *
 * A block makes 4 x 4 x 32 voxels of up to 64 output channels. It brings the input under them, with
 * its halo, into shared memory as floats, one plane per channel, zeros beyond the volume, and the
 * weights as rows of output channels. A thread then makes 4 voxels of a row, 8 apart, x 8
 * channels: neighbouring threads have the next eight channels, then the next voxel, so that a
 * warp stores consecutive bytes, reads the input from different banks and weights as broadcasts.
 *
 * Per voxel: 2*taps*I*O FLOPs; the input with its halo is read, 2.4 times of 3x3x3, mostly from L2;
 * O written. 1 -> 32, 3x3x3, bf16: 1.7 kFLOP, 69 bytes. 48 bytes of shared memory feed 64 FLOPs of
 * a thread: bound by the FMA units.
 *
 * Tolerance: as in convolution.cu, one fma per product in the order kz, ky, kx, i: the same bytes.
 */
#include "kernels/convolution.cuh"

static constexpr unsigned brick_z = 4, brick_y = 4, brick_x = 32;
static constexpr unsigned first_threads = 256;
static constexpr unsigned most_channels = 64; /* of the result, in one block */
static constexpr unsigned thread_voxels = 4, voxel_step = brick_x / thread_voxels;

/* What a block holds in shared memory. */
struct first_tile {
    unsigned region[3]; /* input voxels under the brick */
    unsigned channels;  /* of the result; a multiple of 8 */
    unsigned bricks[3]; /* in a sample */
};

/* Floats from one row of weights to the next: written across rows, hence no multiple of 32. */
__host__ __device__ __forceinline__ unsigned weights_row(const first_tile &tile)
{
    return tile.channels + 4;
}

template <class T, unsigned I>
__device__ __forceinline__ void load_weights(const device_convolution &convolution,
                                             const first_tile &tile, unsigned first,
                                             unsigned out_channels, float *weights)
{
    const int *kernel = convolution.kernel;
    unsigned rows = static_cast<unsigned>(kernel[0] * kernel[1] * kernel[2]) * I;
    const T *from = static_cast<const T *>(convolution.weight) + first * static_cast<size_t>(rows);
    for (unsigned i = threadIdx.x; i < rows * tile.channels; i += blockDim.x) {
        unsigned o = i / rows, row = i % rows;
        weights[row * weights_row(tile) + o] = first + o < out_channels ? to_float(from[i]) : 0;
    }
}

/* A warp brings one row of the region at a time. origin: input coordinates of its first voxel. */
template <class T, unsigned I>
__device__ __forceinline__ void load_region(const device_tensor &in, const T *sample,
                                            const first_tile &tile, const int origin[3],
                                            float *region)
{
    unsigned rows = tile.region[0] * tile.region[1], plane = rows * tile.region[2];
    for (unsigned row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
        int z = origin[0] + static_cast<int>(row / tile.region[1]);
        int y = origin[1] + static_cast<int>(row % tile.region[1]);
        bool inside = within(z, in.dim[0]) && within(y, in.dim[1]);
        unsigned in_row =
            inside ? static_cast<unsigned>(z) * in.dim[1] + static_cast<unsigned>(y) : 0;
        for (unsigned i = threadIdx.x % 32; i < tile.region[2] * I; i += 32) {
            unsigned rx = i / I, c = i % I;
            int x = origin[2] + static_cast<int>(rx);
            float v = 0;
            if (inside && within(x, in.dim[2])) {
                unsigned voxel = in_row * in.dim[2] + static_cast<unsigned>(x);
                v = to_float(sample[voxel * in.pitch + c]);
            }
            region[c * plane + row * tile.region[2] + rx] = v;
        }
    }
}

/* The sums of 4 voxels x 8 channels. region: under tap 0 of the first voxel. */
template <unsigned I>
__device__ __forceinline__ void sum_taps(const device_convolution &convolution,
                                         const first_tile &tile, const float *region,
                                         const float *weights, float8 sum[thread_voxels])
{
    const int *kernel = convolution.kernel;
    unsigned plane = tile.region[0] * tile.region[1] * tile.region[2];
    unsigned apart = voxel_step * static_cast<unsigned>(convolution.stride[2]);
    for (int kz = 0; kz < kernel[0]; kz++)
        for (int ky = 0; ky < kernel[1]; ky++) {
            unsigned z = static_cast<unsigned>(kz * convolution.dilation[0]);
            unsigned y = static_cast<unsigned>(ky * convolution.dilation[1]);
            const float *x = region + (z * tile.region[1] + y) * tile.region[2];
            for (int kx = 0; kx < kernel[2]; kx++, x += convolution.dilation[2])
#pragma unroll
                for (unsigned c = 0; c < I; c++, weights += weights_row(tile)) {
                    float8 w = load8(weights);
#pragma unroll
                    for (unsigned j = 0; j < thread_voxels; j++) {
                        float v = x[c * plane + j * apart];
#pragma unroll
                        for (unsigned i = 0; i < 8; i++)
                            sum[j].v[i] = fmaf(v, w.v[i], sum[j].v[i]);
                    }
                }
        }
}

/* at: of the first of the thread's voxels. */
template <class T>
__device__ __forceinline__ void store_voxels(const convolution_result &result, place at, unsigned c,
                                             float8 sum[thread_voxels])
{
    unsigned left = result.out.channels - c, n = left < 8 ? left : 8;
    /* The sums move up, because registers cannot be indexed. */
#pragma unroll 1
    for (unsigned j = 0; j < thread_voxels && at.x < result.out.dim[2]; j++) {
        store_channels<T>(result, at, c, n, sum[0]);
#pragma unroll
        for (unsigned k = 0; k + 1 < thread_voxels; k++)
            sum[k] = sum[k + 1];
        at.x += voxel_step;
    }
}

template <class T, unsigned I>
static __global__ void __launch_bounds__(first_threads, 3)
    convolution_first_kernel(device_convolution convolution, device_tensor in,
                             convolution_result result, first_tile tile)
{
    const device_tensor &out = result.out;
    const int *kernel = convolution.kernel, *stride = convolution.stride;
    unsigned channel_tiles = (out.channels + tile.channels - 1) / tile.channels;
    unsigned first = blockIdx.x % channel_tiles * tile.channels, brick = blockIdx.x / channel_tiles;
    unsigned bricks = tile.bricks[0] * tile.bricks[1] * tile.bricks[2];
    place corner = place_of(brick / bricks, brick % bricks, tile.bricks);
    corner.z *= brick_z;
    corner.y *= brick_y;
    corner.x *= brick_x;

    float *weights = dynamic_shared<float>();
    unsigned taps = static_cast<unsigned>(kernel[0] * kernel[1] * kernel[2]);
    float *region = weights + taps * I * weights_row(tile);
    const int origin[3] = {static_cast<int>(corner.z) * stride[0] - convolution.pad_begin[0],
                           static_cast<int>(corner.y) * stride[1] - convolution.pad_begin[1],
                           static_cast<int>(corner.x) * stride[2] - convolution.pad_begin[2]};
    load_weights<T, I>(convolution, tile, first, out.channels, weights);
    load_region<T, I>(in, static_cast<const T *>(in.data) + corner.sample * in.sample, tile, origin,
                      region);
    __syncthreads();

    unsigned octets = tile.channels / 8, items = octets * brick_z * brick_y * voxel_step;
    for (unsigned item = threadIdx.x; item < items; item += blockDim.x) {
        unsigned c = item % octets * 8, x = item / octets % voxel_step;
        unsigned row = item / octets / voxel_step;
        unsigned z = row / brick_y, y = row % brick_y;
        place at = {corner.sample, corner.z + z, corner.y + y, corner.x + x};
        if (at.z >= out.dim[0] || at.y >= out.dim[1] || at.x >= out.dim[2] ||
            first + c >= out.channels)
            continue;
        unsigned in_row = z * static_cast<unsigned>(stride[0]) * tile.region[1] +
                          y * static_cast<unsigned>(stride[1]);
        const float *from = region + in_row * tile.region[2] + x * static_cast<unsigned>(stride[2]);
        float8 sum[thread_voxels] = {};
        sum_taps<I>(convolution, tile, from, weights + c, sum);
        store_voxels<T>(result, at, first + c, sum);
    }
}

/* ---- Launch --------------------------------------------------------------------------------- */

static size_t first_shared(const device_convolution *convolution, unsigned in_channels,
                           const first_tile &tile)
{
    const int *kernel = convolution->kernel;
    size_t taps = static_cast<size_t>(kernel[0]) * static_cast<size_t>(kernel[1]) *
                  static_cast<size_t>(kernel[2]);
    size_t voxels = static_cast<size_t>(tile.region[0]) * tile.region[1] * tile.region[2];
    return in_channels * (taps * weights_row(tile) + voxels) * sizeof(float);
}

/* As many output channels in a block as shared memory allows. */
static first_tile tile_of(const device_convolution *convolution, const device_tensor *in,
                          const device_tensor *out)
{
    static const unsigned brick[3] = {brick_z, brick_y, brick_x};
    first_tile tile;
    for (int a = 0; a < 3; a++) {
        tile.region[a] =
            (brick[a] - 1) * static_cast<unsigned>(convolution->stride[a]) +
            static_cast<unsigned>((convolution->kernel[a] - 1) * convolution->dilation[a]) + 1;
        tile.bricks[a] = (out->dim[a] + brick[a] - 1) / brick[a];
    }
    tile.channels = out->channels < most_channels ? (out->channels + 7) / 8 * 8 : most_channels;
    while (tile.channels > 8 && first_shared(convolution, in->channels, tile) > SHARED_MOST)
        tile.channels = (tile.channels / 2 + 7) / 8 * 8;
    return tile;
}

bool convolution_first_takes(const device_convolution *convolution, const device_tensor *in,
                             const device_tensor *out)
{
    if (in->channels > 4 || convolution->groups != 1 || convolution->transposed)
        return false;
    first_tile tile = tile_of(convolution, in, out);
    return first_shared(convolution, in->channels, tile) <= SHARED_MOST;
}

template <class T, unsigned I>
static cudaError_t launch_first(const device_convolution *convolution, const device_tensor *in,
                                const convolution_result &result, unsigned samples,
                                cudaStream_t stream)
{
    first_tile tile = tile_of(convolution, in, &result.out);
    size_t blocks = static_cast<size_t>(tile.bricks[0]) * tile.bricks[1] * tile.bricks[2] * samples;
    blocks *= (result.out.channels + tile.channels - 1) / tile.channels;
    dim3 grid;
    if (!grid_of(blocks, &grid))
        return cudaErrorInvalidConfiguration;
    return launch(convolution_first_kernel<T, I>, grid, dim3(first_threads),
                  first_shared(convolution, I, tile), stream, *convolution, *in, result, tile);
}

cudaError_t kernel_convolution_first(const device_convolution *convolution, const device_tensor *in,
                                     const device_tensor *out, unsigned samples,
                                     const device_epilogue *epilogue, cudaStream_t stream)
{
    if (!convolution_first_takes(convolution, in, out))
        return cudaErrorInvalidValue;
    return with_type(in->type, [&](auto element) {
        using T = decltype(element);
        convolution_result result = result_of(out, epilogue, in->type);
        if (in->channels == 1)
            return launch_first<T, 1>(convolution, in, result, samples, stream);
        if (in->channels == 2)
            return launch_first<T, 2>(convolution, in, result, samples, stream);
        if (in->channels == 3)
            return launch_first<T, 3>(convolution, in, result, samples, stream);
        return launch_first<T, 4>(convolution, in, result, samples, stream);
    });
}
