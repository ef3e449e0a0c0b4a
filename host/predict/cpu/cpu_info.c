/* SPDX-License-Identifier: Apache-2.0 */
/* What processor this is. */
#include "predict/cpu/cpu_info.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

char *cpu_name(char *name, size_t size)
{
    char text[2048];
    struct utsname machine;
    snprintf(name, size, "%s", uname(&machine) == 0 ? machine.machine : "unknown processor");
    /* No stdio, which allocates: the name is the same when memory is short. It is in the first
     * processor's lines. */
    int fd = open("/proc/cpuinfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = '\0';
    const char *line = strstr(text, "model name"), *colon = line ? strchr(line, ':') : NULL;
    if (colon) {
        colon += colon[1] == ' ' ? 2 : 1;
        snprintf(name, size, "%.*s", (int)strcspn(colon, "\n"), colon);
    }
    return name;
}

const char *cpu_feature_name(cpu_feature feature)
{
    static const char *const names[CPU_FEATURE_COUNT] = {"avx2", "avx512f", "avx512_bf16"};
    return names[feature];
}

bool cpu_has(cpu_feature feature)
{
#if defined(__x86_64__) || defined(__i386__)
    switch (feature) {
    case CPU_AVX2:
        return __builtin_cpu_supports("avx2");
    case CPU_AVX512F:
        return __builtin_cpu_supports("avx512f");
    case CPU_AVX512_BF16:
        return __builtin_cpu_supports("avx512bf16");
    case CPU_FEATURE_COUNT:
        break;
    }
#else
    (void)feature;
#endif
    return false;
}
