/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files of a prediction. Order: dose map, DVH, organ table, then the sidecar with the checksums
 * of them all. A sidecar of an earlier prediction goes first, so that at no moment one lies beside
 * a dose map that it does not describe.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json_text.h"
#include "base/output_file.h"
#include "predict/predictor.h"

/* ---- Names ---------------------------------------------------------------------------------- */

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Length of `path` without .nii, .nii.gz or .nii.zst; 0 if it has none or nothing before it. */
static size_t stem_length(const char *path)
{
    static const char *const suffixes[] = {".nii", ".nii.gz", ".nii.zst"};
    size_t length = strlen(path);
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t n = strlen(suffixes[i]);
        if (length > n && strcmp(path + length - n, suffixes[i]) == 0)
            return base_name(path) < path + length - n ? length - n : 0;
    }
    return 0;
}

dm_status dm_output_paths_from(const char *dose_path, dm_output_paths *paths, dm_error *err)
{
    memset(paths, 0, sizeof *paths);
    size_t stem = stem_length(dose_path);
    if (stem == 0)
        return error_set(err, DM_ERROR_VALUE, dose_path, "name it NAME.nii, .nii.gz or .nii.zst",
                         "'%s' is no name for a dose map", base_name(dose_path));
    if (strlen(dose_path) + strlen("_organs.tsv") >= sizeof paths->dose)
        return error_set(err, DM_ERROR_VALUE, NULL, "use a shorter path",
                         "the output's path has %zu characters", strlen(dose_path));
    int n = (int)stem;
    snprintf(paths->dose, sizeof paths->dose, "%s", dose_path);
    snprintf(paths->sidecar, sizeof paths->sidecar, "%.*s.json", n, dose_path);
    snprintf(paths->dvh, sizeof paths->dvh, "%.*s_dvh.tsv", n, dose_path);
    snprintf(paths->organs, sizeof paths->organs, "%.*s_organs.tsv", n, dose_path);
    return DM_OK;
}

/* 0, or the number of an error other than that there is no such file. */
static int look_at(const char *path, struct stat *info, bool *exists)
{
    *exists = stat(path, info) == 0;
    return *exists || errno == ENOENT || errno == ENOTDIR ? 0 : errno;
}

/* Whether the paths lead to one file; what cannot be told is an error. */
static dm_status same_file(const char *a, const char *b, bool *same, dm_error *err)
{
    struct stat info[2];
    bool exists[2];
    const char *const paths[2] = {a, b};
    *same = false;
    for (int i = 0; i < 2; i++) {
        int number = look_at(paths[i], &info[i], &exists[i]);
        if (number)
            return error_set(err, DM_ERROR_IO, paths[i], "check the disk and the permissions",
                             "cannot look at it: %s", strerror(number));
    }
    *same = exists[0] && exists[1] && info[0].st_dev == info[1].st_dev &&
            info[0].st_ino == info[1].st_ino;
    return DM_OK;
}

/* The inputs stay: a sidecar of the PET is as easily overwritten as the PET, by another suffix. */
static dm_status check_overwrites(const dm_output_paths *paths, const dm_sources *sources,
                                  const char *pet_sidecar, dm_error *err)
{
    const char *outputs[] = {paths->dose, paths->sidecar, paths->dvh, paths->organs};
    const char *inputs[] = {sources->pet_path, sources->ct_path, sources->labels_path,
                            pet_sidecar[0] ? pet_sidecar : NULL};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        for (size_t o = 0; inputs[i] && o < 4; o++) {
            bool same;
            dm_status status = same_file(inputs[i], outputs[o], &same, err);
            if (status != DM_OK)
                return status;
            if (same)
                return error_set(err, DM_ERROR_VALUE, outputs[o], "choose another output name",
                                 "this output would overwrite the input %s", inputs[i]);
        }
    return DM_OK;
}

/* ---- Checksums of the inputs ---------------------------------------------------------------- */

static dm_status no_memory(dm_error *err)
{
    return error_memory(err, 4096, "the sidecar");
}

