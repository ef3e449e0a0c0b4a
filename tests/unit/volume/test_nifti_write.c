/* SPDX-License-Identifier: Apache-2.0 */
/* dm_volume_write: what is kept of the input's header, and what is read back. */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "compare.h"
#include "dosemap.h"
#include "nifti_bytes.h"
#include "volume/nifti_header.h"

static char folder[64], in_path[128], out_path[128];

static int make_folder(void **state)
{
    (void)state;
    make_test_folder(folder);
    snprintf(in_path, sizeof in_path, "%s/in.nii", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(in_path);
    return rmdir(folder);
}

static const char *out(const char *name)
{
    snprintf(out_path, sizeof out_path, "%s/%s", folder, name);
    return out_path;
}

static dm_volume *read_volume(const char *path)
{
    dm_volume *volume = NULL;
    dm_error err = {0};
    if (dm_volume_read(path, &volume, &err) != DM_OK)
        fail_msg("%s: %s", err.where, err.what);
    return volume;
}

static void write_volume(const dm_volume *volume, const char *path, unsigned threads)
{
    dm_error err = {0};
    if (dm_volume_write(volume, path, threads, &err) != DM_OK)
        fail_msg("%s: %s", err.where, err.what);
}

/* The file's bytes; the file is removed. */
static uint8_t *written(const dm_volume *volume, const char *name, unsigned threads, size_t *size)
{
    write_volume(volume, out(name), threads);
    uint8_t *bytes = load_bytes(out_path, size);
    unlink(out_path);
    return bytes;
}

/* 7 x 5 x 3 voxels, int16 with a slope, in both forms of placement with odd numbers. */
static dm_volume *read_odd_input(int version, bool big_endian, nifti_spec *spec)
{
    double values[105];
    uint8_t bytes[4096];
    *spec = nifti_spec_default(version);
    spec->big_endian = big_endian;
    spec->dim[0] = 4;
    spec->dim[1] = 7;
    spec->dim[2] = 5;
    spec->dim[3] = 3;
    spec->slope = 0.25;
    spec->inter = 1;
    spec->xyzt_units = 2 | 8;
    spec->qform_code = 3;
    spec->sform_code = 2;
    spec->extension = true;
    spec->vox_offset += 16;
    const double pixdim[8] = {-1, 1.1, 2.3, 3.7, 900, 0.1, 0.2, 0.3};
    memcpy(spec->pixdim, pixdim, sizeof pixdim);
    for (int i = 0; i < 3; i++) {
        spec->quatern[i] = 0.123456789 * (i + 1);
        spec->qoffset[i] = -98.7654321 * (i + 1);
        for (int c = 0; c < 4; c++)
            spec->srow[i][c] = (c == i ? 2.718281828 : 0.1234567) * (c == 3 ? -77.7 : 1);
    }
    for (int i = 0; i < 105; i++)
        values[i] = i * i - 300;
    save_bytes(in_path, bytes, put_file(spec, values, 105, bytes, sizeof bytes));
    return read_volume(in_path);
}

/* The header that must come out: as the input's, but for float32, little-endian, one 3D volume. */
static size_t expected_head(const nifti_spec *input, uint8_t *bytes)
{
    nifti_spec spec = *input;
    spec.big_endian = false;
    spec.dim[0] = 3;
    spec.datatype = 16;
    spec.bitpix = 32;
    spec.slope = 1;
    spec.inter = 0;
    spec.extension = false;
    spec.vox_offset = (double)nifti_head_bytes(spec.version);
    size_t size = put_header(&spec, bytes);
    if (spec.version == 1)
        bytes[38] = 'r'; /* "regular", as everybody writes */
    char descrip[80];
    snprintf(descrip, sizeof descrip, "dosemap %s", dm_version());
    memcpy(bytes + (spec.version == 1 ? 148 : 240), descrip, strlen(descrip));
    return size;
}

static void test_header_is_kept(void **state)
{
    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        nifti_spec spec;
        uint8_t head[NIFTI_2_HEAD];
        size_t size;
        dm_volume *volume = read_odd_input(1 + (variant & 1), variant & 2, &spec);
        assert_true(volume_had_extensions(volume));
        size_t head_size = expected_head(&spec, head);
        uint8_t *bytes = written(volume, "out.nii", 1, &size);
        assert_int_equal(size, head_size + 105 * sizeof(float));
        assert_memory_equal(bytes, head, head_size);
        assert_memory_equal(bytes + head_size, volume->data, 105 * sizeof(float));
        free(bytes);
        dm_volume_free(volume);
    }
}

