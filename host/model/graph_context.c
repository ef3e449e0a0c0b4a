/* SPDX-License-Identifier: Apache-2.0 */
#include "model/graph_context.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

void context_at(graph_context *c, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(c->place, sizeof c->place, format, arguments);
    va_end(arguments);
}

dm_status context_fail(graph_context *c, dm_status status, const char *remedy, const char *format,
                       ...)
{
    char what[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return error_set(c->err, status, c->path, remedy, "%s: %s", c->place, what);
}

dm_status context_bad(graph_context *c, const char *format, ...)
{
    char what[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    return context_fail(c, DM_ERROR_FORMAT, "correct the graph; weights/FORMAT.md describes it",
                        "%s", what);
}

/* Is `word` of length n in a list separated by spaces? */
static bool in_list(const char *list, const char *word, size_t n)
{
    while (*list) {
        size_t length = strcspn(list, " ");
        if (length == n && !memcmp(list, word, n))
            return true;
        list += length;
        list += strspn(list, " ");
    }
    return false;
}

dm_status context_keys(graph_context *c, const json_t *object, const char *required,
                       const char *optional)
{
    const char *key;
    json_t *value;
    if (!json_is_object(object))
        return context_bad(c, "it is not an object");
    json_object_foreach((json_t *)object, key, value)
    {
        size_t n = strlen(key);
        if (!in_list(required, key, n) && !in_list(optional, key, n))
            return context_bad(c, "unknown key '%.64s'; known are: %s%s%s", key, required,
                               *optional ? " " : "", optional);
    }
    for (const char *word = required; *word;) {
        char wanted[64];
        size_t length = strcspn(word, " ");
        snprintf(wanted, sizeof wanted, "%.*s", (int)length, word);
        if (!json_object_get(object, wanted))
            return context_bad(c, "the key '%s' is missing", wanted);
        word += length;
        word += strspn(word, " ");
    }
    return DM_OK;
}

dm_status context_name(graph_context *c, const json_t *value, const char *key, const char **name)
{
    const char *text = json_string_value(value);
    size_t n = text ? strlen(text) : 0;
    bool printable = n >= 1 && n <= 255;
    for (size_t i = 0; printable && i < n; i++)
        printable = (unsigned char)text[i] >= 0x20 && text[i] != 0x7f;
    if (!printable)
        return context_bad(c, "\"%s\" is not a string of 1 to 255 printable characters", key);
    *name = text;
    return DM_OK;
}

dm_status context_integer(graph_context *c, const json_t *value, const char *key, long minimum,
                          long maximum, long *out)
{
    if (!json_is_integer(value))
        return context_bad(c, "\"%s\" is not an integer", key);
    json_int_t n = json_integer_value(value);
    if (n < minimum || n > maximum)
        return context_bad(c, "\"%s\" is %" JSON_INTEGER_FORMAT "; %ld to %ld are possible", key, n,
                           minimum, maximum);
    *out = (long)n;
    return DM_OK;
}

dm_status context_number(graph_context *c, const json_t *value, const char *key, double minimum,
                         double maximum, double *out)
{
    if (!json_is_number(value))
        return context_bad(c, "\"%s\" is not a number", key);
    double x = json_number_value(value);
    if (!(x >= minimum && x <= maximum))
        return context_bad(c, "\"%s\" is %g; %g to %g are possible", key, x, minimum, maximum);
    *out = x;
    return DM_OK;
}

static dm_status check_count(graph_context *c, const json_t *value, const char *key, size_t n)
{
    if (json_array_size(value) == n && json_is_array(value))
        return DM_OK;
    return context_bad(c, "\"%s\" is not a list of %zu numbers", key, n);
}

dm_status context_integers(graph_context *c, const json_t *value, const char *key, size_t n,
                           long minimum, long maximum, long *out)
{
    dm_status status = check_count(c, value, key, n);
    for (size_t i = 0; i < n && status == DM_OK; i++)
        status = context_integer(c, json_array_get(value, i), key, minimum, maximum, &out[i]);
    return status;
}

dm_status context_numbers(graph_context *c, const json_t *value, const char *key, size_t n,
                          double minimum, double maximum, double *out)
{
    dm_status status = check_count(c, value, key, n);
    for (size_t i = 0; i < n && status == DM_OK; i++)
        status = context_number(c, json_array_get(value, i), key, minimum, maximum, &out[i]);
    return status;
}

dm_status context_copy(graph_context *c, const char *text, char **copy)
{
    *copy = strdup(text);
    return *copy ? DM_OK : error_memory(c->err, strlen(text) + 1, "a name");
}

dm_status context_add_value(graph_context *c, const char *name, int *id)
{
    graph *g = c->g;
    if (json_object_get(c->ids, name))
        return context_bad(c, "the name '%s' is already taken by another value", name);
    char **slot = &g->values[g->n_values].name;
    dm_status status = context_copy(c, name, slot);
    if (status != DM_OK)
        return status;
    *id = (int)g->n_values++;
    if (json_object_set_new(c->ids, name, json_integer(*id)))
        return error_memory(c->err, strlen(name), "the list of names");
    return DM_OK;
}
