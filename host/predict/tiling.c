/* SPDX-License-Identifier: Apache-2.0 */
/* Where the windows lie and how much each of their voxels counts. */
#include "predict/tiling.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define OVERLAP_MAX 0.9
/* MONAI's defaults: Gaussian of 0.125 tile edges, weights clamped from below. */
#define SIGMA_SHARE 0.125
#define IMPORTANCE_MIN 1e-3f

/* Distance between windows. In double and truncated, exactly as MONAI's Python does it. */
static size_t scan_interval(size_t length, size_t tile, double overlap)
{
    if (tile == length)
        return tile;
    size_t interval = (size_t)((double)tile * (1.0 - overlap));
    return interval > 0 ? interval : 1;
}

size_t tiling_windows(size_t length, size_t tile, double overlap)
{
    if (length <= tile)
        return 1;
    size_t interval = scan_interval(length, tile, overlap), last = length - tile;
    return last / interval + (last % interval != 0) + 1;
}

/* Windows along one axis: every interval until one reaches the end, which is moved inwards. */
static size_t *window_starts(size_t length, size_t tile, double overlap, size_t *n)
{
    size_t interval = scan_interval(length, tile, overlap);
    size_t last = length - tile;
    *n = tiling_windows(length, tile, overlap);
    size_t *start = array_alloc(*n, sizeof *start);
    if (!start)
        return NULL;
    for (size_t i = 0; i < *n; i++) {
        size_t s = i * interval;
        start[i] = s < last ? s : last;
    }
    return start;
}

static void gaussian_profile(size_t n, float *profile)
{
    double sigma = SIGMA_SHARE * (double)n;
    float denominator = (float)(-2 * sigma * sigma);
    for (size_t i = 0; i < n; i++) {
        float x = (float)((double)i - ((double)n - 1) / 2);
        profile[i] = expf(x * x / denominator);
    }
}

static dm_status fill_importance(tiling *t, dm_blend blend, dm_error *err)
{
    size_t plane, count, edges = t->tile[0] + t->tile[1] + t->tile[2];
    if (!size_multiply(t->tile[0], t->tile[1], &plane) || !size_multiply(plane, t->tile[2], &count))
        return error_memory(err, SIZE_MAX, "tile weights");
    t->importance = array_alloc(count, sizeof *t->importance);
    float *gx = array_alloc(edges, sizeof *gx);
    if (!t->importance || !gx) {
        free(gx);
        return error_memory(err, (count + edges) * sizeof *gx, "tile weights");
    }
    float *gy = gx + t->tile[0], *gz = gy + t->tile[1];
    for (size_t i = 0; i < edges; i++)
        gx[i] = 1;
    if (blend == DM_BLEND_GAUSSIAN) {
        gaussian_profile(t->tile[0], gx);
        gaussian_profile(t->tile[1], gy);
        gaussian_profile(t->tile[2], gz);
    }
    float *weight = t->importance;
    for (size_t z = 0; z < t->tile[2]; z++)
        for (size_t y = 0; y < t->tile[1]; y++)
            for (size_t x = 0; x < t->tile[0]; x++)
                *weight++ = fmaxf(gx[x] * gy[y] * gz[z], IMPORTANCE_MIN);
    free(gx);
    return DM_OK;
}

dm_status tiling_make(const size_t volume[3], const size_t tile[3], double overlap, dm_blend blend,
                      tiling *t, dm_error *err)
{
    memset(t, 0, sizeof *t);
    if (!(overlap >= 0 && overlap <= OVERLAP_MAX))
        return error_set(err, DM_ERROR_VALUE, NULL, "give a share of the tile from 0 to 0.9",
                         "overlap %g is out of range", overlap);
    t->count = 1;
    for (int a = 0; a < 3; a++) {
        if (volume[a] == 0 || tile[a] == 0) {
            tiling_clear(t);
            return error_set(err, DM_ERROR_VALUE, NULL, "sizes must be at least 1",
                             "a tile of %zu voxels on a volume of %zu", tile[a], volume[a]);
        }
        t->volume[a] = volume[a];
        t->tile[a] = tile[a];
        t->padded[a] = volume[a] > tile[a] ? volume[a] : tile[a];
        t->pad_before[a] = (t->padded[a] - volume[a]) / 2;
        t->start[a] = window_starts(t->padded[a], tile[a], overlap, &t->n[a]);
        if (!t->start[a] || !size_multiply(t->count, t->n[a], &t->count)) {
            tiling_clear(t);
            return error_memory(err, volume[a] * sizeof(size_t), "window positions");
        }
    }
    dm_status status = fill_importance(t, blend, err);
    if (status != DM_OK)
        tiling_clear(t);
    return status;
}

void tiling_clear(tiling *t)
{
    for (int a = 0; a < 3; a++)
        free(t->start[a]);
    free(t->importance);
    memset(t, 0, sizeof *t);
}

void tiling_window(const tiling *t, size_t w, size_t start[3])
{
    assert(w < t->count);
    start[0] = t->start[0][w % t->n[0]];
    start[1] = t->start[1][w / t->n[0] % t->n[1]];
    start[2] = t->start[2][w / t->n[0] / t->n[1]];
}

void tiling_inside(const tiling *t, size_t w, size_t start[3], size_t size[3], size_t at[3])
{
    tiling_window(t, w, start);
    for (int a = 0; a < 3; a++) {
        size_t before = t->pad_before[a];
        size_t end = start[a] + t->tile[a] - before; /* padding is less than a tile */
        at[a] = start[a] < before ? before - start[a] : 0;
        start[a] = start[a] + at[a] - before;
        size[a] = (end < t->volume[a] ? end : t->volume[a]) - start[a];
    }
}

/* The windows [*first, *end) along `axis` that cover a padded position. Starts ascend. */
static void windows_over(const tiling *t, int axis, size_t position, size_t *first, size_t *end)
{
    const size_t *start = t->start[axis];
    size_t f = 0;
    while (start[f] + t->tile[axis] <= position)
        f++;
    size_t e = f;
    while (e < t->n[axis] && start[e] <= position)
        e++;
    *first = f;
    *end = e;
}

/* Adds one row of a window's importance onto the part of the volume's row that it covers. */
static void add_row(const tiling *t, const float *importance, size_t window_start, float *total)
{
    size_t before = t->pad_before[0];
    size_t from = window_start > before ? window_start : before;
    size_t to = window_start + t->tile[0];
    if (to > before + t->volume[0])
        to = before + t->volume[0];
    for (size_t x = from; x < to; x++)
        total[x - before] += importance[x - window_start];
}

void tiling_total_row(const tiling *t, size_t y, size_t z, float *total)
{
    size_t y_first, y_end, z_first, z_end;
    y += t->pad_before[1];
    z += t->pad_before[2];
    windows_over(t, 1, y, &y_first, &y_end);
    windows_over(t, 2, z, &z_first, &z_end);
    memset(total, 0, t->volume[0] * sizeof *total);
    for (size_t iz = z_first; iz < z_end; iz++) {
        for (size_t iy = y_first; iy < y_end; iy++) {
            size_t in_z = z - t->start[2][iz], in_y = y - t->start[1][iy];
            const float *row = t->importance + (in_z * t->tile[1] + in_y) * t->tile[0];
            for (size_t ix = 0; ix < t->n[0]; ix++)
                add_row(t, row, t->start[0][ix], total);
        }
    }
}
