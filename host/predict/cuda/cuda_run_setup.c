/* SPDX-License-Identifier: Apache-2.0 */
/* What a job needs on the device before it runs. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/available_memory.h"
#include "base/error.h"
#include "predict/cuda/cuda_run_parts.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_graph.h"

#if DEVICE_MAX_CHANNELS != PREDICT_MAX_CHANNELS
#error "a job's channels have to fit the kernels'"
#endif

/* ---- Memory --------------------------------------------------------------------------------- */

static dm_status allocate(device_job *d, size_t bytes, const char *what, void **made, dm_error *err)
{
    dm_status status = device_alloc(made, bytes, what, err);
    if (status == DM_OK && *made) {
        d->owned[d->n_owned++] = *made;
        d->bytes += bytes;
    }
    return status;
}

static dm_status upload(device_job *d, const void *host, size_t bytes, void **made, dm_error *err)
{
    dm_status status = allocate(d, bytes, "tables", made, err);
    if (status == DM_OK && bytes > 0)
        status = device_copy_up(*made, host, bytes, "copying tables to the device", err);
    return status;
}

/* Indices fit: volumes have less than 2^32 voxels along an axis. */
static dm_status upload_indices(device_job *d, const size_t *from, size_t n,
                                const unsigned **indices, dm_error *err)
{
    unsigned *narrow = array_alloc(n, sizeof *narrow);
    void *made = NULL;
    if (!narrow)
        return error_memory(err, n * sizeof *narrow, "tables");
    for (size_t i = 0; i < n; i++)
        narrow[i] = (unsigned)from[i];
    dm_status status = upload(d, narrow, n * sizeof *narrow, &made, err);
    free(narrow);
    *indices = made;
    return status;
}

static dm_status upload_table(device_job *d, const axis_table *table, device_axis_table *made,
                              dm_error *err)
{
    size_t weights = table->offset[table->n - 1] + table->count[table->n - 1];
    void *weight = NULL;
    dm_status status = upload_indices(d, table->first, table->n, &made->first, err);
    if (status == DM_OK)
        status = upload_indices(d, table->count, table->n, &made->count, err);
    if (status == DM_OK)
        status = upload_indices(d, table->offset, table->n, &made->offset, err);
    if (status == DM_OK)
        status = upload(d, table->weight, weights * sizeof *table->weight, &weight, err);
    made->weight = weight;
    return status;
}

/* ---- Tables --------------------------------------------------------------------------------- */

static dm_status prepare_tables(device_job *d, dm_error *err)
{
    const predict_job *job = d->job;
    dm_status status;
    if (job->map->exact)
        return DM_OK;
    status = resample_to_model(&job->pet->grid, job->map, d->to_model, err);
    if (status == DM_OK)
        status = resample_from_model(&job->pet->grid, job->map, d->from_model, err);
    for (int a = 0; a < 3 && status == DM_OK; a++) {
        status = upload_table(d, &d->to_model[a], &d->gather.table[a], err);
        if (status == DM_OK)
            status = upload_table(d, &d->from_model[a], &d->back[a], err);
    }
    return status;
}

static dm_status prepare_tiling(device_job *d, dm_error *err)
{
    const tiling *t = d->job->tiling;
    device_tiling *made = &d->tiling;
    void *importance = NULL;
    if (t->count >= NO_WINDOW)
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use a larger --tile or less --overlap",
                         "the volume has %zu windows, more than a device counts", t->count);
    dm_status status =
        upload(d, t->importance, t->tile[0] * t->tile[1] * t->tile[2] * sizeof *t->importance,
               &importance, err);
    made->importance = importance;
    for (int a = 0; a < 3 && status == DM_OK; a++) {
        made->volume[a] = t->volume[a];
        made->tile[a] = t->tile[a];
        made->pad_before[a] = t->pad_before[a];
        made->n[a] = (unsigned)t->n[a];
        status = upload_indices(d, t->start[a], t->n[a], &made->start[a], err);
    }
    return status;
}

/* ---- Slabs ---------------------------------------------------------------------------------- */

