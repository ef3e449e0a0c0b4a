/* SPDX-License-Identifier: Apache-2.0 */
/* Statistics of benchmarks, the PET that is made for them, and dm_benchmark's promises that need no
 * clock: options, progress, cancelling. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "predict/measure.h"
#include "predict/synthetic_pet.h"

#define MODEL TEST_GOLDEN_DIR "/batch-small/model.safetensors.zst"

/* ---- Statistics ----------------------------------------------------------------------------- */

static void percentiles_are_nearest_ranks(void **state)
{
    double values[] = {7, 1, 10, 3, 5, 2, 9, 4, 8, 6};
    (void)state;
    measure_sort(values, 10);
    assert_true(measure_percentile(values, 10, 0) == 1);
    assert_true(measure_percentile(values, 10, 0.1) == 1);
    assert_true(measure_percentile(values, 10, 0.11) == 2);
    assert_true(measure_percentile(values, 10, 0.9) == 9);
    assert_true(measure_percentile(values, 10, 0.99) == 10);
    assert_true(measure_percentile(values, 10, 1) == 10);
    assert_true(isnan(measure_percentile(values, 0, 0.5)));
}

static void medians_of_even_and_odd_counts(void **state)
{
    double odd[] = {3, 1, 2}, even[] = {4, 1, 3, 2}, one[] = {5};
    (void)state;
    assert_true(measure_median(odd, 3) == 2);
    assert_true(measure_median(even, 4) == 2.5);
    assert_true(measure_median(one, 1) == 5);
    assert_true(isnan(measure_median(one, 0)));
}

static void a_run_has_as_many_calls_as_it_takes(void **state)
{
    (void)state;
    assert_int_equal(measure_calls(0, 5, 1), 1);
    assert_int_equal(measure_calls(0.5, 1, 0.1), 5);
    assert_int_equal(measure_calls(0.5, 10, 1), 5);
    assert_int_equal(measure_calls(0.5, 1, 3), 1);
    assert_true(measure_calls(0.5, 1, 0) > 1000); /* a clock that stands still ends, too */
    assert_true(measure_calls(1e9, 1, 0) <= 100000000);
}

/* ---- The PET -------------------------------------------------------------------------------- */

static void a_pet_is_made(void **state)
{
    const size_t size[3] = {40, 33, 50};
    dm_volume *pet, *again;
    dm_pet_info info;
    double factor, sum = 0;
    float highest = 0;
    (void)state;
    assert_int_equal(synthetic_pet(size, &pet, &info, NULL), DM_OK);
    assert_int_equal(synthetic_pet(size, &again, &info, NULL), DM_OK);
    size_t n = dm_grid_voxels(&pet->grid);
    assert_int_equal(n, (size_t)40 * 33 * 50);
    assert_memory_equal(pet->data, again->data, n * sizeof *pet->data);
    assert_true(dm_volume_all_finite(pet, NULL));
    for (size_t i = 0; i < n; i++) {
        assert_true(pet->data[i] > 0);
        sum += (double)pet->data[i];
        highest = fmaxf(highest, pet->data[i]);
    }
    assert_true(pet->data[0] < 0.04f); /* air */
    assert_true(highest > 30 && highest < 60);
    assert_true(sum / (double)n > 0.1 && sum / (double)n < 1);
    assert_int_equal(dm_pet_factor(&info, DM_QUANTITY_UPTAKE, &factor, NULL), DM_OK);
    assert_true(fabs(factor - 1) <= 1e-12);
    dm_volume_free(pet);
    dm_volume_free(again);
}

/* ---- dm_benchmark --------------------------------------------------------------------------- */

typedef struct listener {
    double last;
    size_t calls, stop_at;
    char stages[512];
} listener;

static int listen(void *user, double share, const char *stage)
{
    listener *l = user;
    assert_true(share >= l->last - 1e-12 && share <= 1 + 1e-12);
    l->last = share;
    if (!strstr(l->stages, stage)) {
        assert_true(strlen(l->stages) + strlen(stage) + 2 < sizeof l->stages);
        strcat(strcat(l->stages, stage), ";");
    }
    return ++l->calls == l->stop_at;
}

static dm_status run(listener *l, dm_benchmark_options *options, char **json, dm_error *err)
{
    dm_predict_options predict;
    dm_model *model;
    dm_predict_options_init(&predict);
    predict.device = "cpu";
    predict.overlap = 0;
    predict.threads = 2;
    predict.progress = listen;
    predict.progress_user = l;
    assert_int_equal(dm_model_load(MODEL, &model, NULL), DM_OK);
    options->size[0] = 17;
    options->size[1] = options->size[2] = 16;
    dm_status status = dm_benchmark(model, &predict, options, NULL, json, err);
    assert_int_equal(status == DM_OK, *json != NULL);
    dm_model_free(model);
    return status;
}

static dm_benchmark_options quick(void)
{
    dm_benchmark_options options;
    dm_benchmark_options_init(&options);
    assert_int_equal(options.scenarios, DM_SCENARIO_ALL);
    options.runs = options.warmup = 1;
    return options;
}

static void progress_goes_forward(void **state)
{
    listener l = {0};
    dm_benchmark_options options = quick();
    char *json;
    (void)state;
    assert_int_equal(run(&l, &options, &json, NULL), DM_OK);
    assert_non_null(strstr(json, "\"patches_per_s\""));
    assert_string_equal(l.stages, "offline;single stream;volume;ceilings;reference;");
    dm_string_free(json);
}

static void it_is_cancelled_wherever_it_is_asked(void **state)
{
    dm_benchmark_options options = quick();
    listener all = {0};
    char *json;
    (void)state;
    assert_int_equal(run(&all, &options, &json, NULL), DM_OK);
    dm_string_free(json);
    const size_t stops[] = {1, 2, 4, all.calls / 2, all.calls};
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        listener l = {.stop_at = stops[i]};
        dm_error err = {0};
        assert_int_equal(run(&l, &options, &json, &err), DM_CANCELLED);
        assert_int_equal(err.status, DM_CANCELLED);
        assert_int_equal(l.calls, stops[i]);
    }
}

static void bad_options_are_refused(void **state)
{
    char *json;
    (void)state;
    for (int i = 0; i < 5; i++) {
        listener l = {0};
        dm_error err = {0};
        dm_benchmark_options options = quick();
        dm_status expected = DM_ERROR_VALUE;
        if (i == 0)
            options.scenarios = 0;
        else if (i == 1)
            options.scenarios = 8;
        else if (i == 2)
            options.runs = 1000000;
        else if (i == 3)
            options.warmup = 1000000;
        else {
            options.tune = true;
            expected = DM_ERROR_UNSUPPORTED;
        }
        assert_int_equal(run(&l, &options, &json, &err), expected);
        assert_true(err.what[0] && err.remedy[0]);
        assert_int_equal(l.calls, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percentiles_are_nearest_ranks),
        cmocka_unit_test(medians_of_even_and_odd_counts),
        cmocka_unit_test(a_run_has_as_many_calls_as_it_takes),
        cmocka_unit_test(a_pet_is_made),
        cmocka_unit_test(progress_goes_forward),
        cmocka_unit_test(it_is_cancelled_wherever_it_is_asked),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
