// SPDX-License-Identifier: Apache-2.0
// The emulated toolkit for kernels: plain CUDA C++ compiled by g++ or clang++, without optimisations of
// its own, to run on the CPU. What is missing here is not to be used in kernels: atomics on floating
// point, static __shared__ arrays, fast-math intrinsics, __activemask.
#ifndef EMULATED_CUDA_RUNTIME_H
#define EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"
#include "emulated_block.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

// Constant for the thread that reads them: the scheduler puts each thread's own values back before it
// goes on.
#define EMULATED_PER_THREAD __thread __attribute__((tls_model("initial-exec")))
extern const EMULATED_PER_THREAD uint3 threadIdx, blockIdx;
extern const EMULATED_PER_THREAD dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define EMULATED_MAKE(type, name)                                                                  \
    static inline name##2 make_##name##2(type x, type y)                                           \
    {                                                                                              \
        return name##2 {x, y};                                                                     \
    }                                                                                              \
    static inline name##3 make_##name##3(type x, type y, type z)                                   \
    {                                                                                              \
        return name##3 {x, y, z};                                                                  \
    }                                                                                              \
    static inline name##4 make_##name##4(type x, type y, type z, type w)                           \
    {                                                                                              \
        return name##4 {x, y, z, w};                                                               \
    }
EMULATED_MAKE(signed char, char)
EMULATED_MAKE(unsigned char, uchar)
EMULATED_MAKE(short, short)
EMULATED_MAKE(unsigned short, ushort)
EMULATED_MAKE(int, int)
EMULATED_MAKE(unsigned int, uint)
EMULATED_MAKE(long long, longlong)
EMULATED_MAKE(unsigned long long, ulonglong)
EMULATED_MAKE(float, float)
EMULATED_MAKE(double, double)
#undef EMULATED_MAKE

// ------------------------------------------------------------------------------------- waiting

#define EMULATED_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(EMULATED_HERE)
{
    emulation::wait_block(emulation::block_operation::sync, 0, file, line);
}
static inline int __syncthreads_or(int predicate, EMULATED_HERE)
{
    return emulation::wait_block(emulation::block_operation::any, predicate, file, line);
}
static inline int __syncthreads_and(int predicate, EMULATED_HERE)
{
    return emulation::wait_block(emulation::block_operation::all, predicate, file, line);
}
static inline int __syncthreads_count(int predicate, EMULATED_HERE)
{
    return emulation::wait_block(emulation::block_operation::count, predicate, file, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_HERE)
{
    emulation::wait_warp(emulation::warp_operation::sync, mask, 0, 0, nullptr, file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_HERE)
{
    return (unsigned)emulation::wait_warp(emulation::warp_operation::ballot, mask, predicate != 0,
                                          0, nullptr, file, line);
}
static inline int __any_sync(unsigned mask, int predicate, EMULATED_HERE)
{
    return __ballot_sync(mask, predicate, file, line) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, EMULATED_HERE)
{
    return __ballot_sync(mask, predicate, file, line) == mask;
}

namespace emulation
{
template <class T>
T shuffle(unsigned mask, T value, unsigned source, int width, const char *file, int line)
{
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                  "shuffles move int, unsigned, long, long long, float and double");
    if (width < 1 || width > 32 || (width & (width - 1)))
        fail("the width of a shuffle is a power of two up to 32");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = wait_warp(warp_operation::shuffle, mask, bits, source, nullptr, file, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}
} // namespace emulation

template <class T>
static inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATED_HERE)
{
    const unsigned lane = emulation::lane(), inside = (unsigned)width - 1;
    return emulation::shuffle(mask, value, (lane & ~inside) | ((unsigned)source & inside), width,
                              file, line);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                               EMULATED_HERE)
{
    const unsigned lane = emulation::lane(), inside = (unsigned)width - 1;
    return emulation::shuffle(mask, value, (lane & inside) < delta ? lane : lane - delta, width,
                              file, line);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                 EMULATED_HERE)
{
    const unsigned lane = emulation::lane(), inside = (unsigned)width - 1;
    const bool beyond = delta > inside || (lane & inside) + delta > inside;
    return emulation::shuffle(mask, value, beyond ? lane : lane + delta, width, file, line);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                                EMULATED_HERE)
{
    const unsigned lane = emulation::lane(), last = lane | ((unsigned)width - 1);
    const unsigned source = lane ^ (unsigned)lane_mask;
    return emulation::shuffle(mask, value, source > last ? lane : source, width, file, line);
}
#undef EMULATED_HERE

static inline void __threadfence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
static inline void __threadfence_block(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// ------------------------------------------------------------------------------------- atomics

#define EMULATED_ATOMICS(type)                                                                     \
    static inline type atomicAdd(type *address, type value)                                        \
    {                                                                                              \
        return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);                               \
    }                                                                                              \
    static inline type atomicExch(type *address, type value)                                       \
    {                                                                                              \
        return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);                              \
    }                                                                                              \
    static inline type atomicOr(type *address, type value)                                         \
    {                                                                                              \
        return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);                                \
    }                                                                                              \
    static inline type atomicAnd(type *address, type value)                                        \
    {                                                                                              \
        return __atomic_fetch_and(address, value, __ATOMIC_RELAXED);                               \
    }                                                                                              \
    static inline type atomicXor(type *address, type value)                                        \
    {                                                                                              \
        return __atomic_fetch_xor(address, value, __ATOMIC_RELAXED);                               \
    }                                                                                              \
    static inline type atomicCAS(type *address, type compare, type value)                          \
    {                                                                                              \
        __atomic_compare_exchange_n(address, &compare, value, false, __ATOMIC_RELAXED,             \
                                    __ATOMIC_RELAXED);                                             \
        return compare;                                                                            \
    }                                                                                              \
    static inline type atomicMin(type *address, type value)                                        \
    {                                                                                              \
        type old = __atomic_load_n(address, __ATOMIC_RELAXED);                                     \
        while (value < old && !__atomic_compare_exchange_n(address, &old, value, false,            \
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED))    \
            ;                                                                                      \
        return old;                                                                                \
    }                                                                                              \
    static inline type atomicMax(type *address, type value)                                        \
    {                                                                                              \
        type old = __atomic_load_n(address, __ATOMIC_RELAXED);                                     \
        while (old < value && !__atomic_compare_exchange_n(address, &old, value, false,            \
                                                           __ATOMIC_RELAXED, __ATOMIC_RELAXED))    \
            ;                                                                                      \
        return old;                                                                                \
    }
