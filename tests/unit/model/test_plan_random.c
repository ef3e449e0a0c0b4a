/* SPDX-License-Identifier: Apache-2.0 */
/* The optimised plan against the plain one, over random networks, and the arena's rules. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "model/plan.h"
#include "plan_interpreter.h"
#include "random_graph.h"

#define NETWORKS 500

static plan_options options_for(const graph_builder *b, unsigned views, element_type type,
                                bool optimise)
{
    plan_options o = {.type = type,
                      .conv_reads_views = views & 1,
                      .conv_writes_views = views & 2,
                      .optimise = optimise};
    memcpy(o.tile, b->sizes[b->input], sizeof o.tile);
    return o;
}

static plan *build_for(const graph_builder *b, size_t output, unsigned views, element_type type,
                       bool optimise)
{
    plan_options options = options_for(b, views, type, optimise);
    plan *p = NULL;
    options.output = output;
    dm_error err = {0};
    if (plan_build(&b->g, &options, &p, &err) != DM_OK)
        fail_msg("plan_build: %s", err.what);
    return p;
}

static plan *build(const graph_builder *b, unsigned views, element_type type, bool optimise)
{
    return build_for(b, 0, views, type, optimise);
}

static float *run(const plan *p, const float *input, size_t *count)
{
    const plan_tensor *out = &p->tensors[p->output];
    *count = tensor_voxels(out) * out->channels;
    float *output = malloc(*count * sizeof *output);
    interpret_plan(p, input, output);
    return output;
}

static float *random_input(graph_builder *b)
{
    const size_t *s = b->sizes[b->input];
    size_t n = s[0] * s[1] * s[2] * graph_input_channels(&b->g);
    float *input = malloc(n * sizeof *input);
    for (size_t i = 0; i < n; i++)
        input[i] = build_uniform(b, -1, 1);
    return input;
}

static double largest(const float *values, size_t n)
{
    double m = 0;
    for (size_t i = 0; i < n; i++)
        m = fabs((double)values[i]) > m ? fabs((double)values[i]) : m;
    return m;
}

/* Adds the steps of the plain plan, four times, and of the optimised ones. */
static void compare_plans(const graph_builder *b, size_t output, const float *input, uint32_t seed,
                          size_t steps[2])
{
    plan *plain = build_for(b, output, 3, ELEMENT_F32, false);
    size_t n_reference, n;
    float *reference = run(plain, input, &n_reference);
    for (unsigned views = 0; views < 4; views++) {
        plan *p = build_for(b, output, views, ELEMENT_F32, true);
        float *made = run(p, input, &n);
        double atol = 1e-5 * largest(reference, n_reference);
        if (!arrays_close(made, n, reference, n_reference, atol, 1e-5))
            fail_msg("network %u, output %zu, views %u", seed, output, views);
        assert_true(p->arena_bytes <= plain->arena_bytes);
        steps[1] += p->n_steps;
        free(made);
        plan_free(p);
    }
    steps[0] += plain->n_steps * 4;
    free(reference);
    plan_free(plain);
}

static void test_optimised_equals_plain(void **state)
{
    (void)state;
    static graph_builder b;
    size_t steps[2] = {0, 0}, several[2] = {0, 0};
    for (uint32_t seed = 0; seed < NETWORKS; seed++) {
        random_ports(&b, seed);
        float *input = random_input(&b);
        several[0] += b.g.n_inputs > 1;
        several[1] += b.g.n_outputs > 1;
        for (size_t output = 0; output < b.g.n_outputs; output++)
            compare_plans(&b, output, input, seed, steps);
        free(input);
        build_end(&b);
    }
    assert_true(several[0] > NETWORKS / 5 && several[1] > NETWORKS / 5);
    print_message("%zu plain steps became %zu\n", steps[0], steps[1]);
    assert_true(steps[1] < steps[0] * 3 / 4);
}

/* Half precision only rounds, at fewer places than in the plain plan. */
static void test_half_precision(void **state)
{
    (void)state;
    static graph_builder b;
    for (uint32_t seed = 0; seed < NETWORKS / 2; seed++) {
        random_ports(&b, seed);
        float *input = random_input(&b);
        size_t n;
        plan *single = build(&b, 0, ELEMENT_F32, true), *half = build(&b, 0, ELEMENT_BF16, true);
        float *reference = run(single, input, &n), *output = run(half, input, &n);
        assert_int_equal(half->tensors[half->output].type, ELEMENT_F32);
        assert_int_equal(half->tensors[half->input].type, ELEMENT_BF16);
        if (!arrays_close(output, n, reference, n, 0.1 * largest(reference, n), 0))
            fail_msg("network %u", seed);
        free(input);
        free(reference);
        free(output);
        plan_free(single);
        plan_free(half);
        build_end(&b);
    }
}

/* ---- The arena ------------------------------------------------------------------------------ */

typedef struct lifetime {
    size_t first, last;
} lifetime;

static void see(lifetime *life, int tensor, size_t when)
{
    if (tensor < 0)
        return;
    life[tensor].first = when < life[tensor].first ? when : life[tensor].first;
    life[tensor].last = when > life[tensor].last ? when : life[tensor].last;
}

