/* SPDX-License-Identifier: Apache-2.0 */
/* bfloat16 <-> float32. Plain integer arithmetic, so that the compiler vectorises it for any CPU.
 */
#ifndef DOSEMAP_PREDICT_CPU_CONVERT_H
#define DOSEMAP_PREDICT_CPU_CONVERT_H

#include <stdint.h>

typedef union float_bits {
    float f;
    uint32_t u;
} float_bits;

static inline float bf16_to_float(uint16_t half)
{
    float_bits bits = {.u = (uint32_t)half << 16};
    return bits.f;
}

/* Rounds to the nearest, ties to even; a NaN stays a (quiet) NaN. */
static inline uint16_t bf16_from_float(float value)
{
    float_bits bits = {.f = value};
    uint32_t rounded = bits.u + 0x7FFFu + ((bits.u >> 16) & 1u);
    uint32_t nan = bits.u | 0x00400000u;
    return (uint16_t)(((bits.u & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded) >> 16);
}

#endif
