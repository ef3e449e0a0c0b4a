/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does a plan of the vendor's library compute what kernel_convolution does? It runs once on random
 * values that the device makes, and once with a NaN among them: joined activations are known to
 * make a number of it, and then a fault of the network would go unseen.
 *
 * Compared are the first, a middle and the last sample. The sum of all deviations shows what is
 * wrong everywhere, the largest one what is wrong in a few places.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"

#define DOING "checking the library's convolutions"
#define ALIGNMENT 256

enum { CHECK_X, CHECK_Y, CHECK_RESIDUAL, CHECK_REFERENCE, CHECK_WORKSPACE, CHECK_PARTIAL };

/* Both results are one rounding away from sums that differ in the order of their terms. Where these
 * lie at both sides of a tie, the results are neighbours: apart by `rounding` of their own size,
 * however much larger than the others a value is. What comes on top is the sums' difference: far
 * below a rounding for the half types; some 1e-5 of the RMS for the longest sums of float32; for
 * TF32 eight roundings of a factor, which may be cut off. A lost product of 27*512 is up to several
 * hundredths of the RMS. */
typedef struct limits {
    double relative; /* L2 */
    float rounding;  /* of the larger value */
    double excess;   /* of the largest deviation over the rounding, relative to the RMS */
    double absolute; /* spacing of the smallest values */
} limits;

static limits limits_of(const library_convolution_spec *spec)
{
    if (spec->type == ELEMENT_BF16)
        return (limits){1e-2, 0x1p-7f, 0x1p-8, 0};
    if (spec->type == ELEMENT_F16)
        return (limits){2e-3, 0x1p-10f, 0x1p-11, 0x1p-24};
    return spec->tf32 ? (limits){2e-3, 0x1p-23f, 0x1p-8, 0} : (limits){1e-5, 0x1p-23f, 1e-4, 0};
}

/* ---- Memory --------------------------------------------------------------------------------- */

void library_free_check(device_network *net)
{
    for (int i = 0; i < CHECK_PARTS; i++) {
        device_free(net->check.owned[i]);
        net->check.owned[i] = NULL;
        net->check.bytes[i] = 0;
    }
}

/* In the arena, which is idle while the network is made, as far as it goes. */
static dm_status place(device_network *net, int which, size_t bytes, dm_error *err)
{
    check_memory *m = &net->check;
    size_t padded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT, all = 0;
    if (padded <= net->layout.bytes - m->arena_used) {
        m->part[which] = bytes > 0 ? net->arena + m->arena_used : NULL;
        m->arena_used += padded;
        return DM_OK;
    }
    if (bytes > m->bytes[which]) {
        device_free(m->owned[which]);
        m->bytes[which] = 0;
        dm_status status = device_alloc(&m->owned[which], bytes, DOING, err);
        if (status != DM_OK)
            return status;
        m->bytes[which] = bytes;
    }
    for (int i = 0; i < CHECK_PARTS; i++)
        all += m->bytes[i];
    m->most = all > m->most ? all : m->most;
    m->part[which] = m->owned[which];
    return DM_OK;
}

static size_t elements(const size_t dim[3], size_t channels)
{
    return dim[0] * dim[1] * dim[2] * channels;
}

static dm_status place_all(device_network *net, const library_convolution_spec *spec,
                           size_t workspace, dm_error *err)
{
    size_t size = element_size(spec->type), in = elements(spec->in_dim, spec->in_channels) * size,
           out = elements(spec->out_dim, spec->out_channels) * size;
    const size_t bytes[CHECK_PARTS] = {[CHECK_X] = spec->samples * in,
                                       [CHECK_Y] = spec->samples * out,
                                       [CHECK_RESIDUAL] = spec->residual ? spec->samples * out : 0,
                                       [CHECK_REFERENCE] = out,
                                       [CHECK_WORKSPACE] = workspace,
                                       [CHECK_PARTIAL] =
                                           DEVICE_COMPARE_BLOCKS * sizeof(device_deviation)};
    dm_status status = DM_OK;
    net->check.arena_used = 0;
    for (int i = 0; i < CHECK_PARTS && status == DM_OK; i++)
        status = place(net, i, bytes[i], err);
    return status;
}

