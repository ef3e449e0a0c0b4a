/* SPDX-License-Identifier: Apache-2.0 */
/* Weight tables per axis, and the separable resampling that uses them. */
#include "predict/resample.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

/* Above this ratio of spacings single source voxels would be skipped: average first. */
#define BOX_RATIO 1.5
/* Edge of the blocks in which permuted volumes are copied: 16 floats are a cache line. */
#define BLOCK 16

/* ---- Views ---------------------------------------------------------------------------------- */

strided strided_permuted(const dm_grid *grid, const grid_map *map, float *data)
{
    const ptrdiff_t stride[3] = {1, (ptrdiff_t)grid->dim[0],
                                 (ptrdiff_t)(grid->dim[0] * grid->dim[1])};
    strided view = {.data = data};
    for (int a = 0; a < 3; a++) {
        view.stride[a] = stride[map->axis[a].source_axis];
        view.dim[a] = grid->dim[map->axis[a].source_axis];
    }
    return view;
}

strided strided_exact(const dm_grid *grid, const grid_map *map, float *data)
{
    strided view = strided_permuted(grid, map, data);
    for (int a = 0; a < 3; a++) {
        if (map->axis[a].scale < 0) {
            view.data += (ptrdiff_t)(view.dim[a] - 1) * view.stride[a];
            view.stride[a] = -view.stride[a];
        }
    }
    return view;
}

