/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What differs between two weights files. Nodes are paired by their place where both graphs have the
 * same operators in the same order, so that a network that was exported and imported again under
 * other names is still the same network; otherwise by name. Attributes and weights are compared as
 * they were read: defaults filled in, in one axis order, in float32.
 *
 * One report, as JSON; the text for people is printed from it.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "model/graph_ops.h"
#include "model/model_compare.h"

typedef struct pairing {
    const graph *a, *b;
    bool by_place;
    int *node;  /* [a->n_nodes] of b, -1 for none */
    int *value; /* [a->n_values] of b, -1 for none */
} pairing;

/* ---- Pairs ---------------------------------------------------------------------------------- */

static bool same_operators(const graph *a, const graph *b)
{
    if (a->n_nodes != b->n_nodes || a->n_inputs != b->n_inputs)
        return false;
    for (size_t n = 0; n < a->n_nodes; n++)
        if (a->nodes[n].op != b->nodes[n].op || a->nodes[n].n_inputs != b->nodes[n].n_inputs)
            return false;
    return true;
}

static void pair_by_place(pairing *p)
{
    for (size_t i = 0; i < p->a->n_inputs; i++)
        p->value[p->a->inputs[i].value] = p->b->inputs[i].value;
    for (size_t n = 0; n < p->a->n_nodes; n++) {
        const graph_node *a = &p->a->nodes[n], *b = &p->b->nodes[n];
        p->node[n] = (int)n;
        p->value[a->output] = b->output;
        for (size_t i = 0; i < a->n_inputs; i++)
            if (a->inputs[i] >= 0 && b->inputs[i] >= 0 && p->value[a->inputs[i]] < 0)
                p->value[a->inputs[i]] = b->inputs[i];
    }
}

static void pair_by_name(pairing *p)
{
    for (size_t n = 0; n < p->a->n_nodes; n++)
        for (size_t m = 0; m < p->b->n_nodes && p->node[n] < 0; m++)
            if (!strcmp(p->a->nodes[n].name, p->b->nodes[m].name))
                p->node[n] = (int)m;
    for (size_t v = 0; v < p->a->n_values; v++)
        for (size_t w = 0; w < p->b->n_values && p->value[v] < 0; w++)
            if (p->a->values[v].is_weight == p->b->values[w].is_weight &&
                !strcmp(p->a->values[v].name, p->b->values[w].name))
                p->value[v] = (int)w;
}

static dm_status pair(pairing *p, dm_error *err)
{
    p->node = array_alloc(p->a->n_nodes, sizeof *p->node);
    p->value = array_alloc(p->a->n_values, sizeof *p->value);
    if (!p->node || !p->value)
        return error_memory(err, p->a->n_values * sizeof *p->value, "a comparison");
    for (size_t n = 0; n < p->a->n_nodes; n++)
        p->node[n] = -1;
    for (size_t v = 0; v < p->a->n_values; v++)
        p->value[v] = -1;
    p->by_place = same_operators(p->a, p->b);
    (p->by_place ? pair_by_place : pair_by_name)(p);
    return DM_OK;
}

static bool is_paired(const int *pairs, size_t n, int index)
{
    for (size_t i = 0; i < n; i++)
        if (pairs[i] == index)
            return true;
    return false;
}

/* ---- Card, provenance and the head of the graph --------------------------------------------- */

static void put_difference(json_t **list, const char *key, const json_t *a, const json_t *b)
{
    json_t *item = json_object();
    json_put(&item, "key", json_string(key));
    if (a)
        json_put(&item, "a", json_incref((json_t *)a));
    if (b)
        json_put(&item, "b", json_incref((json_t *)b));
    json_push(list, item);
}

static void differences(json_t **list, const char *key, const json_t *a, const json_t *b);

static void differences_of_objects(json_t **list, const char *key, const json_t *a, const json_t *b)
{
    const char *name;
    json_t *value;
    char path[512];
    json_object_foreach((json_t *)a, name, value)
    {
        snprintf(path, sizeof path, "%s%s%s", key, *key ? "." : "", name);
        differences(list, path, value, json_object_get(b, name));
    }
    json_object_foreach((json_t *)b, name, value)
    {
        snprintf(path, sizeof path, "%s%s%s", key, *key ? "." : "", name);
        if (!json_object_get(a, name))
            put_difference(list, path, NULL, value);
    }
}

static void differences(json_t **list, const char *key, const json_t *a, const json_t *b)
{
    char path[512];
    bool objects = json_is_object(json_array_get(a, 0)) && json_is_array(b);
    if (a && b && json_equal(a, b))
        return;
    if (json_is_object(a) && json_is_object(b)) {
        differences_of_objects(list, key, a, b);
    } else if (objects && json_array_size(a) == json_array_size(b)) {
        for (size_t i = 0; i < json_array_size(a); i++) {
            snprintf(path, sizeof path, "%s[%zu]", key, i);
            differences(list, path, json_array_get(a, i), json_array_get(b, i));
        }
    } else {
        put_difference(list, key, a, b);
    }
}

