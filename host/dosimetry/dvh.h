/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of dm_dvh, and how it comes from voxels.
 *
 * Dx of n voxels d[0] >= d[1] >= ... >= d[n-1]: the hottest k voxels receive at least d[k-1], so
 * the volume curve has the points (k, d[k-1]). Between them it is linear, and below k = 1 it is
 * d[0]: p = n * x / 100,  k = floor(p),  Dx = d[k-1] + (p - k) * (d[k] - d[k-1]). D100 is the
 * minimum. This is Hyndman and Fan's type 4 counted from the hot end: in numpy -percentile(-dose,
 * x, method="interpolated_inverted_cdf"). Treatment planning programs interpolate a binned curve
 * instead (SlicerRT) or take the nearest bin (dicompyler-core), so theirs differ by up to one bin
 * width. D2cc is the same with p = 2 cm3 / voxel volume.
 */
#ifndef DOSEMAP_DOSIMETRY_DVH_H
#define DOSEMAP_DOSIMETRY_DVH_H

#include "dosemap.h"
#include "volume/label_runs.h"

struct dm_dvh {
    size_t count;
    dm_structure_dose *structures;
    size_t n_thresholds;
    double *thresholds;
    double *v_percent; /* [count][n_thresholds], which the structures point into */
    bool per_activity;
};

/* Names, ids, sizes and thresholds filled in, every dose unknown. */
dm_status dvh_create(const dm_labels *labels, const dm_dvh_options *options, dm_dvh **dvh,
                     dm_error *err);

/* dose: one value per voxel of the labels' grid. The result does not depend on the number of
 * threads. Errors: VALUE for a voxel of a structure that is not finite, MEMORY. */
dm_status dvh_from_voxels(const float *dose, const dm_labels *labels, const dm_dvh_options *options,
                          dm_dvh **dvh, dm_error *err);

/* Statistics and histogram of one structure with at least one voxel. *bad: the linear index of the
 * first voxel that is not finite, with DM_ERROR_VALUE. */
dm_status dvh_structure_fill(const float *dose, const label_structure *structure,
                             const double *thresholds, size_t n_thresholds, dm_structure_dose *out,
                             double *v_percent, uint64_t *bad);

/* Says which voxel of which structure is not finite. */
dm_status dvh_not_finite(const dm_labels *labels, size_t structure, uint64_t voxel, float dose,
                         dm_error *err);

#endif
