/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device's network behind the functions of predict/cpu/network.h, so that the tests of the CPU's
 * steps and networks are tests of the device's. What a test puts into the arena becomes one sample of
 * a batch whose other samples hold something else; which one changes from run to run.
 */
#ifndef DOSEMAP_TESTS_DEVICE_WORKER_H
#define DOSEMAP_TESTS_DEVICE_WORKER_H

#include "model/plan.h"

/* Where the library does not join the chain, its sums of about 0.3 are rounded before it. */
#define BF16_ATOL (0.3 / 128)

typedef struct network network;
typedef struct worker worker;

/* threads 1: the batch in one portion; more: in small ones. */
dm_status network_create(const plan *plan, unsigned threads, network **network, dm_error *err);
void network_free(network *network);
bool network_supports(dm_precision precision);
const char *network_kernel(const network *network, size_t step);

dm_status worker_create(const network *network, worker **worker, dm_error *err);
void worker_free(worker *worker);
/* The plan's arena, on the host. Plans of one step find all their tensors there and leave them
 * there; others have their input and output there only. */
void *worker_arena(worker *worker);
const float *worker_output(const worker *worker);
dm_status worker_run(worker *worker, dm_error *err);

#endif
