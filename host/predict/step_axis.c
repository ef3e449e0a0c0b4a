/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of padding, slices and resizing: which input coordinates a result's coordinate comes from.
 * */
#include "predict/step_axis.h"

#include <math.h>
#include <stdlib.h>

#include "base/error.h"

static long clamp(long i, long n)
{
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

static long padded_source(const graph_node *node, int axis, long i, long n)
{
    i -= node->pad_begin[axis];
    if (i >= 0 && i < n)
        return i;
    if (node->pad == PAD_CONSTANT)
        return -1;
    if (node->pad == PAD_EDGE || n == 1)
        return clamp(i, n);
    long period = 2 * (n - 1); /* reflect: the edge is not repeated */
    i = ((i % period) + period) % period;
    return i < n ? i : period - i;
}

static long sliced_source(const graph_node *node, int axis, long i, size_t n)
{
    size_t first = 0, count;
    slice_resolve(node->slice_begin[axis], node->slice_end[axis], node->slice_step[axis], n, &first,
                  &count);
    return (long)first + i * node->slice_step[axis];
}

static double resized_source(const graph_node *node, int axis, long i, long in, long out)
{
    double scale = node->scales[axis] > 0 ? node->scales[axis] : (double)out / (double)in;
    switch (node->coordinates) {
    case RESIZE_ALIGN_CORNERS:
        return out > 1 ? (double)i * (double)(in - 1) / (double)(out - 1) : 0;
    case RESIZE_ASYMMETRIC:
        return (double)i / scale;
    default:
        return ((double)i + 0.5) / scale - 0.5;
    }
}

static void map_resize(const graph_node *node, int axis, long in, step_axis *map)
{
    for (size_t i = 0; i < map->n; i++) {
        double x = resized_source(node, axis, (long)i, in, (long)map->n);
        long low, high;
        double weight = 0;
        if (node->resize == RESIZE_NEAREST) {
            low = high = clamp((long)(node->nearest_floor ? floor(x) : ceil(x - 0.5)), in);
        } else {
            x = x < 0 ? 0 : x > (double)(in - 1) ? (double)(in - 1) : x;
            low = (long)floor(x);
            high = clamp(low + 1, in);
            weight = x - (double)low;
        }
        map->low[i] = (int)low;
        map->high[i] = (int)high;
        map->weight[i] = (float)weight;
    }
}

dm_status step_axis_create(const plan_step *step, int axis, size_t in, size_t out, step_axis *map,
                           dm_error *err)
{
    const graph_node *node = step->node;
    *map = (step_axis){.n = out};
    map->low = array_alloc(out, 2 * sizeof *map->low + sizeof *map->weight);
    if (!map->low)
        return error_memory(err, out * (2 * sizeof *map->low + sizeof *map->weight), step->name);
    map->high = map->low + out;
    map->weight = (float *)(map->high + out);
    if (step->kind == STEP_RESIZE) {
        map_resize(node, axis, (long)in, map);
        return DM_OK;
    }
    for (size_t i = 0; i < out; i++) {
        long from = step->kind == STEP_PAD ? padded_source(node, axis, (long)i, (long)in)
                                           : sliced_source(node, axis, (long)i, in);
        map->low[i] = map->high[i] = (int)from;
        map->weight[i] = 0;
    }
    return DM_OK;
}

void step_axis_free(step_axis *map)
{
    free(map->low);
    *map = (step_axis){0};
}
