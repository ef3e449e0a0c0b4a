/* SPDX-License-Identifier: Apache-2.0 */
/* Streams that are gzip, Zstandard or plain: how much is asked for at a time does not matter, and
 * what the writer packs comes out again. */
#include "base/codec.h"
#include "fuzz_file.h"

#define MOST ((size_t)1 << 20) /* a few bytes can stand for any number */

/* Reads up to MOST bytes, `piece` at a time (0: pieces of changing size). */
static dm_status read_in_pieces(const char *path, size_t piece, uint8_t *bytes, size_t *size)
{
    byte_source *source = NULL;
    dm_error err = {0};
    size_t got = 0;
    *size = 0;
    dm_status status = source_open(path, &source, &err);
    fuzz_check_result(status, source, &err);
    for (bool more = status == DM_OK; more;) {
        size_t want = piece ? piece : 1 + *size % 977;
        want = want < MOST - *size ? want : MOST - *size;
        status = source_read(source, bytes + *size, want, &got, &err);
        FUZZ_CHECK(status != DM_OK || got <= want);
        FUZZ_CHECK(status == DM_OK || err.what[0]);
        *size += status == DM_OK ? got : 0;
        more = status == DM_OK && got == want && *size < MOST;
    }
    source_close(source);
    return status;
}

static void pack_and_read(codec kind, const uint8_t *data, size_t size, uint8_t *bytes)
{
    char path[128];
    dm_error err = {0};
    output_file *file = NULL;
    size_t head = size / 3, got = 0;
    fuzz_path("packed", path);
    FUZZ_CHECK(output_open(path, &file, &err) == DM_OK);
    FUZZ_CHECK(codec_write(file, kind, data, head, data + head, size - head, 1, &err) == DM_OK);
    FUZZ_CHECK(output_commit(file, &err) == DM_OK);
    FUZZ_CHECK(read_in_pieces(path, 4096, bytes, &got) == DM_OK);
    FUZZ_CHECK(got == size && !memcmp(bytes, data, size));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t whole[MOST], pieces[MOST];
    char path[128];
    size_t n_whole = 0, n_pieces = 0;
    fuzz_write("stream", data, size, path);
    dm_status at_once = read_in_pieces(path, MOST, whole, &n_whole);
    dm_status by_pieces = read_in_pieces(path, 0, pieces, &n_pieces);
    /* What the damaged end of a stream gave before it failed may differ; what is whole may not. */
    FUZZ_CHECK(at_once == by_pieces);
    FUZZ_CHECK(at_once != DM_OK || (n_whole == n_pieces && !memcmp(whole, pieces, n_whole)));
    if (size >= 3 && size <= 4096 && data[size - 1] % 8 == 0) {
        pack_and_read(CODEC_GZIP, data, size, pieces);
        pack_and_read(CODEC_ZSTD, data, size, pieces);
    }
    return 0;
}
