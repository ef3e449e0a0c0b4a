/* SPDX-License-Identifier: Apache-2.0 */
/* dm_model_forward on patches in memory: which input is which, axes, errors, cancelling. The values
 * of whole networks are compared in tests/cli/test_forward.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "dosemap.h"
#include "small_models.h"

/* y = pet - ct[0] + 10 ct[1], and the half of it along the network's first axis. */
static dm_model *subtraction(const char *axes)
{
    weights_writer w;
    weights_begin(&w, axes, 4, 4, 4);
    weights_input(&w, "pet", 1);
    weights_port(&w, "inputs", "ct", 2, "other", "1");
    weights_output(&w, "y", 1);
    weights_port(&w, "outputs", "every_second", 1, "other", "1");
    weights_values(&w, "w", 5, (const size_t[]){1, 3, 1, 1, 1}, (const float[]){1, -1, 10});
    weights_node(&w, "Concat", "join", "pet ct", "all", NULL);
    weights_node(&w, "Conv", "conv", "all w -", "y", "{'kernel_shape': [1, 1, 1]}");
    weights_node(&w, "Slice", "slice", "y", "every_second",
                 "{'starts': [1], 'ends': [100], 'axes': [2], 'steps': [2]}");
    return finish_model(&w);
}

enum { COUNT = 3, A = 4, B = 2, C = 3, VOXELS = A * B * C };

static void fill(float *values, size_t n, float from)
{
    for (size_t i = 0; i < n; i++)
        values[i] = from + (float)i;
}

static dm_forward_options on_cpu(unsigned threads)
{
    dm_forward_options options;
    dm_forward_options_init(&options);
    options.device = "cpu";
    options.threads = threads;
    return options;
}

static void check(const char *axes, unsigned threads)
{
    float pet[COUNT * VOXELS], ct[COUNT * 2 * VOXELS];
    dm_model *model = subtraction(axes);
    const dm_forward_options options = on_cpu(threads);
    /* in another order than the graph's */
    const dm_patches inputs[] = {{"ct", COUNT, 2, {A, B, C}, ct},
                                 {"pet", COUNT, 1, {A, B, C}, pet}};
    dm_patches *outputs = NULL;
    size_t n = 0;
    dm_error err = {0};
    fill(pet, COUNT * VOXELS, 1000);
    fill(ct, COUNT * 2 * VOXELS, 0);
    no_error(dm_model_forward(model, inputs, 2, &options, &outputs, &n, &err), &err);
    assert_int_equal(n, 2);
    assert_string_equal(outputs[0].name, "y");
    assert_string_equal(outputs[1].name, "every_second");
    assert_int_equal(outputs[0].count, COUNT);
    assert_memory_equal(outputs[0].size, ((size_t[]){A, B, C}), 3 * sizeof(size_t));
    assert_memory_equal(outputs[1].size, ((size_t[]){A / 2, B, C}), 3 * sizeof(size_t));
    for (size_t p = 0; p < COUNT; p++)
        for (size_t v = 0; v < VOXELS; v++) {
            const float *c = ct + p * 2 * VOXELS;
            float y = pet[p * VOXELS + v] - c[v] + 10 * c[VOXELS + v];
            assert_true(fabsf(outputs[0].data[p * VOXELS + v] - y) <= 1e-3f);
            size_t a = v / (B * C), in_plane = v % (B * C);
            if (a % 2)
                assert_true(outputs[1].data[(p * (A / 2) + a / 2) * B * C + in_plane] ==
                            outputs[0].data[p * VOXELS + v]);
        }
    dm_patches_free(outputs, n);
    dm_model_free(model);
}

static void test_inputs_by_name_in_either_axes(void **state)
{
    (void)state;
    for (unsigned threads = 1; threads <= 4; threads++) {
        check("xyz", threads);
        check("zyx", threads);
    }
}

static void refuse(const dm_patches *inputs, size_t n_inputs, const dm_forward_options *options,
                   dm_status status, const char *text)
{
    dm_model *model = subtraction("xyz");
    dm_patches *outputs = (dm_patches *)&status;
    size_t n = 7;
    dm_error err = {0};
    char line[1600];
    assert_int_equal(dm_model_forward(model, inputs, n_inputs, options, &outputs, &n, &err),
                     status);
    dm_error_text(&err, line, sizeof line);
    if (!strstr(line, text))
        fail_msg("\"%s\" is not in \"%s\"", text, line);
    assert_int_equal(err.status, status);
    assert_null(outputs);
    assert_int_equal(n, 0);
    dm_model_free(model);
}

