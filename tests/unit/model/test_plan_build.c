/* SPDX-License-Identifier: Apache-2.0 */
/* What plans look like for networks made for the purpose, and what they cost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "plan_case.h"
#include "plan_interpreter.h"

static graph_builder b;

static float *run(const plan *p)
{
    const plan_tensor *in = &p->tensors[p->input], *out = &p->tensors[p->output];
    size_t n = tensor_voxels(in) * in->channels;
    float *input = malloc(n * sizeof *input);
    float *output = malloc(tensor_voxels(out) * out->channels * sizeof *output);
    for (size_t i = 0; i < n; i++)
        input[i] = sinf((float)(i * i % 1013));
    interpret_plan(p, input, output);
    free(input);
    return output;
}

/* Builds the plan of `b` and checks that it does what one step per node does. */
static plan *build_and_check(plan_case c)
{
    plan *p = build(&b, c), *plain = build(&b, (plan_case){.plain = true, .output = c.output});
    const plan_tensor *out = &p->tensors[p->output];
    size_t n = tensor_voxels(out) * out->channels;
    float *a = run(p), *reference = run(plain);
    double tolerance = c.type == ELEMENT_F32 ? 1e-5 : 0.1;
    assert_true(arrays_close(a, n, reference, n, tolerance, tolerance));
    assert_int_equal(out->type, ELEMENT_F32);
    free(a);
    free(reference);
    plan_free(plain);
    return p;
}

static size_t count_kind(const plan *p, step_kind kind)
{
    size_t n = 0;
    for (size_t s = 0; s < p->n_steps; s++)
        n += p->steps[s].kind == kind;
    return n;
}

static bool is_view(const plan *p, int tensor)
{
    return p->tensors[tensor].pitch != p->tensors[tensor].channels;
}

static void begin(size_t channels, size_t edge)
{
    build_begin(&b, channels, (size_t[]){edge, edge, edge}, 11);
}

static void done(plan *p)
{
    plan_free(p);
    build_end(&b);
}

/* ---- Chains --------------------------------------------------------------------------------- */

static void test_batch_norm_vanishes_into_convolutions(void **state)
{
    (void)state;
    begin(3, 4);
    int x = build_norm(&b, OP_BATCH_NORM, build_conv(&b, b.input, 4, 3), 1);
    x = build_norm(&b, OP_BATCH_NORM, build_up(&b, x, 6), 1);
    x = build_unary(&b, OP_LEAKY_RELU, x);
    build_output(&b, x);
    plan *p = build_and_check((plan_case){0});
    assert_int_equal(p->n_steps, 2);
    assert_int_equal(p->steps[0].n_chain, 0);
    assert_int_equal(p->steps[1].n_chain, 1);
    assert_int_equal(p->steps[1].chain[0].op, CHAIN_LEAKY_RELU);
    done(p);
}

static void test_grouped_transposed_convolution_folds(void **state)
{
    (void)state;
    begin(6, 3);
    graph_node node = build_attributes(OP_CONV_TRANSPOSE);
    node.groups = 3;
    for (int a = 0; a < 3; a++) {
        node.kernel[a] = 3;
        node.stride[a] = 2;
        node.pad_begin[a] = 1;
    }
    int x = build_convolution(&b, &node, b.input, 12, false);
    build_output(&b, build_norm(&b, OP_BATCH_NORM, x, 1));
    plan *p = build_and_check((plan_case){0});
    assert_int_equal(p->n_steps, 1);
    assert_int_equal(p->steps[0].n_chain, 0);
    assert_non_null(p->steps[0].bias);
    done(p);
}

static void test_order_of_links_is_the_graphs(void **state)
{
    (void)state;
    begin(2, 3);
    int x = build_unary(&b, OP_TANH, build_conv(&b, b.input, 4, 3));
    x = build_norm(&b, OP_BATCH_NORM, x, 1);
    x = build_binary(&b, OP_SUB, build_weight(&b, 1, 2, 0, NULL), x);
    x = build_unary(&b, OP_SOFTPLUS, x);
    build_output(&b, x);
    plan *p = build_and_check((plan_case){0});
    static const chain_op wanted[] = {CHAIN_TANH, CHAIN_AFFINE, CHAIN_AFFINE, CHAIN_SOFTPLUS};
    assert_int_equal(p->n_steps, 1);
    assert_int_equal(p->steps[0].n_chain, 4);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(p->steps[0].chain[i].op, wanted[i]);
    done(p);
}

