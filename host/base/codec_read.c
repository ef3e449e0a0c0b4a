/* SPDX-License-Identifier: Apache-2.0 */
/* Streamed reading of plain, gzip and Zstandard files in bounded memory. */
#include <errno.h>
#include <fcntl.h>
#include <isa-l/igzip_lib.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "base/codec.h"
#include "base/error.h"

#define INPUT_BYTES ((size_t)1 << 20)
/* The file decides how much memory its reading takes: 128 MiB at most, which `zstd -19` stays
 * below. */
#define MAX_WINDOW_LOG 27

struct byte_source {
    int fd;
    codec codec;
    char *path;
    uint8_t *input; /* INPUT_BYTES read from the file; [next, filled) is still to be decoded */
    size_t next, filled;
    bool file_ended;
    bool between_members; /* at a point where the stream may end */
    bool ended;
    struct inflate_state *gzip;
    ZSTD_DStream *zstd;
    bool in_frame; /* of Zstandard: which states its size, or ZSTD_CONTENTSIZE_UNKNOWN */
    unsigned long long frame_size, frame_made;
};

static dm_status refill(byte_source *s, dm_error *err)
{
    if (s->next < s->filled || s->file_ended)
        return DM_OK;
    s->next = s->filled = 0;
    while (s->filled < INPUT_BYTES) {
        ssize_t n = read(s->fd, s->input + s->filled, INPUT_BYTES - s->filled);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EISDIR)
            return error_set(err, DM_ERROR_IO, s->path, "give the path of a file",
                             "it is a folder");
        if (n < 0)
            return error_set(err, DM_ERROR_IO, s->path, "check the file and the disk",
                             "cannot read it: %s", strerror(errno));
        if (n == 0) {
            s->file_ended = true;
            break;
        }
        s->filled += (size_t)n;
    }
    return DM_OK;
}

static codec codec_of_bytes(const uint8_t *bytes, size_t size)
{
    static const uint8_t zstd_magic[] = {0x28, 0xb5, 0x2f, 0xfd};
    if (size >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b)
        return CODEC_GZIP;
    if (size >= 4 && memcmp(bytes, zstd_magic, 4) == 0)
        return CODEC_ZSTD;
    /* A skippable frame, 0x184D2A50 to 5F, may come first. */
    if (size >= 4 && (bytes[0] & 0xf0) == 0x50 && bytes[1] == 0x2a && bytes[2] == 0x4d &&
        bytes[3] == 0x18)
        return CODEC_ZSTD;
    return CODEC_PLAIN;
}

static dm_status start_decoder(byte_source *s, dm_error *err)
{
    s->codec = codec_of_bytes(s->input, s->filled);
    if (s->codec == CODEC_GZIP) {
        s->gzip = array_zero(1, sizeof *s->gzip);
        if (!s->gzip)
            return error_memory(err, sizeof *s->gzip, "the gzip reader");
        isal_inflate_init(s->gzip);
        s->gzip->crc_flag = ISAL_GZIP;
    } else if (s->codec == CODEC_ZSTD) {
        s->zstd = ZSTD_createDStream();
        if (!s->zstd ||
            ZSTD_isError(ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, MAX_WINDOW_LOG)))
            return error_memory(err, 0, "the Zstandard reader");
    }
    return DM_OK;
}

dm_status source_open(const char *path, byte_source **source, dm_error *err)
{
    *source = NULL;
    byte_source *s = calloc(1, sizeof *s);
    if (!s)
        return error_memory(err, sizeof *s, "a file reader");
    s->path = strdup(path);
    s->input = array_alloc(INPUT_BYTES, 1);
    s->fd = open(path, O_RDONLY | O_CLOEXEC);
    dm_status status = DM_OK;
    if (!s->path || !s->input)
        status = error_memory(err, INPUT_BYTES, "a file reader");
    else if (s->fd < 0)
        status = error_set(err, DM_ERROR_IO, path, "check the path and its permissions",
                           "cannot open it: %s", strerror(errno));
    if (status == DM_OK)
        status = refill(s, err);
    if (status == DM_OK)
        status = start_decoder(s, err);
    if (status != DM_OK) {
        source_close(s);
        return status;
    }
    *source = s;
    return DM_OK;
}

