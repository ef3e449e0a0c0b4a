/* SPDX-License-Identifier: Apache-2.0 */
/* Filling a caller's dm_error in one statement: `return error_set(err, DM_ERROR_IO, path, ...)`. */
#ifndef DOSEMAP_BASE_ERROR_H
#define DOSEMAP_BASE_ERROR_H

#include "dosemap.h"

/* where: file (and place in it) or NULL; remedy: what to do, or NULL; format: what is wrong, with
 * the value. err may be NULL. Is the status itself, visible to a static analyser as such. */
#define error_set(err, status, ...) error_status((status), error_fill((err), (status), __VA_ARGS__))

int error_fill(dm_error *err, dm_status status, const char *where, const char *remedy,
               const char *format, ...) __attribute__((format(printf, 5, 6)));

static inline dm_status error_status(dm_status status, int filled)
{
    (void)filled;
    return status;
}

/* DM_ERROR_MEMORY with the number of bytes wanted and what for. */
static inline dm_status error_memory(dm_error *err, size_t bytes, const char *what)
{
    return error_set(err, DM_ERROR_MEMORY, NULL, "free memory, or use a machine with more",
                     "no memory for %s (%zu bytes)", what, bytes);
}

/* Fills `where` if it is still empty: for callers that know the file that a lower layer did not. */
void error_at(dm_error *err, const char *where);

/* malloc / calloc of count*size with overflow checked; 64-byte aligned; NULL on overflow or when
 * memory is short. Released with free(). */
void *array_alloc(size_t count, size_t size);
void *array_zero(size_t count, size_t size);

/* a*b into *product; false on overflow. */
bool size_multiply(size_t a, size_t b, size_t *product);

#endif
