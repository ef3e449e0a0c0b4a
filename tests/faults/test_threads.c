/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library in several threads at once, each with workers of its own: two models, each shared by two
 * predictors, windows for each worker and windows that workers share, bf16 where there is any, dose
 * maps written and read, DVHs. Every result must have the bytes
 * of the same job run alone. `tools/test` also runs it under the thread sanitizer (preset tsan),
 * which needs no suppressions.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "nifti_bytes.h"
#include "predict/backend.h"
#include "small_models.h"

enum { JOBS = 4, ROUNDS = 3 };

typedef struct job {
    const dm_model *model;
    const dm_volume *pet;
    const dm_labels *labels;
    dm_predict_options options;
    char folder[64], dose[128];
    unsigned rounds;
    char checksums[3][17]; /* dose map, curves, organ table */
    bool failed, changed;
    char message[2048];
} job;

static bool good(job *j, dm_status status, const dm_error *err)
{
    if (status != DM_OK) {
        j->failed = true;
        dm_error_text(err, j->message, sizeof j->message);
    }
    return status == DM_OK;
}

/* First round: notes the checksums; then compares. */
static bool note_checksums(job *j, const dm_output_paths *paths, bool first)
{
    const char *const files[3] = {paths->dose, paths->dvh, paths->organs};
    dm_error err = {0};
    for (int f = 0; f < 3; f++) {
        char hex[17];
        if (!good(j, file_checksum(files[f], hex, &err), &err))
            return false;
        if (first)
            memcpy(j->checksums[f], hex, sizeof hex);
        else if (strcmp(hex, j->checksums[f]) != 0)
            j->changed = true;
    }
    return true;
}

/* What was written is read again and its DVH computed. */
static bool read_back(job *j, const dm_output_paths *paths)
{
    const dm_dvh_options options = {.threads = 2};
    dm_error err = {0};
    dm_volume *dose = NULL;
    dm_dvh *dvh = NULL;
    bool fine = good(j, dm_volume_read(paths->dose, &dose, &err), &err) &&
                good(j, dm_dvh_compute(dose, j->labels, &options, &dvh, &err), &err) &&
                good(j, dm_dvh_write_organs(dvh, paths->organs, &err), &err) &&
                dm_prediction_is_complete(paths->dose);
    dm_dvh_free(dvh);
    dm_volume_free(dose);
    return fine;
}

static void *run_job(void *argument)
{
    job *j = argument;
    const dm_pet_info info = unit_info();
    dm_error err = {0};
    dm_output_paths paths;
    dm_predictor *predictor = NULL;
    bool fine = good(j, dm_output_paths_from(j->dose, &paths, &err), &err) &&
                good(j, dm_predictor_create(j->model, &j->options, &predictor, &err), &err);
    for (unsigned round = 0; fine && round < j->rounds; round++) {
        dm_prediction *prediction = NULL;
        fine = good(j,
                    dm_predictor_run(
                        predictor, &(dm_patient){.pet = j->pet, .info = &info, .labels = j->labels},
                        &prediction, &err),
                    &err) &&
               good(j, dm_prediction_write(prediction, paths.dose, NULL, 2, &err), &err) &&
               note_checksums(j, &paths, j->rounds == 1) && read_back(j, &paths);
        dm_prediction_free(prediction);
    }
    dm_predictor_free(predictor);
    return NULL;
}

static void check_job(const job *j)
{
    if (j->failed)
        fail_msg("%s", j->message);
    if (j->changed)
        fail_msg("%s differs from the same job alone", j->dose);
}

static void remove_outputs(const job *j)
{
    dm_output_paths paths;
    assert_int_equal(dm_output_paths_from(j->dose, &paths, NULL), DM_OK);
    unlink(paths.dose);
    unlink(paths.sidecar);
    unlink(paths.dvh);
    unlink(paths.organs);
    assert_int_equal(rmdir(j->folder), 0);
}

static void test_results_do_not_depend_on_other_threads(void **state)
{
    (void)state;
    static job jobs[JOBS];
    pthread_t threads[JOBS];
    weights_writer lopsided, strided;
    dm_error err = {0};
    begin_lopsided(&lopsided, 8);
    begin_strided(&strided, 8, true);
    dm_model *models[2] = {finish_model(&lopsided), finish_model(&strided)};
    dm_volume *pet = make_pet(21, 18, 17);
    dm_labels *labels = NULL;
    int32_t ids[21 * 18 * 17] = {0};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i += 3)
        ids[i] = i % 4 == 1 ? 5 : 2;
    no_error(dm_labels_create(&pet->grid, ids, NULL, &labels, &err), &err);
    for (int i = 0; i < JOBS; i++) {
        jobs[i] = (job){models[i % 2], pet, labels, plain_options(), .rounds = 1};
        jobs[i].options.threads = 3;
        jobs[i].options.activity_gbq = 6 + i;
        jobs[i].options.force_tile = true;
        for (int a = 0; i >= 2 && a < 3; a++)
            jobs[i].options.tile[a] = DM_TILE_WHOLE; /* the threads share one window */
        if (i == 0 && cpu_backend.supports("cpu", DM_PRECISION_BF16))
            jobs[i].options.precision = DM_PRECISION_BF16;
        make_test_folder(jobs[i].folder);
        snprintf(jobs[i].dose, sizeof jobs[i].dose, "%s/dose.nii.%s", jobs[i].folder,
                 i ? "gz" : "zst");
        run_job(&jobs[i]);
        check_job(&jobs[i]);
        jobs[i].rounds = ROUNDS;
    }
    for (int i = 0; i < JOBS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
    for (int i = 0; i < JOBS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < JOBS; i++) {
        check_job(&jobs[i]);
        remove_outputs(&jobs[i]);
    }
    dm_labels_free(labels);
    dm_volume_free(pet);
    for (int i = 0; i < 2; i++)
        dm_model_free(models[i]);
}

/* Texts that are made once and shared. */
static void *ask(void *unused)
{
    char *text = NULL, path[4096];
    (void)unused;
    for (int as_json = 0; as_json < 2; as_json++) {
        (void)dm_doctor(as_json, &text, NULL);
        dm_string_free(text);
    }
    (void)dm_default_model_path(path, sizeof path, NULL);
    return NULL;
}

static void test_questions_from_several_threads(void **state)
{
    (void)state;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask, NULL), 0);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_questions_from_several_threads),
        cmocka_unit_test(test_results_do_not_depend_on_other_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
