/* SPDX-License-Identifier: Apache-2.0 */
/* Prediction with network_values: the network's own values in and out, everything between them (tiles,
 * padding, blending, orientations, resampling) as ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "compare.h"
#include "kernels/intensity_value.h"
#include "model/graph.h"
#include "small_models.h"

enum { X = 21, Y = 13, Z = 17, VOXELS = X * Y * Z };
static const size_t ras[3] = {X, Y, Z};
static const double ras_mm[3] = {4, 3, 5};

/* ---- Networks ------------------------------------------------------------------------------- */

static void set_intensity(weights_writer *w, const char *list, size_t i, const char *steps)
{
    json_t *port = json_array_get(json_object_get(w->graph, list), i);
    assert_int_equal(json_object_set_new(port, "intensity", weights_json(steps)), 0);
}

typedef enum ports { PET_CT, CT_PET, OTHERS, ONE_PORT } ports;

/* One network of two channels that treats no direction and no channel like another, with these
 * ports. transforms: values that are far from the network's own. The card's threshold for air is
 * above all of them. */
static dm_model *two_channels(ports kind, bool transforms, const char *voxel_mm)
{
    static const char *const quantity[][2] = {
        {"uptake", "hu"}, {"hu", "uptake"}, {"other", "other"}};
    static const char *const unit[][2] = {{"g/mL", "HU"}, {"HU", "g/mL"}, {"1", "1"}};
    weights_writer w;
    const char *x = kind == ONE_PORT ? "a" : "both";
    char reads[32];
    weights_begin(&w, "xyz", 8, 8, 8);
    if (kind == ONE_PORT) {
        weights_port(&w, "inputs", "a", 2, "other", "1");
    } else {
        weights_port(&w, "inputs", "a", 1, quantity[kind][0], unit[kind][0]);
        weights_port(&w, "inputs", "b", 1, quantity[kind][1], unit[kind][1]);
        weights_node(&w, "Concat", "join", "a b", "both", "{'axis': 1}");
    }
    weights_port(&w, "outputs", "y", 1, kind < OTHERS ? "dose_per_activity" : "other",
                 kind < OTHERS ? "Gy/GBq" : "1");
    if (transforms) {
        set_intensity(&w, "inputs", 0, "[{'scale': 0.5, 'offset': 0.125}, {'log1p': true}]");
        set_intensity(&w, "inputs", 1, "[{'clip': [0.75, 8]}, {'sqrt': true}]");
        set_intensity(&w, "outputs", 0, "[{'scale': 3, 'offset': -0.25}, {'square': true}]");
        json_object_set_new(w.card, "skip_air", json_real(100));
    }
    if (voxel_mm)
        json_object_set_new(w.graph, "voxel_size_mm", weights_json(voxel_mm));
    weights_random(&w, "w1", 11, 0.3f, 5, (const size_t[]){7, 2, 3, 3, 3});
    weights_random(&w, "b1", 12, 0.1f, 1, (const size_t[]){7});
    weights_random(&w, "w2", 13, 0.3f, 5, (const size_t[]){1, 7, 3, 3, 3});
    snprintf(reads, sizeof reads, "%s w1 b1", x);
    weights_node(&w, "Conv", "c1", reads, "h1", CONV_3);
    weights_node(&w, "LeakyRelu", "r1", "h1", "h2", "{'alpha': 0.2}");
    weights_node(&w, "Conv", "c2", "h2 w2 -", "y", CONV_3);
    return finish_model(&w);
}

/* ---- Images --------------------------------------------------------------------------------- */

typedef struct images {
    dm_volume *first, *second;
} images;

static dm_volume *make_image(int orientation, uint32_t seed)
{
    float values[VOXELS];
    dm_error err = {0};
    dm_volume *volume = NULL;
    dm_grid grid = oriented_grid(orientation, ras, ras_mm);
    for (size_t i = 0; i < VOXELS; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = 0.5f + 9.5f * (float)(seed >> 8) / 16777216.0f;
    }
    no_error(dm_volume_create(&grid, &volume, &err), &err);
    store_oriented(orientation, ras, values, volume->data);
    return volume;
}

static images make_images(int orientation)
{
    return (images){make_image(orientation, 1), make_image(orientation, 2)};
}

static void free_images(images *im)
{
    dm_volume_free(im->first);
    dm_volume_free(im->second);
}

static dm_prediction *run(const dm_model *model, const dm_predict_options *options,
                          const dm_patient *patient)
{
    dm_error err = {0};
    dm_predictor *predictor = NULL;
    dm_prediction *prediction = NULL;
    no_error(dm_predictor_create(model, options, &predictor, &err), &err);
    no_error(dm_predictor_run(predictor, patient, &prediction, &err), &err);
    dm_predictor_free(predictor);
    return prediction;
}

