/* SPDX-License-Identifier: Apache-2.0 */
/* Compressed streams: round trips, other readers, damage. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
/* cmocka needs those before it */
#include <cmocka.h>

#include "base/codec.h"

#define HEAD 352
static const size_t sizes[] = {0,       1,       2,       97,          65521,  1048576 - HEAD,
                               1048575, 1048576, 1048577, 3 * 1048576, 5000011};
static const char *const suffixes[] = {"", ".gz", ".zst"};

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/dosemap-codec-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

/* Half noise, half zeros: some chunks compress, some do not. */
static uint8_t *make_bytes(size_t size)
{
    uint8_t *bytes = calloc(size + 1, 1);
    uint32_t r = 12345;
    assert_non_null(bytes);
    for (size_t i = 0; i < size; i++) {
        r = r * 1664525u + 1013904223u;
        if ((i >> 18) % 2 == 0)
            bytes[i] = (uint8_t)(r >> 24);
    }
    return bytes;
}

static void write_file(const char *path, const void *head, size_t head_size, const void *body,
                       size_t size, unsigned threads)
{
    output_file *file = NULL;
    dm_error err = {0};
    assert_int_equal(output_open(path, &file, &err), DM_OK);
    assert_int_equal(
        codec_write(file, codec_of_name(path), head, head_size, body, size, threads, &err), DM_OK);
    assert_int_equal(output_commit(file, &err), DM_OK);
}

/* Without the fsync of output files: the tests of damage write hundreds. */
static void put(const char *path, const uint8_t *bytes, size_t size)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
}

static uint8_t *slurp(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(*size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *size, f), *size);
    fclose(f);
    return bytes;
}

static void test_round_trip(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint8_t *bytes = make_bytes(HEAD + sizes[s]);
        for (size_t k = 0; k < 3; k++) {
            char path[128];
            snprintf(path, sizeof path, "%s/a.nii%s", folder, suffixes[k]);
            write_file(path, bytes, HEAD, bytes + HEAD, sizes[s], 2);
            uint8_t *back = NULL;
            size_t size = 0;
            dm_error err = {0};
            assert_int_equal(source_read_all(path, SIZE_MAX / 4, &back, &size, &err), DM_OK);
            assert_int_equal(size, HEAD + sizes[s]);
            assert_memory_equal(back, bytes, size);
            free(back);
        }
        free(bytes);
    }
}

static void test_bytes_do_not_depend_on_threads(void **state)
{
    (void)state;
    size_t body = 5000011, sizes_of[3];
    uint8_t *bytes = make_bytes(HEAD + body), *written[3];
    for (size_t k = 1; k < 3; k++) {
        for (unsigned t = 0; t < 3; t++) {
            static const unsigned threads[] = {1, 2, 5};
            char path[128];
            snprintf(path, sizeof path, "%s/t%u.nii%s", folder, t, suffixes[k]);
            write_file(path, bytes, HEAD, bytes + HEAD, body, threads[t]);
            written[t] = slurp(path, &sizes_of[t]);
        }
        for (unsigned t = 1; t < 3; t++) {
            assert_int_equal(sizes_of[t], sizes_of[0]);
            assert_memory_equal(written[t], written[0], sizes_of[0]);
        }
        for (unsigned t = 0; t < 3; t++)
            free(written[t]);
    }
    free(bytes);
}

static void test_other_programs_open_it(void **state)
{
    (void)state;
    size_t body = 3000000;
    uint8_t *bytes = make_bytes(HEAD + body);
    char path[128], plain[128], command[512];
    snprintf(plain, sizeof plain, "%s/plain", folder);
    put(plain, bytes, HEAD + body);
    static const char *const readers[] = {"gzip", "zstd -q"};
    for (size_t k = 1; k < 3; k++) {
        snprintf(path, sizeof path, "%s/o.nii%s", folder, suffixes[k]);
        write_file(path, bytes, HEAD, bytes + HEAD, body, 2);
        snprintf(command, sizeof command, "%s -dc < '%s' | cmp - '%s'", readers[k - 1], path,
                 plain);
        assert_int_equal(system(command), 0);
    }
    /* One member only: nothing follows what zlib calls the end. */
    snprintf(command, sizeof command,
             "python3 -c \"import zlib,sys; d=zlib.decompressobj(31); "
             "d.decompress(open('%s/o.nii.gz','rb').read()); sys.exit(bool(d.unused_data) or not "
             "d.eof)\"",
             folder);
    assert_int_equal(system(command), 0);
    free(bytes);
}

