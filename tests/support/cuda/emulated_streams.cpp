// SPDX-License-Identifier: Apache-2.0
// Streams, events, graphs and launches of the emulated runtime. Work waits in its stream until something
// waits for it; then it runs, after all that it depends on, on the OS thread that waits.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include "emulated_runtime.h"

namespace emulation
{
struct stream;
typedef std::shared_ptr<stream> stream_pointer;

// All work issued to the stream up to a number.
struct dependency {
    stream_pointer on;
    uint64_t up_to;
};

struct operation {
    task work; // may be empty: only the dependencies count
    std::vector<dependency> after;
};

struct capture {
    std::vector<task> tasks; // in the order of issue
    cudaStreamCaptureMode mode;
    std::thread::id by;
    stream *origin;
    std::vector<stream_pointer> streams;
    bool spoiled;
};
typedef std::shared_ptr<capture> capture_pointer;

struct stream {
    bool blocking; // waits for the legacy stream, and it for this one
    std::deque<operation> queue;
    uint64_t issued, done;
    capture_pointer capturing;
    uint64_t captured; // operations recorded in this capture
    uint64_t joined;   // how many of them another stream of the capture has waited for
};

struct event_time {
    std::chrono::steady_clock::time_point at;
};
} // namespace emulation

using namespace emulation;

struct CUevent_st {
    bool timed;
    stream_pointer on; // null: never recorded
    uint64_t up_to;
    std::shared_ptr<event_time> time;
    capture_pointer captured; // recorded while its stream was captured
};
struct CUgraph_st {
    std::vector<task> tasks;
};
struct CUgraphExec_st {
    std::shared_ptr<std::vector<task>> tasks;
};

namespace emulation
{
namespace
{
std::map<const void *, stream_pointer> streams; // by handle
std::vector<stream_pointer> leaving;            // destroyed, with work left
std::vector<capture_pointer> captures;
std::set<const void *> events, graphs, graph_execs;
int eager = -1;

bool run_eagerly()
{
    if (eager < 0) {
        const char *text = getenv("DOSEMAP_EMULATED_STREAMS");
        eager = text && strcmp(text, "eager") == 0;
    }
    return eager;
}

const stream_pointer &legacy()
{
    static const stream_pointer it = std::make_shared<stream>();
    return it;
}

// Null for a handle that is not alive.
stream_pointer find_stream(cudaStream_t handle)
{
    if (!handle || handle == cudaStreamLegacy)
        return legacy();
    const auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

void run_until(const stream_pointer &s, uint64_t up_to)
{
    while (s->done < up_to) {
        operation next = std::move(s->queue.front());
        for (const dependency &d : next.after)
            run_until(d.on, d.up_to);
        s->queue.pop_front();
        s->done++;
        if (next.work)
            next.work();
    }
}

// One opening of the device's memory for all that runs.
void run_all_until(const stream_pointer &s, uint64_t up_to)
{
    if (s->done >= up_to)
        return;
    open_device_memory();
    run_until(s, up_to);
    close_device_memory();
}

void spoil(const capture_pointer &c)
{
    c->spoiled = true;
}

bool forbids_unsafe_calls(const capture &c)
{
    return c.mode == cudaStreamCaptureModeGlobal ||
           (c.mode == cudaStreamCaptureModeThreadLocal && c.by == std::this_thread::get_id());
}

// The legacy stream would have to wait for what is not running but recorded.
cudaError_t refuse_legacy()
{
    for (const capture_pointer &c : captures)
        for (const stream_pointer &s : c->streams)
            if (s->blocking) {
                spoil(c);
                return cudaErrorStreamCaptureImplicit;
            }
    return cudaSuccess;
}

void issue(const stream_pointer &s, operation next)
{
    if (s == legacy()) {
        for (const auto &each : streams)
            if (each.second->blocking)
                next.after.push_back({each.second, each.second->issued});
        for (const stream_pointer &left : leaving)
            if (left->blocking)
                next.after.push_back({left, left->issued});
    } else if (s->blocking) {
        next.after.push_back({legacy(), legacy()->issued});
    }
    s->queue.push_back(std::move(next));
    s->issued++;
    if (run_eagerly())
        run_all_until(s, s->issued);
}

cudaError_t enqueue_on(const stream_pointer &s, operation next)
{
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->capturing) {
        if (s->capturing->spoiled)
            return cudaErrorStreamCaptureInvalidated;
        if (next.work)
            s->capturing->tasks.push_back(std::move(next.work));
        s->captured++;
        return cudaSuccess;
    }
    if (s == legacy()) {
        cudaError_t error = refuse_legacy();
        if (error != cudaSuccess)
            return error;
    }
    issue(s, std::move(next));
    return cudaSuccess;
}

cudaError_t finish(const stream_pointer &s)
{
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->capturing) {
        spoil(s->capturing);
        return cudaErrorStreamCaptureUnsupported;
    }
    if (s == legacy())
        issue(s, {}); // depends on all blocking streams
    run_all_until(s, s->issued);
    leaving.erase(std::remove_if(leaving.begin(), leaving.end(),
                                 [](const stream_pointer &l) { return l->queue.empty(); }),
                  leaving.end());
    return cudaSuccess;
}

// A query makes one step of progress, so that polling ends.
cudaError_t step_until(const stream_pointer &s, uint64_t up_to)
{
    if (s->done >= up_to)
        return cudaSuccess;
    run_all_until(s, s->done + 1);
    return cudaErrorNotReady;
}

void end_capture(const capture_pointer &c)
{
    for (const stream_pointer &s : c->streams)
        s->capturing = nullptr;
    captures.erase(std::remove(captures.begin(), captures.end(), c), captures.end());
}

cudaError_t make_stream(cudaStream_t *handle, unsigned int flags)
{
    if (!handle || flags > cudaStreamNonBlocking)
        return cudaErrorInvalidValue;
    stream_pointer s = std::make_shared<stream>();
    s->blocking = flags != cudaStreamNonBlocking;
    streams[s.get()] = s;
    counts().live_streams++;
    *handle = reinterpret_cast<cudaStream_t>(s.get());
    return cudaSuccess;
}

// In a capture: the two streams' records become one, and what the event stands for is waited for.
cudaError_t wait_in_capture(const stream_pointer &s, CUevent_st *event)
{
    const capture_pointer &c = event->captured;
    if (std::find(captures.begin(), captures.end(), c) == captures.end())
        return cudaErrorCapturedEvent;
    if (s->capturing && s->capturing != c) {
        spoil(c);
        spoil(s->capturing);
        return cudaErrorStreamCaptureMerge;
    }
    if (!s->capturing) {
        s->capturing = c;
        s->captured = s->joined = 0;
        c->streams.push_back(s);
    } else if (s != event->on) {
        s->captured++; // has to be joined in its turn
    }
    event->on->joined = std::max(event->on->joined, event->up_to);
    return cudaSuccess;
}
} // namespace

