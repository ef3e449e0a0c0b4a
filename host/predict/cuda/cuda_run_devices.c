/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job that several devices share (cuda_shares.h). Each has a thread of its own, which runs the
 * rows of its share in the order of the windows, with the batch that one device alone would have,
 * and brings its planes to the host. So every plane is what one device makes of it, bit by bit, and
 * no device waits for another one. Resampling back and histograms are the first device's, behind
 * all of them.
 *
 * The calling thread watches: it alone reports progress. Who fails ends the others, but for faults
 * of the data: there those go on whose windows come before, so that the fault is named that one
 * device would have named.
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "predict/cuda/cuda_run_parts.h"
#include "predict/cuda/device_check.h"
#include "predict/job_messages.h"

typedef struct device_team device_team;

typedef struct device_member {
    device_team *team;
    cuda_state *state;
    device_share share;
    size_t rows; /* of a slab */
    device_job d;
    predict_job job;
    predict_result result;
    pthread_t thread;
    double done; /* of its part, from 0 to 1 */
    dm_status status;
    dm_error err;
} device_member;

struct device_team {
    const predict_job *job;
    device_member *members;
    size_t n;
    unsigned batch;
    float *model;    /* the dose on the model's grid; NULL for exact maps */
    double reported; /* progress never goes back, also where all begin anew */

    pthread_mutex_t lock; /* for what follows and the members' `done` */
    pthread_cond_t changed;
    unsigned changes;
    size_t running;
    bool stop;             /* all of them */
    device_member *failed; /* who made the others stop */
    size_t fault_window;   /* the first with a fault; SIZE_MAX: none */
};

/* ---- A member's thread ---------------------------------------------------------------------- */

/* Ends the members whose windows all come behind a fault. */
static int report_to_team(void *user, double done, const char *stage)
{
    device_member *m = user;
    device_team *team = m->team;
    const tiling *t = team->job->tiling;
    (void)stage;
    pthread_mutex_lock(&team->lock);
    m->done = done / NETWORK_SHARE;
    bool stop = team->stop || team->fault_window < m->share.row * t->n[0] * t->n[1];
    team->changes++;
    pthread_cond_signal(&team->changed);
    pthread_mutex_unlock(&team->lock);
    return stop;
}

static void leave_team(device_member *m, dm_status status)
{
    device_team *team = m->team;
    pthread_mutex_lock(&team->lock);
    m->status = status;
    if (status == DM_OK) {
        m->done = 1;
    } else if (m->d.fault == FAULT_INPUT || m->d.fault == FAULT_OUTPUT) {
        size_t window = device_job_fault_window(&m->d);
        team->fault_window = window < team->fault_window ? window : team->fault_window;
    } else if (m->d.fault != FAULT_DOSE && !team->stop && status != DM_CANCELLED) {
        team->stop = true;
        team->failed = m;
    }
    team->running--;
    team->changes++;
    pthread_cond_signal(&team->changed);
    pthread_mutex_unlock(&team->lock);
}

static void *run_member(void *context)
{
    device_member *m = context;
    dm_status status = device_check(cudaSetDevice(m->state->device), "opening the device", &m->err);
    if (status == DM_OK)
        status = device_job_run(&m->d, &m->err);
    if (m != m->team->members) /* the first one's buffers serve on */
        device_job_clear(&m->d);
    leave_team(m, status);
    return NULL;
}

/* ---- All of them ---------------------------------------------------------------------------- */

static void prepare_member(device_member *m)
{
    device_team *team = m->team;
    m->job = *team->job;
    m->job.progress = report_to_team;
    m->job.progress_user = m;
    m->done = 0;
    m->err = (dm_error){0};
    m->d = (device_job){.state = m->state,
                        .job = &m->job,
                        .result = &m->result,
                        .batch = team->batch,
                        .share = m->share,
                        .rows = m->rows,
                        .is_shared = true,
                        .fault = NO_FAULT_KIND,
                        .model = team->model};
}

