/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cpu/cpu_measure.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/parallel.h"
#include "predict/cpu/convert.h"
#include "predict/job_messages.h"

/* One run of all workers. */
typedef struct cpu_round {
    const plan *steps;
    worker *const *workers;
    const measure_request *request;
    size_t first, windows; /* to be run, by whoever is free */
    float *outputs;        /* [windows] what becomes of them; NULL: nobody asks */
    atomic_size_t next;
    double *layers;   /* [n_steps] worker 0's seconds; NULL: nobody asks */
    dm_error *errors; /* [n] */
} cpu_round;

static size_t elements(const plan *steps, int tensor)
{
    const plan_tensor *t = &steps->tensors[tensor];
    return t->dim[0] * t->dim[1] * t->dim[2] * t->channels;
}

static void fill(const plan *steps, worker *w, const float *window)
{
    size_t n = elements(steps, steps->input);
    void *to = worker_input(w);
    if (steps->tensors[steps->input].type == ELEMENT_F32) {
        memcpy(to, window, n * sizeof *window);
        return;
    }
    uint16_t *narrow = to;
    for (size_t i = 0; i < n; i++)
        narrow[i] = bf16_from_float(window[i]);
}

/* The steps of one window; `seconds` NULL: as a whole. */
static dm_status run_window(const cpu_round *r, worker *w, size_t window, double *seconds,
                            dm_error *err)
{
    const measure_request *q = r->request;
    fill(r->steps, w, q->windows + window % q->n_windows * elements(r->steps, r->steps->input));
    if (!seconds)
        return worker_run(w, err);
    dm_status status = DM_OK;
    for (size_t i = 0; i < r->steps->n_steps && status == DM_OK; i++) {
        double start = job_clock();
        status = worker_run_step(w, i, err);
        seconds[i] += job_clock() - start;
    }
    return status;
}

/* Windows go to whoever is free; where the first worker's steps are timed, one to each. */
static void work(void *context, unsigned part)
{
    cpu_round *r = context;
    worker *w = r->workers[part];
    size_t window = part;
    if (r->layers) {
        (void)run_window(r, w, window, part == 0 ? r->layers : NULL, &r->errors[part]);
        return;
    }
    size_t n = elements(r->steps, r->steps->output);
    while ((window = atomic_fetch_add(&r->next, 1)) < r->windows) {
        if (run_window(r, w, r->first + window, NULL, &r->errors[part]) != DM_OK)
            return;
        if (r->outputs)
            memcpy(r->outputs + window * n, worker_output(w), n * sizeof(float));
    }
}

static dm_status run_round(cpu_round *r, unsigned n, size_t windows, double *seconds, dm_error *err)
{
    r->windows = windows;
    r->next = 0;
    double start = job_clock();
    parallel_run(n, work, r);
    *seconds = job_clock() - start;
    for (unsigned i = 0; i < n; i++)
        if (r->errors[i].status != DM_OK) {
            if (err)
                *err = r->errors[i];
            return r->errors[i].status;
        }
    return DM_OK;
}

/* Warm-up, and how many windows make a run: at least one for each worker. */
static dm_status warm_up(cpu_round *r, unsigned n, size_t *windows, dm_error *err)
{
    const measure_request *q = r->request;
    dm_status status = DM_OK;
    *windows = n;
    for (unsigned i = 0; i < q->warmup && status == DM_OK; i++) {
        double seconds;
        status = run_round(r, n, *windows, &seconds, err);
        if (status == DM_OK)
            *windows = n * measure_calls(q->run_seconds, *windows / n, seconds);
        if (status == DM_OK && q->go_on)
            status = q->go_on(q->context, 0, err);
    }
    return status;
}