/* What two readers need is stored as it is between them. */
static void test_nothing_joins_past_a_second_reader(void **state)
{
    (void)state;
    begin(2, 3);
    int x = build_conv(&b, b.input, 2, 3);
    int y = build_unary(&b, OP_RELU, x);
    build_output(&b, build_binary(&b, OP_MUL, x, y));
    plan *p = build_and_check((plan_case){0});
    assert_int_equal(p->n_steps, 2);
    assert_int_equal(p->steps[0].n_chain, 0);
    assert_int_equal(p->steps[1].kind, STEP_POINTWISE);
    done(p);
}

static void test_residual_joins_the_later_operand(void **state)
{
    (void)state;
    for (int swapped = 0; swapped < 2; swapped++) {
        begin(2, 4);
        int early = build_conv(&b, b.input, 4, 3), late = build_conv(&b, early, 4, 3);
        int x = build_binary(&b, OP_SUB, swapped ? late : early, swapped ? early : late);
        build_output(&b, build_conv(&b, build_unary(&b, OP_ELU, x), 1, 1));
        plan *p = build_and_check((plan_case){0});
        assert_int_equal(p->n_steps, 3);
        assert_int_equal(p->steps[1].n_chain, 2);
        assert_int_equal(p->steps[1].chain[0].op, swapped ? CHAIN_SUB_TENSOR : CHAIN_RSUB_TENSOR);
        assert_int_equal(p->steps[1].chain[0].tensor, p->steps[0].out);
        /* `early` is also read by the convolution itself, which must not be overwritten. */
        assert_false(step_is_in_place(p, &p->steps[1]));
        done(p);
    }
}

static void test_sum_lies_on_a_residual_that_ends(void **state)
{
    (void)state;
    begin(2, 4);
    int side = build_conv(&b, b.input, 4, 1), x = build_conv(&b, b.input, 4, 3);
    build_output(&b, build_conv(&b, build_binary(&b, OP_ADD, side, x), 1, 1));
    plan *p = build_and_check((plan_case){0});
    assert_int_equal(p->n_steps, 3);
    assert_true(step_is_in_place(p, &p->steps[1]));
    done(p);
}

static void test_broadcast_operands(void **state)
{
    (void)state;
    begin(2, 4);
    int x = build_conv(&b, b.input, 4, 3);
    int gate = build_unary(&b, OP_SIGMOID, build_conv(&b, x, 1, 1));
    int mean = build_unary(&b, OP_GLOBAL_AVERAGE_POOL, x);
    int y = build_binary(&b, OP_MUL, gate, x);
    build_output(&b, build_binary(&b, OP_SUB, mean, y));
    plan *p = build_and_check((plan_case){0});
    const plan_step *last = &p->steps[p->n_steps - 1];
    assert_int_equal(last->kind, STEP_POINTWISE);
    assert_int_equal(last->n_chain, 2);
    assert_int_equal(last->chain[1].op, CHAIN_RSUB_TENSOR);
    done(p);
}

/* ---- Concatenations ------------------------------------------------------------------------- */

