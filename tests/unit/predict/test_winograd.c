/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Winograd convolutions against direct sums in double precision: every tile shape, every instruction
 * set this CPU has, sizes that are no multiple of a tile, views, both types, post-operations, any
 * split into planes, poisoned buffers.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/error.h"
#include "predict/cpu/convert.h"
#include "predict/cpu/winograd.h"
#include "tests/support/compare.h"

typedef struct layer {
    size_t dim[3], in_channels, out_channels, in_pitch, out_pitch;
    element_type type, out_type;
    size_t n_post;
    post_operation post[3];
    size_t split; /* planes of tiles run at a time; 0: all */
} layer;

static uint32_t random_state;

static float random_value(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return (float)(random_state >> 8) / 8388608.0f - 1.0f;
}

static size_t voxels_of(const layer *l)
{
    return l->dim[0] * l->dim[1] * l->dim[2];
}

/* n values, and as they are when stored in `type`. */
static void *make_tensor(size_t n, element_type type, float *values)
{
    void *stored = array_alloc(n, element_size(type));
    for (size_t i = 0; i < n; i++) {
        values[i] = random_value();
        if (type == ELEMENT_BF16) {
            ((uint16_t *)stored)[i] = bf16_from_float(values[i]);
            values[i] = bf16_to_float(((uint16_t *)stored)[i]);
        } else {
            ((float *)stored)[i] = values[i];
        }
    }
    return stored;
}

static double direct_sum(const layer *l, const float *in, const float *weight, size_t voxel,
                         size_t o)
{
    size_t at[3] = {voxel / (l->dim[1] * l->dim[2]), voxel / l->dim[2] % l->dim[1],
                    voxel % l->dim[2]};
    double sum = 0;
    for (size_t k = 0; k < 27; k++) {
        size_t z = at[0] + k / 9 - 1, y = at[1] + k / 3 % 3 - 1, x = at[2] + k % 3 - 1;
        if (z >= l->dim[0] || y >= l->dim[1] || x >= l->dim[2])
            continue;
        const float *v = in + ((z * l->dim[1] + y) * l->dim[2] + x) * l->in_pitch;
        for (size_t i = 0; i < l->in_channels; i++)
            sum += (double)v[i] * (double)weight[(o * l->in_channels + i) * 27 + k];
    }
    return sum;
}

static double post_operations(const layer *l, double value, float operand)
{
    for (size_t i = 0; i < l->n_post; i++) {
        if (l->post[i].op == CHAIN_ADD_TENSOR)
            value += (double)operand;
        else if (!(value > 0))
            value *= l->post[i].op == CHAIN_RELU ? 0 : (double)l->post[i].alpha;
    }
    return value;
}

static convolution_spec spec_of(const layer *l, const float *weight, const float *bias)
{
    convolution_spec spec = {.name = "layer",
                             .in_channels = l->in_channels,
                             .out_channels = l->out_channels,
                             .groups = 1,
                             .weight = weight,
                             .bias = bias,
                             .type = l->type,
                             .out_type = l->out_type,
                             .n_post = l->n_post,
                             .post = l->post};
    for (int a = 0; a < 3; a++) {
        spec.in[a] = spec.out[a] = l->dim[a];
        spec.kernel[a] = 3;
        spec.stride[a] = spec.dilation[a] = spec.pad_begin[a] = 1;
    }
    return spec;
}

static void run(const layer *l, const winograd *w, void *in, void *out, void *operand)
{
    /* One float more on either side than the scratch should need. */
    size_t bytes = winograd_scratch_bytes(w), planes = winograd_tile_planes(w);
    unsigned char *scratch = array_alloc(bytes + 64, 1);
    memset(scratch, 0xFF, bytes + 64); /* NaN */
    winograd_tensor from = {in, l->in_pitch, l->type};
    size_t step = l->split ? l->split : planes;
    for (size_t t = 0; t < planes; t += step) {
        size_t first = t * winograd_planes_per_tile(w) * l->dim[1] * l->dim[2];
        winograd_tensor to = {(char *)out + first * l->out_pitch * element_size(l->out_type),
                              l->out_pitch, l->out_type};
        winograd_tensor operands[WINOGRAD_MAX_POST] = {{0}};
        for (size_t i = 0; i < l->n_post; i++)
            operands[i] = (winograd_tensor){(char *)operand + first * l->out_channels *
                                                                  element_size(l->post[i].type),
                                            l->out_channels, l->post[i].type};
        winograd_run(w, &from, &to, operands, t, t + step < planes ? t + step : planes, scratch);
    }
    for (size_t i = bytes; i < bytes + 64; i++)
        assert_int_equal(scratch[i], 0xFF);
    free(scratch);
}

