/* SPDX-License-Identifier: Apache-2.0 */
/* What processor this is. */
#include "predict/cpu/cpu_info.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>

char *cpu_name(char *name, size_t size)
{
    char line[256];
    struct utsname machine;
    snprintf(name, size, "%s", uname(&machine) == 0 ? machine.machine : "unknown processor");
    FILE *file = fopen("/proc/cpuinfo", "r");
    if (!file)
        return name;
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon)
            continue;
        line[strcspn(line, "\n")] = '\0';
        snprintf(name, size, "%s", colon + (colon[1] == ' ' ? 2 : 1));
        break;
    }
    fclose(file);
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
