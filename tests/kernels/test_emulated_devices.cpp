// SPDX-License-Identifier: Apache-2.0
// The emulation's own test, third part: several devices, and threads that work with one each.
#include "kernel_case.h"

#include <atomic>
#include <thread>

#include "death_case.h"
#include "kernels/device.cuh"

#define OK(call) CHECK((call) == cudaSuccess)

static const size_t BYTES = 64;

static __global__ void add_kernel(float *x, float amount, int n)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        x[i] += amount;
}

static cudaError_t add(float *x, float amount, cudaStream_t stream)
{
    return launch(add_kernel, dim3(1), dim3(32), 0, stream, x, amount, 16);
}

// Memory and a stream of one device. The current device is that one afterwards.
struct on_device {
    int number;
    float *memory;
    cudaStream_t stream;
    explicit on_device(int device) : number(device)
    {
        OK(cudaSetDevice(number));
        OK(cudaMalloc(&memory, BYTES));
        OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    ~on_device()
    {
        OK(cudaSetDevice(number));
        OK(cudaStreamDestroy(stream));
        OK(cudaFree(memory));
        OK(cudaSetDevice(0));
    }
};

static void test_current_device()
{
    int value = -1;
    OK(cudaGetDeviceCount(&value));
    CHECK(value == 3);
    OK(cudaGetDevice(&value));
    CHECK(value == 0);
    OK(cudaSetDevice(2));
    int seen = -1;
    std::thread([&] { OK(cudaGetDevice(&seen)); }).join();
    CHECK(seen == 0); // a thread begins with the first
    OK(cudaGetDevice(&value));
    CHECK(value == 2);
    for (int none : {-1, 3, 1000})
        CHECK(cudaSetDevice(none) == cudaErrorInvalidDevice);
    CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
    OK(cudaGetDevice(&value));
    CHECK(value == 2);
    OK(cudaSetDevice(0));
}

static void test_properties()
{
    cudaDeviceProp prop;
    size_t free_bytes, total;
    emulation_set_memory_of(1, 1 << 20);
    emulation_set_compute_capability_of(1, 8, 6);
    for (int device = 0; device < 3; device++) {
        OK(cudaGetDeviceProperties(&prop, device));
        CHECK(prop.major == (device == 1 ? 8 : 9) && prop.minor == (device == 1 ? 6 : 0));
        CHECK(prop.totalGlobalMem == (device == 1 ? (size_t)1 << 20 : (size_t)2 << 30));
    }
    CHECK(cudaGetDeviceProperties(&prop, 3) == cudaErrorInvalidDevice);
    CHECK(cudaGetLastError() == cudaErrorInvalidDevice);
    OK(cudaSetDevice(1));
    float *large = nullptr;
    CHECK(cudaMalloc(&large, 2 << 20) == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    OK(cudaSetDevice(2)); // the other one has it
    OK(cudaMalloc(&large, 2 << 20));
    OK(cudaMemGetInfo(&free_bytes, &total));
    CHECK(total - free_bytes == 2 << 20);
    OK(cudaSetDevice(0));
    OK(cudaMemGetInfo(&free_bytes, &total));
    CHECK(total == free_bytes);
    CHECK(emulation_counters_of(2).device_bytes == 2 << 20);
    CHECK(emulation_counters_of(0).device_bytes == 0);
    CHECK(emulation_counters().device_bytes == 2 << 20);
    OK(cudaSetDevice(2));
    OK(cudaFree(large));
    OK(cudaSetDevice(0));
    emulation_set_memory((size_t)2 << 30);
    emulation_set_compute_capability(9, 0);
}

// What belongs to one device and is used with another one.
static void test_wrong_device()
{
    on_device first(0), second(1);
    std::vector<float> host(16, 1.0f);
    const cudaMemcpyKind up = cudaMemcpyHostToDevice, on = cudaMemcpyDeviceToDevice;
    CHECK(dies([&] { cudaMemcpy(first.memory, host.data(), BYTES, up); },
               "memory of device 0, and the work is device 1's"));
    CHECK(dies([&] { cudaMemcpyAsync(first.memory, host.data(), BYTES, up, second.stream); },
               "memory of device 0"));
    CHECK(dies([&] { cudaMemcpyAsync(first.memory, second.memory, BYTES, on, second.stream); },
               "destination of a copy", "memory of device 0"));
    CHECK(dies([&] { cudaMemcpyAsync(second.memory, first.memory, BYTES, on, second.stream); },
               "source of a copy", "memory of device 0"));
    CHECK(dies([&] { cudaMemsetAsync(first.memory, 0, BYTES, second.stream); }, "device 0"));
    CHECK(dies(
        [&] {
            add(first.memory, 1, second.stream);
            cudaStreamSynchronize(second.stream);
        },
        "a kernel on device 1 touched memory of device 0"));
    CHECK(add(second.memory, 1, first.stream) == cudaErrorInvalidResourceHandle);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
    OK(cudaMemcpyAsync(second.memory, host.data(), BYTES, up, second.stream));
    OK(add(second.memory, 1, second.stream));
    OK(cudaMemcpyAsync(host.data(), second.memory, BYTES, cudaMemcpyDeviceToHost, second.stream));
    OK(cudaStreamSynchronize(second.stream));
    CHECK(host == std::vector<float>(16, 2.0f));
    float *more;
    OK(cudaMalloc(&more, BYTES));
    OK(cudaMemsetAsync(more, 0, BYTES, second.stream));
    OK(cudaSetDevice(0));
    OK(cudaFree(more)); // whose device waits
    CHECK(emulation_counters_of(1).live_device == 1);
}

// An event is its device's, and can be waited for on all of them.
static void test_events()
{
    on_device first(0), second(1);
    std::vector<float> host(16, 0.0f);
    cudaEvent_t of_second;
    OK(cudaEventCreate(&of_second));
    CHECK(cudaEventRecord(of_second, first.stream) == cudaErrorInvalidResourceHandle);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
    OK(cudaMemsetAsync(second.memory, 0, BYTES, second.stream));
    OK(add(second.memory, 5, second.stream));
    OK(cudaMemcpyAsync(host.data(), second.memory, BYTES, cudaMemcpyDeviceToHost, second.stream));
    OK(cudaEventRecord(of_second, second.stream));
    OK(cudaSetDevice(0));
    OK(cudaStreamWaitEvent(first.stream, of_second, 0));
    OK(cudaMemcpyAsync(first.memory, host.data(), BYTES, cudaMemcpyHostToDevice, first.stream));
    OK(add(first.memory, 1, first.stream));
    std::vector<float> got(16);
    OK(cudaMemcpyAsync(got.data(), first.memory, BYTES, cudaMemcpyDeviceToHost, first.stream));
    OK(cudaStreamSynchronize(first.stream));
    CHECK(got == std::vector<float>(16, 6.0f));
    OK(cudaEventDestroy(of_second));
}

static void test_graphs()
{
    on_device first(0), second(1);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaMemset(second.memory, 0, BYTES));
    OK(cudaDeviceSynchronize());
    OK(cudaStreamBeginCapture(second.stream, cudaStreamCaptureModeThreadLocal));
    OK(add(second.memory, 1, second.stream));
    OK(cudaStreamEndCapture(second.stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    CHECK(dies([&] { cudaGraphLaunch(exec, first.stream); }, "a graph of device 1"));
    OK(cudaGraphLaunch(exec, second.stream));
    OK(cudaStreamSynchronize(second.stream));
    CHECK(emulation_counters_of(1).graph_launches == 1);
    CHECK(emulation_counters_of(0).graph_launches == 0);
    OK(cudaGraphExecDestroy(exec));
    emulation_reset_counters();
}

static __global__ void fill_kernel(float *x, int n)
{
    float *shared = dynamic_shared<float>();
    if (threadIdx.x == 0)
        shared[n - 1] = 7;
    __syncthreads();
    x[threadIdx.x] = shared[n - 1];
}

// More shared memory than usual is allowed for each device by itself.
static void test_shared_memory_of_each()
{
    const int floats = 60 * 1024 / 4;
    const void *kernel = reinterpret_cast<const void *>(fill_kernel);
    on_device first(0), second(1);
    cudaLaunchConfig_t config = {};
    config.gridDim = config.blockDim = dim3(1);
    config.dynamicSmemBytes = floats * sizeof(float);
    config.stream = second.stream;
    OK(cudaSetDevice(0));
    OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 60 * 1024));
    OK(cudaSetDevice(1));
    CHECK(cudaLaunchKernelEx(&config, fill_kernel, second.memory, floats) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    for (on_device *each : {&first, &second}) { // launch() sees to it
        OK(cudaSetDevice(each->number));
        OK(launch(fill_kernel, dim3(1), dim3(1), config.dynamicSmemBytes, each->stream,
                  each->memory, floats));
        OK(cudaStreamSynchronize(each->stream));
    }
    OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 0));
    OK(cudaSetDevice(0));
    OK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 0));
}

