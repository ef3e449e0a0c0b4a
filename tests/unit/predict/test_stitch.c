/* SPDX-License-Identifier: Apache-2.0 */
/* Windows back into a volume: exactness, the same bytes from any number of threads, stopping. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "compare.h"
#include "grids.h"
#include "predict/stitch.h"

static const intensity_transform identity = {0};

static float value_at(size_t i)
{
    return (float)((uint32_t)i * 2654435761u >> 8) / 16777216.0f + 0.5f;
}

/* What an identity network gives for window w: the volume's voxels, rubbish on the padding. */
static void fill_output(const tiling *t, const float *volume, size_t w, float *output)
{
    size_t s[3];
    tiling_window(t, w, s);
    for (size_t i = 0; i < t->tile[0] * t->tile[1] * t->tile[2]; i++) {
        size_t x = s[0] + i % t->tile[0] - t->pad_before[0];
        size_t y = s[1] + i / t->tile[0] % t->tile[1] - t->pad_before[1];
        size_t z = s[2] + i / t->tile[0] / t->tile[1] - t->pad_before[2];
        bool inside = x < t->volume[0] && y < t->volume[1] && z < t->volume[2];
        output[i] = inside ? volume[x + t->volume[0] * (y + t->volume[1] * z)] : NAN;
    }
}

/* ---- Many threads --------------------------------------------------------------------------- */

typedef struct crew {
    const tiling *tiling;
    const float *volume;
    stitch *stitch;
    size_t skip_every; /* 0: none */
    bool noisy;        /* outputs that differ between windows */
    atomic_size_t next;
} crew;

static void *hand_in(void *argument)
{
    crew *c = argument;
    size_t w, voxels = c->tiling->tile[0] * c->tiling->tile[1] * c->tiling->tile[2];
    float *output = malloc(voxels * sizeof *output);
    bool going = true;
    while (going && (w = atomic_fetch_add(&c->next, 1)) < c->tiling->count) {
        if (c->skip_every && w % c->skip_every == 0) {
            going = stitch_skip(c->stitch, w);
            continue;
        }
        fill_output(c->tiling, c->volume, w, output);
        for (size_t i = 0; c->noisy && i < voxels; i++)
            output[i] *= value_at(i + w * voxels);
        if (w % 3 == 0) /* some finish late, so that others must wait for their turn */
            nanosleep(&(struct timespec){0, 200000}, NULL);
        going = stitch_add(c->stitch, w, output);
    }
    free(output);
    return NULL;
}

/* Stitches with so many threads and slots; `sum` is the result. */
static void run_crew(crew *c, strided sum, unsigned threads, size_t slots)
{
    pthread_t ids[8];
    size_t done;
    assert_int_equal(stitch_create(c->tiling, sum, slots, &c->stitch, NULL), DM_OK);
    c->next = 0;
    for (unsigned i = 0; i < threads; i++)
        assert_int_equal(pthread_create(&ids[i], NULL, hand_in, c), 0);
    while (!stitch_wait(c->stitch, 0.01, &done))
        assert_true(done < c->tiling->count);
    assert_int_equal(done, c->tiling->count);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    stitch_free(c->stitch);
}

static void test_identity(void **state)
{
    (void)state;
    static const size_t cases[][6] = {{1, 1, 1, 1, 1, 1},    {1, 1, 1, 8, 8, 8},
                                      {17, 13, 5, 8, 4, 7},  {8, 9, 10, 8, 8, 8},
                                      {11, 3, 29, 4, 6, 16}, {31, 37, 23, 16, 16, 16}};
    static const double overlaps[] = {0, 0.25, 0.5, 0.75};
    for (size_t n_case = 0; n_case < sizeof cases / sizeof *cases; n_case++) {
        const size_t *dim = cases[n_case];
        size_t n = dim[0] * dim[1] * dim[2], bad[3];
        float *volume = malloc(n * sizeof *volume), *sum = malloc(n * sizeof *sum);
        for (size_t i = 0; i < n; i++)
            volume[i] = value_at(i);
        for (size_t o = 0; o < 8; o++) {
            tiling t;
            assert_int_equal(tiling_make(dim, dim + 3, overlaps[o / 2],
                                         o % 2 ? DM_BLEND_GAUSSIAN : DM_BLEND_CONSTANT, &t, NULL),
                             DM_OK);
            crew c = {.tiling = &t, .volume = volume};
            memset(sum, 0, n * sizeof *sum);
            run_crew(&c, strided_dense(dim, sum), 2, 2);
            assert_int_equal(stitch_finish(&t, strided_dense(dim, sum), &identity, 1, 2, bad, NULL),
                             DM_OK);
            /* At 75 % up to 125 windows overlap; each addition may round by 6e-8, in sum and in
             * total importance. 2.5e-6 was seen. */
            double tolerance = overlaps[o / 2] > 0.5 ? 5e-6 : 1e-6;
            assert_true(arrays_close(sum, n, volume, n, 0, tolerance));
            tiling_clear(&t);
        }
        free(volume);
        free(sum);
    }
}

