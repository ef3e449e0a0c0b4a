/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cpu/fma_rate.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/error.h"
#include "base/parallel.h"

enum { CHAINS = 12, INNER = 4096 };

typedef double (*kernel)(void); /* FLOPs of one call */

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

typedef struct runners {
    kernel run;
    double seconds;
    double *rate; /* of each thread: who ends late counts neither way */
} runners;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void work(void *context, unsigned part)
{
    const runners *r = context;
    double begin = now(), t = begin, flops = 0;
    while (t < begin + r->seconds) {
        flops += r->run();
        t = now();
    }
    r->rate[part] = flops / (t - begin);
}

double fma_rate(bool bf16, unsigned threads, double seconds)
{
    runners r = {.run = choose(bf16), .seconds = seconds};
    double rate = 0;
    if (!r.run)
        return NAN;
    r.rate = array_zero(threads, sizeof *r.rate);
    if (!r.rate)
        return NAN;
    parallel_run(threads, work, &r);
    for (unsigned i = 0; i < threads; i++)
        rate += r.rate[i];
    free(r.rate);
    return rate;
}
