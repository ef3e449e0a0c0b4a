/* SPDX-License-Identifier: Apache-2.0 */
/* Tuning files of a state. */
#ifndef DOSEMAP_PREDICT_CUDA_CUDA_TUNING_H
#define DOSEMAP_PREDICT_CUDA_CUDA_TUNING_H

#include "predict/cuda/cuda_state.h"
#include "predict/cuda/tuning_file.h"

/* Of the state's plan in batches of that size; the state has a library. */
dm_status tuning_key_of(const cuda_state *s, unsigned batch, tuning_key *key, dm_error *err);

/* Into s->tuning, if there is one for batches of that size that can be used; else s->tuning_problem
 * says why not. Kept until another size is asked for. Errors: MEMORY, DEVICE. */
dm_status cuda_state_tuning(cuda_state *s, unsigned batch, dm_error *err);
void cuda_state_forget_tuning(cuda_state *s);

#endif
