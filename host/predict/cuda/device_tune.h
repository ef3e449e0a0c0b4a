/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times every way to compute each convolution of a network, in the place where it will run: its own
 * tensors, its portion of a batch, its input written just before, from a CUDA graph, and with all
 * passes over the result that the way leaves to others.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_TUNE_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_TUNE_H

#include <jansson.h>

#include "predict/cuda/device_network.h"
#include "predict/cuda/tuning_file.h"

typedef struct device_tune_options {
    /* Asked between trials, with the share done; any but DM_OK ends it. */
    dm_status (*go_on)(void *context, double share, dm_error *err);
    void *context;
} device_tune_options;

/* The fastest ways. */
typedef struct device_tuned {
    size_t n;
    tuned_layer *layers; /* one for convolutions that are alike; strings are owned */
    json_t *report;      /* for each convolution, what was timed; and sums over a batch */
} device_tuned;

/* net: made with plans of the library, for DM_CONVOLUTIONS_OWN and with `compile`; what its tensors
 * hold is lost. Errors: MEMORY, DEVICE, and what go_on says. */
dm_status device_network_tune(device_network *net, const device_tune_options *options,
                              device_tuned *tuned, dm_error *err);
void device_tuned_clear(device_tuned *tuned);

#endif
