/* SPDX-License-Identifier: Apache-2.0 */
/* The sidecar of a dose map, as far as commands read it back. */
#ifndef DOSEMAP_CLI_DOSE_SIDECAR_H
#define DOSEMAP_CLI_DOSE_SIDECAR_H

#include <jansson.h>
#include <stdbool.h>

#include "dosemap.h"

/* The object in OUT.json beside OUT.nii[.gz|.zst]; NULL where there is none, or one of others. False
 * and `err` where it is there and cannot be read. */
bool dose_sidecar_load(const char *dose_path, json_t **sidecar, dm_error *err);

/* "Gy", "Gy/GBq", or NULL where it does not say. Borrowed. */
const char *dose_sidecar_unit(const json_t *sidecar);

/* True if a file of `role` ("dose", "dvh", "organs") was written. */
bool dose_sidecar_has_output(const json_t *sidecar, const char *role);

/* The path of the input of that role ("pet", "ct"), or NULL. Borrowed. */
const char *dose_sidecar_source(const json_t *sidecar, const char *role);

#endif
