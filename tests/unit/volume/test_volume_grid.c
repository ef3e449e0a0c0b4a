/* SPDX-License-Identifier: Apache-2.0 */
/* Grids and volumes in memory. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "dosemap.h"

static const dm_grid plain = {.dim = {5, 7, 11},
                              .affine = {{-2, 0, 0, 9}, {0, 3, 0, -8}, {0, 0, 4, 7}}};

static dm_volume *create(const dm_grid *grid)
{
    dm_volume *volume = NULL;
    dm_error err = {0};
    if (dm_volume_create(grid, &volume, &err) != DM_OK)
        fail_msg("%s", err.what);
    return volume;
}

static void test_create(void **state)
{
    (void)state;
    dm_volume *volume = create(&plain);
    assert_int_equal(dm_grid_voxels(&volume->grid), 385);
    for (int axis = 0; axis < 3; axis++)
        assert_true(volume->grid.spacing_mm[axis] == axis + 2);
    for (size_t i = 0; i < 385; i++)
        assert_true(volume->data[i] == 0);
    assert_null(volume->header);
    dm_volume_free(volume);
    dm_volume_free(NULL);
}

static void create_bad(const dm_grid *grid, const char *what)
{
    dm_volume *volume = (dm_volume *)&volume;
    dm_error err = {0};
    float voxel = 0;
    assert_int_equal(dm_volume_create(grid, &volume, &err), DM_ERROR_VALUE);
    assert_null(volume);
    if (!strstr(err.what, what))
        fail_msg("\"%s\" does not say \"%s\"", err.what, what);
    assert_true(err.remedy[0] != '\0');
    assert_int_equal(dm_volume_view(grid, &voxel, &volume, NULL), DM_ERROR_VALUE);
    assert_null(volume);
}

static void test_grids_that_are_none(void **state)
{
    (void)state;
    dm_grid grid = plain;
    grid.dim[1] = 0;
    create_bad(&grid, "5x0x11 voxels");
    grid.dim[1] = SIZE_MAX;
    create_bad(&grid, "voxels cannot be made");
    grid = plain;
    grid.dim[0] = grid.dim[1] = grid.dim[2] = (size_t)1 << 31;
    create_bad(&grid, "2147483648x2147483648x2147483648");
    grid = plain;
    grid.affine[1][3] = NAN;
    create_bad(&grid, "row 1, column 3");
    grid = plain;
    grid.affine[2][2] = 0;
    create_bad(&grid, "size of 0 mm along axis 2");
    grid = plain;
    grid.affine[0][1] = 1e308;
    grid.affine[1][1] = 1.79e308;
    create_bad(&grid, "the affine gives voxels a size of inf mm along axis 1");
    grid = plain;
    grid.affine[2][2] = 9e-7;
    create_bad(&grid, "size of 9e-07 mm along axis 2");
    grid.affine[2][2] = -1.1e6;
    create_bad(&grid, "size of 1.1e+06 mm along axis 2, not 1e-06 to 1e+06 mm");
    grid = plain;
    grid.affine[1][3] = -1.1e9;
    create_bad(&grid, "the first voxel -1.1e+09 mm away");
    grid = plain;
    for (int row = 0; row < 3; row++)
        grid.affine[row][2] = grid.affine[row][0] - 2 * grid.affine[row][1];
    create_bad(&grid, "degenerate");
}

static void test_view_borrows(void **state)
{
    (void)state;
    float *data = malloc(385 * sizeof *data);
    dm_volume *volume = NULL;
    dm_error err = {0};
    assert_non_null(data);
    data[384] = 5;
    assert_int_equal(dm_volume_view(&plain, data, &volume, &err), DM_OK);
    assert_ptr_equal(volume->data, data);
    assert_true(volume->grid.spacing_mm[2] == 4);
    dm_volume_free(volume);
    assert_true(data[384] == 5);
    free(data);
    assert_int_equal(dm_volume_view(&plain, NULL, &volume, &err), DM_ERROR_VALUE);
    assert_null(volume);
    assert_non_null(strstr(err.what, "NULL"));
}

static void test_equal_grids(void **state)
{
    (void)state;
    char reason[200];
    dm_volume *volume = create(&plain);
    const dm_grid a = volume->grid;
    dm_grid b = a;
    assert_true(dm_grid_equal(&a, &b, reason, sizeof reason));
    b.affine[1][3] += 0.199;
    assert_true(dm_grid_equal(&a, &b, NULL, 0));
    b.affine[1][3] += 0.002;
    assert_false(dm_grid_equal(&a, &b, NULL, 0));
    assert_false(dm_grid_equal(&a, &b, reason, sizeof reason));
    assert_non_null(strstr(reason, "0.201 mm apart"));
    b = a;
    b.dim[2] = 12;
    assert_false(dm_grid_equal(&a, &b, reason, sizeof reason));
    assert_non_null(strstr(reason, "5x7x11 and 5x7x12"));
    /* A flip moves the corners although the sizes agree. */
    b = a;
    b.affine[0][0] = 2;
    b.affine[0][3] = 9 - 2 * 4;
    assert_false(dm_grid_equal(&a, &b, NULL, 0));
    b = a;
    b.affine[2][3] = NAN;
    assert_false(dm_grid_equal(&a, &b, NULL, 0));
    dm_volume_free(volume);
}

