/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_PREDICT_CUDA_CUDA_LAYERS_H
#define DOSEMAP_PREDICT_CUDA_CUDA_LAYERS_H

#include "predict/cuda/device_network.h"
#include "predict/measure.h"

/* Times of the network's operations, and of what lies before and behind it, by events between them:
 * medians over the request's runs of a batch, after one that is not counted. ahead: a batch as a graph,
 * NULL for none. Into result->layers,
 * with the bytes and FLOPs that the account of the network says. ends: without a mark. */
dm_status cuda_layers(device_network *network, const network_ends *ends, cudaGraphExec_t ahead,
                      cudaStream_t stream, unsigned batch, const measure_request *request,
                      measure_result *result, dm_error *err);

#endif
