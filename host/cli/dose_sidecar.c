/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/dose_sidecar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dosemap.h"

/* Ours have some kB, a few hundred with a folder of masks. Bounded, as what lies beside a map of
 * another program may be anything. */
#define MAX_BYTES ((size_t)4 << 20)

json_t *dose_sidecar_load(const char *dose_path)
{
    dm_output_paths paths;
    dm_error err = {0};
    struct stat st;
    json_t *sidecar = NULL;
    if (dm_output_paths_from(dose_path, &paths, &err) != DM_OK || stat(paths.sidecar, &st) != 0 ||
        !S_ISREG(st.st_mode) || (size_t)st.st_size > MAX_BYTES)
        return NULL;
    FILE *file = fopen(paths.sidecar, "rb");
    char *text = file ? malloc((size_t)st.st_size + 1) : NULL;
    if (text) {
        size_t size = fread(text, 1, (size_t)st.st_size, file);
        sidecar = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    }
    free(text);
    if (file)
        fclose(file);
    if (sidecar && !json_is_object(sidecar)) {
        json_decref(sidecar);
        sidecar = NULL;
    }
    return sidecar;
}

const char *dose_sidecar_unit(const json_t *sidecar)
{
    const char *unit = json_string_value(json_object_get(sidecar, "Units"));
    return unit && (strcmp(unit, "Gy") == 0 || strcmp(unit, "Gy/GBq") == 0) ? unit : NULL;
}

bool dose_sidecar_has_output(const json_t *sidecar, const char *role)
{
    size_t i;
    json_t *entry;
    json_array_foreach(json_object_get(sidecar, "Outputs"), i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "Role"));
        if (name && strcmp(name, role) == 0)
            return true;
    }
    return false;
}
