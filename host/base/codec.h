/* SPDX-License-Identifier: Apache-2.0 */
/* Files whose bytes may be gzip (ISA-L), Zstandard or plain, told by their first bytes. */
#ifndef DOSEMAP_BASE_CODEC_H
#define DOSEMAP_BASE_CODEC_H

#include "base/output_file.h"
#include "dosemap.h"

typedef enum codec { CODEC_PLAIN, CODEC_GZIP, CODEC_ZSTD } codec;

typedef struct byte_source byte_source;

/* Opens a file for streamed reading of its decompressed bytes. Several gzip members or Zstandard
 * frames in a row are one stream. */
dm_status source_open(const char *path, byte_source **source, dm_error *err);
codec source_codec(const byte_source *source);
/* Reads up to `size` bytes; *got < size only at the end of the stream. Damaged or unfinished
 * streams are DM_ERROR_FORMAT. */
dm_status source_read(byte_source *source, void *bytes, size_t size, size_t *got, dm_error *err);
void source_close(byte_source *source);

/* The codec that a file name asks for: .gz, .zst, else plain. */
codec codec_of_name(const char *path);

/* The compression libraries and the versions this was built with. */
const char *codec_library(void);

/* Writes `head` then `body` through the codec `kind` into `file` with `threads` threads (0: all
 * cores). The bytes depend only on the input: one gzip member of fixed chunks with mtime 0; zstd
 * with its size and checksum in the frame. */
dm_status codec_write(output_file *file, codec kind, const void *head, size_t head_size,
                      const void *body, size_t body_size, unsigned threads, dm_error *err);

/* Reads a whole decompressed file into memory, at most `limit` bytes (more: DM_ERROR_FORMAT). */
dm_status source_read_all(const char *path, size_t limit, uint8_t **bytes, size_t *size,
                          dm_error *err);

#endif
