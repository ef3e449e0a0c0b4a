/* SPDX-License-Identifier: Apache-2.0 */
/* A node's weights against its input's channels, and the channels of its output. */
#include <stdio.h>
#include <string.h>

#include "model/graph_ops.h"
#include "model/graph_parse.h"

static const graph_value *input_value(const graph_context *c, const graph_node *node, size_t i)
{
    return i < node->n_inputs && node->inputs[i] >= 0 ? &c->g->values[node->inputs[i]] : NULL;
}

/* "[2, 1, 3, 3, 3]" */
static const char *shape_text(const graph_value *value, char *text, size_t size)
{
    snprintf(text, size, "[");
    for (size_t i = 0; i < value->rank; i++) {
        size_t n = strlen(text);
        snprintf(text + n, size - n, "%s%zu", i ? ", " : "", value->shape[i]);
    }
    size_t n = strlen(text);
    snprintf(text + n, size - n, "]");
    return text;
}

/* A vector with one element per channel. */
static dm_status check_vector(graph_context *c, const graph_value *value, size_t channels)
{
    char shape[128];
    if (value->rank == 1 && value->count == channels)
        return DM_OK;
    return context_bad(c, "weight '%s' has shape %s; [%zu] is needed", value->name,
                       shape_text(value, shape, sizeof shape), channels);
}

/* A scalar, or as ONNX broadcasts per channel: [C, 1, 1, 1] or [1, C, 1, 1, 1]. */
static dm_status check_broadcast(graph_context *c, const graph_value *value, size_t channels)
{
    char shape[128];
    bool per_channel =
        value->rank >= 4 && value->count == channels && value->shape[value->rank - 4] == channels;
    if (value->count == 1 || per_channel)
        return DM_OK;
    return context_bad(c,
                       "weight '%s' has shape %s; a single value or [%zu, 1, 1, 1] is needed, "
                       "one per channel",
                       value->name, shape_text(value, shape, sizeof shape), channels);
}

static dm_status check_kernel(graph_context *c, const graph_node *node, const graph_value *weight)
{
    char shape[128];
    for (size_t i = 0; i < 3; i++)
        if (weight->rank != 5 || weight->shape[2 + i] != (size_t)node->kernel[i])
            return context_bad(c,
                               "weight '%s' has shape %s (z, y, x); kernel_shape asks for "
                               "[.., .., %d, %d, %d]",
                               weight->name, shape_text(weight, shape, sizeof shape),
                               node->kernel[0], node->kernel[1], node->kernel[2]);
    return DM_OK;
}

static dm_status convolution(graph_context *c, const graph_node *node, size_t in, size_t *out)
{
    const graph_value *weight = input_value(c, node, 1), *bias = input_value(c, node, 2);
    size_t groups = (size_t)node->groups;
    char shape[128];
    dm_status status = check_kernel(c, node, weight);
    if (status != DM_OK)
        return status;
    bool transposed = node->op == OP_CONV_TRANSPOSE;
    size_t first = weight->shape[0], second = weight->shape[1];
    bool large = first > GRAPH_MAX_CHANNELS || second > GRAPH_MAX_CHANNELS;
    if (large || first % groups || (transposed ? first : second * groups) != in)
        return context_bad(c,
                           "weight '%s' has shape %s, which does not fit %zu input channels in "
                           "%zu groups",
                           weight->name, shape_text(weight, shape, sizeof shape), in, groups);
    *out = transposed ? second * groups : first;
    return bias ? check_vector(c, bias, *out) : DM_OK;
}

static dm_status normalisation(graph_context *c, const graph_node *node, size_t channels)
{
    for (size_t i = 1; i < node->n_inputs; i++) {
        dm_status status = check_vector(c, input_value(c, node, i), channels);
        if (status != DM_OK)
            return status;
    }
    if (node->op == OP_GROUP_NORM && channels % (size_t)node->groups)
        return context_bad(c, "\"num_groups\" is %d, which does not divide %zu channels",
                           node->groups, channels);
    const graph_value *variance = node->op == OP_BATCH_NORM ? input_value(c, node, 4) : NULL;
    for (size_t i = 0; variance && i < channels; i++)
        if (!(variance->data[i] + node->epsilon > 0))
            return context_bad(c, "the variance '%s' of channel %zu is %g, and not above -epsilon",
                               variance->name, i, (double)variance->data[i]);
    return DM_OK;
}

static dm_status elementwise(graph_context *c, const graph_node *node, size_t *out)
{
    const graph_value *a = input_value(c, node, 0), *b = input_value(c, node, 1);
    if (a->is_weight && b->is_weight)
        return context_bad(c, "both inputs, '%s' and '%s', are weights", a->name, b->name);
    if (a->is_weight || b->is_weight) {
        *out = a->is_weight ? b->channels : a->channels;
        return check_broadcast(c, a->is_weight ? a : b, *out);
    }
    if (a->channels != b->channels && a->channels != 1 && b->channels != 1)
        return context_bad(c, "'%s' has %zu channels and '%s' %zu; they must be equal, or one 1",
                           a->name, a->channels, b->name, b->channels);
    *out = a->channels > b->channels ? a->channels : b->channels;
    return DM_OK;
}

static dm_status slice_channels(graph_context *c, graph_node *node, size_t in, size_t *out)
{
    size_t first, count;
    if (!slice_resolve(node->channel_begin, node->channel_end, node->channel_step, in, &first,
                       &count))
        return context_bad(c, "no channel of %zu lies between %d and %d", in, node->channel_begin,
                           node->channel_end);
    node->channel_begin = (int)first;
    node->channel_end = (int)first + (int)(count - 1) * node->channel_step + 1;
    *out = count;
    return DM_OK;
}

dm_status node_channels(graph_context *c, graph_node *node, size_t *channels)
{
    size_t in = input_value(c, node, 0)->channels;
    *channels = in;
    switch (node->op) {
    case OP_CONV:
    case OP_CONV_TRANSPOSE:
        return convolution(c, node, in, channels);
    case OP_BATCH_NORM:
    case OP_INSTANCE_NORM:
    case OP_GROUP_NORM:
        return normalisation(c, node, in);
    case OP_PRELU:
        return check_broadcast(c, input_value(c, node, 1), in);
    case OP_ADD:
    case OP_MUL:
    case OP_SUB:
        return elementwise(c, node, channels);
    case OP_SLICE:
        return slice_channels(c, node, in, channels);
    case OP_CONCAT:
        for (size_t i = 1; i < node->n_inputs; i++)
            *channels += input_value(c, node, i)->channels;
        break;
    default:
        break;
    }
    if (*channels > GRAPH_MAX_CHANNELS)
        return context_bad(c, "its output has %zu channels; at most %zu are possible", *channels,
                           GRAPH_MAX_CHANNELS);
    return DM_OK;
}
