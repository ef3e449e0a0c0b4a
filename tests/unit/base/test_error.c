/* SPDX-License-Identifier: Apache-2.0 */
/* Errors, arrays and the number of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs those before it */
#include <cmocka.h>

#include "base/cores.h"
#include "base/error.h"

static void test_text_joins_the_parts(void **state)
{
    (void)state;
    dm_error err = {0};
    char text[sizeof err];
    assert_int_equal(
        error_set(&err, DM_ERROR_VALUE, "a.nii", "give a number above 0", "weight is %g", -3.5),
        DM_ERROR_VALUE);
    assert_int_equal(err.status, DM_ERROR_VALUE);
    assert_ptr_equal(dm_error_text(&err, text, sizeof text), text);
    assert_string_equal(text, "a.nii: weight is -3.5; give a number above 0");
    error_set(&err, DM_ERROR_VALUE, NULL, NULL, "weight is %g", 0.0);
    assert_string_equal(dm_error_text(&err, text, sizeof text), "weight is 0");
}

static void test_text_is_cut_not_overrun(void **state)
{
    (void)state;
    char long_name[2000], text[12] = "???????????", untouched = 'x';
    dm_error err = {0};
    memset(long_name, 'n', sizeof long_name);
    long_name[sizeof long_name - 1] = '\0';
    error_set(&err, DM_ERROR_IO, long_name, long_name, "%s", long_name);
    assert_int_equal(strlen(err.where), sizeof err.where - 1);
    assert_int_equal(strlen(err.what), sizeof err.what - 1);
    assert_int_equal(strlen(err.remedy), sizeof err.remedy - 1);
    assert_string_equal(dm_error_text(&err, text, sizeof text), "nnnnnnnnnnn");
    assert_ptr_equal(dm_error_text(&err, &untouched, 0), &untouched);
    assert_int_equal(untouched, 'x');
}

static void test_text_is_one_line(void **state)
{
    (void)state;
    dm_error err = {0};
    char text[128];
    error_set(&err, DM_ERROR_FORMAT, "a\nb.json", "ask \x7f", "'\x1b[31m\tgr\xc3\xb6\xc3\x9f\n'");
    assert_string_equal(dm_error_text(&err, text, sizeof text),
                        "a?b.json: '?[31m?gr\xc3\xb6\xc3\x9f?'; ask ?");
    assert_string_equal(err.where, "a\nb.json"); /* programs get the name as it is */
}

static void test_no_error_structure(void **state)
{
    (void)state;
    assert_int_equal(error_set(NULL, DM_ERROR_IO, "a", "b", "c"), DM_ERROR_IO);
    assert_int_equal(error_memory(NULL, 1, "x"), DM_ERROR_MEMORY);
    error_at(NULL, "a");
}

static void test_first_place_stays(void **state)
{
    (void)state;
    dm_error err = {0};
    error_memory(&err, 123456, "a thing");
    assert_int_equal(err.status, DM_ERROR_MEMORY);
    assert_non_null(strstr(err.what, "a thing"));
    assert_non_null(strstr(err.what, "123456"));
    error_at(&err, "first.nii");
    error_at(&err, "second.nii");
    assert_string_equal(err.where, "first.nii");
}

static void test_every_status_has_its_name(void **state)
{
    (void)state;
    static const dm_status all[] = {DM_OK,           DM_ERROR_IO,          DM_ERROR_FORMAT,
                                    DM_ERROR_VALUE,  DM_ERROR_UNSUPPORTED, DM_ERROR_MEMORY,
                                    DM_ERROR_DEVICE, DM_CANCELLED,         (dm_status)71};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(dm_status_name(all[i]), dm_status_name(all[j]));
}

static void test_arrays(void **state)
{
    (void)state;
    size_t product = 0;
    assert_true(size_multiply(65521, 65537, &product));
    assert_int_equal(product, (size_t)65521 * 65537);
    assert_false(size_multiply((size_t)1 << 33, (size_t)1 << 31, &product));
    assert_null(array_alloc((size_t)1 << 33, (size_t)1 << 31));
    assert_null(array_zero(SIZE_MAX, 1));
    static const size_t counts[] = {0, 1, 7, 64, 97, 4099};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        float *array = array_zero(counts[i], sizeof *array);
        assert_non_null(array);
        assert_int_equal((uintptr_t)array % 64, 0);
        for (size_t k = 0; k < counts[i]; k++)
            assert_true(array[k] == 0);
        free(array);
    }
}

static void test_cores(void **state)
{
    (void)state;
    unsetenv("OMP_NUM_THREADS");
    unsigned all = cores_or(0);
    assert_true(all >= 1);
    assert_int_equal(cores_or(3), 3);
    setenv("OMP_NUM_THREADS", "7", 1);
    assert_int_equal(cores_or(0), 7);
    assert_int_equal(cores_or(2), 2);
    setenv("OMP_NUM_THREADS", "5,2", 1); /* nested levels: the outermost counts */
    assert_int_equal(cores_or(0), 5);
    static const char *const unusable[] = {"", "many", "0", "-4", "99999999999999999999"};
    for (size_t i = 0; i < sizeof unusable / sizeof *unusable; i++) {
        setenv("OMP_NUM_THREADS", unusable[i], 1);
        assert_int_equal(cores_or(0), all);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_joins_the_parts),
        cmocka_unit_test(test_text_is_cut_not_overrun),
        cmocka_unit_test(test_text_is_one_line),
        cmocka_unit_test(test_no_error_structure),
        cmocka_unit_test(test_first_place_stays),
        cmocka_unit_test(test_every_status_has_its_name),
        cmocka_unit_test(test_arrays),
        cmocka_unit_test(test_cores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
