/* SPDX-License-Identifier: Apache-2.0 */
/* Reading files made byte by byte, in a folder of the test's own. For the NIfTI tests. */
#ifndef DOSEMAP_TESTS_NIFTI_READING_H
#define DOSEMAP_TESTS_NIFTI_READING_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

#include "dosemap.h"
#include "nifti_bytes.h"

#define VOXELS 15
#define CAPACITY 8192

static char folder[64], path[128];

static inline int make_folder(void **state)
{
    (void)state;
    make_test_folder(folder);
    snprintf(path, sizeof path, "%s/volume.nii", folder);
    return 0;
}

static inline int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static const double plain_values[VOXELS] = {0, 1, 2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 127};

static inline dm_volume *read_good(const uint8_t *bytes, size_t size)
{
    dm_volume *volume = NULL;
    dm_error err = {0};
    save_bytes(path, bytes, size);
    if (dm_volume_read(path, &volume, &err) != DM_OK)
        fail_msg("%s: %s", err.where, err.what);
    assert_non_null(volume);
    return volume;
}

static inline dm_volume *read_spec(const nifti_spec *spec)
{
    uint8_t bytes[CAPACITY];
    return read_good(bytes, put_file(spec, plain_values, VOXELS, bytes, sizeof bytes));
}

/* Reads what must fail: for this reason, with a remedy, naming the file, and without a volume. */
static inline void read_bad(const uint8_t *bytes, size_t size, dm_status status, const char *what)
{
    dm_volume *volume = (dm_volume *)&volume;
    dm_error err = {0};
    save_bytes(path, bytes, size);
    assert_int_equal(dm_volume_read(path, &volume, &err), status);
    assert_int_equal(err.status, status);
    assert_null(volume);
    assert_non_null(strstr(err.where, path));
    if (!strstr(err.what, what))
        fail_msg("\"%s\" does not say \"%s\"", err.what, what);
    assert_true(err.remedy[0] != '\0');
}

static inline void spec_bad(const nifti_spec *spec, dm_status status, const char *what)
{
    uint8_t bytes[CAPACITY] = {0};
    put_header(spec, bytes);
    read_bad(bytes, sizeof bytes, status, what);
}

/* Two placements, by sform and by qform. */
static const double sform[3][4] = {{-2, 0.25, 0, 90}, {0.5, 3, 0, -126}, {0, 0, 4.5, -72}};
/* A quarter turn about z: x of the image points to +y, y to -x; then z is flipped by qfac. */
static const double qform[3][4] = {{0, -3, 0, 10}, {2, 0, 0, 20}, {0, 0, -4, 30}};

static inline void set_sform(nifti_spec *spec)
{
    spec->sform_code = 2;
    memcpy(spec->srow, sform, sizeof sform);
}

static inline void set_qform(nifti_spec *spec)
{
    spec->qform_code = 1;
    spec->pixdim[0] = -1;
    spec->quatern[2] = sqrt(0.5);
    for (int i = 0; i < 3; i++)
        spec->qoffset[i] = 10 * (i + 1);
}

#endif
