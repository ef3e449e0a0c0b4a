/* SPDX-License-Identifier: Apache-2.0 */
/* How devices share a volume: every plane belongs to one of them, which runs all windows over it, and
 * no other cut asks less of the one that has most. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "predict/cuda/cuda_shares.h"

#define DEVICES 5

static tiling tiling_of(size_t planes, size_t tile, double overlap)
{
    tiling t;
    dm_error err = {0};
    const size_t volume[3] = {8, 8, planes}, window[3] = {8, 8, tile};
    assert_int_equal(tiling_make(volume, window, overlap, DM_BLEND_CONSTANT, &t, &err), DM_OK);
    return t;
}

/* Rows over planes [first, end), counted one by one. */
static size_t rows_over(const tiling *t, size_t first, size_t end, size_t *lowest)
{
    size_t n = 0;
    for (size_t row = t->n[2]; row-- > 0;) {
        size_t start = t->start[2][row], before = t->pad_before[2];
        bool over = false;
        for (size_t z = start; z < start + t->tile[2]; z++)
            over |= z >= before && z - before >= first && z - before < end;
        n += over;
        *lowest = over ? row : *lowest;
    }
    return n;
}

/* The most rows of any share, with the best borders there are. */
static size_t least_rows(const tiling *t, size_t devices)
{
    size_t planes = t->volume[2], any = 0;
    size_t *best = calloc(planes + 1, sizeof *best), *next = calloc(planes + 1, sizeof *next);
    assert_true(best && next);
    for (size_t end = 1; end <= planes; end++)
        best[end] = rows_over(t, 0, end, &any);
    for (size_t d = 1; d < devices; d++) {
        for (size_t end = 1; end <= planes; end++) {
            next[end] = best[end];
            for (size_t border = 1; border < end; border++) {
                size_t last = rows_over(t, border, end, &any);
                size_t most = last > best[border] ? last : best[border];
                next[end] = most < next[end] ? most : next[end];
            }
        }
        for (size_t end = 1; end <= planes; end++)
            best[end] = next[end];
    }
    size_t least = best[planes];
    free(best);
    free(next);
    return least;
}

static size_t check_shares(const tiling *t, size_t devices, const device_share *share, size_t n)
{
    size_t most = 0, plane = 0, counted = 0;
    assert_in_range(n, 1, devices);
    for (size_t i = 0; i < n; i++) {
        size_t lowest = 0, rows = rows_over(t, share[i].plane, share[i].plane_end, &lowest);
        assert_int_equal(share[i].plane, plane);
        assert_true(share[i].plane_end > plane);
        assert_int_equal(share[i].row, lowest);
        assert_int_equal(share[i].row_end - share[i].row, rows);
        assert_int_equal(share[i].counted, counted);
        assert_true(share[i].row_end > counted);
        counted = share[i].row_end;
        plane = share[i].plane_end;
        most = rows > most ? rows : most;
    }
    assert_int_equal(plane, t->volume[2]);
    assert_int_equal(counted, t->n[2]);
    return most;
}

static void test_shares(void **state)
{
    (void)state;
    static const size_t planes[] = {1, 7, 8, 9, 15, 16, 17, 31, 40, 53, 64};
    static const double overlaps[] = {0, 0.1, 0.25, 0.5, 0.7, 0.9};
    size_t shared = 0;
    for (size_t p = 0; p < sizeof planes / sizeof *planes; p++)
        for (size_t o = 0; o < sizeof overlaps / sizeof *overlaps; o++) {
            tiling t = tiling_of(planes[p], 8, overlaps[o]);
            for (size_t devices = 1; devices <= DEVICES; devices++) {
                device_share share[DEVICES];
                size_t n = cuda_shares(&t, devices, share);
                size_t most = check_shares(&t, devices, share, n);
                size_t least = least_rows(&t, devices);
                if (n == 1) /* nothing saves more than a tenth */
                    assert_true(10 * least > 9 * t.n[2] || devices == 1);
                else
                    assert_int_equal(most, least);
                shared += n > 1;
            }
            tiling_clear(&t);
        }
    assert_true(shared > 50);
}

/* A whole body of 450 planes in patches of 32: rows of most, for 1 to 5 devices. */
static void test_whole_body(void **state)
{
    (void)state;
    static const size_t half[] = {28, 15, 10, 8, 7}, none[] = {15, 8, 5, 4, 3};
    for (size_t devices = 1; devices <= DEVICES; devices++) {
        device_share share[DEVICES];
        tiling t = tiling_of(450, 32, 0.5);
        size_t n = cuda_shares(&t, devices, share);
        assert_int_equal(n, devices);
        assert_int_equal(check_shares(&t, devices, share, n), half[devices - 1]);
        tiling_clear(&t);
        t = tiling_of(450, 32, 0);
        n = cuda_shares(&t, devices, share);
        assert_int_equal(n, devices);
        assert_int_equal(check_shares(&t, devices, share, n), none[devices - 1]);
        tiling_clear(&t);
    }
}

/* Two rows that overlap, three that all do: nothing to share. */
static void test_too_small(void **state)
{
    (void)state;
    device_share share[DEVICES];
    tiling t = tiling_of(12, 8, 0.5);
    assert_int_equal(t.n[2], 2);
    assert_int_equal(cuda_shares(&t, DEVICES, share), 1);
    assert_int_equal(share[0].row_end, 2);
    assert_int_equal(share[0].plane_end, 12);
    tiling_clear(&t);
    t = tiling_of(5, 8, 0.5);
    assert_int_equal(cuda_shares(&t, DEVICES, share), 1);
    assert_int_equal(share[0].plane_end, 5);
    tiling_clear(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shares),
        cmocka_unit_test(test_whole_body),
        cmocka_unit_test(test_too_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
