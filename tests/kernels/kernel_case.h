/* SPDX-License-Identifier: Apache-2.0 */
/* What all tests of kernels share: device buffers with guard zones and NaN in them, values that every
 * element type holds exactly, runs in all orders of the emulation. Device memory is reached by the
 * runtime's copies only, so that the same test runs on a GPU when nvcc compiles it (gpu/). */
#ifndef DOSEMAP_TESTS_KERNEL_CASE_H
#define DOSEMAP_TESTS_KERNEL_CASE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <utility>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#ifdef DOSEMAP_EMULATED_CUDA
#include "emulation.h"
#endif

#include "compare.h"
#include "device_case.h"
#include "kernels/types.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* ---- Device memory --------------------------------------------------------------------------- */

/* n elements on the device, NaN bytes until something is written, guard zones at both ends. The
 * emulation's allocations have guards of their own, known to the address sanitizer. */
template <class T> class device_buffer
{
#ifdef DOSEMAP_EMULATED_CUDA
    static const size_t GUARD = 0;
#else
    static const size_t GUARD = 1024;
#endif
    static const unsigned char GUARD_BYTE = 0xA5;
    unsigned char *allocation = nullptr;
    size_t n;

    size_t bytes() const
    {
        return n * sizeof(T);
    }

  public:
    explicit device_buffer(size_t elements) : n(elements)
    {
        CHECK(cudaMalloc((void **)&allocation, bytes() + 2 * GUARD) == cudaSuccess);
        if (GUARD)
            CHECK(cudaMemset(allocation, GUARD_BYTE, bytes() + 2 * GUARD) == cudaSuccess);
        fill_nan();
    }
    explicit device_buffer(const std::vector<T> &values) : device_buffer(values.size())
    {
        upload(values);
    }
    device_buffer(device_buffer &&other) noexcept : allocation(other.allocation), n(other.n)
    {
        other.allocation = nullptr;
    }
    device_buffer(const device_buffer &) = delete;
    device_buffer &operator=(const device_buffer &) = delete;
    ~device_buffer()
    {
        if (allocation) {
            check_guards();
            CHECK(cudaFree(allocation) == cudaSuccess);
        }
    }

    T *data() const
    {
        return reinterpret_cast<T *>(allocation + GUARD);
    }
    size_t size() const
    {
        return n;
    }
    /* Waits, so that work on any stream comes after it. */
    void fill_nan()
    {
        if (n > 0)
            CHECK(cudaMemset(data(), 0xFF, bytes()) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
    }
    void upload(const std::vector<T> &values)
    {
        CHECK(values.size() == n);
        if (n > 0)
            CHECK(cudaMemcpy(data(), values.data(), bytes(), cudaMemcpyHostToDevice) ==
                  cudaSuccess);
    }
    /* After all work issued so far. */
    std::vector<T> download() const
    {
        std::vector<T> values(n);
        check_guards();
        if (n > 0)
            CHECK(cudaMemcpy(values.data(), data(), bytes(), cudaMemcpyDeviceToHost) ==
                  cudaSuccess);
        return values;
    }
    std::vector<T> host() const
    {
        return download();
    }
    void check_guards() const
    {
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        if (GUARD == 0)
            return;
        std::vector<unsigned char> guard(2 * GUARD);
        CHECK(cudaMemcpy(guard.data(), allocation, GUARD, cudaMemcpyDeviceToHost) == cudaSuccess);
        CHECK(cudaMemcpy(guard.data() + GUARD, allocation + GUARD + bytes(), GUARD,
                         cudaMemcpyDeviceToHost) == cudaSuccess);
        for (unsigned char byte : guard)
            CHECK(byte == GUARD_BYTE);
    }
};

/* ---- Elements -------------------------------------------------------------------------------- */

static inline void element_of(float v, float *to)
{
    *to = v;
}
static inline void element_of(float v, __nv_bfloat16 *to)
{
    *to = __float2bfloat16_rn(v);
}
static inline void element_of(float v, __half *to)
{
    *to = __float2half_rn(v);
}
static inline float float_of(float v)
{
    return v;
}
static inline float float_of(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}
static inline float float_of(__half v)
{
    return __half2float(v);
}

template <class T> static inline std::vector<T> to_elements(const std::vector<float> &values)
{
    std::vector<T> out(values.size());
    for (size_t i = 0; i < values.size(); i++)
        element_of(values[i], &out[i]);
    return out;
}
template <class T> static inline std::vector<float> to_floats(const std::vector<T> &values)
{
    std::vector<float> out(values.size());
    for (size_t i = 0; i < values.size(); i++)
        out[i] = float_of(values[i]);
    return out;
}

static inline const char *type_name(element_type type)
{
    return type == ELEMENT_F32 ? "float32" : type == ELEMENT_BF16 ? "bfloat16" : "float16";
}
static inline size_t type_bytes(element_type type)
{
    return type == ELEMENT_F32 ? 4 : 2;
}

/* Of a type known at run time, as bytes. */
static inline std::vector<unsigned char> encode(const std::vector<float> &values, element_type type)
{
    std::vector<unsigned char> out(values.size() * type_bytes(type));
    for (size_t i = 0; i < values.size(); i++) {
        __nv_bfloat16 b;
        __half h;
        element_of(values[i], &b);
        element_of(values[i], &h);
        const void *from = type == ELEMENT_F32    ? (const void *)&values[i]
                           : type == ELEMENT_BF16 ? (const void *)&b
                                                  : (const void *)&h;
        memcpy(&out[i * type_bytes(type)], from, type_bytes(type));
    }
    return out;
}
static inline std::vector<float> decode(const std::vector<unsigned char> &bytes, element_type type)
{
    std::vector<float> out(bytes.size() / type_bytes(type));
    for (size_t i = 0; i < out.size(); i++) {
        const unsigned char *from = &bytes[i * type_bytes(type)];
        __nv_bfloat16 b;
        __half h;
        if (type == ELEMENT_F32) {
            memcpy(&out[i], from, 4);
        } else if (type == ELEMENT_BF16) {
            memcpy((void *)&b, from, 2);
            out[i] = float_of(b);
        } else {
            memcpy((void *)&h, from, 2);
            out[i] = float_of(h);
        }
    }
    return out;
}

/* ---- Values ---------------------------------------------------------------------------------- */

struct case_random {
    uint64_t state;

    explicit case_random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du)
    {
    }
    uint32_t bits()
    {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return (uint32_t)((state * 0x2545F4914F6CDD1Du) >> 32);
    }
    uint32_t below(uint32_t n)
    {
        return (uint32_t)((uint64_t)bits() * n >> 32);
    }
    /* A multiple of 1/64 in [-2, 2): float32, TF32, bfloat16 and float16 hold it exactly. */
    float exact()
    {
        return (float)((int)below(256) - 128) / 64;
    }
};

