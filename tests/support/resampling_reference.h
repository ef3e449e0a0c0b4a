/* SPDX-License-Identifier: Apache-2.0 */
/* Resampling by its definition, and values to resample. */
#ifndef DOSEMAP_TESTS_RESAMPLING_REFERENCE_H
#define DOSEMAP_TESTS_RESAMPLING_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "dosemap.h"
#include "volume/orientation.h"

/* From 0 to 16. */
static inline float *random_values(size_t n, unsigned seed)
{
    float *values = malloc(n * sizeof *values);
    uint32_t state = seed * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = (float)(state >> 8) / 1048576.0f;
    }
    return values;
}

/* The definition, literally and in double: a box average of `width` round each source voxel, then
 * linear interpolation, indices beyond the edges being those of the edges. */
static inline double box_at(const double *source, size_t n, double centre, double width)
{
    double sum = 0;
    for (long j = (long)floor(centre - width) - 1; j <= (long)ceil(centre + width) + 1; j++) {
        double low = fmax((double)j - 0.5, centre - width / 2);
        double high = fmin((double)j + 0.5, centre + width / 2);
        long index = j < 0 ? 0 : j >= (long)n ? (long)n - 1 : j;
        if (high > low)
            sum += (high - low) * source[index];
    }
    return sum / width;
}

static inline double sample_at(const double *source, size_t n, double position, double ratio)
{
    double width = ratio > 1.5 ? ratio : 1, i = floor(position);
    return (1 - (position - i)) * box_at(source, n, i, width) +
           (position - i) * box_at(source, n, i + 1, width);
}

/* Resamples one axis of a dense volume to n voxels; dim becomes the result's. */
static inline double *reference_axis(const double *source, size_t dim[3], int axis,
                                     const axis_map *map, size_t n)
{
    size_t out[3] = {dim[0], dim[1], dim[2]}, step = 1;
    for (int a = 0; a < axis; a++)
        step *= dim[a];
    out[axis] = n;
    double *result = malloc(out[0] * out[1] * out[2] * sizeof *result);
    double *line = malloc(dim[axis] * sizeof *line);
    for (size_t i = 0; i < out[0] * out[1] * out[2]; i++) {
        size_t before = i % step, at = i / step % n, after = i / step / n;
        for (size_t k = 0; k < dim[axis]; k++)
            line[k] = source[before + step * (k + dim[axis] * after)];
        result[i] =
            sample_at(line, dim[axis], map->scale * (double)at + map->offset, fabs(map->scale));
    }
    free(line);
    dim[axis] = n;
    return result;
}

/* A stored volume on the model's grid. */
static inline float *reference_model(const float *stored, const dm_grid *grid, const grid_map *map)
{
    size_t dim[3], n = dm_grid_voxels(grid);
    double *now = malloc(n * sizeof *now);
    /* Into the model's axis order first. */
    const size_t step[3] = {1, grid->dim[0], grid->dim[0] * grid->dim[1]};
    for (int a = 0; a < 3; a++)
        dim[a] = grid->dim[map->axis[a].source_axis];
    for (size_t i = 0; i < n; i++)
        now[i] = stored[i % dim[0] * step[map->axis[0].source_axis] +
                        i / dim[0] % dim[1] * step[map->axis[1].source_axis] +
                        i / dim[0] / dim[1] * step[map->axis[2].source_axis]];
    for (int a = 0; a < 3; a++) {
        double *next = reference_axis(now, dim, a, &map->axis[a], map->dim[a]);
        free(now);
        now = next;
    }
    n = dim[0] * dim[1] * dim[2];
    float *model = malloc(n * sizeof *model);
    for (size_t i = 0; i < n; i++)
        model[i] = (float)now[i];
    free(now);
    return model;
}

#endif