static void test_refused(void **state)
{
    (void)state;
    static float values[2 * VOXELS];
    const dm_patches pet = {"pet", 1, 1, {A, B, C}, values}, ct = {"ct", 1, 2, {A, B, C}, values};
    dm_patches odd = pet;
    dm_forward_options options = on_cpu(1);
    values[5] = INFINITY;
    refuse((dm_patches[]){pet, ct}, 2, &options, DM_ERROR_VALUE,
           "the input 'pet' is inf in patch 0, channel 0, voxel (0, 1, 2)");
    values[5] = 0;
    refuse((dm_patches[]){pet, pet}, 2, &options, DM_ERROR_VALUE, "'pet' is given twice");
    refuse(&pet, 1, &options, DM_ERROR_VALUE, "the input 'ct' is missing");
    refuse(&pet, 0, &options, DM_ERROR_VALUE, "the input 'pet' is missing");
    odd.name = "mri";
    refuse((dm_patches[]){ct, odd}, 2, &options, DM_ERROR_VALUE, "'mri' is no input of network");
    odd = pet;
    odd.count = 0;
    refuse((dm_patches[]){odd, ct}, 2, &options, DM_ERROR_VALUE, "'pet' has 0 patches");
    odd = pet;
    odd.size[0] = (size_t)1 << 62;
    dm_patches wide = ct;
    wide.size[0] = odd.size[0];
    refuse((dm_patches[]){odd, wide}, 2, &options, DM_ERROR_VALUE, "that fit in memory");
    odd.size[0] = wide.size[0] = 1;
    refuse((dm_patches[]){odd, wide}, 2, &options, DM_ERROR_VALUE, "no voxel of 1 lies between");
    options.precision = (dm_precision)9;
    refuse((dm_patches[]){pet, ct}, 2, &options, DM_ERROR_VALUE, "no precision number 9");
    options = on_cpu(1);
    options.convolutions = (dm_convolutions)9;
    refuse((dm_patches[]){pet, ct}, 2, &options, DM_ERROR_VALUE, "number 9");
    options = on_cpu(1);
    options.precision = DM_PRECISION_TF32;
    refuse((dm_patches[]){pet, ct}, 2, &options, DM_ERROR_UNSUPPORTED, "precision tf32");
    options = on_cpu(1);
    options.device = "tpu";
    refuse((dm_patches[]){pet, ct}, 2, &options, DM_ERROR_VALUE, "tpu");
}

typedef struct listener {
    double last;
    size_t calls, stop_at;
} listener;

static int listen(void *user, double share, const char *stage)
{
    listener *l = user;
    assert_string_equal(stage, "network");
    assert_true(share > l->last && share <= 1);
    l->last = share;
    return ++l->calls == l->stop_at;
}

static void test_progress_and_cancelling(void **state)
{
    (void)state;
    static float values[2 * COUNT * VOXELS];
    const dm_patches inputs[] = {{"pet", COUNT, 1, {A, B, C}, values},
                                 {"ct", COUNT, 2, {A, B, C}, values}};
    dm_forward_options options = on_cpu(2);
    dm_model *model = subtraction("xyz");
    dm_patches *outputs = NULL;
    size_t n = 0;
    listener l = {0};
    options.progress = listen;
    options.progress_user = &l;
    assert_int_equal(dm_model_forward(model, inputs, 2, &options, &outputs, &n, NULL), DM_OK);
    assert_int_equal(l.calls, 2); /* all patches fit in memory: once for each output */
    assert_true(l.last >= 1);
    dm_patches_free(outputs, n);
    dm_model_free(model);
    for (size_t stop = 1; stop <= 2; stop++) {
        l = (listener){.stop_at = stop};
        refuse(inputs, 2, &options, DM_CANCELLED, "cancelled");
        assert_int_equal(l.calls, stop);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inputs_by_name_in_either_axes),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_progress_and_cancelling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
