/* SPDX-License-Identifier: Apache-2.0 */
/* What plan_build refuses, and what it says then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plan_case.h"

static graph_builder b;

static void begin(size_t channels, size_t edge)
{
    build_begin(&b, channels, (size_t[]){edge, edge, edge}, 11);
}

static void refused(const size_t tile[3], dm_status status, const char *const *parts)
{
    plan *p = (plan *)&b;
    dm_error err = {0};
    char text[2048];
    assert_int_equal(try_build(&b, tile, (plan_case){0}, &p, &err), status);
    assert_null(p);
    assert_int_equal(err.status, status);
    dm_error_text(&err, text, sizeof text);
    for (; *parts; parts++)
        if (!strstr(text, *parts))
            fail_msg("\"%s\" is not in \"%s\"", *parts, text);
}

#define REFUSED(tile, status, ...) refused(tile, status, (const char *const[]){__VA_ARGS__, NULL})

static void test_refuses_tiles_that_do_not_fit(void **state)
{
    (void)state;
    begin(1, 8);
    build_output(&b, build_up(&b, build_down(&b, b.input, 2), 1));
    b.g.total_stride[0] = b.g.total_stride[1] = b.g.total_stride[2] = 8;
    REFUSED(((size_t[]){8, 20, 3}), DM_ERROR_VALUE, "3 x 20 x 8 voxels (x, y, z)", "8 x 8 x 8",
            "use 8 along x, 16 or 24 along y", "'test'");
    REFUSED(((size_t[]){0, 8, 8}), DM_ERROR_VALUE, "8 x 8 x 0", "use 8 along z");
    REFUSED(((size_t[]){8, 8, (size_t)1 << 40}), DM_ERROR_VALUE, "exceeds 16777216 along x",
            "smaller tile");
    build_end(&b);
}

static void test_refuses_tiles_that_no_memory_holds(void **state)
{
    (void)state;
    const size_t edge = (size_t)1 << 24;
    begin(1, 8);
    build_output(&b, build_conv(&b, b.input, 2, 3));
    REFUSED(((size_t[]){edge, edge, edge}), DM_ERROR_VALUE, "16777216 x 16777216 x 16777216",
            "larger than any memory", "use a smaller tile");
    /* Each tensor fits an address, all together do not: 2^62 and 2^63 bytes. */
    REFUSED(((size_t[]){edge, edge, 4096}), DM_ERROR_VALUE, "4096 x 16777216 x 16777216",
            "larger than any memory", "use a smaller tile");
    build_end(&b);
}

static void test_refuses_tiles_without_a_result(void **state)
{
    (void)state;
    begin(1, 8);
    graph_node node = build_attributes(OP_CONV);
    for (int a = 0; a < 3; a++)
        node.kernel[a] = 5;
    build_output(&b, build_convolution(&b, &node, b.input, 1, true));
    REFUSED(((size_t[]){8, 8, 4}), DM_ERROR_VALUE, "4 x 8 x 8 voxels (x, y, z)", "'Conv0' (Conv)",
            "larger tile");
    build_end(&b);
}

static void test_refuses_operands_spread_along_one_axis(void **state)
{
    (void)state;
    begin(1, 4);
    graph_node node = build_attributes(OP_MAX_POOL);
    node.kernel[0] = node.stride[0] = 4;
    int flat = build_with(&b, &node, b.input);
    build_output(&b, build_binary(&b, OP_MUL, b.input, flat));
    REFUSED(((size_t[]){4, 4, 4}), DM_ERROR_UNSUPPORTED, "'Mul1' (Mul)", "1 x 4 x 4", "4 x 4 x 4",
            "resize the operand");
    build_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses_tiles_that_do_not_fit),
        cmocka_unit_test(test_refuses_tiles_that_no_memory_holds),
        cmocka_unit_test(test_refuses_tiles_without_a_result),
        cmocka_unit_test(test_refuses_operands_spread_along_one_axis),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
