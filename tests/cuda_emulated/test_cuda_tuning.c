/* SPDX-License-Identifier: Apache-2.0 */
/* Who computes convolutions: timed and kept, used by later predictions, given up where it cannot be
 * used any more; and convolutions of ours alone, with and without the vendor's library. */
#include "cuda_predict.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/output_file.h"
#include "library_convolution_reference.h"
#include "predict/predictor.h"

#define LEAKY "{'alpha': 0.2}"
enum { BATCH = 2 };

static char folder[] = "/tmp/dosemap-tuning-XXXXXX";

static int begin(void **state)
{
    (void)state;
    strcpy(strrchr(folder, '-'), "-XXXXXX");
    assert_non_null(mkdtemp(folder));
    return setenv("DOSEMAP_CACHE_DIR", folder, 1);
}

static int end(void **state)
{
    char command[100];
    (void)state;
    reference_convolution_set_fault(REFERENCE_SOUND, 0);
    reference_convolution_set_offers(0, 0, 0);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    return system(command);
}

/* A layer of 16 channels with LeakyReLU. */
static void add_layer(weights_writer *w, const char *name, const char *in, const char *out,
                      unsigned seed)
{
    char weight[16], bias[16], between[16], inputs[64];
    snprintf(weight, sizeof weight, "%s.w", name);
    snprintf(bias, sizeof bias, "%s.b", name);
    snprintf(between, sizeof between, "%s.y", name);
    snprintf(inputs, sizeof inputs, "%s %s %s", in, weight, bias);
    weights_random(w, weight, seed, 0.06f, 5, (const size_t[]){16, 16, 3, 3, 3});
    weights_random(w, bias, seed + 1, 0.1f, 1, (const size_t[]){16});
    weights_node(w, "Conv", name, inputs, between, CONV_3);
    weights_node(w, "LeakyRelu", between, between, out, LEAKY);
}

/* Two convolutions alike, one with a residual, one that makes voxels of two channels. */
static predict_case some_case(void)
{
    weights_writer w;
    weights_begin(&w, "xyz", 8, 8, 8);
    weights_input(&w, "pet", 1);
    weights_output(&w, "dose", 1);
    weights_random(&w, "first.w", 1, 0.3f, 5, (const size_t[]){16, 1, 3, 3, 3});
    weights_node(&w, "Conv", "first", "pet first.w -", "h0", CONV_3);
    add_layer(&w, "alike1", "h0", "h1", 2);
    add_layer(&w, "alike2", "h1", "h2", 4);
    weights_random(&w, "sum.w", 6, 0.06f, 5, (const size_t[]){16, 16, 3, 3, 3});
    weights_random(&w, "sum.b", 7, 0.1f, 1, (const size_t[]){16});
    weights_node(&w, "Conv", "sum", "h2 sum.w sum.b", "h3", CONV_3);
    weights_node(&w, "Add", "add", "h3 h0", "h4", NULL);
    weights_node(&w, "Relu", "relu", "h4", "h5", NULL);
    weights_random(&w, "head.w", 8, 0.3f, 5, (const size_t[]){1, 16, 1, 1, 1});
    weights_node(&w, "Conv", "head", "h5 head.w -", "dose", "{'kernel_shape': [1, 1, 1]}");
    predict_case c = case_of(finish_model(&w), 14, 10, 9);
    c.options.precision = DM_PRECISION_BF16;
    c.options.batch = BATCH;
    return c;
}

static void assert_near_the_cpu(const predict_case *c, const dm_prediction *p)
{
    predict_case exact = *c;
    exact.options.precision = DM_PRECISION_FLOAT32;
    dm_prediction *expected = run_case_on(&exact, "cpu");
    assert_true(relative_l2(dose_of(p), dose_of(expected), c->voxels) < 1e-2);
    dm_prediction_free(expected);
}

enum { PLENTY = 1 << 30 };

/* What `dosemap bench --tune` calls, with so much of the device's memory. */
static dm_status try_tune(const predict_case *c, dm_progress progress, size_t memory,
                          json_t **report, dm_error *err)
{
    dm_predictor *p = NULL;
    char *text = NULL;
    no_error(dm_predictor_create(c->model, &c->options, &p, err), err);
    assert_non_null(p->backend->tune);
    emulation_set_memory(memory);
    dm_status status = p->backend->tune(p->state, BATCH, progress, NULL, &text, err);
    emulation_set_memory(PLENTY);
    assert_true((status == DM_OK) == (text != NULL));
    *report = text ? json_loads(text, 0, NULL) : NULL;
    assert_true((text != NULL) == (*report != NULL));
    dm_string_free(text);
    dm_predictor_free(p);
    return status;
}

