/* SPDX-License-Identifier: Apache-2.0 */
/* Convolutions as the CPU backend needs them: prepared once, run from many threads. */
#ifndef DOSEMAP_PREDICT_CPU_CONVOLUTION_H
#define DOSEMAP_PREDICT_CPU_CONVOLUTION_H

#include "model/plan.h"

typedef struct convolution convolution;

/* Prepares STEP_CONV or STEP_CONV_TRANSPOSE for a batch. The leading links of the chain that the
 * library can apply itself become post-operations; *chain_done says how many, the caller applies the
 * rest. */
dm_status convolution_create(const plan *plan, const plan_step *step, unsigned batch,
                             convolution **conv, size_t *chain_done, dm_error *err);
void convolution_free(convolution *conv);
size_t convolution_scratch_bytes(const convolution *conv);
/* base: the arena's start; scratch: 64-byte aligned, convolution_scratch_bytes. */
dm_status convolution_run(const convolution *conv, void *base, void *scratch, dm_error *err);
/* The library's name for the kernel it chose. */
const char *convolution_kernel(const convolution *conv);

#endif
