/* SPDX-License-Identifier: Apache-2.0 */
/* A model made ready with its options, and one PET at a time through it. */
#include "predict/predictor.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cores.h"
#include "base/error.h"
#include "base/json_text.h"
#include "volume/grid.h"

void dm_predict_options_init(dm_predict_options *options)
{
    *options = (dm_predict_options){.overlap = NAN,
                                    .blend = DM_BLEND_GAUSSIAN,
                                    .skip_air = NAN,
                                    .precision = DM_PRECISION_AUTO,
                                    .activity_gbq = NAN};
}

/* ---- Checks --------------------------------------------------------------------------------- */

static dm_status check_options(const dm_predict_options *o, dm_error *err)
{
    if (!isnan(o->overlap) && !(o->overlap >= 0 && o->overlap <= 0.9))
        return error_set(err, DM_ERROR_VALUE, NULL, "give --overlap a share from 0 to 0.9",
                         "overlap %g is out of range", o->overlap);
    if (!isnan(o->activity_gbq) && !(o->activity_gbq > 0 && o->activity_gbq <= FLT_MAX))
        return error_set(err, DM_ERROR_VALUE, NULL, "give --activity in GBq, above 0",
                         "therapy activity %g GBq is out of range", o->activity_gbq);
    if (o->skip_air == INFINITY)
        return error_set(err, DM_ERROR_VALUE, NULL, "give --skip-air a number, or 'off'",
                         "a skip-air threshold of %g would run nothing", o->skip_air);
    if (o->blend != DM_BLEND_GAUSSIAN && o->blend != DM_BLEND_CONSTANT)
        return error_set(err, DM_ERROR_VALUE, NULL, "use gaussian or constant",
                         "there is no blending number %d", (int)o->blend);
    if ((unsigned)o->convolutions > DM_CONVOLUTIONS_OWN)
        return error_set(err, DM_ERROR_VALUE, NULL, "use auto, library or own",
                         "there is no choice of convolutions number %d", (int)o->convolutions);
    if (o->batch > PREDICT_BATCH_MAX)
        return error_set(err, DM_ERROR_VALUE, NULL, "use fewer windows per call",
                         "batch %u is above %d", o->batch, PREDICT_BATCH_MAX);
    for (size_t i = 0; i < o->n_v_thresholds; i++)
        if (!(o->v_thresholds[i] >= 0 && o->v_thresholds[i] <= DBL_MAX))
            return error_set(err, DM_ERROR_VALUE, NULL, "give doses of at least 0",
                             "Vx threshold %g is out of range", o->v_thresholds[i]);
    return DM_OK;
}

static dm_status check_model(const dm_model *model, dm_error *err)
{
    const graph *g = &model->graph;
    if (g->n_inputs != 1 || g->n_outputs != 1)
        return error_set(err, DM_ERROR_UNSUPPORTED, model->path, "use a model from PET to dose",
                         "the model has %zu inputs and %zu outputs, not one of each", g->n_inputs,
                         g->n_outputs);
    if (g->inputs[0].channels != 1 || g->outputs[0].channels != 1)
        return error_set(err, DM_ERROR_UNSUPPORTED, model->path, "use a model from PET to dose",
                         "the model takes %zu channels and gives %zu, not one of each",
                         g->inputs[0].channels, g->outputs[0].channels);
    if (!g->voxelwise)
        return error_set(err, DM_ERROR_UNSUPPORTED, model->path,
                         "use a model that gives one dose per voxel of its input",
                         "the model's output has another size than its input");
    dm_quantity in = g->inputs[0].quantity, out = g->outputs[0].quantity;
    if (in != DM_QUANTITY_UPTAKE && in != DM_QUANTITY_SUV)
        return error_set(err, DM_ERROR_UNSUPPORTED, model->path, "use a model from PET to dose",
                         "the model's input is neither uptake nor SUV");
    if (out != DM_QUANTITY_DOSE_PER_ACTIVITY)
        return error_set(err, DM_ERROR_UNSUPPORTED, model->path, "use a model from PET to dose",
                         "the model's output is not a dose per activity");
    return DM_OK;
}

