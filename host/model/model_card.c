/* SPDX-License-Identifier: Apache-2.0 */
#include "model/model_card.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "model/graph_context.h"

/* Deviation from float32 in organ mean dose up to which `--precision auto` may use a precision. */
#define MAX_DEVIATION_PERCENT 0.5

static dm_status read_precisions(graph_context *c, const json_t *precision, uint32_t *native)
{
    static const struct {
        const char *name;
        dm_precision precision;
    } known[] = {
        {"tf32", DM_PRECISION_TF32}, {"bf16", DM_PRECISION_BF16}, {"fp16", DM_PRECISION_FP16}};
    *native = 1u << DM_PRECISION_FLOAT32;
    if (precision && !json_is_object(precision))
        return context_bad(c, "\"precision\" is not an object");
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const json_t *entry = json_object_get(precision, known[i].name);
        double deviation = 0;
        if (!entry)
            continue;
        context_at(c, "card precision %s", known[i].name);
        dm_status status = context_number(c, json_object_get(entry, "organ_mean_deviation_percent"),
                                          "organ_mean_deviation_percent", 0, 1e6, &deviation);
        if (status != DM_OK)
            return status;
        if (deviation <= MAX_DEVIATION_PERCENT)
            *native |= 1u << known[i].precision;
    }
    return DM_OK;
}

static dm_status read_keys(graph_context *c, const json_t *card, dm_model *model)
{
    const json_t *name = json_object_get(card, "name"), *air = json_object_get(card, "skip_air");
    const char *text = model->graph.name;
    dm_status status = DM_OK;
    if (!json_is_object(card))
        return context_bad(c, "it is not an object");
    if (name)
        status = context_name(c, name, "name", &text);
    if (status == DM_OK)
        status = context_copy(c, text, &model->name);
    model->skip_air = -INFINITY;
    if (status == DM_OK && air && !json_is_null(air))
        status = context_number(c, air, "skip_air", -1e30, 1e30, &model->skip_air);
    if (status == DM_OK)
        status = read_precisions(c, json_object_get(card, "precision"), &model->native_precisions);
    return status;
}

dm_status model_card_read(dm_model *model, dm_error *err)
{
    graph_context c = {.path = model->path, .err = err, .place = "card"};
    json_t *card = NULL;
    char where[512];
    snprintf(where, sizeof where, "%s (dosemap.card)", model->path);
    dm_status status = json_parse(model->card_json, strlen(model->card_json), where, &card, err);
    if (status == DM_OK)
        status = read_keys(&c, card, model);
    json_decref(card);
    return status;
}
