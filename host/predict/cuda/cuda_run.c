/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job on one device, in as large pieces as its memory takes: first smaller batches, down to
 * those that still keep the device busy, then slabs of the volume, then batches of one window.
 * Every piece computes the same values; vendors' convolutions may round differently for other
 * batches.
 */
#include <math.h>

#include "base/error.h"
#include "predict/cuda/cuda_run_parts.h"
#include "predict/cuda/device_check.h"
#include "predict/job_messages.h"

/* Smaller ones leave most of a device idle; slabs cost a few copies. */
#define BATCH_KEPT 8

bool job_pieces_shrink(job_pieces *p)
{
    if (p->batch > BATCH_KEPT)
        p->batch = p->batch / 2 > BATCH_KEPT ? p->batch / 2 : BATCH_KEPT;
    else if (p->rows > 1)
        p->rows = (p->rows + 1) / 2;
    else if (p->batch > 1)
        p->batch /= 2;
    else
        return false;
    return true;
}

/* A dose that is not finite is remembered until all windows have run, so that a fault of a window is
 * named first, however large slabs are. */
static dm_status finish_slab(device_job *d, const slab *part, size_t done, dm_error *dose_fault,
                             dm_error *err)
{
    dm_error problem = {0};
    if (d->fault == FAULT_DOSE)
        return DM_OK;
    dm_status status = device_job_finish(d, part, done, &problem);
    if (status == DM_OK)
        return DM_OK;
    if (d->fault == FAULT_DOSE) {
        *dose_fault = problem;
        return DM_OK;
    }
    if (err)
        *err = problem;
    return status;
}

static dm_status run_slabs(device_job *d, dm_error *err)
{
    const size_t rows = d->share.row_end;
    size_t done = d->share.plane, high = done;
    dm_error dose_fault = {0};
    dm_status status = job_report(d->job, 0, "network", err);
    for (size_t row = d->share.row; row < rows && status == DM_OK; row += d->rows) {
        slab part = device_job_slab(d, row);
        double start = job_clock();
        status = device_job_upload(d, &part, err);
        if (status == DM_OK)
            status = device_job_lap(d, &start, &d->result->seconds_upload, err);
        if (status == DM_OK)
            status = device_job_begin_sum(d, &part, done, high, err);
        if (status == DM_OK)
            status = device_job_windows(d, &part, err);
        if (status == DM_OK)
            status = device_job_lap(d, &start, &d->result->seconds_network, err);
        if (status == DM_OK && row + d->rows >= rows)
            status = job_report(d->job, NETWORK_SHARE, "stitch", err);
        if (status == DM_OK)
            status = finish_slab(d, &part, done, &dose_fault, err);
        done = part.final;
        high = part.high;
    }
    if (status != DM_OK || d->fault != FAULT_DOSE)
        return status;
    if (err)
        *err = dose_fault;
    return dose_fault.status;
}

dm_status device_job_run(device_job *d, dm_error *err)
{
    const tiling *t = d->job->tiling;
    predict_result *result = d->result;
    d->windows = (d->share.row_end - d->share.row) * t->n[0] * t->n[1];
    d->fault = NO_FAULT_KIND;
    result->windows_run = result->windows_skipped = 0;
    result->batch = d->batch;
    result->seconds_upload = result->seconds_network = result->seconds_finish = 0;
    result->seconds_resample = d->job->map->exact ? NAN : 0;
    result->seconds_download = 0;
    dm_status status = device_job_prepare(d, err);
    return status == DM_OK ? run_slabs(d, err) : status;
}

/* *started: a batch has run, so that a lack of memory is none of the pieces' size. Until then the
 * driver may still need some: it loads kernels when they are launched first. */
static dm_status attempt(cuda_state *s, const predict_job *job, const job_pieces *p,
                         predict_result *result, bool *started, dm_error *err)
{
    device_job d = {.state = s,
                    .job = job,
                    .result = result,
                    .batch = p->batch,
                    .share = cuda_share_whole(job->tiling),
                    .rows = p->rows,
                    .whole = p->rows >= job->tiling->n[2]};
    dm_status status = device_job_run(&d, err);
    *started = d.has_run;
    if (status == DM_OK)
        status = device_job_dose(&d, err);
    if (status == DM_OK && job->labels)
        status = device_job_histograms(&d, err);
    device_job_clear(&d);
    return status;
}

static dm_status run_alone(cuda_state *s, const predict_job *job, predict_result *result,
                           dm_error *err)
{
    job_pieces p = {.batch = cuda_state_batch(s, job->tiling->count), .rows = job->tiling->n[2]};
    bool started = false;
    dm_status status = device_check(cudaSetDevice(s->device), "opening the device", err);
    if (status == DM_OK)
        do
            status = attempt(s, job, &p, result, &started, err);
        while (status == DM_ERROR_MEMORY && !started && job_pieces_shrink(&p));
    return status;
}

dm_status cuda_run(void *state, const predict_job *job, predict_result *result, dm_error *err)
{
    cuda_state *s = state;
    device_share shares[CUDA_DEVICES_MAX];
    size_t n = cuda_shares(job->tiling, 1 + s->n_peers, shares);
    double start = job_clock();
    dm_error problem = {0};
    result->dvh = NULL;
    dm_status status = n > 1 ? device_team_run(s, job, shares, n, result, &problem)
                             : run_alone(s, job, result, &problem);
    if (status == DM_OK)
        status = job_report(job, 1, "done", &problem);
    if (status != DM_OK) {
        dm_dvh_free(result->dvh);
        result->dvh = NULL;
        if (err)
            *err = problem;
    }
    result->tuning_file = s->tuning ? tuning_path(s->tuning) : NULL;
    result->tuning_xxh64 = s->tuning ? tuning_checksum(s->tuning) : NULL;
    result->seconds_total = job_clock() - start;
    return status;
}
