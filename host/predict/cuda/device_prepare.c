/* SPDX-License-Identifier: Apache-2.0 */
/* What each operation of the device's network needs before it runs: parameters on the device,
 * scratch memory, and for convolutions the choice of who computes them. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"
#include "predict/step_axis.h"

/* ---- Parameters and scratch memory ----------------------------------------------------------- */

static dm_status prepare_chain(device_network *net, device_op *op, dm_error *err)
{
    const plan_step *step = op->step;
    const plan_tensor *in = &net->plan->tensors[step->in], *out = &net->plan->tensors[step->out];
    dm_status status = DM_OK;
    size_t n = 0;
    op->links = array_zero(step->n_chain + 1, sizeof *op->links);
    op->link_tensors = array_zero(step->n_chain + 1, sizeof *op->link_tensors);
    if (!op->links || !op->link_tensors)
        return error_memory(err, (step->n_chain + 1) * sizeof *op->links, step->name);
    op->broadcast = step->kind == STEP_POINTWISE &&
                    (memcmp(in->dim, out->dim, sizeof in->dim) || in->channels != out->channels);
    if (op->broadcast) { /* 0 + in: operands may be broadcast, the input may not */
        op->links[n] = (device_link){.op = CHAIN_ADD_TENSOR};
        op->link_tensors[n++] = step->in;
    }
    for (size_t i = 0; status == DM_OK && i < step->n_chain; i++, n++) {
        const chain_link *link = &step->chain[i];
        op->links[n] = (device_link){.op = link->op, .alpha = link->alpha};
        op->link_tensors[n] = link_has_tensor(link) ? link->tensor : -1;
        status = device_parameters_floats(net->options.parameters, link->scale, out->channels,
                                          &op->links[n].scale, err);
        if (status == DM_OK)
            status = device_parameters_floats(net->options.parameters, link->shift, out->channels,
                                              &op->links[n].shift, err);
    }
    op->n_links = n;
    return status;
}

static dm_status prepare_maps(device_network *net, device_op *op, dm_error *err)
{
    const plan_tensor *in = &net->plan->tensors[op->step->in];
    const plan_tensor *out = &net->plan->tensors[op->step->out];
    dm_status status = DM_OK;
    for (int a = 0; a < 3 && status == DM_OK && !net->options.dry; a++) {
        step_axis axis;
        void *data = NULL;
        status = step_axis_create(op->step, a, in->dim[a], out->dim[a], &axis, err);
        if (status != DM_OK)
            break;
        status = device_upload(axis.low, axis.n * (2 * sizeof *axis.low + sizeof *axis.weight),
                               "copying tables of a step", &data, err);
        op->maps[a] = (device_axis_map){.low = data};
        if (data) {
            op->maps[a].high = op->maps[a].low + axis.n;
            op->maps[a].weight = (const float *)(op->maps[a].high + axis.n);
        }
        step_axis_free(&axis);
    }
    return status;
}

size_t network_norm_groups(const device_network *net, const plan_step *step)
{
    return step->kind == STEP_NORM && step->node->op == OP_GROUP_NORM
               ? (size_t)step->node->groups
               : net->plan->tensors[step->in].channels;
}

static dm_status prepare_norm(device_network *net, device_op *op, unsigned samples, dm_error *err)
{
    const plan_step *step = op->step;
    device_parameters *parameters = net->options.parameters;
    size_t groups = network_norm_groups(net, step),
           channels = net->plan->tensors[step->in].channels;
    device_tensor in = network_tensor(net, step->in, 0);
    dm_status status = device_parameters_floats(parameters, step->scale, channels, &op->scale, err);
    if (status == DM_OK)
        status = device_parameters_floats(parameters, step->shift, channels, &op->shift, err);
    if (status == DM_OK)
        status = scratch_take(op, samples * groups * 2 * sizeof(float), &op->statistics_at, err);
    if (status == DM_OK)
        status = scratch_take(op, normalise_workspace(&in, samples, (unsigned)groups),
                              &op->workspace_at, err);
    return status;
}

static device_convolution convolution_of(const plan_step *step)
{
    device_convolution c = {.groups = (unsigned)step->node->groups,
                            .transposed = step->kind == STEP_CONV_TRANSPOSE};
    for (int a = 0; a < 3; a++) {
        c.kernel[a] = step->node->kernel[a];
        c.stride[a] = step->node->stride[a];
        c.dilation[a] = step->node->dilation[a];
        c.pad_begin[a] = step->node->pad_begin[a];
    }
    return c;
}

/* A transposed convolution whose kernel is its stride: a 1x1x1 convolution to one channel for every
 * voxel of the kernel, then kernel_unfold. */
