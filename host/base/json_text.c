/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_text.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/codec.h"
#include "base/error.h"

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
    json_error_t problem;
    *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &problem);
    if (!*root)
        return error_set(err, DM_ERROR_FORMAT, where, "correct the JSON text",
                         "malformed JSON at line %d column %d: %s", problem.line, problem.column,
                         problem.text);
    return DM_OK;
}

dm_status json_parse_file(const char *path, json_t **root, dm_error *err)
{
    uint8_t *bytes = NULL;
    size_t size = 0;
    *root = NULL;
    dm_status status = source_read_all(path, JSON_MAX_BYTES, &bytes, &size, err);
    if (status == DM_OK)
        status = json_parse((const char *)bytes, size, path, root, err);
    free(bytes);
    return status;
}

dm_status json_print(const json_t *root, char **text, dm_error *err)
{
    *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    return *text ? DM_OK : error_memory(err, 0, "JSON text");
}