static inline std::vector<float> exact_values(size_t n, uint64_t seed)
{
    case_random random(seed);
    std::vector<float> values(n);
    for (float &v : values)
        v = random.exact();
    return values;
}

static inline bool close_to(const std::vector<float> &made, const std::vector<float> &expected,
                            double atol, double rtol)
{
    return arrays_close(made.data(), made.size(), expected.data(), expected.size(), atol, rtol);
}

/* ---- Orders ---------------------------------------------------------------------------------- */

/* Once in each order of the emulation; once on a GPU. */
template <class Function> static inline void for_each_order(Function function)
{
#ifdef DOSEMAP_EMULATED_CUDA
    for (int order = 0; order < EMULATION_ORDERS; order++) {
        emulation_set_order(order);
        function();
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
    }
    emulation_set_order(0);
#else
    function();
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
#endif
}
template <class Function> static inline void for_each_schedule(Function function)
{
    for_each_order(function);
}

typedef std::vector<std::pair<const char *, void (*)()>> kernel_tests;

/* For main(): all tests in each order. */
static inline int run_in_all_orders(const kernel_tests &tests)
{
    if (int skipped = skipped_without_device())
        return skipped;
    for (const auto &test : tests) {
        fprintf(stderr, "%s\n", test.first);
        for_each_order(test.second);
    }
    return 0;
}

#endif
