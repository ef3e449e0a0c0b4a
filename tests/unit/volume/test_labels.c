/* SPDX-License-Identifier: Apache-2.0 */
/* Labels made in memory: runs, counts, and the same structures on another grid. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* cmocka needs those before it */
#include <cmocka.h>

#include "grids.h"
#include "volume/labels.h"

static dm_grid plain_grid(size_t x, size_t y, size_t z)
{
    dm_grid grid = {.dim = {x, y, z},
                    .affine = {{2, 0, 0, -10}, {0, 3, 0, 5}, {0, 0, 4, 7}},
                    .spacing_mm = {2, 3, 4}};
    return grid;
}

/* Deterministic, 0 to 2^31-1. */
static uint32_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(*state >> 33);
}

static dm_labels *make(const dm_grid *grid, const int32_t *ids)
{
    dm_labels *labels = NULL;
    dm_error err = {0};
    if (dm_labels_create(grid, ids, NULL, &labels, &err) != DM_OK)
        fail_msg("%s; %s", err.what, err.remedy);
    return labels;
}

/* One byte per voxel, after a check of the runs: ascending, apart, inside one row, adding up. */
static uint8_t *mask_of(const dm_labels *labels, size_t s)
{
    const label_structure *structure = &labels->structures[s];
    size_t n = dm_grid_voxels(&labels->grid), row = labels->grid.dim[0], voxels = 0, next = 0;
    uint8_t *mask = calloc(n, 1);
    assert_non_null(mask);
    for (size_t r = 0; r < structure->n_runs; r++) {
        const label_run *run = &structure->runs[r];
        assert_true(run->length > 0 && run->start >= next);
        assert_true(run->start + run->length <= n);
        assert_int_equal(run->start / row, (run->start + run->length - 1) / row);
        /* Two runs that touch in one row should have been one. */
        assert_true(run->start > next || run->start % row == 0);
        memset(mask + run->start, 1, run->length);
        next = run->start + run->length;
        voxels += run->length;
    }
    assert_int_equal(voxels, structure->voxels);
    assert_int_equal(voxels, dm_labels_voxels(labels, s));
    return mask;
}

/* Labels hold exactly what `ids` says, in ascending order of the ids. */
static void hold(const dm_labels *labels, const int32_t *ids)
{
    size_t n = dm_grid_voxels(dm_labels_grid(labels)), found = 0;
    for (size_t s = 0; s < dm_labels_count(labels); s++) {
        uint8_t *mask = mask_of(labels, s);
        if (s > 0)
            assert_true(dm_labels_id(labels, s) > dm_labels_id(labels, s - 1));
        for (size_t i = 0; i < n; i++)
            assert_int_equal(mask[i], ids[i] == dm_labels_id(labels, s));
        assert_true(dm_labels_voxels(labels, s) > 0);
        found += dm_labels_voxels(labels, s);
        free(mask);
    }
    for (size_t i = 0; i < n; i++)
        found -= ids[i] != 0;
    assert_int_equal(found, 0);
}

/* ---- Making --------------------------------------------------------------------------------- */

static void test_runs_end_with_their_row(void **state)
{
    (void)state;
    const dm_grid grid = plain_grid(3, 2, 2);
    const int32_t ids[] = {7, 7, 7, 7, 7, 0, 0, 0, 2, 2, 7, 2};
    dm_labels *labels = make(&grid, ids);
    assert_int_equal(dm_labels_count(labels), 2);
    assert_int_equal(dm_labels_id(labels, 0), 2);
    assert_int_equal(dm_labels_id(labels, 1), 7);
    assert_string_equal(dm_labels_name(labels, 0), "label_2");
    assert_string_equal(dm_labels_name(labels, 1), "label_7");
    assert_int_equal(dm_labels_voxels(labels, 0), 3);
    assert_int_equal(dm_labels_voxels(labels, 1), 6);
    const label_run expected[] = {{0, 3}, {3, 2}, {10, 1}};
    assert_int_equal(labels->structures[1].n_runs, 3);
    for (size_t r = 0; r < 3; r++) {
        assert_int_equal(labels->structures[1].runs[r].start, expected[r].start);
        assert_int_equal(labels->structures[1].runs[r].length, expected[r].length);
    }
    hold(labels, ids);
    dm_labels_free(labels);
    dm_labels_free(NULL);
}

