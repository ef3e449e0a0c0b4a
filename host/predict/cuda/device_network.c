/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_network.h"

#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"
#include "predict/step_axis.h"

#define ALIGNMENT 256

void device_network_plan_needs(plan_options *options)
{
    options->conv_reads_views = true;
    options->conv_writes_views = true;
}

/* ---- Tensors and scratch memory ------------------------------------------------------------- */

device_tensor network_tensor(const device_network *net, int tensor, unsigned first)
{
    const plan_tensor *t = &net->plan->tensors[tensor];
    const device_place *place = &net->layout.tensors[tensor];
    size_t size = element_size(t->type);
    device_tensor made = {.sample = place->sample,
                          .pitch = t->pitch,
                          .channels = (unsigned)t->channels,
                          .dim = {(unsigned)t->dim[0], (unsigned)t->dim[1], (unsigned)t->dim[2]},
                          .type = t->type};
    if (place->offset != SIZE_MAX)
        made.data = net->arena + place->offset + t->channel_start * size +
                    (place->whole ? first * place->sample * size : 0);
    return made;
}

device_tensor device_network_tensor(const device_network *net, int tensor)
{
    return network_tensor(net, tensor, 0);
}

static const device_segment *segment_of(const device_network *net, size_t op)
{
    const device_segment *s = net->layout.segments;
    while (op >= s->end)
        s++;
    return s;
}

unsigned network_samples(const device_network *net, size_t op)
{
    return segment_of(net, op)->samples;
}

static size_t dense_sample(const device_tensor *t)
{
    return (size_t)t->dim[0] * t->dim[1] * t->dim[2] * t->channels;
}

size_t dense_bytes(const device_tensor *t, element_type type, unsigned samples)
{
    return dense_sample(t) * element_size(type) * samples;
}

device_tensor scratch_tensor(const device_network *net, const device_tensor *t, element_type type,
                             size_t at)
{
    device_tensor made = *t;
    made.data = net->scratch + at;
    made.sample = dense_sample(t);
    made.pitch = t->channels;
    made.type = type;
    return made;
}

dm_status scratch_take(device_op *op, size_t bytes, size_t *at, dm_error *err)
{
    if (bytes > SIZE_MAX / 2 - ALIGNMENT - op->scratch_bytes)
        return error_memory(err, SIZE_MAX, op->step->name);
    *at = op->scratch_bytes;
    op->scratch_bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return DM_OK;
}

/* ---- Chains --------------------------------------------------------------------------------- */

/* Along axes and channels of which the tensor has one, steps are 0. */
static device_operand operand_of(const device_network *net, int tensor, unsigned first)
{
    device_tensor t = network_tensor(net, tensor, first);
    return (device_operand){.data = t.data,
                            .sample = t.sample,
                            .z = t.dim[0] == 1 ? 0 : (size_t)t.dim[1] * t.dim[2] * t.pitch,
                            .y = t.dim[1] == 1 ? 0 : t.dim[2] * t.pitch,
                            .x = t.dim[2] == 1 ? 0 : t.pitch,
                            .c = t.channels == 1 ? 0 : 1,
                            .type = t.type};
}

