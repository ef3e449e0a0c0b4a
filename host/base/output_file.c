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
 * remove, and nothing but static storage can be reached from it. */
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

void dm_remove_partial_files(void)
{
    for (int i = 0; i < REGISTRY_SLOTS; i++) {
        char *partial = atomic_load(&registry[i]);
        if (partial)
            unlink(partial);
    }
}

static void output_free(output_file *file)
{
    if (file->slot >= 0)
        atomic_store(&registry[file->slot], NULL);
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    free(file->partial);
    free(file);
}

static dm_status write_error(const char *path, int number, const char *action, dm_error *err)
{
    const char *remedy = "check the folder and its permissions";
    if (number == ENOSPC || number == EDQUOT || number == EFBIG)
        remedy = "free space on the disk or raise the limit, or write somewhere else";
    return error_set(err, DM_ERROR_IO, path, remedy, "cannot %s: %s", action, strerror(number));
}

/* `.NAME.PID.partial`, with a counter where this process writes the name twice at once. */
static int open_partial(output_file *file, size_t folder_length)
{
    size_t size = strlen(file->path) + 48;
    file->partial = malloc(size);
    for (unsigned attempt = 0; file->partial && attempt < 1000; attempt++) {
        char number[16] = "";
        if (attempt > 0)
            snprintf(number, sizeof number, ".%u", attempt);
        snprintf(file->partial, size, "%.*s.%s.%ld%s.partial", (int)folder_length, file->path,
                 file->path + folder_length, (long)getpid(), number);
        int fd = open(file->partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

dm_status output_open(const char *path, output_file **out, dm_error *err)
{
    *out = NULL;
    output_file *file = calloc(1, sizeof *file);
    if (!file)
        return error_memory(err, sizeof *file, "an output file");
    *file = (output_file){.fd = -1, .slot = -1, .path = strdup(path)};
    if (!file->path) {
        output_free(file);
        return error_memory(err, strlen(path), "an output file's name");
    }
    const char *slash = strrchr(path, '/');
    file->fd = open_partial(file, slash ? (size_t)(slash + 1 - path) : 0);
    if (file->fd < 0) {
        dm_status status = write_error(path, errno, "create it", err);
        output_free(file);
        return status;
    }
    file->slot = registry_add(file->partial);
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
