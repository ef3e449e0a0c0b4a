// SPDX-License-Identifier: Apache-2.0
// Device memory and copies of the emulated runtime. A device allocation is a mapping of its own: a page
// that nobody can touch, guard bytes, the data, guard bytes, a page that nobody can touch. Outside
// copies and kernels the whole mapping is closed, so that the host cannot read device memory by mistake.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "emulated_fiber.h"
#include "emulated_runtime.h"

#ifdef EMULATED_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emulation
{
namespace
{
const size_t GUARD = 256; // before and, at least, after the data
const unsigned char GUARD_BYTE = 0xA5, FRESH_BYTE = 0xFF;
const size_t GRANULE = 512; // a device allocates whole multiples of this

const int NO_DEVICE = -1;

struct allocation {
    size_t bytes;
    unsigned char *mapping; // null for pinned host memory
    size_t mapping_bytes;
    int device;
};
std::map<uintptr_t, allocation> device_memory, pinned_memory;
int open_device = NO_DEVICE; // the one whose memory can be touched
struct sigaction earlier_action;

size_t page_bytes()
{
    static const size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    return bytes;
}

bool protecting()
{
    static const char *text = getenv("DOSEMAP_EMULATED_PROTECT");
    return !text || strcmp(text, "0") != 0;
}

void protect(const allocation &a, int access)
{
    mprotect(a.mapping + page_bytes(), a.mapping_bytes - 2 * page_bytes(), access);
}

unsigned char *guards_end(const allocation &a)
{
    return a.mapping + a.mapping_bytes - page_bytes();
}

// The allocation that holds the address or ends or begins at a guard round it; null if none does.
const allocation *find(const std::map<uintptr_t, allocation> &all, uintptr_t address,
                       uintptr_t *base)
{
    auto after = all.upper_bound(address);
    if (after == all.begin())
        return nullptr;
    --after;
    *base = after->first;
    return address <= after->first + after->second.bytes ? &after->second : nullptr;
}

void on_fault(int signal, siginfo_t *info, void *context)
{
    const uintptr_t at = reinterpret_cast<uintptr_t>(info->si_addr);
    uintptr_t base;
    const allocation *a = find(device_memory, at, &base);
    if (a && is_kernel())
        die("a kernel on device %d touched memory of device %d", open_device, a->device);
    if (a)
        die("host code touched device memory: byte %zu of an allocation of %zu bytes",
            (size_t)(at - base), a->bytes);
    if (earlier_action.sa_flags & SA_SIGINFO)
        earlier_action.sa_sigaction(signal, info, context);
    else if (earlier_action.sa_handler != SIG_DFL && earlier_action.sa_handler != SIG_IGN)
        earlier_action.sa_handler(signal);
    else
        sigaction(SIGSEGV, &earlier_action, nullptr); // and it happens again
}

void install_handler()
{
    static bool done;
    if (done)
        return;
    done = true;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &earlier_action);
}

void poison_guards(const allocation &a, unsigned char *data, bool poison)
{
#ifdef EMULATED_ASAN
    unsigned char *low = a.mapping + page_bytes(), *high = data + a.bytes;
    if (poison) {
        ASAN_POISON_MEMORY_REGION(low, (size_t)(data - low));
        ASAN_POISON_MEMORY_REGION(high, (size_t)(guards_end(a) - high));
    } else {
        ASAN_UNPOISON_MEMORY_REGION(low, (size_t)(guards_end(a) - low));
    }
#else
    (void)a, (void)data, (void)poison;
#endif
}

// The mapping has to be open, and the guards not poisoned.
void check_guards(uintptr_t base, const allocation &a, const std::function<std::string()> &after)
{
    const unsigned char *data = reinterpret_cast<const unsigned char *>(base);
    for (const unsigned char *p = a.mapping + page_bytes(); p < data; p++)
        if (*p != GUARD_BYTE)
            die("something wrote %zu bytes before a device allocation of %zu bytes; seen after %s",
                (size_t)(data - p), a.bytes, after().c_str());
    for (const unsigned char *p = data + a.bytes; p < guards_end(a); p++)
        if (*p != GUARD_BYTE)
            die("something wrote %zu bytes beyond a device allocation of %zu bytes; seen after %s",
                (size_t)(p - data) - a.bytes + 1, a.bytes, after().c_str());
}

size_t charged(size_t bytes)
{
    return (bytes + GRANULE - 1) / GRANULE * GRANULE;
}

cudaError_t allocate(void **pointer, size_t bytes)
{
    const int device = current_device();
    const size_t page = page_bytes(), limit = device_memory_limit(device);
    if (bytes > limit || charged(bytes) > limit - std::min(counts(device).device_bytes, limit))
        return cudaErrorMemoryAllocation;
    allocation a;
    a.bytes = bytes;
    a.device = device;
    a.mapping_bytes = 2 * page + (2 * GUARD + bytes + page - 1) / page * page;
    void *mapping = mmap(nullptr, a.mapping_bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED)
        return cudaErrorMemoryAllocation;
    a.mapping = static_cast<unsigned char *>(mapping);
    protect(a, PROT_READ | PROT_WRITE);
    unsigned char *data = a.mapping + page + GUARD;
    memset(a.mapping + page, GUARD_BYTE, GUARD);
    memset(data, FRESH_BYTE, bytes);
    memset(data + bytes, GUARD_BYTE, (size_t)(guards_end(a) - (data + bytes)));
    poison_guards(a, data, true);
    if (protecting() && open_device != device)
        protect(a, PROT_NONE);
    device_memory[reinterpret_cast<uintptr_t>(data)] = a;
    emulation_counts &c = counts(device);
    c.allocations++;
    c.live_device++;
    c.device_bytes += charged(bytes);
    c.device_bytes_peak = std::max(c.device_bytes_peak, c.device_bytes);
    *pointer = data;
    return cudaSuccess;
}
} // namespace