device_epilogue epilogue_of(const device_network *net, const device_op *op, const float *bias,
                            size_t from, size_t n, unsigned first)
{
    device_epilogue epilogue = {.bias = bias, .n = (unsigned)n};
    for (size_t i = 0; i < n; i++) {
        epilogue.link[i] = op->links[from + i];
        if (op->link_tensors[from + i] >= 0)
            epilogue.link[i].operand = operand_of(net, op->link_tensors[from + i], first);
    }
    return epilogue;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

device_tensor first_target(const device_network *net, const device_op *op, const device_tensor *out,
                           size_t *links)
{
    *links = smaller(op->n_links, DEVICE_MAX_LINKS);
    return *links < op->n_links ? scratch_tensor(net, out, ELEMENT_F32, op->float_at) : *out;
}

/* Passes of DEVICE_MAX_LINKS each, in float32 between them, so that nothing is rounded twice and no
 * operand that lies in the result's place is overwritten before it is read. */
cudaError_t finish_chain(const device_network *net, const device_op *op, device_tensor value,
                         const device_tensor *out, const float *bias, size_t from, unsigned first,
                         unsigned samples)
{
    cudaError_t code;
    bool last;
    do {
        size_t n = smaller(op->n_links - from, DEVICE_MAX_LINKS);
        last = from + n == op->n_links;
        device_tensor target = last ? *out : scratch_tensor(net, out, ELEMENT_F32, op->float_at);
        device_epilogue epilogue = epilogue_of(net, op, bias, from, n, first);
        code = kernel_pointwise(&value, &target, samples, &epilogue, net->options.stream);
        value = target;
        from += n;
        bias = NULL;
    } while (code == cudaSuccess && !last);
    return code;
}

/* ---- Preparing operations ------------------------------------------------------------------- */

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
    for (int a = 0; a < 3 && status == DM_OK; a++) {
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

static size_t norm_groups(const device_network *net, const plan_step *step)
{
    return step->kind == STEP_NORM && step->node->op == OP_GROUP_NORM
               ? (size_t)step->node->groups
               : net->plan->tensors[step->in].channels;
}

static dm_status prepare_norm(device_network *net, device_op *op, unsigned samples, dm_error *err)
{
    const plan_step *step = op->step;
    device_parameters *parameters = net->options.parameters;
    size_t groups = norm_groups(net, step), channels = net->plan->tensors[step->in].channels;
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

static dm_status fill_gate(device_network *net, const lowered_op *lowered, device_gate *gate,
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

static dm_status prepare_op(device_network *net, size_t index, dm_error *err)
{
    device_op *op = &net->ops[index];
    unsigned samples = network_samples(net, index);
    dm_status status;
    if (op->lowered.kind == LOWERED_GATE) {
        snprintf(op->way, sizeof op->way, "kernel_attention_gate");
        return fill_gate(net, &op->lowered, &op->gate, err);
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

/* ---- Making --------------------------------------------------------------------------------- */

/* Before anything is placed: with addresses as well aligned as the layout makes them. */
static device_tensor unplaced(const plan *p, int tensor)
{
    const plan_tensor *t = &p->tensors[tensor];
    uintptr_t data = ALIGNMENT + t->channel_start * element_size(t->type);
    return (device_tensor){.data = (void *)data,
                           .sample = t->dim[0] * t->dim[1] * t->dim[2] * t->pitch,
                           .pitch = t->pitch,
                           .channels = (unsigned)t->channels,
                           .dim = {(unsigned)t->dim[0], (unsigned)t->dim[1], (unsigned)t->dim[2]},
                           .type = t->type};
}

typedef struct gate_context {
    device_network *net;
    dm_status status;
    dm_error *err;
} gate_context;

static bool takes_gate(const plan *p, const lowered_op *op, void *context)
{
    gate_context *c = context;
    device_gate gate = {0};
    if (c->status == DM_OK)
        c->status = fill_gate(c->net, op, &gate, c->err);
    if (c->status != DM_OK)
        return false;
    device_tensor coarse = unplaced(p, op->coarse->in), skip = unplaced(p, op->skip->in),
                  out = unplaced(p, op->step->out);
    return attention_gate_takes(&gate, &coarse, &skip, &out);
}

static dm_status lower(device_network *net, dm_error *err)
{
    const plan *p = net->plan;
    gate_context context = {net, DM_OK, err};
    lowered_op *lowered = array_zero(p->n_steps + 1, sizeof *lowered);
    net->ops = array_zero(p->n_steps + 1, sizeof *net->ops);
    if (!lowered || !net->ops) {
        free(lowered);
        return error_memory(err, (p->n_steps + 1) * sizeof *net->ops, "the network's steps");
    }
    net->n_ops = lower_plan(p, takes_gate, &context, lowered);
    for (size_t i = 0; i < net->n_ops; i++) {
        net->ops[i].lowered = lowered[i];
        net->ops[i].step = lowered[i].step;
    }
    dm_status status = context.status;
    if (status == DM_OK)
        status = device_layout_make(p, lowered, net->n_ops, net->options.batch,
                                    net->options.cache_bytes, &net->layout, err);
    free(lowered);
    return status;
}

static dm_status check_plan(const plan *p, dm_error *err)
{
    for (size_t i = 0; i < p->n_tensors; i++) {
        const plan_tensor *t = &p->tensors[i];
        size_t voxels, plane;
        if (!size_multiply(t->dim[0], t->dim[1], &plane) ||
            !size_multiply(plane, t->dim[2], &voxels) || voxels > INT32_MAX)
            return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use a smaller --tile",
                             "tensor \"%s\" has more than %d voxels", t->name, INT32_MAX);
    }
    return DM_OK;
}

static dm_status create(device_network *net, dm_error *err)
{
    void *memory = NULL;
    dm_status status = check_plan(net->plan, err);
    if (status == DM_OK)
        status = lower(net, err);
    if (status == DM_OK)
        status = device_alloc(&memory, net->layout.bytes, "the network's activations", err);
    net->arena = memory;
    for (size_t i = 0; status == DM_OK && i < net->n_ops; i++) {
        status = prepare_op(net, i, err);
        if (net->ops[i].scratch_bytes > net->scratch_bytes)
            net->scratch_bytes = net->ops[i].scratch_bytes;
    }
    library_free_check(net);
    if (status == DM_OK) {
        status = device_alloc(&memory, net->scratch_bytes, "the network's scratch memory", err);
        net->scratch = memory;
    }
    return status;
}

dm_status device_network_create(const plan *p, const device_network_options *options,
                                device_network **created, dm_error *err)
{
    device_network *net = array_zero(1, sizeof *net);
    *created = NULL;
    if (!net)
        return error_memory(err, sizeof *net, "the network");
    net->plan = p;
    net->options = *options;
    dm_status status = create(net, err);
    if (status == DM_OK)
        *created = net;
    else
        device_network_free(net);
    return status;
}

void device_network_free(device_network *net)
{
    if (!net)
        return;
    for (size_t i = 0; i < net->n_ops; i++) {
        for (int a = 0; a < 3; a++)
            device_free((void *)(uintptr_t)net->ops[i].maps[a].low);
        free(net->ops[i].links);
        free(net->ops[i].link_tensors);
    }
    free(net->ops);
    library_free_entries(net);
    library_free_check(net);
    device_layout_clear(&net->layout);
    device_free(net->arena);
    device_free(net->scratch);
    free(net);
}

size_t device_network_bytes(const device_network *net)
{
    return net->layout.bytes + net->scratch_bytes;
}

const char *device_network_rejections(const device_network *net)
{
    return net->rejections;
}

const char *device_network_way(const device_network *net, size_t step)
{
    for (size_t i = 0; i < net->n_ops; i++)
        if (net->ops[i].step == &net->plan->steps[step])
            return net->ops[i].way;
    return "part of a gate";
}

/* ---- Running -------------------------------------------------------------------------------- */

static device_pool pool_of(const plan_step *step)
{
    device_pool pool = {.maximum = step->kind == STEP_MAX_POOL,
                        .count_include_pad = step->node->count_include_pad};
    for (int a = 0; a < 3; a++) {
        pool.kernel[a] = step->node->kernel[a];
        pool.stride[a] = step->node->stride[a];
        pool.dilation[a] = pool.maximum ? step->node->dilation[a] : 1;
        pool.pad_begin[a] = step->node->pad_begin[a];
        pool.pad_end[a] = step->node->pad_end[a];
    }
    return pool;
}

static cudaError_t run_statistics(const device_network *net, const device_op *op,
                                  const device_tensor *in, unsigned samples)
{
    float epsilon = op->step->kind == STEP_NORM ? op->step->node->epsilon : 0;
    return kernel_normalise_statistics(in, samples, (unsigned)norm_groups(net, op->step), epsilon,
                                       (float *)(net->scratch + op->statistics_at),
                                       net->scratch + op->workspace_at, net->options.stream);
}

static cudaError_t run_norm(const device_network *net, const device_op *op, const device_tensor *in,
                            const device_tensor *out, unsigned samples,
                            const device_epilogue *epilogue)
{
    const float *statistics = (const float *)(net->scratch + op->statistics_at);
    cudaError_t code = run_statistics(net, op, in, samples);
    if (code != cudaSuccess)
        return code;
    if (op->step->kind == STEP_GLOBAL_AVERAGE_POOL)
        return kernel_global_average(statistics, out, samples, epilogue, net->options.stream);
    return kernel_normalise_apply(in, out, samples, (unsigned)norm_groups(net, op->step),
                                  statistics, op->scale, op->shift, epilogue, net->options.stream);
}

static cudaError_t run_moved(const device_network *net, const device_op *op,
                             const device_tensor *in, const device_tensor *out, unsigned samples,
                             const device_epilogue *epilogue)
{
    const graph_node *node = op->step->node;
    bool slice = op->step->kind == STEP_SLICE;
    if (op->step->kind == STEP_RESIZE && node->resize == RESIZE_LINEAR)
        return kernel_interpolate(op->maps, in, out, samples, epilogue, net->options.stream);
    return kernel_take_voxels(op->maps, slice ? (unsigned)node->channel_begin : 0,
                              slice ? (unsigned)node->channel_step : 1, node->pad_value, in, out,
                              samples, epilogue, net->options.stream);
}

/* On a tensor of zeros, to which the chain's first link adds the input. */
static cudaError_t run_broadcast(const device_network *net, const device_op *op,
                                 const device_tensor *out, unsigned first, unsigned samples)
{
    device_tensor zeros = scratch_tensor(net, out, ELEMENT_F32, op->float_at);
    cudaError_t code =
        cudaMemsetAsync(zeros.data, 0, dense_bytes(out, ELEMENT_F32, samples), net->options.stream);
    return code == cudaSuccess ? finish_chain(net, op, zeros, out, NULL, 0, first, samples) : code;
}

/* Everything that is no convolution and no gate. */
static cudaError_t run_step(const device_network *net, const device_op *op, unsigned first,
                            unsigned samples)
{
    device_tensor in = network_tensor(net, op->step->in, first);
    device_tensor out = network_tensor(net, op->step->out, first);
    size_t n;
    device_tensor target = first_target(net, op, &out, &n);
    device_epilogue epilogue = epilogue_of(net, op, NULL, 0, n, first);
    cudaStream_t stream = net->options.stream;
    cudaError_t code;
    if (op->broadcast)
        return run_broadcast(net, op, &out, first, samples);
    switch (op->step->kind) {
    case STEP_NORM:
    case STEP_GLOBAL_AVERAGE_POOL:
        code = run_norm(net, op, &in, &target, samples, &epilogue);
        break;
    case STEP_MAX_POOL:
    case STEP_AVERAGE_POOL: {
        device_pool pool = pool_of(op->step);
        code = kernel_pool(&pool, &in, &target, samples, &epilogue, stream);
        break;
    }
    case STEP_PAD:
    case STEP_SLICE:
    case STEP_RESIZE:
        code = run_moved(net, op, &in, &target, samples, &epilogue);
        break;
    default:
        code = kernel_pointwise(&in, &target, samples, &epilogue, stream);
    }
    if (code == cudaSuccess && n < op->n_links)
        code = finish_chain(net, op, target, &out, NULL, n, first, samples);
    return code;
}

static dm_status run_unfold(const device_network *net, const device_op *op, const device_tensor *in,
                            const device_tensor *out, unsigned first, unsigned samples,
                            dm_error *err)
{
    device_tensor blocks = scratch_tensor(net, &op->blocks, op->blocks.type, op->blocks_at);
    size_t n;
    device_tensor target = first_target(net, op, out, &n);
    device_epilogue epilogue = epilogue_of(net, op, op->bias, 0, n, first);
    dm_status status = convolution_run_choice(net, op, in, &blocks, first, samples, false, err);
    if (status != DM_OK)
        return status;
    cudaError_t code = kernel_unfold(op->step->node->kernel, &blocks, &target, samples, &epilogue,
                                     net->options.stream);
    if (code == cudaSuccess && n < op->n_links)
        code = finish_chain(net, op, target, out, NULL, n, first, samples);
    return device_check(code, op->step->name, err);
}

static dm_status run_convolution(const device_network *net, const device_op *op,
                                 const network_ends *ends, unsigned first, unsigned samples,
                                 dm_error *err)
{
    device_tensor in = network_tensor(net, op->step->in, first);
    device_tensor out = network_tensor(net, op->step->out, first);
    if (op->unfold)
        return run_unfold(net, op, &in, &out, first, samples, err);
    if (!op->head)
        return convolution_run_choice(net, op, &in, &out, first, samples, true, err);
    device_epilogue epilogue = epilogue_of(net, op, op->bias, 0, op->n_links, first);
    return device_check(ends->head(ends->context, &op->conv.conv, &in, &epilogue, first, samples,
                                   net->options.stream),
                        op->step->name, err);
}

static dm_status run_op(const device_network *net, const device_op *op, const network_ends *ends,
                        unsigned first, unsigned samples, dm_error *err)
{
    if (op->lowered.kind == LOWERED_GATE) {
        device_tensor coarse = network_tensor(net, op->lowered.coarse->in, first);
        device_tensor skip = network_tensor(net, op->lowered.skip->in, first);
        device_tensor out = network_tensor(net, op->step->out, first);
        return device_check(
            kernel_attention_gate(&op->gate, &coarse, &skip, &out, samples, net->options.stream),
            op->step->name, err);
    }
    if (op->step->kind == STEP_CONV || op->step->kind == STEP_CONV_TRANSPOSE)
        return run_convolution(net, op, ends, first, samples, err);
    return device_check(run_step(net, op, first, samples), op->step->name, err);
}

/* One portion through a segment; the first one begins with the input, the last one ends with the
 * output. */
static dm_status run_portion(const device_network *net, const device_segment *segment,
                             const network_ends *ends, unsigned first, dm_error *err)
{
    dm_status status = DM_OK;
    unsigned samples = segment->samples;
    if (segment->first == 0) {
        device_tensor input = network_tensor(net, net->plan->input, first);
        status =
            device_check(ends->fill(ends->context, &input, first, samples, net->options.stream),
                         "cutting out windows", err);
    }
    for (size_t i = segment->first; status == DM_OK && i < segment->end; i++)
        status = run_op(net, &net->ops[i], ends, first, samples, err);
    if (status == DM_OK && segment->end == net->n_ops && !net->ops[net->n_ops - 1].head) {
        device_tensor output = network_tensor(net, net->plan->output, first);
        status =
            device_check(ends->take(ends->context, &output, first, samples, net->options.stream),
                         "adding windows", err);
    }
    return status;
}

dm_status device_network_launch(device_network *net, const network_ends *ends, dm_error *err)
{
    dm_status status = DM_OK;
    for (size_t s = 0; s < net->layout.n_segments && status == DM_OK; s++) {
        const device_segment *segment = &net->layout.segments[s];
        nvtxRangePushA(net->ops[segment->first].step->name);
        for (unsigned first = 0; status == DM_OK && first < net->options.batch;
             first += segment->samples)
            status = run_portion(net, segment, ends, first, err);
        nvtxRangePop();
    }
    return status;
}
