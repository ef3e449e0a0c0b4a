/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed outputs whose bytes depend on the input alone.
 *
 * gzip: one member. The input is cut into fixed chunks; each becomes a run of deflate blocks that
 * ends on a byte boundary (full flush) and refers to nothing before it, so that chunks are
 * compressed in parallel and put one behind the other. Zstandard does the same by itself.
 */
#include <isa-l.h>
#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "base/codec.h"
#include "base/cores.h"
#include "base/error.h"

#define CHUNK ((size_t)1 << 20)
/* Stored blocks, should the data not compress, add 5 bytes per 64 KiB. */
#define CHUNK_ROOM (CHUNK + CHUNK / 1024 + 4096)
#define LEVEL 1
#define LEVEL_BUFFER ISAL_DEF_LVL1_DEFAULT
#define ZSTD_LEVEL 1

codec codec_of_name(const char *path)
{
    size_t n = strlen(path);
    if (n > 3 && strcmp(path + n - 3, ".gz") == 0)
        return CODEC_GZIP;
    if (n > 4 && strcmp(path + n - 4, ".zst") == 0)
        return CODEC_ZSTD;
    return CODEC_PLAIN;
}

/* Head and body as one range of bytes. */
typedef struct joined {
    const uint8_t *head, *body;
    size_t head_size, size;
} joined;

static void joined_copy(const joined *in, size_t start, uint8_t *out, size_t size)
{
    if (start < in->head_size) {
        size_t n = in->head_size - start < size ? in->head_size - start : size;
        memcpy(out, in->head + start, n);
        out += n;
        start += n;
        size -= n;
    }
    if (size > 0)
        memcpy(out, in->body + (start - in->head_size), size);
}

typedef struct chunk_slot {
    uint8_t *bytes; /* CHUNK_ROOM */
    size_t size;
    size_t chunk; /* which chunk it holds once `ready` */
    bool ready;
} chunk_slot;

/* Chunk c is compressed into slot c % n_slots once that slot's last chunk is written. */
typedef struct gzip_job {
    joined in;
    size_t n_chunks, n_slots;
    chunk_slot *slots;
    size_t next, written; /* next chunk to compress; chunks already written */
    bool stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} gzip_job;

static bool compress_chunk(const gzip_job *job, size_t chunk, uint8_t *input, uint8_t *level_buffer,
                           struct isal_zstream *stream, chunk_slot *slot)
{
    size_t start = chunk * CHUNK;
    size_t size = job->in.size - start < CHUNK ? job->in.size - start : CHUNK;
    bool last = chunk + 1 == job->n_chunks;
    joined_copy(&job->in, start, input, size);
    isal_deflate_init(stream);
    stream->level = LEVEL;
    stream->level_buf = level_buffer;
    stream->level_buf_size = LEVEL_BUFFER;
    stream->gzip_flag = IGZIP_DEFLATE;
    stream->flush = last ? NO_FLUSH : FULL_FLUSH;
    stream->end_of_stream = last;
    stream->next_in = input;
    stream->avail_in = (uint32_t)size;
    stream->next_out = slot->bytes;
    stream->avail_out = (uint32_t)CHUNK_ROOM;
    int result = isal_deflate(stream);
    slot->size = CHUNK_ROOM - stream->avail_out;
    return result == COMP_OK && stream->avail_in == 0 && stream->avail_out > 0;
}

