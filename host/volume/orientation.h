/* SPDX-License-Identifier: Apache-2.0 */
/* From a stored volume to the model's grid: axes permuted and flipped without loss to the model's
 * orientation, spacing changed where the model asks for one. Every axis maps on its own:
 *     stored index along `source_axis` = scale * model index + offset
 */
#ifndef DOSEMAP_VOLUME_ORIENTATION_H
#define DOSEMAP_VOLUME_ORIENTATION_H

#include "dosemap.h"

typedef struct axis_map {
    int source_axis; /* 0, 1, 2: x, y, z of the stored volume */
    double scale;    /* -1 or 1 when the spacing is kept: the mapping is then exact */
    double offset;
} axis_map;

typedef struct grid_map {
    size_t dim[3];        /* of the model grid, x, y, z */
    double spacing_mm[3]; /* of the model grid */
    axis_map axis[3];     /* for model axes x, y, z */
    bool exact;           /* no resampling: a permutation with flips */
} grid_map;

/* orientation: three letters naming where x, y and z of the model grid point ("RAS": to the
 * patient's right, front, head), or "stored". voxel_mm: the model's spacing, NULL to keep the
 * volume's. The model grid is centred on the volume and covers it: dim = max(1, ceil(extent/spacing
 * - 1e-3)). Oblique affines take the closest axes, as NIfTI-clib decides. Errors: VALUE for a
 * degenerate affine, one whose axes are more than 5 degrees off right angles, or an orientation that
 * is none. */
dm_status grid_map_make(const dm_grid *grid, const char *orientation, const double *voxel_mm,
                        grid_map *map, dm_error *err);

/* "RAS" and the like, of an affine. */
dm_status orientation_of(const dm_grid *grid, char letters[4], dm_error *err);

/* True for three such letters and for "stored". */
bool orientation_is_valid(const char *letters);

#endif