/* {"Role", "Path" or "File", "XXH64"} onto `list`. Names that are not UTF-8 become null. */
static dm_status append_file(json_t *list, const char *role, const char *key, const char *path,
                             const char *name, dm_error *err)
{
    char hex[17];
    dm_status status = file_checksum(path, hex, err);
    if (status != DM_OK)
        return status;
    json_t *entry =
        json_pack("{s:s, s:o, s:s}", "Role", role, key, json_string_or_null(name), "XXH64", hex);
    if (!entry || json_array_append_new(list, entry) != 0)
        return no_memory(err);
    return DM_OK;
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

/* A folder of masks: each file in it, by name. */
static dm_status append_folder(json_t *list, const char *role, const char *path, dm_error *err)
{
    struct dirent **entries = NULL;
    int n = scandir(path, &entries, is_visible, alphasort);
    if (n < 0 && errno == ENOMEM)
        return error_memory(err, 0, "the names in a folder");
    if (n < 0)
        return error_set(err, DM_ERROR_IO, path, "check that the folder is still there",
                         "cannot be listed: %s", strerror(errno));
    dm_status status = DM_OK;
    for (int i = 0; i < n; i++) {
        char file[4096];
        struct stat st;
        bool exists; /* a link may lead nowhere */
        int length = snprintf(file, sizeof file, "%s/%s", path, entries[i]->d_name);
        if (status == DM_OK && (size_t)length < sizeof file &&
            (look_at(file, &st, &exists) != 0 || (exists && S_ISREG(st.st_mode))))
            status = append_file(list, role, "Path", file, file, err);
        free(entries[i]);
    }
    free(entries);
    return status;
}

static dm_status append_source(json_t *files, const char *role, const char *path, dm_error *err)
{
    struct stat st;
    if (!path || !path[0])
        return DM_OK;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return append_folder(files, role, path, err);
    return append_file(files, role, "Path", path, path, err);
}

/* "Sources" as BIDS has it, and "SourceFiles" with checksums. */
static dm_status add_sources(json_t *root, const dm_sources *sources, const char *pet_sidecar,
                             dm_error *err)
{
    json_t *files = json_array(), *names = json_array();
    dm_status status = files && names ? DM_OK : no_memory(err);
    if (status == DM_OK)
        status = append_source(files, "pet", sources->pet_path, err);
    if (status == DM_OK)
        status = append_source(files, "pet_sidecar", pet_sidecar, err);
    if (status == DM_OK)
        status = append_source(files, "ct", sources->ct_path, err);
    if (status == DM_OK)
        status = append_source(files, "labels", sources->labels_path, err);
    size_t i;
    json_t *file;
    json_array_foreach(files, i, file)
    {
        json_push(&names, json_incref(json_object_get(file, "Path")));
    }
    int failed = json_object_set_new(root, "Sources", names);
    failed |= json_object_set_new(root, "SourceFiles", files);
    if (sources->command_line)
        failed |=
            json_object_set_new(root, "CommandLine", json_string_or_null(sources->command_line));
    return status == DM_OK && failed ? no_memory(err) : status;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The entry of `role` in a sidecar's outputs, or NULL. */
static const json_t *find_output(const json_t *sidecar, const char *role)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(sidecar, "Outputs"), i, entry)
    {
        const char *found = json_string_value(json_object_get(entry, "Role"));
        if (found && strcmp(found, role) == 0)
            return entry;
    }
    return NULL;
}

static dm_status remove_file(const char *path, dm_error *err)
{
    if (unlink(path) == 0 || errno == ENOENT)
        return DM_OK;
    return error_set(err, DM_ERROR_IO, path, "remove it, or choose another output name",
                     "the file of an earlier prediction cannot be removed: %s", strerror(errno));
}

/* Takes away the sidecar of an earlier prediction, and the tables that it lists: beside another
 * dose map they would be wrong. The sidecar may be anybody's. */
static dm_status remove_earlier(const dm_output_paths *paths, dm_error *err)
{
    json_t *earlier = NULL;
    dm_error unread = {0};
    if (access(paths->sidecar, F_OK) != 0 && errno == ENOENT)
        return DM_OK;
    dm_status status = json_parse_file(paths->sidecar, &earlier, &unread);
    if (status == DM_ERROR_IO || status == DM_ERROR_MEMORY) {
        if (err)
            *err = unread;
        return status;
    }
    status = find_output(earlier, "dvh") ? remove_file(paths->dvh, err) : DM_OK;
    if (status == DM_OK && find_output(earlier, "organs"))
        status = remove_file(paths->organs, err);
    if (status == DM_OK) /* last: who is interrupted before finds in it what to remove */
        status = remove_file(paths->sidecar, err);
    json_decref(earlier);
    return status;
}

