/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a NIfTI file as float32: the decompressed bytes are converted piece by piece, so that no
 * second copy of the volume is ever in memory. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/codec.h"
#include "base/error.h"
#include "volume/grid.h"
#include "volume/nifti_header.h"

#define PIECE ((size_t)1 << 20)

static const char incomplete[] = "the file is incomplete; copy or convert it again";

/* ---- From samples to float ------------------------------------------------------------------ */

#define SWAP_EACH(bits)                                                                            \
    for (size_t i_ = 0; i_ < n; i_++) {                                                            \
        uint##bits##_t v_;                                                                         \
        memcpy(&v_, bytes + i_ * sizeof v_, sizeof v_);                                            \
        v_ = __builtin_bswap##bits(v_);                                                            \
        memcpy(bytes + i_ * sizeof v_, &v_, sizeof v_);                                            \
    }

static void swap_samples(uint8_t *bytes, size_t n, size_t sample_size)
{
    if (sample_size == 2)
        SWAP_EACH(16)
    else if (sample_size == 4)
        SWAP_EACH(32)
    else if (sample_size == 8)
        SWAP_EACH(64)
}

/* Scaled in double: an int32 times a slope needs more bits than float has. */
#define CONVERT(type)                                                                              \
    do {                                                                                           \
        const type *sample = raw;                                                                  \
        if (layout->scaled)                                                                        \
            for (size_t i = 0; i < n; i++)                                                         \
                out[i] = (float)(layout->slope * (double)sample[i] + layout->inter);               \
        else                                                                                       \
            for (size_t i = 0; i < n; i++)                                                         \
                out[i] = (float)sample[i];                                                         \
    } while (0)

static void convert_samples(const nifti_layout *layout, const void *raw, size_t n, float *out)
{
    switch (layout->type) {
    case SAMPLE_UINT8:
        CONVERT(uint8_t);
        break;
    case SAMPLE_INT8:
        CONVERT(int8_t);
        break;
    case SAMPLE_UINT16:
        CONVERT(uint16_t);
        break;
    case SAMPLE_INT16:
        CONVERT(int16_t);
        break;
    case SAMPLE_UINT32:
        CONVERT(uint32_t);
        break;
    case SAMPLE_INT32:
        CONVERT(int32_t);
        break;
    case SAMPLE_UINT64:
        CONVERT(uint64_t);
        break;
    case SAMPLE_INT64:
        CONVERT(int64_t);
        break;
    case SAMPLE_FLOAT32:
        CONVERT(float);
        break;
    case SAMPLE_FLOAT64:
        CONVERT(double);
        break;
    }
}

/* ---- The stream ----------------------------------------------------------------------------- */

static dm_status error_truncated(const nifti_layout *layout, const char *path, uint64_t there,
                                 dm_error *err)
{
    return error_set(err, DM_ERROR_FORMAT, path, incomplete,
                     "there are %llu bytes, but the header promises %llu (%zux%zux%zu voxels of %s "
                     "from byte %llu on)",
                     (unsigned long long)there,
                     (unsigned long long)layout->data_offset +
                         (unsigned long long)layout->data_size,
                     layout->grid.dim[0], layout->grid.dim[1], layout->grid.dim[2],
                     layout->type_name, (unsigned long long)layout->data_offset);
}

/* A header can promise any number of voxels; a file of this size can only hold so many. Deflate
 * makes at most 258 bytes of 2 bits; a Zstandard block of 4 bytes at most 128 KiB. */
static dm_status check_promise(const nifti_layout *layout, const char *path, codec packing,
                               dm_error *err)
{
    const uint64_t expansion = packing == CODEC_PLAIN ? 1 : packing == CODEC_GZIP ? 1032 : 32768;
    const uint64_t promised = layout->data_offset + layout->data_size;
    struct stat file;
    if (stat(path, &file) != 0 || !S_ISREG(file.st_mode))
        return DM_OK; /* a pipe: the end of the stream will tell */
    uint64_t size = (uint64_t)file.st_size;
    if (size >= promised / expansion)
        return DM_OK;
    if (packing == CODEC_PLAIN)
        return error_truncated(layout, path, size, err);
    return error_set(err, DM_ERROR_FORMAT, path, incomplete,
                     "the header promises %llu bytes (%zux%zux%zu voxels of %s), more than %llu "
                     "compressed bytes can hold",
                     (unsigned long long)promised, layout->grid.dim[0], layout->grid.dim[1],
                     layout->grid.dim[2], layout->type_name, (unsigned long long)size);
}

