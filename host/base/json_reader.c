/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text to Jansson's values. Jansson's own reader does not look at whether its text buffer could
 * grow: where memory is short it drops characters of a string, writes over the heap or asserts, and
 * what it does report it calls malformed. Here every string and number goes through the constructors
 * of Jansson, which do look, and a shortage of memory has its own status.
 *
 * Strict as RFC 8259: UTF-8, no control characters in strings, nothing behind the value, which is an
 * object or an array. Refused beyond that: duplicate keys, \u0000, numbers that overflow.
 */
#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"

typedef struct reader {
    const char *text;
    size_t size, at;
    char *scratch; /* room for the longest string, decoded, or number */
    size_t length; /* of what is in it */
    locale_t c_locale;
    const char *where;
    dm_status status;
    dm_error *err;
} reader;

static json_t *read_value(reader *r);

/* ---- Errors --------------------------------------------------------------------------------- */

/* Always NULL, so that readers can return it. */
static void *malformed(reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void *malformed(reader *r, const char *format, ...)
{
    char problem[128];
    size_t line = 1, column = 1;
    va_list args;
    if (r->status != DM_OK)
        return NULL;
    va_start(args, format);
    vsnprintf(problem, sizeof problem, format, args);
    va_end(args);
    for (size_t i = 0; i < r->at && i < r->size; i++) {
        bool line_end = r->text[i] == '\n';
        line += line_end;
        column = line_end ? 1 : column + 1;
    }
    r->status = error_set(r->err, DM_ERROR_FORMAT, r->where, "correct the JSON text",
                          "malformed JSON at line %zu column %zu: %s", line, column, problem);
    return NULL;
}

static void *no_memory(reader *r)
{
    if (r->status == DM_OK)
        r->status = error_memory(r->err, r->size, "JSON");
    error_at(r->err, r->where);
    return NULL;
}

/* ---- Characters ----------------------------------------------------------------------------- */

/* The next character without taking it; -1 at the end. */
static int peek(const reader *r)
{
    return r->at < r->size ? (unsigned char)r->text[r->at] : -1;
}

static void skip_space(reader *r)
{
    while (r->at < r->size && strchr(" \t\n\r", r->text[r->at]) && r->text[r->at])
        r->at++;
}

static bool take(reader *r, char c)
{
    if (peek(r) != (unsigned char)c)
        return false;
    r->at++;
    return true;
}

static void *unexpected(reader *r, const char *wanted)
{
    int c = peek(r);
    if (c < 0)
        return malformed(r, "the text ends, but %s is expected", wanted);
    if (c > 32 && c < 127)
        return malformed(r, "'%c' where %s is expected", c, wanted);
    return malformed(r, "byte 0x%02x where %s is expected", (unsigned)c, wanted);
}

static void put(reader *r, unsigned byte)
{
    r->scratch[r->length++] = (char)byte;
}

static void put_utf8(reader *r, uint32_t code)
{
    if (code < 0x80) {
        put(r, code);
        return;
    }
    unsigned more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned first[] = {0, 0xc0, 0xe0, 0xf0};
    put(r, first[more] | code >> (6 * more));
    while (more-- > 0)
        put(r, 0x80 | (code >> (6 * more) & 0x3f));
}

/* Four hexadecimal digits; UINT32_MAX where there are others. */
static uint32_t read_hex(reader *r)
{
    uint32_t code = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        int c = peek(r);
        const char *digits = "0123456789abcdef", *digit = NULL;
        if (c > 0)
            digit = strchr(digits, c >= 'A' && c <= 'F' ? c - 'A' + 'a' : c);
        if (!digit)
            return UINT32_MAX;
        code = code << 4 | (uint32_t)(digit - digits);
    }
    return code;
}

/* Behind \u: one code, or the two of a surrogate pair. */
static bool read_unicode_escape(reader *r)
{
    uint32_t code = read_hex(r), low = 0;
    if (code == UINT32_MAX)
        return malformed(r, "\\u without four hexadecimal digits");
    if (code == 0)
        return malformed(r, "\\u0000 is not allowed");
    if (code >= 0xd800 && code < 0xdc00 && take(r, '\\') && take(r, 'u')) {
        low = read_hex(r);
        if (low >= 0xdc00 && low < 0xe000)
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code >= 0xd800 && code < 0xe000)
        return malformed(r, "half of a surrogate pair");
    put_utf8(r, code);
    return true;
}

