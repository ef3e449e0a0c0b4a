/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maximum and average pooling. Padding never wins a maximum; an average counts it only with
 * count_include_pad, and then never what ceil_mode lets a window reach beyond the padding, as
 * PyTorch and ONNX since version 19 define it.
 */
#include "predict/cpu/convert.h"
#include "predict/cpu/steps.h"

#include <math.h>

/* The taps of one window that lie inside, and how many an average divides by. */
typedef struct pool_window {
    size_t begin[3], end[3], step[3];
    size_t count;
} pool_window;

static void window_axis(const graph_node *node, int a, size_t in, size_t at, pool_window *w,
                        size_t *counted)
{
    long step = node->dilation[a], size = (long)in;
    long first = (long)at * node->stride[a] - node->pad_begin[a];
    long last = first + (node->kernel[a] - 1) * step; /* inclusive */
    long padded = size + node->pad_end[a];
    long whole = last < padded ? last - first + 1 : padded - first;
    long begin = first < 0 ? first + (-first + step - 1) / step * step : first;
    long end = last + 1 < size ? last + 1 : size;
    w->begin[a] = (size_t)begin;
    w->end[a] = end > begin ? (size_t)end : (size_t)begin;
    w->step[a] = (size_t)step;
    *counted = node->count_include_pad ? (size_t)whole : w->end[a] - w->begin[a];
}

MANY_CPUS
static void maximum_into(float *restrict row, const tensor_view *in, const pool_window *w)
{
    size_t channels = in->channels;
    for (size_t z = w->begin[0]; z < w->end[0]; z += w->step[0])
        for (size_t y = w->begin[1]; y < w->end[1]; y += w->step[1])
            for (size_t x = w->begin[2]; x < w->end[2]; x += w->step[2]) {
                size_t at = ((z * in->dim[1] + y) * in->dim[2] + x) * in->pitch;
                const uint16_t *h = (const uint16_t *)in->data + at;
                const float *f = (const float *)in->data + at;
                if (in->type == ELEMENT_BF16)
                    for (size_t c = 0; c < channels; c++) {
                        float value = bf16_to_float(h[c]);
                        row[c] = value > row[c] ? value : row[c];
                    }
                else
                    for (size_t c = 0; c < channels; c++)
                        row[c] = f[c] > row[c] ? f[c] : row[c];
            }
}

MANY_CPUS
static void sum_into(float *restrict row, const tensor_view *in, const pool_window *w)
{
    size_t channels = in->channels;
    for (size_t z = w->begin[0]; z < w->end[0]; z++)
        for (size_t y = w->begin[1]; y < w->end[1]; y++)
            for (size_t x = w->begin[2]; x < w->end[2]; x++) {
                size_t at = ((z * in->dim[1] + y) * in->dim[2] + x) * in->pitch;
                const uint16_t *h = (const uint16_t *)in->data + at;
                const float *f = (const float *)in->data + at;
                if (in->type == ELEMENT_BF16)
                    for (size_t c = 0; c < channels; c++)
                        row[c] += bf16_to_float(h[c]);
                else
                    for (size_t c = 0; c < channels; c++)
                        row[c] += f[c];
            }
    for (size_t c = 0; c < channels; c++)
        row[c] /= (float)w->count;
}

static void pool(const step_buffers *buffers, const graph_node *node, bool maximum,
                 const tensor_view *in, const tensor_view *out, const bound_chain *chain)
{
    size_t channels = out->channels, plane = out->dim[1] * out->dim[2];
    size_t capacity = rows_capacity(buffers, channels), begin, end;
    share_planes(buffers, out->dim[0], &begin, &end);
    for (size_t first = begin * plane; first < end * plane; first += capacity) {
        size_t n = end * plane - first < capacity ? end * plane - first : capacity;
        for (size_t i = 0; i < n; i++) {
            size_t v = first + i, counted[3];
            size_t at[3] = {v / out->dim[2] / out->dim[1], v / out->dim[2] % out->dim[1],
                            v % out->dim[2]};
            pool_window w;
            for (int a = 0; a < 3; a++)
                window_axis(node, a, in->dim[a], at[a], &w, &counted[a]);
            w.count = counted[0] * counted[1] * counted[2];
            float *row = buffers->row + i * channels;
            for (size_t c = 0; c < channels; c++)
                row[c] = maximum ? -INFINITY : 0;
            if (maximum)
                maximum_into(row, in, &w);
            else
                sum_into(row, in, &w);
        }
        rows_finish(buffers, out, chain, first, n);
    }
}

void step_max_pool(const step_buffers *buffers, const graph_node *node, const tensor_view *in,
                   const tensor_view *out, const bound_chain *chain)
{
    pool(buffers, node, true, in, out, chain);
}

void step_average_pool(const step_buffers *buffers, const graph_node *node, const tensor_view *in,
                       const tensor_view *out, const bound_chain *chain)
{
    pool(buffers, node, false, in, out, chain);
}
