// SPDX-License-Identifier: Apache-2.0
// Errors, the device's properties, limits of launches and the settings of the emulated runtime.
#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "emulated_runtime.h"
#include "nvtx3/nvToolsExt.h"

namespace emulation
{
namespace
{
__thread cudaError_t last_error;
// By device and kernel: what a kernel is allowed on one device says nothing of another.
std::map<std::pair<int, const void *>, size_t> &shared_allowed()
{
    static std::map<std::pair<int, const void *>, size_t> allowed;
    return allowed;
}

// The name of the symbol that begins at this address, from the file's full symbol table: static kernels
// are in no other.
std::string symbol_at(const char *path, uintptr_t address)
{
    std::string name;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (file < 0 || fstat(file, &status) != 0)
        return name;
    const size_t bytes = (size_t)status.st_size;
    void *mapping = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (mapping == MAP_FAILED)
        return name;
    const char *image = static_cast<const char *>(mapping);
    ElfW(Ehdr) header;
    memcpy(&header, image, sizeof header);
    for (unsigned s = 0; s < header.e_shnum; s++) {
        ElfW(Shdr) table, strings;
        memcpy(&table, image + header.e_shoff + s * sizeof table, sizeof table);
        if (table.sh_type != SHT_SYMTAB)
            continue;
        memcpy(&strings, image + header.e_shoff + table.sh_link * sizeof strings, sizeof strings);
        for (size_t i = 0; i < table.sh_size / sizeof(ElfW(Sym)); i++) {
            ElfW(Sym) symbol;
            memcpy(&symbol, image + table.sh_offset + i * sizeof symbol, sizeof symbol);
            if (symbol.st_value == address && (symbol.st_info & 0xf) == STT_FUNC)
                name = image + strings.sh_offset + symbol.st_name;
        }
    }
    munmap(mapping, bytes);
    return name;
}
} // namespace

std::string kernel_name(const void *kernel)
{
    Dl_info info;
    link_map *map = nullptr;
    if (!kernel || !dladdr1(kernel, &info, reinterpret_cast<void **>(&map), RTLD_DL_LINKMAP) ||
        !map)
        return "unknown";
    const bool program = !map->l_name || !*map->l_name;
    const std::string mangled = symbol_at(program ? "/proc/self/exe" : map->l_name,
                                          reinterpret_cast<uintptr_t>(kernel) - map->l_addr);
    int status = -1;
    char *plain = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
    const std::string name = status == 0 ? plain : mangled.empty() ? "unknown" : mangled;
    free(plain);
    return name;
}

std::recursive_mutex &runtime_lock()
{
    static std::recursive_mutex lock;
    return lock;
}

void die(const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "emulated CUDA: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

cudaError_t keep(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady)
        last_error = error;
    return error;
}

cudaError_t check_launch(const cudaLaunchConfig_t *config, const void *kernel)
{
    if (!config || !kernel)
        return cudaErrorInvalidValue;
    const dim3 &g = config->gridDim, &b = config->blockDim;
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (!b.x || !b.y || !b.z || b.x > 1024 || b.y > 1024 || b.z > 64 || b.x * b.y * b.z > 1024)
        return cudaErrorInvalidConfiguration;
    const auto allowed = shared_allowed().find({current_device(), kernel});
    const size_t most = allowed == shared_allowed().end() ? SHARED_WITHOUT_ASKING : allowed->second;
    return config->dynamicSmemBytes > most ? cudaErrorInvalidValue : cudaSuccess;
}
} // namespace emulation

using namespace emulation;

extern "C" size_t emulation_list_leaks(void)
{
    runtime_guard guard(runtime_lock());
    const emulation_counts c = emulation_counters();
    if (c.live_streams + c.live_events + c.live_graphs)
        fprintf(stderr, "emulated CUDA: not destroyed: %zu streams, %zu events, %zu graphs\n",
                c.live_streams, c.live_events, c.live_graphs);
    return list_live_memory() + c.live_streams + c.live_events + c.live_graphs;
}