/* Fills `head` with the header's bytes, or as many as there are. */
static dm_status read_head(byte_source *source, uint8_t head[NIFTI_2_HEAD], size_t *size,
                           dm_error *err)
{
    size_t more = 0;
    dm_status status = source_read(source, head, NIFTI_1_HEAD, size, err);
    if (status == DM_OK && *size == NIFTI_1_HEAD && nifti_head_size(head) == NIFTI_2_HEAD)
        status = source_read(source, head + *size, NIFTI_2_HEAD - NIFTI_1_HEAD, &more, err);
    *size += more;
    return status;
}

static dm_status skip(byte_source *source, uint64_t bytes, uint8_t *piece, uint64_t *skipped,
                      dm_error *err)
{
    *skipped = 0;
    while (*skipped < bytes) {
        size_t want = bytes - *skipped < PIECE ? (size_t)(bytes - *skipped) : PIECE, got;
        dm_status status = source_read(source, piece, want, &got, err);
        if (status != DM_OK)
            return status;
        *skipped += got;
        if (got < want)
            break;
    }
    return DM_OK;
}

/* Reads all samples into `data`; `there` receives how many bytes of them there were. */
static dm_status read_samples(byte_source *source, const nifti_layout *layout, uint8_t *piece,
                              float *data, uint64_t *there, dm_error *err)
{
    const bool in_place = layout->type == SAMPLE_FLOAT32 && !layout->scaled;
    *there = 0;
    while (*there < layout->data_size) {
        uint64_t left = layout->data_size - *there;
        size_t want = left < PIECE ? (size_t)left : PIECE, got;
        float *out = data + *there / layout->sample_size;
        uint8_t *raw = in_place ? (uint8_t *)out : piece;
        dm_status status = source_read(source, raw, want, &got, err);
        if (status != DM_OK)
            return status;
        *there += got;
        if (got < want)
            break;
        if (layout->swapped)
            swap_samples(raw, want / layout->sample_size, layout->sample_size);
        if (!in_place)
            convert_samples(layout, raw, want / layout->sample_size, out);
    }
    return DM_OK;
}

/* Everything behind the head: extensions, voxels, and the end of the compressed stream, where its
 * checksum is. More bytes behind the voxels are none of ours. */
static dm_status read_body(byte_source *source, const char *path, const nifti_layout *layout,
                           size_t head_size, float *data, dm_error *err)
{
    uint64_t skipped, there = 0;
    size_t got;
    uint8_t *piece = array_alloc(PIECE, 1);
    if (!piece)
        return error_memory(err, PIECE, "reading an image");
    const uint64_t gap = layout->data_offset - head_size;
    dm_status status = skip(source, gap, piece, &skipped, err);
    if (status == DM_OK && skipped == gap)
        status = read_samples(source, layout, piece, data, &there, err);
    if (status == DM_OK && there < layout->data_size)
        status = error_truncated(layout, path, head_size + skipped + there, err);
    if (status == DM_OK)
        status = source_read(source, piece, PIECE, &got, err);
    free(piece);
    return status;
}

dm_status dm_volume_read(const char *path, dm_volume **volume, dm_error *err)
{
    uint8_t head[NIFTI_2_HEAD];
    size_t head_size;
    nifti_layout layout;
    byte_source *source = NULL;
    *volume = NULL;
    dm_volume *made = calloc(1, sizeof *made);
    if (!made)
        return error_memory(err, sizeof *made, "a volume");

    dm_status status = source_open(path, &source, err);
    if (status == DM_OK)
        status = read_head(source, head, &head_size, err);
    if (status == DM_OK)
        status = nifti_header_decode(head, head_size, path, &layout, &made->header, err);
    if (status == DM_OK)
        status = check_promise(&layout, path, source_codec(source), err);
    if (status != DM_OK)
        goto done;
    made->grid = layout.grid;
    made->owns_data = true;
    /* Not zeroed: pages of a volume that turns out to be cut short are never touched. */
    made->data = array_alloc(dm_grid_voxels(&made->grid), sizeof(float));
    if (!made->data) {
        status = error_memory(err, dm_grid_voxels(&made->grid) * sizeof(float), "the voxels");
        error_at(err, path);
        goto done;
    }
    status = read_body(source, path, &layout, head_size, made->data, err);
done:
    source_close(source);
    if (status != DM_OK) {
        dm_volume_free(made);
        error_at(err, path);
        return status;
    }
    *volume = made;
    return DM_OK;
}