/* Planes of the PET along the model's z that planes [low, high) of the model's grid need. */
static void pet_range(const device_job *d, size_t low, size_t high, size_t *first, size_t *end)
{
    const grid_map *map = d->job->map;
    const axis_table *table = &d->to_model[2];
    size_t planes = d->job->pet->grid.dim[d->pet_axis];
    if (map->exact) {
        bool flipped = map->axis[2].scale < 0;
        *first = flipped ? planes - high : low;
        *end = flipped ? planes - low : high;
        return;
    }
    *first = planes;
    *end = 0;
    for (size_t z = low; z < high; z++) {
        size_t last = table->first[z] + table->count[z];
        *first = table->first[z] < *first ? table->first[z] : *first;
        *end = last > *end ? last : *end;
    }
}

slab device_job_slab(const device_job *d, size_t row)
{
    const tiling *t = d->job->tiling;
    const device_share *share = &d->share;
    slab s = {.row = row,
              .row_end = share->row_end - row < d->rows ? share->row_end : row + d->rows};
    s.low = window_row_low(t, row);
    s.high = window_row_high(t, s.row_end - 1);
    pet_range(d, s.low, s.high, &s.pet, &s.pet_end);
    s.final = s.row_end == share->row_end ? share->plane_end : window_row_low(t, s.row_end);
    s.final = s.final > share->plane ? s.final : share->plane;
    s.high = s.high < share->plane_end ? s.high : share->plane_end; /* of sums */
    return s;
}

/* The planes that any slab needs, and those from which one plane of the result is resampled. */
static void measure_slabs(device_job *d)
{
    size_t done = d->share.plane;
    d->pet_planes = d->sum_planes = 1;
    for (size_t row = d->share.row; row < d->share.row_end; row += d->rows) {
        slab s = device_job_slab(d, row);
        if (s.pet_end - s.pet > d->pet_planes)
            d->pet_planes = s.pet_end - s.pet;
        if (s.high - done > d->sum_planes)
            d->sum_planes = s.high - done;
        done = s.final;
    }
    for (size_t i = 0; !d->whole && i < d->from_model[2].n; i++)
        if (d->from_model[2].count[i] > d->sum_planes)
            d->sum_planes = d->from_model[2].count[i];
}

static dm_status prepare_volumes(device_job *d, dm_error *err)
{
    const predict_job *job = d->job;
    const size_t *dim = job->map->dim;
    size_t pet = dm_grid_voxels(&job->pet->grid);
    size_t pet_plane = pet / job->pet->grid.dim[d->pet_axis];
    void *made = NULL;
    measure_slabs(d);
    dm_status status = allocate(d, job->n_channels * d->pet_planes * pet_plane * sizeof(float),
                                job->n_channels > 1 ? "the images" : "the PET", &made, err);
    d->d_images = made;
    d->gather.apart = (ptrdiff_t)(d->pet_planes * pet_plane);
    if (status == DM_OK && d->whole) {
        status = allocate(d, pet * sizeof(float), "the dose map", &made, err);
        d->d_dose = d->d_sum = made;
    }
    if (status == DM_OK && !(d->whole && job->map->exact)) {
        status = allocate(d, d->sum_planes * dim[0] * dim[1] * sizeof(float), "the sums of windows",
                          &made, err);
        d->d_sum = made;
    }
    if (status == DM_OK && !d->whole && !job->map->exact) {
        d->own_model = d->model ? NULL : array_alloc(dim[0] * dim[1], dim[2] * sizeof(float));
        d->model = d->model ? d->model : d->own_model;
        if (!d->model)
            status = error_memory(err, dim[0] * dim[1] * dim[2] * sizeof(float),
                                  "the dose on the model's grid");
    }
    return status;
}

/* ---- Windows -------------------------------------------------------------------------------- */

static dm_status prepare_windows(device_job *d, dm_error *err)
{
    const tiling *t = d->job->tiling;
    size_t most = t->n[0] * t->n[1] * (d->rows < t->n[2] ? d->rows : t->n[2]);
    void *made = NULL;
    d->list = array_alloc(most + d->batch, sizeof *d->list);
    d->maximum = array_alloc(most, sizeof *d->maximum);
    if (!d->list || !d->maximum)
        return error_memory(err, most * 2 * sizeof *d->list, "the list of windows");
    dm_status status =
        allocate(d, (most + d->batch) * sizeof *d->list, "the list of windows", &made, err);
    d->d_list = made;
    if (status == DM_OK)
        status = allocate(d, d->batch * sizeof *d->list, "the list of windows", &made, err);
    d->d_windows = made;
    if (status == DM_OK)
        status = allocate(d, most * sizeof *d->maximum, "the maxima of windows", &made, err);
    d->d_maximum = made;
    return status;
}

