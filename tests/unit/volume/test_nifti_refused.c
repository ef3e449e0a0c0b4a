/* SPDX-License-Identifier: Apache-2.0 */
/* dm_volume_read on files made byte by byte: what must be refused, and why; compressed files. */
#include "nifti_reading.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/codec.h"

/* ---- Plain files ---------------------------------------------------------------------------- */

static void test_every_truncation(void **state)
{
    (void)state;
    for (int version = 1; version <= 2; version++) {
        uint8_t bytes[CAPACITY];
        nifti_spec spec = nifti_spec_default(version);
        spec.vox_offset += 32;
        size_t size = put_file(&spec, plain_values, VOXELS, bytes, sizeof bytes);
        for (size_t n = 0; n < size; n++) {
            char count[64];
            snprintf(count, sizeof count,
                     n < nifti_head_bytes(version) ? "ends after %zu bytes" : "there are %zu bytes",
                     n);
            if (n == 0)
                snprintf(count, sizeof count, "not a NIfTI file: it is empty");
            read_bad(bytes, n, DM_ERROR_FORMAT, n > 0 && n < 4 ? "not a NIfTI file" : count);
        }
        dm_volume_free(read_good(bytes, size));
    }
}

static void test_wrong_magic(void **state)
{
    (void)state;
    uint8_t bytes[CAPACITY] = {0};
    nifti_spec spec = nifti_spec_default(1);
    put_header(&spec, bytes);
    memcpy(bytes + 344, "ni1", 4);
    read_bad(bytes, sizeof bytes, DM_ERROR_UNSUPPORTED, "NIfTI pair");
    memset(bytes + 344, 0, 4);
    read_bad(bytes, sizeof bytes, DM_ERROR_UNSUPPORTED, "ANALYZE");
    memcpy(bytes + 344, "n+2", 4);
    read_bad(bytes, sizeof bytes, DM_ERROR_FORMAT, "magic is 6e 2b 32 00, not \"n+1\"");
    memcpy(bytes + 344, "n+1x", 4);
    read_bad(bytes, sizeof bytes, DM_ERROR_FORMAT, "6e 2b 31 78");
    put_integer(bytes, 349, 4, false);
    read_bad(bytes, sizeof bytes, DM_ERROR_FORMAT, "not a NIfTI file");

    spec = nifti_spec_default(2);
    put_header(&spec, bytes);
    bytes[8] = '\n'; /* as a transfer in text mode leaves it */
    read_bad(bytes, sizeof bytes, DM_ERROR_FORMAT, "not \"n+2\"");
    memcpy(bytes + 4, "ni2\0\r\n\032\n", 8);
    read_bad(bytes, sizeof bytes, DM_ERROR_UNSUPPORTED, "NIfTI pair");
}