static void test_random_ids_come_back(void **state)
{
    (void)state;
    static const size_t dims[][3] = {{1, 1, 1}, {1, 7, 5}, {97, 1, 1}, {31, 17, 3}, {64, 32, 2}};
    static const uint32_t kinds[] = {1, 2, 5, 1000};
    uint64_t random = 1;
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            const dm_grid grid = plain_grid(dims[d][0], dims[d][1], dims[d][2]);
            size_t n = dm_grid_voxels(&grid);
            int32_t *ids = calloc(n, sizeof *ids);
            assert_non_null(ids);
            for (size_t i = 0; i < n; i++)
                ids[i] = (int32_t)(next_random(&random) % (kinds[k] + 1)) * 2000 - 2000;
            dm_labels *labels = make(&grid, ids);
            hold(labels, ids);
            dm_labels_free(labels);
            free(ids);
        }
}

static void test_nothing_but_background(void **state)
{
    (void)state;
    const dm_grid grid = plain_grid(2, 1, 2);
    const int32_t ids[4] = {0};
    dm_labels *labels = make(&grid, ids), *moved = NULL;
    assert_int_equal(dm_labels_count(labels), 0);
    assert_int_equal(dm_labels_resample(labels, &grid, &moved, NULL), DM_OK);
    assert_int_equal(dm_labels_count(moved), 0);
    dm_labels_free(moved);
    dm_labels_free(labels);
}

static void test_number_of_structures_is_bounded(void **state)
{
    (void)state;
    enum { MOST = 65536 };
    const dm_grid grid = plain_grid(MOST + 1, 1, 1);
    int32_t *ids = malloc((MOST + 1) * sizeof *ids);
    assert_non_null(ids);
    for (int32_t i = 0; i <= MOST; i++)
        ids[i] = INT32_MAX - MOST + i;
    dm_labels *labels = (dm_labels *)&grid;
    dm_error err = {0};
    assert_int_equal(dm_labels_create(&grid, ids, NULL, &labels, &err), DM_ERROR_VALUE);
    assert_null(labels);
    assert_non_null(strstr(err.what, "65536"));
    assert_true(err.remedy[0]);
    ids[17] = 0;
    labels = make(&grid, ids);
    assert_int_equal(dm_labels_count(labels), MOST);
    assert_string_equal(dm_labels_name(labels, MOST - 1), "label_2147483647");
    for (size_t s = 0; s < MOST; s++)
        assert_int_equal(dm_labels_voxels(labels, s), 1);
    dm_labels_free(labels);
    free(ids);
}

static void test_spacing_follows_the_affine(void **state)
{
    (void)state;
    dm_grid grid = plain_grid(1, 1, 1);
    memset(grid.spacing_mm, 0, sizeof grid.spacing_mm);
    const int32_t id = 1;
    dm_labels *labels = make(&grid, &id);
    for (int a = 0; a < 3; a++)
        assert_true(dm_labels_grid(labels)->spacing_mm[a] == 2 + a);
    dm_labels_free(labels);
}

static void refuse_grid(dm_grid grid, const char *what)
{
    const int32_t ids[8] = {1};
    const dm_grid good = plain_grid(2, 2, 2);
    dm_labels *labels = (dm_labels *)&grid, *source = make(&good, ids), *moved = labels;
    dm_error err = {0};
    assert_int_equal(dm_labels_create(&grid, ids, NULL, &labels, &err), DM_ERROR_VALUE);
    assert_null(labels);
    if (!strstr(err.what, what))
        fail_msg("'%s' does not say '%s'", err.what, what);
    assert_true(err.remedy[0]);
    memset(&err, 0, sizeof err);
    assert_int_equal(dm_labels_resample(source, &grid, &moved, &err), DM_ERROR_VALUE);
    assert_null(moved);
    assert_non_null(strstr(err.what, what));
    assert_int_equal(dm_labels_resample(source, &grid, &moved, NULL), DM_ERROR_VALUE);
    dm_labels_free(source);
}

static void test_grids_that_are_none(void **state)
{
    (void)state;
    refuse_grid(plain_grid(2, 0, 2), "2x0x2");
    refuse_grid(plain_grid(SIZE_MAX, 2, 2), "18446744073709551615x2x2");
    refuse_grid(plain_grid((size_t)UINT32_MAX + 1, 1, 1), "4294967296x1x1");
    dm_grid grid = plain_grid(2, 2, 2);
    grid.affine[1][3] = (double)NAN;
    refuse_grid(grid, "nan");
    grid = plain_grid(2, 2, 2);
    grid.affine[2][2] = 0;
    refuse_grid(grid, "size of 0 mm along axis 2");
    grid = plain_grid(2, 2, 2);
    grid.affine[0][0] = 0;
    grid.affine[1][0] = 1;
    refuse_grid(grid, "one plane");
}

