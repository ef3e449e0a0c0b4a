/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA backend keeps for one plan on one device. */
#ifndef DOSEMAP_PREDICT_CUDA_CUDA_STATE_H
#define DOSEMAP_PREDICT_CUDA_CUDA_STATE_H

#include "predict/backend.h"
#include "predict/cuda/device_network.h"

typedef struct cuda_state {
    const plan *plan;
    int device;
    unsigned batch;      /* that was asked for; 0 for none */
    size_t memory_limit; /* 0 for none */
    bool tf32;
    size_t cache_bytes;
    cudaStream_t stream;
    convolution_library *library;
    device_parameters *parameters;
    device_network *network; /* of the last job, kept for the next one */
    unsigned network_batch;
    char device_name[300], description[800];
} cuda_state;

/* The network for batches of that size; the one before is given up. */
dm_status cuda_state_network(cuda_state *state, unsigned batch, dm_error *err);

/* Windows of a batch, for so many windows in all. */
unsigned cuda_state_batch(const cuda_state *state, size_t windows);

/* cuda_run.c */
dm_status cuda_run(void *state, const predict_job *job, predict_result *result, dm_error *err);

extern const backend cuda_backend;

#endif