/* As predict sees the images: quantities, on a patient whose uptake is what is stored. */
static dm_prediction *run_quantities(const dm_model *model, const dm_predict_options *options,
                                     const dm_volume *pet, const dm_volume *ct)
{
    const dm_pet_info info = unit_info();
    return run(model, options, &(dm_patient){.pet = pet, .info = &info, .ct = ct});
}

static dm_prediction *run_values(const dm_model *model, const dm_predict_options *options,
                                 const images *im)
{
    dm_predict_options o = *options;
    o.network_values = true;
    return run(model, &o, &(dm_patient){.pet = im->first, .ct = im->second});
}

static dm_predict_options any_options(int i)
{
    dm_predict_options o = plain_options();
    o.overlap = i % 2 ? 0.25 : 0.5;
    o.blend = i % 2 ? DM_BLEND_CONSTANT : DM_BLEND_GAUSSIAN;
    o.threads = i % 3 ? 1 : 3;
    o.skip_air = NAN; /* the card's would leave all windows out */
    return o;
}

/* ---- What it computes ----------------------------------------------------------------------- */

/* What predict makes of the same weights without transforms, byte for byte, whatever the ports mean:
 * in all orientations, on the volume's grid and on another. */
static void test_as_without_transforms(void **state)
{
    (void)state;
    static const char *const grids[] = {NULL, "[3.1, 6.5, 4.2]"};
    for (int g = 0; g < 2; g++) {
        dm_model *plain = two_channels(PET_CT, false, grids[g]);
        dm_model *with[] = {
            two_channels(PET_CT, true, grids[g]), two_channels(CT_PET, true, grids[g]),
            two_channels(OTHERS, true, grids[g]), two_channels(OTHERS, false, grids[g]),
            two_channels(ONE_PORT, false, grids[g])};
        for (int i = 0; i < ORIENTATIONS; i += g ? 13 : 5) {
            images im = make_images(i);
            dm_predict_options o = any_options(i);
            dm_prediction *expected = run_quantities(plain, &o, im.first, im.second);
            for (size_t m = 0; m < sizeof with / sizeof *with; m++) {
                dm_prediction *p = run_values(with[m], &o, &im);
                assert_memory_equal(dose_of(p), dose_of(expected), VOXELS * sizeof(float));
                assert_true(dm_grid_equal(&dm_prediction_dose(p)->grid, &im.first->grid, NULL, 0));
                dm_prediction_free(p);
            }
            dm_prediction_free(expected);
            free_images(&im);
        }
        for (size_t m = 0; m < sizeof with / sizeof *with; m++)
            dm_model_free(with[m]);
        dm_model_free(plain);
    }
}

static void transform(const intensity_transform *t, dm_volume *image)
{
    for (size_t i = 0; i < VOXELS; i++)
        image->data[i] = intensity_transformed(t, image->data[i]);
}

/* Who applies the transforms before and behind it gets what predict gives. */
static void test_transforms_by_the_caller(void **state)
{
    (void)state;
    for (int kind = PET_CT; kind <= CT_PET; kind++) {
        dm_model *model = two_channels((ports)kind, true, NULL);
        const graph *g = &model->graph;
        images im = make_images(kind * 7);
        dm_predict_options o = any_options(kind);
        o.skip_air = -INFINITY;
        dm_prediction *expected = kind == PET_CT ? run_quantities(model, &o, im.first, im.second)
                                                 : run_quantities(model, &o, im.second, im.first);
        transform(&g->inputs[0].intensity, im.first);
        transform(&g->inputs[1].intensity, im.second);
        dm_prediction *p = run_values(model, &o, &im);
        dm_volume back = *dm_prediction_dose(p);
        assert_true(relative_l2(back.data, dose_of(expected), VOXELS) > 0.1);
        transform(&g->outputs[0].intensity, &back);
        assert_true(arrays_close(back.data, VOXELS, dose_of(expected), VOXELS, 1e-6, 1e-6));
        dm_prediction_free(p);
        dm_prediction_free(expected);
        free_images(&im);
        dm_model_free(model);
    }
}

/* Of one channel: values below zero, which the transform has no value for; the threshold for air,
 * in the network's values; voxels that are no numbers. */