static bool read_escape(reader *r)
{
    static const char names[] = "\"\\/bfnrt", means[] = "\"\\/\b\f\n\r\t";
    int c = peek(r);
    const char *name = c > 0 ? strchr(names, c) : NULL;
    if (c == 'u') {
        r->at++;
        return read_unicode_escape(r);
    }
    if (!name)
        return unexpected(r, "an escape such as \\n");
    r->at++;
    put(r, (unsigned char)means[name - names]);
    return true;
}

/* Bytes of the UTF-8 sequence that the `size` bytes of `text` begin with (RFC 3629: shortest form,
 * no surrogates, up to U+10FFFF), or 0. */
static size_t utf8_length(const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned lowest = 0x80, highest = 0xbf;
    size_t n = 0;
    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        n = 2;
    else if (s[0] >= 0xe0 && s[0] <= 0xef)
        n = 3;
    else if (s[0] >= 0xf0 && s[0] <= 0xf4)
        n = 4;
    if (n == 0 || size < n)
        return 0;
    if (s[0] == 0xe0)
        lowest = 0xa0;
    else if (s[0] == 0xed)
        highest = 0x9f;
    else if (s[0] == 0xf0)
        lowest = 0x90;
    else if (s[0] == 0xf4)
        highest = 0x8f;
    for (size_t i = 1; i < n; i++, lowest = 0x80, highest = 0xbf)
        if (s[i] < lowest || s[i] > highest)
            return 0;
    return n;
}

bool text_is_utf8(const char *text)
{
    size_t size = strlen(text), n;
    for (; size > 0; text += n, size -= n)
        if ((n = utf8_length(text, size)) == 0)
            return false;
    return true;
}

/* ---- Strings and numbers -------------------------------------------------------------------- */

/* A string into the scratch buffer, terminated. */
static bool read_text(reader *r)
{
    r->length = 0;
    if (!take(r, '"'))
        return unexpected(r, "a string");
    while (!take(r, '"')) {
        int c = peek(r);
        if (c < 0)
            return unexpected(r, "the end of a string");
        if (c == '\n')
            return malformed(r, "newline in a string");
        if (c < 32)
            return malformed(r, "control character 0x%02x in a string", (unsigned)c);
        if (c == '\\') {
            r->at++;
            if (!read_escape(r))
                return false;
            continue;
        }
        size_t n = utf8_length(r->text + r->at, r->size - r->at);
        if (n == 0)
            return malformed(r, "byte 0x%02x is not UTF-8", (unsigned)c);
        while (n-- > 0)
            put(r, (unsigned char)r->text[r->at++]);
    }
    r->scratch[r->length] = '\0';
    return true;
}

static json_t *read_string(reader *r)
{
    if (!read_text(r))
        return NULL;
    json_t *string = json_stringn_nocheck(r->scratch, r->length);
    return string ? string : no_memory(r);
}

static size_t take_digits(reader *r)
{
    size_t n = 0;
    while (peek(r) >= '0' && peek(r) <= '9') {
        put(r, (unsigned char)r->text[r->at++]);
        n++;
    }
    return n;
}

/* The number's characters into the scratch buffer, terminated. */
static bool read_digits(reader *r, bool *is_real)
{
    r->length = 0;
    *is_real = false;
    if (take(r, '-'))
        put(r, '-');
    if (take(r, '0'))
        put(r, '0');
    else if (take_digits(r) == 0)
        return unexpected(r, "a value");
    if (take(r, '.')) {
        *is_real = true;
        put(r, '.');
        if (take_digits(r) == 0)
            return unexpected(r, "a digit");
    }
    if (peek(r) == 'e' || peek(r) == 'E') {
        *is_real = true;
        put(r, (unsigned char)r->text[r->at++]);
        if (peek(r) == '+' || peek(r) == '-')
            put(r, (unsigned char)r->text[r->at++]);
        if (take_digits(r) == 0)
            return unexpected(r, "a digit");
    }
    r->scratch[r->length] = '\0';
    return true;
}