static json_t *tune(const predict_case *c)
{
    dm_error err = {0};
    json_t *report;
    no_error(try_tune(c, NULL, PLENTY, &report, &err), &err);
    return report;
}

static char *device_of(const dm_prediction *p)
{
    json_t *root;
    char *text = strdup(json_string_value(provenance_of(p, NULL, "Device", &root)));
    json_decref(root);
    return text;
}

static void assert_device_says(const dm_prediction *p, const char *words, bool says)
{
    char *text = device_of(p);
    if ((strstr(text, words) != NULL) != says)
        fail_msg("'%s' is %sin '%s'", words, says ? "not " : "", text);
    free(text);
}

static void assert_tuning(const dm_prediction *p, const json_t *report)
{
    json_t *root;
    char checksum[17];
    const json_t *tuning = provenance_of(p, NULL, "Tuning", &root);
    if (!report) {
        assert_true(json_is_null(tuning));
    } else {
        const char *file = json_string_value(json_object_get(report, "file"));
        assert_int_equal(file_checksum(file, checksum, NULL), DM_OK);
        assert_string_equal(json_string_value(json_object_get(tuning, "File")), file);
        assert_string_equal(json_string_value(json_object_get(tuning, "XXH64")), checksum);
        assert_string_equal(json_string_value(json_object_get(report, "xxh64")), checksum);
    }
    json_decref(root);
}

/* ---- Tuning --------------------------------------------------------------------------------- */

static const json_t *row_of(const json_t *report, const char *name)
{
    size_t i;
    const json_t *rows = json_object_get(report, "layers");
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "name")), name) == 0)
            return row;
    }
    fail_msg("there is no '%s'", name);
    return NULL;
}

static const char *way_of(const json_t *report, const char *name)
{
    return json_string_value(json_object_get(row_of(report, name), "way"));
}

/* Of what was timed for a layer, how many ways' names begin so; none of them is faster than what was
 * chosen. */
static int count_tried(const json_t *report, const char *name, const char *way, bool refused)
{
    const json_t *row = row_of(report, name);
    double best = json_real_value(json_object_get(row, "seconds"));
    size_t i;
    json_t *each;
    int n = 0;
    assert_true(best > 0);
    json_array_foreach(json_object_get(row, "tried"), i, each)
    {
        const json_t *seconds = json_object_get(each, "seconds");
        assert_true(!seconds || json_real_value(seconds) >= best);
        n += (seconds == NULL) == refused &&
             strncmp(json_string_value(json_object_get(each, "way")), way, strlen(way)) == 0;
    }
    return n;
}

static void test_the_fastest_is_kept(void **state)
{
    (void)state;
    predict_case c = some_case();
    /* Number 2 of 4, so much faster than the others that no own kernel's time matters. */
    reference_convolution_set_offers(4, 2, 60);
    json_t *report = tune(&c);
    assert_int_equal(count_tried(report, "alike1", "library: reference", false), 8);
    assert_int_equal(count_tried(report, "alike1", "kernel_convolution_tensor_core", false), 1);
    assert_int_equal(count_tried(report, "alike1", "kernel_convolution_halo", false), 1);
    assert_int_equal(count_tried(report, "alike1", "", true), 0);
    assert_string_equal(way_of(report, "first"), "kernel_convolution_first");
    assert_string_equal(way_of(report, "alike2"), way_of(report, "alike1"));
    assert_non_null(json_object_get(row_of(report, "alike2"), "same_as"));
    for (int i = 0; i < 2; i++) {
        const char *way = way_of(report, i ? "sum" : "alike1");
        if (strncmp(way, "library", 7) == 0 && !strstr(way, "reference 2"))
            fail_msg("%s", way);
    }
    json_decref(report);
    case_clear(&c);
}

