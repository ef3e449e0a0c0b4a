/* SPDX-License-Identifier: Apache-2.0 */
/* One body stored in each of the 48 ways that axes can be permuted and flipped. */
#ifndef DOSEMAP_TESTS_GRIDS_H
#define DOSEMAP_TESTS_GRIDS_H

#include <stddef.h>
#include <string.h>

#include "dosemap.h"

#define ORIENTATIONS 48

/* Stored axis s of orientation o runs along RAS axis axes_of(o)[s], backwards where bit s of o % 8
 * is set. Orientation 0 is RAS. */
static inline const int *axes_of(int orientation)
{
    static const int axes[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                   {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    return axes[orientation / 8];
}

/* ras_dim, ras_mm: size and spacing along right, front, head. */
static inline dm_grid oriented_grid(int orientation, const size_t ras_dim[3],
                                    const double ras_mm[3])
{
    dm_grid grid;
    memset(&grid, 0, sizeof grid);
    for (int s = 0; s < 3; s++) {
        int a = axes_of(orientation)[s];
        bool back = orientation % 8 >> s & 1;
        grid.dim[s] = ras_dim[a];
        grid.spacing_mm[s] = ras_mm[a];
        grid.affine[a][s] = back ? -ras_mm[a] : ras_mm[a];
        if (back)
            grid.affine[a][3] = ras_mm[a] * (double)(ras_dim[a] - 1);
    }
    return grid;
}

/* From the RAS volume to the stored one, or back if `to_ras`. */
static inline void copy_oriented(int orientation, const size_t ras_dim[3], const float *from,
                                 float *to, bool to_ras)
{
    dm_grid grid = oriented_grid(orientation, ras_dim, (const double[]){1, 1, 1});
    for (size_t k = 0; k < grid.dim[2]; k++)
        for (size_t j = 0; j < grid.dim[1]; j++)
            for (size_t i = 0; i < grid.dim[0]; i++) {
                const size_t ijk[3] = {i, j, k};
                size_t ras[3];
                for (int s = 0; s < 3; s++)
                    ras[axes_of(orientation)[s]] =
                        orientation % 8 >> s & 1 ? grid.dim[s] - 1 - ijk[s] : ijk[s];
                size_t stored = i + grid.dim[0] * (j + grid.dim[1] * k);
                size_t model = ras[0] + ras_dim[0] * (ras[1] + ras_dim[1] * ras[2]);
                to[to_ras ? model : stored] = from[to_ras ? stored : model];
            }
}

static inline void store_oriented(int orientation, const size_t ras_dim[3], const float *ras,
                                  float *stored)
{
    copy_oriented(orientation, ras_dim, ras, stored, false);
}

#endif
