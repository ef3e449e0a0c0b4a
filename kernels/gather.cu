/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Windows of the PET, and of other images on its grid, as the network wants them
 * (predict/gather.h), of each channel c:
 *
 *     q = factor[c] * resampled image c,  input = transform[c](q) inside the volume, 0 around it
 *
 * and the largest q of each window in one channel, by which windows of air are left out.
 *
 * Layouts: sources any strides, seen along the model's axes, the same for all channels; output
 * (samples, tile z, y, x, C).
 * Preconditions: 1 to 4 channels; the source's box holds every voxel that the windows use; the axes
 * have fewer than 2^31 voxels, a tile fewer than 2^31 in all; tables as predict/resample.h makes
 * them; 2 and 4 channels of a voxel are aligned as a whole.
 * Threads: patches of volume.cuh over the tile, those of one place of the batch after those of the
 * place before; a thread makes PATCH_DEPTH voxels of one window. Lanes go along x, so that stores are dense.
 * All channels of a voxel by one thread, in one launch: they are neighbours in memory, and a store
 * takes them together (of three it takes three), where a launch for each would write every sector
 * once per channel.
 * Per voxel and channel, exact map: 4 bytes read (in a permuted volume the sectors are shared
 * through L1) and 4 or 2 written; resampled from t taps per axis: t^3 reads, nearly all from L1, and
 * t^3 + t^2 + t multiply-adds (16 to 80 FLOP for 2 and 3 taps). No reuse worth shared memory beyond
 * that.
 * Tolerance: the CPU's bytes; log1p and expm1 within 2 ulp, and then rounded to the element type.
 */
#include "kernels/intensity_value.h"
#include "kernels/volume.cuh"

/* A channel's quantity at a voxel of the model's grid. */
__device__ __forceinline__ float input_quantity(const device_gather &g, unsigned channel,
                                                const voxel &v)
{
    device_volume source = g.source;
    source.data += channel * g.apart;
    float value;
    if (g.exact)
        value = __ldg(source.data + volume_index(source, v));
    else
        value = resampled(g.table, source, v, g.nan_to_zero);
    if (g.nan_to_zero && !is_finite(value))
        return 0;
    return value * g.channel[channel].factor;
}

/* The input of a voxel. */
template <class T, unsigned C> struct alignas(C == 3 ? sizeof(T) : C * sizeof(T)) voxel_input {
    T channel[C];
};

template <class T, unsigned C>
static __global__ void __launch_bounds__(PATCH_THREADS, PATCH_BLOCKS)
    gather_kernel(device_gather g, patch_grid patches, const unsigned *windows, T *out,
                  size_t sample, size_t pitch, unsigned long long *fault)
{
    const unsigned count = static_cast<unsigned>(patches.count), place = blockIdx.x / count;
    const unsigned window = __ldg(windows + place);
    const patch p = patch_of(patches, blockIdx.x - place * count);
    voxel start = {0, 0, 0};
    if (window != NO_WINDOW)
        start = window_start(g.tiling, window);
    for (unsigned step = 0; step < PATCH_DEPTH; step++) {
        voxel v;
        if (!patch_voxel(patches, p, step, &v))
            continue;
        const unsigned in_tile = tile_index(v, g.tiling.tile);
        const voxel model = {start.x + v.x, start.y + v.y, start.z + v.z};
        const bool inside = window != NO_WINDOW && is_inside(model, g.tiling.volume);
        voxel_input<T, C> stored = {};
#pragma unroll 1
        for (unsigned c = 0; c < C; c++) {
            T value = from_float<T>(0.0f);
            if (inside) {
                value = from_float<T>(
                    intensity_transformed(&g.channel[c].intensity, input_quantity(g, c, model)));
                if (!is_finite(to_float(value))) /* also what is too large for fp16 */
                    atomicMin(fault,
                              (static_cast<unsigned long long>(window) * C + c) *
                                      (g.tiling.tile[0] * g.tiling.tile[1] * g.tiling.tile[2]) +
                                  in_tile);
            }
            /* The channels move down, because registers cannot be indexed. */
#pragma unroll
            for (unsigned k = 0; k + 1 < C; k++)
                stored.channel[k] = stored.channel[k + 1];
            stored.channel[C - 1] = value;
        }
        *reinterpret_cast<voxel_input<T, C> *>(out + (place * sample + in_tile * pitch)) = stored;
    }
}

/* ---- Largest value -------------------------------------------------------------------------- */

/* The bits of floats, because there is an order of integers for each sign: positive floats ascend
 * with their bits as signed numbers, negative ones descend with them as unsigned numbers. So an
 * integer's atomic maximum or minimum does, whose result does not depend on the order. */
static __global__ void fill_kernel(int *bits, size_t n, int value)
{
    size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n)
        bits[i] = value;
}