/* Where the library is slow everywhere, a kernel of ours wins; the dose is as good. */
static void test_own_kernels_win(void **state)
{
    (void)state;
    predict_case c = some_case();
    reference_convolution_set_offers(1, 9, 700);
    json_t *report = tune(&c);
    assert_true(strncmp(way_of(report, "alike1"), "kernel_convolution_", 19) == 0);
    assert_true(strncmp(way_of(report, "sum"), "kernel_convolution_", 19) == 0);
    unsigned runs = reference_convolution_runs();
    dm_prediction *p = run_case_on(&c, "cuda");
    assert_int_equal(reference_convolution_runs(), runs);
    assert_tuning(p, report);
    assert_device_says(p, ", tuned", true);
    assert_near_the_cpu(&c, p);
    dm_prediction_free(p);
    json_decref(report);
    case_clear(&c);
}

/* The library is fastest beyond doubt: own kernels are emulated with every thread's every step, on
 * voxels of many channels. */
static json_t *tune_for_library(const predict_case *c)
{
    reference_convolution_set_offers(3, 1, 60);
    json_t *report = tune(c);
    const char *way = way_of(report, "sum");
    if (!strstr(way, "library: reference 1"))
        fail_msg("%s", way);
    return report;
}

/* Later predictions have its plans without making them, and the same bytes each time. */
static void test_predictions_use_it(void **state)
{
    (void)state;
    predict_case c = some_case();
    dm_prediction *p[2];
    json_t *report = tune_for_library(&c);
    for (int i = 0; i < 2; i++) {
        unsigned made = reference_convolution_plans(), restored = reference_convolution_restored();
        p[i] = run_case_on(&c, "cuda");
        assert_int_equal(reference_convolution_plans(), made);
        assert_true(reference_convolution_restored() > restored);
        assert_tuning(p[i], report);
        assert_device_says(p[i], ", tuned", true);
        assert_device_says(p[i], "not used", false);
    }
    assert_same_prediction(p[0], p[1], c.voxels);
    assert_near_the_cpu(&c, p[0]);
    dm_prediction_free(p[0]);
    dm_prediction_free(p[1]);
    json_decref(report);
    case_clear(&c);
}

/* Devices that share a volume, and have looked for a file before there was one, do as the first. */
static void test_several_devices(void **state)
{
    (void)state;
    predict_case c = some_case();
    dm_predictor *predictor = NULL;
    dm_prediction *p[2] = {NULL, NULL};
    dm_pet_info info = unit_info();
    dm_error err = {0};
    emulation_set_devices(2);
    dm_volume_free(c.pet);
    c.pet = make_pet(9, 9, 24);
    c.voxels = dm_grid_voxels(&c.pet->grid);
    c.options.device = "cuda:0,1";
    no_error(dm_predictor_create(c.model, &c.options, &predictor, &err), &err);
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = c.pet, .info = &info}, &p[0], &err),
             &err);
    assert_device_says(p[0], "2 x ", true);
    assert_tuning(p[0], NULL);
    reference_convolution_set_offers(3, 1, 60);
    no_error(predictor->backend->tune(predictor->state, BATCH, NULL, NULL, NULL, &err), &err);
    unsigned restored[3] = {reference_convolution_restored()};
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = c.pet, .info = &info}, &p[1], &err),
             &err);
    restored[1] = reference_convolution_restored();
    assert_device_says(p[1], "2 x ", true);
    assert_device_says(p[1], ", tuned", true);
    dm_predictor_free(predictor);
    dm_labels_free(c.labels);
    c.labels = NULL;
    dm_prediction *alone = run_case_on(&c, "cuda:1");
    restored[2] = reference_convolution_restored();
    assert_true(restored[2] > restored[1]);
    assert_int_equal(restored[1] - restored[0], 2 * (restored[2] - restored[1]));
    assert_memory_equal(dose_of(p[1]), dose_of(alone), c.voxels * sizeof(float));
    dm_prediction_free(p[0]);
    dm_prediction_free(p[1]);
    dm_prediction_free(alone);
    case_clear(&c);
    emulation_set_devices(1);
}

/* Another batch, type or choice by hand has nothing to do with it. */
static void test_what_it_is_not_for(void **state)
{
    (void)state;
    predict_case c = some_case();
    json_t *report = tune_for_library(&c);
    for (int i = 0; i < 4; i++) {
        predict_case other = c;
        if (i == 0)
            other.options.batch = BATCH - 1;
        else if (i == 1)
            other.options.precision = DM_PRECISION_FP16;
        else
            other.options.convolutions = i == 2 ? DM_CONVOLUTIONS_LIBRARY : DM_CONVOLUTIONS_OWN;
        dm_prediction *p = run_case_on(&other, "cuda");
        assert_tuning(p, NULL);
        assert_device_says(p, "tun", false);
        assert_near_the_cpu(&c, p);
        dm_prediction_free(p);
    }
    json_decref(report);
    case_clear(&c);
}

