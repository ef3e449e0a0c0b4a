/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/tuning_file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/codec.h"
#include "base/error.h"
#include "base/json_text.h"
#include "base/output_file.h"

#define FORMAT "dosemap tuning 1"
#define AGAIN "run 'dosemap bench --tune' again"

/* The end of a file: the checksum of all that comes before. */
#define END_BEGINS ",\n  \"xxh64\": \""
#define END_ENDS "\"\n}\n"
#define END_SIZE (sizeof END_BEGINS - 1 + 16 + sizeof END_ENDS - 1)

/* Plans are left out of a file beyond that; what reads it takes JSON_MAX_BYTES. */
#define SAVED_BYTES ((size_t)5 << 20)

struct tuning {
    json_t *root;
    const json_t *layers;
    char path[TUNING_PATH], checksum[17];
};

/* ---- Where it lies -------------------------------------------------------------------------- */

static dm_status find_folder(char folder[TUNING_PATH], dm_error *err)
{
    static const struct {
        const char *variable, *below;
        bool absolute;
    } places[] = {{"DOSEMAP_CACHE_DIR", "", false},
                  {"XDG_CACHE_HOME", "/dosemap", true}, /* relative ones are to be ignored */
                  {"HOME", "/.cache/dosemap", true}};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *named = getenv(places[i].variable);
        if (!named || !named[0] || (places[i].absolute && named[0] != '/'))
            continue;
        if (snprintf(folder, TUNING_PATH, "%s%s", named, places[i].below) < TUNING_PATH - 100)
            return DM_OK;
        return error_set(err, DM_ERROR_VALUE, NULL, "use a shorter path",
                         "the path in $%s is too long", places[i].variable);
    }
    return error_set(err, DM_ERROR_VALUE, NULL, "name a folder in DOSEMAP_CACHE_DIR",
                     "there is no folder for what tuning finds: neither $DOSEMAP_CACHE_DIR nor "
                     "$HOME is set");
}

/* NULL when memory is short. */
static json_t *identity_of(const tuning_key *key)
{
    return json_pack("{s:s, s:o, s:[i,i], s:i, s:s, s:[I,I,I], s:s, s:I}", "library", key->library,
                     "device", json_string_or_null(key->device), "capability", key->capability[0],
                     key->capability[1], "multiprocessors", key->multiprocessors, "network",
                     key->network, "tile", (json_int_t)key->tile[2], (json_int_t)key->tile[1],
                     (json_int_t)key->tile[0], "precision", key->precision, "batch",
                     (json_int_t)key->batch);
}

static dm_status find_path(const tuning_key *key, char path[TUNING_PATH], dm_error *err)
{
    char *text = NULL, checksum[17];
    size_t used;
    dm_status status = find_folder(path, err);
    if (status != DM_OK)
        return status;
    json_t *identity = identity_of(key);
    status = identity ? json_print(identity, &text, err)
                      : error_memory(err, sizeof *key, "the name of a file");
    if (status == DM_OK) {
        bytes_checksum(text, strlen(text), checksum);
        used = strlen(path);
        snprintf(path + used, TUNING_PATH - used, "/tuning-%s-batch%u-%s.json", key->precision,
                 key->batch, checksum);
    }
    dm_string_free(text);
    json_decref(identity);
    return status;
}

/* ---- Reading -------------------------------------------------------------------------------- */

/* Whoever writes it tells the library what to run. */
static const char *mistrust(const struct stat *file)
{
    if (!S_ISREG(file->st_mode))
        return "is no file";
    if (file->st_uid != geteuid() && file->st_uid != 0)
        return "belongs to somebody else";
    return file->st_mode & S_IWOTH ? "can be written by anybody" : NULL;
}

static bool is_complete(const char *text, size_t size)
{
    char checksum[17];
    if (size <= END_SIZE)
        return false;
    const char *end = text + size - END_SIZE;
    bytes_checksum(text, size - END_SIZE, checksum);
    return memcmp(end, END_BEGINS, sizeof END_BEGINS - 1) == 0 &&
           memcmp(end + sizeof END_BEGINS - 1, checksum, 16) == 0 &&
           memcmp(end + sizeof END_BEGINS - 1 + 16, END_ENDS, sizeof END_ENDS - 1) == 0;
}

