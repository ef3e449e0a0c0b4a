/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

int error_fill(dm_error *err, dm_status status, const char *where, const char *remedy,
               const char *format, ...)
{
    if (!err)
        return 0;
    err->status = status;
    snprintf(err->where, sizeof err->where, "%s", where ? where : "");
    snprintf(err->remedy, sizeof err->remedy, "%s", remedy ? remedy : "");
    va_list args;
    va_start(args, format);
    vsnprintf(err->what, sizeof err->what, format, args);
    va_end(args);
    return 0;
}

void error_at(dm_error *err, const char *where)
{
    if (err && !err->where[0])
        snprintf(err->where, sizeof err->where, "%s", where);
}

char *dm_error_text(const dm_error *err, char *buffer, size_t size)
{
    if (size == 0)
        return buffer;
    snprintf(buffer, size, "%s%s%s%s%s", err->where, err->where[0] ? ": " : "", err->what,
             err->remedy[0] ? "; " : "", err->remedy);
    /* Names and values come from files: no line ends, nothing that a terminal obeys. */
    for (char *p = buffer; *p; p++)
        if ((unsigned char)*p < 32 || *p == 127)
            *p = '?';
    return buffer;
}

const char *dm_status_name(dm_status status)
{
    switch (status) {
    case DM_OK:
        return "done";
    case DM_ERROR_IO:
        return "input/output error";
    case DM_ERROR_FORMAT:
        return "malformed file";
    case DM_ERROR_VALUE:
        return "invalid value";
    case DM_ERROR_UNSUPPORTED:
        return "unsupported";
    case DM_ERROR_MEMORY:
        return "out of memory";
    case DM_ERROR_DEVICE:
        return "device error";
    case DM_CANCELLED:
        return "cancelled";
    }
    return "unknown status";
}

void dm_string_free(char *string)
{
    free(string);
}

const char *dm_version(void)
{
    return DOSEMAP_VERSION;
}

bool size_multiply(size_t a, size_t b, size_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

void *array_alloc(size_t count, size_t size)
{
    size_t bytes;
    if (!size_multiply(count, size, &bytes) || bytes > SIZE_MAX - 64)
        return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    if (bytes < 2 * HUGE_PAGE)
        return aligned_alloc(64, bytes ? bytes : 64);
    /* Not aligned_alloc, which takes multiples of the alignment only: most sizes are none, and the
     * address sanitizer should see where they end. */
    void *array = NULL;
    if (posix_memalign(&array, HUGE_PAGE, bytes) != 0)
        return NULL;
#ifdef MADV_HUGEPAGE
    /* A wish: a convolution's buffers reach over hundreds of small pages, more than a core keeps
     * the addresses of (5 to 10 % of its time, Zen 4). */
    madvise(array, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return array;
}

void *array_zero(size_t count, size_t size)
{
    void *array = array_alloc(count, size);
    if (array)
        memset(array, 0, count * size);
    return array;
}
