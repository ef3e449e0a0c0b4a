/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The executable specification of a plan: every step by direct loops over tensor elements, computed
 * in double and stored in the tensor's element type, in the plan's own arena with its views and its
 * aliasing. The arena starts as NaN bytes, so that a step that reads what nobody wrote shows.
 *
 *     interpret_plan(plan, input, output);    dense (D, H, W, C) float arrays of one sample
 *     interpret_step(plan, step, arena);      one step of it
 */
#ifndef DOSEMAP_TESTS_PLAN_INTERPRETER_H
#define DOSEMAP_TESTS_PLAN_INTERPRETER_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/plan.h"

/* ---- Elements ------------------------------------------------------------------------------- */

static inline double element_load(element_type type, const void *at)
{
    float f = 0;
    if (type == ELEMENT_F32) {
        memcpy(&f, at, sizeof f);
    } else if (type == ELEMENT_BF16) {
        uint16_t half;
        memcpy(&half, at, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&f, &bits, sizeof f);
    } else {
        _Float16 half;
        memcpy(&half, at, sizeof half);
        f = (float)half;
    }
    return (double)f;
}

/* Rounds to nearest even. */
static inline void element_store(element_type type, void *at, double value)
{
    float f = (float)value;
    if (type == ELEMENT_F32) {
        memcpy(at, &f, sizeof f);
    } else if (type == ELEMENT_BF16) {
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        if (isnan(f))
            bits |= 0x400000;
        else
            bits += 0x7fff + ((bits >> 16) & 1);
        uint16_t half = (uint16_t)(bits >> 16);
        memcpy(at, &half, sizeof half);
    } else {
        _Float16 half = (_Float16)f;
        memcpy(at, &half, sizeof half);
    }
}

static inline size_t tensor_voxels(const plan_tensor *t)
{
    return t->dim[0] * t->dim[1] * t->dim[2];
}

static inline unsigned char *tensor_at(const plan_tensor *t, unsigned char *arena, size_t z,
                                       size_t y, size_t x, size_t c)
{
    size_t voxel = (z * t->dim[1] + y) * t->dim[2] + x;
    return arena + t->offset + (voxel * t->pitch + t->channel_start + c) * element_size(t->type);
}

/* Dimensions of size 1 are broadcast. */
static inline double tensor_get(const plan_tensor *t, unsigned char *arena, size_t z, size_t y,
                                size_t x, size_t c)
{
    return element_load(t->type, tensor_at(t, arena, t->dim[0] == 1 ? 0 : z, t->dim[1] == 1 ? 0 : y,
                                           t->dim[2] == 1 ? 0 : x, t->channels == 1 ? 0 : c));
}

/* ---- Chains --------------------------------------------------------------------------------- */

static inline double chain_value(const plan *p, const chain_link *link, unsigned char *arena,
                                 double v, const size_t at[3], size_t c)
{
    double t = 0, u;
    if (link->op <= CHAIN_RSUB_TENSOR)
        t = tensor_get(&p->tensors[link->tensor], arena, at[0], at[1], at[2], c);
    switch (link->op) {
    case CHAIN_ADD_TENSOR:
        return v + t;
    case CHAIN_MUL_TENSOR:
        return v * t;
    case CHAIN_SUB_TENSOR:
        return v - t;
    case CHAIN_RSUB_TENSOR:
        return t - v;
    case CHAIN_AFFINE:
        return (double)link->scale[c] * v + (double)link->shift[c];
    case CHAIN_RELU:
        return v > 0 ? v : 0;
    case CHAIN_LEAKY_RELU:
        return v >= 0 ? v : (double)link->alpha * v;
    case CHAIN_PRELU:
        return v >= 0 ? v : (double)link->scale[c] * v;
    case CHAIN_ELU:
        return v >= 0 ? v : (double)link->alpha * expm1(v);
    case CHAIN_GELU:
        return 0.5 * v * (1 + erf(v * 0.70710678118654752440));
    case CHAIN_GELU_TANH:
        u = 0.79788456080286535588 * (v + 0.044715 * v * v * v);
        return 0.5 * v * (1 + tanh(u));
    case CHAIN_SIGMOID:
        return 1 / (1 + exp(-v));
    case CHAIN_TANH:
        return tanh(v);
    case CHAIN_SOFTPLUS:
        return v > 0 ? v + log1p(exp(-v)) : log1p(exp(v));
    case CHAIN_AT_LEAST:
        return fmax(v, (double)link->alpha);
    case CHAIN_AT_MOST:
        return fmin(v, (double)link->alpha);
    }
    return NAN;
}