static double share_done(const device_team *team)
{
    double done = 0, all = 0;
    for (size_t i = 0; i < team->n; i++) {
        const device_member *m = &team->members[i];
        double rows = (double)(m->share.row_end - m->share.row);
        done += m->done * rows;
        all += rows;
    }
    return NETWORK_SHARE * (done / all); /* exactly NETWORK_SHARE at the end */
}

/* Until none runs any more. CANCELLED if the caller asked to stop. */
static dm_status watch(device_team *team, dm_error *err)
{
    dm_status status = DM_OK;
    pthread_mutex_lock(&team->lock);
    while (team->running > 0) {
        unsigned seen = team->changes;
        team->reported = fmax(team->reported, share_done(team));
        pthread_mutex_unlock(&team->lock);
        if (status == DM_OK)
            status = job_report(team->job, team->reported, "network", err);
        pthread_mutex_lock(&team->lock);
        team->stop |= status != DM_OK;
        while (team->running > 0 && team->changes == seen)
            pthread_cond_wait(&team->changed, &team->lock);
    }
    pthread_mutex_unlock(&team->lock);
    return status;
}

/* CANCELLED; else DM_OK, and members say what came of them. */
static dm_status run_members(device_team *team, dm_error *err)
{
    size_t started = 0;
    team->stop = false;
    team->failed = NULL;
    team->fault_window = SIZE_MAX;
    team->running = 0;
    for (size_t i = 0; i < team->n; i++)
        prepare_member(&team->members[i]);
    while (started < team->n) {
        device_member *m = &team->members[started];
        pthread_mutex_lock(&team->lock);
        bool has_thread = pthread_create(&m->thread, NULL, run_member, m) == 0;
        team->running += has_thread;
        team->stop |= !has_thread;
        pthread_mutex_unlock(&team->lock);
        if (!has_thread)
            break;
        started++;
    }
    dm_status status = watch(team, err);
    for (size_t i = 0; i < started; i++)
        pthread_join(team->members[i].thread, NULL);
    if (status == DM_OK && started < team->n && !team->failed)
        status = error_set(err, DM_ERROR_MEMORY, NULL, "end other programs, or use one device",
                           "no thread could be started for the device cuda:%d",
                           team->members[started].state->device);
    return status;
}

/* ---- What came of it ------------------------------------------------------------------------ */

/* Would one device have named the fault of `m` before that of `other`? */
static bool comes_before(const device_member *m, const device_member *other)
{
    const device_job *a = &m->d, *b = &other->d;
    if (!other->status || (a->fault == FAULT_DOSE) != (b->fault == FAULT_DOSE))
        return !other->status || b->fault == FAULT_DOSE;
    if (a->fault != FAULT_DOSE) {
        size_t window = device_job_fault_window(a), of_other = device_job_fault_window(b);
        if (window != of_other)
            return window < of_other;
        if (a->fault != b->fault)
            return a->fault < b->fault;
    }
    return a->fault_at < b->fault_at;
}

static dm_status verdict(const device_team *team, dm_error *err)
{
    static const device_member none = {0};
    const device_member *chosen = &none;
    char name[32];
    if (team->failed) {
        *err = team->failed->err;
        snprintf(name, sizeof name, "cuda:%d", team->failed->state->device);
        error_at(err, name);
        return team->failed->status;
    }
    for (size_t i = 0; i < team->n; i++) {
        const device_member *m = &team->members[i];
        if (m->d.fault != NO_FAULT_KIND && comes_before(m, chosen))
            chosen = m;
    }
    if (chosen->status != DM_OK)
        *err = chosen->err;
    return chosen->status;
}

/* The same batch for all, so that it makes no difference who runs a window. */
static bool make_smaller(device_team *team, device_member *m)
{
    job_pieces p = {.batch = team->batch, .rows = m->rows};
    if (!job_pieces_shrink(&p))
        return false;
    team->batch = p.batch;
    m->rows = p.rows;
    return true;
}

static void longer(double *seconds, double other)
{
    *seconds = other > *seconds ? other : *seconds;
}

