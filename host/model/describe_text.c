/* SPDX-License-Identifier: Apache-2.0 */
/* A description for people, at most 100 columns wide. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "model/describe.h"

#define INDENT 16 /* where values begin */

void describe_heading(FILE *out, const char *text)
{
    fprintf(out, "\n%s\n", text);
    for (size_t i = strlen(text); i > 0; i--)
        fputc('-', out);
    fputc('\n', out);
}

static void label(FILE *out, const char *name)
{
    int n = (int)strlen(name);
    fprintf(out, "%s%*s", name, n < INDENT ? INDENT - n : 1, "");
}

void describe_line(FILE *out, const char *name, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    label(out, name);
    print_wrapped(out, INDENT, text);
}

/* "7,946,017" */
static const char *grouped(size_t n, char *text, size_t size)
{
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%zu", n);
    size_t at = 0;
    for (int i = 0; i < length && at + 2 < size; i++) {
        if (i && (length - i) % 3 == 0)
            text[at++] = ',';
        text[at++] = digits[i];
    }
    text[at] = 0;
    return text;
}

/* ---- Card ----------------------------------------------------------------------------------- */

/* A value that is no string, as JSON. */
static bool card_json(FILE *out, size_t indent, const json_t *value, size_t flags)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY | flags);
    if (text)
        print_wrapped(out, indent, text);
    free(text);
    return text != NULL;
}

static bool card_value(FILE *out, const json_t *value)
{
    size_t i;
    json_t *item;
    bool complete = true;
    if (json_is_string(value)) {
        print_wrapped(out, INDENT, json_string_value(value));
    } else if (json_is_array(value) && json_array_size(value)) {
        json_array_foreach(value, i, item)
        {
            if (i)
                fprintf(out, "%*s", INDENT, "");
            fputs("- ", out);
            if (json_is_string(item))
                print_wrapped(out, INDENT + 2, json_string_value(item));
            else
                complete &= card_json(out, INDENT + 2, item, 0);
        }
    } else {
        complete = card_json(out, INDENT, value, JSON_REAL_PRECISION(9));
    }
    return complete;
}

