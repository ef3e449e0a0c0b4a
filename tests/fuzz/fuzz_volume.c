/* SPDX-License-Identifier: Apache-2.0 */
/* A NIfTI file: whatever is read has a sound grid, and survives being written and read again. */
#include <math.h>

#include "fuzz_file.h"

#define MOST_VOXELS 4096 /* of what is written again */

static void check_grid(const dm_grid *grid)
{
    size_t voxels = 1;
    for (int i = 0; i < 3; i++) {
        FUZZ_CHECK(grid->dim[i] >= 1 && grid->dim[i] <= SIZE_MAX / voxels);
        voxels *= grid->dim[i];
        FUZZ_CHECK(grid->spacing_mm[i] > 0 && isfinite(grid->spacing_mm[i]));
        for (int j = 0; j < 4; j++)
            FUZZ_CHECK(isfinite(grid->affine[i][j]));
    }
    FUZZ_CHECK(dm_grid_voxels(grid) == voxels);
}

static void write_and_read(const dm_volume *volume, const char *name)
{
    char path[128], reason[256];
    dm_error err = {0};
    dm_volume *again = NULL;
    fuzz_path(name, path);
    dm_status status = dm_volume_write(volume, path, 1, &err);
    FUZZ_CHECK(status == DM_OK || err.what[0]);
    if (status != DM_OK)
        return;
    status = dm_volume_read(path, &again, &err);
    if (status != DM_OK) {
        fprintf(stderr, "what was written cannot be read: %s: %s\n", err.where, err.what);
        abort();
    }
    if (!dm_grid_equal(&volume->grid, &again->grid, reason, sizeof reason)) {
        fprintf(stderr, "the grid changed: %s\n", reason);
        abort();
    }
    FUZZ_CHECK(
        !memcmp(volume->data, again->data, dm_grid_voxels(&volume->grid) * sizeof *volume->data));
    dm_volume_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[128];
    dm_error err = {0};
    dm_volume *volume = NULL;
    fuzz_write("input.nii", data, size, path);
    dm_status status = dm_volume_read(path, &volume, &err);
    fuzz_check_result(status, volume, &err);
    if (volume) {
        check_grid(&volume->grid);
        (void)dm_volume_all_finite(volume, NULL);
        if (dm_grid_voxels(&volume->grid) <= MOST_VOXELS)
            write_and_read(volume, size % 2 ? "again.nii" : "again.nii.gz");
    }
    dm_volume_free(volume);
    return 0;
}
