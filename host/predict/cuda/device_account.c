/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_account.h"

#include <stdlib.h>

#include "base/error.h"
#include "predict/cuda/device_network_parts.h"

/* Where a stream is expected. */
static device_account *account_of(cudaStream_t stream)
{
    return (void *)stream;
}

static account_sum *now(cudaStream_t stream)
{
    account_sum *sum = account_of(stream)->now;
    sum->launches++;
    return sum;
}

/* ---- Operands ------------------------------------------------------------------------------- */

static double voxels_of(const device_tensor *t)
{
    return (double)t->dim[0] * t->dim[1] * t->dim[2];
}

static double tensor_bytes(const device_tensor *t, unsigned samples)
{
    return samples * voxels_of(t) * t->channels * (double)element_size(t->type);
}

/* Of a result like `out`; along the axes that it is broadcast over, it has one. */
static double operand_bytes(const device_operand *operand, const device_tensor *out,
                            unsigned samples)
{
    double elements = operand->sample ? samples : 1;
    elements *= operand->z ? out->dim[0] : 1;
    elements *= operand->y ? out->dim[1] : 1;
    elements *= operand->x ? out->dim[2] : 1;
    elements *= operand->c ? out->channels : 1;
    return elements * (double)element_size(operand->type);
}

static double channel_bytes(const void *parameters, unsigned channels)
{
    return parameters ? channels * (double)sizeof(float) : 0;
}

/* What the end of a step reads and writes. */
static void add_result(account_sum *sum, const device_tensor *out, unsigned samples,
                       const device_epilogue *epilogue)
{
    sum->written += tensor_bytes(out, samples);
    sum->weights += channel_bytes(epilogue->bias, out->channels);
    for (unsigned i = 0; i < epilogue->n; i++) {
        const device_link *link = &epilogue->link[i];
        if (link->op <= CHAIN_RSUB_TENSOR)
            sum->read += operand_bytes(&link->operand, out, samples);
        sum->weights += channel_bytes(link->scale, out->channels);
        sum->weights += channel_bytes(link->shift, out->channels);
    }
}

/* ---- Kernels -------------------------------------------------------------------------------- */

static cudaError_t zero(void *data, size_t bytes, cudaStream_t stream)
{
    (void)data;
    now(stream)->written += (double)bytes;
    return cudaSuccess;
}

static cudaError_t pointwise(const device_tensor *in, const device_tensor *out, unsigned samples,
                             const device_epilogue *epilogue, cudaStream_t stream)
{
    account_sum *sum = now(stream);
    sum->read += tensor_bytes(in, samples);
    add_result(sum, out, samples, epilogue);
    return cudaSuccess;
}

static double statistics_bytes(unsigned samples, unsigned groups)
{
    return 2.0 * samples * groups * (double)sizeof(float);
}

static cudaError_t normalise_statistics(const device_tensor *in, unsigned samples, unsigned groups,
                                        float epsilon, float *statistics, void *workspace,
                                        cudaStream_t stream)
{
    (void)epsilon, (void)statistics, (void)workspace;
    account_sum *sum = now(stream);
    sum->read += tensor_bytes(in, samples);
    sum->workspace +=
        2 * (double)normalise_workspace(in, samples, groups) + statistics_bytes(samples, groups);
    return cudaSuccess;
}

static cudaError_t normalise_apply(const device_tensor *in, const device_tensor *out,
                                   unsigned samples, unsigned groups, const float *statistics,
                                   const float *scale, const float *shift,
                                   const device_epilogue *epilogue, cudaStream_t stream)
{
    (void)statistics;
    account_sum *sum = now(stream);
    sum->read += tensor_bytes(in, samples);
    sum->workspace += statistics_bytes(samples, groups);
    sum->weights += channel_bytes(scale, in->channels) + channel_bytes(shift, in->channels);
    add_result(sum, out, samples, epilogue);
    return cudaSuccess;
}

static cudaError_t global_average(const float *statistics, const device_tensor *out,
                                  unsigned samples, const device_epilogue *epilogue,
                                  cudaStream_t stream)
{
    (void)statistics;
    account_sum *sum = now(stream);
    sum->workspace += statistics_bytes(samples, out->channels);
    add_result(sum, out, samples, epilogue);
    return cudaSuccess;
}

