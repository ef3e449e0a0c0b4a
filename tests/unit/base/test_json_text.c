/* SPDX-License-Identifier: Apache-2.0 */
/* JSON from strangers: what is refused and why; JSON for people: what is printed. */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* cmocka needs those before it */
#include <cmocka.h>

#include "base/json_text.h"
#include "base/output_file.h"

static dm_status parse(const char *text, size_t size, dm_error *err)
{
    json_t *root = NULL;
    dm_status status = json_parse(text, size, "x.json", &root, err);
    assert_int_equal(status == DM_OK, root != NULL);
    json_decref(root);
    return status;
}

static void refused(const char *text, size_t size, const char *because)
{
    dm_error err = {0};
    assert_int_equal(parse(text, size, &err), DM_ERROR_FORMAT);
    assert_string_equal(err.where, "x.json");
    assert_true(err.remedy[0] != '\0');
    if (!strstr(err.what, because))
        fail_msg("'%s' does not say '%s'", err.what, because);
    assert_int_equal(parse(text, size, NULL), DM_ERROR_FORMAT);
}

static void test_malformed_text_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *because;
    } cases[] = {
        {"", "line"},
        {"{", "line"},
        {"{\"a\": 1, \"a\": 2}", "duplicate"},
        {"{\"a\": {\"b\": 1, \"b\": 1}}", "duplicate"},
        {"[1e999]", "overflow"},
        {"[-1e999]", "overflow"},
        {"[123456789012345678901234567890]", "too big"},
        {"[NaN]", "line 1"},
        {"[Infinity]", "line 1"},
        {"{} x", "end of file expected"},
        {"{}{}", "end of file expected"},
        {"[1,]", "line 1"},
        {"[01]", "line 1"},
        {"{'a': 1}", "line 1"},
        {"[\"\xff\"]", "0xff"},
        {"[\"\xed\xa0\x80\"]", "0xed"},
        {"[\"a\nb\"]", "newline"},
        {"{\n \"a\": 1,\n \"b\": ?\n}", "line 3"},
        {"[\"\\u0000\"]", "\\u0000"},
        {"[\"\\\\\", \"\\\"\"", "line 1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].text, strlen(cases[i].text), cases[i].because);
    refused("[1]\0[2]", 7, "line 1");
    refused("[\"a\0b\"]", 7, "line 1");
}

/* ---- Against Jansson's own reader ----------------------------------------------------------- */

static const char *const samples[] = {
    "[]",
    " {\"a\" : [ 1 , -2.5e-3 , true , false , null ] , \"b\" : { } }\t\r\n",
    "[\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\\uD83D\\ude00 "
    "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"]",
    "[0, -0, -0.0, 9223372036854775807, -9223372036854775808, 1E400, 1e-400, 0.1e+05]",
    "[0.30000000000000004, 1.7976931348623157e308, 5e-324, 123456789012345678.5]",
    "{\"Units\": \"Bq/mL\", \"a key of more than sixteen characters\": \"and a longer value too\"}",
    "[\"\\ud83d\", \"\\ude00\", \"\\u0000\", \"\\x\", \"\\u12g4\", 1.e5, .5, +1, 0x10, 1e, - 1]",
    "[[[[\"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf\"], "
    "\"\xc2\x80\xe0\xa0\x80\xf0\x90\x80\x80\"]]]",
};

static void same_as_jansson(const char *text, size_t size)
{
    json_t *ours = NULL;
    json_t *jansson = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    dm_status status = json_parse(text, size, "x", &ours, NULL);
    if ((status == DM_OK) != (jansson != NULL) || (jansson && !json_equal(ours, jansson)))
        fail_msg("'%.*s' is %s, but %s by Jansson", (int)size, text,
                 status == DM_OK ? "read" : "refused", jansson ? "read" : "refused");
    json_decref(ours);
    json_decref(jansson);
}

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Samples with a few bytes changed, taken out or copied from elsewhere. No zero bytes: Jansson skips
 * one behind a number. */
static void test_what_is_read_is_what_jansson_reads(void **state)
{
    (void)state;
    static const char bytes[] =
        "\"\\{}[],:0123456789+-.eEu \n\ttrufalsn/b\x80\xbf\xc2\xe0\xed\xf0\xf4\xff";
    uint32_t random = 1;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        same_as_jansson(samples[i], strlen(samples[i]));
        for (int round = 0; round < 20000; round++) {
            char text[256];
            size_t size = strlen(samples[i]);
            memcpy(text, samples[i], size);
            for (uint32_t n = 1 + next_random(&random) % 3; n > 0 && size > 1; n--) {
                size_t at = next_random(&random) % size;
                switch (next_random(&random) % 3) {
                case 0:
                    text[at] = bytes[next_random(&random) % (sizeof bytes - 1)];
                    break;
                case 1:
                    memmove(text + at, text + at + 1, --size - at);
                    break;
                default:
                    text[at] = text[next_random(&random) % size];
                }
            }
            same_as_jansson(text, size);
        }
    }
}

