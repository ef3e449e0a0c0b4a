/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of dm_grid: checks that every way of making a grid shares. */
#ifndef DOSEMAP_VOLUME_GRID_H
#define DOSEMAP_VOLUME_GRID_H

#include "dosemap.h"

/* Derives spacing_mm from the affine. False, with a reason, if the affine is not finite, gives voxels
 * a size below a nanometre or above a kilometre, puts them further away than 1000 km, or takes them
 * to a plane, a line or a point. */
bool grid_derive_spacing(dm_grid *grid, char *reason, size_t reason_size);

/* The bytes of one float32 per voxel; false if a dimension is 0 or the product overflows. */
bool grid_float_bytes(const dm_grid *grid, size_t *bytes);

/* m takes a voxel index (i, j, k, 1) on `to` to the fractional one on `from` at the same place. Both
 * have affines that grid_derive_spacing takes. */
void grid_index_map(const dm_grid *from, const dm_grid *to, double m[3][4]);

#endif
