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
#include "model/describe.h"
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

static dm_status check_activity(double gbq, dm_error *err)
{
    /* What doses are multiplied by is a float: not 0 there either. */
    if (gbq > 0 && gbq <= FLT_MAX && (float)gbq > 0)
        return DM_OK;
    return error_set(err, DM_ERROR_VALUE, NULL, "give --activity in GBq, above 0",
                     "therapy activity %g GBq is out of range", gbq);
}

/* What belongs to doses, and has no meaning for a network's own values. */
static dm_status refuse_for_network_values(const char *what, const char *remedy, dm_error *err)
{
    return error_set(err, DM_ERROR_VALUE, NULL, remedy,
                     "%s, where images and map hold the network's own values", what);
}

static dm_status check_options(const dm_predict_options *o, dm_error *err)
{
    dm_status status = isnan(o->activity_gbq) ? DM_OK : check_activity(o->activity_gbq, err);
    if (status != DM_OK)
        return status;
    if (o->network_values && !isnan(o->activity_gbq))
        return refuse_for_network_values("there is a therapy activity", "leave it out", err);
    if (!isnan(o->overlap) && !(o->overlap >= 0 && o->overlap <= 0.9))
        return error_set(err, DM_ERROR_VALUE, NULL, "give --overlap a share from 0 to 0.9",
                         "overlap %g is out of range", o->overlap);
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

/* Nothing that is asked for is left aside in silence. */
static dm_status check_convolutions(const dm_predictor *p, dm_error *err)
{
    if (p->options.convolutions == DM_CONVOLUTIONS_AUTO || predictor_on_device(p))
        return DM_OK;
    return error_set(err, DM_ERROR_VALUE, NULL, "leave --convolutions out, or use --device cuda",
                     "--convolutions %s is for CUDA devices; the device '%s' has one way only",
                     convolutions_name(p->options.convolutions), p->backend->name);
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
                            .optimise = true,
                            .output = p->output};
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
    p->skip_air = options->skip_air;
    if (isnan(p->skip_air)) /* the card's is in the input quantity */
        p->skip_air = options->network_values ? -INFINITY : p->model->skip_air;
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
    if (status != DM_OK)
        return status;
    dm_predictor *p = array_zero(1, sizeof *p);
    if (!p)
        return error_memory(err, sizeof *p, "the predictor");
    p->model = model;
    status = predictor_find_ports(p, options->network_values, err);
    if (status == DM_OK)
        status = copy_options(p, options, err);
    if (status == DM_OK)
        status = backend_select(p->device, options->convolutions, &p->backend, err);
    if (status == DM_OK)
        status = check_convolutions(p, err);
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

static dm_status check_finite(const dm_volume *image, const char *name, const char *remedy,
                              dm_error *err)
{
    const size_t *dim = image->grid.dim;
    size_t ijk[3];
    if (dm_volume_all_finite(image, ijk))
        return DM_OK;
    return error_set(err, DM_ERROR_VALUE, NULL, remedy, "voxel (%zu, %zu, %zu) of the %s is %g",
                     ijk[0], ijk[1], ijk[2], name,
                     (double)image->data[ijk[0] + dim[0] * (ijk[1] + dim[1] * ijk[2])]);
}

static dm_status check_pet(const dm_predictor *p, const dm_patient *patient, dm_error *err)
{
    const dm_volume *pet = patient->pet;
    const bool network_values = p->options.network_values;
    char reason[256];
    size_t bytes;
    if (!pet || !pet->data || (!patient->info && !network_values))
        return error_set(err, DM_ERROR_VALUE, NULL, "give a volume, and how to quantify it",
                         "there is no PET");
    if (!grid_float_bytes(&pet->grid, &bytes))
        return error_set(err, DM_ERROR_VALUE, NULL, "give a volume with voxels that fit in memory",
                         "the PET has %zu x %zu x %zu voxels", pet->grid.dim[0], pet->grid.dim[1],
                         pet->grid.dim[2]);
    if (patient->labels && network_values)
        return refuse_for_network_values("there are labels, for doses of structures",
                                         "leave them out", err);
    if (patient->labels &&
        !dm_grid_equal(&pet->grid, dm_labels_grid(patient->labels), reason, sizeof reason))
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "bring the labels onto the PET's grid with --resample-labels",
                         "the labels do not lie on the PET's grid: %s", reason);
    if (p->options.nan_to_zero)
        return DM_OK;
    return check_finite(pet, network_values ? "first channel" : "PET",
                        "repair the image, or take such voxels as 0 with --nan-to-zero", err);
}