/* Gated skip and upsampled features, as in dosegan. */
static void test_gated_skip_is_written_in_place(void **state)
{
    (void)state;
    begin(1, 4);
    int skip = build_unary(&b, OP_LEAKY_RELU, build_conv(&b, b.input, 4, 3));
    int up = build_up(&b, build_down(&b, skip, 8), 4);
    int gate = build_binary(&b, OP_ADD, build_conv(&b, up, 2, 1), build_conv(&b, skip, 2, 1));
    gate = build_unary(&b, OP_SIGMOID, build_conv(&b, build_unary(&b, OP_RELU, gate), 1, 1));
    int gated = build_binary(&b, OP_MUL, skip, gate);
    int both = build_concat(&b, 2, (int[]){gated, up});
    build_output(&b, build_conv(&b, both, 1, 3));
    plan *p = build_and_check((plan_case){0});
    assert_int_equal(p->n_steps, 8);
    assert_int_equal(count_kind(p, STEP_COPY), 0);
    assert_int_equal(count_kind(p, STEP_POINTWISE), 1);
    assert_true(is_view(p, p->steps[2].out));       /* transposed */
    assert_true(is_view(p, p->steps[6].out));       /* gated */
    assert_false(is_view(p, p->steps[7].in));       /* both */
    assert_true(step_is_in_place(p, &p->steps[4])); /* sum of the gate's convolutions */
    done(p);
}

static void test_copies_follow_the_options(void **state)
{
    (void)state;
    for (unsigned may = 0; may < 4; may++) {
        begin(1, 4);
        int skip = build_conv(&b, b.input, 4, 3);               /* written and read by 3^3 */
        int deep = build_conv(&b, skip, 4, 3);                  /* written by 3^3, read by nobody */
        int pooled = build_norm(&b, OP_INSTANCE_NORM, skip, 1); /* not by convolutions */
        int all = build_concat(&b, 3, (int[]){skip, deep, pooled});
        build_output(&b, build_conv(&b, all, 1, 3));
        plan *p = build_and_check((plan_case){.reads = may & 1, .writes = may & 2});
        static const size_t copies[] = {2, 2, 1, 0};
        assert_int_equal(count_kind(p, STEP_COPY), copies[may]);
        done(p);
    }
}

static void test_nested_and_repeated(void **state)
{
    (void)state;
    begin(2, 3);
    int x = build_unary(&b, OP_TANH, b.input), y = build_unary(&b, OP_RELU, b.input);
    int inner = build_concat(&b, 3, (int[]){x, y, x});
    int outer = build_concat(&b, 4, (int[]){y, inner, b.input, inner});
    build_output(&b, build_conv(&b, outer, 2, 3));
    plan *p = build_and_check((plan_case){0});
    /* Copied: x the second time, y into the outer, the input, inner the second time. */
    assert_int_equal(count_kind(p, STEP_COPY), 4);
    assert_int_equal(count_kind(p, STEP_POINTWISE), 2);
    done(p);
}

static void test_output_is_an_operand(void **state)
{
    (void)state;
    for (int type = ELEMENT_F32; type <= ELEMENT_BF16; type++) {
        begin(2, 3);
        int x = build_norm(&b, OP_INSTANCE_NORM, b.input, 1);
        int both = build_concat(&b, 2, (int[]){x, b.input});
        int unused = build_conv(&b, both, 2, 3);
        build_output(&b, x);
        plan *p = build_and_check((plan_case){.type = (element_type)type});
        assert_false(is_view(p, p->output));
        assert_true(unused >= 0);
        done(p);
    }
}

static void test_output_is_a_concatenation(void **state)
{
    (void)state;
    for (int type = ELEMENT_F32; type <= ELEMENT_BF16; type++) {
        begin(2, 3);
        int x = build_norm(&b, OP_INSTANCE_NORM, b.input, 1);
        build_output(&b, build_concat(&b, 2, (int[]){x, b.input}));
        plan *p = build_and_check((plan_case){.type = (element_type)type});
        assert_int_equal(p->n_steps, type == ELEMENT_F32 ? 2 : 3);
        done(p);
    }
}

/* ---- Ports ---------------------------------------------------------------------------------- */

