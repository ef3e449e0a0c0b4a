/* SPDX-License-Identifier: Apache-2.0 */
/* Names of structures: JSON, TSV, TotalSegmentator's tables, and which of them is used. */
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
#include "volume/label_names.h"

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
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

static void put(const char *name, const char *content, size_t size, char path[128])
{
    snprintf(path, 128, "%s/%s", folder, name);
    save_bytes(path, (const uint8_t *)content, size);
}

static label_names read_good(const char *source)
{
    label_names names = {0};
    dm_error err = {0};
    if (label_names_read(source, &names, &err) != DM_OK)
        fail_msg("%s: %s; %s", err.where, err.what, err.remedy);
    return names;
}

static label_names read_text(const char *file_name, const char *content)
{
    char path[128];
    put(file_name, content, strlen(content), path);
    label_names names = read_good(path);
    unlink(path);
    return names;
}

static void name_is(const label_names *names, int32_t id, const char *expected)
{
    const char *name = label_names_find(names, id);
    if (!expected) {
        assert_null(name);
        return;
    }
    if (!name)
        fail_msg("id %d has no name", (int)id);
    assert_string_equal(name, expected);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void test_json_in_both_directions(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "{\"1\": \"spleen\", \"25\": \"B\xc3\xa4r\", \"2147483647\": \"last\"}",
        "{\"spleen\": 1, \"B\\u00e4r\": 25, \"last\": 2147483647}",
        "{\"background\": 0, \"spleen\": 1, \"25\": \"B\xc3\xa4r\", \"last\": 2147483647}",
        "{\"0\": \"background\", \"last\": 2147483647, \"spleen\": 1, \"B\xc3\xa4r\": 25}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        label_names names = read_text("names.json", texts[i]);
        assert_int_equal(names.count, 3);
        name_is(&names, 1, "spleen");
        name_is(&names, 25, "B\xc3\xa4r");
        name_is(&names, INT32_MAX, "last");
        name_is(&names, 0, NULL);
        name_is(&names, 2, NULL);
        label_names_clear(&names);
        assert_int_equal(names.count, 0);
        label_names_clear(&names);
    }
    label_names names = read_text("names.json", "{}");
    assert_int_equal(names.count, 0);
    label_names_clear(&names);
}

/* ---- TSV ------------------------------------------------------------------------------------ */

static void test_tables(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "index\tname\n1\tspleen\n2\tleft kidney\n",
        "index\tname\n0\tbackground\n2\tleft kidney\n1\tspleen",        /* no line end */
        "index\tname\tabbreviation\tcolor\r\n1\tspleen\tS\t#ff0000\r\n" /* as on Windows */
        "2\tleft kidney\tLK\t#00ff00\r\n",
        "\xef\xbb\xbfIndex\tName\n1\tspleen\n\n2\tleft kidney\n\n", /* byte order mark */
        "structure\tvolume\tid\nspleen\t150.5\t1\nleft kidney\t\t2\n",
        "label_name\tlabel\nspleen\t1\nleft kidney\t2\n",
        "value\tname\n1\tspleen\n2\tleft kidney\n",
        /* The column that BIDS asks for comes before others that look like it. */
        "label\tindex\tname\nx\t1\tspleen\ny\t2\tleft kidney\n",
        "name\tstructure\tindex\nspleen\tx\t1\nleft kidney\ty\t2\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        label_names names = read_text("names.tsv", texts[i]);
        assert_int_equal(names.count, 2);
        name_is(&names, 1, "spleen");
        name_is(&names, 2, "left kidney");
        label_names_clear(&names);
    }
}

/* ---- Refused -------------------------------------------------------------------------------- */

typedef struct bad_names {
    const char *file_name, *content;
    size_t size; /* 0: of the text */
    dm_status status;
    const char *what;
} bad_names;

