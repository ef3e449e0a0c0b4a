// SPDX-License-Identifier: Apache-2.0
// The emulation's own test, second part: memory, copies, streams, events, graphs, planted faults and
// counters of the emulated runtime.
#include "kernel_case.h"

#include <algorithm>

#include "death_case.h"
#include "kernels/device.cuh"
#include "nvtx3/nvToolsExt.h"

#define OK(call) CHECK((call) == cudaSuccess)

static __global__ void add_kernel(float *x, float amount, int n)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        x[i] += amount;
}

static cudaError_t add(const device_buffer<float> &x, float amount, cudaStream_t stream)
{
    return launch(add_kernel, dim3(1), dim3(32), 0, stream, x.data(), amount, (int)x.size());
}

static std::vector<float> constant(size_t n, float value)
{
    return std::vector<float>(n, value);
}

struct stream_of_test {
    cudaStream_t it;
    explicit stream_of_test(unsigned flags = cudaStreamNonBlocking)
    {
        OK(cudaStreamCreateWithFlags(&it, flags));
    }
    ~stream_of_test()
    {
        OK(cudaStreamDestroy(it));
    }
};

struct event_of_test {
    cudaEvent_t it;
    explicit event_of_test(unsigned flags = cudaEventDefault)
    {
        OK(cudaEventCreateWithFlags(&it, flags));
    }
    ~event_of_test()
    {
        OK(cudaEventDestroy(it));
    }
};

// ------------------------------------------------------------------------------- memory

static void test_fresh_memory()
{
    unsigned char *device, got[1000];
    float *host;
    OK(cudaMalloc(&device, sizeof got));
    OK(cudaMallocHost(&host, 40));
    OK(cudaMemcpy(got, device, sizeof got, cudaMemcpyDeviceToHost));
    for (unsigned char byte : got)
        CHECK(byte == 0xFF);
    for (int i = 0; i < 10; i++)
        CHECK(isnan(host[i]));
    CHECK((uintptr_t)device % 256 == 0 && (uintptr_t)device % 512 != 0);
    OK(cudaMemset(device + 10, 7, 20));
    OK(cudaMemcpy(got, device, sizeof got, cudaMemcpyDefault));
    CHECK(got[9] == 0xFF && got[10] == 7 && got[29] == 7 && got[30] == 0xFF);
    OK(cudaFree(device));
    OK(cudaFreeHost(host));
    OK(cudaFree(nullptr));
    void *nothing = &device;
    OK(cudaMalloc(&nothing, 0));
    CHECK(!nothing);
}

