/* SPDX-License-Identifier: Apache-2.0 */
/* dm_volume_view_header: voxels in memory that a NIfTI header places, as a file with that header. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "dosemap.h"
#include "nifti_bytes.h"
#include "volume/nifti_header.h"

enum { VOXELS = 7 * 5 * 3 };
static char folder[64], in_path[128], out_path[128];

static int make_folder(void **state)
{
    (void)state;
    make_test_folder(folder);
    snprintf(in_path, sizeof in_path, "%s/in.nii", folder);
    snprintf(out_path, sizeof out_path, "%s/out.nii", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

/* 7 x 5 x 3 voxels in float32, placed by all that a header has. */
static nifti_spec placed(int version)
{
    nifti_spec spec = nifti_spec_default(version);
    const double pixdim[8] = {-1, 1.1, 2.3, 3.7, 900, 0.1, 0.2, 0.3};
    const int64_t dim[8] = {4, 7, 5, 3, 1, 1, 1, 1};
    memcpy(spec.pixdim, pixdim, sizeof pixdim);
    memcpy(spec.dim, dim, sizeof dim);
    spec.datatype = 16;
    spec.bitpix = 32;
    spec.qform_code = 3;
    spec.sform_code = 2;
    spec.xyzt_units = 2 | 8;
    for (int i = 0; i < 3; i++) {
        spec.quatern[i] = 0.123456789 * (i + 1);
        spec.qoffset[i] = -98.7654321 * (i + 1);
        for (int c = 0; c < 4; c++)
            spec.srow[i][c] = (c == i ? 2.718281828 : 0.1234567) * (c == 3 ? -77.7 : 1);
    }
    return spec;
}

static uint8_t *written(const dm_volume *volume, size_t *size)
{
    dm_error err = {0};
    if (dm_volume_write(volume, out_path, 1, &err) != DM_OK)
        fail_msg("%s: %s", err.where, err.what);
    uint8_t *bytes = load_bytes(out_path, size);
    unlink(out_path);
    return bytes;
}

/* The file of `spec` read, and its voxels viewed through the header of `memory`: one grid, to the
 * bit, and one file when they are written. */
static void check_view(const nifti_spec *spec, const nifti_spec *memory, bool pair, bool extender)
{
    uint8_t bytes[4096], head[NIFTI_2_HEAD];
    double values[VOXELS];
    dm_error err = {0};
    dm_volume *file = NULL, *view = NULL;
    for (int i = 0; i < VOXELS; i++)
        values[i] = i * 0.5 - 20;
    save_bytes(in_path, bytes, put_file(spec, values, VOXELS, bytes, sizeof bytes));
    if (dm_volume_read(in_path, &file, &err) != DM_OK)
        fail_msg("%s", err.what);
    unlink(in_path);
    size_t size = put_header(memory, head), size_read = 0, size_viewed = 0;
    if (pair)
        memcpy(head + (memory->version == 1 ? 344 : 4), memory->version == 1 ? "ni1" : "ni2", 3);
    if (dm_volume_view_header(head, extender ? size : size - 4, file->data, &view, &err) != DM_OK)
        fail_msg("%s", err.what);
    assert_ptr_equal(view->data, file->data);
    assert_memory_equal(&view->grid, &file->grid, sizeof view->grid);
    assert_int_equal(volume_had_extensions(view), extender && memory->extension);
    uint8_t *read = written(file, &size_read), *viewed = written(view, &size_viewed);
    assert_int_equal(size_read, size_viewed);
    assert_memory_equal(read, viewed, size_read);
    free(read);
    free(viewed);
    dm_volume_free(view); /* leaves the voxels */
    assert_true(file->data[1] == -19.5f);
    dm_volume_free(file);
}

static void test_as_read(void **state)
{
    (void)state;
    for (int v = 0; v < 48; v++) {
        nifti_spec spec = placed(1 + v % 2);
        const int placement = v / 2 % 3;
        if (placement >= 1) /* the qform, or the voxel sizes alone */
            spec.sform_code = 0;
        if (placement == 2)
            spec.qform_code = 0;
        spec.xyzt_units = v / 6 % 2 ? 1 : 2 | 8; /* metres */
        spec.big_endian = v / 12 % 2;
        nifti_spec memory = spec;
        if (v / 24) { /* what says how a file's voxels are stored */
            memory.datatype = v % 3 ? 4 : 1792;
            memory.bitpix = 7;
            memory.vox_offset = 0;
            memory.slope = NAN;
            memory.inter = INFINITY;
            memory.extension = true;
        }
        check_view(&spec, &memory, v / 24, v % 5 > 1);
    }
}

