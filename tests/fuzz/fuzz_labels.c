/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A label map with a table of names, as far as a DVH. An input is the table, a zero byte, and the
 * NIfTI file; the table is TSV if it begins with a letter, else JSON. An empty one: no names.
 */
#include <math.h>

#include "fuzz_file.h"

#define MOST_VOXELS 4096

static void check_labels(const dm_labels *labels)
{
    size_t n = dm_labels_count(labels), voxels = dm_grid_voxels(dm_labels_grid(labels)), inside = 0;
    FUZZ_CHECK(n >= 1);
    for (size_t i = 0; i < n; i++) {
        FUZZ_CHECK(dm_labels_name(labels, i) && dm_labels_name(labels, i)[0]);
        FUZZ_CHECK(dm_labels_id(labels, i) > 0);
        inside += dm_labels_voxels(labels, i);
    }
    FUZZ_CHECK(inside >= 1 && inside <= voxels);
}

/* Voxels of one structure are counted once, whatever the dose. */
static void check_dvh(const dm_labels *labels, const uint8_t *data, size_t size)
{
    dm_volume *dose = NULL;
    dm_dvh *dvh = NULL;
    char *json = NULL;
    dm_error err = {0};
    dm_dvh_options options = {.threads = 1};
    FUZZ_CHECK(dm_volume_create(dm_labels_grid(labels), &dose, &err) == DM_OK);
    for (size_t i = 0; i < dm_grid_voxels(&dose->grid); i++)
        dose->data[i] = (float)data[i % size] / 8;
    dm_status status = dm_dvh_compute(dose, labels, &options, &dvh, &err);
    fuzz_check_result(status, dvh, &err);
    FUZZ_CHECK(status == DM_OK);
    FUZZ_CHECK(dm_dvh_count(dvh) == dm_labels_count(labels));
    for (size_t i = 0; i < dm_dvh_count(dvh); i++) {
        const dm_structure_dose *s = dm_dvh_structure(dvh, i);
        uint64_t counted = 0;
        for (size_t b = 0; b < s->bins; b++)
            counted += s->histogram[b];
        FUZZ_CHECK(counted == s->voxels && s->voxels == dm_labels_voxels(labels, i));
        FUZZ_CHECK(!s->voxels || (s->minimum <= s->d98 && s->d98 <= s->d50 && s->d50 <= s->d2 &&
                                  s->d2 <= s->maximum));
    }
    FUZZ_CHECK(dm_dvh_json(dvh, &json, &err) == DM_OK);
    dm_string_free(json);
    dm_dvh_free(dvh);
    dm_volume_free(dose);
}

static void check_resampled(const dm_labels *labels)
{
    dm_grid grid = *dm_labels_grid(labels);
    dm_labels *there = NULL;
    dm_error err = {0};
    for (int i = 0; i < 3; i++) {
        grid.dim[i] = 1 + grid.dim[i] / 2;
        grid.affine[i][3] += 0.3 * grid.spacing_mm[i];
        for (int j = 0; j < 3; j++)
            grid.affine[i][j] *= 1.7;
    }
    dm_status status = dm_labels_resample(labels, &grid, &there, &err);
    fuzz_check_result(status, there, &err);
    FUZZ_CHECK(!there || dm_labels_count(there) == dm_labels_count(labels));
    dm_labels_free(there);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char image[128], names[128];
    dm_error err = {0};
    dm_labels *labels = NULL;
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    if (!end)
        return 0;
    size_t n = (size_t)(end - data);
    bool tsv = n && ((data[0] | 0x20) >= 'a' && (data[0] | 0x20) <= 'z');
    fuzz_write("labels.nii", end + 1, size - n - 1, image);
    fuzz_write(tsv ? "names.tsv" : "names.json", data, n, names);
    dm_status status = dm_labels_read(image, n ? names : NULL, &labels, &err);
    fuzz_check_result(status, labels, &err);
    if (labels) {
        check_labels(labels);
        if (dm_grid_voxels(dm_labels_grid(labels)) <= MOST_VOXELS) {
            check_dvh(labels, data, size);
            check_resampled(labels);
        }
    }
    dm_labels_free(labels);
    return 0;
}
