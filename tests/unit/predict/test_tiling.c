/* SPDX-License-Identifier: Apache-2.0 */
/* Window positions and weights, against MONAI's (tests/golden/monai_tiling.txt). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "compare.h"
#include "predict/tiling.h"

static void check_starts(FILE *file)
{
    size_t volume, tile, n, expected;
    double overlap;
    assert_int_equal(fscanf(file, "%zu %zu %lf %zu", &volume, &tile, &overlap, &n), 4);
    /* The axis under test is each of the three in turn: they must not be mixed up. */
    size_t starts[512];
    assert_true(n <= 512);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(fscanf(file, "%zu", &expected), 1);
        starts[i] = expected;
    }
    for (int axis = 0; axis < 3; axis++) {
        size_t volumes[3] = {3, 3, 3}, tiles[3] = {3, 3, 3};
        tiling t;
        volumes[axis] = volume;
        tiles[axis] = tile;
        assert_int_equal(tiling_make(volumes, tiles, overlap, DM_BLEND_CONSTANT, &t, NULL), DM_OK);
        assert_int_equal(t.n[axis], n);
        assert_int_equal(t.count, n);
        assert_int_equal(t.pad_before[axis], volume < tile ? (tile - volume) / 2 : 0);
        for (size_t i = 0; i < n; i++) {
            size_t start[3], other[3] = {0, 0, 0};
            other[axis] = starts[i];
            tiling_window(&t, i, start);
            assert_memory_equal(start, other, sizeof start);
        }
        tiling_clear(&t);
    }
}

static void check_weight(FILE *file)
{
    size_t tile[3], at[3];
    float expected;
    assert_int_equal(fscanf(file, "%zu %zu %zu %zu %zu %zu %f", &tile[0], &tile[1], &tile[2],
                            &at[0], &at[1], &at[2], &expected),
                     7);
    tiling t;
    assert_int_equal(tiling_make(tile, tile, 0.5, DM_BLEND_GAUSSIAN, &t, NULL), DM_OK);
    float found = t.importance[at[0] + tile[0] * (at[1] + tile[1] * at[2])];
    tiling_clear(&t);
    assert_true(arrays_close(&found, 1, &expected, 1, 0, 1e-6));
}

static void test_monai(void **state)
{
    (void)state;
    char kind[16];
    size_t n_starts = 0, n_weights = 0;
    FILE *file = fopen(TEST_GOLDEN_DIR "/monai_tiling.txt", "r");
    assert_non_null(file);
    while (fscanf(file, "%15s", kind) == 1) {
        if (strcmp(kind, "starts") == 0) {
            check_starts(file);
            n_starts++;
        } else {
            assert_string_equal(kind, "weight");
            check_weight(file);
            n_weights++;
        }
    }
    fclose(file);
    assert_int_equal(n_starts, 12 * 4 * 8);
    assert_int_equal(n_weights, 5 * 43);
}

static void test_windows_count_x_first(void **state)
{
    (void)state;
    tiling t;
    const size_t volume[3] = {40, 70, 33}, tile[3] = {32, 32, 32};
    assert_int_equal(tiling_make(volume, tile, 0.5, DM_BLEND_CONSTANT, &t, NULL), DM_OK);
    const size_t n[3] = {2, 4, 2};
    assert_memory_equal(t.n, n, sizeof n);
    size_t start[3];
    tiling_window(&t, 1 + 2 * (3 + 4 * 1), start);
    const size_t last[3] = {8, 38, 1};
    assert_memory_equal(start, last, sizeof last);
    tiling_clear(&t);
}

static void test_inside(void **state)
{
    (void)state;
    tiling t;
    const size_t volume[3] = {5, 40, 32}, tile[3] = {16, 16, 32};
    assert_int_equal(tiling_make(volume, tile, 0, DM_BLEND_CONSTANT, &t, NULL), DM_OK);
    size_t start[3], size[3], at[3];
    tiling_inside(&t, t.count - 1, start, size, at);
    const size_t starts[3] = {0, 24, 0}, sizes[3] = {5, 16, 32}, ats[3] = {5, 0, 0};
    assert_memory_equal(start, starts, sizeof start);
    assert_memory_equal(size, sizes, sizeof size);
    assert_memory_equal(at, ats, sizeof at);
    tiling_clear(&t);
}

