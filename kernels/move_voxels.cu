/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps whose result is input voxels somewhere else: padding, slices, resizing to the nearest voxel
 * (take) and linear resizing (interpolate). Each axis has a table that says where a result's
 * coordinate comes from:
 *     take:        out[n, z, y, x, c] = chain(in[n, low(z), low(y), low(x), begin + c*step])
 *     interpolate: out[n, z, y, x, c] = chain(between along z of between along y of between along x
 *                  of in[n, low or high, low or high, low or high, c])
 *     between(low, high) = low + weight*(high - low)
 *
 * Layouts: in (N, D, H, W, Ci), out (N, Do, Ho, Wo, C); tables as long as the result's axes.
 * Preconditions: table entries are inside the input, or -1 in `low` of take (the result is `fill`
 * there); fewer than 2^31 voxels a sample, fewer than 2^16 samples; out is no part of in.
 * Threads: voxel_share.cuh, a voxel each where there are enough.
 * Per voxel and channel of the result: one element written; take reads one, interpolate eight, all
 * but one of them from the caches where a volume is enlarged, and does 21 FLOPs. Bound by memory.
 * Tolerance: take is exact; interpolate in float32 1e-6 of the largest corner.
 */
#include "kernels/voxel_share.cuh"

struct axis_maps {
    device_axis_map z, y, x;
};

/* ---- One voxel from one --------------------------------------------------------------------- */

/* channel_step is 1 where eight channels are moved. */
template <class Access>
static __global__ void take_voxels_kernel(axis_maps map, unsigned channel_begin,
                                          unsigned channel_step, float fill_value, device_tensor in,
                                          device_tensor out, voxel_share share, device_epilogue e)
{
    unsigned c = share_channel<Access>(), voxel = share_first_voxel(share);
    if (c >= share.channels)
        return;
    unsigned from_channel = channel_begin + c * channel_step;
    for (unsigned k = 0; k < share.each && voxel < share.voxels; k++, voxel += blockDim.y) {
        place at = share_place(share, voxel);
        int z = map.z.low[at.z], y = map.y.low[at.y], x = map.x.low[at.x];
        typename Access::values v = fill<Access>(fill_value);
        if (z >= 0 && y >= 0 && x >= 0) {
            unsigned from =
                (static_cast<unsigned>(z) * in.dim[1] + static_cast<unsigned>(y)) * in.dim[2] +
                static_cast<unsigned>(x);
            v = Access::widen(Access::load(in.data, in.type, element_at(in, from, from_channel)));
        }
        share_finish<Access>(out, e, at, voxel, c, v);
    }
}

extern "C" cudaError_t kernel_take_voxels(const device_axis_map axis[3], unsigned channel_begin,
                                          unsigned channel_step, float fill_value,
                                          const device_tensor *in, const device_tensor *out,
                                          unsigned samples, const device_epilogue *epilogue,
                                          cudaStream_t stream)
{
    axis_maps map = {axis[0], axis[1], axis[2]};
    bool eight =
        tensor_moves_8(in) && tensor_moves_8(out) && channel_begin % 8 == 0 && channel_step == 1;
    return with_access(eight, in, [&](auto access) {
        typedef decltype(access) Access;
        share_launch l = share_voxels(out, samples, Access::width, 4, epilogue);
        return launch(take_voxels_kernel<Access>, l.grid, l.block, 0, stream, map, channel_begin,
                      channel_step, fill_value, *in, *out, l.share, *epilogue);
    });
}

/* ---- One voxel from eight ------------------------------------------------------------------- */

template <class Values>
__device__ __forceinline__ Values between(const Values &low, const Values &high, float weight)
{
    Values out;
#pragma unroll
    for (unsigned i = 0; i < sizeof(Values) / sizeof(float); i++)
        out.v[i] = low.v[i] + weight * (high.v[i] - low.v[i]);
    return out;
}

/* Both lines of a plane of the input, `x` of which are low and high. All four loads are under way
 * before the first is used. */
template <class Access>
__device__ __forceinline__ typename Access::values
between_lines(const device_tensor &in, const unsigned line[2], const int x[2], float wx, float wy,
              unsigned c)
{
    typename Access::raw raw[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        raw[i] = Access::load(in.data, in.type,
                              element_at(in, line[i / 2] + static_cast<unsigned>(x[i % 2]), c));
    return between(between(Access::widen(raw[0]), Access::widen(raw[1]), wx),
                   between(Access::widen(raw[2]), Access::widen(raw[3]), wx), wy);
}

template <class Access>
static __global__ void interpolate_kernel(axis_maps map, device_tensor in, device_tensor out,
                                          voxel_share share, device_epilogue e)
{
    unsigned c = share_channel<Access>(), voxel = share_first_voxel(share);
    if (c >= share.channels)
        return;
    for (unsigned k = 0; k < share.each && voxel < share.voxels; k++, voxel += blockDim.y) {
        place at = share_place(share, voxel);
        const int x[2] = {map.x.low[at.x], map.x.high[at.x]};
        const int y[2] = {map.y.low[at.y], map.y.high[at.y]};
        const int z[2] = {map.z.low[at.z], map.z.high[at.z]};
        typename Access::values plane[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unsigned first = static_cast<unsigned>(z[i]) * in.dim[1];
            const unsigned line[2] = {(first + static_cast<unsigned>(y[0])) * in.dim[2],
                                      (first + static_cast<unsigned>(y[1])) * in.dim[2]};
            plane[i] =
                between_lines<Access>(in, line, x, map.x.weight[at.x], map.y.weight[at.y], c);
        }
        typename Access::values v = between(plane[0], plane[1], map.z.weight[at.z]);
        share_finish<Access>(out, e, at, voxel, c, v);
    }
}

extern "C" cudaError_t kernel_interpolate(const device_axis_map axis[3], const device_tensor *in,
                                          const device_tensor *out, unsigned samples,
                                          const device_epilogue *epilogue, cudaStream_t stream)
{
    axis_maps map = {axis[0], axis[1], axis[2]};
    return with_access(tensor_moves_8(in) && tensor_moves_8(out), in, [&](auto access) {
        typedef decltype(access) Access;
        share_launch l = share_voxels(out, samples, Access::width, 4, epilogue);
        return launch(interpolate_kernel<Access>, l.grid, l.block, 0, stream, map, *in, *out,
                      l.share, *epilogue);
    });
}
