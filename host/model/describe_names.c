/* SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "model/describe.h"

const char *step_kind_name(step_kind kind)
{
    static const char *const names[] = {
        [STEP_CONV] = "conv",
        [STEP_CONV_TRANSPOSE] = "transposed",
        [STEP_NORM] = "norm",
        [STEP_POINTWISE] = "pointwise",
        [STEP_MAX_POOL] = "max_pool",
        [STEP_AVERAGE_POOL] = "average_pool",
        [STEP_GLOBAL_AVERAGE_POOL] = "global_pool",
        [STEP_RESIZE] = "resize",
        [STEP_PAD] = "pad",
        [STEP_SLICE] = "slice",
        [STEP_COPY] = "copy",
    };
    return names[kind];
}

const char *chain_op_name(chain_op op)
{
    static const char *const names[] = {
        [CHAIN_ADD_TENSOR] = "add",  [CHAIN_MUL_TENSOR] = "mul",
        [CHAIN_SUB_TENSOR] = "sub",  [CHAIN_RSUB_TENSOR] = "sub_from",
        [CHAIN_AFFINE] = "affine",   [CHAIN_RELU] = "relu",
        [CHAIN_PRELU] = "prelu",     [CHAIN_LEAKY_RELU] = "leaky_relu",
        [CHAIN_ELU] = "elu",         [CHAIN_GELU] = "gelu",
        [CHAIN_SIGMOID] = "sigmoid", [CHAIN_GELU_TANH] = "gelu_tanh",
        [CHAIN_TANH] = "tanh",       [CHAIN_SOFTPLUS] = "softplus",
        [CHAIN_AT_LEAST] = "max",    [CHAIN_AT_MOST] = "min",
    };
    return names[op];
}

const char *quantity_name(dm_quantity quantity)
{
    switch (quantity) {
    case DM_QUANTITY_UPTAKE:
        return "uptake";
    case DM_QUANTITY_SUV:
        return "suv";
    case DM_QUANTITY_HU:
        return "hu";
    case DM_QUANTITY_DOSE_PER_ACTIVITY:
        return "dose_per_activity";
    case DM_QUANTITY_OTHER:
        return "other";
    case DM_QUANTITY_UNKNOWN:
        break;
    }
    return "unknown";
}

const char *plan_output_name(const plan *p)
{
    return p->graph->values[p->graph->outputs[p->options.output].value].name;
}

/* Appends a word, with a space before it if it is not the first; what does not fit is cut. */
static void add(char *text, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void add(char *text, size_t size, const char *format, ...)
{
    size_t n = strlen(text);
    va_list arguments;
    if (n && n + 1 < size) {
        text[n++] = ' ';
        text[n] = 0;
    }
    va_start(arguments, format);
    vsnprintf(text + n, size - n, format, arguments);
    va_end(arguments);
}

bool chain_has_alpha(chain_op op)
{
    return op == CHAIN_LEAKY_RELU || op == CHAIN_ELU || op == CHAIN_AT_LEAST || op == CHAIN_AT_MOST;
}

void chain_text(const plan *p, const plan_step *step, char *text, size_t size)
{
    text[0] = 0;
    if (step->bias)
        add(text, size, "+bias");
    for (size_t i = 0; i < step->n_chain; i++) {
        const chain_link *link = &step->chain[i];
        const char *name = chain_op_name(link->op);
        if (link->tensor >= 0)
            add(text, size, "%s(%s)", name, p->tensors[link->tensor].name);
        else if (chain_has_alpha(link->op))
            add(text, size, "%s(%g)", name, (double)link->alpha);
        else
            add(text, size, "%s", name);
    }
}

/* An attribute in the order x, y, z; nothing where all three are `usual`. */
static void add_triple(char *text, size_t size, const char *what, const int zyx[3], int usual)
{
    if (zyx[0] == usual && zyx[1] == usual && zyx[2] == usual)
        return;
    if (zyx[0] == zyx[1] && zyx[1] == zyx[2])
        add(text, size, "%s %d", what, zyx[0]);
    else
        add(text, size, "%s %d,%d,%d", what, zyx[2], zyx[1], zyx[0]);
}

static void add_window(char *text, size_t size, const graph_node *node)
{
    const int *k = node->kernel;
    if (k[0] == k[1] && k[1] == k[2])
        add(text, size, "%d^3", k[0]);
    else
        add(text, size, "%dx%dx%d", k[2], k[1], k[0]);
    add_triple(text, size, "stride", node->stride, 1);
    add_triple(text, size, "dilation", node->dilation, 1);
    add_triple(text, size, "output_padding", node->output_padding, 0);
    if (node->ceil_mode)
        add(text, size, "ceil");
    if (node->count_include_pad)
        add(text, size, "count_include_pad");
}

static void add_pads(char *text, size_t size, const graph_node *node)
{
    if (!memcmp(node->pad_begin, node->pad_end, sizeof node->pad_begin)) {
        add_triple(text, size, "pad", node->pad_begin, 0);
    } else {
        add_triple(text, size, "pad_begin", node->pad_begin, 0);
        add_triple(text, size, "pad_end", node->pad_end, 0);
    }
}

static void add_resize(char *text, size_t size, const graph_node *node)
{
    static const char *const coordinates[] = {"half_pixel", "align_corners", "asymmetric"};
    add(text, size, "%s", node->resize == RESIZE_LINEAR ? "linear" : "nearest");
    if (node->sizes[0])
        add(text, size, "to %dx%dx%d", node->sizes[2], node->sizes[1], node->sizes[0]);
    else
        add(text, size, "by %g,%g,%g", node->scales[2], node->scales[1], node->scales[0]);
    add(text, size, "%s", coordinates[node->coordinates]);
    if (node->resize == RESIZE_NEAREST && node->nearest_floor)
        add(text, size, "floor");
}

static void add_slice(char *text, size_t size, const graph_node *node)
{
    add(text, size, "channels %d:%d:%d", node->channel_begin, node->channel_end,
        node->channel_step);
    for (int a = 2; a >= 0; a--) {
        if (node->slice_end[a] != INT_MAX)
            add(text, size, "%c %d:%d:%d", "zyx"[a], node -> slice_begin[a], node -> slice_end[a],
                node -> slice_step[a]);
        else if (node->slice_begin[a] || node->slice_step[a] != 1)
            add(text, size, "%c %d::%d", "zyx"[a], node -> slice_begin[a], node -> slice_step[a]);
    }
}

void node_text(const graph_node *node, char *text, size_t size)
{
    static const char *const pads[] = {"constant", "reflect", "edge"};
    text[0] = 0;
    switch (node->op) {
    case OP_CONV:
    case OP_CONV_TRANSPOSE:
    case OP_MAX_POOL:
    case OP_AVERAGE_POOL:
        add_window(text, size, node);
        add_pads(text, size, node);
        if (node->groups > 1)
            add(text, size, "group %d", node->groups);
        break;
    case OP_GROUP_NORM:
        add(text, size, "groups %d", node->groups);
        break;
    case OP_LEAKY_RELU:
    case OP_ELU:
        add(text, size, "alpha %g", (double)node->alpha);
        break;
    case OP_CLIP:
        if (isfinite(node->low))
            add(text, size, "min %g", (double)node->low);
        if (isfinite(node->high))
            add(text, size, "max %g", (double)node->high);
        break;
    case OP_GELU:
        add(text, size, "%s", node->gelu_tanh ? "tanh" : "erf");
        break;
    case OP_RESIZE:
        add_resize(text, size, node);
        break;
    case OP_PAD:
        add(text, size, "%s", pads[node->pad]);
        add_pads(text, size, node);
        break;
    case OP_SLICE:
        add_slice(text, size, node);
        break;
    default:
        break;
    }
}

void shape_text(size_t channels, const size_t size_zyx[3], char *text, size_t size)
{
    if (size_zyx[0] == size_zyx[1] && size_zyx[1] == size_zyx[2])
        snprintf(text, size, "%zu x %zu^3", channels, size_zyx[0]);
    else
        snprintf(text, size, "%zu x %zux%zux%zu", channels, size_zyx[2], size_zyx[1], size_zyx[0]);
}

void intensity_text(const intensity_transform *transform, char *text, size_t size)
{
    text[0] = 0;
    for (size_t i = 0; i < transform->n; i++) {
        const intensity_step *s = &transform->step[i];
        const char *comma = i + 1 < transform->n ? "," : "";
        double a = (double)s->a, b = (double)s->b;
        switch (s->kind) {
        case INTENSITY_SCALE:
            add(text, size, "times %g plus %g%s", a, b, comma);
            break;
        case INTENSITY_CLIP:
            add(text, size, "clip to [%g, %g]%s", a, b, comma);
            break;
        case INTENSITY_LOG1P:
            add(text, size, "log1p%s", comma);
            break;
        case INTENSITY_EXPM1:
            add(text, size, "expm1%s", comma);
            break;
        case INTENSITY_SQRT:
            add(text, size, "sqrt%s", comma);
            break;
        case INTENSITY_SQUARE:
            add(text, size, "square%s", comma);
            break;
        }
    }
}
