/* SPDX-License-Identifier: Apache-2.0 */
#include "volume/label_names.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/codec.h"
#include "base/error.h"
#include "base/json_text.h"

#define NAMES_MAX_BYTES ((size_t)1 << 20)
#define NAMES_MAX 10000

void label_names_clear(label_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->items[i].name);
    free(names->items);
    *names = (label_names){0};
}

const char *label_names_find(const label_names *names, int32_t id)
{
    for (size_t i = 0; i < names->count; i++)
        if (names->items[i].id == id)
            return names->items[i].name;
    return NULL;
}

bool label_name_usable(const char *name)
{
    for (const char *p = name; *p; p++)
        if ((unsigned char)*p < 32 || *p == 127)
            return false;
    return name[0] != '\0' && text_is_utf8(name);
}

static dm_status add(label_names *names, const char *file, int32_t id, const char *name,
                     dm_error *err)
{
    if (id == 0)
        return DM_OK; /* background */
    if (!label_name_usable(name))
        return error_set(err, DM_ERROR_VALUE, file, "give it a printable name in UTF-8",
                         "the name of id %d is empty, has control characters or is not UTF-8",
                         (int)id);
    for (size_t i = 0; i < names->count; i++)
        if (names->items[i].id == id || strcmp(names->items[i].name, name) == 0)
            return error_set(err, DM_ERROR_VALUE, file, "name each structure once",
                             "id %d (%s) and id %d (%s) clash", (int)names->items[i].id,
                             names->items[i].name, (int)id, name);
    if (names->count >= NAMES_MAX)
        return error_set(err, DM_ERROR_VALUE, file, "use fewer names", "more than %d names",
                         NAMES_MAX);
    struct label_name *items = realloc(names->items, (names->count + 1) * sizeof *items);
    if (items)
        names->items = items;
    char *copy = items ? strdup(name) : NULL;
    if (!copy)
        return error_memory(err, strlen(name), "label names");
    items[names->count++] = (struct label_name){id, copy};
    return DM_OK;
}

static bool parse_id(const char *text, int32_t *id)
{
    char *end = NULL;
    errno = 0;
    long value = strtol(text, &end, 10);
    *id = (int32_t)value;
    return end != text && *end == '\0' && errno == 0 && value >= 0 && value <= INT32_MAX;
}

static dm_status bad_pair(dm_error *err, const char *file, const char *key)
{
    return error_set(err, DM_ERROR_FORMAT, file,
                     "write {\"1\": \"spleen\", ...} or {\"spleen\": 1, ...} with whole ids from 0 "
                     "to 2147483647",
                     "'%s' is not a pair of id and name", key);
}

static dm_status names_from_json(const char *file, label_names *names, dm_error *err)
{
    json_t *root = NULL;
    dm_status status = json_parse_file(file, &root, err);
    if (status == DM_OK && !json_is_object(root))
        status = bad_pair(err, file, "the JSON text");
    const char *key = NULL;
    json_t *value = NULL;
    if (status == DM_OK) {
        json_object_foreach(root, key, value)
        {
            int32_t id = 0;
            if (json_is_string(value) && parse_id(key, &id))
                status = add(names, file, id, json_string_value(value), err);
            else if (json_is_integer(value) && json_integer_value(value) >= 0 &&
                     json_integer_value(value) <= INT32_MAX)
                status = add(names, file, (int32_t)json_integer_value(value), key, err);
            else
                status = bad_pair(err, file, key);
            if (status != DM_OK)
                break;
        }
    }
    json_decref(root);
    return status;
}

/* The column of a BIDS dseg.tsv (index, name) or of the like that others write. */
static int column_of(char **cells, size_t n, const char *const *headings)
{
    for (size_t h = 0; headings[h]; h++)
        for (size_t i = 0; i < n; i++)
            if (strcasecmp(cells[i], headings[h]) == 0)
                return (int)i;
    return -1;
}

#define MAX_CELLS 32
static size_t split(char *line, char **cells)
{
    size_t n = 0;
    char *cell = line;
    while (cell && n < MAX_CELLS)
        cells[n++] = strsep(&cell, "\t");
    return n;
}

