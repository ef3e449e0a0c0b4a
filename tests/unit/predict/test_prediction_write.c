/* SPDX-License-Identifier: Apache-2.0 */
/* The files of a prediction: names, order, checksums, and what stays behind after a failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <sys/stat.h>

#include "compare.h"
#include "small_models.h"

/* ---- A folder per test ---------------------------------------------------------------------- */

typedef struct place {
    char folder[256];
    dm_model *model;
    dm_volume *pet;
    dm_labels *labels;
} place;

static const char *in(const place *p, const char *name)
{
    static _Thread_local char paths[8][512];
    static _Thread_local unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", p->folder, name);
    return path;
}

static int begin(void **state)
{
    static place p;
    dm_error err = {0};
    int32_t ids[9 * 8 * 7] = {0};
    const char *parent = getenv("TMPDIR");
    snprintf(p.folder, sizeof p.folder, "%s/dosemap-write-XXXXXX", parent ? parent : "/tmp");
    assert_non_null(mkdtemp(p.folder));
    p.model = identity_model(8);
    p.pet = make_pet(9, 8, 7);
    for (size_t i = 50; i < 150; i++)
        ids[i] = 2;
    no_error(dm_labels_create(&p.pet->grid, ids, NULL, &p.labels, &err), &err);
    no_error(dm_volume_write(p.pet, in(&p, "pet.nii.gz"), 1, &err), &err);
    *state = &p;
    return 0;
}

/* Names in the folder, or removal of them all. */
static size_t count_files(const char *folder, bool remove)
{
    struct dirent *entry;
    size_t n = 0;
    DIR *dir = opendir(folder);
    while (dir && (entry = readdir(dir))) {
        char path[768];
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        n++;
        if (remove && unlink(path) != 0) {
            count_files(path, true);
            rmdir(path);
        }
    }
    closedir(dir);
    return n;
}

static int end(void **state)
{
    place *p = *state;
    count_files(p->folder, true);
    rmdir(p->folder);
    dm_labels_free(p->labels);
    dm_volume_free(p->pet);
    dm_model_free(p->model);
    return 0;
}

static bool exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static dm_prediction *make(const place *p, bool with_labels)
{
    dm_predict_options options = plain_options();
    return predict(p->model, &options, p->pet, with_labels ? p->labels : NULL);
}

static json_t *read_json(const char *path)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        fail_msg("%s: %s", path, error.text);
    return root;
}

static void spoil(const char *path, const char *text)
{
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* ---- Names ---------------------------------------------------------------------------------- */

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"a/OUT.nii", "a/OUT.nii.gz", "a/OUT.nii.zst"};
    static const char *const bad[] = {"", "OUT", "OUT.nii.bz2", ".nii", "a/.nii.gz", "OUT.nii/"};
    dm_output_paths paths;
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(dm_output_paths_from(good[i], &paths, NULL), DM_OK);
        assert_string_equal(paths.dose, good[i]);
        assert_string_equal(paths.sidecar, "a/OUT.json");
        assert_string_equal(paths.dvh, "a/OUT_dvh.tsv");
        assert_string_equal(paths.organs, "a/OUT_organs.tsv");
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dm_error err = {0};
        assert_int_equal(dm_output_paths_from(bad[i], &paths, &err), DM_ERROR_VALUE);
        assert_non_null(strstr(err.remedy, ".nii.gz"));
    }
    char longest[5000];
    memset(longest, 'a', sizeof longest);
    strcpy(longest + sizeof longest - 5, ".nii");
    dm_error err = {0};
    assert_int_equal(dm_output_paths_from(longest, &paths, &err), DM_ERROR_VALUE);
    assert_non_null(strstr(err.what, "4999"));
}

/* ---- Content -------------------------------------------------------------------------------- */