static json_t *read_number(reader *r)
{
    bool is_real;
    if (!read_digits(r, &is_real))
        return NULL;
    json_t *number;
    if (is_real) {
        double value = strtod_l(r->scratch, NULL, r->c_locale);
        if (!(fabs(value) <= DBL_MAX))
            return malformed(r, "real number overflow");
        number = json_real(value);
    } else {
        json_int_t value = 0;
        bool negative = r->scratch[0] == '-';
        for (const char *c = r->scratch + negative; *c; c++) {
            json_int_t digit = *c - '0';
            if (__builtin_mul_overflow(value, (json_int_t)10, &value) ||
                __builtin_add_overflow(value, negative ? -digit : digit, &value))
                return malformed(r, "too big integer");
        }
        number = json_integer(value);
    }
    return number ? number : no_memory(r);
}

/* ---- Values --------------------------------------------------------------------------------- */

static bool read_member(reader *r, json_t *object)
{
    skip_space(r);
    if (!read_text(r))
        return false;
    if (json_object_get(object, r->scratch))
        return malformed(r, "duplicate object key \"%.64s\"", r->scratch);
    char *key = strdup(r->scratch);
    if (!key)
        return no_memory(r);
    skip_space(r);
    json_t *value = take(r, ':') ? read_value(r) : unexpected(r, "':'");
    bool added = value && json_object_set_new_nocheck(object, key, value) == 0;
    free(key);
    if (value && !added)
        no_memory(r);
    return added;
}

static bool read_element(reader *r, json_t *array)
{
    json_t *value = read_value(r);
    if (!value)
        return false;
    return json_array_append_new(array, value) == 0 || no_memory(r);
}

/* An object or an array, whose bracket has been taken. Recursion is bounded by JSON_MAX_DEPTH. */
static json_t *read_members(reader *r, json_t *into, bool (*read_one)(reader *, json_t *), char end)
{
    const char *wanted = end == ']' ? "',' or ']'" : "',' or '}'";
    if (!into)
        return no_memory(r);
    skip_space(r);
    if (take(r, end))
        return into;
    while (read_one(r, into)) {
        skip_space(r);
        if (take(r, end))
            return into;
        if (!take(r, ',')) {
            unexpected(r, wanted);
            break;
        }
    }
    json_decref(into);
    return NULL;
}

static bool take_word(reader *r, const char *word)
{
    size_t n = strlen(word);
    if (r->size - r->at < n || memcmp(r->text + r->at, word, n) != 0)
        return false;
    r->at += n;
    return true;
}

/* NULL after an error. */
static json_t *read_value(reader *r)
{
    skip_space(r);
    if (take(r, '{'))
        return read_members(r, json_object(), read_member, '}');
    if (take(r, '['))
        return read_members(r, json_array(), read_element, ']');
    if (peek(r) == '"')
        return read_string(r);
    if (take_word(r, "true"))
        return json_true();
    if (take_word(r, "false"))
        return json_false();
    if (take_word(r, "null"))
        return json_null();
    return read_number(r);
}

static json_t *read_root(reader *r)
{
    skip_space(r);
    if (peek(r) != '{' && peek(r) != '[')
        return unexpected(r, "'[' or '{'");
    json_t *root = read_value(r);
    skip_space(r);
    if (!root || r->at == r->size)
        return root;
    json_decref(root);
    return malformed(r, "end of file expected");
}

dm_status json_read(const char *text, size_t size, const char *where, json_t **root, dm_error *err)
{
    reader r = {.text = text, .size = size, .where = where, .err = err};
    *root = NULL;
    r.c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    r.scratch = malloc(size + 1);
    if (r.c_locale && r.scratch)
        *root = read_root(&r);
    else
        no_memory(&r);
    free(r.scratch);
    if (r.c_locale)
        freelocale(r.c_locale);
    return r.status;
}
