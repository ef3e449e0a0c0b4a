// SPDX-License-Identifier: Apache-2.0
// The emulated toolkit's half precision: conversions only, no arithmetic. Rounding is to the nearest, ties
// to even; NaN becomes 0x7fff, as in CUDA's header.
#ifndef EMULATED_CUDA_FP16_H
#define EMULATED_CUDA_FP16_H

#include <stdint.h>
#include <string.h>

#include "vector_types.h"

struct alignas(2) __half {
    unsigned short __x;
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

static inline __half __ushort_as_half(unsigned short bits)
{
    return __half{bits};
}
static inline unsigned short __half_as_ushort(__half v)
{
    return v.__x;
}

static inline __half __float2half_rn(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const unsigned short sign = (unsigned short)(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return __half{0x7fff};
    if (bits >= 0x47800000u) // 65536 and above; 65520 and above become infinite by rounding, below
        return __half{(unsigned short)(sign | 0x7c00u)};
    if (bits <
        0x38800000u) { // subnormal in half precision: added to 0.5, its last place is the right one
        float magnitude;
        memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, sizeof bits);
        return __half{(unsigned short)(sign | (bits - 0x3f000000u))};
    }
    bits += 0xfffu + (bits >> 13 & 1u) - (112u << 23); // 112: the exponents' biases differ by it
    return __half{(unsigned short)(sign | bits >> 13)};
}
static inline __half __float2half(float v)
{
    return __float2half_rn(v);
}
static inline float __half2float(__half v)
{
    const uint32_t sign = (uint32_t)(v.__x & 0x8000u) << 16, rest = v.__x & 0x7fffu;
    uint32_t bits;
    float f;
    if (rest >= 0x7c00u) {
        bits = rest > 0x7c00u ? 0x7fffffffu : sign | 0x7f800000u;
    } else if (rest >= 0x400u) {
        bits = sign | ((rest << 13) + (112u << 23));
    } else {
        f = (float)rest * 0x1p-24f;
        memcpy(&bits, &f, sizeof bits);
        bits |= sign;
    }
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline __half2 __halves2half2(__half low, __half high)
{
    return __half2{low, high};
}
static inline __half2 __floats2half2_rn(float low, float high)
{
    return __half2{__float2half_rn(low), __float2half_rn(high)};
}
static inline __half2 __float22half2_rn(float2 v)
{
    return __floats2half2_rn(v.x, v.y);
}
static inline __half2 __float2half2_rn(float v)
{
    return __floats2half2_rn(v, v);
}
static inline __half2 __half2half2(__half v)
{
    return __half2{v, v};
}
static inline float2 __half22float2(__half2 v)
{
    return float2{__half2float(v.x), __half2float(v.y)};
}
static inline float __low2float(__half2 v)
{
    return __half2float(v.x);
}
static inline float __high2float(__half2 v)
{
    return __half2float(v.y);
}
static inline __half __low2half(__half2 v)
{
    return v.x;
}
static inline __half __high2half(__half2 v)
{
    return v.y;
}

#endif