/* What other programs write: a name in the gzip header, other levels, a frame to be skipped, and a
 * window that would take too much memory. */
static void reads(const char *path, const uint8_t *expected, size_t expected_size)
{
    uint8_t *back = NULL;
    size_t size = 0;
    assert_int_equal(source_read_all(path, SIZE_MAX / 4, &back, &size, NULL), DM_OK);
    assert_int_equal(size, expected_size);
    assert_memory_equal(back, expected, size);
    free(back);
}

static void test_other_programs_wrote_it(void **state)
{
    (void)state;
    static const char *const commands[] = {
        "gzip -9 -k -N -f plain && mv plain.gz other",
        "gzip -1 -c < plain > other",
        "zstd -q -f -1 plain -o other",
        "zstd -q -f -19 --no-check plain -o other",
        "{ printf 'P*M\\030\\004\\000\\000\\000skip'; zstd -q -c < plain; } > other",
        "{ zstd -q -c < plain; printf 'S*M\\030\\004\\000\\000\\000skip'; } > other",
    };
    size_t size = 3000000;
    uint8_t *bytes = make_bytes(size);
    char path[128], command[512];
    snprintf(path, sizeof path, "%s/plain", folder);
    put(path, bytes, size);
    snprintf(path, sizeof path, "%s/other", folder);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
        snprintf(command, sizeof command, "cd '%s' && %s", folder, commands[i]);
        assert_int_equal(system(command), 0);
        reads(path, bytes, size);
    }
    free(bytes);
}

static void test_window_is_bounded(void **state)
{
    (void)state;
    /* A frame of one empty last block whose header asks for a window of 2^(10 + log). */
    uint8_t frame[] = {0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, 1, 0, 0};
    char path[128];
    uint8_t *back = NULL;
    size_t size = 1;
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/w.zst", folder);
    put(path, frame, sizeof frame);
    assert_int_equal(source_read_all(path, 100, &back, &size, &err), DM_OK);
    assert_int_equal(size, 0);
    free(back);
    frame[5] = 18 << 3;
    put(path, frame, sizeof frame);
    assert_int_equal(source_read_all(path, 100, &back, &size, &err), DM_ERROR_UNSUPPORTED);
    assert_null(back);
    assert_string_equal(err.where, path);
    assert_non_null(strstr(err.what, "128 MiB"));
    assert_non_null(strstr(err.remedy, "--long"));
}

/* A chunk may begin in the head and end in the body. */
static void test_head_and_body_are_one_stream(void **state)
{
    (void)state;
    static const size_t heads[] = {0, 1, 1048575, 1048576, 1048577, 2500000};
    size_t size = 2500000;
    uint8_t *bytes = make_bytes(size);
    for (size_t k = 0; k < 3; k++) {
        size_t first_size = 0;
        uint8_t *first = NULL;
        char path[128];
        snprintf(path, sizeof path, "%s/h.nii%s", folder, suffixes[k]);
        for (size_t h = 0; h < sizeof heads / sizeof *heads; h++) {
            size_t written_size;
            write_file(path, heads[h] ? bytes : NULL, heads[h],
                       heads[h] < size ? bytes + heads[h] : NULL, size - heads[h], 2);
            reads(path, bytes, size);
            uint8_t *written = slurp(path, &written_size);
            if (k != 1 || !first) { /* zstd may be fed in other pieces, gzip's chunks are fixed */
                free(first);
                first = written;
                first_size = written_size;
                continue;
            }
            assert_int_equal(written_size, first_size);
            assert_memory_equal(written, first, first_size);
            free(written);
        }
        free(first);
    }
    free(bytes);
}

/* Reading piece by piece, as the image reader does. */
static void test_pieces_of_any_size(void **state)
{
    (void)state;
    static const size_t pieces[] = {1, 7, 4096, 65537, 1048576};
    size_t size = 300007;
    uint8_t *bytes = make_bytes(size), *back = malloc(size + 1048576);
    assert_non_null(back);
    for (size_t k = 0; k < 3; k++) {
        char path[128];
        snprintf(path, sizeof path, "%s/p.nii%s", folder, suffixes[k]);
        write_file(path, bytes, HEAD, bytes + HEAD, size - HEAD, 1);
        for (size_t p = 0; p < sizeof pieces / sizeof *pieces; p++) {
            byte_source *source = NULL;
            size_t got = 0, total = 0;
            assert_int_equal(source_open(path, &source, NULL), DM_OK);
            assert_int_equal(source_codec(source), k);
            do {
                assert_int_equal(source_read(source, back + total, pieces[p], &got, NULL), DM_OK);
                total += got;
            } while (got == pieces[p]);
            assert_int_equal(total, size);
            assert_memory_equal(back, bytes, size);
            assert_int_equal(source_read(source, back, 1, &got, NULL), DM_OK);
            assert_int_equal(got, 0);
            source_close(source);
        }
    }
    free(back);
    free(bytes);
}