static const bad_names bad[] = {
    {"n.json", "", 0, DM_ERROR_FORMAT, "malformed JSON"},
    {"n.json", "{\"1\": \"a\"", 0, DM_ERROR_FORMAT, "line 1"},
    {"n.json", "[\"a\", \"b\"]", 0, DM_ERROR_FORMAT, "the JSON text"},
    {"n.json", "{\"1\": \"a\", \"1\": \"b\"}", 0, DM_ERROR_FORMAT, "duplicate"},
    {"n.json", "{\"1\": \"a\", \"2\": \"a\"}", 0, DM_ERROR_VALUE, "id 1 (a) and id 2 (a)"},
    {"n.json", "{\"1\": \"a\", \"01\": \"b\"}", 0, DM_ERROR_VALUE, "id 1 (a) and id 1 (b)"},
    {"n.json", "{\"a\": 1, \"b\": 1}", 0, DM_ERROR_VALUE, "id 1 (a) and id 1 (b)"},
    {"n.json", "{\"a\": 1, \"2\": \"a\"}", 0, DM_ERROR_VALUE, "id 1 (a) and id 2 (a)"},
    {"n.json", "{\"a\": -1}", 0, DM_ERROR_FORMAT, "'a'"},
    {"n.json", "{\"-1\": \"a\"}", 0, DM_ERROR_FORMAT, "'-1'"},
    {"n.json", "{\"a\": 1.0}", 0, DM_ERROR_FORMAT, "'a'"},
    {"n.json", "{\"1.5\": \"a\"}", 0, DM_ERROR_FORMAT, "'1.5'"},
    {"n.json", "{\"a\": 2147483648}", 0, DM_ERROR_FORMAT, "'a'"},
    {"n.json", "{\"4294967297\": \"a\"}", 0, DM_ERROR_FORMAT, "'4294967297'"},
    {"n.json", "{\"99999999999999999999\": \"a\"}", 0, DM_ERROR_FORMAT, "'99999999999999999999'"},
    {"n.json", "{\"labels\": {\"a\": 1}}", 0, DM_ERROR_FORMAT, "'labels'"},
    {"n.json", "{\"a\": null}", 0, DM_ERROR_FORMAT, "'a'"},
    {"n.json", "{\"1\": \"\"}", 0, DM_ERROR_VALUE, "id 1"},
    {"n.json", "{\"1\": \"a\\tb\"}", 0, DM_ERROR_VALUE, "id 1"},
    {"n.json", "{\"a\\nb\": 1}", 0, DM_ERROR_VALUE, "id 1"},
    {"n.json", "{\"1\": \"\\u007f\"}", 0, DM_ERROR_VALUE, "id 1"},
    {"n.tsv", "", 0, DM_ERROR_FORMAT, "no columns"},
    {"n.tsv", "\n\r\n", 0, DM_ERROR_FORMAT, "no columns"},
    {"n.tsv", "index\tname\r\n\r\n\r\n1\ta\r\nx\tb", 0, DM_ERROR_FORMAT, "row 5: 'x'"},
    {"n.tsv", "1\tspleen\n2\tliver\n", 0, DM_ERROR_FORMAT, "no columns"},
    {"n.tsv", "index,name\n1,spleen\n", 0, DM_ERROR_FORMAT, "no columns"},
    {"n.tsv", "index\tcolor\n1\tred\n", 0, DM_ERROR_FORMAT, "no columns"},
    {"n.tsv", "index\tname\n1\n", 0, DM_ERROR_FORMAT, "row 2 has 1 columns"},
    {"n.tsv", "index\tname\n1\ta\nx\tb\n", 0, DM_ERROR_FORMAT, "row 3: 'x'"},
    {"n.tsv", "index\tname\n1.0\ta\n", 0, DM_ERROR_FORMAT, "row 2: '1.0'"},
    {"n.tsv", "index\tname\n-3\ta\n", 0, DM_ERROR_FORMAT, "row 2: '-3'"},
    {"n.tsv", "index\tname\n\ta\n", 0, DM_ERROR_FORMAT, "row 2: ''"},
    {"n.tsv", "index\tname\n2147483648\ta\n", 0, DM_ERROR_FORMAT, "'2147483648'"},
    {"n.tsv", "index\tname\n1\ta\n1\tb\n", 0, DM_ERROR_VALUE, "id 1 (a) and id 1 (b)"},
    {"n.tsv", "index\tname\n1\ta\n2\ta\n", 0, DM_ERROR_VALUE, "id 1 (a) and id 2 (a)"},
    {"n.tsv", "index\tname\n1\t\n", 0, DM_ERROR_VALUE, "id 1"},
    {"n.tsv", "index\tname\n1\tgr\xf6\xdf\n", 0, DM_ERROR_VALUE, "not UTF-8"},
    {"n.tsv", "index\tname\n1\ta\0b\n", 17, DM_ERROR_FORMAT, "byte 14 is 0"},
    {"n.tsv", "\xff\xfei\0n\0d\0", 8, DM_ERROR_FORMAT, "byte 3 is 0"},
};