static void check_file(const json_t *list, size_t index, const char *role, const char *key,
                       const char *name, const char *path)
{
    char hex[17];
    const json_t *entry = json_array_get(list, index);
    assert_string_equal(json_string_value(json_object_get(entry, "Role")), role);
    assert_string_equal(json_string_value(json_object_get(entry, key)), name);
    assert_int_equal(file_checksum(path, hex, NULL), DM_OK);
    assert_string_equal(json_string_value(json_object_get(entry, "XXH64")), hex);
}

static void test_everything_is_written(void **state)
{
    const place *p = *state;
    dm_error err = {0};
    const char *out = in(p, "out.nii.gz");
    dm_prediction *prediction = make(p, true);
    no_error(dm_volume_write(p->pet, in(p, "labels.nii"), 1, &err), &err); /* any file will do */
    dm_sources sources = {.pet_path = in(p, "pet.nii.gz"),
                          .labels_path = in(p, "labels.nii"),
                          .command_line = "dosemap predict \"x\""};
    no_error(dm_prediction_write(prediction, out, &sources, 2, &err), &err);
    assert_int_equal(count_files(p->folder, false), 6);
    assert_true(dm_prediction_is_complete(out));

    json_t *root = read_json(in(p, "out.json"));
    const json_t *outputs = json_object_get(root, "Outputs");
    const json_t *files = json_object_get(root, "SourceFiles");
    assert_int_equal(json_array_size(outputs), 3);
    check_file(outputs, 0, "dose", "File", "out.nii.gz", out);
    check_file(outputs, 1, "dvh", "File", "out_dvh.tsv", in(p, "out_dvh.tsv"));
    check_file(outputs, 2, "organs", "File", "out_organs.tsv", in(p, "out_organs.tsv"));
    assert_int_equal(json_array_size(files), 2);
    check_file(files, 0, "pet", "Path", sources.pet_path, sources.pet_path);
    check_file(files, 1, "labels", "Path", sources.labels_path, sources.labels_path);
    assert_string_equal(json_string_value(json_array_get(json_object_get(root, "Sources"), 0)),
                        sources.pet_path);
    assert_int_equal(json_integer_value(json_object_get(root, "schema_version")), 1);
    assert_string_equal(json_string_value(json_object_get(root, "Units")), "Gy/GBq");
    assert_string_equal(json_string_value(json_object_get(root, "CommandLine")),
                        sources.command_line);
    const json_t *pet = json_object_get(root, "PET");
    assert_true(json_number_value(json_object_get(pet, "Factor")) == 1);
    assert_string_equal(json_string_value(json_object_get(pet, "Units")), "SUV");
    assert_true(json_is_null(json_object_get(pet, "InjectedMBq")));
    const json_t *model = json_object_get(root, "Model");
    assert_true(json_is_false(json_object_get(model, "Trained")));
    assert_non_null(strstr(json_string_value(json_object_get(root, "Description")), "research"));
    json_decref(root);

    dm_volume *read = NULL;
    no_error(dm_volume_read(out, &read, &err), &err);
    size_t n = dm_grid_voxels(&p->pet->grid);
    assert_true(arrays_close(read->data, n, p->pet->data, n, 0, 1e-6));
    dm_volume_free(read);
    dm_prediction_free(prediction);
}

/* A PET.nii like another, with a comment as header extension. */
static void write_with_extension(const char *plain, const char *extended)
{
    static uint8_t bytes[8192];
    FILE *file = fopen(plain, "rb");
    assert_non_null(file);
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    assert_true(size > 352 && size < sizeof bytes);
    const float offset = 352 + 32;
    const uint8_t flag[4] = {1}, extension[32] = {32, 0, 0, 0, 6, 0, 0, 0, 'h', 'i'};
    memcpy(bytes + 108, &offset, sizeof offset); /* vox_offset */
    file = fopen(extended, "wb");
    assert_non_null(file);
    fwrite(bytes, 1, 348, file);
    fwrite(flag, 1, 4, file);
    fwrite(extension, 1, 32, file);
    fwrite(bytes + 352, 1, size - 352, file);
    fclose(file);
}

