/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pointwise chain alone: out[n, v, c] = chain(in[n, v, c]), with copy, change of element type
 * and views on both sides. in: (N, D, H, W, C) or with some of D, H, W, C 1 and then repeated;
 * out: (N, D, H, W, C).
 *
 * Preconditions: fewer than 2^31 voxels a sample, fewer than 2^16 samples; in and out are apart or
 * the same elements of the same type.
 * Threads: voxel_share.cuh; two to four voxels each, all of whose inputs are under way before the
 * first is used.
 * Per voxel and channel: one element read, one written, one more read for each tensor of the chain;
 * 1 to about 20 FLOPs a link. Bound by memory.
 * Tolerance: float32 within 1e-6 of the largest intermediate value (2 ulp functions); half types
 * plus one rounding.
 */
#include "kernels/voxel_share.cuh"

template <class Access>
static __global__ void pointwise_kernel(device_operand in, device_tensor out, voxel_share share,
                                        device_epilogue e)
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
        size_t index = operand_index(in, share_epilogue_place(share, voxel)) + c * in.c;
        raw[k] = Access::load(in.data, in.type, index);
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

static bool repeats(const device_tensor *in, const device_tensor *out)
{
    return in->channels != out->channels || memcmp(in->dim, out->dim, sizeof in->dim) != 0;
}

/* Sizes of 1 are repeated. */
static device_operand operand_of(const device_tensor *t)
{
    device_operand o = {};
    o.data = t->data;
    o.type = t->type;
    o.sample = t->sample;
    o.c = t->channels > 1;
    o.x = t->dim[2] > 1 ? t->pitch : 0;
    o.y = t->dim[1] > 1 ? t->pitch * t->dim[2] : 0;
    o.z = t->dim[0] > 1 ? t->pitch * t->dim[2] * t->dim[1] : 0;
    return o;
}

/* Axes of size 1 left as they are, which makes a tensor of the result's size linear. */
static device_operand operand_of_same_size(const device_tensor *t)
{
    device_operand o = {};
    o.data = t->data;
    o.type = t->type;
    o.sample = t->sample;
    o.c = 1;
    o.x = t->pitch;
    o.y = o.x * t->dim[2];
    o.z = o.y * t->dim[1];
    return o;
}

extern "C" cudaError_t kernel_pointwise(const device_tensor *in, const device_tensor *out,
                                        unsigned samples, const device_epilogue *epilogue,
                                        cudaStream_t stream)
{
    bool repeated = repeats(in, out);
    device_operand from = repeated ? operand_of(in) : operand_of_same_size(in);
    bool eight = !repeated && tensor_moves_8(in) && tensor_moves_8(out);
    return with_access(eight, in, [&](auto access) {
        typedef decltype(access) Access;
        share_launch l = share_voxels(out, samples, Access::width, Access::early, epilogue);
        l.share.linear = l.share.linear && operand_is_linear(&from, out->dim);
        return launch(pointwise_kernel<Access>, l.grid, l.block, 0, stream, from, *out, l.share,
                      *epilogue);
    });
}
