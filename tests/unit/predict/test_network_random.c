/* SPDX-License-Identifier: Apache-2.0 */
/* A backend's network on optimised plans of random graphs, against the interpreter on plain ones:
 * what plan and executor each take for granted of the other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "plan_case.h"
#include "plan_interpreter.h"
#include "random_graph.h"

#ifdef NETWORK_UNDER_TEST /* another one with the functions of predict/cpu/network.h */
#include NETWORK_UNDER_TEST
#else
#include "predict/cpu/network.h"
#endif

#ifndef NETWORKS
#define NETWORKS 250
#endif

static void run(plan *p, unsigned threads, const float *input, float *output, size_t n)
{
    network *net = NULL;
    worker *w = NULL;
    dm_error err = {0};
    if (network_create(p, threads, &net, &err) != DM_OK || worker_create(net, &w, &err) != DM_OK)
        fail_msg("%s", err.what);
    memset(worker_arena(w), 0xff, p->arena_bytes);
    tensor_fill(&p->tensors[p->input], worker_arena(w), input);
    assert_int_equal(worker_run(w, &err), DM_OK);
    memcpy(output, worker_output(w), n * sizeof *output);
    worker_free(w);
    network_free(net);
}

/* And the same bytes from threads that share the steps. */
static bool agrees(plan *p, bool share, const float *input, const float *reference, size_t n,
                   double tolerance)
{
    double largest = 0;
    float *alone = malloc(n * sizeof *alone), *shared = malloc(n * sizeof *shared);
    assert_non_null(alone);
    assert_non_null(shared);
    run(p, 1, input, alone, n);
    run(p, share ? 3 : 1, input, shared, n);
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)reference[i]));
    bool close = arrays_close(alone, n, reference, n, tolerance * largest, tolerance);
    bool same = memcmp(alone, shared, n * sizeof *alone) == 0;
    if (!same)
        fprintf(stderr, "three threads give other bytes than one\n");
    free(alone);
    free(shared);
    return close && same;
}

/* share: views with which threads share steps; 4 or more: none. */
static void compare_output(graph_builder *b, uint32_t seed, plan_case c, unsigned share,
                           double tolerance)
{
    plan *plain = build(b, (plan_case){.plain = true, .output = c.output});
    const plan_tensor *in = &plain->tensors[plain->input];
    const plan_tensor *out = &plain->tensors[plain->output];
    size_t n_in = tensor_voxels(in) * in->channels, n = tensor_voxels(out) * out->channels;
    float *input = malloc(n_in * sizeof *input), *reference = malloc(n * sizeof *reference);
    for (size_t i = 0; i < n_in; i++)
        input[i] = build_uniform(b, -1, 1);
    interpret_plan(plain, input, reference);
    for (unsigned views = 0; views < 4; views++) {
        c.reads = views & 1;
        c.writes = views & 2;
        plan *p = build(b, c);
        if (!agrees(p, share == views, input, reference, n, tolerance))
            fail_msg("network %u, output %zu, views %u", seed, c.output, views);
        plan_free(p);
    }
    free(input);
    free(reference);
    plan_free(plain);
}

static void compare_networks(element_type type, double tolerance)
{
    static graph_builder b;
    for (uint32_t seed = 1000; seed < 1000 + NETWORKS; seed++) {
        random_graph(&b, seed);
        compare_output(&b, seed, (plan_case){.type = type}, seed % 4, tolerance);
        build_end(&b);
    }
    for (uint32_t seed = 2000; seed < 2000 + NETWORKS / 2; seed++) {
        random_ports(&b, seed);
        for (size_t output = 0; output < b.g.n_outputs; output++)
            compare_output(&b, seed, (plan_case){.type = type, .output = output}, 4, tolerance);
        build_end(&b);
    }
}

static void test_float32(void **state)
{
    (void)state;
    compare_networks(ELEMENT_F32, 1e-4);
}

static void test_bf16(void **state)
{
    (void)state;
    if (!network_supports(DM_PRECISION_BF16))
        skip();
    compare_networks(ELEMENT_BF16, 0.1);
}

static void test_fp16(void **state)
{
    (void)state;
    if (!network_supports(DM_PRECISION_FP16))
        skip();
    compare_networks(ELEMENT_F16, 0.02);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_fp16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
