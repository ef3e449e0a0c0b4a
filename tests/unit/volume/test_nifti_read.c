/* SPDX-License-Identifier: Apache-2.0 */
/* dm_volume_read on files made byte by byte: what must be read, and how. */
#include "nifti_reading.h"

#include <math.h>

#include "compare.h"
#include "volume/nifti_header.h"

/* ---- Voxels --------------------------------------------------------------------------------- */

static const struct {
    int code, bits;
    double lowest, highest; /* that float32 holds exactly */
} types[] = {
    {2, 8, 0, 255},
    {256, 8, -128, 127},
    {512, 16, 0, 65535},
    {4, 16, -32768, 32767},
    {768, 32, 0, 4294967040.0},
    {8, 32, -2147483648.0, 2147483520.0},
    {1280, 64, 0, 18446742974197923840.0},
    {1024, 64, -9223372036854775808.0, 9223371487098961920.0},
    {16, 32, -1.5e-30, 3.25e30},
    {64, 64, -1.5e-30, 3.25e30},
};

static void check_type(size_t t, int version, bool big, bool scaled)
{
    double values[VOXELS];
    float expected[VOXELS];
    uint8_t bytes[CAPACITY];
    nifti_spec spec = nifti_spec_default(version);
    spec.big_endian = big;
    spec.datatype = types[t].code;
    spec.bitpix = types[t].bits;
    if (scaled) {
        spec.slope = 0.37;
        spec.inter = -2.5;
    }
    const double slope = version == 1 ? (double)(float)0.37 : 0.37;
    memcpy(values, plain_values, sizeof values);
    values[3] = types[t].lowest;
    values[7] = types[t].highest;
    for (int i = 0; i < VOXELS; i++)
        expected[i] = (float)(scaled                ? slope * values[i] - 2.5
                              : types[t].code == 16 ? (double)(float)values[i]
                                                    : values[i]);
    dm_volume *volume = read_good(bytes, put_file(&spec, values, VOXELS, bytes, sizeof bytes));
    assert_int_equal(dm_grid_voxels(&volume->grid), VOXELS);
    assert_true(arrays_close(volume->data, VOXELS, expected, VOXELS, 0, scaled ? 1.2e-7 : 0));
    assert_false(volume_had_extensions(volume));
    dm_volume_free(volume);
}

static void test_every_type(void **state)
{
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++)
        for (int variant = 0; variant < 8; variant++)
            check_type(t, 1 + (variant & 1), variant & 2, variant & 4);
}

/* More than one piece of the stream, and a last piece that is not whole. */
static void test_longer_than_a_piece(void **state)
{
    (void)state;
    for (int big = 0; big < 2; big++) {
        nifti_spec spec = nifti_spec_default(1);
        spec.big_endian = big;
        spec.dim[1] = 701;
        spec.dim[2] = 37;
        spec.dim[3] = 53;
        const size_t n = 701 * 37 * 53;
        uint8_t *bytes = malloc(352 + 2 * n);
        assert_non_null(bytes);
        put_header(&spec, bytes);
        for (size_t i = 0; i < n; i++)
            put_sample(bytes + 352 + 2 * i, 4, (double)(i % 30011), big);
        dm_volume *volume = read_good(bytes, 352 + 2 * n);
        size_t wrong = 0;
        for (size_t i = 0; i < n; i++)
            wrong += volume->data[i] != (float)(i % 30011);
        assert_int_equal(wrong, 0);
        dm_volume_free(volume);
        free(bytes);
    }
}

static void test_slopes_that_mean_no_scaling(void **state)
{
    (void)state;
    const double slopes[] = {0, NAN, INFINITY};
    for (size_t i = 0; i < 3; i++) {
        nifti_spec spec = nifti_spec_default(2);
        spec.slope = slopes[i];
        spec.inter = i == 0 ? NAN : 5;
        dm_volume *volume = read_spec(&spec);
        assert_true(volume->data[14] == 127);
        dm_volume_free(volume);
    }
}

static void test_extensions_and_trailing_bytes(void **state)
{
    (void)state;
    for (int version = 1; version <= 2; version++) {
        uint8_t bytes[CAPACITY];
        nifti_spec spec = nifti_spec_default(version);
        spec.extension = true;
        spec.vox_offset += 48;
        size_t size = put_file(&spec, plain_values, VOXELS, bytes, sizeof bytes);
        memset(bytes + nifti_head_bytes(version), 0xa5, 48);
        memset(bytes + size, 0x5a, 100);
        dm_volume *volume = read_good(bytes, size + 100);
        assert_true(volume->data[1] == 1 && volume->data[14] == 127);
        assert_true(volume_had_extensions(volume));
        dm_volume_free(volume);
    }
}

