/* SPDX-License-Identifier: Apache-2.0 */
#include "base/output_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

struct output_file {
    int fd;
    int slot; /* in the registry, -1 if it is full */
    char *path;
    char *partial;
};

/* The one mutable global of the library: a signal handler has to know which partial files to
 * remove, and only static storage can be reached from it. A file beyond the slots is written all
 * the same; it would stay behind after a signal. */
#define REGISTRY_SLOTS 64
static _Atomic(char *) registry[REGISTRY_SLOTS];

static int registry_add(char *partial)
{
    for (int i = 0; i < REGISTRY_SLOTS; i++) {
        char *empty = NULL;
        if (atomic_compare_exchange_strong(&registry[i], &empty, partial))
            return i;
    }
    return -1;
}

/* Whoever takes a name out of the registry owns it. If that was the signal handler, the name must
 * stay readable until the process ends. */
static void registry_release(int slot, char *partial)
{
    char *expected = partial;
    if (slot < 0 || atomic_compare_exchange_strong(&registry[slot], &expected, NULL))
        free(partial);
}

void dm_remove_partial_files(void)
{
    int number = errno;
    for (int i = 0; i < REGISTRY_SLOTS; i++) {
        char *partial = atomic_exchange(&registry[i], NULL);
        if (partial)
            unlink(partial);
    }
    errno = number;
}

static void output_free(output_file *file)
{
    if (file->fd >= 0)
        close(file->fd);
    registry_release(file->slot, file->partial);
    free(file->path);
    free(file);
}

static dm_status write_error(const char *path, int number, const char *action, dm_error *err)
{
    const char *remedy = "check the folder and its permissions";
    if (number == ENOMEM)
        return error_set(err, DM_ERROR_MEMORY, path, "free memory", "no memory to %s", action);
    if (number == ENOSPC || number == EDQUOT || number == EFBIG)
        remedy = "free space on the disk or raise the limit, or write somewhere else";
    else if (number == ENOENT || number == ENOTDIR)
        remedy = "create the folder, or correct the path";
    else if (number == EISDIR)
        remedy = "give the path of a file";
    else if (number == ENAMETOOLONG)
        remedy = "use a shorter name";
    return error_set(err, DM_ERROR_IO, path, remedy, "cannot %s: %s", action, strerror(number));
}

/* `.NAME.PID.partial`, with a counter where this process writes the name twice at once. Long names
 * are cut, so that a name that the file system takes can be written. */
static char *partial_name(const char *path, unsigned attempt)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    char number[16] = "", *partial = NULL;
    if (attempt > 0)
        snprintf(number, sizeof number, ".%u", attempt);
    int n = asprintf(&partial, "%.*s.%.200s.%ld%s.partial", (int)(name - path), path, name,
                     (long)getpid(), number);
    return n < 0 ? NULL : partial;
}

/* Creates the partial file. It is registered before it exists: a signal may come at any time. */
static int open_partial(output_file *file)
{
    struct stat info;
    if (stat(file->path, &info) == 0 && S_ISDIR(info.st_mode)) {
        errno = EISDIR;
        return -1;
    }
    for (unsigned attempt = 0; attempt < 1000; attempt++) {
        char *partial = partial_name(file->path, attempt);
        if (!partial) {
            errno = ENOMEM;
            return -1;
        }
        int slot = registry_add(partial);
        int fd = open(partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0) {
            file->partial = partial;
            file->slot = slot;
            return fd;
        }
        int number = errno;
        registry_release(slot, partial);
        errno = number;
        if (number != EEXIST)
            return -1;
    }
    return -1;
}

dm_status output_open(const char *path, output_file **out, dm_error *err)
{
    struct stat info;
    *out = NULL;
    /* The rename would put a file in the place of, say, /dev/null. */
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))
        return error_set(err, DM_ERROR_IO, path, "give the path of a file",
                         "cannot create it: there is a device or a pipe of this name");
    output_file *file = calloc(1, sizeof *file);
    if (!file)
        return error_memory(err, sizeof *file, "an output file");
    *file = (output_file){.fd = -1, .slot = -1, .path = strdup(path)};
    if (!file->path) {
        output_free(file);
        return error_memory(err, strlen(path), "an output file's name");
    }
    file->fd = open_partial(file);
    if (file->fd < 0) {
        dm_status status = errno == ENOMEM ? DM_ERROR_MEMORY : DM_ERROR_IO;
        write_error(path, errno, "create it", err);
        output_free(file);
        return status;
    }
    *out = file;
    return DM_OK;
}

dm_status output_write(output_file *file, const void *bytes, size_t size, dm_error *err)
{
    const char *p = bytes;
    while (size > 0) {
        ssize_t n = write(file->fd, p, size < (1u << 30) ? size : 1u << 30);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return write_error(file->path, errno, "write it", err);
        p += n;
        size -= (size_t)n;
    }
    return DM_OK;
}

/* So that the new name survives a power cut; some file systems refuse it, which is no error. */
static void sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash + 1 - path)) : strdup(".");
    int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(folder);
}

dm_status output_commit(output_file *file, dm_error *err)
{
    dm_status status = DM_OK;
    if (fsync(file->fd) != 0 && errno != EINVAL)
        status = write_error(file->path, errno, "write it", err);
    int closed = close(file->fd);
    file->fd = -1;
    if (status == DM_OK && closed != 0)
        status = write_error(file->path, errno, "write it", err);
    if (status == DM_OK && rename(file->partial, file->path) != 0)
        status = write_error(file->path, errno, "rename the finished file to it", err);
    if (status == DM_OK)
        sync_folder(file->path);
    else
        unlink(file->partial);
    output_free(file);
    return status;
}

void output_abandon(output_file *file)
{
    if (!file)
        return;
    unlink(file->partial);
    output_free(file);
}

dm_status output_write_all(const char *path, const void *bytes, size_t size, dm_error *err)
{
    output_file *file = NULL;
    dm_status status = output_open(path, &file, err);
    if (status != DM_OK)
        return status;
    status = output_write(file, bytes, size, err);
    if (status == DM_OK)
        return output_commit(file, err);
    output_abandon(file);
    return status;
}

dm_status dm_text_write(const char *path, const char *text, dm_error *err)
{
    static const char newline[] = "\n";
    output_file *file = NULL;
    dm_status status = output_open(path, &file, err);
    if (status == DM_OK)
        status = output_write(file, text, strlen(text), err);
    if (status == DM_OK)
        status = output_write(file, newline, 1, err);
    if (status == DM_OK)
        return output_commit(file, err);
    output_abandon(file);
    return status;
}