static void test_round_trip_in_every_packing(void **state)
{
    (void)state;
    static const char *const names[] = {"a.nii", "b.nii.gz", "c.nii.zst"};
    for (int n = 0; n < 3; n++) {
        nifti_spec spec;
        dm_volume *volume = read_odd_input(1 + n % 2, false, &spec);
        write_volume(volume, out(names[n]), 1);
        dm_volume *again = read_volume(out_path);
        assert_memory_equal(&again->grid, &volume->grid, sizeof volume->grid);
        assert_memory_equal(again->data, volume->data, 105 * sizeof(float));
        assert_false(volume_had_extensions(again));
        dm_volume_free(again);
        dm_volume_free(volume);
        unlink(out_path);
    }
}

static const dm_grid oblique = {
    .dim = {3, 2, 4},
    .affine = {{-2 * 0.8, 3 * 0.6, 0, 10.5}, {2 * 0.6, 3 * 0.8, 0, -20.25}, {0, 0, 4, 30}},
};

static dm_volume *create(const dm_grid *grid)
{
    dm_volume *volume = NULL;
    dm_error err = {0};
    if (dm_volume_create(grid, &volume, &err) != DM_OK)
        fail_msg("%s", err.what);
    return volume;
}

static double real_at(const uint8_t *bytes, size_t at)
{
    float value;
    memcpy(&value, bytes + at, sizeof value);
    return (double)value;
}

static void test_volume_made_in_memory(void **state)
{
    (void)state;
    size_t size;
    dm_volume *volume = create(&oblique);
    uint8_t *bytes = written(volume, "made.nii", 1, &size);
    assert_int_equal(size, 352 + 24 * sizeof(float));
    assert_int_equal(bytes[123], 2);                 /* mm */
    assert_true(bytes[252] == 1 && bytes[254] == 1); /* qform and sform */
    assert_true(real_at(bytes, 76) == -1);           /* the axes are left-handed */
    for (int axis = 0; axis < 3; axis++) {
        assert_true(fabs(real_at(bytes, 80 + 4 * (size_t)axis) - (axis + 2)) < 1e-6);
        assert_true(real_at(bytes, 268 + 4 * (size_t)axis) == oblique.affine[axis][3]);
    }
    /* The qform alone gives the same place. */
    bytes[254] = 0;
    save_bytes(in_path, bytes, size);
    dm_volume *again = read_volume(in_path);
    assert_true(dm_grid_equal(&again->grid, &volume->grid, NULL, 0));
    dm_volume_free(again);
    free(bytes);

    dm_grid sheared = oblique;
    sheared.affine[0][2] = 0.5;
    dm_volume_free(volume);
    volume = create(&sheared);
    bytes = written(volume, "made.nii", 1, &size);
    assert_true(bytes[252] == 0 && bytes[254] == 1);
    free(bytes);
    dm_volume_free(volume);
}

static void test_long_axis_becomes_nifti_2(void **state)
{
    (void)state;
    for (size_t length = 32767; length <= 32768; length++) {
        size_t size;
        dm_grid grid = oblique;
        grid.dim[0] = 1;
        grid.dim[1] = length;
        grid.dim[2] = 1;
        dm_volume *volume = create(&grid);
        volume->data[length - 1] = 42;
        uint8_t *bytes = written(volume, "long.nii", 1, &size);
        assert_int_equal(bytes[0] | bytes[1] << 8, length == 32767 ? 348 : 540);
        save_bytes(in_path, bytes, size);
        dm_volume *again = read_volume(in_path);
        assert_int_equal(again->grid.dim[1], length);
        assert_true(again->data[length - 1] == 42);
        assert_true(dm_grid_equal(&again->grid, &volume->grid, NULL, 0));
        dm_volume_free(again);
        free(bytes);
        dm_volume_free(volume);
    }
}

