/* SPDX-License-Identifier: Apache-2.0 */
/* The sidecar of a dose map, as far as commands read it back. */
#ifndef DOSEMAP_CLI_DOSE_SIDECAR_H
#define DOSEMAP_CLI_DOSE_SIDECAR_H

#include <jansson.h>
#include <stdbool.h>

/* The object in OUT.json beside OUT.nii[.gz|.zst]; NULL where there is none that can be read. */
json_t *dose_sidecar_load(const char *dose_path);

/* "Gy", "Gy/GBq", or NULL where it does not say. Borrowed. */
const char *dose_sidecar_unit(const json_t *sidecar);

/* True if a file of `role` ("dose", "dvh", "organs") was written. */
bool dose_sidecar_has_output(const json_t *sidecar, const char *role);

#endif
