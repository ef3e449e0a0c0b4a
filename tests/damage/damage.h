/* SPDX-License-Identifier: Apache-2.0 */
/* Every way in which a small file can be damaged in one place, tried on a reader. */
#ifndef DOSEMAP_TESTS_DAMAGE_H
#define DOSEMAP_TESTS_DAMAGE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dosemap.h"

/* Reads the file at `path`; on success `digest` is a checksum of all that was read. */
typedef dm_status (*damage_reader)(const char *path, uint64_t *digest, dm_error *err);

typedef struct damage_case {
    const char *name;
    const uint8_t *bytes;
    size_t size;
    damage_reader read;
    const char *path; /* the file to damage; NULL: one in memory */
    /* From this byte on the file protects its content by a checksum or compression: what is
     * accepted there despite a flipped bit has to be the undamaged content. SIZE_MAX: nowhere. */
    size_t protected_from;
    /* Bytes at the end whose loss is no loss: white space. */
    size_t dispensable;
    /* Lines of a table that could be whole: the loss of the rest cannot be noticed. */
    bool may_be_cut;
} damage_case;

typedef struct damage_count {
    size_t tried, refused;
} damage_count;

/* A new file each time: file systems wait for the disk when one that was cut short is closed. */
static inline void damage_store(const char *path, const uint8_t *bytes, size_t size)
{
    remove(path);
    FILE *file = fopen(path, "wb");
    if (!file || (size && fwrite(bytes, 1, size, file) != size) || fclose(file) != 0)
        fail_msg("%s: cannot be written", path);
}

/* A refusal names the file, says what is wrong and what to do. */
static inline void damage_check_error(const damage_case *c, const char *path, dm_status status,
                                      const dm_error *err, const char *how, size_t at)
{
    bool kind = status == DM_ERROR_FORMAT || status == DM_ERROR_VALUE ||
                status == DM_ERROR_UNSUPPORTED || status == DM_ERROR_IO;
    if (!kind || err->status != status || !strstr(err->where, path) || !err->what[0] ||
        !err->remedy[0])
        fail_msg("%s, %s %zu: %s \"%s\" \"%s\" \"%s\"", c->name, how, at, dm_status_name(status),
                 err->where, err->what, err->remedy);
}

/* Status of reading these bytes; fails the test where an error is not a good one. */
static inline dm_status damage_read(const damage_case *c, const uint8_t *bytes, size_t size,
                                    const char *how, size_t at, uint64_t *digest)
{
    char memory_path[64];
    const char *path = c->path;
    dm_error err = {0};
    int fd = -1;
    if (path) {
        damage_store(path, bytes, size);
    } else {
        fd = memfd_create("damage", MFD_CLOEXEC);
        if (fd < 0 || write(fd, bytes, size) != (ssize_t)size)
            fail_msg("memfd_create or write failed");
        snprintf(memory_path, sizeof memory_path, "/proc/self/fd/%d", fd);
        path = memory_path;
    }
    *digest = 0;
    dm_status status = c->read(path, digest, &err);
    if (status != DM_OK)
        damage_check_error(c, path, status, &err, how, at);
    if (fd >= 0)
        close(fd);
    return status;
}

/* The file ends after every number of bytes. */
static inline damage_count damage_truncate(const damage_case *c, uint64_t whole)
{
    damage_count count = {0};
    for (size_t n = 0; n < c->size; n++) {
        /* An own copy of just this size, so that reading beyond it is noticed. */
        uint8_t *cut = malloc(n + 1);
        uint64_t digest;
        memcpy(cut, c->bytes, n);
        dm_status status = damage_read(c, cut, n, "cut after byte", n, &digest);
        free(cut);
        count.tried++;
        count.refused += status != DM_OK;
        if (status == DM_OK && !c->may_be_cut && (n < c->size - c->dispensable || digest != whole))
            fail_msg("%s cut after %zu of %zu bytes is accepted", c->name, n, c->size);
    }
    return count;
}

static inline void damage_judge(const damage_case *c, dm_status status, uint64_t digest,
                                uint64_t whole, const char *how, size_t at, damage_count *count)
{
    count->tried++;
    count->refused += status != DM_OK;
    if (status == DM_OK && at >= c->protected_from && digest != whole)
        fail_msg("%s, %s %zu: other content is accepted", c->name, how, at);
}

/* Every bit of the file is flipped in turn, `bits` of each byte. */
static inline damage_count damage_flip(const damage_case *c, unsigned bits, uint64_t whole)
{
    damage_count count = {0};
    uint8_t *bytes = malloc(c->size);
    memcpy(bytes, c->bytes, c->size);
    for (size_t i = 0; i < c->size; i++)
        for (unsigned bit = 0; bit < 8; bit++) {
            uint64_t digest;
            if (!(bits >> bit & 1))
                continue;
            bytes[i] ^= (uint8_t)(1u << bit);
            dm_status status = damage_read(c, bytes, c->size, "flipped bit in byte", i, &digest);
            bytes[i] ^= (uint8_t)(1u << bit);
            damage_judge(c, status, digest, whole, "flipped bit in byte", i, &count);
        }
    free(bytes);
    return count;
}

/* Eight bytes in a row are lost to zeros, as holes of a copied file are. */
static inline damage_count damage_zero(const damage_case *c, uint64_t whole)
{
    enum { HOLE = 8 };
    damage_count count = {0};
    uint8_t *bytes = malloc(c->size);
    for (size_t i = 0; i + HOLE <= c->size; i += HOLE) {
        uint64_t digest;
        memcpy(bytes, c->bytes, c->size);
        memset(bytes + i, 0, HOLE);
        dm_status status = damage_read(c, bytes, c->size, "zeros from byte", i, &digest);
        damage_judge(c, status, digest, whole, "zeros from byte", i, &count);
    }
    free(bytes);
    return count;
}

/* All of it; prints the figures. Returns the checksum of the undamaged content. */
static inline uint64_t damage_all(const damage_case *c, unsigned bits)
{
    uint64_t whole;
    if (damage_read(c, c->bytes, c->size, "undamaged", c->size, &whole) != DM_OK)
        fail_msg("%s: refused undamaged", c->name);
    damage_count cut = damage_truncate(c, whole), flip = damage_flip(c, bits, whole),
                 zero = damage_zero(c, whole);
    printf("%-28s %5zu bytes: %5zu cuts (%zu refused), %6zu flips (%zu refused), %4zu holes (%zu "
           "refused)\n",
           c->name, c->size, cut.tried, cut.refused, flip.tried, flip.refused, zero.tried,
           zero.refused);
    if (c->path)
        damage_store(c->path, c->bytes, c->size);
    return whole;
}

#endif
