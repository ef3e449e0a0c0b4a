/* SPDX-License-Identifier: Apache-2.0 */
/* What the device's network makes of a plan in ways of its own: chains longer than a kernel takes,
 * attention gates, and which kernel computes a convolution. */
#define NETWORK_UNDER_TEST "device_worker.h"
#include "../unit/predict/network_case.h"
#include "plan_case.h"

/* ---- Long chains ---------------------------------------------------------------------------- */

typedef struct long_chain {
    const char *name;
    step_kind kind;
    op_kind op;
    size_t in, out;
    int kernel, stride;
    bool in_place; /* a tensor that a late link reads is where the result goes */
    size_t before; /* channels in front of the result's */
} long_chain;

static void build_chain(network_case *k, const long_chain *c, element_type type)
{
    static const chain_op ops[CASE_LINKS] = {CHAIN_AFFINE,     CHAIN_LEAKY_RELU, CHAIN_SUB_TENSOR,
                                             CHAIN_TANH,       CHAIN_MUL_TENSOR, CHAIN_AFFINE,
                                             CHAIN_ADD_TENSOR, CHAIN_SIGMOID};
    size_t dim[3] = {4, 6, 8}, out[3];
    char reason[200] = "";
    case_begin(k, type);
    k->step.kind = c->kind;
    k->node.op = c->op;
    for (int a = 0; a < 3; a++) {
        k->node.kernel[a] = c->kernel;
        k->node.stride[a] = c->stride;
    }
    assert_true(node_output_size(&k->node, dim, out, reason, sizeof reason));
    k->step.in = case_tensor(k, type, c->in, dim[0], dim[1], dim[2], 0, 0);
    k->step.out = case_tensor(k, type, c->out, out[0], out[1], out[2], c->before, 0);
    if (c->kind == STEP_CONV || c->kind == STEP_CONV_TRANSPOSE) {
        size_t taps = (size_t)(c->kernel * c->kernel * c->kernel);
        k->step.weight = case_floats(k, c->in * c->out * taps);
        k->step.bias = case_floats(k, c->out);
    }
    int operand = case_tensor(k, type, c->out, out[0], out[1], out[2], 0, 0);
    for (int i = 0; i < CASE_LINKS; i++)
        case_link(k, ops[i], i == 6 && c->in_place ? k->step.out : operand, 0.25f);
}

static void test_long_chains(void **state)
{
    (void)state;
    static const long_chain cases[] = {
        {"library", STEP_CONV, OP_CONV, 8, 8, 3, 1, false, 0},
        {"library, in place", STEP_CONV, OP_CONV, 8, 8, 3, 1, true, 0},
        {"library, view", STEP_CONV, OP_CONV, 16, 16, 1, 1, false, 3},
        {"first layer", STEP_CONV, OP_CONV, 1, 8, 3, 1, true, 0},
        {"few channels out", STEP_CONV, OP_CONV, 7, 3, 3, 1, true, 0},
        {"unfolded", STEP_CONV_TRANSPOSE, OP_CONV_TRANSPOSE, 8, 8, 2, 2, true, 0},
        {"transposed", STEP_CONV_TRANSPOSE, OP_CONV_TRANSPOSE, 4, 6, 3, 2, true, 0},
        {"instance", STEP_NORM, OP_INSTANCE_NORM, 6, 6, 1, 1, true, 0},
        {"pool", STEP_MAX_POOL, OP_MAX_POOL, 6, 6, 2, 2, true, 2},
        {"pointwise", STEP_POINTWISE, OP_IDENTITY, 6, 6, 1, 1, true, 0},
        {"repeated input", STEP_POINTWISE, OP_IDENTITY, 1, 6, 1, 1, false, 0},
    };
    static const element_type types[] = {ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16};
    int failures = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t t = 0; t < 3; t++) {
            network_case k;
            build_chain(&k, &cases[i], types[t]);
            double limit = types[t] == ELEMENT_F32 ? 2e-6 : 1.0 / 128;
            if (!case_agrees(&k, limit, limit)) {
                fprintf(stderr, "^ %s, type %d\n", cases[i].name, (int)types[t]);
                failures++;
            }
            case_end(&k);
        }
    assert_int_equal(failures, 0);
}

/* ---- Gates ---------------------------------------------------------------------------------- */

typedef enum gate_variant {
    GATE_AS_USUAL,
    GATE_SKIP_FIRST,  /* the skip's convolution comes first */
    GATE_INTO_CONCAT, /* the result is a part of a concatenation */
    GATE_READ_TWICE,  /* somebody else reads the map */
    GATE_LEAKY,       /* no gate: another activation */
    GATE_VARIANTS
} gate_variant;

