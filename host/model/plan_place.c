/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where values lie. An operand of a concatenation lies inside the concatenation's buffer, and is
 * written there by the step that makes it, if that step can write a view and every convolution that
 * reads it can read one; else it has a buffer of its own and is copied when the concatenation is
 * due.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/plan_draft.h"

static bool writes_views(const plan_draft *d, const draft_step *draft)
{
    const plan_step *step = &draft->step;
    return draft->concat || !is_convolution(step) || d->options->conv_writes_views ||
           conv_is_voxelwise(step->node);
}

/* Input and output of the network stay dense. */
static bool may_lie_inside(const plan_draft *d, int value)
{
    return d->options->optimise && d->parent[value] < 0 && d->producer[value] >= 0 &&
           value != d->output && writes_views(d, &d->steps[d->producer[value]]) &&
           (!d->conv_read[value] || d->options->conv_reads_views);
}

static void find_parents(plan_draft *d)
{
    for (size_t s = 0; s < d->n_steps; s++) {
        const graph_node *concat = d->steps[s].concat;
        size_t start = 0;
        for (size_t i = 0; concat && i < concat->n_inputs; i++) {
            int value = d->alias[concat->inputs[i]];
            if (may_lie_inside(d, value)) {
                d->parent[value] = concat->output;
                d->start[value] = start;
            }
            start += draft_channels(d, value);
        }
    }
}

bool buffer_bytes(size_t voxels, size_t channels, element_type type, size_t *bytes)
{
    size_t n;
    if (!size_multiply(voxels, channels, &n) || !size_multiply(n, element_size(type), &n) ||
        n > SIZE_MAX - 63)
        return false;
    *bytes = (n + 63) / 64 * 64;
    return true;
}

static dm_status buffer_of(plan_draft *d, int root, element_type type, int *buffer)
{
    const size_t *size = d->sizes[root];
    size_t voxels, bytes;
    if (d->buffer[root] < 0) {
        if (!size_multiply(size[0], size[1], &voxels) || !size_multiply(voxels, size[2], &voxels) ||
            !buffer_bytes(voxels, draft_channels(d, root), type, &bytes))
            return error_set(d->err, DM_ERROR_VALUE, NULL, "use a smaller tile",
                             "tensor '%.128s' of %zu x %zu x %zu voxels (z, y, x) with %zu "
                             "channels is larger than any memory",
                             draft_name(d, root), size[0], size[1], size[2],
                             draft_channels(d, root));
        d->buffer[root] = (int)d->n_buffers;
        d->buffers[d->n_buffers++] = (plan_buffer){.bytes = bytes, .first = SIZE_MAX};
    }
    *buffer = d->buffer[root];
    return DM_OK;
}

/* Channels [start, start+channels) of `value`'s place; all of it makes the value's own tensor. */
static dm_status add_tensor(plan_draft *d, int value, size_t start, size_t channels, int *index)
{
    int root = value, buffer = -1;
    for (; d->parent[root] >= 0; root = d->parent[root])
        start += d->start[root];
    element_type type = value == d->output ? ELEMENT_F32 : d->options->type;
    dm_status status = buffer_of(d, root, type, &buffer);
    if (status != DM_OK)
        return status;
    plan_tensor *t = &d->plan->tensors[d->plan->n_tensors];
    *t = (plan_tensor){.name = draft_name(d, value),
                       .channels = channels,
                       .pitch = draft_channels(d, root),
                       .channel_start = start,
                       .type = type,
                       .buffer_bytes = d->buffers[buffer].bytes};
    memcpy(t->dim, d->sizes[value], sizeof t->dim);
    d->tensor_buffer[d->plan->n_tensors] = buffer;
    *index = (int)d->plan->n_tensors++;
    return DM_OK;
}

static dm_status add_value(plan_draft *d, int value)
{
    return add_tensor(d, value, 0, draft_channels(d, value), &d->tensor[value]);
}

/* Copies those operands that do not lie in the concatenation already. A tensor that appears twice
 * lies in its first place. */
static dm_status emit_concat(plan_draft *d, const draft_step *draft)
{
    const graph_node *node = draft->concat;
    size_t start = 0;
    dm_status status = DM_OK;
    for (size_t i = 0; status == DM_OK && i < node->n_inputs; i++) {
        int value = d->alias[node->inputs[i]], view;
        size_t channels = draft_channels(d, value);
        if (d->parent[value] != node->output || d->start[value] != start) {
            status = add_tensor(d, node->output, start, channels, &view);
            if (status == DM_OK)
                d->plan->steps[d->plan->n_steps++] = (plan_step){
                    .kind = STEP_COPY, .name = node->name, .in = d->tensor[value], .out = view};
        }
        start += channels;
    }
    return status;
}

static void emit_step(plan_draft *d, draft_step *draft)
{
    plan_step *step = &d->plan->steps[d->plan->n_steps++];
    *step = draft->step;
    draft->step.chain = NULL; /* the plan's now */
    draft->step.n_chain = 0;
    step->in = d->tensor[step->in];
    step->out = d->tensor[step->out];
    for (size_t i = 0; i < step->n_chain; i++)
        if (step->chain[i].tensor >= 0)
            step->chain[i].tensor = d->tensor[step->chain[i].tensor];
}

/* Room for every step, and for a copy of every operand. */
static dm_status allocate(plan_draft *d)
{
    size_t copies = 0;
    for (size_t s = 0; s < d->n_steps; s++)
        copies += d->steps[s].concat ? d->steps[s].concat->n_inputs : 0;
    size_t n = d->n_steps + copies + 1;
    d->plan->steps = array_zero(n, sizeof *d->plan->steps);
    d->plan->tensors = array_zero(n, sizeof *d->plan->tensors);
    d->tensor_buffer = array_zero(n, sizeof *d->tensor_buffer);
    d->buffers = array_zero(n, sizeof *d->buffers);
    if (!d->plan->steps || !d->plan->tensors || !d->tensor_buffer || !d->buffers)
        return error_memory(d->err, n * sizeof *d->plan->steps, "a plan");
    return DM_OK;
}

dm_status draft_place(plan_draft *d)
{
    dm_status status = allocate(d);
    if (status != DM_OK)
        return status;
    find_parents(d);
    status = add_value(d, d->input);
    for (size_t s = 0; status == DM_OK && s < d->n_steps; s++) {
        draft_step *draft = &d->steps[s];
        status = add_value(d, draft->step.out);
        if (status == DM_OK && draft->concat)
            status = emit_concat(d, draft);
        else if (status == DM_OK)
            emit_step(d, draft);
    }
    d->plan->input = d->tensor[d->input];
    d->plan->output = d->tensor[d->output];
    return status;
}
