/* SPDX-License-Identifier: Apache-2.0 */
/* What the device's network is said to move and compute: by hand, against the plan's own costs, and
 * for the shipped network within limits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "account_case.h"
#include "random_graph.h"

#define BATCH 64 /* of the shipped network: what a volume of many windows is run with */
#define CACHE ((size_t)25 << 20)

/* ---- By hand ---------------------------------------------------------------------------------- */

static device_tensor tensor(unsigned z, unsigned y, unsigned x, unsigned channels,
                            element_type type)
{
    return (device_tensor){.sample = (size_t)z * y * x * channels,
                           .pitch = channels,
                           .channels = channels,
                           .dim = {z, y, x},
                           .type = type};
}

static void assert_sum(const account_sum *sum, account_sum expected)
{
    if (memcmp(sum, &expected, sizeof expected))
        fail_msg("read %g (%g), written %g (%g), weights %g (%g), workspace %g (%g), FLOP %g (%g), "
                 "launches %g (%g)",
                 sum->read, expected.read, sum->written, expected.written, sum->weights,
                 expected.weights, sum->workspace, expected.workspace, sum->flop, expected.flop,
                 sum->launches, expected.launches);
}

static void test_small_things(void **state)
{
    (void)state;
    const device_kernels *k = &device_kernels_count;
    const device_tensor in = tensor(5, 7, 3, 12, ELEMENT_BF16),
                        out = tensor(4, 7, 3, 12, ELEMENT_F32),
                        one = tensor(1, 1, 1, 12, ELEMENT_BF16);
    const float parameters[12] = {0};
    device_epilogue nothing = {0}, prelu = {.bias = parameters, .n = 1};
    device_account a = {0};
    account_sum sum = {0};
    cudaStream_t stream = (cudaStream_t)(void *)&a;
    prelu.link[0] = (device_link){.op = CHAIN_PRELU, .scale = parameters};
    a.now = &sum;
    k->zero(NULL, 1000, stream);
    assert_sum(&sum, (account_sum){.written = 1000, .launches = 1});

    /* A slice reads what it takes, a pad what there is: 2 bytes; 3 axes' tables of 12. */
    sum = (account_sum){0};
    k->take_voxels(NULL, 0, 1, 0, &in, &out, 2, &nothing, stream);
    assert_sum(&sum, (account_sum){.read = 2 * 84 * 12 * 2,
                                   .written = 2 * 84 * 12 * 4,
                                   .weights = 14 * 12,
                                   .launches = 1});
    sum = (account_sum){0};
    k->take_voxels(NULL, 0, 1, 0, &out, &in, 2, &nothing, stream);
    assert_sum(&sum, (account_sum){.read = 2 * 84 * 12 * 4,
                                   .written = 2 * 105 * 12 * 2,
                                   .weights = 15 * 12,
                                   .launches = 1});
    sum = (account_sum){0};
    k->interpolate(NULL, &in, &out, 1, &prelu, stream);
    assert_sum(&sum, (account_sum){.read = 105 * 12 * 2,
                                   .written = 84 * 12 * 4,
                                   .weights = 14 * 12 + 2 * 48,
                                   .launches = 1});

    /* Statistics of 3 groups of 2 samples are 48 bytes, written and read. */
    sum = (account_sum){0};
    double workspace = (double)normalise_workspace(&in, 2, 3);
    k->normalise_statistics(&in, 2, 3, 0, NULL, NULL, stream);
    k->normalise_apply(&in, &in, 2, 3, NULL, parameters, NULL, &nothing, stream);
    assert_true(workspace > 0);
    assert_sum(&sum, (account_sum){.read = 2 * 2 * 105 * 12 * 2,
                                   .written = 2 * 105 * 12 * 2,
                                   .weights = 48,
                                   .workspace = 2 * workspace + 2 * 48,
                                   .launches = 2});
    sum = (account_sum){0};
    k->global_average(NULL, &one, 2, &nothing, stream);
    assert_sum(&sum, (account_sum){.written = 2 * 12 * 2, .workspace = 2 * 12 * 8, .launches = 1});
}

/* 12 and 8 channels, 4 inner ones of bf16, biases of float32 but one. */
static void test_gate(void **state)
{
    (void)state;
    const device_tensor coarse = tensor(5, 7, 3, 12, ELEMENT_BF16),
                        skip = tensor(5, 7, 3, 8, ELEMENT_BF16);
    const float bias[4] = {0};
    const device_gate gate = {.inner = 4, .skip_bias = bias, .psi_bias = bias};
    device_account a = {0};
    account_sum sum = {0};
    a.now = &sum;
    device_kernels_count.attention_gate(&gate, &coarse, &skip, &skip, 3, (cudaStream_t)(void *)&a);
    assert_sum(&sum, (account_sum){.read = 3 * 105 * (12 + 8) * 2,
                                   .written = 3 * 105 * 8 * 2,
                                   .weights = 4 * (12 + 8 + 1) * 2 + 4 * 4 + 4,
                                   .flop = 3 * 105 * 2 * 4 * (12 + 8 + 1),
                                   .launches = 1});
}