/* Is there a CT where there has to be one, and only there? */
static dm_status check_for_ct(const dm_predictor *p, bool there_is, dm_error *err)
{
    const graph *g = &p->model->graph;
    const bool wanted = p->ct_channel >= 0;
    if (there_is == wanted)
        return DM_OK;
    if (p->options.network_values)
        return error_set(err, DM_ERROR_VALUE, NULL, "give an image for each of its channels",
                         "the network has %zu %s, and there %s", p->n_channels,
                         p->n_channels == 1 ? "channel" : "channels",
                         there_is ? "are two images" : "is one image");
    if (wanted)
        return error_set(err, DM_ERROR_VALUE, NULL, "give the CT with --ct FILE",
                         "the model wants a CT (its input \"%s\" in HU), and there is none",
                         g->values[g->inputs[p->ct_channel].value].name);
    return error_set(err, DM_ERROR_VALUE, NULL,
                     "leave the CT out, or use a model from PET and CT to dose",
                     "there is a CT, which this model would not use: it takes a PET only");
}

static dm_status check_ct(const dm_predictor *p, const dm_patient *patient, dm_error *err)
{
    const dm_volume *ct = patient->ct;
    const char *name = p->options.network_values ? "second channel" : "CT";
    char reason[256];
    dm_status status = check_for_ct(p, ct != NULL, err);
    if (status != DM_OK || !ct)
        return status;
    if (!ct->data || !dm_grid_equal(&patient->pet->grid, &ct->grid, reason, sizeof reason))
        return error_set(err, DM_ERROR_VALUE, NULL, "bring it there with dm_ct_onto_pet",
                         "the %s does not lie on the PET's grid: %s", name,
                         ct->data ? reason : "it has no voxels");
    return check_finite(ct, name, "repair the image", err);
}

static dm_status pet_factor(const dm_predictor *p, const dm_pet_info *info, double *factor,
                            dm_error *err)
{
    *factor = 1;
    if (p->options.network_values)
        return DM_OK;
    dm_status status =
        dm_pet_factor(info, p->model->graph.inputs[p->pet_channel].quantity, factor, err);
    if (status == DM_OK && !(*factor > FLT_MIN && *factor < FLT_MAX))
        status = error_set(err, DM_ERROR_VALUE, NULL, "check weight, activity and times",
                           "the factor from stored PET values to uptake is %g", *factor);
    return status;
}

