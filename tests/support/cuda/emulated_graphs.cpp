// SPDX-License-Identifier: Apache-2.0
// Capture of streams and graphs of the emulated runtime. A graph is its work in the order of issue, with
// the arguments of that time.
#include <set>

#include "emulated_stream.h"

using namespace emulation;

struct CUgraph_st {
    std::vector<task> tasks;
    int device;
};
struct CUgraphExec_st {
    std::shared_ptr<std::vector<task>> tasks;
    int device;
};

static std::set<const void *> graphs, graph_execs;

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && !s)
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && (unsigned)mode > cudaStreamCaptureModeRelaxed)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess && s == legacy_stream(s->device))
        error = cudaErrorStreamCaptureUnsupported;
    if (error == cudaSuccess && s->capturing)
        error = cudaErrorIllegalState;
    if (error != cudaSuccess)
        return keep(error);
    begin_capture(s, mode);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && !graph)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess && !s)
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && (!s->capturing || s->capturing->origin != s.get()))
        error = cudaErrorStreamCaptureUnmatched;
    if (error == cudaSuccess && s->capturing->mode != cudaStreamCaptureModeRelaxed &&
        s->capturing->by != std::this_thread::get_id())
        error = cudaErrorStreamCaptureWrongThread;
    if (error != cudaSuccess)
        return keep(error);
    const capture_pointer c = s->capturing;
    *graph = nullptr;
    if (c->spoiled)
        error = cudaErrorStreamCaptureInvalidated;
    for (const stream_pointer &other : c->streams)
        if (other != s && other->joined < other->captured && error == cudaSuccess)
            error = cudaErrorStreamCaptureUnjoined;
    end_capture(c);
    if (error != cudaSuccess)
        return keep(error);
    *graph = new CUgraph_st{std::move(c->tasks), s->device};
    graphs.insert(*graph);
    counts(0).live_graphs++;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && (!s || !status))
        error = s ? cudaErrorInvalidValue : cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess)
        *status = !s->capturing           ? cudaStreamCaptureStatusNone
                  : s->capturing->spoiled ? cudaStreamCaptureStatusInvalidated
                                          : cudaStreamCaptureStatusActive;
    return keep(error);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && (!exec || !graphs.count(graph)))
        error = cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return keep(error);
    *exec = new CUgraphExec_st{std::make_shared<std::vector<task>>(graph->tasks), graph->device};
    graph_execs.insert(*exec);
    counts(0).live_graphs++;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !graph_execs.count(exec))
        error = cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return keep(error);
    const std::shared_ptr<std::vector<task>> tasks = exec->tasks;
    const int device = exec->device;
    if (device_of(handle) != device)
        die("a graph of device %d was launched on a stream of device %d", device,
            device_of(handle));
    return keep(enqueue(handle, [tasks, device] {
        for (const task &each : *tasks)
            each();
        counts(device).graph_launches++;
    }));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    runtime_guard guard(runtime_lock());
    if (!graphs.erase(graph))
        return keep(cudaErrorInvalidValue);
    delete graph;
    counts(0).live_graphs--;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    runtime_guard guard(runtime_lock());
    if (!graph_execs.erase(exec))
        return keep(cudaErrorInvalidValue);
    delete exec;
    counts(0).live_graphs--;
    return cudaSuccess;
}
