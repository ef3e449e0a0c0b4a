/* SPDX-License-Identifier: Apache-2.0 */
/* The model's grid must be the same whichever way the volume is stored. */
#include "volume/orientation.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A volume of 4 x 5 x 7 voxels of 2, 3, 5 mm along R, A, S; its centre lies at `centre`. */
static const size_t size_ras[3] = {4, 5, 7};
static const double mm_ras[3] = {2, 3, 5}, centre[3] = {11, -13, 17};

static const int permutations[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                       {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};

/* Stored axis a runs along RAS axis perm[a], backwards where bit a of `flips` is set. */
static dm_grid stored_grid(const int perm[3], unsigned flips)
{
    dm_grid grid = {0};
    for (int row = 0; row < 3; row++)
        grid.affine[row][3] = centre[row];
    for (int a = 0; a < 3; a++) {
        double step = (flips >> a & 1 ? -1 : 1) * mm_ras[perm[a]];
        grid.dim[a] = size_ras[perm[a]];
        grid.spacing_mm[a] = mm_ras[perm[a]];
        grid.affine[perm[a]][a] = step;
        grid.affine[perm[a]][3] -= step * ((double)grid.dim[a] - 1) / 2;
    }
    return grid;
}

static void stored_letters(const int perm[3], unsigned flips, char letters[4])
{
    for (int a = 0; a < 3; a++)
        letters[a] = (flips >> a & 1 ? "LPI" : "RAS")[perm[a]];
    letters[3] = '\0';
}

static grid_map make(const dm_grid *grid, const char *orientation, const double *voxel_mm)
{
    grid_map map;
    dm_error err = {0};
    if (grid_map_make(grid, orientation, voxel_mm, &map, &err) != DM_OK)
        fail_msg("%s: %s", orientation, err.what);
    return map;
}

/* Millimetres of model voxel `index` through the map and the stored volume's affine. */
static void model_to_mm(const dm_grid *grid, const grid_map *map, const double index[3],
                        double mm[3])
{
    double stored[3] = {0};
    for (int m = 0; m < 3; m++)
        stored[map->axis[m].source_axis] = map->axis[m].scale * index[m] + map->axis[m].offset;
    for (int row = 0; row < 3; row++)
        mm[row] = grid->affine[row][0] * stored[0] + grid->affine[row][1] * stored[1] +
                  grid->affine[row][2] * stored[2] + grid->affine[row][3];
}

static void assert_mm(const double mm[3], const double expected[3])
{
    for (int row = 0; row < 3; row++)
        if (!(fabs(mm[row] - expected[row]) < 1e-9))
            fail_msg("%g, not %g mm", mm[row], expected[row]);
}

/* What the model sees at RAS index (i, j, k): a different number everywhere. */
static float content(size_t i, size_t j, size_t k)
{
    return (float)(i + 10 * j + 100 * k);
}

/* The content, stored as `grid` says, comes out of the map as it is in RAS. */
static void check_content(const dm_grid *grid, const int perm[3], unsigned flips)
{
    float stored[4 * 5 * 7];
    size_t at[3], ras[3];
    for (at[2] = 0; at[2] < grid->dim[2]; at[2]++)
        for (at[1] = 0; at[1] < grid->dim[1]; at[1]++)
            for (at[0] = 0; at[0] < grid->dim[0]; at[0]++) {
                for (int a = 0; a < 3; a++)
                    ras[perm[a]] = flips >> a & 1 ? grid->dim[a] - 1 - at[a] : at[a];
                stored[at[0] + grid->dim[0] * (at[1] + grid->dim[1] * at[2])] =
                    content(ras[0], ras[1], ras[2]);
            }
    grid_map map = make(grid, "RAS", NULL);
    assert_true(map.exact);
    assert_memory_equal(map.dim, size_ras, sizeof size_ras);
    assert_memory_equal(map.spacing_mm, mm_ras, sizeof mm_ras);
    for (ras[2] = 0; ras[2] < 7; ras[2]++)
        for (ras[1] = 0; ras[1] < 5; ras[1]++)
            for (ras[0] = 0; ras[0] < 4; ras[0]++) {
                for (int m = 0; m < 3; m++) {
                    double s = map.axis[m].scale * (double)ras[m] + map.axis[m].offset;
                    assert_true(s >= 0 && s == floor(s));
                    at[map.axis[m].source_axis] = (size_t)s;
                }
                assert_true(stored[at[0] + grid->dim[0] * (at[1] + grid->dim[1] * at[2])] ==
                            content(ras[0], ras[1], ras[2]));
            }
}

static void test_48_orientations(void **state)
{
    (void)state;
    for (int p = 0; p < 6; p++)
        for (unsigned flips = 0; flips < 8; flips++) {
            char letters[4], expected[4];
            dm_error err = {0};
            dm_grid grid = stored_grid(permutations[p], flips);
            assert_int_equal(orientation_of(&grid, letters, &err), DM_OK);
            stored_letters(permutations[p], flips, expected);
            assert_string_equal(letters, expected);
            check_content(&grid, permutations[p], flips);
        }
}

/* Asking for the orientation that the volume has, or for "stored", changes nothing. */
static void test_identity(void **state)
{
    (void)state;
    for (int p = 0; p < 6; p++)
        for (unsigned flips = 0; flips < 8; flips++) {
            char letters[4];
            dm_grid grid = stored_grid(permutations[p], flips);
            stored_letters(permutations[p], flips, letters);
            const char *const orientations[] = {letters, "stored"};
            for (int o = 0; o < 2; o++) {
                grid_map map = make(&grid, orientations[o], NULL);
                assert_true(map.exact);
                assert_memory_equal(map.dim, grid.dim, sizeof grid.dim);
                for (int m = 0; m < 3; m++)
                    assert_true(map.axis[m].source_axis == m && map.axis[m].scale == 1 &&
                                map.axis[m].offset == 0);
            }
        }
}

/* With another spacing the model's grid lies at the same place in the patient for every storage. */
static void test_resampled_grid_is_centred(void **state)
{
    (void)state;
    const double voxel_mm[3] = {3, 3, 2.5};
    const size_t dim[3] = {3, 5, 14}; /* ceil(8/3), 15/3, 35/2.5 */
    for (int p = 0; p < 6; p++)
        for (unsigned flips = 0; flips < 8; flips++) {
            dm_grid grid = stored_grid(permutations[p], flips);
            grid_map map = make(&grid, "RAS", voxel_mm);
            assert_false(map.exact);
            assert_memory_equal(map.dim, dim, sizeof dim);
            assert_memory_equal(map.spacing_mm, voxel_mm, sizeof voxel_mm);
            double mm[3], expected[3];
            for (int corner = 0; corner < 2; corner++) {
                double index[3];
                for (int m = 0; m < 3; m++) {
                    double half = ((double)dim[m] - 1) / 2;
                    index[m] = corner ? 2 * half : 0;
                    expected[m] = centre[m] + (corner ? half : -half) * voxel_mm[m];
                }
                model_to_mm(&grid, &map, index, mm);
                assert_mm(mm, expected);
            }
        }
}

/* Half a thousandth of a voxel is no reason for one more. */
static void test_size_is_rounded_up(void **state)
{
    (void)state;
    dm_grid grid = stored_grid(permutations[0], 0); /* 8 x 15 x 35 mm */
    const double voxel_mm[3] = {8 / 3.0005, 15 / 3.002, 35 / 2.9};
    grid_map map = make(&grid, "RAS", voxel_mm);
    assert_true(map.dim[0] == 3 && map.dim[1] == 4 && map.dim[2] == 3);
}

static void test_same_spacing_is_kept(void **state)
{
    (void)state;
    dm_grid grid = stored_grid(permutations[3], 5);
    const double nearly[3] = {2 * 1.00009, 3 * 0.99991, 5};
    grid_map map = make(&grid, "RAS", nearly);
    assert_true(map.exact);
    assert_memory_equal(map.spacing_mm, mm_ras, sizeof mm_ras);
    for (int m = 0; m < 3; m++)
        assert_true(fabs(map.axis[m].scale) == 1 &&
                    map.axis[m].offset == floor(map.axis[m].offset));
    /* Where one axis differs, the others are still only flipped. */
    const double other[3] = {2 * 1.00011, 3, 5};
    map = make(&grid, "RAS", other);
    assert_false(map.exact);
    assert_true(fabs(map.axis[0].scale) != 1 && map.spacing_mm[0] == other[0]);
    assert_true(fabs(map.axis[1].scale) == 1 && fabs(map.axis[2].scale) == 1);
}

static void test_one_voxel(void **state)
{
    (void)state;
    const dm_grid grid = {.dim = {1, 1, 1},
                          .spacing_mm = {4, 4, 4},
                          .affine = {{-4, 0, 0, 0}, {0, -4, 0, 0}, {0, 0, 4, 0}}};
    grid_map map = make(&grid, "RAS", NULL);
    for (int m = 0; m < 3; m++)
        assert_true(map.dim[m] == 1 && map.axis[m].offset == 0);
    const double coarse[3] = {100, 100, 100};
    map = make(&grid, "LPI", coarse);
    for (int m = 0; m < 3; m++)
        assert_true(map.dim[m] == 1 && map.axis[m].offset == 0);
}

/* Turned by 30 degrees about S, stored as LAS: the closest axes. */
static void test_oblique(void **state)
{
    (void)state;
    char letters[4];
    dm_error err = {0};
    const double c = sqrt(0.75), s = 0.5;
    const dm_grid grid = {.dim = {3, 4, 5},
                          .spacing_mm = {2, 2, 2},
                          .affine = {{-2 * c, -2 * s, 0, 0}, {-2 * s, 2 * c, 0, 0}, {0, 0, 2, 0}}};
    assert_int_equal(orientation_of(&grid, letters, &err), DM_OK);
    assert_string_equal(letters, "LAS");
    grid_map map = make(&grid, "RAS", NULL);
    assert_true(map.exact && map.axis[0].scale == -1 && map.axis[0].offset == 2);
    assert_true(map.axis[1].source_axis == 1 && map.axis[1].scale == 1);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"RAS", "LPS", "LAS", "SPR", "IAL", "stored"};
    static const char *const bad[] = {"",    "RA",  "RASS", "RAR",   "RLS",
                                      "ras", "XYZ", "RAX",  "Stored"};
    dm_grid grid = stored_grid(permutations[0], 0);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(orientation_is_valid(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        grid_map map;
        dm_error err = {0};
        char quoted[16];
        assert_false(orientation_is_valid(bad[i]));
        assert_int_equal(grid_map_make(&grid, bad[i], NULL, &map, &err), DM_ERROR_VALUE);
        snprintf(quoted, sizeof quoted, "\"%s\"", bad[i]);
        assert_non_null(strstr(err.what, quoted));
        assert_non_null(strstr(err.remedy, "RAS"));
    }
}

static void test_bad_grids_and_sizes(void **state)
{
    (void)state;
    grid_map map;
    char letters[4];
    dm_error err = {0};
    dm_grid flat = stored_grid(permutations[0], 0);
    for (int row = 0; row < 3; row++)
        flat.affine[row][1] = 0;
    assert_int_equal(grid_map_make(&flat, "RAS", NULL, &map, &err), DM_ERROR_VALUE);
    assert_non_null(strstr(err.what, "degenerate"));
    assert_int_equal(orientation_of(&flat, letters, &err), DM_ERROR_VALUE);
    assert_int_equal(letters[0], '\0');

    dm_grid grid = stored_grid(permutations[0], 0);
    const double sizes[] = {0, -2, NAN, INFINITY, 1e-12};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const double voxel_mm[3] = {2, sizes[i], 2};
        assert_int_equal(grid_map_make(&grid, "RAS", voxel_mm, &map, &err), DM_ERROR_VALUE);
        assert_non_null(strstr(err.what, "mm"));
        assert_true(err.remedy[0] != '\0');
    }
}