/* Sum of the importance by brute force over all windows. */
static void brute_total(const tiling *t, float *total)
{
    memset(total, 0, t->volume[0] * t->volume[1] * t->volume[2] * sizeof *total);
    for (size_t w = 0; w < t->count; w++) {
        size_t s[3];
        tiling_window(t, w, s);
        for (size_t i = 0; i < t->tile[0] * t->tile[1] * t->tile[2]; i++) {
            size_t x = s[0] + i % t->tile[0] - t->pad_before[0];
            size_t y = s[1] + i / t->tile[0] % t->tile[1] - t->pad_before[1];
            size_t z = s[2] + i / t->tile[0] / t->tile[1] - t->pad_before[2];
            if (x < t->volume[0] && y < t->volume[1] && z < t->volume[2])
                total[x + t->volume[0] * (y + t->volume[1] * z)] += t->importance[i];
        }
    }
}

static void test_total(void **state)
{
    (void)state;
    static const size_t cases[][6] = {{1, 1, 1, 1, 1, 1},
                                      {1, 1, 1, 8, 8, 8},
                                      {17, 13, 5, 8, 4, 7},
                                      {8, 9, 10, 8, 8, 8},
                                      {11, 3, 29, 4, 6, 16}};
    static const double overlaps[] = {0, 0.25, 0.5, 0.9};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (size_t o = 0; o < 8; o++) {
            tiling t;
            assert_int_equal(tiling_make(cases[c], cases[c] + 3, overlaps[o / 2],
                                         o % 2 ? DM_BLEND_GAUSSIAN : DM_BLEND_CONSTANT, &t, NULL),
                             DM_OK);
            size_t n = t.volume[0] * t.volume[1] * t.volume[2];
            float *expected = malloc(n * sizeof *expected), *row = malloc(n * sizeof *row);
            brute_total(&t, expected);
            memset(row, 0xff, n * sizeof *row);
            for (size_t i = 0; i < t.volume[1] * t.volume[2]; i++)
                tiling_total_row(&t, i % t.volume[1], i / t.volume[1], row + i * t.volume[0]);
            assert_true(arrays_close(row, n, expected, n, 0, 1e-6));
            free(expected);
            free(row);
            tiling_clear(&t);
        }
    }
}

static void expect_refused(const size_t volume[3], const size_t tile[3], double overlap,
                           dm_status status, const char *word)
{
    tiling t;
    dm_error err = {0};
    assert_int_equal(tiling_make(volume, tile, overlap, DM_BLEND_GAUSSIAN, &t, &err), status);
    assert_int_equal(err.status, status);
    assert_non_null(strstr(err.what, word));
    assert_true(err.remedy[0]);
    assert_null(t.importance);
    assert_null(t.start[0]);
}

static void test_refused(void **state)
{
    (void)state;
    const size_t volume[3] = {8, 8, 8}, tile[3] = {4, 4, 4}, none[3] = {4, 0, 4};
    const size_t huge[3] = {SIZE_MAX / 2, SIZE_MAX / 4, 8};
    expect_refused(volume, tile, 0.91, DM_ERROR_VALUE, "0.91");
    expect_refused(volume, tile, -0.1, DM_ERROR_VALUE, "-0.1");
    expect_refused(volume, tile, NAN, DM_ERROR_VALUE, "nan");
    expect_refused(volume, none, 0, DM_ERROR_VALUE, "0 voxels");
    expect_refused(none, tile, 0, DM_ERROR_VALUE, "volume of 0");
    expect_refused(volume, huge, 0, DM_ERROR_MEMORY, "bytes");
    expect_refused(huge, tile, 0, DM_ERROR_MEMORY, "bytes");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_monai),
                                       cmocka_unit_test(test_windows_count_x_first),
                                       cmocka_unit_test(test_inside), cmocka_unit_test(test_total),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
