/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_graph.h"

#include <stdio.h>

/* The stream is of no use until its recording has ended. */
static cudaError_t end_recording(cudaStream_t stream, cudaGraph_t *recorded)
{
    enum cudaStreamCaptureStatus recording = cudaStreamCaptureStatusNone;
    cudaError_t code = cudaStreamEndCapture(stream, recorded);
    if (code != cudaSuccess && cudaStreamIsCapturing(stream, &recording) == cudaSuccess &&
        recording != cudaStreamCaptureStatusNone)
        (void)cudaStreamEndCapture(stream, recorded);
    return code;
}

cudaGraphExec_t device_graph_record(cudaStream_t stream,
                                    dm_status (*enqueue)(void *context, dm_error *err),
                                    void *context, char why[GRAPH_PROBLEM])
{
    cudaGraph_t recorded = NULL;
    cudaGraphExec_t graph = NULL;
    dm_error problem = {0};
    dm_status status = DM_OK;
    cudaError_t code = cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    if (code == cudaSuccess) {
        status = enqueue(context, &problem);
        code = end_recording(stream, &recorded);
    }
    if (code == cudaSuccess && status == DM_OK)
        code = cudaGraphInstantiate(&graph, recorded, 0);
    if (code != cudaSuccess || status != DM_OK) {
        graph = NULL;
        if (why)
            snprintf(why, GRAPH_PROBLEM, "%.150s",
                     status != DM_OK ? problem.what : cudaGetErrorString(code));
    }
    if (recorded)
        (void)cudaGraphDestroy(recorded);
    (void)cudaGetLastError();
    return graph;
}

void device_graph_free(cudaGraphExec_t graph)
{
    if (graph)
        (void)cudaGraphExecDestroy(graph);
}
