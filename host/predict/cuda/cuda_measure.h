/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend's part of dm_benchmark; states are cuda_states, of several devices the first one
 * is measured. */
#ifndef DOSEMAP_PREDICT_CUDA_CUDA_MEASURE_H
#define DOSEMAP_PREDICT_CUDA_CUDA_MEASURE_H

#include "predict/cuda/cuda_state.h"
#include "predict/measure.h"

/* Cutting out reads windows that lie one above the other in the device's memory, and what is joined
 * to the network's end adds to a volume of the same form: the kernels of a prediction. Networks that
 * these do not take, of more input channels or several output channels, have copies at their ends. */
dm_status cuda_measure(void *state, const measure_request *request, measure_result *result,
                       dm_error *err);

/* backend.batch */
unsigned cuda_measure_batch(void *state, size_t windows);

/* cuda_ceilings.c */
dm_status cuda_ceilings(void *state, measured_ceilings *ceilings, dm_error *err);

/* cuda_energy.c: joules of all devices of the state since some moment, as NVIDIA's management
 * library tells; NAN where it does not. */
double cuda_energy(void *state);
double cuda_device_energy(int device);

#endif
