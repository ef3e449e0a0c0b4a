/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Second half of a transposed convolution whose kernel is its stride: a matrix product has made a
 * block of voxels of each input voxel; here each goes to its place, through bias and chain:
 *     out[n, z*kz + p, y*ky + q, x*kx + r, c] =
 *         chain(blocks[n, z, y, x, ((p*ky + q)*kx + r)*C + c])
 *
 * Layouts: blocks (N, D, H, W, kz*ky*kx*C), out (N, D*kz, H*ky, W*kx, C).
 * Preconditions: sizes as above; fewer than 2^31 voxels a sample, fewer than 2^16 samples; out is
 * no part of blocks.
 * Threads: voxel_share.cuh over the result, whose writes are then consecutive; along x the kx
 * voxels of a block are consecutive in `blocks` too. Two to four voxels each, all of whose inputs
 * are under way before the first is used.
 * Per element: read and written once; bias and chain. Bound by memory.
 * Tolerance: exact but for the chain (pointwise.cu).
 */
#include "kernels/voxel_share.cuh"

struct unfolding {
    divider z, y, x;
};

/* The element of `blocks` that becomes channel c of the result's voxel. */
__device__ __forceinline__ size_t block_element(const unfolding &u, const device_tensor &blocks,
                                                const place &at, unsigned channels, unsigned c)
{
    unsigned z = divide(at.z, u.z), y = divide(at.y, u.y), x = divide(at.x, u.x);
    unsigned p = at.z - z * u.z.by, q = at.y - y * u.y.by, r = at.x - x * u.x.by;
    unsigned voxel = (z * blocks.dim[1] + y) * blocks.dim[2] + x;
    unsigned tap = (p * u.y.by + q) * u.x.by + r;
    return element_at(blocks, voxel, 0) + static_cast<size_t>(tap) * channels + c;
}

template <class Access>
static __global__ void unfold_kernel(unfolding u, device_tensor blocks, device_tensor out,
                                     voxel_share share, device_epilogue e)
{
    unsigned c = share_channel<Access>(), first = share_first_voxel(share);
    if (c >= share.channels)
        return;
    typename Access::raw raw[Access::early];
#pragma unroll
    for (unsigned k = 0; k < Access::early; k++) {
        unsigned voxel = first + k * blockDim.y;
        if (k >= share.each || voxel >= share.voxels)
            continue;
        place at = share_place(share, voxel);
        raw[k] =
            Access::load(blocks.data, blocks.type, block_element(u, blocks, at, share.channels, c));
    }
#pragma unroll
    for (unsigned k = 0; k < Access::early; k++) {
        unsigned voxel = first + k * blockDim.y;
        if (k >= share.each || voxel >= share.voxels)
            return;
        typename Access::values v = Access::widen(raw[k]);
        share_finish<Access>(out, e, share_epilogue_place(share, voxel), voxel, c, v);
    }
}

extern "C" cudaError_t kernel_unfold(const int kernel[3], const device_tensor *blocks,
                                     const device_tensor *out, unsigned samples,
                                     const device_epilogue *epilogue, cudaStream_t stream)
{
    unfolding u = {divider_of(static_cast<unsigned>(kernel[0])),
                   divider_of(static_cast<unsigned>(kernel[1])),
                   divider_of(static_cast<unsigned>(kernel[2]))};
    bool eight = tensor_moves_8(blocks) && tensor_moves_8(out); /* out: a tap begins at 8*n */
    return with_access(eight, blocks, [&](auto access) {
        typedef decltype(access) Access;
        share_launch l = share_voxels(out, samples, Access::width, Access::early, epilogue);
        return launch(unfold_kernel<Access>, l.grid, l.block, 0, stream, u, *blocks, *out, l.share,
                      *epilogue);
    });
}
