/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda_module.h"

#include <dlfcn.h>
#include <elf.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

#define MODULE_FILE "libdosemap-cuda.so"
#define USE_CPU "use --device cpu"

typedef struct loaded_module {
    const cuda_module *module;
    char path[PATH_MAX]; /* of the file, empty if there is none */
    dm_error error;
} loaded_module;

/* Written once, under pthread_once. */
static loaded_module loaded;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- Where it is ---------------------------------------------------------------------------- */

/* Installed, and in a build folder, where dosemap/ would be the program's name. */
static const char *const folders[] = {"dosemap", "modules"};

/* False if there is no such file. */
static bool beside_library(char *path, size_t size)
{
    static const char symbol;
    Dl_info info;
    char library[PATH_MAX];
    if (!dladdr(&symbol, &info) || !info.dli_fname || !realpath(info.dli_fname, library))
        return false;
    *strrchr(library, '/') = '\0';
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        if (snprintf(path, size, "%s/%s/" MODULE_FILE, library, folders[i]) < (int)size &&
            access(path, R_OK) == 0)
            return true;
    return false;
}

static dm_status find_file(char *path, size_t size, dm_error *err)
{
    const char *named = getenv("DOSEMAP_CUDA_MODULE");
    if (named && named[0]) {
        if (snprintf(path, size, "%s", named) < (int)size && access(path, R_OK) == 0)
            return DM_OK;
        return error_set(err, DM_ERROR_DEVICE, named, "correct or unset DOSEMAP_CUDA_MODULE",
                         "the CUDA module that $DOSEMAP_CUDA_MODULE names cannot be read");
    }
    if (beside_library(path, size))
        return DM_OK;
    return error_set(err, DM_ERROR_DEVICE, NULL,
                     "use --device cpu, or a dosemap built with -DDOSEMAP_CUDA=ON",
                     "this dosemap was built without CUDA: there is no " MODULE_FILE);
}

/* ---- Loading -------------------------------------------------------------------------------- */

/* The loader maps what a file's header promises: of a file that was cut short, a copy that did not
 * finish, it reads beyond the end, which is SIGBUS. The table of sections lies last. */
static bool is_complete(const char *path)
{
    Elf64_Ehdr header;
    struct stat file;
    FILE *f = fopen(path, "rbe");
    bool is_library =
        f && fread(&header, sizeof header, 1, f) == 1 && fstat(fileno(f), &file) == 0 &&
        memcmp(header.e_ident, ELFMAG, SELFMAG) == 0 && header.e_ident[EI_CLASS] == ELFCLASS64;
    if (f)
        fclose(f);
    return is_library && header.e_shoff <= (uint64_t)file.st_size &&
           (uint64_t)header.e_shnum * header.e_shentsize <= (uint64_t)file.st_size - header.e_shoff;
}

static void load(void)
{
    char *path = loaded.path;
    const cuda_module_stamp stamp = CUDA_MODULE_STAMP;
    dm_error *err = &loaded.error;
    if (find_file(path, sizeof loaded.path, err) != DM_OK) {
        path[0] = '\0';
        return;
    }
    if (!is_complete(path)) {
        error_set(err, DM_ERROR_DEVICE, path, "install dosemap again, or " USE_CPU,
                  "this is no CUDA module, or not all of one");
        return;
    }
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        error_set(err, DM_ERROR_DEVICE, path,
                  "install what is missing, or dosemap again; or " USE_CPU,
                  "the CUDA module cannot be loaded: %s", dlerror());
        return;
    }
    /* POSIX asks for this way round: ISO C knows no cast from an object to a function. */
    cuda_module_entry entry;
    *(void **)&entry = dlsym(handle, CUDA_MODULE_SYMBOL);
    dm_status status = entry ? entry(&stamp, &loaded.module, err) : DM_OK;
    if (status != DM_OK)
        error_at(err, path);
    else if (!loaded.module)
        error_set(err, DM_ERROR_DEVICE, path, "install dosemap again, or " USE_CPU,
                  "this is no CUDA module of dosemap");
    if (!loaded.module)
        dlclose(handle); /* else it stays: a backend may be in use until the very end */
}

dm_status cuda_module_load(const cuda_module **module, dm_error *err)
{
    pthread_once(&once, load);
    *module = loaded.module;
    if (loaded.module)
        return DM_OK;
    if (err)
        *err = loaded.error;
    return loaded.error.status;
}

const char *cuda_module_path(void)
{
    pthread_once(&once, load);
    return loaded.path[0] ? loaded.path : NULL;
}
