// SPDX-License-Identifier: Apache-2.0
// Streams, events and launches of the emulated runtime. Work waits in its stream until something
// waits for it; then it runs, after all that it depends on, on the OS thread that waits.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>

#include "emulated_stream.h"

using namespace emulation;

namespace emulation
{
namespace
{
std::map<const void *, stream_pointer> streams; // by handle
std::vector<stream_pointer> leaving;            // destroyed, with work left
std::vector<capture_pointer> captures;
std::set<const void *> events;
int eager = -1;

bool run_eagerly()
{
    if (eager < 0) {
        const char *text = getenv("DOSEMAP_EMULATED_STREAMS");
        eager = text && strcmp(text, "eager") == 0;
    }
    return eager;
}

} // namespace

// Each device has one.
const stream_pointer &legacy_stream(int device)
{
    static stream_pointer all[EMULATION_DEVICES];
    stream_pointer &it = all[device];
    if (!it) {
        it = std::make_shared<stream>();
        it->device = device;
    }
    return it;
}

stream_pointer find_stream(cudaStream_t handle)
{
    if (!handle || handle == cudaStreamLegacy)
        return legacy_stream(current_device());
    const auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

int device_of(cudaStream_t handle)
{
    const stream_pointer s = find_stream(handle);
    return s ? s->device : current_device();
}

void begin_capture(const stream_pointer &s, cudaStreamCaptureMode mode)
{
    const capture_pointer c = std::make_shared<capture>();
    c->mode = mode;
    c->by = std::this_thread::get_id();
    c->origin = s.get();
    c->streams.push_back(s);
    s->capturing = c;
    s->captured = s->joined = 0;
    captures.push_back(c);
}

void end_capture(const capture_pointer &c)
{
    for (const stream_pointer &s : c->streams)
        s->capturing = nullptr;
    captures.erase(std::remove(captures.begin(), captures.end(), c), captures.end());
}

namespace
{
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

// One opening of the device's memory for all that runs; work of another device opens its own.
void run_all_until(const stream_pointer &s, uint64_t up_to)
{
    if (s->done >= up_to)
        return;
    const opened_memory open(s->device);
    run_until(s, up_to);
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
cudaError_t refuse_legacy_stream(int device)
{
    for (const capture_pointer &c : captures)
        for (const stream_pointer &s : c->streams)
            if (s->blocking && s->device == device) {
                spoil(c);
                return cudaErrorStreamCaptureImplicit;
            }
    return cudaSuccess;
}

void issue(const stream_pointer &s, operation next)
{
    const stream_pointer &legacy = legacy_stream(s->device);
    if (s == legacy) {
        for (const auto &each : streams)
            if (each.second->blocking && each.second->device == s->device)
                next.after.push_back({each.second, each.second->issued});
        for (const stream_pointer &left : leaving)
            if (left->blocking && left->device == s->device)
                next.after.push_back({left, left->issued});
    } else if (s->blocking) {
        next.after.push_back({legacy, legacy->issued});
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
    if (s == legacy_stream(s->device)) {
        cudaError_t error = refuse_legacy_stream(s->device);
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
    if (s == legacy_stream(s->device))
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

cudaError_t make_stream(cudaStream_t *handle, unsigned int flags)
{
    if (!handle || flags > cudaStreamNonBlocking)
        return cudaErrorInvalidValue;
    stream_pointer s = std::make_shared<stream>();
    s->device = current_device();
    s->blocking = flags != cudaStreamNonBlocking;
    streams[s.get()] = s;
    counts(s->device).live_streams++;
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

cudaError_t finish_device(int device)
{
    std::vector<stream_pointer> all;
    for (const stream_pointer &left : leaving)
        if (left->device == device)
            all.push_back(left);
    for (const auto &each : streams)
        if (each.second->device == device)
            all.push_back(each.second);
    all.push_back(legacy_stream(device));
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
    int device;
    launch work;
    std::shared_ptr<void> arguments;
    void operator()() const
    {
        const opened_memory open(device);
        run_grid(work);
        counts(device).launches++;
        check_all_guards(device, [this] { return kernel_name(work.kernel); });
    }
};
} // namespace emulation

extern "C" void emulation_set_streams(emulation_streams when)
{
    runtime_guard guard(runtime_lock());
    for (int device = 0; device < EMULATION_DEVICES; device++)
        finish_device(device);
    eager = when == EMULATION_EAGER;
}

extern "C" cudaError_t emulation_launch(const cudaLaunchConfig_t *config, const void *kernel,
                                        call_function call, const void *arguments, size_t bytes)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = check_launch(config, kernel);
    if (error == cudaSuccess && device_of(config->stream) != current_device())
        error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess)
        return keep(error);
    launch_task t;
    t.device = current_device();
    t.arguments = std::shared_ptr<void>(malloc(bytes ? bytes : 1), free);
    memcpy(t.arguments.get(), arguments, bytes);
    t.work = {kernel,
              call,
              t.arguments.get(),
              bytes,
              config->gridDim,
              config->blockDim,
              config->dynamicSmemBytes};
    note_launch(t.work);
    return keep(enqueue(config->stream, t));
}

cudaError_t cudaDeviceSynchronize(void)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = refuse_in_capture();
    return keep(error == cudaSuccess ? finish_device(current_device()) : error);
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
    counts(s->device).live_streams--;
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
    (*handle)->device = current_device();
    (*handle)->timed = !(flags & cudaEventDisableTiming);
    events.insert(*handle);
    counts(0).live_events++;
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
    counts(0).live_events--;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    const stream_pointer s = find_stream(handle);
    if (error == cudaSuccess && (!s || !events.count(event) || event->device != s->device))
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
    if (error == cudaSuccess &&
        (!start->on || !end->on || !start->timed || !end->timed || start->device != end->device))
        error = cudaErrorInvalidResourceHandle;
    if (error == cudaSuccess && (start->on->done < start->up_to || end->on->done < end->up_to))
        error = cudaErrorNotReady;
    if (error == cudaSuccess)
        *ms = std::chrono::duration<float, std::milli>(end->time->at - start->time->at).count();
    return keep(error);
}
