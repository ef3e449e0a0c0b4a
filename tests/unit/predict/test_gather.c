/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of the PET as the network sees them: axes, resampling, scaling, padding, air. */
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
#include "grids.h"
#include "predict/gather.h"
#include "predict/intensity.h"
#include "resampling_reference.h"

static const intensity_transform identity = {0};

/* One gatherer with all that it borrows. */
typedef struct bench {
    dm_volume volume;
    grid_map map;
    tiling tiling;
    predict_job job;
    gather gather;
    float *scratch;
    void *input;
    size_t tile;
} bench;

static void bench_open(bench *b, const dm_grid *grid, float *data, const double *voxel_mm,
                       const size_t tile[3], double overlap, element_type type)
{
    memset(b, 0, sizeof *b);
    b->volume = (dm_volume){.grid = *grid, .data = data};
    assert_int_equal(grid_map_make(grid, "RAS", voxel_mm, &b->map, NULL), DM_OK);
    assert_int_equal(tiling_make(b->map.dim, tile, overlap, DM_BLEND_CONSTANT, &b->tiling, NULL),
                     DM_OK);
    b->job =
        (predict_job){.pet = &b->volume,
                      .n_channels = 1,
                      .channels = {{.volume = &b->volume, .factor = 1, .intensity = &identity}},
                      .map = &b->map,
                      .tiling = &b->tiling,
                      .output_intensity = &identity,
                      .skip_air = -INFINITY};
    assert_int_equal(gather_make(&b->job, type, &b->gather, NULL), DM_OK);
    b->tile = tile[0] * tile[1] * tile[2];
    b->scratch = malloc(b->gather.scratch * sizeof *b->scratch);
    b->input = malloc(b->tile * element_size(type));
}

static gather_result bench_window(bench *b, size_t w, size_t bad[3])
{
    memset(b->scratch, 0xff, b->gather.scratch * sizeof *b->scratch);
    memset(b->input, 0xff, b->tile * element_size(b->gather.type));
    size_t channel = 99;
    gather_result result = gather_window(&b->gather, w, b->scratch, b->input, &channel, bad);
    assert_true(channel == (result == GATHER_NOT_FINITE ? 0 : result == GATHER_AIR ? 99 : 1));
    return result;
}

static void bench_close(bench *b)
{
    gather_clear(&b->gather);
    tiling_clear(&b->tiling);
    free(b->scratch);
    free(b->input);
}

/* Checks every window against a volume on the model's grid, zeros around it. */
static void check_windows(bench *b, const float *model, double atol)
{
    const tiling *t = &b->tiling;
    float *expected = malloc(b->tile * sizeof *expected);
    for (size_t w = 0; w < t->count; w++) {
        size_t s[3], bad[3];
        tiling_window(t, w, s);
        for (size_t i = 0; i < b->tile; i++) {
            size_t x = s[0] + i % t->tile[0] - t->pad_before[0];
            size_t y = s[1] + i / t->tile[0] % t->tile[1] - t->pad_before[1];
            size_t z = s[2] + i / t->tile[0] / t->tile[1] - t->pad_before[2];
            bool inside = x < t->volume[0] && y < t->volume[1] && z < t->volume[2];
            expected[i] = inside ? model[x + t->volume[0] * (y + t->volume[1] * z)] : 0;
        }
        assert_int_equal(bench_window(b, w, bad), GATHER_FILLED);
        assert_true(arrays_close(b->input, b->tile, expected, b->tile, atol, 0));
    }
    free(expected);
}

/* ---- Numbers -------------------------------------------------------------------------------- */