/* A network sees right angles: up to 5 degrees of shear are let through, between any two axes. */
static void test_shear(void **state)
{
    (void)state;
    static const char *const axes[3] = {"axes x and y meet at 84.5 ", "axes x and z meet at 84.5 ",
                                        "axes y and z meet at 84.5 "};
    const double pi = acos(-1);
    int pair = 0;
    for (int a = 0; a < 3; a++)
        for (int b = a + 1; b < 3; b++, pair++)
            for (int degrees = 9; degrees <= 11; degrees++) {
                grid_map map;
                dm_error err = {0};
                dm_grid grid = stored_grid(permutations[0], 0);
                const double angle = degrees / 2.0 * pi / 180, mm = grid.spacing_mm[b];
                for (int row = 0; row < 3; row++) {
                    double along_a = grid.affine[row][a] / grid.spacing_mm[a];
                    grid.affine[row][b] =
                        cos(angle) * grid.affine[row][b] + sin(angle) * mm * along_a;
                }
                dm_status status = grid_map_make(&grid, "RAS", NULL, &map, &err);
                assert_int_equal(status, degrees <= 10 ? DM_OK : DM_ERROR_VALUE);
                if (status != DM_OK) {
                    assert_non_null(strstr(err.what, axes[pair]));
                    assert_non_null(strstr(err.remedy, "resample"));
                }
            }
    assert_int_equal(pair, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_48_orientations),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_resampled_grid_is_centred),
        cmocka_unit_test(test_size_is_rounded_up),
        cmocka_unit_test(test_same_spacing_is_kept),
        cmocka_unit_test(test_one_voxel),
        cmocka_unit_test(test_oblique),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_bad_grids_and_sizes),
        cmocka_unit_test(test_shear),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
