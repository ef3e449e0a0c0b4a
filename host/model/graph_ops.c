/* SPDX-License-Identifier: Apache-2.0 */
#include "model/graph_ops.h"

#include <float.h>
#include <stdio.h>
#include <string.h>

#define MAX_JOINED 1024 /* inputs of one Concat */

const op_info op_table[OP_KIND_COUNT] = {
    [OP_CONV] = {"Conv", 2, 3, true},
    [OP_CONV_TRANSPOSE] = {"ConvTranspose", 2, 3, true},
    [OP_BATCH_NORM] = {"BatchNormalization", 5, 5, true},
    [OP_INSTANCE_NORM] = {"InstanceNormalization", 3, 3, true},
    [OP_GROUP_NORM] = {"GroupNormalization", 3, 3, true},
    [OP_LEAKY_RELU] = {"LeakyRelu", 1, 1, false},
    [OP_RELU] = {"Relu", 1, 1, false},
    [OP_PRELU] = {"PRelu", 2, 2, true},
    [OP_ELU] = {"Elu", 1, 1, false},
    [OP_GELU] = {"Gelu", 1, 1, false},
    [OP_SIGMOID] = {"Sigmoid", 1, 1, false},
    [OP_TANH] = {"Tanh", 1, 1, false},
    [OP_SOFTPLUS] = {"Softplus", 1, 1, false},
    [OP_CLIP] = {"Clip", 1, 1, false},
    [OP_ADD] = {"Add", 2, 2, false},
    [OP_MUL] = {"Mul", 2, 2, false},
    [OP_SUB] = {"Sub", 2, 2, false},
    [OP_CONCAT] = {"Concat", 1, MAX_JOINED, false},
    [OP_MAX_POOL] = {"MaxPool", 1, 1, false},
    [OP_AVERAGE_POOL] = {"AveragePool", 1, 1, false},
    [OP_GLOBAL_AVERAGE_POOL] = {"GlobalAveragePool", 1, 1, false},
    [OP_RESIZE] = {"Resize", 1, 1, false},
    [OP_PAD] = {"Pad", 1, 1, false},
    [OP_SLICE] = {"Slice", 1, 1, false},
    [OP_IDENTITY] = {"Identity", 1, 1, false},
};

#define CONVOLUTIONS (OP_BIT(OP_CONV) | OP_BIT(OP_CONV_TRANSPOSE))
#define TRANSPOSED OP_BIT(OP_CONV_TRANSPOSE)
#define MAX_POOL OP_BIT(OP_MAX_POOL)
#define AVERAGE_POOL OP_BIT(OP_AVERAGE_POOL)
#define POOLS (MAX_POOL | AVERAGE_POOL)
#define GROUP_NORM OP_BIT(OP_GROUP_NORM)
#define NORMS (OP_BIT(OP_BATCH_NORM) | OP_BIT(OP_INSTANCE_NORM) | GROUP_NORM)
#define SLOPED (OP_BIT(OP_LEAKY_RELU) | OP_BIT(OP_ELU))
#define GELU OP_BIT(OP_GELU)
#define CLIP OP_BIT(OP_CLIP)
#define CONCAT OP_BIT(OP_CONCAT)
#define RESIZE OP_BIT(OP_RESIZE)
#define PAD OP_BIT(OP_PAD)
#define SLICE OP_BIT(OP_SLICE)
#define AT(member) offsetof(graph_node, member)
#define CHANNELS ((double)GRAPH_MAX_CHANNELS)
#define EXTENT ((double)GRAPH_MAX_EXTENT)