static dm_status read_status(const char *path, size_t limit, dm_error *err)
{
    uint8_t *back = NULL;
    size_t size = 0;
    dm_status status = source_read_all(path, limit, &back, &size, err);
    assert_int_equal(status == DM_OK, back != NULL);
    free(back);
    return status;
}

static void test_several_members(void **state)
{
    (void)state;
    uint8_t *bytes = make_bytes(700000);
    for (size_t k = 1; k < 3; k++) {
        char path[128], twice[128], command[512];
        snprintf(path, sizeof path, "%s/m.nii%s", folder, suffixes[k]);
        snprintf(twice, sizeof twice, "%s/mm.nii%s", folder, suffixes[k]);
        write_file(path, bytes, 1, bytes + 1, 699999, 1);
        snprintf(command, sizeof command, "cat '%s' '%s' > '%s'", path, path, twice);
        assert_int_equal(system(command), 0);
        uint8_t *back = NULL;
        size_t size = 0;
        assert_int_equal(source_read_all(twice, SIZE_MAX / 4, &back, &size, NULL), DM_OK);
        assert_int_equal(size, 1400000);
        assert_memory_equal(back, bytes, 700000);
        assert_memory_equal(back + 700000, bytes, 700000);
        free(back);
    }
    free(bytes);
}

/* The input is read in pieces of 1 MiB: wherever a piece ends in the trailer of one member or the
 * header of the next, no byte is lost. A name in the header makes a member as long as wanted. */
static void test_members_across_the_pieces_of_input(void **state)
{
    (void)state;
    enum { PIECE = 1048576, BYTES = 300 };
    uint8_t *bytes = make_bytes(2 * BYTES), *whole = malloc(2 * PIECE);
    char path[128];
    size_t size;
    assert_non_null(whole);
    memcpy(bytes + BYTES, bytes, BYTES);
    snprintf(path, sizeof path, "%s/one.gz", folder);
    write_file(path, bytes, 0, bytes, BYTES, 1);
    uint8_t *member = slurp(path, &size);
    for (size_t end = PIECE - 24; end <= PIECE + 12; end++) {
        memcpy(whole, member, 10);
        whole[3] = 8; /* FNAME */
        memset(whole + 10, 'n', end - size - 1);
        whole[10 + end - size - 1] = '\0';
        memcpy(whole + end - (size - 10), member + 10, size - 10);
        memcpy(whole + end, member, size);
        put(path, whole, end + size);
        reads(path, bytes, 2 * BYTES);
    }
    free(member);
    free(whole);
    free(bytes);
}

static void test_every_truncation_is_an_error(void **state)
{
    (void)state;
    uint8_t *bytes = make_bytes(300);
    for (size_t k = 1; k < 3; k++) {
        char path[128];
        snprintf(path, sizeof path, "%s/c.nii%s", folder, suffixes[k]);
        write_file(path, bytes, 100, bytes + 100, 200, 1);
        size_t size;
        uint8_t *whole = slurp(path, &size);
        for (size_t n = k == 1 ? 2 : 4; n < size; n++) {
            dm_error err = {0};
            put(path, whole, n);
            assert_int_equal(read_status(path, SIZE_MAX / 4, &err), DM_ERROR_FORMAT);
            assert_string_equal(err.where, path);
            assert_true(err.what[0] && err.remedy[0]);
        }
        free(whole);
    }
    free(bytes);
}

static void test_every_flipped_bit_is_an_error(void **state)
{
    (void)state;
    uint8_t *bytes = make_bytes(300);
    for (size_t k = 1; k < 3; k++) {
        char path[128];
        snprintf(path, sizeof path, "%s/f.nii%s", folder, suffixes[k]);
        write_file(path, bytes, 100, bytes + 100, 200, 1);
        size_t size;
        uint8_t *whole = slurp(path, &size);
        size_t refused = 0;
        /* The gzip header's time, flags for speed and system are no data. */
        for (size_t n = k == 1 ? 10 : 4; n < size; n++) {
            whole[n] ^= 0x04;
            put(path, whole, size);
            whole[n] ^= 0x04;
            uint8_t *back = NULL;
            size_t got = 0;
            dm_status status = source_read_all(path, SIZE_MAX / 4, &back, &got, NULL);
            /* A bit that no reader looks at may be lost, data may not. */
            assert_true(status != DM_OK || (got == 300 && memcmp(back, bytes, 300) == 0));
            refused += status != DM_OK;
            free(back);
        }
        assert_true(refused + 4 >= size - (k == 1 ? 10 : 4));
        free(whole);
    }
    free(bytes);
}

