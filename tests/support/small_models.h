/* SPDX-License-Identifier: Apache-2.0 */
/* Small networks and volumes for the tests of prediction. */
#ifndef DOSEMAP_TESTS_SMALL_MODELS_H
#define DOSEMAP_TESTS_SMALL_MODELS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grids.h"
#include "weights_writer.h"

static inline void no_error(dm_status status, const dm_error *err)
{
    char text[2048];
    if (status != DM_OK) {
        fprintf(stderr, "%s\n", dm_error_text(err, text, sizeof text));
        fail_msg("%s", dm_status_name(status));
    }
}

static inline dm_model *finish_model(weights_writer *w)
{
    dm_error err = {0};
    dm_model *model = NULL;
    no_error(weights_load(w, &model, &err), &err);
    weights_end(w);
    return model;
}

#define CONV_3 "{'kernel_shape': [3, 3, 3], 'pads': [1, 1, 1, 1, 1, 1]}"

/* One 3x3x3 convolution with these weights, in order x, y, z of the network. */
static inline void begin_convolution(weights_writer *w, int patch, const float kernel[27])
{
    weights_begin(w, "xyz", patch, patch, patch);
    weights_input(w, "pet", 1);
    weights_output(w, "dose", 1);
    weights_values(w, "w", 5, (const size_t[]){1, 1, 3, 3, 3}, kernel);
    weights_node(w, "Conv", "conv", "pet w -", "dose", CONV_3);
}

/* dose = factor * pet. */
static inline void begin_scaling(weights_writer *w, int patch, float factor)
{
    float kernel[27] = {0};
    kernel[13] = factor;
    begin_convolution(w, patch, kernel);
}

static inline dm_model *identity_model(int patch)
{
    weights_writer w;
    begin_scaling(&w, patch, 1);
    return finish_model(&w);
}

/* A network that treats no direction like another, with a hidden layer. */
static inline void begin_lopsided(weights_writer *w, int patch)
{
    weights_begin(w, "xyz", patch, patch, patch);
    weights_input(w, "pet", 1);
    weights_output(w, "dose", 1);
    weights_random(w, "w1", 11, 0.3f, 5, (const size_t[]){6, 1, 3, 3, 3});
    weights_random(w, "b1", 12, 0.1f, 1, (const size_t[]){6});
    weights_random(w, "w2", 13, 0.3f, 5, (const size_t[]){1, 6, 3, 3, 3});
    weights_node(w, "Conv", "c1", "pet w1 b1", "h1", CONV_3);
    weights_node(w, "LeakyRelu", "r1", "h1", "h2", "{'alpha': 0.2}");
    weights_node(w, "Conv", "c2", "h2 w2 -", "dose", CONV_3);
}

/* Down by 2 and up again, with a normalisation of each tile if asked for: total stride 2. */
static inline void begin_strided(weights_writer *w, int patch, bool instance_norm)
{
    const float scale[4] = {1, 1, 1, 1}, shift[4] = {0};
    weights_begin(w, "xyz", patch, patch, patch);
    weights_input(w, "pet", 1);
    weights_output(w, "dose", 1);
    weights_random(w, "w1", 21, 0.3f, 5, (const size_t[]){4, 1, 2, 2, 2});
    weights_random(w, "w2", 22, 0.3f, 5, (const size_t[]){4, 1, 2, 2, 2});
    weights_node(w, "Conv", "down", "pet w1 -", "h1",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
    if (instance_norm) {
        weights_values(w, "scale", 1, (const size_t[]){4}, scale);
        weights_values(w, "shift", 1, (const size_t[]){4}, shift);
        weights_node(w, "InstanceNormalization", "norm", "h1 scale shift", "h2", NULL);
    } else {
        weights_node(w, "Relu", "relu", "h1", "h2", NULL);
    }
    weights_node(w, "ConvTranspose", "up", "h2 w2 -", "dose",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
}

/* A PET of values between 0.5 and 10 on an RAS grid. */
static inline dm_volume *make_pet(size_t x, size_t y, size_t z)
{
    const size_t dim[3] = {x, y, z};
    dm_grid grid = oriented_grid(0, dim, (const double[]){4, 4, 5});
    dm_error err = {0};
    dm_volume *pet = NULL;
    no_error(dm_volume_create(&grid, &pet, &err), &err);
    uint32_t state = 1;
    for (size_t i = 0; i < x * y * z; i++) {
        state = state * 1664525u + 1013904223u;
        pet->data[i] = 0.5f + 9.5f * (float)(state >> 8) / 16777216.0f;
    }
    return pet;
}

/* SUV of a patient of the reference weight: uptake equals the stored value. */
static inline dm_pet_info unit_info(void)
{
    dm_pet_info info;
    dm_pet_info_init(&info);
    info.units = DM_UNITS_SUV;
    info.body_weight_kg = DM_REFERENCE_WEIGHT_KG;
    return info;
}

/* Options for exact comparisons: one thread, all windows run. */
static inline dm_predict_options plain_options(void)
{
    dm_predict_options options;
    dm_predict_options_init(&options);
    options.threads = 1;
    options.skip_air = -INFINITY;
    options.precision = DM_PRECISION_FLOAT32;
#ifdef PREDICT_DEVICE /* the same tests for another backend */
    options.device = PREDICT_DEVICE;
#endif
    return options;
}

static inline dm_prediction *predict(const dm_model *model, const dm_predict_options *options,
                                     const dm_volume *pet, const dm_labels *labels)
{
    dm_error err = {0};
    dm_predictor *predictor = NULL;
    dm_prediction *prediction = NULL;
    dm_pet_info info = unit_info();
    no_error(dm_predictor_create(model, options, &predictor, &err), &err);
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info, .labels = labels},
                              &prediction, &err),
             &err);
    dm_predictor_free(predictor);
    return prediction;
}

static inline const float *dose_of(const dm_prediction *prediction)
{
    return dm_prediction_dose(prediction)->data;
}

#endif