static void test_one_channel(void **state)
{
    (void)state;
    weights_writer w;
    begin_scaling(&w, 8, 2);
    set_intensity(&w, "inputs", 0, "[{'sqrt': true}]");
    dm_model *model = finish_model(&w);
    dm_volume *image = make_image(0, 3);
    dm_predict_options o = plain_options();
    float expected[VOXELS];
    o.overlap = 0;
    for (size_t i = 0; i < VOXELS; i++) {
        image->data[i] = i % X < 8 ? -3 : 1;
        expected[i] = 2 * image->data[i];
    }
    const images im = {image, NULL};
    dm_prediction *p = run_values(model, &o, &im);
    assert_true(arrays_close(dose_of(p), VOXELS, expected, VOXELS, 0, 1e-6));
    dm_prediction_free(p);
    o.skip_air = -2;
    o.nan_to_zero = true;
    image->data[20] = NAN;
    expected[20] = 0;
    for (size_t i = 0; i < VOXELS; i++)
        expected[i] = i % X < 8 ? 0 : expected[i];
    p = run_values(model, &o, &im);
    assert_true(arrays_close(dose_of(p), VOXELS, expected, VOXELS, 0, 1e-6));
    dm_prediction_free(p);
    dm_volume_free(image);
    dm_model_free(model);
}

/* Of several outputs the dose is taken. */
static void test_output_of_several(void **state)
{
    (void)state;
    weights_writer w;
    dm_predict_options o = plain_options();
    dm_volume *image = make_image(0, 3);
    begin_scaling(&w, 8, 2);
    json_array_clear(json_object_get(w.graph, "outputs"));
    weights_port(&w, "outputs", "shown", 1, "other", "1");
    weights_output(&w, "dose", 1);
    weights_node(&w, "Relu", "r", "dose", "shown", NULL);
    dm_model *model = finish_model(&w);
    for (size_t i = 0; i < VOXELS; i++)
        image->data[i] = i % 3 ? -2.0f : 1.0f;
    dm_prediction *p = run_values(model, &o, &(images){image, NULL});
    for (size_t i = 0; i < VOXELS; i++)
        assert_true(fabsf(dose_of(p)[i] - 2 * image->data[i]) < 1e-5f);
    dm_prediction_free(p);
    dm_volume_free(image);
    dm_model_free(model);
}

/* ---- What it says --------------------------------------------------------------------------- */

static const char *text_at(const json_t *root, const char *a, const char *b)
{
    const json_t *value = json_object_get(root, a);
    return json_string_value(b ? json_object_get(value, b) : value);
}

static void check_facts(const json_t *root)
{
    assert_string_equal(text_at(root, "Units", NULL), "network values");
    assert_string_equal(text_at(root, "PET", "Units"), "network values");
    assert_string_equal(text_at(root, "CT", "Units"), "network values");
    assert_non_null(strstr(text_at(root, "Description", NULL), "not a dose"));
    assert_true(json_is_null(json_object_get(root, "TherapyActivityGBq")));
    assert_string_equal(text_at(root, "Options", "SkipAir"), "off");
}

static void test_provenance(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_model *model = two_channels(PET_CT, true, NULL);
    images im = make_images(0);
    dm_predict_options o = any_options(0);
    o.network_values = true;
    /* What is known of the PET has no part in it. */
    dm_pet_info info = unit_info();
    snprintf(info.sidecar, sizeof info.sidecar, "/nowhere/pet.json");
    const dm_ct_info ct_info = {.dim = {1, 1, 1}};
    dm_prediction *p =
        run(model, &o,
            &(dm_patient){.pet = im.first, .info = &info, .ct = im.second, .ct_info = &ct_info});
    json_t *root = json_loads(dm_prediction_provenance_json(p), 0, NULL);
    check_facts(root);
    json_decref(root);
    char folder[] = "/tmp/dosemap-test-XXXXXX", path[64];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/map.nii", folder);
    no_error(dm_prediction_write(p, path, NULL, 1, &err), &err);
    assert_int_equal(unlink(path), 0);
    snprintf(path, sizeof path, "%s/map.json", folder);
    root = json_load_file(path, 0, NULL);
    check_facts(root);
    json_decref(root);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0); /* nothing else was written */
    dm_prediction_free(p);
    free_images(&im);
    dm_model_free(model);
}

/* ---- What it refuses ------------------------------------------------------------------------ */

static void says(const dm_error *err, dm_status status, const char *what, const char *remedy)
{
    assert_int_equal(err->status, status);
    if (!strstr(err->what, what) || !strstr(err->remedy, remedy))
        fail_msg("'%s; %s' lacks '%s' or '%s'", err->what, err->remedy, what, remedy);
}

static void refuse_images(const dm_model *model, const dm_patient *patient, const char *what,
                          const char *remedy)
{
    dm_error err = {0};
    dm_predict_options o = plain_options();
    o.network_values = true;
    dm_predictor *predictor = NULL;
    dm_prediction *prediction = (dm_prediction *)&err;
    no_error(dm_predictor_create(model, &o, &predictor, &err), &err);
    assert_int_equal(dm_predictor_run(predictor, patient, &prediction, &err), DM_ERROR_VALUE);
    assert_null(prediction);
    says(&err, DM_ERROR_VALUE, what, remedy);
    dm_predictor_free(predictor);
}

