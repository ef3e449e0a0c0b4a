/* SPDX-License-Identifier: Apache-2.0 */
/* Radionuclides of PET and of the therapies it plans, by any of the spellings in use. */
#ifndef DOSEMAP_VOLUME_PET_NUCLIDE_H
#define DOSEMAP_VOLUME_PET_NUCLIDE_H

#include <stdbool.h>

typedef struct nuclide {
    const char *symbol;  /* "Ga" */
    const char *element; /* "Gallium" */
    unsigned mass;
    bool metastable;
    double half_life_s;
} nuclide;

/* "Ga68", "68Ga", "Ga-68", "[68Ga]", "^68^Gallium", "Tc99m", ...; NULL if not in the list. */
const nuclide *nuclide_find(const char *text);

#endif
