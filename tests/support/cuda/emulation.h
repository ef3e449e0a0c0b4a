/* SPDX-License-Identifier: Apache-2.0 */
/* What the emulated CUDA toolkit offers beyond CUDA: schedules, limits, faults and counters for tests.
 * All settings are the process's; call these from one thread, with no work under way. */
#ifndef DOSEMAP_EMULATION_H
#define DOSEMAP_EMULATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda_runtime_api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The order in which the threads of a block run between two points where they wait for each other.
 * Bit 0: warps and blocks backward; bit 1: lanes backward; bit 2: the direction alternates at each
 * barrier. A missing barrier shows in at least one of 0 to 3, as the reader comes before the writer
 * there. Default: $DOSEMAP_EMULATED_ORDER, or 0. */
#define EMULATION_ORDERS 4
void emulation_set_order(int order);

/* The number of OS threads that share a grid's blocks. Default: $DOSEMAP_EMULATED_THREADS, or the
 * machine's cores. */
void emulation_set_threads(int threads);

/* Deferred (the default): work of a stream runs when something waits for it, and not earlier. Eager:
 * at once. Default: $DOSEMAP_EMULATED_STREAMS, eager or deferred. */
typedef enum emulation_streams { EMULATION_DEFERRED, EMULATION_EAGER } emulation_streams;
void emulation_set_streams(emulation_streams when);

/* To look at a kernel in a debugger: DOSEMAP_EMULATED_THREADS=1, so that blocks come one after the other,
 * and a breakpoint in the kernel; threadIdx and blockIdx are variables. DOSEMAP_EMULATED_PROTECT=0 leaves
 * device memory open to the host. */

/* Devices 0 to count - 1. Memory, streams and events belong to the device that was the thread's current
 * one when they were made. A kernel that touches another device's memory ends the process, as it does on
 * a real one; so do copies that reach there and graphs on another device's stream, which CUDA does,
 * slowly. Default: $DOSEMAP_EMULATED_DEVICES, or 1. */
#define EMULATION_DEVICES 16
void emulation_set_devices(int count);

/* Size of each device's memory; default $DOSEMAP_EMULATED_MEMORY (bytes, with commas between those of
 * several devices) or 2 GiB. */
void emulation_set_memory(size_t bytes);
void emulation_set_memory_of(int device, size_t bytes);
/* Of all devices. Default: $DOSEMAP_EMULATED_CAPABILITY (such as 9.0,8.0) or 9.0. */
void emulation_set_compute_capability(int major, int minor);
void emulation_set_compute_capability_of(int device, int major, int minor);

/* The nth call of the runtime from now on (1: the next) that is made with device 0 (or `device`) as the
 * current one does nothing and returns the error. Calls that release something or read the last error
 * are not counted. n = 0: none. */
void emulation_fail_call(uint64_t n, cudaError_t error);
void emulation_fail_call_of(int device, uint64_t n, cudaError_t error);

typedef struct emulation_counts {
    uint64_t calls; /* those that emulation_fail_call() counts */
    uint64_t launches, graph_launches;
    uint64_t copies_to_device, copies_to_host, copies_on_device, sets;
    uint64_t bytes_to_device, bytes_to_host, bytes_on_device, bytes_set;
    uint64_t allocations; /* of device memory, in all */
    size_t device_bytes, device_bytes_peak;
    size_t live_device, live_host, live_streams, live_events, live_graphs; /* not released yet */
} emulation_counts;
/* Of all devices together; the peak is the sum of their peaks. */
emulation_counts emulation_counters(void);
/* Pinned memory, events and graphs count for the first device. */
emulation_counts emulation_counters_of(int device);
/* Zero, except what is alive now. */
void emulation_reset_counters(void);

/* Writes what has not been released to stderr; the number of such things. */
size_t emulation_list_leaks(void);

/* Ranges pushed and not popped on this thread (nvtxRangePush, nvtxRangePop). */
int emulation_nvtx_depth(void);

#ifdef __cplusplus
}
#endif

#endif