/* A window of 6 x 8 x 10: images and sums of float32, the importance once for a portion of two. */
static void check_both_ends(size_t channels)
{
    static graph_builder b;
    const double voxels = 6 * 8 * 10, cut_out = voxels * (double)channels;
    build_begin(&b, channels, (const size_t[]){6, 8, 10}, 3);
    build_output(&b, build_conv(&b, build_conv(&b, b.input, 8, 3), 1, 1));
    plan *p = build(&b, (plan_case){.type = ELEMENT_BF16, .reads = true, .writes = true});
    network_kind w = {.batch = 4, .cache_bytes = 2 * 480 * (16 + 4), .dry = true, .own = true};
    network_made joined = make(p, w);
    w.whole_output = true;
    network_made apart = make(p, w);
    device_account j = account_of(joined.net), a = account_of(apart.net);
    assert_int_equal(network_samples(joined.net, 0), 2);
    assert_sum(&j.fill,
               (account_sum){.read = 4 * cut_out * 4, .written = 4 * cut_out * 2, .launches = 2});
    assert_sum(&j.ops[1], (account_sum){.read = 4 * voxels * (8 * 2 + 4),
                                        .written = 4 * voxels * 4,
                                        .weights = 2 * (8 * 2 + 4 + voxels * 4),
                                        .flop = 4 * voxels * 2 * 8,
                                        .launches = 2});
    assert_sum(&j.take, (account_sum){0});
    assert_sum(&a.fill, j.fill);
    assert_sum(&a.take, (account_sum){.read = 4 * voxels * (4 + 4),
                                      .written = 4 * voxels * 4,
                                      .weights = 2 * voxels * 4,
                                      .launches = 2});
    device_account_clear(&j);
    device_account_clear(&a);
    clear(&joined);
    clear(&apart);
    plan_free(p);
    build_end(&b);
}

static void test_both_ends(void **state)
{
    (void)state;
    check_both_ends(1);
    check_both_ends(2); /* PET and CT */
}

/* ---- The plan's costs ------------------------------------------------------------------------- */

static bool same(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fabs(b);
}

static void add(account_sum *sum, const account_sum *more)
{
    sum->read += more->read;
    sum->written += more->written;
    sum->weights += more->weights;
    sum->workspace += more->workspace;
    sum->flop += more->flop;
}

/* Operations that are one launch of one step move what the plan says. */
static size_t compare_with_plan(const device_network *net, const device_account *account,
                                unsigned batch)
{
    size_t compared = 0;
    for (size_t i = 0; i < net->n_ops; i++) {
        const device_op *op = &net->ops[i];
        const account_sum *s = &account->ops[i];
        unsigned portions = batch / network_samples(net, i);
        if (op->lowered.kind == LOWERED_GATE || op->head || op->unfold || op->broadcast ||
            op->n_links > DEVICE_MAX_LINKS || s->launches > portions ||
            (op->step->kind != STEP_CONV && op->step->kind != STEP_CONV_TRANSPOSE &&
             op->step->kind != STEP_POINTWISE && op->step->kind != STEP_COPY &&
             op->step->kind != STEP_MAX_POOL && op->step->kind != STEP_AVERAGE_POOL))
            continue;
        compared++;
        if (!same(s->read + s->written, batch * op->step->bytes) ||
            !same(s->weights, portions * op->step->weight_bytes))
            fail_msg("%s: %.0f bytes, %.0f of weights; plan %.0f, %.0f", op->step->name,
                     s->read + s->written, s->weights, batch * op->step->bytes,
                     portions * op->step->weight_bytes);
    }
    return compared;
}

static void compare_accounts(const device_account *a, const device_account *b, uint32_t seed)
{
    assert_int_equal(a->n_ops, b->n_ops);
    for (size_t i = 0; i < a->n_ops; i++)
        if (memcmp(&a->ops[i], &b->ops[i], sizeof *a->ops))
            fail_msg("network %u, operation %zu: counted otherwise when dry", seed, i);
    assert_memory_equal(&a->total, &b->total, sizeof a->total);
}

/* Any plan: FLOPs are the plan's, simple operations move what it says, sums are the sums of their
 * parts, and a dry network is counted as one with memory. */
static void test_random_networks(void **state)
{
    (void)state;
    static graph_builder b;
    size_t compared = 0;
    for (uint32_t seed = 1; seed <= 120; seed++) {
        random_graph(&b, seed);
        plan *p = build(&b, (plan_case){.type = seed % 3 ? ELEMENT_F32 : ELEMENT_BF16,
                                        .reads = seed % 2,
                                        .writes = seed % 4 < 2});
        network_kind w = {.batch = 6,
                          .cache_bytes = seed % 5 ? SIZE_MAX : 4096,
                          .own = seed % 2,
                          .compile = seed % 4 == 0};
        network_made real = make(p, w);
        w.dry = true;
        network_made dry = make(p, w);
        device_account a = account_of(real.net), d = account_of(dry.net);
        account_sum sum = a.fill;
        compare_accounts(&a, &d, seed);
        if (!same(a.total.flop, w.batch * p->flops))
            fail_msg("network %u: %g FLOP, plan %g", seed, a.total.flop, w.batch * p->flops);
        compared += compare_with_plan(real.net, &a, w.batch);
        add(&sum, &a.take);
        for (size_t i = 0; i < a.n_ops; i++)
            add(&sum, &a.ops[i]);
        assert_true(same(account_bytes(&sum), account_bytes(&a.total)));
        device_account_clear(&a);
        device_account_clear(&d);
        clear(&dry);
        clear(&real);
        plan_free(p);
        build_end(&b);
    }
    assert_true(compared > 300);
}

