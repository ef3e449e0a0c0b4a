/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which cuDNN is taken, and what is said of one that is of no use: not there, too old, or without
 * some of its parts.
 *
 *     test_cudnn_parts CUDNN_FOLDER OLD_CUDNN_FOLDER DEVICE_JSON
 *
 * A cuDNN with a part missing is a folder of links to the real one's files, empty files being in the
 * place of the part: the loader must not find it elsewhere. Each case is a process, since a cuDNN
 * once loaded stays, also under other names.
 */
#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "predict/cuda/library_convolution.h"

static char device_json[8192];
static char version[32];

static void stop(const char *what, const char *why)
{
    fprintf(stderr, "test_cudnn_parts: %s: %s\n", what, why);
    exit(1);
}

/* Not in this process either. */
static void find_version(void)
{
    int ends[2], status = 1;
    if (pipe(ends))
        stop("pipe", "there is none");
    pid_t child = fork();
    if (child == 0) {
        dm_error err = {0};
        if (convolution_library_probe(version, &err) != DM_OK)
            stop("cuDNN", err.what);
        _exit(write(ends[1], version, sizeof version) != (ssize_t)sizeof version);
    }
    close(ends[1]);
    if (child < 0 || read(ends[0], version, sizeof version) != (ssize_t)sizeof version ||
        waitpid(child, &status, 0) != child || status != 0)
        stop("cuDNN", "its version is not known");
    close(ends[0]);
}

/* ---- Folders -------------------------------------------------------------------------------- */

typedef char path[4096];

static void join(path out, const char *folder, const char *name)
{
    int n = snprintf(out, sizeof(path), "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= sizeof(path))
        stop(name, "its path is too long");
}

static void write_empty(const char *folder, const char *name)
{
    path file;
    join(file, folder, name);
    FILE *f = fopen(file, "wb");
    if (!f || fclose(f))
        stop(file, "cannot be written");
}

/* By all names that cuDNN tries. */
static void write_part(const char *folder, const char *part)
{
    const char *dots = strrchr(version, '.');
    char name[128];
    snprintf(name, sizeof name, "%s.so", part);
    write_empty(folder, name);
    snprintf(name, sizeof name, "%s.so.9", part);
    write_empty(folder, name);
    snprintf(name, sizeof name, "%s.so.%.*s", part, (int)(dots - version), version);
    write_empty(folder, name);
    snprintf(name, sizeof name, "%s.so.%s", part, version);
    write_empty(folder, name);
}

/* Links to the real files, but for the part's. */
static void make_folder(const char *folder, const char *real, const char *part)
{
    DIR *entries = opendir(real);
    if (!entries)
        stop(real, "cannot be read");
    for (struct dirent *e; (e = readdir(entries));) {
        path from, to;
        if (strncmp(e->d_name, "lib", 3) || (part && !strncmp(e->d_name, part, strlen(part))))
            continue;
        join(from, real, e->d_name);
        join(to, folder, e->d_name);
        if (symlink(from, to))
            stop(to, "cannot be linked");
    }
    closedir(entries);
    if (part)
        write_part(folder, part);
}

static void remove_folder(const char *folder)
{
    DIR *entries = opendir(folder);
    path file;
    for (struct dirent *e; entries && (e = readdir(entries));) {
        join(file, folder, e->d_name);
        if (e->d_name[0] != '.')
            unlink(file);
    }
    if (entries)
        closedir(entries);
    rmdir(folder);
}

/* ---- Cases ---------------------------------------------------------------------------------- */

typedef struct expectation {
    dm_status status;
    const char *where, *what, *remedy; /* parts of them */
} expectation;

static bool says(const char *name, const char *text, const char *word)
{
    if (!word || strstr(text, word))
        return true;
    fprintf(stderr, "%s: '%s' is not in '%s'\n", name, word, text);
    return false;
}

/* In a process of its own, with $DOSEMAP_CUDNN_DIR. */
static bool opens_as(const char *name, const char *folder, expectation e)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        convolution_library *l = NULL;
        dm_error err = {0};
        setenv("DOSEMAP_CUDNN_DIR", folder, 1);
        dm_status status = convolution_library_open_for(device_json, &l, &err);
        printf("%s: %d, %s: %s; %s\n", name, (int)status, err.where, err.what, err.remedy);
        fflush(stdout);
        bool good = status == e.status && (status == DM_OK) == (l != NULL);
        good = says(name, err.where, e.where) && good;
        good = says(name, err.what, e.what) && good;
        good = says(name, err.remedy, e.remedy) && good;
        _exit(!good);
    }
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
        fprintf(stderr, "%s: the process ended with status %#x\n", name, (unsigned)status);
        return false;
    }
    return WEXITSTATUS(status) == 0;
}

static bool opens_without(const char *real, const char *part, expectation e)
{
    char folder[] = "/tmp/dosemap-cudnn-XXXXXX";
    if (!mkdtemp(folder))
        stop(folder, "cannot be made");
    make_folder(folder, real, part);
    if (e.status != DM_OK)
        e.where = folder;
    bool good = opens_as(part ? part : "all parts", folder, e);
    remove_folder(folder);
    return good;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        stop("usage", "test_cudnn_parts CUDNN_FOLDER OLD_CUDNN_FOLDER DEVICE_JSON");
    FILE *f = fopen(argv[3], "rb");
    if (!f || fread(device_json, 1, sizeof device_json - 1, f) == 0)
        stop(argv[3], "cannot be read");
    fclose(f);
    unsetenv("DOSEMAP_CUDNN_DIR");
    find_version();
    const expectation fine = {.status = DM_OK},
                      none = {DM_ERROR_DEVICE, NULL, "offers no engine at all", "again"},
                      broken = {DM_ERROR_DEVICE, NULL, "SUBLIBRARY", "again"},
                      old = {DM_ERROR_DEVICE, argv[2], "found cuDNN 9.7.1", "9.15"},
                      absent = {DM_ERROR_DEVICE, argv[3], "DOSEMAP_CUDNN_DIR", "unset"};
    bool good = opens_without(argv[1], NULL, fine);
    good = opens_without(argv[1], "libcudnn_heuristic", none) && good;
    good = opens_without(argv[1], "libcudnn_engines_precompiled", none) && good;
    good = opens_without(argv[1], "libcudnn_engines_runtime_compiled", broken) && good;
    /* What the environment names wins, and nothing else is tried. */
    good = opens_as("too old", argv[2], old) && good;
    good = opens_as("not a folder", argv[3], absent) && good;
    good = opens_as("nothing named", "", fine) && good;
    return !good;
}
