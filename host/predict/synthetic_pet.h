/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_PREDICT_SYNTHETIC_PET_H
#define DOSEMAP_PREDICT_SYNTHETIC_PET_H

#include "dosemap.h"

/* A PET that looks like one as far as work goes: a body in air, hot organs in it, noise; SUVs of a
 * patient of 78.7 kg, voxels of 4 mm. The same size gives the same voxels. */
dm_status synthetic_pet(const size_t size[3], dm_volume **pet, dm_pet_info *info, dm_error *err);

/* A CT of that body on the same grid: tissue in air. */
dm_status synthetic_ct(const size_t size[3], dm_volume **ct, dm_error *err);

#endif
