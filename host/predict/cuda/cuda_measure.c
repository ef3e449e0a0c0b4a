/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/cuda_measure.h"

#include <stdlib.h>

#include "base/error.h"
#include "predict/cuda/cuda_layers.h"
#include "predict/cuda/device_account.h"
#include "predict/cuda/device_check.h"
#include "predict/job_messages.h"

static const char running[] = "measuring the network";

enum { OWNED = 6 };

typedef struct network_measure {
    cuda_state *state;
    const measure_request *request;
    unsigned batch;
    size_t voxels; /* of a window */
    void *owned[OWNED];
    size_t n_owned, bytes;
    device_gather gather;
    device_volume sum;
    float *d_windows, *d_sum;
    unsigned *d_list; /* the windows of a batch: 0, 1, 2, ... */
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
    return kernel_gather(&m->gather, m->d_list + first, samples, input, m->d_fault, stream);
}

static cudaError_t take(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const network_measure *m = context;
    return kernel_stitch(&m->gather.tiling, m->d_list + first, samples, output, &m->sum,
                         m->d_fault + 1, stream);
}

static cudaError_t head(void *context, const device_convolution *convolution,
                        const device_tensor *in, const device_epilogue *epilogue, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    const network_measure *m = context;
    return kernel_head_stitch(convolution, in, epilogue, &m->gather.tiling, m->d_list + first,
                              samples, &m->sum, m->d_fault + 1, stream);
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

static dm_status make_tables(network_measure *m, const size_t tile[3], dm_error *err)
{
    device_tiling *t = &m->gather.tiling;
    size_t most = m->voxels > m->batch ? m->voxels : m->batch;
    void *made = NULL;
    union {
        float importance;
        unsigned start;
    } *host = array_alloc(most, sizeof *host);
    if (!host)
        return error_memory(err, most * sizeof *host, "tables");
    for (size_t i = 0; i < m->voxels; i++)
        host[i].importance = 1;
    dm_status status = take_memory(m, host, m->voxels * sizeof *host, &made, err);
    t->importance = made;
    for (unsigned i = 0; i < m->batch; i++)
        host[i].start = i * (unsigned)tile[2];
    if (status == DM_OK)
        status = take_memory(m, host, m->batch * sizeof *host, &made, err);
    for (int a = 0; a < 3; a++) { /* the first one is 0, for x and y as well */
        t->start[a] = made;
        t->tile[a] = t->volume[a] = tile[a];
        t->n[a] = 1;
    }
    t->n[2] = m->batch;
    t->volume[2] *= m->batch;
    for (unsigned i = 0; i < m->batch; i++)
        host[i].start = i;
    if (status == DM_OK)
        status = take_memory(m, host, m->batch * sizeof *host, &made, err);
    m->d_list = made;
    free(host);
    return status;
}

static dm_status make_volumes(network_measure *m, dm_error *err)
{
    const device_tiling *t = &m->gather.tiling;
    void *made = NULL;
    const device_volume stacked = {
        .stride = {1, (ptrdiff_t)t->tile[0], (ptrdiff_t)(t->tile[0] * t->tile[1])},
        .dim = {t->volume[0], t->volume[1], t->volume[2]}};
    size_t bytes = m->batch * m->voxels * sizeof(float);
    dm_status status = take_memory(m, NULL, bytes, &made, err);
    m->gather.source = stacked;
    m->gather.source.data = m->d_windows = made;
    if (status == DM_OK)
        status = take_memory(m, NULL, bytes, &made, err);
    m->sum = stacked;
    m->sum.data = m->d_sum = made;
    if (status == DM_OK)
        status = take_memory(m, NULL, 2 * sizeof *m->d_fault, &made, err);
    m->d_fault = made;
    return status;
}

static dm_status prepare(network_measure *m, dm_error *err)
{
    cuda_state *s = m->state;
    const size_t *dim = s->plan->tensors[s->plan->input].dim;
    const size_t tile[3] = {dim[2], dim[1], dim[0]};
    const tiling windows = {.count = m->request->job_windows};
    const predict_job job = {.tiling = &windows};
    m->voxels = tile[0] * tile[1] * tile[2];
    m->gather.exact = true;
    m->gather.factor = 1;
    dm_status status = cuda_state_network(s, &job, m->batch, err);
    if (status == DM_OK)
        status = make_tables(m, tile, err);
    if (status == DM_OK)
        status = make_volumes(m, err);
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
    if (m->graph)
        (void)cudaGraphExecDestroy(m->graph);
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
        status = device_copy_up(m->d_windows + i * m->voxels, q->windows + window * m->voxels,
                                m->voxels * sizeof(float), "copying windows to the device", err);
        window = window + 1 < q->n_windows ? window + 1 : 0;
    }
    return status;
}

static dm_status launch(network_measure *m, dm_error *err)
{
    if (m->graph)
        return device_check(cudaGraphLaunch(m->graph, m->state->stream), running, err);
    return device_network_launch(m->state->network, &m->ends, err);
}

static dm_status wait(const network_measure *m, dm_error *err)
{
    return device_check(cudaStreamSynchronize(m->state->stream), running, err);
}

/* As in a volume, all but the first batch are a recorded graph where that can be done. */
static void record(network_measure *m)
{
    cudaStream_t stream = m->state->stream;
    enum cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    cudaGraph_t recorded = NULL;
    bool complete = false;
    if (cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
        complete = device_network_launch(m->state->network, &m->ends, NULL) == DM_OK;
        if (cudaStreamEndCapture(stream, &recorded) != cudaSuccess) {
            complete = false;
            if (cudaStreamIsCapturing(stream, &recording) == cudaSuccess &&
                recording != cudaStreamCaptureStatusNone)
                (void)cudaStreamEndCapture(stream, &recorded);
        }
    }
    if (complete && cudaGraphInstantiate(&m->graph, recorded, 0) != cudaSuccess)
        m->graph = NULL;
    if (recorded)
        (void)cudaGraphDestroy(recorded);
    (void)cudaGetLastError();
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
            status = device_check(cudaMemsetAsync(m->d_sum, 0, m->batch * m->voxels * sizeof(float),
                                                  m->state->stream),
                                  running, err);
        if (status == DM_OK)
            status = launch(m, err);
        if (status == DM_OK)
            status = wait(m, err);
        if (status == DM_OK && q->outputs)
            status = device_check(cudaMemcpy(q->outputs + first * m->voxels, m->d_sum,
                                             n * m->voxels * sizeof(float), cudaMemcpyDeviceToHost),
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
    record(m);
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
    if (status == DM_OK)
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
