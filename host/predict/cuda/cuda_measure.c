/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/cuda_measure.h"

#include <stdlib.h>

#include "base/error.h"
#include "predict/cuda/cuda_layers.h"
#include "predict/cuda/device_account.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_graph.h"
#include "predict/job_messages.h"

static const char running[] = "measuring the network";

enum { OWNED = 8 };

typedef struct network_measure {
    cuda_state *state;
    const measure_request *request;
    unsigned batch;
    size_t window, output; /* floats of one */
    void *owned[OWNED];
    size_t n_owned, bytes;
    device_gather gather; /* channels 0: there are more than it takes */
    device_tiling stitched;
    device_volume sum;
    float *d_windows, *d_outputs; /* [batch] dense */
    unsigned *d_list;             /* the windows of a batch: 0, 1, 2, ... */
    unsigned long long *d_fault;
    cudaEvent_t begin, end;
    cudaGraphExec_t graph;
    network_ends ends;
} network_measure;

/* ---- The network's ends --------------------------------------------------------------------- */

static cudaError_t fill(void *context, const device_tensor *input, unsigned first, unsigned samples,
                        cudaStream_t stream)
{
    const network_measure *m = context;
    const device_epilogue nothing = {0};
    device_tensor windows = *input;
    if (m->gather.channels > 0)
        return kernel_gather(&m->gather, m->d_list + first, samples, input, m->d_fault, stream);
    windows.data = m->d_windows + first * m->window;
    windows.type = ELEMENT_F32;
    windows.sample = m->window;
    windows.pitch = input->channels;
    return kernel_pointwise(&windows, input, samples, &nothing, stream);
}

static cudaError_t take(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const network_measure *m = context;
    if (output->channels == 1)
        return kernel_stitch(&m->stitched, m->d_list + first, samples, output, &m->sum,
                             m->d_fault + 1, stream);
    return cudaMemcpyAsync(m->d_outputs + first * m->output, output->data,
                           samples * m->output * sizeof(float), cudaMemcpyDeviceToDevice, stream);
}

static cudaError_t head(void *context, const device_convolution *convolution,
                        const device_tensor *in, const device_epilogue *epilogue, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const network_measure *m = context;
    return kernel_head_stitch(convolution, in, epilogue, &m->stitched, m->d_list + first, samples,
                              &m->sum, m->d_fault + 1, stream);
}

/* ---- Memory --------------------------------------------------------------------------------- */

static dm_status take_memory(network_measure *m, const void *host, size_t bytes, void **made,
                             dm_error *err)
{
    dm_status status = device_alloc(made, bytes, "windows", err);
    if (status != DM_OK)
        return status;
    m->owned[m->n_owned++] = *made;
    m->bytes += bytes;
    return host ? device_copy_up(*made, host, bytes, "copying windows to the device", err) : DM_OK;
}

/* Windows of dim (z, y, x) voxels, one above the other; importance 1 where it is asked for. */
static dm_status make_tiling(network_measure *m, const size_t dim[3], bool importance,
                             device_tiling *t, dm_error *err)
{
    size_t voxels = dim[0] * dim[1] * dim[2], most = voxels > m->batch ? voxels : m->batch;
    void *made = NULL;
    union {
        float importance;
        unsigned start;
    } *host = array_alloc(most, sizeof *host);
    if (!host)
        return error_memory(err, most * sizeof *host, "tables");
    for (size_t i = 0; i < voxels; i++)
        host[i].importance = 1;
    dm_status status = importance ? take_memory(m, host, voxels * sizeof *host, &made, err) : DM_OK;
    t->importance = made;
    for (unsigned i = 0; i < m->batch; i++)
        host[i].start = i * (unsigned)dim[0];
    if (status == DM_OK)
        status = take_memory(m, host, m->batch * sizeof *host, &made, err);
    for (int a = 0; a < 3; a++) { /* the first one is 0, for x and y as well */
        t->start[a] = made;
        t->tile[a] = t->volume[a] = dim[2 - a];
        t->n[a] = 1;
    }
    t->n[2] = m->batch;
    t->volume[2] *= m->batch;
    free(host);
    return status;
}

static dm_status make_list(network_measure *m, dm_error *err)
{
    unsigned *list = array_alloc(m->batch, sizeof *list);
    void *made = NULL;
    if (!list)
        return error_memory(err, m->batch * sizeof *list, "the list of windows");
    for (unsigned i = 0; i < m->batch; i++)
        list[i] = i;
    dm_status status = take_memory(m, list, m->batch * sizeof *list, &made, err);
    m->d_list = made;
    free(list);
    return status;
}

/* Windows of so many channels, dense, one above the other. */
static device_volume stacked(const device_tiling *t, float *data, size_t channels)
{
    ptrdiff_t x = (ptrdiff_t)channels, y = x * (ptrdiff_t)t->tile[0];
    return (device_volume){.data = data,
                           .stride = {x, y, y * (ptrdiff_t)t->tile[1]},
                           .dim = {t->volume[0], t->volume[1], t->volume[2]}};
}