codec source_codec(const byte_source *source)
{
    return source->codec;
}

void source_close(byte_source *source)
{
    if (!source)
        return;
    if (source->fd >= 0)
        close(source->fd);
    ZSTD_freeDStream(source->zstd);
    free(source->gzip);
    free(source->input);
    free(source->path);
    free(source);
}

static dm_status unfinished(const byte_source *s, const char *format, dm_error *err)
{
    return error_set(err, DM_ERROR_FORMAT, s->path, "copy or download the file again",
                     "the %s stream ends too early", format);
}

/* ISA-L stops after a member. What may follow: another one, or zeros up to the end of the file. */
static dm_status next_gzip_member(byte_source *s, dm_error *err)
{
    for (;;) {
        dm_status status = refill(s, err);
        if (status != DM_OK)
            return status;
        if (s->next == s->filled) {
            s->ended = true;
            return DM_OK;
        }
        if (s->input[s->next] != 0)
            break;
        s->next++;
    }
    if (s->input[s->next] != 0x1f)
        return error_set(err, DM_ERROR_FORMAT, s->path, "remove what follows the compressed data",
                         "there is something else behind the gzip stream (byte 0x%02x)",
                         s->input[s->next]);
    isal_inflate_reset(s->gzip);
    s->gzip->crc_flag = ISAL_GZIP;
    s->between_members = false;
    return DM_OK;
}

static dm_status read_gzip(byte_source *s, uint8_t *bytes, size_t size, size_t *got, dm_error *err)
{
    while (*got < size && !s->ended) {
        dm_status status = s->between_members ? next_gzip_member(s, err) : refill(s, err);
        if (status != DM_OK)
            return status;
        if (s->ended)
            break;
        size_t room = size - *got < (1u << 30) ? size - *got : 1u << 30;
        struct inflate_state *z = s->gzip;
        z->next_in = s->input + s->next;
        z->avail_in = (uint32_t)(s->filled - s->next);
        z->next_out = bytes + *got;
        z->avail_out = (uint32_t)room;
        bool no_more = z->avail_in == 0;
        int result = isal_inflate(z);
        s->next = s->filled - z->avail_in;
        size_t made = room - z->avail_out;
        *got += made;
        if (result != ISAL_DECOMP_OK && result != ISAL_END_INPUT)
            return error_set(err, DM_ERROR_FORMAT, s->path, "copy or download the file again",
                             result == ISAL_INCORRECT_CHECKSUM
                                 ? "the gzip checksum is wrong: the file is damaged"
                                 : "the gzip stream is damaged (code %d)",
                             result);
        if (z->block_state == ISAL_BLOCK_FINISH)
            s->between_members = true;
        else if (no_more && made == 0)
            return unfinished(s, "gzip", err);
    }
    return DM_OK;
}

/* Zstandard compares a frame's size with the one it states, but not where it decodes in pieces and
 * the last block is empty: a frame cut short would depend on how much is asked for at a time. */
static dm_status check_frame_end(byte_source *s, dm_error *err)
{
    s->in_frame = false;
    if (s->frame_size == ZSTD_CONTENTSIZE_UNKNOWN || s->frame_made == s->frame_size)
        return DM_OK;
    return error_set(err, DM_ERROR_FORMAT, s->path, "copy or download the file again",
                     "the Zstandard stream is damaged: it states %llu bytes and has %llu",
                     s->frame_size, s->frame_made);
}

static void begin_frame(byte_source *s)
{
    s->in_frame = true;
    s->frame_made = 0;
    s->frame_size = ZSTD_getFrameContentSize(s->input + s->next, s->filled - s->next);
    if (s->frame_size == ZSTD_CONTENTSIZE_ERROR) /* not all of its header is there yet */
        s->frame_size = ZSTD_CONTENTSIZE_UNKNOWN;
}

