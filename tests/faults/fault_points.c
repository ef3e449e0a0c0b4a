/* SPDX-License-Identifier: Apache-2.0 */
/* See fault_points.h. Built without sanitizers: malloc is called before they are ready. */
#include "fault_points.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <locale.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))
#define CALLER __builtin_return_address(0)

/* ---- Which call fails ----------------------------------------------------------------------- */

static struct {
    atomic_int kind;
    atomic_size_t seen, target;
    fault_record record;
} armed;

typedef struct address_range {
    uintptr_t begin, end;
} address_range;

static address_range foreign[32], loader; /* not counted; the dynamic linker */
static size_t n_foreign;

static bool is_within(const address_range *range, const void *caller)
{
    return (uintptr_t)caller - range->begin < range->end - range->begin;
}

static bool is_foreign(const void *caller)
{
    for (size_t i = 0; i < n_foreign; i++)
        if (is_within(&foreign[i], caller))
            return true;
    return false;
}

static int note_foreign(struct dl_phdr_info *info, size_t size, void *unused)
{
    static const char *const names[] = {"libdnnl", "libstdc++", "libgomp", "ld-linux", "libOpenCL"};
    (void)size;
    (void)unused;
    bool listed = false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        listed |= strstr(info->dlpi_name, names[i]) != NULL;
    for (int i = 0; listed && i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X) &&
            n_foreign < sizeof foreign / sizeof *foreign) {
            uintptr_t begin = info->dlpi_addr + part->p_vaddr;
            foreign[n_foreign++] = (address_range){begin, begin + part->p_memsz};
            if (strstr(info->dlpi_name, "ld-linux"))
                loader = foreign[n_foreign - 1];
        }
    }
    return 0;
}

void fault_init(bool all_callers)
{
    if (!all_callers)
        dl_iterate_phdr(note_foreign, NULL);
}

/* Set while libc allocates for somebody whose calls are not counted. */
static _Thread_local bool exempt;

static bool must_fail(const char *function, const void *caller, const char *path)
{
    if (exempt || is_foreign(caller) || atomic_fetch_add(&armed.seen, 1) + 1 != armed.target)
        return false;
    armed.record.happened = true;
    armed.record.function = function;
    armed.record.caller = caller;
    size_t n = path ? strlen(path) : 0;
    n = n < FAULT_PATH ? n : FAULT_PATH - 1;
    if (n)
        memcpy(armed.record.path, path, n);
    armed.record.path[n] = '\0';
    return true;
}

static bool fails_to_allocate(const char *function, const void *caller)
{
    return armed.kind == FAULT_ALLOCATION && must_fail(function, caller, NULL);
}

/* ---- What is not freed ---------------------------------------------------------------------- */

typedef struct live_entry {
    void *pointer;
    const void *caller;
    size_t size;
} live_entry;

enum { LIVE_SLOTS = 1 << 18 };
static live_entry live[LIVE_SLOTS];
static size_t n_live;
static atomic_flag live_lock = ATOMIC_FLAG_INIT;

static void lock_live(void)
{
    while (atomic_flag_test_and_set(&live_lock))
        ;
}

