/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plan's weights and per-channel parameters on the device. Each array goes there once, when it is
 * first asked for, in the order and type that kernels want, and stays for all networks made of the
 * plan.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_PARAMETERS_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_PARAMETERS_H

#include "model/plan.h"

typedef struct device_parameters device_parameters;

/* type: of the weights; bias and per-channel parameters are float32. */
dm_status device_parameters_create(element_type type, device_parameters **parameters,
                                   dm_error *err);
/* For a dry network: no device is touched, arrays get addresses that mean nothing. */
dm_status device_parameters_create_dry(element_type type, device_parameters **parameters,
                                       dm_error *err);
void device_parameters_free(device_parameters *parameters);
/* On the device now. */
size_t device_parameters_bytes(const device_parameters *parameters);

/* n floats as they are; NULL stays NULL. */
dm_status device_parameters_floats(device_parameters *parameters, const float *host, size_t n,
                                   const float **device, dm_error *err);
/* (O, I/g, kz, ky, kx), transposed (I, O/g, kz, ky, kx), to (O, kz, ky, kx, I/g). */
dm_status device_parameters_weight(device_parameters *parameters, const plan *steps,
                                   const plan_step *step, const void **device, dm_error *err);
/* Of a transposed convolution with one group: to (kz, ky, kx, O, I), the weights of the 1x1x1
 * convolution to blocks of kz*ky*kx*O channels. */
dm_status device_parameters_blocks(device_parameters *parameters, const plan *steps,
                                   const plan_step *step, const void **device, dm_error *err);

/* Writes n floats in an element type, rounded to the nearest. */
void elements_from_floats(const float *from, size_t n, element_type type, void *to);

#endif
