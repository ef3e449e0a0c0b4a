/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The windows of a slab: which of them are air, then batch after batch through the network into the
 * sums. Two batches are under way at most: while the device works on one, the host looks at the
 * faults of the one before, reports progress, and asks whether to go on. The first batch is
 * launched operation by operation; where more than two follow, the second is recorded as a CUDA
 * graph, which then stands for all others. Where recording fails, they go on as the first one.
 */
#include <math.h>
#include <nvtx3/nvToolsExt.h>

#include "base/error.h"
#include "predict/cuda/cuda_run_parts.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_graph.h"
#include "predict/job_messages.h"

/* Batches from which recording pays. */
#define GRAPH_BATCHES 3
/* Windows per launch of the search for air. */
#define AIR_WINDOWS 4096

/* ---- Faults --------------------------------------------------------------------------------- */

/* What a fault in a window names: counted by windows, of the input then by channels, by voxels of a
 * tile. */
typedef struct fault_place {
    size_t window, channel, voxel;
} fault_place;

static fault_place place_of(const device_job *d, int kind, unsigned long long fault)
{
    const size_t *tile = d->job->tiling->tile;
    size_t voxels = tile[0] * tile[1] * tile[2], image = (size_t)fault / voxels;
    size_t channels = kind == FAULT_INPUT ? d->job->n_channels : 1;
    return (fault_place){image / channels, image % channels, (size_t)fault % voxels};
}

/* Its voxel of the model's grid. */
static void fault_voxel(const device_job *d, const fault_place *place, size_t model[3])
{
    const tiling *t = d->job->tiling;
    size_t v = place->voxel;
    const size_t at[3] = {v % t->tile[0], v / t->tile[0] % t->tile[1], v / t->tile[0] / t->tile[1]};
    tiling_window(t, place->window, model);
    for (int a = 0; a < 3; a++)
        model[a] = model[a] + at[a] - t->pad_before[a];
}

size_t device_job_fault_window(const device_job *d)
{
    return place_of(d, d->fault, d->fault_at).window;
}

dm_status device_job_window_fault(device_job *d, const unsigned long long *faults, dm_error *err)
{
    const predict_job *job = d->job;
    size_t model[3], stored[3];
    const unsigned long long input = faults[FAULT_INPUT], output = faults[FAULT_OUTPUT];
    if (input == NO_FAULT && output == NO_FAULT)
        return DM_OK;
    /* A later window's input may have come into the same batch. */
    bool first = output == NO_FAULT ||
                 place_of(d, FAULT_INPUT, input).window <= place_of(d, FAULT_OUTPUT, output).window;
    d->fault = input != NO_FAULT && first ? FAULT_INPUT : FAULT_OUTPUT;
    d->fault_at = faults[d->fault];
    const fault_place place = place_of(d, d->fault, d->fault_at);
    fault_voxel(d, &place, model);
    if (d->fault == FAULT_OUTPUT)
        return job_not_finite(job, model, job_network_output, err);
    stored_voxel(&job->pet->grid, job->map, model, stored);
    return job_bad_input(job, place.channel, stored, err);
}

dm_status device_job_fault(device_job *d, const unsigned long long *faults, dm_error *err)
{
    const size_t *dim = d->job->map->dim;
    dm_status status = device_job_window_fault(d, faults, err);
    if (status != DM_OK || faults[FAULT_DOSE] == NO_FAULT)
        return status;
    d->fault = FAULT_DOSE;
    d->fault_at = faults[FAULT_DOSE];
    size_t v = (size_t)d->fault_at;
    const size_t at[3] = {v % dim[0], v / dim[0] % dim[1], v / dim[0] / dim[1]};
    return job_not_finite(d->job, at, job_transformed_dose, err);
}

/* ---- Air ------------------------------------------------------------------------------------ */

static dm_status find_maxima(device_job *d, size_t n, dm_error *err)
{
    cudaStream_t stream = d->state->stream;
    cudaError_t code =
        cudaMemcpyAsync(d->d_list, d->list, n * sizeof *d->list, cudaMemcpyHostToDevice, stream);
    for (size_t i = 0; i < n && code == cudaSuccess; i += AIR_WINDOWS)
        code = kernel_window_maximum(&d->gather, d->d_list + i,
                                     (unsigned)(n - i < AIR_WINDOWS ? n - i : AIR_WINDOWS),
                                     d->d_maximum + i, stream);
    if (code == cudaSuccess)
        code = cudaMemcpyAsync(d->maximum, d->d_maximum, n * sizeof *d->maximum,
                               cudaMemcpyDeviceToHost, stream);
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(stream);
    return device_check(code, "looking for windows of air", err);
}

/* Those of rows that another share has too are that one's. */
static void count_windows(device_job *d, const slab *part, size_t kept)
{
    const tiling *t = d->job->tiling;
    size_t row = part->row > d->share.counted ? part->row : d->share.counted;
    size_t plane = t->n[0] * t->n[1], first = row * plane, run = 0;
    if (row >= part->row_end)
        return;
    for (size_t i = 0; i < kept; i++)
        run += d->list[i] >= first;
    d->result->windows_run += run;
    d->result->windows_skipped += (part->row_end - row) * plane - run;
}

