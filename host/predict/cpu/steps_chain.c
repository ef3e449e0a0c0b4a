/* SPDX-License-Identifier: Apache-2.0 */
/* The chain of a step: one pass over a row in the innermost cache for each link. */
#include "predict/cpu/float_functions.h"
#include "predict/cpu/steps.h"

#include <math.h>

/* ---- With a tensor -------------------------------------------------------------------------- */

MANY_CPUS
static void combine(chain_op op, float *restrict row, const float *restrict t, size_t n)
{
    if (op == CHAIN_ADD_TENSOR)
        for (size_t i = 0; i < n; i++)
            row[i] += t[i];
    else if (op == CHAIN_MUL_TENSOR)
        for (size_t i = 0; i < n; i++)
            row[i] *= t[i];
    else if (op == CHAIN_SUB_TENSOR)
        for (size_t i = 0; i < n; i++)
            row[i] -= t[i];
    else
        for (size_t i = 0; i < n; i++)
            row[i] = t[i] - row[i];
}

/* ---- Per channel ---------------------------------------------------------------------------- */

MANY_CPUS
static void multiply_channels(float *restrict row, const float *restrict scale, size_t n,
                              size_t channels)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++)
            row[v * channels + c] *= scale[c];
}

MANY_CPUS
static void add_channels(float *restrict row, const float *restrict shift, size_t n,
                         size_t channels)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++)
            row[v * channels + c] += shift[c];
}

MANY_CPUS
static void prelu_channels(float *restrict row, const float *restrict slope, size_t n,
                           size_t channels)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++)
            row[v * channels + c] = leaky_relu(row[v * channels + c], slope[c]);
}

/* ---- Alone ---------------------------------------------------------------------------------- */

#define MAP(name, expression)                                                                      \
    MANY_CPUS                                                                                      \
    static void name(float *restrict row, size_t n, float alpha)                                   \
    {                                                                                              \
        (void)alpha;                                                                               \
        for (size_t i = 0; i < n; i++) {                                                           \
            float x = row[i];                                                                      \
            row[i] = (expression);                                                                 \
        }                                                                                          \
    }

MAP(map_relu, relu(x))
MAP(map_leaky_relu, leaky_relu(x, alpha))
MAP(map_elu, elu(x, alpha))
MAP(map_sigmoid, sigmoid(x))
MAP(map_tanh, tanh_fast(x))
MAP(map_softplus, softplus(x))
MAP(map_gelu_tanh, gelu_tanh(x))
MAP(map_at_least, x < alpha ? alpha : x) /* NaN stays */
MAP(map_at_most, x > alpha ? alpha : x)

/* erfc, not 1 + erf: gelu(-5) would be lost in the subtraction. */
static void map_gelu(float *row, size_t n)
{
    for (size_t i = 0; i < n; i++)
        row[i] = 0.5f * row[i] * erfcf(-0.70710678f * row[i]);
}

static void apply(const bound_link *link, const step_buffers *buffers, const tensor_view *like,
                  size_t first, size_t n)
{
    float *row = buffers->row, *operand = buffers->operand;
    size_t channels = like->channels, count = n * channels;
    switch (link->op) {
    case CHAIN_ADD_TENSOR:
    case CHAIN_MUL_TENSOR:
    case CHAIN_SUB_TENSOR:
    case CHAIN_RSUB_TENSOR:
        rows_load(&link->tensor, like, first, n, operand);
        combine(link->op, row, operand, count);
        break;
    case CHAIN_AFFINE:
        if (link->scale)
            multiply_channels(row, link->scale, n, channels);
        if (link->shift)
            add_channels(row, link->shift, n, channels);
        break;
    case CHAIN_PRELU:
        prelu_channels(row, link->scale, n, channels);
        break;
    case CHAIN_RELU:
        map_relu(row, count, 0);
        break;
    case CHAIN_LEAKY_RELU:
        map_leaky_relu(row, count, link->alpha);
        break;
    case CHAIN_ELU:
        map_elu(row, count, link->alpha);
        break;
    case CHAIN_GELU:
        map_gelu(row, count);
        break;
    case CHAIN_GELU_TANH:
        map_gelu_tanh(row, count, 0);
        break;
    case CHAIN_SIGMOID:
        map_sigmoid(row, count, 0);
        break;
    case CHAIN_TANH:
        map_tanh(row, count, 0);
        break;
    case CHAIN_SOFTPLUS:
        map_softplus(row, count, 0);
        break;
    case CHAIN_AT_LEAST:
        map_at_least(row, count, link->alpha);
        break;
    case CHAIN_AT_MOST:
        map_at_most(row, count, link->alpha);
        break;
    }
}

void chain_apply(const bound_chain *chain, const step_buffers *buffers, const tensor_view *like,
                 size_t first, size_t n)
{
    for (size_t i = 0; i < chain->n; i++)
        apply(&chain->links[i], buffers, like, first, n);
}
