/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend: which devices can be used, and what stays on one between volumes. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/cuda_measure.h"
#include "predict/cuda/cuda_state.h"
#include "predict/cuda/cuda_tune.h"
#include "predict/cuda/cuda_tuning.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda_module.h"
#include "predict/job_messages.h"

/* Oldest devices that the kernels are built for. */
#define CAPABILITY_MAJOR 8
/* Where the device does not say how large its second-level cache is. */
#define CACHE_BYTES ((size_t)40 << 20)
/* Voxels of a batch from which larger ones gain nothing: 64 windows of 32^3. */
#define BATCH_VOXELS ((size_t)64 << 15)
#define BATCH_MAX 256
/* Voxels of all windows together from which plans that are compiled at run time pay: 20000 windows
 * of 32^3. A network has 10 to 20 of them, each of which takes 1.5 to 2 s to make (cuDNN 9, without
 * a device); they save a pass over each result. Where the two are equal is an estimate, until it is
 * measured on a device. */
#define COMPILE_VOXELS ((size_t)20000 << 15)

/* ---- Devices -------------------------------------------------------------------------------- */

static dm_status explain_count(cudaError_t code, const cuda_facts *facts, dm_error *err)
{
    int needs = facts->runtime;
    if (facts->driver == 0 && (code == cudaErrorInsufficientDriver || code == cudaErrorNoDevice))
        return error_set(err, DM_ERROR_DEVICE, NULL,
                         "install the NVIDIA driver, or use --device cpu",
                         "there is no NVIDIA driver");
    if (code == cudaErrorInsufficientDriver)
        return error_set(
            err, DM_ERROR_DEVICE, NULL, "update the NVIDIA driver, or use --device cpu",
            "the NVIDIA driver knows CUDA %d.%d, needed is %d.%d", facts->driver / 1000,
            facts->driver % 1000 / 10, needs / 1000, needs % 1000 / 10);
    if (code == cudaErrorNoDevice)
        return error_set(
            err, DM_ERROR_DEVICE, NULL,
            "see whether 'nvidia-smi' lists one and CUDA_VISIBLE_DEVICES allows it, or "
            "use --device cpu",
            "the NVIDIA driver finds no CUDA device");
    return device_check(code, "looking for devices", err);
}

/* Where the library cannot be used, there is a way without. */
static dm_status offer_own(dm_status status, dm_error *err)
{
    size_t used = err ? strlen(err->remedy) : 0;
    if (status == DM_ERROR_DEVICE && err)
        snprintf(err->remedy + used, sizeof err->remedy - used, "%suse --convolutions own%s",
                 used ? ", or " : "", used ? ", which does without" : "");
    return status;
}

static dm_status probe(int device, cuda_facts *facts, dm_error *err)
{
    struct cudaDeviceProp properties;
    *facts = (cuda_facts){0};
    (void)cudaRuntimeGetVersion(&facts->runtime);
    (void)cudaDriverGetVersion(&facts->driver);
    cudaError_t code = cudaGetDeviceCount(&facts->devices);
    if (code != cudaSuccess || facts->devices < 1) {
        (void)cudaGetLastError();
        return explain_count(code == cudaSuccess ? cudaErrorNoDevice : code, facts, err);
    }
    if (device >= facts->devices)
        return error_set(err, DM_ERROR_DEVICE, NULL, "use a lower number",
                         "there is no device cuda:%d; there %s %d, counted from 0", device,
                         facts->devices == 1 ? "is" : "are", facts->devices);
    code = cudaGetDeviceProperties(&properties, device);
    if (code != cudaSuccess)
        return device_check(code, "asking for a device's properties", err);
    snprintf(facts->device, sizeof facts->device, "%s", properties.name);
    facts->capability[0] = properties.major;
    facts->capability[1] = properties.minor;
    facts->memory = properties.totalGlobalMem;
    if (properties.major < CAPABILITY_MAJOR) {
        (void)convolution_library_probe(facts->cudnn, NULL);
        return error_set(err, DM_ERROR_DEVICE, NULL,
                         "use --device cpu, or a device of compute capability 8.0 or higher "
                         "(Ampere, 2020, or newer)",
                         "%s has compute capability %d.%d, needed is at least %d.0",
                         properties.name, properties.major, properties.minor, CAPABILITY_MAJOR);
    }
    dm_status status = convolution_library_probe(facts->cudnn, err);
    facts->lacks_library = status != DM_OK;
    return offer_own(status, err);
}