const char *precision_name(dm_precision precision)
{
    switch (precision) {
    case DM_PRECISION_FLOAT32:
        return "float32";
    case DM_PRECISION_TF32:
        return "tf32";
    case DM_PRECISION_BF16:
        return "bf16";
    case DM_PRECISION_FP16:
        return "fp16";
    case DM_PRECISION_AUTO:
        return "auto";
    }
    return "unknown";
}

/* auto: the fastest that the card vouches for and the device does natively. */
static dm_status choose_precision(dm_predictor *p, dm_error *err)
{
    static const dm_precision fastest[] = {DM_PRECISION_BF16, DM_PRECISION_FP16, DM_PRECISION_TF32};
    p->precision = p->options.precision;
    if (p->precision == DM_PRECISION_AUTO) {
        p->precision = DM_PRECISION_FLOAT32;
        for (size_t i = 0; i < sizeof fastest / sizeof *fastest; i++) {
            bool listed = p->model->native_precisions >> fastest[i] & 1u;
            if (listed && p->backend->supports(p->device, fastest[i])) {
                p->precision = fastest[i];
                break;
            }
        }
    }
    if (!p->backend->supports(p->device, p->precision))
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use --precision float32, or auto",
                         "precision %s is not something the device '%s' does natively",
                         precision_name(p->precision), p->backend->name);
    return DM_OK;
}

/* ---- Plan and state ------------------------------------------------------------------------- */

void predictor_drop_plan(dm_predictor *p)
{
    if (p->state)
        p->backend->destroy(p->state);
    plan_free(p->plan);
    p->state = NULL;
    p->plan = NULL;
}

static bool is_planned(const dm_predictor *p, const size_t tile[3])
{
    return p->plan && memcmp(tile, p->plan_tile, sizeof p->plan_tile) == 0;
}

dm_status predictor_plan(dm_predictor *p, const size_t tile[3], dm_error *err)
{
    if (is_planned(p, tile))
        return DM_OK;
    predictor_drop_plan(p);
    plan_options options = {.tile = {tile[2], tile[1], tile[0]},
                            .type = precision_element(p->precision),
                            .optimise = true};
    dm_status status = backend_plan(p->backend, &p->model->graph, &options, &p->plan, err);
    memcpy(p->plan_tile, tile, sizeof p->plan_tile);
    if (status != DM_OK) {
        predictor_drop_plan(p);
        error_at(err, p->model->path);
    }
    return status;
}

dm_status predictor_prepare(dm_predictor *p, unsigned at_once, dm_error *err)
{
    if (p->state && at_once == p->at_once)
        return DM_OK;
    if (p->state)
        p->backend->destroy(p->state);
    p->at_once = at_once;
    const backend_options options = {.device = p->device,
                                     .precision = p->precision,
                                     .threads = p->threads,
                                     .at_once = at_once,
                                     .batch = p->batch,
                                     .memory = p->options.memory_bytes,
                                     .convolutions = p->options.convolutions};
    dm_status status = p->backend->create(p->plan, &options, &p->state, err);
    if (status != DM_OK) {
        predictor_drop_plan(p);
        error_at(err, p->model->path);
    }
    return status;
}

/* ---- Create and free ------------------------------------------------------------------------ */

static dm_status copy_options(dm_predictor *p, const dm_predict_options *options, dm_error *err)
{
    size_t n = options->n_v_thresholds;
    p->options = *options;
    p->device = strdup(options->device ? options->device : "auto");
    if (n > 0)
        p->v_thresholds = array_alloc(n, sizeof *p->v_thresholds);
    if (!p->device || (n > 0 && !p->v_thresholds))
        return error_memory(err, n * sizeof *p->v_thresholds, "options");
    if (n > 0)
        memcpy(p->v_thresholds, options->v_thresholds, n * sizeof *p->v_thresholds);
    p->options.device = p->device;
    p->options.v_thresholds = p->v_thresholds;
    p->threads = cores_or(options->threads);
    p->batch = options->batch;
    p->skip_air = isnan(options->skip_air) ? p->model->skip_air : options->skip_air;
    return DM_OK;
}