/* ---- Steps: the value of one output element before the chain -------------------------------- */

typedef struct step_context {
    const plan *p;
    const plan_step *step;
    const plan_tensor *in, *out;
    unsigned char *arena;
    const double *mean, *deviation; /* STEP_NORM: per group */
} step_context;

/* The input's element under tap `k` of output `at`; false outside. */
static inline bool conv_tap(const step_context *s, const size_t at[3], const size_t k[3],
                            size_t from[3])
{
    const graph_node *node = s->step->node;
    for (int a = 0; a < 3; a++) {
        long stride = node->stride[a];
        long reach = (long)k[a] * node->dilation[a] - node->pad_begin[a];
        long i = (long)at[a] * stride + reach;
        if (s->step->kind == STEP_CONV_TRANSPOSE) {
            long n = (long)at[a] - reach;
            if (n < 0 || n % stride)
                return false;
            i = n / stride;
        }
        if (i < 0 || i >= (long)s->in->dim[a])
            return false;
        from[a] = (size_t)i;
    }
    return true;
}

static inline double conv_value(const step_context *s, const size_t at[3], size_t o)
{
    const graph_node *node = s->step->node;
    size_t groups = (size_t)node->groups;
    size_t per_in = s->in->channels / groups, per_out = s->out->channels / groups;
    size_t first = o / per_out * per_in;
    size_t edge[3] = {(size_t)node->kernel[0], (size_t)node->kernel[1], (size_t)node->kernel[2]};
    size_t taps = edge[0] * edge[1] * edge[2], k[3], from[3];
    double sum = s->step->bias ? (double)s->step->bias[o] : 0;
    for (size_t tap = 0; tap < taps; tap++) {
        k[0] = tap / (edge[1] * edge[2]);
        k[1] = tap / edge[2] % edge[1];
        k[2] = tap % edge[2];
        if (!conv_tap(s, at, k, from))
            continue;
        for (size_t i = 0; i < per_in; i++) {
            size_t row =
                s->step->kind == STEP_CONV ? o * per_in + i : (first + i) * per_out + o % per_out;
            sum += (double)s->step->weight[row * taps + tap] *
                   tensor_get(s->in, s->arena, from[0], from[1], from[2], first + i);
        }
    }
    return sum;
}

/* Cells on padding do not count, except that an average may count those inside the padded input. */
static inline double pool_value(const step_context *s, const size_t at[3], size_t c)
{
    const graph_node *node = s->step->node;
    bool maximum = s->step->kind == STEP_MAX_POOL;
    double best = -INFINITY, sum = 0, cells = 0;
    long k[3];
    for (k[0] = 0; k[0] < node->kernel[0]; k[0]++)
        for (k[1] = 0; k[1] < node->kernel[1]; k[1]++)
            for (k[2] = 0; k[2] < node->kernel[2]; k[2]++) {
                bool inside = true, padded = true;
                size_t from[3];
                for (int a = 0; a < 3; a++) {
                    long dilation = maximum ? node->dilation[a] : 1;
                    long i = (long)at[a] * node->stride[a] - node->pad_begin[a] + k[a] * dilation;
                    inside = inside && i >= 0 && i < (long)s->in->dim[a];
                    padded = padded && i < (long)s->in->dim[a] + node->pad_end[a];
                    from[a] = (size_t)i;
                }
                if (inside) {
                    double v = tensor_get(s->in, s->arena, from[0], from[1], from[2], c);
                    best = v > best || isnan(v) ? v : best;
                    sum += v;
                }
                cells += node->count_include_pad ? padded : inside;
            }
    return maximum ? best : sum / cells;
}

