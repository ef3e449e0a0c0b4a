/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a plan costs per sample. A convolution multiplies and adds for every tap of its kernel at
 * every voxel (of the output; of the input for a transposed one). Useful are those taps whose other
 * end is a voxel and not padding (transposed: not cropped away); they are counted per axis.
 */
#include "model/plan_draft.h"

/* Pairs of a position and a tap, and those among them that meet a voxel, along one axis. */
static double useful_taps(const graph_node *node, int axis, size_t from, size_t onto)
{
    long stride = node->stride[axis], dilation = node->dilation[axis];
    double useful = 0;
    for (long k = 0; k < node->kernel[axis]; k++) {
        /* positions i in [0, from) with 0 <= i*stride + reach < onto */
        long reach = k * dilation - node->pad_begin[axis];
        long low = reach < 0 ? (-reach + stride - 1) / stride : 0;
        long room = (long)onto - 1 - reach;
        long high = room < 0 ? -1 : room / stride;
        high = high < (long)from - 1 ? high : (long)from - 1;
        useful += high >= low ? (double)(high - low + 1) : 0;
    }
    return useful;
}

static void convolution_cost(const plan *p, plan_step *step)
{
    const graph_node *node = step->node;
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    bool transposed = step->kind == STEP_CONV_TRANSPOSE;
    const plan_tensor *from = transposed ? in : out, *onto = transposed ? out : in;
    double pairs = (double)in->channels * (double)out->channels / (double)node->groups;
    double taps = 1, useful = 1, kernel = 1;
    for (int a = 0; a < 3; a++) {
        kernel *= (double)node->kernel[a];
        taps *= (double)from->dim[a] * (double)node->kernel[a];
        useful *= useful_taps(node, a, from->dim[a], onto->dim[a]);
    }
    step->flops = 2 * pairs * taps;
    step->useful_flops = 2 * pairs * useful;
    step->weight_bytes = pairs * kernel * (double)element_size(p->options.type);
    if (step->bias)
        step->weight_bytes += (double)out->channels * sizeof(float);
}

static double tensor_bytes(const plan *p, int tensor)
{
    const plan_tensor *t = &p->tensors[tensor];
    return (double)t->dim[0] * (double)t->dim[1] * (double)t->dim[2] * (double)t->channels *
           (double)element_size(t->type);
}

static void step_cost(const plan *p, plan_step *step)
{
    double per_channel = (double)p->tensors[step->out].channels * sizeof(float);
    step->bytes = tensor_bytes(p, step->in) + tensor_bytes(p, step->out);
    if (step->kind == STEP_CONV || step->kind == STEP_CONV_TRANSPOSE)
        convolution_cost(p, step);
    step->weight_bytes += per_channel * ((step->scale != NULL) + (step->shift != NULL));
    for (size_t i = 0; i < step->n_chain; i++) {
        const chain_link *link = &step->chain[i];
        if (link->tensor >= 0)
            step->bytes += tensor_bytes(p, link->tensor);
        step->weight_bytes += per_channel * ((link->scale != NULL) + (link->shift != NULL));
    }
}

void plan_cost(plan *p)
{
    for (size_t s = 0; s < p->n_steps; s++) {
        plan_step *step = &p->steps[s];
        step_cost(p, step);
        p->flops += step->flops;
        p->useful_flops += step->useful_flops;
        p->bytes += step->bytes;
        p->weight_bytes += step->weight_bytes;
    }
}
