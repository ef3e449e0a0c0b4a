/* SPDX-License-Identifier: Apache-2.0 */
/* Attributes of a node: read by the table in graph_ops.c, turned into memory order z, y, x, and
 * checked against each other. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/graph_ops.h"
#include "model/graph_parse.h"

/* Where the network's spatial axis i lies in memory order. */
static size_t memory_axis(const graph_context *c, size_t i)
{
    return c->g->axes_xyz ? 2 - i : i;
}

static void set_defaults(graph_node *node)
{
    for (size_t i = 0; i < 3; i++) {
        node->kernel[i] = node->stride[i] = node->dilation[i] = 1;
        node->slice_end[i] = INT_MAX;
        node->slice_step[i] = 1;
    }
    node->channel_end = INT_MAX;
    node->channel_step = 1;
    node->groups = 1;
    node->alpha = node->op == OP_ELU ? 1.0f : 0.01f;
    node->low = -INFINITY;
    node->high = INFINITY;
    node->epsilon = 1e-5f;
}

static dm_status read_choice(graph_context *c, const attribute_info *info, const json_t *value,
                             int *choice)
{
    const char *text = json_string_value(value);
    char known[128] = "";
    for (int i = 0; i < 4 && info->choices[i]; i++) {
        if (text && !strcmp(text, info->choices[i])) {
            *choice = i;
            return DM_OK;
        }
        size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", info->choices[i]);
    }
    return context_fail(c, DM_ERROR_UNSUPPORTED, "use one of those if the network allows it",
                        "\"%s\" is %.64s; possible are: %s", info->name,
                        text ? text : "not a string", known);
}

static dm_status read_spatial_integers(graph_context *c, const attribute_info *info,
                                       const json_t *value, graph_node *node)
{
    long n[6];
    bool pads = info->kind == ATTRIBUTE_PADS;
    dm_status status = context_integers(c, value, info->name, pads ? 6 : 3, (long)info->minimum,
                                        (long)info->maximum, n);
    if (status != DM_OK)
        return status;
    int *out = pads ? node->pad_begin : (int *)((char *)node + info->offset);
    for (size_t i = 0; i < 3; i++) {
        out[memory_axis(c, i)] = (int)n[i];
        if (pads)
            node->pad_end[memory_axis(c, i)] = (int)n[3 + i];
    }
    return DM_OK;
}

static dm_status read_scales(graph_context *c, const attribute_info *info, const json_t *value,
                             graph_node *node)
{
    double x[3];
    dm_status status = context_numbers(c, value, info->name, 3, info->minimum, info->maximum, x);
    for (size_t i = 0; i < 3 && status == DM_OK; i++)
        node->scales[memory_axis(c, i)] = x[i];
    return status;
}

static dm_status read_attribute(graph_context *c, const attribute_info *info, const json_t *value,
                                graph_node *node)
{
    void *field = (char *)node + info->offset;
    dm_status status = DM_OK;
    long n = 0;
    double x = 0;
    int choice = 0;
    switch (info->kind) {
    case ATTRIBUTE_INTS:
    case ATTRIBUTE_PADS:
        return read_spatial_integers(c, info, value, node);
    case ATTRIBUTE_NUMBERS:
        return read_scales(c, info, value, node);
    case ATTRIBUTE_INT:
    case ATTRIBUTE_FLAG:
    case ATTRIBUTE_CHECK:
        status =
            context_integer(c, value, info->name, (long)info->minimum, (long)info->maximum, &n);
        break;
    case ATTRIBUTE_FLOAT:
        status = context_number(c, value, info->name, info->minimum, info->maximum, &x);
        break;
    case ATTRIBUTE_CHOICE:
    case ATTRIBUTE_SWITCH:
        status = read_choice(c, info, value, &choice);
        break;
    case ATTRIBUTE_SLICE: /* read_slice */
        break;
    }
    if (status != DM_OK)
        return status;
    if (info->kind == ATTRIBUTE_INT)
        *(int *)field = (int)n;
    else if (info->kind == ATTRIBUTE_FLAG)
        *(bool *)field = n != 0;
    else if (info->kind == ATTRIBUTE_FLOAT)
        *(float *)field = (float)x;
    else if (info->kind == ATTRIBUTE_CHOICE)
        memcpy(field, &choice, sizeof choice); /* an enum */
    else if (info->kind == ATTRIBUTE_SWITCH)
        *(bool *)field = choice != 0;
    return DM_OK;
}

/* ONNX exporters write the largest 64-bit integer for "to the end". */
static int clamp_int(json_int_t n)
{
    return n > INT_MAX ? INT_MAX : n < INT_MIN ? INT_MIN : (int)n;
}