static void test_trailing_bytes(void **state)
{
    (void)state;
    uint8_t bytes[64] = {1, 2, 3};
    char path[128], command[512];
    snprintf(path, sizeof path, "%s/t.nii.gz", folder);
    write_file(path, bytes, 32, bytes + 32, 32, 1);
    snprintf(command, sizeof command, "head -c 1000 /dev/zero >> '%s'", path);
    assert_int_equal(system(command), 0);
    assert_int_equal(read_status(path, 1000, NULL), DM_OK);
    snprintf(command, sizeof command, "printf garbage >> '%s'", path);
    assert_int_equal(system(command), 0);
    dm_error err = {0};
    assert_int_equal(read_status(path, 1000, &err), DM_ERROR_FORMAT);
    assert_non_null(strstr(err.what, "behind the gzip stream"));
}

static void test_limit_and_missing(void **state)
{
    (void)state;
    char path[128];
    uint8_t bytes[100] = {0};
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/l.nii.gz", folder);
    write_file(path, bytes, 50, bytes + 50, 50, 1);
    assert_int_equal(read_status(path, 100, NULL), DM_OK);
    assert_int_equal(read_status(path, 99, &err), DM_ERROR_FORMAT);
    assert_int_equal(read_status(folder, 99, &err), DM_ERROR_IO);
    assert_string_equal(err.where, folder);
    assert_string_equal(err.what, "it is a folder");
    snprintf(path, sizeof path, "%s/missing", folder);
    assert_int_equal(read_status(path, 99, &err), DM_ERROR_IO);
    assert_string_equal(err.where, path);
}

/* A full disk ends the writing, with any number of compressors at work, and leaves nothing. */
static void test_full_disk(void **state)
{
    (void)state;
    size_t size = 12 * 1048576 + 5;
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    for (size_t i = 0, r = 1; i < size; i++) {
        r = r * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(r >> 56);
    }
    for (size_t k = 0; k < 3; k++)
        for (unsigned threads = 1; threads < 6; threads += 2) {
            char path[128];
            int status = -1;
            snprintf(path, sizeof path, "%s/full.nii%s", folder, suffixes[k]);
            pid_t child = fork();
            assert_true(child >= 0);
            if (child == 0) {
                const struct rlimit limit = {3000000, 3000000};
                output_file *file = NULL;
                dm_error err = {0};
                alarm(60);
                signal(SIGXFSZ, SIG_IGN);
                if (setrlimit(RLIMIT_FSIZE, &limit) != 0 || output_open(path, &file, &err) != DM_OK)
                    _exit(1);
                if (codec_write(file, codec_of_name(path), bytes, HEAD, bytes + HEAD, size - HEAD,
                                threads, &err) != DM_ERROR_IO)
                    _exit(2);
                output_abandon(file);
                _exit(strcmp(err.where, path) == 0 && strstr(err.what, "too large") ? 0 : 3);
            }
            assert_int_equal(waitpid(child, &status, 0), child);
            assert_int_equal(status, 0);
            assert_int_equal(access(path, F_OK), -1);
        }
    free(bytes);
    char command[128];
    snprintf(command, sizeof command, "! ls -A '%s' | grep -q partial", folder);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bytes_do_not_depend_on_threads),
        cmocka_unit_test(test_other_programs_open_it),
        cmocka_unit_test(test_other_programs_wrote_it),
        cmocka_unit_test(test_window_is_bounded),
        cmocka_unit_test(test_head_and_body_are_one_stream),
        cmocka_unit_test(test_pieces_of_any_size),
        cmocka_unit_test(test_several_members),
        cmocka_unit_test(test_members_across_the_pieces_of_input),
        cmocka_unit_test(test_every_truncation_is_an_error),
        cmocka_unit_test(test_every_flipped_bit_is_an_error),
        cmocka_unit_test(test_trailing_bytes),
        cmocka_unit_test(test_limit_and_missing),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
