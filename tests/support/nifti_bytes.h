/* SPDX-License-Identifier: Apache-2.0 */
/* NIfTI files byte by byte, by the offsets of the standard, without NIfTI-clib: what the reader is
 * tested against. */
#ifndef DOSEMAP_TESTS_NIFTI_BYTES_H
#define DOSEMAP_TESTS_NIFTI_BYTES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct nifti_spec {
    int version;
    bool big_endian;
    int64_t dim[8];
    int datatype, bitpix;
    double pixdim[8];
    double vox_offset;
    double slope, inter;
    int xyzt_units;
    int qform_code, sform_code;
    double quatern[3], qoffset[3];
    double srow[3][4];
    bool extension; /* sets the extender's flag */
} nifti_spec;

/* Header and extender. */
static inline size_t nifti_head_bytes(int version)
{
    return version == 1 ? 352 : 544;
}

/* The low `size` bytes of an integer. */
static inline void put_integer(uint8_t *at, uint64_t value, size_t size, bool big_endian)
{
    for (size_t i = 0; i < size; i++)
        at[big_endian ? size - 1 - i : i] = (uint8_t)(value >> (8 * i));
}

static inline void put_real(uint8_t *at, double value, size_t size, bool big_endian)
{
    uint64_t bits = 0;
    if (size == 4) {
        float narrow = (float)value;
        uint32_t half;
        memcpy(&half, &narrow, 4);
        bits = half;
    } else {
        memcpy(&bits, &value, 8);
    }
    put_integer(at, bits, size, big_endian);
}

/* One voxel of NIfTI `datatype`; returns its size. */
static inline size_t put_sample(uint8_t *at, int datatype, double value, bool big_endian)
{
    size_t size = datatype == 2 || datatype == 256                         ? 1
                  : datatype == 4 || datatype == 512                       ? 2
                  : datatype == 8 || datatype == 768                       ? 4
                  : datatype == 16                                         ? 4
                  : datatype == 1024 || datatype == 1280 || datatype == 64 ? 8
                                                                           : 0;
    if (size == 0)
        abort();
    if (datatype == 16 || datatype == 64)
        put_real(at, value, size, big_endian);
    else if (datatype == 1280)
        put_integer(at, (uint64_t)value, size, big_endian);
    else
        put_integer(at, (uint64_t)(int64_t)value, size, big_endian);
    return size;
}

/* 3 x 1 x 5 voxels of 2, 3, 4 mm without qform or sform, int16. */
static inline nifti_spec nifti_spec_default(int version)
{
    nifti_spec spec = {.version = version,
                       .dim = {3, 3, 1, 5, 1, 1, 1, 1},
                       .datatype = 4,
                       .bitpix = 16,
                       .pixdim = {1, 2, 3, 4, 0, 0, 0, 0},
                       .vox_offset = (double)nifti_head_bytes(version),
                       .xyzt_units = 2};
    return spec;
}

static inline void put_header_1(const nifti_spec *s, uint8_t *out)
{
    const bool big = s->big_endian;
    put_integer(out, 348, 4, big);
    for (int i = 0; i < 8; i++) {
        put_integer(out + 40 + 2 * i, (uint64_t)s->dim[i], 2, big);
        put_real(out + 76 + 4 * i, s->pixdim[i], 4, big);
    }
    put_integer(out + 70, (uint64_t)s->datatype, 2, big);
    put_integer(out + 72, (uint64_t)s->bitpix, 2, big);
    put_real(out + 108, s->vox_offset, 4, big);
    put_real(out + 112, s->slope, 4, big);
    put_real(out + 116, s->inter, 4, big);
    out[123] = (uint8_t)s->xyzt_units;
    put_integer(out + 252, (uint64_t)s->qform_code, 2, big);
    put_integer(out + 254, (uint64_t)s->sform_code, 2, big);
    for (int i = 0; i < 3; i++) {
        put_real(out + 256 + 4 * i, s->quatern[i], 4, big);
        put_real(out + 268 + 4 * i, s->qoffset[i], 4, big);
        for (int c = 0; c < 4; c++)
            put_real(out + 280 + 16 * i + 4 * c, s->srow[i][c], 4, big);
    }
    memcpy(out + 344, "n+1", 4);
    out[348] = s->extension;
}

static inline void put_header_2(const nifti_spec *s, uint8_t *out)
{
    const bool big = s->big_endian;
    put_integer(out, 540, 4, big);
    memcpy(out + 4, "n+2\0\r\n\032\n", 8);
    put_integer(out + 12, (uint64_t)s->datatype, 2, big);
    put_integer(out + 14, (uint64_t)s->bitpix, 2, big);
    for (int i = 0; i < 8; i++) {
        put_integer(out + 16 + 8 * i, (uint64_t)s->dim[i], 8, big);
        put_real(out + 104 + 8 * i, s->pixdim[i], 8, big);
    }
    put_integer(out + 168, (uint64_t)(int64_t)s->vox_offset, 8, big);
    put_real(out + 176, s->slope, 8, big);
    put_real(out + 184, s->inter, 8, big);
    put_integer(out + 344, (uint64_t)s->qform_code, 4, big);
    put_integer(out + 348, (uint64_t)s->sform_code, 4, big);
    for (int i = 0; i < 3; i++) {
        put_real(out + 352 + 8 * i, s->quatern[i], 8, big);
        put_real(out + 376 + 8 * i, s->qoffset[i], 8, big);
        for (int c = 0; c < 4; c++)
            put_real(out + 400 + 32 * i + 8 * c, s->srow[i][c], 8, big);
    }
    put_integer(out + 500, (uint64_t)s->xyzt_units, 4, big);
    out[540] = s->extension;
}

/* Writes header and extender into zeroed `out`; returns their size. */
static inline size_t put_header(const nifti_spec *spec, uint8_t *out)
{
    memset(out, 0, nifti_head_bytes(spec->version));
    if (spec->version == 1)
        put_header_1(spec, out);
    else
        put_header_2(spec, out);
    return nifti_head_bytes(spec->version);
}

/* A whole file: header, zeros up to vox_offset, then `n` voxels. Returns its size; it must fit. */
static inline size_t put_file(const nifti_spec *spec, const double *values, size_t n, uint8_t *out,
                              size_t capacity)
{
    size_t at = (size_t)spec->vox_offset;
    if (at < nifti_head_bytes(spec->version) || at + 8 * n > capacity)
        abort();
    memset(out, 0, at);
    put_header(spec, out);
    for (size_t i = 0; i < n; i++)
        at += put_sample(out + at, spec->datatype, values[i], spec->big_endian);
    return at;
}

static inline void save_bytes(const char *path, const uint8_t *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file) != 0)
        abort();
}

/* The whole of a file; free(). */
static inline uint8_t *load_bytes(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        abort();
    fseek(file, 0, SEEK_END);
    long length = ftell(file);
    rewind(file);
    uint8_t *bytes = malloc((size_t)length + 1);
    if (length < 0 || !bytes || fread(bytes, 1, (size_t)length, file) != (size_t)length)
        abort();
    fclose(file);
    *size = (size_t)length;
    return bytes;
}

/* A new folder for a test's files, in `path`. */
static inline void make_test_folder(char path[64])
{
    snprintf(path, 64, "/tmp/dosemap-test-XXXXXX");
    if (!mkdtemp(path))
        abort();
}

#endif
