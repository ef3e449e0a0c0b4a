/* SPDX-License-Identifier: Apache-2.0 */
/* Activations against the C library in double over the range of float, and bf16 rounding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>

#include "predict/cpu/float_functions.h"

/* Every 1021st float between the ends, both included; `floor` is the magnitude below which only the
 * absolute error counts. */
static bool agrees(const char *name, float (*f)(float), double (*reference)(double), float low,
                   float high, double limit, double smallest)
{
    double worst = 0, at = 0;
    for (uint32_t u = 0; u < 0x7F800000u; u += 1021)
        for (int sign = 0; sign < 2; sign++) {
            float_bits x = {.u = u | (uint32_t)sign << 31};
            if (x.f < low || x.f > high)
                continue;
            double want = reference((double)x.f), got = (double)f(x.f);
            double error = fabs(got - want) / (fabs(want) > smallest ? fabs(want) : smallest);
            if (!(error <= worst)) {
                worst = error;
                at = (double)x.f;
            }
        }
    if (!(worst <= limit))
        fprintf(stderr, "%s(%.9g): relative error %.3g\n", name, at, worst);
    return worst <= limit;
}

static double exact_sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

static double exact_softplus(double x)
{
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

static double exact_elu(double x)
{
    return x > 0 ? x : 0.75 * expm1(x);
}

static float elu_three_quarters(float x)
{
    return elu(x, 0.75f);
}

static double exact_gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}

static void test_accuracy(void **state)
{
    (void)state;
    const double tiny = 1e-37;
    assert_true(agrees("exp", exp_negative, exp, -87, 0, 1e-6, tiny));
    assert_true(agrees("expm1", expm1_negative, expm1, -1e30f, 0, 1e-6, tiny));
    assert_true(agrees("sigmoid", sigmoid, exact_sigmoid, -85, 1e30f, 1e-6, tiny));
    assert_true(agrees("tanh", tanh_fast, tanh, -1e30f, 1e30f, 1e-6, tiny));
    assert_true(agrees("softplus", softplus, exact_softplus, -85, 1e30f, 1e-6, tiny));
    assert_true(agrees("elu", elu_three_quarters, exact_elu, -1e30f, 1e30f, 1e-6, tiny));
    /* Left of -3 the reference itself loses digits, and so much less of x is left. */
    assert_true(agrees("gelu_tanh", gelu_tanh, exact_gelu_tanh, -3, 1e9f, 2e-6, 1e-30));
}

static void test_far_left(void **state)
{
    (void)state;
    assert_true(sigmoid(-1e30f) >= 0 && sigmoid(-1e30f) < 1e-37f);
    assert_true(softplus(-1e30f) >= 0 && softplus(-1e30f) < 1e-37f);
    assert_true(sigmoid(INFINITY) == 1 && tanh_fast(-INFINITY) == -1);
}

static void test_nan_goes_through(void **state)
{
    (void)state;
    assert_true(isnan(relu(NAN)) && isnan(leaky_relu(NAN, 0.1f)) && isnan(elu(NAN, 1)));
    assert_true(isnan(sigmoid(NAN)) && isnan(tanh_fast(NAN)) && isnan(softplus(NAN)));
    assert_true(isnan(gelu_tanh(NAN)) && isnan(sigmoid(-NAN)) && isnan(elu(-NAN, 1)));
}

static void test_bf16_rounding(void **state)
{
    (void)state;
    assert_int_equal(bf16_from_float(1.0f), 0x3F80);
    /* 1 + 1/256 lies between two neighbours: to the even one. */
    assert_int_equal(bf16_from_float(1.00390625f), 0x3F80);
    assert_int_equal(bf16_from_float(1.01171875f), 0x3F82);
    assert_int_equal(bf16_from_float(-1.00390637f), 0xBF81);
    assert_int_equal(bf16_from_float(3.4e38f), 0x7F80);
    assert_int_equal(bf16_from_float(INFINITY), 0x7F80);
    assert_true(isnan(bf16_to_float(bf16_from_float(NAN))));
    float_bits quiet = {.u = 0x7F800001u}; /* a NaN whose upper half is that of infinity */
    assert_true(isnan(bf16_to_float(bf16_from_float(quiet.f))));
    for (uint32_t h = 0; h < 0x10000u; h++)
        if ((h & 0x7FFFu) <= 0x7F80u)
            assert_int_equal(bf16_from_float(bf16_to_float((uint16_t)h)), h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy),
        cmocka_unit_test(test_far_left),
        cmocka_unit_test(test_nan_goes_through),
        cmocka_unit_test(test_bf16_rounding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
