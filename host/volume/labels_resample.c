/* SPDX-License-Identifier: Apache-2.0 */
/* Labels on another grid, by nearest neighbour. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "volume/grid.h"
#include "volume/labels.h"

/* Structures that are resampled together: one bit each per voxel, so that overlaps survive and the
 * way from voxel to voxel is gone once, not once per structure. */
#define PLANES 64

/* A centre on the face between two voxels belongs to the upper one. Affines come from float32
 * headers; without this margin their rounding would decide, differently from row to row. */
#define FACE_MARGIN 1e-4

/* Sets bit s of `bits` where structure s, counted from `first`, is. */
static void paint(const dm_labels *labels, size_t first, size_t count, uint64_t *bits)
{
    memset(bits, 0, dm_grid_voxels(&labels->grid) * sizeof *bits);
    for (size_t s = 0; s < count; s++) {
        const label_structure *structure = &labels->structures[first + s];
        for (size_t r = 0; r < structure->n_runs; r++)
            for (uint32_t i = 0; i < structure->runs[r].length; i++)
                bits[structure->runs[r].start + i] |= UINT64_C(1) << s;
    }
}

/* The bits at a fractional index; none outside of the grid. NaN is outside. */
static uint64_t nearest(const uint64_t *bits, const size_t dim[3], const double index[3])
{
    size_t at[3];
    for (int a = 0; a < 3; a++) {
        double c = floor(index[a] + 0.5 + FACE_MARGIN);
        if (!(c >= 0 && c < (double)dim[a]))
            return 0;
        at[a] = (size_t)c;
    }
    return bits[at[0] + dim[0] * (at[1] + dim[1] * at[2])];
}

/* One row of the target: each bit that changes begins or ends a run. */
static dm_status resample_row(const uint64_t *bits, const size_t dim[3], const double origin[3],
                              const double step[3], uint64_t row, size_t length,
                              label_structure *structures, dm_error *err)
{
    uint64_t inside = 0;
    size_t begin[PLANES];
    for (size_t x = 0; x <= length; x++) {
        const double index[3] = {origin[0] + step[0] * (double)x, origin[1] + step[1] * (double)x,
                                 origin[2] + step[2] * (double)x};
        uint64_t here = x < length ? nearest(bits, dim, index) : 0;
        for (uint64_t changed = here ^ inside; changed != 0; changed &= changed - 1) {
            int s = __builtin_ctzll(changed);
            if (here >> s & 1) {
                begin[s] = x;
                continue;
            }
            dm_status status =
                structure_add_run(&structures[s], row + begin[s], (uint32_t)(x - begin[s]), err);
            if (status != DM_OK)
                return status;
        }
        inside = here;
    }
    return DM_OK;
}

static dm_status resample_planes(const uint64_t *bits, const dm_grid *from, const dm_grid *to,
                                 double m[3][4], label_structure *structures, dm_error *err)
{
    const double step[3] = {m[0][0], m[1][0], m[2][0]};
    dm_status status = DM_OK;
    uint64_t row = 0;
    for (size_t z = 0; z < to->dim[2]; z++)
        for (size_t y = 0; y < to->dim[1] && status == DM_OK; y++, row += to->dim[0]) {
            double origin[3];
            for (int a = 0; a < 3; a++)
                origin[a] = m[a][1] * (double)y + m[a][2] * (double)z + m[a][3];
            status = resample_row(bits, from->dim, origin, step, row, to->dim[0], structures, err);
        }
    return status;
}

dm_status dm_labels_resample(const dm_labels *labels, const dm_grid *grid, dm_labels **resampled,
                             dm_error *err)
{
    double m[3][4];
    dm_labels *result = NULL;
    uint64_t *bits = NULL;
    *resampled = NULL;
    dm_status status = labels_new(grid, labels->count, &result, err);
    if (status != DM_OK)
        return status;
    grid_index_map(&labels->grid, grid, m);
    size_t voxels = dm_grid_voxels(&labels->grid);
    bits = array_alloc(voxels, sizeof *bits);
    if (!bits)
        status = error_memory(err, voxels * sizeof *bits, "resampling labels");
    for (size_t first = 0; status == DM_OK && first < labels->count; first += PLANES) {
        size_t count = labels->count - first < PLANES ? labels->count - first : PLANES;
        paint(labels, first, count, bits);
        status = resample_planes(bits, &labels->grid, grid, m, result->structures + first, err);
    }
    for (size_t s = 0; status == DM_OK && s < labels->count; s++) {
        result->structures[s].id = labels->structures[s].id;
        status = structure_name(&result->structures[s], labels->structures[s].name, err);
    }
    free(bits);
    if (status != DM_OK) {
        dm_labels_free(result);
        return status;
    }
    *resampled = result;
    return DM_OK;
}
