/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA backend keeps for one plan on one device. */
#ifndef DOSEMAP_PREDICT_CUDA_CUDA_STATE_H
#define DOSEMAP_PREDICT_CUDA_CUDA_STATE_H

#include "predict/backend.h"
#include "predict/cuda/device_graph.h"
#include "predict/cuda/device_network.h"
#include "predict/cuda/tuning_file.h"
#include "predict/cuda_devices.h"
#include "predict/cuda_module.h"

typedef struct cuda_state {
    const plan *plan;
    int device;
    unsigned batch;      /* that was asked for; 0 for none */
    size_t memory_limit; /* 0 for none */
    bool tf32;
    dm_convolutions convolutions;
    size_t cache_bytes;
    cudaStream_t stream;
    convolution_library *library; /* NULL for DM_CONVOLUTIONS_OWN, as the plans */
    library_plans *plans;
    device_parameters *parameters;
    device_network *network; /* of the last job, kept for the next one */
    unsigned network_batch;
    bool network_compiled; /* with plans of the library that are compiled at run time */
    unsigned batch_fits;   /* the largest that fitted where memory was short; 0: it never was */
    tuning *tuning;        /* what was found fastest for batches of tuning_batch; NULL: nothing */
    unsigned tuning_batch; /* 0: not looked for */
    char tuning_problem[TUNING_PROBLEM]; /* why what there is is not used; "" */
    char graph_problem[GRAPH_PROBLEM];   /* why batches run without a CUDA graph; "" */
    char device_name[300], description[1400];
    /* Of further devices that share volumes with this one; the first one's only. */
    struct cuda_state *peer[CUDA_DEVICES_MAX - 1];
    size_t n_peers;
} cuda_state;

/* The network for batches of that size of the job's windows; the one before is given up. */
dm_status cuda_state_network(cuda_state *state, const predict_job *job, unsigned batch,
                             dm_error *err);

/* Writes the description anew. */
void cuda_state_describe(cuda_state *state);

/* Windows of a batch, for so many windows in all; no more than have fitted before. */
unsigned cuda_state_batch(const cuda_state *state, size_t windows);

/* Does a job of so many windows use plans of the library that are compiled at run time? The same
 * for the same job, whatever ran before. */
bool cuda_state_compiles(const cuda_state *state, size_t windows);

/* Of a second-level cache of that size, what portions of a batch may fill. 0: not known. */
size_t cuda_state_cache(size_t cache_bytes);

/* cuda_account.c: cuda_module.account */
dm_status cuda_account(const plan *plan, const cuda_account_options *options, plan_account *account,
                       dm_error *err);

/* cuda_run.c */
dm_status cuda_run(void *state, const predict_job *job, predict_result *result, dm_error *err);

extern const backend cuda_backend;

#endif