/* The ranges keep every later sum and product of sizes far from overflow. */
/* clang-format off */
const attribute_info attribute_table[] = {
    /* name, kind, operators, required by, place, minimum, maximum, choices (the first is the default) */
    {"kernel_shape", ATTRIBUTE_INTS, CONVOLUTIONS | POOLS, CONVOLUTIONS | POOLS, AT(kernel), 1, 1024, {0}},
    {"strides", ATTRIBUTE_INTS, CONVOLUTIONS | POOLS, 0, AT(stride), 1, 1024, {0}},
    {"dilations", ATTRIBUTE_INTS, CONVOLUTIONS | MAX_POOL, 0, AT(dilation), 1, 1024, {0}},
    {"pads", ATTRIBUTE_PADS, CONVOLUTIONS | POOLS | PAD, PAD, AT(pad_begin), 0, 65536, {0}},
    {"output_padding", ATTRIBUTE_INTS, TRANSPOSED, 0, AT(output_padding), 0, 1023, {0}},
    {"group", ATTRIBUTE_INT, CONVOLUTIONS, 0, AT(groups), 1, CHANNELS, {0}},
    {"num_groups", ATTRIBUTE_INT, GROUP_NORM, GROUP_NORM, AT(groups), 1, CHANNELS, {0}},
    {"epsilon", ATTRIBUTE_FLOAT, NORMS, 0, AT(epsilon), FLT_MIN, 1, {0}},
    {"alpha", ATTRIBUTE_FLOAT, SLOPED, 0, AT(alpha), -FLT_MAX, FLT_MAX, {0}},
    {"min", ATTRIBUTE_FLOAT, CLIP, 0, AT(low), -FLT_MAX, FLT_MAX, {0}},
    {"max", ATTRIBUTE_FLOAT, CLIP, 0, AT(high), -FLT_MAX, FLT_MAX, {0}},
    {"approximate", ATTRIBUTE_SWITCH, GELU, 0, AT(gelu_tanh), 0, 0, {"none", "tanh"}},
    {"axis", ATTRIBUTE_CHECK, CONCAT, 0, 0, 1, 1, {0}},
    {"ceil_mode", ATTRIBUTE_FLAG, POOLS, 0, AT(ceil_mode), 0, 1, {0}},
    {"count_include_pad", ATTRIBUTE_FLAG, AVERAGE_POOL, 0, AT(count_include_pad), 0, 1, {0}},
    {"mode", ATTRIBUTE_CHOICE, RESIZE, 0, AT(resize), 0, 0, {"nearest", "linear"}},
    {"mode", ATTRIBUTE_CHOICE, PAD, 0, AT(pad), 0, 0, {"constant", "reflect", "edge"}},
    {"scales", ATTRIBUTE_NUMBERS, RESIZE, 0, AT(scales), 1.0 / 1024, 1024, {0}},
    {"sizes", ATTRIBUTE_INTS, RESIZE, 0, AT(sizes), 1, EXTENT, {0}},
    {"coordinate_transformation_mode", ATTRIBUTE_CHOICE, RESIZE, 0, AT(coordinates), 0, 0,
     {"half_pixel", "align_corners", "asymmetric"}},
    {"nearest_mode", ATTRIBUTE_SWITCH, RESIZE, 0, AT(nearest_floor), 0, 0, {"round_prefer_floor", "floor"}},
    {"value", ATTRIBUTE_FLOAT, PAD, 0, AT(pad_value), -FLT_MAX, FLT_MAX, {0}},
    {"starts", ATTRIBUTE_SLICE, SLICE, SLICE, 0, 0, 0, {0}},
    {"ends", ATTRIBUTE_SLICE, SLICE, SLICE, 0, 0, 0, {0}},
    {"axes", ATTRIBUTE_SLICE, SLICE, SLICE, 0, 0, 0, {0}},
    {"steps", ATTRIBUTE_SLICE, SLICE, 0, 0, 0, 0, {0}},
};
/* clang-format on */
const size_t attribute_count = sizeof attribute_table / sizeof attribute_table[0];

/* Choices are stored as the index into the table, so the order there and in the enums is one. */
_Static_assert(RESIZE_NEAREST == 0 && RESIZE_LINEAR == 1, "order of Resize's modes");
_Static_assert(PAD_CONSTANT == 0 && PAD_REFLECT == 1 && PAD_EDGE == 2, "order of Pad's modes");
_Static_assert(RESIZE_HALF_PIXEL == 0 && RESIZE_ALIGN_CORNERS == 1 && RESIZE_ASYMMETRIC == 2,
               "order of coordinate transformations");
_Static_assert(OP_KIND_COUNT <= 32, "operators as bits");

const char *op_name(op_kind op)
{
    return op_table[op].name;
}

bool op_find(const char *name, op_kind *op)
{
    for (int i = 0; i < OP_KIND_COUNT; i++) {
        if (!strcmp(op_table[i].name, name)) {
            *op = (op_kind)i;
            return true;
        }
    }
    return false;
}

const attribute_info *attribute_find(op_kind op, const char *name)
{
    for (size_t i = 0; i < attribute_count; i++)
        if (attribute_table[i].ops & OP_BIT(op) && !strcmp(attribute_table[i].name, name))
            return &attribute_table[i];
    return NULL;
}

static void append(char *text, size_t size, const char *word)
{
    size_t n = strlen(text);
    snprintf(text + n, size - n, "%s%s", n ? ", " : "", word);
}

void op_list(char *text, size_t size)
{
    *text = 0;
    for (int i = 0; i < OP_KIND_COUNT; i++)
        append(text, size, op_table[i].name);
}

void attribute_list(op_kind op, char *text, size_t size)
{
    *text = 0;
    for (size_t i = 0; i < attribute_count; i++)
        if (attribute_table[i].ops & OP_BIT(op))
            append(text, size, attribute_table[i].name);
}
