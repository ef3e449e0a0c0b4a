/* SPDX-License-Identifier: Apache-2.0 */
/* Every half there is, and the floats round the middle between two neighbours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "predict/half_float.h"

/* From the definition of the format. */
static double half_value(unsigned half)
{
    int exponent = (int)(half >> 10 & 31u), fraction = (int)(half & 1023u);
    double size = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return half & 0x8000u ? -size : size;
}

static void test_finite_halves(void **state)
{
    (void)state;
    for (unsigned half = 0; half < 0x10000u; half++) {
        if ((half & 0x7c00u) == 0x7c00u)
            continue;
        float value = half_to_float((uint16_t)half);
        assert_true((double)value == half_value(half));
        assert_int_equal(signbit(value) != 0, half >> 15);
        assert_int_equal(half_from_float(value), half);
    }
}

static void test_rounding(void **state)
{
    (void)state;
    /* The last pair is the largest half and what would follow it, which is infinity. */
    for (unsigned half = 0; half < 0x7c00u; half++) {
        float middle = (float)((half_value(half) + half_value(half + 1)) / 2);
        unsigned even = half + (half & 1u);
        assert_int_equal(half_from_float(middle), even);
        assert_int_equal(half_from_float(-middle), even | 0x8000u);
        assert_int_equal(half_from_float(nextafterf(middle, 0)), half);
        assert_int_equal(half_from_float(nextafterf(middle, INFINITY)), half + 1);
    }
}

static void test_not_finite(void **state)
{
    (void)state;
    assert_int_equal(half_from_float(INFINITY), 0x7c00);
    assert_int_equal(half_from_float(-INFINITY), 0xfc00);
    assert_int_equal(half_from_float(3e38f), 0x7c00);
    assert_true(isinf(half_to_float(0x7c00)) && half_to_float(0xfc00) < 0);
    assert_true(half_from_float(NAN) > 0x7c00);
    assert_true(isnan(half_to_float(0x7e00)) && isnan(half_to_float(0x7c01)));
    assert_int_equal(half_from_float(1e-30f), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite_halves),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