/* The patient's, else the options'; NAN: the map is per activity. */
static dm_status therapy_activity(const dm_predictor *p, const dm_patient *patient, double *gbq,
                                  dm_error *err)
{
    bool own = patient->activity_gbq != 0;
    if (own && p->options.network_values)
        return refuse_for_network_values("there is a therapy activity", "leave it out", err);
    *gbq = own ? patient->activity_gbq : p->options.activity_gbq;
    return own ? check_activity(*gbq, err) : DM_OK;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const intensity_transform no_transform = {0};

static void set_channels(const dm_predictor *p, const dm_patient *patient, double factor,
                         predict_job *job)
{
    const graph *g = &p->model->graph;
    job->n_channels = p->n_channels;
    job->pet_channel = (size_t)p->pet_channel;
    for (size_t c = 0; c < p->n_channels; c++) {
        bool is_ct = (int)c == p->ct_channel;
        job->channels[c] = (predict_channel){
            .volume = is_ct ? patient->ct : patient->pet,
            .factor = is_ct ? 1 : (float)factor,
            .intensity = p->options.network_values ? &no_transform : &g->inputs[c].intensity};
    }
}

static predict_job make_job(const dm_predictor *p, const dm_patient *patient, const volume_job *v)
{
    const dm_predict_options *o = &p->options;
    bool per_activity = isnan(v->activity_gbq);
    return (predict_job){.pet = patient->pet,
                         .nan_to_zero = o->nan_to_zero,
                         .map = &v->map,
                         .tiling = &v->tiles,
                         .output_intensity = o->network_values
                                                 ? &no_transform
                                                 : &p->model->graph.outputs[p->output].intensity,
                         .skip_air = (float)p->skip_air,
                         .output_factor = per_activity ? 1 : (float)v->activity_gbq,
                         .batch = p->batch,
                         .labels = patient->labels,
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
    if (!facts->predictor->options.network_values)
        snprintf(made->pet_sidecar, sizeof made->pet_sidecar, "%s", facts->patient->info->sidecar);
    made->dose = result->dose;
    made->dvh = result->dvh;
    result->dose = NULL;
    result->dvh = NULL;
    *prediction = made;
    return DM_OK;
}

dm_status volume_job_make(dm_predictor *p, const dm_patient *patient, volume_job *v, dm_error *err)
{
    const graph *g = &p->model->graph;
    *v = (volume_job){.factor = NAN, .activity_gbq = NAN};
    dm_status status = check_pet(p, patient, err);
    if (status == DM_OK)
        status = check_ct(p, patient, err);
    if (status == DM_OK)
        status = pet_factor(p, patient->info, &v->factor, err);
    if (status == DM_OK)
        status = therapy_activity(p, patient, &v->activity_gbq, err);
    if (status == DM_OK)
        status = grid_map_make(&patient->pet->grid, g->orientation,
                               g->has_voxel_mm ? g->voxel_mm : NULL, &v->map, err);
    if (status == DM_OK)
        status = predictor_tile_for(p, patient->pet, patient->labels, &v->map, &v->window, err);
    if (status == DM_OK)
        status = predictor_prepare(p, v->window.at_once, err);
    if (status == DM_OK)
        status = tiling_make(v->map.dim, v->window.tile, v->window.overlap, p->options.blend,
                             &v->tiles, err);
    if (status == DM_OK) {
        v->job = make_job(p, patient, v);
        set_channels(p, patient, v->factor, &v->job);
    }
    return status;
}

void volume_job_clear(volume_job *v)
{
    tiling_clear(&v->tiles);
}

dm_status dm_predictor_run(dm_predictor *predictor, const dm_patient *patient,
                           dm_prediction **prediction, dm_error *err)
{
    predict_result result = {.seconds_upload = NAN,
                             .seconds_finish = NAN,
                             .seconds_resample = NAN,
                             .seconds_download = NAN,
                             .seconds_dvh = NAN};
    volume_job v;
    double start = now();

    *prediction = NULL;
    dm_status status = volume_job_make(predictor, patient, &v, err);
    if (status == DM_OK)
        status = dm_volume_create_like(patient->pet, &result.dose, err);
    if (status != DM_OK)
        goto done;
    double prepared = now();
    status = predictor->backend->run(predictor->state, &v.job, &result, err);
    if (status != DM_OK)
        goto done;
    const provenance_facts facts = {.predictor = predictor,
                                    .patient = patient,
                                    .volume = &v,
                                    .result = &result,
                                    .seconds_prepare = prepared - start};
    status = make_prediction(&facts, &result, prediction, err);
done:
    volume_job_clear(&v);
    dm_dvh_free(result.dvh);
    dm_volume_free(result.dose);
    return status;
}