static char *nested(size_t depth, char open, char close, size_t *size)
{
    char *text = malloc(2 * depth + 1);
    assert_non_null(text);
    memset(text, open, depth);
    memset(text + depth, close, depth);
    *size = 2 * depth;
    return text;
}

static void test_depth_is_bounded(void **state)
{
    (void)state;
    size_t size;
    char *text = nested(JSON_MAX_DEPTH, '[', ']', &size);
    assert_int_equal(parse(text, size, NULL), DM_OK);
    free(text);
    text = nested(JSON_MAX_DEPTH + 1, '[', ']', &size);
    refused(text, size, "64 levels deep");
    free(text);
    /* Cheap to send, expensive to parse: refused before the parser sees it. */
    text = nested(4000000, '[', ']', &size);
    refused(text, size, "64 levels deep");
    free(text);
    text = nested(4000000, '{', '}', &size);
    refused(text, size, "64 levels deep");
    free(text);
    /* Brackets in strings are no depth, and an escaped quote does not end a string. */
    char quoted[512] = "[\"\\\"";
    memset(quoted + 4, '[', 400);
    strcpy(quoted + 404, "\\\\\", \"]\"]");
    assert_int_equal(parse(quoted, strlen(quoted), NULL), DM_OK);
}

static char *zeros(size_t count, size_t *size)
{
    char *text = malloc(2 * count + 2);
    assert_non_null(text);
    for (size_t i = 0; i < count; i++) {
        text[2 * i] = i ? ',' : '[';
        text[2 * i + 1] = '0';
    }
    text[2 * count] = ']';
    *size = 2 * count + 1;
    return text;
}

static void test_number_of_nodes_is_bounded(void **state)
{
    (void)state;
    size_t size;
    char *text = zeros(JSON_MAX_NODES - 1, &size);
    assert_int_equal(parse(text, size, NULL), DM_OK);
    free(text);
    text = zeros(JSON_MAX_NODES, &size);
    refused(text, size, "1000000 nodes");
    free(text);
}

static size_t held, most_held;

static void *counted_malloc(size_t size)
{
    void *block = malloc(size);
    held += malloc_usable_size(block) + 8;
    if (held > most_held)
        most_held = held;
    return block;
}

static void counted_free(void *block)
{
    if (block)
        held -= malloc_usable_size(block) + 8;
    free(block);
}

/* `unit` after `unit`, as many as the bounds let through; its K becomes a string of its own. */
static char *repeated(const char *unit, char open, char close, size_t nodes_each, size_t *size)
{
    char *text = malloc(JSON_MAX_BYTES), key[24];
    size_t n = 0, nodes = 1 + nodes_each;
    assert_non_null(text);
    text[n++] = open;
    for (size_t i = 0; n + 40 < JSON_MAX_BYTES && nodes < JSON_MAX_NODES; i++) {
        if (i)
            text[n++] = ',';
        snprintf(key, sizeof key, "\"%zx\"", i);
        for (const char *c = unit; *c; c++) {
            if (*c == 'K')
                n += (size_t)snprintf(text + n, sizeof key, "%s", key);
            else
                text[n++] = *c;
        }
        nodes += nodes_each;
    }
    text[n++] = close;
    *size = n;
    return text;
}

/* The worst that was found: many small objects with keys. */
static void test_memory_is_bounded(void **state)
{
    (void)state;
    static const struct {
        const char *unit, *ends;
        size_t nodes;
    } cases[] = {{"K:{}", "{}", 2}, {"{K:0}", "[]", 2}};
    json_set_alloc_funcs(counted_malloc, counted_free);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t size;
        char *text =
            repeated(cases[i].unit, cases[i].ends[0], cases[i].ends[1], cases[i].nodes, &size);
        most_held = 0;
        assert_int_equal(parse(text, size, NULL), DM_OK);
        assert_int_equal(held, 0);
        assert_true(most_held > 10e6); /* it was counted */
        if (most_held >= 200e6)
            fail_msg("'%s' takes %zu bytes of memory", cases[i].unit, most_held);
        free(text);
    }
    json_set_alloc_funcs(malloc, free);
}

