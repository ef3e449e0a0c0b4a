/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the device's activations lie, without any arithmetic: each element carries who wrote it, for
 * which sample. What an operation reads has to be what the plan's own arena has at that step, and of
 * the right sample, whatever the batch and its portions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plan_case.h"
#include "plan_interpreter.h"
#include "predict/cuda/device_layout.h"
#include "random_graph.h"

#define NETWORKS 150

typedef struct layout_case {
    const plan *p;
    lowered_op *ops;
    size_t n_ops;
    device_layout layout;
    uint32_t *planned; /* per byte of the plan's arena: 1 + operation */
    uint32_t *memory;  /* per byte of the device's: that + 2^16 * sample */
    size_t portions, partly;
} layout_case;

static size_t element_at(const plan_tensor *t, size_t voxel, size_t c)
{
    return (voxel * t->pitch + t->channel_start + c) * element_size(t->type);
}

static uint32_t *device_sample(const layout_case *k, int tensor, unsigned first, unsigned sample)
{
    const device_place *place = &k->layout.tensors[tensor];
    size_t n = place->whole ? sample : sample - first;
    assert_true(place->offset != SIZE_MAX);
    return k->memory + place->offset + n * place->sample * element_size(k->p->tensors[tensor].type);
}

static void write_tags(const plan_tensor *t, uint32_t *base, uint32_t tag)
{
    for (size_t v = 0; v < tensor_voxels(t); v++)
        for (size_t c = 0; c < t->channels; c++)
            for (size_t b = 0; b < element_size(t->type); b++)
                base[element_at(t, v, c) + b] = tag;
}

/* What the plan's arena has in a tensor, one tag per element. */
static uint32_t *planned_tags(const layout_case *k, int tensor)
{
    const plan_tensor *t = &k->p->tensors[tensor];
    uint32_t *tags = malloc(tensor_voxels(t) * t->channels * sizeof *tags), *to = tags;
    for (size_t v = 0; v < tensor_voxels(t); v++)
        for (size_t c = 0; c < t->channels; c++)
            *to++ = k->planned[t->offset + element_at(t, v, c)];
    return tags;
}

static bool has_tags(const plan_tensor *t, const uint32_t *base, const uint32_t *expected,
                     unsigned sample)
{
    for (size_t v = 0; v < tensor_voxels(t); v++)
        for (size_t c = 0; c < t->channels; c++)
            for (size_t b = 0; b < element_size(t->type); b++)
                if (base[element_at(t, v, c) + b] != expected[v * t->channels + c] + (sample << 16))
                    return false;
    return true;
}

/* expected[op * reads + r]: tags of the r-th tensor that it reads; the last one is the output's. */
enum { READS = 24 };

static uint32_t **plan_reads(layout_case *k)
{
    uint32_t **expected = calloc(k->n_ops * READS + 1, sizeof *expected);
    const plan_tensor *input = &k->p->tensors[k->p->input];
    int read;
    write_tags(input, k->planned + input->offset, 0xffff);
    for (size_t i = 0; i < k->n_ops; i++) {
        const plan_tensor *out = &k->p->tensors[k->ops[i].step->out];
        for (size_t r = 0; (read = lowered_read(&k->ops[i], r)) >= 0; r++) {
            assert_true(r < READS);
            expected[i * READS + r] = planned_tags(k, read);
        }
        write_tags(out, k->planned + out->offset, (uint32_t)i + 1);
    }
    expected[k->n_ops * READS] = planned_tags(k, k->p->output);
    return expected;
}

static void run_op(layout_case *k, size_t op, uint32_t *const *expected, unsigned first,
                   unsigned samples)
{
    const plan_step *step = k->ops[op].step;
    int read;
    for (unsigned s = first; s < first + samples; s++)
        for (size_t r = 0; (read = lowered_read(&k->ops[op], r)) >= 0; r++)
            if (!has_tags(&k->p->tensors[read], device_sample(k, read, first, s),
                          expected[op * READS + r], s))
                fail_msg("step '%s' reads something else than tensor %d of sample %u", step->name,
                         read, s);
    for (unsigned s = first; s < first + samples; s++)
        write_tags(&k->p->tensors[step->out], device_sample(k, step->out, first, s),
                   (uint32_t)op + 1 + (s << 16));
}