static void test_each_output_has_what_it_needs(void **state)
{
    (void)state;
    for (int type = ELEMENT_F32; type <= ELEMENT_F16; type++) {
        begin(2, 4);
        int x = build_conv(&b, b.input, 3, 3);
        int deep = build_norm(&b, OP_BATCH_NORM, build_down(&b, x, 4), 1);
        build_output(&b, x);
        build_output(&b, build_conv(&b, build_up(&b, deep, 2), 1, 1));
        build_output(&b, build_unary(&b, OP_TANH, deep));
        build_output(&b, deep);
        static const size_t steps[] = {1, 4, 2, 2}, folded[] = {0, 2, 2, 2};
        for (size_t output = 0; output < 4; output++) {
            plan *p = build_and_check((plan_case){.type = (element_type)type, .output = output});
            const plan_tensor *out = &p->tensors[p->output];
            assert_int_equal(p->n_steps, steps[output]);
            assert_int_equal(p->n_owned, folded[output]);
            assert_int_equal(out->dim[2], output < 2 ? 4 : 2);
            assert_int_equal(out->channels, b.g.outputs[output].channels);
            plan_free(p);
        }
        build_end(&b);
    }
}

static void test_all_inputs_together_are_the_input_tensor(void **state)
{
    (void)state;
    begin(1, 4);
    int ct = build_input(&b, 2), phase = build_input(&b, 1);
    int all = build_concat(&b, 3, (int[]){b.input, ct, phase});
    build_output(&b, build_conv(&b, all, 2, 3));
    plan *p = build_and_check((plan_case){0});
    assert_int_equal(p->n_steps, 1);
    assert_int_equal(p->steps[0].in, p->input);
    assert_int_equal(p->tensors[p->input].channels, 4);
    done(p);
}

static void test_an_input_alone_is_taken_out(void **state)
{
    (void)state;
    for (int type = ELEMENT_F32; type <= ELEMENT_BF16; type++) {
        begin(1, 4);
        int ct = build_input(&b, 2), unused = build_input(&b, 3);
        int turned = build_concat(&b, 2, (int[]){ct, b.input});
        int x = build_conv(&b, turned, 1, 3);
        build_output(&b, build_binary(&b, OP_ADD, x, b.input));
        build_output(&b, ct);
        build_output(&b, build_concat(&b, 3, (int[]){b.input, ct, unused}));
        plan *p = build_and_check((plan_case){.type = (element_type)type});
        assert_int_equal(count_kind(p, STEP_SLICE), 2);
        assert_int_equal(p->steps[0].node->channel_end, 1);
        assert_int_equal(p->steps[1].node->channel_begin, 1);
        assert_int_equal(p->steps[1].node->channel_end, 3);
        plan_free(p);
        p = build_and_check((plan_case){.type = (element_type)type, .output = 1});
        assert_int_equal(p->n_steps, 1);
        assert_int_equal(p->steps[0].kind, STEP_SLICE);
        plan_free(p);
        p = build_and_check((plan_case){.type = (element_type)type, .output = 2});
        assert_int_equal(p->n_steps, 1);
        assert_int_equal(p->steps[0].kind, STEP_COPY);
        done(p);
    }
}

static void test_identity_is_removed_and_the_input_copied(void **state)
{
    (void)state;
    begin(2, 3);
    int x = build_unary(&b, OP_IDENTITY, b.input);
    build_output(&b, build_concat(&b, 1, &x));
    plan *p = build_and_check((plan_case){.type = ELEMENT_BF16});
    assert_int_equal(p->n_steps, 1);
    assert_int_equal(p->steps[0].kind, STEP_COPY);
    done(p);
}

static void test_voxelwise_convolutions(void **state)
{
    (void)state;
    graph_node point = build_attributes(OP_CONV), tiles = build_attributes(OP_CONV_TRANSPOSE);
    for (int a = 0; a < 3; a++)
        tiles.kernel[a] = tiles.stride[a] = 1 + a;
    assert_true(conv_is_voxelwise(&point) && conv_is_voxelwise(&tiles));
    graph_node strided = point, wide = point, padded = point, patches = tiles, grouped = tiles;
    graph_node dilated = tiles, cropped = tiles, longer = tiles;
    strided.stride[1] = 2;
    wide.kernel[2] = 3;
    padded.pad_end[0] = 1;
    patches.op = OP_CONV;
    grouped.groups = 2;
    dilated.dilation[2] = 2;
    cropped.pad_begin[1] = 1;
    longer.output_padding[2] = 1;
    const graph_node *others[] = {&strided, &wide,    &padded,  &patches,
                                  &grouped, &dilated, &cropped, &longer};
    for (size_t i = 0; i < 8; i++)
        if (conv_is_voxelwise(others[i]))
            fail_msg("convolution %zu", i);
    point.groups = 2; /* still each voxel for itself */
    assert_true(conv_is_voxelwise(&point));
}