static void test_limit()
{
    size_t free_bytes, total;
    char *a, *b, *small;
    emulation_set_memory(1 << 20);
    OK(cudaMemGetInfo(&free_bytes, &total));
    CHECK(total == 1 << 20 && free_bytes == total);
    OK(cudaMalloc(&a, 1000000));
    OK(cudaMemGetInfo(&free_bytes, &total));
    CHECK(free_bytes <= (1 << 20) - 1000000 && free_bytes >= (1 << 20) - 1000512);
    CHECK(cudaMalloc(&b, 100000) == cudaErrorMemoryAllocation && !b);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    OK(cudaMalloc(&small, 40000));
    CHECK(cudaMalloc(&b, SIZE_MAX) == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    OK(cudaFree(a));
    OK(cudaMalloc(&a, 1000000));
    OK(cudaFree(a));
    CHECK(emulation_counters().live_device == 1);
    OK(cudaFree(small));
    emulation_set_memory((size_t)1 << 31);
}

static void test_wrong_memory()
{
    device_buffer<float> x(10), y(10);
    std::vector<float> host(20);
    float *h = host.data(), *pinned, *freed;
    OK(cudaMallocHost(&pinned, 40));
    OK(cudaMalloc(&freed, 40));
    OK(cudaFree(freed));
    const cudaMemcpyKind up = cudaMemcpyHostToDevice, down = cudaMemcpyDeviceToHost;
    CHECK(dies([&] { cudaMemcpy(x.data(), h, 40, down); }, "not in device memory"));
    CHECK(dies([&] { cudaMemcpy(h, x.data(), 40, up); }, "host memory was announced"));
    CHECK(dies([&] { cudaMemcpy(h, h + 10, 40, up); }, "not in device memory"));
    CHECK(dies([&] { cudaMemcpy(x.data(), y.data(), 40, up); }, "host memory was announced"));
    CHECK(dies([&] { cudaMemcpy(x.data(), h, 41, up); }, "reach beyond an allocation of 40"));
    CHECK(dies([&] { cudaMemcpy(h, x.data() + 1, 40, down); }, "reach beyond"));
    CHECK(dies([&] { cudaMemcpy(x.data(), pinned, 80, up); }, "reach beyond"));
    CHECK(dies([&] { cudaMemcpyAsync(x.data(), h, 41, up, nullptr); }, "reach beyond"));
    CHECK(dies([&] { cudaMemset(x.data(), 0, 41); }, "reach beyond"));
    CHECK(dies([&] { cudaMemset(h, 0, 4); }, "not in device memory"));
    CHECK(dies([&] { cudaFree(freed); }, "no such device allocation is alive"));
    CHECK(dies([&] { cudaFree(x.data() + 1); }, "no such device allocation is alive"));
    CHECK(dies([&] { cudaFree(h); }, "no such device allocation is alive"));
    CHECK(dies([&] { cudaFreeHost(h); }, "no such pinned allocation is alive"));
    CHECK(dies([&] { cudaMemcpy(freed, h, 40, up); }, "not in device memory"));
    CHECK(dies([&] { x.data()[9] = 1; },
               "host code touched device memory: byte 36 of an allocation of 40 bytes"));
    CHECK(dies([&] { h[0] = *(volatile float *)x.data(); }, "host code touched device memory"));
    OK(cudaFreeHost(pinned));
}

// A box out of one array into another, both of odd sizes.
static void test_boxes()
{
    const size_t from[3] = {7, 5, 4}, to[3] = {9, 6, 5}, box[3] = {3, 4, 2};
    const std::vector<float> source = exact_values(7 * 5 * 4, 1);
    device_buffer<float> device(9 * 6 * 5);
    cudaMemcpy3DParms p = {};
    p.srcPtr = make_cudaPitchedPtr((void *)source.data(), from[0] * 4, from[0], from[1]);
    p.srcPos = make_cudaPos(2 * 4, 1, 2);
    p.dstPtr = make_cudaPitchedPtr(device.data(), to[0] * 4, to[0], to[1]);
    p.dstPos = make_cudaPos(6 * 4, 2, 1);
    p.extent = make_cudaExtent(box[0] * 4, box[1], box[2]);
    p.kind = cudaMemcpyHostToDevice;
    OK(cudaMemcpy3DAsync(&p, nullptr));
    const std::vector<float> got = device.download();
    size_t copied = 0;
    for (size_t z = 0; z < to[2]; z++)
        for (size_t y = 0; y < to[1]; y++)
            for (size_t x = 0; x < to[0]; x++) {
                const size_t i = x - 6, j = y - 2, k = z - 1;
                const float v = got[(z * to[1] + y) * to[0] + x];
                const bool inside = x >= 6 && y >= 2 && z >= 1 && i < 3 && j < 4 && k < 2;
                CHECK(inside ? v == source[((k + 2) * from[1] + j + 1) * from[0] + i + 2]
                             : isnan(v));
                copied += inside;
            }
    CHECK(copied == 24);
    CHECK(emulation_counters().bytes_to_device >= 96);
    p.dstPos.z = 4;
    CHECK(dies([&] { cudaMemcpy3D(&p); }, "reach beyond"));
    p.dstPos.z = 1;
    p.extent.width = 8 * 4;
    CHECK(cudaMemcpy3D(&p) == cudaErrorInvalidPitchValue);
    p.extent.width = 0;
    OK(cudaMemcpy3D(&p));
    CHECK(cudaGetLastError() == cudaErrorInvalidPitchValue);
}

// ------------------------------------------------------------------------------- streams

// A host buffer that is used again before its copy has been waited for.
static void test_deferred_copies()
{
    for (emulation_streams when : {EMULATION_DEFERRED, EMULATION_EAGER}) {
        emulation_set_streams(when);
        const bool late = when == EMULATION_DEFERRED;
        stream_of_test s;
        device_buffer<float> x(4);
        std::vector<float> host = constant(4, 1);
        OK(cudaMemcpyAsync(x.data(), host.data(), 16, cudaMemcpyHostToDevice, s.it));
        std::fill(host.begin(), host.end(), 2.0f);
        OK(add(x, 10, s.it));
        OK(cudaMemcpyAsync(host.data(), x.data(), 16, cudaMemcpyDeviceToHost, s.it));
        CHECK(host == constant(4, late ? 2 : 11));
        OK(cudaStreamSynchronize(s.it));
        CHECK(host == constant(4, late ? 12 : 11));
        emulation_set_streams(EMULATION_DEFERRED);
    }
}

// A copy that waits for the legacy stream does not wait for streams that do not block.
static void test_blocking()
{
    for (unsigned flags : {(unsigned)cudaStreamDefault, (unsigned)cudaStreamNonBlocking}) {
        stream_of_test s(flags);
        device_buffer<float> x(constant(4, 1));
        std::vector<float> host(4);
        OK(add(x, 1, s.it));
        OK(add(x, 1, s.it));
        OK(cudaMemcpy(host.data(), x.data(), 16, cudaMemcpyDeviceToHost));
        CHECK(host == constant(4, flags == cudaStreamDefault ? 3 : 1));
        OK(cudaDeviceSynchronize());
        OK(cudaMemcpy(host.data(), x.data(), 16, cudaMemcpyDeviceToHost));
        CHECK(host == constant(4, 3));

        // And the other way round: work of the legacy stream comes before a blocking stream's.
        OK(cudaMemsetAsync(x.data(), 0, 16, nullptr));
        OK(add(x, 5, s.it));
        OK(cudaStreamSynchronize(s.it));
        CHECK(x.download() == constant(4, flags == cudaStreamDefault ? 5 : 0));
    }
}

static void test_events()
{
    for (bool waits : {false, true}) {
        stream_of_test first, second;
        event_of_test done, begun;
        device_buffer<float> x(constant(4, 1)), y(4);
        OK(cudaEventRecord(begun.it, first.it));
        OK(add(x, 1, first.it));
        OK(cudaEventRecord(done.it, first.it));
        OK(add(x, 100, first.it)); // after the event: nobody waits for it
        if (waits)
            OK(cudaStreamWaitEvent(second.it, done.it, 0));
        OK(cudaMemcpyAsync(y.data(), x.data(), 16, cudaMemcpyDeviceToDevice, second.it));
        OK(cudaStreamSynchronize(second.it));
        std::vector<float> host(4);
        OK(cudaMemcpy(host.data(), y.data(), 16, cudaMemcpyDeviceToHost));
        CHECK(host == constant(4, waits ? 2 : 1));
        float ms = -1;
        if (!waits) {
            CHECK(cudaEventElapsedTime(&ms, begun.it, done.it) == cudaErrorNotReady);
            CHECK(cudaEventQuery(done.it) == cudaErrorNotReady);
            OK(cudaEventSynchronize(done.it));
        }
        OK(cudaEventQuery(done.it));
        OK(cudaEventElapsedTime(&ms, begun.it, done.it));
        CHECK(ms >= 0 && ms < 60000);
        int queries = 0;
        while (cudaStreamQuery(first.it) == cudaErrorNotReady)
            CHECK(++queries < 10);
        CHECK(queries == 1);
        OK(cudaMemcpy(host.data(), x.data(), 16, cudaMemcpyDeviceToHost));
        CHECK(host == constant(4, 102));
    }
    event_of_test never, untimed(cudaEventDisableTiming);
    float ms;
    OK(cudaEventSynchronize(never.it));
    OK(cudaStreamWaitEvent(nullptr, never.it, 0));
    OK(cudaEventRecord(untimed.it, nullptr));
    OK(cudaEventSynchronize(untimed.it));
    CHECK(cudaEventElapsedTime(&ms, untimed.it, untimed.it) == cudaErrorInvalidResourceHandle);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
}

static void test_handles()
{
    cudaStream_t stream;
    device_buffer<float> x(constant(4, 1));
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    OK(add(x, 1, stream));
    OK(cudaStreamDestroy(stream)); // its work is still done
    OK(cudaDeviceSynchronize());
    CHECK(x.download() == constant(4, 2));
    CHECK(add(x, 1, stream) == cudaErrorInvalidResourceHandle);
    CHECK(cudaStreamSynchronize(stream) == cudaErrorInvalidResourceHandle);
    CHECK(cudaStreamDestroy(stream) == cudaErrorInvalidResourceHandle);
    CHECK(cudaGetLastError() == cudaErrorInvalidResourceHandle);
    int value = 0;
    OK(cudaLaunchHostFunc(
        nullptr, [](void *to) { *static_cast<int *>(to) = 5; }, &value));
    CHECK(value == 0);
    OK(cudaDeviceSynchronize());
    CHECK(value == 5);
}

// ------------------------------------------------------------------------------- graphs

static void test_graph()
{
    stream_of_test s;
    device_buffer<float> x(constant(4, 1));
    std::vector<float> host = constant(4, 0);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamCaptureStatus status;
    OK(cudaStreamBeginCapture(s.it, cudaStreamCaptureModeThreadLocal));
    OK(cudaStreamIsCapturing(s.it, &status));
    CHECK(status == cudaStreamCaptureStatusActive);
    float amount = 3;
    OK(add(x, amount, s.it));
    amount = 1000; // what was captured keeps the 3
    OK(add(x, 1, s.it));
    OK(cudaMemcpyAsync(host.data(), x.data(), 16, cudaMemcpyDeviceToHost, s.it));
    OK(cudaStreamEndCapture(s.it, &graph));
    OK(cudaStreamIsCapturing(s.it, &status));
    CHECK(status == cudaStreamCaptureStatusNone);
    OK(cudaStreamSynchronize(s.it));
    CHECK(host == constant(4, 0)); // nothing has run
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    const emulation_counts before = emulation_counters();
    for (int i = 0; i < 3; i++)
        OK(cudaGraphLaunch(exec, s.it));
    CHECK(host == constant(4, 0));
    OK(cudaGraphExecDestroy(exec)); // what was launched runs all the same
    OK(cudaStreamSynchronize(s.it));
    CHECK(host == constant(4, 13));
    const emulation_counts after = emulation_counters();
    CHECK(after.graph_launches - before.graph_launches == 3);
    CHECK(after.launches - before.launches == 6);
    CHECK(after.bytes_to_host - before.bytes_to_host == 48);
    CHECK(cudaGraphLaunch(exec, s.it) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
}

// Each of these spoils the capture.
static void test_capture_refuses()
{
    device_buffer<float> x(4), y(4);
    event_of_test outside;
    float *more;
    float host[4];
    stream_of_test blocking(cudaStreamDefault), other;
    OK(cudaEventRecord(outside.it, other.it));
    const cudaError_t unsupported = cudaErrorStreamCaptureUnsupported;
    for (int what = 0; what < 8; what++) {
        cudaGraph_t graph = nullptr;
        cudaStreamCaptureStatus status;
        cudaStream_t s = blocking.it;
        OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
        OK(add(x, 1, s));
        if (what == 0)
            CHECK(cudaMalloc(&more, 4) == unsupported);
        if (what == 1)
            CHECK(cudaStreamSynchronize(s) == unsupported);
        if (what == 2)
            CHECK(cudaDeviceSynchronize() == unsupported);
        if (what == 3)
            CHECK(cudaMemcpy(host, x.data(), 16, cudaMemcpyDeviceToHost) == unsupported);
        if (what == 4)
            CHECK(cudaStreamQuery(s) == unsupported);
        if (what == 5)
            CHECK(add(y, 1, nullptr) == cudaErrorStreamCaptureImplicit);
        if (what == 6)
            CHECK(cudaStreamWaitEvent(s, outside.it, 0) == cudaErrorStreamCaptureIsolation);
        if (what == 7) {
            event_of_test inside;
            OK(cudaEventRecord(inside.it, s));
            CHECK(cudaEventSynchronize(inside.it) == cudaErrorCapturedEvent);
        }
        OK(cudaStreamIsCapturing(s, &status));
        CHECK(status == cudaStreamCaptureStatusInvalidated);
        CHECK(add(x, 1, s) == cudaErrorStreamCaptureInvalidated);
        CHECK(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated && !graph);
        CHECK(cudaGetLastError() == cudaErrorStreamCaptureInvalidated);
        OK(cudaStreamSynchronize(s)); // and the stream is as before
    }
    cudaGraph_t graph;
    CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeGlobal) == unsupported);
    CHECK(cudaStreamEndCapture(other.it, &graph) == cudaErrorStreamCaptureUnmatched);
    OK(cudaStreamBeginCapture(other.it, cudaStreamCaptureModeRelaxed));
    OK(cudaMalloc(&more, 4)); // a relaxed capture lets it pass
    OK(cudaFree(more));
    OK(cudaStreamEndCapture(other.it, &graph));
    OK(cudaGraphDestroy(graph));
    CHECK(cudaGetLastError() == cudaErrorStreamCaptureUnmatched);
}

