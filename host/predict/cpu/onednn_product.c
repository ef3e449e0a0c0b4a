/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cpu/onednn_product.h"

#include <dnnl.h>
#include <omp.h>
#include <string.h>
#include <time.h>

#include "base/error.h"

typedef struct product {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3];
} product;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* About 0.01 everywhere, in both types. */
static dnnl_status_t make_memory(product *p, const dnnl_memory_desc_t *layout, size_t bytes)
{
    dnnl_status_t status = dnnl_success;
    for (int i = 0; i < 3 && status == dnnl_success; i++) {
        void *data = NULL;
#if DNNL_VERSION_MAJOR >= 3
        status = dnnl_memory_create(&p->memory[i], *layout, p->engine, DNNL_MEMORY_ALLOCATE);
#else
        status = dnnl_memory_create(&p->memory[i], layout, p->engine, DNNL_MEMORY_ALLOCATE);
#endif
        if (status == dnnl_success)
            status = dnnl_memory_get_data_handle(p->memory[i], &data);
        if (status == dnnl_success)
            memset(data, 0x3c, bytes);
    }
    return status;
}

static dnnl_status_t make_primitive(product *p, dnnl_data_type_t type, dnnl_dim_t edge)
{
    const dnnl_dims_t dims = {edge, edge};
    size_t bytes = (size_t)edge * (size_t)edge * (type == dnnl_f32 ? 4 : 2);
    dnnl_primitive_desc_t pd = NULL;
    dnnl_memory_desc_t layout;
#if DNNL_VERSION_MAJOR >= 3
    dnnl_status_t status = dnnl_memory_desc_create_with_tag(&layout, 2, dims, type, dnnl_ab);
    if (status != dnnl_success)
        return status;
    status = dnnl_matmul_primitive_desc_create(&pd, p->engine, layout, layout, NULL, layout, NULL);
#else
    dnnl_matmul_desc_t description;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&layout, 2, dims, type, dnnl_ab);
    if (status == dnnl_success)
        status = dnnl_matmul_desc_init(&description, &layout, &layout, NULL, &layout);
    if (status == dnnl_success)
        status = dnnl_primitive_desc_create(&pd, &description, NULL, p->engine, NULL);
#endif
    if (status == dnnl_success)
        status = make_memory(p, &layout, bytes);
    if (status == dnnl_success)
        status = dnnl_primitive_create(&p->primitive, pd);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_destroy(layout);
#endif
    return status;
}

static dnnl_status_t multiply(const product *p)
{
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->memory[0]},
                                    {DNNL_ARG_WEIGHTS, p->memory[1]},
                                    {DNNL_ARG_DST, p->memory[2]}};
    dnnl_status_t status = dnnl_primitive_execute(p->primitive, p->stream, 3, args);
    return status == dnnl_success ? dnnl_stream_wait(p->stream) : status;
}

static dnnl_status_t measure(const product *p, size_t edge, double seconds, double *rate)
{
    dnnl_status_t status = multiply(p); /* warm-up */
    double n = (double)edge, begin = now(), t = begin;
    *rate = 0;
    while (status == dnnl_success && (*rate <= 0 || t < begin + seconds)) {
        status = multiply(p);
        double end = now(), found = 2 * n * n * n / (end - t);
        *rate = found > *rate ? found : *rate;
        t = end;
    }
    return status;
}

static void destroy(product *p)
{
    if (p->primitive)
        dnnl_primitive_destroy(p->primitive);
    for (int i = 0; i < 3; i++)
        if (p->memory[i])
            dnnl_memory_destroy(p->memory[i]);
    if (p->stream)
        dnnl_stream_destroy(p->stream);
    if (p->engine)
        dnnl_engine_destroy(p->engine);
}

dm_status onednn_product_rate(bool bf16, size_t edge, unsigned threads, double seconds,
                              double *rate, dm_error *err)
{
    product p = {0};
    int before = omp_get_max_threads();
    omp_set_num_threads((int)threads);
    dnnl_status_t status = dnnl_engine_create(&p.engine, dnnl_cpu, 0);
    if (status == dnnl_success)
        status = dnnl_stream_create(&p.stream, p.engine, dnnl_stream_default_flags);
    if (status == dnnl_success)
        status = make_primitive(&p, bf16 ? dnnl_bf16 : dnnl_f32, (dnnl_dim_t)edge);
    if (status == dnnl_success)
        status = measure(&p, edge, seconds, rate);
    destroy(&p);
    omp_set_num_threads(before);
    if (status == dnnl_success)
        return DM_OK;
    if (status == dnnl_out_of_memory)
        return error_memory(err, 3 * edge * edge * (bf16 ? 2 : 4), "a matrix product");
    return error_set(err, DM_ERROR_UNSUPPORTED, NULL, NULL,
                     "oneDNN has no matrix product in %s here (status %d)",
                     bf16 ? "bf16" : "float32", (int)status);
}