/* ---- Another grid --------------------------------------------------------------------------- */

static dm_labels *resample(const dm_labels *labels, const dm_grid *grid)
{
    dm_labels *moved = NULL;
    dm_error err = {0};
    if (dm_labels_resample(labels, grid, &moved, &err) != DM_OK)
        fail_msg("%s; %s", err.what, err.remedy);
    assert_true(dm_grid_equal(dm_labels_grid(moved), grid, NULL, 0));
    assert_int_equal(dm_labels_count(moved), dm_labels_count(labels));
    for (size_t s = 0; s < dm_labels_count(labels); s++) {
        assert_int_equal(dm_labels_id(moved, s), dm_labels_id(labels, s));
        assert_string_equal(dm_labels_name(moved, s), dm_labels_name(labels, s));
    }
    return moved;
}

static int32_t *random_ids(size_t n, uint32_t kinds)
{
    uint64_t random = n;
    int32_t *ids = calloc(n, sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < n; i++)
        ids[i] = (int32_t)(next_random(&random) % (kinds + 1));
    return ids;
}

static void test_same_grid_changes_nothing(void **state)
{
    (void)state;
    const dm_grid grid = plain_grid(7, 5, 3);
    int32_t *ids = random_ids(105, 4);
    dm_labels *labels = make(&grid, ids), *moved = resample(labels, &grid);
    hold(moved, ids);
    dm_labels_free(moved);
    dm_labels_free(labels);
    free(ids);
}

static void test_shifts_by_whole_voxels(void **state)
{
    (void)state;
    const dm_grid from = plain_grid(7, 5, 3);
    int32_t *ids = random_ids(105, 40);
    dm_labels *labels = make(&from, ids);
    for (int shift = -4; shift <= 4; shift++) {
        dm_grid to = plain_grid(6, 5, 4);
        int32_t expected[120];
        to.affine[0][3] += 2 * shift;
        to.affine[1][3] -= 3 * shift;
        to.affine[2][3] += 4 * (shift % 2);
        for (int i = 0; i < 120; i++) {
            int x = i % 6 + shift, y = i / 6 % 5 - shift, z = i / 30 + shift % 2;
            bool inside = x >= 0 && x < 7 && y >= 0 && y < 5 && z >= 0 && z < 3;
            expected[i] = inside ? ids[x + 7 * (y + 5 * z)] : 0;
        }
        dm_labels *moved = resample(labels, &to);
        for (size_t s = 0; s < dm_labels_count(moved); s++) {
            uint8_t *mask = mask_of(moved, s);
            for (int i = 0; i < 120; i++)
                assert_int_equal(mask[i], expected[i] == dm_labels_id(moved, s));
            free(mask);
        }
        dm_labels_free(moved);
    }
    dm_labels_free(labels);
    free(ids);
}

static void test_every_orientation_holds_the_same_body(void **state)
{
    (void)state;
    const size_t dim[3] = {5, 4, 3};
    const double mm[3] = {1.5, 2.25, 3.7};
    float ras[60], stored[60];
    int32_t *ids = random_ids(60, 6), oriented[60];
    for (int i = 0; i < 60; i++)
        ras[i] = (float)ids[i];
    const dm_grid ras_grid = oriented_grid(0, dim, mm);
    dm_labels *labels = make(&ras_grid, ids);
    for (int o = 0; o < ORIENTATIONS; o++) {
        const dm_grid grid = oriented_grid(o, dim, mm);
        store_oriented(o, dim, ras, stored);
        for (int i = 0; i < 60; i++)
            oriented[i] = (int32_t)stored[i];
        dm_labels *there = resample(labels, &grid), *back = resample(there, &ras_grid);
        hold(there, oriented);
        hold(back, ids);
        dm_labels_free(back);
        dm_labels_free(there);
    }
    dm_labels_free(labels);
    free(ids);
}

/* Columns of a rotation about an oblique axis times the spacing. */
static dm_grid oblique_grid(const size_t dim[3], const double mm[3], double angle, double offset)
{
    const double c = cos(angle), s = sin(angle), k = sqrt(1.0 / 3);
    dm_grid grid;
    memset(&grid, 0, sizeof grid);
    for (int row = 0; row < 3; row++) {
        for (int col = 0; col < 3; col++) {
            double cross = row == col ? 0 : (col - row + 3) % 3 == 1 ? -k : k;
            grid.affine[row][col] = ((row == col ? c : 0) + (1 - c) / 3 + s * cross) * mm[col];
        }
        grid.affine[row][3] = offset * (row + 1);
        grid.dim[row] = dim[row];
        grid.spacing_mm[row] = mm[row];
    }
    return grid;
}

