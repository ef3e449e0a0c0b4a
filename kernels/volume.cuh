/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the kernels between volumes and windows share: which thread does which voxel, where windows
 * lie, and sums through resampling tables.
 *
 * Products and sums are rounded one by one, as the CPU's are (predict/gather.c, stitch.c,
 * resample.c), so that gather, stitch and resample give its bytes wherever no log1p or expm1 is
 * involved.
 */
#ifndef DOSEMAP_KERNELS_VOLUME_CUH
#define DOSEMAP_KERNELS_VOLUME_CUH

#include "kernels/device.cuh"
#include "kernels/kernels.h"

/* ---- Patches -------------------------------------------------------------------------------- */

/* A box of voxels is cut into patches of lanes x rows x PATCH_DEPTH voxels, one block each. Lanes,
 * neighbouring threads, go along one axis, rows along another, and each thread walks PATCH_DEPTH
 * voxels along the third. Lanes go where memory is written in order; rows go along the fastest axis
 * of the other side, which may be permuted: its 32-byte sectors are then used up by one block. */
#define PATCH_THREADS 256
#define PATCH_DEPTH 4
/* Blocks on one multiprocessor: bounds the registers at 48, with which nothing is spilled. */
#define PATCH_BLOCKS 5

/* Voxels, or their numbers, along x, y, z. Signed: windows may begin before the volume. */
struct voxel {
    int x, y, z;
};

struct patch_grid {
    int axis[3];        /* of lanes, rows, depth */
    unsigned dim[3];    /* of the box along these */
    unsigned shift;     /* 2^shift lanes */
    unsigned chunks[2]; /* patches along lanes and rows */
    size_t count;
};

/* The axis along which neighbours lie closest together in memory, of those that are not `except`.
 */
static inline int fastest_axis(const ptrdiff_t stride[3], int except = -1)
{
    int best = -1;
    for (int a = 0; a < 3; a++) {
        if (a == except)
            continue;
        ptrdiff_t apart = stride[a] < 0 ? -stride[a] : stride[a];
        ptrdiff_t least = best < 0 ? 0 : stride[best] < 0 ? -stride[best] : stride[best];
        if (best < 0 || apart < least)
            best = a;
    }
    return best;
}

static inline patch_grid patches_of(const size_t dim[3], int lanes_along, int rows_along)
{
    patch_grid g = {};
    const int axis[3] = {lanes_along, rows_along, 3 - lanes_along - rows_along};
    size_t length[3];
    for (int i = 0; i < 3; i++) {
        g.axis[i] = axis[i];
        length[i] = dim[axis[i]];
        g.dim[i] = static_cast<unsigned>(length[i]);
    }
    while (g.shift < 5 && (1u << g.shift) < length[0])
        g.shift++;
    const size_t lanes = 1u << g.shift, rows = PATCH_THREADS >> g.shift;
    g.chunks[0] = static_cast<unsigned>((length[0] + lanes - 1) / lanes);
    g.chunks[1] = static_cast<unsigned>((length[1] + rows - 1) / rows);
    g.count = (length[2] + PATCH_DEPTH - 1) / PATCH_DEPTH * g.chunks[0] * g.chunks[1];
    return g;
}

/* One patch with the numbers of its first voxel along lanes, rows and depth. */
struct patch {
    unsigned first[3];
};

__device__ __forceinline__ patch patch_of(const patch_grid &g, unsigned number)
{
    patch p;
    unsigned rest = number / g.chunks[0];
    p.first[0] = (number - rest * g.chunks[0]) << g.shift;
    unsigned deep = rest / g.chunks[1];
    p.first[1] = (rest - deep * g.chunks[1]) * (PATCH_THREADS >> g.shift);
    p.first[2] = deep * PATCH_DEPTH;
    return p;
}

/* From numbers along lanes, rows and depth. Choices, because an index would need local memory. */
__device__ __forceinline__ voxel in_axis_order(const patch_grid &g, unsigned lane, unsigned row,
                                               unsigned deep)
{
    voxel v;
    v.x = static_cast<int>(g.axis[0] == 0 ? lane : g.axis[1] == 0 ? row : deep);
    v.y = static_cast<int>(g.axis[0] == 1 ? lane : g.axis[1] == 1 ? row : deep);
    v.z = static_cast<int>(g.axis[0] == 2 ? lane : g.axis[1] == 2 ? row : deep);
    return v;
}