static void test_bad_dimensions(void **state)
{
    (void)state;
    const struct {
        int version;
        int64_t dim[8];
        dm_status status;
        const char *what;
    } cases[] = {
        {1, {0, 3, 1, 5}, DM_ERROR_FORMAT, "dim[0], the number of dimensions, is 0"},
        {1, {8, 3, 1, 5}, DM_ERROR_FORMAT, "is 8, not 1 to 7"},
        {2, {-3, 3, 1, 5}, DM_ERROR_FORMAT, "is -3"},
        {1, {3, 0, 1, 5}, DM_ERROR_FORMAT, "dim[1] is 0"},
        {2, {3, 3, -9, 5}, DM_ERROR_FORMAT, "dim[2] is -9"},
        {1, {3, 3, 1, -32768}, DM_ERROR_FORMAT, "dim[3] is -32768"},
        {1, {4, 3, 1, 5, 0}, DM_ERROR_FORMAT, "dim[4] is 0"},
        {1, {4, 3, 1, 5, 24}, DM_ERROR_UNSUPPORTED, "4D series with 24 frames"},
        {2, {5, 3, 1, 5, 1, 3}, DM_ERROR_UNSUPPORTED, "dim[5] is 3"},
        {1, {3, 32767, 32767, 32767}, DM_ERROR_FORMAT, "there are 8192 bytes, but"},
        {2, {3, 1 << 29, 1 << 29, 1}, DM_ERROR_FORMAT, "there are 8192 bytes, but"},
        {2, {3, INT64_MAX, 1, 1}, DM_ERROR_FORMAT, "more than memory can ever hold"},
        {2, {3, INT64_MAX, INT64_MAX, INT64_MAX}, DM_ERROR_FORMAT, "more than memory"},
        {2, {3, 1LL << 32, 1LL << 32, 1}, DM_ERROR_FORMAT, "more than memory"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int big = 0; big < 2; big++) {
            nifti_spec spec = nifti_spec_default(cases[i].version);
            spec.big_endian = big;
            memcpy(spec.dim, cases[i].dim, sizeof spec.dim);
            spec_bad(&spec, cases[i].status, cases[i].what);
        }
}

static void test_bad_types(void **state)
{
    (void)state;
    const struct {
        int type, bits;
        dm_status status;
        const char *what;
    } cases[] = {
        {32, 64, DM_ERROR_UNSUPPORTED, "datatype 32 (COMPLEX64)"},
        {128, 24, DM_ERROR_UNSUPPORTED, "(RGB24)"},
        {2304, 32, DM_ERROR_UNSUPPORTED, "(RGBA32)"},
        {1536, 128, DM_ERROR_UNSUPPORTED, "(FLOAT128)"},
        {1792, 128, DM_ERROR_UNSUPPORTED, "(COMPLEX128)"},
        {2048, 256, DM_ERROR_UNSUPPORTED, "(COMPLEX256)"},
        {1, 1, DM_ERROR_UNSUPPORTED, "(BINARY)"},
        {0, 0, DM_ERROR_FORMAT, "datatype 0 is none"},
        {7, 16, DM_ERROR_FORMAT, "datatype 7 is none"},
        {-4, 16, DM_ERROR_FORMAT, "datatype -4 is none"},
        {4, 32, DM_ERROR_FORMAT, "bitpix is 32, but datatype 4 (INT16) takes 16 bits"},
        {16, 0, DM_ERROR_FORMAT, "bitpix is 0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        nifti_spec spec = nifti_spec_default(1 + (int)(i % 2));
        spec.datatype = cases[i].type;
        spec.bitpix = cases[i].bits;
        spec_bad(&spec, cases[i].status, cases[i].what);
    }
}

static void test_bad_offsets(void **state)
{
    (void)state;
    const double offsets[] = {0, 348, 351, 352.5, -352, 4e9, 3e38, NAN, INFINITY};
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        nifti_spec spec = nifti_spec_default(1);
        spec.vox_offset = offsets[i];
        spec_bad(&spec, DM_ERROR_FORMAT, "vox_offset is");
    }
    nifti_spec spec = nifti_spec_default(2);
    spec.vox_offset = 352;
    spec_bad(&spec, DM_ERROR_FORMAT,
             "vox_offset is 352; voxels must start at a whole byte from 544");
    spec.vox_offset = -9e18;
    spec_bad(&spec, DM_ERROR_FORMAT, "vox_offset is -9e+18");
    spec.vox_offset = 100000;
    spec_bad(&spec, DM_ERROR_FORMAT, "there are 8192 bytes, but the header promises 100030");
}

static void test_bad_scaling(void **state)
{
    (void)state;
    nifti_spec spec = nifti_spec_default(1);
    spec.slope = 2;
    spec.inter = NAN;
    spec_bad(&spec, DM_ERROR_FORMAT, "scl_slope is 2, but scl_inter is");
}

static void test_bad_placement(void **state)
{
    (void)state;
    for (int version = 1; version <= 2; version++) {
        nifti_spec spec = nifti_spec_default(version);
        set_sform(&spec);
        spec.srow[1][3] = NAN;
        spec_bad(&spec, DM_ERROR_FORMAT, "srow_y[3] is");
        memset(spec.srow, 0, sizeof spec.srow);
        spec_bad(&spec, DM_ERROR_FORMAT,
                 "sform: the affine gives voxels a size of 0 mm along axis 0");
        for (int e = 0; e < 12; e++)
            spec.srow[e / 4][e % 4] = e % 4 + 1;
        spec_bad(&spec, DM_ERROR_FORMAT, "sform: the affine is degenerate");

        spec = nifti_spec_default(version);
        set_qform(&spec);
        spec.quatern[1] = INFINITY;
        spec_bad(&spec, DM_ERROR_FORMAT, "quatern[1] is inf");
        spec.quatern[1] = 5;
        spec_bad(&spec, DM_ERROR_FORMAT, "not a rotation");
        set_qform(&spec);
        spec.quatern[1] = 0;
        spec.qoffset[2] = NAN;
        spec_bad(&spec, DM_ERROR_FORMAT, "qoffset[2] is");
        set_qform(&spec);
        spec.pixdim[0] = NAN;
        spec_bad(&spec, DM_ERROR_FORMAT, "pixdim[0] is");

        for (int qform_code = 0; qform_code < 2; qform_code++) {
            spec = nifti_spec_default(version);
            spec.qform_code = qform_code;
            spec.pixdim[3] = -4;
            spec_bad(&spec, DM_ERROR_FORMAT, "pixdim[3], the voxel size, is -4");
            spec.pixdim[3] = 0;
            spec_bad(&spec, DM_ERROR_FORMAT, "pixdim[3], the voxel size, is 0");
            spec.pixdim[3] = INFINITY;
            spec_bad(&spec, DM_ERROR_FORMAT, "pixdim[3] is inf");
        }
    }
}

static void test_no_file(void **state)
{
    (void)state;
    dm_volume *volume = (dm_volume *)&volume;
    dm_error err = {0};
    unlink(path);
    assert_int_equal(dm_volume_read(path, &volume, &err), DM_ERROR_IO);
    assert_null(volume);
    assert_non_null(strstr(err.where, path));
    assert_int_equal(dm_volume_read(folder, &volume, &err), DM_ERROR_IO);
    assert_null(volume);
    assert_int_equal(dm_volume_read(path, &volume, NULL), DM_ERROR_IO);
}

/* ---- Compressed files ----------------------------------------------------------------------- */

static uint8_t *compress(codec packing, const uint8_t *bytes, size_t size, size_t *packed_size)
{
    output_file *file = NULL;
    dm_error err = {0};
    assert_int_equal(output_open(path, &file, &err), DM_OK);
    assert_int_equal(codec_write(file, packing, bytes, size, NULL, 0, 1, &err), DM_OK);
    assert_int_equal(output_commit(file, &err), DM_OK);
    return load_bytes(path, packed_size);
}

static void test_compression_is_told_by_content(void **state)
{
    (void)state;
    const codec packings[] = {CODEC_GZIP, CODEC_ZSTD};
    for (int p = 0; p < 2; p++) {
        uint8_t bytes[CAPACITY];
        size_t packed_size;
        nifti_spec spec = nifti_spec_default(1);
        size_t size = put_file(&spec, plain_values, VOXELS, bytes, sizeof bytes);
        uint8_t *packed = compress(packings[p], bytes, size, &packed_size);
        dm_volume *volume = read_good(packed, packed_size); /* path ends in .nii */
        for (int i = 0; i < VOXELS; i++)
            assert_true(volume->data[i] == (float)plain_values[i]);
        dm_volume_free(volume);
        /* The checksum is behind the last voxel. */
        packed[packed_size - (packings[p] == CODEC_GZIP ? 5 : 1)] ^= 0x10;
        read_bad(packed, packed_size, DM_ERROR_FORMAT, "");
        free(packed);
    }
}

static void test_compressed_truncations(void **state)
{
    (void)state;
    const codec packings[] = {CODEC_GZIP, CODEC_ZSTD};
    for (int p = 0; p < 2; p++) {
        uint8_t bytes[CAPACITY];
        size_t packed_size;
        nifti_spec spec = nifti_spec_default(2);
        size_t size = put_file(&spec, plain_values, VOXELS, bytes, sizeof bytes);
        uint8_t *packed = compress(packings[p], bytes, size, &packed_size);
        for (size_t n = 0; n < packed_size; n++)
            read_bad(packed, n, DM_ERROR_FORMAT, "");
        free(packed);
        /* A stream that is whole, of a volume that is not. */
        packed = compress(packings[p], bytes, size - 7, &packed_size);
        read_bad(packed, packed_size, DM_ERROR_FORMAT,
                 "there are 567 bytes, but the header promises 574");
        free(packed);
    }
}

static long peak_kib(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
}

/* 8 TB promised by a file of some hundred bytes. */
static void test_lies_cost_no_memory(void **state)
{
    (void)state;
    const codec packings[] = {CODEC_PLAIN, CODEC_GZIP, CODEC_ZSTD};
    uint8_t bytes[CAPACITY] = {0};
    nifti_spec spec = nifti_spec_default(2);
    spec.dim[1] = spec.dim[2] = 1 << 20;
    spec.dim[3] = 1;
    spec.datatype = 64;
    spec.bitpix = 64;
    put_header(&spec, bytes);
    long before = peak_kib();
    for (int p = 0; p < 3; p++) {
        size_t packed_size;
        uint8_t *packed = compress(packings[p], bytes, sizeof bytes, &packed_size);
        read_bad(packed, packed_size, DM_ERROR_FORMAT, "header promises 8796093022752");
        free(packed);
    }
    assert_true(peak_kib() - before < 65536);
}

/* NIfTI-clib prints by itself where it is unhappy; our checks come before. */
static void test_nothing_is_printed(void **state)
{
    (void)state;
    char log[160];
    snprintf(log, sizeof log, "%s/printed", folder);
    fflush(stderr);
    fflush(stdout);
    int saved[2] = {dup(1), dup(2)};
    int fd = open(log, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_true(fd >= 0 && dup2(fd, 1) == 1 && dup2(fd, 2) == 2);
    uint8_t bytes[CAPACITY];
    for (int at = 0; at < 352; at++)
        for (int bit = 0; bit < 8; bit++) {
            nifti_spec spec = nifti_spec_default(1);
            dm_volume *volume = NULL;
            size_t size = put_file(&spec, plain_values, VOXELS, bytes, sizeof bytes);
            bytes[at] ^= (uint8_t)(1 << bit);
            save_bytes(path, bytes, size);
            dm_volume_read(path, &volume, NULL);
            dm_volume_free(volume);
        }
    fflush(stderr);
    fflush(stdout);
    dup2(saved[0], 1);
    dup2(saved[1], 2);
    struct stat printed;
    assert_int_equal(fstat(fd, &printed), 0);
    close(fd);
    close(saved[0]);
    close(saved[1]);
    unlink(log);
    assert_int_equal(printed.st_size, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_wrong_magic),
        cmocka_unit_test(test_bad_dimensions),
        cmocka_unit_test(test_bad_types),
        cmocka_unit_test(test_bad_offsets),
        cmocka_unit_test(test_bad_scaling),
        cmocka_unit_test(test_bad_placement),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_compression_is_told_by_content),
        cmocka_unit_test(test_compressed_truncations),
        cmocka_unit_test(test_lies_cost_no_memory),
        cmocka_unit_test(test_nothing_is_printed),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
