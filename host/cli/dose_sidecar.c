/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/dose_sidecar.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/json_work.h"
#include "dosemap.h"

/* Ours have some kB, a few hundred with a folder of masks. Bounded, as what lies beside a map of
 * another program may be anything. */
#define MAX_BYTES ((size_t)4 << 20)

static bool unreadable(const char *path, dm_error *err)
{
    err->status = errno == ENOMEM ? DM_ERROR_MEMORY : DM_ERROR_IO;
    snprintf(err->where, sizeof err->where, "%.511s", path);
    if (errno == ENOMEM)
        snprintf(err->what, sizeof err->what, "no memory for the sidecar");
    else
        snprintf(err->what, sizeof err->what, "cannot read the sidecar: %s", strerror(errno));
    snprintf(err->remedy, sizeof err->remedy, "%s",
             errno == ENOMEM ? "free memory" : "check the file and its permissions");
    return false;
}

/* The text's end is terminated. NULL and errno if it cannot be read. */
static char *read_text(const char *path, size_t most, size_t *size)
{
    FILE *file = fopen(path, "rb");
    char *text = file ? malloc(most + 1) : NULL;
    if (text) {
        *size = fread(text, 1, most, file);
        if (ferror(file)) {
            free(text);
            text = NULL;
        }
    }
    int number = errno;
    if (file)
        fclose(file);
    errno = number;
    return text;
}

bool dose_sidecar_load(const char *dose_path, json_t **sidecar, dm_error *err)
{
    dm_output_paths paths;
    dm_error unnamed = {0};
    struct stat st;
    size_t size;
    *sidecar = NULL;
    if (dm_output_paths_from(dose_path, &paths, &unnamed) != DM_OK)
        return true;
    if (stat(paths.sidecar, &st) != 0)
        return errno == ENOENT || errno == ENOTDIR || unreadable(paths.sidecar, err);
    if (!S_ISREG(st.st_mode) || (size_t)st.st_size > MAX_BYTES)
        return true;
    char *text = read_text(paths.sidecar, (size_t)st.st_size, &size);
    if (!text)
        return unreadable(paths.sidecar, err);
    json_work_begin();
    *sidecar = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    json_work_end();
    free(text);
    if (*sidecar && !json_is_object(*sidecar)) {
        json_decref(*sidecar);
        *sidecar = NULL;
    }
    return true;
}

const char *dose_sidecar_unit(const json_t *sidecar)
{
    const char *unit = json_string_value(json_object_get(sidecar, "Units"));
    return unit && (strcmp(unit, "Gy") == 0 || strcmp(unit, "Gy/GBq") == 0) ? unit : NULL;
}

/* The file of `role` in a list of such. */
static const json_t *find_file(const json_t *files, const char *role)
{
    size_t i;
    json_t *entry;
    json_array_foreach(files, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "Role"));
        if (name && strcmp(name, role) == 0)
            return entry;
    }
    return NULL;
}

bool dose_sidecar_has_output(const json_t *sidecar, const char *role)
{
    return find_file(json_object_get(sidecar, "Outputs"), role) != NULL;
}

const char *dose_sidecar_source(const json_t *sidecar, const char *role)
{
    const json_t *file = find_file(json_object_get(sidecar, "SourceFiles"), role);
    return json_string_value(json_object_get(file, "Path"));
}