static dm_status prepare_faults(device_job *d, dm_error *err)
{
    void *made = NULL;
    dm_status status = allocate(d, FAULTS * sizeof *d->d_faults, "faults", &made, err);
    d->d_faults = made;
    if (status != DM_OK)
        return status;
    made = NULL;
    cudaError_t code = cudaMallocHost(&made, 2 * (size_t)FAULTS * sizeof *d->faults);
    d->faults = code == cudaSuccess ? made : NULL;
    /* NO_FAULT has all its bits set. */
    if (code == cudaSuccess)
        code = cudaMemsetAsync(d->d_faults, 0xff, FAULTS * sizeof *d->d_faults, d->state->stream);
    for (int i = 0; i < 2 && code == cudaSuccess; i++) {
        /* Waiting leaves the core to the threads that read and write files. */
        code =
            cudaEventCreateWithFlags(&d->done[i], cudaEventDisableTiming | cudaEventBlockingSync);
        d->done[i] = code == cudaSuccess ? d->done[i] : NULL;
    }
    return device_check(code, "preparing to run", err);
}

/* ---- All of it ------------------------------------------------------------------------------ */

static dm_status check_limit(const device_job *d, dm_error *err)
{
    char used[SIZE_TEXT], limit[SIZE_TEXT];
    size_t bytes = d->bytes + device_network_bytes(d->state->network) +
                   device_parameters_bytes(d->state->parameters);
    d->result->device_bytes = bytes;
    if (d->state->memory_limit == 0 || bytes <= d->state->memory_limit)
        return DM_OK;
    return error_set(err, DM_ERROR_MEMORY, NULL, "raise --memory, or use a smaller --tile",
                     "the prediction needs %s of the device's memory, more than the %s that "
                     "--memory allows",
                     size_text((double)bytes, used),
                     size_text((double)d->state->memory_limit, limit));
}

/* For the next PET of a cohort. Slabs are for PETs that are larger than others. */
static void remember_batch(device_job *d)
{
    if (d->whole && d->batch < cuda_state_batch(d->state, d->job->tiling->count))
        d->state->batch_fits = d->batch;
}

static void prepare_gather(device_job *d)
{
    const predict_job *job = d->job;
    device_gather *g = &d->gather;
    g->exact = job->map->exact;
    g->nan_to_zero = job->nan_to_zero;
    g->channels = (unsigned)job->n_channels;
    g->air_channel = (unsigned)job->pet_channel;
    for (size_t c = 0; c < job->n_channels; c++)
        g->channel[c] = (device_channel){.factor = job->channels[c].factor,
                                         .intensity = *job->channels[c].intensity};
}

dm_status device_job_prepare(device_job *d, dm_error *err)
{
    const predict_job *job = d->job;
    d->pet_axis = job->map->axis[2].source_axis;
    prepare_gather(d);
    dm_status status = cuda_state_network(d->state, job, d->batch, err);
    if (status == DM_OK)
        status = device_transfer_create(d->state->stream, dm_grid_voxels(&job->pet->grid),
                                        job->map->dim[0] * job->map->dim[1], &d->transfer, err);
    if (status == DM_OK)
        status = prepare_tables(d, err);
    if (status == DM_OK)
        status = prepare_tiling(d, err);
    if (status == DM_OK)
        status = prepare_volumes(d, err);
    if (status == DM_OK)
        status = prepare_windows(d, err);
    if (status == DM_OK)
        status = prepare_faults(d, err);
    d->gather.tiling = d->tiling;
    if (status == DM_OK)
        status = check_limit(d, err);
    if (status == DM_OK)
        remember_batch(d);
    return status;
}

void device_job_clear(device_job *d)
{
    /* Whatever is still under way reads and writes what is freed here. */
    if (cudaStreamSynchronize(d->state->stream) != cudaSuccess)
        (void)cudaGetLastError();
    device_graph_free(d->graph);
    device_transfer_clear(&d->transfer);
    for (size_t i = 0; i < d->n_owned; i++)
        device_free(d->owned[i]);
    for (int i = 0; i < 2; i++)
        if (d->done[i])
            (void)cudaEventDestroy(d->done[i]);
    if (d->faults)
        (void)cudaFreeHost(d->faults);
    for (int a = 0; a < 3; a++) {
        axis_table_clear(&d->to_model[a]);
        axis_table_clear(&d->from_model[a]);
    }
    free(d->own_model);
    free(d->list);
    free(d->maximum);
}