static void test_other_numbers_of_dimensions(void **state)
{
    (void)state;
    const int64_t dims[][8] = {{1, 15, 0, 0, 0, 0, 0, 0},
                               {2, 5, 3, -7, 0, 0, 0, 0},
                               {4, 3, 1, 5, 1, 9, 9, 9},
                               {5, 1, 1, 15, 1, 1, 0, 0},
                               {7, 15, 1, 1, 1, 1, 1, 1}};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++) {
        nifti_spec spec = nifti_spec_default(1 + (int)(i % 2));
        memcpy(spec.dim, dims[i], sizeof spec.dim);
        if (dims[i][0] < 3)
            spec.pixdim[3] = NAN;
        dm_volume *volume = read_spec(&spec);
        for (int axis = 0; axis < 3; axis++) {
            size_t expected = axis < dims[i][0] ? (size_t)dims[i][axis + 1] : 1;
            assert_int_equal(volume->grid.dim[axis], expected);
        }
        assert_true(volume->grid.spacing_mm[2] == (dims[i][0] < 3 ? 1 : 4));
        assert_true(volume->data[14] == 127);
        dm_volume_free(volume);
    }
}

/* ---- Where the voxels lie ------------------------------------------------------------------- */

static void assert_affine(const dm_volume *volume, const double expected[3][4], double tolerance)
{
    for (int row = 0; row < 3; row++)
        for (int column = 0; column < 4; column++)
            if (!(fabs(volume->grid.affine[row][column] - expected[row][column]) <= tolerance))
                fail_msg("affine[%d][%d] is %g, not %g", row, column,
                         volume->grid.affine[row][column], expected[row][column]);
    for (int axis = 0; axis < 3; axis++)
        assert_true(fabs(volume->grid.spacing_mm[axis] -
                         hypot(hypot(expected[0][axis], expected[1][axis]), expected[2][axis])) <=
                    tolerance);
}

static void test_sform_qform_or_neither(void **state)
{
    (void)state;
    const double neither[3][4] = {{2, 0, 0, 0}, {0, 3, 0, 0}, {0, 0, 4, 0}};
    for (int variant = 0; variant < 4; variant++) {
        nifti_spec spec = nifti_spec_default(1 + (variant & 1));
        spec.big_endian = variant & 2;
        dm_volume *volume = read_spec(&spec);
        assert_affine(volume, neither, 0);
        dm_volume_free(volume);

        set_qform(&spec);
        volume = read_spec(&spec);
        assert_affine(volume, qform, 1e-6);
        dm_volume_free(volume);

        set_sform(&spec);
        volume = read_spec(&spec);
        assert_affine(volume, sform, 0);
        dm_volume_free(volume);

        spec.qform_code = 0;
        spec.quatern[0] = NAN; /* without a code it means nothing */
        volume = read_spec(&spec);
        assert_affine(volume, sform, 0);
        dm_volume_free(volume);
    }
}

static void test_spatial_units(void **state)
{
    (void)state;
    const struct {
        int units;
        double mm;
    } cases[] = {{0, 1}, {2, 1}, {2 | 8, 1}, {1, 1000}, {3, 0.001}, {3 | 16, 0.001}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double scaled[3][4];
        nifti_spec spec = nifti_spec_default(1 + (int)(i % 2));
        set_sform(&spec);
        spec.xyzt_units = cases[i].units;
        for (int e = 0; e < 12; e++)
            scaled[e / 4][e % 4] = sform[e / 4][e % 4] * cases[i].mm;
        dm_volume *volume = read_spec(&spec);
        assert_affine(volume, scaled, 1e-9);
        dm_volume_free(volume);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_type),
        cmocka_unit_test(test_longer_than_a_piece),
        cmocka_unit_test(test_slopes_that_mean_no_scaling),
        cmocka_unit_test(test_extensions_and_trailing_bytes),
        cmocka_unit_test(test_other_numbers_of_dimensions),
        cmocka_unit_test(test_sform_qform_or_neither),
        cmocka_unit_test(test_spatial_units),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
