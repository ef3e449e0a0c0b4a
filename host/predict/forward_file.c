/* SPDX-License-Identifier: Apache-2.0 */
/* dm_model_forward_file: patches from one safetensors file to another. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "model/safetensors.h"
#include "predict/forward.h"
#include "predict/predictor.h"

typedef struct file_ends {
    const char *path; /* of the inputs */
    safetensors input;
    dm_patches *inputs; /* [input.n_tensors] without data */
    size_t *order;      /* the tensor of each port */
    size_t n_outputs;
    dm_patches *outputs; /* without data */
    output_file *output;
} file_ends;

static dm_status read_patch(void *context, size_t port, size_t patch, float *values, dm_error *err)
{
    const file_ends *ends = context;
    size_t tensor = ends->order[port], n = patch_elements(&ends->inputs[tensor]);
    return safetensors_part(&ends->input, &ends->input.tensors[tensor], ends->path, patch * n, n,
                            values, err);
}

static dm_status write_patch(void *context, size_t output, size_t patch, const float *values,
                             size_t n, dm_error *err)
{
    const file_ends *ends = context;
    (void)output, (void)patch; /* they come in the file's order */
    return output_write(ends->output, values, n * sizeof *values, err);
}

static dm_status describe_inputs(file_ends *ends, dm_error *err)
{
    const safetensors *file = &ends->input;
    ends->inputs = array_zero(file->n_tensors + 1, sizeof *ends->inputs);
    if (!ends->inputs)
        return error_memory(err, file->n_tensors * sizeof *ends->inputs, "the list of tensors");
    for (size_t i = 0; i < file->n_tensors; i++) {
        const stored_tensor *t = &file->tensors[i];
        if (t->type != TENSOR_F32)
            return error_set(err, DM_ERROR_UNSUPPORTED, ends->path, "store it as F32",
                             "tensor '%s' is %s", t->name, t->type == TENSOR_F16 ? "F16" : "BF16");
        if (t->rank != 5)
            return error_set(err, DM_ERROR_VALUE, ends->path,
                             "give it the shape (patches, channels, and three spatial sizes)",
                             "tensor '%s' has %zu dimensions, not 5", t->name, t->rank);
        ends->inputs[i] = (dm_patches){.name = t->name,
                                       .count = t->shape[0],
                                       .channels = t->shape[1],
                                       .size = {t->shape[2], t->shape[3], t->shape[4]}};
    }
    return DM_OK;
}

static json_t *metadata_json(const dm_model *model, const dm_forward_options *options)
{
    json_t *metadata = json_object();
    dm_precision precision =
        options->precision == DM_PRECISION_AUTO ? DM_PRECISION_FLOAT32 : options->precision;
    json_put(&metadata, "dosemap.version", json_string(dm_version()));
    json_put(&metadata, "dosemap.model", json_string(model->name));
    json_put(&metadata, "dosemap.model_xxh64", json_string(model->checksum));
    json_put(&metadata, "dosemap.precision", json_string(precision_name(precision)));
    return metadata;
}

static dm_status write_header(file_ends *ends, const dm_model *model,
                              const dm_forward_options *options, dm_error *err)
{
    stored_tensor *tensors = array_zero(ends->n_outputs, sizeof *tensors);
    json_t *metadata = metadata_json(model, options);
    dm_status status = tensors && metadata
                           ? DM_OK
                           : error_memory(err, ends->n_outputs * sizeof *tensors, "a header");
    for (size_t o = 0; o < ends->n_outputs && status == DM_OK; o++) {
        const dm_patches *p = &ends->outputs[o];
        tensors[o] =
            (stored_tensor){.name = p->name,
                            .rank = 5,
                            .shape = {p->count, p->channels, p->size[0], p->size[1], p->size[2]}};
        if (!size_multiply(p->count, patch_elements(p), &tensors[o].count) ||
            tensors[o].count > SAFETENSORS_ANY_DATA)
            status = error_set(err, DM_ERROR_VALUE, ends->path, "use fewer patches",
                               "the output '%s' is larger than any disk", p->name);
    }
    if (status == DM_OK)
        status = safetensors_write_header(ends->output, metadata, tensors, ends->n_outputs, err);
    json_decref(metadata);
    free(tensors);
    return status;
}

static dm_status run(file_ends *ends, const dm_model *model, const char *output_path,
                     const dm_forward_options *options, dm_error *err)
{
    const forward_ends forward = {
        .read = read_patch, .write = write_patch, .context = ends, .where = ends->path};
    dm_status status = describe_inputs(ends, err);
    ends->order = array_alloc(model->graph.n_inputs, sizeof *ends->order);
    ends->outputs = array_zero(ends->n_outputs, sizeof *ends->outputs);
    if (status == DM_OK && (!ends->order || !ends->outputs))
        status = error_memory(err, ends->n_outputs * sizeof *ends->outputs, "outputs");
    if (status == DM_OK)
        status = forward_shapes(model, ends->inputs, ends->input.n_tensors, ends->path, ends->order,
                                ends->outputs, err);
    if (status == DM_OK)
        status = output_open(output_path, &ends->output, err);
    if (status == DM_OK)
        status = write_header(ends, model, options, err);
    if (status == DM_OK)
        status =
            forward_run(model, ends->inputs[0].size, ends->inputs[0].count, options, &forward, err);
    if (status != DM_OK)
        return status;
    status = output_commit(ends->output, err);
    ends->output = NULL;
    return status;
}

dm_status dm_model_forward_file(const dm_model *model, const char *input_path,
                                const char *output_path, const dm_forward_options *options,
                                dm_error *err)
{
    dm_forward_options defaults;
    dm_forward_options_init(&defaults);
    file_ends ends = {.path = input_path, .n_outputs = model->graph.n_outputs};
    dm_status status = safetensors_open(input_path, &ends.input, err);
    if (status == DM_OK)
        status = run(&ends, model, output_path, options ? options : &defaults, err);
    output_abandon(ends.output);
    safetensors_clear(&ends.input);
    free(ends.inputs);
    free(ends.order);
    free(ends.outputs);
    return status;
}