/* Times of what goes on side by side: the longest. */
static void collect(const device_team *team, predict_result *result)
{
    result->batch = team->batch;
    result->windows_run = result->windows_skipped = result->device_bytes = 0;
    result->seconds_upload = result->seconds_network = result->seconds_finish = 0;
    result->seconds_download = 0;
    result->seconds_resample = team->job->map->exact ? NAN : 0;
    for (size_t i = 0; i < team->n; i++) {
        const predict_result *r = &team->members[i].result;
        result->windows_run += r->windows_run;
        result->windows_skipped += r->windows_skipped;
        result->device_bytes += r->device_bytes;
        longer(&result->seconds_upload, r->seconds_upload);
        longer(&result->seconds_network, r->seconds_network);
        longer(&result->seconds_finish, r->seconds_finish);
        longer(&result->seconds_download, r->seconds_download);
    }
}

/* From planes that are all on the host, on the first device. */
static dm_status finish(device_team *team, predict_result *result, dm_error *err)
{
    device_job *d = &team->members[0].d;
    collect(team, result);
    d->job = team->job;
    d->result = result;
    dm_status status = job_report(team->job, NETWORK_SHARE, "stitch", err);
    if (status == DM_OK)
        status = device_check(cudaSetDevice(d->state->device), "opening the device", err);
    if (status == DM_OK)
        status = device_job_dose(d, err);
    if (status == DM_OK && team->job->labels)
        status = device_job_histograms(d, err);
    return status;
}

/* *again: memory was short before anything ran, and pieces are smaller now. */
static dm_status attempt(device_team *team, predict_result *result, bool *again, dm_error *err)
{
    device_member *first = &team->members[0];
    dm_status status = run_members(team, err);
    *again = status == DM_OK && team->failed && team->failed->status == DM_ERROR_MEMORY &&
             !team->failed->d.has_run && make_smaller(team, team->failed);
    if (status == DM_OK)
        status = verdict(team, err);
    if (status == DM_OK)
        status = finish(team, result, err);
    (void)cudaSetDevice(first->state->device);
    device_job_clear(&first->d);
    return status;
}

/* ---- The job -------------------------------------------------------------------------------- */

static dm_status gather_team(device_team *team, cuda_state *first, const device_share *shares,
                             dm_error *err)
{
    const grid_map *map = team->job->map;
    team->members = array_zero(team->n, sizeof *team->members);
    if (!team->members)
        return error_memory(err, team->n * sizeof *team->members, "the devices' threads");
    team->batch = cuda_state_batch(first, team->job->tiling->count);
    for (size_t i = 0; i < team->n; i++) {
        device_member *m = &team->members[i];
        m->team = team;
        m->state = i == 0 ? first : first->peer[i - 1];
        m->share = shares[i];
        m->rows = shares[i].row_end - shares[i].row;
    }
    if (!map->exact)
        team->model = array_alloc(map->dim[0] * map->dim[1], map->dim[2] * sizeof(float));
    if (!map->exact && !team->model)
        return error_memory(err, map->dim[0] * map->dim[1] * map->dim[2] * sizeof(float),
                            "the dose on the model's grid");
    return DM_OK;
}

dm_status device_team_run(cuda_state *first, const predict_job *job, const device_share *shares,
                          size_t n, predict_result *result, dm_error *err)
{
    device_team team = {
        .job = job, .n = n, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    bool again = false;
    dm_status status = gather_team(&team, first, shares, err);
    unsigned wanted = team.batch;
    for (size_t i = 0; i < n && status == DM_OK; i++)
        team.members[i].result.dose = result->dose;
    if (status == DM_OK)
        do
            status = attempt(&team, result, &again, err);
        while (again);
    if (status == DM_OK && team.batch < wanted) /* for the next PET of a cohort */
        first->batch_fits = team.batch;
    pthread_cond_destroy(&team.changed);
    pthread_mutex_destroy(&team.lock);
    free(team.members);
    free(team.model);
    return status;
}