memory_kind kind_of(const void *pointer)
{
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    uintptr_t base;
    if (find(device_memory, at, &base))
        return memory_kind::device;
    return find(pinned_memory, at, &base) ? memory_kind::pinned : memory_kind::pageable;
}

void check_range(const void *pointer, size_t bytes, memory_kind expected, const char *what,
                 int number)
{
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    uintptr_t base = 0;
    const allocation *device = find(device_memory, at, &base);
    if (expected == memory_kind::device && !device)
        die("%s: %p is not in device memory", what, pointer);
    if (expected != memory_kind::device && device)
        die("%s: %p is in device memory, and host memory was announced", what, pointer);
    if (device && device->device != number)
        die("%s: %p is in memory of device %d, and the work is device %d's", what, pointer,
            device->device, number);
    const allocation *a = device ? device : find(pinned_memory, at, &base);
    if (a && bytes > a->bytes - (at - base))
        die("%s: %zu bytes at byte %zu reach beyond an allocation of %zu bytes", what, bytes,
            (size_t)(at - base), a->bytes);
}

cudaError_t resolve_kind(const void *to, const void *from, cudaMemcpyKind *kind)
{
    if ((unsigned)*kind > cudaMemcpyDefault)
        return cudaErrorInvalidMemcpyDirection;
    if (*kind == cudaMemcpyDefault)
        *kind = (cudaMemcpyKind)((kind_of(from) == memory_kind::device ? 2 : 0) +
                                 (kind_of(to) == memory_kind::device ? 1 : 0));
    return cudaSuccess;
}

namespace
{
void protect_all(int device, int access)
{
    for (const auto &each : device_memory)
        if (each.second.device == device)
            protect(each.second, access);
}

void change_open_device(int device)
{
    if (protecting() && device != open_device) {
        protect_all(open_device, PROT_NONE);
        protect_all(device, PROT_READ | PROT_WRITE);
    }
    open_device = device;
}
} // namespace

opened_memory::opened_memory(int device) : before(open_device)
{
    change_open_device(device);
}

opened_memory::~opened_memory()
{
    change_open_device(before);
}

void check_all_guards(int device, const std::function<std::string()> &after)
{
#ifndef EMULATED_ASAN
    for (const auto &each : device_memory)
        if (each.second.device == device)
            check_guards(each.first, each.second, after);
#else
    (void)device, (void)after;
#endif
}

size_t list_live_memory()
{
    for (const auto &each : device_memory)
        fprintf(stderr, "emulated CUDA: not freed: %zu bytes of device memory at %p\n",
                each.second.bytes, reinterpret_cast<void *>(each.first));
    for (const auto &each : pinned_memory)
        fprintf(stderr, "emulated CUDA: not freed: %zu bytes of pinned memory at %p\n",
                each.second.bytes, reinterpret_cast<void *>(each.first));
    return device_memory.size() + pinned_memory.size();
}