static void test_header_that_no_longer_fits_is_not_used(void **state)
{
    (void)state;
    nifti_spec spec;
    dm_volume *like = read_odd_input(1, false, &spec), *volume = NULL;
    dm_error err = {0};
    assert_int_equal(dm_volume_create_like(like, &volume, &err), DM_OK);
    assert_memory_equal(&volume->grid, &like->grid, sizeof like->grid);
    volume->grid.affine[0][3] += 50;
    write_volume(volume, out("moved.nii"), 1);
    dm_volume *again = read_volume(out_path);
    assert_true(dm_grid_equal(&again->grid, &volume->grid, NULL, 0));
    assert_false(dm_grid_equal(&again->grid, &like->grid, NULL, 0));
    unlink(out_path);
    dm_volume_free(again);
    dm_volume_free(volume);
    dm_volume_free(like);
}

static void test_bytes_do_not_depend_on_threads(void **state)
{
    (void)state;
    static const char *const names[] = {"t.nii", "t.nii.gz", "t.nii.zst"};
    dm_grid grid = {.dim = {131, 97, 53}, .affine = {{2, 0, 0, 0}, {0, 2, 0, 0}, {0, 0, 2, 0}}};
    dm_volume *volume = create(&grid);
    for (size_t i = 0; i < dm_grid_voxels(&grid); i++)
        volume->data[i] = (float)(i * 2654435761u % 1000) * 0.01f;
    for (int n = 0; n < 3; n++) {
        size_t first_size, size;
        uint8_t *first = written(volume, names[n], 1, &first_size);
        for (unsigned threads = 2; threads <= 3; threads++) {
            uint8_t *bytes = written(volume, names[n], threads, &size);
            assert_int_equal(size, first_size);
            assert_memory_equal(bytes, first, size);
            free(bytes);
        }
        free(first);
    }
    dm_volume_free(volume);
}

static size_t files_in_folder(void)
{
    size_t n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(dir);
    return n;
}

static void write_bad(const dm_volume *volume, const char *path, dm_status status, const char *what)
{
    dm_error err = {0};
    assert_int_equal(dm_volume_write(volume, path, 1, &err), status);
    assert_non_null(strstr(err.where, path));
    if (!strstr(err.what, what))
        fail_msg("\"%s\" does not say \"%s\"", err.what, what);
    assert_true(err.remedy[0] != '\0');
}

static void test_names_that_say_nothing(void **state)
{
    (void)state;
    static const char *const names[] = {"dose",    "dose.img",     "dose.nii.bz2", "dose.NII",
                                        "dose.gz", "dose.nii.gz/", ".nii",         ".nii.zst"};
    dm_volume *volume = create(&oblique);
    unlink(in_path);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        write_bad(volume, out(names[i]), DM_ERROR_VALUE, "which kind of NIfTI");
    assert_int_equal(files_in_folder(), 0);
    dm_volume_free(volume);
}

static void test_no_such_folder(void **state)
{
    (void)state;
    dm_volume *volume = create(&oblique);
    unlink(in_path);
    write_bad(volume, out("none/dose.nii.gz"), DM_ERROR_IO, "");
    assert_int_equal(files_in_folder(), 0);
    dm_volume_free(volume);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_header_is_kept),
        cmocka_unit_test(test_round_trip_in_every_packing),
        cmocka_unit_test(test_volume_made_in_memory),
        cmocka_unit_test(test_long_axis_becomes_nifti_2),
        cmocka_unit_test(test_header_that_no_longer_fits_is_not_used),
        cmocka_unit_test(test_bytes_do_not_depend_on_threads),
        cmocka_unit_test(test_names_that_say_nothing),
        cmocka_unit_test(test_no_such_folder),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