static bool is_layer(const json_t *layer)
{
    const json_t *engine = json_object_get(layer, "engine"),
                 *saved = json_object_get(layer, "plan");
    return json_is_string(json_object_get(layer, "operands")) &&
           json_is_string(json_object_get(layer, "way")) &&
           json_is_boolean(json_object_get(layer, "joined")) &&
           json_is_real(json_object_get(layer, "seconds")) &&
           (json_is_string(engine) || json_is_null(engine)) &&
           (json_is_string(saved) || json_is_null(saved));
}

/* Why what was read cannot be used, or NULL. */
static const char *examine(tuning *t, const tuning_key *key, const json_t *identity)
{
    const json_t *read = json_object_get(t->root, "key"),
                 *format = json_object_get(t->root, "format");
    const char *build = json_string_value(json_object_get(t->root, "build"));
    size_t i;
    json_t *layer;
    t->layers = json_object_get(t->root, "layers");
    if (!json_is_string(format) || strcmp(json_string_value(format), FORMAT) != 0)
        return "has another format";
    if (!json_equal(read, identity))
        return "is for another network or device";
    if (json_integer_value(json_object_get(t->root, "driver")) != key->driver)
        return "was made with another driver";
    if (!build || strcmp(build, key->build) != 0)
        return "was made with another build of dosemap";
    if (!json_is_array(t->layers))
        return "is damaged";
    json_array_foreach(t->layers, i, layer)
    {
        if (!is_layer(layer))
            return "is damaged";
    }
    return NULL;
}

/* What is wrong with it, or NULL; `status` tells a shortage of memory apart. */
static const char *read_tuning(tuning *t, const tuning_key *key, dm_status *status)
{
    uint8_t *bytes = NULL;
    size_t size = 0;
    const char *wrong = NULL;
    json_t *identity = NULL;
    *status = source_read_all(t->path, JSON_MAX_BYTES, &bytes, &size, NULL);
    if (*status != DM_OK)
        wrong = "cannot be read";
    else if (!is_complete((const char *)bytes, size))
        wrong = "is damaged";
    if (!wrong) {
        *status = json_parse((const char *)bytes, size, t->path, &t->root, NULL);
        if (*status != DM_OK)
            wrong = "is damaged";
    }
    if (!wrong) {
        bytes_checksum(bytes, size, t->checksum);
        identity = identity_of(key);
        *status = identity ? DM_OK : DM_ERROR_MEMORY;
        wrong = identity ? examine(t, key, identity) : NULL;
    }
    json_decref(identity);
    free(bytes);
    return wrong;
}

/* Leaves *loaded empty where there is none, or none that can be used. */
static dm_status load(tuning *t, const tuning_key *key, tuning **loaded, char *problem)
{
    struct stat file;
    dm_status status = DM_OK;
    int failed = stat(t->path, &file) == 0 ? 0 : errno;
    if (failed == ENOENT || failed == ENOTDIR)
        return DM_OK;
    const char *wrong = failed ? "cannot be read" : mistrust(&file);
    if (!wrong)
        wrong = read_tuning(t, key, &status);
    if (status == DM_ERROR_MEMORY)
        return status;
    if (wrong)
        snprintf(problem, TUNING_PROBLEM, "%.160s %s; " AGAIN, t->path, wrong);
    else
        *loaded = t;
    return DM_OK;
}

dm_status tuning_load(const tuning_key *key, tuning **loaded, char problem[TUNING_PROBLEM],
                      dm_error *err)
{
    tuning *t = array_zero(1, sizeof *t);
    *loaded = NULL;
    problem[0] = '\0';
    if (!t)
        return error_memory(err, sizeof *t, "what tuning found");
    dm_status status = find_path(key, t->path, NULL);
    if (status == DM_OK)
        status = load(t, key, loaded, problem);
    if (!*loaded)
        tuning_free(t);
    return status == DM_ERROR_MEMORY ? error_memory(err, JSON_MAX_BYTES, "what tuning found")
                                     : DM_OK;
}

void tuning_free(tuning *t)
{
    if (t)
        json_decref(t->root);
    free(t);
}

const char *tuning_path(const tuning *t)
{
    return t->path;
}

const char *tuning_checksum(const tuning *t)
{
    return t->checksum;
}