static dm_status make_volumes(network_measure *m, size_t channels, dm_error *err)
{
    void *made = NULL;
    dm_status status = take_memory(m, NULL, m->batch * m->window * sizeof(float), &made, err);
    m->d_windows = made;
    m->gather.source = stacked(&m->gather.tiling, m->d_windows, channels);
    m->gather.apart = 1;
    if (status == DM_OK)
        status = take_memory(m, NULL, m->batch * m->output * sizeof(float), &made, err);
    m->d_outputs = made;
    m->sum = stacked(&m->stitched, m->d_outputs, 1);
    if (status == DM_OK)
        status = take_memory(m, NULL, 2 * sizeof *m->d_fault, &made, err);
    m->d_fault = made;
    return status;
}

static size_t tensor_floats(const plan_tensor *t)
{
    return t->dim[0] * t->dim[1] * t->dim[2] * t->channels;
}

static dm_status prepare_memory(network_measure *m, dm_error *err)
{
    const plan *p = m->state->plan;
    const plan_tensor *in = &p->tensors[p->input], *out = &p->tensors[p->output];
    m->window = tensor_floats(in);
    m->output = tensor_floats(out);
    m->gather.exact = true;
    m->gather.channels = in->channels <= DEVICE_MAX_CHANNELS ? (unsigned)in->channels : 0;
    for (unsigned c = 0; c < m->gather.channels; c++)
        m->gather.channel[c].factor = 1;
    dm_status status = make_tiling(m, in->dim, false, &m->gather.tiling, err);
    if (status == DM_OK)
        status = make_tiling(m, out->dim, true, &m->stitched, err);
    if (status == DM_OK)
        status = make_list(m, err);
    return status == DM_OK ? make_volumes(m, in->channels, err) : status;
}

static dm_status prepare(network_measure *m, dm_error *err)
{
    cuda_state *s = m->state;
    const tiling windows = {.count = m->request->job_windows};
    const predict_job job = {.tiling = &windows};
    dm_status status = cuda_state_network(s, &job, m->batch, err);
    if (status == DM_OK)
        status = prepare_memory(m, err);
    if (status != DM_OK)
        return status;
    cudaError_t code = cudaMemsetAsync(m->d_fault, 0xff, 2 * sizeof *m->d_fault, s->stream);
    if (code == cudaSuccess)
        code = cudaEventCreate(&m->begin);
    if (code == cudaSuccess)
        code = cudaEventCreate(&m->end);
    return device_check(code, running, err);
}

static void clear(network_measure *m)
{
    if (cudaStreamSynchronize(m->state->stream) != cudaSuccess)
        (void)cudaGetLastError();
    device_graph_free(m->graph);
    if (m->begin)
        (void)cudaEventDestroy(m->begin);
    if (m->end)
        (void)cudaEventDestroy(m->end);
    for (size_t i = 0; i < m->n_owned; i++)
        device_free(m->owned[i]);
}

/* ---- Batches -------------------------------------------------------------------------------- */

/* Windows first, first + 1, ..., from the start again where there are no more. */
static dm_status upload(network_measure *m, size_t first, dm_error *err)
{
    const measure_request *q = m->request;
    dm_status status = DM_OK;
    size_t window = first;
    for (unsigned i = 0; i < m->batch && status == DM_OK; i++) {
        status = device_copy_up(m->d_windows + i * m->window, q->windows + window * m->window,
                                m->window * sizeof(float), "copying windows to the device", err);
        window = window + 1 < q->n_windows ? window + 1 : 0;
    }
    return status;
}

static dm_status enqueue(void *context, dm_error *err)
{
    network_measure *m = context;
    return device_network_launch(m->state->network, &m->ends, err);
}

static dm_status launch(network_measure *m, dm_error *err)
{
    if (m->graph)
        return device_check(cudaGraphLaunch(m->graph, m->state->stream), running, err);
    return enqueue(m, err);
}

static dm_status wait(const network_measure *m, dm_error *err)
{
    return device_check(cudaStreamSynchronize(m->state->stream), running, err);
}

static dm_status go_on(const network_measure *m, double share, dm_error *err)
{
    const measure_request *q = m->request;
    return q->go_on ? q->go_on(q->context, share, err) : DM_OK;
}

/* The first batch too, with which the driver loads what it needs. */
static dm_status run_outputs(network_measure *m, dm_error *err)
{
    const measure_request *q = m->request;
    dm_status status = DM_OK;
    for (size_t first = 0; first < q->n_windows && status == DM_OK; first += m->batch) {
        size_t n = q->n_windows - first < m->batch ? q->n_windows - first : m->batch;
        status = upload(m, first, err);
        if (status == DM_OK)
            status =
                device_check(cudaMemsetAsync(m->d_outputs, 0, m->batch * m->output * sizeof(float),
                                             m->state->stream),
                             running, err);
        if (status == DM_OK)
            status = launch(m, err);
        if (status == DM_OK)
            status = wait(m, err);
        if (status == DM_OK && q->outputs)
            status = device_check(cudaMemcpy(q->outputs + first * m->output, m->d_outputs,
                                             n * m->output * sizeof(float), cudaMemcpyDeviceToHost),
                                  running, err);
        if (status == DM_OK)
            status = go_on(m, 0, err);
        if (!q->outputs)
            break;
    }
    return status == DM_OK ? upload(m, 0, err) : status;
}