static void *compress_chunks(void *argument)
{
    gzip_job *job = argument;
    uint8_t *input = malloc(CHUNK), *level_buffer = malloc(LEVEL_BUFFER);
    struct isal_zstream *stream = array_zero(1, sizeof *stream);
    bool good = input && level_buffer && stream;
    pthread_mutex_lock(&job->lock);
    while (good && !job->stop && job->next < job->n_chunks) {
        size_t chunk = job->next++;
        chunk_slot *slot = &job->slots[chunk % job->n_slots];
        while (!job->stop && chunk >= job->written + job->n_slots)
            pthread_cond_wait(&job->changed, &job->lock);
        if (job->stop)
            break;
        pthread_mutex_unlock(&job->lock);
        good = compress_chunk(job, chunk, input, level_buffer, stream, slot);
        pthread_mutex_lock(&job->lock);
        slot->chunk = chunk;
        slot->ready = true;
        pthread_cond_broadcast(&job->changed);
    }
    if (!good) {
        job->stop = true;
        pthread_cond_broadcast(&job->changed);
    }
    pthread_mutex_unlock(&job->lock);
    free(stream);
    free(level_buffer);
    free(input);
    return NULL;
}

/* Writes the chunks in their order as they become ready. */
static dm_status write_chunks(gzip_job *job, output_file *file, dm_error *err)
{
    dm_status status = DM_OK;
    pthread_mutex_lock(&job->lock);
    while (status == DM_OK && job->written < job->n_chunks) {
        chunk_slot *slot = &job->slots[job->written % job->n_slots];
        while (!job->stop && !(slot->ready && slot->chunk == job->written))
            pthread_cond_wait(&job->changed, &job->lock);
        if (job->stop)
            break;
        pthread_mutex_unlock(&job->lock);
        status = output_write(file, slot->bytes, slot->size, err);
        pthread_mutex_lock(&job->lock);
        slot->ready = false;
        job->written++;
        pthread_cond_broadcast(&job->changed);
    }
    if (status == DM_OK && job->stop)
        status = error_memory(err, CHUNK_ROOM, "compressing the output");
    job->stop = true;
    pthread_cond_broadcast(&job->changed);
    pthread_mutex_unlock(&job->lock);
    return status;
}

static dm_status run_compressors(gzip_job *job, output_file *file, unsigned threads, dm_error *err)
{
    unsigned started = 0;
    pthread_t *ids = calloc(threads > 0 ? threads : 1, sizeof *ids);
    if (!ids)
        return error_memory(err, threads * sizeof *ids, "compressing the output");
    pthread_mutex_init(&job->lock, NULL);
    pthread_cond_init(&job->changed, NULL);
    while (started < threads && pthread_create(&ids[started], NULL, compress_chunks, job) == 0)
        started++;
    dm_status status = started > 0 ? write_chunks(job, file, err)
                                   : error_memory(err, 0, "a thread that compresses the output");
    for (unsigned i = 0; i < started; i++)
        pthread_join(ids[i], NULL);
    pthread_cond_destroy(&job->changed);
    pthread_mutex_destroy(&job->lock);
    free(ids);
    return status;
}

static dm_status write_gzip_chunks(const joined *in, output_file *file, unsigned threads,
                                   dm_error *err)
{
    gzip_job job = {.in = *in};
    job.n_chunks = in->size > CHUNK ? (in->size + CHUNK - 1) / CHUNK : 1;
    if (threads > job.n_chunks)
        threads = (unsigned)job.n_chunks;
    job.n_slots = 2 * (size_t)threads;
    job.slots = calloc(job.n_slots, sizeof *job.slots);
    dm_status status = DM_OK;
    for (size_t i = 0; job.slots && i < job.n_slots; i++)
        if (!(job.slots[i].bytes = malloc(CHUNK_ROOM)))
            status = error_memory(err, CHUNK_ROOM, "compressing the output");
    if (!job.slots)
        status = error_memory(err, job.n_slots * sizeof *job.slots, "compressing the output");
    if (status == DM_OK)
        status = run_compressors(&job, file, threads, err);
    for (size_t i = 0; job.slots && i < job.n_slots; i++)
        free(job.slots[i].bytes);
    free(job.slots);
    return status;
}

static uint32_t crc_of(const joined *in)
{
    uint32_t crc = crc32_gzip_refl(0, in->head, in->head_size);
    return in->size > in->head_size ? crc32_gzip_refl(crc, in->body, in->size - in->head_size)
                                    : crc;
}

