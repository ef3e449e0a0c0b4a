/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plan on the device for batches of one fixed size: every buffer placed, every kernel chosen,
 * every plan of the vendor's library compared once with a convolution of ours. A launch is the same
 * sequence of work each time, so that it can be captured into a CUDA graph.
 *
 *     fill --> operations of the plan --> take, or the last convolution joined with what takes it
 *
 * A convolution is computed by what was found fastest (tuning_file.h). Without that, ways are tried
 * in this order: the kernel for first layers; the library, with bias, residual and activation where
 * it joins them and else with a pointwise pass behind it; for views, and where the library has
 * nothing that computes rightly, the kernel with a halo, the tensor-core kernel, the kernel for any
 * case. The library reads and writes dense tensors only: a view goes to it through a copy if no
 * fast kernel of ours takes it, and its result reaches a view by the pointwise pass that adds the
 * bias.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_NETWORK_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_NETWORK_H

#include "kernels/kernels.h"
#include "model/plan.h"
#include "predict/cuda/device_kernels.h"
#include "predict/cuda/device_parameters.h"
#include "predict/cuda/library_plans.h"

typedef struct device_network device_network;

typedef struct device_network_options {
    unsigned batch;
    bool tf32;
    bool join_head; /* the last convolution goes to ends->head where the kernel takes it */
    bool compile; /* plans of the library that are compiled at run time, too: these alone join much
                     to a convolution, and each takes seconds */
    size_t cache_bytes;   /* of the device's second-level cache that a portion may fill */
    library_plans *plans; /* NULL: kernels of ours only */
    dm_convolutions convolutions;
    const struct tuning *tuning;   /* for DM_CONVOLUTIONS_AUTO, while it is made; may be NULL */
    const device_kernels *kernels; /* NULL: those that run */
    device_parameters *parameters;
    cudaStream_t stream;
    bool dry; /* to be looked at, never launched: nothing is allocated, copied or run, and plans of
                 the library are taken as they come. parameters: dry ones. Needs no device */
    /* Asked before each operation is prepared, if not NULL; any but DM_OK ends it. */
    dm_status (*go_on)(void *context, dm_error *err);
    void *context;
} device_network_options;

/* Marks of what is enqueued next, beside the numbers of operations. */
enum { NETWORK_FILL = -1, NETWORK_TAKE = -2, NETWORK_PORTION_END = -3 };

/* What lies before and behind the network, for windows [first, first + samples) of the batch. */
typedef struct network_ends {
    void *context;
    cudaError_t (*fill)(void *context, const device_tensor *input, unsigned first, unsigned samples,
                        cudaStream_t stream);
    cudaError_t (*take)(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream);
    cudaError_t (*head)(void *context, const device_convolution *head, const device_tensor *in,
                        const device_epilogue *epilogue, unsigned first, unsigned samples,
                        cudaStream_t stream);
    /* Before each operation and each end of a portion, and after its last one; for clocks and
     * accounts. NULL: nobody asks. */
    cudaError_t (*mark)(void *context, int what, cudaStream_t stream);
} network_ends;

/* What the plan should assume: our kernels read and write views at full speed, so concatenations
 * cost nothing. */
void device_network_plan_needs(plan_options *options);

/* Plan, library, parameters and stream must outlive it. Errors: MEMORY, DEVICE, UNSUPPORTED, and
 * what go_on says. */
dm_status device_network_create(const plan *steps, const device_network_options *options,
                                device_network **network, dm_error *err);
void device_network_free(device_network *network);

/* Enqueues all of a batch. */
dm_status device_network_launch(device_network *network, const network_ends *ends, dm_error *err);

/* Bytes on the device, weights not counted: the most at one time. */
size_t device_network_bytes(const device_network *network);
/* How an operation of the plan is run: "library: ...", "kernel_convolution", ... ; for tests and
 * benchmarks. */
const char *device_network_way(const device_network *network, size_t step);
/* Convolutions, and how many of them are computed as the tuning file says. */
void device_network_tuned(const device_network *network, unsigned *tuned, unsigned *convolutions);
/* Kernels of ours that are not used, because they computed wrongly; "" if all are right. */
const char *device_network_rejections(const device_network *network);
/* The step of the plan that operation `op` ends with; NULL behind the last operation. */
const plan_step *device_network_step(const device_network *network, size_t op);
/* A tensor of the plan, for the first portion; data is NULL if no operation uses it. */
device_tensor device_network_tensor(const device_network *network, int tensor);

#endif