static dm_status check_faults(const network_measure *m, dm_error *err)
{
    unsigned long long faults[2];
    dm_status status = device_check(
        cudaMemcpy(faults, m->d_fault, sizeof faults, cudaMemcpyDeviceToHost), running, err);
    if (status == DM_OK && (faults[0] != NO_FAULT || faults[1] != NO_FAULT))
        status = error_set(err, DM_ERROR_VALUE, NULL,
                           "check the PET's units; if they are right, the model does not suit them",
                           "the network's output is not finite");
    return status;
}

/* ---- Runs ----------------------------------------------------------------------------------- */

/* Many calls by the device's clock; a single one by the host's, from asking until it is there. */
static dm_status time_run(network_measure *m, size_t calls, double *seconds, dm_error *err)
{
    cudaStream_t stream = m->state->stream;
    bool single = !(m->request->run_seconds > 0);
    float milliseconds = 0;
    double start = job_clock();
    dm_status status = device_check(cudaEventRecord(m->begin, stream), running, err);
    for (size_t i = 0; i < calls && status == DM_OK; i++)
        status = launch(m, err);
    if (status == DM_OK)
        status = device_check(cudaEventRecord(m->end, stream), running, err);
    if (status == DM_OK)
        status = wait(m, err);
    *seconds = job_clock() - start;
    if (status == DM_OK && !single) {
        status = device_check(cudaEventElapsedTime(&milliseconds, m->begin, m->end), running, err);
        *seconds = 1e-3 * (double)milliseconds;
    }
    return status;
}

static dm_status time_runs(network_measure *m, measure_result *result, dm_error *err)
{
    const measure_request *q = m->request;
    size_t calls = 1;
    double seconds;
    dm_status status = DM_OK;
    /* As in a volume, all but the first batch. */
    m->graph = device_graph_record(m->state->stream, enqueue, m, NULL);
    for (unsigned i = 0; i < q->warmup && status == DM_OK; i++) {
        status = time_run(m, calls, &seconds, err);
        if (status == DM_OK)
            calls = measure_calls(q->run_seconds, calls, seconds);
        if (status == DM_OK)
            status = go_on(m, 0, err);
    }
    result->windows = calls * m->batch;
    double joules = cuda_device_energy(m->state->device);
    for (unsigned i = 0; i < q->runs && status == DM_OK; i++) {
        status = time_run(m, calls, &result->seconds[i], err);
        if (status == DM_OK)
            status = go_on(m, (i + 1.0) / q->runs, err);
    }
    result->joules = cuda_device_energy(m->state->device) - joules;
    return status;
}

/* ---- All of it ------------------------------------------------------------------------------ */

static dm_status count_bytes(const cuda_state *s, unsigned batch, double *bytes, dm_error *err)
{
    device_account account;
    dm_status status = device_account_make(s->network, &account, err);
    if (status == DM_OK) {
        *bytes = account_bytes(&account.total) / batch;
        device_account_clear(&account);
    }
    return status;
}

static dm_status measure_batch(cuda_state *s, const measure_request *q, unsigned batch,
                               measure_result *result, dm_error *err)
{
    network_measure m = {.state = s, .request = q, .batch = batch};
    m.ends = (network_ends){.context = &m, .fill = fill, .take = take, .head = head};
    dm_status status = measure_make(q, 0, result, err);
    if (status == DM_OK)
        status = prepare(&m, err);
    if (status == DM_OK)
        status = run_outputs(&m, err);
    if (status == DM_OK && q->runs > 0)
        status = time_runs(&m, result, err);
    if (status == DM_OK && q->layers)
        status = cuda_layers(s->network, &m.ends, m.graph, s->stream, batch, q, result, err);
    if (status == DM_OK && q->runs > 0) /* else the outputs are all that is wanted */
        status = check_faults(&m, err);
    if (status == DM_OK)
        status = count_bytes(s, batch, &result->bytes, err);
    result->batch = batch;
    result->at_once = 1;
    if (status == DM_OK)
        result->device_bytes =
            m.bytes + device_network_bytes(s->network) + device_parameters_bytes(s->parameters);
    clear(&m);
    if (status != DM_OK)
        measure_clear(result);
    return status;
}

dm_status cuda_measure(void *state, const measure_request *request, measure_result *result,
                       dm_error *err)
{
    cuda_state *s = state;
    dm_error problem = {0};
    unsigned batch = request->batch ? request->batch : cuda_state_batch(s, request->job_windows);
    dm_status status = device_check(cudaSetDevice(s->device), "opening the device", &problem);
    if (status == DM_OK) {
        status = measure_batch(s, request, batch, result, &problem);
        while (status == DM_ERROR_MEMORY && !request->batch && batch > 1) {
            batch /= 2;
            status = measure_batch(s, request, batch, result, &problem);
        }
    }
    if (status != DM_OK && err)
        *err = problem;
    return status;
}

unsigned cuda_measure_batch(void *state, size_t windows)
{
    return cuda_state_batch(state, windows);
}
