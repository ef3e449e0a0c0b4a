/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps whose result is input voxels somewhere else: padding, slices and resizing. Each axis has a
 * table (step_axis.h), made with the network.
 */
#include "predict/cpu/convert.h"
#include "predict/cpu/steps.h"

/* ---- One voxel from one --------------------------------------------------------------------- */

MANY_CPUS
static void gather_line(const tensor_view *in, size_t line, const int *restrict from, size_t n,
                        size_t channel_begin, size_t channel_step, float fill, size_t channels,
                        float *restrict row)
{
    for (size_t x = 0; x < n; x++, row += channels) {
        if (from[x] < 0) {
            for (size_t c = 0; c < channels; c++)
                row[c] = fill;
            continue;
        }
        size_t at = (line + (size_t)from[x]) * in->pitch + channel_begin;
        const uint16_t *h = (const uint16_t *)in->data + at;
        const float *f = (const float *)in->data + at;
        if (in->type == ELEMENT_BF16)
            for (size_t c = 0; c < channels; c++)
                row[c] = bf16_to_float(h[c * channel_step]);
        else
            for (size_t c = 0; c < channels; c++)
                row[c] = f[c * channel_step];
    }
}

void step_gather(const step_buffers *buffers, const step_axis map[3], size_t channel_begin,
                 size_t channel_step, float fill, const tensor_view *in, const tensor_view *out,
                 const bound_chain *chain)
{
    size_t channels = out->channels, capacity = rows_capacity(buffers, channels);
    size_t first, end;
    share_planes(buffers, out->dim[0], &first, &end);
    for (size_t z = first; z < end; z++)
        for (size_t y = 0; y < out->dim[1]; y++)
            for (size_t x = 0; x < out->dim[2]; x += capacity) {
                size_t n = out->dim[2] - x < capacity ? out->dim[2] - x : capacity;
                int iz = map[0].low[z], iy = map[1].low[y];
                if (iz < 0 || iy < 0)
                    for (size_t i = 0; i < n * channels; i++)
                        buffers->row[i] = fill;
                else
                    gather_line(in, ((size_t)iz * in->dim[1] + (size_t)iy) * in->dim[2],
                                map[2].low + x, n, channel_begin, channel_step, fill, channels,
                                buffers->row);
                rows_finish(buffers, out, chain, (z * out->dim[1] + y) * out->dim[2] + x, n);
            }
}

/* ---- One voxel from eight ------------------------------------------------------------------- */

/* The four input lines round a line of the result, and how they are weighed. */
typedef struct line_corners {
    size_t low_low, low_high, high_low, high_high; /* first voxel: z, y */
    float wz, wy;
} line_corners;

static inline float between(float low, float high, float weight)
{
    return low + weight * (high - low);
}

static inline float corner_line(const float *p, size_t low, size_t high, float w)
{
    return between(p[low], p[high], w);
}

static inline float corner_line_bf16(const uint16_t *p, size_t low, size_t high, float w)
{
    return between(bf16_to_float(p[low]), bf16_to_float(p[high]), w);
}

MANY_CPUS
static void interpolate_line(const tensor_view *in, const line_corners *k, const step_axis *map,
                             size_t x0, size_t n, float *restrict row)
{
    size_t channels = in->channels, pitch = in->pitch;
    for (size_t x = 0; x < n; x++, row += channels) {
        size_t low = (size_t)map->low[x0 + x] * pitch, high = (size_t)map->high[x0 + x] * pitch;
        size_t at[4] = {k->low_low * pitch, k->low_high * pitch, k->high_low * pitch,
                        k->high_high * pitch};
        float w = map->weight[x0 + x];
        const float *f = in->data;
        const uint16_t *h = in->data;
        if (in->type == ELEMENT_BF16)
            for (size_t c = 0; c < channels; c++)
                row[c] = between(between(corner_line_bf16(h + at[0] + c, low, high, w),
                                         corner_line_bf16(h + at[1] + c, low, high, w), k->wy),
                                 between(corner_line_bf16(h + at[2] + c, low, high, w),
                                         corner_line_bf16(h + at[3] + c, low, high, w), k->wy),
                                 k->wz);
        else
            for (size_t c = 0; c < channels; c++)
                row[c] = between(between(corner_line(f + at[0] + c, low, high, w),
                                         corner_line(f + at[1] + c, low, high, w), k->wy),
                                 between(corner_line(f + at[2] + c, low, high, w),
                                         corner_line(f + at[3] + c, low, high, w), k->wy),
                                 k->wz);
    }
}

void step_interpolate(const step_buffers *buffers, const step_axis map[3], const tensor_view *in,
                      const tensor_view *out, const bound_chain *chain)
{
    size_t capacity = rows_capacity(buffers, out->channels), plane = in->dim[1] * in->dim[2];
    size_t first, end;
    share_planes(buffers, out->dim[0], &first, &end);
    for (size_t z = first; z < end; z++)
        for (size_t y = 0; y < out->dim[1]; y++) {
            size_t z0 = (size_t)map[0].low[z] * plane, z1 = (size_t)map[0].high[z] * plane;
            size_t y0 = (size_t)map[1].low[y] * in->dim[2],
                   y1 = (size_t)map[1].high[y] * in->dim[2];
            line_corners corners = {z0 + y0, z0 + y1,          z1 + y0,
                                    z1 + y1, map[0].weight[z], map[1].weight[y]};
            for (size_t x = 0; x < out->dim[2]; x += capacity) {
                size_t n = out->dim[2] - x < capacity ? out->dim[2] - x : capacity;
                interpolate_line(in, &corners, &map[2], x, n, buffers->row);
                rows_finish(buffers, out, chain, (z * out->dim[1] + y) * out->dim[2] + x, n);
            }
        }
}
