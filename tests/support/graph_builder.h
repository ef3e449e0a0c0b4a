/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Graphs made by hand, without a file: for tests of the plan and of what runs plans.
 *
 *     graph_builder b;
 *     build_begin(&b, 1, (size_t[]){4, 4, 4}, 7);          channels, tile (z, y, x), seed
 *     int x = b.input;
 *     int y = build_conv(&b, x, 8, 3);
 *     int z = build_binary(&b, OP_ADD, y, build_unary(&b, OP_RELU, x));
 *     build_output(&b, z);
 *     ... &b.g ...
 *     build_end(&b);
 *
 * build_node returns the value that the node makes, or -1 where its size is not defined for the
 * tile; then nothing is added.
 */
#ifndef DOSEMAP_TESTS_GRAPH_BUILDER_H
#define DOSEMAP_TESTS_GRAPH_BUILDER_H

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/graph.h"

#define BUILD_MAX 512
#define BUILD_PORTS 4

typedef struct graph_builder {
    graph g;
    size_t sizes[BUILD_MAX][3]; /* per value, for the tile */
    graph_port in[BUILD_PORTS], out[BUILD_PORTS];
    uint64_t state;
    int input; /* the first */
} graph_builder;

/* ---- Random numbers ------------------------------------------------------------------------- */

static inline uint32_t build_bits(graph_builder *b)
{
    b->state = b->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(b->state >> 33);
}

/* 0 to n-1 */
static inline size_t build_pick(graph_builder *b, size_t n)
{
    return build_bits(b) % n;
}

static inline bool build_chance(graph_builder *b, size_t percent)
{
    return build_pick(b, 100) < percent;
}

/* Uniform in [low, high). */
static inline float build_uniform(graph_builder *b, double low, double high)
{
    return (float)(low + (high - low) * (double)build_bits(b) / 2147483648.0);
}

/* ---- Values --------------------------------------------------------------------------------- */

static inline char *build_name(const char *what, size_t number)
{
    char text[64];
    snprintf(text, sizeof text, "%s%zu", what, number);
    return strdup(text);
}

static inline int build_value(graph_builder *b, size_t channels, const size_t size[3])
{
    if (b->g.n_values == BUILD_MAX) {
        fprintf(stderr, "graph_builder.h: more than %d values\n", BUILD_MAX);
        exit(99);
    }
    graph_value *v = &b->g.values[b->g.n_values];
    *v = (graph_value){.name = build_name("t", b->g.n_values), .rank = 5, .channels = channels};
    memcpy(b->sizes[b->g.n_values], size, 3 * sizeof *size);
    return (int)b->g.n_values++;
}

/* A weight with values uniform in [low, high). */
static inline int build_weight(graph_builder *b, double low, double high, size_t rank,
                               const size_t *shape)
{
    int id = build_value(b, 0, (size_t[]){1, 1, 1});
    graph_value *v = &b->g.values[id];
    v->is_weight = true;
    v->rank = rank;
    v->count = 1;
    for (size_t i = 0; i < rank; i++)
        v->count *= v->shape[i] = shape[i];
    v->data = malloc(v->count * sizeof *v->data);
    for (size_t i = 0; i < v->count; i++)
        v->data[i] = build_uniform(b, low, high);
    return id;
}

static inline int build_vector(graph_builder *b, double low, double high, size_t n)
{
    return build_weight(b, low, high, 1, &n);
}

/* ---- Nodes ---------------------------------------------------------------------------------- */

/* ONNX's defaults. */
static inline graph_node build_attributes(op_kind op)
{
    graph_node node = {.op = op,
                       .groups = 1,
                       .alpha = op == OP_LEAKY_RELU ? 0.01f : 1.0f,
                       .low = -INFINITY,
                       .high = INFINITY,
                       .epsilon = 1e-5f,
                       .channel_end = INT_MAX,
                       .channel_step = 1};
    for (int a = 0; a < 3; a++) {
        node.kernel[a] = node.stride[a] = node.dilation[a] = node.slice_step[a] = 1;
        node.slice_end[a] = INT_MAX;
    }
    return node;
}

static inline size_t build_channels(const graph_builder *b, int value)
{
    return b->g.values[value].channels;
}

/* The size that several operands have together; for one it is its own. */
static inline void build_joined(const graph_builder *b, size_t n, const int *inputs, size_t size[3])
{
    memcpy(size, b->sizes[inputs[0]], 3 * sizeof *size);
    for (size_t i = 1; i < n; i++)
        for (int a = 0; a < 3; a++)
            if (inputs[i] >= 0 && b->sizes[inputs[i]][a] > size[a])
                size[a] = b->sizes[inputs[i]][a];
}

static inline int build_node(graph_builder *b, const graph_node *attributes, size_t channels,
                             size_t n, const int *inputs)
{
    size_t in[3], out[3];
    build_joined(b, n, inputs, in);
    if (!node_output_size(attributes, in, out, NULL, 0))
        return -1;
    graph_node *node = &b->g.nodes[b->g.n_nodes];
    *node = *attributes;
    node->name = build_name(op_name(node->op), b->g.n_nodes++);
    node->n_inputs = n;
    node->inputs = malloc(n * sizeof *node->inputs);
    memcpy(node->inputs, inputs, n * sizeof *inputs);
    node->output = build_value(b, channels, out);
    return node->output;
}

/* Activations, Identity, GlobalAveragePool and whatever else needs no weights. */
static inline int build_with(graph_builder *b, const graph_node *attributes, int x)
{
    return build_node(b, attributes, build_channels(b, x), 1, &x);
}

static inline int build_unary(graph_builder *b, op_kind op, int x)
{
    graph_node node = build_attributes(op);
    return build_with(b, &node, x);
}

