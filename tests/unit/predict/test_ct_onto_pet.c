/* SPDX-License-Identifier: Apache-2.0 */
/* A CT onto the PET's grid: what it becomes, what is refused, what is said of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "compare.h"
#include "resampling_reference.h"
#include "small_models.h"

static const size_t pet_ras[3] = {9, 7, 8};
static const double pet_mm[3] = {4, 3, 5};

/* Along right, front, head: where its first voxel's centre lies, size and spacing. */
typedef struct box {
    double origin[3];
    size_t dim[3];
    double mm[3];
} box;

static dm_grid grid_of(const box *b, int orientation)
{
    dm_grid grid = oriented_grid(orientation, b->dim, b->mm);
    for (int row = 0; row < 3; row++)
        grid.affine[row][3] += b->origin[row];
    return grid;
}

static dm_volume *new_volume(const dm_grid *grid)
{
    dm_error err = {0};
    dm_volume *volume = NULL;
    no_error(dm_volume_create(grid, &volume, &err), &err);
    return volume;
}

static dm_volume *new_pet(int orientation)
{
    const box b = {
        {0, 0, 0}, {pet_ras[0], pet_ras[1], pet_ras[2]}, {pet_mm[0], pet_mm[1], pet_mm[2]}};
    dm_grid grid = grid_of(&b, orientation);
    dm_volume *pet = new_volume(&grid);
    for (size_t i = 0; i < dm_grid_voxels(&grid); i++)
        pet->data[i] = 1;
    return pet;
}

/* HU from -1000 to 600, stored in an orientation. */
static dm_volume *new_ct(const box *b, int orientation)
{
    size_t n = b->dim[0] * b->dim[1] * b->dim[2];
    float *values = random_values(n, 5);
    for (size_t i = 0; i < n; i++)
        values[i] = 100 * values[i] - 1000;
    values[0] = -1000;
    dm_grid grid = grid_of(b, orientation);
    dm_volume *ct = new_volume(&grid);
    store_oriented(orientation, b->dim, values, ct->data);
    free(values);
    return ct;
}

static dm_volume *onto(const dm_volume *ct, const dm_volume *pet, dm_ct_info *info)
{
    dm_error err = {0};
    dm_volume *on_pet = NULL;
    no_error(dm_ct_onto_pet(ct, pet, NULL, &on_pet, info, &err), &err);
    assert_true(dm_grid_equal(&on_pet->grid, &pet->grid, NULL, 0));
    return on_pet;
}

static void refuse(const dm_volume *ct, const dm_volume *pet, const dm_ct_options *options,
                   const char *what, const char *remedy)
{
    dm_error err = {0};
    dm_ct_info info;
    dm_volume *on_pet = (dm_volume *)&err;
    assert_int_equal(dm_ct_onto_pet(ct, pet, options, &on_pet, &info, &err), DM_ERROR_VALUE);
    assert_null(on_pet);
    if (!strstr(err.what, what) || !strstr(err.remedy, remedy))
        fail_msg("'%s; %s' lacks '%s' or '%s'", err.what, err.remedy, what, remedy);
}

/* What the CT is at the PET's voxels, in RAS order, by the definition. */
static float *expected_values(const box *b, const dm_volume *ct)
{
    size_t n = b->dim[0] * b->dim[1] * b->dim[2], dim[3] = {b->dim[0], b->dim[1], b->dim[2]};
    double *now = malloc(n * sizeof *now);
    for (size_t i = 0; i < n; i++)
        now[i] = (double)ct->data[i];
    for (int a = 0; a < 3; a++) {
        const axis_map map = {a, pet_mm[a] / b->mm[a], -b->origin[a] / b->mm[a]};
        double *next = reference_axis(now, dim, a, &map, pet_ras[a]);
        free(now);
        now = next;
    }
    float *values = malloc(9 * 7 * 8 * sizeof *values);
    for (size_t i = 0; i < 9 * 7 * 8; i++) {
        const size_t ijk[3] = {i % 9, i / 9 % 7, i / 63};
        bool inside = true;
        for (int a = 0; a < 3; a++) {
            double from = pet_mm[a] * ((double)ijk[a] - 0.5), to = from + pet_mm[a];
            double first = b->origin[a] - b->mm[a] / 2, last = first + b->mm[a] * (double)b->dim[a];
            inside = inside && to > first && from < last;
        }
        values[i] = inside ? (float)now[i] : -1000;
    }
    free(now);
    return values;
}