/* Where a voxel of `to` lies on `from`, by projection on its axes, which are at right angles. */
static void project(const dm_grid *from, const dm_grid *to, const size_t xyz[3], double index[3])
{
    double mm[3];
    for (int r = 0; r < 3; r++) {
        mm[r] = to->affine[r][3] - from->affine[r][3];
        for (int c = 0; c < 3; c++)
            mm[r] += to->affine[r][c] * (double)xyz[c];
    }
    for (int a = 0; a < 3; a++) {
        index[a] = 0;
        for (int r = 0; r < 3; r++)
            index[a] += mm[r] * from->affine[r][a] / (from->spacing_mm[a] * from->spacing_mm[a]);
    }
}

/* The id at the centre of a voxel, or -1 if that lies on a border between voxels. */
static int32_t id_at(const dm_grid *from, const int32_t *ids, const double index[3])
{
    size_t nearest[3];
    for (int a = 0; a < 3; a++) {
        double up = floor(index[a] + 0.5), distance = fabs(index[a] + 0.5 - rint(index[a] + 0.5));
        if (distance < 0.002)
            return -1;
        if (up < 0 || up >= (double)from->dim[a])
            return 0;
        nearest[a] = (size_t)up;
    }
    return ids[nearest[0] + from->dim[0] * (nearest[1] + from->dim[1] * nearest[2])];
}

static void check_against_projection(const dm_grid *from, const dm_grid *to, uint32_t kinds)
{
    int32_t *ids = random_ids(dm_grid_voxels(from), kinds);
    dm_labels *labels = make(from, ids), *moved = resample(labels, to);
    size_t n = dm_grid_voxels(to), unclear = 0, inside = 0;
    int32_t *got = calloc(n, sizeof *got);
    assert_non_null(got);
    for (size_t s = 0; s < dm_labels_count(moved); s++) {
        uint8_t *mask = mask_of(moved, s);
        for (size_t i = 0; i < n; i++)
            if (mask[i]) {
                assert_int_equal(got[i], 0);
                got[i] = dm_labels_id(moved, s);
            }
        free(mask);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t xyz[3] = {i % to->dim[0], i / to->dim[0] % to->dim[1],
                               i / to->dim[0] / to->dim[1]};
        double index[3];
        project(from, to, xyz, index);
        int32_t expected = id_at(from, ids, index);
        unclear += expected < 0;
        inside += expected > 0;
        if (expected >= 0)
            assert_int_equal(got[i], expected);
    }
    assert_true(unclear * 20 < n && inside * 10 > n);
    free(got);
    dm_labels_free(moved);
    dm_labels_free(labels);
    free(ids);
}

static void test_coarser_finer_and_oblique_grids(void **state)
{
    (void)state;
    const size_t fine_dim[3] = {31, 29, 23}, coarse_dim[3] = {13, 11, 9};
    const double fine_mm[3] = {1.5, 1.6, 2.1}, coarse_mm[3] = {4.07, 4.07, 5.0};
    const dm_grid fine = oblique_grid(fine_dim, fine_mm, 0, 0.2);
    const dm_grid coarse = oblique_grid(coarse_dim, coarse_mm, 0, -0.31);
    const dm_grid turned = oblique_grid(coarse_dim, coarse_mm, 0.4, 1.7);
    check_against_projection(&fine, &coarse, 3);
    check_against_projection(&coarse, &fine, 300);
    check_against_projection(&fine, &turned, 2000);
    check_against_projection(&turned, &fine, 1);
}

static void test_centres_on_borders_belong_to_the_upper_voxel(void **state)
{
    (void)state;
    enum { N = 200 };
    dm_grid from = plain_grid(N, 1, 1), to = plain_grid(N / 2, 1, 1);
    int32_t ids[N];
    /* As float32 headers round them: no centre lies exactly on a border. */
    from.affine[0][0] = (double)1.1f;
    from.affine[0][3] = (double)-273.4f;
    to.affine[0][0] = (double)2.2f;
    to.affine[0][3] = (double)(-273.4f + 0.55f);
    to.affine[0][0] += 1e-7; /* first below, then above the borders */
    to.affine[0][3] -= 5e-6;
    for (int i = 0; i < N; i++)
        ids[i] = i + 1;
    dm_labels *labels = make(&from, ids), *moved = resample(labels, &to);
    for (int i = 0; i < N; i++) {
        assert_int_equal(dm_labels_voxels(moved, (size_t)i), i % 2);
        if (i % 2)
            assert_int_equal(moved->structures[i].runs[0].start, i / 2);
    }
    dm_labels_free(moved);
    dm_labels_free(labels);
}