static dm_status write_sidecar(json_t *root, const char *path, dm_error *err)
{
    char *text = NULL;
    dm_status status = json_print(root, &text, err);
    if (status == DM_OK) {
        size_t size = strlen(text);
        text[size] = '\n'; /* a text file ends with one; its length no longer needs the NUL */
        status = output_write_all(path, text, size + 1, err);
    }
    dm_string_free(text);
    return status;
}

/* Each output with the function that wrote it undone on failure: `written` counts from the start of
 * the order dose, dvh, organs, sidecar. */
static dm_status write_files(const dm_prediction *prediction, const dm_output_paths *paths,
                             json_t *root, unsigned threads, unsigned *written, dm_error *err)
{
    json_t *outputs = json_array();
    double start = now();
    if (!outputs || json_object_set_new(root, "Outputs", outputs) != 0)
        return no_memory(err);
    dm_status status = dm_volume_write(prediction->dose, paths->dose, threads, err);
    if (status != DM_OK)
        return status;
    *written = 1;
    status = append_file(outputs, "dose", "File", paths->dose, base_name(paths->dose), err);
    if (status == DM_OK && prediction->dvh) {
        if ((status = dm_dvh_write_curves(prediction->dvh, paths->dvh, err)) != DM_OK)
            return status;
        *written = 2;
        if ((status = dm_dvh_write_organs(prediction->dvh, paths->organs, err)) != DM_OK)
            return status;
        *written = 3;
        status = append_file(outputs, "dvh", "File", paths->dvh, base_name(paths->dvh), err);
        if (status == DM_OK)
            status = append_file(outputs, "organs", "File", paths->organs, base_name(paths->organs),
                                 err);
    }
    if (status == DM_OK && json_object_set_new(json_object_get(root, "Seconds"), "Write",
                                               json_real(now() - start)) != 0)
        status = no_memory(err);
    return status == DM_OK ? write_sidecar(root, paths->sidecar, err) : status;
}

dm_status dm_prediction_write(const dm_prediction *prediction, const char *dose_path,
                              const dm_sources *sources, unsigned threads, dm_error *err)
{
    static const dm_sources unknown = {0};
    dm_output_paths paths;
    unsigned written = 0;
    if (!sources)
        sources = &unknown;
    dm_status status = dm_output_paths_from(dose_path, &paths, err);
    if (status != DM_OK)
        return status;
    json_t *root = json_deep_copy(prediction->provenance);
    if (!root)
        return no_memory(err);
    status = check_overwrites(&paths, sources, prediction->pet_sidecar, err);
    if (status == DM_OK)
        status = add_sources(root, sources, prediction->pet_sidecar, err);
    if (status == DM_OK)
        status = remove_earlier(&paths, err);
    if (status == DM_OK)
        status = write_files(prediction, &paths, root, threads, &written, err);
    if (status != DM_OK) {
        const char *const made[] = {paths.dose, paths.dvh, paths.organs};
        for (unsigned i = 0; i < written; i++)
            unlink(made[i]);
    }
    json_decref(root);
    return status;
}

/* ---- Resuming ------------------------------------------------------------------------------- */

static bool output_matches(const json_t *sidecar, const char *role, const char *path)
{
    char hex[17];
    const char *named = json_string_value(json_object_get(find_output(sidecar, role), "XXH64"));
    return named && file_checksum(path, hex, NULL) == DM_OK && strcmp(named, hex) == 0;
}

bool dm_prediction_is_complete(const char *dose_path)
{
    dm_output_paths paths;
    json_t *sidecar = NULL;
    if (dm_output_paths_from(dose_path, &paths, NULL) != DM_OK ||
        json_parse_file(paths.sidecar, &sidecar, NULL) != DM_OK)
        return false;
    bool complete = output_matches(sidecar, "dose", paths.dose);
    json_decref(sidecar);
    return complete;
}