dm_status dm_predictor_create(const dm_model *model, const dm_predict_options *options,
                              dm_predictor **predictor, dm_error *err)
{
    dm_predict_options defaults;
    *predictor = NULL;
    if (!options) {
        dm_predict_options_init(&defaults);
        options = &defaults;
    }
    dm_status status = check_options(options, err);
    if (status == DM_OK)
        status = check_model(model, err);
    if (status != DM_OK)
        return status;
    dm_predictor *p = array_zero(1, sizeof *p);
    if (!p)
        return error_memory(err, sizeof *p, "the predictor");
    p->model = model;
    status = copy_options(p, options, err);
    if (status == DM_OK)
        status = backend_select(p->device, options->convolutions, &p->backend, err);
    if (status == DM_OK)
        status = choose_precision(p, err);
    if (status == DM_OK)
        status = predictor_tile_create(p, err);
    /* A tile that depends on the volume has no plan yet. */
    if (status == DM_OK && p->plan)
        status = predictor_prepare(p, predictor_on_device(p) ? 1 : p->threads, err);
    if (status == DM_OK)
        *predictor = p;
    else
        dm_predictor_free(p);
    return status;
}

void dm_predictor_free(dm_predictor *predictor)
{
    if (!predictor)
        return;
    predictor_drop_plan(predictor);
    free(predictor->device);
    free(predictor->v_thresholds);
    free(predictor);
}

/* ---- One PET -------------------------------------------------------------------------------- */

static dm_status check_pet(const dm_predictor *p, const dm_volume *pet, const dm_labels *labels,
                           dm_error *err)
{
    char reason[256];
    size_t bytes, ijk[3];
    if (!pet || !pet->data)
        return error_set(err, DM_ERROR_VALUE, NULL, "give a volume", "there is no PET");
    if (!grid_float_bytes(&pet->grid, &bytes))
        return error_set(err, DM_ERROR_VALUE, NULL, "give a volume with voxels that fit in memory",
                         "the PET has %zu x %zu x %zu voxels", pet->grid.dim[0], pet->grid.dim[1],
                         pet->grid.dim[2]);
    if (labels && !dm_grid_equal(&pet->grid, dm_labels_grid(labels), reason, sizeof reason))
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "bring the labels onto the PET's grid with --resample-labels",
                         "the labels do not lie on the PET's grid: %s", reason);
    if (!p->options.nan_to_zero && !dm_volume_all_finite(pet, ijk)) {
        float value = pet->data[ijk[0] + pet->grid.dim[0] * (ijk[1] + pet->grid.dim[1] * ijk[2])];
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "repair the image, or take such voxels as 0 with --nan-to-zero",
                         "voxel (%zu, %zu, %zu) of the PET is %g", ijk[0], ijk[1], ijk[2],
                         (double)value);
    }
    return DM_OK;
}

