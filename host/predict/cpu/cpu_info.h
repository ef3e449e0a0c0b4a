/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_PREDICT_CPU_CPU_INFO_H
#define DOSEMAP_PREDICT_CPU_CPU_INFO_H

#include <stdbool.h>
#include <stddef.h>

/* The processor's name as the system gives it, or the architecture's. Returns `name`. */
char *cpu_name(char *name, size_t size);

/* Instruction sets that matter to the network's speed. */
typedef enum cpu_feature { CPU_AVX2, CPU_AVX512F, CPU_AVX512_BF16, CPU_FEATURE_COUNT } cpu_feature;
const char *cpu_feature_name(cpu_feature feature);
bool cpu_has(cpu_feature feature);

#endif