static inline double resize_coordinate(const graph_node *node, int a, size_t i, size_t n_in,
                                       size_t n_out)
{
    double scale = node->scales[a] > 0 ? node->scales[a] : (double)n_out / (double)n_in;
    if (node->coordinates == RESIZE_HALF_PIXEL)
        return ((double)i + 0.5) / scale - 0.5;
    if (node->coordinates == RESIZE_ASYMMETRIC)
        return (double)i / scale;
    return n_out == 1 ? 0 : (double)i * (double)(n_in - 1) / (double)(n_out - 1);
}

static inline size_t clamp_index(double i, size_t n)
{
    return i < 0 ? 0 : i > (double)(n - 1) ? n - 1 : (size_t)i;
}

static inline double resize_value(const step_context *s, const size_t at[3], size_t c)
{
    const graph_node *node = s->step->node;
    size_t low[3], high[3];
    double share[3], sum = 0;
    for (int a = 0; a < 3; a++) {
        double x = resize_coordinate(node, a, at[a], s->in->dim[a], s->out->dim[a]);
        double whole = floor(x);
        share[a] = x - whole;
        if (node->resize == RESIZE_NEAREST) {
            whole = node->nearest_floor ? floor(x) : ceil(x - 0.5);
            share[a] = 0;
        }
        low[a] = clamp_index(whole, s->in->dim[a]);
        high[a] = clamp_index(whole + 1, s->in->dim[a]);
    }
    for (unsigned corner = 0; corner < 8; corner++) {
        double weight = 1;
        size_t from[3];
        for (unsigned a = 0; a < 3; a++) {
            bool upper = corner >> a & 1;
            weight *= upper ? share[a] : 1 - share[a];
            from[a] = upper ? high[a] : low[a];
        }
        if (weight != 0)
            sum += weight * tensor_get(s->in, s->arena, from[0], from[1], from[2], c);
    }
    return sum;
}

static inline double pad_value_at(const step_context *s, const size_t at[3], size_t c)
{
    const graph_node *node = s->step->node;
    size_t from[3];
    for (int a = 0; a < 3; a++) {
        long n = (long)s->in->dim[a], i = (long)at[a] - node->pad_begin[a];
        if (i < 0 || i >= n) {
            if (node->pad == PAD_CONSTANT)
                return (double)node->pad_value;
            if (node->pad == PAD_REFLECT)
                i = i < 0 ? -i : 2 * (n - 1) - i;
            else
                i = i < 0 ? 0 : n - 1;
        }
        from[a] = (size_t)i;
    }
    return tensor_get(s->in, s->arena, from[0], from[1], from[2], c);
}

static inline double slice_value(const step_context *s, const size_t at[3], size_t c)
{
    const graph_node *node = s->step->node;
    size_t from[3], first = 0, count = 0;
    for (int a = 0; a < 3; a++) {
        slice_resolve(node->slice_begin[a], node->slice_end[a], node->slice_step[a], s->in->dim[a],
                      &first, &count);
        from[a] = first + at[a] * (size_t)node->slice_step[a];
    }
    size_t channel = (size_t)node->channel_begin + c * (size_t)node->channel_step;
    return tensor_get(s->in, s->arena, from[0], from[1], from[2], channel);
}

static inline size_t norm_groups(const step_context *s)
{
    return s->step->kind == STEP_NORM && s->step->node->op == OP_GROUP_NORM
               ? (size_t)s->step->node->groups
               : s->in->channels;
}

static inline double norm_value(const step_context *s, const size_t at[3], size_t c)
{
    size_t group = c / (s->in->channels / norm_groups(s));
    double v = tensor_get(s->in, s->arena, at[0], at[1], at[2], c) - s->mean[group];
    v /= s->deviation[group];
    return v * (s->step->scale ? (double)s->step->scale[c] : 1) +
           (s->step->shift ? (double)s->step->shift[c] : 0);
}

static inline double step_value(const step_context *s, const size_t at[3], size_t c)
{
    switch (s->step->kind) {
    case STEP_CONV:
    case STEP_CONV_TRANSPOSE:
        return conv_value(s, at, c);
    case STEP_NORM:
        return norm_value(s, at, c);
    case STEP_MAX_POOL:
    case STEP_AVERAGE_POOL:
        return pool_value(s, at, c);
    case STEP_GLOBAL_AVERAGE_POOL:
        return s->mean[c];
    case STEP_RESIZE:
        return resize_value(s, at, c);
    case STEP_PAD:
        return pad_value_at(s, at, c);
    case STEP_SLICE:
        return slice_value(s, at, c);
    case STEP_POINTWISE:
    case STEP_COPY:
        return tensor_get(s->in, s->arena, at[0], at[1], at[2], c);
    }
    return NAN;
}

