/* SPDX-License-Identifier: Apache-2.0 */
/* Networks that take PET and CT, and such with several outputs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "small_models.h"

enum { X = 21, Y = 13, Z = 17, VOXELS = X * Y * Z };
static const size_t ras[3] = {X, Y, Z};
static const double ras_mm[3] = {4, 3, 5};

/* The ports in one order or the other; the CT as HU / 1000. */
static void begin_ports(weights_writer *w, int patch, bool ct_first)
{
    weights_begin(w, "xyz", patch, patch, patch);
    for (int i = 0; i < 2; i++) {
        bool is_ct = i == (ct_first ? 0 : 1);
        weights_port(w, "inputs", is_ct ? "ct" : "pet", 1, is_ct ? "hu" : "uptake",
                     is_ct ? "HU" : "g/mL");
        json_t *port = json_array_get(json_object_get(w->graph, "inputs"), (size_t)i);
        if (is_ct)
            json_object_set_new(port, "intensity",
                                weights_json("[{'scale': 0.001, 'offset': 0.25}]"));
    }
    weights_output(w, "dose", 1);
    weights_node(w, "Concat", "join", ct_first ? "ct pet" : "pet ct", "both", "{'axis': 1}");
}

/* dose = 2 * pet + 3 * (ct / 1000 + 0.25). */
static dm_model *sum_model(bool ct_first, const char *voxel_mm)
{
    const float weights[2] = {ct_first ? 3 : 2, ct_first ? 2 : 3};
    weights_writer w;
    begin_ports(&w, 8, ct_first);
    if (voxel_mm)
        json_object_set_new(w.graph, "voxel_size_mm", weights_json(voxel_mm));
    weights_values(&w, "w", 5, (const size_t[]){1, 2, 1, 1, 1}, weights);
    weights_node(&w, "Conv", "sum", "both w -", "dose", "{'kernel_shape': [1, 1, 1]}");
    return finish_model(&w);
}

/* Both channels through a hidden layer of an odd width that treats no direction like another. */
static dm_model *lopsided_model(bool ct_first)
{
    weights_writer w;
    begin_ports(&w, 8, ct_first);
    weights_random(&w, "w1", 11, 0.3f, 5, (const size_t[]){7, 2, 3, 3, 3});
    weights_random(&w, "b1", 12, 0.1f, 1, (const size_t[]){7});
    weights_random(&w, "w2", 13, 0.3f, 5, (const size_t[]){1, 7, 3, 3, 3});
    weights_node(&w, "Conv", "c1", "both w1 b1", "h1", CONV_3);
    weights_node(&w, "LeakyRelu", "r1", "h1", "h2", "{'alpha': 0.2}");
    weights_node(&w, "Conv", "c2", "h2 w2 -", "dose", CONV_3);
    return finish_model(&w);
}

/* One body in any orientation: uptake from 0.5 to 10, HU from -1000 to 900. */
typedef struct body {
    dm_volume *pet, *ct;
} body;

static dm_volume *stored(int orientation, uint32_t seed, float low, float high)
{
    float values[VOXELS];
    dm_error err = {0};
    dm_volume *volume = NULL;
    dm_grid grid = oriented_grid(orientation, ras, ras_mm);
    for (size_t i = 0; i < VOXELS; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = low + (high - low) * (float)(seed >> 8) / 16777216.0f;
    }
    no_error(dm_volume_create(&grid, &volume, &err), &err);
    store_oriented(orientation, ras, values, volume->data);
    return volume;
}

static body make_body(int of_pet, int of_ct)
{
    dm_error err = {0};
    dm_ct_info info;
    body b = {stored(of_pet, 1, 0.5f, 10), NULL};
    dm_volume *ct = stored(of_ct, 2, -1000, 900);
    no_error(dm_ct_onto_pet(ct, b.pet, NULL, &b.ct, &info, &err), &err);
    dm_volume_free(ct);
    return b;
}

static void free_body(body *b)
{
    dm_volume_free(b->pet);
    dm_volume_free(b->ct);
}

static dm_status run(const dm_model *model, const dm_predict_options *options,
                     const dm_patient *images, dm_prediction **prediction, dm_error *err)
{
    dm_error created = {0};
    dm_predictor *predictor = NULL;
    const dm_pet_info info = unit_info();
    dm_patient patient = *images;
    patient.info = &info;
    no_error(dm_predictor_create(model, options, &predictor, &created), &created);
    dm_status status = dm_predictor_run(predictor, &patient, prediction, err);
    dm_predictor_free(predictor);
    return status;
}

