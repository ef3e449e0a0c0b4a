/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What oneDNN makes of a convolution: which kernels, how many post-operations, and refusals. Runs
 * as on a CPU without AVX-512 (oneDNN reads ONEDNN_MAX_CPU_ISA when it is first used), where bf16
 * is refused and the same steps still agree with the interpreter.
 */
#include <stdlib.h>

#include "network_case.h"
#include "predict/cpu/convolution.h"

static const float zeros[4096];

static convolution_spec spec_3x3x3(size_t in, size_t out, element_type type)
{
    convolution_spec spec = {.name = "enc.0",
                             .in_channels = in,
                             .out_channels = out,
                             .groups = 1,
                             .weight = zeros,
                             .bias = zeros,
                             .type = type,
                             .out_type = type};
    for (int a = 0; a < 3; a++) {
        spec.in[a] = spec.out[a] = 6;
        spec.kernel[a] = 3;
        spec.stride[a] = spec.dilation[a] = spec.pad_begin[a] = 1;
    }
    return spec;
}

static void test_kernel_is_not_a_reference(void **state)
{
    (void)state;
    static const size_t channels[][2] = {{1, 16}, {16, 1}, {8, 8}, {5, 7}};
    for (size_t i = 0; i < sizeof channels / sizeof *channels; i++) {
        convolution_spec spec = spec_3x3x3(channels[i][0], channels[i][1], ELEMENT_F32);
        convolution *conv;
        size_t done;
        dm_error err = {0};
        assert_int_equal(convolution_create(&spec, &conv, &done, &err), DM_OK);
        if (convolution_is_reference(conv))
            fail_msg("%zu to %zu channels: %s", channels[i][0], channels[i][1],
                     convolution_kernel(conv));
        convolution_free(conv);
    }
}

static void test_post_operations_are_done(void **state)
{
    (void)state;
    const post_operation post[] = {{.op = CHAIN_ADD_TENSOR, .type = ELEMENT_F32},
                                   {.op = CHAIN_LEAKY_RELU, .alpha = 0.2f}};
    convolution_spec spec = spec_3x3x3(8, 8, ELEMENT_F32);
    convolution *conv;
    size_t done;
    dm_error err = {0};
    spec.post = post;
    spec.n_post = 2;
    assert_int_equal(convolution_create(&spec, &conv, &done, &err), DM_OK);
    assert_int_equal(done, 2);
    assert_false(convolution_is_reference(conv));
    convolution_free(conv);
}

/* What the library cannot do ends the run of post-operations, not the convolution. */
static void test_stops_at_an_unknown_operation(void **state)
{
    (void)state;
    const post_operation post[] = {{.op = CHAIN_RELU}, {.op = CHAIN_AFFINE}, {.op = CHAIN_RELU}};
    convolution_spec spec = spec_3x3x3(8, 8, ELEMENT_F32);
    convolution *conv;
    size_t done;
    dm_error err = {0};
    spec.post = post;
    spec.n_post = 3;
    assert_int_equal(convolution_create(&spec, &conv, &done, &err), DM_OK);
    assert_int_equal(done, 1);
    convolution_free(conv);
}

static void test_refuses_bf16(void **state)
{
    (void)state;
    convolution_spec spec = spec_3x3x3(8, 8, ELEMENT_BF16);
    convolution *conv = (convolution *)&spec;
    size_t done = 5;
    dm_error err = {0};
    assert_false(convolution_is_native(ELEMENT_BF16));
    assert_false(network_supports(DM_PRECISION_BF16));
    assert_int_equal(convolution_create(&spec, &conv, &done, &err), DM_ERROR_UNSUPPORTED);
    assert_null(conv);
    assert_int_equal(done, 0);
    assert_non_null(strstr(err.what, "enc.0"));
    assert_non_null(strstr(err.what, "bf16"));
    assert_string_equal(err.remedy, "use --precision float32");
}

static void test_refuses_impossible_sizes(void **state)
{
    (void)state;
    convolution_spec spec = spec_3x3x3(8, 8, ELEMENT_F32);
    convolution *conv;
    size_t done;
    dm_error err = {0};
    spec.out[1] = 2; /* of 6 voxels with a stride of 1 */
    assert_int_equal(convolution_create(&spec, &conv, &done, &err), DM_ERROR_UNSUPPORTED);
    assert_null(conv);
    assert_non_null(strstr(err.what, "8 to 8 channels"));
}

static void check_step(step_kind kind, int kernel, int stride, int pad, int groups, size_t after)
{
    network_case k;
    size_t out[3], in[3] = {5, 4, 7};
    case_begin(&k, ELEMENT_F32);
    k.step.kind = kind;
    k.node.op = kind == STEP_CONV ? OP_CONV : OP_CONV_TRANSPOSE;
    k.node.groups = groups;
    for (int a = 0; a < 3; a++) {
        k.node.kernel[a] = kernel;
        k.node.stride[a] = stride;
        k.node.pad_begin[a] = k.node.pad_end[a] = pad;
    }
    assert_true(node_output_size(&k.node, in, out, NULL, 0));
    k.step.in = case_tensor(&k, ELEMENT_F32, 12, in[0], in[1], in[2], 0, 0);
    k.step.out = case_tensor(&k, ELEMENT_F32, 8, out[0], out[1], out[2], 0, after);
    k.step.weight = case_floats(&k, (size_t)12 * 8 / (size_t)groups * (size_t)kernel *
                                        (size_t)kernel * (size_t)kernel);
    k.step.bias = case_floats(&k, 8);
    case_link(&k, CHAIN_ADD_TENSOR, case_tensor(&k, ELEMENT_F32, 8, out[0], out[1], out[2], 0, 0),
              0);
    case_link(&k, CHAIN_LEAKY_RELU, 0, 0.1f);
    assert_true(case_agrees(&k, 4e-5, 1e-6));
    case_end(&k);
}

static void test_older_cpu(void **state)
{
    (void)state;
    check_step(STEP_CONV, 3, 1, 1, 1, 0);
    check_step(STEP_CONV, 3, 2, 1, 4, 0);
    check_step(STEP_CONV, 3, 2, 1, 4, 8);
    check_step(STEP_CONV, 1, 1, 0, 1, 1);
    check_step(STEP_CONV_TRANSPOSE, 2, 2, 0, 1, 0);
    check_step(STEP_CONV_TRANSPOSE, 4, 2, 1, 1, 0);
    check_step(STEP_CONV_TRANSPOSE, 3, 2, 1, 2, 8);
}

static void test_library_names_the_instructions(void **state)
{
    (void)state;
    assert_non_null(strstr(convolution_library(), "oneDNN "));
    assert_null(strstr(convolution_library(), "AVX-512"));
}

int main(void)
{
    setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernel_is_not_a_reference),
        cmocka_unit_test(test_post_operations_are_done),
        cmocka_unit_test(test_stops_at_an_unknown_operation),
        cmocka_unit_test(test_refuses_bf16),
        cmocka_unit_test(test_refuses_impossible_sizes),
        cmocka_unit_test(test_older_cpu),
        cmocka_unit_test(test_library_names_the_instructions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
