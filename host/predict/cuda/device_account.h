/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes and FLOPs of the device's network: a batch goes through the executor's own code with
 * kernels that launch nothing and add up what their operands say. So what is counted is what would
 * run: copies for the library, passes of their own, weights once for each portion of the batch.
 *
 * Counted is each operand once for each launch: a tensor's voxels and channels, not its gaps; an
 * operand that is broadcast with its own size; of voxels that are moved those that are taken.
 * Weights, biases, per-channel parameters and tables are apart, since the samples of a launch share
 * them; workspace is written once and read once. FLOPs are those of convolutions.
 *
 * What a GPU's counters say of the same launches: bytes read from memory where caches are emptied
 * before each of them, and bytes that they write to the second-level cache. In a run the memory sees
 * less: a portion's tensors are meant to stay in that cache.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_ACCOUNT_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_ACCOUNT_H

#include "model/plan_account.h"
#include "predict/cuda/device_network.h"

typedef struct device_account {
    size_t n_ops;
    account_sum *ops;       /* [n_ops], as device_network_step numbers them */
    account_sum fill, take; /* what lies before and behind, unless it is joined to an operation */
    account_sum total;      /* of all of them */
    account_sum *now;       /* that launches are added to */
} device_account;

/* One batch, all its samples together: divide by the network's batch for a window. The network,
 * dry or not, may be in use: nothing of it is changed, and nothing is enqueued. Windows are taken to
 * lie inside a PET on the model's grid and apart from each other: 4 bytes of PET for each voxel of a
 * window, 4 bytes read and 4 written of the sum. Errors: MEMORY. */
dm_status device_account_make(const device_network *network, device_account *account,
                              dm_error *err);
void device_account_clear(device_account *account);

/* The kernels that count: where a stream is expected, they want a (cudaStream_t)device_account *. */
extern const device_kernels device_kernels_count;

#endif