static void test_images_refused(void **state)
{
    (void)state;
    static const uint8_t mask[VOXELS] = {1};
    dm_error err = {0};
    dm_labels *labels = NULL;
    dm_model *two = two_channels(OTHERS, false, NULL), *one = identity_model(8);
    images im = make_images(0);
    no_error(dm_labels_create_masks(&im.first->grid, 1, (const char *const[]){"a"},
                                    (const uint8_t *const[]){mask}, &labels, &err),
             &err);
    refuse_images(one, &(dm_patient){.pet = im.first, .activity_gbq = 7.4}, "a therapy activity",
                  "leave it out");
    refuse_images(one, &(dm_patient){.pet = im.first, .labels = labels}, "labels",
                  "leave them out");
    refuse_images(one, &(dm_patient){.pet = im.first, .ct = im.second},
                  "1 channel, and there are two", "for each of its channels");
    refuse_images(two, &(dm_patient){.pet = im.first}, "2 channels, and there is one image",
                  "for each of its channels");
    refuse_images(two, &(dm_patient){.ct = im.second}, "there is no PET", "give a volume");
    im.second->grid.affine[2][3] += 2;
    refuse_images(two, &(dm_patient){.pet = im.first, .ct = im.second},
                  "second channel does not lie on the PET's grid", "");
    im.second->grid.affine[2][3] -= 2;
    im.second->data[4 + X * (3 + Y * 5)] = NAN;
    refuse_images(two, &(dm_patient){.pet = im.first, .ct = im.second},
                  "voxel (4, 3, 5) of the second channel is nan", "repair");
    im.first->data[7] = INFINITY;
    refuse_images(two, &(dm_patient){.pet = im.first, .ct = im.second},
                  "voxel (7, 0, 0) of the first channel is inf", "--nan-to-zero");
    dm_labels_free(labels);
    free_images(&im);
    dm_model_free(two);
    dm_model_free(one);
}

static void refuse_model(weights_writer *w, const char *what)
{
    dm_error err = {0};
    dm_predict_options o = plain_options();
    dm_model *model = finish_model(w);
    dm_predictor *predictor = (dm_predictor *)&err;
    o.network_values = true;
    assert_int_equal(dm_predictor_create(model, &o, &predictor, &err), DM_ERROR_UNSUPPORTED);
    assert_null(predictor);
    says(&err, DM_ERROR_UNSUPPORTED, what, "dosemap forward");
    dm_model_free(model);
}

/* A network of one kernel of `edge` voxels over this many channels, with `outputs` outputs. */
static void begin_kernel(weights_writer *w, size_t channels, size_t out_channels, size_t edge,
                         int outputs)
{
    char kernel[48];
    weights_begin(w, "xyz", 8, 8, 8);
    weights_port(w, "inputs", "x", (int)channels, "other", "1");
    weights_port(w, "outputs", "y", (int)out_channels, "other", "1");
    weights_random(w, "w", 1, 1, 5, (const size_t[]){out_channels, channels, edge, edge, edge});
    snprintf(kernel, sizeof kernel, "{'kernel_shape': [%zu, %zu, %zu]}", edge, edge, edge);
    weights_node(w, "Conv", "c", "x w -", "y", kernel);
    if (outputs == 2) {
        weights_port(w, "outputs", "z", (int)out_channels, "other", "1");
        weights_node(w, "Relu", "r", "y", "z", NULL);
    }
}

static void test_models_refused(void **state)
{
    (void)state;
    weights_writer w;
    begin_kernel(&w, 3, 1, 1, 1);
    refuse_model(&w, "3 channels, and there are at most 2 images");
    begin_kernel(&w, 1, 2, 1, 1);
    refuse_model(&w, "output \"y\" has 2 channels, not one");
    begin_kernel(&w, 1, 1, 3, 1);
    refuse_model(&w, "another size than its input, not one value per voxel");
    begin_kernel(&w, 1, 1, 1, 2);
    refuse_model(&w, "2 outputs, and not one of them alone is dose_per_activity");

    dm_error err = {0};
    dm_predictor *predictor = (dm_predictor *)&err;
    dm_model *model = identity_model(8);
    dm_predict_options o = plain_options();
    o.network_values = true;
    o.activity_gbq = 7.4;
    assert_int_equal(dm_predictor_create(model, &o, &predictor, &err), DM_ERROR_VALUE);
    assert_null(predictor);
    says(&err, DM_ERROR_VALUE, "a therapy activity", "leave it out");
    dm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_without_transforms),
        cmocka_unit_test(test_transforms_by_the_caller),
        cmocka_unit_test(test_one_channel),
        cmocka_unit_test(test_output_of_several),
        cmocka_unit_test(test_provenance),
        cmocka_unit_test(test_images_refused),
        cmocka_unit_test(test_models_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
