/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the device's network share. */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_NETWORK_PARTS_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_NETWORK_PARTS_H

#include "predict/cuda/device_layout.h"
#include "predict/cuda/device_network.h"
#include "predict/cuda/tuning_file.h"

/* Who computes a convolution. */
typedef enum convolution_way {
    WAY_ANY,
    WAY_FIRST,
    WAY_TENSOR_CORE,
    WAY_HALO,
    WAY_LIBRARY
} convolution_way;

/* Offsets into the scratch memory that all operations share. */
typedef struct convolution_choice {
    convolution_way way;
    device_convolution conv;
    const library_convolution *library;
    size_t workspace_at;
    bool pack; /* the input is copied into a dense tensor first */
    size_t pack_at;
    bool stage; /* the library's result lies apart until the rest of the chain is applied */
    size_t stage_at;
    bool bias_done;
    size_t links_done; /* leading links of the chain that the library does */
    int residual;      /* the tensor that the first of them adds, -1 for none */
} convolution_choice;

typedef struct device_op {
    lowered_op lowered;
    const plan_step *step; /* lowered.step */
    const float *bias;
    size_t n_links;
    device_link *links; /* operands without their data */
    int *link_tensors;  /* -1 for none */
    convolution_choice conv;
    bool unfold;             /* a transposed convolution as a 1x1x1 one and kernel_unfold */
    device_tensor blocks;    /* between the two; data is filled in by each run */
    size_t blocks_at;        /* in the scratch */
    bool head;               /* goes to ends->head */
    bool broadcast;          /* STEP_POINTWISE on something smaller than its result */
    device_axis_map maps[3]; /* STEP_PAD, STEP_SLICE, STEP_RESIZE */
    device_gate gate;
    const float *scale, *shift; /* STEP_NORM */
    size_t statistics_at, workspace_at;
    size_t float_at; /* a dense float32 copy of the result, for chains of several passes */
    size_t scratch_bytes;
    char way[160];
} device_op;

/* Memory in which a library's plan is compared with kernel_convolution. */
enum { CHECK_PARTS = 6 };
typedef struct check_memory {
    void *part[CHECK_PARTS]; /* in the arena, or owned */
    void *owned[CHECK_PARTS];
    size_t bytes[CHECK_PARTS]; /* owned */
    size_t arena_used;
    size_t most; /* that was owned at once */
} check_memory;

struct device_network {
    const plan *plan;
    device_network_options options;
    const device_kernels *kernels;
    size_t n_ops;
    device_op *ops;
    device_layout layout;
    unsigned char *arena, *scratch;
    size_t scratch_bytes;
    check_memory check;
    bool halo;                        /* convolution_halo.cu may be used */
    unsigned n_convolutions, n_tuned; /* those whose way the tuning file decided */
};

/* ---- Shared --------------------------------------------------------------------------------- */

/* For the portion that starts with sample `first`. */
device_tensor network_tensor(const device_network *net, int tensor, unsigned first);
/* Samples of a portion of the segment that an operation belongs to. */
unsigned network_samples(const device_network *net, size_t op);
/* A dense tensor of t's size at an offset of the scratch memory. */
device_tensor scratch_tensor(const device_network *net, const device_tensor *t, element_type type,
                             size_t at);
/* Reserves scratch memory of one operation. */
dm_status scratch_take(device_op *op, size_t bytes, size_t *at, dm_error *err);
/* Bytes of a dense tensor of t's size. */
size_t dense_bytes(const device_tensor *t, element_type type, unsigned samples);

/* n links from `from` on, their operands found for a portion. */
device_epilogue epilogue_of(const device_network *net, const device_op *op, const float *bias,
                            size_t from, size_t n, unsigned first);
/* The chain from link `from` on, and the bias if not NULL, from `value` into `out`. */
cudaError_t finish_chain(const device_network *net, const device_op *op, device_tensor value,
                         const device_tensor *out, const float *bias, size_t from, unsigned first,
                         unsigned samples);