static dm_status prepare_unfold(device_network *net, device_op *op, unsigned samples, dm_error *err)
{
    const plan_step *step = op->step;
    const int *k = step->node->kernel;
    device_tensor in = network_tensor(net, step->in, 0), out = network_tensor(net, step->out, 0);
    op->unfold = true;
    op->conv.conv = (device_convolution){.kernel = {1, 1, 1},
                                         .stride = {1, 1, 1},
                                         .dilation = {1, 1, 1},
                                         .groups = 1,
                                         .tf32 = net->options.tf32};
    op->blocks = in;
    op->blocks.channels = out.channels * (unsigned)(k[0] * k[1] * k[2]);
    dm_status status = device_parameters_blocks(net->options.parameters, net->plan, step,
                                                &op->conv.conv.weight, err);
    if (status == DM_OK)
        status = scratch_take(op, dense_bytes(&op->blocks, in.type, samples), &op->blocks_at, err);
    if (status != DM_OK)
        return status;
    op->blocks = scratch_tensor(net, &op->blocks, in.type, op->blocks_at);
    status = convolution_choose(net, op, &in, &op->blocks, samples, false, err);
    size_t used = strlen(op->way);
    snprintf(op->way + used, sizeof op->way - used, ", kernel_unfold");
    return status;
}

static bool is_head(const device_network *net, const device_op *op, const device_tensor *in)
{
    if (!net->options.join_head || op->step->out != net->plan->output ||
        op->n_links > DEVICE_MAX_LINKS || net->plan->tensors[op->step->out].channels != 1)
        return false;
    device_epilogue epilogue = epilogue_of(net, op, op->bias, 0, op->n_links, 0);
    return head_stitch_takes(&op->conv.conv, in, &epilogue);
}

static dm_status prepare_convolution(device_network *net, device_op *op, unsigned samples,
                                     dm_error *err)
{
    const plan_step *step = op->step;
    device_tensor in = network_tensor(net, step->in, 0), out = network_tensor(net, step->out, 0);
    dm_status status =
        device_parameters_floats(net->options.parameters, step->bias, out.channels, &op->bias, err);
    if (status != DM_OK)
        return status;
    if (step->kind == STEP_CONV_TRANSPOSE && conv_is_voxelwise(step->node))
        return prepare_unfold(net, op, samples, err);
    op->conv.conv = convolution_of(step);
    op->conv.conv.tf32 = net->options.tf32;
    status = device_parameters_weight(net->options.parameters, net->plan, step,
                                      &op->conv.conv.weight, err);
    if (status == DM_OK && is_head(net, op, &in)) {
        op->head = true;
        snprintf(op->way, sizeof op->way, "kernel_head_stitch");
    } else if (status == DM_OK) {
        status = convolution_choose(net, op, &in, &out, samples, true, err);
    }
    return status;
}

dm_status network_fill_gate(device_network *net, const lowered_op *lowered, device_gate *gate,
                            dm_error *err)
{
    const plan_step *part[3] = {lowered->coarse, lowered->skip, lowered->psi};
    const void **weight[3] = {&gate->coarse_weight, &gate->skip_weight, &gate->psi_weight};
    const float **bias[3] = {&gate->coarse_bias, &gate->skip_bias, &gate->psi_bias};
    device_parameters *parameters = net->options.parameters;
    dm_status status = DM_OK;
    gate->inner = (unsigned)net->plan->tensors[lowered->skip->out].channels;
    for (int i = 0; i < 3 && status == DM_OK; i++) {
        status = device_parameters_weight(parameters, net->plan, part[i], weight[i], err);
        if (status == DM_OK)
            status = device_parameters_floats(
                parameters, part[i]->bias, net->plan->tensors[part[i]->out].channels, bias[i], err);
    }
    return status;
}

dm_status network_prepare(device_network *net, size_t index, dm_error *err)
{
    device_op *op = &net->ops[index];
    unsigned samples = network_samples(net, index);
    dm_status status;
    if (op->lowered.kind == LOWERED_GATE) {
        snprintf(op->way, sizeof op->way, "kernel_attention_gate");
        return network_fill_gate(net, &op->lowered, &op->gate, err);
    }
    status = prepare_chain(net, op, err);
    if (status == DM_OK && (op->n_links > DEVICE_MAX_LINKS || op->broadcast)) {
        device_tensor out = network_tensor(net, op->step->out, 0);
        status = scratch_take(op, dense_bytes(&out, ELEMENT_F32, samples), &op->float_at, err);
    }
    if (status != DM_OK)
        return status;
    switch (op->step->kind) {
    case STEP_CONV:
    case STEP_CONV_TRANSPOSE:
        return prepare_convolution(net, op, samples, err);
    case STEP_NORM:
    case STEP_GLOBAL_AVERAGE_POOL:
        return prepare_norm(net, op, samples, err);
    case STEP_PAD:
    case STEP_SLICE:
    case STEP_RESIZE:
        return prepare_maps(net, op, err);
    default:
        return DM_OK;
    }
}
