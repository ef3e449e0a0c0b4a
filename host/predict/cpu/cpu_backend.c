/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU backend: every worker takes windows in turn, gathers one, runs the network on its own
 * core, or with several where there are fewer windows than cores, and hands the outputs to the
 * stitcher; the calling thread reports progress. Then the division, the way back to the PET's
 * grid, and the histograms.
 */
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "predict/backend.h"
#include "predict/cpu/cpu_info.h"
#include "predict/cpu/cpu_measure.h"
#include "predict/cpu/network.h"
#include "predict/gather.h"
#include "predict/job_messages.h"
#include "predict/stitch.h"

#define PROGRESS_SECONDS 0.1
typedef struct cpu_state {
    const plan *plan;
    network *network;
    unsigned threads;
    unsigned n_workers;
    worker **workers; /* `n_workers` places, filled as volumes need them */
    char description[256];
} cpu_state;

/* One volume on its way through the workers. */
typedef struct cpu_run {
    const predict_job *job;
    cpu_state *state;
    gather gather;
    stitch *stitch;
    atomic_size_t next, run, skipped;
    atomic_bool cancelled;
    pthread_mutex_t lock; /* of what follows: the failure with the lowest window */
    size_t failed_window;
    dm_error error;
} cpu_run;

typedef struct cpu_thread {
    cpu_run *run;
    worker *worker;
    float *scratch;
    pthread_t thread;
} cpu_thread;

/* ---- State ---------------------------------------------------------------------------------- */

static const char *describe(void *state)
{
    return ((const cpu_state *)state)->description;
}

static void destroy(void *state)
{
    cpu_state *s = state;
    if (!s)
        return;
    for (unsigned i = 0; s->workers && i < s->n_workers; i++)
        worker_free(s->workers[i]);
    free(s->workers);
    network_free(s->network);
    free(s);
}

/* The device and the batch mean nothing here: there is one CPU, which runs one window at a time
 * (predict/cpu/network.h). */
static dm_status create(const plan *steps, const backend_options *options, void **state,
                        dm_error *err)
{
    dm_status status;
    cpu_state *s = array_zero(1, sizeof *s);
    *state = NULL;
    if (!s)
        return error_memory(err, sizeof *s, "the CPU backend");
    s->plan = steps;
    s->threads = options->threads;
    s->n_workers = options->at_once;
    s->workers = array_zero(s->n_workers, sizeof *s->workers);
    if (!s->workers) {
        status = error_memory(err, s->n_workers * sizeof *s->workers, "workers");
        goto done;
    }
    char name[128];
    snprintf(s->description, sizeof s->description, "%s; %s", cpu_name(name, sizeof name),
             network_library());
    status = network_create(steps, options->threads / options->at_once, &s->network, err);
done:
    if (status == DM_OK)
        *state = s;
    else
        destroy(s);
    return status;
}

/* ---- Workers -------------------------------------------------------------------------------- */

/* Keeps the failure of the lowest window, so that the message does not depend on who was first. */
static void fail(cpu_run *run, size_t window, const dm_error *error)
{
    pthread_mutex_lock(&run->lock);
    if (run->error.status == DM_OK || window < run->failed_window) {
        run->failed_window = window;
        run->error = *error;
    }
    pthread_mutex_unlock(&run->lock);
    stitch_stop(run->stitch);
}

static void fail_input(cpu_run *run, size_t window, size_t channel, const size_t bad[3])
{
    dm_error error = {0};
    job_bad_input(run->job, channel, bad, &error);
    fail(run, window, &error);
}

/* Gathers the next window that is not air into *window; false at the end or after a failure. */
static bool next_window(cpu_thread *t, size_t *window)
{
    cpu_run *run = t->run;
    size_t channel, bad[3];
    while ((*window = atomic_fetch_add(&run->next, 1)) < run->job->tiling->count) {
        switch (gather_window(&run->gather, *window, t->scratch, worker_input(t->worker), &channel,
                              bad)) {
        case GATHER_FILLED:
            return true;
        case GATHER_NOT_FINITE:
            fail_input(run, *window, channel, bad);
            return false;
        case GATHER_AIR:
            atomic_fetch_add(&run->skipped, 1);
            if (!stitch_skip(run->stitch, *window))
                return false;
        }
    }
    return false;
}

/* All steps of a window. A window can be the whole volume and take long: who cancels does not wait
 * for its end. After a failure the others' windows go on: theirs may be the one to be named. */
static dm_status run_window(cpu_thread *t, dm_error *err)
{
    dm_status status = DM_OK;
    for (size_t i = 0; status == DM_OK && i < t->run->state->plan->n_steps; i++) {
        if (atomic_load(&t->run->cancelled))
            return DM_CANCELLED;
        status = worker_run_step(t->worker, i, err);
    }
    return status;
}