cudaError_t refuse_in_capture()
{
    for (const capture_pointer &c : captures)
        if (forbids_unsafe_calls(*c)) {
            spoil(c);
            return cudaErrorStreamCaptureUnsupported;
        }
    return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t handle, task work)
{
    return enqueue_on(find_stream(handle), {std::move(work), {}});
}

cudaError_t finish_stream(cudaStream_t handle)
{
    return finish(find_stream(handle));
}

cudaError_t finish_device()
{
    std::vector<stream_pointer> all = leaving;
    for (const auto &each : streams)
        all.push_back(each.second);
    all.push_back(legacy());
    if (schedule_order() & 1) // streams that do not wait for each other may run in any order
        std::reverse(all.begin(), all.end());
    for (const stream_pointer &s : all)
        if (!s->capturing) {
            cudaError_t error = finish(s);
            if (error != cudaSuccess)
                return error;
        }
    return cudaSuccess;
}

// A kernel's launch, with its own copy of the arguments.
struct launch_task {
    launch work;
    std::shared_ptr<void> arguments;
    void operator()() const
    {
        open_device_memory();
        run_grid(work);
        counts().launches++;
        check_all_guards([this] { return kernel_name(work.kernel); });
        close_device_memory();
    }
};
} // namespace emulation

extern "C" void emulation_set_streams(emulation_streams when)
{
    runtime_guard guard(runtime_lock());
    finish_device();
    eager = when == EMULATION_EAGER;
}

extern "C" cudaError_t emulation_launch(const cudaLaunchConfig_t *config, const void *kernel,
                                        call_function call, const void *arguments, size_t bytes)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = check_launch(config, kernel);
    if (error != cudaSuccess)
        return keep(error);
    launch_task t;
    t.arguments = std::shared_ptr<void>(malloc(bytes ? bytes : 1), free);
    memcpy(t.arguments.get(), arguments, bytes);
    t.work = {kernel,
              call,
              t.arguments.get(),
              bytes,
              config->gridDim,
              config->blockDim,
              config->dynamicSmemBytes};
    return keep(enqueue(config->stream, t));
}

cudaError_t cudaDeviceSynchronize(void)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = refuse_in_capture();
    return keep(error == cudaSuccess ? finish_device() : error);
}

// ------------------------------------------------------------------------------------- streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned int flags)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    return keep(error == cudaSuccess ? make_stream(handle, flags) : error);
}

