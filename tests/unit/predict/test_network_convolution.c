/* SPDX-License-Identifier: Apache-2.0 */
/* Convolution steps against the plan interpreter, in float32 and, where the CPU has it, bf16. */
#include "network_case.h"

/* 0 stands for the defaults: kernel 3^3, stride 1, dilation 1, one group. */
typedef struct conv_case {
    const char *name;
    size_t in, out;
    size_t dim[3];
    int kernel[3], stride[3], dilation[3], begin[3], end[3], output_padding[3];
    int groups;
    size_t in_before, in_after, out_before, out_after;
    bool transposed, no_bias, float_out;
    size_t n_chain;
    chain_op chain[4];
    bool add_in_place; /* ADD_TENSOR's tensor is where the result goes */
} conv_case;

#define CUBE(n)                                                                                    \
    {                                                                                              \
        n, n, n                                                                                    \
    }

static const conv_case cases[] = {
    {"3^3", 8, 16, CUBE(6), .begin = CUBE(1), .end = CUBE(1)},
    {"one channel in", 1, 32, {7, 5, 3}, .begin = CUBE(1), .end = CUBE(1)},
    {"one channel out", 32, 1, {5, 7, 3}, .begin = CUBE(1), .end = CUBE(1)},
    {"primes", 13, 7, {5, 11, 3}, .begin = CUBE(1), .end = CUBE(1), .no_bias = true},
    {"one voxel", 3, 5, CUBE(1), .begin = CUBE(1), .end = CUBE(1)},
    {"stride 2", 8, 24, {6, 7, 9}, .stride = CUBE(2), .begin = CUBE(1), .end = CUBE(1)},
    {"asymmetric",
     4,
     6,
     {6, 7, 5},
     .kernel = {2, 3, 4},
     .stride = {1, 2, 3},
     .begin = {0, 2, 1},
     .end = {1, 0, 2}},
    {"dilation", 5, 8, {9, 7, 8}, .dilation = {2, 3, 1}, .begin = {2, 3, 0}, .end = {2, 3, 1}},
    {"groups", 12, 8, {4, 5, 6}, .begin = CUBE(1), .end = CUBE(1), .groups = 4},
    {"depthwise", 16, 16, {4, 5, 6}, .begin = CUBE(1), .end = CUBE(1), .groups = 16},
    {"1^3", 16, 24, {6, 5, 4}, .kernel = CUBE(1)},
    {"1^3 to one", 17, 1, {6, 5, 4}, .kernel = CUBE(1), .n_chain = 1, .chain = {CHAIN_SIGMOID}},
    {"1^3 stride 2", 8, 8, {6, 5, 4}, .kernel = CUBE(1), .stride = CUBE(2)},
    {"float out", 16, 3, CUBE(4), .kernel = CUBE(1), .float_out = true, .n_chain = 1,
     .chain = {CHAIN_RELU}},
    {"from a view",
     8,
     8,
     {4, 5, 6},
     .begin = CUBE(1),
     .end = CUBE(1),
     .in_before = 3,
     .in_after = 1},
    {"to a view", 8, 8, {4, 5, 6}, .begin = CUBE(1), .end = CUBE(1), .out_before = 8},
    {"1^3 view to view",
     8,
     4,
     {12, 40, 41},
     .kernel = CUBE(1),
     .in_after = 8,
     .out_before = 1,
     .out_after = 2,
     .n_chain = 1,
     .chain = {CHAIN_RELU}},
    {"1^3 from a view in pieces",
     8,
     4,
     {12, 40, 41},
     .kernel = CUBE(1),
     .in_before = 8,
     .n_chain = 1,
     .chain = {CHAIN_RELU}},
    {"1^3 from a view in pieces, residual in place",
     8,
     4,
     {12, 40, 41},
     .kernel = CUBE(1),
     .in_after = 8,
     .n_chain = 2,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_RELU},
     .add_in_place = true},
    {"1^3 view, added in the library",
     8,
     4,
     {12, 40, 41},
     .kernel = CUBE(1),
     .in_after = 8,
     .out_after = 2,
     .n_chain = 2,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_RELU}},
    {"1^3 of one channel, residual",
     1,
     3,
     {6, 2, 5},
     .kernel = CUBE(1),
     .n_chain = 2,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_RELU}},
    {"1^3 of odd channels, residual in place",
     15,
     5,
     {6, 2, 5},
     .kernel = CUBE(1),
     .n_chain = 2,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_RELU},
     .add_in_place = true},
    {"residual",
     16,
     16,
     {4, 5, 6},
     .begin = CUBE(1),
     .end = CUBE(1),
     .n_chain = 2,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_LEAKY_RELU}},
    {"residual in place",
     16,
     16,
     {4, 5, 6},
     .begin = CUBE(1),
     .end = CUBE(1),
     .n_chain = 2,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_LEAKY_RELU},
     .add_in_place = true},
    {"residual in place, chain goes on",
     16,
     16,
     {4, 5, 6},
     .begin = CUBE(1),
     .end = CUBE(1),
     .n_chain = 3,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_AFFINE, CHAIN_RELU},
     .add_in_place = true},
    {"sub",
     16,
     8,
     {4, 5, 6},
     .begin = CUBE(1),
     .end = CUBE(1),
     .n_chain = 2,
     .chain = {CHAIN_RSUB_TENSOR, CHAIN_TANH}},
    {"elu, mul", 8, 8, CUBE(5), .begin = CUBE(1), .end = CUBE(1), .n_chain = 2,
     .chain = {CHAIN_ELU, CHAIN_MUL_TENSOR}},
    {"gelu", 8, 8, CUBE(5), .kernel = CUBE(1), .n_chain = 1, .chain = {CHAIN_GELU}},
    {"gelu_tanh", 8, 8, CUBE(5), .kernel = CUBE(1), .n_chain = 1, .chain = {CHAIN_GELU_TANH}},
    {"softplus", 8, 8, CUBE(5), .kernel = CUBE(1), .n_chain = 1, .chain = {CHAIN_SOFTPLUS}},
    {"tanh", 8, 8, CUBE(5), .kernel = CUBE(1), .n_chain = 1, .chain = {CHAIN_TANH}},
    {"prelu", 8, 8, CUBE(5), .begin = CUBE(1), .end = CUBE(1), .n_chain = 2,
     .chain = {CHAIN_PRELU, CHAIN_SIGMOID}},
    {"transposed 2^3", 8, 16, {3, 4, 5}, .kernel = CUBE(2), .stride = CUBE(2), .transposed = true},
    {"transposed 2^3 to a view",
     12,
     8,
     {3, 4, 5},
     .kernel = CUBE(2),
     .stride = CUBE(2),
     .transposed = true,
     .out_before = 8,
     .n_chain = 2,
     .chain = {CHAIN_LEAKY_RELU, CHAIN_AFFINE}},
    {"transposed 1x2x3 in pieces, no bias",
     7,
     3,
     {6, 60, 70},
     .kernel = {1, 2, 3},
     .stride = {1, 2, 3},
     .transposed = true,
     .no_bias = true,
     .in_before = 1,
     .n_chain = 2,
     .chain = {CHAIN_ADD_TENSOR, CHAIN_RELU}},
    {"transposed 3^3",
     8,
     16,
     {3, 4, 5},
     .stride = CUBE(2),
     .begin = CUBE(1),
     .end = CUBE(1),
     .output_padding = CUBE(1),
     .transposed = true,
     .n_chain = 1,
     .chain = {CHAIN_RELU}},
    {"transposed 4^3, no bias",
     6,
     5,
     {3, 4, 5},
     .kernel = CUBE(4),
     .stride = CUBE(2),
     .begin = CUBE(1),
     .end = CUBE(1),
     .transposed = true,
     .no_bias = true},
    {"transposed groups",
     8,
     12,
     {3, 4, 5},
     .kernel = {2, 3, 4},
     .stride = {2, 1, 3},
     .begin = {0, 1, 1},
     .end = {1, 0, 1},
     .transposed = true,
     .groups = 4,
     .out_after = 4},
    {"transposed dilation",
     4,
     6,
     {3, 4, 5},
     .dilation = CUBE(2),
     .begin = CUBE(2),
     .end = CUBE(2),
     .transposed = true},
    {"transposed 2^3 stride 2, larger output",
     4,
     6,
     {3, 4, 5},
     .kernel = CUBE(2),
     .stride = CUBE(2),
     .output_padding = {1, 0, 1},
     .transposed = true},
};

