/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job on the device, in as large pieces as its memory takes: first smaller batches, down to
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

/* How large the pieces are. */
typedef struct pieces {
    unsigned batch;
    size_t rows; /* of windows in a slab */
} pieces;

static bool make_smaller(pieces *p)
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

static dm_status run_slabs(device_job *d, dm_error *err)
{
    size_t done = 0, high = 0, rows = d->job->tiling->n[2];
    dm_status status = job_report(d->job, 0, "network", err);
    for (size_t row = 0; row < rows && status == DM_OK; row += d->rows) {
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
            status = device_job_finish(d, &part, done, err);
        done = part.final;
        high = part.high;
    }
    return status;
}

/* *started: a batch has run, so that a lack of memory is none of the pieces' size. Until then the
 * driver may still need some: it loads kernels when they are launched first. */
static dm_status attempt(cuda_state *s, const predict_job *job, const pieces *p,
                         predict_result *result, bool *started, dm_error *err)
{
    device_job d = {.state = s, .job = job, .result = result, .batch = p->batch, .rows = p->rows};
    d.whole = p->rows >= job->tiling->n[2];
    result->windows_run = result->windows_skipped = 0;
    result->batch = p->batch;
    result->seconds_upload = result->seconds_network = result->seconds_finish = 0;
    result->seconds_resample = job->map->exact ? NAN : 0;
    result->seconds_download = 0;
    dm_status status = device_job_prepare(&d, err);
    if (status == DM_OK)
        status = run_slabs(&d, err);
    *started = d.has_run;
    if (status == DM_OK)
        status = device_job_dose(&d, err);
    if (status == DM_OK && job->labels)
        status = device_job_histograms(&d, err);
    device_job_clear(&d);
    return status;
}

dm_status cuda_run(void *state, const predict_job *job, predict_result *result, dm_error *err)
{
    cuda_state *s = state;
    pieces p = {.batch = cuda_state_batch(s, job->tiling->count), .rows = job->tiling->n[2]};
    double start = job_clock();
    dm_error problem = {0};
    bool started = false;
    result->dvh = NULL;
    dm_status status = device_check(cudaSetDevice(s->device), "opening the device", &problem);
    if (status == DM_OK)
        do
            status = attempt(s, job, &p, result, &started, &problem);
        while (status == DM_ERROR_MEMORY && !started && make_smaller(&p));
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
