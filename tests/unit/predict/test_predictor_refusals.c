/* SPDX-License-Identifier: Apache-2.0 */
/* What the predictor refuses: with the value, the reason, and what to do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "small_models.h"

static void expect(const dm_error *err, dm_status status, dm_status found, const char *what,
                   const char *remedy)
{
    assert_int_equal(found, status);
    assert_int_equal(err->status, status);
    if (!strstr(err->what, what) || !strstr(err->remedy, remedy))
        fail_msg("'%s; %s' lacks '%s' or '%s'", err->what, err->remedy, what, remedy);
}

static void refuse_create(const dm_model *model, const dm_predict_options *options,
                          dm_status status, const char *what, const char *remedy)
{
    dm_error err = {0};
    dm_predictor *predictor = (dm_predictor *)&err;
    dm_status found = dm_predictor_create(model, options, &predictor, &err);
    expect(&err, status, found, what, remedy);
    assert_null(predictor);
}

static void refuse_run(const dm_model *model, const dm_predict_options *options,
                       const dm_volume *pet, dm_status status, const char *what, const char *remedy)
{
    dm_error err = {0};
    dm_pet_info info = unit_info();
    dm_predictor *predictor = NULL;
    dm_prediction *prediction = (dm_prediction *)&err;
    no_error(dm_predictor_create(model, options, &predictor, &err), &err);
    dm_status found =
        dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &prediction, &err);
    expect(&err, status, found, what, remedy);
    assert_null(prediction);
    dm_predictor_free(predictor);
}

static void test_options(void **state)
{
    (void)state;
    dm_model *model = identity_model(8);
    dm_predict_options o = plain_options();
    o.overlap = 0.95;
    refuse_create(model, &o, DM_ERROR_VALUE, "0.95", "--overlap");
    o = plain_options();
    o.activity_gbq = -1;
    refuse_create(model, &o, DM_ERROR_VALUE, "-1", "--activity");
    o.activity_gbq = INFINITY;
    refuse_create(model, &o, DM_ERROR_VALUE, "inf", "--activity");
    o = plain_options();
    o.skip_air = INFINITY;
    refuse_create(model, &o, DM_ERROR_VALUE, "inf", "--skip-air");
    o = plain_options();
    o.blend = (dm_blend)7;
    refuse_create(model, &o, DM_ERROR_VALUE, "7", "gaussian");
    o = plain_options();
    o.batch = 1000000;
    refuse_create(model, &o, DM_ERROR_VALUE, "1000000", "fewer");
    o = plain_options();
    o.v_thresholds = (const double[]){1, -2};
    o.n_v_thresholds = 2;
    refuse_create(model, &o, DM_ERROR_VALUE, "-2", "at least 0");
    o = plain_options();
    o.device = "cpu";
    o.precision = DM_PRECISION_TF32;
    refuse_create(model, &o, DM_ERROR_UNSUPPORTED, "tf32", "float32");
    dm_model_free(model);
}

static void test_devices(void **state)
{
    (void)state;
    dm_model *model = identity_model(8);
    dm_predict_options o = plain_options();
#ifdef PREDICT_DEVICE
    o.device = "cuda:7";
    refuse_create(model, &o, DM_ERROR_DEVICE, "cuda:7", "lower");
#else
    o.device = "cuda:0";
    refuse_create(model, &o, DM_ERROR_DEVICE, "built without CUDA", "--device cpu");
#endif
    static const char *const wrong[] = {"cuda:", "cuda:x", "cuda:-1", "cuda:1 ", "cuda:12345"};
    for (int i = 0; i < 5; i++) {
        o.device = wrong[i];
        refuse_create(model, &o, DM_ERROR_VALUE, wrong[i], "cuda:N");
    }
    o.device = "tpu";
    refuse_create(model, &o, DM_ERROR_VALUE, "'tpu'", "cpu");
    static const char *const good[] = {NULL, "auto", "cpu"};
    for (int i = 0; i < 3; i++) {
        dm_error err = {0};
        dm_predictor *predictor = NULL;
        o.device = good[i];
        no_error(dm_predictor_create(model, &o, &predictor, &err), &err);
        dm_predictor_free(predictor);
    }
    dm_model_free(model);
}

static void test_tiles(void **state)
{
    (void)state;
    weights_writer w;
    begin_strided(&w, 8, false);
    dm_model *model = finish_model(&w);
    dm_predict_options o = plain_options();
    o.tile[1] = 11;
    refuse_create(model, &o, DM_ERROR_VALUE, "11 voxels along y", "10 or 12");
    o.tile[1] = 1;
    refuse_create(model, &o, DM_ERROR_VALUE, "total stride 2", "--tile 2");
    o.tile[0] = o.tile[1] = o.tile[2] = 2048; /* 2^33 voxels: 0 in 32 bits */
    refuse_create(model, &o, DM_ERROR_UNSUPPORTED, "2048 x 2048 x 2048", "smaller tile");
    o.tile[0] = o.tile[1] = o.tile[2] = SIZE_MAX / 4 * 2; /* even, and not DM_TILE_WHOLE */
    refuse_create(model, &o, DM_ERROR_VALUE, "", "");
    dm_model_free(model);
}

