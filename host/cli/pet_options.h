/* SPDX-License-Identifier: Apache-2.0 */
/* Options that say how a PET is quantified, for every command that reads one. */
#ifndef DOSEMAP_CLI_PET_OPTIONS_H
#define DOSEMAP_CLI_PET_OPTIONS_H

#include "cli/options.h"
#include "dosemap.h"

typedef struct pet_args {
    const char *units, *decay, *injection_time, *scan_time, *radionuclide;
    double body_weight_kg, injected_mbq, residual_mbq, half_life_s;
} pet_args;

void pet_args_init(pet_args *args);

/* Options override what the sidecar said. */
dm_status pet_args_apply(const pet_args *args, dm_pet_info *info, dm_error *err);

/* `member` is a pet_args of the options struct `type`. */
#define PET_OPTION(type, member, field) (offsetof(type, member) + offsetof(pet_args, field))
/* clang-format off */
#define PET_OPTIONS(type, member) \
    {"units", 0, OPTION_STRING, PET_OPTION(type, member, units), "suv|bqml|kbqml", "unit of the PET's values", 0, 0, "Quantification (override the PET's sidecar)"}, \
    {"body-weight", 0, OPTION_NUMBER, PET_OPTION(type, member, body_weight_kg), "KG", "patient's weight; needed for SUV, not for Bq/mL with an injected activity", 1, 500, NULL}, \
    {"injected", 0, OPTION_NUMBER, PET_OPTION(type, member, injected_mbq), "MBQ", "activity injected for the PET, at the injection time", 1e-3, 1e6, NULL}, \
    {"residual", 0, OPTION_NUMBER, PET_OPTION(type, member, residual_mbq), "MBQ", "activity left in the syringe, at the injection time", 0, 1e6, NULL}, \
    {"decay-correction", 0, OPTION_STRING, PET_OPTION(type, member, decay), "injection|start|none", "time to which the image is decay-corrected", 0, 0, NULL}, \
    {"injection-time", 0, OPTION_STRING, PET_OPTION(type, member, injection_time), "TIME", "HH:MM:SS, date and time, or seconds", 0, 0, NULL}, \
    {"scan-time", 0, OPTION_STRING, PET_OPTION(type, member, scan_time), "TIME", "start of the series, written as the injection time is", 0, 0, NULL}, \
    {"radionuclide", 0, OPTION_STRING, PET_OPTION(type, member, radionuclide), "NAME", "as in Ga68 or F18: gives the half-life", 0, 0, NULL}, \
    {"half-life", 0, OPTION_NUMBER, PET_OPTION(type, member, half_life_s), "SECONDS", "of the PET's radionuclide", 1, 1e12, NULL}
/* clang-format on */

#endif