/* Voxels 3.5 % longer, three of them, agreeing at one face of the volume: at the other they are
 * 0.21 mm off, although the voxels' centres are all within a tenth of the edge, 0.2 mm. */
static void test_faces_count(void **state)
{
    (void)state;
    dm_grid grid = plain;
    grid.dim[0] = 3;
    grid.affine[0][0] = 2;
    dm_volume *a = create(&grid);
    const double faces[] = {2.5, -0.5};
    for (int f = 0; f < 2; f++) {
        grid.affine[0][0] = 2 * 1.035;
        grid.affine[0][3] = a->grid.affine[0][3] - faces[f] * 2 * 0.035;
        dm_volume *b = create(&grid);
        assert_false(dm_grid_equal(&a->grid, &b->grid, NULL, 0));
        dm_volume_free(b);
    }
    dm_volume_free(a);
}

/* A slice of another thickness is another grid, although it has only one layer of voxels. */
static void test_thickness_of_one_slice(void **state)
{
    (void)state;
    dm_grid grid = plain;
    grid.dim[2] = 1;
    dm_volume *a = create(&grid);
    grid.affine[2][2] = 5;
    dm_volume *b = create(&grid);
    assert_false(dm_grid_equal(&a->grid, &b->grid, NULL, 0));
    dm_volume_free(a);
    dm_volume_free(b);
}

static void test_all_finite(void **state)
{
    (void)state;
    const dm_grid grid = {.dim = {31, 37, 41},
                          .affine = {{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}}};
    const size_t places[][3] = {{0, 0, 0}, {30, 36, 40}, {3, 21, 3}, {4, 21, 3}};
    const float values[] = {NAN, -NAN, INFINITY, -INFINITY};
    dm_volume *volume = create(&grid);
    for (size_t i = 0; i < dm_grid_voxels(&grid); i++)
        volume->data[i] = i % 3 ? 3.402823e38f : -1e-45f;
    size_t ijk[3] = {99, 99, 99};
    assert_true(dm_volume_all_finite(volume, ijk));
    assert_int_equal(ijk[0], 99);
    for (size_t p = 0; p < 4; p++)
        for (size_t v = 0; v < 4; v++) {
            float *voxel = volume->data + places[p][0] + 31 * (places[p][1] + 37 * places[p][2]);
            *voxel = values[v];
            assert_false(dm_volume_all_finite(volume, NULL));
            assert_false(dm_volume_all_finite(volume, ijk));
            assert_memory_equal(ijk, places[p], sizeof ijk);
            *voxel = 0;
        }
    volume->data[40000] = NAN; /* the first one counts */
    volume->data[20000] = NAN;
    assert_false(dm_volume_all_finite(volume, ijk));
    assert_int_equal(ijk[0] + 31 * (ijk[1] + 37 * ijk[2]), 20000);
    dm_volume_free(volume);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),       cmocka_unit_test(test_grids_that_are_none),
        cmocka_unit_test(test_view_borrows), cmocka_unit_test(test_equal_grids),
        cmocka_unit_test(test_faces_count),  cmocka_unit_test(test_thickness_of_one_slice),
        cmocka_unit_test(test_all_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
