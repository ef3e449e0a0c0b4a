/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the kernels between convolutions share their work, and how a thread moves what it works on.
 *
 * A thread keeps its channels: eight that are moved by 16-byte accesses (by_eight), or one of any
 * type (by_one, for everything that cannot be moved so). threadIdx.x and blockIdx.y say which, so
 * that consecutive threads touch consecutive addresses; threadIdx.y says which voxel, and a thread
 * does every blockDim.y-th voxel of its block's run. blockIdx.z is the sample. Nothing is divided
 * by a number that is known only at run time but by multiplication (divider).
 */
#ifndef DOSEMAP_KERNELS_VOXEL_SHARE_CUH
#define DOSEMAP_KERNELS_VOXEL_SHARE_CUH

#include "kernels/epilogue8.cuh"

/* ---- Division by multiplication ------------------------------------------------------------- */

/* n / d for n, d < 2^31 (Granlund and Montgomery 1994): multiplier = ceil(2^(31 + log) / d) with
 * 2^log >= d. */
struct divider {
    unsigned multiplier, shift, by;
};

static inline divider divider_of(unsigned d)
{
    unsigned log = 0;
    while (log < 31 && (1u << log) < d)
        log++;
    uint64_t power = static_cast<uint64_t>(1) << (31 + log);
    return {static_cast<unsigned>((power + d - 1) / d), 31 + log, d};
}

__device__ __forceinline__ unsigned divide(unsigned n, const divider &d)
{
    return static_cast<unsigned>(static_cast<uint64_t>(n) * d.multiplier >> d.shift);
}

/* ---- Access --------------------------------------------------------------------------------- */

/* Eight channels of type T as they lie in memory: what is loaded early waits in fewer registers. */
template <class T> struct raw8 {
    uint4 words[sizeof(T) / 2];
};

/* T: of the input. The result's type is known at run time. early: how many loads a thread has under
 * way before it uses the first. */
template <class T> struct by_eight {
    static constexpr unsigned width = 8;
    static constexpr unsigned early = sizeof(T) == 2 ? 4 : 2;
    typedef float8 values;
    typedef raw8<T> raw;

    static __device__ __forceinline__ raw load(const void *data, element_type, size_t index)
    {
        return *reinterpret_cast<const raw *>(static_cast<const T *>(data) + index);
    }
    static __device__ __forceinline__ values widen(const raw &r)
    {
        T elements[8];
        memcpy(elements, &r, sizeof r);
        values out;
#pragma unroll
        for (int i = 0; i < 8; i++)
            out.v[i] = to_float(elements[i]);
        return out;
    }
    static __device__ __forceinline__ void store(const device_tensor &t, size_t index,
                                                 const values &v)
    {
        if (t.type == ELEMENT_F32)
            store8(static_cast<float *>(t.data) + index, v);
        else if (t.type == ELEMENT_BF16)
            store8(static_cast<__nv_bfloat16 *>(t.data) + index, v);
        else
            store8(static_cast<__half *>(t.data) + index, v);
    }
    static __device__ __forceinline__ void finish(const device_epilogue &e, const place &at,
                                                  unsigned c, values &v)
    {
        epilogue_apply8(e, at, c, v);
    }
    static __device__ __forceinline__ values channels(const float *from, unsigned c)
    {
        return load8_unaligned(from + c);
    }
};

struct single {
    float v[1];
};

struct by_one {
    static constexpr unsigned width = 1;
    static constexpr unsigned early = 4;
    typedef single values;
    typedef float raw;

    static __device__ __forceinline__ raw load(const void *data, element_type type, size_t index)
    {
        return load_element(data, type, index);
    }
    static __device__ __forceinline__ values widen(raw r)
    {
        return {{r}};
    }
    static __device__ __forceinline__ void store(const device_tensor &t, size_t index,
                                                 const values &v)
    {
        store_element(t.data, t.type, index, v.v[0]);
    }
    static __device__ __forceinline__ void finish(const device_epilogue &e, const place &at,
                                                  unsigned c, values &v)
    {
        v.v[0] = epilogue_apply(e, at, c, v.v[0]);
    }
    static __device__ __forceinline__ values channels(const float *from, unsigned c)
    {
        return {{from[c]}};
    }
};

template <class Access> __device__ __forceinline__ typename Access::values fill(float v)
{
    typename Access::values out;
#pragma unroll
    for (unsigned i = 0; i < Access::width; i++)
        out.v[i] = v;
    return out;
}

