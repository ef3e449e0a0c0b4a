/* SPDX-License-Identifier: Apache-2.0 */
/* Several images as the channels of one window, against the definition. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "compare.h"
#include "grids.h"
#include "predict/gather.h"
#include "predict/intensity.h"
#include "resampling_reference.h"

static const size_t ras[3] = {11, 6, 9}, tile[3] = {8, 4, 8};
static const double ras_mm[3] = {2, 3, 4};
static const intensity_transform transforms[3] = {
    {1, {{INTENSITY_SCALE, 0.25f, 1}}},
    {2, {{INTENSITY_CLIP, 2, 12}, {INTENSITY_SQRT, 0, 0}}},
    {0, {{INTENSITY_CLIP, 0, 0}}}};
static const float factors[3] = {1.5f, 1, 0.5f};

typedef struct bench {
    dm_volume volumes[3];
    grid_map map;
    tiling tiling;
    predict_job job;
    gather gather;
    float *scratch;
    void *input;
    size_t floats; /* of the input */
} bench;

/* voxel_mm: NULL for the stored grid. */
static void bench_open(bench *b, int orientation, const double *voxel_mm, size_t channels,
                       size_t pet_channel, element_type type)
{
    const dm_grid grid = oriented_grid(orientation, ras, ras_mm);
    memset(b, 0, sizeof *b);
    assert_int_equal(grid_map_make(&grid, "RAS", voxel_mm, &b->map, NULL), DM_OK);
    assert_int_equal(tiling_make(b->map.dim, tile, 0.25, DM_BLEND_CONSTANT, &b->tiling, NULL),
                     DM_OK);
    b->job = (predict_job){.pet = &b->volumes[pet_channel],
                           .n_channels = channels,
                           .pet_channel = pet_channel,
                           .map = &b->map,
                           .tiling = &b->tiling,
                           .output_intensity = &transforms[2],
                           .skip_air = -INFINITY};
    for (unsigned c = 0; c < channels; c++) {
        b->volumes[c] = (dm_volume){.grid = grid, .data = random_values(11 * 6 * 9, 3 + c)};
        b->job.channels[c] = (predict_channel){&b->volumes[c], factors[c], &transforms[c]};
    }
    assert_int_equal(gather_make(&b->job, type, &b->gather, NULL), DM_OK);
    b->floats = tile[0] * tile[1] * tile[2] * channels;
    b->scratch = malloc(b->gather.scratch * sizeof *b->scratch);
    b->input = malloc(b->floats * element_size(type));
}

static gather_result bench_window(bench *b, size_t w, size_t *channel, size_t bad[3])
{
    memset(b->scratch, 0xff, b->gather.scratch * sizeof *b->scratch);
    memset(b->input, 0xff, b->floats * element_size(b->gather.type));
    return gather_window(&b->gather, w, b->scratch, b->input, channel, bad);
}

static void bench_close(bench *b)
{
    gather_clear(&b->gather);
    tiling_clear(&b->tiling);
    for (int c = 0; c < 3; c++)
        free(b->volumes[c].data);
    free(b->scratch);
    free(b->input);
}