static dm_prediction *predict_body(const dm_model *model, const dm_predict_options *options,
                                   const body *b)
{
    dm_error err = {0};
    dm_prediction *prediction = NULL;
    const dm_patient patient = {.pet = b->pet, .ct = b->ct};
    no_error(run(model, options, &patient, &prediction, &err), &err);
    return prediction;
}

/* Each image arrives in its own channel and through its own transform, whichever comes first. */
static void test_channels(void **state)
{
    (void)state;
    body b = make_body(0, 0);
    float expected[VOXELS];
    for (size_t i = 0; i < VOXELS; i++)
        expected[i] = 2 * b.pet->data[i] + 3 * (b.ct->data[i] / 1000 + 0.25f);
    for (int ct_first = 0; ct_first < 2; ct_first++) {
        dm_model *model = sum_model(ct_first, NULL);
        for (unsigned threads = 1; threads <= 3; threads += 2) {
            dm_predict_options o = plain_options();
            o.threads = threads;
            dm_prediction *p = predict_body(model, &o, &b);
            assert_true(arrays_close(dose_of(p), VOXELS, expected, VOXELS, 1e-5, 1e-6));
            dm_prediction_free(p);
        }
        dm_model_free(model);
    }
    free_body(&b);
}

/* Linear networks commute with resampling: PET and CT take the same way to the model's grid. */
static void test_model_grid(void **state)
{
    (void)state;
    body b = make_body(0, 0);
    dm_volume sum = *b.pet;
    float values[VOXELS];
    for (size_t i = 0; i < VOXELS; i++)
        values[i] = b.pet->data[i] + 1.5f * (b.ct->data[i] / 1000 + 0.25f);
    sum.data = values;
    dm_model *model = sum_model(false, "[3.1, 6.5, 4.2]"), *alone;
    weights_writer w;
    begin_scaling(&w, 8, 2);
    json_object_set_new(w.graph, "voxel_size_mm", weights_json("[3.1, 6.5, 4.2]"));
    alone = finish_model(&w);
    dm_predict_options o = plain_options();
    dm_prediction *p = predict_body(model, &o, &b), *expected = predict(alone, &o, &sum, NULL);
    assert_true(arrays_close(dose_of(p), VOXELS, dose_of(expected), VOXELS, 2e-5, 0));
    dm_prediction_free(p);
    dm_prediction_free(expected);
    dm_model_free(model);
    dm_model_free(alone);
    free_body(&b);
}

/* PET and CT stored in any two orientations give one dose map. */
static void test_orientations(void **state)
{
    (void)state;
    dm_predict_options o = plain_options();
    dm_model *models[2] = {lopsided_model(false), lopsided_model(true)};
    for (int m = 0; m < 2; m++) {
        float reference[VOXELS], dose[VOXELS];
        for (int of_pet = 0; of_pet < ORIENTATIONS; of_pet++) {
            body b = make_body(of_pet, (of_pet * 29 + m) % ORIENTATIONS);
            dm_prediction *p = predict_body(models[m], &o, &b);
            copy_oriented(of_pet, ras, dose_of(p), dose, true);
            if (of_pet == 0)
                memcpy(reference, dose, sizeof dose);
            assert_memory_equal(dose, reference, sizeof dose);
            dm_prediction_free(p);
            free_body(&b);
        }
        dm_model_free(models[m]);
    }
}

/* Windows in which the PET is air are left out, whatever the CT is there; others are not. */
static void test_air(void **state)
{
    (void)state;
    body b = make_body(0, 0);
    dm_model *model = sum_model(true, NULL);
    dm_predict_options o = plain_options();
    o.overlap = 0;
    o.skip_air = 0.4;
    for (size_t i = 0; i < VOXELS; i++)
        b.pet->data[i] = i % X < 8 ? 0.1f : 1;
    dm_prediction *p = predict_body(model, &o, &b);
    assert_non_null(strstr(dm_prediction_provenance_json(p), "\"Skipped\": "));
    for (size_t i = 0; i < VOXELS; i++)
        assert_int_equal(dose_of(p)[i] == 0, i % X < 8);
    dm_prediction_free(p);
    dm_model_free(model);
    free_body(&b);
}