static void test_header_extensions_are_mentioned(void **state)
{
    const place *p = *state;
    dm_error err = {0};
    dm_volume *pet = NULL;
    dm_predict_options options = plain_options();
    no_error(dm_volume_write(p->pet, in(p, "plain.nii"), 1, &err), &err);
    write_with_extension(in(p, "plain.nii"), in(p, "extended.nii"));
    for (int extended = 0; extended < 2; extended++) {
        no_error(dm_volume_read(in(p, extended ? "extended.nii" : "plain.nii"), &pet, &err), &err);
        dm_prediction *prediction = predict(p->model, &options, pet, NULL);
        json_t *root = json_loads(dm_prediction_provenance_json(prediction), 0, NULL);
        const char *said = json_string_value(json_object_get(root, "HeaderExtensions"));
        if (extended)
            assert_string_equal(said, "not copied");
        else
            assert_null(said);
        json_decref(root);
        dm_prediction_free(prediction);
        dm_volume_free(pet);
    }
}

static void test_a_folder_of_masks_is_listed(void **state)
{
    const place *p = *state;
    dm_error err = {0};
    dm_prediction *prediction = make(p, false);
    assert_int_equal(mkdir(in(p, "masks"), 0700), 0);
    spoil(in(p, "masks/b.nii"), "b");
    spoil(in(p, "masks/a.nii"), "a");
    spoil(in(p, "masks/.hidden"), "h");
    dm_sources sources = {.labels_path = in(p, "masks")};
    no_error(dm_prediction_write(prediction, in(p, "out.nii"), &sources, 1, &err), &err);
    json_t *root = read_json(in(p, "out.json"));
    const json_t *files = json_object_get(root, "SourceFiles");
    assert_int_equal(json_array_size(files), 2);
    check_file(files, 0, "labels", "Path", in(p, "masks/a.nii"), in(p, "masks/a.nii"));
    check_file(files, 1, "labels", "Path", in(p, "masks/b.nii"), in(p, "masks/b.nii"));
    json_decref(root);
    dm_prediction_free(prediction);
}

/* ---- Resuming ------------------------------------------------------------------------------- */

static void test_is_complete(void **state)
{
    const place *p = *state;
    dm_error err = {0};
    const char *out = in(p, "out.nii");
    dm_prediction *prediction = make(p, false);
    assert_false(dm_prediction_is_complete(out));
    no_error(dm_prediction_write(prediction, out, NULL, 1, &err), &err);
    assert_true(dm_prediction_is_complete(out));
    assert_false(dm_prediction_is_complete(in(p, "out.nii.gz"))); /* not that file */
    spoil(out, "x");
    assert_false(dm_prediction_is_complete(out));
    no_error(dm_prediction_write(prediction, out, NULL, 1, &err), &err);
    assert_true(dm_prediction_is_complete(out));
    spoil(in(p, "out.json"), "{");
    assert_false(dm_prediction_is_complete(out));
    unlink(in(p, "out.json"));
    assert_false(dm_prediction_is_complete(out));
    dm_prediction_free(prediction);
}

static void test_again_without_labels(void **state)
{
    const place *p = *state;
    dm_error err = {0};
    dm_prediction *with = make(p, true), *without = make(p, false);
    no_error(dm_prediction_write(with, in(p, "out.nii"), NULL, 1, &err), &err);
    assert_true(exists(in(p, "out_dvh.tsv")) && exists(in(p, "out_organs.tsv")));
    no_error(dm_prediction_write(without, in(p, "out.nii"), NULL, 1, &err), &err);
    assert_false(exists(in(p, "out_dvh.tsv")) || exists(in(p, "out_organs.tsv")));
    assert_true(dm_prediction_is_complete(in(p, "out.nii")));
    unlink(in(p, "out.json"));
    spoil(in(p, "out_dvh.tsv"), "not ours"); /* no sidecar lists it */
    no_error(dm_prediction_write(without, in(p, "out.nii"), NULL, 1, &err), &err);
    assert_true(exists(in(p, "out_dvh.tsv")));
    dm_prediction_free(with);
    dm_prediction_free(without);
}

