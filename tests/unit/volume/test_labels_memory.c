/* SPDX-License-Identifier: Apache-2.0 */
/* Labels made from arrays in memory, with names: from a table, given with masks, given later. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* cmocka needs those before it */
#include <cmocka.h>

#include "nifti_bytes.h"
#include "volume/labels.h"

enum { VOXELS = 3 * 2 * 2 };
static const dm_grid grid = {.dim = {3, 2, 2},
                             .affine = {{2, 0, 0, -10}, {0, 3, 0, 5}, {0, 0, 4, 7}}};
static const int32_t ids[VOXELS] = {7, 7, 7, 7, 7, 0, 0, 0, 2, 2, 300, 2};

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    make_test_folder(folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static void says(const dm_error *err, const char *what)
{
    assert_int_equal(err->status, DM_ERROR_VALUE);
    if (!strstr(err->what, what))
        fail_msg("'%s' does not say '%s'", err->what, what);
    assert_true(err->remedy[0]);
}

static dm_labels *from_ids(const char *names_path)
{
    dm_labels *labels = NULL;
    dm_error err = {0};
    if (dm_labels_create(&grid, ids, names_path, &labels, &err) != DM_OK)
        fail_msg("%s; %s", err.what, err.remedy);
    return labels;
}

/* ---- Ids ------------------------------------------------------------------------------------ */

/* Ids 2 and 300 are in the table, 7 is not; 9 is in no voxel. */
static void test_names_from_a_table(void **state)
{
    (void)state;
    static const char *const tables[][2] = {
        {"names.json", "{\"2\": \"kidney\", \"300\": \"parotid gland\", \"9\": \"spleen\"}"},
        {"names.tsv", "index\tname\n300\tparotid gland\n9\tspleen\n2\tkidney\n"}};
    for (size_t t = 0; t < 2; t++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, tables[t][0]);
        save_bytes(path, (const uint8_t *)tables[t][1], strlen(tables[t][1]));
        dm_labels *labels = from_ids(path);
        unlink(path);
        assert_int_equal(dm_labels_count(labels), 3);
        assert_string_equal(dm_labels_name(labels, 0), "kidney");
        assert_string_equal(dm_labels_name(labels, 1), "label_7");
        assert_string_equal(dm_labels_name(labels, 2), "parotid gland");
        assert_int_equal(dm_labels_id(labels, 2), 300);
        assert_int_equal(dm_labels_voxels(labels, 0), 3);
        dm_labels_free(labels);
    }
    dm_labels *labels = from_ids("totalsegmentator:total");
    assert_string_equal(dm_labels_name(labels, 0), "kidney_right");
    assert_string_equal(dm_labels_name(labels, 1), "pancreas");
    assert_string_equal(dm_labels_name(labels, 2), "label_300");
    dm_labels_free(labels);
}

static void test_tables_that_cannot_be(void **state)
{
    (void)state;
    char path[128];
    dm_labels *labels = (dm_labels *)path;
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/missing.json", folder);
    assert_int_equal(dm_labels_create(&grid, ids, path, &labels, &err), DM_ERROR_IO);
    assert_null(labels);
    assert_string_equal(err.where, path);
    save_bytes(path, (const uint8_t *)"[2]", 3);
    labels = (dm_labels *)path;
    assert_int_equal(dm_labels_create(&grid, ids, path, &labels, &err), DM_ERROR_FORMAT);
    assert_null(labels);
    assert_string_equal(err.where, path);
    unlink(path);
    labels = (dm_labels *)path;
    assert_int_equal(dm_labels_create(&grid, ids, "totalsegmentator:all", &labels, &err),
                     DM_ERROR_VALUE);
    assert_null(labels);
}

/* ---- Masks ---------------------------------------------------------------------------------- */

