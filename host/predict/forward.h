/* SPDX-License-Identifier: Apache-2.0 */
/* The network alone on patches that come from somewhere and go somewhere, a few at a time. */
#ifndef DOSEMAP_PREDICT_FORWARD_H
#define DOSEMAP_PREDICT_FORWARD_H

#include "predict/backend.h"

/* Where patches come from and go to. Outputs are written in the order of the graph's, each from its
 * first patch to its last. */
typedef struct forward_ends {
    /* Patch `patch` of the input `port`, in the network's own axes. */
    dm_status (*read)(void *context, size_t port, size_t patch, float *values, dm_error *err);
    dm_status (*write)(void *context, size_t output, size_t patch, const float *values, size_t n,
                       dm_error *err);
    void *context;
    const char *where; /* the inputs' file, for messages; NULL without */
} forward_ends;

/* Checks the inputs, whose data nobody looks at, and says what the outputs will be: outputs[the
 * graph's], without data. `order` is filled with the place in `inputs` of each of the graph's. */
dm_status forward_shapes(const dm_model *model, const dm_patches *inputs, size_t n_inputs,
                         const char *where, size_t *order, dm_patches *outputs, dm_error *err);

/* size: along the network's own axes; it is one that forward_shapes has passed. */
dm_status forward_run(const dm_model *model, const size_t size[3], size_t count,
                      const dm_forward_options *options, const forward_ends *ends, dm_error *err);

/* Elements of a patch; all of them are known to fit an address. */
size_t patch_elements(const dm_patches *patches);

#endif