static int gate(graph_builder *b, int coarse, int skip, gate_variant variant, int *map)
{
    int first = variant == GATE_SKIP_FIRST ? skip : coarse;
    int second = variant == GATE_SKIP_FIRST ? coarse : skip;
    int x = build_conv(b, first, 5, 1), y = build_conv(b, second, 5, 1);
    graph_node leaky = build_attributes(OP_LEAKY_RELU);
    leaky.alpha = 0.1f;
    int sum = build_binary(b, OP_ADD, x, y);
    sum = variant == GATE_LEAKY ? build_with(b, &leaky, sum) : build_unary(b, OP_RELU, sum);
    *map = build_unary(b, OP_SIGMOID, build_conv(b, sum, 1, 1));
    return build_binary(b, OP_MUL, skip, *map);
}

static void build_gate(graph_builder *b, gate_variant variant)
{
    int map;
    build_begin(b, 1, (const size_t[]){6, 4, 8}, 77);
    int skip = build_unary(b, OP_TANH, build_conv(b, b->input, 6, 3));
    int coarse = build_unary(b, OP_TANH, build_conv(b, skip, 8, 3));
    int out = gate(b, coarse, skip, variant, &map);
    if (variant == GATE_INTO_CONCAT)
        out = build_concat(b, 2, (const int[]){out, coarse});
    out = build_conv(b, out, 1, 1);
    if (variant == GATE_READ_TWICE)
        out = build_binary(b, OP_ADD, out, map);
    build_output(b, out);
}

static size_t count_gates(const network *net, const plan *p)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_steps; i++)
        n += strcmp(network_kernel(net, i), "kernel_attention_gate") == 0;
    return n;
}

static void check_gate(gate_variant variant, element_type type, size_t gates)
{
    static graph_builder b;
    dm_error err = {0};
    network *net = NULL;
    worker *w = NULL;
    build_gate(&b, variant);
    plan *plain = build(&b, (plan_case){.plain = true});
    plan *p = build(&b, (plan_case){.type = type, .reads = true, .writes = true});
    size_t n = tensor_voxels(&plain->tensors[plain->input]);
    float *input = malloc(n * sizeof *input), *want = malloc(n * sizeof *want);
    for (size_t i = 0; i < n; i++)
        input[i] = build_uniform(&b, -1, 1);
    interpret_plan(plain, input, want);
    for (unsigned threads = 1; threads <= 2; threads++) {
        assert_int_equal(network_create(p, threads, &net, &err), DM_OK);
        assert_int_equal(count_gates(net, p), gates);
        assert_int_equal(worker_create(net, &w, &err), DM_OK);
        tensor_fill(&p->tensors[p->input], worker_arena(w), input);
        assert_int_equal(worker_run(w, &err), DM_OK);
        double limit = type == ELEMENT_F32 ? 2e-6 : 0.02;
        assert_true(arrays_close(worker_output(w), n, want, n, limit, limit));
        worker_free(w);
        network_free(net);
    }
    free(input);
    free(want);
    plan_free(plain);
    plan_free(p);
    build_end(&b);
}

static void test_gates(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        const element_type type = t ? ELEMENT_BF16 : ELEMENT_F32;
        check_gate(GATE_AS_USUAL, type, 1);
        check_gate(GATE_SKIP_FIRST, type, 1);
        check_gate(GATE_INTO_CONCAT, type, 1);
        check_gate(GATE_READ_TWICE, type, 0);
        check_gate(GATE_LEAKY, type, 0);
    }
}

/* ---- Ways ----------------------------------------------------------------------------------- */

typedef struct way_case {
    size_t in, out, before;
    element_type type;
    const char *way;
} way_case;

static void test_ways(void **state)
{
    (void)state;
    static const way_case cases[] = {
        {1, 16, 0, ELEMENT_BF16, "kernel_convolution_first"},
        {32, 16, 0, ELEMENT_BF16, "library"},
        {32, 16, 0, ELEMENT_F32, "library"},
        {32, 16, 16, ELEMENT_BF16, "kernel_convolution_tensor_core"},
        {32, 16, 16, ELEMENT_F32, "library, packed"},
        {32, 1, 0, ELEMENT_BF16, "kernel_convolution"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const way_case *c = &cases[i];
        network_case k;
        dm_error err = {0};
        network *net;
        case_begin(&k, c->type);
        k.step.kind = STEP_CONV;
        k.node.op = OP_CONV;
        for (int a = 0; a < 3; a++) {
            k.node.kernel[a] = 3;
            k.node.pad_begin[a] = k.node.pad_end[a] = 1;
        }
        k.step.in = case_tensor(&k, c->type, c->in, 4, 4, 4, c->before, 0);
        k.step.out = case_tensor(&k, c->type, c->out, 4, 4, 4, 0, 0);
        k.step.weight = case_floats(&k, c->in * c->out * 27);
        case_ends(&k);
        assert_int_equal(network_create(&k.p, 1, &net, &err), DM_OK);
        if (strncmp(network_kernel(net, 0), c->way, strlen(c->way)) != 0)
            fail_msg("case %d: '%s', not '%s'", (int)i, network_kernel(net, 0), c->way);
        network_free(net);
        case_end(&k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_long_chains),
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_ways),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