bool tuning_find(const tuning *t, const char *operands, tuned_layer *layer)
{
    size_t i;
    json_t *each;
    json_array_foreach(t ? t->layers : NULL, i, each)
    {
        const char *found = json_string_value(json_object_get(each, "operands"));
        if (strcmp(found, operands) != 0)
            continue;
        *layer = (tuned_layer){.operands = found,
                               .way = json_string_value(json_object_get(each, "way")),
                               .joined = json_is_true(json_object_get(each, "joined")),
                               .engine = json_string_value(json_object_get(each, "engine")),
                               .saved = json_string_value(json_object_get(each, "plan")),
                               .seconds = json_real_value(json_object_get(each, "seconds"))};
        return true;
    }
    return false;
}

/* ---- Writing -------------------------------------------------------------------------------- */

/* With all folders above it. */
static dm_status make_folder(char *path, dm_error *err)
{
    for (char *at = path + 1;; at++) {
        if (*at != '/' && *at != '\0')
            continue;
        char kept = *at;
        *at = '\0';
        int failed = mkdir(path, 0777) == 0 || errno == EEXIST ? 0 : errno;
        struct stat folder;
        /* Folders above may exist and not be ours to make. */
        if (failed && stat(path, &folder) == 0 && S_ISDIR(folder.st_mode))
            failed = 0;
        if (failed)
            return error_set(
                err, DM_ERROR_IO, path, "make the folder, or name another one in DOSEMAP_CACHE_DIR",
                "the folder for what tuning finds cannot be made: %s", strerror(failed));
        *at = kept;
        if (!kept)
            return DM_OK;
    }
}

dm_status tuning_check_folder(const tuning_key *key, dm_error *err)
{
    char path[TUNING_PATH];
    output_file *file = NULL;
    dm_status status = find_folder(path, err);
    if (status == DM_OK)
        status = make_folder(path, err);
    if (status == DM_OK)
        status = find_path(key, path, err);
    if (status == DM_OK)
        status = output_open(path, &file, err);
    output_abandon(file);
    if (status == DM_ERROR_IO && err && !strstr(err->remedy, "DOSEMAP_CACHE_DIR"))
        snprintf(err->remedy, sizeof err->remedy,
                 "make the folder writable, or name another one in DOSEMAP_CACHE_DIR");
    return status;
}

static json_t *describe_layers(const tuned_layer *layers, size_t n)
{
    json_t *list = json_array();
    size_t saved = 0;
    for (size_t i = 0; i < n; i++) {
        const tuned_layer *l = &layers[i];
        saved += l->saved ? strlen(l->saved) : 0;
        json_push(&list, json_pack("{s:s, s:s, s:b, s:o, s:f, s:o}", "operands", l->operands, "way",
                                   l->way, "joined", (int)l->joined, "engine",
                                   json_string_or_null(l->engine), "seconds", l->seconds, "plan",
                                   json_string_or_null(saved <= SAVED_BYTES ? l->saved : NULL)));
    }
    return list;
}

/* The text of the file, without its end. */
static dm_status print_tuning(const tuning_key *key, const tuned_layer *layers, size_t n,
                              char **text, dm_error *err)
{
    *text = NULL;
    json_t *root =
        json_pack("{s:s, s:o, s:i, s:s, s:o}", "format", FORMAT, "key", identity_of(key), "driver",
                  key->driver, "build", key->build, "layers", describe_layers(layers, n));
    dm_status status =
        root ? json_print(root, text, err) : error_memory(err, JSON_MAX_BYTES, "what tuning found");
    json_decref(root);
    if (status == DM_OK)
        (*text)[strlen(*text) - 2] = '\0'; /* the line of the last bracket */
    return status;
}

dm_status tuning_save(const tuning_key *key, const tuned_layer *layers, size_t n,
                      char path[TUNING_PATH], char checksum[17], dm_error *err)
{
    char *text = NULL, *whole = NULL;
    dm_status status = tuning_check_folder(key, err);
    if (status == DM_OK)
        status = find_path(key, path, err);
    if (status == DM_OK)
        status = print_tuning(key, layers, n, &text, err);
    if (status != DM_OK)
        return status;
    bytes_checksum(text, strlen(text), checksum);
    int size = asprintf(&whole, "%s" END_BEGINS "%s" END_ENDS, text, checksum);
    if (size < 0) {
        status = error_memory(err, strlen(text), "what tuning found");
    } else {
        bytes_checksum(whole, (size_t)size, checksum);
        status = output_write_all(path, whole, (size_t)size, err);
        free(whole);
    }
    dm_string_free(text);
    return status;
}