static dm_status devices_of(const char *name, cuda_devices *devices, dm_error *err)
{
    int count = 0;
    if (strcmp(name, "auto") == 0)
        name = "cuda";
    dm_status status = cuda_devices_parse(name, devices, err);
    if (status == DM_OK && devices->all)
        status = device_check(cudaGetDeviceCount(&count), "looking for devices", err);
    cuda_devices_expand(devices, count);
    if (status == DM_OK && devices->n == 0)
        status = device_check(cudaErrorNoDevice, "looking for devices", err);
    return status;
}

/* Of the device that has least. The first one is the current one afterwards. */
static dm_status free_memory(const char *device, size_t *bytes, dm_error *err)
{
    cuda_devices devices;
    size_t total, free_bytes = 0;
    dm_status status = devices_of(device, &devices, err);
    *bytes = SIZE_MAX;
    for (int i = devices.n - 1; i >= 0 && status == DM_OK; i--) {
        cudaError_t code = cudaSetDevice(devices.number[i]);
        if (code == cudaSuccess)
            code = cudaMemGetInfo(&free_bytes, &total);
        status = device_check(code, "asking for the device's memory", err);
        if (status == DM_OK && free_bytes < *bytes)
            *bytes = free_bytes;
    }
    return status;
}

/* All devices of compute capability 8.0 have all types, and there are no others here. */
static bool supports(const char *device, dm_precision precision)
{
    (void)device;
    return precision == DM_PRECISION_FLOAT32 || precision == DM_PRECISION_TF32 ||
           precision == DM_PRECISION_BF16 || precision == DM_PRECISION_FP16;
}

/* ---- State ---------------------------------------------------------------------------------- */

static const char *describe(void *state)
{
    return ((const cuda_state *)state)->description;
}

static void destroy(void *state)
{
    cuda_state *s = state;
    if (!s)
        return;
    for (size_t i = 0; i < s->n_peers; i++)
        destroy(s->peer[i]);
    (void)cudaSetDevice(s->device);
    device_network_free(s->network);
    tuning_free(s->tuning);
    device_parameters_free(s->parameters);
    library_plans_free(s->plans);
    convolution_library_free(s->library);
    if (s->stream)
        (void)cudaStreamDestroy(s->stream);
    free(s);
}

/* A half of it: the library's weights and workspaces want some too. */
size_t cuda_state_cache(size_t cache_bytes)
{
    return (cache_bytes > 0 ? cache_bytes : CACHE_BYTES) / 2;
}

static dm_status open_device(cuda_state *s, dm_error *err)
{
    struct cudaDeviceProp properties;
    cudaError_t code = cudaSetDevice(s->device);
    if (code == cudaSuccess)
        code = cudaGetDeviceProperties(&properties, s->device);
    if (code == cudaSuccess) {
        code = cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking);
        s->stream = code == cudaSuccess ? s->stream : NULL;
    }
    if (code != cudaSuccess)
        return device_check(code, "opening the device", err);
    snprintf(s->device_name, sizeof s->device_name, "%s", properties.name);
    s->cache_bytes =
        cuda_state_cache(properties.l2CacheSize > 0 ? (size_t)properties.l2CacheSize : 0);
    return DM_OK;
}

static dm_status open_library(cuda_state *s, dm_error *err)
{
    dm_status status = offer_own(convolution_library_open(&s->library, err), err);
    return status == DM_OK ? library_plans_create(s->library, &s->plans, err) : status;
}

