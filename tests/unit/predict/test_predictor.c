/* SPDX-License-Identifier: Apache-2.0 */
/* From PET to dose through small networks whose answer is known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "small_models.h"

/* ---- Exact answers -------------------------------------------------------------------------- */

static void test_identity(void **state)
{
    (void)state;
    static const size_t sizes[][3] = {{1, 1, 1}, {17, 13, 5}, {16, 16, 16}, {33, 20, 19}};
    static const size_t tiles[][3] = {{0, 0, 0},
                                      {8, 8, 8},
                                      {4, 16, 7},
                                      {DM_TILE_WHOLE, DM_TILE_WHOLE, DM_TILE_WHOLE},
                                      {8, DM_TILE_WHOLE, 8}};
    static const double overlaps[] = {0, 0.25, 0.5};
    dm_model *model = identity_model(16);
    for (size_t s = 0; s < 4; s++) {
        dm_volume *pet = make_pet(sizes[s][0], sizes[s][1], sizes[s][2]);
        size_t n = dm_grid_voxels(&pet->grid);
        for (size_t c = 0; c < 5 * 3 * 2; c++) {
            dm_predict_options options = plain_options();
            memcpy(options.tile, tiles[c / 6], sizeof options.tile);
            options.overlap = overlaps[c / 2 % 3];
            options.blend = c % 2 ? DM_BLEND_GAUSSIAN : DM_BLEND_CONSTANT;
            dm_prediction *p = predict(model, &options, pet, NULL);
            assert_true(arrays_close(dose_of(p), n, pet->data, n, 0, 1e-6));
            assert_true(dm_grid_equal(&dm_prediction_dose(p)->grid, &pet->grid, NULL, 0));
            dm_prediction_free(p);
        }
        dm_volume_free(pet);
    }
    dm_model_free(model);
}

static void test_quantities_and_activity(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(9, 8, 7);
    size_t n = dm_grid_voxels(&pet->grid);
    float *expected = malloc(n * sizeof *expected);
    dm_predict_options options = plain_options();
    options.activity_gbq = 7.4;
    dm_predictor *predictor = NULL;
    dm_prediction *p = NULL;
    dm_pet_info info = unit_info();
    info.body_weight_kg = 50;
    for (size_t i = 0; i < n; i++)
        expected[i] = (float)(7.4 * 78.7 / 50 * (double)pet->data[i]);
    no_error(dm_predictor_create(model, &options, &predictor, &err), &err);
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &p, &err), &err);
    assert_true(arrays_close(dose_of(p), n, expected, n, 0, 1e-6));
    assert_non_null(strstr(dm_prediction_provenance_json(p), "\"Units\": \"Gy\""));
    dm_prediction_free(p);

    info.body_weight_kg = NAN; /* never guessed */
    assert_int_equal(
        dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &p, &err),
        DM_ERROR_VALUE);
    assert_null(p);
    assert_non_null(strstr(err.remedy, "--body-weight"));
    dm_predictor_free(predictor);
    free(expected);
    dm_volume_free(pet);
    dm_model_free(model);
}

/* Patients' own activities through one predictor: as if each had a predictor with that option, in
 * map, tables and provenance. 0: the option's. */
static void test_activity_of_each_patient(void **state)
{
    (void)state;
    static const double activities[] = {6, 0, 7.4, 0};
    static const double wrong[] = {-1, -INFINITY, INFINITY, NAN, 1e39, 1e-46};
    dm_error err = {0};
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(9, 8, 7);
    size_t n = dm_grid_voxels(&pet->grid);
    int32_t ids[9 * 8 * 7] = {[50] = 1, 1, 1, [200] = 2, 2};
    dm_labels *labels = NULL;
    const dm_pet_info info = unit_info();
    no_error(dm_labels_create(&pet->grid, ids, NULL, &labels, &err), &err);
    for (int with_option = 0; with_option < 2; with_option++) {
        dm_predict_options options = plain_options(), fresh = options;
        const double option = with_option ? 5.5 : NAN;
        dm_predictor *predictor = NULL;
        options.activity_gbq = option;
        no_error(dm_predictor_create(model, &options, &predictor, &err), &err);
        dm_patient patient = {.pet = pet, .info = &info, .labels = labels};
        dm_prediction *p = NULL;
        for (size_t i = 0; i < sizeof activities / sizeof *activities; i++) {
            char *of_patient = NULL, *of_option = NULL;
            patient.activity_gbq = activities[i];
            fresh.activity_gbq = activities[i] != 0 ? activities[i] : option;
            no_error(dm_predictor_run(predictor, &patient, &p, &err), &err);
            dm_prediction *expected = predict(model, &fresh, pet, labels);
            assert_memory_equal(dose_of(p), dose_of(expected), n * sizeof(float));
            no_error(dm_dvh_json(dm_prediction_dvh(p), &of_patient, &err), &err);
            no_error(dm_dvh_json(dm_prediction_dvh(expected), &of_option, &err), &err);
            assert_string_equal(of_patient, of_option);
            const bool in_gy = !isnan(fresh.activity_gbq);
            assert_int_equal(!strstr(of_patient, "gy_per_gbq"), in_gy);
            json_t *facts = json_loads(dm_prediction_provenance_json(p), 0, NULL);
            const json_t *gbq = json_object_get(facts, "TherapyActivityGBq");
            assert_string_equal(json_string_value(json_object_get(facts, "Units")),
                                in_gy ? "Gy" : "Gy/GBq");
            assert_true(in_gy ? json_real_value(gbq) == fresh.activity_gbq : json_is_null(gbq));
            json_decref(facts);
            dm_string_free(of_patient);
            dm_string_free(of_option);
            dm_prediction_free(p);
            dm_prediction_free(expected);
        }
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            patient.activity_gbq = wrong[i];
            p = (dm_prediction *)predictor;
            assert_int_equal(dm_predictor_run(predictor, &patient, &p, &err), DM_ERROR_VALUE);
            assert_null(p);
            assert_non_null(strstr(err.what, "therapy activity"));
            assert_non_null(strstr(err.remedy, "--activity"));
        }
        dm_predictor_free(predictor);
    }
    dm_labels_free(labels);
    dm_volume_free(pet);
    dm_model_free(model);
}

