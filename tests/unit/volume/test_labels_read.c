/* SPDX-License-Identifier: Apache-2.0 */
/* Labels from label maps and from folders of masks. Their names: test_label_names.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* cmocka needs those before it */
#include <cmocka.h>

#include "dosemap.h"
#include "nifti_bytes.h"

#define VOXELS 12 /* 3 x 2 x 2 */

static char folder[64], masks[128], text[1024];

static int make_folder(void **state)
{
    (void)state;
    make_test_folder(folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    snprintf(text, sizeof text, "rm -r '%s'", folder);
    return system(text);
}

/* The path of a file in the test's folder; valid until four calls later. */
static const char *in_folder(const char *name)
{
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static nifti_spec label_spec(int datatype, int bits)
{
    nifti_spec spec = nifti_spec_default(1);
    const int64_t dim[8] = {3, 3, 2, 2, 1, 1, 1, 1};
    memcpy(spec.dim, dim, sizeof dim);
    spec.datatype = datatype;
    spec.bitpix = bits;
    spec.sform_code = 1;
    for (int i = 0; i < 3; i++)
        spec.srow[i][i] = i + 2;
    return spec;
}

static void put_image(const char *path, const nifti_spec *spec, const double *values)
{
    uint8_t bytes[2048];
    save_bytes(path, bytes, put_file(spec, values, VOXELS, bytes, sizeof bytes));
}

/* A float32 image of 3 x 2 x 2 voxels in the folder. */
static void put_floats(const char *name, const double *values)
{
    nifti_spec spec = label_spec(16, 32);
    put_image(in_folder(name), &spec, values);
}

/* 1 at the voxels whose character is 'x'. */
static void put_mask(const char *name, const char *pattern)
{
    double values[VOXELS];
    for (int i = 0; i < VOXELS; i++)
        values[i] = pattern[i] == 'x';
    put_floats(name, values);
}

static dm_labels *read_good(const char *path)
{
    dm_labels *labels = NULL;
    dm_error err = {0};
    if (dm_labels_read(path, NULL, &labels, &err) != DM_OK)
        fail_msg("%s: %s; %s", err.where, err.what, err.remedy);
    assert_non_null(labels);
    return labels;
}

/* Must fail for this reason, naming the file, with a remedy, and without labels. */
static void read_bad(const char *path, const char *names, dm_status status, const char *where,
                     const char *what)
{
    dm_labels *labels = (dm_labels *)&labels;
    dm_error err = {0};
    assert_int_equal(dm_labels_read(path, names, &labels, &err), status);
    assert_int_equal(err.status, status);
    assert_null(labels);
    if (strcmp(err.where, where) != 0 || !strstr(err.what, what) || !err.remedy[0])
        fail_msg("'%s: %s; %s' is not about '%s' in '%s'", err.where, err.what, err.remedy, what,
                 where);
    assert_int_equal(dm_labels_read(path, names, &labels, NULL), status);
}

/* ---- Label maps ----------------------------------------------------------------------------- */

static const double map_values[VOXELS] = {0, 3, 3, 3, 0, 100, 0, 0, 1, 1, 1, 100};

static void is_the_map(const dm_labels *labels)
{
    static const int32_t ids[] = {1, 3, 100};
    static const size_t voxels[] = {3, 3, 2};
    assert_int_equal(dm_labels_count(labels), 3);
    for (size_t s = 0; s < 3; s++) {
        char name[32];
        snprintf(name, sizeof name, "label_%d", (int)ids[s]);
        assert_int_equal(dm_labels_id(labels, s), ids[s]);
        assert_int_equal(dm_labels_voxels(labels, s), voxels[s]);
        assert_string_equal(dm_labels_name(labels, s), name);
    }
    assert_int_equal(dm_labels_grid(labels)->dim[0], 3);
    assert_true(dm_labels_grid(labels)->spacing_mm[2] == 4);
}

static void test_label_map_of_any_type(void **state)
{
    (void)state;
    static const int types[][2] = {{2, 8},    {4, 16},    {8, 32},  {16, 32},  {64, 64},
                                   {512, 16}, {1024, 64}, {256, 8}, {1280, 64}};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        nifti_spec spec = label_spec(types[t][0], types[t][1]);
        spec.big_endian = t % 2;
        put_image(in_folder("map.nii"), &spec, map_values);
        dm_labels *labels = read_good(in_folder("map.nii"));
        is_the_map(labels);
        dm_labels_free(labels);
    }
    unlink(in_folder("map.nii"));
}

static void test_label_map_in_any_format(void **state)
{
    (void)state;
    static const char *const names[] = {"v.nii", "v.nii.gz", "v.nii.zst"};
    const dm_grid grid = {.dim = {3, 2, 2}, .affine = {{2, 0, 0, 0}, {0, 3, 0, 0}, {0, 0, 4, 0}}};
    for (size_t i = 0; i < 3; i++) {
        dm_volume *volume = NULL;
        assert_int_equal(dm_volume_create(&grid, &volume, NULL), DM_OK);
        for (int v = 0; v < VOXELS; v++)
            volume->data[v] = (float)map_values[v];
        assert_int_equal(dm_volume_write(volume, in_folder(names[i]), 1, NULL), DM_OK);
        dm_volume_free(volume);
        dm_labels *labels = read_good(in_folder(names[i]));
        is_the_map(labels);
        dm_labels_free(labels);
        unlink(in_folder(names[i]));
    }
}

static void test_scaled_integers_are_ids_too(void **state)
{
    (void)state;
    nifti_spec spec = label_spec(2, 8);
    spec.slope = 0.5;
    double doubled[VOXELS];
    for (int v = 0; v < VOXELS; v++)
        doubled[v] = 2 * map_values[v];
    put_image(in_folder("map.nii"), &spec, doubled);
    dm_labels *labels = read_good(in_folder("map.nii"));
    is_the_map(labels);
    dm_labels_free(labels);
    doubled[4] = 5;
    put_image(in_folder("map.nii"), &spec, doubled);
    read_bad(in_folder("map.nii"), NULL, DM_ERROR_VALUE, in_folder("map.nii"),
             "voxel (1, 1, 0) is 2.5");
    unlink(in_folder("map.nii"));
}

static void test_voxels_that_are_no_ids(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *what;
    } cases[] = {
        {0.5, "voxel (2, 0, 1) is 0.5"},
        {-1, "voxel (2, 0, 1) is -1"},
        {-0.25, "is -0.25"},
        {1e-30, "is 1e-30"},
        {99.99999, "is 99.99999"},
        {(double)NAN, "voxel (2, 0, 1) is nan"},
        {(double)INFINITY, "is inf"},
        {-(double)INFINITY, "is -inf"},
        {16777216, "is 16777216"},
        {16777217, "is 16777216"}, /* as float32 rounds it: the reason for the limit */
        {4294967297.0, "is 4.29496"},
    };
    double values[VOXELS];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        memcpy(values, map_values, sizeof values);
        values[8] = cases[c].value;
        values[11] = -7; /* the first one is named */
        put_floats("map.nii", values);
        read_bad(in_folder("map.nii"), NULL, DM_ERROR_VALUE, in_folder("map.nii"), cases[c].what);
    }
    nifti_spec spec = label_spec(8, 32);
    memcpy(values, map_values, sizeof values);
    values[0] = 16777217;
    put_image(in_folder("map.nii"), &spec, values);
    read_bad(in_folder("map.nii"), NULL, DM_ERROR_VALUE, in_folder("map.nii"), "voxel (0, 0, 0)");
    unlink(in_folder("map.nii"));
}