/* How many links the kernel that makes the value applies itself, and where it puts it. */
device_tensor first_target(const device_network *net, const device_op *op, const device_tensor *out,
                           size_t *links);

/* Groups of a normalisation's channels, or of a global average: all of them. */
size_t network_norm_groups(const device_network *net, const plan_step *step);

/* device_prepare.c: all that operation number `op` needs, its tensors being placed. */
dm_status network_prepare(device_network *net, size_t op, dm_error *err);
/* Weights and biases of a gate. */
dm_status network_fill_gate(device_network *net, const lowered_op *lowered, device_gate *gate,
                            dm_error *err);

/* device_convolution.c: who computes it, with all that is chosen on the way; in and out as they are
 * for the first portion. `links`: false if the result takes neither bias nor chain. */
dm_status convolution_choose(device_network *net, device_op *op, const device_tensor *in,
                             const device_tensor *out, unsigned samples, bool links, dm_error *err);
/* Each for one way; choose is made of them. False if it does not take the convolution. */
bool convolution_use_own(const device_network *net, device_op *op, const device_tensor *in,
                         const device_tensor *out, bool links, convolution_way way);
/* What the library is asked for, with what can be joined or alone, noted in op->conv. False if it is
 * not to be asked, or there is nothing to join. */
bool convolution_spec(const device_network *net, device_op *op, const device_tensor *in,
                      const device_tensor *out, unsigned samples, bool links, bool joined,
                      library_convolution_spec *spec);
dm_status convolution_use_library(const device_network *net, device_op *op, const device_tensor *in,
                                  const device_tensor *out, unsigned samples, bool links,
                                  const library_convolution *made, dm_error *err);
const char *convolution_way_name(convolution_way way);
dm_status convolution_run_choice(const device_network *net, const device_op *op,
                                 const device_tensor *in, const device_tensor *out, unsigned first,
                                 unsigned samples, bool links, dm_error *err);

/* convolution_operands.c: what it computes from what, in words, so that another run of the program
 * knows it again: "bf16 8 x 32x32x32 x 32 -> ...". False if there is too much to say. */
enum { CONVOLUTION_OPERANDS = 640 };
bool convolution_operands(const device_network *net, const device_op *op, const device_tensor *in,
                          const device_tensor *out, unsigned samples, bool links,
                          char text[CONVOLUTION_OPERANDS]);

/* device_library.c: a plan for the spec that computes rightly, kept until it is released; NULL if
 * there is none. */
dm_status library_find(device_network *net, const char *name, const library_convolution_spec *spec,
                       const device_convolution *conv, const float *bias,
                       const library_convolution **found, dm_error *err);
/* The plan that was found fastest, with the same promise. */
dm_status library_find_tuned(device_network *net, const char *name,
                             const library_convolution_spec *spec, const tuned_layer *layer,
                             const device_convolution *conv, const float *bias,
                             const library_convolution **found, dm_error *err);
/* Candidate number n, for the caller to free. NULL with a reason if it may not be used, and without
 * one behind the last. Errors: MEMORY, DEVICE, when nothing runs any more. */
dm_status library_try(device_network *net, const library_convolution_spec *spec, unsigned n,
                      const device_convolution *conv, const float *bias, library_convolution **made,
                      char reason[64], dm_error *err);
/* NULL is fine. */
void library_release(library_plans *plans, const library_convolution *convolution);

/* device_library_check.c: runs a plan once; reason: why it may not be used, "" if it may. */
dm_status library_check(device_network *net, const library_convolution_spec *spec,
                        const device_convolution *conv, const float *bias,
                        const library_convolution *made, char reason[64], dm_error *err);
void library_free_check(device_network *net);

/* device_own_check.c */
dm_status own_check_halo(device_network *net, element_type type, bool *right, dm_error *err);

#endif