static dm_status fill(device_network *net, const library_convolution_spec *spec, dm_error *err)
{
    const check_memory *m = &net->check;
    cudaStream_t stream = net->options.stream;
    size_t in = spec->samples * elements(spec->in_dim, spec->in_channels),
           out = spec->samples * elements(spec->out_dim, spec->out_channels);
    cudaError_t code = kernel_fill_random(m->part[CHECK_X], in, spec->type, 1, stream);
    if (code == cudaSuccess && spec->residual)
        code = kernel_fill_random(m->part[CHECK_RESIDUAL], out, spec->type, 2, stream);
    if (code == cudaSuccess) /* NaN: what is not written shows */
        code = cudaMemsetAsync(m->part[CHECK_Y], 0xff, out * element_size(spec->type), stream);
    return device_check(code, DOING, err);
}

/* ---- Comparison ----------------------------------------------------------------------------- */

static device_tensor sample_tensor(void *base, unsigned sample, const size_t dim[3],
                                   size_t channels, element_type type)
{
    size_t n = elements(dim, channels);
    return (device_tensor){.data = (char *)base + sample * n * element_size(type),
                           .sample = n,
                           .pitch = channels,
                           .channels = (unsigned)channels,
                           .dim = {(unsigned)dim[0], (unsigned)dim[1], (unsigned)dim[2]},
                           .type = type};
}

static cudaError_t run_reference(const device_network *net, const library_convolution_spec *spec,
                                 const device_convolution *conv, const float *bias, unsigned sample)
{
    const check_memory *m = &net->check;
    device_tensor in =
        sample_tensor(m->part[CHECK_X], sample, spec->in_dim, spec->in_channels, spec->type);
    device_tensor out =
        sample_tensor(m->part[CHECK_REFERENCE], 0, spec->out_dim, spec->out_channels, spec->type);
    device_epilogue epilogue = {.bias = spec->bias ? bias : NULL};
    if (spec->residual) {
        device_tensor t = sample_tensor(m->part[CHECK_RESIDUAL], sample, spec->out_dim,
                                        spec->out_channels, spec->type);
        epilogue.link[epilogue.n++] =
            (device_link){.op = CHAIN_ADD_TENSOR,
                          .operand = {.data = t.data,
                                      .sample = t.sample,
                                      .z = (size_t)t.dim[1] * t.dim[2] * t.pitch,
                                      .y = t.dim[2] * t.pitch,
                                      .x = t.pitch,
                                      .c = 1,
                                      .type = t.type}};
    }
    if (spec->activate)
        epilogue.link[epilogue.n++] = (device_link){.op = CHAIN_LEAKY_RELU, .alpha = spec->slope};
    return kernel_convolution(conv, &in, &out, 1, &epilogue, net->options.stream);
}

/* Sample number `sample` of what the plan made. */
static dm_status compare(const device_network *net, const library_convolution_spec *spec,
                         const device_convolution *conv, const float *bias, unsigned sample,
                         device_deviation *all, dm_error *err)
{
    const check_memory *m = &net->check;
    cudaStream_t stream = net->options.stream;
    device_deviation partial[DEVICE_COMPARE_BLOCKS] = {{0}};
    size_t n = elements(spec->out_dim, spec->out_channels);
    unsigned blocks = compare_blocks(n);
    device_tensor y =
        sample_tensor(m->part[CHECK_Y], sample, spec->out_dim, spec->out_channels, spec->type);
    cudaError_t code = run_reference(net, spec, conv, bias, sample);
    if (code == cudaSuccess)
        code = kernel_compare(y.data, m->part[CHECK_REFERENCE], n, spec->type,
                              limits_of(spec).rounding, m->part[CHECK_PARTIAL], stream);
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(stream);
    if (code == cudaSuccess)
        code = cudaMemcpy(partial, m->part[CHECK_PARTIAL], blocks * sizeof *partial,
                          cudaMemcpyDeviceToHost);
    *all = (device_deviation){0};
    for (unsigned i = 0; code == cudaSuccess && i < blocks; i++) {
        all->squares += partial[i].squares;
        all->scale += partial[i].scale;
        all->excess = partial[i].excess > all->excess ? partial[i].excess : all->excess;
        all->lost += partial[i].lost;
    }
    return device_check(code, DOING, err);
}