EMULATED_ATOMICS(int)
EMULATED_ATOMICS(unsigned int)
EMULATED_ATOMICS(unsigned long long)
#undef EMULATED_ATOMICS

// ---------------------------------------------------------------------------- bits and arithmetic

template <class T> static inline T __ldg(const T *address)
{
    return *address;
}

#define EMULATED_REINTERPRET(name, from, to)                                                       \
    static inline to name(from value)                                                              \
    {                                                                                              \
        to bits;                                                                                   \
        memcpy(&bits, &value, sizeof bits);                                                        \
        return bits;                                                                               \
    }
EMULATED_REINTERPRET(__float_as_int, float, int)
EMULATED_REINTERPRET(__float_as_uint, float, unsigned int)
EMULATED_REINTERPRET(__int_as_float, int, float)
EMULATED_REINTERPRET(__uint_as_float, unsigned int, float)
EMULATED_REINTERPRET(__double_as_longlong, double, long long)
EMULATED_REINTERPRET(__longlong_as_double, long long, double)
#undef EMULATED_REINTERPRET

static inline int __popc(unsigned int x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned int)x) : 32;
}
static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}
static inline unsigned int __umulhi(unsigned int a, unsigned int b)
{
    return (unsigned int)((unsigned long long)a * b >> 32);
}
static inline unsigned int __brev(unsigned int x)
{
    unsigned int y = 0;
    for (int i = 0; i < 32; i++)
        y |= (x >> i & 1u) << (31 - i);
    return y;
}

// Rounded once each and never contracted, as everything here (-ffp-contract=off).
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline double __dadd_rn(double a, double b)
{
    return a + b;
}
static inline double __dmul_rn(double a, double b)
{
    return a * b;
}
static inline double __fma_rn(double a, double b, double c)
{
    return fma(a, b, c);
}
static inline float __saturatef(float x)
{
    return x > 0 ? (x < 1 ? x : 1) : 0; // NaN becomes 0
}
static inline float __double2float_rn(double x)
{
    return (float)x;
}

// To integers: NaN becomes 0 (in 32 bits), what is too large the nearest that there is.
static inline int emulated_to_int(double x)
{
    return x >= 2147483647.0   ? 2147483647
           : x > -2147483648.0 ? (int)x
           : x != x            ? 0
                               : -2147483647 - 1;
}
static inline unsigned int emulated_to_uint(double x)
{
    return x >= 4294967295.0 ? 4294967295u : x > 0 ? (unsigned int)x : 0u;
}
static inline int __float2int_rn(float x)
{
    return emulated_to_int((double)rintf(x));
}
static inline int __float2int_rd(float x)
{
    return emulated_to_int((double)floorf(x));
}
static inline int __float2int_ru(float x)
{
    return emulated_to_int((double)ceilf(x));
}
static inline int __float2int_rz(float x)
{
    return emulated_to_int((double)x);
}
static inline unsigned int __float2uint_rn(float x)
{
    return emulated_to_uint((double)rintf(x));
}
static inline unsigned int __float2uint_rz(float x)
{
    return emulated_to_uint((double)x);
}
static inline float __int2float_rn(int x)
{
    return (float)x;
}
static inline float __uint2float_rn(unsigned int x)
{
    return (float)x;
}

