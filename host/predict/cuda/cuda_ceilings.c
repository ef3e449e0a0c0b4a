/* SPDX-License-Identifier: Apache-2.0 */
/* What bounds the device: copying its memory, and a large matrix product, which a convolution of
 * 1x1x1 is: voxels x channels times channels x channels. */
#include <math.h>
#include <stdio.h>

#include "predict/cuda/cuda_measure.h"
#include "predict/cuda/device_check.h"

#ifdef DOSEMAP_EMULATED_CUDA
enum { EDGE = 4, DEPTH = 8, CHANNELS = 32 };
#define COPY_BYTES ((size_t)1 << 20)
#else
enum { EDGE = 16, DEPTH = 32, CHANNELS = 8192 };
#define COPY_BYTES ((size_t)1 << 30)
#endif
/* CALLS of the product take some 10 ms on the fastest devices: clocks have settled. */
enum { RUNS = 5, CALLS = 8, CANDIDATES = 5 };
#define VOXELS ((size_t)EDGE * EDGE * DEPTH)

static const char measuring[] = "measuring the device";

typedef struct product {
    cuda_state *state;
    element_type type;
    void *d_x, *d_weight, *d_y, *d_workspace;
    cudaEvent_t begin, end;
    const library_convolution *plan; /* NULL: the kernel */
} product;

/* ---- Copying -------------------------------------------------------------------------------- */

static dm_status time_between(const product *p, double *seconds, dm_error *err)
{
    float milliseconds = 0;
    cudaError_t code = cudaEventSynchronize(p->end);
    if (code == cudaSuccess)
        code = cudaEventElapsedTime(&milliseconds, p->begin, p->end);
    *seconds = 1e-3 * (double)milliseconds;
    return device_check(code, measuring, err);
}

static dm_status time_copy(const product *p, void *to, const void *from, size_t bytes,
                           double *seconds, dm_error *err)
{
    cudaStream_t stream = p->state->stream;
    cudaError_t code = cudaEventRecord(p->begin, stream);
    for (int i = 0; i < CALLS && code == cudaSuccess; i++)
        code = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream);
    if (code == cudaSuccess)
        code = cudaEventRecord(p->end, stream);
    dm_status status = device_check(code, measuring, err);
    return status == DM_OK ? time_between(p, seconds, err) : status;
}

/* The fastest; the first one is not counted. */
static void keep_best(double *best, int run, double rate)
{
    if (run > 0 && isfinite(rate) && !(rate <= *best))
        *best = rate;
}

static dm_status copy_rate(const product *p, double *rate, dm_error *err)
{
    void *to = NULL, *from = NULL;
    size_t bytes = COPY_BYTES, free_bytes, total;
    dm_status status = device_check(cudaMemGetInfo(&free_bytes, &total), measuring, err);
    if (status == DM_OK && bytes > free_bytes / 4)
        bytes = free_bytes / 4;
    if (status == DM_OK)
        status = device_alloc(&to, bytes, "the ceiling of copies", err);
    if (status == DM_OK)
        status = device_alloc(&from, bytes, "the ceiling of copies", err);
    if (status == DM_OK)
        status = device_check(cudaMemsetAsync(from, 0, bytes, p->state->stream), measuring, err);
    for (int i = 0; i <= RUNS && status == DM_OK; i++) {
        double seconds = NAN;
        status = time_copy(p, to, from, bytes, &seconds, err);
        keep_best(rate, i, 2.0 * CALLS * (double)bytes / seconds);
    }
    device_free(to);
    device_free(from);
    return status;
}

/* ---- Multiplying ---------------------------------------------------------------------------- */

static device_tensor tensor(const product *p, void *data)
{
    return (device_tensor){.data = data,
                           .sample = VOXELS * CHANNELS,
                           .pitch = CHANNELS,
                           .channels = CHANNELS,
                           .dim = {EDGE, EDGE, DEPTH},
                           .type = p->type};
}

static device_convolution pointwise(const product *p)
{
    return (device_convolution){.kernel = {1, 1, 1},
                                .stride = {1, 1, 1},
                                .dilation = {1, 1, 1},
                                .groups = 1,
                                .tf32 = p->state->tf32,
                                .weight = p->d_weight};
}

static dm_status multiply(const product *p, dm_error *err)
{
    cudaStream_t stream = p->state->stream;
    if (p->plan)
        return library_convolution_run(p->plan, p->d_x, p->d_weight, NULL, NULL, p->d_y,
                                       p->d_workspace, stream, err);
    const device_convolution convolution = pointwise(p);
    const device_tensor in = tensor(p, p->d_x), out = tensor(p, p->d_y);
    const device_epilogue none = {0};
    return device_check(kernel_convolution_tensor_core(&convolution, &in, &out, 1, &none, stream),
                        measuring, err);
}