/* ---- Memory and cost ------------------------------------------------------------------------ */

static void test_arena_of_a_chain_is_two_buffers(void **state)
{
    (void)state;
    begin(4, 5);
    int x = b.input;
    for (int i = 0; i < 6; i++)
        x = build_conv(&b, x, 4, 3);
    build_output(&b, x);
    size_t buffer = (5 * 5 * 5 * 4 * sizeof(float) + 63) / 64 * 64;
    plan *p = build_and_check((plan_case){0}), *plain = build(&b, (plan_case){.plain = true});
    assert_int_equal(p->arena_bytes, 2 * buffer);
    assert_int_equal(plain->arena_bytes, 7 * buffer);
    plan_free(plain);
    done(p);
}

/* Counts tap by tap. */
static void count_taps(const plan *p, const plan_step *step, double *all, double *useful)
{
    step_context s = {p, step, &p->tensors[step->in], &p->tensors[step->out], NULL, NULL, NULL};
    const graph_node *node = step->node;
    bool transposed = step->kind == STEP_CONV_TRANSPOSE;
    double pairs = (double)(s.in->channels * s.out->channels) / node->groups;
    size_t at[3], k[3], from[3], taps = 0;
    *useful = 0;
    for (k[0] = 0; k[0] < (size_t)node->kernel[0]; k[0]++)
        for (k[1] = 0; k[1] < (size_t)node->kernel[1]; k[1]++)
            for (k[2] = 0; k[2] < (size_t)node->kernel[2]; k[2]++, taps++)
                for (at[0] = 0; at[0] < s.out->dim[0]; at[0]++)
                    for (at[1] = 0; at[1] < s.out->dim[1]; at[1]++)
                        for (at[2] = 0; at[2] < s.out->dim[2]; at[2]++)
                            *useful += 2 * pairs * conv_tap(&s, at, k, from);
    *all = 2 * pairs * (double)(taps * tensor_voxels(transposed ? s.in : s.out));
}

static void test_cost_counts_every_tap(void **state)
{
    (void)state;
    for (uint32_t seed = 0; seed < 200; seed++) {
        build_begin(&b, 4, (size_t[]){5, 3, 4}, seed);
        graph_node node = build_attributes(seed % 2 ? OP_CONV : OP_CONV_TRANSPOSE);
        node.groups = seed % 3 ? 1 : 2;
        for (int a = 0; a < 3; a++) {
            node.kernel[a] = 1 + (int)build_pick(&b, 4);
            node.stride[a] = 1 + (int)build_pick(&b, 3);
            node.dilation[a] = 1 + (int)build_pick(&b, 2);
            node.pad_begin[a] = (int)build_pick(&b, 5);
            node.pad_end[a] = (int)build_pick(&b, 5);
        }
        int x = build_convolution(&b, &node, b.input, 6, true);
        if (x >= 0) {
            double all, useful;
            build_output(&b, x);
            plan *p = build(&b, (plan_case){0});
            count_taps(p, &p->steps[0], &all, &useful);
            assert_true(fabs(p->flops - all) < 0.5);
            assert_true(fabs(p->useful_flops - useful) < 0.5);
            plan_free(p);
        }
        build_end(&b);
    }
}

static void test_cost_in_bytes(void **state)
{
    (void)state;
    begin(2, 4);
    int x = build_conv(&b, b.input, 8, 3), y = build_conv(&b, b.input, 8, 1);
    build_output(&b, build_binary(&b, OP_ADD, x, y));
    plan *p = build(&b, (plan_case){.type = ELEMENT_BF16});
    /* in 2 and out 8 channels in bf16; then in 2, residual 8, and out 8 in float32 */
    assert_true(fabs(p->bytes - 64 * (2 * 2 + 8 * 2 + 2 * 2 + 8 * 2 + 8 * 4)) < 0.5);
    assert_true(fabs(p->weight_bytes - (2 * 8 * 27 * 2 + 8 * 4 + 2 * 8 * 2 + 8 * 4)) < 0.5);
    done(p);
}