static void test_largest_id_and_negative_zero(void **state)
{
    (void)state;
    double values[VOXELS] = {-0.0, 16777215, 16777214};
    put_floats("map.nii", values);
    dm_labels *labels = read_good(in_folder("map.nii"));
    assert_int_equal(dm_labels_count(labels), 2);
    assert_int_equal(dm_labels_id(labels, 0), 16777214);
    assert_int_equal(dm_labels_id(labels, 1), 16777215);
    assert_int_equal(dm_labels_voxels(labels, 1), 1);
    dm_labels_free(labels);
    unlink(in_folder("map.nii"));
}

static void test_label_maps_that_cannot_be(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/map.nii", folder);
    const double zeros[VOXELS] = {0};
    read_bad(path, NULL, DM_ERROR_IO, path, "No such file");
    put_floats("map.nii", zeros);
    read_bad(path, NULL, DM_ERROR_VALUE, path, "every voxel is 0");
    save_bytes(path, (const uint8_t *)"", 0);
    read_bad(path, NULL, DM_ERROR_FORMAT, path, "empty");
    save_bytes(path, (const uint8_t *)"DICM", 4);
    read_bad(path, NULL, DM_ERROR_FORMAT, path, "not a NIfTI file");
    unlink(path);
}

/* ---- Folders of masks ----------------------------------------------------------------------- */