/* NULL and an error, or the list; `without` is left out. */
static dm_status text_differences(const dm_model *a, const dm_model *b, const char *text_a,
                                  const char *text_b, const char *without, json_t **list,
                                  dm_error *err)
{
    json_t *root_a = NULL, *root_b = NULL;
    *list = NULL;
    dm_status status = json_parse(text_a, strlen(text_a), a->path, &root_a, err);
    if (status == DM_OK)
        status = json_parse(text_b, strlen(text_b), b->path, &root_b, err);
    if (status == DM_OK) {
        json_object_del(root_a, without);
        json_object_del(root_b, without);
        *list = json_array();
        differences(list, "", root_a, root_b);
        if (!*list)
            status = error_memory(err, 4096, "a comparison");
    }
    json_decref(root_a);
    json_decref(root_b);
    return status;
}

/* ---- Nodes ---------------------------------------------------------------------------------- */

/* "3, 3, 1" in the order x, y, z. */
static void put_ints(char *text, size_t size, const int *value, size_t n)
{
    text[0] = 0;
    for (size_t i = n; i-- > 0;) {
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s%d", used ? ", " : "", value[i]);
    }
}

static void slice_text(const graph_node *node, char *text, size_t size)
{
    snprintf(text, size, "channels %d to %d by %d", node->channel_begin, node->channel_end,
             node->channel_step);
    for (size_t i = 3; i-- > 0;) {
        size_t used = strlen(text);
        snprintf(text + used, size - used, ", %c %d to %d by %d", "zyx"[i], node -> slice_begin[i],
                 node -> slice_end[i], node -> slice_step[i]);
    }
}

static void attribute_text(const graph_node *node, const attribute_info *info, char *text,
                           size_t size)
{
    const void *at = (const char *)node + info->offset;
    const double *numbers = at;
    char begins[64], ends[64];
    switch (info->kind) {
    case ATTRIBUTE_INT:
        snprintf(text, size, "%d", *(const int *)at);
        break;
    case ATTRIBUTE_INTS:
        put_ints(text, size, at, 3);
        break;
    case ATTRIBUTE_PADS:
        put_ints(begins, sizeof begins, node->pad_begin, 3);
        put_ints(ends, sizeof ends, node->pad_end, 3);
        snprintf(text, size, "%s before and %s after", begins, ends);
        break;
    case ATTRIBUTE_FLAG:
        snprintf(text, size, "%d", *(const bool *)at);
        break;
    case ATTRIBUTE_SWITCH:
        snprintf(text, size, "%s", info->choices[*(const bool *)at]);
        break;
    case ATTRIBUTE_FLOAT:
        snprintf(text, size, "%.9g", (double)*(const float *)at);
        break;
    case ATTRIBUTE_NUMBERS:
        snprintf(text, size, "%.17g, %.17g, %.17g", numbers[2], numbers[1], numbers[0]);
        break;
    case ATTRIBUTE_CHOICE: /* an enumeration: as wide as int */
        snprintf(text, size, "%s", info->choices[*(const int *)at]);
        break;
    case ATTRIBUTE_SLICE:
        slice_text(node, text, size);
        break;
    case ATTRIBUTE_CHECK: /* has one value only */
        text[0] = 0;
        break;
    }
}

static void put_change(json_t **list, const char *node, const char *what, const char *a,
                       const char *b)
{
    json_t *item = json_object();
    json_put(&item, "node", json_string(node));
    json_put(&item, "what", json_string(what));
    json_put(&item, "a", json_string(a));
    json_put(&item, "b", json_string(b));
    json_push(list, item);
}

static const char *input_name(const graph *g, const graph_node *node, size_t i)
{
    return i < node->n_inputs && node->inputs[i] >= 0 ? g->values[node->inputs[i]].name : "none";
}

static bool same_input(const pairing *p, const graph_node *a, const graph_node *b, size_t i)
{
    int in_a = i < a->n_inputs ? a->inputs[i] : -1, in_b = i < b->n_inputs ? b->inputs[i] : -1;
    return in_a < 0 ? in_b < 0 : p->value[in_a] == in_b;
}

