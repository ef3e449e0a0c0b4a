/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cores.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

unsigned cores_or(unsigned wanted)
{
    if (wanted > 0)
        return wanted;
    const char *text = getenv("OMP_NUM_THREADS");
    long threads = text ? strtol(text, NULL, 10) : 0;
    if (threads > 0 && threads < 65536)
        return (unsigned)threads;
    cpu_set_t set;
    /* A cpu_set_t holds 1024 cores; the call fails on larger machines. */
    long cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                             : sysconf(_SC_NPROCESSORS_ONLN);
    return cores > 0 ? (unsigned)cores : 1;
}
