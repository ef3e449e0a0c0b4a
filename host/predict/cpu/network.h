/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running a plan on CPU cores: 3x3x3 convolutions by minimal filtering (winograd.c), the others by
 * oneDNN (onednn.c, the only file that knows it), every other step by loops of our own (steps_*.c).
 * One worker runs one window at a time through the whole network, on one core, so that activations
 * stay in its cache; or, where there are fewer windows than cores, on several cores that share each
 * step. Nothing is allocated while tiles run but the threads of such a worker.
 *
 * There is no batch here: two windows at once through the same primitives gained nothing (Zen 4,
 * float32 and bf16, within 3 % at each level of dosegan and mostly slower), and one window at a time
 * gives the same bytes whatever the number of windows and workers.
 */
#ifndef DOSEMAP_PREDICT_CPU_NETWORK_H
#define DOSEMAP_PREDICT_CPU_NETWORK_H

#include "model/plan.h"

/* Primitives and packed weights of a plan; shared by all workers, read-only. threads: that share
 * each window, at least 1. The plan must outlive it. Errors: UNSUPPORTED where the CPU or oneDNN
 * cannot do the plan's element type. */
typedef struct network network;
dm_status network_create(const plan *plan, unsigned threads, network **network, dm_error *err);
void network_free(network *network);
const char *network_library(void); /* "oneDNN 2.6.3, AVX-512 BF16" */
/* True where this CPU computes in that precision by its own instructions. */
bool network_supports(dm_precision precision);
/* What the plan should assume: oneDNN's fast kernels neither read nor write views. */
void network_plan_needs(plan_options *options);

/* One worker's arena and scratchpads; network_worker_bytes is their size. */
typedef struct worker worker;
size_t network_worker_bytes(const network *network);
dm_status worker_create(const network *network, worker **worker, dm_error *err);
void worker_free(worker *worker);

/* The network's input tensor ((D, H, W, C), the plan's element type), to be filled before
 * worker_run, and its output (float32, (D, H, W, C)). Both are dense and stay where they are. */
void *worker_input(worker *worker);
const float *worker_output(const worker *worker);
/* Runs all steps; several workers may run at the same time. The result is the same for any number
 * of threads. */
dm_status worker_run(worker *worker, dm_error *err);
/* One step; in their order they are worker_run. */
dm_status worker_run_step(worker *worker, size_t step, dm_error *err);
/* For tests and benchmarks: the arena that the plan's offsets refer to, and the name of the kernel
 * of a convolution step ("ref..." is a very slow one), NULL for others. */
void *worker_arena(worker *worker);
const char *network_kernel(const network *network, size_t step);
#endif