static float as_float(const bench *b, size_t element)
{
    if (b->gather.type == ELEMENT_F32)
        return ((const float *)b->input)[element];
    uint32_t bits = (uint32_t)((const uint16_t *)b->input)[element] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Element (z, y, x, c) of window w is image c there, times its factor, through its transform. */
static void check_window(bench *b, size_t w, float *const models[3])
{
    const tiling *t = &b->tiling;
    const size_t n = b->job.n_channels;
    const double tolerance = b->gather.type == ELEMENT_F32 ? 2e-5 : 1.0 / 256;
    size_t start[3], bad[3], channel;
    tiling_window(t, w, start);
    assert_int_equal(bench_window(b, w, &channel, bad), GATHER_FILLED);
    for (size_t i = 0; i < b->floats; i++) {
        const size_t c = i % n, v = i / n;
        const size_t x = start[0] + v % tile[0] - t->pad_before[0];
        const size_t y = start[1] + v / tile[0] % tile[1] - t->pad_before[1];
        const size_t z = start[2] + v / tile[0] / tile[1] - t->pad_before[2];
        float expected = 0, got = as_float(b, i);
        if (x < t->volume[0] && y < t->volume[1] && z < t->volume[2]) {
            expected = models[c][x + t->volume[0] * (y + t->volume[1] * z)] * factors[c];
            intensity_apply(&transforms[c], &expected, 1);
        }
        if (!arrays_close(&got, 1, &expected, 1, tolerance, tolerance))
            fail_msg("window %zu, voxel %zu, channel %zu", w, v, c);
    }
}

static void test_channels(void **state)
{
    (void)state;
    static const double voxels[3] = {3.1, 3, 2.2};
    for (size_t channels = 2; channels <= 3; channels++)
        for (size_t pet = 0; pet < channels; pet++)
            for (int o = 0; o < ORIENTATIONS; o += 11)
                for (int how = 0; how < 4; how++) {
                    bench b;
                    float *models[3] = {NULL};
                    bench_open(&b, o, how % 2 ? voxels : NULL, channels, pet,
                               how / 2 ? ELEMENT_BF16 : ELEMENT_F32);
                    assert_int_equal(b.map.exact, how % 2 == 0);
                    for (size_t c = 0; c < channels; c++)
                        models[c] = reference_model(b.volumes[c].data, &b.volumes[c].grid, &b.map);
                    for (size_t w = 0; w < b.tiling.count; w++)
                        check_window(&b, w, models);
                    for (size_t c = 0; c < channels; c++)
                        free(models[c]);
                    bench_close(&b);
                }
}

/* Air is the PET's: a window is left out for what the PET is there, whatever the others are. */
static void test_air(void **state)
{
    (void)state;
    for (size_t pet = 0; pet < 2; pet++) {
        bench b;
        size_t channel, bad[3];
        bench_open(&b, 0, NULL, 2, pet, ELEMENT_F32);
        for (size_t i = 0; i < 11 * 6 * 9; i++) {
            b.volumes[pet].data[i] = 1;
            b.volumes[1 - pet].data[i] = 4;
        }
        b.job.skip_air = 1.01f * factors[pet];
        for (size_t w = 0; w < b.tiling.count; w++)
            assert_int_equal(bench_window(&b, w, &channel, bad), GATHER_AIR);
        b.job.skip_air = 0.99f * factors[pet];
        for (size_t w = 0; w < b.tiling.count; w++)
            assert_int_equal(bench_window(&b, w, &channel, bad), GATHER_FILLED);
        bench_close(&b);
    }
}

/* The lowest channel with a fault is named, and the first voxel of it. */
static void test_not_finite(void **state)
{
    (void)state;
    for (size_t pet = 0; pet < 3; pet++)
        for (size_t fault = 0; fault < 3; fault++) {
            bench b;
            size_t channel = 99, bad[3];
            bench_open(&b, 0, NULL, 3, pet, ELEMENT_F32);
            const size_t at[2] = {3 + 11 * (2 + 6 * 4), 5 + 11 * (2 + 6 * 4)};
            for (size_t c = fault; c < 3; c++)
                b.volumes[c].data[at[(c + 1) % 2]] = NAN;
            b.volumes[fault].data[at[0]] = NAN;
            bool found = false;
            for (size_t w = 0; w < b.tiling.count && !found; w++)
                found = bench_window(&b, w, &channel, bad) == GATHER_NOT_FINITE;
            assert_true(found);
            assert_int_equal(channel, fault);
            assert_int_equal(bad[0], 3);
            assert_int_equal(bad[1], 2);
            assert_int_equal(bad[2], 4);
            b.job.nan_to_zero = true;
            for (size_t w = 0; w < b.tiling.count; w++)
                assert_int_equal(bench_window(&b, w, &channel, bad), GATHER_FILLED);
            bench_close(&b);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_channels), cmocka_unit_test(test_air),
                                       cmocka_unit_test(test_not_finite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
