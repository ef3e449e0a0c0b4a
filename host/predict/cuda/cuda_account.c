/* SPDX-License-Identifier: Apache-2.0 */
/* The account of a plan for a device that is here, or for one that is only described: of a network
 * made as a prediction makes it, but dry. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "described_device.h"
#include "predict/cuda/cuda_state.h"
#include "predict/cuda/cuda_tuning.h"
#include "predict/cuda/device_account.h"
#include "predict/cuda/device_network_parts.h"

/* That the windows of a volume of 200 x 200 x 450 voxels have together at half overlap: 4032 of
 * 32^3. */
#define VOXELS_USUAL ((size_t)4032 << 15)

typedef struct account_job {
    const cuda_account_options *options;
    const char *described; /* properties of the device; NULL: it is here */
    cuda_state state;      /* as a prediction's, of which nothing runs */
} account_job;

/* ---- The device ----------------------------------------------------------------------------- */

static dm_status read_description(account_job *job, plan_account *made, dm_error *err)
{
    json_t *root = NULL;
    dm_status status = json_parse(job->described, strlen(job->described), NULL, &root, err);
    if (status != DM_OK)
        return status;
    const char *name = json_string_value(json_object_get(root, "deviceName"));
    json_int_t cache = json_integer_value(json_object_get(root, "l2CacheSize"));
    if (name && cache > 0) {
        snprintf(made->device, sizeof made->device, "%s", name);
        job->state.cache_bytes = cuda_state_cache((size_t)cache);
    } else {
        status = error_set(err, DM_ERROR_VALUE, NULL, "write what cudaDeviceProp says",
                           "no device is described: deviceName or l2CacheSize is missing");
    }
    json_decref(root);
    return status;
}

/* The one that is asked for, else the first that is here, else one that is known. */
static dm_status find_device(account_job *job, plan_account *made, dm_error *err)
{
    struct cudaDeviceProp properties;
    int devices = 0;
    job->described = job->options->device_properties;
    if (!job->described && cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0 &&
        cudaSetDevice(0) == cudaSuccess && cudaGetDeviceProperties(&properties, 0) == cudaSuccess) {
        snprintf(made->device, sizeof made->device, "%s", properties.name);
        snprintf(job->state.device_name, sizeof job->state.device_name, "%s", properties.name);
        job->state.cache_bytes =
            cuda_state_cache(properties.l2CacheSize > 0 ? (size_t)properties.l2CacheSize : 0);
        return DM_OK;
    }
    (void)cudaGetLastError();
    made->described = true;
    if (!job->described)
        job->described = described_device_json;
    return read_description(job, made, err);
}

static dm_status open_library(account_job *job, plan_account *made, dm_error *err)
{
    cuda_state *s = &job->state;
    if (s->convolutions == DM_CONVOLUTIONS_OWN)
        return DM_OK;
    dm_status status = job->described
                           ? convolution_library_open_for(job->described, &s->library, err)
                           : convolution_library_open(&s->library, err);
    if (status == DM_OK)
        status = library_plans_create(s->library, &s->plans, err);
    if (status == DM_OK)
        snprintf(made->library, sizeof made->library, "%s", convolution_library_name(s->library));
    return status;
}

/* ---- The network ---------------------------------------------------------------------------- */

static size_t usual_windows(const plan *p)
{
    const size_t *tile = p->tensors[p->input].dim;
    size_t voxels = tile[0] * tile[1] * tile[2];
    return (VOXELS_USUAL + voxels - 1) / voxels;
}

/* Choices that were found by timing are a device's that is here. */
static dm_status make_network(account_job *job, plan_account *made, dm_error *err)
{
    cuda_state *s = &job->state;
    size_t windows = job->options->windows ? job->options->windows : usual_windows(s->plan);
    made->batch = cuda_state_batch(s, windows);
    dm_status status = job->described ? DM_OK : cuda_state_tuning(s, made->batch, err);
    if (status != DM_OK)
        return status;
    made->tuned = s->tuning != NULL;
    const device_network_options options = {.batch = made->batch,
                                            .tf32 = s->tf32,
                                            .join_head = true,
                                            .compile =
                                                !s->tuning && cuda_state_compiles(s, windows),
                                            .cache_bytes = s->cache_bytes,
                                            .plans = s->plans,
                                            .convolutions = s->convolutions,
                                            .tuning = s->tuning,
                                            .parameters = s->parameters,
                                            .dry = true};
    return device_network_create(s->plan, &options, &s->network, err);
}

