// SPDX-License-Identifier: Apache-2.0
// How many devices the emulated runtime has, which of them a thread works with, and what each of them
// is: memory, compute capability, counters, calls that fail.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulated_runtime.h"

namespace emulation
{
namespace
{
struct device {
    emulation_counts counts;
    size_t memory;
    int major, minor;
    uint64_t failing_call;
    cudaError_t planted_error;
};
device all[EMULATION_DEVICES];
int devices_now;
__thread int current; // a thread begins with the first, as on a real machine
bool read_settings;

// Values with commas between, of which the last one holds for all further devices.
template <class Set> void read_list(const char *name, Set set)
{
    const char *text = getenv(name);
    if (!text || !*text)
        return;
    for (int i = 0; i < EMULATION_DEVICES; i++) {
        set(&all[i], text);
        const char *comma = strchr(text, ',');
        text = comma ? comma + 1 : text;
    }
}

void read_environment()
{
    if (read_settings)
        return;
    read_settings = true;
    for (device &d : all) {
        d.memory = (size_t)2 << 30;
        d.major = 9;
    }
    read_list("DOSEMAP_EMULATED_MEMORY",
              [](device *d, const char *text) { d->memory = (size_t)strtoull(text, nullptr, 10); });
    read_list("DOSEMAP_EMULATED_CAPABILITY", [](device *d, const char *text) {
        if (sscanf(text, "%d.%d", &d->major, &d->minor) != 2)
            die("DOSEMAP_EMULATED_CAPABILITY: '%s' is no capability such as 9.0", text);
    });
    const char *text = getenv("DOSEMAP_EMULATED_DEVICES");
    devices_now = text && *text ? atoi(text) : 1;
    if (devices_now < 1 || devices_now > EMULATION_DEVICES)
        die("DOSEMAP_EMULATED_DEVICES: '%s' is not from 1 to %d", text, EMULATION_DEVICES);
}

device &get(int number)
{
    read_environment();
    if (number < 0 || number >= EMULATION_DEVICES)
        die("there is no device %d", number);
    return all[number];
}
} // namespace

int devices()
{
    read_environment();
    return devices_now;
}

int current_device()
{
    return current;
}

size_t device_memory_limit(int number)
{
    return get(number).memory;
}

void device_capability(int number, int *major, int *minor)
{
    *major = get(number).major;
    *minor = get(number).minor;
}

emulation_counts &counts(int number)
{
    return get(number).counts;
}

cudaError_t enter_call()
{
    device &d = get(current);
    d.counts.calls++;
    if (d.failing_call && --d.failing_call == 0)
        return d.planted_error;
    return cudaSuccess;
}
} // namespace emulation

using namespace emulation;

// ------------------------------------------------------------------------------------- settings

extern "C" void emulation_set_devices(int count)
{
    runtime_guard guard(runtime_lock());
    read_environment();
    if (count < 1 || count > EMULATION_DEVICES)
        die("emulation_set_devices(%d): from 1 to %d", count, EMULATION_DEVICES);
    devices_now = count;
}

extern "C" void emulation_set_memory(size_t bytes)
{
    for (int i = 0; i < EMULATION_DEVICES; i++)
        get(i).memory = bytes;
}

extern "C" void emulation_set_memory_of(int device, size_t bytes)
{
    get(device).memory = bytes;
}

extern "C" void emulation_set_compute_capability(int major, int minor)
{
    for (int i = 0; i < EMULATION_DEVICES; i++)
        emulation_set_compute_capability_of(i, major, minor);
}

extern "C" void emulation_set_compute_capability_of(int device, int major, int minor)
{
    get(device).major = major;
    get(device).minor = minor;
}

extern "C" void emulation_fail_call(uint64_t n, cudaError_t error)
{
    emulation_fail_call_of(0, n, error);
}

extern "C" void emulation_fail_call_of(int device, uint64_t n, cudaError_t error)
{
    runtime_guard guard(runtime_lock());
    get(device).failing_call = n;
    get(device).planted_error = error;
}

// ------------------------------------------------------------------------------------- counters

extern "C" emulation_counts emulation_counters_of(int device)
{
    runtime_guard guard(runtime_lock());
    return counts(device);
}

extern "C" emulation_counts emulation_counters(void)
{
    runtime_guard guard(runtime_lock());
    emulation_counts sum = {};
    for (int i = 0; i < EMULATION_DEVICES; i++) {
        const emulation_counts &c = counts(i);
        sum.calls += c.calls;
        sum.launches += c.launches;
        sum.graph_launches += c.graph_launches;
        sum.copies_to_device += c.copies_to_device;
        sum.copies_to_host += c.copies_to_host;
        sum.copies_on_device += c.copies_on_device;
        sum.sets += c.sets;
        sum.bytes_to_device += c.bytes_to_device;
        sum.bytes_to_host += c.bytes_to_host;
        sum.bytes_on_device += c.bytes_on_device;
        sum.bytes_set += c.bytes_set;
        sum.allocations += c.allocations;
        sum.device_bytes += c.device_bytes;
        sum.device_bytes_peak += c.device_bytes_peak;
        sum.live_device += c.live_device;
        sum.live_host += c.live_host;
        sum.live_streams += c.live_streams;
        sum.live_events += c.live_events;
        sum.live_graphs += c.live_graphs;
    }
    return sum;
}

extern "C" void emulation_reset_counters(void)
{
    runtime_guard guard(runtime_lock());
    for (int i = 0; i < EMULATION_DEVICES; i++) {
        emulation_counts &c = counts(i);
        const emulation_counts old = c;
        c = {};
        c.device_bytes = c.device_bytes_peak = old.device_bytes;
        c.live_device = old.live_device;
        c.live_host = old.live_host;
        c.live_streams = old.live_streams;
        c.live_events = old.live_events;
        c.live_graphs = old.live_graphs;
    }
}

// --------------------------------------------------------------------------------- CUDA's calls

static cudaError_t answer(int *to, int value)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !to)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess)
        *to = value;
    return keep(error);
}

cudaError_t cudaDriverGetVersion(int *version)
{
    return answer(version, CUDART_VERSION);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    return answer(version, CUDART_VERSION);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    return answer(count, devices());
}

cudaError_t cudaGetDevice(int *device)
{
    return answer(device, current);
}

cudaError_t cudaSetDevice(int device)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && (device < 0 || device >= devices()))
        error = cudaErrorInvalidDevice;
    if (error == cudaSuccess)
        current = device;
    return keep(error);
}