static cudaError_t pool(const device_pool *windows, const device_tensor *in,
                        const device_tensor *out, unsigned samples, const device_epilogue *epilogue,
                        cudaStream_t stream)
{
    (void)windows;
    return pointwise(in, out, samples, epilogue, stream);
}

static double table_bytes(const device_tensor *out)
{
    return ((double)out->dim[0] + out->dim[1] + out->dim[2]) * (2 * sizeof(int) + sizeof(float));
}

/* Of a slice what it takes, of what is padded or repeated all, once. */
static cudaError_t take_voxels(const device_axis_map axis[3], unsigned channel_begin,
                               unsigned channel_step, float fill, const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream)
{
    (void)axis, (void)channel_begin, (void)channel_step, (void)fill;
    account_sum *sum = now(stream);
    double most = tensor_bytes(in, samples);
    double taken = samples * voxels_of(out) * out->channels * (double)element_size(in->type);
    sum->read += taken < most ? taken : most;
    sum->weights += table_bytes(out);
    add_result(sum, out, samples, epilogue);
    return cudaSuccess;
}

static cudaError_t interpolate(const device_axis_map axis[3], const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream)
{
    (void)axis;
    account_sum *sum = now(stream);
    sum->read += tensor_bytes(in, samples);
    sum->weights += table_bytes(out);
    add_result(sum, out, samples, epilogue);
    return cudaSuccess;
}

/* ---- Convolutions --------------------------------------------------------------------------- */

/* Reads and weights, and the products of `voxels`: the result's, of a transposed one the input's. */
static void add_convolution(account_sum *sum, const device_convolution *c, const device_tensor *in,
                            const device_tensor *out, unsigned samples)
{
    double pairs = (double)in->channels * out->channels / c->groups;
    double taps = (double)c->kernel[0] * c->kernel[1] * c->kernel[2];
    double voxels = voxels_of(c->transposed ? in : out);
    sum->read += tensor_bytes(in, samples);
    sum->weights += pairs * taps * (double)element_size(in->type);
    sum->flop += 2 * pairs * taps * voxels * samples;
}

static cudaError_t convolution(const device_convolution *c, const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream)
{
    account_sum *sum = now(stream);
    add_convolution(sum, c, in, out, samples);
    add_result(sum, out, samples, epilogue);
    return cudaSuccess;
}

static cudaError_t unfold(const int kernel[3], const device_tensor *blocks,
                          const device_tensor *out, unsigned samples,
                          const device_epilogue *epilogue, cudaStream_t stream)
{
    (void)kernel;
    return pointwise(blocks, out, samples, epilogue, stream);
}

static cudaError_t attention_gate(const device_gate *gate, const device_tensor *coarse,
                                  const device_tensor *skip, const device_tensor *out,
                                  unsigned samples, cudaStream_t stream)
{
    account_sum *sum = now(stream);
    double products = (double)gate->inner * (coarse->channels + skip->channels + 1.0);
    sum->read += tensor_bytes(coarse, samples) + tensor_bytes(skip, samples);
    sum->written += tensor_bytes(out, samples);
    sum->weights += products * (double)element_size(skip->type);
    sum->weights += channel_bytes(gate->coarse_bias, gate->inner) +
                    channel_bytes(gate->skip_bias, gate->inner) + channel_bytes(gate->psi_bias, 1);
    sum->flop += 2 * products * voxels_of(out) * samples;
    return cudaSuccess;
}

static double product(const size_t dim[3])
{
    return (double)dim[0] * (double)dim[1] * (double)dim[2];
}

static dm_status library(const library_convolution *made, const void *x, const void *weight,
                         const float *bias, const void *residual, void *y, void *workspace,
                         cudaStream_t stream, dm_error *err)
{
    (void)x, (void)weight, (void)y, (void)workspace, (void)err;
    const library_convolution_spec *s = library_convolution_spec_of(made);
    account_sum *sum = now(stream);
    double size = (double)element_size(s->type);
    double in = product(s->in_dim) * (double)s->in_channels * s->samples * size;
    double out = product(s->out_dim) * (double)s->out_channels * s->samples * size;
    double taps = (double)s->kernel[0] * s->kernel[1] * s->kernel[2];
    double pairs = (double)s->in_channels * (double)s->out_channels / s->groups;
    sum->read += in + (residual ? out : 0);
    sum->written += out;
    sum->weights += pairs * taps * size + channel_bytes(bias, (unsigned)s->out_channels);
    sum->workspace += 2 * (double)library_convolution_workspace(made);
    sum->flop += 2 * pairs * taps * product(s->out_dim) * s->samples;
    return DM_OK;
}