static void check_shape(const layer *l, const winograd_kernel *kernel, int shape)
{
    size_t n = voxels_of(l), n_out = n * l->out_pitch;
    float *values = array_alloc(n * l->in_pitch, sizeof *values);
    float *added = array_alloc(n * l->out_channels, sizeof *added);
    float *weight = array_alloc(l->out_channels * l->in_channels * 27, sizeof *weight);
    float *bias = array_alloc(l->out_channels, sizeof *bias);
    float *reference = array_alloc(n * l->out_channels, sizeof *reference);
    float *result = array_alloc(n * l->out_channels, sizeof *result);
    element_type operand_type = l->n_post ? l->post[0].type : ELEMENT_F32;
    void *in = make_tensor(n * l->in_pitch, l->type, values);
    void *operand = make_tensor(n * l->out_channels, operand_type, added);
    unsigned char *out = array_alloc(n_out + 16, element_size(l->out_type));
    memset(out, 0xFF, (n_out + 16) * element_size(l->out_type));
    for (size_t i = 0; i < l->out_channels * l->in_channels * 27; i++)
        weight[i] = random_value() / sqrtf(9.0f * (float)l->in_channels);
    for (size_t i = 0; i < l->out_channels; i++)
        bias[i] = random_value();
    convolution_spec spec = spec_of(l, weight, bias);
    winograd *w;
    size_t done;
    assert_int_equal(winograd_create(&spec, kernel, shape, &w, &done, NULL), DM_OK);
    assert_int_equal(done, l->n_post);
    run(l, w, in, out, operand);
    for (size_t v = 0; v < n; v++)
        for (size_t o = 0; o < l->out_channels; o++) {
            size_t i = v * l->out_channels + o, at = v * l->out_pitch + o;
            double sum = direct_sum(l, values, weight, v, o) + (double)bias[o];
            reference[i] = (float)post_operations(l, sum, added[i]);
            result[i] = l->out_type == ELEMENT_BF16 ? bf16_to_float(((uint16_t *)out)[at])
                                                    : ((float *)out)[at];
        }
    /* The sums are of order 1; bf16 rounds to 2^-9. */
    bool half = l->out_type == ELEMENT_BF16;
    size_t n_values = n * l->out_channels;
    if (!arrays_close(result, n_values, reference, n_values, 1.2e-5, half ? 4e-3 : 0) ||
        !(relative_l2(result, reference, n_values) <= (half ? 4e-3 : 3e-6)))
        fail_msg("%s, shape %d, %zux%zux%zu, %zu to %zu", kernel->name, shape, l->dim[0], l->dim[1],
                 l->dim[2], l->in_channels, l->out_channels);
    for (size_t v = 0; v < n; v++) /* a view's other channels, and what follows */
        for (size_t b = l->out_channels * element_size(l->out_type);
             b < l->out_pitch * element_size(l->out_type); b++)
            assert_int_equal(out[v * l->out_pitch * element_size(l->out_type) + b], 0xFF);
    for (size_t b = 0; b < 16 * element_size(l->out_type); b++)
        assert_int_equal(out[n_out * element_size(l->out_type) + b], 0xFF);
    winograd_free(w);
    free(out);
    free(operand);
    free(in);
    free(result);
    free(reference);
    free(bias);
    free(weight);
    free(added);
    free(values);
}

static void check(const layer *l)
{
    const winograd_kernel *best = winograd_best_kernel();
    const winograd_kernel *kernels[] = {best, &winograd_avx2};
    if (!best)
        skip();
    for (int k = 0; k < (best == &winograd_avx2 ? 1 : 2); k++)
        for (int shape = 0; shape < WINOGRAD_SHAPES; shape++)
            check_shape(l, kernels[k], shape);
}

static void test_sizes(void **state)
{
    (void)state;
    static const size_t dims[][3] = {{1, 1, 1}, {2, 3, 1},  {4, 4, 4},   {5, 7, 6},
                                     {1, 9, 2}, {3, 2, 37}, {8, 12, 16}, {13, 5, 4}};
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
        layer l = {.dim = {dims[i][0], dims[i][1], dims[i][2]},
                   .in_channels = 16,
                   .out_channels = i % 2 ? 16 : 32,
                   .in_pitch = 16,
                   .out_pitch = i % 2 ? 16 : 32};
        check(&l);
    }
}

static void test_channels(void **state)
{
    (void)state;
    static const size_t channels[][2] = {{16, 48}, {48, 16}, {64, 32}, {160, 16}};
    for (size_t i = 0; i < sizeof channels / sizeof *channels; i++) {
        layer l = {.dim = {5, 6, 9},
                   .in_channels = channels[i][0],
                   .out_channels = channels[i][1],
                   .in_pitch = channels[i][0],
                   .out_pitch = channels[i][1]};
        check(&l);
    }
}

static void test_views(void **state)
{
    (void)state;
    layer l = {
        .dim = {4, 5, 6}, .in_channels = 16, .out_channels = 16, .in_pitch = 35, .out_pitch = 23};
    check(&l);
    l.type = l.out_type = ELEMENT_BF16;
    check(&l);
}

static void test_types(void **state)
{
    (void)state;
    layer l = {.dim = {6, 4, 8},
               .in_channels = 32,
               .out_channels = 16,
               .in_pitch = 32,
               .out_pitch = 16,
               .type = ELEMENT_BF16};
    check(&l);
    l.out_type = ELEMENT_BF16;
    check(&l);
    l.type = ELEMENT_F32;
    check(&l);
}

