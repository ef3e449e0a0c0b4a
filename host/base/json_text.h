/* SPDX-License-Identifier: Apache-2.0 */
/* JSON that may come from anyone, as Jansson's values, within bounds on size, depth and node count:
 * whatever the text, its parsing takes less than 200 MB. */
#ifndef DOSEMAP_BASE_JSON_TEXT_H
#define DOSEMAP_BASE_JSON_TEXT_H

#include <jansson.h>

#include "dosemap.h"

#define JSON_MAX_BYTES ((size_t)8 << 20)
#define JSON_MAX_DEPTH 64
#define JSON_MAX_NODES 1000000

/* Strict: duplicate keys, NaN/Infinity, trailing text and invalid UTF-8 are errors. `where` names
 * the file for messages, which give line and column. The result is the caller's (json_decref). */
dm_status json_parse(const char *text, size_t size, const char *where, json_t **root,
                     dm_error *err);

/* What json_parse does within the bounds, which are checked before (json_reader.c). */
dm_status json_read(const char *text, size_t size, const char *where, json_t **root, dm_error *err);

/* Null for NULL and for text that is not UTF-8, which JSON cannot hold. NULL when memory is short.
 */
json_t *json_string_or_null(const char *text);
bool text_is_utf8(const char *text);
/* Null for NaN and infinity, which JSON cannot hold either. */
json_t *json_real_or_null(double value);

/* Adds `value`, which it takes over. When memory is short, for the value or here, the object or
 * array is released and NULL from then on: a row of these needs one check, at its end. */
void json_put(json_t **object, const char *key, json_t *value);
void json_push(json_t **array, json_t *value);

/* Reads at most JSON_MAX_BYTES of a file and parses it. */
dm_status json_parse_file(const char *path, json_t **root, dm_error *err);

/* Serialised with two-space indent and keys in insertion order; dm_string_free. NaN members are not
 * representable: callers put json_null() or "n/a". */
dm_status json_print(const json_t *root, char **text, dm_error *err);

#endif
