/* SPDX-License-Identifier: Apache-2.0 */
/* The sidecar of a PET; what it says makes a factor that is a positive number, or a message. */
#include <math.h>

#include "fuzz_file.h"

static bool unknown_or_not_negative(double value)
{
    return isnan(value) || (isfinite(value) && value >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const dm_quantity quantities[] = {DM_QUANTITY_UPTAKE, DM_QUANTITY_SUV};
    static const dm_units units[] = {DM_UNITS_UNKNOWN, DM_UNITS_SUV, DM_UNITS_BQML, DM_UNITS_KBQML};
    char pet[128], json[128];
    dm_pet_info info;
    dm_error err = {0};
    fuzz_path("pet.nii.gz", pet);
    fuzz_write("pet.json", data, size, json);
    dm_status status = dm_pet_info_read(pet, &info, &err);
    FUZZ_CHECK(status == DM_OK || (err.what[0] && err.status == status));
    if (status != DM_OK)
        return 0;
    FUZZ_CHECK(unknown_or_not_negative(info.body_weight_kg));
    FUZZ_CHECK(unknown_or_not_negative(info.injected_mbq));
    FUZZ_CHECK(unknown_or_not_negative(info.half_life_s));
    FUZZ_CHECK(memchr(info.radionuclide, 0, sizeof info.radionuclide));
    FUZZ_CHECK(memchr(info.tracer, 0, sizeof info.tracer));
    /* The sidecar seldom says everything; the user's options, which come after it, do. */
    for (size_t u = 0; u < 4; u++) {
        dm_pet_info full = info;
        if (u > 0)
            full.units = units[u];
        if (u > 0 && isnan(full.body_weight_kg))
            full.body_weight_kg = 80;
        if (u > 0 && isnan(full.injected_mbq))
            full.injected_mbq = 150;
        for (size_t q = 0; q < 2; q++) {
            double factor = 0;
            memset(&err, 0, sizeof err);
            status = dm_pet_factor(&full, quantities[q], &factor, &err);
            FUZZ_CHECK(status != DM_OK || (isfinite(factor) && factor > 0));
            FUZZ_CHECK(status == DM_OK || err.what[0]);
        }
    }
    return 0;
}
