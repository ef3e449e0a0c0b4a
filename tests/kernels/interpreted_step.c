/* SPDX-License-Identifier: Apache-2.0 */
#include "interpreted_step.h"

#include "plan_interpreter.h"
#include "predict/step_axis.h"

static const step_kind kinds[] = {
    [INTERPRETED_POINTWISE] = STEP_POINTWISE,
    [INTERPRETED_INSTANCE_NORM] = STEP_NORM,
    [INTERPRETED_GROUP_NORM] = STEP_NORM,
    [INTERPRETED_MAX_POOL] = STEP_MAX_POOL,
    [INTERPRETED_AVERAGE_POOL] = STEP_AVERAGE_POOL,
    [INTERPRETED_GLOBAL_AVERAGE_POOL] = STEP_GLOBAL_AVERAGE_POOL,
    [INTERPRETED_RESIZE] = STEP_RESIZE,
    [INTERPRETED_PAD] = STEP_PAD,
    [INTERPRETED_SLICE] = STEP_SLICE,
};

static graph_node node_of(const interpreted_step *s)
{
    const interpreted_node *n = &s->node;
    graph_node node = {
        .op = s->kind == INTERPRETED_GROUP_NORM ? OP_GROUP_NORM : OP_INSTANCE_NORM,
        .groups = n->groups,
        .epsilon = n->epsilon,
        .count_include_pad = n->count_include_pad,
        .pad = (pad_mode)n->pad,
        .pad_value = n->pad_value,
        .resize = (resize_mode)n->resize,
        .coordinates = (resize_coordinates)n->coordinates,
        .nearest_floor = n->nearest_floor,
        .channel_begin = n->channel_begin,
        .channel_step = n->channel_step,
    };
    memcpy(node.kernel, n->kernel, sizeof node.kernel);
    memcpy(node.stride, n->stride, sizeof node.stride);
    memcpy(node.dilation, n->dilation, sizeof node.dilation);
    memcpy(node.pad_begin, n->pad_begin, sizeof node.pad_begin);
    memcpy(node.pad_end, n->pad_end, sizeof node.pad_end);
    memcpy(node.scales, n->scales, sizeof node.scales);
    memcpy(node.slice_begin, n->slice_begin, sizeof node.slice_begin);
    memcpy(node.slice_end, n->slice_end, sizeof node.slice_end);
    memcpy(node.slice_step, n->slice_step, sizeof node.slice_step);
    return node;
}

static plan_tensor *tensors_of(const interpreted_step *s)
{
    plan_tensor *tensors = calloc(s->n_tensors, sizeof *tensors);
    for (size_t i = 0; i < s->n_tensors; i++) {
        const interpreted_tensor *t = &s->tensors[i];
        tensors[i] = (plan_tensor){.channels = t->channels,
                                   .dim = {t->dim[0], t->dim[1], t->dim[2]},
                                   .pitch = t->pitch,
                                   .channel_start = t->channel_start,
                                   .type = t->type,
                                   .offset = t->offset};
    }
    return tensors;
}

void interpreted_step_run(const interpreted_step *s, unsigned char *arena)
{
    graph_node node = node_of(s);
    chain_link *chain = calloc(s->n_chain + 1, sizeof *chain);
    for (size_t i = 0; i < s->n_chain; i++)
        chain[i] = (chain_link){.op = s->chain[i].op,
                                .tensor = s->chain[i].tensor,
                                .alpha = s->chain[i].alpha,
                                .scale = s->chain[i].scale,
                                .shift = s->chain[i].shift};
    plan_step step = {.kind = kinds[s->kind],
                      .node = &node,
                      .in = s->in,
                      .out = s->out,
                      .scale = s->scale,
                      .shift = s->shift,
                      .n_chain = s->n_chain,
                      .chain = chain};
    plan p = {.n_tensors = s->n_tensors, .tensors = tensors_of(s), .n_steps = 1, .steps = &step};
    interpret_step(&p, &step, arena);
    free(p.tensors);
    free(chain);
}

void interpreted_step_axis(const interpreted_step *s, int axis, int *low, int *high, float *weight)
{
    graph_node node = node_of(s);
    plan_step step = {.kind = kinds[s->kind], .name = "step", .node = &node};
    size_t in = s->tensors[s->in].dim[axis], out = s->tensors[s->out].dim[axis];
    step_axis made;
    if (step_axis_create(&step, axis, in, out, &made, NULL) != DM_OK)
        abort();
    memcpy(low, made.low, out * sizeof *low);
    memcpy(high, made.high, out * sizeof *high);
    memcpy(weight, made.weight, out * sizeof *weight);
    step_axis_free(&made);
}

size_t interpreted_size(element_type type)
{
    return element_size(type);
}

float interpreted_load(element_type type, const void *at)
{
    return (float)element_load(type, at);
}

void interpreted_store(element_type type, void *at, float value)
{
    element_store(type, at, (double)value);
}