// ------------------------------------------------------------------------------------- copies

namespace
{
void count_copy(cudaMemcpyKind kind, size_t bytes, int device)
{
    emulation_counts &c = counts(device);
    if (kind == cudaMemcpyHostToDevice)
        c.copies_to_device++, c.bytes_to_device += bytes;
    else if (kind == cudaMemcpyDeviceToHost)
        c.copies_to_host++, c.bytes_to_host += bytes;
    else if (kind == cudaMemcpyDeviceToDevice)
        c.copies_on_device++, c.bytes_on_device += bytes;
}

void check_ends(void *to, size_t to_bytes, const void *from, size_t from_bytes, cudaMemcpyKind kind,
                int device)
{
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    check_range(from, from_bytes, from_device ? memory_kind::device : memory_kind::pageable,
                "source of a copy", device);
    check_range(to, to_bytes, to_device ? memory_kind::device : memory_kind::pageable,
                "destination of a copy", device);
}

void copy_now(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, int device)
{
    check_ends(to, bytes, from, bytes, kind, device); // again: it may have been freed
    const opened_memory open(device);
    memmove(to, from, bytes);
    count_copy(kind, bytes, device);
}

// Distance from the first byte of a box to behind its last.
size_t box_span(const cudaPitchedPtr &p, const cudaExtent &e)
{
    return ((e.depth - 1) * p.ysize + (e.height - 1)) * p.pitch + e.width;
}

unsigned char *box_start(const cudaPitchedPtr &p, const cudaPos &at)
{
    return static_cast<unsigned char *>(p.ptr) + (at.z * p.ysize + at.y) * p.pitch + at.x;
}

void check_box(const cudaMemcpy3DParms &p, int device)
{
    check_ends(box_start(p.dstPtr, p.dstPos), box_span(p.dstPtr, p.extent),
               box_start(p.srcPtr, p.srcPos), box_span(p.srcPtr, p.extent), p.kind, device);
}

void copy_box_now(const cudaMemcpy3DParms &p, int device)
{
    check_box(p, device);
    const opened_memory open(device);
    for (size_t z = 0; z < p.extent.depth; z++)
        for (size_t y = 0; y < p.extent.height; y++)
            memcpy(box_start(p.dstPtr, p.dstPos) + (z * p.dstPtr.ysize + y) * p.dstPtr.pitch,
                   box_start(p.srcPtr, p.srcPos) + (z * p.srcPtr.ysize + y) * p.srcPtr.pitch,
                   p.extent.width);
    count_copy(p.kind, p.extent.width * p.extent.height * p.extent.depth, device);
}

// cudaSuccess and empty = true where there is nothing to do.
cudaError_t check_box_arguments(cudaMemcpy3DParms *p, bool *empty)
{
    *empty = p->extent.width == 0 || p->extent.height == 0 || p->extent.depth == 0;
    if (p->srcArray || p->dstArray || (!*empty && (!p->srcPtr.ptr || !p->dstPtr.ptr)))
        return cudaErrorInvalidValue;
    const bool narrow = p->srcPos.x + p->extent.width > p->srcPtr.pitch ||
                        p->dstPos.x + p->extent.width > p->dstPtr.pitch;
    if (!*empty && narrow && (p->extent.height > 1 || p->extent.depth > 1))
        return cudaErrorInvalidPitchValue;
    return resolve_kind(p->dstPtr.ptr, p->srcPtr.ptr, &p->kind);
}

void set_now(void *to, int value, size_t bytes, int device)
{
    check_range(to, bytes, memory_kind::device, "destination of cudaMemset", device);
    const opened_memory open(device);
    memset(to, value, bytes);
    counts(device).sets++;
    counts(device).bytes_set += bytes;
}

// For calls that wait: what was issued before, then this.
cudaError_t begin_waiting_call()
{
    cudaError_t error = refuse_in_capture();
    return error == cudaSuccess ? finish_stream(nullptr) : error;
}
} // namespace
} // namespace emulation

using namespace emulation;

cudaError_t cudaMalloc(void **pointer, size_t bytes)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = !pointer ? cudaErrorInvalidValue : refuse_in_capture();
    if (error != cudaSuccess)
        return keep(error);
    install_handler();
    *pointer = nullptr;
    return bytes ? keep(allocate(pointer, bytes)) : cudaSuccess;
}

