/* SPDX-License-Identifier: Apache-2.0 */
/* dm_model_forward: patches in memory. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/forward.h"

typedef struct patches_ends {
    const dm_patches *inputs;
    const size_t *order;
    dm_patches *outputs;
} patches_ends;

static dm_status read_patch(void *context, size_t port, size_t patch, float *values, dm_error *err)
{
    const patches_ends *ends = context;
    const dm_patches *input = &ends->inputs[ends->order[port]];
    size_t n = patch_elements(input);
    (void)err;
    memcpy(values, input->data + patch * n, n * sizeof *values);
    return DM_OK;
}

static dm_status write_patch(void *context, size_t output, size_t patch, const float *values,
                             size_t n, dm_error *err)
{
    const patches_ends *ends = context;
    (void)err;
    memcpy(ends->outputs[output].data + patch * n, values, n * sizeof *values);
    return DM_OK;
}

static dm_status allocate(dm_patches *outputs, size_t n, dm_error *err)
{
    for (size_t o = 0; o < n; o++) {
        size_t count = 0;
        if (size_multiply(outputs[o].count, patch_elements(&outputs[o]), &count))
            outputs[o].data = array_alloc(count, sizeof *outputs[o].data);
        if (!outputs[o].data)
            return error_memory(err, count * sizeof *outputs[o].data, outputs[o].name);
    }
    return DM_OK;
}

dm_status dm_model_forward(const dm_model *model, const dm_patches *inputs, size_t n_inputs,
                           const dm_forward_options *options, dm_patches **outputs,
                           size_t *n_outputs, dm_error *err)
{
    const graph *g = &model->graph;
    dm_forward_options defaults;
    dm_forward_options_init(&defaults);
    patches_ends ends = {.inputs = inputs};
    const forward_ends forward = {.read = read_patch, .write = write_patch, .context = &ends};
    size_t *order = array_alloc(g->n_inputs, sizeof *order);
    *outputs = NULL;
    *n_outputs = 0;
    ends.outputs = array_zero(g->n_outputs, sizeof *ends.outputs);
    ends.order = order;
    dm_status status = order && ends.outputs
                           ? forward_shapes(model, inputs, n_inputs, NULL, order, ends.outputs, err)
                           : error_memory(err, g->n_outputs * sizeof *ends.outputs, "outputs");
    if (status == DM_OK)
        status = allocate(ends.outputs, g->n_outputs, err);
    if (status == DM_OK)
        status = forward_run(model, inputs[0].size, inputs[0].count, options ? options : &defaults,
                             &forward, err);
    free(order);
    if (status != DM_OK) {
        dm_patches_free(ends.outputs, ends.outputs ? g->n_outputs : 0);
        return status;
    }
    *outputs = ends.outputs;
    *n_outputs = g->n_outputs;
    return DM_OK;
}

void dm_patches_free(dm_patches *patches, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(patches[i].data);
    free(patches);
}