static bool is_tensor_op(chain_op op)
{
    return op <= CHAIN_RSUB_TENSOR;
}

static void build(network_case *k, const conv_case *c, element_type type)
{
    size_t out[3];
    char reason[200] = "";
    case_begin(k, type);
    k->step.kind = c->transposed ? STEP_CONV_TRANSPOSE : STEP_CONV;
    k->node.op = c->transposed ? OP_CONV_TRANSPOSE : OP_CONV;
    k->node.groups = c->groups ? c->groups : 1;
    size_t taps = 1;
    for (int a = 0; a < 3; a++) {
        k->node.kernel[a] = c->kernel[a] ? c->kernel[a] : 3;
        k->node.stride[a] = c->stride[a] ? c->stride[a] : 1;
        k->node.dilation[a] = c->dilation[a] ? c->dilation[a] : 1;
        taps *= (size_t)k->node.kernel[a];
    }
    memcpy(k->node.pad_begin, c->begin, sizeof c->begin);
    memcpy(k->node.pad_end, c->end, sizeof c->end);
    memcpy(k->node.output_padding, c->output_padding, sizeof c->output_padding);
    assert_true(node_output_size(&k->node, c->dim, out, reason, sizeof reason));
    k->step.in =
        case_tensor(k, type, c->in, c->dim[0], c->dim[1], c->dim[2], c->in_before, c->in_after);
    k->step.out = case_tensor(k, c->float_out ? ELEMENT_F32 : type, c->out, out[0], out[1], out[2],
                              c->out_before, c->out_after);
    k->step.weight = case_floats(k, c->in * c->out / (size_t)k->node.groups * taps);
    k->step.bias = c->no_bias ? NULL : case_floats(k, c->out);
    for (size_t i = 0; i < c->n_chain; i++) {
        int tensor = k->step.out;
        if (is_tensor_op(c->chain[i]) && !c->add_in_place)
            tensor = case_tensor(k, type, c->out, out[0], out[1], out[2], 0, 0);
        case_link(k, c->chain[i], tensor, 0.25f);
    }
}

/* Per deviation of a sum. A network may say that its sums are rounded to bf16 before the chain. */
#ifndef BF16_ATOL
#define BF16_ATOL 1e-5
#endif

static void run_cases(element_type type)
{
    int failures = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        network_case k;
        build(&k, &cases[i], type);
        double sum = sqrt((double)cases[i].in * 27);
        double atol = type == ELEMENT_BF16 ? BF16_ATOL * sum : 2e-6 * sum;
        /* Both sides round to bf16 once; where they fall to different sides, a unit apart. */
        if (!case_agrees(&k, atol, type == ELEMENT_BF16 ? 1.0 / 128 : 1e-6)) {
            fprintf(stderr, "^ %s\n", cases[i].name);
            failures++;
        }
        case_end(&k);
    }
    assert_int_equal(failures, 0);
}

static void test_float32(void **state)
{
    (void)state;
    run_cases(ELEMENT_F32);
}

static void test_bf16(void **state)
{
    (void)state;
    if (!network_supports(DM_PRECISION_BF16)) {
        fprintf(stderr, "skipped: no bf16 instructions on this CPU\n");
        skip();
    }
    run_cases(ELEMENT_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float32),
        cmocka_unit_test(test_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
