/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maximum and average pooling, out[n, o, c] = chain(pool over taps k of in[n, o*stride - pad +
 * k*dilation, c]), averages without dilation. Padding never wins a maximum, a NaN always does; an
 * average counts padding only with count_include_pad, and then never what ceil_mode lets a window
 * reach beyond the padding, as PyTorch and ONNX since version 19 define it.
 *
 * Layouts: in (N, D, H, W, C), out (N, Do, Ho, Wo, C).
 * Preconditions: fewer than 2^31 voxels a sample, fewer than 2^16 samples; out is no part of in.
 * Threads: voxel_share.cuh, a voxel each where there are enough. Windows of 2x2x2 have four loads
 * under way at a time.
 * Per voxel and channel of the result: one element for each tap read (once from memory where
 * windows do not overlap), one written; 1 FLOP a tap. Bound by memory.
 * Tolerance: a maximum is exact. An average in float32 is summed line by line, then plane by plane:
 * 1e-6 of the mean magnitude.
 */
#include "kernels/voxel_share.cuh"

/* Tap k is at first + k*step; those with begin <= k < end lie inside the input, and `counted`
 * divide an average. */
struct pool_axis {
    int first, step, begin, end, counted;
};

__device__ __forceinline__ pool_axis pool_axis_of(const device_pool &pool, int a, unsigned at,
                                                  unsigned in)
{
    int size = static_cast<int>(in), step = pool.maximum ? pool.dilation[a] : 1;
    int first = static_cast<int>(at) * pool.stride[a] - pool.pad_begin[a];
    pool_axis w = {first, step, 0, pool.kernel[a], 0};
    int padded = size + pool.pad_end[a] - first;
    w.counted = padded < w.end ? padded : w.end;
    /* Division only at the borders. */
    if (first < 0)
        w.begin = (step - 1 - first) / step;
    if (first + (w.end - 1) * step >= size)
        w.end = first < size ? (size - 1 - first) / step + 1 : 0;
    if (w.end < w.begin)
        w.end = w.begin;
    if (!pool.count_include_pad)
        w.counted = w.end - w.begin;
    return w;
}

template <class Values> __device__ __forceinline__ void keep_largest(Values &best, const Values &v)
{
#pragma unroll
    for (unsigned i = 0; i < sizeof(Values) / sizeof(float); i++)
        best.v[i] = v.v[i] > best.v[i] || v.v[i] != v.v[i] ? v.v[i] : best.v[i];
}

template <class Values> __device__ __forceinline__ void add_to(Values &sum, const Values &v)
{
#pragma unroll
    for (unsigned i = 0; i < sizeof(Values) / sizeof(float); i++)
        sum.v[i] += v.v[i];
}

/* The window of one voxel of the result. */
struct pool_window {
    pool_axis z, y, x;
    unsigned c;
};

__device__ __forceinline__ unsigned tap_voxel(const device_tensor &in, const pool_window &w, int kz,
                                              int ky, int kx)
{
    unsigned z = static_cast<unsigned>(w.z.first + kz * w.z.step);
    unsigned y = static_cast<unsigned>(w.y.first + ky * w.y.step);
    unsigned x = static_cast<unsigned>(w.x.first + kx * w.x.step);
    return (z * in.dim[1] + y) * in.dim[2] + x;
}

/* Edges of 2: plane by plane, four taps at a time. */
template <class Access, bool MAXIMUM>
__device__ __forceinline__ void pool_pairs(const device_tensor &in, const pool_window &w,
                                           typename Access::values &result)
{
    for (int kz = w.z.begin; kz < w.z.end; kz++) {
        typename Access::raw raw[4];
        bool inside[4];
#pragma unroll
        for (int tap = 0; tap < 4; tap++) {
            int ky = tap / 2, kx = tap % 2;
            inside[tap] = ky >= w.y.begin && ky < w.y.end && kx >= w.x.begin && kx < w.x.end;
            unsigned voxel = tap_voxel(in, w, kz, ky, kx);
            if (inside[tap])
                raw[tap] = Access::load(in.data, in.type, element_at(in, voxel, w.c));
        }
#pragma unroll
        for (int tap = 0; tap < 4; tap++)
            if (inside[tap]) {
                if (MAXIMUM)
                    keep_largest(result, Access::widen(raw[tap]));
                else
                    add_to(result, Access::widen(raw[tap]));
            }
    }
}

template <class Access, bool MAXIMUM>
__device__ __forceinline__ void pool_any(const device_tensor &in, const pool_window &w,
                                         typename Access::values &result)
{
    for (int kz = w.z.begin; kz < w.z.end; kz++) {
        typename Access::values plane = fill<Access>(0);
        for (int ky = w.y.begin; ky < w.y.end; ky++) {
            typename Access::values line = fill<Access>(0);
            for (int kx = w.x.begin; kx < w.x.end; kx++) {
                unsigned voxel = tap_voxel(in, w, kz, ky, kx);
                typename Access::values v =
                    Access::widen(Access::load(in.data, in.type, element_at(in, voxel, w.c)));
                if (MAXIMUM)
                    keep_largest(result, v);
                else
                    add_to(line, v);
            }
            if (!MAXIMUM)
                add_to(plane, line);
        }
        if (!MAXIMUM)
            add_to(result, plane);
    }
}

template <class Access, bool MAXIMUM, bool PAIRS>
static __global__ void pool_kernel(device_pool pool, device_tensor in, device_tensor out,
                                   voxel_share share, device_epilogue e)
{
    unsigned c = share_channel<Access>(), voxel = share_first_voxel(share);
    if (c >= share.channels)
        return;
    for (unsigned k = 0; k < share.each && voxel < share.voxels; k++, voxel += blockDim.y) {
        place at = share_place(share, voxel);
        pool_window w = {pool_axis_of(pool, 0, at.z, in.dim[0]),
                         pool_axis_of(pool, 1, at.y, in.dim[1]),
                         pool_axis_of(pool, 2, at.x, in.dim[2]), c};
        typename Access::values v = fill<Access>(MAXIMUM ? -INFINITY : 0.0f);
        if (PAIRS)
            pool_pairs<Access, MAXIMUM>(in, w, v);
        else
            pool_any<Access, MAXIMUM>(in, w, v);
        if (!MAXIMUM) {
            float cells = static_cast<float>(w.z.counted) * static_cast<float>(w.y.counted) *
                          static_cast<float>(w.x.counted);
#pragma unroll
            for (unsigned i = 0; i < Access::width; i++)
                v.v[i] /= cells;
        }
        share_finish<Access>(out, e, at, voxel, c, v);
    }
}

extern "C" cudaError_t kernel_pool(const device_pool *pool, const device_tensor *in,
                                   const device_tensor *out, unsigned samples,
                                   const device_epilogue *epilogue, cudaStream_t stream)
{
    bool pairs = pool->kernel[0] == 2 && pool->kernel[1] == 2 && pool->kernel[2] == 2;
    return with_access(tensor_moves_8(in) && tensor_moves_8(out), in, [&](auto access) {
        typedef decltype(access) Access;
        share_launch l = share_voxels(out, samples, Access::width, 4, epilogue);
        void (*kernel)(device_pool, device_tensor, device_tensor, voxel_share, device_epilogue) =
            pairs
                ? pool->maximum ? pool_kernel<Access, true, true> : pool_kernel<Access, false, true>
            : pool->maximum ? pool_kernel<Access, true, false>
                            : pool_kernel<Access, false, false>;
        return launch(kernel, l.grid, l.block, 0, stream, *pool, *in, *out, l.share, *epilogue);
    });
}
