/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the graph's parser share: the place for messages, the names known so far, and
 * readers of JSON members that say what is wrong and where. */
#ifndef DOSEMAP_MODEL_GRAPH_CONTEXT_H
#define DOSEMAP_MODEL_GRAPH_CONTEXT_H

#include <jansson.h>

#include "model/graph.h"

typedef struct graph_context {
    const char *path; /* of the file */
    char place[384];  /* in the graph: "node 'enc.0' (Conv)" */
    dm_error *err;
    graph *g;            /* its `values` have room for every input, weight and node */
    json_t *ids;         /* value name -> id */
    json_t *node_names;  /* node name -> true */
    const json_t *nodes; /* the graph's list */
    bool *used;          /* per value: some node reads it */
} graph_context;

/* Sets the place for the messages that follow. */
void context_at(graph_context *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

dm_status context_fail(graph_context *c, dm_status status, const char *remedy, const char *format,
                       ...) __attribute__((format(printf, 4, 5)));

/* DM_ERROR_FORMAT with the usual remedy: the format's description. */
dm_status context_bad(graph_context *c, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* `object` is one, has every key of `required`, and no other than these and `optional`. Both lists
 * are separated by spaces. */
dm_status context_keys(graph_context *c, const json_t *object, const char *required,
                       const char *optional);

/* A string that may be a name: 1 to 255 bytes without control characters. Borrowed. */
dm_status context_name(graph_context *c, const json_t *value, const char *key, const char **name);

/* Exactly n integers, each in [minimum, maximum]. */
dm_status context_integers(graph_context *c, const json_t *value, const char *key, size_t n,
                           long minimum, long maximum, long *out);

/* Exactly n numbers, each in [minimum, maximum]. */
dm_status context_numbers(graph_context *c, const json_t *value, const char *key, size_t n,
                          double minimum, double maximum, double *out);

/* A single number or integer. */
dm_status context_integer(graph_context *c, const json_t *value, const char *key, long minimum,
                          long maximum, long *out);
dm_status context_number(graph_context *c, const json_t *value, const char *key, double minimum,
                         double maximum, double *out);

/* A copy of `text` into *copy. */
dm_status context_copy(graph_context *c, const char *text, char **copy);

/* A new value under a name that no other has. *id is its index. */
dm_status context_add_value(graph_context *c, const char *name, int *id);

#endif