/* Plans that compute wrongly, fail, or could not be part of a graph are refused, however fast. */
static void test_refused_plans(void **state)
{
    (void)state;
    static const reference_fault faults[] = {REFERENCE_WRONG, REFERENCE_FAILS,
                                             REFERENCE_UNRECORDED};
    predict_case c = some_case();
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        reference_convolution_set_offers(2, 0, 60);
        reference_convolution_set_fault(faults[i], 1);
        json_t *report = tune(&c);
        assert_int_equal(count_tried(report, "sum", "library", true), 2);
        assert_int_equal(count_tried(report, "sum", "library", false), 2);
        assert_null(strstr(way_of(report, "sum"), "reference 0"));
        json_decref(report);
    }
    case_clear(&c);
}

/* ---- What became of it ---------------------------------------------------------------------- */

/* The library does not offer the plan any more, or it computes wrongly now. */
static void test_plans_that_changed(void **state)
{
    (void)state;
    static const char *const words[] = {"not offered any more", "deviates"};
    predict_case c = some_case();
    for (int i = 0; i < 2; i++) {
        json_t *report = tune_for_library(&c);
        if (i == 0)
            reference_convolution_set_offers(1, 0, 0);
        else
            reference_convolution_set_fault(REFERENCE_WRONG, 2);
        dm_prediction *p = run_case_on(&c, "cuda");
        assert_device_says(p, words[i], true);
        assert_device_says(p, "reference 1", i == 1);
        assert_near_the_cpu(&c, p);
        assert_tuning(p, report);
        dm_prediction_free(p);
        json_decref(report);
    }
    case_clear(&c);
}

/* A damaged file is as good as none. */
static void test_damaged_file(void **state)
{
    (void)state;
    predict_case c = some_case();
    reference_convolution_set_offers(3, 1, 60);
    dm_prediction *untuned = run_case_on(&c, "cuda");
    assert_device_says(untuned, "tun", false);
    json_t *report = tune_for_library(&c);
    assert_int_equal(truncate(json_string_value(json_object_get(report, "file")), 1000), 0);
    dm_prediction *p = run_case_on(&c, "cuda");
    assert_device_says(p, "tuning not used: /tmp/dosemap-tuning-", true);
    assert_device_says(p, "is damaged; run 'dosemap bench --tune' again", true);
    assert_tuning(p, NULL);
    assert_same_prediction(p, untuned, c.voxels);
    dm_prediction_free(p);
    dm_prediction_free(untuned);
    json_decref(report);
    case_clear(&c);
}

/* ---- Ends ----------------------------------------------------------------------------------- */

static int stop_at_half(void *user, double share, const char *stage)
{
    (void)user;
    assert_string_equal(stage, "tuning");
    assert_true(share >= 0 && share <= 1);
    return share >= 0.5;
}

static void assert_nothing_is_written(void)
{
    assert_int_equal(rmdir(folder), 0);
    assert_int_equal(mkdir(folder, 0755), 0);
}

static void test_interruption(void **state)
{
    (void)state;
    predict_case c = some_case();
    json_t *report;
    dm_error err = {0};
    assert_int_equal(try_tune(&c, stop_at_half, PLENTY, &report, &err), DM_CANCELLED);
    assert_nothing_is_written();
    case_clear(&c);
    assert_int_equal(emulation_list_leaks(), 0);
}

/* Trials that find no memory are refused; where the network itself finds none, that is the error. */
static void test_little_device_memory(void **state)
{
    (void)state;
    predict_case c = some_case();
    bool refused = false, failed = false;
    reference_convolution_set_offers(1, 0, 0);
    emulation_reset_counters();
    json_decref(tune(&c));
    const size_t peak = emulation_counters().device_bytes_peak;
    assert_true(peak > 0);
    for (size_t part = 15; part > 3; part -= 2) {
        json_t *report;
        dm_error err = {0};
        dm_status status = try_tune(&c, NULL, peak * part / 16, &report, &err);
        assert_true(status == DM_OK || status == DM_ERROR_MEMORY);
        failed |= status != DM_OK;
        refused |= report && count_tried(report, "sum", "", true) > 0;
        assert_true(!failed || status != DM_OK); /* less does not help */
        json_decref(report);
    }
    assert_true(refused && failed);
    case_clear(&c);
    assert_int_equal(emulation_list_leaks(), 0);
}