/* One body in 48 files: one dose map, to the bit. */
static void test_all_orientations(void **state)
{
    (void)state;
    const size_t ras[3] = {19, 10, 13}, n = 19 * 10 * 13;
    weights_writer w;
    begin_lopsided(&w, 8);
    dm_model *model = finish_model(&w);
    dm_predict_options options = plain_options();
    dm_volume *body = make_pet(ras[0], ras[1], ras[2]);
    float *first = malloc(n * sizeof *first), *back = malloc(n * sizeof *back);
    for (int o = 0; o < ORIENTATIONS; o++) {
        dm_error err = {0};
        dm_volume *pet = NULL;
        dm_grid grid = oriented_grid(o, ras, (const double[]){4, 4, 5});
        no_error(dm_volume_create(&grid, &pet, &err), &err);
        store_oriented(o, ras, body->data, pet->data);
        dm_prediction *p = predict(model, &options, pet, NULL);
        copy_oriented(o, ras, dose_of(p), o == 0 ? first : back, true);
        if (o > 0)
            assert_memory_equal(back, first, n * sizeof *first);
        dm_prediction_free(p);
        dm_volume_free(pet);
    }
    assert_true(relative_l2(first, body->data, n) > 0.1); /* the network does something */
    free(first);
    free(back);
    dm_volume_free(body);
    dm_model_free(model);
}

/* Onto another spacing and back: a linear ramp stays itself away from the edges. */
static void test_ramp_through_another_grid(void **state)
{
    (void)state;
    static const double spacings[][3] = {{3.1, 4.4, 5}, {5.5, 2.9, 7.4}, {9, 10, 11}, {2, 2, 2}};
    for (size_t s = 0; s < 4; s++) {
        weights_writer w;
        begin_scaling(&w, 16, 2);
        json_object_set_new(w.graph, "voxel_size_mm",
                            json_pack("[f,f,f]", spacings[s][0], spacings[s][1], spacings[s][2]));
        dm_model *model = finish_model(&w);
        dm_volume *pet = make_pet(33, 36, 30);
        for (size_t i = 0; i < 33 * 36 * 30; i++)
            pet->data[i] =
                (float)(5 + i % 33) + 0.5f * (float)(i / 33 % 36) - 0.25f * (float)(i / 33 / 36);
        dm_predict_options options = plain_options();
        options.threads = 3;
        dm_prediction *p = predict(model, &options, pet, NULL);
        assert_non_null(strstr(dm_prediction_provenance_json(p), "\"Resampled\": true"));
        for (size_t k = 8; k < 22; k++)
            for (size_t j = 8; j < 28; j++)
                for (size_t i = 8; i < 25; i++) {
                    size_t v = i + 33 * (j + 36 * k);
                    float twice = 2 * pet->data[v];
                    assert_true(arrays_close(&dose_of(p)[v], 1, &twice, 1, 0, 1e-5));
                }
        dm_prediction_free(p);
        dm_volume_free(pet);
        dm_model_free(model);
    }
}

/* ---- Same bytes ----------------------------------------------------------------------------- */