static void test_size_is_bounded(void **state)
{
    (void)state;
    char *text = malloc(JSON_MAX_BYTES + 1);
    assert_non_null(text);
    memset(text, ' ', JSON_MAX_BYTES + 1);
    memcpy(text, "[1]", 3);
    assert_int_equal(parse(text, JSON_MAX_BYTES, NULL), DM_OK);
    refused(text, JSON_MAX_BYTES + 1, "8388609");
    free(text);
}

static void test_file(void **state)
{
    (void)state;
    char path[] = "/tmp/dosemap-json-XXXXXX", missing[64];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    json_t *root = NULL;
    dm_error err = {0};
    assert_int_equal(output_write_all(path, "{\"a\": 2}", 8, &err), DM_OK);
    assert_int_equal(json_parse_file(path, &root, &err), DM_OK);
    assert_int_equal(json_integer_value(json_object_get(root, "a")), 2);
    json_decref(root);
    assert_int_equal(output_write_all(path, "\xef\xbb\xbf{\"a\": 3}", 11, &err), DM_OK);
    assert_int_equal(json_parse_file(path, &root, &err), DM_OK);
    assert_int_equal(json_integer_value(json_object_get(root, "a")), 3);
    json_decref(root);
    assert_int_equal(output_write_all(path, "{\"a\": 2", 7, &err), DM_OK);
    assert_int_equal(json_parse_file(path, &root, &err), DM_ERROR_FORMAT);
    assert_null(root);
    assert_string_equal(err.where, path);
    unlink(path);
    snprintf(missing, sizeof missing, "%s.missing", path);
    assert_int_equal(json_parse_file(missing, &root, &err), DM_ERROR_IO);
    assert_null(root);
    assert_string_equal(err.where, missing);
}

static void test_layout(void **state)
{
    (void)state;
    json_t *root = json_pack("{s:s, s:[i,f,b,n], s:{}, s:[], s:{s:{s:s}}}", "z\"\n", "\xc3\xa9\t",
                             "a", -3, 2.0, 1, "empty", "none", "deep", "er", "k", "v");
    char *text = NULL;
    assert_non_null(root);
    assert_int_equal(json_print(root, &text, NULL), DM_OK);
    assert_string_equal(text, "{\n"
                              "  \"z\\\"\\n\": \"\xc3\xa9\\t\",\n"
                              "  \"a\": [\n    -3,\n    2.0,\n    true,\n    null\n  ],\n"
                              "  \"empty\": {},\n"
                              "  \"none\": [],\n"
                              "  \"deep\": {\n    \"er\": {\n      \"k\": \"v\"\n    }\n  }\n"
                              "}");
    dm_string_free(text);
    json_decref(root);
}

static void printed(double value, const char *expected)
{
    json_t *root = json_pack("[f]", value), *back = NULL;
    char *text = NULL;
    assert_int_equal(json_print(root, &text, NULL), DM_OK);
    if (expected) {
        char whole[64];
        snprintf(whole, sizeof whole, "[\n  %s\n]", expected);
        assert_string_equal(text, whole);
    }
    assert_int_equal(json_parse(text, strlen(text), "", &back, NULL), DM_OK);
    double again = json_real_value(json_array_get(back, 0));
    assert_memory_equal(&again, &value, sizeof value);
    json_decref(back);
    json_decref(root);
    dm_string_free(text);
}

static void test_numbers_are_short_and_exact(void **state)
{
    (void)state;
    printed(0.1, "0.1");
    printed(78.7, "78.7");
    printed(-0.0, "-0.0");
    printed(1e100, "1e100");
    printed(0.1 + 0.2, "0.30000000000000004");
    printed(1.0 / 3, NULL);
    printed(5e-324, NULL);
    printed(1.7976931348623157e308, NULL);
    uint64_t state_of = 1;
    for (int i = 0; i < 2000; i++) {
        state_of = state_of * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        uint64_t bits = state_of ^ (state_of >> 29);
        double value;
        memcpy(&value, &bits, sizeof value);
        if (value - value == 0) /* finite */
            printed(value, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_malformed_text_is_refused),
        cmocka_unit_test(test_what_is_read_is_what_jansson_reads),
        cmocka_unit_test(test_depth_is_bounded),
        cmocka_unit_test(test_number_of_nodes_is_bounded),
        cmocka_unit_test(test_memory_is_bounded),
        cmocka_unit_test(test_size_is_bounded),
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_numbers_are_short_and_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
