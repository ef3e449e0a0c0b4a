/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuDNN opened at run time, its errors, and descriptors: the things that its graph interface is
 * made of. The only file that includes cuDNN's headers; included by cudnn*.c only.
 */
#ifndef DOSEMAP_PREDICT_CUDA_CUDNN_LIBRARY_H
#define DOSEMAP_PREDICT_CUDA_CUDNN_LIBRARY_H

#include <cudnn_graph.h>
#include <stdint.h>

#include "predict/cuda/library_convolution.h"

#if CUDNN_VERSION < 91500
#error "cuDNN 9.15 or newer is needed to build the CUDA backend"
#endif

#define CUDNN_FUNCTIONS(X)                                                                         \
    X(cudnnGetVersion)                                                                             \
    X(cudnnGetErrorString)                                                                         \
    X(cudnnGetLastErrorString)                                                                     \
    X(cudnnCreate)                                                                                 \
    X(cudnnDestroy)                                                                                \
    X(cudnnSetStream)                                                                              \
    X(cudnnBackendCreateDescriptor)                                                                \
    X(cudnnBackendDestroyDescriptor)                                                               \
    X(cudnnBackendSetAttribute)                                                                    \
    X(cudnnBackendGetAttribute)                                                                    \
    X(cudnnBackendFinalize)                                                                        \
    X(cudnnBackendExecute)

typedef struct cudnn_api {
    void *object;
    const char *file; /* where it was found; the loader's, which keeps it */
#define MEMBER(name) __typeof__(&(name)) name; /* NOLINT(bugprone-macro-parentheses) */
    CUDNN_FUNCTIONS(MEMBER)
#undef MEMBER
} cudnn_api;

typedef cudnnBackendDescriptor_t descriptor;

enum { PROBLEM_SIZE = 256 };

/* What cuDNN answered for one spec, and the descriptors made for it: cudnn.c. */
typedef struct preferences preferences;

struct convolution_library {
    cudnn_api api;
    char name[48];
    size_t version;
    cudnnHandle_t handle; /* NULL without a device; then `device` describes one */
    descriptor device;
    preferences *latest;
};

/* The first failure stays; everything after it does nothing. */
typedef struct builder {
    const convolution_library *library;
    preferences *p; /* for the graph of a spec */
    cudnnStatus_t status;
    char problem[PROBLEM_SIZE];
} builder;

/* Tensors of a graph. */
enum { UID_X = 1, UID_WEIGHT, UID_Y, UID_BIAS, UID_RESIDUAL, UID_BETWEEN };

/* Of cudnn_graph.c: the operation graph of a spec, which b->p keeps with all that it is made of. */
descriptor cudnn_graph_of(builder *b, const library_convolution_spec *spec);

/* Takes down a failure. */
void cudnn_note(builder *b, cudnnStatus_t status, const char *what);
/* Kept for b->p (cudnn_keep) where there is one, else the caller's to destroy. */
descriptor cudnn_make(builder *b, cudnnBackendDescriptorType_t type);
void cudnn_set(builder *b, descriptor d, cudnnBackendAttributeName_t name,
               cudnnBackendAttributeType_t type, int64_t n, const void *values);
void cudnn_set_descriptor(builder *b, descriptor d, cudnnBackendAttributeName_t name,
                          descriptor value);
void cudnn_finish(builder *b, descriptor d, const char *what);

/* How many values were read; 0 if it failed. For descriptors, `values` has to hold made ones. */
int64_t cudnn_get(const cudnn_api *api, descriptor d, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t room, void *values);
/* Descriptors among the attributes of another, into d[0 .. room); how many there are. */
int64_t cudnn_get_descriptors(const cudnn_api *api, descriptor from,
                              cudnnBackendAttributeName_t name, cudnnBackendDescriptorType_t type,
                              int64_t room, descriptor *d);

bool cudnn_is_memory(cudnnStatus_t status);
/* MEMORY or DEVICE with cuDNN's words. */
dm_status cudnn_failure(const convolution_library *l, cudnnStatus_t status, const char *text,
                        dm_error *err);

#define CUDNN_REINSTALL "install all of cuDNN again: its parts must be of one version"

/* Of cudnn.c: p keeps a descriptor; an owner gives p up (NULL is fine). */
void cudnn_keep(preferences *p, descriptor d);
void cudnn_release(const convolution_library *l, preferences *p);
/* Without some of its parts cuDNN opens, and then has nothing for any convolution. Errors: DEVICE. */
dm_status cudnn_check_engines(convolution_library *l, dm_error *err);

#endif
