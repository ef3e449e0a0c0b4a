/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The network alone as a process that waits for orders, so that rounds with other programs can be
 * interleaved. Between orders it uses no CPU.
 *
 *     network_server WEIGHTS float32|bf16 THREADS TILE_X,TILE_Y,TILE_Z
 *
 * Reads orders, one a line, and answers each with one line of JSON:
 *
 *     check IN OUT COUNT   COUNT windows of raw float32, (z, y, x), from IN through the network to OUT
 *     run SECONDS          as many windows as all threads finish in that time
 *     quit
 *
 * Each thread runs one window at a time. The rate is the sum of the threads' own rates, so that a
 * thread that waits for another's last window counts neither way.
 */
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
    double seconds; /* asked for, then taken */
    size_t windows;
    dm_error error;
    pthread_t thread;
} runner;

typedef struct server {
    dm_model *model;
    plan *p;
    network *net;
    runner *runners;
    unsigned n_runners;
    size_t voxels;
} server;

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int print_error(const dm_error *err)
{
    char text[2048];
    fprintf(stderr, "network_server: %s\n", dm_error_text(err, text, sizeof text));
    return 1;
}

static void set_input(const server *s, worker *w, const float *from)
{
    void *to = worker_input(w);
    if (s->p->tensors[s->p->input].type == ELEMENT_F32)
        memcpy(to, from, s->voxels * sizeof *from);
    else
        for (size_t i = 0; i < s->voxels; i++)
            ((uint16_t *)to)[i] = bf16_from_float(from[i]);
}

static void *work(void *argument)
{
    runner *r = argument;
    double begin = now(CLOCK_MONOTONIC), stop_at = begin + r->seconds, t = begin;
    for (r->windows = 0; t < stop_at; r->windows++, t = now(CLOCK_MONOTONIC))
        if (worker_run(r->w, &r->error) != DM_OK)
            break;
    r->seconds = t - begin;
    return NULL;
}

static int run(server *s, double seconds)
{
    double cpu = now(CLOCK_PROCESS_CPUTIME_ID), begin = now(CLOCK_MONOTONIC), rate = 0;
    size_t windows = 0;
    int result = 0;
    unsigned started = 0;
    for (; started < s->n_runners; started++) {
        s->runners[started].seconds = seconds;
        if (pthread_create(&s->runners[started].thread, NULL, work, &s->runners[started]) != 0)
            break;
    }
    if (started < s->n_runners)
        result = 1;
    for (unsigned i = 0; i < started; i++) {
        pthread_join(s->runners[i].thread, NULL);
        if (s->runners[i].error.status != DM_OK)
            result = print_error(&s->runners[i].error);
        windows += s->runners[i].windows;
        rate += (double)s->runners[i].windows / s->runners[i].seconds;
    }
    double elapsed = now(CLOCK_MONOTONIC) - begin;
    printf("{\"rate\": %.5f, \"windows\": %zu, \"seconds\": %.5f, \"cpu\": %.3f}\n", rate, windows,
           elapsed, (now(CLOCK_PROCESS_CPUTIME_ID) - cpu) / elapsed);
    return result;
}

static int check(server *s, const char *in_path, const char *out_path, size_t count)
{
    worker *w = s->runners[0].w;
    float *window = malloc(s->voxels * sizeof *window);
    FILE *in = fopen(in_path, "rb"), *out = fopen(out_path, "wb");
    dm_error err = {0};
    int result = 1;
    if (!window || !in || !out)
        goto done;
    for (size_t i = 0; i < count; i++) {
        if (fread(window, sizeof *window, s->voxels, in) != s->voxels)
            goto done;
        for (unsigned r = 0; r < s->n_runners; r++) /* what `run` then repeats */
            set_input(s, s->runners[r].w, window);
        if (worker_run(w, &err) != DM_OK) {
            print_error(&err);
            goto done;
        }
        if (fwrite(worker_output(w), sizeof(float), s->voxels, out) != s->voxels)
            goto done;
    }
    result = 0;
    printf("{\"windows\": %zu}\n", count);
done:
    if (in)
        fclose(in);
    if (out && fclose(out) != 0)
        result = 1;
    free(window);
    return result;
}

static int create(server *s, char **argv)
{
    dm_error err = {0};
    plan_options options = {.optimise = true};
    options.type = strcmp(argv[2], "bf16") == 0 ? ELEMENT_BF16 : ELEMENT_F32;
    s->n_runners = (unsigned)strtoul(argv[3], NULL, 10);
    if (s->n_runners < 1 ||
        sscanf(argv[4], "%zu,%zu,%zu", &options.tile[2], &options.tile[1], &options.tile[0]) != 3) {
        fprintf(stderr, "network_server: threads are %s, tile is %s\n", argv[3], argv[4]);
        return 2;
    }
    network_plan_needs(&options);
    s->runners = calloc(s->n_runners, sizeof *s->runners);
    if (!s->runners || dm_model_load(argv[1], &s->model, &err) != DM_OK ||
        plan_build(&s->model->graph, &options, &s->p, &err) != DM_OK ||
        network_create(s->p, 1, &s->net, &err) != DM_OK)
        return print_error(&err);
    for (unsigned i = 0; i < s->n_runners; i++)
        if (worker_create(s->net, &s->runners[i].w, &err) != DM_OK)
            return print_error(&err);
    s->voxels = options.tile[0] * options.tile[1] * options.tile[2];
    printf(
        "{\"library\": \"%s\", \"flops\": %.0f, \"useful_flops\": %.0f, \"worker_bytes\": %zu}\n",
        network_library(), s->p->flops, s->p->useful_flops, network_worker_bytes(s->net));
    return 0;
}

static int serve(server *s)
{
    char line[4096], in[1024], out[1024];
    size_t count;
    double seconds;
    int result = 0;
    while (result == 0 && fflush(stdout) == 0 && fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "check %1023s %1023s %zu", in, out, &count) == 3)
            result = check(s, in, out, count);
        else if (sscanf(line, "run %lf", &seconds) == 1)
            result = run(s, seconds);
        else if (strcmp(line, "quit\n") == 0)
            break;
        else
            result = 2;
    }
    return result;
}

int main(int argc, char **argv)
{
    server s = {0};
    if (argc != 5) {
        fprintf(stderr, "usage: network_server WEIGHTS float32|bf16 THREADS X,Y,Z\n");
        return 2;
    }
    int result = create(&s, argv);
    if (result == 0)
        result = serve(&s);
    for (unsigned i = 0; s.runners && i < s.n_runners; i++)
        worker_free(s.runners[i].w);
    free(s.runners);
    network_free(s.net);
    plan_free(s.p);
    dm_model_free(s.model);
    return result;
}