static dm_status read_slice(graph_context *c, const json_t *attributes, graph_node *node)
{
    static const char *const keys[] = {"starts", "ends", "axes", "steps"};
    const json_t *list[4];
    size_t n = json_array_size(json_object_get(attributes, "axes"));
    bool seen[5] = {false};
    for (size_t k = 0; k < 4; k++) {
        list[k] = json_object_get(attributes, keys[k]);
        bool left_out = k == 3 && !list[k];
        if (!left_out && (!json_is_array(list[k]) || json_array_size(list[k]) != n || n < 1))
            return context_bad(c, "\"%s\" is not a list as long as \"axes\"", keys[k]);
        for (size_t i = 0; !left_out && i < n; i++)
            if (!json_is_integer(json_array_get(list[k], i)))
                return context_bad(c, "\"%s\" is not a list of integers", keys[k]);
    }
    for (size_t i = 0; i < n; i++) {
        json_int_t axis = json_integer_value(json_array_get(list[2], i));
        json_int_t step = list[3] ? json_integer_value(json_array_get(list[3], i)) : 1;
        int begin = clamp_int(json_integer_value(json_array_get(list[0], i)));
        int end = clamp_int(json_integer_value(json_array_get(list[1], i)));
        if (axis < 1 || axis > 4 || seen[axis])
            return context_bad(
                c, "\"axes\" has %" JSON_INTEGER_FORMAT "; 1 to 4 are possible, each once", axis);
        if (step < 1 || step > 1024)
            return context_bad(c, "\"steps\" has %" JSON_INTEGER_FORMAT "; 1 to 1024 are possible",
                               step);
        seen[axis] = true;
        size_t a = axis == 1 ? 0 : memory_axis(c, (size_t)axis - 2);
        *(axis == 1 ? &node->channel_begin : &node->slice_begin[a]) = begin;
        *(axis == 1 ? &node->channel_end : &node->slice_end[a]) = end;
        *(axis == 1 ? &node->channel_step : &node->slice_step[a]) = (int)step;
    }
    return DM_OK;
}

/* A pool's window must hold at least one voxel of the input, and a transposed convolution's output
 * padding must not make voxels that no input reaches in a whole stride. */
static dm_status check_together(graph_context *c, const json_t *attributes, const graph_node *node)
{
    bool pool = node->op == OP_MAX_POOL || node->op == OP_AVERAGE_POOL;
    for (size_t i = 0; i < 3; i++) {
        int extent = (node->kernel[i] - 1) * node->dilation[i] + 1;
        int pad = node->pad_begin[i] > node->pad_end[i] ? node->pad_begin[i] : node->pad_end[i];
        int most = node->stride[i] > node->dilation[i] ? node->stride[i] : node->dilation[i];
        if (pool && pad >= extent)
            return context_bad(c,
                               "\"pads\" has %d, which is not smaller than the kernel's extent "
                               "of %d",
                               pad, extent);
        if (node->op == OP_CONV_TRANSPOSE && node->output_padding[i] >= most)
            return context_bad(c,
                               "\"output_padding\" has %d; it must be smaller than the stride "
                               "or dilation, %d",
                               node->output_padding[i], most);
    }
    if (node->op == OP_CLIP && !isfinite(node->low) && !isfinite(node->high))
        return context_bad(c, "it needs \"min\", \"max\" or both");
    if (!(node->low <= node->high))
        return context_bad(c, "\"min\" is %g and \"max\" %g: nothing lies between them",
                           (double)node->low, (double)node->high);
    if (node->op == OP_RESIZE &&
        !json_object_get(attributes, "scales") == !json_object_get(attributes, "sizes"))
        return context_bad(c, "it needs either \"scales\" or \"sizes\"");
    return DM_OK;
}

dm_status parse_attributes(graph_context *c, const json_t *attributes, graph_node *node)
{
    const char *key;
    json_t *value;
    set_defaults(node);
    if (attributes && !json_is_object(attributes))
        return context_bad(c, "\"attributes\" is not an object");
    json_object_foreach((json_t *)attributes, key, value)
    {
        const attribute_info *info = attribute_find(node->op, key);
        char known[256];
        attribute_list(node->op, known, sizeof known);
        if (!info)
            return context_bad(c, "unknown attribute '%.64s'; known are: %s", key,
                               *known ? known : "none");
        dm_status status = read_attribute(c, info, value, node);
        if (status != DM_OK)
            return status;
    }
    for (size_t i = 0; i < attribute_count; i++) {
        const attribute_info *info = &attribute_table[i];
        if (info->required & OP_BIT(node->op) && !json_object_get(attributes, info->name))
            return context_bad(c, "the attribute \"%s\" is missing", info->name);
    }
    if (node->op == OP_SLICE) {
        dm_status status = read_slice(c, attributes, node);
        if (status != DM_OK)
            return status;
    }
    return check_together(c, attributes, node);
}