static void put_le32(uint8_t *out, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static dm_status write_gzip(const joined *in, output_file *file, unsigned threads, dm_error *err)
{
    /* No name, no time (so that equal data are equal bytes), fastest algorithm, unknown system. */
    static const uint8_t header[10] = {0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255};
    uint8_t trailer[8];
    dm_status status = output_write(file, header, sizeof header, err);
    if (status == DM_OK)
        status = write_gzip_chunks(in, file, threads, err);
    if (status != DM_OK)
        return status;
    put_le32(trailer, crc_of(in));
    put_le32(trailer + 4, (uint32_t)in->size);
    return output_write(file, trailer, sizeof trailer, err);
}

static dm_status zstd_feed(ZSTD_CCtx *context, const void *bytes, size_t size,
                           ZSTD_EndDirective end, uint8_t *buffer, size_t room, output_file *file,
                           dm_error *err)
{
    ZSTD_inBuffer in = {bytes, size, 0};
    for (size_t left = 1; left != 0 || in.pos < in.size;) {
        ZSTD_outBuffer out = {buffer, room, 0};
        left = ZSTD_compressStream2(context, &out, &in, end);
        if (ZSTD_isError(left))
            return error_set(err, DM_ERROR_MEMORY, NULL, "free memory",
                             "Zstandard cannot compress the output: %s", ZSTD_getErrorName(left));
        dm_status status = output_write(file, buffer, out.pos, err);
        if (status != DM_OK)
            return status;
        if (end == ZSTD_e_continue && in.pos == in.size)
            break;
    }
    return DM_OK;
}

static dm_status write_zstd(const joined *in, output_file *file, unsigned threads, dm_error *err)
{
    size_t room = ZSTD_CStreamOutSize();
    uint8_t *buffer = malloc(room);
    ZSTD_CCtx *context = ZSTD_createCCtx();
    dm_status status = DM_OK;
    if (!buffer || !context) {
        status = error_memory(err, room, "compressing the output");
        goto done;
    }
    /* Workers even for one thread: with none the bytes are others. */
    size_t workers =
        ZSTD_CCtx_setParameter(context, ZSTD_c_nbWorkers, (int)(threads < 64 ? threads : 64));
    if (ZSTD_isError(workers)) {
        status = error_set(err, DM_ERROR_UNSUPPORTED, NULL, "install one, or write .nii.gz",
                           "this libzstd has no threads");
        goto done;
    }
    ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, ZSTD_LEVEL);
    ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
    ZSTD_CCtx_setPledgedSrcSize(context, in->size);
    status = zstd_feed(context, in->head, in->head_size, ZSTD_e_continue, buffer, room, file, err);
    if (status == DM_OK)
        status = zstd_feed(context, in->body, in->size - in->head_size, ZSTD_e_end, buffer, room,
                           file, err);
done:
    ZSTD_freeCCtx(context);
    free(buffer);
    return status;
}

#define TEXT_OF(number) #number
#define TEXT(number) TEXT_OF(number)

const char *codec_library(void)
{
    return "Zstandard " ZSTD_VERSION_STRING ", ISA-L " TEXT(ISAL_MAJOR_VERSION) "." TEXT(
        ISAL_MINOR_VERSION) "." TEXT(ISAL_PATCH_VERSION);
}

dm_status codec_write(output_file *file, codec kind, const void *head, size_t head_size,
                      const void *body, size_t body_size, unsigned threads, dm_error *err)
{
    joined in = {head, body, head_size, head_size + body_size};
    threads = cores_or(threads);
    if (kind == CODEC_GZIP)
        return write_gzip(&in, file, threads, err);
    if (kind == CODEC_ZSTD)
        return write_zstd(&in, file, threads, err);
    dm_status status = output_write(file, head, head_size, err);
    return status == DM_OK ? output_write(file, body, body_size, err) : status;
}
