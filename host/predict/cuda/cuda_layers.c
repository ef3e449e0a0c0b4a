/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/cuda_layers.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "predict/cuda/device_account.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"

#define BATCHES_AHEAD 3

static const char timing[] = "timing the network's operations";

/* The marks of a batch are always the same ones, in the same order. */
typedef struct layer_clock {
    const network_ends *inner;
    cudaGraphExec_t ahead;
    size_t n, used; /* marks of a batch; so far. Until n is known they are counted */
    bool counted;
    cudaEvent_t *events; /* [n] */
    int *what;           /* [n] */
    size_t n_ops;
} layer_clock;

/* ---- Marks ---------------------------------------------------------------------------------- */

static cudaError_t fill(void *context, const device_tensor *input, unsigned first, unsigned samples,
                        cudaStream_t stream)
{
    const network_ends *inner = ((const layer_clock *)context)->inner;
    return inner->fill(inner->context, input, first, samples, stream);
}

static cudaError_t take(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const network_ends *inner = ((const layer_clock *)context)->inner;
    return inner->take(inner->context, output, first, samples, stream);
}

static cudaError_t head(void *context, const device_convolution *convolution,
                        const device_tensor *in, const device_epilogue *epilogue, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const network_ends *inner = ((const layer_clock *)context)->inner;
    return inner->head(inner->context, convolution, in, epilogue, first, samples, stream);
}

static cudaError_t mark(void *context, int what, cudaStream_t stream)
{
    layer_clock *c = context;
    size_t i = c->used++;
    if (!c->counted)
        return cudaSuccess;
    if (i >= c->n)
        return cudaErrorInvalidValue;
    c->what[i] = what;
    return cudaEventRecord(c->events[i], stream);
}

/* Keeps the device busy while the marked batch is enqueued: else short operations would wait for
 * their launch, and that would count as theirs. A graph costs the host next to nothing. */
static dm_status run_ahead(const layer_clock *c, device_network *network, cudaStream_t stream,
                           dm_error *err)
{
    cudaError_t code = cudaSuccess;
    if (!c->ahead)
        return device_network_launch(network, c->inner, err);
    for (int i = 0; i < BATCHES_AHEAD && code == cudaSuccess; i++)
        code = cudaGraphLaunch(c->ahead, stream);
    return device_check(code, timing, err);
}

static dm_status launch(layer_clock *c, device_network *network, cudaStream_t stream, dm_error *err)
{
    const network_ends ends = {
        .context = c, .fill = fill, .take = take, .head = head, .mark = mark};
    c->used = 0;
    dm_status status = c->counted ? run_ahead(c, network, stream, err) : DM_OK;
    if (status == DM_OK)
        status = device_network_launch(network, &ends, err);
    return status == DM_OK ? device_check(cudaStreamSynchronize(stream), timing, err) : status;
}

/* A batch that is not timed tells how many marks there are. */
static dm_status prepare(layer_clock *c, device_network *network, cudaStream_t stream,
                         dm_error *err)
{
    dm_status status = launch(c, network, stream, err);
    if (status != DM_OK)
        return status;
    c->n = c->used;
    c->counted = true;
    c->events = array_zero(c->n + 1, sizeof *c->events);
    c->what = array_zero(c->n + 1, sizeof *c->what);
    if (!c->events || !c->what)
        return error_memory(err, c->n * sizeof *c->events, "times");
    for (size_t i = 0; i < c->n && status == DM_OK; i++)
        status = device_check(cudaEventCreate(&c->events[i]), timing, err);
    return status;
}

static void clear(layer_clock *c)
{
    for (size_t i = 0; c->events && i < c->n; i++)
        if (c->events[i])
            (void)cudaEventDestroy(c->events[i]);
    free(c->events);
    free(c->what);
}

/* ---- Times ---------------------------------------------------------------------------------- */

