// SPDX-License-Identifier: Apache-2.0
// Which kernels a program launches, with how many threads a block and how much shared memory: each
// combination once, as a line of the file that DOSEMAP_EMULATED_LAUNCHES names. tools/cuda_resources
// computes the occupancy of the kernels from it.
#include <cstdio>
#include <cstdlib>
#include <set>
#include <tuple>

#include "emulated_runtime.h"

namespace emulation
{
void note_launch(const launch &work)
{
    static const char *path = getenv("DOSEMAP_EMULATED_LAUNCHES");
    if (!path || !*path)
        return;
    static FILE *file = fopen(path, "w");
    static std::set<std::tuple<const void *, size_t, size_t>> seen;
    if (!file)
        die("DOSEMAP_EMULATED_LAUNCHES: %s cannot be written", path);
    const size_t threads = (size_t)work.block.x * work.block.y * work.block.z;
    if (!seen.insert(std::make_tuple(work.kernel, threads, work.shared_bytes)).second)
        return;
    fprintf(file, "%s\t%zu\t%zu\n", kernel_name(work.kernel).c_str(), threads, work.shared_bytes);
    fflush(file); // a process that aborts, as some tests want it, has written all
}
} // namespace emulation