static void test_post_operations(void **state)
{
    (void)state;
    layer l = {.dim = {7, 4, 8},
               .in_channels = 16,
               .out_channels = 16,
               .in_pitch = 16,
               .out_pitch = 16,
               .n_post = 1,
               .post = {{.op = CHAIN_LEAKY_RELU, .alpha = 0.2f}}};
    check(&l);
    l.post[0].alpha = -1.5f;
    check(&l);
    l.post[0].op = CHAIN_RELU;
    check(&l);
    l.n_post = 3;
    l.post[1] = (post_operation){.op = CHAIN_ADD_TENSOR};
    l.post[2] = (post_operation){.op = CHAIN_LEAKY_RELU, .alpha = 0.1f};
    check(&l);
    l.post[0] = (post_operation){.op = CHAIN_ADD_TENSOR, .type = ELEMENT_BF16};
    l.n_post = 1;
    check(&l);
}

static void test_planes_one_by_one(void **state)
{
    (void)state;
    layer l = {.dim = {11, 4, 5},
               .in_channels = 16,
               .out_channels = 16,
               .in_pitch = 16,
               .out_pitch = 16,
               .n_post = 1,
               .post = {{.op = CHAIN_ADD_TENSOR}},
               .split = 1};
    check(&l);
}

/* The result may lie where the operand lay. */
static void test_adds_in_place(void **state)
{
    (void)state;
    enum { VOXELS = 4 * 4 * 6, CHANNELS = 16 };
    static float in[VOXELS * CHANNELS], apart[VOXELS * CHANNELS], operand[VOXELS * CHANNELS],
        weight[CHANNELS * CHANNELS * 27];
    layer l = {.dim = {4, 4, 6},
               .in_channels = CHANNELS,
               .out_channels = CHANNELS,
               .in_pitch = CHANNELS,
               .out_pitch = CHANNELS,
               .n_post = 1,
               .post = {{.op = CHAIN_ADD_TENSOR, .in_place = true}}};
    const winograd_kernel *kernel = winograd_best_kernel();
    winograd *w;
    size_t done;
    if (!kernel)
        skip();
    for (size_t i = 0; i < VOXELS * CHANNELS; i++) {
        in[i] = random_value();
        operand[i] = random_value();
    }
    for (size_t i = 0; i < CHANNELS * CHANNELS * 27; i++)
        weight[i] = random_value();
    convolution_spec spec = spec_of(&l, weight, NULL);
    assert_int_equal(winograd_create(&spec, kernel, 3, &w, &done, NULL), DM_OK);
    run(&l, w, in, apart, operand);
    run(&l, w, in, operand, operand);
    assert_memory_equal(apart, operand, sizeof apart);
    winograd_free(w);
}

/* Which layers are taken, and that filtering is not chosen where it does not pay. */
static void test_choice(void **state)
{
    (void)state;
    const winograd_kernel *kernel = winograd_best_kernel();
    layer l = {.dim = {32, 32, 32}, .in_channels = 32, .out_channels = 32};
    if (!kernel)
        skip();
    convolution_spec spec = spec_of(&l, NULL, NULL);
    assert_int_equal(winograd_choose(&spec, kernel, 1), 3);
    assert_int_equal(winograd_choose(&spec, NULL, 1), -1);
    assert_int_equal(winograd_choose(&spec, kernel, 2), 3);
    assert_int_equal(winograd_choose(&spec, kernel, 16), -1);
    spec.in_channels = 1;
    assert_int_equal(winograd_choose(&spec, kernel, 1), -1);
    spec.in_channels = 33;
    assert_int_equal(winograd_choose(&spec, kernel, 1), -1);
    spec = spec_of(&l, NULL, NULL);
    spec.stride[1] = 2;
    assert_int_equal(winograd_choose(&spec, kernel, 1), -1);
    spec = spec_of(&l, NULL, NULL);
    spec.pad_begin[0] = 0;
    assert_int_equal(winograd_choose(&spec, kernel, 1), -1);
    spec = spec_of(&l, NULL, NULL);
    spec.dilation[2] = 2;
    assert_int_equal(winograd_choose(&spec, kernel, 1), -1);
    spec = spec_of(&l, NULL, NULL);
    spec.groups = 2;
    assert_int_equal(winograd_choose(&spec, kernel, 1), -1);
    for (int a = 0; a < 3; a++)
        l.dim[a] = 1;
    l.in_channels = l.out_channels = 256;
    spec = spec_of(&l, NULL, NULL);
    assert_int_equal(winograd_choose(&spec, kernel, 1), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),           cmocka_unit_test(test_channels),
        cmocka_unit_test(test_views),           cmocka_unit_test(test_types),
        cmocka_unit_test(test_post_operations), cmocka_unit_test(test_planes_one_by_one),
        cmocka_unit_test(test_adds_in_place),   cmocka_unit_test(test_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
