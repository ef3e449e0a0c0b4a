/* SPDX-License-Identifier: Apache-2.0 */
/* What this installation can use, and where it looks for weights. */
#include <dlfcn.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/available_memory.h"
#include "base/codec.h"
#include "base/cores.h"
#include "base/error.h"
#include "base/json_text.h"
#include "base/text_stream.h"
#include "predict/cpu/cpu_info.h"
#include "predict/cpu/network.h"
#include "predict/cuda_module.h"
#include "predict/doctor.h"
#include "predict/predictor.h"

#define MODEL_FILE "dosegan-constructed.safetensors.zst"
#ifdef DOSEMAP_RELOCATABLE /* knows no folder of the machine that built it */
#define DATA_MODEL NULL
#define BUILD_MODEL NULL
#else
#define DATA_MODEL DOSEMAP_DATA_DIR "/" MODEL_FILE
#define BUILD_MODEL DOSEMAP_BUILD_WEIGHTS "/" MODEL_FILE
#endif

/* ---- Default weights ------------------------------------------------------------------------ */

typedef struct model_places {
    const char
        *path[3]; /* in order; NULL where there is none, as where $DOSEMAP_MODEL is not set */
    char installed[PATH_MAX];
} model_places;

/* The data folder as seen from the library: an installation may be moved, and `cmake --install
 * --prefix` may name another prefix than the build was configured for. */
static bool installed_model(char *path, size_t size)
{
    static const char symbol;
    char library[PATH_MAX];
    Dl_info info;
    if (!dladdr(&symbol, &info) || !info.dli_fname || !strchr(info.dli_fname, '/') ||
        !realpath(info.dli_fname, library))
        return false;
    const char *relative = DOSEMAP_DATA_FROM_LIBRARY "/" MODEL_FILE;
    *strrchr(library, '/') = '\0';
    while (strncmp(relative, "../", 3) == 0 && strrchr(library, '/')) {
        *strrchr(library, '/') = '\0';
        relative += 3;
    }
    return snprintf(path, size, "%s/%s", library, relative) < (int)size;
}

static void find_model_places(model_places *places)
{
    const char *named = getenv("DOSEMAP_MODEL");
    places->path[0] = named && named[0] ? named : NULL;
    places->path[1] = installed_model(places->installed, sizeof places->installed)
                          ? places->installed
                          : DATA_MODEL;
    places->path[2] = BUILD_MODEL;
}

dm_status dm_default_model_path(char *path, size_t size, dm_error *err)
{
    model_places places;
    find_model_places(&places);
    if (size > 0)
        path[0] = '\0';
    for (int i = 0; i < 3; i++) {
        const char *place = places.path[i];
        if (!place)
            continue;
        if (access(place, R_OK) == 0) {
            if (snprintf(path, size, "%s", place) < (int)size)
                return DM_OK;
            return error_set(err, DM_ERROR_VALUE, place, "use a shorter path",
                             "the path does not fit into %zu bytes", size);
        }
        if (i == 0) /* what was asked for by name is not replaced by something else */
            return error_set(err, DM_ERROR_IO, place, "correct or unset DOSEMAP_MODEL",
                             "the weights that $DOSEMAP_MODEL names cannot be read");
    }
    return error_set(err, DM_ERROR_IO, NULL, "name weights with --model FILE or $DOSEMAP_MODEL",
                     "no weights at %s%s%s",
                     places.path[1] ? places.path[1] : "a place beside the library",
                     places.path[2] ? " or " : "", places.path[2] ? places.path[2] : "");
}

/* ---- Doctor --------------------------------------------------------------------------------- */

static json_t *library_facts(void)
{
    return json_pack("{s:s, s:s, s:s, s:s}", "network", network_library(), "compression",
                     codec_library(), "images", "NIfTI-clib (nifti2)", "json",
                     jansson_version_str());
}

static json_t *cpu_facts(void)
{
    char name[128];
    json_t *features = json_object(), *precisions = json_array();
    for (int f = 0; f < CPU_FEATURE_COUNT; f++)
        json_put(&features, cpu_feature_name((cpu_feature)f),
                 json_boolean(cpu_has((cpu_feature)f)));
    for (int p = DM_PRECISION_FLOAT32; p <= DM_PRECISION_FP16; p++)
        if (cpu_backend.supports("cpu", (dm_precision)p))
            json_push(&precisions, json_string(precision_name((dm_precision)p)));
    return json_pack("{s:s, s:I, s:o, s:o}", "name", cpu_name(name, sizeof name), "threads",
                     (json_int_t)cores_or(0), "features", features, "precisions", precisions);
}

