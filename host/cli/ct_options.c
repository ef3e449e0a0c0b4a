/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/ct_options.h"

#include <limits.h>
#include <stdio.h>

/* Of the PET's activity. Below, the table's end or the arms may be outside of the CT; or it is
 * another patient's. */
#define COVERED_ENOUGH 0.95

static dm_status refuse(const char *where, const char *what, const char *remedy, dm_error *err)
{
    err->status = DM_ERROR_VALUE;
    snprintf(err->where, sizeof err->where, "%.511s", where);
    snprintf(err->what, sizeof err->what, "%s", what);
    snprintf(err->remedy, sizeof err->remedy, "%s", remedy);
    return err->status;
}

dm_status ct_check(const dm_model *model, bool given, dm_error *err)
{
    bool wanted = dm_model_takes(model, DM_QUANTITY_HU);
    if (wanted && !given)
        return refuse(dm_model_path(model), "this model takes PET and CT, and no CT is given",
                      "give the CT in HU with --ct FILE, once for each PET", err);
    if (given && !wanted)
        return refuse(dm_model_path(model), "this model takes a PET only: it would not use the CT",
                      "leave --ct out, or name another model with --model", err);
    return DM_OK;
}

dm_status ct_read(const char *path, const dm_volume *pet, const dm_ct_options *options,
                  dm_volume **ct, dm_ct_info *info, dm_error *err)
{
    dm_volume *stored = NULL;
    dm_status status = dm_volume_read(path, &stored, err);
    if (status == DM_OK)
        status = dm_ct_onto_pet(stored, pet, options, ct, info, err);
    if (status != DM_OK && err->where[0] == '\0')
        snprintf(err->where, sizeof err->where, "%.511s", path);
    dm_volume_free(stored);
    return status;
}

void ct_note(const char *path, const dm_ct_info *info, char *note, size_t size)
{
    if (info->activity_covered < COVERED_ENOUGH)
        snprintf(note, size,
                 "dosemap: %s: %.3g %% of the PET's activity lie outside of this CT, where air "
                 "(-1000 HU) is assumed\n",
                 path, 100 * (1 - info->activity_covered));
}

unsigned ct_volumes(const dm_ct_info *info, const dm_volume *pet)
{
    double volumes = 1;
    for (int a = 0; a < 3; a++)
        volumes *= (double)info->dim[a] / (double)pet->grid.dim[a];
    return volumes < INT_MAX ? (unsigned)volumes + 1 : INT_MAX;
}
