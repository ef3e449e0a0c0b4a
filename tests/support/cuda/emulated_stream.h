// SPDX-License-Identifier: Apache-2.0
// Streams, events and captures of the emulated runtime, for emulated_streams.cpp and
// emulated_graphs.cpp.
#ifndef EMULATED_STREAM_H
#define EMULATED_STREAM_H

#include <chrono>
#include <deque>
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
    int device;
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

struct CUevent_st {
    int device;
    bool timed;
    emulation::stream_pointer on; // null: never recorded
    uint64_t up_to;
    std::shared_ptr<emulation::event_time> time;
    emulation::capture_pointer captured; // recorded while its stream was captured
};

namespace emulation
{
const stream_pointer &legacy_stream(int device);
// Null for a handle that is not alive.
stream_pointer find_stream(cudaStream_t handle);
void begin_capture(const stream_pointer &s, cudaStreamCaptureMode mode);
// The streams of the capture are as before it.
void end_capture(const capture_pointer &c);
} // namespace emulation

#endif