cudaError_t cudaFree(void *pointer)
{
    runtime_guard guard(runtime_lock());
    if (!pointer)
        return cudaSuccess;
    cudaError_t error = refuse_in_capture();
    if (error != cudaSuccess)
        return keep(error);
    auto found = device_memory.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == device_memory.end())
        die("cudaFree(%p): no such device allocation is alive", pointer);
    const allocation a = found->second;
    if ((error = finish_device(a.device)) != cudaSuccess)
        return keep(error);
    protect(a, PROT_READ | PROT_WRITE);
    poison_guards(a, static_cast<unsigned char *>(pointer), false);
    check_guards(found->first, a, [] { return std::string("its use, by cudaFree"); });
    munmap(a.mapping, a.mapping_bytes);
    device_memory.erase(found);
    counts(a.device).live_device--;
    counts(a.device).device_bytes -= charged(a.bytes);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned int flags)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = !pointer || flags > 7 ? cudaErrorInvalidValue : refuse_in_capture();
    if (error != cudaSuccess)
        return keep(error);
    *pointer = nullptr;
    if (bytes == 0)
        return cudaSuccess;
    if (posix_memalign(pointer, 256, bytes) != 0)
        return keep(cudaErrorMemoryAllocation);
    memset(*pointer, FRESH_BYTE, bytes);
    pinned_memory[reinterpret_cast<uintptr_t>(*pointer)] = {bytes, nullptr, 0, NO_DEVICE};
    counts(0).live_host++;
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **pointer, size_t bytes)
{
    return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *pointer)
{
    runtime_guard guard(runtime_lock());
    if (!pointer)
        return cudaSuccess;
    cudaError_t error = refuse_in_capture();
    if (error == cudaSuccess)
        error = finish_device(current_device());
    if (error != cudaSuccess)
        return keep(error);
    if (!pinned_memory.erase(reinterpret_cast<uintptr_t>(pointer)))
        die("cudaFreeHost(%p): no such pinned allocation is alive", pointer);
    free(pointer);
    counts(0).live_host--;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && (!free_bytes || !total))
        error = cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return keep(error);
    *total = device_memory_limit(current_device());
    *free_bytes = *total - std::min(counts(current_device()).device_bytes, *total);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = resolve_kind(to, from, &kind);
    if (error == cudaSuccess)
        error = begin_waiting_call();
    if (error == cudaSuccess && bytes > 0)
        copy_now(to, from, bytes, kind, current_device());
    return keep(error);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess)
        error = resolve_kind(to, from, &kind);
    if (error != cudaSuccess || bytes == 0)
        return keep(error);
    const int device = device_of(stream);
    check_ends(to, bytes, from, bytes, kind, device);
    return keep(enqueue(stream, [=] { copy_now(to, from, bytes, kind, device); }));
}

cudaError_t cudaMemcpy3D(const cudaMemcpy3DParms *parameters)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !parameters)
        error = cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return keep(error);
    cudaMemcpy3DParms p = *parameters;
    bool empty = false;
    error = check_box_arguments(&p, &empty);
    if (error == cudaSuccess)
        error = begin_waiting_call();
    if (error == cudaSuccess && !empty)
        copy_box_now(p, current_device());
    return keep(error);
}

cudaError_t cudaMemcpy3DAsync(const cudaMemcpy3DParms *parameters, cudaStream_t stream)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !parameters)
        error = cudaErrorInvalidValue;
    if (error != cudaSuccess)
        return keep(error);
    cudaMemcpy3DParms p = *parameters;
    bool empty = false;
    error = check_box_arguments(&p, &empty);
    if (error != cudaSuccess || empty)
        return keep(error);
    const int device = device_of(stream);
    check_box(p, device);
    return keep(enqueue(stream, [=] { copy_box_now(p, device); }));
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error != cudaSuccess || bytes == 0)
        return keep(error);
    const int device = device_of(stream);
    check_range(to, bytes, memory_kind::device, "destination of cudaMemset", device);
    return keep(enqueue(stream, [=] { set_now(to, value, bytes, device); }));
}

// Not waited for by the host, as on a real device.
cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    return cudaMemsetAsync(to, value, bytes, nullptr);
}