static dm_status input_factor(const dm_predictor *p, const dm_pet_info *info, double *factor,
                              dm_error *err)
{
    dm_status status = dm_pet_factor(info, p->model->graph.inputs[0].quantity, factor, err);
    if (status == DM_OK && !(*factor > FLT_MIN && *factor < FLT_MAX))
        status = error_set(err, DM_ERROR_VALUE, NULL, "check weight, activity and times",
                           "the factor from stored PET values to uptake is %g", *factor);
    return status;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static predict_job make_job(const dm_predictor *p, const dm_volume *pet, const dm_labels *labels,
                            const grid_map *map, const tiling *tiles, double factor)
{
    const dm_predict_options *o = &p->options;
    bool per_activity = isnan(o->activity_gbq);
    return (predict_job){.pet = pet,
                         .nan_to_zero = o->nan_to_zero,
                         .n_channels = 1,
                         .channels = {{.volume = pet,
                                       .factor = (float)factor,
                                       .intensity = &p->model->graph.inputs[0].intensity}},
                         .map = map,
                         .tiling = tiles,
                         .output_intensity = &p->model->graph.outputs[0].intensity,
                         .skip_air = (float)p->skip_air,
                         .output_factor = per_activity ? 1 : (float)o->activity_gbq,
                         .batch = p->batch,
                         .labels = labels,
                         .dvh_options = {.v_thresholds = p->v_thresholds,
                                         .n_v_thresholds = o->n_v_thresholds,
                                         .per_activity = per_activity,
                                         .threads = p->threads},
                         .progress = o->progress,
                         .progress_user = o->progress_user};
}

/* Takes over what the result holds. */
static dm_status make_prediction(const provenance_facts *facts, predict_result *result,
                                 dm_prediction **prediction, dm_error *err)
{
    dm_prediction *made = array_zero(1, sizeof *made);
    if (!made)
        return error_memory(err, sizeof *made, "the prediction");
    made->provenance = provenance_make(facts);
    dm_status status = made->provenance ? json_print(made->provenance, &made->provenance_text, err)
                                        : error_memory(err, sizeof *made, "provenance");
    if (status != DM_OK) {
        dm_prediction_free(made);
        return status;
    }
    snprintf(made->pet_sidecar, sizeof made->pet_sidecar, "%s", facts->info->sidecar);
    made->dose = result->dose;
    made->dvh = result->dvh;
    result->dose = NULL;
    result->dvh = NULL;
    *prediction = made;
    return DM_OK;
}

dm_status volume_job_make(dm_predictor *p, const dm_volume *pet, const dm_pet_info *info,
                          const dm_labels *labels, volume_job *v, dm_error *err)
{
    const graph *g = &p->model->graph;
    dm_status status = check_pet(p, pet, labels, err);
    *v = (volume_job){.factor = NAN};
    if (status == DM_OK)
        status = input_factor(p, info, &v->factor, err);
    if (status == DM_OK)
        status = grid_map_make(&pet->grid, g->orientation, g->has_voxel_mm ? g->voxel_mm : NULL,
                               &v->map, err);
    if (status == DM_OK)
        status = predictor_tile_for(p, pet, labels, &v->map, &v->window, err);
    if (status == DM_OK)
        status = predictor_prepare(p, v->window.at_once, err);
    if (status == DM_OK)
        status = tiling_make(v->map.dim, v->window.tile, v->window.overlap, p->options.blend,
                             &v->tiles, err);
    if (status == DM_OK)
        v->job = make_job(p, pet, labels, &v->map, &v->tiles, v->factor);
    return status;
}

void volume_job_clear(volume_job *v)
{
    tiling_clear(&v->tiles);
}

dm_status dm_predictor_run(dm_predictor *predictor, const dm_volume *pet, const dm_pet_info *info,
                           const dm_labels *labels, dm_prediction **prediction, dm_error *err)
{
    predict_result result = {.seconds_upload = NAN,
                             .seconds_finish = NAN,
                             .seconds_resample = NAN,
                             .seconds_download = NAN,
                             .seconds_dvh = NAN};
    volume_job v;
    double start = now();

    *prediction = NULL;
    dm_status status = volume_job_make(predictor, pet, info, labels, &v, err);
    if (status == DM_OK)
        status = dm_volume_create_like(pet, &result.dose, err);
    if (status != DM_OK)
        goto done;
    double prepared = now();
    status = predictor->backend->run(predictor->state, &v.job, &result, err);
    if (status != DM_OK)
        goto done;
    const provenance_facts facts = {.predictor = predictor,
                                    .pet = pet,
                                    .info = info,
                                    .pet_factor = v.factor,
                                    .map = &v.map,
                                    .tiling = &v.tiles,
                                    .result = &result,
                                    .window = &v.window,
                                    .seconds_prepare = prepared - start};
    status = make_prediction(&facts, &result, prediction, err);
done:
    volume_job_clear(&v);
    dm_dvh_free(result.dvh);
    dm_volume_free(result.dose);
    return status;
}