/* Calls `function` with the way to move elements of `in`; host side. */
template <class Function>
static inline cudaError_t with_access(bool eight, const device_tensor *in, Function function)
{
    if (!eight)
        return function(by_one());
    return with_type(in->type, [&](auto zero) { return function(by_eight<decltype(zero)>()); });
}

/* ---- Shares --------------------------------------------------------------------------------- */

/* Kernels leave out __launch_bounds__: no kernel can take more registers than 256 threads may have,
 * and told of the 256, nvcc 13.0 spills some of them to make room for one block more. */
#define SHARE_THREADS 256
/* Blocks from which on a device has enough to do: several for each multiprocessor. */
#define SHARE_BLOCKS 1024

/* linear: the epilogue's operands lie like the voxels of the result or are the same for all of
 * them, so that the voxel's number will do for its place. */
struct voxel_share {
    unsigned voxels, channels, each;
    bool linear;
    unsigned dim[3];
    divider y, x;
};

struct share_launch {
    voxel_share share;
    dim3 grid, block;
};

static inline bool operand_is_linear(const device_operand *operand, const unsigned dim[3])
{
    return operand->y == operand->x * dim[2] && operand->z == operand->y * dim[1];
}

static inline bool epilogue_is_linear(const device_epilogue *e, const unsigned dim[3])
{
    for (unsigned i = 0; i < e->n; i++)
        if (e->link[i].op <= CHAIN_RSUB_TENSOR && !operand_is_linear(&e->link[i].operand, dim))
            return false;
    return true;
}

/* The voxels of `out`, `width` channels and at most `most` voxels a thread. */
static inline share_launch share_voxels(const device_tensor *out, unsigned samples, unsigned width,
                                        unsigned most, const device_epilogue *e)
{
    share_launch l = {};
    voxel_share *s = &l.share;
    memcpy(s->dim, out->dim, sizeof s->dim);
    s->voxels = out->dim[0] * out->dim[1] * out->dim[2];
    s->channels = out->channels;
    s->linear = epilogue_is_linear(e, out->dim);
    s->y = divider_of(out->dim[1] ? out->dim[1] : 1);
    s->x = divider_of(out->dim[2] ? out->dim[2] : 1);
    unsigned threads = (out->channels + width - 1) / width;
    unsigned across = threads < SHARE_THREADS ? threads : SHARE_THREADS;
    unsigned rows = across ? SHARE_THREADS / across : 1;
    rows = rows < s->voxels ? rows : s->voxels;
    l.block = dim3(across ? across : 1, rows ? rows : 1);
    l.grid.y = blocks_for(threads, l.block.x);
    l.grid.z = samples;
    for (s->each = most;; s->each /= 2) {
        l.grid.x = blocks_for(s->voxels, static_cast<size_t>(l.block.y) * s->each);
        size_t blocks = static_cast<size_t>(l.grid.x) * l.grid.y * l.grid.z;
        if (s->each == 1 || blocks >= SHARE_BLOCKS)
            return l;
    }
}

template <class Access> __device__ __forceinline__ unsigned share_channel()
{
    return (blockIdx.y * blockDim.x + threadIdx.x) * Access::width;
}

__device__ __forceinline__ unsigned share_first_voxel(const voxel_share &s)
{
    return blockIdx.x * blockDim.y * s.each + threadIdx.y;
}

__device__ __forceinline__ place share_place(const voxel_share &s, unsigned voxel)
{
    place p;
    p.sample = blockIdx.z;
    unsigned row = divide(voxel, s.x);
    p.x = voxel - row * s.x.by;
    p.z = divide(row, s.y);
    p.y = row - p.z * s.y.by;
    return p;
}

/* For what nothing but the epilogue needs. */
__device__ __forceinline__ place share_epilogue_place(const voxel_share &s, unsigned voxel)
{
    if (!s.linear)
        return share_place(s, voxel);
    place p = {blockIdx.z, 0, 0, voxel};
    return p;
}

__device__ __forceinline__ size_t element_at(const device_tensor &t, unsigned voxel, unsigned c)
{
    return blockIdx.z * t.sample + voxel * t.pitch + c;
}

/* The end of a step: chain, rounding and storing of one place. */
template <class Access>
__device__ __forceinline__ void share_finish(const device_tensor &out, const device_epilogue &e,
                                             const place &at, unsigned voxel, unsigned c,
                                             typename Access::values &v)
{
    Access::finish(e, at, c, v);
    Access::store(out, element_at(out, voxel, c), v);
}

#endif
