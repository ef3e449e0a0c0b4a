/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What oneDNN reaches in a large matrix product on all threads, GFLOP/s: a second ceiling beside
 * fma_ceiling, with memory in it. Threads are OpenMP's (OMP_NUM_THREADS). Waits for orders:
 *
 *     matmul_ceiling float32|bf16 SIZE
 *
 *     run SECONDS
 *     quit
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <dnnl.h>

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

static int create(product *p, dnnl_data_type_t type, dnnl_dim_t size)
{
    const dnnl_dims_t dims = {size, size};
    dnnl_primitive_desc_t pd;
    if (dnnl_engine_create(&p->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags) != dnnl_success)
        return 1;
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_t layout;
    if (dnnl_memory_desc_create_with_tag(&layout, 2, dims, type, dnnl_ab) != dnnl_success ||
        dnnl_matmul_primitive_desc_create(&pd, p->engine, layout, layout, NULL, layout, NULL) !=
            dnnl_success)
        return 1;
    dnnl_memory_desc_t of_memory = layout;
#else
    dnnl_memory_desc_t layout;
    dnnl_matmul_desc_t description;
    if (dnnl_memory_desc_init_by_tag(&layout, 2, dims, type, dnnl_ab) != dnnl_success ||
        dnnl_matmul_desc_init(&description, &layout, &layout, NULL, &layout) != dnnl_success ||
        dnnl_primitive_desc_create(&pd, &description, NULL, p->engine, NULL) != dnnl_success)
        return 1;
    const dnnl_memory_desc_t *of_memory = &layout;
#endif
    size_t bytes = (size_t)size * (size_t)size * (type == dnnl_f32 ? 4 : 2);
    for (int i = 0; i < 3; i++) {
        void *data;
        if (dnnl_memory_create(&p->memory[i], of_memory, p->engine, DNNL_MEMORY_ALLOCATE) !=
                dnnl_success ||
            dnnl_memory_get_data_handle(p->memory[i], &data) != dnnl_success)
            return 1;
        memset(data, 0x3c, bytes); /* about 0.01, in both types */
    }
    dnnl_status_t made = dnnl_primitive_create(&p->primitive, pd);
    dnnl_primitive_desc_destroy(pd);
#if DNNL_VERSION_MAJOR >= 3
    dnnl_memory_desc_destroy(layout);
#endif
    return made == dnnl_success ? 0 : 1;
}

static int multiply(product *p)
{
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p->memory[0]},
                                    {DNNL_ARG_WEIGHTS, p->memory[1]},
                                    {DNNL_ARG_DST, p->memory[2]}};
    return dnnl_primitive_execute(p->primitive, p->stream, 3, args) == dnnl_success &&
                   dnnl_stream_wait(p->stream) == dnnl_success
               ? 0
               : 1;
}

static int run(product *p, double size, double seconds)
{
    double begin = now(), t = begin, best = 0;
    while (t < begin + seconds) {
        if (multiply(p) != 0)
            return 1;
        double end = now(), rate = 2 * size * size * size / (end - t) * 1e-9;
        best = rate > best ? rate : best;
        t = end;
    }
    printf("{\"rate\": %.2f}\n", best);
    return 0;
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

int main(int argc, char **argv)
{
    product p = {0};
    char line[256];
    double seconds;
    if (argc != 3 || strtol(argv[2], NULL, 10) < 1) {
        fprintf(stderr, "usage: matmul_ceiling float32|bf16 SIZE\n");
        return 2;
    }
    dnnl_dim_t size = strtol(argv[2], NULL, 10);
    int result = create(&p, strcmp(argv[1], "bf16") == 0 ? dnnl_bf16 : dnnl_f32, size);
    if (result == 0)
        result = multiply(&p); /* warm-up */
    while (result == 0 && fflush(stdout) == 0 && fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "run %lf", &seconds) != 1)
            break;
        result = run(&p, (double)size, seconds);
    }
    if (result != 0)
        fprintf(stderr, "matmul_ceiling: oneDNN failed\n");
    destroy(&p);
    return result;
}
