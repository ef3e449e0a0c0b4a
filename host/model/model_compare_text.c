/* SPDX-License-Identifier: Apache-2.0 */
/* The report of a comparison for people. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/text_stream.h"
#include "model/describe.h"
#include "model/model_compare.h"

#define MOST_LINES 24 /* of a list; JSON has all */

static long long number(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static const char *string(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static bool print_side(FILE *out, const char *side, const json_t *value)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY) : strdup("(not there)");
    fprintf(out, "    %s  ", side);
    print_wrapped(out, 7, text ? text : "");
    free(text);
    return text != NULL;
}

/* `key`: of the entry's name. */
static bool print_changes(FILE *out, const json_t *list, const char *key)
{
    size_t i;
    json_t *item;
    bool complete = true;
    json_array_foreach((json_t *)list, i, item)
    {
        const char *what = string(item, "what");
        fprintf(out, "%s%s%s\n", string(item, key), what ? ": " : "", what ? what : "");
        complete &= print_side(out, "a", json_object_get(item, "a"));
        complete &= print_side(out, "b", json_object_get(item, "b"));
    }
    return complete;
}

static void print_names(FILE *out, const char *title, const json_t *names)
{
    size_t i;
    json_t *name;
    json_array_foreach((json_t *)names, i, name)
    {
        if (i == MOST_LINES) {
            fprintf(out, "%-10s ... and %zu more\n", "", json_array_size(names) - i);
            break;
        }
        fprintf(out, "%-10s %s\n", i ? "" : title, json_string_value(name));
    }
}

static void print_shape(const json_t *shape, char *text, size_t size)
{
    size_t i;
    json_t *n;
    snprintf(text, size, "[");
    json_array_foreach((json_t *)shape, i, n)
    {
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s%lld", i ? ", " : "",
                 (long long)json_integer_value(n));
    }
    size_t used = strlen(text);
    snprintf(text + used, size - used, "]");
}

static void deviation_cell(text_table *t, size_t row, size_t column, const json_t *value)
{
    if (json_is_number(value))
        table_cell(t, row, column, "%.3g", json_number_value(value));
    else
        table_cell(t, row, column, "n/a");
}

static bool print_weights(FILE *out, const json_t *list)
{
    static const table_column columns[] = {{"weight", false, true},
                                           {"shape", false, false},
                                           {"relative L2", true, false},
                                           {"largest", true, false}};
    size_t n = json_array_size(list), shown = n < MOST_LINES ? n : MOST_LINES;
    text_table *t = n ? table_create(columns, 4, shown) : NULL;
    if (!t)
        return n == 0;
    for (size_t i = 0; i < shown; i++) {
        const json_t *item = json_array_get(list, i);
        char a[128], b[128];
        print_shape(json_object_get(item, "shape_a"), a, sizeof a);
        print_shape(json_object_get(item, "shape_b"), b, sizeof b);
        table_cell(t, i, 0, "%s", string(item, "weight"));
        table_cell(t, i, 1, strcmp(a, b) ? "%s, %s" : "%s", a, b);
        deviation_cell(t, i, 2, json_object_get(item, "relative_l2"));
        deviation_cell(t, i, 3, json_object_get(item, "largest"));
    }
    table_print(t, out);
    table_free(t);
    if (n > shown)
        fprintf(out, "... and %zu more\n", n - shown);
    return true;
}

static bool print_section(FILE *out, const json_t *report, const char *key, const char *title)
{
    const json_t *list = json_object_get(report, key);
    if (!json_array_size(list))
        return true;
    describe_heading(out, title);
    return print_changes(out, list, "key");
}

static bool print_nodes(FILE *out, const json_t *nodes)
{
    describe_heading(out, "Operations");
    fprintf(out, "%lld in a, %lld in b, paired by %s", number(nodes, "in_a"), number(nodes, "in_b"),
            string(nodes, "paired_by"));
    if (number(nodes, "renamed"))
        fprintf(out, ", %lld under another name", number(nodes, "renamed"));
    fputc('\n', out);
    print_names(out, "only in a", json_object_get(nodes, "only_a"));
    print_names(out, "only in b", json_object_get(nodes, "only_b"));
    return print_changes(out, json_object_get(nodes, "differ"), "node");
}

static bool print_report(FILE *out, const json_t *report)
{
    const json_t *a = json_object_get(report, "a"), *b = json_object_get(report, "b"),
                 *weights = json_object_get(report, "weights");
    const json_t *total = json_object_get(weights, "relative_l2");
    fprintf(out, "a  %s: %s, weights %s\n", string(a, "file"), string(a, "name"),
            string(a, "xxh64"));
    fprintf(out, "b  %s: %s, weights %s\n", string(b, "file"), string(b, "name"),
            string(b, "xxh64"));
    if (json_is_true(json_object_get(report, "same")))
        fprintf(out, "Card, graph and weights are the same.\n");
    bool complete = print_section(out, report, "card", "Card");
    complete &= print_section(out, report, "graph", "Graph");
    complete &= print_nodes(out, json_object_get(report, "nodes"));
    describe_heading(out, "Weights");
    fprintf(out, "%lld equal, %zu differ", number(weights, "equal"),
            json_array_size(json_object_get(weights, "differ")));
    if (json_is_number(total) && json_number_value(total) > 0)
        fprintf(out, "; all together by %.3g relative L2", json_number_value(total));
    if (number(weights, "renamed"))
        fprintf(out, "; %lld under another name", number(weights, "renamed"));
    fputc('\n', out);
    print_names(out, "only in a", json_object_get(weights, "only_a"));
    print_names(out, "only in b", json_object_get(weights, "only_b"));
    complete &= print_weights(out, json_object_get(weights, "differ"));
    complete &= print_section(out, report, "provenance", "Provenance");
    return complete;
}

dm_status comparison_text(const json_t *report, char **text, dm_error *err)
{
    text_stream stream;
    bool complete = text_stream_open(&stream) && print_report(stream.out, report);
    *text = text_stream_close(&stream, complete, NULL);
    return *text ? DM_OK : error_memory(err, stream.size, "a comparison");
}