static const uint8_t all[VOXELS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
static const uint8_t some[VOXELS] = {0, 1, 255, 2, 0, 128, 0, 0, 0, 0, 0, 3};
static const uint8_t none[VOXELS] = {0};

static void test_masks_may_overlap(void **state)
{
    (void)state;
    static const char *const names[] = {"body", "Niere links",
                                        "\xc3\xa4u\xc3\x9f"
                                        "eres"};
    static const uint8_t *const masks[] = {all, some, none};
    static const label_run expected[] = {{1, 2}, {3, 1}, {5, 1}, {11, 1}};
    dm_labels *labels = NULL;
    dm_error err = {0};
    assert_int_equal(dm_labels_create_masks(&grid, 3, names, masks, &labels, &err), DM_OK);
    assert_int_equal(dm_labels_count(labels), 3);
    assert_true(dm_labels_grid(labels)->spacing_mm[1] == 3);
    static const size_t voxels[] = {VOXELS, 5, 0};
    for (size_t s = 0; s < 3; s++) {
        assert_int_equal(dm_labels_id(labels, s), s + 1);
        assert_string_equal(dm_labels_name(labels, s), names[s]);
        assert_true(dm_labels_name(labels, s) != names[s]);
        assert_int_equal(dm_labels_voxels(labels, s), voxels[s]);
    }
    assert_int_equal(labels->structures[1].n_runs, 4);
    for (size_t r = 0; r < 4; r++) {
        assert_int_equal(labels->structures[1].runs[r].start, expected[r].start);
        assert_int_equal(labels->structures[1].runs[r].length, expected[r].length);
    }
    dm_labels_free(labels);
    assert_int_equal(dm_labels_create_masks(&grid, 0, NULL, NULL, &labels, &err), DM_OK);
    assert_int_equal(dm_labels_count(labels), 0);
    dm_labels_free(labels);
}

static void refuse_masks(const dm_grid *on, size_t n, const char *const *names, const char *what)
{
    static const uint8_t *const masks[] = {all, some, none};
    dm_labels *labels = (dm_labels *)masks;
    dm_error err = {0};
    assert_int_equal(dm_labels_create_masks(on, n, names, masks, &labels, &err), DM_ERROR_VALUE);
    assert_null(labels);
    says(&err, what);
    assert_int_equal(dm_labels_create_masks(on, n, names, masks, &labels, NULL), DM_ERROR_VALUE);
}

static void test_masks_that_cannot_be(void **state)
{
    (void)state;
    static const char *const bad[] = {NULL, "", "a\tb", "a\nb", "\x7f", "\xff"};
    const char *names[] = {"a", "b", "a"};
    refuse_masks(&grid, 3, names, "structures 1 and 3 would both be called 'a'");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        names[2] = bad[i];
        refuse_masks(&grid, 3, names, "the name of structure 3 is empty, has control");
    }
    dm_grid flat = grid;
    flat.dim[1] = 0;
    refuse_masks(&flat, 2, names, "3x0x2");
    refuse_masks(&grid, 65537, names, "65537 masks are more than 65536");
}

/* ---- Other names ---------------------------------------------------------------------------- */

static void refuse_name(dm_labels *labels, int32_t id, const char *name, const char *what)
{
    dm_error err = {0};
    assert_int_equal(dm_labels_rename(labels, id, name, &err), DM_ERROR_VALUE);
    says(&err, what);
    assert_int_equal(dm_labels_rename(labels, id, name, NULL), DM_ERROR_VALUE);
}

static void test_rename(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_labels *labels = from_ids(NULL), *moved = NULL;
    assert_int_equal(dm_labels_rename(labels, 300, "liver", &err), DM_OK);
    assert_int_equal(dm_labels_rename(labels, 2, "label_300", &err), DM_OK); /* which is free now */
    assert_int_equal(dm_labels_rename(labels, 300, dm_labels_name(labels, 2), &err), DM_OK);
    refuse_name(labels, 1, "spleen", "no structure 1");
    refuse_name(labels, 0, "background", "no structure 0");
    refuse_name(labels, 7, "liver", "structures 300 and 7 would both be called 'liver'");
    refuse_name(labels, 7, "a\tb", "the name of structure 7 is empty, has control");
    refuse_name(labels, 7, "a\nb", "control characters");
    refuse_name(labels, 7, "\xc3", "UTF-8");
    refuse_name(labels, 7, "", "empty");
    refuse_name(labels, 7, NULL, "empty");
    assert_int_equal(dm_labels_resample(labels, &grid, &moved, &err), DM_OK);
    const dm_labels *const both[] = {labels, moved};
    for (int i = 0; i < 2; i++) {
        assert_string_equal(dm_labels_name(both[i], 0), "label_300");
        assert_string_equal(dm_labels_name(both[i], 1), "label_7");
        assert_string_equal(dm_labels_name(both[i], 2), "liver");
    }
    dm_labels_free(moved);
    dm_labels_free(labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names_from_a_table),
        cmocka_unit_test(test_tables_that_cannot_be),
        cmocka_unit_test(test_masks_may_overlap),
        cmocka_unit_test(test_masks_that_cannot_be),
        cmocka_unit_test(test_rename),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