/* Nothing is made of what could not be kept. */
static void test_unwritable_folder(void **state)
{
    (void)state;
    predict_case c = some_case();
    json_t *report;
    dm_error err = {0};
    setenv("DOSEMAP_CACHE_DIR", "/proc/dosemap", 1);
    unsigned made = reference_convolution_plans();
    assert_int_equal(try_tune(&c, NULL, PLENTY, &report, &err), DM_ERROR_IO);
    assert_int_equal(reference_convolution_plans(), made);
    assert_non_null(strstr(err.remedy, "DOSEMAP_CACHE_DIR"));
    dm_prediction *p = run_case_on(&c, "cuda");
    assert_device_says(p, "tun", false);
    dm_prediction_free(p);
    case_clear(&c);
}

static void test_nothing_to_choose(void **state)
{
    (void)state;
    predict_case c = some_case();
    json_t *report;
    for (int i = 0; i < 2; i++) {
        dm_error err = {0};
        c.options.convolutions = i ? DM_CONVOLUTIONS_OWN : DM_CONVOLUTIONS_LIBRARY;
        assert_int_equal(try_tune(&c, NULL, PLENTY, &report, &err), DM_ERROR_UNSUPPORTED);
        assert_non_null(strstr(err.remedy, "--convolutions auto"));
    }
    assert_nothing_is_written();
    case_clear(&c);
}

/* ---- Without the library -------------------------------------------------------------------- */

static void test_own_convolutions(void **state)
{
    (void)state;
    predict_case c = some_case();
    dm_error err = {0};
    unsigned made = reference_convolution_plans();
    c.options.convolutions = DM_CONVOLUTIONS_OWN;
    dm_prediction *p = run_case_on(&c, "cuda");
    assert_device_says(p, "own convolutions", true);
    assert_device_says(p, "reference", false);
    predict_case plain = c; /* the CPU has one way only */
    plain.options.convolutions = DM_CONVOLUTIONS_AUTO;
    assert_near_the_cpu(&plain, p);
    setenv("DOSEMAP_REFERENCE_CONVOLUTION", "absent", 1);
    dm_prediction *without = run_case_on(&c, "cuda");
    assert_same_prediction(p, without, c.voxels);
    assert_int_equal(reference_convolution_plans(), made);
    c.options.convolutions = DM_CONVOLUTIONS_AUTO;
    assert_null(try_case(&c, &err));
    assert_int_equal(err.status, DM_ERROR_DEVICE);
    assert_non_null(strstr(err.remedy, "--convolutions own"));
    unsetenv("DOSEMAP_REFERENCE_CONVOLUTION");
    dm_prediction_free(p);
    dm_prediction_free(without);
    case_clear(&c);
}

/* A plan that cannot be recorded costs the graph, and that is said. */
static void test_graph_that_cannot_be_recorded(void **state)
{
    (void)state;
    predict_case c = some_case();
    dm_prediction *recorded = run_case_on(&c, "cuda");
    assert_device_says(recorded, "without a CUDA graph", false);
    reference_convolution_set_fault(REFERENCE_UNRECORDED, 9);
    emulation_reset_counters();
    dm_prediction *p = run_case_on(&c, "cuda");
    assert_int_equal(emulation_counters().graph_launches, 0);
    assert_device_says(p, "without a CUDA graph: running a convolution: planted", true);
    assert_same_prediction(p, recorded, c.voxels);
    dm_prediction_free(p);
    dm_prediction_free(recorded);
    case_clear(&c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_fastest_is_kept), TEST(test_own_kernels_win),
        TEST(test_predictions_use_it),  TEST(test_several_devices),
        TEST(test_what_it_is_not_for),  TEST(test_refused_plans),
        TEST(test_plans_that_changed),  TEST(test_damaged_file),
        TEST(test_interruption),        TEST(test_little_device_memory),
        TEST(test_unwritable_folder),   TEST(test_nothing_to_choose),
        TEST(test_own_convolutions),    TEST(test_graph_that_cannot_be_recorded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