static void test_tile_statistics(void **state)
{
    (void)state;
    weights_writer w;
    begin_strided(&w, 8, true);
    dm_model *model = finish_model(&w);
    dm_volume *pet = make_pet(20, 13, 9);
    for (int whole = 0; whole < 2; whole++) {
        dm_predict_options o = plain_options();
        o.tile[2] = whole ? DM_TILE_WHOLE : 16;
        refuse_create(model, &o, DM_ERROR_VALUE, "along z", "--force-tile");
        o.force_tile = true;
        dm_prediction_free(predict(model, &o, pet, NULL));
    }
    dm_predict_options o = plain_options();
    dm_prediction_free(predict(model, &o, pet, NULL)); /* the training patch */
    dm_volume_free(pet);
    dm_model_free(model);
}

static const char *unit_of(const char *quantity)
{
    return strcmp(quantity, "hu") == 0                  ? "HU"
           : strcmp(quantity, "dose_per_activity") == 0 ? "Gy/GBq"
                                                        : "g/mL";
}

/* A network of one kernel, over the inputs side by side, with these ports and `kernel` voxels. */
static void begin_ports(weights_writer *w, const char *const quantities[2], int channels,
                        const char *dose_quantity, int kernel)
{
    const size_t inputs = quantities[1] ? 2 : 1, edge = (size_t)kernel;
    char attributes[64];
    weights_begin(w, "xyz", 8, 8, 8);
    weights_port(w, "inputs", "first", channels, quantities[0], unit_of(quantities[0]));
    if (inputs == 2)
        weights_port(w, "inputs", "second", channels, quantities[1], unit_of(quantities[1]));
    weights_port(w, "outputs", "dose", 1, dose_quantity, unit_of(dose_quantity));
    weights_random(w, "w", 1, 1, 5,
                   (const size_t[]){1, inputs * (size_t)channels, edge, edge, edge});
    if (inputs == 2)
        weights_node(w, "Concat", "join", "first second", "both", "{'axis': 1}");
    snprintf(attributes, sizeof attributes, "{'kernel_shape': [%d, %d, %d]}", kernel, kernel,
             kernel);
    weights_node(w, "Conv", "c", inputs == 2 ? "both w -" : "first w -", "dose", attributes);
}

static void refuse_model(weights_writer *w, const char *what)
{
    dm_predict_options o = plain_options();
    dm_model *model = finish_model(w);
    refuse_create(model, &o, DM_ERROR_UNSUPPORTED, what, "dosemap forward");
    dm_model_free(model);
}

static void test_models(void **state)
{
    (void)state;
    static const struct {
        const char *quantities[2];
        int channels;
        const char *dose;
        int kernel;
        const char *what;
    } refused[] = {
        {{"uptake"}, 2, "dose_per_activity", 1, "\"first\" has 2 channels"},
        {{"hu"}, 1, "dose_per_activity", 1, "takes no PET"},
        {{"uptake", "suv"}, 1, "dose_per_activity", 1, "two PETs, \"first\" and \"second\""},
        {{"hu", "hu"}, 1, "dose_per_activity", 1, "two CTs, \"first\" and \"second\""},
        {{"uptake", "other"}, 1, "dose_per_activity", 1, "\"second\" is other, neither a PET"},
        {{"suv", "hu"}, 2, "dose_per_activity", 1, "\"first\" has 2 channels"},
        {{"suv"}, 1, "suv", 1, "\"dose\" is suv, not dose_per_activity"},
        {{"suv", "hu"}, 1, "dose_per_activity", 3, "\"dose\" has another size"},
    };
    weights_writer w;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        begin_ports(&w, refused[i].quantities, refused[i].channels, refused[i].dose,
                    refused[i].kernel);
        refuse_model(&w, refused[i].what);
    }
    begin_scaling(&w, 8, 1);
    weights_output(&w, "another", 1);
    weights_node(&w, "Relu", "r", "dose", "another", NULL);
    refuse_model(&w, "2 outputs of dose_per_activity");

    weights_begin(&w, "xyz", 8, 8, 8);
    weights_input(&w, "pet", 1);
    weights_output(&w, "dose", 2);
    weights_random(&w, "w", 1, 1, 5, (const size_t[]){2, 1, 1, 1, 1});
    weights_node(&w, "Conv", "c", "pet w -", "dose", "{'kernel_shape': [1, 1, 1]}");
    refuse_model(&w, "output \"dose\" has 2 channels");
}