static const box boxes[] = {
    {{0, 0, 0}, {9, 7, 8}, {4, 3, 5}},                /* the PET's grid */
    {{-3, -2.1, -4}, {43, 27, 49}, {1, 1, 1}},        /* averaged */
    {{-9, -7, -8}, {17, 17, 20}, {3.3, 2.3, 2.9}},    /* between 1 and 1.5 times, and above */
    {{-20, -20, -20}, {6, 5, 5}, {14.9, 15.3, 16.1}}, /* coarser */
    {{5.1, 4.2, 6.3}, {20, 5, 9}, {1.1, 2, 2.5}},     /* a part of the PET only */
};
enum { BOXES = sizeof boxes / sizeof *boxes };

/* PET and CT in all orientations, each against the definition in RAS. */
static void test_all_orientations(void **state)
{
    (void)state;
    for (size_t b = 0; b < BOXES; b++) {
        dm_volume *stored = new_ct(&boxes[b], 0);
        float *expected = expected_values(&boxes[b], stored), ras[9 * 7 * 8];
        dm_volume_free(stored);
        for (int o = 0; o < 2 * ORIENTATIONS; o++) {
            const int of_pet = o < ORIENTATIONS ? o : 7 * o % ORIENTATIONS,
                      of_ct = o < ORIENTATIONS ? 0 : o - ORIENTATIONS;
            dm_ct_info info;
            dm_volume *pet = new_pet(of_pet), *ct = new_ct(&boxes[b], of_ct);
            dm_volume *on_pet = onto(ct, pet, &info);
            copy_oriented(of_pet, pet_ras, on_pet->data, ras, true);
            assert_true(arrays_close(ras, 9 * 7 * 8, expected, 9 * 7 * 8, 5e-3, 0));
            for (int s = 0; s < 3; s++) {
                assert_int_equal(info.dim[s], boxes[b].dim[axes_of(of_ct)[s]]);
                assert_true(fabs(info.spacing_mm[s] - boxes[b].mm[axes_of(of_ct)[s]]) < 1e-9);
            }
            dm_volume_free(on_pet);
            dm_volume_free(ct);
            dm_volume_free(pet);
        }
        free(expected);
    }
}

/* Voxels that coincide keep their bits, however both are stored. */
static void test_same_voxels(void **state)
{
    (void)state;
    dm_volume *first = new_ct(&boxes[0], 0);
    for (int o = 0; o < ORIENTATIONS; o++) {
        float ras[9 * 7 * 8];
        dm_ct_info info;
        dm_volume *pet = new_pet(o), *ct = new_ct(&boxes[0], 5 * o % ORIENTATIONS);
        for (int row = 0; row < 3; row++) /* as float32 headers round */
            ct->grid.affine[row][3] += 3e-7;
        dm_volume *on_pet = onto(ct, pet, &info);
        copy_oriented(o, pet_ras, on_pet->data, ras, true);
        assert_memory_equal(ras, first->data, sizeof ras);
        assert_int_equal(info.resampled, !dm_grid_equal(&ct->grid, &pet->grid, NULL, 0));
        assert_true(info.voxels_covered == 1 && info.activity_covered == 1);
        dm_volume_free(on_pet);
        dm_volume_free(ct);
        dm_volume_free(pet);
    }
    dm_volume_free(first);
}

static void test_coverage(void **state)
{
    (void)state;
    /* Of the PET's planes along x, at 0, 4, ... 32 mm, those from 16 to 24 mm are covered. */
    const box part = {{15, -2, -3}, {5, 10, 15}, {2, 3, 3}};
    dm_ct_info info;
    dm_volume *pet = new_pet(0), *ct = new_ct(&part, 0);
    for (size_t i = 0; i < 9 * 7 * 8; i++)
        pet->data[i] = i % 9 == 5 ? 6 : i % 9 == 1 ? 2 : i % 9 == 2 ? -100 : 0;
    pet->data[0] = NAN; /* of no concern here */
    dm_volume *on_pet = onto(ct, pet, &info);
    assert_true(fabs(info.voxels_covered - 3.0 / 9) < 1e-12);
    assert_true(fabs(info.activity_covered - 0.75) < 1e-12);
    assert_true(info.lowest == -1000 && info.highest > 500 && info.highest <= 600);
    assert_true(info.resampled && info.voxels_to_air == 0);
    for (size_t i = 0; i < 9 * 7 * 8; i++)
        if (i % 9 < 4 || i % 9 > 6)
            assert_true(on_pet->data[i] == -1000);
    dm_volume_free(on_pet);
    dm_volume_free(ct);

    const box away = {{100, 0, 0}, {5, 10, 15}, {2, 3, 3}};
    ct = new_ct(&away, 0);
    refuse(ct, pet, NULL, "no place in common", "this patient's CT");
    dm_volume_free(ct);
    dm_volume_free(pet);
}

