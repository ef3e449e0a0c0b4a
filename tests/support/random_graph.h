/* SPDX-License-Identifier: Apache-2.0 */
/* Random networks over all operators, with skips, gates, residuals, nested and repeated
 * concatenations. Each node's result is in use for the first output, further outputs are anything
 * computed before. The same seed makes the same network. */
#ifndef DOSEMAP_TESTS_RANDOM_GRAPH_H
#define DOSEMAP_TESTS_RANDOM_GRAPH_H

#include "graph_builder.h"

/* Recent values are likelier, older ones are skips. */
static inline int random_value(graph_builder *b)
{
    size_t n = b->g.n_values;
    for (;;) {
        size_t back = build_chance(b, 60) ? build_pick(b, n < 6 ? n : 6) : build_pick(b, n);
        if (!b->g.values[n - 1 - back].is_weight)
            return (int)(n - 1 - back);
    }
}

static inline size_t random_groups(graph_builder *b, size_t channels)
{
    size_t groups = 1 + build_pick(b, channels);
    while (channels % groups)
        groups--;
    return groups;
}

static inline int random_convolution(graph_builder *b, int x)
{
    graph_node node = build_attributes(build_chance(b, 70) ? OP_CONV : OP_CONV_TRANSPOSE);
    bool tiles = node.op == OP_CONV_TRANSPOSE && build_chance(b, 60);
    bool point = build_chance(b, 25), same = build_chance(b, 50);
    node.groups = tiles || build_chance(b, 60) ? 1 : (int)random_groups(b, build_channels(b, x));
    for (int a = 0; a < 3; a++) {
        node.kernel[a] = point ? 1 : same ? 3 : 1 + (int)build_pick(b, 3);
        node.stride[a] = same || point ? 1 : 1 + (int)build_pick(b, 2);
        node.dilation[a] = build_chance(b, 80) ? 1 : 2;
        if (tiles) {
            node.kernel[a] = node.stride[a] = 1 + (int)build_pick(b, 2);
            node.dilation[a] = 1;
        } else if (same) {
            node.pad_begin[a] = node.pad_end[a] = node.dilation[a] * (node.kernel[a] - 1) / 2;
        } else {
            node.pad_begin[a] = (int)build_pick(b, 2);
            node.pad_end[a] = (int)build_pick(b, 2);
        }
        if (node.op == OP_CONV_TRANSPOSE && !tiles && node.stride[a] > 1)
            node.output_padding[a] = (int)build_pick(b, 2);
    }
    size_t channels = (size_t)node.groups * (1 + build_pick(b, 4));
    return build_convolution(b, &node, x, channels, build_chance(b, 60));
}

static inline int random_activation(graph_builder *b, int x)
{
    static const op_kind kinds[] = {OP_RELU, OP_LEAKY_RELU, OP_PRELU, OP_ELU,      OP_GELU,
                                    OP_TANH, OP_SIGMOID,    OP_CLIP,  OP_SOFTPLUS, OP_IDENTITY};
    graph_node node = build_attributes(kinds[build_pick(b, sizeof kinds / sizeof *kinds)]);
    node.alpha = build_uniform(b, 0.05, 0.6);
    node.gelu_tanh = build_chance(b, 50);
    if (node.op == OP_CLIP) { /* both bounds, the lower or the upper one */
        const float bound = 4 * node.alpha;
        node.low = node.gelu_tanh || bound > 1.2f ? -bound : node.low;
        node.high = node.gelu_tanh || bound <= 1.2f ? bound : node.high;
    }
    size_t channels = build_channels(b, x);
    if (node.op != OP_PRELU)
        return build_with(b, &node, x);
    size_t shape[4] = {build_chance(b, 50) ? channels : 1, 1, 1, 1};
    int slope = build_weight(b, 0.05, 0.6, 4, shape);
    return build_node(b, &node, channels, 2, (int[]){x, slope});
}

static inline op_kind random_arithmetic(graph_builder *b)
{
    static const op_kind kinds[] = {OP_ADD, OP_MUL, OP_SUB};
    return kinds[build_pick(b, 3)];
}

static inline int random_with_weight(graph_builder *b, int x)
{
    size_t channels = build_channels(b, x), shape[4] = {channels, 1, 1, 1};
    bool scalar = build_chance(b, 40);
    int w = build_weight(b, -1, 1, scalar ? 0 : 4, shape);
    op_kind op = random_arithmetic(b);
    graph_node node = build_attributes(op);
    bool first = build_chance(b, 50);
    return build_node(b, &node, channels, 2, (int[]){first ? w : x, first ? x : w});
}

