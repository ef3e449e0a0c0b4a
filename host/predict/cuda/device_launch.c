/* SPDX-License-Identifier: Apache-2.0 */
/* Enqueues the operations of the device's network, portion after portion. */
#include <nvtx3/nvToolsExt.h>
#include <string.h>

#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"

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
    return net->kernels->normalise_statistics(in, samples,
                                              (unsigned)network_norm_groups(net, op->step), epsilon,
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
        return net->kernels->global_average(statistics, out, samples, epilogue,
                                            net->options.stream);
    return net->kernels->normalise_apply(in, out, samples,
                                         (unsigned)network_norm_groups(net, op->step), statistics,
                                         op->scale, op->shift, epilogue, net->options.stream);
}

static cudaError_t run_moved(const device_network *net, const device_op *op,
                             const device_tensor *in, const device_tensor *out, unsigned samples,
                             const device_epilogue *epilogue)
{
    const graph_node *node = op->step->node;
    bool slice = op->step->kind == STEP_SLICE;
    if (op->step->kind == STEP_RESIZE && node->resize == RESIZE_LINEAR)
        return net->kernels->interpolate(op->maps, in, out, samples, epilogue, net->options.stream);
    return net->kernels->take_voxels(op->maps, slice ? (unsigned)node->channel_begin : 0,
                                     slice ? (unsigned)node->channel_step : 1, node->pad_value, in,
                                     out, samples, epilogue, net->options.stream);
}

/* On a tensor of zeros, to which the chain's first link adds the input. */
static cudaError_t run_broadcast(const device_network *net, const device_op *op,
                                 const device_tensor *out, unsigned first, unsigned samples)
{
    device_tensor zeros = scratch_tensor(net, out, ELEMENT_F32, op->float_at);
    cudaError_t code =
        net->kernels->zero(zeros.data, dense_bytes(out, ELEMENT_F32, samples), net->options.stream);
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
        code = net->kernels->pool(&pool, &in, &target, samples, &epilogue, stream);
        break;
    }
    case STEP_PAD:
    case STEP_SLICE:
    case STEP_RESIZE:
        code = run_moved(net, op, &in, &target, samples, &epilogue);
        break;
    default:
        code = net->kernels->pointwise(&in, &target, samples, &epilogue, stream);
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
    cudaError_t code = net->kernels->unfold(op->step->node->kernel, &blocks, &target, samples,
                                            &epilogue, net->options.stream);
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
        return device_check(net->kernels->attention_gate(&op->gate, &coarse, &skip, &out, samples,
                                                         net->options.stream),
                            op->step->name, err);
    }
    if (op->step->kind == STEP_CONV || op->step->kind == STEP_CONV_TRANSPOSE)
        return run_convolution(net, op, ends, first, samples, err);
    return device_check(run_step(net, op, first, samples), op->step->name, err);
}

static dm_status mark(const network_ends *ends, const device_network *net, int what, dm_error *err)
{
    return ends->mark ? device_check(ends->mark(ends->context, what, net->options.stream),
                                     "timing the network", err)
                      : DM_OK;
}

static dm_status fill(const device_network *net, const network_ends *ends, unsigned first,
                      unsigned samples, dm_error *err)
{
    device_tensor input = network_tensor(net, net->plan->input, first);
    dm_status status = mark(ends, net, NETWORK_FILL, err);
    if (status == DM_OK)
        status =
            device_check(ends->fill(ends->context, &input, first, samples, net->options.stream),
                         "cutting out windows", err);
    return status;
}

static dm_status take(const device_network *net, const network_ends *ends, unsigned first,
                      unsigned samples, dm_error *err)
{
    device_tensor output = network_tensor(net, net->plan->output, first);
    dm_status status = mark(ends, net, NETWORK_TAKE, err);
    if (status == DM_OK)
        status =
            device_check(ends->take(ends->context, &output, first, samples, net->options.stream),
                         "adding windows", err);
    return status;
}

/* One portion through a segment; the first one begins with the input, the last one ends with the
 * output. */
static dm_status run_portion(const device_network *net, const device_segment *segment,
                             const network_ends *ends, unsigned first, dm_error *err)
{
    unsigned samples = segment->samples;
    dm_status status = segment->first == 0 ? fill(net, ends, first, samples, err) : DM_OK;
    for (size_t i = segment->first; status == DM_OK && i < segment->end; i++) {
        status = mark(ends, net, (int)i, err);
        if (status == DM_OK)
            status = run_op(net, &net->ops[i], ends, first, samples, err);
    }
    if (status == DM_OK && segment->end == net->n_ops && !net->ops[net->n_ops - 1].head)
        status = take(net, ends, first, samples, err);
    return status == DM_OK ? mark(ends, net, NETWORK_PORTION_END, err) : status;
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