static void *work(void *argument)
{
    cpu_thread *t = argument;
    cpu_run *run = t->run;
    size_t window;
    while (next_window(t, &window)) {
        dm_error error = {0};
        dm_status status = run_window(t, &error);
        if (status == DM_CANCELLED)
            break;
        if (status != DM_OK) {
            fail(run, window, &error);
            break;
        }
        atomic_fetch_add(&run->run, 1);
        if (!stitch_add(run->stitch, window, worker_output(t->worker)))
            break;
    }
    return NULL;
}

/* Starts up to n threads; signals stay with the caller's. */
static dm_status start_threads(cpu_thread *threads, unsigned n, unsigned *started, dm_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (*started = 0; *started < n; ++*started)
        if (pthread_create(&threads[*started].thread, NULL, work, &threads[*started]) != 0)
            break;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (*started < n)
        return error_set(err, DM_ERROR_DEVICE, NULL, "use fewer with --threads",
                         "thread %u of %u could not be started", *started + 1, n);
    return DM_OK;
}

static void free_threads(cpu_thread *threads, unsigned n)
{
    for (unsigned i = 0; threads && i < n; i++)
        free(threads[i].scratch);
    free(threads);
}

static dm_status make_threads(cpu_run *run, unsigned n, cpu_thread **threads, dm_error *err)
{
    cpu_state *s = run->state;
    dm_status status = DM_OK;
    *threads = array_zero(n, sizeof **threads);
    if (!*threads)
        return error_memory(err, n * sizeof **threads, "threads");
    for (unsigned i = 0; i < n && status == DM_OK; i++) {
        cpu_thread *t = &(*threads)[i];
        if (!s->workers[i])
            status = worker_create(s->network, &s->workers[i], err);
        t->run = run;
        t->worker = s->workers[i];
        t->scratch = array_alloc(run->gather.scratch, sizeof *t->scratch);
        if (status == DM_OK && !t->scratch)
            status = error_memory(err, run->gather.scratch * sizeof *t->scratch, "windows");
    }
    if (status != DM_OK) {
        free_threads(*threads, n);
        *threads = NULL;
    }
    return status;
}

/* ---- Stages --------------------------------------------------------------------------------- */

/* What became of the workers, after they have ended. */
static dm_status outcome(cpu_run *run, dm_status status, dm_error *err)
{
    size_t bad[3];
    if (status != DM_OK)
        return status;
    if (run->error.status != DM_OK) {
        if (err)
            *err = run->error;
        return run->error.status;
    }
    if (stitch_not_finite(run->stitch, bad))
        return job_not_finite(run->job, bad, job_network_output, err);
    return DM_OK;
}

static dm_status run_windows(cpu_run *run, dm_error *err)
{
    const predict_job *job = run->job;
    unsigned n = run->state->n_workers, started = 0;
    cpu_thread *threads = NULL;
    if (n > job->tiling->count)
        n = (unsigned)job->tiling->count;
    dm_status status = make_threads(run, n, &threads, err);
    if (status == DM_OK)
        status = job_report(job, 0, "network", err);
    if (status == DM_OK)
        status = start_threads(threads, n, &started, err);
    size_t done = 0;
    while (status == DM_OK && !stitch_wait(run->stitch, PROGRESS_SECONDS, &done))
        status = job_report(job, NETWORK_SHARE * (double)done / (double)job->tiling->count,
                            "network", err);
    if (status != DM_OK) {
        atomic_store(&run->cancelled, true);
        stitch_stop(run->stitch);
    }
    for (unsigned i = 0; i < started; i++)
        pthread_join(threads[i].thread, NULL);
    free_threads(threads, n);
    return outcome(run, status, err);
}

typedef struct back_job {
    axis_table table[3];
    strided source, target;
    unsigned parts;
    size_t scratch; /* floats per part */
    float *floats;
} back_job;

/* A slab of the PET's grid. */
static void resample_part(void *context, unsigned part)
{
    const back_job *job = context;
    size_t planes = job->target.dim[2];
    const size_t start[3] = {0, 0, planes * part / job->parts};
    strided slab = job->target;
    slab.data += (ptrdiff_t)start[2] * slab.stride[2];
    slab.dim[2] = planes * (part + 1) / job->parts - start[2];
    resample_box(job->table, &job->source, start, &slab, false, job->floats + part * job->scratch);
}

/* From the model's grid to the PET's. */
static dm_status resample_back(const predict_job *job, float *model, dm_volume *dose,
                               unsigned threads, dm_error *err)
{
    back_job back = {.source = strided_dense(job->map->dim, model),
                     .target = strided_permuted(&dose->grid, job->map, dose->data)};
    dm_status status = resample_from_model(&dose->grid, job->map, back.table, err);
    if (status != DM_OK)
        return status;
    size_t planes = back.target.dim[2];
    back.parts = threads < planes ? threads : (unsigned)planes;
    back.scratch = resample_scratch(back.table, back.target.dim);
    back.floats = array_alloc(back.parts, back.scratch * sizeof *back.floats);
    if (back.floats)
        parallel_run(back.parts, resample_part, &back);
    else
        status = error_memory(err, back.parts * back.scratch * sizeof *back.floats, "resampling");
    free(back.floats);
    for (int a = 0; a < 3; a++)
        axis_table_clear(&back.table[a]);
    return status;
}