static float bf16_value(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void test_bf16(void **state)
{
    (void)state;
    assert_int_equal(bf16_from_float(1.0f), 0x3f80);
    assert_int_equal(bf16_from_float(-0.0f), 0x8000);
    assert_int_equal(bf16_from_float(1.00390625f), 0x3f80); /* halfway: to the even one below */
    assert_int_equal(bf16_from_float(1.01171875f), 0x3f82); /* halfway: to the even one above */
    assert_int_equal(bf16_from_float(1.00390637f), 0x3f81);
    assert_int_equal(bf16_from_float(INFINITY), 0x7f80);
    assert_int_equal(bf16_from_float(3.4e38f), 0x7f80);
    assert_true(isnan(bf16_value(bf16_from_float(NAN))));
    float *values = random_values(1000, 3);
    for (size_t i = 0; i < 1000; i++) {
        float back = bf16_value(bf16_from_float(values[i]));
        assert_true(fabsf(back - values[i]) <= values[i] / 256);
    }
    free(values);
}

static void test_intensity(void **state)
{
    (void)state;
    const intensity_transform t = {6,
                                   {{INTENSITY_SCALE, 2, 1},
                                    {INTENSITY_CLIP, 0, 20},
                                    {INTENSITY_LOG1P, 0, 0},
                                    {INTENSITY_SQUARE, 0, 0},
                                    {INTENSITY_SQRT, 0, 0},
                                    {INTENSITY_EXPM1, 0, 0}}};
    float v[] = {-3, 0, 1, 9, 100, NAN};
    const float expected[] = {0, 1, 3, 19, 20};
    intensity_apply(&t, v, 6);
    assert_true(arrays_close(v, 5, expected, 5, 0, 1e-6));
    assert_true(isnan(v[5])); /* a clip must not turn it into a number */
}

/* ---- Axes ----------------------------------------------------------------------------------- */

static void test_all_orientations(void **state)
{
    (void)state;
    static const size_t sizes[][3] = {{5, 7, 11}, {1, 1, 1}, {33, 18, 40}, {1, 37, 2}};
    const size_t tile[3] = {16, 12, 8};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        const size_t *ras = sizes[s];
        size_t n = ras[0] * ras[1] * ras[2];
        float *model = random_values(n, 7), *stored = malloc(n * sizeof *stored);
        for (int o = 0; o < ORIENTATIONS; o++) {
            bench b;
            dm_grid grid = oriented_grid(o, ras, (const double[]){2, 3, 4});
            store_oriented(o, ras, model, stored);
            bench_open(&b, &grid, stored, NULL, tile, 0.5, ELEMENT_F32);
            assert_true(b.map.exact);
            check_windows(&b, model, 0);
            bench_close(&b);
        }
        free(model);
        free(stored);
    }
}

static void test_bf16_window(void **state)
{
    (void)state;
    const size_t dim[3] = {9, 5, 6}, tile[3] = {8, 8, 8};
    dm_grid grid = oriented_grid(0, dim, (const double[]){1, 1, 1});
    float *data = random_values(9 * 5 * 6, 1);
    size_t bad[3];
    bench b;
    bench_open(&b, &grid, data, NULL, tile, 0, ELEMENT_BF16);
    assert_int_equal(bench_window(&b, 1, bad), GATHER_FILLED);
    const uint16_t *input = b.input;
    for (size_t i = 0; i < b.tile; i++) {
        size_t x = 1 + i % 8, y = i / 8 % 8 - 1, z = i / 64 - 1;
        uint16_t expected = y < 5 && z < 6 ? bf16_from_float(data[x + 9 * (y + 5 * z)]) : 0;
        assert_int_equal(input[i], expected);
    }
    bench_close(&b);
    free(data);
}

/* ---- Resampling ----------------------------------------------------------------------------- */

static void test_resampled(void **state)
{
    (void)state;
    static const double voxels[][3] = {
        {1.3, 2.9, 4}, {4.1, 3, 2.6}, {6, 9, 12}, {200, 1, 3.3}, {2.8, 4.8, 5.8}};
    const size_t ras[3] = {13, 8, 11}, tile[3] = {8, 8, 8};
    float *data = random_values(13 * 8 * 11, 5);
    for (size_t v = 0; v < sizeof voxels / sizeof *voxels; v++) {
        for (int o = 0; o < ORIENTATIONS; o += 5) {
            bench b;
            dm_grid grid = oriented_grid(o, ras, (const double[]){2, 3, 4});
            bench_open(&b, &grid, data, voxels[v], tile, 0.25, ELEMENT_F32);
            assert_false(b.map.exact);
            float *model = reference_model(data, &grid, &b.map);
            check_windows(&b, model, 16 * 1e-6);
            free(model);
            bench_close(&b);
        }
    }
    free(data);
}

