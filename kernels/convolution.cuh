/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the convolution kernels share: which input voxel lies under a tap, and the end of a tile.
 *
 * A direct convolution's result voxel o sees, under tap k of an axis, input o*stride + k*dilation -
 * pad_begin. A transposed one's sees (o + pad_begin - k*dilation) / stride where that is whole. So
 * all result voxels with the same remainder of o by the stride, the same phase, have the same taps:
 * numbered as cells, o = cell*stride + phase, they see input cell + (phase + pad_begin -
 * k*dilation) / stride. A direct convolution has one phase, and a cell is a voxel.
 */
#ifndef DOSEMAP_KERNELS_CONVOLUTION_CUH
#define DOSEMAP_KERNELS_CONVOLUTION_CUH

#include "kernels/epilogue8.cuh"

/* The cells of one phase. */
struct cell_grid {
    unsigned dim[3];   /* cells, z, y, x */
    unsigned step[3];  /* result voxels from one cell to the next */
    unsigned phase[3]; /* result voxel of cell 0 */
};

static inline unsigned convolution_phases(const device_convolution *convolution)
{
    const int *s = convolution->stride;
    return convolution->transposed ? static_cast<unsigned>(s[0] * s[1] * s[2]) : 1;
}

/* Cells of every phase alike: those that lie beyond the result are left out when stored. */
__host__ __device__ __forceinline__ cell_grid cells_of(const device_convolution &convolution,
                                                       const unsigned out_dim[3], unsigned phase)
{
    cell_grid cells;
#pragma unroll
    for (int a = 2; a >= 0; a--) {
        unsigned step = convolution.transposed ? static_cast<unsigned>(convolution.stride[a]) : 1;
        cells.step[a] = step;
        cells.dim[a] = (out_dim[a] + step - 1) / step;
        cells.phase[a] = phase % step;
        phase /= step;
    }
    return cells;
}

/* The input's coordinate under tap k of axis a is cell*cell_stride + tap_offset. */
__device__ __forceinline__ int cell_stride(const device_convolution &convolution, int a)
{
    return convolution.transposed ? 1 : convolution.stride[a];
}

/* False if no cell of the phase has that tap. */
__device__ __forceinline__ bool tap_offset(const device_convolution &convolution, int a, int k,
                                           unsigned phase, int *offset)
{
    int reach = k * convolution.dilation[a] - convolution.pad_begin[a];
    if (!convolution.transposed) {
        *offset = reach;
        return true;
    }
    int n = static_cast<int>(phase) - reach, stride = convolution.stride[a];
    *offset = n / stride;
    return n % stride == 0;
}

/* Is i one of n coordinates? */
__device__ __forceinline__ bool within(int i, unsigned n)
{
    return static_cast<unsigned>(i) < n;
}

/* ---- Results -------------------------------------------------------------------------------- */

/* Where a kernel's results go. */
struct convolution_result {
    device_tensor out;
    device_epilogue epilogue;
    bool moves_8; /* out is of type T, and eight channels can be stored at once */
};

/* type: of the input. */
static inline convolution_result result_of(const device_tensor *out,
                                           const device_epilogue *epilogue, element_type type)
{
    return {*out, *epilogue, out->type == type && tensor_moves_8(out)};
}

/* Ends and stores n <= 8 channels of one voxel, from channel c on. */
template <class T>
__device__ __forceinline__ void store_channels(const convolution_result &result, const place &at,
                                               unsigned c, unsigned n, float8 values)
{
    const device_tensor &out = result.out;
    unsigned voxel = (at.z * out.dim[1] + at.y) * out.dim[2] + at.x;
    size_t index = at.sample * out.sample + voxel * out.pitch + c;
    if (result.moves_8 && n == 8 && c % 8 == 0) {
        epilogue_apply8(result.epilogue, at, c, values);
        store8(static_cast<T *>(out.data) + index, values);
        return;
    }
    /* The values move up, because registers cannot be indexed. */
#pragma unroll 1
    for (unsigned i = 0; i < n; i++) {
        float v = epilogue_apply(result.epilogue, at, c + i, values.v[0]);
        store_element(out.data, out.type, index + i, v);
#pragma unroll
        for (unsigned j = 0; j < 7; j++)
            values.v[j] = values.v[j + 1];
    }
}

/* The part of the result that a block makes: `rows` cells from first_cell on, `channels` channels
 * from first_channel on. */
struct tile_place {
    cell_grid cells;
    unsigned sample, first_cell, rows, first_channel, channels;
};

/* Row r, channel c of the tile is tile[r*stride + c], in shared memory; stride is a multiple of 4.
 * The whole block calls it. */
template <class T>
__device__ __forceinline__ void store_tile(const convolution_result &result, const tile_place &part,
                                           const float *tile, unsigned stride)
{
    unsigned octets = (part.channels + 7) / 8;
#pragma unroll 1
    for (unsigned item = threadIdx.x; item < part.rows * octets; item += blockDim.x) {
        unsigned row = item / octets, c = item % octets * 8;
        place at = place_of(part.sample, part.first_cell + row, part.cells.dim);
        at.z = at.z * part.cells.step[0] + part.cells.phase[0];
        at.y = at.y * part.cells.step[1] + part.cells.phase[1];
        at.x = at.x * part.cells.step[2] + part.cells.phase[2];
        if (at.z >= result.out.dim[0] || at.y >= result.out.dim[1] || at.x >= result.out.dim[2])
            continue;
        unsigned n = part.channels - c < 8 ? part.channels - c : 8;
        store_channels<T>(result, at, part.first_channel + c, n, load8(tile + row * stride + c));
    }
}

/* ---- Launching ------------------------------------------------------------------------------ */

/* Blocks in one dimension, which has place for 2^31 - 1. */
static inline bool grid_of(size_t blocks, dim3 *grid)
{
    *grid = dim3(static_cast<unsigned>(blocks));
    return blocks <= 0x7fffffff;
}

#endif