static dm_status product_rate(const product *p, double *rate, dm_error *err)
{
    const double flop = 2.0 * (double)VOXELS * CHANNELS * CHANNELS;
    dm_status status = DM_OK;
    for (int i = 0; i <= RUNS && status == DM_OK; i++) {
        double seconds = NAN;
        status = device_check(cudaEventRecord(p->begin, p->state->stream), measuring, err);
        for (int call = 0; call < CALLS && status == DM_OK; call++)
            status = multiply(p, err);
        if (status == DM_OK)
            status = device_check(cudaEventRecord(p->end, p->state->stream), measuring, err);
        if (status == DM_OK)
            status = time_between(p, &seconds, err);
        keep_best(rate, i, CALLS * flop / seconds);
    }
    return status;
}

/* The fastest of the library's first plans. What one of them cannot do is no failure. */
static dm_status library_rate(product *p, measured_ceilings *c, dm_error *err)
{
    const library_convolution_spec spec = {.type = p->type,
                                           .tf32 = p->state->tf32,
                                           .samples = 1,
                                           .in_channels = CHANNELS,
                                           .out_channels = CHANNELS,
                                           .in_dim = {EDGE, EDGE, DEPTH},
                                           .out_dim = {EDGE, EDGE, DEPTH},
                                           .kernel = {1, 1, 1},
                                           .stride = {1, 1, 1},
                                           .dilation = {1, 1, 1},
                                           .groups = 1,
                                           .precompiled = true};
    dm_status status = DM_OK;
    for (unsigned i = 0; i < CANDIDATES && status == DM_OK; i++) {
        library_convolution *made = NULL;
        double rate = NAN;
        dm_error problem = {0};
        if (library_convolution_create(p->state->library, &spec, i, &made, &problem) != DM_OK)
            break;
        p->plan = made;
        size_t workspace = library_convolution_workspace(made);
        status = device_alloc(&p->d_workspace, workspace, "the ceiling of products", err);
        if (status == DM_OK && product_rate(p, &rate, &problem) != DM_OK)
            rate = NAN;
        if (isfinite(rate) && !(rate <= c->product_flop)) {
            c->product_flop = rate;
            snprintf(c->product_how, sizeof c->product_how, "%zu x %d x %d, %s", VOXELS, CHANNELS,
                     CHANNELS, library_convolution_describe(made));
        }
        (void)cudaGetLastError();
        if (status == DM_OK) /* the plan failed, or the device? */
            status = device_check(cudaStreamSynchronize(p->state->stream), measuring, err);
        device_free(p->d_workspace);
        library_convolution_free(made);
        p->d_workspace = NULL;
        p->plan = NULL;
    }
    return status;
}

static dm_status own_rate(const product *p, double *rate, dm_error *err)
{
    const device_convolution convolution = pointwise(p);
    const device_tensor in = tensor(p, p->d_x), out = tensor(p, p->d_y);
    return convolution_tensor_core_takes(&convolution, &in, &out) ? product_rate(p, rate, err)
                                                                  : DM_OK;
}

static dm_status make_operands(product *p, dm_error *err)
{
    size_t size = element_size(p->type);
    const size_t n[2] = {VOXELS * CHANNELS, (size_t)CHANNELS * CHANNELS};
    dm_status status = device_alloc(&p->d_x, n[0] * size, "the ceiling of products", err);
    if (status == DM_OK)
        status = device_alloc(&p->d_y, n[0] * size, "the ceiling of products", err);
    if (status == DM_OK)
        status = device_alloc(&p->d_weight, n[1] * size, "the ceiling of products", err);
    if (status == DM_OK)
        status = device_check(kernel_fill_random(p->d_x, n[0], p->type, 1, p->state->stream),
                              measuring, err);
    if (status == DM_OK)
        status = device_check(kernel_fill_random(p->d_weight, n[1], p->type, 2, p->state->stream),
                              measuring, err);
    return status;
}

/* ---- All of it ------------------------------------------------------------------------------ */

dm_status cuda_ceilings(void *state, measured_ceilings *c, dm_error *err)
{
    product p = {.state = state};
    p.type = p.state->plan->options.type;
    *c = (measured_ceilings){
        .copy_bytes = NAN, .fma_flop = NAN, .product_flop = NAN, .own_flop = NAN};
    cudaError_t code = cudaSetDevice(p.state->device);
    if (code == cudaSuccess)
        code = cudaEventCreate(&p.begin);
    if (code == cudaSuccess)
        code = cudaEventCreate(&p.end);
    dm_status status = device_check(code, measuring, err);
    if (status == DM_OK)
        status = copy_rate(&p, &c->copy_bytes, err);
    if (status == DM_OK)
        status = make_operands(&p, err);
    if (status == DM_OK && p.state->library)
        status = library_rate(&p, c, err);
    if (status == DM_OK)
        status = own_rate(&p, &c->own_flop, err);
    if (cudaStreamSynchronize(p.state->stream) != cudaSuccess)
        (void)cudaGetLastError();
    device_free(p.d_x);
    device_free(p.d_y);
    device_free(p.d_weight);
    if (p.begin)
        (void)cudaEventDestroy(p.begin);
    if (p.end)
        (void)cudaEventDestroy(p.end);
    return status;
}
