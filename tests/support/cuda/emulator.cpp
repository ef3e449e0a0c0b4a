// SPDX-License-Identifier: Apache-2.0
// Runs the grids of kernels on the CPU. The threads of a block are fibers of one OS thread; blocks are
// shared out to several OS threads. A thread runs until it has to wait; then the next in order goes on.
// A fiber runs one new thread after the other as long as none of them waits, so that kernels without
// barriers cost a call per thread, no switch.
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "emulated_fiber.h"
#include "emulated_runtime.h"

#ifdef EMULATED_ASAN
#include <sanitizer/asan_interface.h>
#endif

// Declared constant in cuda_runtime.h, which is not included here for that reason.
#define EMULATED_PER_THREAD __thread __attribute__((tls_model("initial-exec")))
extern EMULATED_PER_THREAD uint3 threadIdx, blockIdx;
extern EMULATED_PER_THREAD dim3 blockDim, gridDim;
EMULATED_PER_THREAD uint3 threadIdx, blockIdx;
EMULATED_PER_THREAD dim3 blockDim, gridDim;

namespace emulation
{
namespace
{
const unsigned WARP = 32, MOST_THREADS = 1024, NONE = ~0u;
const size_t GUARD = 64;
const unsigned char GUARD_BYTE = 0xA5;

enum class state : uint8_t { fresh, running, ready, at_block, at_warp, gone };

struct thread {
    state now;
    warp_operation operation;
    uint8_t source;
    unsigned mask;
    uint64_t value;       // given to the warp
    uint64_t result;      // got from it
    uint64_t collectives; // hash of the calls noted so far
    combine_function combine;
    fiber *on;
    const char *file;
    int line;
};

struct grid_run {
    const launch *work;
    std::atomic<uint64_t> next_block;
    uint64_t blocks;
    int order;
};

struct worker {
    grid_run *run;
    fiber main;
    fiber *running;
    std::vector<fiber *> spare;
    unsigned created;

    // the block
    unsigned threads, warps, live, arrived;
    unsigned warp_at, lane_at; // the next to be looked at, counted in the order of the schedule
    unsigned pass;
    unsigned current,
        next; // thread that runs; fresh thread that the fiber switched to has to start
    bool collectives_used;
    block_operation block_kind;
    const char *block_file;
    int block_line;
    int predicate_or, predicate_and, predicate_count;
    int result_or, result_and, result_count;
    unsigned waiting[WARP]; // lanes of each warp at a warp operation
    thread thread_of[MOST_THREADS];
    uint3 position[MOST_THREADS];
    dim3 positions_for;