static lifetime *lifetimes(const plan *p)
{
    lifetime *life = calloc(p->n_tensors, sizeof *life);
    for (size_t t = 0; t < p->n_tensors; t++)
        life[t].first = SIZE_MAX;
    see(life, p->input, 0);
    for (size_t s = 0; s < p->n_steps; s++) {
        see(life, p->steps[s].in, s + 1);
        see(life, p->steps[s].out, s + 1);
        for (size_t i = 0; i < p->steps[s].n_chain; i++)
            see(life, p->steps[s].chain[i].tensor, s + 1);
    }
    see(life, p->output, p->n_steps + 1);
    return life;
}

/* Parts of one concatenation: disjoint, or one contains the other. */
static bool parts_of_one(const plan_tensor *a, const plan_tensor *b)
{
    size_t a0 = a->channel_start, a1 = a0 + a->channels;
    size_t b0 = b->channel_start, b1 = b0 + b->channels;
    bool apart = a1 <= b0 || b1 <= a0;
    bool inside = (a0 <= b0 && b1 <= a1) || (b0 <= a0 && a1 <= b1);
    return a->offset == b->offset && a->pitch == b->pitch && a->buffer_bytes == b->buffer_bytes &&
           (apart || (inside && a->channels != b->channels));
}

/* The one step at which both are alive writes `b` over `a`, which it reads once, at the element
 * that it writes. */
static bool written_over(const plan *p, size_t when, int a, int b)
{
    if (when < 1 || when > p->n_steps)
        return false;
    const plan_step *step = &p->steps[when - 1];
    size_t reads = step->in == a;
    for (size_t i = 0; i < step->n_chain; i++)
        reads += step->chain[i].tensor == a;
    bool elementwise = step->kind == STEP_POINTWISE || step->in != a;
    return reads == 1 && elementwise && step->out == b &&
           p->tensors[a].channels == p->tensors[b].channels &&
           p->tensors[a].pitch == p->tensors[a].channels &&
           p->tensors[b].pitch == p->tensors[b].channels &&
           tensor_voxels(&p->tensors[a]) == tensor_voxels(&p->tensors[b]);
}

static bool pair_is_right(const plan *p, const lifetime *life, int a, int b)
{
    const plan_tensor *ta = &p->tensors[a], *tb = &p->tensors[b];
    bool space =
        ta->offset < tb->offset + tb->buffer_bytes && tb->offset < ta->offset + ta->buffer_bytes;
    bool time = life[a].first <= life[b].last && life[b].first <= life[a].last;
    if (!space || !time || parts_of_one(ta, tb))
        return true;
    if (life[a].last == life[b].first && written_over(p, life[a].last, a, b))
        return true;
    return life[b].last == life[a].first && written_over(p, life[b].last, b, a);
}

static void test_arena(void **state)
{
    (void)state;
    static graph_builder b;
    size_t shared = 0, in_place = 0;
    for (uint32_t seed = 0; seed < NETWORKS; seed++) {
        random_ports(&b, seed);
        plan *p = build(&b, seed % 4, seed % 3 ? ELEMENT_F32 : ELEMENT_BF16, true);
        lifetime *life = lifetimes(p);
        assert_int_equal(p->arena_bytes % 64, 0);
        for (size_t t = 0; t < p->n_tensors; t++) {
            const plan_tensor *x = &p->tensors[t];
            size_t needed = tensor_voxels(x) * x->pitch * element_size(x->type);
            assert_int_equal(x->offset % 64, 0);
            assert_int_equal(x->buffer_bytes % 64, 0);
            assert_true(needed <= x->buffer_bytes && x->buffer_bytes < needed + 64);
            assert_true(x->offset + x->buffer_bytes <= p->arena_bytes);
            assert_true(x->channel_start + x->channels <= x->pitch);
            for (size_t u = 0; u < t; u++) {
                if (!pair_is_right(p, life, (int)u, (int)t))
                    fail_msg("network %u: '%s' and '%s' overlap", seed, p->tensors[u].name,
                             x->name);
                shared += p->tensors[u].offset == x->offset;
            }
        }
        for (size_t s = 0; s < p->n_steps; s++)
            in_place += step_is_in_place(p, &p->steps[s]);
        free(life);
        plan_free(p);
        build_end(&b);
    }
    print_message("%zu pairs of tensors share memory, %zu steps run in place\n", shared, in_place);
    assert_true(shared > NETWORKS && in_place > NETWORKS / 20);
}

/* Convolutions get what the options promise them. */
static void test_views(void **state)
{
    (void)state;
    static graph_builder b;
    size_t views = 0;
    for (uint32_t seed = 0; seed < NETWORKS; seed++) {
        random_ports(&b, seed);
        for (unsigned may = 0; may < 4; may++) {
            plan *p = build(&b, may, ELEMENT_F32, true);
            const plan_tensor *t = p->tensors;
            assert_int_equal(t[p->input].pitch, t[p->input].channels);
            assert_int_equal(t[p->output].pitch, t[p->output].channels);
            for (size_t s = 0; s < p->n_steps; s++) {
                const plan_step *step = &p->steps[s];
                bool conv = step->kind == STEP_CONV || step->kind == STEP_CONV_TRANSPOSE;
                bool reads = t[step->in].pitch != t[step->in].channels;
                bool writes = t[step->out].pitch != t[step->out].channels;
                views += reads + writes;
                assert_false(conv && reads && !(may & 1) && !conv_is_voxelwise(step->node));
                assert_false(conv && writes && !(may & 2) && !conv_is_voxelwise(step->node));
            }
            plan_free(p);
        }
        build_end(&b);
    }
    assert_true(views > NETWORKS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_optimised_equals_plain),
        cmocka_unit_test(test_half_precision),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_views),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