/* ---- The shipped networks ------------------------------------------------------------------- */

static dm_model *shipped(const char *name)
{
    char path[1024], text[2048];
    dm_model *model = NULL;
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/../../weights/%s", TEST_GOLDEN_DIR, name);
    if (dm_model_load(path, &model, &err) != DM_OK)
        fail_msg("%s", dm_error_text(&err, text, sizeof text));
    return model;
}

static plan *plan_of(const dm_model *model, size_t edge, bool optimise)
{
    plan_options options = {.tile = {edge, edge, edge}, .optimise = optimise};
    plan *p = NULL;
    plan_options_cpu(&options);
    assert_int_equal(plan_build(&model->graph, &options, &p, NULL), DM_OK);
    return p;
}

static void test_dosegan(void **state)
{
    (void)state;
    dm_model *model = shipped("dosegan-constructed.safetensors.zst");
    plan *p = plan_of(model, 32, true);
    assert_true(fabs(p->flops - 15.70e9) < 0.005e9);
    assert_true(fabs(p->useful_flops - 13.92e9) < 0.005e9);
    assert_int_equal(p->n_steps, 33);
    assert_int_equal(count_kind(p, STEP_COPY), 0);
    assert_int_equal(count_kind(p, STEP_POINTWISE), 3);
    /* What is alive at the finest gate: the concatenation, the skip, the gate's convolution twice
     * in one place, and its result. */
    assert_int_equal(p->arena_bytes, 32 * 32 * 32 * 4 * (64 + 32 + 16 + 1));
    plan_free(p);
    dm_model_free(model);
}

/* The constructed weights scale uptake: 0.027 Gy/GBq. */
static void test_dosegan_16_computes(void **state)
{
    (void)state;
    dm_model *model = shipped("dosegan-16-constructed.safetensors.zst");
    float input[512], output[512], expected[512];
    for (size_t i = 0; i < 512; i++) {
        input[i] = (float)((int)(i * 37 % 201) - 50) / 10;
        expected[i] = input[i] > 0 ? 0.027f * input[i] : 0;
    }
    plan *p = plan_of(model, 8, true);
    interpret_plan(p, input, output);
    assert_true(arrays_close(output, 512, expected, 512, 1e-6, 1e-5));
    plan_free(p);
    dm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_norm_vanishes_into_convolutions),
        cmocka_unit_test(test_grouped_transposed_convolution_folds),
        cmocka_unit_test(test_order_of_links_is_the_graphs),
        cmocka_unit_test(test_nothing_joins_past_a_second_reader),
        cmocka_unit_test(test_residual_joins_the_later_operand),
        cmocka_unit_test(test_sum_lies_on_a_residual_that_ends),
        cmocka_unit_test(test_broadcast_operands),
        cmocka_unit_test(test_gated_skip_is_written_in_place),
        cmocka_unit_test(test_copies_follow_the_options),
        cmocka_unit_test(test_nested_and_repeated),
        cmocka_unit_test(test_output_is_an_operand),
        cmocka_unit_test(test_output_is_a_concatenation),
        cmocka_unit_test(test_each_output_has_what_it_needs),
        cmocka_unit_test(test_all_inputs_together_are_the_input_tensor),
        cmocka_unit_test(test_an_input_alone_is_taken_out),
        cmocka_unit_test(test_identity_is_removed_and_the_input_copied),
        cmocka_unit_test(test_voxelwise_convolutions),
        cmocka_unit_test(test_arena_of_a_chain_is_two_buffers),
        cmocka_unit_test(test_cost_counts_every_tap),
        cmocka_unit_test(test_cost_in_bytes),
        cmocka_unit_test(test_dosegan),
        cmocka_unit_test(test_dosegan_16_computes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