    std::vector<unsigned char> shared_memory;
    unsigned char *shared;
};

EMULATED_PER_THREAD worker *here;

// Not inlined, so that a fiber that another OS thread goes on with asks anew.
__attribute__((noinline)) worker *this_worker()
{
    worker *w = here;
    __asm__ volatile("" : "+r"(w));
    return w;
}

const char *operation_name(const thread &t)
{
    static const char *const warp_names[] = {"__syncwarp", "shuffle", "vote", "mma_sync"};
    return t.now == state::at_block ? "__syncthreads" : warp_names[(int)t.operation];
}

const char *base_name(const char *path)
{
    const char *slash = path ? strrchr(path, '/') : nullptr;
    return slash ? slash + 1 : path ? path : "?";
}

bool same_place(const thread &a, const thread &b)
{
    return a.now == b.now && (a.now == state::gone || (a.file == b.file && a.line == b.line));
}

[[noreturn]] void die_in_block(const char *message)
{
    const worker *w = here;
    if (!w || !w->run)
        die("%s", message);
    fprintf(stderr, "emulated CUDA: %s\n  kernel %s, block (%u,%u,%u) of (%u,%u,%u)\n", message,
            kernel_name(w->run->work->kernel).c_str(), blockIdx.x, blockIdx.y, blockIdx.z,
            gridDim.x, gridDim.y, gridDim.z);
    for (unsigned i = 0, last; i < w->threads; i = last) {
        const thread &t = w->thread_of[i];
        for (last = i + 1; last < w->threads && same_place(t, w->thread_of[last]);)
            last++;
        fprintf(stderr, "  threads %u to %u: ", i, last - 1);
        if (t.now == state::at_block || t.now == state::at_warp)
            fprintf(stderr, "wait at %s, %s:%d\n", operation_name(t), base_name(t.file), t.line);
        else
            fprintf(stderr, "%s\n",
                    t.now == state::gone      ? "have returned"
                    : t.now == state::running ? "running"
                                              : "have not got there");
    }
    abort();
}

// ------------------------------------------------------------------------------- warp operations

void complete_warp_operation(worker *w, unsigned first, unsigned mask)
{
    thread *lanes = &w->thread_of[first];
    const unsigned leader = (unsigned)__builtin_ctz(mask);
    const warp_operation operation = lanes[leader].operation;
    uint64_t ballot = 0;
    void *operand[WARP] = {};
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        const unsigned l = (unsigned)__builtin_ctz(rest);
        if (lanes[l].operation != operation)
            die_in_block("the lanes of one warp wait at different operations");
        ballot |= (uint64_t)(lanes[l].value != 0) << l;
        operand[l] = reinterpret_cast<void *>((uintptr_t)lanes[l].value);
    }
    if (w->collectives_used && mask == ~0u)
        for (unsigned l = 1; l < WARP; l++)
            if (lanes[l].collectives != lanes[0].collectives)
                die_in_block("matrix loads or stores were not made by all lanes with the same "
                             "arguments");
    if (operation == warp_operation::matrix)
        lanes[leader].combine(operand);
    for (unsigned rest = mask; rest; rest &= rest - 1) {
        thread &t = lanes[__builtin_ctz(rest)];
        if (operation == warp_operation::shuffle) {
            if (!(mask >> t.source & 1u))
                die_in_block("a shuffle reads a lane outside its mask");
            t.result = lanes[t.source].value;
        } else {
            t.result = ballot;
        }
        t.now = state::ready;
    }
    w->waiting[first / WARP] &= ~mask;
}

// Every group of lanes that is complete goes on; whether there was one.
bool release_warp(worker *w, unsigned warp)
{
    const unsigned first = warp * WARP, lanes = std::min(WARP, w->threads - first);
    bool any = false;
    for (unsigned rest = w->waiting[warp]; rest;) {
        const unsigned l = (unsigned)__builtin_ctz(rest);
        const unsigned mask = w->thread_of[first + l].mask;
        bool complete = true;
        rest &= ~(1u << l);
        for (unsigned others = mask; others; others &= others - 1) {
            const unsigned o = (unsigned)__builtin_ctz(others);
            const thread &t = w->thread_of[first + o];
            if (o >= lanes || t.now == state::gone)
                die_in_block("a warp operation names a lane that has returned or does "
                             "not exist");
            complete &= t.now == state::at_warp && t.mask == mask;
        }
        if (!complete)
            continue;
        complete_warp_operation(w, first, mask);
        rest &= ~mask;
        any = true;
    }
    return any;
}

// ------------------------------------------------------------------------------- schedule

void check_collectives(worker *w)
{
    for (unsigned i = 0; i < w->threads; i++)
        if (w->thread_of[i].collectives != w->thread_of[i / WARP * WARP].collectives)
            die_in_block("matrix loads or stores were not made by all lanes with the same "
                         "arguments");
}

void release_block(worker *w)
{
    if (w->arrived != w->live)
        die_in_block("deadlock: the threads of a block wait at different places");
    if (w->collectives_used)
        check_collectives(w);
    for (unsigned i = 0; i < w->threads; i++)
        if (w->thread_of[i].now == state::at_block)
            w->thread_of[i].now = state::ready;
    w->result_or = w->predicate_or;
    w->result_and = w->predicate_and;
    w->result_count = w->predicate_count;
    w->predicate_or = w->predicate_count = 0;
    w->predicate_and = 1;
    w->arrived = 0;
    w->pass++;
}

// The thread that goes on now, or NONE at the end of the block.
unsigned advance(worker *w)
{
    for (;;) {
        const int order = w->run->order;
        const bool turn = (order & 4) && (w->pass & 1);
        const bool back_warps = ((order & 1) != 0) != turn, back_lanes = ((order & 2) != 0) != turn;
        while (w->warp_at < w->warps) {
            const unsigned warp = back_warps ? w->warps - 1 - w->warp_at : w->warp_at;
            const unsigned first = warp * WARP, lanes = std::min(WARP, w->threads - first);
            while (w->lane_at < lanes) {
                const unsigned l = w->lane_at++;
                const unsigned i = first + (back_lanes ? lanes - 1 - l : l);
                if (w->thread_of[i].now <= state::ready)
                    return i;
            }
            w->lane_at = 0;
            if (!w->waiting[warp] || !release_warp(w, warp))
                w->warp_at++;
        }
        w->warp_at = 0;
        if (w->live == 0)
            return NONE;
        release_block(w);
    }
}

void check_shared(worker *w)
{
#ifndef EMULATED_ASAN
    const size_t bytes = w->run->work->shared_bytes;
    for (size_t i = 1; i <= GUARD; i++)
        if (w->shared[-(ptrdiff_t)i] != GUARD_BYTE || w->shared[bytes + i - 1] != GUARD_BYTE)
            die_in_block("something wrote beyond the shared memory that the launch asked for");
#else
    (void)w;
#endif
}

// Takes the next block of the grid; false if there is none.
bool start_block(worker *w)
{
    grid_run *run = w->run;
    uint64_t b = run->next_block.fetch_add(1, std::memory_order_relaxed);
    if (b >= run->blocks)
        return false;
    if (run->order & 1)
        b = run->blocks - 1 - b;
    const dim3 &grid = run->work->grid;
    blockIdx = uint3{(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                     (unsigned)(b / grid.x / grid.y)};
    memset(w->shared, 0xFF, run->work->shared_bytes);
    for (unsigned i = 0; i < w->threads; i++) {
        w->thread_of[i].now = state::fresh;
        w->thread_of[i].collectives = 0;
    }
    memset(w->waiting, 0, sizeof w->waiting);
    w->live = w->threads;
    w->arrived = w->warp_at = w->lane_at = w->pass = 0;
    w->predicate_or = w->predicate_count = 0;
    w->predicate_and = 1;
    w->collectives_used = false;
    return true;
}

void end_block(worker *w)
{
    check_shared(w);
    end_copies();
    if (w->collectives_used)
        check_collectives(w);
}

// ------------------------------------------------------------------------------- fibers

inline __attribute__((always_inline)) void switch_to(worker *w, fiber *from, fiber *to)
{
    w->running = to;
    fiber_switch(from, to);
}

void fiber_main();

fiber *take_fiber(worker *w)
{
    if (w->spare.empty()) {
        fiber *f = fiber_create(fiber_main, w->created++);
        if (!f)
            die("no memory for another thread's stack");
        return f;
    }
    fiber *f = w->spare.back();
    w->spare.pop_back();
    return f;
}

void make_current(worker *w, unsigned i)
{
    w->current = i;
    w->thread_of[i].now = state::running;
    threadIdx = w->position[i];
}

// A fiber that waits in `from` gives way to thread i.
inline __attribute__((always_inline)) void go_on_with(worker *w, fiber *from, unsigned i)
{
    if (w->thread_of[i].now == state::fresh) {
        w->next = i;
        switch_to(w, from, take_fiber(w));
    } else {
        make_current(w, i);
        switch_to(w, from, w->thread_of[i].on);
    }
}

// Runs fresh threads until one that waits elsewhere is to go on, or the grid is at its end (NONE).
__attribute__((noinline)) unsigned run_threads(worker *w)
{
    const launch *work = w->run->work;
    unsigned i = w->next;
    for (;;) {
        make_current(w, i);
        work->call(work->kernel, work->arguments);
        w->thread_of[w->current].now = state::gone;
        w->live--;
        while ((i = advance(w)) == NONE) {
            end_block(w);
            if (!start_block(w))
                return NONE;
        }
        if (w->thread_of[i].now != state::fresh)
            return i;
    }
}

void fiber_main()
{
    fiber_entered();
    for (;;) {
        worker *w = this_worker();
        const unsigned i = run_threads(w);
        fiber *self = w->running;
        w->spare.push_back(self);
        if (i == NONE)
            switch_to(w, self, &w->main);
        else
            go_on_with(w, self, i);
    }
}

inline __attribute__((always_inline)) uint64_t wait_here(worker *w)
{
    const unsigned i = w->current;
    thread &t = w->thread_of[i];
    t.on = w->running;
    const unsigned next = advance(w);
    if (next == i)
        make_current(w, i);
    else
        go_on_with(w, t.on, next);
    return t.result;
}

// ------------------------------------------------------------------------------- workers

// Workers keep their fibers from launch to launch.
struct worker_pool {
    std::vector<worker *> idle;
    std::mutex lock;
    ~worker_pool()
    {
        for (worker *w : idle) {
            for (fiber *f : w->spare)
                fiber_free(f);
            delete w;
        }
    }
} pool;
int worker_threads;

worker *take_worker()
{
    std::lock_guard<std::mutex> guard(pool.lock);
    if (pool.idle.empty()) {
        worker *w = new worker();
        w->positions_for = dim3(0, 0, 0);
        return w;
    }
    worker *w = pool.idle.back();
    pool.idle.pop_back();
    return w;
}

void give_worker(worker *w)
{
    std::lock_guard<std::mutex> guard(pool.lock);
    pool.idle.push_back(w);
}

// Exactly shared_bytes, aligned to 128 and no better, between guards.
void prepare_shared(worker *w, size_t bytes)
{
    const size_t need = bytes + 2 * GUARD + 512;
#ifdef EMULATED_ASAN
    ASAN_UNPOISON_MEMORY_REGION(w->shared_memory.data(), w->shared_memory.size());
#endif
    if (w->shared_memory.size() < need)
        w->shared_memory.resize(need);
    uintptr_t at = reinterpret_cast<uintptr_t>(w->shared_memory.data()) + GUARD;
    at = ((at + 255) & ~(uintptr_t)255) + 128;
    w->shared = reinterpret_cast<unsigned char *>(at);
    memset(w->shared - GUARD, GUARD_BYTE, GUARD);
    memset(w->shared + bytes, GUARD_BYTE, GUARD);
#ifdef EMULATED_ASAN
    unsigned char *end = w->shared_memory.data() + w->shared_memory.size();
    ASAN_POISON_MEMORY_REGION(w->shared - GUARD, GUARD);
    ASAN_POISON_MEMORY_REGION(w->shared + bytes, (size_t)(end - (w->shared + bytes)));
#endif
}

void prepare_positions(worker *w, const dim3 &block)
{
    const dim3 &had = w->positions_for;
    if (had.x == block.x && had.y == block.y && had.z == block.z)
        return;
    w->threads = block.x * block.y * block.z;
    w->warps = (w->threads + WARP - 1) / WARP;
    for (unsigned i = 0; i < w->threads; i++)
        w->position[i] = uint3{i % block.x, i / block.x % block.y, i / block.x / block.y};
    w->positions_for = block;
}

void run_blocks(grid_run *run)
{
    worker *w = take_worker();
    w->run = run;
    here = w;
    blockDim = run->work->block;
    gridDim = run->work->grid;
    prepare_positions(w, run->work->block);
    prepare_shared(w, run->work->shared_bytes);
    if (start_block(w)) {
        w->next = advance(w);
        w->main.stack = nullptr; // another OS thread's, perhaps
        switch_to(w, &w->main, take_fiber(w));
    }
    w->run = nullptr;
    here = nullptr;
    give_worker(w);
}

int setting(const char *name, int otherwise)
{
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

int order_now = -1;
} // namespace

int schedule_order()
{
    if (order_now < 0)
        order_now = setting("DOSEMAP_EMULATED_ORDER", 0);
    return order_now;
}

void run_grid(const launch &work)
{
    grid_run run = {
        &work, {0}, (uint64_t)work.grid.x * work.grid.y * work.grid.z, schedule_order()};
    if (worker_threads <= 0)
        worker_threads =
            setting("DOSEMAP_EMULATED_THREADS", (int)std::thread::hardware_concurrency());
    // Below this, starting threads takes longer than the work.
    const uint64_t all = run.blocks * work.block.x * work.block.y * work.block.z;
    const uint64_t helpers =
        all < 8192 ? 0 : std::min<uint64_t>((uint64_t)std::max(worker_threads, 1), run.blocks) - 1;
    std::vector<std::thread> others;
    for (uint64_t i = 0; i < helpers; i++)
        others.emplace_back(run_blocks, &run);
    run_blocks(&run);
    for (std::thread &other : others)
        other.join();
}

int wait_block(block_operation operation, int predicate, const char *file, int line)
{
    worker *w = this_worker();
    thread &t = w->thread_of[w->current];
    t.now = state::at_block;
    t.file = file;
    t.line = line;
    if (w->arrived++ == 0) {
        w->block_kind = operation;
        w->block_file = file;
        w->block_line = line;
    } else if (w->block_kind != operation || w->block_line != line ||
               (w->block_file != file && strcmp(w->block_file, file) != 0)) {
        die_in_block("the threads of a block wait at different barriers");
    }
    w->predicate_or |= predicate != 0;
    w->predicate_and &= predicate != 0;
    w->predicate_count += predicate != 0;
    wait_here(w);
    return operation == block_operation::any   ? w->result_or
           : operation == block_operation::all ? w->result_and
                                               : w->result_count;
}

uint64_t wait_warp(warp_operation operation, unsigned mask, uint64_t value, unsigned source,
                   combine_function combine, const char *file, int line)
{
    worker *w = this_worker();
    const unsigned lane = w->current % WARP;
    thread &t = w->thread_of[w->current];
    t.now = state::at_warp;
    t.operation = operation;
    t.mask = mask;
    t.value = value;
    t.source = (uint8_t)source;
    t.combine = combine;
    t.file = file;
    t.line = line;
    if (!(mask >> lane & 1u))
        die_in_block("a warp operation by a lane outside its own mask");
    w->waiting[w->current / WARP] |= 1u << lane;
    return wait_here(w);
}

void note_collective(uint64_t what)
{
    worker *w = this_worker();
    thread &t = w->thread_of[w->current];
    t.collectives = (t.collectives ^ what) * 0x9E3779B97F4A7C15u + 1;
    w->collectives_used = true;
}

unsigned lane()
{
    return here->current % WARP;
}

bool is_kernel()
{
    return here != nullptr;
}

void fail(const char *message)
{
    die_in_block(message);
}
} // namespace emulation

extern "C" void *emulation_dynamic_shared(void)
{
    return emulation::here->shared;
}

extern "C" void emulation_set_order(int order)
{
    emulation::order_now = order;
}

extern "C" void emulation_set_threads(int threads)
{
    emulation::worker_threads = threads;
}