static void compare_node(const pairing *p, const graph_node *a, const graph_node *b, json_t **list)
{
    char text_a[256], text_b[256];
    const char *last = "";
    if (a->op != b->op) {
        put_change(list, a->name, "operator", op_name(a->op), op_name(b->op));
        return;
    }
    for (size_t i = 0; i < attribute_count; i++) {
        const attribute_info *info = &attribute_table[i];
        /* Slice's four names are one. */
        if (!(info->ops & OP_BIT(a->op)) || (info->kind == ATTRIBUTE_SLICE && *last))
            continue;
        attribute_text(a, info, text_a, sizeof text_a);
        attribute_text(b, info, text_b, sizeof text_b);
        if (strcmp(text_a, text_b) != 0)
            put_change(list, a->name, info->name, text_a, text_b);
        last = info->kind == ATTRIBUTE_SLICE ? info->name : "";
    }
    size_t n = a->n_inputs > b->n_inputs ? a->n_inputs : b->n_inputs;
    for (size_t i = 0; i < n; i++) {
        snprintf(text_a, sizeof text_a, "input %zu", i + 1);
        if (!same_input(p, a, b, i))
            put_change(list, a->name, text_a, input_name(p->a, a, i), input_name(p->b, b, i));
    }
}

/* The node that makes a value, -1 for an input of the graph. */
static int maker(const graph *g, int value)
{
    for (size_t n = 0; n < g->n_nodes; n++)
        if (g->nodes[n].output == value)
            return (int)n;
    return -1;
}

static const char *maker_name(const graph *g, int value)
{
    int node = maker(g, value);
    return node < 0 ? g->values[value].name : g->nodes[node].name;
}

static bool same_maker(const pairing *p, int value_a, int value_b)
{
    int a = maker(p->a, value_a), b = maker(p->b, value_b);
    return a < 0 ? b < 0 && p->value[value_a] == value_b : p->node[a] == b;
}

/* Which value is which output: told by name in the graphs' heads, so that two nodes which exchange
 * their names would go unnoticed there. */
static void compare_outputs(const pairing *p, json_t **list)
{
    size_t n = p->a->n_outputs < p->b->n_outputs ? p->a->n_outputs : p->b->n_outputs;
    for (size_t i = 0; i < n; i++) {
        const graph_value *a = &p->a->values[p->a->outputs[i].value];
        if (!same_maker(p, p->a->outputs[i].value, p->b->outputs[i].value))
            put_change(list, a->name, "made by", maker_name(p->a, p->a->outputs[i].value),
                       maker_name(p->b, p->b->outputs[i].value));
    }
}

static json_t *compare_nodes(const pairing *p)
{
    json_t *report = json_object(), *only_a = json_array(), *only_b = json_array(),
           *changes = json_array();
    json_int_t renamed = 0;
    for (size_t n = 0; n < p->a->n_nodes; n++) {
        const graph_node *a = &p->a->nodes[n];
        if (p->node[n] < 0) {
            json_push(&only_a, json_string(a->name));
            continue;
        }
        renamed += strcmp(a->name, p->b->nodes[p->node[n]].name) != 0;
        compare_node(p, a, &p->b->nodes[p->node[n]], &changes);
    }
    compare_outputs(p, &changes);
    for (size_t n = 0; n < p->b->n_nodes; n++)
        if (!is_paired(p->node, p->a->n_nodes, (int)n))
            json_push(&only_b, json_string(p->b->nodes[n].name));
    json_put(&report, "paired_by", json_string(p->by_place ? "place" : "name"));
    json_put(&report, "in_a", json_integer((json_int_t)p->a->n_nodes));
    json_put(&report, "in_b", json_integer((json_int_t)p->b->n_nodes));
    json_put(&report, "renamed", json_integer(renamed));
    json_put(&report, "only_a", only_a);
    json_put(&report, "only_b", only_b);
    json_put(&report, "differ", changes);
    return report;
}

/* ---- Weights -------------------------------------------------------------------------------- */

static json_t *shape_json(const graph_value *value)
{
    json_t *shape = json_array();
    for (size_t i = 0; i < value->rank; i++)
        json_push(&shape, json_integer((json_int_t)value->shape[i]));
    return shape;
}

typedef struct deviation {
    double squares, scale, largest;
} deviation;

static deviation weights_deviation(const graph_value *a, const graph_value *b)
{
    deviation d = {0};
    for (size_t i = 0; i < a->count; i++) {
        double x = (double)a->data[i], difference = (double)b->data[i] - x;
        d.squares += difference * difference;
        d.scale += x * x;
        d.largest = fmax(d.largest, fabs(difference));
    }
    return d;
}