/* A ramp comes out as the ramp at the model's voxel centres, away from the edges. */
static void test_ramp(void **state)
{
    (void)state;
    static const double spacing[] = {0.7, 1.2, 1.4, 1.6, 2, 3.7};
    const size_t dim[3] = {60, 3, 3}, tile[3] = {256, 8, 8};
    float data[60 * 9];
    for (size_t i = 0; i < 60 * 9; i++)
        data[i] = (float)(i % 60);
    dm_grid grid = oriented_grid(0, dim, (const double[]){1, 1, 1});
    for (size_t s = 0; s < sizeof spacing / sizeof *spacing; s++) {
        bench b;
        size_t bad[3];
        bench_open(&b, &grid, data, (const double[]){spacing[s], 1, 1}, tile, 0, ELEMENT_F32);
        assert_int_equal(bench_window(&b, 0, bad), GATHER_FILLED);
        const float *row = (float *)b.input + b.tiling.pad_before[0] +
                           256 * (b.tiling.pad_before[1] + 8 * b.tiling.pad_before[2]);
        size_t checked = 0;
        for (size_t x = 0; x < b.map.dim[0]; x++) {
            float position = (float)(b.map.axis[0].scale * (double)x + b.map.axis[0].offset);
            if (position < 3 || position > 56)
                continue;
            assert_true(arrays_close(&row[x], 1, &position, 1, 2e-5, 0));
            checked++;
        }
        assert_true(checked >= 10);
        bench_close(&b);
    }
}

static void test_tables(void **state)
{
    (void)state;
    static const struct {
        size_t n_target, n_source;
        double scale, offset;
    } cases[] = {{5, 1, 0.3, -0.2},      {1, 1000, 1e6, 499.5}, {7, 7, -1, 6},
                 {40, 10, 0.25, -0.375}, {4, 10, 2.5, 0.75},    {3, 4, -1.4, 3.1}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        axis_table t;
        assert_int_equal(axis_table_make(cases[c].n_target, cases[c].n_source, cases[c].scale,
                                         cases[c].offset, &t, NULL),
                         DM_OK);
        for (size_t i = 0; i < t.n; i++) {
            double sum = 0;
            for (size_t k = 0; k < t.count[i]; k++)
                sum += (double)t.weight[t.offset[i] + k];
            assert_true(fabs(sum - 1) < 1e-5);
            assert_true(t.count[i] >= 1 && t.first[i] + t.count[i] <= cases[c].n_source);
            if (cases[c].scale == -1) { /* a flip copies single voxels */
                assert_int_equal(t.count[i], 1);
                assert_int_equal(t.first[i], 6 - i);
            }
        }
        axis_table_clear(&t);
    }
}

/* ---- Values --------------------------------------------------------------------------------- */

static void test_factor_then_intensity_then_padding(void **state)
{
    (void)state;
    const intensity_transform t = {2, {{INTENSITY_CLIP, 0, 5}, {INTENSITY_SCALE, 0.5f, 7}}};
    const size_t dim[3] = {3, 2, 1}, tile[3] = {4, 4, 4};
    float data[] = {0, 1, 2, 3, 4, -5};
    const float inside[] = {7, 8, 9, 9.5f, 9.5f, 7};
    float expected[64] = {0};
    for (size_t i = 0; i < 6; i++)
        expected[i % 3 + 4 * (1 + i / 3 + 4)] = inside[i];
    dm_grid grid = oriented_grid(0, dim, (const double[]){1, 1, 1});
    size_t bad[3];
    bench b;
    bench_open(&b, &grid, data, NULL, tile, 0, ELEMENT_F32);
    b.job.channels[0].factor = 2;
    b.job.channels[0].intensity = &t;
    assert_int_equal(bench_window(&b, 0, bad), GATHER_FILLED);
    assert_true(arrays_close(b.input, 64, expected, 64, 0, 1e-6));
    bench_close(&b);
}

