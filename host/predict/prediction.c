/* SPDX-License-Identifier: Apache-2.0 */
/* One patient's result: what it holds, and the record of how it was made. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_text.h"
#include "predict/predictor.h"
#include "volume/nifti_header.h"

#define DESCRIPTION                                                                                \
    "Absorbed dose of 177Lu-PSMA therapy predicted from the PET before it. For research; not for " \
    "clinical decisions."
/* Where images and map hold the network's own values. */
#define NETWORK_VALUES "network values"
#define NETWORK_DESCRIPTION                                                                        \
    "Output of a network over whole images that held its input, both in the network's own "        \
    "values: not a dose. For research; not for clinical decisions."

void dm_prediction_free(dm_prediction *prediction)
{
    if (!prediction)
        return;
    dm_volume_free(prediction->dose);
    dm_dvh_free(prediction->dvh);
    json_decref(prediction->provenance);
    dm_string_free(prediction->provenance_text);
    free(prediction);
}

const dm_volume *dm_prediction_dose(const dm_prediction *prediction)
{
    return prediction->dose;
}

const dm_dvh *dm_prediction_dvh(const dm_prediction *prediction)
{
    return prediction->dvh;
}

const char *dm_prediction_provenance_json(const dm_prediction *prediction)
{
    return prediction->provenance_text;
}

/* ---- Provenance ----------------------------------------------------------------------------- */

const char *convolutions_name(dm_convolutions convolutions)
{
    static const char *const names[] = {"auto", "library", "own"};
    return (unsigned)convolutions < 3 ? names[convolutions] : "unknown";
}

/* Where the choice of convolutions came from; null without one. */
static json_t *tuning_facts(const predict_result *r)
{
    return r->tuning_file ? json_pack("{s:o, s:s}", "File", json_string_or_null(r->tuning_file),
                                      "XXH64", r->tuning_xxh64)
                          : json_null();
}

static json_t *counts(const size_t n[3])
{
    return json_pack("[I,I,I]", (json_int_t)n[0], (json_int_t)n[1], (json_int_t)n[2]);
}

static const char *units_name(dm_units units)
{
    static const char *const names[] = {"unknown", "SUV", "Bq/mL", "kBq/mL"};
    return (unsigned)units < 4 ? names[units] : "unknown";
}

static const char *decay_name(dm_decay decay)
{
    static const char *const names[] = {"unknown", "injection", "start", "none"};
    return (unsigned)decay < 4 ? names[decay] : "unknown";
}

static json_t *pet_facts(const provenance_facts *f)
{
    const dm_predictor *p = f->predictor;
    const dm_pet_info *info = f->patient->info;
    if (p->options.network_values)
        return json_pack("{s:s, s:s, s:f, s:b}", "Units", NETWORK_VALUES, "Quantity",
                         NETWORK_VALUES, "Factor", f->volume->factor, "NanToZero",
                         (int)p->options.nan_to_zero);
    bool uptake = p->model->graph.inputs[p->pet_channel].quantity == DM_QUANTITY_UPTAKE;
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:s, s:o, s:o, s:o, s:o, s:o, s:b}", "Units",
                     units_name(info->units), "Quantity", uptake ? "uptake" : "suv", "Factor",
                     json_real_or_null(f->volume->factor), "BodyWeightKg",
                     json_real_or_null(info->body_weight_kg), "InjectedMBq",
                     json_real_or_null(info->injected_mbq), "ResidualMBq",
                     json_real_or_null(info->residual_mbq), "DecayCorrectedTo",
                     decay_name(info->decay), "HalfLifeS", json_real_or_null(info->half_life_s),
                     "InjectionTimeS", json_real_or_null(info->injection_time_s), "ScanTimeS",
                     json_real_or_null(info->scan_time_s), "Radionuclide",
                     json_string_or_null(info->radionuclide), "Tracer",
                     json_string_or_null(info->tracer), "NanToZero", (int)p->options.nan_to_zero);
}

/* Null for a model without one. */
static json_t *ct_facts(const provenance_facts *f)
{
    const dm_ct_info *ct = f->patient->ct_info;
    if (!f->patient->ct)
        return json_null();
    if (f->predictor->options.network_values)
        return json_pack("{s:s}", "Units", NETWORK_VALUES);
    if (!ct)
        return json_pack("{s:s}", "Units", "HU");
    return json_pack("{s:s, s:o, s:[f,f,f], s:f, s:f, s:I, s:b, s:f, s:f, s:f}", "Units", "HU",
                     "Size", counts(ct->dim), "VoxelMm", ct->spacing_mm[0], ct->spacing_mm[1],
                     ct->spacing_mm[2], "Lowest", ct->lowest, "Highest", ct->highest, "VoxelsToAir",
                     (json_int_t)ct->voxels_to_air, "Resampled", (int)ct->resampled,
                     "VoxelsCovered", ct->voxels_covered, "ActivityCovered", ct->activity_covered,
                     "Outside", (double)DM_AIR_HU);
}

