/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text in memory, written through stdio. Unlike open_memstream, which drops characters without a
 * word when its buffer cannot grow, and may close with no text at all, this one knows whether
 * everything that was printed is there.
 */
#ifndef DOSEMAP_BASE_TEXT_STREAM_H
#define DOSEMAP_BASE_TEXT_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

typedef struct text_stream {
    FILE *out; /* to print to; NULL where memory is short */
    char *text;
    size_t size, room;
    char buffer[1024];
} text_stream;

/* `stream` stays where it is until it is closed. */
bool text_stream_open(text_stream *stream);

/* The whole text, terminated, released with free(); NULL when memory was short, or if !complete,
 * which is for the caller's own failures. `size` (may be NULL) receives its length. */
char *text_stream_close(text_stream *stream, bool complete, size_t *size);

#endif
