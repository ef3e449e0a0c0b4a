/* SPDX-License-Identifier: Apache-2.0 */
/* A CT onto the PET's grid: is it in HU, how do the grids lie to each other, and the resampling. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/resample.h"
#include "volume/grid.h"

/* In every CT of a patient there is air (-1000), in the lungs or around the body, and tissue. */
#define LUNG_HU (-200)
/* Metal reaches 31 000 in an extended scale; padding is -32768 at the lowest. */
#define BEYOND_HU 1e5
/* What is below looks like attenuation in 1/cm, or like values scaled to [-1, 1]. */
#define SMALL_VALUES 10
/* Affines come from float32 headers: indices are rounded to a millionth, so that grids whose voxels
 * coincide are copied. Over 1000 voxels it adds up to 5e-4 of one. */
#define INDEX_STEPS 1e6
/* Of a CT voxel: by so much a PET voxel has to reach into the CT to take its values. */
#define BORDER 1e-3

/* ---- Values --------------------------------------------------------------------------------- */

typedef struct value_range {
    float lowest, highest;
    size_t not_finite, first; /* how many, and where the first is */
} value_range;

static value_range find_range(const dm_volume *ct)
{
    value_range r = {.lowest = INFINITY, .highest = -INFINITY};
    size_t n = dm_grid_voxels(&ct->grid);
    for (size_t i = 0; i < n; i++) {
        float v = ct->data[i];
        if (!isfinite(v)) {
            r.first = r.not_finite++ ? r.first : i;
            continue;
        }
        r.lowest = v < r.lowest ? v : r.lowest;
        r.highest = v > r.highest ? v : r.highest;
    }
    return r;
}

static dm_status check_finite(const dm_volume *ct, const value_range *r, bool nan_to_air,
                              dm_error *err)
{
    const size_t *dim = ct->grid.dim;
    if (r->not_finite == dm_grid_voxels(&ct->grid))
        return error_set(err, DM_ERROR_VALUE, NULL, "give a CT in HU",
                         "no voxel of the CT is a number");
    if (r->not_finite == 0 || nan_to_air)
        return DM_OK;
    return error_set(err, DM_ERROR_VALUE, NULL,
                     "repair the CT, or take such voxels as air (-1000 HU) with --nan-to-zero",
                     "voxel (%zu, %zu, %zu) of the CT is %g", r->first % dim[0],
                     r->first / dim[0] % dim[1], r->first / dim[0] / dim[1],
                     (double)ct->data[r->first]);
}

/* What people meet: values with an offset of 1000 or 1024 that is in no header, attenuation, values
 * prepared for another network, another image. */
static dm_status check_hu(const value_range *r, dm_error *err)
{
    double low = (double)r->lowest, high = (double)r->highest;
    const char *remedy;
    if (low <= LUNG_HU && high > LUNG_HU && low >= -BEYOND_HU && high <= BEYOND_HU)
        return DM_OK;
    if (low >= -SMALL_VALUES && high <= SMALL_VALUES)
        remedy = "give the CT in HU: such values are attenuation in 1/cm, or scaled for a network; "
                 "to take them as HU nevertheless: --ct-is-hu";
    else if (low >= -SMALL_VALUES && high >= 500)
        remedy = "if they are stored with an offset, subtract it (1024 or 1000); if this is not a "
                 "CT, give the CT; to take them as HU nevertheless: --ct-is-hu";
    else
        remedy = "give a CT in HU; to take the values as HU nevertheless: --ct-is-hu";
    return error_set(err, DM_ERROR_VALUE, NULL, remedy,
                     "the CT's values, %g to %g, are not in HU, where air is -1000, water 0 and "
                     "bone some 1000",
                     low, high);
}

/* ---- Grids ---------------------------------------------------------------------------------- */

/* PET axis p runs along CT axis axis[p]: CT index = scale[p] * PET index + offset[p]. */
typedef struct ct_map {
    int axis[3];
    double scale[3], offset[3];
} ct_map;

static double to_step(double index)
{
    return round(index * INDEX_STEPS) / INDEX_STEPS;
}

/* Which CT axis each PET axis runs along, by the cosines between them; false if two take one. */
static bool match_axes(const dm_grid *ct, const dm_grid *pet, int axis[3])
{
    unsigned taken = 0;
    for (int p = 0; p < 3; p++) {
        double best = -1;
        for (int c = 0; c < 3; c++) {
            double cosine = 0;
            for (int row = 0; row < 3; row++)
                cosine += ct->affine[row][c] / ct->spacing_mm[c] * pet->affine[row][p] /
                          pet->spacing_mm[p];
            if (fabs(cosine) > best) {
                best = fabs(cosine);
                axis[p] = c;
            }
        }
        taken |= 1u << axis[p];
    }
    return taken == 7;
}

