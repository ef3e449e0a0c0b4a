/* SPDX-License-Identifier: Apache-2.0 */
/* The report on the installation, and which weights are the default. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dosemap.h"

static void make_file(char path[64])
{
    strcpy(path, "/tmp/dosemap-weights-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
}

static void test_named_weights(void **state)
{
    (void)state;
    char named[64], path[4096];
    dm_error err = {0};
    make_file(named);
    setenv("DOSEMAP_MODEL", named, 1);
    assert_int_equal(dm_default_model_path(path, sizeof path, &err), DM_OK);
    assert_string_equal(path, named);
    assert_int_equal(dm_default_model_path(path, 5, &err), DM_ERROR_VALUE);
    unlink(named);
    /* Not there: an error, not other weights. */
    assert_int_equal(dm_default_model_path(path, sizeof path, &err), DM_ERROR_IO);
    assert_string_equal(err.where, named);
    assert_non_null(strstr(err.remedy, "DOSEMAP_MODEL"));
    unsetenv("DOSEMAP_MODEL");
}

static void test_report(void **state)
{
    (void)state;
    char named[64], *text = NULL;
    dm_error err = {0};
    make_file(named);
    setenv("DOSEMAP_MODEL", named, 1);
    assert_int_equal(dm_doctor(true, &text, &err), DM_OK);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    dm_string_free(text);
    const json_t *model = json_object_get(root, "model"), *cpu = json_object_get(root, "cpu");
    assert_string_equal(json_string_value(json_object_get(model, "default")), named);
    assert_int_equal(json_array_size(json_object_get(model, "searched")), 3);
    assert_string_equal(json_string_value(json_object_get(root, "version")), dm_version());
    assert_true(json_integer_value(json_object_get(cpu, "threads")) >= 1);
    assert_string_equal(json_string_value(json_array_get(json_object_get(cpu, "precisions"), 0)),
                        "float32");
    const json_t *cuda = json_object_get(root, "cuda");
    assert_true(json_is_false(json_object_get(cuda, "usable")));
    assert_true(json_is_array(json_object_get(cuda, "gpus")));
    assert_int_equal(json_array_size(json_object_get(cuda, "gpus")), 0);
    json_decref(root);

    assert_int_equal(dm_doctor(false, &text, &err), DM_OK);
    static const char *const words[] = {"oneDNN", "Zstandard", "ISA-L", "NIfTI-clib",   "Jansson",
                                        "avx2",   "float32",   "CUDA",  "built without"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        assert_non_null(strstr(text, words[i]));
    assert_non_null(strstr(text, named));
    dm_string_free(text);

    unlink(named); /* a missing file is a finding, not a failure */
    assert_int_equal(dm_doctor(false, &text, &err), DM_OK);
    assert_non_null(strstr(text, "cannot be read"));
    dm_string_free(text);
    unsetenv("DOSEMAP_MODEL");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_named_weights),
                                       cmocka_unit_test(test_report)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