/* The calling thread's voxel number `step` of a patch; false beyond the box. */
__device__ __forceinline__ bool patch_voxel(const patch_grid &g, const patch &p, unsigned step,
                                            voxel *v)
{
    unsigned lane = p.first[0] + (threadIdx.x & ((1u << g.shift) - 1));
    unsigned row = p.first[1] + (threadIdx.x >> g.shift), deep = p.first[2] + step;
    *v = in_axis_order(g, lane, row, deep);
    return lane < g.dim[0] && row < g.dim[1] && deep < g.dim[2];
}

/* ---- Windows -------------------------------------------------------------------------------- */

/* Its first voxel on the model's grid; negative in the padding. */
__device__ __forceinline__ voxel window_start(const device_tiling &t, unsigned window)
{
    unsigned row = window / t.n[0], z = row / t.n[1];
    voxel v;
    v.x = static_cast<int>(__ldg(t.start[0] + (window - row * t.n[0])) -
                           static_cast<unsigned>(t.pad_before[0]));
    v.y = static_cast<int>(__ldg(t.start[1] + (row - z * t.n[1])) -
                           static_cast<unsigned>(t.pad_before[1]));
    v.z = static_cast<int>(__ldg(t.start[2] + z) - static_cast<unsigned>(t.pad_before[2]));
    return v;
}

__device__ __forceinline__ bool is_inside(const voxel &v, const size_t dim[3])
{
    return static_cast<unsigned>(v.x) < static_cast<unsigned>(dim[0]) &&
           static_cast<unsigned>(v.y) < static_cast<unsigned>(dim[1]) &&
           static_cast<unsigned>(v.z) < static_cast<unsigned>(dim[2]);
}

/* Number in a dense box, x fastest; of a tile it fits 31 bits. */
__device__ __forceinline__ unsigned tile_index(const voxel &v, const size_t tile[3])
{
    return (static_cast<unsigned>(v.z) * static_cast<unsigned>(tile[1]) +
            static_cast<unsigned>(v.y)) *
               static_cast<unsigned>(tile[0]) +
           static_cast<unsigned>(v.x);
}

static inline size_t tile_voxels(const device_tiling *t)
{
    return t->tile[0] * t->tile[1] * t->tile[2];
}

/* ---- Volumes -------------------------------------------------------------------------------- */

__device__ __forceinline__ bool is_finite(float v)
{
    return fabsf(v) <= FLT_MAX;
}

/* sum + a*b, the product rounded too; nvcc would join the two. */
__device__ __forceinline__ float add_product(float sum, float a, float b)
{
    return __fadd_rn(sum, __fmul_rn(a, b));
}

/* Where voxel v of the whole volume lies, which has to be in the box. */
__device__ __forceinline__ ptrdiff_t volume_index(const device_volume &volume, const voxel &v)
{
    return (v.x - static_cast<ptrdiff_t>(volume.begin[0])) * volume.stride[0] +
           (v.y - static_cast<ptrdiff_t>(volume.begin[1])) * volume.stride[1] +
           (v.z - static_cast<ptrdiff_t>(volume.begin[2])) * volume.stride[2];
}

/* The source at one target voxel: sums along x inside sums along y inside those along z, each from
 * 0 on, like the CPU's passes over rows, planes and volumes. The box has to hold what is used. */
__device__ __forceinline__ float resampled(const device_axis_table table[3],
                                           const device_volume &source, const voxel &v,
                                           bool nan_to_zero)
{
    voxel first = {static_cast<int>(__ldg(table[0].first + v.x)),
                   static_cast<int>(__ldg(table[1].first + v.y)),
                   static_cast<int>(__ldg(table[2].first + v.z))};
    const unsigned nx = __ldg(table[0].count + v.x), ny = __ldg(table[1].count + v.y),
                   nz = __ldg(table[2].count + v.z);
    const float *wx = table[0].weight + __ldg(table[0].offset + v.x),
                *wy = table[1].weight + __ldg(table[1].offset + v.y),
                *wz = table[2].weight + __ldg(table[2].offset + v.z);
    const float *plane = source.data + volume_index(source, first);
    float sum = 0;
    for (unsigned z = 0; z < nz; z++, plane += source.stride[2]) {
        const float *row = plane;
        float plane_sum = 0;
        for (unsigned y = 0; y < ny; y++, row += source.stride[1]) {
            const float *at = row;
            float row_sum = 0;
            for (unsigned x = 0; x < nx; x++, at += source.stride[0]) {
                float value = __ldg(at);
                if (nan_to_zero && !is_finite(value))
                    value = 0;
                row_sum = add_product(row_sum, __ldg(wx + x), value);
            }
            plane_sum = add_product(plane_sum, __ldg(wy + y), row_sum);
        }
        sum = add_product(sum, __ldg(wz + z), plane_sum);
    }
    return sum;
}

#endif
