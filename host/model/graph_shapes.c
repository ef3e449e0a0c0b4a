/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Spatial sizes: ONNX's formulas per operator, their consistency over the graph, and what follows
 * for tiles. With n the input's size, p0 and p1 the padding, e = (k-1)*dilation+1 the kernel's
 * extent and s the stride: convolution, pool     floor((n + p0 + p1 - e) / s) + 1; ceil with
 * ceil_mode, but the last window begins inside the input or the padding before it transposed
 * (n-1)*s + e - p0 - p1 + output_padding Resize                floor(n*scale), or as given
 */
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/graph_parse.h"

static bool refuse(char *reason, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool refuse(char *reason, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (reason && size)
        vsnprintf(reason, size, format, arguments);
    va_end(arguments);
    return false;
}

bool slice_resolve(int begin, int end, int step, size_t size, size_t *first, size_t *count)
{
    long long n = (long long)size;
    long long b = begin < 0 ? begin + n : begin, e = end < 0 ? end + n : end;
    b = b < 0 ? 0 : b;
    /* INT_MAX is "to the end" for any size */
    e = end == INT_MAX || e > n ? n : e;
    if (b >= e)
        return false;
    *first = (size_t)b;
    *count = (size_t)((e - b + step - 1) / step);
    return true;
}

static bool window_size(const graph_node *node, size_t axis, long long n, long long *out,
                        char *reason, size_t reason_size)
{
    long long extent = (long long)(node->kernel[axis] - 1) * node->dilation[axis] + 1;
    long long stride = node->stride[axis], before = node->pad_begin[axis];
    long long room = n + before + node->pad_end[axis] - extent;
    bool max_pool = node->op == OP_MAX_POOL;
    if (room < 0)
        return refuse(reason, reason_size, "%lld voxels with padding do not hold the kernel's %lld",
                      room + extent, extent);
    /* A window that begins in the padding could step over so small an input. */
    if (max_pool && before && node->dilation[axis] > n)
        return refuse(reason, reason_size, "%lld voxels are less than the dilation %d", n,
                      node->dilation[axis]);
    *out = room / stride + 1;
    if (node->ceil_mode && room % stride && *out * stride < n + before)
        ++*out;
    return true;
}

static bool axis_size(const graph_node *node, size_t axis, size_t in, size_t *out, char *reason,
                      size_t reason_size)
{
    long long n = (long long)in, size = n;
    size_t first, count;
    switch (node->op) {
    case OP_CONV:
    case OP_MAX_POOL:
    case OP_AVERAGE_POOL:
        if (!window_size(node, axis, n, &size, reason, reason_size))
            return false;
        break;
    case OP_CONV_TRANSPOSE:
        size = (n - 1) * node->stride[axis] +
               (long long)(node->kernel[axis] - 1) * node->dilation[axis] + 1 -
               node->pad_begin[axis] - node->pad_end[axis] + node->output_padding[axis];
        break;
    case OP_GLOBAL_AVERAGE_POOL:
        size = 1;
        break;
    case OP_RESIZE:
        size = node->sizes[axis] ? node->sizes[axis]
                                 : (long long)floor((double)n * node->scales[axis]);
        break;
    case OP_PAD:
        if (node->pad == PAD_REFLECT && (node->pad_begin[axis] >= n || node->pad_end[axis] >= n))
            return refuse(reason, reason_size, "%lld voxels are too few to reflect %d and %d", n,
                          node->pad_begin[axis], node->pad_end[axis]);
        size = n + node->pad_begin[axis] + node->pad_end[axis];
        break;
    case OP_SLICE:
        if (!slice_resolve(node->slice_begin[axis], node->slice_end[axis], node->slice_step[axis],
                           in, &first, &count))
            return refuse(reason, reason_size, "no voxel of %lld lies between %d and %d", n,
                          node->slice_begin[axis], node->slice_end[axis]);
        size = (long long)count;
        break;
    default:
        break;
    }
    if (size < 1 || size > (long long)GRAPH_MAX_EXTENT)
        return refuse(reason, reason_size, "its output would have %lld voxels for %lld", size, n);
    *out = (size_t)size;
    return true;
}

bool node_output_size(const graph_node *node, const size_t in[3], size_t out[3], char *reason,
                      size_t reason_size)
{
    for (size_t i = 0; i < 3; i++) {
        char why[160] = "";
        if (in[i] < 1 || in[i] > GRAPH_MAX_EXTENT)
            return refuse(reason, reason_size, "an axis of %zu voxels; 1 to %zu are possible",
                          in[i], GRAPH_MAX_EXTENT);
        if (!axis_size(node, i, in[i], &out[i], why, sizeof why))
            return refuse(reason, reason_size, "along %c, %s", "zyx"[i], why);
    }
    return true;
}

/* The common size of a node's inputs: equal for Concat; equal or 1 for the elementwise operators,
 * of which one has the size and the channels of the result. */
static bool joined_size(const graph *g, const graph_node *node, size_t (*sizes)[3], size_t out[3],
                        char *reason, size_t reason_size)
{
    bool whole = false, broadcast = node->op != OP_CONCAT;
    const size_t *a = sizes[node->inputs[0]];
    memcpy(out, a, 3 * sizeof *out);
    for (size_t k = 1; k < node->n_inputs; k++) {
        const size_t *b = sizes[node->inputs[k]];
        for (size_t i = 0; i < 3; i++) {
            if (b[i] != out[i] && !(broadcast && (b[i] == 1 || out[i] == 1)))
                return refuse(reason, reason_size,
                              "'%s' has %zu x %zu x %zu voxels and '%s' %zu x %zu x %zu (z, y, x)",
                              g->values[node->inputs[0]].name, a[0], a[1], a[2],
                              g->values[node->inputs[k]].name, b[0], b[1], b[2]);
            out[i] = b[i] > out[i] ? b[i] : out[i];
        }
    }
    for (size_t k = 0; k < node->n_inputs && broadcast; k++) {
        const graph_value *value = &g->values[node->inputs[k]];
        whole |= !value->is_weight && value->channels == g->values[node->output].channels &&
                 !memcmp(sizes[node->inputs[k]], out, 3 * sizeof *out);
    }
    return whole || !broadcast ||
           refuse(reason, reason_size, "neither '%s' nor '%s' has the size of the result",
                  g->values[node->inputs[0]].name, g->values[node->inputs[1]].name);
}

bool graph_sizes(const graph *g, const size_t tile[3], size_t (*sizes)[3], char *reason,
                 size_t reason_size)
{
    for (size_t v = 0; v < g->n_values; v++)
        sizes[v][0] = sizes[v][1] = sizes[v][2] = 1;
    for (size_t i = 0; i < g->n_inputs; i++)
        memcpy(sizes[g->inputs[i].value], tile, 3 * sizeof *tile);
    for (size_t n = 0; n < g->n_nodes; n++) {
        const graph_node *node = &g->nodes[n];
        size_t in[3];
        char why[240] = "";
        bool joins =
            node->op == OP_ADD || node->op == OP_MUL || node->op == OP_SUB || node->op == OP_CONCAT;
        bool ok = true;
        if (joins)
            ok = joined_size(g, node, sizes, in, why, sizeof why);
        else
            memcpy(in, sizes[node->inputs[0]], sizeof in);
        if (!ok || !node_output_size(node, in, sizes[node->output], why, sizeof why))
            return refuse(reason, reason_size, "node '%.128s' (%s): %s", node->name,
                          op_name(node->op), why);
    }
    return true;
}

/* Those that are voxelwise for the patch. */
static bool outputs_stay(const graph *g, const size_t tile[3], size_t (*sizes)[3])
{
    for (size_t i = 0; i < g->n_outputs; i++)
        if (g->outputs[i].voxelwise && memcmp(sizes[g->outputs[i].value], tile, 3 * sizeof *tile))
            return false;
    return true;
}

/* Do tiles of the patch plus 1, 2, ... steps along one axis work, up to twice the patch? Sizes
 * repeat with the network's own period, and a patch that works holds whole periods. */
static bool step_works(const graph *g, const size_t patch[3], size_t axis, size_t step,
                       size_t (*sizes)[3])
{
    for (size_t more = step; more <= patch[axis]; more += step) {
        size_t tile[3] = {patch[0], patch[1], patch[2]};
        tile[axis] += more;
        if (!graph_sizes(g, tile, sizes, NULL, 0) || !outputs_stay(g, tile, sizes))
            return false;
    }
    return true;
}

/* Of the dose map's nodes; of a network that makes none, of all. */
static dm_status find_statistics(graph_context *c)
{
    graph *g = c->g;
    int dose = graph_dose_output(g);
    bool *needed = array_alloc(g->n_values, sizeof *needed);
    if (!needed)
        return error_memory(c->err, g->n_values * sizeof *needed, "the graph");
    if (dose >= 0)
        graph_needed(g, g->outputs[dose].value, needed);
    for (size_t n = 0; n < g->n_nodes; n++) {
        const graph_node *node = &g->nodes[n];
        bool whole = node->op == OP_INSTANCE_NORM || node->op == OP_GROUP_NORM ||
                     node->op == OP_GLOBAL_AVERAGE_POOL;
        g->per_tile_statistics |= whole && (dose < 0 || needed[node->output]);
    }
    free(needed);
    return DM_OK;
}

dm_status infer_shapes(graph_context *c)
{
    graph *g = c->g;
    const size_t patch[3] = {g->patch[2], g->patch[1], g->patch[0]};
    char reason[400];
    dm_status status = DM_OK;
    size_t(*sizes)[3] = array_alloc(g->n_values, sizeof *sizes);
    if (!sizes)
        return error_memory(c->err, g->n_values * sizeof *sizes, "the sizes of the network");
    context_at(c, "graph");
    if (!graph_sizes(g, patch, sizes, reason, sizeof reason)) {
        status = context_bad(c, "it is not defined for its patch_size %zu, %zu, %zu: %s",
                             g->patch[0], g->patch[1], g->patch[2], reason);
        goto done;
    }
    for (size_t i = 0; i < g->n_outputs; i++) {
        graph_port *port = &g->outputs[i];
        port->voxelwise = !memcmp(sizes[port->value], patch, sizeof patch);
    }
    for (size_t axis = 0; axis < 3; axis++) {
        size_t step = 1;
        while (step < patch[axis] &&
               (patch[axis] % step || !step_works(g, patch, axis, step, sizes)))
            step++;
        g->total_stride[axis] = step;
    }
    status = find_statistics(c);
done:
    free(sizes);
    return status;
}