// A capture that spreads to a second stream, and has to come back.
static void test_forked_capture()
{
    for (bool joined : {false, true}) {
        stream_of_test first, second;
        event_of_test fork, join;
        device_buffer<float> x(constant(4, 1)), y(constant(4, 10));
        cudaGraph_t graph;
        OK(cudaStreamBeginCapture(first.it, cudaStreamCaptureModeGlobal));
        OK(add(x, 1, first.it));
        OK(cudaEventRecord(fork.it, first.it));
        OK(cudaStreamWaitEvent(second.it, fork.it, 0));
        OK(add(y, 1, second.it));
        OK(cudaEventRecord(join.it, second.it));
        if (joined)
            OK(cudaStreamWaitEvent(first.it, join.it, 0));
        const cudaError_t error = cudaStreamEndCapture(first.it, &graph);
        CHECK(error == (joined ? cudaSuccess : cudaErrorStreamCaptureUnjoined));
        CHECK(cudaGetLastError() == error);
        if (joined) {
            cudaGraphExec_t exec;
            OK(cudaGraphInstantiate(&exec, graph, 0));
            OK(cudaGraphLaunch(exec, second.it));
            OK(cudaStreamSynchronize(second.it));
            OK(cudaGraphExecDestroy(exec));
            OK(cudaGraphDestroy(graph));
        }
        CHECK(x.download() == constant(4, joined ? 2 : 1));
        CHECK(y.download() == constant(4, joined ? 11 : 10));
    }
}