/* Empties the folder `masks`. */
static void new_masks(void)
{
    snprintf(masks, sizeof masks, "%s/masks", folder);
    snprintf(text, sizeof text, "rm -rf '%s'", masks);
    assert_int_equal(system(text), 0);
    assert_int_equal(mkdir(masks, 0777), 0);
}

static void structure_is(const dm_labels *labels, size_t s, const char *name, size_t voxels)
{
    assert_true(s < dm_labels_count(labels));
    assert_string_equal(dm_labels_name(labels, s), name);
    assert_int_equal(dm_labels_id(labels, s), s + 1);
    assert_int_equal(dm_labels_voxels(labels, s), voxels);
}

static void test_masks_may_overlap(void **state)
{
    (void)state;
    new_masks();
    put_mask("masks/liver.nii", "xxxxxx......");
    put_mask("masks/tumour.nii", "....xx......");
    put_mask("masks/body.nii", "xxxxxxxxxxxx");
    put_mask("masks/absent.nii", "............");
    dm_labels *labels = read_good(masks);
    assert_int_equal(dm_labels_count(labels), 4);
    structure_is(labels, 0, "absent", 0);
    structure_is(labels, 1, "body", 12);
    structure_is(labels, 2, "liver", 6);
    structure_is(labels, 3, "tumour", 2);
    assert_int_equal(dm_labels_grid(labels)->dim[0], 3);
    dm_labels_free(labels);
    snprintf(text, sizeof text, "%s/", masks);
    labels = read_good(text);
    assert_int_equal(dm_labels_count(labels), 4);
    dm_labels_free(labels);
}

static void test_any_number_but_zero_is_inside(void **state)
{
    (void)state;
    new_masks();
    const double values[VOXELS] = {0, -0.0, 1, -1, 255, 0.3, 1e-40, 1e30};
    put_floats("masks/soft.nii", values);
    dm_labels *labels = read_good(masks);
    assert_int_equal(dm_labels_count(labels), 1);
    structure_is(labels, 0, "soft", 6);
    dm_labels_free(labels);
    const double bad[] = {(double)NAN, (double)INFINITY};
    for (int i = 0; i < 2; i++) {
        double damaged[VOXELS];
        memcpy(damaged, values, sizeof damaged);
        damaged[10] = bad[i];
        put_floats("masks/soft.nii", damaged);
        read_bad(masks, NULL, DM_ERROR_VALUE, in_folder("masks/soft.nii"),
                 i == 0 ? "voxel (1, 1, 1) is nan" : "voxel (1, 1, 1) is inf");
    }
}

static void test_files_in_the_order_of_bytes(void **state)
{
    (void)state;
    new_masks();
    static const char *const names[] = {"Zunge", "_9", "a b", "a-b", "a.b", "a", "b", "z\xc3\xa9"};
    char name[64];
    for (size_t i = 8; i-- > 0;) {
        snprintf(name, sizeof name, "masks/%s.nii", names[i]);
        put_mask(name, "x...........");
    }
    /* None of these is a mask. */
    put_mask("masks/.hidden.nii", "xx..........");
    put_mask("masks/.nii", "xx..........");
    put_mask("masks/notes.txt", "xx..........");
    put_mask("masks/x.nii.bak", "xx..........");
    dm_labels *labels = read_good(masks);
    assert_int_equal(dm_labels_count(labels), 8);
    for (size_t i = 0; i < 8; i++)
        structure_is(labels, i, names[i], 1);
    dm_labels_free(labels);
}

static void test_masks_on_other_grids(void **state)
{
    (void)state;
    new_masks();
    const double values[VOXELS] = {1};
    nifti_spec spec = label_spec(16, 32);
    put_image(in_folder("masks/a.nii"), &spec, values);
    spec.srow[0][3] = 0.1; /* below a tenth of a voxel */
    put_image(in_folder("masks/b.nii"), &spec, values);
    dm_labels *labels = read_good(masks);
    assert_int_equal(dm_labels_count(labels), 2);
    dm_labels_free(labels);
    spec.srow[0][3] = 0.3;
    put_image(in_folder("masks/c.nii"), &spec, values);
    read_bad(masks, NULL, DM_ERROR_VALUE, in_folder("masks/c.nii"), in_folder("masks/a.nii"));
    read_bad(masks, NULL, DM_ERROR_VALUE, in_folder("masks/c.nii"), "0.3 mm apart");
    spec.srow[0][3] = 0;
    spec.dim[1] = 2;
    spec.dim[2] = 3;
    put_image(in_folder("masks/c.nii"), &spec, values);
    read_bad(masks, NULL, DM_ERROR_VALUE, in_folder("masks/c.nii"), "3x2x2 and 2x3x2 voxels");
}