static size_t live_slot(const void *pointer)
{
    return ((uintptr_t)pointer >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 46;
}

/* The dynamic linker's are those of threads, which libc keeps for the next thread. */
static void live_add(void *pointer, size_t size, const void *caller)
{
    if (!pointer || armed.kind == FAULT_NONE || is_within(&loader, caller))
        return;
    lock_live();
    size_t i = live_slot(pointer);
    while (live[i].pointer)
        i = (i + 1) % LIVE_SLOTS;
    live[i] = (live_entry){pointer, caller, size};
    if (++n_live > LIVE_SLOTS / 2)
        abort();
    atomic_flag_clear(&live_lock);
}

/* Closes the gap by moving entries back, so that searches may stop at an empty slot. */
static void live_remove(const void *pointer)
{
    if (!pointer || n_live == 0)
        return;
    lock_live();
    size_t i = live_slot(pointer);
    while (live[i].pointer && live[i].pointer != pointer)
        i = (i + 1) % LIVE_SLOTS;
    if (live[i].pointer) {
        n_live--;
        for (size_t next = (i + 1) % LIVE_SLOTS; live[next].pointer;
             next = (next + 1) % LIVE_SLOTS) {
            size_t home = live_slot(live[next].pointer);
            if ((next - home) % LIVE_SLOTS >= (next - i) % LIVE_SLOTS) {
                live[i] = live[next];
                i = next;
            }
        }
        live[i].pointer = NULL;
    }
    atomic_flag_clear(&live_lock);
}

size_t fault_live_allocations(size_t print)
{
    char text[256];
    for (size_t i = 0; print > 0 && i < LIVE_SLOTS; i++)
        if (live[i].pointer) {
            fprintf(stderr, "  not freed: %zu bytes from %s\n", live[i].size,
                    fault_address(live[i].caller, text, sizeof text));
            print--;
        }
    return n_live;
}

void fault_arm(fault_kind kind, size_t n)
{
    memset(&armed.record, 0, sizeof armed.record);
    if (n_live > 0)
        memset(live, 0, sizeof live);
    n_live = 0;
    armed.seen = 0;
    armed.target = n;
    armed.kind = (int)kind;
}

size_t fault_disarm(fault_record *record)
{
    armed.kind = FAULT_NONE;
    if (record)
        *record = armed.record;
    return armed.seen;
}

char *fault_address(const void *address, char *text, size_t size)
{
    Dl_info info;
    if (!dladdr(address, &info) || !info.dli_fname)
        snprintf(text, size, "%p", address);
    else
        snprintf(text, size, "%s+0x%zx", info.dli_fname,
                 (size_t)((uintptr_t)address - (uintptr_t)info.dli_fbase));
    return text;
}

/* ---- Memory --------------------------------------------------------------------------------- */

/* libc's own names; with the address sanitizer its interceptors, which libc's functions must not
 * bypass. */
#define BEHIND(type, name, ...)                                                                    \
    extern type __libc_##name(__VA_ARGS__);                                                        \
    extern type __interceptor_##name(__VA_ARGS__) __attribute__((weak));

BEHIND(void *, malloc, size_t)
BEHIND(void *, calloc, size_t, size_t)
BEHIND(void *, realloc, void *, size_t)
BEHIND(void *, memalign, size_t, size_t)
BEHIND(void, free, void *)

#define PASS_ON(name, ...)                                                                         \
    (__interceptor_##name ? __interceptor_##name(__VA_ARGS__) : __libc_##name(__VA_ARGS__))

static void *allocate(const char *function, size_t size, const void *caller)
{
    if (fails_to_allocate(function, caller)) {
        errno = ENOMEM;
        return NULL;
    }
    void *made = PASS_ON(malloc, size);
    live_add(made, size, caller);
    return made;
}

static void *allocate_aligned(const char *function, size_t alignment, size_t size,
                              const void *caller)
{
    if (fails_to_allocate(function, caller)) {
        errno = ENOMEM;
        return NULL;
    }
    void *made = PASS_ON(memalign, alignment, size);
    live_add(made, size, caller);
    return made;
}

EXPORTED void *malloc(size_t size)
{
    return allocate("malloc", size, CALLER);
}

EXPORTED void *calloc(size_t count, size_t size)
{
    if (fails_to_allocate("calloc", CALLER)) {
        errno = ENOMEM;
        return NULL;
    }
    void *made = PASS_ON(calloc, count, size);
    live_add(made, count * size, CALLER);
    return made;
}

EXPORTED void *realloc(void *old, size_t size)
{
    if (fails_to_allocate("realloc", CALLER)) {
        errno = ENOMEM;
        return NULL;
    }
    live_remove(old);
    void *made = PASS_ON(realloc, old, size);
    live_add(made, size, CALLER);
    return made;
}

EXPORTED void free(void *old)
{
    live_remove(old);
    PASS_ON(free, old);
}

EXPORTED void *aligned_alloc(size_t alignment, size_t size)
{
    return allocate_aligned("aligned_alloc", alignment, size, CALLER);
}

EXPORTED void *memalign(size_t alignment, size_t size);
EXPORTED void *memalign(size_t alignment, size_t size)
{
    return allocate_aligned("memalign", alignment, size, CALLER);
}

EXPORTED int posix_memalign(void **made, size_t alignment, size_t size)
{
    void *memory = allocate_aligned("posix_memalign", alignment, size, CALLER);
    if (!memory)
        return ENOMEM;
    *made = memory;
    return 0;
}

/* The address sanitizer's own would not pass through the malloc above. */
static char *copy_text(const char *function, const char *text, size_t n, const void *caller)
{
    char *copy = allocate(function, n + 1, caller);
    if (copy) {
        memcpy(copy, text, n);
        copy[n] = '\0';
    }
    return copy;
}

EXPORTED char *strdup(const char *text)
{
    return copy_text("strdup", text, strlen(text), CALLER);
}

EXPORTED char *strndup(const char *text, size_t n)
{
    return copy_text("strndup", text, strnlen(text, n), CALLER);
}

/* ---- Other things that can be short --------------------------------------------------------- */

/* What the program would have called without this file. */
static void *behind(void *_Atomic *known, const char *name)
{
    if (!*known)
        *known = dlsym(RTLD_NEXT, name);
    if (!*known)
        abort();
    return *known;
}

#define NEXT(name)                                                                                 \
    static void *_Atomic next_##name;                                                              \
    __typeof__(name) *next = NULL;                                                                 \
    void *found = behind(&next_##name, #name);                                                     \
    memcpy(&next, &found, sizeof next);

EXPORTED int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes,
                            void *(*start)(void *), void *restrict argument)
{
    NEXT(pthread_create)
    if (fails_to_allocate("pthread_create", CALLER))
        return EAGAIN;
    return next(thread, attributes, start, argument);
}

/* The address sanitizer's, at the start of each thread. */
EXPORTED int pthread_getattr_np(pthread_t thread, pthread_attr_t *attributes)
{
    NEXT(pthread_getattr_np)
    exempt = true;
    int result = next(thread, attributes);
    exempt = false;
    return result;
}

/* glibc hands out its "C" locale without allocating; other ones are allocated. */
EXPORTED locale_t newlocale(int mask, const char *name, locale_t base)
{
    NEXT(newlocale)
    if (fails_to_allocate("newlocale", CALLER)) {
        errno = ENOMEM;
        return (locale_t)0;
    }
    return next(mask, name, base);
}

/* ---- Files ---------------------------------------------------------------------------------- */

enum { FILES = 256 };
static char file_paths[FILES][FAULT_PATH];

static const char *path_of(int fd)
{
    return fd >= 0 && fd < FILES ? file_paths[fd] : NULL;
}

/* Any call on a file. `makes`: it may need room on the disk. */
static bool fails_on_file(const char *function, const void *caller, const char *path, bool makes)
{
    /* The processor's name, which is another one when it cannot be read. */
    if (path && strncmp(path, "/proc/", 6) == 0)
        return false;
    int kind = armed.kind;
    if (kind != FAULT_IO && !(kind == FAULT_IO_FULL && makes))
        return false;
    if (!must_fail(function, caller, path))
        return false;
    errno = kind == FAULT_IO ? EIO : ENOSPC;
    return true;
}

/* A read or write that does less than it was asked for; true if it is to return -1 at once. */
static bool transfer(const char *function, const void *caller, int fd, size_t *size)
{
    int kind = armed.kind;
    if (kind != FAULT_IO_SHORT && kind != FAULT_IO_AGAIN)
        return false;
    const char *path = path_of(fd);
    if (*size == 0 || (path && strncmp(path, "/proc/", 6) == 0) ||
        !must_fail(function, caller, path))
        return false;
    if (kind == FAULT_IO_AGAIN) {
        errno = EINTR;
        return true;
    }
    *size = 1;
    return false;
}

static int opened(int fd, const char *path)
{
    if (fd >= 0 && fd < FILES)
        snprintf(file_paths[fd], FAULT_PATH, "%s", path);
    return fd;
}

EXPORTED int open(const char *path, int flags, ...)
{
    NEXT(open)
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list args;
        va_start(args, flags);
        mode = va_arg(args, mode_t);
        va_end(args);
    }
    if (fails_on_file("open", CALLER, path, flags & O_CREAT))
        return -1;
    return opened(next(path, flags, mode), path);
}

EXPORTED int close(int fd)
{
    NEXT(close)
    bool fails = fails_on_file("close", CALLER, path_of(fd), true);
    int number = errno, result = next(fd);
    if (fails) {
        errno = number;
        return -1; /* as Linux does it: the descriptor is gone all the same */
    }
    return result;
}

EXPORTED ssize_t read(int fd, void *bytes, size_t size)
{
    NEXT(read)
    if (fails_on_file("read", CALLER, path_of(fd), false) || transfer("read", CALLER, fd, &size))
        return -1;
    return next(fd, bytes, size);
}

EXPORTED ssize_t pread(int fd, void *bytes, size_t size, off_t at)
{
    NEXT(pread)
    if (fails_on_file("pread", CALLER, path_of(fd), false) || transfer("pread", CALLER, fd, &size))
        return -1;
    return next(fd, bytes, size, at);
}

EXPORTED ssize_t write(int fd, const void *bytes, size_t size)
{
    NEXT(write)
    if (fails_on_file("write", CALLER, path_of(fd), true) || transfer("write", CALLER, fd, &size))
        return -1;
    return next(fd, bytes, size);
}

#define FILE_CALL(type, name, failure, makes, path, parameters, arguments, ...)                    \
    EXPORTED type name parameters                                                                  \
    {                                                                                              \
        NEXT(name)                                                                                 \
        if (fails_on_file(#name, CALLER, path, makes))                                             \
            return failure;                                                                        \
        return next arguments;                                                                     \
    }

/* Never passed on: what is written here need not survive a power cut, and the disk is slow. */
EXPORTED int fsync(int fd)
{
    return fails_on_file("fsync", CALLER, path_of(fd), true) ? -1 : 0;
}

EXPORTED int fdatasync(int fd)
{
    return fails_on_file("fdatasync", CALLER, path_of(fd), true) ? -1 : 0;
}

FILE_CALL(int, ftruncate, -1, true, path_of(fd), (int fd, off_t size), (fd, size))
FILE_CALL(int, posix_fallocate, errno, true, path_of(fd), (int fd, off_t at, off_t size),
          (fd, at, size))
FILE_CALL(int, rename, -1, true, path, (const char *from, const char *path), (from, path))
FILE_CALL(int, link, -1, true, path, (const char *from, const char *path), (from, path))
FILE_CALL(int, unlink, -1, false, path, (const char *path), (path))
FILE_CALL(int, mkdir, -1, true, path, (const char *path, mode_t mode), (path, mode))
FILE_CALL(int, access, -1, false, path, (const char *path, int mode), (path, mode))
FILE_CALL(int, stat, -1, false, path, (const char *restrict path, struct stat *restrict info),
          (path, info))
FILE_CALL(int, lstat, -1, false, path, (const char *restrict path, struct stat *restrict info),
          (path, info))
FILE_CALL(int, fstat, -1, false, path_of(fd), (int fd, struct stat *info), (fd, info))
FILE_CALL(FILE *, fopen, NULL, false, path, (const char *restrict path, const char *restrict mode),
          (path, mode))
FILE_CALL(DIR *, opendir, NULL, false, path, (const char *path), (path))
FILE_CALL(char *, realpath, NULL, false, path, (const char *restrict path, char *restrict to),
          (path, to))
FILE_CALL(int, scandir, -1, false, path,
          (const char *restrict path, struct dirent ***restrict list,
           int (*wanted)(const struct dirent *),
           int (*order)(const struct dirent **, const struct dirent **)),
          (path, list, wanted, order))

size_t fault_open_files(void)
{
    size_t n = 0;
    for (int fd = 0; fd < FILES; fd++)
        n += fcntl(fd, F_GETFD) != -1;
    return n;
}