// glibc has it from 2.42 on.
#if !defined(__GLIBC__) || __GLIBC__ < 2 || (__GLIBC__ == 2 && __GLIBC_MINOR__ < 42)
static inline float rsqrtf(float x)
{
    return (float)(1.0 / sqrt((double)x));
}
static inline double rsqrt(double x)
{
    return 1.0 / sqrt(x);
}
#endif

#define EMULATED_MIN_MAX(type)                                                                     \
    static inline type min(type a, type b)                                                         \
    {                                                                                              \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    static inline type max(type a, type b)                                                         \
    {                                                                                              \
        return a < b ? b : a;                                                                      \
    }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned int)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
#undef EMULATED_MIN_MAX
// As CUDA's: the number, where one of the two is NaN.
static inline float min(float a, float b)
{
    return fminf(a, b);
}
static inline float max(float a, float b)
{
    return fmaxf(a, b);
}
static inline double min(double a, double b)
{
    return fmin(a, b);
}
static inline double max(double a, double b)
{
    return fmax(a, b);
}

// ------------------------------------------------------------------------------------- launch

extern "C" cudaError_t emulation_launch(const cudaLaunchConfig_t *config, const void *kernel,
                                        emulation::call_function call, const void *arguments,
                                        size_t argument_bytes);

namespace emulation
{
template <class... T> struct pack {
};
template <class First, class... Rest> struct pack<First, Rest...> {
    First first;
    pack<Rest...> rest;
};
inline pack<> make_pack()
{
    return {};
}
template <class First, class... Rest>
pack<First, Rest...> make_pack(const First &first, const Rest &...rest)
{
    return {first, make_pack(rest...)};
}

template <class Function, class... Done>
inline __attribute__((always_inline)) void apply(Function function, const pack<> &,
                                                 const Done &...done)
{
    function(done...);
}
template <class Function, class First, class... Rest, class... Done>
inline __attribute__((always_inline)) void
apply(Function function, const pack<First, Rest...> &left, const Done &...done)
{
    apply(function, left.rest, done..., left.first);
}

template <class... T> void call_kernel(const void *kernel, const void *arguments)
{
    apply(reinterpret_cast<void (*)(T...)>(reinterpret_cast<uintptr_t>(kernel)),
          *static_cast<const pack<T...> *>(arguments));
}
template <class... T> const void *kernel_address(void (*kernel)(T...))
{
    return reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(kernel));
}
} // namespace emulation

template <class... Parameters, class... Arguments>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config,
                                             void (*kernel)(Parameters...),
                                             Arguments &&...arguments)
{
    using all = emulation::pack<Parameters...>;
    static_assert(std::is_trivially_copyable<all>::value, "arguments of kernels are plain data");
    static_assert(sizeof(all) <= 4096, "the arguments of a kernel take at most 4 KB");
    return [&](Parameters... converted) {
        const all packed = emulation::make_pack(converted...);
        return emulation_launch(config, emulation::kernel_address(kernel),
                                emulation::call_kernel<Parameters...>, &packed, sizeof packed);
    }(std::forward<Arguments>(arguments)...);
}

template <class T> static inline cudaError_t cudaMalloc(T **pointer, size_t size)
{
    return cudaMalloc(reinterpret_cast<void **>(pointer), size);
}
template <class T>
static inline cudaError_t cudaMallocHost(T **pointer, size_t size, unsigned int flags = 0)
{
    return cudaHostAlloc(reinterpret_cast<void **>(pointer), size, flags);
}
template <class T>
static inline cudaError_t cudaHostAlloc(T **pointer, size_t size, unsigned int flags)
{
    return cudaHostAlloc(reinterpret_cast<void **>(pointer), size, flags);
}
template <class... T>
static inline cudaError_t cudaFuncSetAttribute(void (*kernel)(T...), cudaFuncAttribute attribute,
                                               int value)
{
    return cudaFuncSetAttribute(emulation::kernel_address(kernel), attribute, value);
}
template <class... T>
static inline cudaError_t
cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*kernel)(T...), int block_size,
                                              size_t shared_bytes)
{
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, emulation::kernel_address(kernel),
                                                         block_size, shared_bytes);
}

#endif