const device_kernels device_kernels_count = {.zero = zero,
                                             .pointwise = pointwise,
                                             .normalise_statistics = normalise_statistics,
                                             .normalise_apply = normalise_apply,
                                             .global_average = global_average,
                                             .pool = pool,
                                             .take_voxels = take_voxels,
                                             .interpolate = interpolate,
                                             .convolution = convolution,
                                             .convolution_first = convolution,
                                             .convolution_tensor_core = convolution,
                                             .convolution_halo = convolution,
                                             .unfold = unfold,
                                             .attention_gate = attention_gate,
                                             .library = library};

/* ---- Both ends ------------------------------------------------------------------------------ */

static cudaError_t fill(void *context, const device_tensor *input, unsigned first, unsigned samples,
                        cudaStream_t stream)
{
    (void)context, (void)first;
    account_sum *sum = now(stream);
    sum->read += samples * voxels_of(input) * input->channels * (double)sizeof(float);
    sum->written += tensor_bytes(input, samples);
    return cudaSuccess;
}

/* The window's voxels of the sum, and the importance of the tile's. */
static void add_stitched(account_sum *sum, const device_tensor *window, unsigned samples)
{
    double volume = voxels_of(window) * (double)sizeof(float);
    sum->read += samples * volume;
    sum->written += samples * volume;
    sum->weights += volume;
}

static cudaError_t take(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    (void)context, (void)first;
    account_sum *sum = now(stream);
    sum->read += tensor_bytes(output, samples);
    add_stitched(sum, output, samples);
    return cudaSuccess;
}

/* The chain has no tensors. */
static cudaError_t head(void *context, const device_convolution *c, const device_tensor *in,
                        const device_epilogue *epilogue, unsigned first, unsigned samples,
                        cudaStream_t stream)
{
    (void)context, (void)first;
    account_sum *sum = now(stream);
    device_tensor out = *in;
    out.channels = 1;
    add_convolution(sum, c, in, &out, samples);
    add_result(sum, &out, 0, epilogue);
    add_stitched(sum, &out, samples);
    return cudaSuccess;
}

static cudaError_t mark(void *context, int what, cudaStream_t stream)
{
    device_account *account = context;
    (void)stream;
    if (what >= 0)
        account->now = &account->ops[what];
    else if (what == NETWORK_FILL)
        account->now = &account->fill;
    else if (what == NETWORK_TAKE)
        account->now = &account->take;
    return cudaSuccess;
}

/* ---- The account ---------------------------------------------------------------------------- */

static void account_add(account_sum *sum, const account_sum *more)
{
    sum->read += more->read;
    sum->written += more->written;
    sum->weights += more->weights;
    sum->workspace += more->workspace;
    sum->flop += more->flop;
    sum->launches += more->launches;
}

dm_status device_account_make(const device_network *net, device_account *account, dm_error *err)
{
    const network_ends ends = {
        .context = account, .fill = fill, .take = take, .head = head, .mark = mark};
    device_network counted = *net; /* the same operations, for other kernels on another stream */
    *account = (device_account){.n_ops = net->n_ops};
    account->ops = array_zero(net->n_ops + 1, sizeof *account->ops);
    if (!account->ops)
        return error_memory(err, net->n_ops * sizeof *account->ops, "the network's account");
    counted.kernels = &device_kernels_count;
    counted.options.stream = (cudaStream_t)(void *)account;
    account->now = &account->fill;
    dm_status status = device_network_launch(&counted, &ends, err);
    for (size_t i = 0; i < account->n_ops; i++)
        account_add(&account->total, &account->ops[i]);
    account_add(&account->total, &account->fill);
    account_add(&account->total, &account->take);
    if (status != DM_OK)
        device_account_clear(account);
    return status;
}

void device_account_clear(device_account *account)
{
    free(account->ops);
    *account = (device_account){0};
}
