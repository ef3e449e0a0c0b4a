/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One tensor of random values, and how far two tensors are apart: with these a plan of the vendor's
 * library is compared with a convolution of ours without a copy to the host.
 *
 *     fill:     data[i] = (h(i, seed) mod 256 - 128) / 128, h a mixing of 64 bits
 *     compare:  d = got - want; per block the sums of d^2 and want^2, the largest excess
 *               |d| - rounding * max(|got|, |want|), and how often NaN has become a number
 *
 * Both read n elements that lie one after the other.
 * Preconditions: none; n may be 0 (then nothing is launched, and nothing is written).
 * Threads: thread t of T has the elements t, t + T, t + 2T ... in this order.
 * Per element: fill writes one element; compare reads two, about 8 FLOPs, three of them in double.
 * Bound by memory.
 * Tolerance: fill is exact in every element type (8 bits). compare sums in double, each thread its
 * own elements, then a block's threads in a fixed order: the same bytes in every run.
 */
#include "kernels/device.cuh"
#include "kernels/kernels.h"

#define THREADS 256
/* Elements of a thread before there are more blocks than DEVICE_COMPARE_BLOCKS. */
#define EACH 16

/* ---- Fill ----------------------------------------------------------------------------------- */

/* The finaliser of SplitMix64 (Steele et al. 2014). */
__device__ __forceinline__ unsigned mixed_byte(unsigned long long i, unsigned seed)
{
    unsigned long long z = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return static_cast<unsigned>(z >> 56);
}

static __global__ void fill_random_kernel(void *data, size_t n, element_type type, unsigned seed)
{
    size_t all = static_cast<size_t>(gridDim.x) * THREADS;
    for (size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += all)
        store_element(data, type, i,
                      static_cast<float>(static_cast<int>(mixed_byte(i, seed)) - 128) / 128.0f);
}

extern "C" cudaError_t kernel_fill_random(void *data, size_t n, element_type type, unsigned seed,
                                          cudaStream_t stream)
{
    dim3 grid(blocks_for(n, THREADS * EACH));
    return launch(fill_random_kernel, grid, dim3(THREADS), 0, stream, data, n, type, seed);
}

/* ---- Compare -------------------------------------------------------------------------------- */

/* As bits, floats that are not negative have the order of their values; NaN is behind infinity. */
__device__ __forceinline__ unsigned excess_bits(float got, float want, float rounding)
{
    float d = fabsf(got - want) - rounding * fmaxf(fabsf(got), fabsf(want));
    return d <= 0 ? 0 : __float_as_uint(fabsf(d));
}

__device__ __forceinline__ void join(device_deviation *to, const device_deviation &other)
{
    to->squares += other.squares;
    to->scale += other.scale;
    to->excess = to->excess > other.excess ? to->excess : other.excess;
    to->lost += other.lost;
}

static __global__ void compare_kernel(const void *got, const void *want, size_t n,
                                      element_type type, float rounding, device_deviation *partial)
{
    device_deviation *threads = dynamic_shared<device_deviation>();
    device_deviation own = {};
    size_t all = static_cast<size_t>(gridDim.x) * THREADS;
    for (size_t i = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x; i < n; i += all) {
        float a = load_element(got, type, i), b = load_element(want, type, i);
        double d = static_cast<double>(a) - static_cast<double>(b);
        device_deviation one = {d * d, static_cast<double>(b) * static_cast<double>(b),
                                excess_bits(a, b, rounding), b != b && a == a};
        join(&own, one);
    }
    threads[threadIdx.x] = own;
    for (unsigned width = THREADS / 2; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width)
            join(&threads[threadIdx.x], threads[threadIdx.x + width]);
    }
    if (threadIdx.x == 0)
        partial[blockIdx.x] = threads[0];
}

extern "C" unsigned compare_blocks(size_t n)
{
    return blocks_for(n, THREADS * EACH, DEVICE_COMPARE_BLOCKS);
}

extern "C" cudaError_t kernel_compare(const void *got, const void *want, size_t n,
                                      element_type type, float rounding, device_deviation *partial,
                                      cudaStream_t stream)
{
    return launch(compare_kernel, dim3(compare_blocks(n)), dim3(THREADS),
                  THREADS * sizeof(device_deviation), stream, got, want, n, type, rounding,
                  partial);
}