// ------------------------------------------------------------------------------- faults, counters

static cudaError_t some_work()
{
    float *device = nullptr, host[4] = {1, 2, 3, 4};
    cudaError_t error = cudaMalloc(&device, sizeof host);
    if (error == cudaSuccess)
        error = cudaMemcpy(device, host, sizeof host, cudaMemcpyHostToDevice);
    if (error == cudaSuccess)
        error = launch(add_kernel, dim3(1), dim3(32), 0, nullptr, device, 1.0f, 4);
    if (error == cudaSuccess)
        error = cudaMemcpy(host, device, sizeof host, cudaMemcpyDeviceToHost);
    CHECK(error != cudaSuccess || host[3] == 5);
    cudaFree(device);
    return error;
}

static void test_planted_faults()
{
    emulation_reset_counters();
    OK(some_work());
    const emulation_counts c = emulation_counters();
    CHECK(c.calls == 4 && c.launches == 1 && c.allocations == 1);
    CHECK(c.copies_to_device == 1 && c.bytes_to_device == 16);
    CHECK(c.copies_to_host == 1 && c.bytes_to_host == 16);
    CHECK(c.device_bytes == 0 && c.device_bytes_peak >= 16 && c.live_device == 0);
    for (uint64_t n = 1; n <= 4; n++) {
        emulation_fail_call(n, cudaErrorLaunchFailure);
        CHECK(some_work() == cudaErrorLaunchFailure);
        CHECK(cudaPeekAtLastError() == cudaErrorLaunchFailure);
        CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
        CHECK(cudaGetLastError() == cudaSuccess);
        CHECK(emulation_counters().live_device == 0);
    }
    emulation_fail_call(5, cudaErrorLaunchFailure);
    OK(some_work());
    emulation_fail_call(0, cudaSuccess);
    OK(some_work());
}