/* Writes why, if the sample deviates. */
static void judge(const library_convolution_spec *spec, const device_deviation *d, char reason[64])
{
    const limits l = limits_of(spec);
    double rms = sqrt(d->scale / (double)elements(spec->out_dim, spec->out_channels));
    double relative = d->squares > 0 ? sqrt(d->squares / d->scale) : d->squares;
    float excess;
    memcpy(&excess, &d->excess, sizeof excess);
    /* Comparisons with NaN are false. */
    if (!(relative <= l.relative))
        snprintf(reason, 64, "deviates by %.2g", relative);
    else if (!((double)excess <= l.excess * rms + l.absolute))
        snprintf(reason, 64, "deviates in places by %.2g", (double)excess / rms);
}

static dm_status run(const device_network *net, const library_convolution_spec *spec,
                     const device_convolution *conv, const float *bias,
                     const library_convolution *made, dm_error *err)
{
    void *const *part = net->check.part;
    return library_convolution_run(made, part[CHECK_X], conv->weight, spec->bias ? bias : NULL,
                                   spec->residual ? part[CHECK_RESIDUAL] : NULL, part[CHECK_Y],
                                   part[CHECK_WORKSPACE], net->options.stream, err);
}

/* An element of x below the middle of the result, in the middle one of its channels. */
static void *middle_of_x(const device_network *net, const library_convolution_spec *spec,
                         unsigned sample)
{
    size_t voxel = sample;
    for (int a = 0; a < 3; a++) {
        long long low = (long long)(spec->out_dim[a] / 2) * spec->stride[a] - spec->pad_begin[a];
        long long at = low + (long long)(spec->kernel[a] / 2) * spec->dilation[a];
        while (at < 0)
            at += spec->dilation[a];
        while (at >= (long long)spec->in_dim[a])
            at -= spec->dilation[a];
        voxel = voxel * spec->in_dim[a] + (size_t)(at < 0 ? 0 : at);
    }
    return (char *)net->check.part[CHECK_X] +
           (voxel * spec->in_channels + spec->in_channels / 2) * element_size(spec->type);
}

/* The result holds numbers from the run before. */
static dm_status try_nan(const device_network *net, const library_convolution_spec *spec,
                         const device_convolution *conv, const float *bias,
                         const library_convolution *made, char reason[64], dm_error *err)
{
    unsigned sample = spec->samples / 2;
    device_deviation d;
    dm_status status = device_check(cudaMemsetAsync(middle_of_x(net, spec, sample), 0xff,
                                                    element_size(spec->type), net->options.stream),
                                    DOING, err);
    if (status == DM_OK)
        status = run(net, spec, conv, bias, made, err);
    if (status == DM_OK)
        status = compare(net, spec, conv, bias, sample, &d, err);
    if (status == DM_OK && d.lost > 0)
        snprintf(reason, 64, "makes a number of NaN");
    return status;
}

dm_status library_check(device_network *net, const library_convolution_spec *spec,
                        const device_convolution *conv, const float *bias,
                        const library_convolution *made, char reason[64], dm_error *err)
{
    const unsigned compared[3] = {0, spec->samples / 2, spec->samples - 1};
    reason[0] = '\0';
    dm_status status = place_all(net, spec, library_convolution_workspace(made), err);
    if (status == DM_OK)
        status = fill(net, spec, err);
    if (status == DM_OK)
        status = run(net, spec, conv, bias, made, err);
    for (int i = 0; i < 3 && status == DM_OK && !reason[0]; i++) {
        device_deviation d;
        if (i > 0 && compared[i] == compared[i - 1])
            continue;
        status = compare(net, spec, conv, bias, compared[i], &d, err);
        if (status == DM_OK)
            judge(spec, &d, reason);
    }
    if (status == DM_OK && !reason[0])
        status = try_nan(net, spec, conv, bias, made, reason, err);
    return status;
}