static void test_planted_faults()
{
    emulation_fail_call_of(1, 1, cudaErrorLaunchFailure);
    cudaStream_t stream;
    OK(cudaStreamCreate(&stream)); // on the first device
    OK(cudaStreamDestroy(stream));
    OK(cudaSetDevice(1));
    CHECK(cudaStreamCreate(&stream) == cudaErrorLaunchFailure);
    CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
    OK(cudaStreamCreate(&stream));
    OK(cudaStreamDestroy(stream));
    OK(cudaSetDevice(0));
}

// A thread for each device, all at once: captures, copies and kernels of one are none of the others'.
static void test_threads()
{
    std::atomic<int> wrong(0);
    std::vector<std::thread> threads;
    for (int device = 0; device < 3; device++)
        threads.emplace_back([device, &wrong] {
            on_device mine(device);
            for (int round = 0; round < 20; round++) {
                std::vector<float> host(16, (float)device);
                cudaGraph_t graph;
                cudaGraphExec_t exec;
                float *more;
                OK(cudaMemcpyAsync(mine.memory, host.data(), BYTES, cudaMemcpyHostToDevice,
                                   mine.stream));
                OK(cudaStreamSynchronize(mine.stream));
                OK(cudaStreamBeginCapture(mine.stream, cudaStreamCaptureModeThreadLocal));
                OK(add(mine.memory, 10, mine.stream));
                OK(cudaStreamEndCapture(mine.stream, &graph));
                OK(cudaMalloc(&more, 100));
                OK(cudaGraphInstantiate(&exec, graph, 0));
                OK(cudaGraphLaunch(exec, mine.stream));
                OK(cudaGraphLaunch(exec, mine.stream));
                OK(cudaMemcpyAsync(host.data(), mine.memory, BYTES, cudaMemcpyDeviceToHost,
                                   mine.stream));
                OK(cudaStreamSynchronize(mine.stream));
                wrong += host != std::vector<float>(16, (float)(device + 20));
                OK(cudaGraphExecDestroy(exec));
                OK(cudaGraphDestroy(graph));
                OK(cudaFree(more));
            }
        });
    for (std::thread &each : threads)
        each.join();
    CHECK(wrong == 0);
    CHECK(emulation_list_leaks() == 0);
}

int main()
{
    emulation_set_devices(3);
    return run_in_all_orders({{"current device", test_current_device},
                              {"properties", test_properties},
                              {"wrong device", test_wrong_device},
                              {"events", test_events},
                              {"graphs", test_graphs},
                              {"shared memory of each device", test_shared_memory_of_each},
                              {"planted faults", test_planted_faults},
                              {"threads", test_threads}});
}