static void test_same_bytes(void **state)
{
    (void)state;
    const size_t dim[3] = {37, 21, 30}, tile[3] = {16, 8, 16}, n = 37 * 21 * 30;
    float *volume = malloc(n * sizeof *volume), *sum = malloc(n * sizeof *sum);
    float *first = malloc(n * sizeof *first);
    for (size_t i = 0; i < n; i++)
        volume[i] = value_at(i);
    tiling t;
    assert_int_equal(tiling_make(dim, tile, 0.5, DM_BLEND_GAUSSIAN, &t, NULL), DM_OK);
    for (size_t skip_every = 0; skip_every < 6; skip_every += 5) {
        for (unsigned threads = 1; threads <= 8; threads++) {
            size_t bad[3];
            crew c = {.tiling = &t, .volume = volume, .skip_every = skip_every, .noisy = true};
            memset(sum, 0, n * sizeof *sum);
            run_crew(&c, strided_dense(dim, sum), threads, threads % 4);
            assert_int_equal(
                stitch_finish(&t, strided_dense(dim, sum), &identity, 3, threads, bad, NULL),
                DM_OK);
            if (threads == 1)
                memcpy(first, sum, n * sizeof *sum);
            assert_memory_equal(sum, first, n * sizeof *sum);
        }
    }
    tiling_clear(&t);
    free(volume);
    free(sum);
    free(first);
}

/* Straight into volumes stored in any of the 48 ways. */
static void test_permuted_sum(void **state)
{
    (void)state;
    const size_t dim[3] = {13, 21, 18}, tile[3] = {8, 8, 8}, n = 13 * 21 * 18;
    float volume[13 * 21 * 18], expected[13 * 21 * 18], sum[13 * 21 * 18];
    for (size_t i = 0; i < n; i++)
        volume[i] = value_at(i);
    tiling t;
    assert_int_equal(tiling_make(dim, tile, 0.5, DM_BLEND_GAUSSIAN, &t, NULL), DM_OK);
    for (int o = 0; o < ORIENTATIONS; o++) {
        dm_grid grid = oriented_grid(o, dim, (const double[]){1, 2, 3});
        grid_map map;
        size_t bad[3];
        assert_int_equal(grid_map_make(&grid, "RAS", NULL, &map, NULL), DM_OK);
        crew c = {.tiling = &t, .volume = volume};
        memset(sum, 0, sizeof sum);
        strided view = strided_exact(&grid, &map, sum);
        run_crew(&c, view, 1, 0);
        assert_int_equal(stitch_finish(&t, view, &identity, 1, 2, bad, NULL), DM_OK);
        store_oriented(o, dim, volume, expected);
        assert_true(arrays_close(sum, n, expected, n, 0, 1e-6));
    }
    tiling_clear(&t);
}

/* ---- Single windows ------------------------------------------------------------------------- */

/* Two windows of 4 over a row of 6: a skipped one counts as zero with its full weight. */
static void test_skipped_counts_as_zero(void **state)
{
    (void)state;
    const size_t dim[3] = {6, 1, 1}, tile[3] = {4, 1, 1};
    const float ones[4] = {1, 1, 1, 1}, expected[6] = {0, 0, 0.5f, 0.5f, 1, 1};
    float sum[6] = {0};
    size_t bad[3];
    stitch *st;
    tiling t;
    assert_int_equal(tiling_make(dim, tile, 0.5, DM_BLEND_CONSTANT, &t, NULL), DM_OK);
    assert_int_equal(t.count, 2);
    assert_int_equal(stitch_create(&t, strided_dense(dim, sum), 3, &st, NULL), DM_OK);
    assert_true(stitch_skip(st, 0));
    assert_true(stitch_add(st, 1, ones));
    stitch_free(st);
    assert_int_equal(stitch_finish(&t, strided_dense(dim, sum), &identity, 1, 1, bad, NULL), DM_OK);
    assert_true(arrays_close(sum, 6, expected, 6, 0, 1e-6));
    tiling_clear(&t);
}