void cuda_state_describe(cuda_state *s)
{
    const char *rejected = s->plans ? library_plans_rejections(s->plans) : "";
    const char *untuned = s->tuning_problem, *alone = s->graph_problem;
    const char *wrong = s->network ? device_network_rejections(s->network) : "";
    char several[32] = "", tuned[64] = "";
    unsigned chosen, all;
    if (s->network && s->tuning) {
        device_network_tuned(s->network, &chosen, &all);
        snprintf(tuned, sizeof tuned, ", tuned (%u of %u convolutions)", chosen, all);
    }
    const char *joined = !s->network || !s->plans ? ""
                         : s->tuning              ? tuned
                         : s->network_compiled    ? ", joined"
                                                  : ", not joined";
    if (s->n_peers > 0)
        snprintf(several, sizeof several, "%zu x ", 1 + s->n_peers);
    snprintf(s->description, sizeof s->description, "%s%s; %s%s%s%s%s%s%s%s%s%s", several,
             s->device_name, s->library ? convolution_library_name(s->library) : "own convolutions",
             joined, *rejected ? "; not used: " : "", rejected, *wrong ? "; not used: " : "", wrong,
             *untuned ? "; tuning not used: " : "", untuned,
             *alone ? "; without a CUDA graph: " : "", alone);
}

static dm_status open_state(cuda_state *s, dm_error *err)
{
    dm_status status = open_device(s, err);
    if (status == DM_OK && s->convolutions != DM_CONVOLUTIONS_OWN)
        status = open_library(s, err);
    if (status == DM_OK)
        status = device_parameters_create(s->plan->options.type, &s->parameters, err);
    return status;
}

/* One device's, not opened yet; NULL where memory is short. */
static cuda_state *make_state(const plan *steps, const backend_options *options, int device)
{
    cuda_state *s = array_zero(1, sizeof *s);
    if (!s)
        return NULL;
    s->plan = steps;
    s->device = device;
    s->batch = options->batch;
    s->memory_limit = options->memory;
    s->convolutions = options->convolutions;
    s->tf32 = options->precision == DM_PRECISION_TF32;
    return s;
}

typedef struct opening {
    cuda_state *state;
    pthread_t thread;
    bool has_thread;
    dm_status status;
    dm_error err;
} opening;

static void *open_peer(void *context)
{
    opening *o = context;
    char name[32];
    o->status = open_state(o->state, &o->err);
    snprintf(name, sizeof name, "cuda:%d", o->state->device);
    error_at(&o->err, name);
    return NULL;
}

/* Side by side: each takes some tenths of a second. */
static dm_status open_all(cuda_state *first, dm_error *err)
{
    opening peer[CUDA_DEVICES_MAX - 1] = {0};
    const size_t n = first->n_peers;
    for (size_t i = 0; i < n; i++) {
        opening *o = &peer[i];
        o->state = first->peer[i];
        o->has_thread = pthread_create(&o->thread, NULL, open_peer, o) == 0;
    }
    dm_status status = open_state(first, err);
    for (size_t i = 0; i < n; i++) {
        opening *o = &peer[i];
        if (o->has_thread)
            pthread_join(o->thread, NULL);
        else if (status == DM_OK)
            open_peer(o);
        if (status == DM_OK && o->status != DM_OK) {
            status = o->status;
            if (err)
                *err = o->err;
        }
    }
    return status;
}

static dm_status create(const plan *steps, const backend_options *options, void **state,
                        dm_error *err)
{
    cuda_devices devices;
    cuda_state *s = NULL;
    *state = NULL;
    dm_status status = devices_of(options->device, &devices, err);
    for (int i = 0; i < devices.n && status == DM_OK; i++) {
        cuda_state *made = make_state(steps, options, devices.number[i]);
        if (!made)
            status = error_memory(err, sizeof *made, "the CUDA backend");
        else if (!s)
            s = made;
        else
            s->peer[s->n_peers++] = made;
    }
    if (!s)
        return status;
    if (status == DM_OK)
        status = open_all(s, err);
    if (status == DM_OK) {
        cuda_state_describe(s);
        *state = s;
    } else {
        destroy(s);
    }
    return status;
}

