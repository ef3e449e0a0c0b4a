/* SPDX-License-Identifier: Apache-2.0 */
/* Labels from a multi-label file or from a folder with a mask per structure. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "volume/labels.h"

/* Volumes are read as float32, which holds every integer up to here; those above round onto it. */
#define MAX_ID 16777215.0f

static dm_status bad_voxel(const dm_volume *volume, size_t i, const char *path, const char *remedy,
                           dm_error *err)
{
    size_t row = i / volume->grid.dim[0];
    return error_set(err, DM_ERROR_VALUE, path, remedy, "voxel (%zu, %zu, %zu) is %.9g",
                     i % volume->grid.dim[0], row % volume->grid.dim[1], row / volume->grid.dim[1],
                     (double)volume->data[i]);
}

static dm_status to_ids(const dm_volume *volume, const char *path, int32_t *ids, dm_error *err)
{
    size_t n = dm_grid_voxels(&volume->grid);
    for (size_t i = 0; i < n; i++) {
        float value = volume->data[i];
        if (!(value >= 0 && value <= MAX_ID) || value != floorf(value))
            return bad_voxel(volume, i, path, "a label map holds whole numbers from 0 to 16777215",
                             err);
        ids[i] = (int32_t)value;
    }
    return DM_OK;
}

/* Length of a file name without .nii, .nii.gz or .nii.zst; 0 if it has none of them. */
static size_t stem_length(const char *name)
{
    static const char *const suffixes[] = {".nii", ".nii.gz", ".nii.zst"};
    size_t n = strlen(name);
    for (size_t i = 0; i < 3; i++) {
        size_t s = strlen(suffixes[i]);
        if (n > s && strcmp(name + n - s, suffixes[i]) == 0)
            return n - s;
    }
    return 0;
}

/* The lookup table of BIDS, NAME.tsv beside the label file, if there is one; true and its path. One
 * that is there and cannot be read is an error of its reader, not as good as none. */
static bool names_beside(const char *path, char *names_path, size_t size)
{
    size_t stem = stem_length(path);
    int n = snprintf(names_path, size, "%.*s.tsv", (int)stem, path);
    if (stem == 0 || n <= 0 || (size_t)n >= size)
        return false;
    return access(names_path, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR);
}

static dm_status read_multi_label(const char *path, const label_names *names, dm_labels **labels,
                                  dm_error *err)
{
    dm_volume *volume = NULL;
    int32_t *ids = NULL;
    dm_status status = dm_volume_read(path, &volume, err);
    if (status != DM_OK)
        return status;
    size_t n = dm_grid_voxels(&volume->grid);
    ids = array_alloc(n, sizeof *ids);
    status = ids ? to_ids(volume, path, ids, err) : error_memory(err, n * sizeof *ids, "labels");
    if (status == DM_OK)
        status = labels_from_ids(&volume->grid, ids, names, labels, err);
    if (status == DM_OK && (*labels)->count == 0) {
        dm_labels_free(*labels);
        *labels = NULL;
        status = error_set(err, DM_ERROR_VALUE, path,
                           "give a label map with at least one structure", "every voxel is 0");
    }
    if (status != DM_OK)
        error_at(err, path);
    free(ids);
    dm_volume_free(volume);
    return status;
}

static int is_mask_name(const struct dirent *entry)
{
    return entry->d_name[0] != '.' && stem_length(entry->d_name) > 0;
}

