/* SPDX-License-Identifier: Apache-2.0 */
/* IEEE 754 half precision by integers: _Float16 is not in every C compiler. */
#ifndef DOSEMAP_PREDICT_HALF_FLOAT_H
#define DOSEMAP_PREDICT_HALF_FLOAT_H

#include <stdint.h>
#include <string.h>

/* Rounded to the nearest, ties to even; infinite from 65520 on; NaN stays one. */
static inline uint16_t half_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (size >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);
    if (size < 0x38800000u) { /* below 2^-14: adding 1/2 rounds to multiples of 2^-24 */
        float magic = 0.5f, rounded;
        memcpy(&rounded, &size, sizeof rounded);
        rounded += magic;
        memcpy(&size, &rounded, sizeof size);
        return (uint16_t)(sign | (size - 0x3f000000u));
    }
    /* 112 less of an exponent, and 13 bits fewer. */
    return (uint16_t)(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);
}

static inline float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, size = half & 0x7fffu, bits;
    float value;
    if (size < 0x400u) {
        value = (float)size * 0x1p-24f;
        memcpy(&bits, &value, sizeof bits);
    } else {
        bits = (size << 13) + (size >= 0x7c00u ? 0x70000000u : 0x38000000u);
    }
    bits |= sign;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