/* Outputs that the model has, and that this prediction left out. */
static json_t *other_outputs(const dm_predictor *p)
{
    const graph *g = &p->model->graph;
    json_t *names = json_array();
    for (size_t i = 0; i < g->n_outputs; i++)
        if (i != p->output)
            json_push(&names, json_string_or_null(g->values[g->outputs[i].value].name));
    return names;
}

static json_t *model_facts(const dm_predictor *p)
{
    const dm_model *model = p->model;
    json_t *card = NULL;
    const char *text = model->card_json;
    if (text && json_parse(text, strlen(text), model->path, &card, NULL) != DM_OK)
        return NULL; /* it was parsed when the model was loaded: memory is short */
    json_t *version = json_object_get(card, "version");
    json_t *trained = json_object_get(card, "trained");
    json_t *facts = json_pack("{s:o, s:o, s:s, s:O, s:O}", "Name", json_string_or_null(model->name),
                              "Path", json_string_or_null(model->path ? model->path : ""), "XXH64",
                              model->checksum, "Version", version ? version : json_null(),
                              "Trained", trained ? trained : json_null());
    json_decref(card);
    if (model->graph.n_outputs > 1)
        json_put(&facts, "OutputsNotComputed", other_outputs(p));
    return facts;
}

static json_t *option_facts(const provenance_facts *f)
{
    const dm_predictor *p = f->predictor;
    return json_pack(
        "{s:o, s:o, s:b, s:b, s:f, s:s, s:o, s:s, s:s, s:I, s:I, s:o, s:o}", "Tile",
        counts(f->volume->tiles.tile), "TrainingPatch", counts(p->model->graph.patch), "TileChosen",
        (int)(p->options.tile[0] == DM_TILE_AUTO), "ForceTile", (int)p->options.force_tile,
        "Overlap", f->volume->window.overlap, "Blend",
        p->options.blend == DM_BLEND_GAUSSIAN ? "gaussian" : "constant", "SkipAir",
        isfinite(p->skip_air) ? json_real_or_null(p->skip_air) : json_string("off"), "Precision",
        precision_name(p->precision), "Convolutions", convolutions_name(p->options.convolutions),
        "Batch", (json_int_t)f->result->batch, "MemoryNeeded",
        (json_int_t)f->volume->window.memory_bytes, "MemoryLimit",
        isfinite(p->memory_limit) ? json_integer((json_int_t)p->memory_limit) : json_null(),
        "DeviceMemory",
        f->result->device_bytes ? json_integer((json_int_t)f->result->device_bytes) : json_null());
}

static json_t *grid_facts(const provenance_facts *f)
{
    const grid_map *map = &f->volume->map;
    return json_pack("{s:s, s:o, s:[f,f,f], s:b}", "Orientation",
                     f->predictor->model->graph.orientation, "Size", counts(map->dim), "VoxelMm",
                     map->spacing_mm[0], map->spacing_mm[1], map->spacing_mm[2], "Resampled",
                     (int)!map->exact);
}

/* Stages in their order, null for those that there were not, and all of the backend's together. */
static json_t *second_facts(const provenance_facts *f)
{
    const predict_result *r = f->result;
    return json_pack("{s:f, s:o, s:f, s:o, s:o, s:o, s:o, s:f}", "Prepare", f->seconds_prepare,
                     "Upload", json_real_or_null(r->seconds_upload), "Network", r->seconds_network,
                     "Finish", json_real_or_null(r->seconds_finish), "Resample",
                     json_real_or_null(r->seconds_resample), "Download",
                     json_real_or_null(r->seconds_download), "DVH",
                     json_real_or_null(r->seconds_dvh), "Predict", r->seconds_total);
}

json_t *provenance_make(const provenance_facts *f)
{
    const dm_predictor *p = f->predictor;
    const predict_result *r = f->result;
    const double activity_gbq = f->volume->activity_gbq;
    const bool network_values = p->options.network_values;
    json_t *root = json_pack(
        "{s:i, s:[{s:s, s:s}], s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:s, s:s, s:o, s:I, s:{s:I, "
        "s:I}, s:o}",
        "schema_version", 1, "GeneratedBy", "Name", "dosemap", "Version", dm_version(),
        "Description", network_values ? NETWORK_DESCRIPTION : DESCRIPTION, "Units",
        network_values        ? NETWORK_VALUES
        : isnan(activity_gbq) ? "Gy/GBq"
                              : "Gy",
        "TherapyActivityGBq", json_real_or_null(activity_gbq), "PET", pet_facts(f), "CT",
        ct_facts(f), "Model", model_facts(p), "Options", option_facts(f), "ModelGrid",
        grid_facts(f), "Backend", p->backend->name, "Device", p->backend->description(p->state),
        "Tuning", tuning_facts(r), "Threads", (json_int_t)p->threads, "Windows", "Run",
        (json_int_t)r->windows_run, "Skipped", (json_int_t)r->windows_skipped, "Seconds",
        second_facts(f));
    if (volume_had_extensions(f->patient->pet))
        json_put(&root, "HeaderExtensions", json_string("not copied"));
    return root;
}
