/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cuDNN is opened when it is first needed, not linked: a program that never uses the GPU does not
 * load it, and where it is missing the message is ours. All that is used here lives in
 * libcudnn_graph; the libcudnn in front of it would end the process if a part of cuDNN is missing.
 */
#include "predict/cuda/cudnn_library.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define CUDNN_FILE "libcudnn_graph.so.9"

/* ---- The library ---------------------------------------------------------------------------- */

/* Never unloaded: it keeps threads and handlers for the process's end. */
static void *open_in(const char *folder)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/" CUDNN_FILE, folder);
    return length > 0 && (size_t)length < sizeof path
               ? dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE)
               : NULL;
}

/* In the folder that the environment names and nowhere else, else where the build found it, else
 * where the loader looks. Another version on the loader's path is no reason to refuse. */
static dm_status find_library(cudnn_api *api, dm_error *err)
{
    const char *named = getenv("DOSEMAP_CUDNN_DIR");
    if (named && named[0]) {
        api->object = open_in(named);
    } else {
#ifdef DOSEMAP_CUDNN_DIR
        api->object = open_in(DOSEMAP_CUDNN_DIR);
#endif
        if (!api->object)
            api->object = dlopen(CUDNN_FILE, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    }
    if (api->object)
        return DM_OK;
    const char *reason = dlerror();
    if (named && named[0])
        return error_set(err, DM_ERROR_DEVICE, named, "correct or unset DOSEMAP_CUDNN_DIR",
                         "the folder that $DOSEMAP_CUDNN_DIR names has no cuDNN 9: %.160s",
                         reason ? reason : CUDNN_FILE);
    return error_set(err, DM_ERROR_DEVICE, NULL,
                     "install cuDNN 9.15 or newer, or name its folder in DOSEMAP_CUDNN_DIR",
                     "cuDNN 9 is not found: %.160s", reason ? reason : CUDNN_FILE);
}

static dm_status api_open(cudnn_api *api, dm_error *err)
{
    *api = (cudnn_api){0};
    dm_status status = find_library(api, err);
    if (status != DM_OK)
        return status;
    const char *missing = NULL;
#define FIND(name)                                                                                 \
    *(void **)&api->name = dlsym(api->object, #name);                                              \
    missing = api->name ? missing : #name;
    CUDNN_FUNCTIONS(FIND)
#undef FIND
    Dl_info found = {0};
    dladdr(*(void **)&api->cudnnGetVersion, &found);
    api->file = found.dli_fname ? found.dli_fname : CUDNN_FILE;
    if (!missing)
        return DM_OK;
    dlclose(api->object);
    return error_set(err, DM_ERROR_DEVICE, api->file, "install cuDNN 9.15 or newer",
                     "%s has no function %s", CUDNN_FILE, missing);
}

/* Is the version fit? If not, it is said of which file: there may be others. */
static dm_status check_version(const cudnn_api *api, size_t number, dm_error *err)
{
    dm_status status = convolution_library_check_version(number, err);
    if (status != DM_OK)
        error_at(err, api->file);
    return status;
}

dm_status convolution_library_probe(char version[32], dm_error *err)
{
    cudnn_api api;
    version[0] = '\0';
    dm_status status = api_open(&api, err);
    if (status != DM_OK)
        return status;
    size_t number = api.cudnnGetVersion();
    convolution_library_version_text(number, version);
    status = check_version(&api, number, err);
    dlclose(api.object);
    return status;
}

/* cuDNN's words on a call that failed. */
static void explain(const cudnn_api *api, cudnnStatus_t status, const char *what, char *text,
                    size_t size)
{
    char last[PROBLEM_SIZE] = "";
    api->cudnnGetLastErrorString(last, sizeof last);
    /* One line: the text ends up in a message. */
    last[strcspn(last, "\n")] = '\0';
    snprintf(text, size, "%s: %.60s%s%.150s", what, api->cudnnGetErrorString(status),
             last[0] ? ", " : "", last);
}

bool cudnn_is_memory(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
           status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED;
}

/* ---- Descriptors ---------------------------------------------------------------------------- */

void cudnn_note(builder *b, cudnnStatus_t status, const char *what)
{
    if (status == CUDNN_STATUS_SUCCESS || b->status != CUDNN_STATUS_SUCCESS)
        return;
    b->status = status;
    explain(&b->library->api, status, what, b->problem, sizeof b->problem);
}

descriptor cudnn_make(builder *b, cudnnBackendDescriptorType_t type)
{
    descriptor d = NULL;
    if (b->status != CUDNN_STATUS_SUCCESS)
        return NULL;
    cudnn_note(b, b->library->api.cudnnBackendCreateDescriptor(type, &d), "describing");
    if (b->p && d)
        cudnn_keep(b->p, d);
    return d;
}

void cudnn_set(builder *b, descriptor d, cudnnBackendAttributeName_t name,
               cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (b->status == CUDNN_STATUS_SUCCESS)
        cudnn_note(b, b->library->api.cudnnBackendSetAttribute(d, name, type, n, values),
                   "describing");
}

void cudnn_set_descriptor(builder *b, descriptor d, cudnnBackendAttributeName_t name,
                          descriptor value)
{
    cudnn_set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

void cudnn_finish(builder *b, descriptor d, const char *what)
{
    if (b->status == CUDNN_STATUS_SUCCESS)
        cudnn_note(b, b->library->api.cudnnBackendFinalize(d), what);
}

int64_t cudnn_get(const cudnn_api *api, descriptor d, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t room, void *values)
{
    int64_t n = 0;
    cudnnStatus_t status = api->cudnnBackendGetAttribute(d, name, type, room, &n, values);
    return status != CUDNN_STATUS_SUCCESS ? 0 : n < room ? n : room;
}

int64_t cudnn_get_descriptors(const cudnn_api *api, descriptor from,
                              cudnnBackendAttributeName_t name, cudnnBackendDescriptorType_t type,
                              int64_t room, descriptor *d)
{
    int64_t made = 0;
    while (made < room && api->cudnnBackendCreateDescriptor(type, &d[made]) == CUDNN_STATUS_SUCCESS)
        made++;
    int64_t n = cudnn_get(api, from, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, made, d);
    while (made > n)
        api->cudnnBackendDestroyDescriptor(d[--made]);
    return n;
}

/* What to do about it, or NULL. */
static const char *remedy_of(cudnnStatus_t status)
{
    if (cudnn_is_memory(status))
        return "use a smaller batch";
    return status == CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED ||
                   status == CUDNN_STATUS_SUBLIBRARY_VERSION_MISMATCH
               ? CUDNN_REINSTALL
               : NULL;
}

dm_status cudnn_failure(const convolution_library *l, cudnnStatus_t status, const char *text,
                        dm_error *err)
{
    return error_set(err, cudnn_is_memory(status) ? DM_ERROR_MEMORY : DM_ERROR_DEVICE,
                     cudnn_is_memory(status) ? NULL : l->api.file, remedy_of(status), "%s: %s",
                     l->name, text);
}

/* ---- Opening and closing -------------------------------------------------------------------- */

/* Opened and of a fit version, without handle and device. */
static dm_status library_load(convolution_library **library, dm_error *err)
{
    convolution_library *l = calloc(1, sizeof *l);
    if (!l)
        return error_memory(err, sizeof *l, "cuDNN");
    dm_status status = api_open(&l->api, err);
    if (status == DM_OK) {
        char number[32];
        l->version = l->api.cudnnGetVersion();
        convolution_library_version_text(l->version, number);
        snprintf(l->name, sizeof l->name, "cuDNN %s", number);
        status = check_version(&l->api, l->version, err);
        if (status != DM_OK)
            dlclose(l->api.object);
    }
    if (status != DM_OK) {
        free(l);
        l = NULL;
    }
    *library = l;
    return status;
}

/* To the caller, if it can be of any use. */
static dm_status handed_over(convolution_library *l, convolution_library **library, dm_error *err)
{
    dm_status status = cudnn_check_engines(l, err);
    if (status == DM_OK)
        *library = l;
    else
        convolution_library_free(l);
    return status;
}

dm_status convolution_library_open(convolution_library **library, dm_error *err)
{
    convolution_library *l = NULL;
    *library = NULL;
    dm_status status = library_load(&l, err);
    if (status != DM_OK)
        return status;
    builder b = {.library = l};
    cudnn_note(&b, l->api.cudnnCreate(&l->handle), "opening the device");
    if (b.status != CUDNN_STATUS_SUCCESS) {
        l->handle = NULL;
        status = cudnn_failure(l, b.status, b.problem, err);
        convolution_library_free(l);
        return status;
    }
    return handed_over(l, library, err);
}

dm_status convolution_library_open_for(const char *device_json, convolution_library **library,
                                       dm_error *err)
{
    convolution_library *l = NULL;
    *library = NULL;
    dm_status status = library_load(&l, err);
    if (status != DM_OK)
        return status;
    builder b = {.library = l};
    l->device = cudnn_make(&b, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    cudnn_set(&b, l->device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
              (int64_t)strlen(device_json), device_json);
    cudnn_finish(&b, l->device, "reading the device's description");
    if (b.status == CUDNN_STATUS_SUCCESS)
        return handed_over(l, library, err);
    status = remedy_of(b.status)
                 ? cudnn_failure(l, b.status, b.problem, err)
                 : error_set(err, DM_ERROR_VALUE, NULL, NULL, "cuDNN, %s", b.problem);
    convolution_library_free(l);
    return status;
}

const char *convolution_library_name(const convolution_library *library)
{
    return library->name;
}

void convolution_library_free(convolution_library *library)
{
    if (!library)
        return;
    cudnn_release(library, library->latest);
    if (library->device)
        library->api.cudnnBackendDestroyDescriptor(library->device);
    if (library->handle)
        library->api.cudnnDestroy(library->handle);
    dlclose(library->api.object);
    free(library);
}