/* Windows, division, and back onto the PET's grid. `sum` holds zeros. */
static dm_status predict_dose(cpu_run *run, strided sum, predict_result *result, dm_error *err)
{
    const predict_job *job = run->job;
    size_t bad[3];
    size_t slots = (size_t)STITCH_SLOTS_PER_WORKER * run->state->n_workers;
    dm_status status = stitch_create(job->tiling, sum, slots, &run->stitch, err);
    if (status != DM_OK)
        return status;
    double start = job_clock();
    status = run_windows(run, err);
    result->seconds_network = job_clock() - start;
    result->windows_run = run->run;
    result->windows_skipped = run->skipped;
    result->batch = 1;
    stitch_free(run->stitch);
    if (status == DM_OK)
        status = job_report(job, NETWORK_SHARE, "stitch", err);
    if (status != DM_OK)
        return status;
    start = job_clock();
    status = stitch_finish(job->tiling, sum, job->output_intensity, job->output_factor,
                           run->state->threads, bad, err);
    result->seconds_finish = job_clock() - start;
    if (status == DM_ERROR_VALUE)
        return job_not_finite(job, bad, job_transformed_dose, err);
    if (status == DM_OK && !job->map->exact) {
        start = job_clock();
        status = resample_back(job, sum.data, result->dose, run->state->threads, err);
        result->seconds_resample = job_clock() - start;
    }
    return status;
}

static dm_status run(void *state, const predict_job *job, predict_result *result, dm_error *err)
{
    cpu_state *s = state;
    cpu_run r = {.job = job, .state = s};
    float *model = NULL;
    strided sum;
    double start = job_clock();
    result->dvh = NULL;
    pthread_mutex_init(&r.lock, NULL);
    dm_status status = gather_make(job, s->plan->options.type, &r.gather, err);
    if (status != DM_OK)
        goto done;
    if (job->map->exact) {
        /* Windows are added straight into the dose map, through permuted and flipped strides. */
        sum = strided_exact(&result->dose->grid, job->map, result->dose->data);
    } else {
        size_t voxels = job->map->dim[0] * job->map->dim[1] * job->map->dim[2];
        model = array_zero(voxels, sizeof *model);
        if (!model) {
            status = error_memory(err, voxels * sizeof *model, "the dose on the model's grid");
            goto done;
        }
        sum = strided_dense(job->map->dim, model);
    }
    status = predict_dose(&r, sum, result, err);
    if (status == DM_OK && job->labels) {
        double begun = job_clock();
        status = job_report(job, 0.99, "dvh", err);
        if (status == DM_OK)
            status =
                dm_dvh_compute(result->dose, job->labels, &job->dvh_options, &result->dvh, err);
        result->seconds_dvh = job_clock() - begun;
    }
    if (status == DM_OK)
        status = job_report(job, 1, "done", err);
done:
    if (status != DM_OK) {
        dm_dvh_free(result->dvh);
        result->dvh = NULL;
    }
    gather_clear(&r.gather);
    free(model);
    pthread_mutex_destroy(&r.lock);
    result->seconds_total = job_clock() - start;
    return status;
}

static bool supports(const char *device, dm_precision precision)
{
    (void)device;
    return network_supports(precision);
}

/* ---- Benchmark ------------------------------------------------------------------------------ */

static dm_status measure(void *state, const measure_request *request, measure_result *result,
                         dm_error *err)
{
    cpu_state *s = state;
    dm_status status = DM_OK;
    for (unsigned i = 0; i < s->n_workers && status == DM_OK; i++)
        if (!s->workers[i])
            status = worker_create(s->network, &s->workers[i], err);
    if (status == DM_OK)
        status = cpu_measure(s->plan, s->network, s->workers, s->n_workers, request, result, err);
    return status;
}

static dm_status ceilings(void *state, measured_ceilings *found, dm_error *err)
{
    const cpu_state *s = state;
    return cpu_ceilings(s->plan->options.type, s->threads, found, err);
}

static double energy(void *state)
{
    (void)state;
    return cpu_energy();
}

const backend cpu_backend = {.name = "cpu",
                             .description = describe,
                             .plan_needs = network_plan_needs,
                             .supports = supports,
                             .create = create,
                             .run = run,
                             .destroy = destroy,
                             .measure = measure,
                             .ceilings = ceilings,
                             .energy = energy};
