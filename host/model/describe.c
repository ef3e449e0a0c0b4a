/* SPDX-License-Identifier: Apache-2.0 */
/* What `dosemap inspect` prints. */
#include "model/describe.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "base/text_stream.h"

/* ---- Counts --------------------------------------------------------------------------------- */

static void count_parameters(description *d)
{
    const graph *g = &d->model->graph;
    for (size_t v = 0; v < g->n_values; v++)
        d->parameters += g->values[v].count;
    for (size_t n = 0; n < g->n_nodes; n++)
        if (g->nodes[n].op == OP_BATCH_NORM)
            d->statistics +=
                g->values[g->nodes[n].inputs[3]].count + g->values[g->nodes[n].inputs[4]].count;
    /* A graph may use one vector several times. */
    d->statistics = d->statistics < d->parameters ? d->statistics : d->parameters;
    d->parameters -= d->statistics;
}

static void count_steps(description *d)
{
    for (size_t s = 0; s < d->plan->n_steps; s++) {
        const plan_step *step = &d->plan->steps[s];
        const plan_tensor *out = &d->plan->tensors[step->out];
        bool copy = step->kind == STEP_COPY;
        d->copies += copy;
        d->in_place += step_is_in_place(d->plan, step);
        d->into_concat += !copy && out->pitch != out->channels;
    }
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *shape_json(const plan_tensor *t)
{
    return json_pack("{s:s, s:I, s:[I,I,I], s:I, s:I}", "tensor", t->name, "channels",
                     (json_int_t)t->channels, "size", (json_int_t)t->dim[2], (json_int_t)t->dim[1],
                     (json_int_t)t->dim[0], "arena_offset", (json_int_t)t->offset, "first_channel",
                     (json_int_t)t->channel_start);
}

static json_t *chain_json(const plan *p, const plan_step *step)
{
    json_t *chain = json_array();
    for (size_t i = 0; i < step->n_chain; i++) {
        const chain_link *link = &step->chain[i];
        json_t *item = json_pack("{s:s}", "op", chain_op_name(link->op));
        if (link->tensor >= 0)
            json_put(&item, "tensor", json_string(p->tensors[link->tensor].name));
        if (chain_has_alpha(link->op))
            json_put(&item, "alpha", json_real((double)link->alpha));
        json_push(&chain, item);
    }
    return chain;
}

static json_t *step_json(const plan *p, const plan_step *step)
{
    json_t *item = json_object();
    json_put(&item, "kind", json_string(step_kind_name(step->kind)));
    json_put(&item, "name", json_string(step->name));
    json_put(&item, "in", shape_json(&p->tensors[step->in]));
    json_put(&item, "out", shape_json(&p->tensors[step->out]));
    json_put(&item, "bias", json_boolean(step->bias != NULL));
    json_put(&item, "chain", chain_json(p, step));
    json_put(&item, "in_place", json_boolean(step_is_in_place(p, step)));
    json_put(&item, "flop", json_real(step->flops));
    json_put(&item, "useful_flop", json_real(step->useful_flops));
    json_put(&item, "bytes", json_real(step->bytes));
    json_put(&item, "weight_bytes", json_real(step->weight_bytes));
    return item;
}

static json_t *plan_json(const description *d)
{
    const plan *p = d->plan;
    const size_t *tile = p->options.tile;
    json_t *report = json_object(), *steps = json_array();
    for (size_t s = 0; s < p->n_steps; s++)
        json_push(&steps, step_json(p, &p->steps[s]));
    json_put(&report, "tile",
             json_pack("[I,I,I]", (json_int_t)tile[2], (json_int_t)tile[1], (json_int_t)tile[0]));
    json_put(&report, "precision", json_string(d->precision));
    json_put(&report, "output", json_string(plan_output_name(p)));
    json_put(&report, "flop", json_real(p->flops));
    json_put(&report, "useful_flop", json_real(p->useful_flops));
    json_put(&report, "bytes", json_real(p->bytes));
    json_put(&report, "weight_bytes", json_real(p->weight_bytes));
    json_put(&report, "arena_bytes", json_integer((json_int_t)p->arena_bytes));
    json_put(&report, "steps_in_place", json_integer((json_int_t)d->in_place));
    json_put(&report, "steps_into_concat", json_integer((json_int_t)d->into_concat));
    json_put(&report, "copies", json_integer((json_int_t)d->copies));
    json_put(&report, "steps", steps);
    return report;
}

static dm_status describe_json(const description *d, char **text, dm_error *err)
{
    const dm_model *model = d->model;
    const graph *g = &model->graph;
    json_t *graph_root = NULL, *report = json_object();
    dm_status status =
        json_parse(model->graph_json, strlen(model->graph_json), model->path, &graph_root, err);
    if (status != DM_OK) {
        json_decref(report);
        return status;
    }
    json_put(&report, "name", json_string(model->name));
    json_put(&report, "file", json_string(model->path));
    json_put(&report, "xxh64", json_string(model->checksum));
    json_put(&report, "parameters", json_integer((json_int_t)d->parameters));
    json_put(&report, "statistics", json_integer((json_int_t)d->statistics));
    json_put(&report, "tile_multiple",
             json_pack("[I,I,I]", (json_int_t)g->total_stride[2], (json_int_t)g->total_stride[1],
                       (json_int_t)g->total_stride[0]));
    json_put(&report, "per_tile_statistics", json_boolean(g->per_tile_statistics));
    json_put(&report, "card", json_incref((json_t *)d->card));
    json_put(&report, "graph", graph_root);
    json_put(&report, "plan", plan_json(d));
    if (d->account)
        json_put(&report, "account", account_json(d->account));
    status = report ? json_print(report, text, err) : error_memory(err, 4096, "a description");
    json_decref(report);
    return status;
}

/* ---- Either --------------------------------------------------------------------------------- */

static dm_status print_text(const description *d, char **text, dm_error *err)
{
    text_stream stream;
    bool complete = text_stream_open(&stream) && describe_text(d, stream.out);
    *text = text_stream_close(&stream, complete, NULL);
    return *text ? DM_OK : error_memory(err, stream.size, "a description");
}

dm_status model_describe(const dm_model *model, const plan *p, const char *precision,
                         const plan_account *account, bool as_json, char **text, dm_error *err)
{
    description d = {.model = model, .plan = p, .account = account, .precision = precision};
    json_t *card = NULL;
    *text = NULL;
    dm_status status =
        json_parse(model->card_json, strlen(model->card_json), model->path, &card, err);
    if (status == DM_OK) {
        d.card = card;
        count_parameters(&d);
        count_steps(&d);
        status = as_json ? describe_json(&d, text, err) : print_text(&d, text, err);
    }
    json_decref(card);
    return status;
}
