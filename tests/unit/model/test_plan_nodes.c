/* SPDX-License-Identifier: Apache-2.0 */
/* Plans of one node, against the formulas of ONNX. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "plan_case.h"
#include "plan_interpreter.h"

static graph_builder b;

/* ---- Single nodes, against ONNX's formulas -------------------------------------------------- */

/* Two channels, two voxels; runs the plan of one node, plain and optimised. */
static void check_values(int output, const double wanted[4])
{
    float input[4] = {-1.5f, 0.25f, 0.75f, -0.125f}, result[4], expected[4];
    for (size_t i = 0; i < 4; i++)
        expected[i] = (float)wanted[i];
    build_output(&b, output);
    for (int plain = 0; plain < 2; plain++) {
        plan *p = build(&b, (plan_case){.plain = plain});
        interpret_plan(p, input, result);
        assert_true(arrays_close(result, 4, expected, 4, 1e-6, 1e-6));
        plan_free(p);
    }
    build_end(&b);
}

static const double x4[4] = {-1.5, 0.25, 0.75, -0.125}; /* the same input */

static void begin4(void)
{
    build_begin(&b, 2, (size_t[]){1, 2, 1}, 3);
}

static double weight_at(int node_input, size_t c)
{
    const graph_value *w = &b.g.values[b.g.nodes[0].inputs[node_input]];
    return (double)w->data[w->count == 1 ? 0 : c];
}

static void test_batch_norm_by_its_formula(void **state)
{
    (void)state;
    double wanted[4];
    begin4();
    int y = build_norm(&b, OP_BATCH_NORM, b.input, 1);
    for (size_t i = 0; i < 4; i++)
        wanted[i] = (x4[i] - weight_at(3, i % 2)) / sqrt(weight_at(4, i % 2) + (double)0.1f) *
                        weight_at(1, i % 2) +
                    weight_at(2, i % 2);
    check_values(y, wanted);
}

static void test_instance_norm_by_its_formula(void **state)
{
    (void)state;
    double wanted[4];
    begin4();
    int y = build_norm(&b, OP_INSTANCE_NORM, b.input, 1);
    for (size_t i = 0; i < 4; i++) {
        double mean = (x4[i] + x4[i ^ 2]) / 2, half = (x4[i] - x4[i ^ 2]) / 2;
        wanted[i] = (x4[i] - mean) / sqrt(half * half + (double)0.1f) * weight_at(1, i % 2) +
                    weight_at(2, i % 2);
    }
    check_values(y, wanted);
}

static void test_arithmetic_with_weights(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 12; k++) {
        static const op_kind ops[] = {OP_ADD, OP_MUL, OP_SUB};
        double wanted[4];
        bool first = k & 1, scalar = k & 2;
        op_kind op = ops[k / 4];
        begin4();
        int w = build_weight(&b, 1, 2, scalar ? 0 : 4, (size_t[]){2, 1, 1, 1});
        graph_node node = build_attributes(op);
        int y = build_node(&b, &node, 2, 2, (int[]){first ? w : b.input, first ? b.input : w});
        for (size_t i = 0; i < 4; i++) {
            double v = weight_at(first ? 0 : 1, i % 2);
            wanted[i] = op == OP_ADD   ? x4[i] + v
                        : op == OP_MUL ? x4[i] * v
                        : first        ? v - x4[i]
                                       : x4[i] - v;
        }
        check_values(y, wanted);
    }
}

static double activation(op_kind op, bool gelu_tanh, double x)
{
    switch (op) {
    case OP_RELU:
        return x > 0 ? x : 0;
    case OP_LEAKY_RELU:
        return x > 0 ? x : 0.25 * x;
    case OP_ELU:
        return x > 0 ? x : 0.25 * (exp(x) - 1);
    case OP_GELU:
        return gelu_tanh ? x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * pow(x, 3))))
                         : x * erfc(-x / sqrt(2)) / 2;
    case OP_SIGMOID:
        return exp(x) / (1 + exp(x));
    case OP_TANH:
        return (exp(2 * x) - 1) / (exp(2 * x) + 1);
    case OP_SOFTPLUS:
        return log(1 + exp(x));
    default:
        return x;
    }
}

/* One bound, the other, both; each cuts some of x4. */
static void test_clip(void **state)
{
    (void)state;
    for (unsigned bounds = 1; bounds < 4; bounds++) {
        double wanted[4];
        graph_node node = build_attributes(OP_CLIP);
        node.low = bounds & 1 ? -0.5f : node.low;
        node.high = bounds & 2 ? 0.5f : node.high;
        begin4();
        for (size_t i = 0; i < 4; i++) {
            wanted[i] = bounds & 1 && x4[i] < -0.5 ? -0.5 : x4[i];
            wanted[i] = bounds & 2 && x4[i] > 0.5 ? 0.5 : wanted[i];
        }
        check_values(build_with(&b, &node, b.input), wanted);
    }
}

static void test_activations(void **state)
{
    (void)state;
    static const op_kind ops[] = {OP_RELU,    OP_LEAKY_RELU, OP_ELU,      OP_GELU,
                                  OP_SIGMOID, OP_TANH,       OP_SOFTPLUS, OP_IDENTITY};
    for (unsigned k = 0; k < 16; k++) {
        double wanted[4];
        graph_node node = build_attributes(ops[k / 2]);
        node.alpha = 0.25f;
        node.gelu_tanh = k & 1;
        begin4();
        for (size_t i = 0; i < 4; i++)
            wanted[i] = activation(node.op, node.gelu_tanh, x4[i]);
        check_values(build_with(&b, &node, b.input), wanted);
    }
    for (size_t count = 1; count <= 2; count++) {
        double wanted[4];
        graph_node node = build_attributes(OP_PRELU);
        begin4();
        int slope = build_weight(&b, 0.1, 0.9, 4, (size_t[]){count, 1, 1, 1});
        int y = build_node(&b, &node, 2, 2, (int[]){b.input, slope});
        for (size_t i = 0; i < 4; i++)
            wanted[i] = x4[i] > 0 ? x4[i] : weight_at(1, i % 2) * x4[i];
        check_values(y, wanted);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_batch_norm_by_its_formula),
        cmocka_unit_test(test_instance_norm_by_its_formula),
        cmocka_unit_test(test_arithmetic_with_weights),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_clip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