static bool card_entry(FILE *out, const char *key, const json_t *value)
{
    char name[40];
    snprintf(name, sizeof name, "%.32s", key);
    for (char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
        else if (*c == '_')
            *c = ' ';
    label(out, name);
    return card_value(out, value);
}

static bool print_card(const description *d, FILE *out)
{
    const json_t *version = json_object_get(d->card, "version");
    const json_t *summary = json_object_get(d->card, "summary");
    const json_t *trained = json_object_get(d->card, "trained");
    const char *key;
    json_t *value;
    bool complete = true;
    char title[400];
    snprintf(title, sizeof title, "%.255s%s%.64s", d->model->name,
             json_is_string(version) ? ", version " : "",
             json_is_string(version) ? json_string_value(version) : "");
    print_wrapped(out, 0, title);
    if (json_is_string(summary))
        print_wrapped(out, 0, json_string_value(summary));
    fputc('\n', out);
    describe_line(out, "file", "%s", d->model->path);
    describe_line(out, "checksum", "XXH64 %s", d->model->checksum);
    describe_line(out, "weights", "%s",
                  json_is_true(trained)    ? "trained"
                  : json_is_false(trained) ? "constructed, not trained"
                                           : "the card does not say if trained");
    json_object_foreach((json_t *)d->card, key, value)
    {
        if (strcmp(key, "name") && strcmp(key, "version") && strcmp(key, "summary") &&
            strcmp(key, "trained") && !json_is_null(value))
            complete &= card_entry(out, key, value);
    }
    return complete;
}

/* ---- Network -------------------------------------------------------------------------------- */

static void print_port(const graph *g, const graph_port *port, const char *what, FILE *out)
{
    char intensity[256];
    intensity_text(&port->intensity, intensity, sizeof intensity);
    describe_line(out, what, "%s: %zu channel%s, %s in %s%s%s", g->values[port->value].name,
                  port->channels, port->channels == 1 ? "" : "s", quantity_name(port->quantity),
                  port->unit, *intensity ? "; " : "", intensity);
}

static void print_network(const description *d, FILE *out)
{
    const graph *g = &d->model->graph;
    char count[40], title[300];
    snprintf(title, sizeof title, "Network %.255s", g->name);
    describe_heading(out, title);
    for (size_t i = 0; i < g->n_inputs; i++)
        print_port(g, &g->inputs[i], i ? "" : "input", out);
    for (size_t i = 0; i < g->n_outputs; i++)
        print_port(g, &g->outputs[i], i ? "" : "output", out);
    describe_line(out, "orientation", "%s; the network's axes are %s", g->orientation,
                  g->axes_xyz ? "x, y, z" : "z, y, x");
    describe_line(out, "training patch", "%zu x %zu x %zu voxels", g->patch[0], g->patch[1],
                  g->patch[2]);
    describe_line(out, "tiles", "multiples of %zu x %zu x %zu voxels%s", g->total_stride[2],
                  g->total_stride[1], g->total_stride[0],
                  g->per_tile_statistics
                      ? "; larger ones than the patch change the result (statistics per tile)"
                      : "");
    if (g->has_voxel_mm)
        describe_line(out, "voxel size", "%g x %g x %g mm", g->voxel_mm[0], g->voxel_mm[1],
                      g->voxel_mm[2]);
    else
        describe_line(out, "voxel size", "the image's own");
    describe_line(out, "parameters", "%s (%.1f MB in float32)",
                  grouped(d->parameters, count, sizeof count), 4e-6 * (double)d->parameters);
    if (d->statistics)
        describe_line(out, "", "and %s means and variances of BatchNormalization",
                      grouped(d->statistics, count, sizeof count));
}

/* The activations that a node reads. */
static void inputs_text(const graph *g, const graph_node *node, char *text, size_t size)
{
    text[0] = 0;
    for (size_t i = 0; i < node->n_inputs; i++) {
        size_t n = strlen(text);
        if (node->inputs[i] >= 0 && !g->values[node->inputs[i]].is_weight)
            snprintf(text + n, size - n, "%s%s", n ? ", " : "", g->values[node->inputs[i]].name);
    }
}

static bool print_graph(const description *d, FILE *out)
{
    static const table_column columns[] = {{"", true, false},         {"operator", false, false},
                                           {"name", false, true},     {"reads", false, true},
                                           {"channels", true, false}, {"attributes", false, true}};
    const graph *g = &d->model->graph;
    char title[64], text[TABLE_CELL];
    text_table *t = table_create(columns, 6, g->n_nodes);
    snprintf(title, sizeof title, "Graph, %zu nodes", g->n_nodes);
    describe_heading(out, title);
    for (size_t n = 0; t && n < g->n_nodes; n++) {
        const graph_node *node = &g->nodes[n];
        table_cell(t, n, 0, "%zu", n + 1);
        table_cell(t, n, 1, "%s", op_name(node->op));
        table_cell(t, n, 2, "%s", node->name);
        inputs_text(g, node, text, sizeof text);
        table_cell(t, n, 3, "%s", text);
        table_cell(t, n, 4, "%zu", g->values[node->output].channels);
        node_text(node, text, sizeof text);
        table_cell(t, n, 5, "%s", text);
    }
    if (t)
        table_print(t, out);
    table_free(t);
    return t != NULL;
}

/* ---- Plan ----------------------------------------------------------------------------------- */

static void plan_row(const plan *p, size_t s, text_table *t)
{
    const plan_step *step = &p->steps[s];
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    char text[TABLE_CELL];
    table_cell(t, s, 0, "%zu", s + 1);
    table_cell(t, s, 1, "%s", step_kind_name(step->kind));
    table_cell(t, s, 2, "%s", step->name);
    shape_text(in->channels, in->dim, text, sizeof text);
    table_cell(t, s, 3, "%s", text);
    shape_text(out->channels, out->dim, text, sizeof text);
    table_cell(t, s, 4, "%s", text);
    chain_text(p, step, text, sizeof text);
    table_cell(t, s, 5, "%s", text);
    if (step->flops > 0)
        table_cell(t, s, 6, "%.1f", 1e-6 * step->flops);
    table_cell(t, s, 7, "%.0f", 1e-3 * step->bytes);
    table_cell(t, s, 8, "%s%.0f",
               step_is_in_place(p, step)     ? "="
               : out->pitch != out->channels ? "+"
                                             : "",
               1e-3 * (double)out->offset);
}

static void print_totals(const description *d, FILE *out)
{
    const plan *p = d->plan;
    fputc('\n', out);
    if (p->graph->n_outputs > 1)
        describe_line(out, "output", "%s; what only other outputs need is left out",
                      plan_output_name(p));
    describe_line(out, "arithmetic", "%.2f GFLOP per window, %.2f without the taps on padding",
                  1e-9 * p->flops, 1e-9 * p->useful_flops);
    describe_line(out, "memory", "%.1f MB read and written per window, %.1f MB of weights",
                  1e-6 * p->bytes, 1e-6 * p->weight_bytes);
    describe_line(out, "arena", "%.2f MB per window; \"at kB\": where in it a step's result begins",
                  1e-6 * (double)p->arena_bytes);
    describe_line(out, "in place",
                  "%zu steps write over what they read (=), %zu into a concatenation (+); "
                  "%zu copies",
                  d->in_place, d->into_concat, d->copies);
}

static bool print_plan(const description *d, FILE *out)
{
    static const table_column columns[] = {
        {"", true, false},      {"step", false, false}, {"name", false, true},
        {"in", false, false},   {"out", false, false},  {"then", false, true},
        {"MFLOP", true, false}, {"kB", true, false},    {"at kB", true, false}};
    const plan *p = d->plan;
    char title[160];
    text_table *t = table_create(columns, 9, p->n_steps);
    snprintf(title, sizeof title, "Plan for a tile of %zu x %zu x %zu voxels in %s, %zu steps",
             p->options.tile[2], p->options.tile[1], p->options.tile[0], d->precision, p->n_steps);
    describe_heading(out, title);
    for (size_t s = 0; t && s < p->n_steps; s++)
        plan_row(p, s, t);
    if (t)
        table_print(t, out);
    table_free(t);
    print_totals(d, out);
    return t != NULL;
}

bool describe_text(const description *d, FILE *out)
{
    bool complete = print_card(d, out);
    print_network(d, out);
    complete &= print_graph(d, out);
    complete &= print_plan(d, out);
    if (d->account)
        complete &= account_text(d->account, out);
    return complete;
}