__device__ __forceinline__ void raise_maximum(int *bits, float v)
{
    const int own = __float_as_int(v);
    if (own >= 0)
        atomicMax(bits, own);
    else
        atomicMin(reinterpret_cast<unsigned *>(bits), static_cast<unsigned>(own));
}

static __global__ void __launch_bounds__(PATCH_THREADS, PATCH_BLOCKS)
    maximum_kernel(device_gather g, patch_grid patches, const unsigned *windows, int *maximum)
{
    const unsigned count = static_cast<unsigned>(patches.count), place = blockIdx.x / count;
    const unsigned window = __ldg(windows + place);
    if (window == NO_WINDOW)
        return;
    const patch p = patch_of(patches, blockIdx.x - place * count);
    const voxel start = window_start(g.tiling, window);
    float largest = -INFINITY;
    for (unsigned step = 0; step < PATCH_DEPTH; step++) {
        voxel v;
        if (!patch_voxel(patches, p, step, &v))
            continue;
        const voxel model = {start.x + v.x, start.y + v.y, start.z + v.z};
        if (!is_inside(model, g.tiling.volume))
            continue;
        const float q = input_quantity(g, g.air_channel, model);
        largest = q > largest ? q : largest;
    }
    for (int lanes = 16; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, largest, lanes);
        largest = other > largest ? other : largest;
    }
    if (threadIdx.x % 32 == 0 && largest > -INFINITY)
        raise_maximum(maximum + place, largest);
}

/* ---- Launchers ------------------------------------------------------------------------------ */

#define FLOAT_BITS_MINUS_INFINITY static_cast<int>(0xff800000u)

/* Lanes along x of the tile, rows along the axis in which the source's neighbours lie. */
static patch_grid gather_patches(const device_gather *g)
{
    const int fastest = fastest_axis(g->source.stride);
    return patches_of(g->tiling.tile, 0, fastest == 0 ? 1 : fastest);
}

extern "C" cudaError_t kernel_window_maximum(const device_gather *gather, const unsigned *windows,
                                             unsigned samples, float *maximum, cudaStream_t stream)
{
    const patch_grid patches = gather_patches(gather);
    const size_t blocks = patches.count * samples;
    int *bits = reinterpret_cast<int *>(maximum);
    if (blocks > INT32_MAX || gather->air_channel >= DEVICE_MAX_CHANNELS)
        return cudaErrorInvalidValue;
    cudaError_t error = launch(fill_kernel, blocks_for(samples, PATCH_THREADS), PATCH_THREADS, 0,
                               stream, bits, samples, FLOAT_BITS_MINUS_INFINITY);
    if (error != cudaSuccess)
        return error;
    return launch(maximum_kernel, static_cast<unsigned>(blocks), PATCH_THREADS, 0, stream, *gather,
                  patches, windows, bits);
}

/* Are the C channels of every voxel aligned as a whole? */
template <class T, unsigned C> static bool has_whole_voxels(const device_tensor *out)
{
    const size_t whole = alignof(voxel_input<T, C>), element = sizeof(T);
    return reinterpret_cast<uintptr_t>(out->data) % whole == 0 &&
           out->sample * element % whole == 0 && out->pitch * element % whole == 0;
}

template <class T, unsigned C>
static cudaError_t launch_gather(const device_gather &g, const unsigned *windows, unsigned samples,
                                 const device_tensor *out, unsigned long long *fault,
                                 cudaStream_t stream)
{
    const patch_grid patches = gather_patches(&g);
    const size_t blocks = patches.count * samples;
    if (blocks > INT32_MAX || !has_whole_voxels<T, C>(out))
        return cudaErrorInvalidValue;
    return launch(gather_kernel<T, C>, static_cast<unsigned>(blocks), PATCH_THREADS, 0, stream, g,
                  patches, windows, static_cast<T *>(out->data), out->sample, out->pitch, fault);
}

extern "C" cudaError_t kernel_gather(const device_gather *gather, const unsigned *windows,
                                     unsigned samples, const device_tensor *out,
                                     unsigned long long *fault, cudaStream_t stream)
{
    if (gather->channels != out->channels)
        return cudaErrorInvalidValue;
    return with_type(out->type, [&](auto zero) {
        using T = decltype(zero);
        switch (gather->channels) {
        case 1:
            return launch_gather<T, 1>(*gather, windows, samples, out, fault, stream);
        case 2:
            return launch_gather<T, 2>(*gather, windows, samples, out, fault, stream);
        case 3:
            return launch_gather<T, 3>(*gather, windows, samples, out, fault, stream);
        case 4:
            return launch_gather<T, 4>(*gather, windows, samples, out, fault, stream);
        default:
            return cudaErrorInvalidValue;
        }
    });
}