static void test_far_away_leaves_empty_structures(void **state)
{
    (void)state;
    const dm_grid from = plain_grid(2, 2, 2);
    const int32_t ids[8] = {1, 1, 2, 0, 0, 9, 9, 9};
    dm_labels *labels = make(&from, ids);
    static const double offsets[] = {1e3, -1e3, 1e9, -1e9};
    for (size_t o = 0; o < sizeof offsets / sizeof *offsets; o++) {
        dm_grid to = plain_grid(3, 3, 3);
        to.affine[1][3] = offsets[o];
        dm_labels *moved = resample(labels, &to);
        for (size_t s = 0; s < 3; s++)
            assert_int_equal(dm_labels_voxels(moved, s), 0);
        dm_labels_free(moved);
    }
    dm_labels_free(labels);
}

/* Masks of a folder overlap: each must come out as if it were alone. */
static void test_overlapping_structures(void **state)
{
    (void)state;
    enum { STRUCTURES = 9 };
    const dm_grid from = plain_grid(9, 7, 5);
    dm_grid to = plain_grid(6, 6, 6);
    dm_labels *labels = NULL, *moved = NULL;
    uint8_t masks[STRUCTURES][315];
    uint64_t random = 5;
    to.affine[0][0] = 2.7;
    to.affine[1][3] += 1.1;
    assert_int_equal(labels_new(&from, STRUCTURES, &labels, NULL), DM_OK);
    for (size_t s = 0; s < STRUCTURES; s++) {
        label_structure *structure = &labels->structures[s];
        for (size_t i = 0; i < 315; i++) /* the first is everywhere, the last nowhere */
            masks[s][i] = next_random(&random) % (STRUCTURES - 1) >= s;
        structure->id = (int32_t)(STRUCTURES - s);
        assert_int_equal(structure_name(structure, NULL, NULL), DM_OK);
        assert_int_equal(structure_from_mask(structure, &from, masks[s], NULL), DM_OK);
        uint8_t *back = mask_of(labels, s);
        assert_memory_equal(back, masks[s], sizeof masks[s]);
        free(back);
    }
    assert_int_equal(dm_labels_voxels(labels, 0), 315);
    assert_int_equal(dm_labels_voxels(labels, STRUCTURES - 1), 0);
    moved = resample(labels, &to);
    for (size_t s = 0; s < STRUCTURES; s++) {
        int32_t alone[315];
        for (size_t i = 0; i < 315; i++)
            alone[i] = masks[s][i];
        dm_labels *one = make(&from, alone), *expected = resample(one, &to);
        uint8_t *got = mask_of(moved, s);
        if (s == STRUCTURES - 1) {
            assert_int_equal(dm_labels_voxels(moved, s), 0);
        } else {
            uint8_t *wanted = mask_of(expected, 0);
            assert_memory_equal(got, wanted, 216);
            assert_true(dm_labels_voxels(moved, s) > 0);
            free(wanted);
        }
        free(got);
        dm_labels_free(expected);
        dm_labels_free(one);
    }
    dm_labels_free(moved);
    dm_labels_free(labels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_end_with_their_row),
        cmocka_unit_test(test_random_ids_come_back),
        cmocka_unit_test(test_nothing_but_background),
        cmocka_unit_test(test_number_of_structures_is_bounded),
        cmocka_unit_test(test_spacing_follows_the_affine),
        cmocka_unit_test(test_grids_that_are_none),
        cmocka_unit_test(test_same_grid_changes_nothing),
        cmocka_unit_test(test_shifts_by_whole_voxels),
        cmocka_unit_test(test_every_orientation_holds_the_same_body),
        cmocka_unit_test(test_coarser_finer_and_oblique_grids),
        cmocka_unit_test(test_centres_on_borders_belong_to_the_upper_voxel),
        cmocka_unit_test(test_far_away_leaves_empty_structures),
        cmocka_unit_test(test_overlapping_structures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