static void test_air(void **state)
{
    (void)state;
    const size_t dim[3] = {16, 8, 8}, tile[3] = {8, 8, 8};
    float data[16 * 64];
    for (size_t i = 0; i < 16 * 64; i++)
        data[i] = i % 16 < 8 ? 0.1f : 0.5f;
    dm_grid grid = oriented_grid(0, dim, (const double[]){1, 1, 1});
    for (int resampled = 0; resampled < 2; resampled++) {
        size_t bad[3];
        bench b;
        bench_open(&b, &grid, data, resampled ? (const double[]){1, 1, 0.5} : NULL, tile, 0,
                   ELEMENT_F32);
        b.job.channels[0].factor = 2; /* the threshold is in the input quantity: 0.2 and 1.0 */
        b.job.skip_air = 0.25f;
        assert_int_equal(bench_window(&b, 0, bad), GATHER_AIR);
        assert_int_equal(bench_window(&b, 1, bad), GATHER_FILLED);
        b.job.skip_air = 1.1f;
        assert_int_equal(bench_window(&b, 1, bad), GATHER_AIR);
        b.job.skip_air = 1; /* not below it */
        assert_int_equal(bench_window(&b, 1, bad), GATHER_FILLED);
        bench_close(&b);
    }
}

static void test_not_finite(void **state)
{
    (void)state;
    const intensity_transform root = {1, {{INTENSITY_SQRT, 0, 0}}};
    const size_t ras[3] = {6, 5, 4}, tile[3] = {8, 8, 8};
    for (int o = 0; o < ORIENTATIONS; o += 7) {
        dm_grid grid = oriented_grid(o, ras, (const double[]){1, 1, 1});
        float data[120];
        for (size_t i = 0; i < 120; i++)
            data[i] = 1;
        const size_t at = 77, d0 = grid.dim[0], d1 = grid.dim[1];
        const size_t ijk[3] = {at % d0, at / d0 % d1, at / d0 / d1};
        size_t bad[3] = {99, 99, 99};
        bench b;
        bench_open(&b, &grid, data, NULL, tile, 0, ELEMENT_F32);
        b.job.channels[0].intensity = &root;
        data[at] = -4;
        assert_int_equal(bench_window(&b, 0, bad), GATHER_NOT_FINITE);
        assert_memory_equal(bad, ijk, sizeof bad);
        data[at] = NAN;
        b.job.nan_to_zero = true;
        assert_int_equal(bench_window(&b, 0, bad), GATHER_FILLED);
        data[at] = INFINITY;
        assert_int_equal(bench_window(&b, 0, bad), GATHER_FILLED);
        float sum = 0;
        for (size_t i = 0; i < 512; i++)
            sum += ((float *)b.input)[i];
        assert_true(sum == 119);
        data[at] = 3e38f; /* finite, but not times the factor: not hidden by nan_to_zero */
        b.job.channels[0].factor = 10;
        assert_int_equal(bench_window(&b, 0, bad), GATHER_NOT_FINITE);
        bench_close(&b);
    }
}

static void test_nan_to_zero_resampled(void **state)
{
    (void)state;
    const size_t dim[3] = {8, 8, 8}, tile[3] = {16, 16, 16};
    float data[512], zeroed[512];
    for (size_t i = 0; i < 512; i++)
        zeroed[i] = data[i] = (float)(i % 13);
    data[100] = NAN;
    data[101] = -INFINITY;
    zeroed[100] = zeroed[101] = 0;
    dm_grid grid = oriented_grid(0, dim, (const double[]){1, 1, 1});
    bench b;
    bench_open(&b, &grid, data, (const double[]){0.6, 0.6, 0.6}, tile, 0, ELEMENT_F32);
    b.job.nan_to_zero = true;
    float *model = reference_model(zeroed, &grid, &b.map);
    check_windows(&b, model, 1e-5);
    free(model);
    bench_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_intensity),
                                       cmocka_unit_test(test_all_orientations),
                                       cmocka_unit_test(test_bf16_window),
                                       cmocka_unit_test(test_resampled),
                                       cmocka_unit_test(test_ramp),
                                       cmocka_unit_test(test_tables),
                                       cmocka_unit_test(test_factor_then_intensity_then_padding),
                                       cmocka_unit_test(test_air),
                                       cmocka_unit_test(test_not_finite),
                                       cmocka_unit_test(test_nan_to_zero_resampled)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