/* ---- Rows ----------------------------------------------------------------------------------- */

static const char *step_way(const plan_step *step)
{
    switch (step->kind) {
    case STEP_NORM:
        return "kernel_normalise_statistics, kernel_normalise_apply";
    case STEP_GLOBAL_AVERAGE_POOL:
        return "kernel_normalise_statistics, kernel_global_average";
    case STEP_MAX_POOL:
    case STEP_AVERAGE_POOL:
        return "kernel_pool";
    case STEP_RESIZE:
        return step->node->resize == RESIZE_LINEAR ? "kernel_interpolate" : "kernel_take_voxels";
    case STEP_PAD:
    case STEP_SLICE:
        return "kernel_take_voxels";
    default:
        return "kernel_pointwise";
    }
}

static account_sum share(const account_sum *sum, double windows)
{
    return (account_sum){.read = sum->read / windows,
                         .written = sum->written / windows,
                         .weights = sum->weights / windows,
                         .workspace = sum->workspace / windows,
                         .flop = sum->flop / windows,
                         .launches = sum->launches / windows};
}

static void add_row(plan_account *made, const char *name, const char *way, unsigned samples,
                    const account_sum *sum)
{
    plan_account_row *row = &made->rows[made->n_rows++];
    row->samples = samples;
    row->sum = share(sum, made->batch);
    snprintf(row->name, sizeof row->name, "%s", name);
    snprintf(row->way, sizeof row->way, "%s", way);
}

static bool is_joined(const library_convolution_spec *spec)
{
    return spec->bias || spec->residual || spec->activate;
}

static dm_status fill_rows(const device_network *net, plan_account *made, dm_error *err)
{
    device_account account;
    dm_status status = device_account_make(net, &account, err);
    if (status != DM_OK)
        return status;
    made->rows = array_zero(account.n_ops + 2, sizeof *made->rows);
    if (!made->rows) {
        device_account_clear(&account);
        return error_memory(err, account.n_ops * sizeof *made->rows, "the device's account");
    }
    made->total = share(&account.total, made->batch);
    add_row(made, "cut out", "kernel_gather", network_samples(net, 0), &account.fill);
    for (size_t i = 0; i < account.n_ops; i++) {
        const device_op *op = &net->ops[i];
        const library_convolution *plan_used = op->conv.library;
        made->library_plans += plan_used != NULL;
        made->joined_plans += plan_used && is_joined(library_convolution_spec_of(plan_used));
        add_row(made, op->step->name, op->way[0] ? op->way : step_way(op->step),
                network_samples(net, i), &account.ops[i]);
    }
    if (account.take.launches > 0)
        add_row(made, "add up", "kernel_stitch", network_samples(net, account.n_ops - 1),
                &account.take);
    device_account_clear(&account);
    return DM_OK;
}

dm_status cuda_account(const plan *steps, const cuda_account_options *options, plan_account *made,
                       dm_error *err)
{
    account_job job = {.options = options,
                       .state = {.plan = steps,
                                 .batch = options->batch,
                                 .tf32 = options->precision == DM_PRECISION_TF32,
                                 .convolutions = options->convolutions}};
    cuda_state *s = &job.state;
    *made = (plan_account){.n_rows = 0};
#ifdef DOSEMAP_EMULATED_CUDA
    made->emulated = true;
#endif
    dm_status status = find_device(&job, made, err);
    if (status == DM_OK)
        status = open_library(&job, made, err);
    if (status == DM_OK)
        status = device_parameters_create_dry(steps->options.type, &s->parameters, err);
    if (status == DM_OK)
        status = make_network(&job, made, err);
    if (status == DM_OK)
        status = fill_rows(s->network, made, err);
    device_network_free(s->network);
    tuning_free(s->tuning);
    device_parameters_free(s->parameters);
    library_plans_free(s->plans);
    convolution_library_free(s->library);
    if (status != DM_OK)
        plan_account_clear(made);
    return status;
}
