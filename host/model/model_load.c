/* SPDX-License-Identifier: Apache-2.0 */
/* A weights file becomes a dm_model: container, checksum, graph, card. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "base/output_file.h"
#include "model/graph_parse.h"
#include "model/model_card.h"
#include "model/safetensors.h"

/* A copy of a metadata value that must be there. */
static dm_status take_text(const safetensors *file, const char *path, const char *key, char **text,
                           dm_error *err)
{
    const char *value = safetensors_metadata(file, key);
    if (!value)
        return error_set(err, DM_ERROR_FORMAT, path,
                         "make weights files of PyTorch networks with dosemap export",
                         "its metadata has no '%s'; it is not a dosemap weights file", key);
    *text = strdup(value);
    return *text ? DM_OK : error_memory(err, strlen(value) + 1, key);
}

static dm_status check_format(const safetensors *file, const char *path, dm_error *err)
{
    char *format = NULL;
    dm_status status = take_text(file, path, "dosemap.format", &format, err);
    if (status == DM_OK && strcmp(format, "1"))
        status = error_set(err, DM_ERROR_UNSUPPORTED, path,
                           "use a newer dosemap, or export the network again",
                           "its dosemap.format is '%.32s'; this program reads 1", format);
    free(format);
    return status;
}

static dm_status check_data(const safetensors *file, dm_model *model, dm_error *err)
{
    char *stated = NULL;
    dm_status status = take_text(file, model->path, "dosemap.xxh64", &stated, err);
    if (status != DM_OK)
        return status;
    bytes_checksum(file->data, file->data_size, model->checksum);
    if (strcmp(stated, model->checksum))
        status = error_set(
            err, DM_ERROR_FORMAT, model->path, "the file is damaged; copy or export it again",
            "the data's XXH64 is %s, but dosemap.xxh64 says '%.32s'", model->checksum, stated);
    free(stated);
    return status;
}

/* JSON text of the metadata, with the key in the message where it is malformed. */
static dm_status parse_text(const char *text, const char *path, const char *key, json_t **root,
                            dm_error *err)
{
    char where[512];
    snprintf(where, sizeof where, "%s (%s)", path, key);
    return json_parse(text, strlen(text), where, root, err);
}

static dm_status load_texts(const safetensors *file, dm_model *model, dm_error *err)
{
    const char *path = model->path;
    json_t *provenance = NULL;
    dm_status status = take_text(file, path, "dosemap.graph", &model->graph_json, err);
    if (status == DM_OK)
        status = take_text(file, path, "dosemap.card", &model->card_json, err);
    if (status == DM_OK)
        status = take_text(file, path, "dosemap.provenance", &model->provenance_json, err);
    if (status == DM_OK)
        status = parse_text(model->provenance_json, path, "dosemap.provenance", &provenance, err);
    json_decref(provenance);
    return status;
}

static dm_status load(dm_model *model, dm_error *err)
{
    safetensors file = {0};
    json_t *graph_root = NULL;
    dm_status status = safetensors_read(model->path, &file, err);
    if (status != DM_OK)
        return status;
    status = check_format(&file, model->path, err);
    if (status == DM_OK)
        status = check_data(&file, model, err);
    if (status == DM_OK)
        status = load_texts(&file, model, err);
    if (status == DM_OK)
        status = parse_text(model->graph_json, model->path, "dosemap.graph", &graph_root, err);
    if (status == DM_OK)
        status = graph_parse(graph_root, &file, model->path, &model->graph, err);
    if (status == DM_OK)
        status = model_card_read(model, err);
    json_decref(graph_root);
    safetensors_clear(&file);
    return status;
}

dm_status dm_model_load(const char *path, dm_model **model, dm_error *err)
{
    *model = NULL;
    if (!path || !*path)
        return error_set(err, DM_ERROR_VALUE, NULL, "name a weights file", "no model is named");
    dm_model *loaded = array_zero(1, sizeof *loaded);
    if (!loaded)
        return error_memory(err, sizeof *loaded, "the model");
    loaded->path = strdup(path);
    dm_status status = loaded->path ? load(loaded, err) : error_memory(err, strlen(path), "a path");
    if (status != DM_OK) {
        error_at(err, path);
        dm_model_free(loaded);
        return status;
    }
    *model = loaded;
    return DM_OK;
}

void dm_model_free(dm_model *model)
{
    if (!model)
        return;
    graph_clear(&model->graph);
    free(model->path);
    free(model->name);
    free(model->card_json);
    free(model->graph_json);
    free(model->provenance_json);
    free(model);
}

const char *dm_model_name(const dm_model *model)
{
    return model->name;
}

const char *dm_model_path(const dm_model *model)
{
    return model->path;
}

dm_quantity dm_model_input_quantity(const dm_model *model)
{
    return model->graph.inputs[0].quantity;
}

bool dm_model_takes(const dm_model *model, dm_quantity quantity)
{
    bool takes = false;
    for (size_t i = 0; i < model->graph.n_inputs; i++)
        takes = takes || model->graph.inputs[i].quantity == quantity;
    return takes;
}

const char *dm_model_card_json(const dm_model *model)
{
    return model->card_json;
}

const char *dm_model_graph_json(const dm_model *model)
{
    return model->graph_json;
}
