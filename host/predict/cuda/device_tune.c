/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_graph.h"
#include "predict/cuda/device_network_parts.h"
#include "predict/job_messages.h"

#define DOING "timing convolutions"

/* Of the library's candidates, for each of: with what can be joined, alone. */
#define CANDIDATES 10
/* Making one may take seconds, where it is compiled. So many for all of a network, of which each
 * kind of each convolution has its share of what is left; after that the one under way is its last.
 */
#define LIBRARY_SECONDS 180.0

/* A graph holds a way so often that it runs about that long, and runs so often. Where one run is
 * longer than LONG_SECONDS, as in an emulation, it runs once. */
#define GRAPH_SECONDS 1e-3
#define REPEATS_MAX 20
#define RUNS 7
#define LONG_SECONDS 0.02
/* Of a median, relative. */
#define NOISE 0.02

enum { SUMS = 3 };

/* Who is fastest so far, for one convolution. */
typedef struct best_way {
    convolution_way way;
    bool joined;
    library_convolution *made;
    double seconds, own_seconds, library_seconds; /* INFINITY: nobody */
    char text[160];
} best_way;

typedef struct tuner {
    device_network *net;
    const device_tune_options *options;
    device_tuned *tuned;
    cudaEvent_t start, stop;
    double sums[SUMS]; /* seconds of a batch: chosen, own, library */
    double left;       /* of LIBRARY_SECONDS */
    size_t kinds_left; /* that share it */
    /* The convolution under way: */
    const device_op *op;
    double share;
    unsigned samples;
    double writing; /* seconds of writing its input */
    best_way best;
    json_t *tried; /* NULL from a shortage of memory on */
} tuner;

static device_tensor input_of(const tuner *t)
{
    return network_tensor(t->net, t->op->step->in, 0);
}

/* Of the convolution itself: the scratch memory may move. */
static device_tensor output_of(const tuner *t)
{
    return t->op->unfold
               ? scratch_tensor(t->net, &t->op->blocks, t->op->blocks.type, t->op->blocks_at)
               : network_tensor(t->net, t->op->step->out, 0);
}

/* ---- Timing --------------------------------------------------------------------------------- */

/* What is timed: `times` times the writing of the input, as by the operation before, and then the
 * way, unless it is NULL. */
typedef struct trial {
    const tuner *t;
    const device_op *way;
    unsigned times;
} trial;

static dm_status enqueue(void *context, dm_error *err)
{
    const trial *wanted = context;
    const tuner *t = wanted->t;
    const device_epilogue nothing = {0};
    device_tensor in = input_of(t), out = output_of(t);
    dm_status status = DM_OK;
    for (unsigned i = 0; i < wanted->times && status == DM_OK; i++) {
        status = device_check(
            t->net->kernels->pointwise(&in, &in, t->samples, &nothing, t->net->options.stream),
            DOING, err);
        if (status == DM_OK && wanted->way)
            status = convolution_run_choice(t->net, wanted->way, &in, &out, 0, t->samples,
                                            !t->op->unfold, err);
    }
    return status;
}

static dm_status elapsed(const tuner *t, double *seconds, dm_error *err)
{
    float ms = 0;
    cudaError_t code = cudaEventRecord(t->stop, t->net->options.stream);
    if (code == cudaSuccess)
        code = cudaEventSynchronize(t->stop);
    if (code == cudaSuccess)
        code = cudaEventElapsedTime(&ms, t->start, t->stop);
    *seconds = (double)ms * 1e-3;
    return device_check(code, DOING, err);
}