static void run_portion(layout_case *k, const device_segment *segment, uint32_t *const *expected,
                        unsigned first)
{
    const plan_tensor *input = &k->p->tensors[k->p->input];
    for (unsigned s = first; segment->first == 0 && s < first + segment->samples; s++)
        write_tags(input, device_sample(k, k->p->input, first, s), 0xffff + (s << 16));
    for (size_t i = segment->first; i < segment->end; i++)
        run_op(k, i, expected, first, segment->samples);
    for (unsigned s = first; segment->end == k->n_ops && s < first + segment->samples; s++)
        assert_true(has_tags(&k->p->tensors[k->p->output], device_sample(k, k->p->output, first, s),
                             expected[k->n_ops * READS], s));
}

static bool any_gate(const plan *p, const lowered_op *gate, void *context)
{
    (void)p, (void)gate, (void)context;
    return true;
}

static void check(layout_case *k, unsigned batch, size_t cache_bytes)
{
    dm_error err = {0};
    k->ops = calloc(k->p->n_steps + 1, sizeof *k->ops);
    k->n_ops = lower_plan(k->p, any_gate, NULL, k->ops);
    assert_int_equal(
        device_layout_make(k->p, k->ops, k->n_ops, batch, cache_bytes, &k->layout, &err), DM_OK);
    k->planned = calloc(k->p->arena_bytes, sizeof *k->planned);
    k->memory = calloc(k->layout.bytes, sizeof *k->memory);
    uint32_t **expected = plan_reads(k);
    assert_int_equal(k->layout.segments[k->layout.n_segments - 1].end, k->n_ops);
    for (size_t s = 0; s < k->layout.n_segments; s++) {
        const device_segment *segment = &k->layout.segments[s];
        assert_int_equal(segment->first, s ? segment[-1].end : 0);
        assert_int_equal(batch % segment->samples, 0);
        for (unsigned first = 0; first < batch; first += segment->samples, k->portions++)
            run_portion(k, segment, expected, first);
        k->partly += segment->samples < batch;
    }
    for (size_t i = 0; i <= k->n_ops * READS; i++)
        free(expected[i]);
    free(expected);
    free(k->planned);
    free(k->memory);
    free(k->ops);
    device_layout_clear(&k->layout);
}

static void test_random_networks(void **state)
{
    (void)state;
    static graph_builder b;
    size_t partly = 0;
    for (uint32_t seed = 2000; seed < 2000 + NETWORKS; seed++) {
        random_graph(&b, seed);
        for (unsigned views = 0; views < 4; views++) {
            const element_type type = seed % 2 ? ELEMENT_F32 : ELEMENT_BF16;
            plan *p = build(&b, (plan_case){.type = type, .reads = views & 1, .writes = views & 2});
            size_t input = p->tensors[p->input].buffer_bytes;
            for (size_t cache = 1; cache <= 16; cache *= 4) {
                layout_case k = {.p = p};
                check(&k, 8, cache * input);
                partly += k.partly;
            }
            plan_free(p);
        }
        build_end(&b);
    }
    assert_true(partly > NETWORKS); /* portions there were */
}

/* The shipped network: three gates, and less memory than its plan's arena takes for a batch. */
static void test_dosegan(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_model *model = NULL;
    plan *p = NULL;
    assert_int_equal(dm_model_load(TEST_WEIGHTS, &model, &err), DM_OK);
    plan_options options = {.tile = {16, 16, 16},
                            .type = ELEMENT_BF16,
                            .conv_reads_views = true,
                            .conv_writes_views = true,
                            .optimise = true};
    assert_int_equal(plan_build(&model->graph, &options, &p, &err), DM_OK);
    lowered_op *ops = calloc(p->n_steps, sizeof *ops);
    device_layout layout;
    size_t n = lower_plan(p, any_gate, NULL, ops);
    assert_int_equal(n, p->n_steps - 9);
    assert_int_equal(device_layout_make(p, ops, n, 8, (size_t)1 << 20, &layout, &err), DM_OK);
    assert_true(layout.n_segments >= 3);
    assert_true(layout.segments[0].samples < 8); /* the finest level */
    assert_true(layout.segments[layout.n_segments / 2].samples == 8);
    assert_true(layout.bytes < 8 * p->arena_bytes);
    device_layout_clear(&layout);
    free(ops);
    for (size_t cache = 1 << 17; cache <= 1 << 20; cache *= 2) {
        layout_case k = {.p = p};
        check(&k, 4, cache);
    }
    plan_free(p);
    dm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_networks),
        cmocka_unit_test(test_dosegan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
