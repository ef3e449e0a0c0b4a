/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans of the vendor's library that may be trusted: each is run once on random values and compared
 * with kernel_convolution, since the library had versions whose 3D convolutions were wrong.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"

#define CANDIDATES 4
/* The first and the last sample of the batch are compared. */
#define SAMPLES_COMPARED 2

enum { CHECK_X, CHECK_Y, CHECK_RESIDUAL, CHECK_REFERENCE, CHECK_WORKSPACE };

/* Largest relative L2 deviation of sums in another order; one rounding of the result for the half
 * types, of the factors for TF32. A wrong tap or channel is far beyond any of them. */
static double limit_of(const library_convolution_spec *spec)
{
    if (spec->type == ELEMENT_BF16)
        return 1e-2;
    return spec->type == ELEMENT_F16 || spec->tf32 ? 2e-3 : 1e-5;
}

/* ---- Memory --------------------------------------------------------------------------------- */

void library_free_check(device_network *net)
{
    for (int i = 0; i < 5; i++) {
        device_free(net->check.data[i]);
        net->check.data[i] = NULL;
        net->check.bytes[i] = 0;
    }
}

static dm_status need(device_network *net, int which, size_t bytes, dm_error *err)
{
    check_memory *m = &net->check;
    if (bytes <= m->bytes[which])
        return DM_OK;
    device_free(m->data[which]);
    m->bytes[which] = 0;
    dm_status status =
        device_alloc(&m->data[which], bytes, "checking the library's convolutions", err);
    if (status == DM_OK)
        m->bytes[which] = bytes;
    return status;
}

static size_t elements(const size_t dim[3], size_t channels)
{
    return dim[0] * dim[1] * dim[2] * channels;
}

/* Uniform in [-1, 1) with 8 bits, the same in every type. */
static dm_status fill_random(device_network *net, int which, size_t n, element_type type,
                             uint32_t seed, dm_error *err)
{
    float *values = array_alloc(n, sizeof *values);
    void *converted = array_alloc(n, element_size(type));
    dm_status status = DM_OK;
    for (size_t i = 0; values && i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        values[i] = (float)((int)(seed >> 24) - 128) / 128.0f;
    }
    if (values && converted) {
        elements_from_floats(values, n, type, converted);
        status = device_copy_up(net->check.data[which], converted, n * element_size(type),
                                "checking the library's convolutions", err);
    } else {
        status = error_memory(err, n * sizeof *values, "checking the library's convolutions");
    }
    free(values);
    free(converted);
    return status;
}

