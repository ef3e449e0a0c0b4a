/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From one grid to another where every axis maps on its own (volume/orientation.h): one table of
 * weighted source voxels per axis and target index. Box average, trilinear interpolation and
 * clamping at the edges are all in the tables, so there is one way of resampling, in both
 * directions.
 */
#ifndef DOSEMAP_PREDICT_RESAMPLE_H
#define DOSEMAP_PREDICT_RESAMPLE_H

#include "dosemap.h"
#include "volume/orientation.h"

/* A volume seen along the model's axes: voxel (x, y, z) is data[x*stride[0] + y*stride[1] +
 * z*stride[2]]; strides of flipped axes are negative. */
typedef struct strided {
    float *data;
    ptrdiff_t stride[3];
    size_t dim[3];
} strided;

/* `data` on `grid` as the model sees it through an exact map. */
strided strided_exact(const dm_grid *grid, const grid_map *map, float *data);
/* The same for a resampling map: axes in the model's order, flips left to the tables. */
strided strided_permuted(const dm_grid *grid, const grid_map *map, float *data);
/* The stored voxel nearest to a voxel of the model's grid. */
void stored_voxel(const dm_grid *grid, const grid_map *map, const size_t model[3], size_t ijk[3]);
/* x fastest, without gaps. */
strided strided_dense(const size_t dim[3], float *data);

/* Target index t takes sum over k < count[t] of weight[offset[t] + k] * source[first[t] + k]. */
typedef struct axis_table {
    size_t n;
    size_t *first, *count, *offset;
    float *weight;
} axis_table;

/* Target index t lies at source index scale*t + offset. Where a target voxel is longer than 1.5
 * source voxels (|scale| > 1.5) the source is averaged over that length first; then interpolated
 * linearly; source indices beyond the edges are those of the edges. */
dm_status axis_table_make(size_t n_target, size_t n_source, double scale, double offset,
                          axis_table *table, dm_error *err);
void axis_table_clear(axis_table *table);

/* All three axes, onto the model's grid, and back from it (targets in the model's axis order). */
dm_status resample_to_model(const dm_grid *grid, const grid_map *map, axis_table table[3],
                            dm_error *err);
dm_status resample_from_model(const dm_grid *grid, const grid_map *map, axis_table table[3],
                              dm_error *err);

/* Floats of scratch that resample_box needs for targets of up to `size` voxels. */
size_t resample_scratch(const axis_table table[3], const size_t size[3]);

/* Resamples the box of target voxels from `start`, target->dim long, into `target` (strides as
 * given, data at the box's first voxel). nan_to_zero: source values that are not finite count as 0.
 */
void resample_box(const axis_table table[3], const strided *source, const size_t start[3],
                  const strided *target, bool nan_to_zero, float *scratch);

/* Copies a box of voxels; both sides have target->dim voxels. In blocks, so that no permutation of
 * axes walks through memory one cache line per voxel. */
void strided_copy(const strided *source, const size_t start[3], const strided *target);

#endif
