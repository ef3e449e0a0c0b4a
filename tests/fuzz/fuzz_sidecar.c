/* SPDX-License-Identifier: Apache-2.0 */
/* The sidecar of a PET: written as a file, because its name follows from the PET's. */
#include <string.h>

#include "dosemap.h"
#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char pet[64], json[64];
    snprintf(pet, sizeof pet, "/tmp/fuzz-%ld.nii.gz", (long)getpid());
    snprintf(json, sizeof json, "/tmp/fuzz-%ld.json", (long)getpid());
    FILE *f = fopen(json, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0)
        abort();
    dm_pet_info info;
    dm_error err = {0};
    double factor = 0;
    if (dm_pet_info_read(pet, &info, &err) == DM_OK)
        (void)dm_pet_factor(&info, DM_QUANTITY_UPTAKE, &factor, &err);
    remove(json);
    return 0;
}