cudaError_t cudaStreamCreate(cudaStream_t *handle)
{
    return cudaStreamCreateWithFlags(handle, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    runtime_guard guard(runtime_lock());
    const auto found = streams.find(handle);
    if (found == streams.end())
        return keep(cudaErrorInvalidResourceHandle);
    const stream_pointer s = found->second;
    if (s->capturing)
        end_capture(s->capturing);
    if (!s->queue.empty())
        leaving.push_back(s);
    streams.erase(found);
    counts().live_streams--;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    return keep(error == cudaSuccess ? finish_stream(handle) : error);
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && !s)
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && s->capturing) {
        spoil(s->capturing);
        error = cudaErrorStreamCaptureUnsupported;
    }
    return keep(error == cudaSuccess ? step_until(s, s->issued) : error);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned int flags)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && (!s || !events.count(event)))
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && flags != cudaEventWaitDefault)
        error = cudaErrorInvalidValue;
    if (error != cudaSuccess || !event->on)
        return keep(error);
    if (event->captured)
        return keep(wait_in_capture(s, event));
    if (s->capturing) {
        spoil(s->capturing);
        return keep(cudaErrorStreamCaptureIsolation);
    }
    return keep(enqueue_on(s, {nullptr, {{event->on, event->up_to}}}));
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *data)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !function)
        error = cudaErrorInvalidValue;
    return keep(error == cudaSuccess ? enqueue(handle, [=] { function(data); }) : error);
}

// ------------------------------------------------------------------------------------- events

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned int flags)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && (!handle || flags > 7))
        error = cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return keep(error);
    *handle = new CUevent_st();
    (*handle)->timed = !(flags & cudaEventDisableTiming);
    events.insert(*handle);
    counts().live_events++;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *handle)
{
    return cudaEventCreateWithFlags(handle, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t handle)
{
    runtime_guard guard(runtime_lock());
    if (!events.erase(handle))
        return keep(cudaErrorInvalidResourceHandle);
    delete handle;
    counts().live_events--;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && (!s || !events.count(event)))
        error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess)
        return keep(error);
    event->on = s;
    event->captured = s->capturing;
    if (s->capturing) {
        event->up_to = s->captured;
        return keep(s->capturing->spoiled ? cudaErrorStreamCaptureInvalidated : cudaSuccess);
    }
    const std::shared_ptr<event_time> time = std::make_shared<event_time>();
    event->time = time;
    error = enqueue_on(s, {[time] { time->at = std::chrono::steady_clock::now(); }, {}});
    event->up_to = s->issued;
    return keep(error);
}

// Common to the calls that ask an event of what it stands for.
static cudaError_t check_event(cudaEvent_t event)
{
    if (!events.count(event))
        return cudaErrorInvalidResourceHandle;
    if (!event->captured)
        return cudaSuccess;
    spoil(event->captured);
    return cudaErrorCapturedEvent;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = check_event(event);
    if (error == cudaSuccess && event->on)
        run_all_until(event->on, event->up_to);
    return keep(error);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = check_event(event);
    if (error == cudaSuccess && event->on)
        error = step_until(event->on, event->up_to);
    return keep(error);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !ms)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess)
        error = check_event(start);
    if (error == cudaSuccess)
        error = check_event(end);
    if (error == cudaSuccess && (!start->on || !end->on || !start->timed || !end->timed))
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && (start->on->done < start->up_to || end->on->done < end->up_to))
        error = cudaErrorNotReady;
    if (error == cudaSuccess)
        *ms = std::chrono::duration<float, std::milli>(end->time->at - start->time->at).count();
    return keep(error);
}

// ------------------------------------------------------------------------------------- graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && !s)
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && (unsigned)mode > cudaStreamCaptureModeRelaxed)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess && s == legacy())
        error = cudaErrorStreamCaptureUnsupported;
    if (error == cudaSuccess && s->capturing)
        error = cudaErrorIllegalState;
    if (error != cudaSuccess)
        return keep(error);
    const capture_pointer c = std::make_shared<capture>();
    c->mode = mode;
    c->by = std::this_thread::get_id();
    c->origin = s.get();
    c->streams.push_back(s);
    s->capturing = c;
    s->captured = s->joined = 0;
    captures.push_back(c);
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
    *graph = new CUgraph_st{std::move(c->tasks)};
    graphs.insert(*graph);
    counts().live_graphs++;
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
    *exec = new CUgraphExec_st{std::make_shared<std::vector<task>>(graph->tasks)};
    graph_execs.insert(*exec);
    counts().live_graphs++;
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
    return keep(enqueue(handle, [tasks] {
        for (const task &each : *tasks)
            each();
        counts().graph_launches++;
    }));
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    runtime_guard guard(runtime_lock());
    if (!graphs.erase(graph))
        return keep(cudaErrorInvalidValue);
    delete graph;
    counts().live_graphs--;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    runtime_guard guard(runtime_lock());
    if (!graph_execs.erase(exec))
        return keep(cudaErrorInvalidValue);
    delete exec;
    counts().live_graphs--;
    return cudaSuccess;
}