static void read_bad(const char *source, dm_status status, const char *where, const char *what)
{
    label_names names;
    dm_error err = {0};
    dm_status got = label_names_read(source, &names, &err);
    if (got != status)
        fail_msg("%s: '%s' instead of '%s'", what, dm_status_name(got), dm_status_name(status));
    assert_int_equal(names.count, 0);
    if (strcmp(err.where, where) != 0 || !strstr(err.what, what) || !err.remedy[0])
        fail_msg("'%s: %s; %s' is not about '%s'", err.where, err.what, err.remedy, what);
    assert_int_equal(label_names_read(source, &names, NULL), status);
}

static void test_refused(void **state)
{
    (void)state;
    char path[128];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        put(bad[i].file_name, bad[i].content, bad[i].size ? bad[i].size : strlen(bad[i].content),
            path);
        read_bad(path, bad[i].status, path, bad[i].what);
        unlink(path);
    }
    read_bad(path, DM_ERROR_IO, path, "No such file");
    read_bad("no-such-names.json", DM_ERROR_IO, "no-such-names.json", "No such file");
}

static void test_number_of_names_is_bounded(void **state)
{
    (void)state;
    enum { MOST = 10000, ROOM = 24 * (MOST + 1) };
    char *table = malloc(ROOM), path[128];
    assert_non_null(table);
    size_t size = (size_t)snprintf(table, ROOM, "index\tname\n");
    for (int i = 1; i <= MOST; i++)
        size += (size_t)snprintf(table + size, ROOM - size, "%d\tn%d\n", i, i);
    label_names names = read_text("most.tsv", table);
    assert_int_equal(names.count, MOST);
    name_is(&names, MOST, "n10000");
    label_names_clear(&names);
    snprintf(table + size, ROOM - size, "%d\tone more\n", MOST + 1);
    put("more.tsv", table, strlen(table), path);
    read_bad(path, DM_ERROR_VALUE, path, "more than 10000 names");
    free(table);
}

/* ---- TotalSegmentator ----------------------------------------------------------------------- */