/* ---- The shipped network --------------------------------------------------------------------- */

static plan *shipped_plan(dm_model **model)
{
    plan_options options = {.type = ELEMENT_BF16, .optimise = true};
    plan *p = NULL;
    dm_error err = {0};
    assert_int_equal(dm_model_load(TEST_WEIGHTS, model, &err), DM_OK);
    for (int a = 0; a < 3; a++)
        options.tile[a] = 32;
    device_network_plan_needs(&options);
    assert_int_equal(plan_build(&(*model)->graph, &options, &p, &err), DM_OK);
    return p;
}

/* Layer by layer, as frameworks run it, it is 132 MB for a window of 32^3; with nothing but the
 * convolutions' own operands 40. */
static void test_shipped_network(void **state)
{
    (void)state;
    dm_model *model = NULL;
    plan *p = shipped_plan(&model);
    network_made library =
        make(p, (network_kind){.batch = BATCH, .cache_bytes = CACHE, .dry = true});
    network_made own =
        make(p, (network_kind){.batch = BATCH, .cache_bytes = CACHE, .dry = true, .own = true});
    device_account l = account_of(library.net), o = account_of(own.net);
    double per_window = account_bytes(&l.total) / BATCH, fused = account_bytes(&o.total) / BATCH;
    print_message("library %.2f MB, own %.2f MB\n", 1e-6 * per_window, 1e-6 * fused);
    assert_true(per_window <= 80e6 && per_window > 50e6);
    assert_true(fused <= 55e6 && fused > 40e6);
    assert_true(same(o.total.flop, BATCH * p->flops) && same(l.total.flop, BATCH * p->flops));
    assert_true(compare_with_plan(own.net, &o, BATCH) >= 15);
    device_account_clear(&l);
    device_account_clear(&o);
    clear(&library);
    clear(&own);
    plan_free(p);
    dm_model_free(model);
}

/* A portion reads all weights of its operations; activations are what they are. */
static void test_portions_share_weights(void **state)
{
    (void)state;
    dm_model *model = NULL;
    plan *p = shipped_plan(&model);
    network_made one =
        make(p, (network_kind){.batch = BATCH, .cache_bytes = SIZE_MAX, .dry = true, .own = true});
    network_made many =
        make(p, (network_kind){.batch = BATCH, .cache_bytes = CACHE, .dry = true, .own = true});
    device_account a = account_of(one.net), b = account_of(many.net);
    assert_int_equal(a.n_ops, b.n_ops);
    for (size_t i = 0; i < a.n_ops; i++) {
        unsigned portions = BATCH / network_samples(many.net, i);
        assert_true(a.ops[i].launches >= 1 && network_samples(one.net, i) == BATCH);
        assert_true(same(b.ops[i].weights, portions * a.ops[i].weights));
        assert_true(same(b.ops[i].read, a.ops[i].read));
        assert_true(same(b.ops[i].written, a.ops[i].written));
        assert_true(same(b.ops[i].flop, a.ops[i].flop));
    }
    assert_true(b.total.weights > a.total.weights);
    device_account_clear(&a);
    device_account_clear(&b);
    clear(&one);
    clear(&many);
    plan_free(p);
    dm_model_free(model);
}

/* A library that packs: what it asks for is written and read once by each portion. */
static void test_workspace_counts_twice(void **state)
{
    (void)state;
    static graph_builder b;
    build_begin(&b, 16, (const size_t[]){8, 8, 8}, 3);
    build_output(&b, build_conv(&b, build_conv(&b, b.input, 16, 3), 1, 1));
    plan *p = build(&b, (plan_case){.type = ELEMENT_BF16, .reads = true, .writes = true});
    network_made m = make(p, (network_kind){.batch = 4, .cache_bytes = 60000, .dry = true});
    device_account a = account_of(m.net);
    unsigned portions = 4 / network_samples(m.net, 0);
    const library_convolution *used = m.net->ops[0].conv.library;
    assert_non_null(used);
    assert_true(portions > 1 && library_convolution_workspace(used) > 0);
    assert_true(
        same(a.total.workspace, 2.0 * portions * (double)library_convolution_workspace(used)));
    device_account_clear(&a);
    clear(&m);
    plan_free(p);
    build_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_things),
        cmocka_unit_test(test_gate),
        cmocka_unit_test(test_both_ends),
        cmocka_unit_test(test_random_networks),
        cmocka_unit_test(test_shipped_network),
        cmocka_unit_test(test_portions_share_weights),
        cmocka_unit_test(test_workspace_counts_twice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
