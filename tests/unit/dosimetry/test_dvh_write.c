/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of DVHs, to the letter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <jansson.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dosemap.h"
#include "dosimetry/dvh.h"

static char folder[] = "/tmp/test_dvh_write_XXXXXX";
static char path[64];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/out.tsv", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    remove(path);
    return rmdir(folder);
}

static char *read_output(void)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = calloc(1, 1 << 20);
    size_t size = fread(text, 1, (1 << 20) - 1, f);
    assert_true(size > 0 && size < (1 << 20) - 1);
    fclose(f);
    return text;
}

/* A structure of four voxels of 1 cm3, one without voxels, one whose name would break a table. */
static dm_dvh *make_dvh(const char *third, bool per_activity)
{
    static float dose[6] = {4, 1, 3, 2, 0.0123456789f, 0};
    static label_run four = {0, 4}, two = {4, 2};
    static char name[64];
    snprintf(name, sizeof name, "%s", third);
    label_structure structures[3] = {{(char[]){"liver"}, 5, 4, 1, &four},
                                     {(char[]){"nothing"}, 9, 0, 0, NULL},
                                     {name, 11, 2, 1, &two}};
    struct dm_labels labels = {.grid = {.dim = {6, 1, 1}, .spacing_mm = {10, 10, 10}},
                               .count = 3,
                               .structures = structures};
    for (int i = 0; i < 3; i++)
        labels.grid.affine[i][i] = 10;
    const double thresholds[2] = {2.5, 20};
    dm_dvh_options options = {
        .v_thresholds = thresholds, .n_v_thresholds = 2, .per_activity = per_activity};
    dm_dvh *dvh = NULL;
    assert_int_equal(dvh_from_voxels(dose, &labels, &options, &dvh, NULL), DM_OK);
    return dvh;
}

static const char organs[] =
    "name\tid\tvoxels\tvolume_cm3\tmean_gy\tmin_gy\tmax_gy\td2_gy\td50_gy\td95_gy\td98_gy\td2cc_"
    "gy\t"
    "v2.5gy_percent\tv20gy_percent\n"
    "liver\t5\t4\t4\t2.5\t1\t4\t4\t3\t1.2\t1.08\t3\t50\t0\n"
    "nothing\t9\t0\t0\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\tn/a\n"
    "kid "
    "ney\t11\t2\t2\t0.00617284\t0\t0.0123457\t0.0123457\t0.0123457\t0.00123457\t0.000493827\t0\t"
    "0\t0\n";

static void test_organs(void **state)
{
    (void)state;
    dm_dvh *dvh = make_dvh("kid\tney", false);
    assert_int_equal(dm_dvh_write_organs(dvh, path, NULL), DM_OK);
    char *text = read_output();
    assert_string_equal(text, organs);
    free(text);
    dm_dvh_free(dvh);
    dvh = make_dvh("kidney", true);
    assert_int_equal(dm_dvh_write_organs(dvh, path, NULL), DM_OK);
    text = read_output();
    assert_non_null(strstr(text, "\tmean_gy_per_gbq\t"));
    assert_non_null(strstr(text, "\tv2.5gy_per_gbq_percent\tv20gy_per_gbq_percent\n"));
    free(text);
    dm_dvh_free(dvh);
}

static void test_curves(void **state)
{
    (void)state;
    dm_dvh *dvh = make_dvh("kidney", false);
    assert_int_equal(dm_dvh_write_curves(dvh, path, NULL), DM_OK);
    char *text = read_output();
    static const char head[] = "name\tid\tdose_gy\tvolume_cm3\tvolume_percent\n"
                               "liver\t5\t0\t4\t100\n"
                               "liver\t5\t0.004\t4\t100\n";
    assert_memory_equal(text, head, sizeof head - 1);
    assert_non_null(strstr(text, "\nliver\t5\t1\t4\t100\nliver\t5\t1.004\t3\t75\n"));
    assert_non_null(
        strstr(text, "\nliver\t5\t4\t1\t25\nliver\t5\t4.004\t0\t0\nkidney\t11\t0\t2\t100\n"));
    assert_null(strstr(text, "nothing"));
    /* Each curve falls from 100 % to 0. */
    double last_dose = 0, last_percent = 0;
    int last_id = 0, rows = 0;
    for (char *line = strchr(text, '\n') + 1; *line; line = strchr(line, '\n') + 1, rows++) {
        int id;
        double dose, cm3, percent;
        assert_int_equal(sscanf(line, "%*s %d %lf %lf %lf", &id, &dose, &cm3, &percent), 4);
        if (id != last_id)
            assert_true(last_percent == 0 && dose == 0 && percent == 100);
        else
            assert_true(dose > last_dose && percent <= last_percent);
        last_dose = dose;
        last_percent = percent;
        last_id = id;
    }
    assert_true(last_percent == 0 && last_id == 11);
    assert_in_range(rows, 2 * 1001, 2 * 1002);
    free(text);
    dm_dvh_free(dvh);
}