static void test_leaks()
{
    int status;
    const std::string text = run_in_child(
        [] {
            char *device, *pinned;
            cudaEvent_t event;
            OK(cudaMalloc(&device, 123));
            OK(cudaMallocHost(&pinned, 45));
            OK(cudaEventCreate(&event));
            CHECK(emulation_list_leaks() == 3);
        },
        &status);
    CHECK(status == 0 && text.find("not freed: 123 bytes of device memory") != std::string::npos);
    CHECK(text.find("45 bytes of pinned memory") != std::string::npos);
    CHECK(emulation_list_leaks() == 0);
}

static void test_device()
{
    int value = -1;
    cudaDeviceProp prop;
    OK(cudaGetDeviceCount(&value));
    CHECK(value == 1);
    CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice && cudaGetLastError() != cudaSuccess);
    OK(cudaSetDevice(0));
    OK(cudaGetDeviceProperties(&prop, 0));
    CHECK(strcmp(prop.name, "emulated device") == 0 && prop.major == 9 && prop.minor == 0);
    emulation_set_compute_capability(8, 6);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMinor, 0));
    CHECK(value == 6);
    emulation_set_compute_capability(9, 0);
    OK(cudaRuntimeGetVersion(&value));
    CHECK(value == CUDART_VERSION);
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&value, add_kernel, 256, 100 * 1024));
    CHECK(value == 2);
    CHECK(strcmp(cudaGetErrorName(cudaErrorMemoryAllocation), "cudaErrorMemoryAllocation") == 0);
    CHECK(strcmp(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory") == 0);
}

static void test_ranges()
{
    CHECK(nvtxRangePushA("outer") == 0);
    CHECK(nvtxRangePushA("inner") == 1 && emulation_nvtx_depth() == 2);
    CHECK(nvtxRangePop() == 1);
    CHECK(nvtxRangePop() == 0 && emulation_nvtx_depth() == 0);
    CHECK(dies([] { nvtxRangePop(); }, "without a range"));
}

int main()
{
    test_wrong_memory();
    test_leaks();
    return run_in_all_orders({{"fresh memory", test_fresh_memory},
                              {"limit", test_limit},
                              {"boxes", test_boxes},
                              {"deferred copies", test_deferred_copies},
                              {"blocking streams", test_blocking},
                              {"events", test_events},
                              {"handles", test_handles},
                              {"graph", test_graph},
                              {"capture refuses", test_capture_refuses},
                              {"forked capture", test_forked_capture},
                              {"planted faults", test_planted_faults},
                              {"device", test_device},
                              {"ranges", test_ranges}});
}
