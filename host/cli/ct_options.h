/* SPDX-License-Identifier: Apache-2.0 */
/* The CT that some networks take beside the PET, for every command that predicts. */
#ifndef DOSEMAP_CLI_CT_OPTIONS_H
#define DOSEMAP_CLI_CT_OPTIONS_H

#include "cli/options.h"
#include "dosemap.h"

/* ct, ct_is_hu: offsets of the fields; kind: of the first; several: added to its help. */
/* clang-format off */
#define CT_OPTIONS(ct, kind, ct_is_hu, several) \
    {"ct", 0, kind, ct, "FILE", "CT of the same examination in HU, NIfTI on any grid along the PET's axes, for networks that take one" several, 0, 0, "CT"}, \
    {"ct-is-hu", 0, OPTION_FLAG, ct_is_hu, NULL, "take the CT's values as HU even if they do not look so", 0, 0, NULL}
/* clang-format on */

/* Before anything is read: does the model take a CT if, and only if, one is given? */
dm_status ct_check(const dm_model *model, bool given, dm_error *err);

/* Reads a CT onto the PET's grid (dm_ct_onto_pet). */
dm_status ct_read(const char *path, const dm_volume *pet, const dm_ct_options *options,
                  dm_volume **ct, dm_ct_info *info, dm_error *err);

/* What the user should know of it, in a line that ends with a newline; empty if nothing. */
void ct_note(const char *path, const dm_ct_info *info, char *note, size_t size);

/* How many volumes on the PET's grid the CT takes as it is stored, rounded up. */
unsigned ct_volumes(const dm_ct_info *info, const dm_volume *pet);

#endif