static json_t *model_facts(void)
{
    char path[4096];
    model_places places;
    dm_error err = {0};
    json_t *searched = json_array();
    find_model_places(&places);
    for (int i = 0; i < 3; i++)
        if (places.path[i])
            json_push(&searched, json_string_or_null(places.path[i]));
    bool found = dm_default_model_path(path, sizeof path, &err) == DM_OK;
    return json_pack("{s:o, s:o, s:o}", "default", json_string_or_null(found ? path : NULL),
                     "searched", searched, "problem", json_string_or_null(found ? NULL : err.what));
}

static const char *if_known(const char *text)
{
    return text[0] ? text : NULL;
}

/* 13020 is "13.2". */
static json_t *cuda_version(int version)
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d", version / 1000, version % 1000 / 10);
    return json_string_or_null(version > 0 ? text : NULL);
}

static json_t *cuda_capability(const int capability[2])
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d", capability[0], capability[1]);
    return json_string_or_null(capability[0] > 0 ? text : NULL);
}

/* Device `number` as --device names it, and whether it can be used. */
static json_t *gpu_facts(int number, const cuda_facts *found, dm_status status, const dm_error *err)
{
    char name[32];
    bool usable = status == DM_OK;
    snprintf(name, sizeof name, "cuda:%d", number);
    return json_pack("{s:s, s:o, s:o, s:I, s:b, s:o, s:o}", "name", name, "device",
                     json_string_or_null(if_known(found->device)), "compute_capability",
                     cuda_capability(found->capability), "memory", (json_int_t)found->memory,
                     "usable", (int)usable, "problem",
                     json_string_or_null(usable ? NULL : err->what), "remedy",
                     json_string_or_null(usable ? NULL : err->remedy));
}

/* All that was found until something was missing; of the first device, but for the list. */
static json_t *cuda_device_facts(void)
{
    const cuda_module *module;
    cuda_facts found = {0};
    dm_error err = {0};
    bool emulated = false;
    json_t *gpus = json_array();
    dm_status status = cuda_module_load(&module, &err);
    if (status == DM_OK) {
        emulated = module->emulated;
        status = module->probe(0, &found, &err);
        if (found.devices > 0)
            json_push(&gpus, gpu_facts(0, &found, status, &err));
        for (int i = 1; i < found.devices; i++) {
            cuda_facts other = {0};
            dm_error problem = {0};
            dm_status outcome = module->probe(i, &other, &problem);
            json_push(&gpus, gpu_facts(i, &other, outcome, &problem));
        }
    }
    bool usable = status == DM_OK;
    return json_pack("{s:b, s:o, s:o, s:o, s:b, s:o, s:i, s:o, s:I, s:o, s:o, s:o, s:o}", "usable",
                     (int)usable, "problem", json_string_or_null(usable ? NULL : err.what),
                     "remedy", json_string_or_null(usable ? NULL : err.remedy), "module",
                     json_string_or_null(cuda_module_path()), "emulated", (int)emulated, "device",
                     json_string_or_null(if_known(found.device)), "devices", found.devices,
                     "compute_capability", cuda_capability(found.capability), "memory",
                     (json_int_t)found.memory, "driver", cuda_version(found.driver), "runtime",
                     cuda_version(found.runtime), "cudnn",
                     json_string_or_null(if_known(found.cudnn)), "gpus", gpus);
}

json_t *doctor_facts(void)
{
    return json_pack("{s:s, s:o, s:o, s:o, s:o}", "version", dm_version(), "libraries",
                     library_facts(), "cpu", cpu_facts(), "cuda", cuda_device_facts(), "model",
                     model_facts());
}

static const char *member(const json_t *object, const char *key)
{
    const char *value = json_string_value(json_object_get(object, key));
    return value ? value : "none";
}

/* The strings of a list, or the keys of an object's true members, with commas between. */
static void print_list(FILE *out, const char *title, const json_t *list)
{
    const char *comma = "", *key;
    size_t i;
    json_t *value;
    fprintf(out, "%s", title);
    json_array_foreach(list, i, value)
    {
        fprintf(out, "%s%s", comma, json_is_string(value) ? json_string_value(value) : "?");
        comma = ", ";
    }
    json_object_foreach((json_t *)(uintptr_t)list, key, value)
    {
        fprintf(out, "%s%s%s", comma, json_is_true(value) ? "" : "no ", key);
        comma = ", ";
    }
    fputc('\n', out);
}

