// SPDX-License-Identifier: Apache-2.0
// The emulation's own test, first part: threads, barriers, warps and shared memory. What a kernel does
// wrong has to end the process with a report, or to give a wrong result in one of the orders.
#include "kernel_case.h"

#include <cuda_pipeline.h>

#include "death_case.h"
#include "kernels/device.cuh"

static const unsigned FULL = 0xffffffffu;

template <class... Parameters, class... Arguments>
static void run(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                Arguments... arguments)
{
    CHECK(launch(kernel, grid, block, shared, nullptr, arguments...) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

// ------------------------------------------------------------------------------- threads

static __global__ void positions_kernel(unsigned *seen)
{
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned in_block = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned i = block * blockDim.x * blockDim.y * blockDim.z + in_block;
    atomicAdd(&seen[i], 1u + i);
}

static void test_positions()
{
    for (dim3 block : {dim3(1), dim3(31), dim3(33, 3, 5), dim3(1024), dim3(2, 8, 64)}) {
        const dim3 grid(3, 2, 5);
        const unsigned n = 30 * block.x * block.y * block.z;
        device_buffer<unsigned> seen(std::vector<unsigned>(n, 0));
        run(positions_kernel, grid, block, 0, seen.data());
        const std::vector<unsigned> got = seen.download();
        for (unsigned i = 0; i < n; i++)
            CHECK(got[i] == 1 + i);
    }
}

static __global__ void atomics_kernel(int *s, unsigned *u, unsigned long long *l)
{
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&s[0], -1);
    atomicMin(&s[1], -(int)i);
    atomicMax(&s[2], (int)i);
    atomicAdd(&u[0], 2u);
    atomicMin(&u[1], i + 7);
    atomicMax(&u[2], i);
    atomicOr(&u[3], 1u << i % 32);
    atomicAdd(&l[0], 1ull << 32);
    atomicMax(&l[1], (unsigned long long)i << 20);
    unsigned long long old = l[2], assumed;
    do {
        assumed = old;
        old = atomicCAS(&l[2], assumed, assumed + 3);
    } while (old != assumed);
    if (i == 5)
        atomicExch(&s[3], 42);
}

static void test_atomics()
{
    const int n = 64 * 256;
    for (int threads : {1, 3}) {
        emulation_set_threads(threads);
        device_buffer<int> s(std::vector<int>(4, 0));
        device_buffer<unsigned> u(std::vector<unsigned>{0, ~0u, 0, 0});
        device_buffer<unsigned long long> l(std::vector<unsigned long long>(3, 0));
        run(atomics_kernel, dim3(64), dim3(256), 0, s.data(), u.data(), l.data());
        CHECK((s.download() == std::vector<int>{-n, -(n - 1), n - 1, 42}));
        CHECK((u.download() == std::vector<unsigned>{2 * n, 7, n - 1, FULL}));
        CHECK((l.download() == std::vector<unsigned long long>{(unsigned long long)n << 32,
                                                               (unsigned long long)(n - 1) << 20,
                                                               3 * n}));
    }
    emulation_set_threads(0);
}

// ------------------------------------------------------------------------------- barriers

// broken: a barrier is left out.
static __global__ void sum_kernel(const float *x, float *sum, int n, bool broken)
{
    float *part = dynamic_shared<float>(), v = 0;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
        v += x[i];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    if (!broken)
        __syncthreads();
    if (threadIdx.x < 32) {
        v = warp_sum(threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f);
        if (threadIdx.x == 0)
            *sum = v;
    }
}

// Each block sums over tiles that all its threads load together.
static __global__ void tiles_kernel(const float *x, float *out, int tiles, bool no_first,
                                    bool no_second)
{
    float *tile = dynamic_shared<float>(), v = 0;
    for (int t = 0; t < tiles; t++) {
        tile[threadIdx.x] = x[t * (int)blockDim.x + (int)threadIdx.x];
        if (!no_first)
            __syncthreads();
        for (unsigned i = 0; i < blockDim.x; i++)
            v += tile[i];
        if (!no_second)
            __syncthreads();
    }
    out[threadIdx.x] = v;
}

// Neighbours in a warp exchange through shared memory.
static __global__ void neighbours_kernel(float *out, bool forward, bool broken)
{
    float *cell = dynamic_shared<float>();
    cell[threadIdx.x] = (float)threadIdx.x;
    if (!broken)
        __syncwarp();
    out[threadIdx.x] = cell[(threadIdx.x + (forward ? 1 : 31)) % 32];
}

// A block reads what another one wrote.
static __global__ void other_block_kernel(float *x, float *out)
{
    x[blockIdx.x] = 1;
    out[blockIdx.x] = x[(blockIdx.x + 1) % gridDim.x];
}

// In how many of the orders the kernel gives what is expected.
template <class Function> static int right_orders(Function function, size_t outputs, float expected)
{
    int right = 0;
    for (int order = 0; order < EMULATION_ORDERS; order++) {
        emulation_set_order(order);
        device_buffer<float> out(outputs);
        function(out.data());
        right += out.download() == std::vector<float>(outputs, expected);
    }
    emulation_set_order(0);
    return right;
}

static void test_missing_barriers()
{
    const device_buffer<float> ones(std::vector<float>(1024, 1.0f));
    const auto sum = [&](bool broken) {
        return right_orders(
            [&](float *out) {
                run(sum_kernel, dim3(1), dim3(256), 32, ones.data(), out, 1000, broken);
            },
            1, 1000);
    };
    CHECK(sum(false) == EMULATION_ORDERS && sum(true) < EMULATION_ORDERS);

    std::vector<float> rising(256);
    for (size_t i = 0; i < rising.size(); i++)
        rising[i] = (float)(i / 64); // each tile has another value
    const device_buffer<float> tiles(rising);
    const auto tiling = [&](bool no_first, bool no_second) {
        return right_orders(
            [&](float *out) {
                run(tiles_kernel, dim3(1), dim3(64), 256, tiles.data(), out, 4, no_first,
                    no_second);
            },
            64, 64 * 6);
    };
    CHECK(tiling(false, false) == EMULATION_ORDERS);
    CHECK(tiling(true, false) < EMULATION_ORDERS);
    CHECK(tiling(false, true) < EMULATION_ORDERS);

    emulation_set_threads(1);
    CHECK(right_orders(
              [&](float *out) {
                  device_buffer<float> x(64);
                  run(other_block_kernel, dim3(64), dim3(1), 0, x.data(), out);
              },
              64, 1) == 0);
    emulation_set_threads(0);
}

static void test_missing_warp_barriers()
{
    for (bool forward : {false, true}) {
        int right[2] = {0, 0};
        for (int order = 0; order < EMULATION_ORDERS; order++)
            for (bool broken : {false, true}) {
                emulation_set_order(order);
                device_buffer<float> out(32);
                run(neighbours_kernel, dim3(1), dim3(32), 128, out.data(), forward, broken);
                const std::vector<float> got = out.download();
                bool all = true;
                for (size_t i = 0; i < 32; i++)
                    all = all && got[i] == (float)((i + (forward ? 1 : 31)) % 32);
                right[broken] += all;
            }
        CHECK(right[0] == EMULATION_ORDERS && right[1] < EMULATION_ORDERS);
    }
    emulation_set_order(0);
}

static __global__ void predicates_kernel(int *out)
{
    const int odd = (int)threadIdx.x & 1, never = threadIdx.x > 5000, first = threadIdx.x == 0;
    if (threadIdx.x >= 90)
        return; // those that are gone are not waited for
    const int all[6] = {__syncthreads_or(first),  __syncthreads_or(never),
                        __syncthreads_and(odd),   __syncthreads_and(!never),
                        __syncthreads_count(odd), __syncthreads_count(1)};
    for (int i = 0; i < 6; i++)
        out[threadIdx.x * 6 + (unsigned)i] = all[i];
}

static void test_predicates()
{
    device_buffer<int> out(90 * 6);
    run(predicates_kernel, dim3(1), dim3(100), 0, out.data());
    const std::vector<int> got = out.download(), expected = {1, 0, 0, 1, 45, 90};
    for (size_t i = 0; i < got.size(); i++)
        CHECK(got[i] == expected[i % 6]);
}

// ------------------------------------------------------------------------------- warps

template <class T> static __global__ void shuffles_kernel(T *out, int amount, int width)
{
    const T mine = (T)(1000 + 3 * threadIdx.x);
    T *at = out + threadIdx.x * 4;
    at[0] = __shfl_sync(FULL, mine, amount, width);
    at[1] = __shfl_up_sync(FULL, mine, (unsigned)amount, width);
    at[2] = __shfl_down_sync(FULL, mine, (unsigned)amount, width);
    at[3] = __shfl_xor_sync(FULL, mine, amount, width);
}

// As the programming guide tells it, lane by lane.
static int shuffle_source(int kind, int lane, int amount, int width)
{
    const int first = lane / width * width, last = first + width - 1;
    int source = lane;
    if (kind == 0)
        return first + ((amount % width) + width) % width;
    if (kind == 1)
        source = lane - amount >= first ? lane - amount : lane;
    if (kind == 2)
        source = lane + amount <= last ? lane + amount : lane;
    if (kind == 3)
        source = (lane ^ amount) <= last ? lane ^ amount : lane;
    return source;
}

template <class T> static void test_shuffles_of()
{
    for (int width : {1, 2, 4, 8, 16, 32})
        for (int amount : {0, 1, 2, 3, 7, 16, 31}) {
            device_buffer<T> out(64 * 4);
            run(shuffles_kernel<T>, dim3(1), dim3(64), 0, out.data(), amount, width);
            const std::vector<T> got = out.download();
            for (int i = 0; i < 64; i++)
                for (int kind = 0; kind < 4; kind++) {
                    const int source = i / 32 * 32 + shuffle_source(kind, i % 32, amount, width);
                    CHECK(got[(size_t)(i * 4 + kind)] == (T)(1000 + 3 * source));
                }
        }
}

static void test_shuffles()
{
    test_shuffles_of<float>();
    test_shuffles_of<double>();
    test_shuffles_of<int>();
    test_shuffles_of<unsigned long long>();
}

static __global__ void votes_kernel(unsigned *out)
{
    const unsigned lane = threadIdx.x % 32, low = 0x0000ffffu;
    const int third = lane % 3 == 0;
    unsigned *at = out + threadIdx.x * 3;
    at[0] = __ballot_sync(FULL, third);
    if (lane < 16) { // the two halves apart, one of them twice
        at[1] = __ballot_sync(low, third);
        at[2] = (unsigned)__shfl_xor_sync(low, (int)lane, 15);
    } else {
        at[1] = (unsigned)__any_sync(~low, lane == 16) * 2 + (unsigned)__all_sync(~low, lane > 15);
        at[2] = (unsigned)__all_sync(~low, lane > 16) * 2 + (unsigned)__any_sync(~low, lane < 16);
    }
    __syncwarp();
}

static void test_votes()
{
    device_buffer<unsigned> out(96 * 3);
    run(votes_kernel, dim3(1), dim3(96), 0, out.data());
    const std::vector<unsigned> got = out.download();
    for (unsigned i = 0; i < 96; i++) {
        const unsigned lane = i % 32;
        CHECK(got[i * 3] == 0x49249249u);
        CHECK(got[i * 3 + 1] == (lane < 16 ? 0x9249u : 3u));
        CHECK(got[i * 3 + 2] == (lane < 16 ? lane ^ 15 : 0u));
    }
}

// ------------------------------------------------------------------------------- shared memory

static __global__ void fresh_shared_kernel(unsigned *out, unsigned words)
{
    unsigned *memory = dynamic_shared<unsigned>(), other = 0;
    for (unsigned i = threadIdx.x; i < words; i += blockDim.x) {
        other += memory[i] != FULL;
        memory[i] = 0;
    }
    atomicAdd(out, other);
    atomicOr(out + 1, (unsigned)((uintptr_t)memory % 128));
}

static void test_fresh_shared()
{
    for (unsigned words : {1u, 33u, 4096u}) {
        device_buffer<unsigned> out(std::vector<unsigned>{0, 0});
        run(fresh_shared_kernel, dim3(50), dim3(64), words * 4, out.data(), words);
        CHECK((out.download() == std::vector<unsigned>{0, 0}));
    }
}

static __global__ void beyond_shared_kernel(int first)
{
    dynamic_shared<float>()[(int)threadIdx.x + first] = 1;
}

static __global__ void read_beyond_kernel(const float *x, float *out, int i)
{
    *out = x[i];
}

static __global__ void write_beyond_kernel(float *x, int n)
{
    x[blockIdx.x * blockDim.x + threadIdx.x] = (float)n; // no look at n
}

static void test_out_of_bounds()
{
    const char *said = WITH_ADDRESS_SANITIZER ? "AddressSanitizer" : "beyond the shared memory";
    const char *where = WITH_ADDRESS_SANITIZER ? "AddressSanitizer" : "a device allocation";
    CHECK(dies([] { run(beyond_shared_kernel, dim3(1), dim3(32), 128, 1); }, said,
               "beyond_shared_kernel"));
    CHECK(dies([] { run(beyond_shared_kernel, dim3(1), dim3(32), 128, -1); }, said));
    run(beyond_shared_kernel, dim3(1), dim3(32), 128, 0);
    for (int n : {1, 97, 100}) {
        device_buffer<float> x((size_t)n);
        CHECK(dies([&] { run(write_beyond_kernel, dim3(1), dim3(101), 0, x.data(), n); }, where,
                   "write_beyond_kernel"));
        CHECK(dies([&] { run(write_beyond_kernel, dim3(1), dim3(1), 0, x.data() - 1, n); }, where));
        if (WITH_ADDRESS_SANITIZER)
            CHECK(dies([&] { run(read_beyond_kernel, dim3(1), dim3(1), 0, x.data(), x.data(), n); },
                       where));
    }
}

// ------------------------------------------------------------------------------- misuse

static __global__ void two_barriers_kernel(unsigned where)
{
    if (threadIdx.x < where)
        __syncthreads();
    else
        __syncthreads();
}

static __global__ void mixed_barriers_kernel(int *out)
{
    if (threadIdx.x < 32)
        *out = __syncthreads_or(1);
    else
        *out = __syncthreads_and(1);
}

static __global__ void stuck_kernel()
{
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncwarp();
}

static __global__ void returned_lane_kernel(float *out)
{
    if (threadIdx.x >= 30)
        return;
    out[threadIdx.x] = warp_sum(1.0f);
}

static __global__ void outside_mask_kernel(int *out, unsigned mask, int source)
{
    if (threadIdx.x < 16)
        out[threadIdx.x] = __shfl_sync(mask, (int)threadIdx.x, source);
}

static __global__ void different_operations_kernel(int *out)
{
    if (threadIdx.x < 16)
        *out = (int)__ballot_sync(FULL, 1);
    else
        *out = __shfl_sync(FULL, 1, 0);
}

static __global__ void width_kernel(int *out)
{
    *out = __shfl_sync(FULL, 1, 0, 12);
}

static __global__ void deep_kernel(int *out)
{
    volatile char deep[700 * 1024];
    for (size_t i = 0; i < sizeof deep; i += 1024)
        deep[sizeof deep - 1 - i] = 1;
    *out = deep[sizeof deep / 2];
}

static void test_misuse()
{
    device_buffer<int> out(64);
    device_buffer<float> floats(64);
    CHECK(dies([] { run(two_barriers_kernel, dim3(3), dim3(64), 0, 32u); },
               "wait at different barriers", "two_barriers_kernel", "block (0,0,0) of (3,1,1)",
               "threads 0 to 31: wait at __syncthreads, test_emulation.cpp:"));
    run(two_barriers_kernel, dim3(3), dim3(64), 0, 64u);
    CHECK(dies([&] { run(mixed_barriers_kernel, dim3(1), dim3(64), 0, out.data()); },
               "wait at different barriers"));
    CHECK(dies([] { run(stuck_kernel, dim3(1), dim3(32), 0); }, "deadlock", "stuck_kernel",
               "threads 16 to 31: wait at __syncwarp"));
    CHECK(dies([&] { run(returned_lane_kernel, dim3(1), dim3(32), 0, floats.data()); },
               "names a lane that has returned", "threads 30 to 31: have returned"));
    CHECK(dies([&] { run(returned_lane_kernel, dim3(1), dim3(20), 0, floats.data()); },
               "names a lane that has returned or does not exist"));
    CHECK(dies([&] { run(outside_mask_kernel, dim3(1), dim3(32), 0, out.data(), 0xffu, 0); },
               "outside its own mask"));
    CHECK(dies([&] { run(outside_mask_kernel, dim3(1), dim3(32), 0, out.data(), 0xffffu, 16); },
               "reads a lane outside its mask"));
    run(outside_mask_kernel, dim3(1), dim3(32), 0, out.data(), 0xffffu, 15);
    CHECK(dies([&] { run(different_operations_kernel, dim3(1), dim3(32), 0, out.data()); },
               "different operations"));
    CHECK(dies([&] { run(width_kernel, dim3(1), dim3(32), 0, out.data()); }, "power of two"));
    CHECK(dies([&] { run(deep_kernel, dim3(1), dim3(1), 0, out.data()); }));
}

// ------------------------------------------------------------------------------- copies

// Warp by warp, each thread's four floats arrive in two groups, are waited for but the last `late` of
// them, and are read by the neighbour.
static __global__ void copies_kernel(const float *x, float *out, int late, bool commit, int zeros)
{
    float *cell = dynamic_shared<float>();
    const unsigned i = threadIdx.x, next = (i + 1) % blockDim.x;
    __pipeline_memcpy_async(cell + 4 * i, x + 4 * i, 8);
    __pipeline_commit();
    __pipeline_memcpy_async(cell + 4 * i + 2, x + 4 * i + 2, 8, (size_t)zeros);
    if (commit)
        __pipeline_commit();
    __pipeline_wait_prior((size_t)late);
    __syncthreads();
    for (unsigned j = 0; j < 4; j++)
        out[4 * i + j] = cell[4 * next + j];
    __syncthreads();
    if (!commit)
        __pipeline_commit();
    __pipeline_wait_prior(0);
}

static __global__ void forgotten_copy_kernel(const float *x)
{
    __pipeline_memcpy_async(dynamic_shared<float>() + threadIdx.x, x + threadIdx.x, 4);
    __pipeline_commit();
}

static __global__ void misaligned_copy_kernel(const float *x)
{
    __pipeline_memcpy_async(dynamic_shared<float>() + 4, x + 1, 16);
}

// What has come of the four floats of each thread, of which the last is `last`; NaN for the others.
static bool copied(int late, bool commit, int zeros, unsigned come, float last)
{
    const unsigned threads = 70;
    std::vector<float> x(4 * threads);
    for (unsigned i = 0; i < 4 * threads; i++)
        x[i] = (float)i + 1;
    device_buffer<float> from(x), to(std::vector<float>(4 * threads, 0.0f));
    run(copies_kernel, dim3(3), dim3(threads), 16 * threads, from.data(), to.data(), late, commit,
        zeros);
    const std::vector<float> got = to.download();
    bool good = true;
    for (unsigned i = 0; i < 4 * threads; i++) {
        const float expected = x[(i + 4) % (4 * threads)] * (i % 4 == 3 ? last : 1.0f);
        good = good && (i % 4 < come ? got[i] == expected : isnan(got[i]));
    }
    return good;
}

static void test_copies()
{
    CHECK(copied(0, true, 0, 4, 1));
    CHECK(copied(0, true, 4, 4, 0));
    CHECK(copied(1, true, 0, 2, 1));
    CHECK(copied(2, true, 0, 0, 1));
    CHECK(copied(0, false, 0, 2, 1)); // a group that is not committed is not waited for
}

static void test_misused_copies()
{
    device_buffer<float> floats(64);
    CHECK(dies([&] { run(forgotten_copy_kernel, dim3(2), dim3(32), 128, floats.data()); },
               "without waiting for its asynchronous copies", "forgotten_copy_kernel"));
    CHECK(dies([&] { run(misaligned_copy_kernel, dim3(1), dim3(32), 128, floats.data()); },
               "not aligned to its size"));
}

// ------------------------------------------------------------------------------- launches

static __global__ void nothing_kernel()
{
}

static cudaError_t configured(dim3 grid, dim3 block, size_t shared)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    const cudaError_t error = cudaLaunchKernelEx(&config, nothing_kernel);
    CHECK(cudaPeekAtLastError() == error && cudaGetLastError() == error);
    CHECK(cudaGetLastError() == cudaSuccess);
    return error;
}