static void refuse(const dm_model *model, const dm_patient *patient, const char *what,
                   const char *remedy)
{
    dm_predict_options o = plain_options();
    dm_error err = {0};
    dm_prediction *prediction = (dm_prediction *)&err;
    assert_int_equal(run(model, &o, patient, &prediction, &err), DM_ERROR_VALUE);
    assert_null(prediction);
    if (!strstr(err.what, what) || !strstr(err.remedy, remedy))
        fail_msg("'%s; %s' lacks '%s' or '%s'", err.what, err.remedy, what, remedy);
}

static void test_refusals(void **state)
{
    (void)state;
    body b = make_body(0, 0);
    dm_model *with = sum_model(false, NULL), *without = identity_model(8);
    assert_true(dm_model_takes(with, DM_QUANTITY_HU) && !dm_model_takes(without, DM_QUANTITY_HU));
    refuse(with, &(dm_patient){.pet = b.pet}, "input \"ct\" in HU), and there is none", "--ct");
    refuse(without, &(dm_patient){.pet = b.pet, .ct = b.ct}, "would not use", "leave the CT out");
    dm_volume other = *b.ct;
    other.grid.affine[0][3] += 1;
    refuse(with, &(dm_patient){.pet = b.pet, .ct = &other}, "not lie on the PET's grid: corners",
           "dm_ct_onto_pet");
    other = *b.ct;
    other.data = NULL;
    refuse(with, &(dm_patient){.pet = b.pet, .ct = &other}, "no voxels", "dm_ct_onto_pet");
    b.ct->data[4 + X * (3 + Y * 5)] = NAN;
    refuse(with, &(dm_patient){.pet = b.pet, .ct = b.ct}, "(4, 3, 5) of the CT is nan", "repair");
    dm_model_free(with);
    dm_model_free(without);
    free_body(&b);
}

/* The image that the transform does not take is named, in its own values. */
static void test_transform_without_a_value(void **state)
{
    (void)state;
    body b = make_body(0, 0);
    weights_writer w;
    const float weights[2] = {1, 1};
    begin_ports(&w, 8, false);
    json_object_set_new(json_array_get(json_object_get(w.graph, "inputs"), 1), "intensity",
                        weights_json("[{'scale': 1, 'offset': 1000}, {'sqrt': true}]"));
    weights_values(&w, "w", 5, (const size_t[]){1, 2, 1, 1, 1}, weights);
    weights_node(&w, "Conv", "sum", "both w -", "dose", "{'kernel_shape': [1, 1, 1]}");
    dm_model *model = finish_model(&w);
    b.ct->data[4 + X * (3 + Y * 5)] = -1024;
    refuse(model, &(dm_patient){.pet = b.pet, .ct = b.ct},
           "voxel (4, 3, 5) of the CT on the PET's grid, -1024", "Hounsfield");
    dm_model_free(model);
    free_body(&b);
}

/* The dose of a network that has other outputs too, of other sizes, before and behind it. */
static void test_other_outputs(void **state)
{
    (void)state;
    dm_volume *pet = make_pet(X, Y, Z);
    weights_writer w;
    dm_predict_options o = plain_options();
    begin_lopsided(&w, 8);
    dm_model *alone = finish_model(&w);
    begin_lopsided(&w, 8);
    json_array_clear(json_object_get(w.graph, "outputs"));
    weights_port(&w, "outputs", "features", 6, "other", "1");
    weights_output(&w, "dose", 1);
    weights_port(&w, "outputs", "mean", 6, "other", "furlongs");
    weights_node(&w, "Relu", "shown", "h1", "features", NULL);
    weights_node(&w, "GlobalAveragePool", "averaged", "features", "mean", NULL);
    dm_model *several = finish_model(&w);
    dm_prediction *p = predict(several, &o, pet, NULL), *expected = predict(alone, &o, pet, NULL);
    assert_memory_equal(dose_of(p), dose_of(expected), VOXELS * sizeof(float));
    const char *facts = dm_prediction_provenance_json(p);
    assert_non_null(
        strstr(facts, "\"OutputsNotComputed\": [\n      \"features\",\n      \"mean\"\n"));
    assert_null(strstr(dm_prediction_provenance_json(expected), "OutputsNotComputed"));
    dm_prediction_free(p);
    dm_prediction_free(expected);
    dm_model_free(several);
    dm_model_free(alone);
    dm_volume_free(pet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_channels),     cmocka_unit_test(test_model_grid),
        cmocka_unit_test(test_orientations), cmocka_unit_test(test_air),
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_transform_without_a_value),
        cmocka_unit_test(test_other_outputs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
