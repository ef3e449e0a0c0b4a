/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kernels need beyond CUDA itself: launching, shared memory, element types.
 *
 * The same .cu files are compiled by nvcc and, for tests, by a C++ compiler on an emulated toolkit
 * (tests/support/cuda/). All that differs between the two is in this file.
 */
#ifndef DOSEMAP_KERNELS_DEVICE_CUH
#define DOSEMAP_KERNELS_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <float.h>
#include <stdint.h>
#include <string.h>

#include "kernels/types.h"

/* ---- Shared memory -------------------------------------------------------------------------- */

/* The block's shared memory, as many bytes as the launch asked for, aligned to 128. Kernels have no
 * __shared__ arrays of their own: this way the emulation knows the end of it, and fills it with NaN
 * before each block. */
#ifdef __CUDACC__
extern __shared__ __align__(128) unsigned char device_shared_bytes[];
#endif
template <class T> __device__ __forceinline__ T *dynamic_shared()
{
#ifdef __CUDACC__
    return reinterpret_cast<T *>(device_shared_bytes);
#else
    return static_cast<T *>(emulation_dynamic_shared());
#endif
}

/* ---- Launching ------------------------------------------------------------------------------ */

/* Shared memory of a block: beyond the first, a kernel has to be allowed it; the second is there on
 * every GPU from compute capability 8.0 on (8.6, 8.9 and 12.0 have no more). */
#define SHARED_WITHOUT_ASKING (48u * 1024u)
#define SHARED_MOST (99u * 1024u)

/* Shared memory of a multiprocessor, for launch bounds: registers are shared out to as many blocks as
 * it has place for. Each block takes SHARED_OF_BLOCK more than it asks for. 8.0 has as much as is
 * said here, 8.6 and 8.9 have 100 KiB. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SHARED_IN_ALL (164u * 1024u)
#else
#define SHARED_IN_ALL (228u * 1024u)
#endif
#define SHARED_OF_BLOCK 1024u

/* Launches asynchronously; an empty grid is not launched. Arguments are converted to the kernel's
 * parameters. What is allowed is always the same, because a smaller limit would also hold for
 * launches that a graph has recorded and for those of other threads. */
template <class... Parameters, class... Arguments>
static inline cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 size_t shared_bytes, cudaStream_t stream, Arguments... arguments)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0)
        return cudaSuccess;
    if (shared_bytes > SHARED_MOST)
        return cudaErrorInvalidValue;
    if (shared_bytes > SHARED_WITHOUT_ASKING) {
        cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(SHARED_MOST));
        /* As many blocks at once as their registers allow, at the cost of the first-level cache. */
        if (error == cudaSuccess)
            error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                         cudaFuncAttributePreferredSharedMemoryCarveout,
                                         cudaSharedmemCarveoutMaxShared);
        if (error != cudaSuccess)
            return error;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

/* Blocks for n items, `per_block` each. Grids that loop may be bounded by `most`. */
static inline unsigned blocks_for(size_t n, size_t per_block, size_t most = 0x7fffffff)
{
    size_t blocks = (n + per_block - 1) / per_block;
    return static_cast<unsigned>(blocks < most ? blocks : most);
}

/* ---- Elements ------------------------------------------------------------------------------- */

__device__ __forceinline__ float to_float(float v)
{
    return v;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}
__device__ __forceinline__ float to_float(__half v)
{
    return __half2float(v);
}

/* Rounded to the nearest, ties to even. */
template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v)
{
    return v;
}
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v)
{
    return __float2bfloat16_rn(v);
}
template <> __device__ __forceinline__ __half from_float<__half>(float v)
{
    return __float2half_rn(v);
}

/* Of a type that is known at run time. `index` counts elements. */
__device__ __forceinline__ float load_element(const void *data, element_type type, size_t index)
{
    if (type == ELEMENT_F32)
        return static_cast<const float *>(data)[index];
    if (type == ELEMENT_BF16)
        return to_float(static_cast<const __nv_bfloat16 *>(data)[index]);
    return to_float(static_cast<const __half *>(data)[index]);
}

__device__ __forceinline__ void store_element(void *data, element_type type, size_t index, float v)
{
    if (type == ELEMENT_F32)
        static_cast<float *>(data)[index] = v;
    else if (type == ELEMENT_BF16)
        static_cast<__nv_bfloat16 *>(data)[index] = from_float<__nv_bfloat16>(v);
    else
        static_cast<__half *>(data)[index] = from_float<__half>(v);
}

/* Calls `function` with a value of the C++ type that `type` stands for; host side. */
template <class Function> static inline cudaError_t with_type(element_type type, Function function)
{
    if (type == ELEMENT_F32)
        return function(float());
    if (type == ELEMENT_BF16)
        return function(__nv_bfloat16());
    return function(__half());
}

/* Eight values of consecutive channels, moved by 16-byte (half types) or two 16-byte (float)
 * accesses. The address has to be a multiple of 16 bytes. */
struct float8 {
    float v[8];
};

template <class T> __device__ __forceinline__ float8 load8(const T *from)
{
    float8 out;
    if (sizeof(T) == 4) {
        float4 a = reinterpret_cast<const float4 *>(from)[0];
        float4 b = reinterpret_cast<const float4 *>(from)[1];
        out = {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    } else {
        uint4 raw = *reinterpret_cast<const uint4 *>(from);
        T values[8];
        memcpy(values, &raw, sizeof raw);
#pragma unroll
        for (int i = 0; i < 8; i++)
            out.v[i] = to_float(values[i]);
    }
    return out;
}

template <class T> __device__ __forceinline__ void store8(T *to, const float8 &values)
{
    if (sizeof(T) == 4) {
        float4 a = make_float4(values.v[0], values.v[1], values.v[2], values.v[3]);
        float4 b = make_float4(values.v[4], values.v[5], values.v[6], values.v[7]);
        reinterpret_cast<float4 *>(to)[0] = a;
        reinterpret_cast<float4 *>(to)[1] = b;
    } else {
        T rounded[8];
        uint4 raw;
#pragma unroll
        for (int i = 0; i < 8; i++)
            rounded[i] = from_float<T>(values.v[i]);
        memcpy(&raw, rounded, sizeof raw);
        *reinterpret_cast<uint4 *>(to) = raw;
    }
}

/* ---- Reductions ----------------------------------------------------------------------------- */

/* Over the warp, in a fixed order; every lane gets the result. All 32 lanes take part. */
template <class T> __device__ __forceinline__ T warp_sum(T v)
{
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, lanes);
    return v;
}

#endif