static void test_total_segmentator(void **state)
{
    (void)state;
    static const struct {
        int32_t id;
        const char *name;
    } total[] = {{1, "spleen"},
                 {2, "kidney_right"},
                 {3, "kidney_left"},
                 {5, "liver"},
                 {8, "adrenal_gland_right"},
                 {9, "adrenal_gland_left"},
                 {10, "lung_upper_lobe_left"},
                 {14, "lung_lower_lobe_right"},
                 {18, "small_bowel"},
                 {21, "urinary_bladder"},
                 {22, "prostate"},
                 {23, "kidney_cyst_left"},
                 {24, "kidney_cyst_right"},
                 {26, "vertebrae_S1"},
                 {50, "vertebrae_C1"},
                 {51, "heart"},
                 {64, "portal_vein_and_splenic_vein"},
                 {79, "spinal_cord"},
                 {90, "brain"},
                 {92, "rib_left_1"},
                 {104, "rib_right_1"},
                 {117, "costal_cartilages"}},
      glands[] = {{1, "eye_left"},
                  {2, "eye_right"},
                  {7, "parotid_gland_left"},
                  {8, "parotid_gland_right"},
                  {9, "submandibular_gland_right"},
                  {10, "submandibular_gland_left"},
                  {14, "nasal_cavity_right"},
                  {15, "nasal_cavity_left"},
                  {19, "hard_palate"}};
    label_names names = read_good("totalsegmentator:total");
    assert_int_equal(names.count, 117);
    for (size_t i = 0; i < sizeof total / sizeof *total; i++)
        name_is(&names, total[i].id, total[i].name);
    name_is(&names, 118, NULL);
    label_names_clear(&names);
    names = read_good("totalsegmentator:head_glands_cavities");
    assert_int_equal(names.count, 19);
    for (size_t i = 0; i < sizeof glands / sizeof *glands; i++)
        name_is(&names, glands[i].id, glands[i].name);
    name_is(&names, 20, NULL);
    label_names_clear(&names);
    read_bad("totalsegmentator:lung_vessels", DM_ERROR_VALUE, "", "'lung_vessels'");
    read_bad("totalsegmentator:", DM_ERROR_VALUE, "", "''");
    read_bad("TotalSegmentator:total", DM_ERROR_IO, "TotalSegmentator:total", "No such file");
}

/* ---- Which names a label map gets ----------------------------------------------------------- */

static void put_map(const char *name, char path[128])
{
    nifti_spec spec = nifti_spec_default(1);
    const double values[15] = {2, 2, 1, 30};
    uint8_t bytes[1024];
    size_t size = put_file(&spec, values, 15, bytes, sizeof bytes);
    put(name, (const char *)bytes, size, path);
}

/* Names of ids 1, 2 and 30. */
static void map_names(const char *path, const char *source, const char *const expected[3])
{
    dm_labels *labels = NULL;
    dm_error err = {0};
    if (dm_labels_read(path, source, &labels, &err) != DM_OK)
        fail_msg("%s: %s; %s", err.where, err.what, err.remedy);
    assert_int_equal(dm_labels_count(labels), 3);
    for (size_t s = 0; s < 3; s++)
        assert_string_equal(dm_labels_name(labels, s), expected[s]);
    dm_labels_free(labels);
}

static void test_names_given_beside_or_none(void **state)
{
    (void)state;
    static const char *const maps[] = {"organs.nii", "organs.nii.gz", "organs.nii.zst"};
    static const char table[] = "index\tname\n1\ta\n2\tb\n", other[] = "{\"x\": 1, \"y\": 30}";
    char map[128], beside[128], json[128], missing[160];
    put("other.json", other, strlen(other), json);
    for (size_t i = 0; i < 3; i++) {
        put_map(maps[i], map);
        map_names(map, NULL, (const char *[]){"label_1", "label_2", "label_30"});
        map_names(map, "totalsegmentator:total",
                  (const char *[]){"spleen", "kidney_right", "vertebrae_L2"});
        put("organs.tsv", table, strlen(table), beside);
        map_names(map, NULL, (const char *[]){"a", "b", "label_30"});
        map_names(map, json, (const char *[]){"x", "label_2", "y"});
        /* Names that are there but damaged must not be passed over. */
        put("organs.tsv", "spoilt", 6, beside);
        dm_labels *labels = NULL;
        dm_error err = {0};
        assert_int_equal(dm_labels_read(map, NULL, &labels, &err), DM_ERROR_FORMAT);
        assert_string_equal(err.where, beside);
        assert_null(labels);
        map_names(map, json, (const char *[]){"x", "label_2", "y"});
        snprintf(missing, sizeof missing, "%s.missing", json);
        assert_int_equal(dm_labels_read(map, missing, &labels, &err), DM_ERROR_IO);
        assert_string_equal(err.where, missing);
        unlink(beside);
        unlink(map);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_json_in_both_directions),
        cmocka_unit_test(test_tables),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_number_of_names_is_bounded),
        cmocka_unit_test(test_total_segmentator),
        cmocka_unit_test(test_names_given_beside_or_none),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
