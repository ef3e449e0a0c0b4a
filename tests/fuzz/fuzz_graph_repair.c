/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a mutated graph agree with itself again; see fuzz_graph.h. */
#include "fuzz_graph.h"

#include <string.h>

#include "fuzz_file.h"
#include "model/graph_ops.h"

#define MOST_CHANNELS 64

typedef struct repair {
    json_t *weights, *channels; /* shapes; value name -> channels */
    json_t *kept;               /* weights that some node reads */
} repair;

static long channels_of(const repair *r, const char *name)
{
    json_int_t n = json_integer_value(json_object_get(r->channels, name ? name : ""));
    return n < 1 ? 1 : n > MOST_CHANNELS ? MOST_CHANNELS : (long)n;
}

static const char *input_of(const json_t *node, size_t i)
{
    return json_string_value(json_array_get(json_object_get(node, "inputs"), i));
}

static json_t *shape_of(const repair *r, const json_t *node, size_t i)
{
    const char *name = input_of(node, i);
    return name ? json_object_get(r->weights, name) : NULL;
}

static void set_size(json_t *shape, size_t i, long n)
{
    if (json_array_size(shape) > i)
        json_array_set_new(shape, i, json_integer(n));
}

/* A count that divides n: the one that is there, or 1. */
static long divisor(json_t *attributes, const char *key, long n)
{
    json_int_t there = json_integer_value(json_object_get(attributes, key));
    if (!json_object_get(attributes, key))
        return 1;
    if (there >= 1 && n % there == 0)
        return (long)there;
    json_object_set_new(attributes, key, json_integer(1));
    return 1;
}

static long repair_convolution(repair *r, const json_t *node, bool transposed, long in)
{
    json_t *shape = shape_of(r, node, 1), *attributes = json_object_get(node, "attributes");
    const json_t *kernel = json_object_get(attributes, "kernel_shape");
    long groups = divisor(attributes, "group", in);
    long out = (long)json_integer_value(json_array_get(shape, transposed ? 1 : 0));
    out = out < 1 ? 1 : out > MOST_CHANNELS ? MOST_CHANNELS : out;
    if (!transposed)
        out = (out + groups - 1) / groups * groups;
    set_size(shape, 0, transposed ? in : out);
    set_size(shape, 1, transposed ? out : in / groups);
    for (size_t i = 0; i < 3 && json_array_size(kernel) == 3; i++)
        set_size(shape, 2 + i, (long)json_integer_value(json_array_get(kernel, i)));
    long made = transposed ? out * groups : out;
    set_size(shape_of(r, node, 2), 0, made);
    return made;
}

static long repair_slice(const json_t *attributes, long in)
{
    const json_t *axes = json_object_get(attributes, "axes");
    for (size_t i = 0; i < json_array_size(axes); i++) {
        json_int_t at[3] = {0, 0, 1};
        static const char *const keys[] = {"starts", "ends", "steps"};
        size_t first, count;
        if (json_integer_value(json_array_get(axes, i)) != 1)
            continue;
        for (size_t k = 0; k < 3; k++) {
            const json_t *value = json_array_get(json_object_get(attributes, keys[k]), i);
            at[k] = value ? json_integer_value(value) : at[k];
            at[k] = at[k] > INT32_MAX ? INT32_MAX : at[k] < INT32_MIN ? INT32_MIN : at[k];
        }
        if (at[2] >= 1 &&
            slice_resolve((int)at[0], (int)at[1], (int)at[2], (size_t)in, &first, &count))
            return (long)count;
    }
    return in;
}

static long repair_node(repair *r, const json_t *node, op_kind op)
{
    json_t *attributes = json_object_get(node, "attributes");
    size_t n = json_array_size(json_object_get(node, "inputs"));
    long in = channels_of(r, input_of(node, 0)), all = 0;
    switch (op) {
    case OP_CONV:
    case OP_CONV_TRANSPOSE:
        return repair_convolution(r, node, op == OP_CONV_TRANSPOSE, in);
    case OP_GROUP_NORM:
        divisor(attributes, "num_groups", in);
        /* fall through */
    case OP_BATCH_NORM:
    case OP_INSTANCE_NORM:
    case OP_PRELU:
        for (size_t i = 1; i < n; i++)
            set_size(shape_of(r, node, i), 0, in);
        return in;
    case OP_ADD:
    case OP_MUL:
    case OP_SUB:
        for (size_t i = 0; i < 2; i++)
            in = channels_of(r, input_of(node, i)) > in ? channels_of(r, input_of(node, i)) : in;
        for (size_t i = 0; i < 2; i++)
            set_size(shape_of(r, node, i), 0, in);
        return in;
    case OP_CONCAT:
        for (size_t i = 0; i < n; i++)
            all += channels_of(r, input_of(node, i));
        return all;
    case OP_SLICE:
        return repair_slice(attributes, in);
    default:
        return in;
    }
}

static void keep_weights(repair *r, const json_t *node)
{
    size_t i;
    json_t *input;
    json_array_foreach(json_object_get(node, "inputs"), i, input)
    {
        const char *name = json_string_value(input);
        json_t *shape = name ? json_object_get(r->weights, name) : NULL;
        if (shape)
            json_object_set(r->kept, name, shape);
    }
}

static void repair_ports(repair *r, json_t *ports, bool outputs)
{
    size_t i;
    json_t *port;
    json_array_foreach(ports, i, port)
    {
        const char *name = json_string_value(json_object_get(port, "name"));
        if (!name || !json_is_object(port))
            continue;
        if (outputs)
            json_object_set_new(port, "channels", json_integer(channels_of(r, name)));
        else
            json_object_set(r->channels, name, json_object_get(port, "channels"));
    }
}

void fuzz_graph_repair(json_t *root)
{
    json_t *g = json_object_get(root, "graph"), *node;
    size_t i;
    repair r = {.weights = json_object_get(root, "weights"),
                .channels = json_object(),
                .kept = json_object()};
    repair_ports(&r, json_object_get(g, "inputs"), false);
    json_array_foreach(json_object_get(g, "nodes"), i, node)
    {
        const char *op = json_string_value(json_object_get(node, "op"));
        const char *made = json_string_value(json_array_get(json_object_get(node, "outputs"), 0));
        op_kind kind;
        if (!op || !made || !op_find(op, &kind))
            continue;
        json_object_set_new(r.channels, made, json_integer(repair_node(&r, node, kind)));
        keep_weights(&r, node);
    }
    repair_ports(&r, json_object_get(g, "outputs"), true);
    json_object_set_new(root, "weights", r.kept);
    json_decref(r.channels);
}