static dm_status prepare(device_network *net, const library_convolution_spec *spec,
                         size_t workspace, dm_error *err)
{
    size_t size = element_size(spec->type), in = elements(spec->in_dim, spec->in_channels),
           out = elements(spec->out_dim, spec->out_channels);
    dm_status status = need(net, CHECK_X, spec->samples * in * size, err);
    if (status == DM_OK)
        status = need(net, CHECK_Y, spec->samples * out * size, err);
    if (status == DM_OK && spec->residual)
        status = need(net, CHECK_RESIDUAL, spec->samples * out * size, err);
    if (status == DM_OK)
        status = need(net, CHECK_REFERENCE, out * size, err);
    if (status == DM_OK)
        status = need(net, CHECK_WORKSPACE, workspace, err);
    if (status == DM_OK)
        status = fill_random(net, CHECK_X, spec->samples * in, spec->type, 1, err);
    if (status == DM_OK && spec->residual)
        status = fill_random(net, CHECK_RESIDUAL, spec->samples * out, spec->type, 2, err);
    if (status == DM_OK) /* NaN: what is not written shows */
        status = device_check(cudaMemsetAsync(net->check.data[CHECK_Y], 0xff,
                                              spec->samples * out * size, net->options.stream),
                              "checking the library's convolutions", err);
    return status;
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
        sample_tensor(m->data[CHECK_X], sample, spec->in_dim, spec->in_channels, spec->type);
    device_tensor out =
        sample_tensor(m->data[CHECK_REFERENCE], 0, spec->out_dim, spec->out_channels, spec->type);
    device_epilogue epilogue = {.bias = spec->bias ? bias : NULL};
    if (spec->residual) {
        device_tensor t = sample_tensor(m->data[CHECK_RESIDUAL], sample, spec->out_dim,
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

/* Relative L2; infinite or NaN where a value is not finite. */
static double deviation(const float *a, const float *reference, size_t n)
{
    double squares = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)reference[i];
        squares += d * d;
        scale += (double)reference[i] * (double)reference[i];
    }
    return squares > 0 ? sqrt(squares / scale) : squares;
}

static dm_status download(const void *device, size_t n, element_type type, void *raw, float *values,
                          dm_error *err)
{
    dm_status status =
        device_check(cudaMemcpy(raw, device, n * element_size(type), cudaMemcpyDeviceToHost),
                     "checking the library's convolutions", err);
    if (status == DM_OK)
        elements_to_floats(raw, n, type, values);
    return status;
}

/* *worst: the larger deviation of the two samples. */
static dm_status compare(device_network *net, const library_convolution_spec *spec,
                         const device_convolution *conv, const float *bias, double *worst,
                         dm_error *err)
{
    size_t n = elements(spec->out_dim, spec->out_channels);
    float *got = array_alloc(n, 2 * sizeof *got), *want = got ? got + n : NULL;
    void *raw = array_alloc(n, element_size(spec->type));
    dm_status status =
        got && raw ? DM_OK
                   : error_memory(err, 2 * n * sizeof *got, "checking the library's convolutions");
    *worst = 0;
    for (unsigned i = 0; status == DM_OK && i < SAMPLES_COMPARED && i < spec->samples; i++) {
        unsigned sample = i == 0 ? 0 : spec->samples - 1;
        device_tensor y = sample_tensor(net->check.data[CHECK_Y], sample, spec->out_dim,
                                        spec->out_channels, spec->type);
        status = device_check(run_reference(net, spec, conv, bias, sample),
                              "checking the library's convolutions", err);
        if (status == DM_OK)
            status = device_check(cudaStreamSynchronize(net->options.stream),
                                  "checking the library's convolutions", err);
        if (status == DM_OK)
            status = download(y.data, n, spec->type, raw, got, err);
        if (status == DM_OK)
            status = download(net->check.data[CHECK_REFERENCE], n, spec->type, raw, want, err);
        if (status == DM_OK) {
            double d = deviation(got, want, n);
            *worst = d > *worst || isnan(d) ? d : *worst;
        }
    }
    free(got);
    free(raw);
    return status;
}

static void reject(device_network *net, const char *name, const library_convolution *made,
                   const char *reason)
{
    size_t used = strlen(net->rejections);
    snprintf(net->rejections + used, sizeof net->rejections - used, "%s%s: %s (%.80s)",
             used ? "; " : "", name, reason, made ? library_convolution_describe(made) : "no plan");
}

static dm_status check(device_network *net, const char *name, const library_convolution_spec *spec,
                       const device_convolution *conv, const float *bias,
                       const library_convolution *made, bool *right, dm_error *err)
{
    const check_memory *m = &net->check;
    double worst = 0;
    dm_status status = prepare(net, spec, library_convolution_workspace(made), err);
    if (status == DM_OK)
        status = library_convolution_run(
            made, m->data[CHECK_X], conv->weight, spec->bias ? bias : NULL,
            spec->residual ? m->data[CHECK_RESIDUAL] : NULL, m->data[CHECK_Y],
            m->data[CHECK_WORKSPACE], net->options.stream, err);
    if (status == DM_OK)
        status = compare(net, spec, conv, bias, &worst, err);
    *right = status == DM_OK && worst <= limit_of(spec);
    if (status == DM_OK && !*right) {
        char reason[64];
        snprintf(reason, sizeof reason, "deviates by %.2g", worst);
        reject(net, name, made, reason);
    }
    return status;
}

/* ---- Finding -------------------------------------------------------------------------------- */

void library_free_entries(device_network *net)
{
    while (net->library) {
        library_entry *next = net->library->next;
        library_convolution_free(net->library->convolution);
        free(net->library);
        net->library = next;
    }
}

static const library_entry *known(const device_network *net, const library_convolution_spec *spec)
{
    for (const library_entry *e = net->library; e; e = e->next)
        if (memcmp(&e->spec, spec, sizeof *spec) == 0)
            return e;
    return NULL;
}

/* Was it the plan that failed, and not the device? */
static bool is_alive(const device_network *net)
{
    (void)cudaGetLastError();
    return cudaStreamSynchronize(net->options.stream) == cudaSuccess;
}

/* The library's refusals and failures are answers; a lack of memory, and a device that does not
 * work any more, are not. */
static dm_status try_candidates(device_network *net, const char *name, library_entry *entry,
                                const device_convolution *conv, const float *bias, dm_error *err)
{
    for (unsigned candidate = 0; candidate < CANDIDATES; candidate++) {
        library_convolution *made = NULL;
        bool right = false;
        dm_status status =
            library_convolution_create(net->options.library, &entry->spec, candidate, &made, err);
        if (status == DM_OK)
            status = check(net, name, &entry->spec, conv, bias, made, &right, err);
        if (status == DM_OK && right) {
            entry->convolution = made;
            return DM_OK;
        }
        /* Nothing of the plan may be under way when it goes. */
        bool alive = status == DM_OK || status == DM_ERROR_UNSUPPORTED || is_alive(net);
        if (status == DM_ERROR_DEVICE && alive) {
            reject(net, name, made, "fails");
            status = made ? DM_OK : DM_ERROR_UNSUPPORTED;
        }
        library_convolution_free(made);
        if (status != DM_OK)
            return status == DM_ERROR_UNSUPPORTED ? DM_OK : status;
    }
    return DM_OK;
}

dm_status library_find(device_network *net, const char *name, const library_convolution_spec *spec,
                       const device_convolution *conv, const float *bias,
                       const library_convolution **found, dm_error *err)
{
    const library_entry *old = known(net, spec);
    dm_error ignored = {0}; /* of refusals */
    *found = old ? old->convolution : NULL;
    if (old || !net->options.library)
        return DM_OK;
    library_entry *entry = array_zero(1, sizeof *entry);
    if (!entry)
        return error_memory(err, sizeof *entry, "the library's plans");
    memcpy(&entry->spec, spec, sizeof *spec);
    entry->next = net->library;
    net->library = entry;
    dm_status status = try_candidates(net, name, entry, conv, bias, &ignored);
    *found = entry->convolution;
    if (status != DM_OK && err)
        *err = ignored;
    return status;
}