static void test_values_that_are_no_hu(void **state)
{
    (void)state;
    static const struct {
        float scale, shift; /* of values from -1000 to 600 */
        const char *what, *remedy;
    } cases[] = {
        {1, 1024, "24 to 16", "subtract it (1024 or 1000)"},
        {1, 1000, "0 to 1", "subtract it"},
        {0.0001f, 0.1f, "not in HU", "attenuation in 1/cm"},
        {0.001f, 0, "not in HU", "attenuation"},
        {0.1f, 0, "-100 to ", "give a CT in HU"},
        {0.01f, -990, "-1000 to -984", "give a CT in HU"},
        {1000, 0, "not in HU", "give a CT in HU"},
    };
    dm_volume *pet = new_pet(0);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const dm_ct_options options = {.is_hu = true};
        dm_error err = {0};
        dm_ct_info info;
        dm_volume *ct = new_ct(&boxes[1], 0), *on_pet = NULL;
        for (size_t i = 0; i < dm_grid_voxels(&ct->grid); i++)
            ct->data[i] = cases[c].scale * ct->data[i] + cases[c].shift;
        refuse(ct, pet, NULL, cases[c].what, cases[c].remedy);
        refuse(ct, pet, NULL, cases[c].what, "--ct-is-hu");
        no_error(dm_ct_onto_pet(ct, pet, &options, &on_pet, &info, &err), &err);
        dm_volume_free(on_pet);
        dm_volume_free(ct);
    }
    dm_volume_free(pet);
}

static void test_values_that_are_no_numbers(void **state)
{
    (void)state;
    const dm_ct_options to_air = {.nan_to_air = true};
    dm_error err = {0};
    dm_ct_info info;
    dm_volume *pet = new_pet(0), *ct = new_ct(&boxes[0], 0), *on_pet = NULL;
    const size_t first = 3 + 9 * (2 + 7 * 4), second = 5 + 9 * (6 + 7 * 7);
    ct->data[first] = NAN;
    ct->data[second] = -INFINITY;
    refuse(ct, pet, NULL, "(3, 2, 4) of the CT is nan", "--nan-to-zero");
    no_error(dm_ct_onto_pet(ct, pet, &to_air, &on_pet, &info, &err), &err);
    assert_int_equal(info.voxels_to_air, 2);
    for (size_t i = 0; i < 9 * 7 * 8; i++)
        assert_true(on_pet->data[i] == (i == first || i == second ? -1000 : ct->data[i]));
    assert_true(isnan(ct->data[first])); /* the input stays as it was */
    for (size_t i = 0; i < 9 * 7 * 8; i++)
        ct->data[i] = NAN;
    refuse(ct, pet, &to_air, "no voxel of the CT is a number", "HU");
    dm_volume_free(on_pet);
    dm_volume_free(ct);
    dm_volume_free(pet);
}

static void test_turned(void **state)
{
    (void)state;
    dm_ct_info info;
    dm_volume *pet = new_pet(0), *ct = new_ct(&boxes[1], 0);
    const double cosine = cos(0.02), sine = sin(0.02);
    ct->grid.affine[0][0] = ct->grid.affine[1][1] = cosine;
    ct->grid.affine[0][1] = -sine;
    ct->grid.affine[1][0] = sine;
    refuse(ct, pet, NULL, "turned or sheared", "resample_from_to");
    ct->grid.affine[0][1] = ct->grid.affine[1][0] = 1e-4; /* rounding in a header */
    ct->grid.affine[0][0] = ct->grid.affine[1][1] = 1;
    dm_volume_free(onto(ct, pet, &info));
    memset(ct->grid.affine, 0, sizeof ct->grid.affine);
    for (int a = 0; a < 3; a++)
        ct->grid.affine[a][(a + 1) % 3] = 1; /* axes in another order are no turn */
    dm_volume_free(onto(ct, pet, &info));
    dm_volume empty = *ct;
    empty.data = NULL;
    refuse(&empty, pet, NULL, "no CT", "volumes");
    empty = *ct;
    empty.grid.dim[1] = 0;
    refuse(&empty, pet, NULL, "no CT", "volumes");
    dm_volume_free(ct);
    dm_volume_free(pet);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_orientations),
                                       cmocka_unit_test(test_same_voxels),
                                       cmocka_unit_test(test_coverage),
                                       cmocka_unit_test(test_values_that_are_no_hu),
                                       cmocka_unit_test(test_values_that_are_no_numbers),
                                       cmocka_unit_test(test_turned)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