/* Fewer axes than three. */
static void test_plane(void **state)
{
    (void)state;
    for (int version = 1; version <= 2; version++) {
        nifti_spec spec = placed(version);
        const int64_t dim[8] = {2, 21, 5, 0, 0, 0, 0, 0};
        memcpy(spec.dim, dim, sizeof dim);
        spec.pixdim[3] = 0;
        spec.sform_code = 0;
        check_view(&spec, &spec, false, true);
    }
}

static void refuse(const uint8_t *head, size_t size, dm_status status, const char *what)
{
    float voxels[VOXELS] = {0};
    dm_error err = {0};
    dm_volume *view = (dm_volume *)voxels;
    assert_int_equal(dm_volume_view_header(head, size, voxels, &view, &err), status);
    assert_null(view);
    if (!strstr(err.what, what))
        fail_msg("'%s' does not say '%s'", err.what, what);
    assert_true(err.remedy[0]);
    assert_int_equal(dm_volume_view_header(head, size, voxels, &view, NULL), status);
}

static void test_headers_that_cannot_be(void **state)
{
    (void)state;
    uint8_t head[NIFTI_2_HEAD + 1] = {0};
    for (int version = 1; version <= 2; version++) {
        const size_t size = nifti_head_bytes(version);
        nifti_spec spec = placed(version);
        put_header(&spec, head);
        static const size_t shorter[] = {0, 3, 4, 40, 347};
        for (size_t i = 0; i < sizeof shorter / sizeof *shorter; i++)
            refuse(head, shorter[i], DM_ERROR_FORMAT, "no NIfTI header");
        refuse(head, size - 5, DM_ERROR_FORMAT, "no NIfTI header");
        refuse(head, size + 1, DM_ERROR_FORMAT, "no NIfTI header");
        memset(head + (version == 1 ? 344 : 4), version == 1 ? 0 : 'x', 3);
        refuse(head, size, version == 1 ? DM_ERROR_UNSUPPORTED : DM_ERROR_FORMAT,
               version == 1 ? "ANALYZE" : "magic");
        head[0] = 1;
        refuse(head, size, DM_ERROR_FORMAT, "no NIfTI header");

        spec.dim[2] = -5;
        put_header(&spec, head);
        refuse(head, size, DM_ERROR_FORMAT, "dim[2] is -5");
        spec = placed(version);
        spec.dim[4] = 9;
        put_header(&spec, head);
        refuse(head, size, DM_ERROR_UNSUPPORTED, "4D series with 9");
        spec = placed(version);
        spec.srow[1][2] = NAN;
        put_header(&spec, head);
        refuse(head, size, DM_ERROR_FORMAT, "srow_y[2] is nan");
        spec = placed(version);
        spec.sform_code = 0;
        spec.pixdim[2] = 0;
        put_header(&spec, head);
        refuse(head, size, DM_ERROR_FORMAT, "pixdim[2]");
        spec = placed(version);
        memset(spec.srow[2], 0, sizeof spec.srow[2]);
        put_header(&spec, head);
        refuse(head, size, DM_ERROR_FORMAT, "sform");
    }
    nifti_spec spec = placed(2);
    spec.dim[1] = spec.dim[2] = spec.dim[3] = INT64_C(1) << 40;
    put_header(&spec, head);
    refuse(head, NIFTI_2_HEAD, DM_ERROR_FORMAT, "more than memory can ever hold");
    spec = placed(1);
    put_header(&spec, head);
    dm_error err = {0};
    dm_volume *view = (dm_volume *)&spec;
    assert_int_equal(dm_volume_view_header(head, NIFTI_1_HEAD, NULL, &view, &err), DM_ERROR_VALUE);
    assert_null(view);
    assert_non_null(strstr(err.what, "without voxels"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_read),
        cmocka_unit_test(test_plane),
        cmocka_unit_test(test_headers_that_cannot_be),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
