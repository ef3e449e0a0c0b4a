/* SPDX-License-Identifier: Apache-2.0 */
/* Grids: size, spacing, and whether two are the same. */
#include "volume/grid.h"

#include <math.h>
#include <stdio.h>

#include "base/error.h"

/* Below this |determinant| of the unit axes they are taken as lying in one plane: the angle between
 * an axis and the plane of the others is then under 6e-5 degrees. */
#define DEGENERATE 1e-6
/* From a nanometre to a kilometre: no image has such voxels, but a damaged header can, and their
 * volumes would not be numbers any more. */
#define LEAST_VOXEL_MM 1e-6
#define LARGEST_VOXEL_MM 1e6
/* A thousand kilometres. Further away, a voxel is less than the error of a coordinate, and labels
 * that are shifted would count as lying on the same grid. */
#define FURTHEST_MM 1e9

size_t dm_grid_voxels(const dm_grid *grid)
{
    size_t plane, voxels;
    if (!size_multiply(grid->dim[0], grid->dim[1], &plane) ||
        !size_multiply(plane, grid->dim[2], &voxels))
        return 0;
    return voxels;
}

bool grid_float_bytes(const dm_grid *grid, size_t *bytes)
{
    return size_multiply(dm_grid_voxels(grid), sizeof(float), bytes) && *bytes > 0;
}

static double determinant(double m[3][3])
{
    return m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
           m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
           m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}

bool grid_derive_spacing(dm_grid *grid, char *reason, size_t reason_size)
{
    double axes[3][3];
    for (int column = 0; column < 4; column++)
        for (int row = 0; row < 3; row++)
            if (!isfinite(grid->affine[row][column])) {
                snprintf(reason, reason_size, "the affine holds %g in row %d, column %d",
                         grid->affine[row][column], row, column);
                return false;
            }
    for (int axis = 0; axis < 3; axis++) {
        double norm =
            hypot(hypot(grid->affine[0][axis], grid->affine[1][axis]), grid->affine[2][axis]);
        if (!(norm >= LEAST_VOXEL_MM && norm <= LARGEST_VOXEL_MM)) {
            snprintf(reason, reason_size,
                     "the affine gives voxels a size of %g mm along axis %d, not %g to %g mm", norm,
                     axis, LEAST_VOXEL_MM, LARGEST_VOXEL_MM);
            return false;
        }
        if (!(fabs(grid->affine[axis][3]) <= FURTHEST_MM)) {
            snprintf(reason, reason_size,
                     "the affine puts the first voxel %g mm away from the origin (row %d)",
                     grid->affine[axis][3], axis);
            return false;
        }
        grid->spacing_mm[axis] = norm;
        for (int row = 0; row < 3; row++)
            axes[row][axis] = grid->affine[row][axis] / norm;
    }
    double volume = determinant(axes);
    if (!(fabs(volume) > DEGENERATE)) {
        snprintf(reason, reason_size,
                 "the affine is degenerate: its axes lie in one plane (determinant %g)", volume);
        return false;
    }
    return true;
}

/* Inverse of the affine's 3x3 part, which is not degenerate. */
static void invert(const double a[3][4], double inverse[3][3])
{
    double cofactor[3][3], determinant = 0;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            int r = (i + 1) % 3, s = (i + 2) % 3, c = (j + 1) % 3, d = (j + 2) % 3;
            cofactor[i][j] = a[r][c] * a[s][d] - a[r][d] * a[s][c];
        }
    for (int j = 0; j < 3; j++)
        determinant += a[0][j] * cofactor[0][j];
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            inverse[i][j] = cofactor[j][i] / determinant;
}

void grid_index_map(const dm_grid *from, const dm_grid *to, double m[3][4])
{
    double inverse[3][3];
    invert(from->affine, inverse);
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 4; j++) {
            m[i][j] = 0;
            for (int k = 0; k < 3; k++)
                m[i][j] += inverse[i][k] * (to->affine[k][j] - (j == 3 ? from->affine[k][3] : 0.0));
        }
}

static void to_mm(const dm_grid *grid, const double index[3], double mm[3])
{
    for (int row = 0; row < 3; row++)
        mm[row] = grid->affine[row][0] * index[0] + grid->affine[row][1] * index[1] +
                  grid->affine[row][2] * index[2] + grid->affine[row][3];
}

/* Distance between the two grids' corner number c; corners of the volume, not centres of its corner
 * voxels, so that the voxel size counts on an axis of one voxel too. */
static double corner_distance(const dm_grid *a, const dm_grid *b, int c)
{
    double index[3], in_a[3], in_b[3];
    for (int axis = 0; axis < 3; axis++)
        index[axis] = c >> axis & 1 ? (double)a->dim[axis] - 0.5 : -0.5;
    to_mm(a, index, in_a);
    to_mm(b, index, in_b);
    return hypot(hypot(in_a[0] - in_b[0], in_a[1] - in_b[1]), in_a[2] - in_b[2]);
}

bool dm_grid_equal(const dm_grid *a, const dm_grid *b, char *reason, size_t reason_size)
{
    if (!reason)
        reason_size = 0;
    for (int axis = 0; axis < 3; axis++)
        if (a->dim[axis] != b->dim[axis]) {
            snprintf(reason, reason_size, "sizes differ: %zux%zux%zu and %zux%zux%zu voxels",
                     a->dim[0], a->dim[1], a->dim[2], b->dim[0], b->dim[1], b->dim[2]);
            return false;
        }
    double edge = INFINITY;
    for (int axis = 0; axis < 3; axis++)
        edge = fmin(edge, fmin(a->spacing_mm[axis], b->spacing_mm[axis]));
    double limit = edge / 10, worst = 0;
    for (int c = 0; c < 8; c++) {
        double distance = corner_distance(a, b, c);
        if (!(distance <= worst))
            worst = distance;
    }
    if (!(worst <= limit)) {
        snprintf(reason, reason_size,
                 "corners lie up to %.4g mm apart; a tenth of the voxel edge, %.4g mm, is allowed",
                 worst, limit);
        return false;
    }
    return true;
}
