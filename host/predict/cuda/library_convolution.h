/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolutions by a vendor's library. cudnn.c and cudnn_library.c implement this through cuDNN's
 * graph interface and are all that knows cuDNN; where kernels are emulated on the CPU, the same
 * functions are a plain convolution (tests/support/cuda/library_convolution_reference.c).
 *
 *     y = act(conv(x, w) + bias + residual)        each of bias, residual, act only if asked for
 *
 * The library offers plans in its order of preference. A caller takes the first (candidate 0),
 * compares one run of it with a convolution of its own, and asks for the next where it is wrong:
 * cuDNN had versions that computed 3D convolutions wrongly. A spec that asks for bias, residual or
 * activation is answered with one joined kernel or with DM_ERROR_UNSUPPORTED; the caller then asks
 * for the convolution alone and does the rest itself. Every refusal is an answer, not a failure: an
 * own kernel does what the library does not.
 *
 * A candidate computes the same bytes each time: engines that depend on the order of execution are
 * left out. Which candidates there are depends on the version of the library, the device and the
 * spec, and on what of the machine plans are made with: engines compiled at run time need the
 * library's compiler (libnvrtc) and the driver, and an engine whose plan cannot be made is left out.
 * On one machine, as long as nothing of that changes, they are always the same; a shortage of memory
 * is an error and leaves nothing out.
 */
#ifndef DOSEMAP_PREDICT_CUDA_LIBRARY_CONVOLUTION_H
#define DOSEMAP_PREDICT_CUDA_LIBRARY_CONVOLUTION_H

#include <cuda_runtime_api.h>

#include "dosemap.h"
#include "kernels/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The library on one device. Used by one thread at a time; another thread takes another one. */
typedef struct convolution_library convolution_library;
/* One plan. Freed before its library, and after everything enqueued or captured with it is done. */
typedef struct library_convolution library_convolution;

/* Is the library there, and in a version that may be used? Looked for in the folder that
 * $DOSEMAP_CUDNN_DIR names and nowhere else; without it where the build found it, then where the
 * loader looks. Needs no device; for `doctor`.
 * version: filled whenever a library was found, also an unfit one: "9.19.0"; else "".
 * Errors: DEVICE, with what was found, what is needed and the remedy. */
dm_status convolution_library_probe(char version[32], dm_error *err);

/* Whether a version, as cudnnGetVersion says it (91900 for 9.19.0), may be used at all.
 * Errors: DEVICE, with the reason and the remedy. */
dm_status convolution_library_check_version(size_t version, dm_error *err);

/* 91900 -> "9.19.0". */
void convolution_library_version_text(size_t version, char text[32]);

/* cuDNN 9.10.2 to 9.15 have a TF32 kernel for 3D convolutions that computes wrongly (known to its
 * makers without a clear limit): there, specs with tf32 are refused. */
bool convolution_library_tf32_is_sound(size_t version);

/* On the calling thread's current CUDA device, which has to be current in all later calls.
 * Errors: DEVICE as convolution_library_probe, if the library cannot use the device, or if it offers
 * no engine even for a small convolution since a part of it is missing; MEMORY. */
dm_status convolution_library_open(convolution_library **library, dm_error *err);

/* For a device that need not be there: plans are made and described, never run.
 * device_json: the device's properties in cuDNN's own words (devices/device_*.json).
 * Errors: as above; VALUE if the text describes no device that the library knows. */
dm_status convolution_library_open_for(const char *device_json, convolution_library **library,
                                       dm_error *err);
void convolution_library_free(convolution_library *library); /* NULL is fine */

/* For provenance: "cuDNN 9.19.0". Owned by the library. */
const char *convolution_library_name(const convolution_library *library);