/* Cutting out, the operations, adding up. */
static size_t layer_of(const layer_clock *c, int what)
{
    return what == NETWORK_FILL ? 0 : what == NETWORK_TAKE ? c->n_ops + 1 : (size_t)what + 1;
}

/* Adds the seconds of one batch to seconds[layer * runs]. */
static dm_status read_times(const layer_clock *c, double *seconds, unsigned runs, dm_error *err)
{
    dm_status status = DM_OK;
    for (size_t i = 0; i + 1 < c->used && status == DM_OK; i++) {
        float milliseconds;
        if (c->what[i] == NETWORK_PORTION_END)
            continue;
        status = device_check(cudaEventElapsedTime(&milliseconds, c->events[i], c->events[i + 1]),
                              timing, err);
        if (status == DM_OK)
            seconds[layer_of(c, c->what[i]) * runs] += 1e-3 * (double)milliseconds;
    }
    return status;
}

static void describe(const device_network *network, size_t layer, measure_layer *to)
{
    const char *name = layer == 0 ? "cut out" : "add up";
    const char *way = layer == 0 ? "kernel_gather" : "kernel_stitch";
    if (layer > 0 && layer <= network->n_ops) {
        name = network->ops[layer - 1].step->name;
        way = network->ops[layer - 1].way;
    }
    snprintf(to->name, sizeof to->name, "%s", name);
    snprintf(to->way, sizeof to->way, "%s", way);
}

static bool is_marked(const layer_clock *c, size_t layer)
{
    for (size_t i = 0; i < c->used; i++)
        if (c->what[i] != NETWORK_PORTION_END && layer_of(c, c->what[i]) == layer)
            return true;
    return false;
}

/* seconds: [layers][runs] of a batch. */
static dm_status report(const device_network *network, const layer_clock *c, double *seconds,
                        unsigned runs, unsigned batch, measure_result *result, dm_error *err)
{
    device_account account;
    dm_status status = device_account_make(network, &account, err);
    if (status != DM_OK)
        return status;
    free(result->layers);
    result->layers = array_zero(c->n_ops + 2, sizeof *result->layers);
    if (!result->layers)
        status = error_memory(err, (c->n_ops + 2) * sizeof *result->layers, "times");
    for (size_t layer = 0; status == DM_OK && layer < c->n_ops + 2; layer++) {
        measure_layer *to = &result->layers[result->n_layers];
        const account_sum *sum = layer == 0          ? &account.fill
                                 : layer <= c->n_ops ? &account.ops[layer - 1]
                                                     : &account.take;
        if (!is_marked(c, layer)) /* joined to the network's last convolution */
            continue;
        result->n_layers++;
        describe(network, layer, to);
        to->seconds = measure_median(seconds + layer * runs, runs) / batch;
        to->bytes = account_bytes(sum) / batch;
        to->flop = sum->flop / batch;
    }
    device_account_clear(&account);
    return status;
}

dm_status cuda_layers(device_network *network, const network_ends *ends, cudaGraphExec_t ahead,
                      cudaStream_t stream, unsigned batch, const measure_request *request,
                      measure_result *result, dm_error *err)
{
    layer_clock c = {.inner = ends, .ahead = ahead, .n_ops = network->n_ops};
    unsigned runs = request->runs;
    double *seconds = array_zero((c.n_ops + 2) * runs + 1, sizeof *seconds);
    dm_status status = seconds ? prepare(&c, network, stream, err)
                               : error_memory(err, c.n_ops * runs * sizeof *seconds, "times");
    for (unsigned i = 0; i < runs && status == DM_OK; i++) {
        status = launch(&c, network, stream, err);
        if (status == DM_OK)
            status = read_times(&c, seconds + i, runs, err);
        if (status == DM_OK && request->go_on)
            status = request->go_on(request->context, (i + 1.0) / runs, err);
    }
    if (status == DM_OK)
        status = report(network, &c, seconds, runs, batch, result, err);
    clear(&c);
    free(seconds);
    return status;
}