static void test_finish_transforms_and_scales(void **state)
{
    (void)state;
    const intensity_transform t_out = {2, {{INTENSITY_SCALE, 2, 1}, {INTENSITY_SQRT, 0, 0}}};
    const size_t dim[3] = {4, 1, 1};
    float sum[4] = {0, 4, 12, -0.5f}, expected[4] = {7.4f, 7.4f * 3, 7.4f * 5, 0};
    size_t bad[3] = {9, 9, 9};
    tiling t;
    assert_int_equal(tiling_make(dim, dim, 0, DM_BLEND_CONSTANT, &t, NULL), DM_OK);
    assert_int_equal(stitch_finish(&t, strided_dense(dim, sum), &t_out, 7.4f, 1, bad, NULL), DM_OK);
    assert_true(arrays_close(sum, 4, expected, 4, 0, 1e-6));

    const size_t expected_bad[3] = {2, 0, 0};
    float negative[4] = {1, 1, -3, -4};
    assert_int_equal(stitch_finish(&t, strided_dense(dim, negative), &t_out, 1, 1, bad, NULL),
                     DM_ERROR_VALUE);
    assert_memory_equal(bad, expected_bad, sizeof bad);
    tiling_clear(&t);
}

static void test_not_finite(void **state)
{
    (void)state;
    static const float bad_values[] = {NAN, INFINITY, -INFINITY};
    const size_t dim[3] = {10, 5, 5}, tile[3] = {8, 8, 8};
    const size_t expected[3] = {2 + 3, 1, 2}; /* window 1 starts at 2 */
    tiling t;
    assert_int_equal(tiling_make(dim, tile, 0, DM_BLEND_CONSTANT, &t, NULL), DM_OK);
    for (size_t i = 0; i < 3; i++) {
        float sum[250] = {0}, output[512] = {0};
        size_t bad[3], done;
        stitch *st;
        output[0] = NAN; /* on the padding: nobody minds */
        assert_int_equal(stitch_create(&t, strided_dense(dim, sum), 1, &st, NULL), DM_OK);
        assert_true(stitch_add(st, 0, output));
        assert_false(stitch_not_finite(st, bad));
        output[3 + 8 * (1 + 1 + 8 * (1 + 2))] = bad_values[i];
        assert_false(stitch_add(st, 1, output));
        assert_true(stitch_not_finite(st, bad));
        assert_memory_equal(bad, expected, sizeof bad);
        assert_true(stitch_wait(st, 10, &done));
        assert_int_equal(done, 1);
        stitch_free(st);
    }
    tiling_clear(&t);
}

static void *add_late_window(void *argument)
{
    const float output[4] = {0};
    bool *going = malloc(sizeof *going);
    *going = stitch_add(argument, 2, output);
    return going;
}

static void test_stop_wakes(void **state)
{
    (void)state;
    const size_t dim[3] = {12, 1, 1}, tile[3] = {4, 1, 1};
    float sum[12] = {0};
    pthread_t thread;
    void *going;
    size_t done;
    stitch *st;
    tiling t;
    assert_int_equal(tiling_make(dim, tile, 0, DM_BLEND_CONSTANT, &t, NULL), DM_OK);
    assert_int_equal(stitch_create(&t, strided_dense(dim, sum), 0, &st, NULL), DM_OK);
    assert_int_equal(pthread_create(&thread, NULL, add_late_window, st), 0);
    assert_false(stitch_wait(st, 0.02, &done)); /* nothing comes in */
    assert_int_equal(done, 0);
    stitch_stop(st);
    assert_int_equal(pthread_join(thread, &going), 0);
    assert_false(*(bool *)going);
    assert_true(stitch_wait(st, 10, &done));
    assert_false(stitch_skip(st, 0));
    free(going);
    stitch_free(st);
    tiling_clear(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_identity),
                                       cmocka_unit_test(test_same_bytes),
                                       cmocka_unit_test(test_permuted_sum),
                                       cmocka_unit_test(test_skipped_counts_as_zero),
                                       cmocka_unit_test(test_finish_transforms_and_scales),
                                       cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_stop_wakes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
