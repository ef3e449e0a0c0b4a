/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans of one step, made by hand: the step runs in a worker's arena full of random values and in a
 * copy by the plan interpreter. Afterwards the result must be close and every other byte the same.
 */
#ifndef DOSEMAP_TESTS_NETWORK_CASE_H
#define DOSEMAP_TESTS_NETWORK_CASE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/error.h"
#include "compare.h"
#include "plan_interpreter.h"
#ifdef NETWORK_UNDER_TEST /* another one with the functions of predict/cpu/network.h */
#include NETWORK_UNDER_TEST
#else
#include "predict/cpu/network.h"
#endif

enum { CASE_TENSORS = 8, CASE_LINKS = 8, CASE_FLOATS = 1 << 18 };

typedef struct network_case {
    plan p;
    plan_step step;
    graph_node node;
    graph graph;
    plan_tensor tensors[CASE_TENSORS];
    chain_link chain[CASE_LINKS];
    float *floats; /* weights and other parameters */
    size_t n_floats;
    uint32_t random;
} network_case;

/* Uniform in [-1, 1), with 8 bits, so that it is the same in bf16. */
static inline float case_random(network_case *k)
{
    k->random = k->random * 1664525u + 1013904223u;
    return (float)((int)(k->random >> 24) - 128) / 128.0f;
}

static inline const float *case_floats(network_case *k, size_t n)
{
    float *at = k->floats + k->n_floats;
    assert_true(k->n_floats + n <= CASE_FLOATS);
    for (size_t i = 0; i < n; i++)
        at[i] = case_random(k);
    k->n_floats += n;
    return at;
}

static inline void case_begin(network_case *k, element_type type)
{
    memset(k, 0, sizeof *k);
    k->random = 12345;
    k->floats = malloc(CASE_FLOATS * sizeof(float));
    assert_non_null(k->floats);
    k->p.options.type = type;
    k->p.tensors = k->tensors;
    k->p.graph = &k->graph;
    k->p.steps = &k->step;
    k->p.n_steps = 1;
    k->step.name = "step";
    k->step.node = &k->node;
    k->step.chain = k->chain;
    k->node.name = (char *)(uintptr_t) "node";
    k->node.groups = 1;
    k->node.epsilon = 1e-5f;
    k->node.channel_step = 1;
    for (int a = 0; a < 3; a++) {
        k->node.kernel[a] = k->node.stride[a] = k->node.dilation[a] = 1;
        k->node.slice_step[a] = 1;
        k->node.slice_end[a] = INT32_MAX;
    }
}

/* `before` and `after`: channels of the same buffer round the view. */
static inline int case_tensor(network_case *k, element_type type, size_t channels, size_t z,
                              size_t y, size_t x, size_t before, size_t after)
{
    plan_tensor *t = &k->tensors[k->p.n_tensors];
    assert_true(k->p.n_tensors < CASE_TENSORS);
    *t = (plan_tensor){.name = "tensor",
                       .channels = channels,
                       .dim = {z, y, x},
                       .pitch = channels + before + after,
                       .channel_start = before,
                       .type = type,
                       .offset = k->p.arena_bytes};
    t->buffer_bytes = (t->pitch * z * y * x * element_size(type) + 63) / 64 * 64;
    k->p.arena_bytes += t->buffer_bytes;
    return (int)k->p.n_tensors++;
}

static inline void case_link(network_case *k, chain_op op, int tensor, float alpha)
{
    size_t channels = k->tensors[k->step.out].channels;
    chain_link *link = &k->chain[k->step.n_chain++];
    *link = (chain_link){.op = op, .tensor = tensor, .alpha = alpha};
    if (op == CHAIN_AFFINE || op == CHAIN_PRELU)
        link->scale = case_floats(k, channels);
    if (op == CHAIN_AFFINE)
        link->shift = case_floats(k, channels);
}

static inline void case_fill_arena(network_case *k, unsigned char *arena)
{
    memset(arena, 0xff, k->p.arena_bytes);
    for (size_t i = 0; i < k->p.n_tensors; i++) {
        const plan_tensor *t = &k->tensors[i];
        size_t n = t->dim[0] * t->dim[1] * t->dim[2] * t->pitch;
        for (size_t e = 0; e < n; e++)
            element_store(t->type, arena + t->offset + e * element_size(t->type),
                          (double)case_random(k));
    }
}

/* The view's elements as floats; their places in the buffer are overwritten, so that what is left
 * can be compared byte for byte. */
static inline float *case_take(const plan_tensor *t, unsigned char *arena)
{
    size_t n = tensor_voxels(t), i = 0;
    float *values = malloc(n * t->channels * sizeof *values);
    assert_non_null(values);
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < t->channels; c++) {
            unsigned char *at =
                arena + t->offset + (v * t->pitch + t->channel_start + c) * element_size(t->type);
            values[i++] = (float)element_load(t->type, at);
            memset(at, 0, element_size(t->type));
        }
    return values;
}

/* Tensors to be kept intact in the plan's ends, which must be dense. */
static inline void case_ends(network_case *k)
{
    k->p.input = case_tensor(k, k->p.options.type, 1, 1, 1, 1, 0, 0);
    k->p.output = case_tensor(k, ELEMENT_F32, 1, 1, 1, 1, 0, 0);
}

static inline bool case_agrees_on(network_case *k, unsigned threads, double atol, double rtol)
{
    dm_error err = {0};
    network *net;
    worker *w;
    const plan_tensor *out = &k->tensors[k->step.out];
    if (network_create(&k->p, threads, &net, &err) != DM_OK) {
        fprintf(stderr, "%s; %s\n", err.what, err.remedy);
        return false;
    }
    assert_int_equal(worker_create(net, &w, &err), DM_OK);
    unsigned char *arena = worker_arena(w), *copy = malloc(k->p.arena_bytes);
    assert_non_null(copy);
    case_fill_arena(k, arena);
    memcpy(copy, arena, k->p.arena_bytes);
    interpret_step(&k->p, &k->step, copy);
    assert_int_equal(worker_run(w, &err), DM_OK);
    float *got = case_take(out, arena), *want = case_take(out, copy);
    size_t n = tensor_voxels(out) * out->channels;
    bool close = arrays_close(got, n, want, n, atol, rtol);
    bool rest = memcmp(arena, copy, k->p.arena_bytes) == 0;
    if (!rest)
        fprintf(stderr, "the step wrote outside its result\n");
    if (!close)
        fprintf(stderr, "kernel: %s, %u threads\n",
                network_kernel(net, 0) ? network_kernel(net, 0) : "own", threads);
    free(got);
    free(want);
    free(copy);
    worker_free(w);
    network_free(net);
    return close && rest;
}

/* On one thread, and on three that share the step. */
static inline bool case_agrees(network_case *k, double atol, double rtol)
{
    case_ends(k);
    return case_agrees_on(k, 1, atol, rtol) && case_agrees_on(k, 3, atol, rtol);
}

static inline void case_end(network_case *k)
{
    free(k->floats);
    k->floats = NULL;
}

#endif