const char *cudaGetErrorName(cudaError_t error)
{
#define NAME(name, number, text)                                                                   \
    case name:                                                                                     \
        return #name;
    switch (error) {
        EMULATED_ERRORS(NAME)
    }
#undef NAME
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
#define TEXT(name, number, text)                                                                   \
    case name:                                                                                     \
        return text;
    switch (error) {
        EMULATED_ERRORS(TEXT)
    }
#undef TEXT
    return "unrecognized error code";
}

cudaError_t cudaGetLastError(void)
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

// A card of the H100's size.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !prop)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess && (device < 0 || device >= devices()))
        error = cudaErrorInvalidDevice;
    if (error != cudaSuccess)
        return keep(error);
    *prop = {};
    snprintf(prop->name, sizeof prop->name, "emulated device");
    prop->totalGlobalMem = device_memory_limit(device);
    prop->pciBusID = device + 1;
    prop->sharedMemPerBlock = SHARED_WITHOUT_ASKING;
    prop->sharedMemPerBlockOptin = SHARED_MOST;
    prop->sharedMemPerMultiprocessor = SHARED_MOST + 1024;
    prop->reservedSharedMemPerBlock = 1024;
    prop->regsPerBlock = prop->regsPerMultiprocessor = 65536;
    prop->warpSize = 32;
    prop->memPitch = 0x7fffffff;
    prop->maxThreadsPerBlock = prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024;
    prop->maxThreadsDim[2] = 64;
    prop->maxGridSize[0] = 0x7fffffff;
    prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
    prop->totalConstMem = 65536;
    device_capability(device, &prop->major, &prop->minor);
    prop->multiProcessorCount = 132;
    prop->canMapHostMemory = prop->concurrentKernels = prop->unifiedAddressing = 1;
    prop->asyncEngineCount = 3;
    prop->memoryBusWidth = 5120;
    prop->l2CacheSize = 50 << 20;
    prop->maxThreadsPerMultiProcessor = 2048;
    prop->maxBlocksPerMultiProcessor = 32;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess || !value)
        return keep(error == cudaSuccess ? cudaErrorInvalidValue : error);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        return cudaSuccess;
    case cudaDevAttrMaxGridDimX:
        *value = p.maxGridSize[0];
        return cudaSuccess;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        *value = p.maxGridSize[1];
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        return cudaSuccess;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        return cudaSuccess;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        return cudaSuccess;
    case cudaDevAttrAsyncEngineCount:
        *value = p.asyncEngineCount;
        return cudaSuccess;
    case cudaDevAttrUnifiedAddressing:
        *value = p.unifiedAddressing;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        return cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        *value = p.maxBlocksPerMultiProcessor;
        return cudaSuccess;
    }
    return keep(cudaErrorInvalidValue);
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !kernel)
        error = cudaErrorInvalidDeviceFunction;
    if (error == cudaSuccess && attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || (size_t)value > SHARED_MOST)
            return keep(cudaErrorInvalidValue);
        shared_allowed()[{current_device(), kernel}] = (size_t)value;
    }
    return keep(error);
}

// What threads and shared memory allow; registers are not known here.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel,
                                                          int block_size, size_t shared_bytes)
{
    if (!kernel || block_size < 1 || block_size > 1024 || shared_bytes > SHARED_MOST)
        return keep(cudaErrorInvalidValue);
    const int threads = (block_size + 31) / 32 * 32;
    const int by_shared = (int)((SHARED_MOST + 1024) / (shared_bytes + 1024));
    runtime_guard guard(runtime_lock());
    cudaError_t error = enter_call();
    if (error == cudaSuccess && !blocks)
        error = cudaErrorInvalidValue;
    if (error == cudaSuccess)
        *blocks = std::min(32, std::min(2048 / threads, by_shared));
    return keep(error);
}

// ------------------------------------------------------------------------------------- ranges

static __thread int ranges;

extern "C" int nvtxRangePushA(const char *)
{
    return ranges++;
}

extern "C" int nvtxRangePop(void)
{
    if (ranges == 0)
        die("nvtxRangePop() without a range");
    return --ranges;
}

extern "C" void nvtxMarkA(const char *)
{
}

extern "C" int emulation_nvtx_depth(void)
{
    return ranges;
}