static void test_folders_that_cannot_be(void **state)
{
    (void)state;
    new_masks();
    read_bad(masks, NULL, DM_ERROR_VALUE, masks, "no .nii");
    put_mask("masks/liver.nii.txt", "xx..........");
    read_bad(masks, NULL, DM_ERROR_VALUE, masks, "no .nii");
    put_mask("masks/liver.nii", "xx..........");
    read_bad(masks, "totalsegmentator:total", DM_ERROR_VALUE, masks, "totalsegmentator:total");
    put_mask("masks/liver.nii.gz", "xx.........."); /* told by content, so this is readable */
    read_bad(masks, NULL, DM_ERROR_VALUE, in_folder("masks/liver.nii.gz"),
             "two files for the structure 'liver'");
    unlink(in_folder("masks/liver.nii.gz"));
    save_bytes(in_folder("masks/kidney.nii"), (const uint8_t *)"x", 1);
    read_bad(masks, NULL, DM_ERROR_FORMAT, in_folder("masks/kidney.nii"), "not a NIfTI");
    unlink(in_folder("masks/kidney.nii"));
    assert_int_equal(mkdir(in_folder("masks/sub.nii"), 0777), 0);
    read_bad(masks, NULL, DM_ERROR_IO, in_folder("masks/sub.nii"), "it is a folder");
    rmdir(in_folder("masks/sub.nii"));
    assert_int_equal(symlink("nowhere", in_folder("masks/link.nii")), 0);
    read_bad(masks, NULL, DM_ERROR_IO, in_folder("masks/link.nii"), "No such file");
    unlink(in_folder("masks/link.nii"));
    static const char *const names[] = {"masks/a\tb.nii", "masks/a\nb.nii", "masks/gr\xf6\xdf.nii"};
    for (size_t i = 0; i < 3; i++) {
        put_mask(names[i], "xx..........");
        read_bad(masks, NULL, DM_ERROR_VALUE, in_folder(names[i]), "UTF-8");
        unlink(in_folder(names[i]));
    }
    dm_labels *labels = read_good(masks);
    structure_is(labels, 0, "liver", 2);
    dm_labels_free(labels);
}

static void test_many_masks(void **state)
{
    (void)state;
    new_masks();
    double values[VOXELS] = {0};
    char name[64];
    for (int i = 0; i < 300; i++) {
        for (int v = 0; v < VOXELS; v++)
            values[v] = i >> (v % 9) & 1;
        snprintf(name, sizeof name, "masks/structure_%03d.nii", i);
        put_floats(name, values);
    }
    dm_labels *labels = read_good(masks), *moved = NULL;
    assert_int_equal(dm_labels_resample(labels, dm_labels_grid(labels), &moved, NULL), DM_OK);
    for (int i = 0; i < 300; i++) {
        size_t voxels = (size_t)__builtin_popcount((unsigned)i & 0777) +
                        (size_t)__builtin_popcount((unsigned)i & 7);
        snprintf(name, sizeof name, "structure_%03d", i);
        structure_is(labels, (size_t)i, name, voxels);
        structure_is(moved, (size_t)i, name, voxels);
    }
    dm_labels_free(moved);
    dm_labels_free(labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_label_map_of_any_type),
        cmocka_unit_test(test_label_map_in_any_format),
        cmocka_unit_test(test_scaled_integers_are_ids_too),
        cmocka_unit_test(test_voxels_that_are_no_ids),
        cmocka_unit_test(test_largest_id_and_negative_zero),
        cmocka_unit_test(test_label_maps_that_cannot_be),
        cmocka_unit_test(test_masks_may_overlap),
        cmocka_unit_test(test_any_number_but_zero_is_inside),
        cmocka_unit_test(test_files_in_the_order_of_bytes),
        cmocka_unit_test(test_masks_on_other_grids),
        cmocka_unit_test(test_folders_that_cannot_be),
        cmocka_unit_test(test_many_masks),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
