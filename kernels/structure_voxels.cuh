/* SPDX-License-Identifier: Apache-2.0 */
/* Where the voxels of a tile of a structure are (kernels.h, "Voxels of structures"), and how what the
 * threads of its block, and then the tiles, found becomes one result in a fixed order. */
#ifndef DOSEMAP_KERNELS_STRUCTURE_VOXELS_CUH
#define DOSEMAP_KERNELS_STRUCTURE_VOXELS_CUH

#include "kernels/device.cuh"
#include "kernels/kernels.h"

/* Linear index of voxel i of a tile: by bisection among the tile's runs, a few hundred at most where
 * they are those of organs, which the first-level cache holds. Threads next to each other take
 * voxels next to each other, so that loads of a run are joined. */
__device__ __forceinline__ size_t tile_voxel(const device_run *runs, const device_tile &tile,
                                             unsigned i)
{
    unsigned long long place = tile.place + i;
    const device_run *run = runs + tile.run;
    unsigned low = 0, high = tile.runs;
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        if (run[middle].place <= place)
            low = middle;
        else
            high = middle;
    }
    return static_cast<size_t>(run[low].voxel + (place - run[low].place));
}

/* The results of a block's threads, a power of two, joined; thread 0 gets all. Each type brings its
 * join(T &, const T &). shared: one T a thread. */
template <class T> __device__ __forceinline__ void join_threads(T &mine, T *shared)
{
    shared[threadIdx.x] = mine;
    for (unsigned active = blockDim.x / 2; active > 0; active /= 2) {
        __syncthreads();
        if (threadIdx.x < active)
            join(shared[threadIdx.x], shared[threadIdx.x + active]);
    }
    mine = shared[threadIdx.x];
}

#define JOIN_THREADS 256u

/* One block a structure: the results of its tiles. clear(T &) makes the result of no voxels. */
template <class T>
static __global__ void join_tiles_kernel(device_structures structures, const T *partial, T *result)
{
    T mine;
    clear(mine);
    unsigned end = structures.first_tile[blockIdx.x + 1];
    for (unsigned i = structures.first_tile[blockIdx.x] + threadIdx.x; i < end; i += blockDim.x)
        join(mine, partial[i]);
    join_threads(mine, dynamic_shared<T>());
    if (threadIdx.x == 0)
        result[blockIdx.x] = mine;
}

template <class T>
static cudaError_t join_tiles(const device_structures &structures, const T *partial, T *result,
                              cudaStream_t stream)
{
    return launch(join_tiles_kernel<T>, structures.count, JOIN_THREADS, JOIN_THREADS * sizeof(T),
                  stream, structures, partial, result);
}

#endif
