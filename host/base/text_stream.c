/* SPDX-License-Identifier: Apache-2.0 */
#include "base/text_stream.h"

#include <stdlib.h>
#include <string.h>

/* Doubles the room. A failure is kept by the FILE's error flag. */
static ssize_t append(void *cookie, const char *bytes, size_t n)
{
    text_stream *stream = cookie;
    size_t room = stream->room ? stream->room : 2 * sizeof stream->buffer;
    while (room - stream->size <= n)
        room *= 2;
    if (room > stream->room) {
        char *larger = realloc(stream->text, room);
        if (!larger)
            return 0;
        stream->text = larger;
        stream->room = room;
    }
    memcpy(stream->text + stream->size, bytes, n);
    stream->size += n;
    stream->text[stream->size] = '\0';
    return (ssize_t)n;
}

bool text_stream_open(text_stream *stream)
{
    stream->text = NULL;
    stream->size = stream->room = 0;
    stream->out = fopencookie(stream, "w", (cookie_io_functions_t){.write = append});
    if (stream->out)
        setvbuf(stream->out, stream->buffer, _IOFBF, sizeof stream->buffer);
    return stream->out != NULL;
}

char *text_stream_close(text_stream *stream, bool complete, size_t *size)
{
    if (!stream->out)
        return NULL;
    complete = append(stream, "", 0) == 0 && stream->text && complete;
    complete = fflush(stream->out) == 0 && complete;
    complete = !ferror(stream->out) && complete;
    fclose(stream->out);
    if (complete) {
        if (size)
            *size = stream->size;
        return stream->text;
    }
    free(stream->text);
    return NULL;
}