/* A wide histogram is thinned to at most 2000 edges and the closing one. */
static void test_curves_are_thinned(void **state)
{
    (void)state;
    float dose[2] = {900, 123.456f};
    label_run run = {0, 2};
    label_structure structure = {(char[]){"lesion"}, 1, 2, 1, &run};
    struct dm_labels labels = {.grid = {.dim = {2, 1, 1}}, .count = 1, .structures = &structure};
    for (int i = 0; i < 3; i++)
        labels.grid.affine[i][i] = 2;
    dm_dvh *dvh = NULL;
    assert_int_equal(dvh_from_voxels(dose, &labels, NULL, &dvh, NULL), DM_OK);
    assert_int_equal(dm_dvh_structure(dvh, 0)->bins, 90001);
    assert_int_equal(dm_dvh_write_curves(dvh, path, NULL), DM_OK);
    char *text = read_output();
    size_t rows = 0;
    for (const char *c = text; *c; c++)
        rows += *c == '\n';
    assert_in_range(rows, 1900, 2002);
    /* Every 46th bin of 0.01 Gy: the second voxel lies between the edges 123.28 and 123.74. */
    assert_non_null(
        strstr(text, "\nlesion\t1\t123.28\t0.016\t100\nlesion\t1\t123.74\t0.008\t50\n"));
    assert_non_null(strstr(text, "\nlesion\t1\t900.01\t0\t0\n"));
    free(text);
    dm_dvh_free(dvh);
}

static void test_json(void **state)
{
    (void)state;
    dm_dvh *dvh = make_dvh("r\xe9"
                           "nal",
                           false); /* Latin-1, as in an old file name */
    char *json = NULL;
    dm_error err = {0};
    assert_int_equal(dm_dvh_json(dvh, &json, &err), DM_OK);
    json_error_t problem;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &problem);
    assert_non_null(root);
    assert_int_equal(json_array_size(root), 3);
    const json_t *liver = json_array_get(root, 0), *nothing = json_array_get(root, 1);
    assert_string_equal(json_string_value(json_object_get(liver, "name")), "liver");
    assert_int_equal(json_integer_value(json_object_get(liver, "id")), 5);
    assert_int_equal(json_integer_value(json_object_get(liver, "voxels")), 4);
    assert_true(fabs(json_number_value(json_object_get(liver, "d95_gy")) - 1.2) < 1e-11);
    assert_true(json_number_value(json_object_get(liver, "v2.5gy_percent")) == 50);
    assert_true(json_is_null(json_object_get(nothing, "mean_gy")));
    assert_int_equal(json_object_size(liver), 14);
    assert_string_equal(json_string_value(json_object_get(json_array_get(root, 2), "name")),
                        "r?nal");
    json_decref(root);
    dm_string_free(json);
    dm_dvh_free(dvh);
}

/* A caller with a decimal comma gets the same bytes, and keeps its locale. */
static void test_locale(void **state)
{
    (void)state;
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "es_ES.UTF-8"};
    const char *found = NULL;
    for (size_t i = 0; i < 4 && !found; i++)
        found = setlocale(LC_NUMERIC, names[i]);
    if (!found) {
        print_message("no locale with a decimal comma is installed\n");
        skip();
    }
    char text[16], *json = NULL;
    dm_dvh *dvh = make_dvh("kid ney", false);
    assert_int_equal(dm_dvh_write_organs(dvh, path, NULL), DM_OK);
    assert_int_equal(dm_dvh_json(dvh, &json, NULL), DM_OK);
    snprintf(text, sizeof text, "%.1f", 0.5);
    char *table = read_output();
    setlocale(LC_NUMERIC, "C");
    assert_string_equal(text, "0,5");
    assert_string_equal(table, organs);
    assert_null(strstr(json, "2,5"));
    assert_non_null(strstr(json, "2.5"));
    free(table);
    dm_string_free(json);
    dm_dvh_free(dvh);
}

static void test_unwritable(void **state)
{
    (void)state;
    dm_dvh *dvh = make_dvh("kidney", false);
    dm_error err = {0};
    assert_int_equal(dm_dvh_write_organs(dvh, "/nonexistent/a.tsv", &err), DM_ERROR_IO);
    assert_non_null(strstr(err.where, "/nonexistent/a.tsv"));
    assert_int_equal(dm_dvh_write_curves(dvh, "/nonexistent/b.tsv", &err), DM_ERROR_IO);
    assert_non_null(strstr(err.where, "/nonexistent/b.tsv"));
    dm_dvh_free(dvh);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_organs),
        cmocka_unit_test(test_curves),
        cmocka_unit_test(test_curves_are_thinned),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_locale),
        cmocka_unit_test(test_unwritable),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
