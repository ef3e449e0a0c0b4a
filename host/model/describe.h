/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of model_describe. */
#ifndef DOSEMAP_MODEL_DESCRIBE_H
#define DOSEMAP_MODEL_DESCRIBE_H

#include <jansson.h>
#include <stdio.h>

#include "model/plan.h"
#include "model/plan_account.h"

#define TEXT_COLUMNS 100

/* What `dosemap inspect` prints of a plan made from the model's graph. account: NULL for none.
 * Errors: MEMORY. */
dm_status model_describe(const dm_model *model, const plan *plan, const char *precision,
                         const plan_account *account, bool as_json, char **text, dm_error *err);

typedef struct description {
    const dm_model *model;
    const json_t *card;
    const plan *plan;
    const plan_account *account; /* of a device; NULL without */
    const char *precision;
    size_t parameters; /* elements of weights without the next */
    size_t statistics; /* means and variances of BatchNormalization */
    /* Of the plan's steps: */
    size_t in_place, into_concat, copies;
} description;

/* describe_text.c; false when memory is short. */
bool describe_text(const description *d, FILE *out);

/* describe_account.c: the table of a device's account; its JSON, NULL when memory is short. */
bool account_text(const plan_account *account, FILE *out);
json_t *account_json(const plan_account *account);

/* Shared by text: an underlined title, and "name    value" wrapped behind the name. */
void describe_heading(FILE *out, const char *text);
void describe_line(FILE *out, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* describe_names.c: words for what is in graphs and plans, the same in text and JSON. */
const char *step_kind_name(step_kind kind);
const char *chain_op_name(chain_op op);
const char *quantity_name(dm_quantity quantity);
/* Of the graph's output that the plan is for. */
const char *plan_output_name(const plan *p);
/* Is the operation's `alpha` used? */
bool chain_has_alpha(chain_op op);

/* "+bias add(skip) leaky_relu(0.2)" */
void chain_text(const plan *p, const plan_step *step, char *text, size_t size);
/* "3^3 stride 2 pad 1" */
void node_text(const graph_node *node, char *text, size_t size);
/* "32 x 16^3", or "32 x 16x16x8" in the order x, y, z */
void shape_text(size_t channels, const size_t size_zyx[3], char *text, size_t size);
/* "clip to [0, 30], log1p" */
void intensity_text(const intensity_transform *transform, char *text, size_t size);

/* describe_table.c: columns as wide as their cells, the widest elastic ones cut with ".." until a
 * line has at most TEXT_COLUMNS. */
#define TABLE_CELL 96
#define TABLE_COLUMNS 16 /* at most */
typedef struct table_column {
    const char *title;
    bool right;   /* aligned */
    bool elastic; /* may be cut */
} table_column;
typedef struct text_table text_table;
text_table *table_create(const table_column *columns, size_t n_columns, size_t n_rows);
void table_cell(text_table *t, size_t row, size_t column, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void table_print(const text_table *t, FILE *out);
void table_free(text_table *t);

/* Printable characters of `text`, wrapped at TEXT_COLUMNS; lines after the first begin at column
 * `indent`, where the first is assumed to begin. Ends with a newline. */
void print_wrapped(FILE *out, size_t indent, const char *text);

#endif