/* The windows of a slab that are not air, in ascending order, on the device. */
static dm_status list_windows(device_job *d, const slab *part, dm_error *err)
{
    const tiling *t = d->job->tiling;
    size_t plane = t->n[0] * t->n[1], n = (part->row_end - part->row) * plane, kept = 0;
    dm_status status = DM_OK;
    for (size_t i = 0; i < n; i++)
        d->list[i] = (unsigned)(part->row * plane + i);
    if (!(d->job->skip_air <= -INFINITY)) {
        status = find_maxima(d, n, err);
        for (size_t i = 0; status == DM_OK && i < n; i++)
            if (!(d->maximum[i] < d->job->skip_air))
                d->list[kept++] = d->list[i];
    } else {
        kept = n;
    }
    if (status != DM_OK)
        return status;
    count_windows(d, part, kept);
    d->n_run = kept;
    for (d->n_list = kept; d->n_list % d->batch != 0; d->n_list++)
        d->list[d->n_list] = NO_WINDOW;
    /* The list stays as it is until all its batches have run. */
    return device_check(cudaMemcpyAsync(d->d_list, d->list, d->n_list * sizeof *d->list,
                                        cudaMemcpyHostToDevice, d->state->stream),
                        "copying the list of windows", err);
}

/* ---- Batches -------------------------------------------------------------------------------- */

static cudaError_t fill(void *context, const device_tensor *input, unsigned first, unsigned samples,
                        cudaStream_t stream)
{
    const device_job *d = context;
    return kernel_gather(&d->gather, d->d_windows + first, samples, input,
                         d->d_faults + FAULT_INPUT, stream);
}

static cudaError_t take(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const device_job *d = context;
    return kernel_stitch(&d->tiling, d->d_windows + first, samples, output, &d->sum,
                         d->d_faults + FAULT_OUTPUT, stream);
}

static cudaError_t head(void *context, const device_convolution *convolution,
                        const device_tensor *in, const device_epilogue *epilogue, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const device_job *d = context;
    return kernel_head_stitch(convolution, in, epilogue, &d->tiling, d->d_windows + first, samples,
                              &d->sum, d->d_faults + FAULT_OUTPUT, stream);
}

static dm_status launch_network(void *context, dm_error *err)
{
    device_job *d = context;
    const network_ends ends = {.context = d, .fill = fill, .take = take, .head = head};
    return device_network_launch(d->state->network, &ends, err);
}

/* Leaves d->graph empty where it cannot be done, and says why in the description. */
static void record_graph(device_job *d)
{
    cuda_state *s = d->state;
    d->graph = device_graph_record(s->stream, launch_network, d, s->graph_problem);
    if (!d->graph)
        cuda_state_describe(s);
}

static dm_status launch_batch(device_job *d, size_t batch, dm_error *err)
{
    cudaStream_t stream = d->state->stream;
    dm_status status = device_check(cudaMemcpyAsync(d->d_windows, d->d_list + batch * d->batch,
                                                    d->batch * sizeof *d->d_list,
                                                    cudaMemcpyDeviceToDevice, stream),
                                    "starting a batch", err);
    if (status == DM_OK && d->graph)
        status = device_check(cudaGraphLaunch(d->graph, stream), "running the network", err);
    else if (status == DM_OK)
        status = launch_network(d, err);
    if (status != DM_OK)
        return status;
    cudaError_t code = cudaMemcpyAsync(d->faults + batch % 2 * FAULTS, d->d_faults,
                                       FAULTS * sizeof *d->faults, cudaMemcpyDeviceToHost, stream);
    if (code == cudaSuccess)
        code = cudaEventRecord(d->done[batch % 2], stream);
    return device_check(code, "starting a batch", err);
}

static dm_status await_batch(device_job *d, size_t batch, dm_error *err)
{
    dm_status status =
        device_check(cudaEventSynchronize(d->done[batch % 2]), "running the network", err);
    if (status == DM_OK)
        status = device_job_window_fault(d, d->faults + batch % 2 * FAULTS, err);
    if (status != DM_OK)
        return status;
    d->has_run = true;
    size_t done = (batch + 1) * d->batch < d->n_run ? (batch + 1) * d->batch : d->n_run;
    return job_report(d->job,
                      NETWORK_SHARE * ((double)(d->windows_before + done) / (double)d->windows),
                      "network", err);
}

dm_status device_job_windows(device_job *d, const slab *part, dm_error *err)
{
    nvtxRangePushA("windows");
    dm_status status = list_windows(d, part, err);
    size_t batches = status == DM_OK ? d->n_list / d->batch : 0;
    for (size_t b = 0; b < batches && status == DM_OK; b++) {
        if (b == 1 && batches >= GRAPH_BATCHES)
            record_graph(d);
        status = launch_batch(d, b, err);
        if (status == DM_OK && b > 0)
            status = await_batch(d, b - 1, err);
    }
    if (status == DM_OK && batches > 0)
        status = await_batch(d, batches - 1, err);
    device_graph_free(d->graph); /* the next slab lies elsewhere */
    d->graph = NULL;
    d->windows_before += (part->row_end - part->row) * d->job->tiling->n[0] * d->job->tiling->n[1];
    nvtxRangePop();
    return status;
}