/* Of activations, or of one and a weight. */
static inline int build_binary(graph_builder *b, op_kind op, int x, int y)
{
    graph_node node = build_attributes(op);
    size_t cx = build_channels(b, x), cy = build_channels(b, y);
    return build_node(b, &node, cx > cy ? cx : cy, 2, (int[]){x, y});
}

static inline int build_concat(graph_builder *b, size_t n, const int *operands)
{
    graph_node node = build_attributes(OP_CONCAT);
    size_t channels = 0;
    for (size_t i = 0; i < n; i++)
        channels += build_channels(b, operands[i]);
    return build_node(b, &node, channels, n, operands);
}

/* Any convolution; weights keep the size of the activations, roughly. */
static inline int build_convolution(graph_builder *b, const graph_node *attributes, int x,
                                    size_t channels, bool bias)
{
    size_t in = build_channels(b, x), groups = (size_t)attributes->groups;
    bool transposed = attributes->op == OP_CONV_TRANSPOSE;
    size_t shape[5] = {transposed ? in : channels, (transposed ? channels : in) / groups,
                       (size_t)attributes->kernel[0], (size_t)attributes->kernel[1],
                       (size_t)attributes->kernel[2]};
    size_t size[3];
    if (!node_output_size(attributes, b->sizes[x], size, NULL, 0))
        return -1;
    double fan = (double)(in / groups * shape[2] * shape[3] * shape[4]);
    int weight = build_weight(b, -1.7 / sqrt(fan), 1.7 / sqrt(fan), 5, shape);
    int offset = bias ? build_vector(b, -0.5, 0.5, channels) : -1;
    return build_node(b, attributes, channels, 3, (int[]){x, weight, offset});
}

/* Cubic kernel, stride 1, padded to keep the size (odd edges). */
static inline int build_conv(graph_builder *b, int x, size_t channels, int edge)
{
    graph_node node = build_attributes(OP_CONV);
    for (int a = 0; a < 3; a++) {
        node.kernel[a] = edge;
        node.pad_begin[a] = node.pad_end[a] = edge / 2;
    }
    return build_convolution(b, &node, x, channels, true);
}

/* Kernel 2, stride 2: doubles the size. */
static inline int build_up(graph_builder *b, int x, size_t channels)
{
    graph_node node = build_attributes(OP_CONV_TRANSPOSE);
    for (int a = 0; a < 3; a++)
        node.kernel[a] = node.stride[a] = 2;
    return build_convolution(b, &node, x, channels, true);
}

/* Kernel 3, stride 2: halves it. */
static inline int build_down(graph_builder *b, int x, size_t channels)
{
    graph_node node = build_attributes(OP_CONV);
    for (int a = 0; a < 3; a++) {
        node.kernel[a] = 3;
        node.stride[a] = 2;
        node.pad_begin[a] = node.pad_end[a] = 1;
    }
    return build_convolution(b, &node, x, channels, true);
}

/* Batch, Instance or Group (of `groups`). The epsilon is large, so that regions of one voxel are
 * not blown up. */
static inline int build_norm(graph_builder *b, op_kind op, int x, int groups)
{
    graph_node node = build_attributes(op);
    size_t channels = build_channels(b, x);
    node.groups = groups;
    node.epsilon = 0.1f;
    int scale = build_vector(b, 0.5, 1.5, channels), shift = build_vector(b, -0.5, 0.5, channels);
    if (op != OP_BATCH_NORM)
        return build_node(b, &node, channels, 3, (int[]){x, scale, shift});
    int mean = build_vector(b, -0.5, 0.5, channels), variance = build_vector(b, 0.5, 2, channels);
    return build_node(b, &node, channels, 5, (int[]){x, scale, shift, mean, variance});
}

/* ---- Graphs --------------------------------------------------------------------------------- */

/* One more input, of the tile's size. */
static inline int build_input(graph_builder *b, size_t channels)
{
    const size_t tile[3] = {b->g.patch[2], b->g.patch[1], b->g.patch[0]};
    int value = build_value(b, channels, tile);
    b->in[b->g.n_inputs++] =
        (graph_port){.value = value, .quantity = DM_QUANTITY_UPTAKE, .channels = channels};
    return value;
}

/* The first output, or one more. */
static inline void build_output(graph_builder *b, int value)
{
    b->out[b->g.n_outputs++] = (graph_port){.value = value,
                                            .quantity = DM_QUANTITY_DOSE_PER_ACTIVITY,
                                            .channels = build_channels(b, value)};
}

static inline void build_begin(graph_builder *b, size_t channels, const size_t tile[3],
                               uint32_t seed)
{
    memset(b, 0, sizeof *b);
    b->state = (uint64_t)seed * UINT64_C(2654435761) + 1;
    build_bits(b);
    b->g.name = strdup("test");
    b->g.values = calloc(BUILD_MAX, sizeof *b->g.values);
    b->g.nodes = calloc(BUILD_MAX, sizeof *b->g.nodes);
    for (int a = 0; a < 3; a++) {
        b->g.patch[a] = tile[2 - a];
        b->g.total_stride[a] = 1;
    }
    b->g.inputs = b->in;
    b->g.outputs = b->out;
    b->input = build_input(b, channels);
}

static inline void build_end(graph_builder *b)
{
    for (size_t n = 0; n < b->g.n_nodes; n++) {
        free(b->g.nodes[n].name);
        free(b->g.nodes[n].inputs);
    }
    for (size_t v = 0; v < b->g.n_values; v++) {
        free(b->g.values[v].name);
        free(b->g.values[v].data);
    }
    free(b->g.name);
    free(b->g.nodes);
    free(b->g.values);
    memset(b, 0, sizeof *b);
}

#endif
