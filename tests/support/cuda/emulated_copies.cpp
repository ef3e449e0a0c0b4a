// SPDX-License-Identifier: Apache-2.0
// Asynchronous copies to shared memory. The bytes are there when the thread that asked for them waits
// for their group, and not earlier; until then 0xFF bytes, NaN, lie in their place: for who reads too
// early, and for who still reads what lay there before. A thread waits for all its copies before it
// returns, which CUDA does not ask for: a block's last copies are for nobody.
#include <cstring>
#include <vector>

#include "cuda_pipeline.h"
#include "emulated_runtime.h"

#include "cuda_runtime.h"

namespace emulation
{
namespace
{
struct copy {
    unsigned char *to;
    const unsigned char *from;
    size_t bytes, zeros; // the last of the bytes
    size_t group;
};
struct thread_copies {
    std::vector<copy> under_way;
    size_t groups; // committed
};

// Of the block that this OS thread runs.
thread_local std::vector<thread_copies> copies_of;
thread_local bool used;

thread_copies &mine()
{
    const size_t i = ((size_t)threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    if (copies_of.size() <= i)
        copies_of.resize((size_t)blockDim.x * blockDim.y * blockDim.z);
    used = true;
    return copies_of[i];
}
} // namespace

void copy_async(void *to, const void *from, size_t bytes, size_t zeros)
{
    if ((bytes != 4 && bytes != 8 && bytes != 16) || zeros > bytes)
        fail("an asynchronous copy is of 4, 8 or 16 bytes");
    if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
        reinterpret_cast<uintptr_t>(from) % bytes != 0)
        fail("an asynchronous copy is not aligned to its size");
    memset(to, 0xFF, bytes);
    thread_copies &c = mine();
    c.under_way.push_back({static_cast<unsigned char *>(to),
                           static_cast<const unsigned char *>(from), bytes, zeros, c.groups});
}

void commit_copies()
{
    mine().groups++;
}

void wait_copies(size_t but_last_groups)
{
    thread_copies &c = mine();
    std::vector<copy> rest;
    for (const copy &each : c.under_way) {
        if (each.group + but_last_groups >= c.groups) {
            rest.push_back(each);
            continue;
        }
        memcpy(each.to, each.from, each.bytes - each.zeros);
        memset(each.to + each.bytes - each.zeros, 0, each.zeros);
    }
    c.under_way.swap(rest);
}

void end_copies()
{
    if (!used)
        return;
    for (thread_copies &c : copies_of) {
        if (!c.under_way.empty())
            fail("a thread has returned without waiting for its asynchronous copies");
        c.groups = 0;
    }
    used = false;
}
} // namespace emulation