/* ---- Failures ------------------------------------------------------------------------------- */

/* A folder in the way of one output: the others do not stay. */
static void test_failure_removes_what_was_written(void **state)
{
    const place *p = *state;
    static const char *const in_the_way[] = {"out.nii", "out_dvh.tsv", "out_organs.tsv",
                                             "out.json"};
    dm_prediction *prediction = make(p, true);
    for (size_t i = 0; i < 4; i++) {
        dm_error err = {0};
        assert_int_equal(mkdir(in(p, in_the_way[i]), 0700), 0);
        assert_int_equal(dm_prediction_write(prediction, in(p, "out.nii"), NULL, 1, &err),
                         DM_ERROR_IO);
        assert_non_null(strstr(err.where, in_the_way[i]));
        assert_int_equal(count_files(p->folder, false), 2); /* the PET, and what was in the way */
        assert_int_equal(rmdir(in(p, in_the_way[i])), 0);
    }
    dm_prediction_free(prediction);
}

static void test_a_missing_source(void **state)
{
    const place *p = *state;
    dm_error err = {0};
    dm_prediction *prediction = make(p, false);
    dm_sources sources = {.pet_path = in(p, "gone.nii")};
    assert_int_equal(dm_prediction_write(prediction, in(p, "out.nii"), &sources, 1, &err),
                     DM_ERROR_IO);
    assert_non_null(strstr(err.where, "gone.nii"));
    assert_false(exists(in(p, "out.nii")));
    dm_prediction_free(prediction);
}

static void test_inputs_are_not_overwritten(void **state)
{
    const place *p = *state;
    dm_error err = {0};
    dm_prediction *prediction = make(p, false);
    dm_sources sources = {.pet_path = in(p, "pet.nii.gz")};
    assert_int_equal(dm_prediction_write(prediction, in(p, "pet.nii.gz"), &sources, 1, &err),
                     DM_ERROR_VALUE);
    assert_non_null(strstr(err.what, "pet.nii.gz"));
    dm_prediction_free(prediction);

    /* pet.nii beside pet.nii.gz: its sidecar would be the PET's own. */
    dm_predict_options options = plain_options();
    dm_pet_info info = unit_info();
    dm_predictor *predictor = NULL;
    spoil(in(p, "pet.json"), "{\"Units\": \"SUV\", \"PatientWeight\": 78.7}");
    snprintf(info.sidecar, sizeof info.sidecar, "%s", in(p, "pet.json"));
    no_error(dm_predictor_create(p->model, &options, &predictor, &err), &err);
    no_error(
        dm_predictor_run(predictor, &(dm_patient){.pet = p->pet, .info = &info}, &prediction, &err),
        &err);
    assert_int_equal(dm_prediction_write(prediction, in(p, "pet.nii"), &sources, 1, &err),
                     DM_ERROR_VALUE);
    assert_non_null(strstr(err.what, "pet.json"));
    assert_false(exists(in(p, "pet.nii")));
    no_error(dm_prediction_write(prediction, in(p, "out.nii"), &sources, 1, &err), &err);
    json_t *root = read_json(in(p, "out.json"));
    check_file(json_object_get(root, "SourceFiles"), 1, "pet_sidecar", "Path", in(p, "pet.json"),
               in(p, "pet.json"));
    json_decref(root);
    dm_predictor_free(predictor);
    dm_prediction_free(prediction);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_names),
                                       IN_FOLDER(test_everything_is_written),
                                       IN_FOLDER(test_header_extensions_are_mentioned),
                                       IN_FOLDER(test_a_folder_of_masks_is_listed),
                                       IN_FOLDER(test_is_complete),
                                       IN_FOLDER(test_again_without_labels),
                                       IN_FOLDER(test_failure_removes_what_was_written),
                                       IN_FOLDER(test_a_missing_source),
                                       IN_FOLDER(test_inputs_are_not_overwritten)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
