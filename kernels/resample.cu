/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one grid to another along its axes (predict/resample.h), as from the model's back to the
 * PET's:
 *
 *     target(x, y, z) = sum_k wz[z,k] sum_j wy[y,j] sum_i wx[x,i] source(first + (i, j, k))
 *
 * Layouts: source and target any strides. Preconditions: the source's box holds every voxel that
 * the target's box uses; the axes have fewer than 2^31 voxels.
 * Threads: patches of volume.cuh over the target's box, lanes along its fastest axis so that stores
 * are dense, rows along the source's; a thread makes PATCH_DEPTH voxels.
 * Per voxel: 4 bytes written, about as many read beyond L1; with t taps per axis t^3 + t^2 + t
 * multiply-adds (2 taps: 28 FLOP). A separable pass per axis would do 3t, but write and read the
 * volume twice more: 16 bytes against 28 FLOP.
 * Tolerance: the CPU's bytes, since every product and sum is the same.
 */
#include "kernels/volume.cuh"

struct axis_tables {
    device_axis_table axis[3];
};

static __global__ void __launch_bounds__(PATCH_THREADS, PATCH_BLOCKS)
    resample_kernel(axis_tables tables, device_volume source, device_volume target,
                    patch_grid patches)
{
    const patch p = patch_of(patches, blockIdx.x);
    for (unsigned step = 0; step < PATCH_DEPTH; step++) {
        voxel v;
        if (!patch_voxel(patches, p, step, &v))
            continue;
        const voxel whole = {v.x + static_cast<int>(target.begin[0]),
                             v.y + static_cast<int>(target.begin[1]),
                             v.z + static_cast<int>(target.begin[2])};
        target.data[volume_index(target, whole)] = resampled(tables.axis, source, whole, false);
    }
}

extern "C" cudaError_t kernel_resample(const device_axis_table table[3],
                                       const device_volume *source, const device_volume *target,
                                       cudaStream_t stream)
{
    const int lanes = fastest_axis(target->stride), rows = fastest_axis(source->stride);
    const patch_grid patches =
        patches_of(target->dim, lanes, rows == lanes ? fastest_axis(target->stride, lanes) : rows);
    if (patches.count > INT32_MAX)
        return cudaErrorInvalidValue;
    const axis_tables tables = {{table[0], table[1], table[2]}};
    return launch(resample_kernel, dim3(static_cast<unsigned>(patches.count)), PATCH_THREADS, 0,
                  stream, tables, *source, *target, patches);
}