static void check_same_bytes(const double *voxel_mm)
{
    weights_writer w;
    begin_lopsided(&w, 8);
    if (voxel_mm)
        json_object_set_new(w.graph, "voxel_size_mm",
                            json_pack("[f,f,f]", voxel_mm[0], voxel_mm[1], voxel_mm[2]));
    dm_model *model = finish_model(&w);
    dm_volume *pet = make_pet(30, 23, 17);
    size_t n = dm_grid_voxels(&pet->grid);
    float *first = malloc(n * sizeof *first);
    memset(pet->data, 0, n / 3 * sizeof *first); /* some windows are air */
    for (unsigned threads = 1; threads <= 3; threads++) {
        for (unsigned batch = 1; batch <= 5; batch += batch == 1 ? 1 : 3) {
            dm_predict_options options = plain_options();
            options.threads = threads;
            options.batch = batch;
            options.skip_air = 0.1;
            dm_prediction *p = predict(model, &options, pet, NULL);
            if (threads == 1 && batch == 1)
                memcpy(first, dose_of(p), n * sizeof *first);
            assert_memory_equal(dose_of(p), first, n * sizeof *first);
            dm_prediction_free(p);
        }
    }
    free(first);
    dm_volume_free(pet);
    dm_model_free(model);
}

static void test_same_bytes(void **state)
{
    (void)state;
    check_same_bytes(NULL);
    check_same_bytes((const double[]){3, 5, 5});
}

/* One predictor for several volumes gives what a fresh one gives each time. */
static void test_reuse(void **state)
{
    (void)state;
    static const size_t sizes[][3] = {{20, 11, 9}, {7, 30, 12}, {20, 11, 9}};
    dm_error err = {0};
    weights_writer w;
    begin_strided(&w, 8, false);
    dm_model *model = finish_model(&w);
    for (int whole = 0; whole < 2; whole++) {
        dm_predict_options options = plain_options();
        for (int a = 0; a < 3; a++)
            options.tile[a] = whole ? DM_TILE_WHOLE : 8;
        dm_predictor *predictor = NULL;
        no_error(dm_predictor_create(model, &options, &predictor, &err), &err);
        for (size_t s = 0; s < 3; s++) {
            dm_pet_info info = unit_info();
            dm_volume *pet = make_pet(sizes[s][0], sizes[s][1], sizes[s][2]);
            dm_prediction *fresh = predict(model, &options, pet, NULL), *again = NULL;
            no_error(
                dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &again, &err),
                &err);
            assert_memory_equal(dose_of(fresh), dose_of(again),
                                dm_grid_voxels(&pet->grid) * sizeof(float));
            dm_prediction_free(fresh);
            dm_prediction_free(again);
            dm_volume_free(pet);
        }
        dm_predictor_free(predictor);
    }
    dm_model_free(model);
}

static size_t windows_of(const dm_prediction *p, const char *what)
{
    json_t *root = json_loads(dm_prediction_provenance_json(p), 0, NULL);
    const json_t *count = json_object_get(json_object_get(root, "Windows"), what);
    assert_true(json_is_integer(count));
    size_t n = (size_t)json_integer_value(count);
    json_decref(root);
    return n;
}

/* The whole volume in one window: as a tile of its size, rounded up to the network's stride. */
static void test_whole(void **state)
{
    (void)state;
    weights_writer w;
    begin_strided(&w, 8, false);
    dm_model *model = finish_model(&w);
    dm_volume *pet = make_pet(19, 12, 7);
    dm_predict_options whole = plain_options(), same = plain_options();
    for (int a = 0; a < 3; a++)
        whole.tile[a] = DM_TILE_WHOLE;
    memcpy(same.tile, (const size_t[]){20, 12, 8}, sizeof same.tile);
    dm_prediction *p = predict(model, &whole, pet, NULL), *q = predict(model, &same, pet, NULL);
    assert_int_equal(windows_of(p, "Run"), 1);
    assert_int_equal(windows_of(q, "Run"), 1);
    assert_memory_equal(dose_of(p), dose_of(q), 19 * 12 * 7 * sizeof(float));
    dm_prediction_free(p);
    dm_prediction_free(q);
    dm_volume_free(pet);
    dm_model_free(model);
}

/* ---- Air ------------------------------------------------------------------------------------ */

static void check_air(const dm_model *model, double skip_air, size_t skipped, float value)
{
    dm_volume *pet = make_pet(32, 16, 16);
    for (size_t i = 0; i < 32 * 256; i++)
        pet->data[i] = i % 32 < 16 ? 0.2f : 2;
    dm_predict_options options = plain_options();
    options.overlap = 0;
    options.skip_air = skip_air;
    dm_prediction *p = predict(model, &options, pet, NULL);
    assert_int_equal(windows_of(p, "Skipped"), skipped);
    assert_int_equal(windows_of(p, "Run"), 2 - skipped);
    assert_true(arrays_close(&dose_of(p)[5], 1, &value, 1, 0, 1e-6));
    const float rest = skipped == 2 ? 0 : 2;
    assert_true(arrays_close(&dose_of(p)[20], 1, &rest, 1, 0, 1e-6));
    dm_prediction_free(p);
    dm_volume_free(pet);
}

