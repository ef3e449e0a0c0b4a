/* SPDX-License-Identifier: Apache-2.0 */
/* Devices and libraries that fail: every call of the run-time library, plans that compute wrongly. */
#include "cuda_predict.h"
#include "library_convolution_reference.h"
#include "predict/cuda/cuda_state.h"

/* A network with a convolution that the library does, and most kinds of steps. */
static dm_model *varied_model(void)
{
    const float scale[8] = {1, 1, 1, 1, 1, 1, 1, 1}, shift[8] = {0};
    weights_writer w;
    weights_begin(&w, "xyz", 8, 8, 8);
    weights_input(&w, "pet", 1);
    weights_output(&w, "dose", 1);
    weights_random(&w, "w1", 11, 0.3f, 5, (const size_t[]){8, 1, 3, 3, 3});
    weights_random(&w, "w2", 12, 0.1f, 5, (const size_t[]){8, 8, 3, 3, 3});
    weights_random(&w, "w3", 13, 0.3f, 5, (const size_t[]){8, 8, 2, 2, 2});
    weights_random(&w, "w4", 14, 0.3f, 5, (const size_t[]){1, 16, 3, 3, 3});
    weights_values(&w, "scale", 1, (const size_t[]){8}, scale);
    weights_values(&w, "shift", 1, (const size_t[]){8}, shift);
    weights_node(&w, "Conv", "c1", "pet w1 -", "h1", CONV_3);
    weights_node(&w, "MaxPool", "pool", "h1", "h2",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
    weights_node(&w, "Conv", "c2", "h2 w2 -", "h3", CONV_3);
    weights_node(&w, "InstanceNormalization", "norm", "h3 scale shift", "h4", NULL);
    weights_node(&w, "Relu", "relu", "h4", "h5", NULL);
    weights_node(&w, "ConvTranspose", "up", "h5 w3 -", "h6",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
    weights_node(&w, "Concat", "cat", "h1 h6", "h7", "{'axis': 1}");
    weights_node(&w, "Conv", "c3", "h7 w4 -", "dose", CONV_3);
    return finish_model(&w);
}

/* ---- The device ----------------------------------------------------------------------------- */

typedef struct sweep {
    size_t calls, failed, survived, without_graph;
} sweep;

/* Fails the nth call, for every n: an error with words, or the same bytes. */
static sweep fail_each_call(const predict_case *c, cudaError_t error, dm_status expected,
                            uint64_t step)
{
    sweep seen = {0};
    emulation_reset_counters();
    dm_prediction *sound = run_case_on(c, "cuda");
    seen.calls = emulation_counters().calls;
    assert_true(emulation_counters().graph_launches > 0);
    for (uint64_t n = 1; n <= seen.calls; n += step) {
        dm_error err = {0};
        emulation_reset_counters();
        emulation_fail_call(n, error);
        dm_prediction *p = try_case(c, &err);
        emulation_fail_call(0, cudaSuccess);
        if (p) {
            assert_same_prediction(p, sound, c->voxels);
            seen.without_graph += emulation_counters().graph_launches == 0;
            seen.survived++;
        } else {
            /* To the library, a lack of memory is a failure like others. */
            if (err.status != expected && err.status != DM_ERROR_DEVICE)
                fail_msg("call %d: %s", (int)n, err.what);
            if (err.what[0] == '\0' || err.remedy[0] == '\0')
                fail_msg("call %d: '%s; %s'", (int)n, err.what, err.remedy);
            seen.failed++;
        }
        dm_prediction_free(p);
        if (emulation_list_leaks() != 0)
            fail_msg("leaks after call %d failed", (int)n);
    }
    dm_prediction_free(sound);
    return seen;
}

static predict_case fault_case(void)
{
    predict_case c = case_of(varied_model(), 17, 13, 9);
    c.options.batch = 4;
    c.options.overlap = 0.25;
    c.options.skip_air = 0.1;
    return c;
}

static void test_failing_calls(void **state)
{
    (void)state;
    predict_case c = fault_case();
    const sweep seen = fail_each_call(&c, cudaErrorLaunchFailure, DM_ERROR_DEVICE, 1);
    assert_true(seen.failed > seen.calls / 2);
    assert_true(seen.without_graph > 0); /* recording failed: launched directly */
    case_clear(&c);
}

/* Smaller pieces are tried, so that many of these survive. */
static void test_failing_allocations(void **state)
{
    (void)state;
    predict_case c = fault_case();
    const sweep seen = fail_each_call(&c, cudaErrorMemoryAllocation, DM_ERROR_MEMORY, 3);
    assert_true(seen.survived > 0 && seen.failed > 0);
    case_clear(&c);
}

/* ---- The library ---------------------------------------------------------------------------- */

static void check_library(reference_fault fault, unsigned candidates, bool mentioned)
{
    predict_case c = fault_case();
    dm_prediction *cpu = run_case_on(&c, "cpu");
    reference_convolution_set_fault(fault, candidates);
    dm_prediction *p = run_case_on(&c, "cuda");
    reference_convolution_set_fault(REFERENCE_SOUND, 0);
    json_t *root;
    const char *device = json_string_value(provenance_of(p, NULL, "Device", &root));
    assert_true(relative_l2(dose_of(p), dose_of(cpu), c.voxels) <= 1e-5);
    assert_true((strstr(device, "not used") != NULL) == mentioned);
    if (mentioned)
        assert_non_null(strstr(device, "c2")); /* where */
    json_decref(root);
    dm_prediction_free(p);
    dm_prediction_free(cpu);
    case_clear(&c);
}

static void test_wrong_plans(void **state)
{
    (void)state;
    check_library(REFERENCE_SOUND, 0, false);
    for (unsigned candidates = 1; candidates <= 9; candidates += 8) {
        check_library(REFERENCE_WRONG, candidates, true);
        check_library(REFERENCE_STALE, candidates, true);
        check_library(REFERENCE_FAILS, candidates, true);
    }
    check_library(REFERENCE_NO_PLAN, 9, false);
}

/* A sound library is used. */
static void test_library_is_used(void **state)
{
    (void)state;
    predict_case c = fault_case();
    unsigned before = reference_convolution_runs();
    dm_prediction_free(run_case_on(&c, "cuda"));
    assert_true(reference_convolution_runs() > before + 4);
    case_clear(&c);
}

/* The second PET has batches of another size; the third those of the first. */
static void test_plans_for_a_cohort(void **state)
{
    (void)state;
    predict_case c = case_of(varied_model(), 17, 13, 9);
    dm_volume *pets[3] = {c.pet, make_pet(9, 8, 8), c.pet};
    dm_predictor *predictor = NULL;
    dm_pet_info info = unit_info();
    dm_error err = {0};
    unsigned made[4] = {reference_convolution_plans()};
    size_t batches[3];
    no_error(dm_predictor_create(c.model, &c.options, &predictor, &err), &err);
    for (int i = 0; i < 3; i++) {
        dm_prediction *p = NULL;
        no_error(
            dm_predictor_run(predictor, &(dm_patient){.pet = pets[i], .info = &info}, &p, &err),
            &err);
        batches[i] = batch_of(p);
        made[i + 1] = reference_convolution_plans();
        dm_prediction_free(p);
    }
    assert_int_equal(batches[0], batches[2]);
    assert_int_not_equal(batches[0], batches[1]);
    assert_true(made[1] > made[0] && made[2] > made[1]);
    assert_int_equal(made[3], made[2]);
    dm_predictor_free(predictor);
    dm_volume_free(pets[1]);
    case_clear(&c);
}

static int stop_at_once(void *user, double share, const char *stage)
{
    (void)user, (void)share, (void)stage;
    return 1;
}

/* Who cancels does not wait for plans. */
static void test_cancelled_preparing(void **state)
{
    (void)state;
    predict_case c = fault_case();
    dm_error err = {0};
    unsigned before = reference_convolution_plans();
    c.options.progress = stop_at_once;
    assert_null(try_case(&c, &err));
    assert_int_equal(err.status, DM_CANCELLED);
    assert_int_equal(reference_convolution_plans(), before);
    case_clear(&c);
}

/* Jobs of few windows do not wait for the library's compiler, and say so. */
static void test_compiled_plans(void **state)
{
    (void)state;
    plan_tensor input = {.dim = {32, 32, 32}};
    plan p = {.tensors = &input};
    cuda_state s = {.plan = &p};
    assert_false(cuda_state_compiles(&s, 1));
    assert_false(cuda_state_compiles(&s, 19999));
    assert_true(cuda_state_compiles(&s, 20000));
    input.dim[0] = input.dim[1] = input.dim[2] = 64;
    assert_false(cuda_state_compiles(&s, 2499));
    assert_true(cuda_state_compiles(&s, 2500));

    predict_case c = fault_case();
    dm_prediction *made = run_case_on(&c, "cuda");
    json_t *root;
    const char *device = json_string_value(provenance_of(made, NULL, "Device", &root));
    assert_non_null(strstr(device, "reference convolution, not joined"));
    json_decref(root);
    dm_prediction_free(made);
    case_clear(&c);
}

/* ---- Devices that cannot be used ------------------------------------------------------------ */

static void test_old_device(void **state)
{
    (void)state;
    predict_case c = fault_case();
    dm_error err = {0};
    emulation_set_compute_capability(7, 5);
    assert_null(try_case(&c, &err));
    assert_int_equal(err.status, DM_ERROR_DEVICE);
    assert_non_null(strstr(err.what, "compute capability 7.5"));
    emulation_set_compute_capability(9, 0);
    case_clear(&c);
}

/* An emulated device is for those who ask for it. */
static void test_auto_is_the_cpu(void **state)
{
    (void)state;
    predict_case c = fault_case();
    dm_prediction *p = run_case_on(&c, "auto");
    json_t *root;
    assert_string_equal(json_string_value(provenance_of(p, NULL, "Backend", &root)), "cpu");
    json_decref(root);
    dm_prediction_free(p);
    case_clear(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_failing_calls),      cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_wrong_plans),        cmocka_unit_test(test_library_is_used),
        cmocka_unit_test(test_plans_for_a_cohort), cmocka_unit_test(test_cancelled_preparing),
        cmocka_unit_test(test_compiled_plans),     cmocka_unit_test(test_old_device),
        cmocka_unit_test(test_auto_is_the_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