static void test_voxels_that_are_no_numbers(void **state)
{
    (void)state;
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(9, 8, 7);
    dm_predict_options o = plain_options();
    pet->data[4 + 9 * (3 + 8 * 5)] = NAN;
    refuse_run(model, &o, pet, DM_ERROR_VALUE, "(4, 3, 5) of the PET is nan", "--nan-to-zero");
    pet->data[4 + 9 * (3 + 8 * 5)] = -INFINITY;
    refuse_run(model, &o, pet, DM_ERROR_VALUE, "is -inf", "--nan-to-zero");
    o.nan_to_zero = true;
    dm_prediction *p = predict(model, &o, pet, NULL);
    assert_true(dose_of(p)[4 + 9 * (3 + 8 * 5)] == 0);
    assert_true(dm_volume_all_finite(dm_prediction_dose(p), NULL));
    dm_prediction_free(p);
    dm_volume_free(pet);
    dm_model_free(model);
}

static void test_grids(void **state)
{
    (void)state;
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(9, 8, 7);
    dm_predict_options o = plain_options();
    dm_volume flat = *pet, empty = *pet, absent = *pet, huge = *pet;
    memset(flat.grid.affine, 0, sizeof flat.grid.affine);
    refuse_run(model, &o, &flat, DM_ERROR_VALUE, "degenerate", "orientation");
    empty.grid.dim[1] = 0;
    refuse_run(model, &o, &empty, DM_ERROR_VALUE, "9 x 0 x 7", "voxels");
    absent.data = NULL;
    refuse_run(model, &o, &absent, DM_ERROR_VALUE, "no PET", "volume");
    huge.grid.dim[1] = SIZE_MAX / 2;
    refuse_run(model, &o, &huge, DM_ERROR_VALUE, "9 x 9223372036854775807 x 7", "memory");
    dm_volume_free(pet);
    dm_model_free(model);
}

static void test_network_overflow(void **state)
{
    (void)state;
    weights_writer w;
    begin_scaling(&w, 8, 3e38f);
    dm_model *model = finish_model(&w);
    dm_volume *pet = make_pet(9, 8, 7);
    for (size_t i = 0; i < 9 * 8 * 7; i++)
        pet->data[i] = 0.1f;
    pet->data[5 + 9 * (2 + 8 * 6)] = 10;
    for (unsigned threads = 1; threads <= 3; threads++) {
        dm_predict_options o = plain_options();
        o.threads = threads;
        refuse_run(model, &o, pet, DM_ERROR_VALUE, "output is not finite at voxel (5, 2, 6)",
                   "units");
    }
    dm_volume_free(pet);
    dm_model_free(model);
}

static void set_intensity(weights_writer *w, const char *list, const char *steps)
{
    json_object_set_new(json_array_get(json_object_get(w->graph, list), 0), "intensity",
                        weights_json(steps));
}

static void test_transforms_without_a_value(void **state)
{
    (void)state;
    weights_writer w;
    dm_predict_options o = plain_options();
    dm_volume *pet = make_pet(9, 8, 7);
    pet->data[3 + 9 * (1 + 8 * 2)] = -5;
    begin_scaling(&w, 8, 1);
    set_intensity(&w, "inputs", "[{'sqrt': true}]");
    dm_model *model = finish_model(&w);
    refuse_run(model, &o, pet, DM_ERROR_VALUE, "voxel (3, 1, 2), -5 as stored", "negative");
    dm_model_free(model);

    begin_scaling(&w, 8, 1);
    set_intensity(&w, "outputs", "[{'scale': 100, 'offset': 0}, {'expm1': true}]");
    model = finish_model(&w);
    pet->data[3 + 9 * (1 + 8 * 2)] = 1;
    for (size_t i = 0; i < 9 * 8 * 7; i++)
        pet->data[i] = 0.1f;
    pet->data[2 + 9 * (1 + 8 * 2)] = 1;
    refuse_run(model, &o, pet, DM_ERROR_VALUE, "output transform is not finite at voxel (2, 1, 2)",
               "units");
    dm_model_free(model);
    dm_volume_free(pet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_options),
                                       cmocka_unit_test(test_devices),
                                       cmocka_unit_test(test_tiles),
                                       cmocka_unit_test(test_tile_statistics),
                                       cmocka_unit_test(test_models),
                                       cmocka_unit_test(test_voxels_that_are_no_numbers),
                                       cmocka_unit_test(test_grids),
                                       cmocka_unit_test(test_network_overflow),
                                       cmocka_unit_test(test_transforms_without_a_value)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
