/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Several PETs through three stages: while one is predicted, the next is read ahead, and the outputs
 * of the one before are written. Everything the user sees, and every file, comes from the calling
 * thread and in the order of the PETs, as if there were one after the other.
 */
#ifndef DOSEMAP_CLI_COHORT_H
#define DOSEMAP_CLI_COHORT_H

#include <stdbool.h>
#include <stddef.h>

/* PETs that are under way at most; what belongs to PET i may lie in place i % COHORT_PLACES. */
enum { COHORT_PLACES = 3 };

typedef struct cohort {
    size_t count;
    void *context;
    /* In a thread of its own. */
    void (*read)(void *context, size_t index);
    /* False if reading `index` has to wait until all before it are written. */
    bool (*can_read_ahead)(void *context, size_t index);
    /* In another thread. False if `index` must be predicted with no other PET in memory; called
     * after it was read. */
    bool (*has_room)(void *context, size_t index);
    /* With nothing else in memory, and after announce, `index` may be read again, if it did not fit
     * before. */
    void (*read_again)(void *context, size_t index);
    void (*predict)(void *context, size_t index);
    /* In the calling thread: once `index` is read, beside has_room and predict; and after it is
     * predicted. */
    void (*announce)(void *context, size_t index);
    void (*write)(void *context, size_t index);
} cohort;

/* Without threads to be had, or for one PET, one after the other in the calling thread. */
void cohort_run(const cohort *c);

#endif