/* Triples are z, y, x. All tensors are dense and channels-last, (samples, z, y, x, channels). */
typedef struct library_convolution_spec {
    element_type type; /* of x, weights, residual and y; products are summed in float32 */
    bool tf32;         /* float32 tensors whose factors may be rounded to TF32; else no tensor
                          cores are used for float32 */
    unsigned samples;
    size_t in_channels, out_channels;
    size_t in_dim[3], out_dim[3]; /* out_dim as the other fields imply, else refused */
    int kernel[3], stride[3], dilation[3];
    int pad_begin[3], pad_end[3]; /* zeros; asymmetric padding may be refused */
    int groups;                   /* others than 1 may be refused */
    bool bias;                    /* float32, one per output channel */
    bool residual;                /* a tensor like y */
    bool activate;                /* v < 0 ? slope * v : v */
    float slope;                  /* of the activation, finite; 0 is ReLU. Unused without it */
    bool precompiled;             /* no engine that is compiled when its plan is made, which takes
                                     seconds for each; then little or nothing can be joined */
} library_convolution_spec;

/* No plan needs more workspace than this; those that would are left out. */
#define LIBRARY_CONVOLUTION_MAX_WORKSPACE ((size_t)256 << 20)
/* That x, weights, residual, y and workspace must have. (Bias: that of float.) */
#define LIBRARY_CONVOLUTION_ALIGNMENT 16

/* Is the spec a convolution at all: positive sizes, channels divisible by groups, out_dim as the
 * rest implies, counts that a device can address? Errors: UNSUPPORTED, with the value. */
dm_status library_convolution_check(const library_convolution_spec *spec, dm_error *err);

/* Do both ask for the same? */
bool library_convolution_same(const library_convolution_spec *a, const library_convolution_spec *b);

/* The engines that the library offers for a spec and that may be used, one a line in the order of
 * preference, without trying whether they work: for tables. Errors: UNSUPPORTED, MEMORY. */
dm_status library_convolution_offers(convolution_library *library,
                                     const library_convolution_spec *spec, char *text, size_t size,
                                     dm_error *err);

/* The plan number `candidate` in the order of preference, ready to run. Asking for 0, 1, 2 ... of
 * the same spec in a row asks the library for its preferences once.
 * Errors: UNSUPPORTED if the library has no plan, or no further one (`err` says which engines were
 * left out and why); MEMORY; DEVICE if the library failed otherwise. */
dm_status library_convolution_create(convolution_library *library,
                                     const library_convolution_spec *spec, unsigned candidate,
                                     library_convolution **convolution, dm_error *err);
void library_convolution_free(library_convolution *convolution); /* NULL is fine */

/* The plan in the library's own words, with the code of engines that are compiled at run time, so
 * that library_convolution_find need not compile it again; dm_string_free. NULL, which is no error,
 * if the library has no words for it. Errors: MEMORY. */
dm_status library_convolution_save(const library_convolution *convolution, char **saved,
                                   dm_error *err);

/* The plan whose description begins as `engine` does, up to the colon: from `saved`, if that is not
 * NULL and the library takes it, else made anew. `saved` has to come from the same spec, version of
 * the library and kind of device, and from nobody else: a library does not defend itself.
 * Errors: as library_convolution_create, UNSUPPORTED also where there is no such engine. */
dm_status library_convolution_find(convolution_library *library,
                                   const library_convolution_spec *spec, const char *engine,
                                   const char *saved, library_convolution **convolution,
                                   dm_error *err);

/* What it was made for. */
const library_convolution_spec *library_convolution_spec_of(const library_convolution *convolution);

/* Bytes; 0 for none. */
size_t library_convolution_workspace(const library_convolution *convolution);

/* In one line: engine, its knobs, tensor cores, compiled at run time, joined operations. */
const char *library_convolution_describe(const library_convolution *convolution);

/* Enqueues on the stream and returns; may be captured into a graph, after one run outside of a
 * capture (the first run may load code). All pointers are device memory, aligned as above, and must
 * not overlap. weight: (O, kz, ky, kx, I/groups). bias, residual: NULL unless asked for.
 * workspace: library_convolution_workspace bytes, used by nobody else until this has run.
 * Errors: DEVICE; UNSUPPORTED if the library was opened without a device. */
dm_status library_convolution_run(const library_convolution *convolution, const void *x,
                                  const void *weight, const float *bias, const void *residual,
                                  void *y, void *workspace, cudaStream_t stream, dm_error *err);

#ifdef __cplusplus
}
#endif

#endif
