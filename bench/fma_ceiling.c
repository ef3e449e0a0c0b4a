/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the cores can multiply and add from registers alone, GFLOP/s: the ceiling of any direct
 * convolution. Waits for orders as network_server does:
 *
 *     fma_ceiling float32|bf16 THREADS
 *
 *     run SECONDS
 *     quit
 *
 * A precision without instructions of its own answers {"rate": null}.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { CHAINS = 12, INNER = 4096 };

typedef double (*kernel)(void); /* FLOPs of one call */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__x86_64__)
/* Twelve independent sums hide the latency of two units; the empty asm keeps them in registers. */
#define SUMS(TYPE, ZERO, STEP)                                                                     \
    TYPE s[CHAINS];                                                                                \
    for (int i = 0; i < CHAINS; i++)                                                               \
        s[i] = ZERO;                                                                               \
    for (int n = 0; n < INNER; n++) {                                                              \
        _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) s[i] = STEP;                     \
        __asm__ volatile("" ::"x"(s[0]), "x"(s[CHAINS - 1]));                                      \
    }                                                                                              \
    for (int i = 0; i < CHAINS; i++)                                                               \
    __asm__ volatile("" ::"x"(s[i]))

__attribute__((target("avx512f"))) static double fma_avx512(void)
{
    __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
    __asm__ volatile("" : "+x"(a), "+x"(b));
    SUMS(__m512, _mm512_setzero_ps(), _mm512_fmadd_ps(a, b, s[i]));
    return 2.0 * 16 * CHAINS * INNER;
}

__attribute__((target("avx2,fma"))) static double fma_avx2(void)
{
    __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    __asm__ volatile("" : "+x"(a), "+x"(b));
    SUMS(__m256, _mm256_setzero_ps(), _mm256_fmadd_ps(a, b, s[i]));
    return 2.0 * 8 * CHAINS * INNER;
}

__attribute__((target("avx512f,avx512bf16"))) static double dot_bf16(void)
{
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00), b = (__m512bh)_mm512_set1_epi16(0x3e80);
    __asm__ volatile("" : "+x"(a), "+x"(b));
    SUMS(__m512, _mm512_setzero_ps(), _mm512_dpbf16_ps(s[i], a, b));
    return 4.0 * 16 * CHAINS * INNER;
}

static kernel choose(bool bf16)
{
    __builtin_cpu_init();
    if (bf16)
        return __builtin_cpu_supports("avx512bf16") ? dot_bf16 : NULL;
    if (__builtin_cpu_supports("avx512f"))
        return fma_avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? fma_avx2 : NULL;
}
#else
static kernel choose(bool bf16)
{
    (void)bf16;
    return NULL;
}
#endif

typedef struct runner {
    kernel run;
    double seconds, rate;
    pthread_t thread;
} runner;

static void *work(void *argument)
{
    runner *r = argument;
    double begin = now(), t = begin, flops = 0;
    for (; t < begin + r->seconds; t = now())
        flops += r->run();
    r->rate = flops / (t - begin) * 1e-9;
    return NULL;
}

static int run(runner *runners, size_t n, double seconds)
{
    double rate = 0;
    size_t started = 0;
    for (; started < n; started++) {
        runners[started].seconds = seconds;
        if (pthread_create(&runners[started].thread, NULL, work, &runners[started]) != 0)
            break;
    }
    for (size_t i = 0; i < started; i++) {
        pthread_join(runners[i].thread, NULL);
        rate += runners[i].rate;
    }
    printf("{\"rate\": %.2f}\n", rate);
    return started == n ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc != 3 || strtoul(argv[2], NULL, 10) < 1) {
        fprintf(stderr, "usage: fma_ceiling float32|bf16 THREADS\n");
        return 2;
    }
    size_t n = strtoul(argv[2], NULL, 10);
    kernel chosen = choose(strcmp(argv[1], "bf16") == 0);
    runner *runners = calloc(n, sizeof *runners);
    char line[256];
    double seconds;
    int result = runners ? 0 : 1;
    for (size_t i = 0; runners && i < n; i++)
        runners[i].run = chosen;
    while (result == 0 && fflush(stdout) == 0 && fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "run %lf", &seconds) != 1)
            break;
        if (chosen)
            result = run(runners, n, seconds);
        else
            printf("{\"rate\": null}\n");
    }
    free(runners);
    return result;
}