/* Mean and sqrt(population variance + epsilon) of each group of channels, in two passes. */
static inline void group_statistics(const step_context *s, double *mean, double *deviation)
{
    size_t groups = norm_groups(s), per = s->in->channels / groups;
    const size_t *d = s->in->dim;
    double epsilon = s->step->kind == STEP_NORM ? (double)s->step->node->epsilon : 0;
    for (size_t g = 0; g < groups; g++) {
        double n = (double)(tensor_voxels(s->in) * per), sum = 0, squares = 0;
        for (int pass = 0; pass < 2; pass++)
            for (size_t v = 0; v < tensor_voxels(s->in); v++)
                for (size_t c = g * per; c < (g + 1) * per; c++) {
                    double x = tensor_get(s->in, s->arena, v / (d[1] * d[2]), v / d[2] % d[1],
                                          v % d[2], c);
                    if (pass)
                        squares += (x - sum / n) * (x - sum / n);
                    else
                        sum += x;
                }
        mean[g] = sum / n;
        deviation[g] = sqrt(squares / n + epsilon);
    }
}

/* ---- Plans ---------------------------------------------------------------------------------- */

/* The whole chain is applied to an element before it is stored, so a STEP_POINTWISE may write over
 * its input. */
static inline void interpret_step(const plan *p, const plan_step *step, unsigned char *arena)
{
    step_context s = {p, step, &p->tensors[step->in], &p->tensors[step->out], arena, NULL, NULL};
    double *mean = NULL, *deviation = NULL;
    if (step->kind == STEP_NORM || step->kind == STEP_GLOBAL_AVERAGE_POOL) {
        s.mean = mean = malloc(norm_groups(&s) * sizeof *mean);
        s.deviation = deviation = malloc(norm_groups(&s) * sizeof *deviation);
        group_statistics(&s, mean, deviation);
    }
    const plan_tensor *out = s.out;
    size_t at[3];
    for (at[0] = 0; at[0] < out->dim[0]; at[0]++)
        for (at[1] = 0; at[1] < out->dim[1]; at[1]++)
            for (at[2] = 0; at[2] < out->dim[2]; at[2]++)
                for (size_t c = 0; c < out->channels; c++) {
                    double v = step_value(&s, at, c);
                    for (size_t i = 0; i < step->n_chain; i++)
                        v = chain_value(p, &step->chain[i], arena, v, at, c);
                    element_store(out->type, tensor_at(out, arena, at[0], at[1], at[2], c), v);
                }
    free(mean);
    free(deviation);
}

/* Copies a dense array into or out of a tensor. */
static inline void tensor_fill(const plan_tensor *t, unsigned char *arena, const float *values)
{
    for (size_t v = 0; v < tensor_voxels(t); v++)
        for (size_t c = 0; c < t->channels; c++)
            element_store(t->type, tensor_at(t, arena, 0, 0, v, c),
                          (double)values[v * t->channels + c]);
}

static inline void tensor_read(const plan_tensor *t, unsigned char *arena, float *values)
{
    for (size_t v = 0; v < tensor_voxels(t); v++)
        for (size_t c = 0; c < t->channels; c++)
            values[v * t->channels + c] =
                (float)element_load(t->type, tensor_at(t, arena, 0, 0, v, c));
}

/* input: tile voxels * channels; output likewise, of the plan's output tensor. */
static inline void interpret_plan(const plan *p, const float *input, float *output)
{
    unsigned char *arena = malloc(p->arena_bytes);
    memset(arena, 0xff, p->arena_bytes);
    tensor_fill(&p->tensors[p->input], arena, input);
    for (size_t i = 0; i < p->n_steps; i++)
        interpret_step(p, &p->steps[i], arena);
    tensor_read(&p->tensors[p->output], arena, output);
    free(arena);
}

#endif
