/* SPDX-License-Identifier: Apache-2.0 */
/* The map from the model's grid to a stored volume, one axis at a time. */
#include "volume/orientation.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "volume/nifti_header.h"

/* Spacings that differ by less are the same: over 1000 voxels it adds up to a tenth of one. */
#define SAME_SPACING 1e-4
/* Cosine of 85 degrees. To a network neighbouring voxels lie at right angles; where they do not, it
 * sees distances that are wrong by this share. */
#define MOST_SHEAR 0.0872

/* 1 towards right, 2 front, 3 head; negative for the opposite; 0 for another letter. */
static int letter_direction(char letter)
{
    static const char positive[] = "RAS", negative[] = "LPI";
    for (int d = 0; d < 3; d++) {
        if (letter == positive[d])
            return d + 1;
        if (letter == negative[d])
            return -(d + 1);
    }
    return 0;
}

static bool is_stored(const char *orientation)
{
    return strcmp(orientation, "stored") == 0;
}

bool orientation_is_valid(const char *letters)
{
    if (is_stored(letters))
        return true;
    if (strlen(letters) != 3)
        return false;
    unsigned seen = 0;
    for (int axis = 0; axis < 3; axis++)
        seen |= 1u << abs(letter_direction(letters[axis]));
    return seen == 0xe;
}

static dm_status stored_directions(const dm_grid *grid, int direction[3], dm_error *err)
{
    affine_directions(grid->affine, direction);
    for (int axis = 0; axis < 3; axis++)
        if (direction[axis] == 0)
            return error_set(err, DM_ERROR_VALUE, NULL,
                             "correct the image's orientation (qform, sform)",
                             "the affine is degenerate: axis %d points nowhere", axis);
    return DM_OK;
}

dm_status orientation_of(const dm_grid *grid, char letters[4], dm_error *err)
{
    static const char names[2][4] = {"LPI", "RAS"};
    int direction[3] = {1, 2, 3};
    memset(letters, 0, 4);
    dm_status status = stored_directions(grid, direction, err);
    for (int axis = 0; axis < 3 && status == DM_OK; axis++)
        letters[axis] = names[direction[axis] > 0][abs(direction[axis]) - 1];
    return status;
}

/* The stored axis along which each model axis runs, and +1 or -1 for the same or the opposite way.
 */
static dm_status match_axes(const dm_grid *grid, const char *orientation, int source[3],
                            double sign[3], dm_error *err)
{
    int direction[3];
    dm_status status = stored_directions(grid, direction, err);
    if (status != DM_OK)
        return status;
    for (int axis = 0; axis < 3; axis++) {
        int wanted = is_stored(orientation) ? direction[axis] : letter_direction(orientation[axis]);
        for (int s = 0; s < 3; s++)
            if (abs(direction[s]) == abs(wanted)) {
                source[axis] = s;
                sign[axis] = direction[s] == wanted ? 1 : -1;
            }
    }
    return DM_OK;
}

/* Registration to another image can shear; no scanner does. */
static dm_status check_right_angles(const dm_grid *grid, dm_error *err)
{
    static const int pairs[3][2] = {{0, 1}, {0, 2}, {1, 2}};
    for (int p = 0; p < 3; p++) {
        const int a = pairs[p][0], b = pairs[p][1];
        double cosine = 0;
        for (int row = 0; row < 3; row++)
            cosine += grid->affine[row][a] / grid->spacing_mm[a] * grid->affine[row][b] /
                      grid->spacing_mm[b];
        if (!(fabs(cosine) <= MOST_SHEAR))
            return error_set(err, DM_ERROR_VALUE, NULL,
                             "resample the image onto a grid with right angles, for example with "
                             "nibabel.processing.resample_to_output",
                             "its axes %c and %c meet at %.4g degrees; the network needs right "
                             "angles within 5 degrees",
                             "xyz"[a], "xyz"[b], acos(cosine) * (180 / 3.14159265358979));
    }
    return DM_OK;
}

/* Centred on the stored axis, and long enough to cover it. */
static dm_status map_axis(size_t stored, double stored_mm, double wanted_mm, double sign,
                          size_t *dim, axis_map *axis, dm_error *err)
{
    double length = fmax(1, ceil((double)stored * stored_mm / wanted_mm - 1e-3));
    if (!(length <= INT32_MAX))
        return error_set(err, DM_ERROR_VALUE, NULL, "use a model made for such images",
                         "%zu voxels of %g mm would become %.3g of %g mm", stored, stored_mm,
                         length, wanted_mm);
    *dim = (size_t)length;
    axis->scale = sign * wanted_mm / stored_mm;
    axis->offset = ((double)stored - 1) / 2 - axis->scale * (length - 1) / 2;
    return DM_OK;
}

dm_status grid_map_make(const dm_grid *grid, const char *orientation, const double *voxel_mm,
                        grid_map *map, dm_error *err)
{
    int source[3] = {0, 1, 2};
    double sign[3] = {1, 1, 1};
    memset(map, 0, sizeof *map);
    if (!orientation_is_valid(orientation))
        return error_set(
            err, DM_ERROR_VALUE, NULL,
            "use one letter each of R or L, A or P, S or I, such as RAS, or \"stored\"",
            "\"%s\" is not an orientation", orientation);
    dm_status status = match_axes(grid, orientation, source, sign, err);
    if (status == DM_OK)
        status = check_right_angles(grid, err);
    map->exact = true;
    for (int axis = 0; axis < 3 && status == DM_OK; axis++) {
        const int s = source[axis];
        const double stored_mm = grid->spacing_mm[s];
        const double asked_mm = voxel_mm ? voxel_mm[axis] : stored_mm;
        if (!(asked_mm > 0) || !isfinite(asked_mm))
            return error_set(err, DM_ERROR_VALUE, NULL, "give positive voxel sizes in mm",
                             "the model grid's voxel size along axis %d is %g mm", axis, asked_mm);
        const bool same = fabs(asked_mm - stored_mm) <= SAME_SPACING * stored_mm;
        map->exact = map->exact && same;
        map->axis[axis].source_axis = s;
        map->spacing_mm[axis] = same ? stored_mm : asked_mm;
        status = map_axis(grid->dim[s], stored_mm, map->spacing_mm[axis], sign[axis],
                          &map->dim[axis], &map->axis[axis], err);
    }
    return status;
}
