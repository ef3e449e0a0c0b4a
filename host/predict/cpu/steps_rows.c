/* SPDX-License-Identifier: Apache-2.0 */
/* Runs of voxels between tensors and float32 rows, and what needs nothing else. */
#include "predict/cpu/convert.h"
#include "predict/cpu/steps.h"

#include <string.h>

size_t view_voxels(const tensor_view *view)
{
    return view->dim[0] * view->dim[1] * view->dim[2];
}

bool view_is_dense(const tensor_view *view)
{
    return view->pitch == view->channels;
}

static void *voxel(const tensor_view *view, size_t index)
{
    return (char *)view->data + index * view->pitch * element_size(view->type);
}

tensor_view view_planes(const tensor_view *view, size_t z, size_t planes)
{
    tensor_view part = *view;
    part.data = voxel(view, z * view->dim[1] * view->dim[2]);
    part.dim[0] = planes;
    return part;
}

void share_planes(const step_buffers *buffers, size_t n, size_t *first, size_t *end)
{
    *first = n * buffers->share / buffers->shares;
    *end = n * (buffers->share + 1) / buffers->shares;
}

size_t rows_capacity(const step_buffers *buffers, size_t channels)
{
    return buffers->row_floats / channels;
}

/* ---- Loading and storing -------------------------------------------------------------------- */

MANY_CPUS
static void widen(const uint16_t *restrict from, size_t pitch, size_t n, size_t channels,
                  float *restrict to)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++)
            to[v * channels + c] = bf16_to_float(from[v * pitch + c]);
}

MANY_CPUS
static void narrow(const float *restrict from, size_t n, size_t channels, size_t pitch,
                   uint16_t *restrict to)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++)
            to[v * pitch + c] = bf16_from_float(from[v * channels + c]);
}

MANY_CPUS
static void repeat_each(float *row, size_t n, size_t channels)
{
    /* From the end, so that no value is overwritten before it is read. */
    for (size_t v = n; v-- > 0;) {
        float value = row[v];
        for (size_t c = 0; c < channels; c++)
            row[v * channels + c] = value;
    }
}

static void load(const tensor_view *view, size_t first, size_t n, float *row)
{
    const void *from = voxel(view, first);
    size_t channels = view->channels, pitch = view->pitch;
    if (view_is_dense(view)) { /* one long voxel */
        channels *= n;
        n = 1;
    }
    if (view->type == ELEMENT_BF16) {
        widen(from, pitch, n, channels, row);
        return;
    }
    for (size_t v = 0; v < n; v++)
        memcpy(row + v * channels, (const float *)from + v * pitch, channels * sizeof *row);
}

static void store(const float *row, const tensor_view *view, size_t first, size_t n)
{
    void *to = voxel(view, first);
    size_t channels = view->channels, pitch = view->pitch;
    if (view_is_dense(view)) {
        channels *= n;
        n = 1;
    }
    if (view->type == ELEMENT_BF16) {
        narrow(row, n, channels, pitch, to);
        return;
    }
    for (size_t v = 0; v < n; v++)
        memcpy((float *)to + v * pitch, row + v * channels, channels * sizeof *row);
}

/* Where voxel `index` of `like` comes from in a view repeated along some dimensions. */
static size_t repeated_voxel(const tensor_view *view, const tensor_view *like, size_t index)
{
    size_t x = index % like->dim[2], y = index / like->dim[2] % like->dim[1];
    size_t z = index / like->dim[2] / like->dim[1];
    x = view->dim[2] == 1 ? 0 : x;
    y = view->dim[1] == 1 ? 0 : y;
    z = view->dim[0] == 1 ? 0 : z;
    return (z * view->dim[1] + y) * view->dim[2] + x;
}

void rows_load(const tensor_view *view, const tensor_view *like, size_t first, size_t n, float *row)
{
    if (view_voxels(view) == view_voxels(like))
        load(view, first, n, row);
    else
        for (size_t v = 0; v < n; v++)
            load(view, repeated_voxel(view, like, first + v), 1, row + v * view->channels);
    if (view->channels != like->channels)
        repeat_each(row, n, like->channels);
}