/* Not from a graph: what it loads is there afterwards, and how long it takes is known about. */
static dm_status run_once(const tuner *t, const device_op *way, double *seconds, dm_error *err)
{
    trial once = {t, way, 1};
    dm_status status = device_check(cudaEventRecord(t->start, t->net->options.stream), DOING, err);
    if (status == DM_OK)
        status = enqueue(&once, err);
    return status == DM_OK ? elapsed(t, seconds, err) : status;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of several runs; the first one warms up. One before each keeps the device busy, so that
 * the launch does not count. */
static dm_status time_graph(const tuner *t, cudaGraphExec_t recording, unsigned runs,
                            double *seconds, dm_error *err)
{
    double each[RUNS];
    dm_status status = DM_OK;
    for (unsigned i = 0; i <= runs && status == DM_OK; i++) {
        cudaStream_t stream = t->net->options.stream;
        cudaError_t code = runs > 1 ? cudaGraphLaunch(recording, stream) : cudaSuccess;
        if (code == cudaSuccess)
            code = cudaEventRecord(t->start, stream);
        if (code == cudaSuccess)
            code = cudaGraphLaunch(recording, stream);
        status = device_check(code, DOING, err);
        if (status == DM_OK)
            status = elapsed(t, &each[i == 0 ? 0 : i - 1], err);
    }
    if (status == DM_OK) {
        qsort(each, runs, sizeof *each, compare_doubles);
        *seconds = each[runs / 2];
    }
    return status;
}

/* With the writing of its input. INFINITY if it cannot be recorded: then neither could the network.
 */
static dm_status time_way(const tuner *t, const device_op *way, double *seconds, dm_error *err)
{
    double once;
    *seconds = INFINITY;
    dm_status status = run_once(t, way, &once, err);
    if (status == DM_OK)
        status = run_once(t, way, &once, err);
    if (status != DM_OK)
        return status;
    double fits = once > 0 ? GRAPH_SECONDS / once : REPEATS_MAX;
    unsigned times = fits < 1 ? 1 : fits > REPEATS_MAX ? REPEATS_MAX : (unsigned)fits;
    trial many = {t, way, times};
    cudaGraphExec_t recording = device_graph_record(t->net->options.stream, enqueue, &many, NULL);
    if (!recording)
        return DM_OK;
    status = time_graph(t, recording, once > LONG_SECONDS ? 1 : RUNS, seconds, err);
    *seconds /= times;
    device_graph_free(recording);
    return status;
}

/* ---- Trials --------------------------------------------------------------------------------- */

static dm_status no_memory(dm_error *err)
{
    return error_memory(err, sizeof(tuned_layer), "what tuning finds");
}

static void note(tuner *t, const char *way, double seconds, const char *refused)
{
    json_push(&t->tried, refused ? json_pack("{s:s, s:s}", "way", way, "refused", refused)
                                 : json_pack("{s:s, s:f}", "way", way, "seconds", seconds));
}

static dm_status make_room(const tuner *t, size_t bytes, dm_error *err)
{
    device_network *net = t->net;
    void *memory = NULL;
    if (bytes <= net->scratch_bytes)
        return DM_OK;
    device_free(net->scratch);
    net->scratch = NULL;
    net->scratch_bytes = 0;
    dm_status status = device_alloc(&memory, bytes, DOING, err);
    net->scratch = memory;
    net->scratch_bytes = status == DM_OK ? bytes : 0;
    return status;
}

/* Takes over `made`. */
static void keep_if_faster(tuner *t, const device_op *way, bool joined, library_convolution *made,
                           double seconds)
{
    best_way *b = &t->best;
    double *kind = made ? &b->library_seconds : &b->own_seconds;
    *kind = seconds < *kind ? seconds : *kind;
    /* Kernels of ours come first: what is as fast within the noise does not replace them. */
    double margin = made && !b->made ? 1 - NOISE : 1;
    if (!(seconds < b->seconds * margin)) {
        library_convolution_free(made);
        return;
    }
    library_convolution_free(b->made);
    b->made = made;
    b->way = way->conv.way;
    b->joined = joined;
    b->seconds = seconds;
    snprintf(b->text, sizeof b->text, "%s", way->way);
}

/* What the network's tensors hold is random: checks leave other things there. */
static dm_status fill(const tuner *t, dm_error *err)
{
    element_type type = input_of(t).type;
    return device_check(kernel_fill_random(t->net->arena, t->net->layout.bytes / element_size(type),
                                           type, 1, t->net->options.stream),
                        DOING, err);
}

/* `made`: of a way that is the library's; taken over. What fails there is a refusal, as long as the
 * device works. */
static dm_status try_way(tuner *t, const device_op *way, bool joined, library_convolution *made,
                         dm_error *err)
{
    double seconds = INFINITY;
    dm_error problem = {0};
    dm_status status = make_room(t, way->scratch_bytes, &problem);
    if (status == DM_OK)
        status = fill(t, &problem);
    if (status == DM_OK)
        status = time_way(t, way, &seconds, &problem);
    (void)cudaGetLastError();
    bool alive = cudaStreamSynchronize(t->net->options.stream) == cudaSuccess;
    bool refused = made && alive && (status == DM_ERROR_DEVICE || status == DM_ERROR_MEMORY);
    if (status == DM_OK || refused)
        note(t, way->way, fmax(seconds - t->writing, 1e-9),
             refused              ? problem.what
             : !isfinite(seconds) ? "cannot be recorded into a CUDA graph"
                                  : NULL);
    if (status == DM_OK && isfinite(seconds))
        keep_if_faster(t, way, joined, made, fmax(seconds - t->writing, 1e-9));
    else
        library_convolution_free(made);
    if (status != DM_OK && !refused && err)
        *err = problem;
    return refused ? DM_OK : status;
}

static dm_status go_on(const tuner *t, dm_error *err)
{
    return t->options->go_on ? t->options->go_on(t->options->context, t->share, err) : DM_OK;
}

/* The kernel for any case only where no other one takes it. */
static dm_status try_own(tuner *t, dm_error *err)
{
    static const convolution_way ways[] = {WAY_FIRST, WAY_HALO, WAY_TENSOR_CORE, WAY_ANY};
    device_tensor in = input_of(t), out = output_of(t);
    bool any = false;
    dm_status status = DM_OK;
    for (size_t i = 0; i < sizeof ways / sizeof *ways && status == DM_OK; i++) {
        device_op way = *t->op;
        if ((ways[i] == WAY_ANY && any) ||
            !convolution_use_own(t->net, &way, &in, &out, !t->op->unfold, ways[i]))
            continue;
        any = true;
        status = go_on(t, err);
        if (status == DM_OK)
            status = try_way(t, &way, false, NULL, err);
    }
    return status;
}

/* Candidate n; *last: there are no more. */
static dm_status try_candidate(tuner *t, const device_op *op, const library_convolution_spec *spec,
                               unsigned n, bool joined, bool *last, dm_error *err)
{
    device_tensor in = input_of(t), out = output_of(t);
    device_op way = *op;
    library_convolution *made = NULL;
    char reason[64], name[64];
    dm_status status =
        library_try(t->net, spec, n, &op->conv.conv, joined ? op->bias : NULL, &made, reason, err);
    if (status == DM_ERROR_MEMORY) {
        snprintf(reason, sizeof reason, "memory is short");
        status = DM_OK;
    }
    if (status != DM_OK)
        return status;
    *last = !made && !reason[0];
    if (made) {
        status =
            convolution_use_library(t->net, &way, &in, &out, t->samples, !op->unfold, made, err);
        if (status == DM_OK)
            return try_way(t, &way, joined, made, err);
        library_convolution_free(made);
    } else if (!*last) {
        snprintf(name, sizeof name, "library: number %u%s", n, joined ? ", joined" : "");
        note(t, name, 0, reason);
    }
    return status;
}

static dm_status try_library(tuner *t, bool joined, dm_error *err)
{
    device_tensor in = input_of(t), out = output_of(t);
    device_op op = *t->op;
    library_convolution_spec spec;
    dm_status status = DM_OK;
    double start = job_clock(), share = t->left / (double)t->kinds_left;
    bool last = !t->net->options.plans ||
                !convolution_spec(t->net, &op, &in, &out, t->samples, !op.unfold, joined, &spec);
    for (unsigned n = 0; n < CANDIDATES && !last && status == DM_OK; n++) {
        status = go_on(t, err);
        if (status == DM_OK)
            status = try_candidate(t, &op, &spec, n, joined, &last, err);
        last = last || job_clock() - start > share;
    }
    t->left = fmax(t->left - (job_clock() - start), 0);
    return status;
}

/* ---- One convolution after the other -------------------------------------------------------- */

/* Into the list, whose last place is free. */
static dm_status keep_best(tuner *t, const char *operands, dm_error *err)
{
    const best_way *b = &t->best;
    char *saved = NULL;
    dm_status status = b->made ? library_convolution_save(b->made, &saved, err) : DM_OK;
    if (status != DM_OK)
        return status;
    tuned_layer *layer = &t->tuned->layers[t->tuned->n++];
    *layer = (tuned_layer){.operands = strdup(operands),
                           .way = convolution_way_name(b->way),
                           .joined = b->joined,
                           .engine = b->made ? strdup(library_convolution_describe(b->made)) : NULL,
                           .saved = saved,
                           .seconds = b->seconds};
    return layer->operands && (layer->engine || !b->made) ? DM_OK : no_memory(err);
}

/* JSON has no infinity. */
static json_t *seconds_or_null(double seconds)
{
    return isfinite(seconds) ? json_real(seconds) : json_null();
}

/* NULL when memory is short. */
static json_t *row_of(const tuner *t, const char *operands)
{
    const best_way *b = &t->best;
    return json_pack("{s:o, s:s, s:i, s:s, s:o, s:o, s:o, s:O}", "name",
                     json_string_or_null(t->op->step->name), "operands", operands, "samples",
                     (int)t->samples, "way", b->text, "seconds", seconds_or_null(b->seconds),
                     "own_seconds", seconds_or_null(b->own_seconds), "library_seconds",
                     seconds_or_null(b->library_seconds), "tried", t->tried);
}

/* Of a convolution like this one; NULL if there was none. */
static json_t *find_row(const tuner *t, const char *operands)
{
    size_t i;
    json_t *row;
    json_array_foreach(t->tuned->report, i, row)
    {
        if (strcmp(json_string_value(json_object_get(row, "operands")), operands) == 0)
            return row;
    }
    return NULL;
}

/* The same, for another convolution. NULL when memory is short. */
static json_t *row_like(const tuner *t, const json_t *like)
{
    json_t *row = json_copy((json_t *)(uintptr_t)like);
    json_put(&row, "same_as", json_incref(json_object_get(like, "name")));
    json_put(&row, "name", json_string_or_null(t->op->step->name));
    (void)json_object_del(row, "tried");
    return row;
}

/* Takes over the row. */
static void report(tuner *t, json_t *row)
{
    static const char *const keys[SUMS] = {"seconds", "own_seconds", "library_seconds"};
    for (int i = 0; i < SUMS; i++) {
        const json_t *seconds = json_object_get(row, keys[i]);
        if (!json_is_real(seconds)) /* nobody of that kind */
            seconds = json_object_get(row, keys[0]);
        t->sums[i] += json_real_value(seconds) * t->net->options.batch / t->samples;
    }
    json_push(&t->tuned->report, row);
}

static dm_status tune_ways(tuner *t, dm_error *err)
{
    dm_status status = make_room(t, t->op->scratch_bytes, err);
    if (status == DM_OK)
        status = fill(t, err);
    if (status == DM_OK)
        status = time_way(t, NULL, &t->writing, err);
    t->writing = isfinite(t->writing) ? t->writing : 0;
    if (status == DM_OK)
        status = try_own(t, err);
    if (status == DM_OK)
        status = try_library(t, true, err);
    return status == DM_OK ? try_library(t, false, err) : status;
}

static dm_status tune_convolution(tuner *t, dm_error *err)
{
    char operands[CONVOLUTION_OPERANDS];
    device_tensor in = input_of(t), out = output_of(t);
    if (!convolution_operands(t->net, t->op, &in, &out, t->samples, !t->op->unfold, operands))
        return DM_OK; /* stays with the order of preference */
    const json_t *alike = find_row(t, operands);
    if (alike) {
        report(t, row_like(t, alike));
        return DM_OK;
    }
    t->best = (best_way){.seconds = INFINITY, .own_seconds = INFINITY, .library_seconds = INFINITY};
    t->tried = json_array();
    dm_status status = tune_ways(t, err);
    if (status == DM_OK && isfinite(t->best.seconds))
        status = keep_best(t, operands, err);
    if (status == DM_OK)
        report(t, row_of(t, operands));
    library_convolution_free(t->best.made);
    json_decref(t->tried);
    return status;
}

/* With something to choose. */
static bool is_convolution(const device_op *op)
{
    return op->lowered.kind != LOWERED_GATE && !op->head &&
           (op->step->kind == STEP_CONV || op->step->kind == STEP_CONV_TRANSPOSE);
}

static dm_status tune(tuner *t, dm_error *err)
{
    device_network *net = t->net;
    cudaError_t code = cudaEventCreate(&t->start);
    if (code == cudaSuccess)
        code = cudaEventCreate(&t->stop);
    dm_status status = device_check(code, DOING, err);
    t->left = LIBRARY_SECONDS;
    for (size_t i = 0; i < net->n_ops; i++)
        t->kinds_left += is_convolution(&net->ops[i]) ? 2 : 0;
    for (size_t i = 0; i < net->n_ops && status == DM_OK; i++) {
        if (!is_convolution(&net->ops[i]))
            continue;
        t->op = &net->ops[i];
        t->share = (double)i / (double)net->n_ops;
        t->samples = network_samples(net, i);
        status = tune_convolution(t, err);
        t->kinds_left -= 2;
    }
    if (t->start)
        (void)cudaEventDestroy(t->start);
    if (t->stop)
        (void)cudaEventDestroy(t->stop);
    return status;
}

dm_status device_network_tune(device_network *net, const device_tune_options *options,
                              device_tuned *tuned, dm_error *err)
{
    tuner t = {.net = net, .options = options, .tuned = tuned};
    *tuned = (device_tuned){.layers = array_zero(net->n_ops, sizeof *tuned->layers),
                            .report = json_array()};
    dm_status status = tuned->layers ? tune(&t, err) : no_memory(err);
    library_free_check(net);
    if (status == DM_OK) {
        json_t *layers = tuned->report;
        tuned->report =
            json_pack("{s:o, s:f, s:f, s:f}", "layers", layers, "seconds_per_batch", t.sums[0],
                      "own_seconds_per_batch", t.sums[1], "library_seconds_per_batch", t.sums[2]);
        if (!tuned->report)
            status = no_memory(err);
    }
    if (status != DM_OK)
        device_tuned_clear(tuned);
    return status;
}

void device_tuned_clear(device_tuned *tuned)
{
    for (size_t i = 0; tuned->layers && i < tuned->n; i++) {
        free((char *)(uintptr_t)tuned->layers[i].operands);
        free((char *)(uintptr_t)tuned->layers[i].engine);
        dm_string_free((char *)(uintptr_t)tuned->layers[i].saved);
    }
    free(tuned->layers);
    json_decref(tuned->report);
    *tuned = (device_tuned){0};
}
