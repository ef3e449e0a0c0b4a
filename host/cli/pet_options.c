/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/pet_options.h"

#include <math.h>
#include <stdio.h>

void pet_args_init(pet_args *args)
{
    *args = (pet_args){
        .body_weight_kg = NAN, .injected_mbq = NAN, .residual_mbq = NAN, .half_life_s = NAN};
}

static dm_status unknown_word(dm_error *err, const char *option, const char *text,
                              const char *words)
{
    err->status = DM_ERROR_VALUE;
    snprintf(err->what, sizeof err->what, "%s '%s' is unknown", option, text);
    snprintf(err->remedy, sizeof err->remedy, "use one of %s", words);
    return err->status;
}

static void override(double *value, double option)
{
    if (!isnan(option))
        *value = option;
}

dm_status pet_args_apply(const pet_args *args, dm_pet_info *info, dm_error *err)
{
    static const char units[] = "suv|bqml|kbqml", decays[] = "injection|start|none";
    if (args->units) {
        int i = choice_index(units, args->units);
        if (i < 0)
            return unknown_word(err, "--units", args->units, units);
        info->units = (dm_units)(DM_UNITS_SUV + i);
    }
    if (args->decay) {
        int i = choice_index(decays, args->decay);
        if (i < 0)
            return unknown_word(err, "--decay-correction", args->decay, decays);
        info->decay = (dm_decay)(DM_DECAY_INJECTION + i);
    }
    if (args->radionuclide) {
        info->half_life_s = dm_half_life_s(args->radionuclide);
        if (isnan(info->half_life_s))
            return unknown_word(err, "--radionuclide", args->radionuclide,
                                "Ga68, F18, Cu64, ... or give --half-life SECONDS");
        snprintf(info->radionuclide, sizeof info->radionuclide, "%s", args->radionuclide);
    }
    override(&info->half_life_s, args->half_life_s);
    override(&info->body_weight_kg, args->body_weight_kg);
    override(&info->injected_mbq, args->injected_mbq);
    override(&info->residual_mbq, args->residual_mbq);
    dm_status status = DM_OK;
    if (args->injection_time)
        status = dm_time_parse(args->injection_time, &info->injection_time_s, err);
    if (status == DM_OK && args->scan_time)
        status = dm_time_parse(args->scan_time, &info->scan_time_s, err);
    return status;
}