typedef struct columns {
    int id, name;
} columns;

static dm_status read_headings(const char *file, char **cells, size_t n, columns *at, dm_error *err)
{
    static const char *const id_headings[] = {"index", "id", "label", "value", NULL};
    static const char *const name_headings[] = {"name", "label_name", "structure", NULL};
    *at = (columns){column_of(cells, n, id_headings), column_of(cells, n, name_headings)};
    if (at->id >= 0 && at->name >= 0)
        return DM_OK;
    return error_set(err, DM_ERROR_FORMAT, file,
                     "use a header line with the columns index and name",
                     "no columns for ids and names");
}

static dm_status read_row(const char *file, char **cells, size_t n, const columns *at, size_t row,
                          label_names *names, dm_error *err)
{
    int32_t id = 0;
    if ((size_t)at->id >= n || (size_t)at->name >= n)
        return error_set(err, DM_ERROR_FORMAT, file, "give each row an index and a name",
                         "row %zu has %zu columns", row, n);
    if (!parse_id(cells[at->id], &id))
        return error_set(err, DM_ERROR_FORMAT, file, "use whole numbers from 0 to 2147483647",
                         "row %zu: '%s' is not an id", row, cells[at->id]);
    return add(names, file, id, cells[at->name], err);
}

static dm_status names_from_rows(const char *file, char *text, label_names *names, dm_error *err)
{
    columns at = {-1, -1};
    dm_status status = DM_OK;
    size_t row = 0;
    for (char *rest = text, *line; status == DM_OK && (line = strsep(&rest, "\n"));) {
        char *cells[MAX_CELLS];
        row++;
        line[strcspn(line, "\r")] = '\0';
        if (line[0] == '\0')
            continue;
        size_t n = split(line, cells);
        status = at.id < 0 ? read_headings(file, cells, n, &at, err)
                           : read_row(file, cells, n, &at, row, names, err);
    }
    if (status == DM_OK && at.id < 0)
        status = read_headings(file, NULL, 0, &at, err);
    return status;
}

static dm_status names_from_tsv(const char *file, label_names *names, dm_error *err)
{
    static const char byte_order_mark[] = "\xef\xbb\xbf";
    uint8_t *bytes = NULL;
    size_t size = 0;
    dm_status status = source_read_all(file, NAMES_MAX_BYTES, &bytes, &size, err);
    char *text = status == DM_OK ? strndup((char *)bytes, size) : NULL;
    free(bytes);
    if (status != DM_OK)
        return status;
    if (!text)
        return error_memory(err, size, "label names");
    if (strlen(text) < size)
        status = error_set(err, DM_ERROR_FORMAT, file, "save it as text in UTF-8",
                           "byte %zu is 0: not a text file in UTF-8", strlen(text));
    else
        status = names_from_rows(file, text + (strncmp(text, byte_order_mark, 3) == 0 ? 3 : 0),
                                 names, err);
    free(text);
    return status;
}

static dm_status names_from_task(const char *task, label_names *names, dm_error *err)
{
    const char *const *table = NULL;
    size_t count = 0;
    if (!totalsegmentator_names(task, &table, &count))
        return error_set(
            err, DM_ERROR_VALUE, NULL,
            "use totalsegmentator:total or totalsegmentator:head_glands_cavities, or a "
            "JSON or TSV file",
            "the names of TotalSegmentator's task '%s' are not known", task);
    dm_status status = DM_OK;
    for (size_t id = 1; status == DM_OK && id < count; id++)
        status = add(names, NULL, (int32_t)id, table[id], err);
    return status;
}

dm_status label_names_read(const char *source, label_names *names, dm_error *err)
{
    static const char prefix[] = "totalsegmentator:";
    size_t n = strlen(source);
    dm_status status;
    *names = (label_names){0};
    if (strncmp(source, prefix, sizeof prefix - 1) == 0)
        status = names_from_task(source + sizeof prefix - 1, names, err);
    else if (n > 4 && strcmp(source + n - 4, ".tsv") == 0)
        status = names_from_tsv(source, names, err);
    else
        status = names_from_json(source, names, err);
    if (status != DM_OK)
        label_names_clear(names);
    return status;
}