/* How far the axes on their own put a voxel of the PET from its place on the CT, in mm, at most. */
static double misplaced_mm(const dm_grid *ct, const dm_grid *pet, double m[3][4], const int axis[3])
{
    double squares = 0;
    for (int p = 0; p < 3; p++) {
        double off = 0;
        for (int q = 0; q < 3; q++)
            if (q != p)
                off += fabs(m[axis[p]][q]) * ((double)pet->dim[q] - 1) / 2;
        off *= ct->spacing_mm[axis[p]];
        squares += off * off;
    }
    return sqrt(squares);
}

/* Exact in the PET's middle. */
static dm_status map_make(const dm_grid *ct, const dm_grid *pet, ct_map *map, dm_error *err)
{
    double m[3][4];
    *map = (ct_map){{0, 1, 2}, {1, 1, 1}, {0, 0, 0}};
    if (dm_grid_equal(ct, pet, NULL, 0))
        return DM_OK;
    grid_index_map(ct, pet, m);
    double limit = fmin(fmin(pet->spacing_mm[0], pet->spacing_mm[1]), pet->spacing_mm[2]) / 10;
    bool matched = match_axes(ct, pet, map->axis);
    double worst = misplaced_mm(ct, pet, m, map->axis);
    if (!matched || !(worst <= limit))
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "resample the CT first, for example with "
                         "nibabel.processing.resample_from_to(ct, pet, order=1, cval=-1000)",
                         "the CT's axes are turned or sheared against the PET's: taken along the "
                         "PET's axes, voxels would lie up to %.3g mm from their place; a tenth of "
                         "the PET's voxel edge, %.3g mm, is allowed",
                         worst, limit);
    for (int p = 0; p < 3; p++) {
        const double *row = m[map->axis[p]];
        double offset = row[3];
        for (int q = 0; q < 3; q++)
            if (q != p)
                offset += row[q] * ((double)pet->dim[q] - 1) / 2;
        map->scale[p] = to_step(row[p]);
        map->offset[p] = to_step(offset);
    }
    return DM_OK;
}

/* PET indices [*begin, *end) along its axis p whose voxels reach into the CT's field of view: at its
 * rim, and at that of images that were cropped, half a voxel is better than air. */
static void covered_range(const ct_map *map, const dm_grid *ct, const dm_grid *pet, int p,
                          size_t *begin, size_t *end)
{
    double half = fabs(map->scale[p]) / 2 - BORDER;
    double last = (double)ct->dim[map->axis[p]] - 0.5;
    *begin = *end = 0;
    for (size_t i = 0; i < pet->dim[p]; i++) {
        double index = map->scale[p] * (double)i + map->offset[p];
        if (!(index >= -0.5 - half && index <= last + half))
            continue;
        if (*end == 0)
            *begin = i;
        *end = i + 1;
    }
}

/* ---- Resampling ----------------------------------------------------------------------------- */

/* In the PET's order of axes; flips are the tables'. */
static strided ct_along_pet(const dm_volume *ct, const float *data, const ct_map *map)
{
    const size_t *dim = ct->grid.dim;
    const ptrdiff_t stride[3] = {1, (ptrdiff_t)dim[0], (ptrdiff_t)(dim[0] * dim[1])};
    strided view = {.data = (float *)data}; /* only read */
    for (int p = 0; p < 3; p++) {
        view.stride[p] = stride[map->axis[p]];
        view.dim[p] = dim[map->axis[p]];
    }
    return view;
}

static dm_status resample(const dm_volume *ct, const float *data, const ct_map *map,
                          dm_volume *on_pet, dm_error *err)
{
    static const size_t first[3] = {0, 0, 0};
    const size_t *dim = on_pet->grid.dim;
    axis_table table[3] = {{0}, {0}, {0}};
    float *scratch = NULL;
    dm_status status = DM_OK;
    for (int p = 0; p < 3 && status == DM_OK; p++)
        status = axis_table_make(dim[p], ct->grid.dim[map->axis[p]], map->scale[p], map->offset[p],
                                 &table[p], err);
    if (status == DM_OK) {
        size_t floats = resample_scratch(table, dim);
        scratch = array_alloc(floats, sizeof *scratch);
        if (!scratch)
            status = error_memory(err, floats * sizeof *scratch, "resampling the CT");
    }
    if (status == DM_OK) {
        const strided source = ct_along_pet(ct, data, map),
                      target = strided_dense(dim, on_pet->data);
        resample_box(table, &source, first, &target, false, scratch);
    }
    free(scratch);
    for (int p = 0; p < 3; p++)
        axis_table_clear(&table[p]);
    return status;
}