static dm_status read_zstd(byte_source *s, uint8_t *bytes, size_t size, size_t *got, dm_error *err)
{
    while (*got < size) {
        dm_status status = refill(s, err);
        if (status != DM_OK)
            return status;
        bool no_more = s->next == s->filled;
        if (no_more && s->between_members)
            return DM_OK;
        if (!s->in_frame)
            begin_frame(s);
        ZSTD_inBuffer in = {s->input, s->filled, s->next};
        ZSTD_outBuffer out = {bytes, size, *got};
        size_t result = ZSTD_decompressStream(s->zstd, &out, &in);
        if (ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge)
            return error_set(err, DM_ERROR_UNSUPPORTED, s->path,
                             "compress it again without --long or --ultra",
                             "the Zstandard stream needs a window of more than %d MiB",
                             1 << (MAX_WINDOW_LOG - 20));
        if (ZSTD_getErrorCode(result) == ZSTD_error_memory_allocation)
            return error_memory(err, 0, "the Zstandard reader");
        if (ZSTD_isError(result))
            return error_set(err, DM_ERROR_FORMAT, s->path, "copy or download the file again",
                             "the Zstandard stream is damaged: %s", ZSTD_getErrorName(result));
        bool progress = out.pos > *got || in.pos > s->next;
        s->frame_made += out.pos - *got;
        s->next = in.pos;
        *got = out.pos;
        s->between_members = result == 0;
        if (result == 0)
            status = check_frame_end(s, err);
        else if (no_more && !progress)
            status = unfinished(s, "Zstandard", err);
        if (status != DM_OK)
            return status;
    }
    return DM_OK;
}

static dm_status read_plain(byte_source *s, uint8_t *bytes, size_t size, size_t *got, dm_error *err)
{
    while (*got < size) {
        dm_status status = refill(s, err);
        if (status != DM_OK || s->next == s->filled)
            return status;
        size_t n = s->filled - s->next < size - *got ? s->filled - s->next : size - *got;
        memcpy(bytes + *got, s->input + s->next, n);
        s->next += n;
        *got += n;
    }
    return DM_OK;
}

dm_status source_read(byte_source *source, void *bytes, size_t size, size_t *got, dm_error *err)
{
    *got = 0;
    switch (source->codec) {
    case CODEC_GZIP:
        return read_gzip(source, bytes, size, got, err);
    case CODEC_ZSTD:
        return read_zstd(source, bytes, size, got, err);
    default:
        return read_plain(source, bytes, size, got, err);
    }
}

dm_status source_read_all(const char *path, size_t limit, uint8_t **bytes, size_t *size,
                          dm_error *err)
{
    byte_source *source = NULL;
    size_t capacity = INPUT_BYTES;
    *bytes = NULL;
    *size = 0;
    dm_status status = source_open(path, &source, err);
    uint8_t *buffer = NULL;
    while (status == DM_OK) {
        uint8_t *larger = realloc(buffer, capacity);
        if (!larger) {
            status = error_memory(err, capacity, path);
            break;
        }
        buffer = larger;
        size_t got = 0;
        status = source_read(source, buffer + *size, capacity - *size, &got, err);
        *size += got;
        if (status != DM_OK || *size < capacity)
            break;
        if (capacity > limit) {
            status = error_set(err, DM_ERROR_FORMAT, path, "use a smaller file",
                               "it holds more than %zu bytes", limit);
            break;
        }
        capacity *= 2;
    }
    if (status == DM_OK && *size > limit)
        status = error_set(err, DM_ERROR_FORMAT, path, "use a smaller file",
                           "it holds more than %zu bytes", limit);
    if (status != DM_OK) {
        free(buffer);
        buffer = NULL;
        *size = 0;
    }
    source_close(source);
    *bytes = buffer;
    return status;
}
