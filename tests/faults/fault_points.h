/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the n-th allocation, or the n-th call to the file system, fail.
 *
 * fault_points.c defines malloc, open, read, pthread_create, ... in the test program itself: the
 * dynamic linker takes these for every library of the process, with and without the address
 * sanitizer, and they pass each call on. One call is one point. A point counts where it is called
 * from: our own code and the C libraries below it are counted, and so is what libc does for them
 * (asprintf, scandir, open_memstream); oneDNN, the C++ and OpenMP runtimes and the dynamic linker
 * are not (FAULT_ALL_CALLERS counts them too).
 */
#ifndef DOSEMAP_TESTS_FAULT_POINTS_H
#define DOSEMAP_TESTS_FAULT_POINTS_H

#include <stdbool.h>
#include <stddef.h>

typedef enum fault_kind {
    FAULT_NONE,
    FAULT_ALLOCATION, /* memory, threads and locales: ENOMEM, EAGAIN for a thread */
    FAULT_IO,         /* EIO */
    FAULT_IO_FULL,    /* ENOSPC from what makes or writes a file, nothing for other calls */
    FAULT_IO_SHORT,   /* reads and writes that do one byte, nothing for other calls */
    FAULT_IO_AGAIN,   /* reads and writes interrupted once (EINTR), nothing for other calls */
    FAULT_KINDS
} fault_kind;

enum { FAULT_PATH = 512 };

/* The call that was made to fail. */
typedef struct fault_record {
    bool happened;
    const char *function;  /* "malloc" */
    const void *caller;    /* where it was called from */
    char path[FAULT_PATH]; /* of calls on files; empty if it is not known */
} fault_record;

/* Finds the libraries whose calls are not counted. Once, before anything else. */
void fault_init(bool all_callers);

/* From now on call number `n` (from 1) of this kind fails, once. 0: calls are counted only. */
void fault_arm(fault_kind kind, size_t n);
/* No more failures. Returns the number of calls counted since fault_arm. */
size_t fault_disarm(fault_record *record);

/* Allocations made between fault_arm and fault_disarm, by anybody, that are not freed yet. Prints
 * up to `print` of them, with their callers. */
size_t fault_live_allocations(size_t print);

/* Open file descriptors of the process. */
size_t fault_open_files(void);

/* "library+0x1234" of an address, for addr2line. Returns `text`. */
char *fault_address(const void *address, char *text, size_t size);

#endif