static dm_status time_runs(cpu_round *r, unsigned n, size_t windows, measure_result *result,
                           dm_error *err)
{
    const measure_request *q = r->request;
    dm_status status = DM_OK;
    double joules = cpu_energy();
    for (unsigned i = 0; i < q->runs && status == DM_OK; i++) {
        status = run_round(r, n, windows, &result->seconds[i], err);
        if (status == DM_OK && q->go_on)
            status = q->go_on(q->context, (i + 1.0) / q->runs, err);
    }
    result->joules = cpu_energy() - joules;
    return status;
}

/* Every worker is at work while the first one is timed: caches and memory are as they are in use. */
static dm_status time_layers(cpu_round *r, unsigned n, const network *net, measure_result *result,
                             dm_error *err)
{
    const measure_request *q = r->request;
    size_t n_steps = r->steps->n_steps;
    double *times = array_zero(n_steps * q->runs + 1, sizeof *times), *now;
    dm_status status = DM_OK;
    now = array_zero(n_steps + 1, sizeof *now);
    if (!times || !now)
        status = error_memory(err, n_steps * q->runs * sizeof *times, "times");
    r->layers = now;
    for (unsigned i = 0; i < q->runs && status == DM_OK; i++) {
        double seconds;
        memset(now, 0, n_steps * sizeof *now);
        status = run_round(r, n, n, &seconds, err);
        for (size_t s = 0; s < n_steps && status == DM_OK; s++)
            times[s * q->runs + i] = now[s] / n;
        if (status == DM_OK && q->go_on)
            status = q->go_on(q->context, (i + 1.0) / q->runs, err);
    }
    for (size_t s = 0; s < n_steps && status == DM_OK; s++) {
        const plan_step *step = &r->steps->steps[s];
        const char *kernel = network_kernel(net, s);
        measure_layer *layer = &result->layers[s];
        snprintf(layer->name, sizeof layer->name, "%s", step->name);
        snprintf(layer->way, sizeof layer->way, "%s", kernel ? kernel : "own");
        layer->seconds = measure_median(times + s * q->runs, q->runs);
        layer->bytes = step->bytes + step->weight_bytes;
        layer->flop = step->useful_flops;
    }
    r->layers = NULL;
    free(times);
    free(now);
    return status;
}

/* As many windows as there are workers, then the next ones. */
static dm_status run_outputs(cpu_round *r, unsigned n, dm_error *err)
{
    const measure_request *q = r->request;
    dm_status status = DM_OK;
    double seconds;
    for (; q->outputs && r->first < q->n_windows && status == DM_OK; r->first += n) {
        size_t left = q->n_windows - r->first;
        r->outputs = q->outputs + r->first * elements(r->steps, r->steps->output);
        status = run_round(r, n, left < n ? left : n, &seconds, err);
        if (status == DM_OK && q->go_on)
            status = q->go_on(q->context, 0, err);
    }
    r->first = 0;
    r->outputs = NULL;
    return status;
}

dm_status cpu_measure(const plan *steps, const network *net, worker *const *workers, unsigned n,
                      const measure_request *request, measure_result *result, dm_error *err)
{
    cpu_round r = {.steps = steps, .workers = workers, .request = request};
    dm_status status = measure_make(request, request->layers ? steps->n_steps : 0, result, err);
    if (status != DM_OK)
        return status;
    r.errors = array_zero(n, sizeof *r.errors);
    if (!r.errors)
        status = error_memory(err, n * sizeof *r.errors, "workers");
    result->batch = 1;
    result->at_once = n;
    result->bytes = steps->bytes + steps->weight_bytes;
    if (status == DM_OK)
        status = run_outputs(&r, n, err);
    if (status == DM_OK && request->runs > 0)
        status = warm_up(&r, n, &result->windows, err);
    if (status == DM_OK && request->runs > 0)
        status = time_runs(&r, n, result->windows, result, err);
    if (status == DM_OK && request->layers)
        status = time_layers(&r, n, net, result, err);
    free(r.errors);
    if (status != DM_OK)
        measure_clear(result);
    return status;
}