static inline bool random_same_size(const graph_builder *b, int x, int y)
{
    return !memcmp(b->sizes[x], b->sizes[y], sizeof b->sizes[x]);
}

/* Of a value of the same size if there is one, or a gate of one channel, or of one voxel. */
static inline int random_arithmetic_of(graph_builder *b, int x)
{
    size_t channels = build_channels(b, x);
    int y = x;
    for (int attempt = 0; attempt < 8 && y == x; attempt++) {
        int other = random_value(b);
        size_t c = build_channels(b, other);
        if (random_same_size(b, x, other) && (c == channels || c == 1 || channels == 1))
            y = other;
    }
    if (y == x && build_chance(b, 40))
        y = build_conv(b, x, build_chance(b, 50) ? 1 : channels, 1);
    else if (y == x && build_chance(b, 60))
        y = build_unary(b, OP_GLOBAL_AVERAGE_POOL, x);
    bool swap = build_chance(b, 50);
    return build_binary(b, random_arithmetic(b), swap ? y : x, swap ? x : y);
}

static inline int random_concat(graph_builder *b, int x)
{
    int operands[4] = {x};
    size_t n = 1, wanted = 1 + build_pick(b, 4);
    for (int attempt = 0; attempt < 20 && n < wanted; attempt++) {
        int other = random_value(b);
        if (random_same_size(b, x, other) && build_channels(b, other) < 12)
            operands[n++] = other;
    }
    for (size_t i = n; i-- > 1;) { /* x need not be the first */
        size_t j = build_pick(b, i + 1);
        int swap = operands[i];
        operands[i] = operands[j];
        operands[j] = swap;
    }
    return build_concat(b, n, operands);
}

static inline int random_pool(graph_builder *b, int x)
{
    static const op_kind kinds[] = {OP_MAX_POOL, OP_AVERAGE_POOL, OP_AVERAGE_POOL,
                                    OP_GLOBAL_AVERAGE_POOL};
    graph_node node = build_attributes(kinds[build_pick(b, 4)]);
    node.ceil_mode = build_chance(b, 40);
    node.count_include_pad = build_chance(b, 50);
    for (int a = 0; a < 3 && node.op != OP_GLOBAL_AVERAGE_POOL; a++) {
        node.kernel[a] = 1 + (int)build_pick(b, 3);
        node.stride[a] = 1 + (int)build_pick(b, 2);
        node.pad_begin[a] = (int)build_pick(b, (size_t)node.kernel[a] / 2 + 1);
        node.pad_end[a] = (int)build_pick(b, (size_t)node.kernel[a] / 2 + 1);
        if (node.op == OP_MAX_POOL)
            node.dilation[a] = 1 + (int)build_pick(b, 2);
    }
    return build_with(b, &node, x);
}

static inline int random_resize(graph_builder *b, int x)
{
    static const double scales[] = {2, 1, 0.5, 1.5, 0.75};
    graph_node node = build_attributes(OP_RESIZE);
    node.resize = build_chance(b, 50) ? RESIZE_LINEAR : RESIZE_NEAREST;
    node.coordinates = (resize_coordinates)build_pick(b, 3);
    node.nearest_floor = build_chance(b, 50);
    bool scaled = build_chance(b, 50);
    for (int a = 0; a < 3; a++) {
        node.scales[a] = scaled ? scales[build_pick(b, 5)] : 0;
        node.sizes[a] = scaled ? 0 : 1 + (int)build_pick(b, 7);
    }
    return build_with(b, &node, x);
}

static inline int random_pad_or_slice(graph_builder *b, int x)
{
    graph_node node = build_attributes(build_chance(b, 50) ? OP_PAD : OP_SLICE);
    size_t channels = build_channels(b, x);
    node.pad = (pad_mode)build_pick(b, 3);
    node.pad_value = 0.25f;
    for (int a = 0; a < 3; a++) {
        if (node.op == OP_PAD) {
            node.pad_begin[a] = (int)build_pick(b, 3);
            node.pad_end[a] = (int)build_pick(b, 3);
        } else if (build_chance(b, 50)) {
            node.slice_begin[a] = (int)build_pick(b, 4) - 2;
            node.slice_end[a] = build_chance(b, 50) ? INT_MAX : -1;
            node.slice_step[a] = 1 + (int)build_pick(b, 2);
        }
    }
    if (node.op == OP_PAD)
        return build_with(b, &node, x);
    size_t from = build_pick(b, channels), count = 1 + build_pick(b, channels - from);
    size_t step = 1 + build_pick(b, 2);
    node.channel_begin = (int)from;
    node.channel_end = (int)(from + count);
    node.channel_step = (int)step;
    return build_node(b, &node, (count + step - 1) / step, 1, &x);
}