/* Where there are several; the first one is told about already. */
static void print_gpus(FILE *out, const json_t *gpus)
{
    if (json_array_size(gpus) > 1)
        fprintf(out,
                "GPUs         %zu: --device cuda:0 is the one above, cuda:all shares volumes "
                "between all\n",
                json_array_size(gpus));
    for (size_t i = 1; i < json_array_size(gpus); i++) {
        const json_t *gpu = json_array_get(gpus, i);
        char memory[SIZE_TEXT];
        bool usable = json_is_true(json_object_get(gpu, "usable"));
        fprintf(out, "%-12s %s, compute capability %s, %s%s%s\n", member(gpu, "name"),
                member(gpu, "device"), member(gpu, "compute_capability"),
                size_text((double)json_integer_value(json_object_get(gpu, "memory")), memory),
                usable ? "" : ": ", usable ? "" : member(gpu, "problem"));
    }
}

static void print_cuda(FILE *out, const json_t *cuda)
{
    bool usable = json_is_true(json_object_get(cuda, "usable"));
    bool emulated = json_is_true(json_object_get(cuda, "emulated"));
    char memory[SIZE_TEXT];
    if (usable)
        fprintf(out, "CUDA         usable%s\n",
                emulated ? " (emulated on the CPU, for tests)" : "");
    else
        fprintf(out, "CUDA         %s; %s\n", member(cuda, "problem"), member(cuda, "remedy"));
    if (!json_is_string(json_object_get(cuda, "module")))
        return;
    fprintf(out, "module       %s\n", member(cuda, "module"));
    if (!json_is_string(json_object_get(cuda, "driver")))
        return;
    fprintf(out, "driver       for CUDA %s; built with %s\n", member(cuda, "driver"),
            member(cuda, "runtime"));
    if (!json_is_string(json_object_get(cuda, "device")))
        return;
    double bytes = (double)json_integer_value(json_object_get(cuda, "memory"));
    fprintf(out, "GPU          %s, compute capability %s, %s\n", member(cuda, "device"),
            member(cuda, "compute_capability"), size_text(bytes, memory));
    print_gpus(out, json_object_get(cuda, "gpus"));
    fprintf(out, "cuDNN        %s\n", member(cuda, "cudnn"));
}

static void print_facts(FILE *out, const json_t *facts)
{
    const json_t *libraries = json_object_get(facts, "libraries");
    const json_t *cpu = json_object_get(facts, "cpu"), *cuda = json_object_get(facts, "cuda");
    const json_t *model = json_object_get(facts, "model");
    fprintf(out, "dosemap      %s\n", member(facts, "version"));
    fprintf(out, "network      %s\n", member(libraries, "network"));
    fprintf(out, "compression  %s\n", member(libraries, "compression"));
    fprintf(out, "images       %s\n", member(libraries, "images"));
    fprintf(out, "JSON         Jansson %s\n", member(libraries, "json"));
    fprintf(out, "CPU          %s\n", member(cpu, "name"));
    fprintf(out, "threads      %lld\n",
            (long long)json_integer_value(json_object_get(cpu, "threads")));
    print_list(out, "features     ", json_object_get(cpu, "features"));
    print_list(out, "precisions   ", json_object_get(cpu, "precisions"));
    print_cuda(out, cuda);
    fprintf(out, "weights      %s\n",
            json_is_string(json_object_get(model, "default")) ? member(model, "default")
                                                              : member(model, "problem"));
    print_list(out, "looked in    ", json_object_get(model, "searched"));
}

dm_status dm_doctor(bool as_json, char **text, dm_error *err)
{
    *text = NULL;
    json_t *facts = doctor_facts();
    if (!facts)
        return error_memory(err, 4096, "the report");
    dm_status status = DM_OK;
    if (as_json) {
        status = json_print(facts, text, err);
    } else {
        text_stream stream;
        if (text_stream_open(&stream))
            print_facts(stream.out, facts);
        *text = text_stream_close(&stream, true, NULL);
        if (!*text)
            status = error_memory(err, 4096, "the report");
    }
    json_decref(facts);
    return status;
}