static void compare_weight(const graph_value *a, const graph_value *b, deviation *total,
                           json_int_t *equal, json_t **list)
{
    bool same_shape = a->rank == b->rank && !memcmp(a->shape, b->shape, a->rank * sizeof *a->shape);
    /* Scalars and vectors of channels are written in several shapes that mean the same. */
    deviation d = {.largest = INFINITY};
    if (a->count == b->count && (same_shape || a->rank < 5 || b->rank < 5))
        d = weights_deviation(a, b);
    if (isfinite(d.largest)) {
        total->squares += d.squares;
        total->scale += d.scale;
    }
    if (d.largest == 0) { /* +0 and -0 compute alike */
        ++*equal;
        return;
    }
    json_t *item = json_object();
    json_put(&item, "weight", json_string(a->name));
    if (strcmp(a->name, b->name) != 0)
        json_put(&item, "in_b", json_string(b->name));
    json_put(&item, "shape_a", shape_json(a));
    json_put(&item, "shape_b", shape_json(b));
    json_put(&item, "relative_l2",
             json_real_or_null(isfinite(d.largest) ? sqrt(d.squares / d.scale) : NAN));
    json_put(&item, "largest", json_real_or_null(d.largest));
    json_push(list, item);
}

static json_t *compare_weights(const pairing *p)
{
    json_t *report = json_object(), *only_a = json_array(), *only_b = json_array(),
           *list = json_array();
    json_int_t equal = 0, renamed = 0;
    deviation total = {0};
    for (size_t v = 0; v < p->a->n_values; v++) {
        const graph_value *a = &p->a->values[v];
        const graph_value *b = p->value[v] < 0 ? NULL : &p->b->values[p->value[v]];
        if (!a->is_weight)
            continue;
        if (!b || !b->is_weight) {
            json_push(&only_a, json_string(a->name));
            continue;
        }
        renamed += strcmp(a->name, b->name) != 0;
        compare_weight(a, b, &total, &equal, &list);
    }
    for (size_t v = 0; v < p->b->n_values; v++)
        if (p->b->values[v].is_weight && !is_paired(p->value, p->a->n_values, (int)v))
            json_push(&only_b, json_string(p->b->values[v].name));
    json_put(&report, "equal", json_integer(equal));
    json_put(&report, "renamed", json_integer(renamed));
    json_put(&report, "only_a", only_a);
    json_put(&report, "only_b", only_b);
    json_put(&report, "relative_l2",
             json_real_or_null(total.scale > 0 ? sqrt(total.squares / total.scale) : NAN));
    json_put(&report, "differ", list);
    return report;
}

/* ---- Report --------------------------------------------------------------------------------- */

static json_t *file_json(const dm_model *model)
{
    return json_pack("{s:s, s:s, s:s}", "file", model->path, "name", model->name, "xxh64",
                     model->checksum);
}

/* Do both compute the same? Names do not matter. */
static bool no_differences(const json_t *report)
{
    static const char *const lists[] = {"only_a", "only_b", "differ"};
    bool none = json_array_size(json_object_get(report, "card")) == 0 &&
                json_array_size(json_object_get(report, "graph")) == 0;
    for (size_t i = 0; i < 3; i++)
        none = none &&
               !json_array_size(json_object_get(json_object_get(report, "nodes"), lists[i])) &&
               !json_array_size(json_object_get(json_object_get(report, "weights"), lists[i]));
    return none;
}

static dm_status make_report(const dm_model *a, const dm_model *b, const pairing *p,
                             json_t **report, dm_error *err)
{
    json_t *card = NULL, *graph_head = NULL, *provenance = NULL;
    dm_status status = text_differences(a, b, a->card_json, b->card_json, "", &card, err);
    if (status == DM_OK)
        status = text_differences(a, b, a->graph_json, b->graph_json, "nodes", &graph_head, err);
    if (status == DM_OK)
        status =
            text_differences(a, b, a->provenance_json, b->provenance_json, "", &provenance, err);
    *report = json_object();
    json_put(report, "a", file_json(a));
    json_put(report, "b", file_json(b));
    json_put(report, "card", card);
    json_put(report, "provenance", provenance);
    json_put(report, "graph", graph_head);
    json_put(report, "nodes", compare_nodes(p));
    json_put(report, "weights", compare_weights(p));
    json_put(report, "same", json_boolean(no_differences(*report)));
    if (status == DM_OK && !*report)
        status = error_memory(err, 4096, "a comparison");
    return status;
}

dm_status dm_model_compare(const dm_model *a, const dm_model *b, bool as_json, bool *same,
                           char **text, dm_error *err)
{
    pairing p = {.a = &a->graph, .b = &b->graph};
    json_t *report = NULL;
    *text = NULL;
    dm_status status = pair(&p, err);
    if (status == DM_OK)
        status = make_report(a, b, &p, &report, err);
    if (status == DM_OK && same)
        *same = json_is_true(json_object_get(report, "same"));
    if (status == DM_OK)
        status = as_json ? json_print(report, text, err) : comparison_text(report, text, err);
    json_decref(report);
    free(p.node);
    free(p.value);
    return status;
}
