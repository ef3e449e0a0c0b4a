/* SPDX-License-Identifier: Apache-2.0 */
/* Writing a volume as float32 NIfTI, whole or not at all. */
#include <stdlib.h>
#include <string.h>

#include "base/codec.h"
#include "base/error.h"
#include "base/output_file.h"
#include "volume/grid.h"
#include "volume/nifti_header.h"

static bool has_nifti_suffix(const char *path)
{
    static const char *const suffixes[] = {".nii", ".nii.gz", ".nii.zst"};
    size_t length = strlen(path);
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        size_t n = strlen(suffixes[i]);
        if (length > n && path[length - n - 1] != '/' &&
            strcmp(path + length - n, suffixes[i]) == 0)
            return true;
    }
    return false;
}

dm_status dm_volume_write(const dm_volume *volume, const char *path, unsigned threads,
                          dm_error *err)
{
    uint8_t head[NIFTI_2_HEAD];
    size_t bytes;
    output_file *file = NULL;
    if (!has_nifti_suffix(path))
        return error_set(err, DM_ERROR_VALUE, path, "name it NAME.nii, NAME.nii.gz or NAME.nii.zst",
                         "the name does not say which kind of NIfTI file to write");
    if (!volume->data || !grid_float_bytes(&volume->grid, &bytes))
        return error_set(err, DM_ERROR_VALUE, path, "write a volume that has voxels",
                         "a volume of %zux%zux%zu voxels cannot be written", volume->grid.dim[0],
                         volume->grid.dim[1], volume->grid.dim[2]);
    size_t head_size = nifti_header_encode(volume, head);
    dm_status status = output_open(path, &file, err);
    if (status == DM_OK)
        status = codec_write(file, codec_of_name(path), head, head_size, volume->data, bytes,
                             threads, err);
    if (status == DM_OK) {
        status = output_commit(file, err);
        file = NULL;
    }
    output_abandon(file);
    if (status != DM_OK)
        error_at(err, path);
    return status;
}
