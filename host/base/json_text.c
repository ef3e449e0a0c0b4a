/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_text.h"

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/codec.h"
#include "base/error.h"
#include "base/text_stream.h"

/* Depth and number of nodes, counted before anything is allocated: Jansson takes about 100 bytes a
 * node, so that a hostile text would cost far more memory than it has bytes. */
static dm_status check_bounds(const char *text, size_t size, const char *where, dm_error *err)
{
    size_t depth = 0, nodes = 1;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            nodes++;
            depth++;
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        } else if (c == ',') {
            nodes++;
        }
        if (depth > JSON_MAX_DEPTH || nodes > JSON_MAX_NODES)
            return error_set(err, DM_ERROR_FORMAT, where, "use a smaller or flatter JSON text",
                             depth > JSON_MAX_DEPTH ? "JSON is more than %d levels deep"
                                                    : "JSON has more than %d nodes",
                             depth > JSON_MAX_DEPTH ? JSON_MAX_DEPTH : JSON_MAX_NODES);
    }
    return DM_OK;
}

dm_status json_parse(const char *text, size_t size, const char *where, json_t **root, dm_error *err)
{
    *root = NULL;
    if (size > JSON_MAX_BYTES)
        return error_set(err, DM_ERROR_FORMAT, where, "use a smaller JSON text",
                         "JSON of %zu bytes is longer than %zu", size, JSON_MAX_BYTES);
    dm_status status = check_bounds(text, size, where, err);
    if (status != DM_OK)
        return status;
    return json_read(text, size, where, root, err);
}

dm_status json_parse_file(const char *path, json_t **root, dm_error *err)
{
    uint8_t *bytes = NULL;
    size_t size = 0;
    *root = NULL;
    dm_status status = source_read_all(path, JSON_MAX_BYTES, &bytes, &size, err);
    /* Some editors begin UTF-8 with a byte order mark. */
    size_t mark = size >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
    if (status == DM_OK)
        status = json_parse((const char *)bytes + mark, size - mark, path, root, err);
    free(bytes);
    return status;
}

json_t *json_string_or_null(const char *text)
{
    return text && text_is_utf8(text) ? json_string_nocheck(text) : json_null();
}

json_t *json_real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static void keep_if(bool added, json_t **value)
{
    if (!added) {
        json_decref(*value);
        *value = NULL;
    }
}

void json_put(json_t **object, const char *key, json_t *value)
{
    keep_if(json_object_set_new(*object, key, value) == 0, object);
}

void json_push(json_t **array, json_t *value)
{
    keep_if(json_array_append_new(*array, value) == 0, array);
}

/* ---- Printing ------------------------------------------------------------------------------- */

typedef struct printer {
    FILE *out; /* of the stream that json_print makes */
    locale_t c_locale;
    bool failed;
} printer;

static void print_scalar(printer *p, const json_t *value)
{
    p->failed |= json_dumpf(value, p->out, JSON_ENCODE_ANY) != 0;
}

/* With the fewest digits, from 15 on, that give the same double back: 0.1, not
 * 0.10000000000000001. Jansson has one precision for a whole text. */
static void print_real(printer *p, const json_t *real)
{
    char text[64];
    size_t n = 0;
    bool same = false;
    for (size_t digits = 15; !same && digits <= 17; digits++) {
        n = json_dumpb(real, text, sizeof text - 1, JSON_ENCODE_ANY | JSON_REAL_PRECISION(digits));
        if (n == 0)
            break;
        text[n < sizeof text ? n : 0] = '\0';
        same = strtod_l(text, NULL, p->c_locale) == json_real_value(real);
    }
    p->failed |= !same;
    fwrite(text, 1, same ? n : 0, p->out);
}

static void print_line(printer *p, bool first, int depth)
{
    fprintf(p->out, "%s\n%*s", first ? "" : ",", 2 * depth, "");
}

static void print_value(printer *p, json_t *value, int depth)
{
    const char *key = NULL;
    json_t *member = NULL;
    size_t index = 0;
    if (json_is_real(value)) {
        print_real(p, value);
    } else if (json_array_size(value) == 0 && json_object_size(value) == 0) {
        print_scalar(p, value);
    } else if (json_is_array(value)) {
        fputc('[', p->out);
        json_array_foreach(value, index, member)
        {
            print_line(p, index == 0, depth + 1);
            print_value(p, member, depth + 1);
        }
        fprintf(p->out, "\n%*s]", 2 * depth, "");
    } else {
        fputc('{', p->out);
        json_object_foreach(value, key, member)
        {
            json_t *name = json_string_nocheck(key);
            p->failed |= !name;
            print_line(p, index++ == 0, depth + 1);
            print_scalar(p, name);
            json_decref(name);
            fputs(": ", p->out);
            print_value(p, member, depth + 1);
        }
        fprintf(p->out, "\n%*s}", 2 * depth, "");
    }
}

dm_status json_print(const json_t *root, char **text, dm_error *err)
{
    text_stream stream = {0};
    printer p = {.c_locale = newlocale(LC_ALL_MASK, "C", (locale_t)0)};
    if (p.c_locale && text_stream_open(&stream)) {
        p.out = stream.out;
        print_value(&p, (json_t *)root, 0); /* only read; Jansson's iterators take no const */
    }
    if (p.c_locale)
        freelocale(p.c_locale);
    *text = text_stream_close(&stream, !p.failed, NULL);
    return *text ? DM_OK : error_memory(err, stream.size, "JSON text");
}