strided strided_dense(const size_t dim[3], float *data)
{
    return (strided){.data = data,
                     .stride = {1, (ptrdiff_t)dim[0], (ptrdiff_t)(dim[0] * dim[1])},
                     .dim = {dim[0], dim[1], dim[2]}};
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void copy_block(const float *source, const ptrdiff_t from[3], float *target,
                       const ptrdiff_t to[3], const size_t n[3])
{
    for (size_t z = 0; z < n[2]; z++) {
        for (size_t y = 0; y < n[1]; y++) {
            const float *s = source + (ptrdiff_t)z * from[2] + (ptrdiff_t)y * from[1];
            float *t = target + (ptrdiff_t)z * to[2] + (ptrdiff_t)y * to[1];
            if (from[0] == 1 && to[0] == 1)
                memcpy(t, s, n[0] * sizeof *t);
            else
                for (size_t x = 0; x < n[0]; x++)
                    t[(ptrdiff_t)x * to[0]] = s[(ptrdiff_t)x * from[0]];
        }
    }
}

void strided_copy(const strided *source, const size_t start[3], const strided *target)
{
    size_t edge = labs(source->stride[0]) == labs(target->stride[0]) ? SIZE_MAX : BLOCK;
    const float *s0 = source->data;
    for (int a = 0; a < 3; a++)
        s0 += (ptrdiff_t)start[a] * source->stride[a];
    const size_t *dim = target->dim;
    for (size_t z = 0; z < dim[2]; z += smaller(edge, dim[2])) {
        for (size_t y = 0; y < dim[1]; y += smaller(edge, dim[1])) {
            for (size_t x = 0; x < dim[0]; x += smaller(edge, dim[0])) {
                const size_t at[3] = {x, y, z};
                const float *s = s0;
                float *t = target->data;
                size_t n[3];
                for (int a = 0; a < 3; a++) {
                    s += (ptrdiff_t)at[a] * source->stride[a];
                    t += (ptrdiff_t)at[a] * target->stride[a];
                    n[a] = smaller(edge, dim[a] - at[a]);
                }
                copy_block(s, source->stride, t, target->stride, n);
            }
        }
    }
}

/* ---- Tables --------------------------------------------------------------------------------- */

/* Share of a box of `width` source voxels round `centre` that source voxel j covers; the edge
 * voxels stand for everything beyond them. */
static double box_share(size_t j, size_t n_source, double centre, double width)
{
    double low = centre - width / 2, high = centre + width / 2;
    if (j > 0)
        low = fmax(low, (double)j - 0.5);
    if (j < n_source - 1)
        high = fmin(high, (double)j + 0.5);
    return fmax(0, high - low) / width;
}

/* Weight of source voxel j for a target at source index `position`. */
static double tap_weight(size_t j, size_t n_source, double position, double width)
{
    double i = floor(position), f = position - i;
    return (1 - f) * box_share(j, n_source, i, width) + f * box_share(j, n_source, i + 1, width);
}

static size_t clamp_index(double index, size_t n)
{
    if (!(index > 0))
        return 0;
    return index < (double)(n - 1) ? (size_t)index : n - 1;
}

void stored_voxel(const dm_grid *grid, const grid_map *map, const size_t model[3], size_t ijk[3])
{
    for (int a = 0; a < 3; a++) {
        const axis_map *m = &map->axis[a];
        double index = m->scale * (double)model[a] + m->offset;
        ijk[m->source_axis] = clamp_index(floor(index + 0.5), grid->dim[m->source_axis]);
    }
}

/* First and last source voxel with a weight above nothing. */
static void tap_range(size_t n_source, double position, double width, size_t *first, size_t *last)
{
    *first = clamp_index(floor(position - width / 2) - 1, n_source);
    *last = clamp_index(ceil(position + width / 2) + 1, n_source);
    while (*first < *last && (float)tap_weight(*first, n_source, position, width) == 0)
        ++*first;
    while (*last > *first && (float)tap_weight(*last, n_source, position, width) == 0)
        --*last;
}

static dm_status table_alloc(axis_table *table, size_t n, dm_error *err)
{
    table->n = n;
    table->first = array_alloc(n, sizeof *table->first);
    table->count = array_alloc(n, sizeof *table->count);
    table->offset = array_alloc(n, sizeof *table->offset);
    if (!table->first || !table->count || !table->offset)
        return error_memory(err, 3 * n * sizeof *table->first, "resampling tables");
    return DM_OK;
}

dm_status axis_table_make(size_t n_target, size_t n_source, double scale, double offset,
                          axis_table *table, dm_error *err)
{
    memset(table, 0, sizeof *table);
    dm_status status = table_alloc(table, n_target, err);
    if (status != DM_OK)
        goto done;
    double width = fabs(scale) > BOX_RATIO ? fabs(scale) : 1;
    size_t total = 0;
    for (size_t t = 0; t < n_target; t++) {
        size_t last;
        tap_range(n_source, scale * (double)t + offset, width, &table->first[t], &last);
        table->count[t] = last - table->first[t] + 1;
        table->offset[t] = total;
        total += table->count[t];
    }
    table->weight = array_alloc(total, sizeof *table->weight);
    if (!table->weight) {
        status = error_memory(err, total * sizeof *table->weight, "resampling tables");
        goto done;
    }
    for (size_t t = 0; t < n_target; t++)
        for (size_t k = 0; k < table->count[t]; k++)
            table->weight[table->offset[t] + k] =
                (float)tap_weight(table->first[t] + k, n_source, scale * (double)t + offset, width);
done:
    if (status != DM_OK)
        axis_table_clear(table);
    return status;
}

void axis_table_clear(axis_table *table)
{
    free(table->first);
    free(table->count);
    free(table->offset);
    free(table->weight);
    memset(table, 0, sizeof *table);
}

static dm_status make_tables(const dm_grid *grid, const grid_map *map, bool to_model,
                             axis_table table[3], dm_error *err)
{
    memset(table, 0, 3 * sizeof *table);
    for (int a = 0; a < 3; a++) {
        const axis_map *m = &map->axis[a];
        size_t n_stored = grid->dim[m->source_axis];
        dm_status status =
            to_model ? axis_table_make(map->dim[a], n_stored, m->scale, m->offset, &table[a], err)
                     : axis_table_make(n_stored, map->dim[a], 1 / m->scale, -m->offset / m->scale,
                                       &table[a], err);
        if (status != DM_OK) {
            while (a-- > 0)
                axis_table_clear(&table[a]);
            return status;
        }
    }
    return DM_OK;
}

dm_status resample_to_model(const dm_grid *grid, const grid_map *map, axis_table table[3],
                            dm_error *err)
{
    return make_tables(grid, map, true, table, err);
}

dm_status resample_from_model(const dm_grid *grid, const grid_map *map, axis_table table[3],
                              dm_error *err)
{
    return make_tables(grid, map, false, table, err);
}

/* ---- Resampling ----------------------------------------------------------------------------- */

/* Source indices [*low, *high) that the target indices [start, start + n) use. */
static void source_range(const axis_table *table, size_t start, size_t n, size_t *low, size_t *high)
{
    *low = SIZE_MAX;
    *high = 0;
    for (size_t t = start; t < start + n; t++) {
        *low = smaller(*low, table->first[t]);
        if (table->first[t] + table->count[t] > *high)
            *high = table->first[t] + table->count[t];
    }
}

size_t resample_scratch(const axis_table table[3], const size_t size[3])
{
    size_t span = 0;
    for (size_t t = 0; t + size[1] <= table[1].n; t++) {
        size_t low, high;
        source_range(&table[1], t, size[1], &low, &high);
        span = high - low > span ? high - low : span;
    }
    if (span == 0) /* fewer targets than `size`: they may use every source voxel */
        for (size_t t = 0; t < table[1].n; t++)
            span = table[1].first[t] + table[1].count[t] > span
                       ? table[1].first[t] + table[1].count[t]
                       : span;
    return (span + size[1]) * size[0];
}

/* One source row onto the target's x. */
static void resample_row(const axis_table *table, size_t start, size_t n, const float *source,
                         ptrdiff_t stride, bool nan_to_zero, float *row)
{
    for (size_t x = 0; x < n; x++) {
        const float *weight = table->weight + table->offset[start + x];
        const float *s = source + (ptrdiff_t)table->first[start + x] * stride;
        float sum = 0;
        for (size_t k = 0; k < table->count[start + x]; k++) {
            float value = s[(ptrdiff_t)k * stride];
            if (nan_to_zero && !isfinite(value))
                value = 0;
            sum += weight[k] * value;
        }
        row[x] = sum;
    }
}

/* Rows [low, ...) of one source plane onto the target's y. */
static void resample_plane(const axis_table *table, size_t start, size_t n, size_t low,
                           const float *rows, size_t width, float *plane)
{
    memset(plane, 0, n * width * sizeof *plane);
    for (size_t y = 0; y < n; y++) {
        const float *weight = table->weight + table->offset[start + y];
        float *out = plane + y * width;
        for (size_t k = 0; k < table->count[start + y]; k++) {
            const float *row = rows + (table->first[start + y] + k - low) * width;
            for (size_t x = 0; x < width; x++)
                out[x] += weight[k] * row[x];
        }
    }
}

static void add_plane(const strided *target, size_t z, const float *plane, float weight,
                      bool is_first)
{
    for (size_t y = 0; y < target->dim[1]; y++) {
        const float *row = plane + y * target->dim[0];
        float *out =
            target->data + (ptrdiff_t)z * target->stride[2] + (ptrdiff_t)y * target->stride[1];
        for (size_t x = 0; x < target->dim[0]; x++) {
            float *o = out + (ptrdiff_t)x * target->stride[0];
            *o = (is_first ? 0 : *o) + weight * row[x];
        }
    }
}

void resample_box(const axis_table table[3], const strided *source, const size_t start[3],
                  const strided *target, bool nan_to_zero, float *scratch)
{
    const size_t *size = target->dim;
    size_t y_low, y_high, z_low, z_high;
    source_range(&table[1], start[1], size[1], &y_low, &y_high);
    source_range(&table[2], start[2], size[2], &z_low, &z_high);
    float *rows = scratch, *plane = scratch + (y_high - y_low) * size[0];
    /* Each source plane is brought to the target's x and y once, then added to all its targets. */
    for (size_t w = z_low; w < z_high; w++) {
        for (size_t v = y_low; v < y_high; v++)
            resample_row(&table[0], start[0], size[0],
                         source->data + (ptrdiff_t)w * source->stride[2] +
                             (ptrdiff_t)v * source->stride[1],
                         source->stride[0], nan_to_zero, rows + (v - y_low) * size[0]);
        resample_plane(&table[1], start[1], size[1], y_low, rows, size[0], plane);
        for (size_t z = 0; z < size[2]; z++) {
            size_t first = table[2].first[start[2] + z];
            if (w < first || w - first >= table[2].count[start[2] + z])
                continue;
            float weight = table[2].weight[table[2].offset[start[2] + z] + (w - first)];
            add_plane(target, z, plane, weight, w == first);
        }
    }
}
