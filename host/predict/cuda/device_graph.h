/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_GRAPH_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_GRAPH_H

#include <cuda_runtime_api.h>

#include "dosemap.h"

enum { GRAPH_PROBLEM = 160 };

/* Records what `enqueue` enqueues on the stream, instead of running it, as a graph that can be
 * launched again and again. NULL where that cannot be done; then `why` says so, unless it is NULL,
 * and the stream is as it was. */
cudaGraphExec_t device_graph_record(cudaStream_t stream,
                                    dm_status (*enqueue)(void *context, dm_error *err),
                                    void *context, char why[GRAPH_PROBLEM]);

/* NULL is fine. */
void device_graph_free(cudaGraphExec_t graph);

#endif
