/* SPDX-License-Identifier: Apache-2.0 */
/* Names of CUDA devices: "cuda" (the first), "cuda:3", "cuda:0,1", "cuda:all". */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICES_H
#define DOSEMAP_PREDICT_CUDA_DEVICES_H

#include "dosemap.h"

#define CUDA_DEVICES_MAX 16

typedef struct cuda_devices {
    bool all; /* and none is named */
    int n;
    int number[CUDA_DEVICES_MAX]; /* as named; none twice */
} cuda_devices;

/* Errors: VALUE if the name is none of these. */
dm_status cuda_devices_parse(const char *name, cuda_devices *devices, dm_error *err);

/* All of `count` devices, if they are all meant. */
void cuda_devices_expand(cuda_devices *devices, int count);

#endif
