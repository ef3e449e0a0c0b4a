// SPDX-License-Identifier: Apache-2.0
// Shared by the emulation's own files.
#ifndef EMULATED_RUNTIME_H
#define EMULATED_RUNTIME_H

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "emulated_block.h"
#include "emulation.h"

namespace emulation
{
const size_t SHARED_WITHOUT_ASKING = 48 * 1024, SHARED_MOST = 227 * 1024;

// One lock for the runtime: held in every call, and while work of a stream runs.
std::recursive_mutex &runtime_lock();
typedef std::lock_guard<std::recursive_mutex> runtime_guard;

// Ends the process, as what was done cannot be done with a real device, or would go unnoticed there.
[[noreturn]] __attribute__((format(printf, 1, 2))) void die(const char *format, ...);

int schedule_order();
// At the end of a block: aborts if asynchronous copies are under way.
void end_copies();

// ---- devices
int devices();
int current_device(); // of this thread
size_t device_memory_limit(int device);
void device_capability(int device, int *major, int *minor);
emulation_counts &counts(int device);

// Start of a call that may fail: the error that it has to return at once because a test planted it, or
// cudaSuccess.
cudaError_t enter_call();
// Keeps the error for cudaGetLastError().
cudaError_t keep(cudaError_t error);

// ---- memory
enum class memory_kind { device, pinned, pageable };
memory_kind kind_of(const void *pointer);
// Aborts if [pointer, pointer + bytes) is not wholly inside one device or pinned allocation, or is
// pageable and overlaps one, or belongs to another device; `what` names the operand in the message.
void check_range(const void *pointer, size_t bytes, memory_kind expected, const char *what,
                 int device);
// cudaMemcpyDefault is resolved; cudaErrorInvalidValue for a kind that there is not.
cudaError_t resolve_kind(const void *to, const void *from, cudaMemcpyKind *kind);
// As long as one of these lives, memory of its device can be touched, and no other one's. They nest.
class opened_memory
{
    int before;

  public:
    explicit opened_memory(int device);
    ~opened_memory();
    opened_memory(const opened_memory &) = delete;
    opened_memory &operator=(const opened_memory &) = delete;
};
// Aborts if something wrote round an allocation of the device, whose memory is open; `after` names
// what ran last.
void check_all_guards(int device, const std::function<std::string()> &after);
size_t list_live_memory();

// ---- kernels
// cudaErrorInvalidValue or ...InvalidConfiguration where a real device would refuse the launch.
cudaError_t check_launch(const cudaLaunchConfig_t *config, const void *kernel);
// Demangled, from the symbol table of the program or library that holds it.
std::string kernel_name(const void *kernel);
// Into the file that DOSEMAP_EMULATED_LAUNCHES names, if it is set.
void note_launch(const launch &work);

// ---- streams
typedef std::function<void()> task;
// The stream's device; the current one for what is no stream.
int device_of(cudaStream_t stream);
// Queues the work on the stream, or records it if the stream is captured.
cudaError_t enqueue(cudaStream_t stream, task work);
// Runs everything that the stream's end depends on.
cudaError_t finish_stream(cudaStream_t stream);
cudaError_t finish_device(int device);
// cudaErrorStreamCaptureUnsupported, and the capture is spoiled, if a capture forbids such calls now.
cudaError_t refuse_in_capture();
} // namespace emulation

#endif
