/* SPDX-License-Identifier: Apache-2.0 */
/* What all fuzz targets share: their entry points, files in memory, and checks that hold in every
 * build. A target stops (abort) where a promise of the public header is broken. */
#ifndef DOSEMAP_TESTS_FUZZ_FILE_H
#define DOSEMAP_TESTS_FUZZ_FILE_H

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dosemap.h"

/* libFuzzer's names; LLVMFuzzerMutate is its own, and a stub in fuzz_replay.c. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
                                 uint8_t *out, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

#define FUZZ_CHECK(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static char fuzz_folder[64];

static inline void fuzz_folder_remove(void)
{
    DIR *folder = opendir(fuzz_folder);
    char path[512];
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        snprintf(path, sizeof path, "%s/%s", fuzz_folder, entry->d_name);
        unlink(path);
    }
    if (folder)
        closedir(folder);
    rmdir(fuzz_folder);
}

/* The path of `name` in a folder of this process, in memory where the system has one. */
static inline void fuzz_path(const char *name, char path[128])
{
    if (!*fuzz_folder) {
        strcpy(fuzz_folder, "/dev/shm/dosemap-fuzz-XXXXXX");
        if (!mkdtemp(fuzz_folder)) {
            strcpy(fuzz_folder, "/tmp/dosemap-fuzz-XXXXXX");
            FUZZ_CHECK(mkdtemp(fuzz_folder));
        }
        atexit(fuzz_folder_remove);
    }
    snprintf(path, 128, "%s/%s", fuzz_folder, name);
}

static inline void fuzz_write(const char *name, const uint8_t *data, size_t size, char path[128])
{
    fuzz_path(name, path);
    FILE *f = fopen(path, "wb");
    FUZZ_CHECK(f && (!size || fwrite(data, 1, size, f) == size));
    FUZZ_CHECK(fclose(f) == 0);
}

/* What every function promises: a result or a message, never both or neither. */
static inline void fuzz_check_result(dm_status status, const void *result, const dm_error *err)
{
    FUZZ_CHECK((status == DM_OK) == (result != NULL));
    FUZZ_CHECK(status == DM_OK || (err->what[0] && err->status == status));
}

#endif