/* One mask of a folder into structure `s`; the first one decides the grid. */
static dm_status read_mask(const char *path, const char *first_path, size_t s, size_t count,
                           dm_labels **labels, dm_error *err)
{
    dm_volume *volume = NULL;
    char reason[256];
    dm_status status = dm_volume_read(path, &volume, err);
    if (status != DM_OK)
        return status;
    size_t n = dm_grid_voxels(&volume->grid);
    uint8_t *mask = array_alloc(n, 1);
    if (!mask)
        status = error_memory(err, n, "a mask");
    else if (!*labels)
        status = labels_new(&volume->grid, count, labels, err);
    else if (!dm_grid_equal(&(*labels)->grid, &volume->grid, reason, sizeof reason))
        status = error_set(err, DM_ERROR_VALUE, path, "bring all masks onto one grid",
                           "its grid differs from that of %s: %s", first_path, reason);
    for (size_t i = 0; status == DM_OK && i < n; i++) {
        if (!isfinite(volume->data[i]))
            status =
                bad_voxel(volume, i, path, "a mask holds 0 outside, another number inside", err);
        mask[i] = volume->data[i] != 0;
    }
    if (status == DM_OK)
        status = structure_from_mask(&(*labels)->structures[s], &volume->grid, mask, err);
    free(mask);
    dm_volume_free(volume);
    return status;
}

/* The order of bytes, so that ids depend neither on the locale nor on the file system. */
static int compare_names(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Names structure `s` after its file. */
static dm_status name_after_file(const char *path, const char *file_name, size_t s,
                                 dm_labels *labels, dm_error *err)
{
    char stem[NAME_MAX + 1];
    label_structure *structures = labels->structures;
    snprintf(stem, sizeof stem, "%.*s", (int)stem_length(file_name), file_name);
    if (!label_name_usable(stem))
        return error_set(err, DM_ERROR_VALUE, path, "rename the file",
                         "its name has control characters or is not UTF-8");
    for (size_t i = 0; i < s; i++)
        if (strcmp(structures[i].name, stem) == 0)
            return error_set(err, DM_ERROR_VALUE, path, "keep one of them",
                             "there are two files for the structure '%s'", stem);
    structures[s].id = (int32_t)s + 1;
    return structure_name(&structures[s], stem, err);
}

static dm_status read_folder(const char *path, dm_labels **labels, dm_error *err)
{
    struct dirent **entries = NULL;
    char first[PATH_MAX] = "", file[PATH_MAX];
    dm_status status = DM_OK;
    int n = scandir(path, &entries, is_mask_name, compare_names);
    if (n < 0 && errno == ENOMEM)
        return error_memory(err, 0, "the names in a folder");
    if (n < 0)
        return error_set(err, DM_ERROR_IO, path, "check the folder and its permissions",
                         "cannot read it: %s", strerror(errno));
    if (n == 0)
        status = error_set(err, DM_ERROR_VALUE, path,
                           "put one NIfTI mask per structure into it, or give a label map",
                           "the folder has no .nii, .nii.gz or .nii.zst file");
    for (int i = 0; status == DM_OK && i < n; i++) {
        const char *name = entries[i]->d_name;
        if (snprintf(file, sizeof file, "%s/%s", path, name) >= (int)sizeof file)
            status = error_set(err, DM_ERROR_VALUE, path, "use shorter names",
                               "the path of %s is too long", name);
        if (i == 0)
            snprintf(first, sizeof first, "%s", file);
        if (status == DM_OK)
            status = read_mask(file, first, (size_t)i, (size_t)n, labels, err);
        if (status == DM_OK)
            status = name_after_file(file, name, (size_t)i, *labels, err);
    }
    for (int i = 0; i < n; i++)
        free(entries[i]);
    free(entries);
    return status;
}

dm_status dm_labels_read(const char *path, const char *names_path, dm_labels **labels,
                         dm_error *err)
{
    label_names names = {0};
    struct stat info;
    char beside[PATH_MAX];
    dm_status status = DM_OK;
    *labels = NULL;
    bool is_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    if (is_folder && names_path) {
        status = error_set(err, DM_ERROR_VALUE, path, "leave the names out, or give a label map",
                           "the masks of a folder are named by their files, not by %s", names_path);
    } else if (is_folder) {
        status = read_folder(path, labels, err);
    } else {
        if (!names_path && names_beside(path, beside, sizeof beside))
            names_path = beside;
        if (names_path)
            status = label_names_read(names_path, &names, err);
        if (status == DM_OK)
            status = read_multi_label(path, &names, labels, err);
    }
    label_names_clear(&names);
    if (status != DM_OK) {
        dm_labels_free(*labels);
        *labels = NULL;
    }
    return status;
}
