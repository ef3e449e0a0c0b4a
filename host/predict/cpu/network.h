/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running a plan on CPU cores: convolutions by oneDNN (onednn.c, the only file that knows it), every
 * other step by loops of our own (steps_*.c). One worker runs a batch of windows through the whole
 * network on one core, so that activations stay in its cache; nothing is allocated while tiles run.
 */
#ifndef DOSEMAP_PREDICT_CPU_NETWORK_H
#define DOSEMAP_PREDICT_CPU_NETWORK_H

#include "model/plan.h"

/* Primitives and packed weights of a plan for one batch size; shared by all workers, read-only. */
typedef struct network network;
dm_status network_create(const plan *plan, unsigned batch, network **network, dm_error *err);
void network_free(network *network);
const char *network_library(void); /* "oneDNN 2.6.3, AVX-512 BF16" */

/* One worker's arena and scratchpads. */
typedef struct worker worker;
dm_status worker_create(const network *network, worker **worker, dm_error *err);
void worker_free(worker *worker);

/* The network's input tensor of sample `n` ((D, H, W, C), the plan's element type), to be filled
 * before worker_run, and its output (float32). */
void *worker_input(worker *worker, unsigned n);
const float *worker_output(const worker *worker, unsigned n);
/* Runs all steps. Must be called in a thread that has called worker_thread_init once. */
dm_status worker_run(worker *worker, dm_error *err);
/* Limits OpenMP inside oneDNN to the calling thread. */
void worker_thread_init(void);

#endif
