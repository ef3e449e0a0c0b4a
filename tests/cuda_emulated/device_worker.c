/* SPDX-License-Identifier: Apache-2.0 */
#include "device_worker.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network.h"

enum { BATCH = 6 };

struct network {
    const plan *p;
    cudaStream_t stream;
    convolution_library *library;
    library_plans *plans;
    device_parameters *parameters;
    device_network *device;
};

struct worker {
    const network *net;
    unsigned char *arena;
    void *d_input, *d_output; /* of the sample that is looked at */
    size_t input_bytes, output_bytes;
    unsigned sample;
};

/* ---- Making --------------------------------------------------------------------------------- */

static size_t bytes_of(const plan_tensor *t)
{
    return t->dim[0] * t->dim[1] * t->dim[2] * t->pitch * element_size(t->type);
}

/* Small enough that the finest level runs in several portions; a single step in one. */
static size_t cache_for(const plan *p, unsigned threads)
{
    return threads == 1 || p->n_steps == 1 ? SIZE_MAX : 4 * bytes_of(&p->tensors[p->input]);
}

dm_status network_create(const plan *p, unsigned threads, network **created, dm_error *err)
{
    network *net = calloc(1, sizeof *net);
    *created = NULL;
    net->p = p;
    dm_status status = device_check(cudaStreamCreate(&net->stream), "testing", err);
    if (status == DM_OK)
        status = convolution_library_open(&net->library, err);
    if (status == DM_OK)
        status = library_plans_create(net->library, &net->plans, err);
    if (status == DM_OK)
        status = device_parameters_create(p->options.type, &net->parameters, err);
    const device_network_options options = {.batch = BATCH,
                                            .compile = true,
                                            .cache_bytes = cache_for(p, threads),
                                            .plans = net->plans,
                                            .parameters = net->parameters,
                                            .stream = net->stream};
    if (status == DM_OK)
        status = device_network_create(p, &options, &net->device, err);
    if (status == DM_OK)
        *created = net;
    else
        network_free(net);
    return status;
}

void network_free(network *net)
{
    if (!net)
        return;
    device_network_free(net->device);
    device_parameters_free(net->parameters);
    library_plans_free(net->plans);
    convolution_library_free(net->library);
    if (net->stream)
        (void)cudaStreamDestroy(net->stream);
    free(net);
}

bool network_supports(dm_precision precision)
{
    (void)precision;
    return true;
}

const char *network_kernel(const network *net, size_t step)
{
    return device_network_way(net->device, step);
}

dm_status worker_create(const network *net, worker **created, dm_error *err)
{
    static unsigned next; /* tests run in one thread */
    const plan *p = net->p;
    worker *w = calloc(1, sizeof *w);
    w->net = net;
    w->arena = calloc(1, p->arena_bytes);
    w->input_bytes = bytes_of(&p->tensors[p->input]);
    w->output_bytes = bytes_of(&p->tensors[p->output]);
    w->sample = next++ % BATCH;
    dm_status status = device_alloc(&w->d_input, w->input_bytes, "testing", err);
    if (status == DM_OK)
        status = device_alloc(&w->d_output, w->output_bytes, "testing", err);
    *created = w;
    return status;
}

void worker_free(worker *w)
{
    if (!w)
        return;
    device_free(w->d_input);
    device_free(w->d_output);
    free(w->arena);
    free(w);
}

void *worker_arena(worker *w)
{
    return w->arena;
}

const float *worker_output(const worker *w)
{
    return (const float *)(w->arena + w->net->p->tensors[w->net->p->output].offset);
}

/* ---- Running -------------------------------------------------------------------------------- */

/* Zeros for the other samples: with the right one in their place they would give another result. */
static cudaError_t fill(void *context, const device_tensor *input, unsigned first, unsigned samples,
                        cudaStream_t stream)
{
    const worker *w = context;
    cudaError_t code = cudaMemsetAsync(input->data, 0,
                                       samples * input->sample * element_size(input->type), stream);
    if (code == cudaSuccess && w->sample >= first && w->sample < first + samples)
        code = cudaMemcpyAsync((char *)input->data +
                                   (w->sample - first) * input->sample * element_size(input->type),
                               w->d_input, w->input_bytes, cudaMemcpyDeviceToDevice, stream);
    return code;
}

static cudaError_t take(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const worker *w = context;
    if (w->sample < first || w->sample >= first + samples)
        return cudaSuccess;
    return cudaMemcpyAsync(w->d_output,
                           (char *)output->data +
                               (w->sample - first) * output->sample * element_size(output->type),
                           w->output_bytes, cudaMemcpyDeviceToDevice, stream);
}

static cudaError_t skip(void *context, const device_tensor *tensor, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    (void)context, (void)tensor, (void)first, (void)samples, (void)stream;
    return cudaSuccess;
}

/* Buffers that the step uses, all of them, to the device or back. */
static dm_status copy_tensors(const worker *w, bool up, dm_error *err)
{
    const plan *p = w->net->p;
    dm_status status = DM_OK;
    for (size_t i = 0; i < p->n_tensors && status == DM_OK; i++) {
        const plan_tensor *t = &p->tensors[i];
        device_tensor device = device_network_tensor(w->net->device, (int)i);
        if (!device.data)
            continue;
        char *place = (char *)device.data - t->channel_start * element_size(t->type) +
                      w->sample * device.sample * element_size(t->type);
        unsigned char *host = w->arena + t->offset;
        cudaError_t code = up ? cudaMemcpy(place, host, bytes_of(t), cudaMemcpyHostToDevice)
                              : cudaMemcpy(host, place, bytes_of(t), cudaMemcpyDeviceToHost);
        status = device_check(code, "testing", err);
    }
    return status;
}

static dm_status run_step(worker *w, dm_error *err)
{
    const network_ends ends = {.context = w, .fill = skip, .take = skip};
    dm_status status = copy_tensors(w, true, err);
    if (status == DM_OK)
        status = device_network_launch(w->net->device, &ends, err);
    if (status == DM_OK)
        status = device_check(cudaStreamSynchronize(w->net->stream), "testing", err);
    return status == DM_OK ? copy_tensors(w, false, err) : status;
}

dm_status worker_run(worker *w, dm_error *err)
{
    const plan *p = w->net->p;
    const network_ends ends = {.context = w, .fill = fill, .take = take};
    if (p->n_steps == 1)
        return run_step(w, err);
    dm_status status = device_check(cudaMemcpy(w->d_input, w->arena + p->tensors[p->input].offset,
                                               w->input_bytes, cudaMemcpyHostToDevice),
                                    "testing", err);
    if (status == DM_OK)
        status = device_network_launch(w->net->device, &ends, err);
    if (status == DM_OK)
        status = device_check(cudaStreamSynchronize(w->net->stream), "testing", err);
    if (status == DM_OK)
        status = device_check(cudaMemcpy(w->arena + p->tensors[p->output].offset, w->d_output,
                                         w->output_bytes, cudaMemcpyDeviceToHost),
                              "testing", err);
    return status;
}
