/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rate of a network on CPU cores, without reading, gathering or stitching: windows per second on
 * 1, 2, ... threads and the time of each step on one.
 *
 *     network_rates WEIGHTS [float32|bf16] [threads] [tile] [seconds]
 */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "predict/cpu/convert.h"
#include "predict/cpu/network.h"

typedef struct runner {
    worker *w;
    double seconds;
    double stop_at;
    size_t windows;
    dm_error error;
    pthread_t thread;
} runner;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void fill_input(const plan *p, worker *w)
{
    const plan_tensor *t = &p->tensors[p->input];
    size_t n = t->dim[0] * t->dim[1] * t->dim[2] * t->channels;
    void *to = worker_input(w);
    for (size_t i = 0; i < n; i++) {
        float value = 2.0f + 2.0f * sinf(0.37f * (float)i);
        if (t->type == ELEMENT_BF16)
            ((uint16_t *)to)[i] = bf16_from_float(value);
        else
            ((float *)to)[i] = value;
    }
}

static void *work(void *argument)
{
    runner *r = argument;
    for (r->windows = 0; now() < r->stop_at; r->windows++)
        if (worker_run(r->w, &r->error) != DM_OK)
            break;
    return NULL;
}

static int print_error(const dm_error *err)
{
    char text[2048];
    fprintf(stderr, "%s\n", dm_error_text(err, text, sizeof text));
    return 1;
}

/* Windows per second of `n` threads. */
static double rate(runner *runners, unsigned n, double seconds)
{
    double begin = now();
    size_t windows = 0;
    for (unsigned i = 0; i < n; i++) {
        runners[i].stop_at = begin + seconds;
        if (pthread_create(&runners[i].thread, NULL, work, &runners[i]) != 0)
            return NAN;
    }
    for (unsigned i = 0; i < n; i++) {
        pthread_join(runners[i].thread, NULL);
        windows += runners[i].windows;
    }
    return (double)windows / (now() - begin);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static const char *const kinds[] = {"conv", "transposed", "norm", "pointwise", "maxpool", "avgpool",
                                    "gap",  "resize",     "pad",  "slice",     "copy"};

/* Medians over repetitions of the whole network, so that caches are as they are in use. */
static int print_steps(const plan *p, const network *net, worker *w)
{
    enum { REPEAT = 25 };
    dm_error err = {0};
    double *times = calloc(p->n_steps * REPEAT, sizeof *times), total = 0, least = 0;
    if (!times)
        return 1;
    for (size_t r = 0; r < REPEAT; r++)
        for (size_t i = 0; i < p->n_steps; i++) {
            double begin = now();
            if (worker_run_step(w, i, &err) != DM_OK) {
                free(times);
                return print_error(&err);
            }
            times[i * REPEAT + r] = now() - begin;
        }
    printf("%-28s %-10s %9s %9s %9s %8s  %s\n", "step", "kind", "ms", "least", "GFLOP/s", "GB/s",
           "kernel");
    for (size_t i = 0; i < p->n_steps; i++) {
        const plan_step *s = &p->steps[i];
        qsort(times + i * REPEAT, REPEAT, sizeof *times, compare_doubles);
        double t = times[i * REPEAT + REPEAT / 2];
        total += t;
        least += times[i * REPEAT];
        printf("%-28s %-10s %9.3f %9.3f %9.1f %8.1f  %s\n", s->name, kinds[s->kind], t * 1e3,
               times[i * REPEAT] * 1e3, s->useful_flops / t * 1e-9, s->bytes / t * 1e-9,
               network_kernel(net, i) ? network_kernel(net, i) : "own");
    }
    printf("sum of medians %.3f ms, of least times %.3f ms\n", total * 1e3, least * 1e3);
    free(times);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: network_rates WEIGHTS [float32|bf16] [threads] [tile] [seconds]\n");
        return 2;
    }
    bool bf16 = argc > 2 && strcmp(argv[2], "bf16") == 0;
    unsigned threads = argc > 3 && atoi(argv[3]) > 0 ? (unsigned)atoi(argv[3]) : 1;
    double seconds = argc > 5 ? atof(argv[5]) : 3;
    dm_error err = {0};
    dm_model *model = NULL;
    plan *p = NULL;
    network *net = NULL;
    runner *runners = calloc(threads ? threads : 1, sizeof *runners);
    int result = 1;
    if (!runners || dm_model_load(argv[1], &model, &err) != DM_OK)
        goto done;
    plan_options options = {.type = bf16 ? ELEMENT_BF16 : ELEMENT_F32, .optimise = true};
    for (int a = 0; a < 3; a++)
        options.tile[a] =
            argc > 4 && atoi(argv[4]) ? (size_t)atoi(argv[4]) : model->graph.patch[2 - a];
    network_plan_needs(&options);
    if (plan_build(&model->graph, &options, &p, &err) != DM_OK ||
        network_create(p, 1, &net, &err) != DM_OK)
        goto done;
    for (unsigned i = 0; i < threads; i++) {
        if (worker_create(net, &runners[i].w, &err) != DM_OK)
            goto done;
        fill_input(p, runners[i].w);
    }
    printf("%s, %s, %s, %.2f GFLOP a window (%.2f without padding), %.1f MB a worker\n",
           model->name, bf16 ? "bf16" : "float32", network_library(), p->flops * 1e-9,
           p->useful_flops * 1e-9, (double)network_worker_bytes(net) * 1e-6);
    result = print_steps(p, net, runners[0].w);
    for (unsigned n = 1; n <= threads && result == 0; n++)
        printf("%u thread%s: %.2f windows/s\n", n, n > 1 ? "s" : "", rate(runners, n, seconds));
done:
    if (err.status != DM_OK)
        print_error(&err);
    for (unsigned i = 0; runners && i < threads; i++)
        worker_free(runners[i].w);
    free(runners);
    network_free(net);
    plan_free(p);
    dm_model_free(model);
    return result;
}