void rows_finish(const step_buffers *buffers, const tensor_view *out, const bound_chain *chain,
                 size_t first, size_t n)
{
    chain_apply(chain, buffers, out, first, n);
    store(buffers->row, out, first, n);
}

/* ---- Pointwise ------------------------------------------------------------------------------ */

/* Bytes as they are, where nothing is to be computed. */
static void copy_voxels(const tensor_view *in, const tensor_view *out, size_t first)
{
    size_t bytes = in->channels * element_size(in->type), voxels = view_voxels(in);
    size_t from_step = in->pitch * element_size(in->type);
    size_t to_step = out->pitch * element_size(out->type);
    const char *from = in->data;
    char *to = voxel(out, first);
    for (size_t v = 0; v < voxels; v++)
        memcpy(to + v * to_step, from + v * from_step, bytes);
}

static bool is_plain_copy(const tensor_view *in, const tensor_view *out, const bound_chain *chain)
{
    return chain->n == 0 && in->type == out->type && in->channels == out->channels &&
           in->data != out->data;
}

void step_pointwise_part(const step_buffers *buffers, const tensor_view *in, size_t first,
                         const tensor_view *out, const bound_chain *chain)
{
    size_t voxels = view_voxels(in), capacity = rows_capacity(buffers, out->channels);
    if (is_plain_copy(in, out, chain)) {
        copy_voxels(in, out, first);
        return;
    }
    for (size_t v = 0; v < voxels; v += capacity) {
        size_t n = voxels - v < capacity ? voxels - v : capacity;
        load(in, v, n, buffers->row);
        rows_finish(buffers, out, chain, first + v, n);
    }
}

void step_pointwise(const step_buffers *buffers, const tensor_view *in, const tensor_view *out,
                    const bound_chain *chain)
{
    size_t capacity = rows_capacity(buffers, out->channels), plane = out->dim[1] * out->dim[2];
    size_t first, end;
    share_planes(buffers, out->dim[0], &first, &end);
    if (view_voxels(in) == view_voxels(out) && in->channels == out->channels) {
        tensor_view part = view_planes(in, first, end - first);
        step_pointwise_part(buffers, &part, first * plane, out, chain);
        return;
    }
    for (size_t v = first * plane; v < end * plane; v += capacity) {
        size_t n = end * plane - v < capacity ? end * plane - v : capacity;
        rows_load(in, out, v, n, buffers->row);
        rows_finish(buffers, out, chain, v, n);
    }
}

/* ---- Unfolding transposed convolutions ------------------------------------------------------ */

/* Output line (z, y) from its line of input voxels, a run at a time. */
static void unfold_line(const step_buffers *buffers, const int kernel[3], const tensor_view *blocks,
                        const float *line, size_t first, const tensor_view *out,
                        const bound_chain *chain)
{
    size_t run = (size_t)kernel[2] * out->channels;
    size_t width = blocks->dim[2], capacity = buffers->row_floats / run;
    for (size_t x = 0; x < width; x += capacity) {
        size_t n = width - x < capacity ? width - x : capacity;
        for (size_t i = 0; i < n; i++)
            memcpy(buffers->row + i * run, line + (x + i) * blocks->channels, run * sizeof(float));
        rows_finish(buffers, out, chain, first + x * (size_t)kernel[2], n * (size_t)kernel[2]);
    }
}

void step_unfold(const step_buffers *buffers, const int kernel[3], const tensor_view *blocks,
                 size_t z, const tensor_view *out, const bound_chain *chain)
{
    size_t kz = (size_t)kernel[0], ky = (size_t)kernel[1], run = (size_t)kernel[2] * out->channels;
    size_t height = blocks->dim[1], width = blocks->dim[2];
    for (size_t p = 0; p < blocks->dim[0] * kz; p++)
        for (size_t q = 0; q < height * ky; q++) {
            const float *line = (const float *)blocks->data +
                                (p / kz * height + q / ky) * width * blocks->channels +
                                (p % kz * ky + q % ky) * run;
            size_t first = ((z * kz + p) * out->dim[1] + q) * out->dim[2];
            unfold_line(buffers, kernel, blocks, line, first, out, chain);
        }
}
