/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Activation functions without branches or calls, so that loops over them vectorise. Relative error
 * below 1e-6 over the whole range of float (tests/unit/predict/test_float_functions.c); results
 * that would be denormal come out as the smallest normal magnitude or so. NaN stays NaN.
 *
 * exp(x), x <= 0: x = n ln2 + r, |r| <= ln2/2; exp(x) = 2^n (1 + q), q = exp(r) - 1 by its series.
 */
#ifndef DOSEMAP_PREDICT_CPU_FLOAT_FUNCTIONS_H
#define DOSEMAP_PREDICT_CPU_FLOAT_FUNCTIONS_H

#include "predict/cpu/convert.h"

typedef struct split_exp {
    float power, rest; /* exp(x) = power * (1 + rest) */
} split_exp;

static inline split_exp exp_split(float x)
{
    /* Below -87 the power would be denormal. In integers, because a choice between floats becomes a
     * branch, and with NaN kept aside. */
    float_bits size = {.f = x}, nan;
    size.u &= 0x7FFFFFFFu;
    nan.u = size.u > 0x7F800000u ? size.u : 0;
    size.u = size.u < 0x42AE0000u ? size.u : 0x42AE0000u; /* 87.0f */
    x = -size.f;
    /* Adding 1.5*2^23 rounds to an integer and leaves it in the low bits. */
    float_bits n = {.f = x * 1.44269504f + 12582912.0f};
    float rounded = n.f - 12582912.0f;
    float r = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
    float q = 1.9841270e-4f;
    q = q * r + 1.3888889e-3f;
    q = q * r + 8.3333333e-3f;
    q = q * r + 4.1666667e-2f;
    q = q * r + 1.6666667e-1f;
    q = q * r + 0.5f;
    q = q * r * r + r;
    float_bits power = {.u = (n.u + 127u) << 23};
    split_exp e = {power.f, q + nan.f};
    return e;
}

/* exp(x) and exp(x) - 1 for x <= 0. */
static inline float exp_negative(float x)
{
    split_exp e = exp_split(x);
    return e.power + e.power * e.rest;
}

static inline float expm1_negative(float x)
{
    split_exp e = exp_split(x);
    return e.power * e.rest + (e.power - 1.0f);
}

/* log(1 + u) for 0 <= u <= 1: 2 atanh(s), s = u/(2+u) <= 1/3. */
static inline float log1p_unit(float u)
{
    float s = u / (2.0f + u), s2 = s * s;
    float q = 1.0f / 17.0f;
    q = q * s2 + 1.0f / 15.0f;
    q = q * s2 + 1.0f / 13.0f;
    q = q * s2 + 1.0f / 11.0f;
    q = q * s2 + 1.0f / 9.0f;
    q = q * s2 + 1.0f / 7.0f;
    q = q * s2 + 1.0f / 5.0f;
    q = q * s2 + 1.0f / 3.0f;
    return 2.0f * (s + s * s2 * q);
}

static inline float minus_abs(float x)
{
    float_bits bits = {.f = x};
    bits.u |= 0x80000000u;
    return bits.f;
}

static inline float with_sign_of(float magnitude, float x)
{
    float_bits m = {.f = magnitude}, s = {.f = x};
    m.u = (m.u & 0x7FFFFFFFu) | (s.u & 0x80000000u);
    return m.f;
}

static inline float relu(float x)
{
    return x < 0.0f ? 0.0f : x;
}

/* Sums of both sides, one of them 0: a choice between products would not vectorise everywhere. */
static inline float leaky_relu(float x, float alpha)
{
    float below = x < 0.0f ? x : 0.0f;
    return relu(x) + alpha * below;
}

static inline float elu(float x, float alpha)
{
    float_bits below = {.f = x};
    below.u &= 0u - (below.u >> 31); /* 0 unless negative */
    return relu(x) + alpha * expm1_negative(below.f);
}

static inline float sigmoid(float x)
{
    float e = exp_negative(minus_abs(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

static inline float tanh_fast(float x)
{
    float m = expm1_negative(2.0f * minus_abs(x));
    return with_sign_of(m / (2.0f + m), x);
}

static inline float softplus(float x)
{
    return relu(x) + log1p_unit(exp_negative(minus_abs(x)));
}

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), and (1 + tanh(u))/2 = sigmoid(2u). */
static inline float gelu_tanh(float x)
{
    return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
}

#endif