static inline int random_norm(graph_builder *b, int x)
{
    static const op_kind kinds[] = {OP_BATCH_NORM, OP_BATCH_NORM, OP_INSTANCE_NORM, OP_GROUP_NORM};
    op_kind op = kinds[build_pick(b, 4)];
    size_t groups = op == OP_GROUP_NORM ? random_groups(b, build_channels(b, x)) : 1;
    return build_norm(b, op, x, (int)groups);
}

static inline int random_node(graph_builder *b)
{
    int x = random_value(b);
    size_t kind = build_pick(b, 100);
    if (kind < 25)
        return random_convolution(b, x);
    if (kind < 37)
        return random_norm(b, x);
    if (kind < 55)
        return random_activation(b, x);
    if (kind < 61)
        return random_with_weight(b, x);
    if (kind < 75)
        return random_arithmetic_of(b, x);
    if (kind < 87)
        return random_concat(b, x);
    if (kind < 91)
        return random_pool(b, x);
    return kind < 95 ? random_resize(b, x) : random_pad_or_slice(b, x);
}

static inline bool random_is_used(const graph_builder *b, int value)
{
    for (size_t n = 0; n < b->g.n_nodes; n++)
        for (size_t i = 0; i < b->g.nodes[n].n_inputs; i++)
            if (b->g.nodes[n].inputs[i] == value)
                return true;
    return false;
}

/* The mean of every value that nobody reads goes into the output. */
static inline int random_collect(graph_builder *b, int last)
{
    int means[BUILD_MAX];
    size_t n = 0, values = b->g.n_values;
    for (size_t v = 0; v < values; v++)
        if (!b->g.values[v].is_weight && (int)v != last && !random_is_used(b, (int)v))
            means[n++] = build_unary(b, OP_GLOBAL_AVERAGE_POOL, (int)v);
    if (!n)
        return last;
    int all = build_concat(b, n, means);
    return build_binary(b, OP_ADD, last, build_conv(b, all, build_channels(b, last), 1));
}

/* All inputs in their order, or some of them in any. */
static inline int random_inputs(graph_builder *b)
{
    int all[BUILD_PORTS], n = 0;
    while (b->g.n_inputs < BUILD_PORTS && build_chance(b, 30))
        build_input(b, 1 + build_pick(b, 3));
    for (size_t i = 0; i < b->g.n_inputs; i++)
        all[n++] = b->g.inputs[i].value;
    if (build_chance(b, 30))
        all[build_pick(b, b->g.n_inputs)] = b->g.inputs[build_pick(b, b->g.n_inputs)].value;
    return n > 1 && build_chance(b, 70) ? build_concat(b, (size_t)n, all) : b->input;
}

static inline void random_network(graph_builder *b, uint32_t seed, bool several)
{
    build_begin(b, 1, (size_t[]){1, 1, 1}, seed);
    size_t tile[3], channels = 1 + build_pick(b, 3);
    for (int a = 0; a < 3; a++)
        tile[a] = 1 + build_pick(b, 7);
    build_end(b);
    build_begin(b, channels, tile, seed + 1);
    size_t wanted = 1 + build_pick(b, 24);
    int last = several ? random_inputs(b) : b->input;
    while (b->g.n_nodes < wanted) {
        int made = random_node(b);
        const size_t *size = b->sizes[made < 0 ? 0 : made];
        last = made < 0 ? last : made;
        if (size[0] * size[1] * size[2] > 4096 || build_channels(b, last) > 64)
            break;
    }
    build_output(b, build_chance(b, 10) ? last : random_collect(b, last));
    while (several && b->g.n_outputs < BUILD_PORTS && build_chance(b, 30))
        build_output(b, random_value(b));
}

/* From one input to one output. */
static inline void random_graph(graph_builder *b, uint32_t seed)
{
    random_network(b, seed, false);
}

/* With several of both, most of the time. */
static inline void random_ports(graph_builder *b, uint32_t seed)
{
    random_network(b, seed, true);
}

#endif