static void test_launches()
{
    CHECK(configured(dim3(1), dim3(1024), 48 * 1024) == cudaSuccess);
    CHECK(configured(dim3(1), dim3(1025), 0) == cudaErrorInvalidConfiguration);
    CHECK(configured(dim3(1), dim3(33, 32), 0) == cudaErrorInvalidConfiguration);
    CHECK(configured(dim3(1), dim3(1, 1, 65), 0) == cudaErrorInvalidConfiguration);
    CHECK(configured(dim3(0), dim3(1), 0) == cudaErrorInvalidConfiguration);
    CHECK(configured(dim3(1, 65536), dim3(1), 0) == cudaErrorInvalidConfiguration);
    CHECK(configured(dim3(1), dim3(32), 48 * 1024 + 1) == cudaErrorInvalidValue);
    const auto allow = [](int bytes) {
        return cudaFuncSetAttribute(nothing_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    bytes);
    };
    CHECK(allow(227 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(allow(227 * 1024) == cudaSuccess);
    CHECK(configured(dim3(1), dim3(32), 227 * 1024) == cudaSuccess);
    CHECK(configured(dim3(1), dim3(32), 227 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(allow(48 * 1024) == cudaSuccess);
    CHECK(configured(dim3(1), dim3(32), 48 * 1024 + 1) == cudaErrorInvalidValue);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
}

int main()
{
    const int status = run_in_all_orders({{"positions", test_positions},
                                          {"atomics", test_atomics},
                                          {"predicates", test_predicates},
                                          {"shuffles", test_shuffles},
                                          {"votes", test_votes},
                                          {"fresh shared memory", test_fresh_shared},
                                          {"copies", test_copies},
                                          {"launches", test_launches}});
    test_missing_barriers();
    test_missing_warp_barriers();
    test_out_of_bounds();
    test_misuse();
    test_misused_copies();
    return status;
}
