/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `dosemap bench --tune` found fastest, kept on disk: for each convolution of a network, told
 * by its operands, who computes it, and the library's plan.
 *
 * A file of JSON in $DOSEMAP_CACHE_DIR, else $XDG_CACHE_HOME/dosemap, else ~/.cache/dosemap, one
 * for each network, device, library, element type and batch. Its last line holds the XXH64 of all
 * bytes before. It appears whole or not at all; of two writers the last one wins. A file that is
 * damaged, belongs to somebody else, or was made with another driver or build is not used; that is
 * said, and never an error.
 */
#ifndef DOSEMAP_PREDICT_CUDA_TUNING_FILE_H
#define DOSEMAP_PREDICT_CUDA_TUNING_FILE_H

#include "dosemap.h"

/* What the choices hold for. */
typedef struct tuning_key {
    /* These name the file. */
    char library[48], device[300];
    int capability[2], multiprocessors;
    char network[17]; /* checksum of the plan's steps and sizes; weights do not matter */
    size_t tile[3];   /* z, y, x */
    char precision[16];
    unsigned batch;
    /* With others of these a file is out of date. */
    int driver;
    char build[64];
} tuning_key;

/* A convolution. Strings are borrowed. */
typedef struct tuned_layer {
    const char *operands; /* what it computes from what, as convolution_operands writes it */
    const char *way;      /* as convolution_way_name has it */
    /* Of the library: */
    bool joined;        /* with what can be joined to it */
    const char *engine; /* the plan's description; NULL otherwise */
    const char *saved;  /* the plan's words, NULL if it has none */
    double seconds;     /* that it took */
} tuned_layer;

typedef struct tuning tuning;

enum { TUNING_PROBLEM = 240, TUNING_PATH = 4096 };

/* NULL if there is none for this key that can be used; then `problem` says why, or is "" if there
 * is none at all. Errors: MEMORY. */
dm_status tuning_load(const tuning_key *key, tuning **loaded, char problem[TUNING_PROBLEM],
                      dm_error *err);
void tuning_free(tuning *t); /* NULL is fine */

const char *tuning_path(const tuning *t);
/* XXH64 of the file, 16 hexadecimal digits. */
const char *tuning_checksum(const tuning *t);
/* False if it has no such convolution. t may be NULL. */
bool tuning_find(const tuning *t, const char *operands, tuned_layer *layer);

/* Makes the folder, and finds out whether a file can be written there. Errors: IO, VALUE (there is
 * no place for it), MEMORY. */
dm_status tuning_check_folder(const tuning_key *key, dm_error *err);
/* path, checksum: of the file that was written. */
dm_status tuning_save(const tuning_key *key, const tuned_layer *layers, size_t n,
                      char path[TUNING_PATH], char checksum[17], dm_error *err);

#endif