/* Between operations that take seconds to prepare. */
static dm_status report_preparing(void *job, dm_error *err)
{
    return job_report(job, 0, "network", err);
}

dm_status cuda_state_network(cuda_state *s, const predict_job *job, unsigned batch, dm_error *err)
{
    predict_job reported = *job;
    dm_status status = cuda_state_tuning(s, batch, err);
    if (status != DM_OK)
        return status;
    bool compile = !s->tuning && cuda_state_compiles(s, job->tiling->count);
    if (s->network && s->network_batch == batch && s->network_compiled == compile)
        return DM_OK;
    const device_network_options options = {.batch = batch,
                                            .tf32 = s->tf32,
                                            .join_head = true,
                                            .compile = compile,
                                            .cache_bytes = s->cache_bytes,
                                            .plans = s->plans,
                                            .convolutions = s->convolutions,
                                            .tuning = s->tuning,
                                            .parameters = s->parameters,
                                            .stream = s->stream,
                                            .go_on = report_preparing,
                                            .context = &reported};
    device_network_free(s->network);
    s->network = NULL;
    s->graph_problem[0] = '\0';
    status = device_network_create(s->plan, &options, &s->network, err);
    s->network_batch = batch;
    s->network_compiled = compile;
    if (status == DM_OK)
        cuda_state_describe(s);
    return status;
}

static size_t window_voxels(const cuda_state *s)
{
    const size_t *tile = s->plan->tensors[s->plan->input].dim;
    return tile[0] * tile[1] * tile[2];
}

bool cuda_state_compiles(const cuda_state *s, size_t windows)
{
    return windows >= (COMPILE_VOXELS + window_voxels(s) - 1) / window_voxels(s);
}

/* Volumes of few windows have them shared out evenly; others keep one size, so that a cohort needs
 * one network. Above 8 a multiple of 8, which has portions of many sizes. */
unsigned cuda_state_batch(const cuda_state *s, size_t windows)
{
    size_t most = BATCH_VOXELS / window_voxels(s);
    most = most < 1 ? 1 : most > BATCH_MAX ? BATCH_MAX : most;
    if (s->batch > 0)
        most = s->batch;
    if (s->batch_fits > 0 && most > s->batch_fits)
        most = s->batch_fits;
    if (windows == 0)
        windows = 1;
    if (s->batch > 0 || windows >= 4 * most)
        return (unsigned)(most < windows ? most : windows);
    size_t batches = (windows + most - 1) / most, each = (windows + batches - 1) / batches;
    return (unsigned)(each > 8 ? (each + 7) / 8 * 8 : each);
}

/* ---- The module ----------------------------------------------------------------------------- */

const backend cuda_backend = {.name = "cuda",
                              .description = describe,
                              .plan_needs = device_network_plan_needs,
                              .supports = supports,
                              .free_memory = free_memory,
                              .create = create,
                              .run = cuda_run,
                              .destroy = destroy,
                              .tune = cuda_tune,
                              .measure = cuda_measure,
                              .ceilings = cuda_ceilings,
                              .energy = cuda_energy,
                              .batch = cuda_measure_batch};

DM_API dm_status dosemap_cuda_backend(const cuda_module_stamp *stamp, const cuda_module **module,
                                      dm_error *err);

dm_status dosemap_cuda_backend(const cuda_module_stamp *stamp, const cuda_module **module,
                               dm_error *err)
{
    static const cuda_module here = {.backend = &cuda_backend,
#ifdef DOSEMAP_EMULATED_CUDA
                                     .emulated = true,
#endif
                                     .probe = probe,
                                     .account = cuda_account};
    const cuda_module_stamp own = CUDA_MODULE_STAMP;
    *module = NULL;
    if (strcmp(stamp->version, own.version) != 0 ||
        memcmp(stamp->sizes, own.sizes, sizeof own.sizes) != 0)
        return error_set(err, DM_ERROR_DEVICE, NULL, "install program and module of one build",
                         "the CUDA module belongs to another build of dosemap (%s, program %s)",
                         own.version, stamp->version);
    *module = &here;
    return DM_OK;
}
