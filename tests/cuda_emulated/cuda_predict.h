/* SPDX-License-Identifier: Apache-2.0 */
/* Predictions by the CUDA backend on the emulated toolkit inside of the test's own program, so that
 * the test can look at what the emulation counts, and set what it does. */
#ifndef DOSEMAP_TESTS_CUDA_PREDICT_H
#define DOSEMAP_TESTS_CUDA_PREDICT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "emulation.h"
#include "predict/cuda_module.h"
#include "small_models.h"

dm_status dosemap_cuda_backend(const cuda_module_stamp *stamp, const cuda_module **module,
                               dm_error *err);
dm_status __wrap_cuda_module_load(const cuda_module **module, dm_error *err);

/* In the place of the loader (--wrap). */
dm_status __wrap_cuda_module_load(const cuda_module **module, dm_error *err)
{
    const cuda_module_stamp stamp = CUDA_MODULE_STAMP;
    return dosemap_cuda_backend(&stamp, module, err);
}

/* What is predicted. */
typedef struct predict_case {
    dm_model *model;
    dm_volume *pet, *ct; /* ct: NULL for networks without */
    dm_labels *labels;
    size_t voxels;
    dm_predict_options options; /* device cuda */
} predict_case;

static inline predict_case case_of(dm_model *model, size_t x, size_t y, size_t z)
{
    predict_case c = {.model = model, .pet = make_pet(x, y, z), .options = plain_options()};
    dm_error err = {0};
    c.voxels = dm_grid_voxels(&c.pet->grid);
    int32_t *ids = calloc(c.voxels, sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < c.voxels; i++)
        ids[i] = i % 5 == 0 ? 1 : i > c.voxels / 2 ? 2 : 0;
    no_error(dm_labels_create(&c.pet->grid, ids, NULL, &c.labels, &err), &err);
    free(ids);
    c.options.device = "cuda";
    return c;
}

static inline void case_clear(predict_case *c)
{
    dm_labels_free(c->labels);
    dm_volume_free(c->pet);
    dm_volume_free(c->ct);
    dm_model_free(c->model);
}

/* NULL on failure. */
static inline dm_prediction *try_case(const predict_case *c, dm_error *err)
{
    dm_predictor *predictor = NULL;
    dm_prediction *prediction = NULL;
    dm_pet_info info = unit_info();
    if (dm_predictor_create(c->model, &c->options, &predictor, err) == DM_OK)
        dm_predictor_run(
            predictor,
            &(dm_patient){.pet = c->pet, .info = &info, .ct = c->ct, .labels = c->labels},
            &prediction, err);
    dm_predictor_free(predictor);
    return prediction;
}

static inline dm_prediction *run_case_on(const predict_case *c, const char *device)
{
    predict_case other = *c;
    dm_error err = {0};
    other.options.device = device;
    dm_prediction *p = try_case(&other, &err);
    no_error(err.status, &err);
    return p;
}

/* A member of the provenance, as JSON; NULL if it has none. The caller releases *root. */
static inline const json_t *provenance_of(const dm_prediction *p, const char *section,
                                          const char *key, json_t **root)
{
    *root = json_loads(dm_prediction_provenance_json(p), 0, NULL);
    const json_t *object = section ? json_object_get(*root, section) : *root;
    return json_object_get(object, key);
}

static inline size_t batch_of(const dm_prediction *p)
{
    json_t *root;
    size_t batch = (size_t)json_integer_value(provenance_of(p, "Options", "Batch", &root));
    json_decref(root);
    return batch;
}

/* Doses and DVHs to the bit. */
static inline void assert_same_prediction(const dm_prediction *a, const dm_prediction *b,
                                          size_t voxels)
{
    assert_memory_equal(dose_of(a), dose_of(b), voxels * sizeof(float));
    const dm_dvh *x = dm_prediction_dvh(a), *y = dm_prediction_dvh(b);
    assert_int_equal(dm_dvh_count(x), dm_dvh_count(y));
    for (size_t i = 0; i < dm_dvh_count(x); i++) {
        const dm_structure_dose *s = dm_dvh_structure(x, i), *t = dm_dvh_structure(y, i);
        assert_int_equal(s->bins, t->bins);
        assert_memory_equal(s->histogram, t->histogram, s->bins * sizeof *s->histogram);
    }
}

#endif
