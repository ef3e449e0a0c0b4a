/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes: making and releasing them, and whether their voxels are finite. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "volume/grid.h"
#include "volume/nifti_header.h"

/* A volume on `grid` without voxels; `bytes` is what they will take. */
static dm_status make(const dm_grid *grid, dm_volume **volume, size_t *bytes, dm_error *err)
{
    char reason[200];
    dm_grid checked = *grid;
    *volume = NULL;
    if (!grid_float_bytes(&checked, bytes))
        return error_set(err, DM_ERROR_VALUE, NULL, "give three positive sizes that fit in memory",
                         "a grid of %zux%zux%zu voxels cannot be made", grid->dim[0], grid->dim[1],
                         grid->dim[2]);
    if (!grid_derive_spacing(&checked, reason, sizeof reason))
        return error_set(err, DM_ERROR_VALUE, NULL, "give a finite affine whose axes span space",
                         "%s", reason);
    dm_volume *made = calloc(1, sizeof *made);
    if (!made)
        return error_memory(err, sizeof *made, "a volume");
    made->grid = checked;
    *volume = made;
    return DM_OK;
}

dm_status dm_volume_create(const dm_grid *grid, dm_volume **volume, dm_error *err)
{
    size_t bytes;
    dm_status status = make(grid, volume, &bytes, err);
    if (status != DM_OK)
        return status;
    (*volume)->data = array_zero(bytes / sizeof(float), sizeof(float));
    (*volume)->owns_data = true;
    if (!(*volume)->data) {
        dm_volume_free(*volume);
        *volume = NULL;
        return error_memory(err, bytes, "a volume's voxels");
    }
    return DM_OK;
}

dm_status dm_volume_create_like(const dm_volume *like, dm_volume **volume, dm_error *err)
{
    dm_status status = dm_volume_create(&like->grid, volume, err);
    if (status != DM_OK || !like->header)
        return status;
    (*volume)->header = nifti_header_clone(like->header);
    if (!(*volume)->header) {
        dm_volume_free(*volume);
        *volume = NULL;
        return error_memory(err, 0, "a NIfTI header");
    }
    return DM_OK;
}

static dm_status check_voxels_given(const float *data, dm_error *err)
{
    if (data)
        return DM_OK;
    return error_set(err, DM_ERROR_VALUE, NULL, "give the voxels to look at",
                     "a view of voxels was asked for without voxels (NULL)");
}

dm_status dm_volume_view(const dm_grid *grid, float *data, dm_volume **volume, dm_error *err)
{
    size_t bytes;
    *volume = NULL;
    dm_status status = check_voxels_given(data, err);
    if (status == DM_OK)
        status = make(grid, volume, &bytes, err);
    if (status == DM_OK)
        (*volume)->data = data;
    return status;
}

dm_status dm_volume_view_header(const void *header, size_t size, float *data, dm_volume **volume,
                                dm_error *err)
{
    *volume = NULL;
    dm_status status = check_voxels_given(data, err);
    if (status != DM_OK)
        return status;
    dm_volume *made = calloc(1, sizeof *made);
    if (!made)
        return error_memory(err, sizeof *made, "a volume");
    status = nifti_header_place(header, size, &made->grid, &made->header, err);
    if (status != DM_OK) {
        dm_volume_free(made);
        return status;
    }
    made->data = data;
    *volume = made;
    return DM_OK;
}

void dm_volume_free(dm_volume *volume)
{
    if (!volume)
        return;
    if (volume->owns_data)
        free(volume->data);
    free(volume->header);
    free(volume);
}

/* Integer work on the exponent bits, so that compilers vectorise it. */
static bool block_finite(const float *data, size_t n)
{
    const uint32_t exponent = 0x7f800000u;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, data + i, sizeof bits);
        bad |= (bits & exponent) == exponent;
    }
    return bad == 0;
}

bool dm_volume_all_finite(const dm_volume *volume, size_t ijk[3])
{
    const size_t block = 4096;
    size_t voxels = dm_grid_voxels(&volume->grid);
    for (size_t start = 0; start < voxels; start += block) {
        size_t n = voxels - start < block ? voxels - start : block;
        if (block_finite(volume->data + start, n))
            continue;
        size_t v = start;
        while (block_finite(volume->data + v, 1))
            v++;
        if (ijk) {
            ijk[0] = v % volume->grid.dim[0];
            ijk[1] = v / volume->grid.dim[0] % volume->grid.dim[1];
            ijk[2] = v / volume->grid.dim[0] / volume->grid.dim[1];
        }
        return false;
    }
    return true;
}