static void test_air(void **state)
{
    (void)state;
    weights_writer w;
    begin_scaling(&w, 16, 1);
    json_object_set_new(w.card, "skip_air", json_real(0.5));
    dm_model *model = finish_model(&w);
    check_air(model, NAN, 1, 0); /* the card's */
    check_air(model, -INFINITY, 0, 0.2f);
    check_air(model, 0.1, 0, 0.2f);
    check_air(model, 3, 2, 0);
    dm_model_free(model);
}

/* ---- Labels --------------------------------------------------------------------------------- */

static void test_labels(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(9, 8, 7);
    int32_t ids[9 * 8 * 7] = {0};
    double mean = 0;
    for (size_t i = 100; i < 200; i++) {
        ids[i] = 4;
        mean += (double)pet->data[i] / 100;
    }
    dm_labels *labels = NULL;
    no_error(dm_labels_create(&pet->grid, ids, NULL, &labels, &err), &err);
    dm_predict_options options = plain_options();
    dm_prediction *p = predict(model, &options, pet, labels);
    assert_int_equal(dm_dvh_count(dm_prediction_dvh(p)), 1);
    const dm_structure_dose *dose = dm_dvh_structure(dm_prediction_dvh(p), 0);
    assert_int_equal(dose->id, 4);
    assert_int_equal(dose->voxels, 100);
    assert_true(fabs(dose->mean - mean) < 1e-5);
    dm_prediction_free(p);

    dm_volume *other = make_pet(9, 8, 6);
    dm_predictor *predictor = NULL;
    dm_pet_info info = unit_info();
    no_error(dm_predictor_create(model, &options, &predictor, &err), &err);
    assert_int_equal(dm_predictor_run(predictor,
                                      &(dm_patient){.pet = other, .info = &info, .labels = labels},
                                      &p, &err),
                     DM_ERROR_VALUE);
    assert_null(p);
    assert_non_null(strstr(err.what, "labels"));
    assert_non_null(strstr(err.remedy, "--resample-labels"));
    dm_predictor_free(predictor);
    dm_labels_free(labels);
    dm_volume_free(other);
    dm_volume_free(pet);
    dm_model_free(model);
}

/* ---- Cancelling ----------------------------------------------------------------------------- */

typedef struct watch {
    int calls, stop_at;
    double last;
    char stage[32];
} watch;

static int look(void *user, double share, const char *stage)
{
    watch *w = user;
    w->calls++;
    if (!(share >= w->last && share <= 1))
        return 99;
    w->last = share;
    snprintf(w->stage, sizeof w->stage, "%s", stage);
    return w->calls == w->stop_at;
}

static void test_progress_and_cancelling(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(40, 30, 20);
    watch seen = {0};
    dm_predict_options options = plain_options();
    options.progress = look;
    options.progress_user = &seen;
    options.threads = 2;
    dm_predictor *predictor = NULL;
    dm_prediction *p = NULL;
    dm_pet_info info = unit_info();
    no_error(dm_predictor_create(model, &options, &predictor, &err), &err);
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &p, &err), &err);
    assert_true(seen.calls >= 3);
    assert_true(seen.last == 1);
    dm_prediction_free(p);
    for (int stop_at = 1; stop_at <= 3; stop_at++) {
        seen = (watch){.stop_at = stop_at};
        p = (dm_prediction *)&seen;
        assert_int_equal(
            dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &p, &err),
            DM_CANCELLED);
        assert_null(p);
        assert_int_equal(err.status, DM_CANCELLED);
        assert_int_equal(seen.calls, stop_at);
    }
    seen = (watch){0};
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &p, &err), &err);
    size_t n = dm_grid_voxels(&pet->grid);
    assert_true(arrays_close(dose_of(p), n, pet->data, n, 0, 1e-6));
    dm_prediction_free(p);
    dm_predictor_free(predictor);
    dm_volume_free(pet);
    dm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_identity),
                                       cmocka_unit_test(test_quantities_and_activity),
                                       cmocka_unit_test(test_activity_of_each_patient),
                                       cmocka_unit_test(test_all_orientations),
                                       cmocka_unit_test(test_ramp_through_another_grid),
                                       cmocka_unit_test(test_same_bytes),
                                       cmocka_unit_test(test_reuse),
                                       cmocka_unit_test(test_whole),
                                       cmocka_unit_test(test_air),
                                       cmocka_unit_test(test_labels),
                                       cmocka_unit_test(test_progress_and_cancelling)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