/* Air outside of the field of view, and what is inside as shares of the PET. */
static dm_status fill_outside(const ct_map *map, const dm_grid *ct, const dm_volume *pet,
                              dm_volume *on_pet, dm_ct_info *info, dm_error *err)
{
    const size_t *dim = pet->grid.dim;
    size_t begin[3], end[3], voxel = 0;
    double covered = 1, sum = 0, inside_sum = 0;
    for (int p = 0; p < 3; p++) {
        covered_range(map, ct, &pet->grid, p, &begin[p], &end[p]);
        covered *= (double)(end[p] - begin[p]) / (double)dim[p];
    }
    if (!(covered > 0))
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "give this patient's CT of this examination, in the same space",
                         "the CT and the PET have no place in common");
    for (size_t k = 0; k < dim[2]; k++)
        for (size_t j = 0; j < dim[1]; j++)
            for (size_t i = 0; i < dim[0]; i++, voxel++) {
                bool inside = i >= begin[0] && i < end[0] && j >= begin[1] && j < end[1] &&
                              k >= begin[2] && k < end[2];
                double value = (double)pet->data[voxel];
                double positive = isfinite(value) && value > 0 ? value : 0;
                sum += positive;
                if (inside)
                    inside_sum += positive;
                else
                    on_pet->data[voxel] = DM_AIR_HU;
            }
    info->voxels_covered = covered;
    info->activity_covered = sum > 0 ? inside_sum / sum : 1;
    return DM_OK;
}

/* With air where it is not finite. */
static dm_status copy_repaired(const dm_volume *ct, float **copy, dm_error *err)
{
    size_t n = dm_grid_voxels(&ct->grid);
    *copy = array_alloc(n, sizeof **copy);
    if (!*copy)
        return error_memory(err, n * sizeof **copy, "a CT without NaN");
    for (size_t i = 0; i < n; i++)
        (*copy)[i] = isfinite(ct->data[i]) ? ct->data[i] : DM_AIR_HU;
    return DM_OK;
}

dm_status dm_ct_onto_pet(const dm_volume *ct, const dm_volume *pet, const dm_ct_options *options,
                         dm_volume **on_pet, dm_ct_info *info, dm_error *err)
{
    static const dm_ct_options defaults = {0};
    size_t bytes;
    float *repaired = NULL;
    dm_volume *made = NULL;
    ct_map map;
    if (!options)
        options = &defaults;
    *on_pet = NULL;
    *info = (dm_ct_info){0};
    if (!ct || !ct->data || !grid_float_bytes(&ct->grid, &bytes) || !pet || !pet->data ||
        !grid_float_bytes(&pet->grid, &bytes))
        return error_set(err, DM_ERROR_VALUE, NULL, "give volumes with voxels that fit in memory",
                         "there is no CT, or no PET");
    const value_range range = find_range(ct);
    dm_status status = check_finite(ct, &range, options->nan_to_air, err);
    if (status == DM_OK && !options->is_hu)
        status = check_hu(&range, err);
    if (status == DM_OK)
        status = map_make(&ct->grid, &pet->grid, &map, err);
    if (status == DM_OK && range.not_finite > 0)
        status = copy_repaired(ct, &repaired, err);
    if (status == DM_OK)
        status = dm_volume_create(&pet->grid, &made, err);
    if (status == DM_OK)
        status = resample(ct, repaired ? repaired : ct->data, &map, made, err);
    if (status == DM_OK)
        status = fill_outside(&map, &ct->grid, pet, made, info, err);
    free(repaired);
    if (status != DM_OK) {
        dm_volume_free(made);
        return status;
    }
    memcpy(info->dim, ct->grid.dim, sizeof info->dim);
    memcpy(info->spacing_mm, ct->grid.spacing_mm, sizeof info->spacing_mm);
    info->lowest = (double)range.lowest;
    info->highest = (double)range.highest;
    info->voxels_to_air = range.not_finite;
    info->resampled = !dm_grid_equal(&ct->grid, &pet->grid, NULL, 0);
    *on_pet = made;
    return DM_OK;
}
