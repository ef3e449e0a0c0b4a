/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From stored PET values to uptake or SUV.
 *     A      = (injected - residual) * 2^(-delay / half-life)     Bq
 *     SUV    = C * weight_g / A
 *     uptake = C * 78700 g  / A = SUV * 78.7 kg / weight
 * C and A must refer to the same time, so delay is from the injection to the time that the image is
 * decay-corrected to, or was taken at where it is not: DICOM PS3.3 C.8.9.1.1.11 (Decay Correction).
 */
#include <math.h>

#include "base/error.h"
#include "dosemap.h"

#define DAY_S 86400.0
/* Below 1 % of the activity nobody takes a PET: a longer delay is a wrong time. */
#define MAX_HALF_LIVES 7.0

void dm_pet_info_init(dm_pet_info *info)
{
    *info = (dm_pet_info){.body_weight_kg = NAN,
                          .injected_mbq = NAN,
                          .residual_mbq = NAN,
                          .half_life_s = NAN,
                          .injection_time_s = NAN,
                          .scan_time_s = NAN};
}

static const char *file_of(const dm_pet_info *info)
{
    return info->sidecar[0] ? info->sidecar : NULL;
}

static dm_status missing(const dm_pet_info *info, dm_error *err, const char *what,
                         const char *remedy)
{
    return error_set(err, DM_ERROR_VALUE, file_of(info), remedy, "%s is not known", what);
}

static dm_status body_weight(const dm_pet_info *info, double *kg, dm_error *err)
{
    static const char remedy[] = "give --body-weight KG, or PatientWeight in the sidecar";
    *kg = info->body_weight_kg;
    if (isnan(*kg))
        return missing(info, err, "the patient's body weight", remedy);
    if (!(*kg >= 1 && *kg <= 500))
        return error_set(err, DM_ERROR_VALUE, file_of(info), remedy,
                         "body weight %g kg is not within 1 to 500 kg", *kg);
    return DM_OK;
}

/* Net activity at the injection time. Its range catches activities in the wrong unit. */
static dm_status injected_bq(const dm_pet_info *info, double *bq, dm_error *err)
{
    static const char remedy[] =
        "give --injected MBQ, or InjectedRadioactivity with InjectedRadioactivityUnits in the "
        "sidecar";
    double injected = info->injected_mbq;
    double residual = isnan(info->residual_mbq) ? 0 : info->residual_mbq;
    if (isnan(injected))
        return missing(info, err, "the injected activity", remedy);
    if (!(injected > 0 && isfinite(injected)))
        return error_set(err, DM_ERROR_VALUE, file_of(info), remedy,
                         "injected activity %g MBq is not positive", injected);
    if (injected > 1e6)
        return error_set(err, DM_ERROR_VALUE, file_of(info),
                         "give --injected MBQ; dcm2niix of 2024-10 and later writes Bq and calls "
                         "them MBq",
                         "injected activity %g MBq is not plausible (as Bq it would be %g MBq)",
                         injected, injected * 1e-6);
    if (injected < 1e-3)
        return error_set(err, DM_ERROR_VALUE, file_of(info),
                         "give --injected MBQ; RadionuclideTotalDose of a PET is in Bq",
                         "injected activity %g MBq is not plausible (as MBq it would be %g MBq)",
                         injected, injected * 1e6);
    if (!(residual >= 0 && residual < injected))
        return error_set(err, DM_ERROR_VALUE, file_of(info), "correct --residual or --injected",
                         "residual activity %g MBq is not within 0 and the injected %g MBq",
                         residual, injected);
    *bq = (injected - residual) * 1e6;
    return DM_OK;
}

/* From the injection to the scan. Two times of day whose order is reversed lie on either side of
 * midnight. */
static dm_status delay_s(const dm_pet_info *info, double *delay, dm_error *err)
{
    double injection = info->injection_time_s, scan = info->scan_time_s;
    if (isnan(injection))
        return missing(info, err, "the injection time",
                       "give --injection-time HH:MM:SS, or TimeZero and InjectionStart in the "
                       "sidecar");
    if (isnan(scan))
        return missing(info, err, "the time that the image refers to",
                       "give --scan-time HH:MM:SS, or TimeZero and ScanStart in the sidecar");
    if (scan < injection && scan >= 0 && injection < DAY_S)
        scan += DAY_S;
    *delay = scan - injection;
    if (!(*delay >= 0 && isfinite(*delay)))
        return error_set(err, DM_ERROR_VALUE, file_of(info),
                         "give --injection-time and --scan-time, both as times of day or both with "
                         "the date",
                         "the scan (%.15g s) lies %g s before the injection (%.15g s)", scan,
                         -*delay, injection);
    return DM_OK;
}

/* 2^(-delay/half-life) for the image's decay correction. */
static dm_status remaining_share(const dm_pet_info *info, double *share, dm_error *err)
{
    static const char half_life_remedy[] =
        "give --half-life S or --radionuclide NAME, or RadionuclideHalfLife or TracerRadionuclide "
        "in the sidecar";
    double delay = NAN, half_life = info->half_life_s;
    *share = 1;
    if (info->decay == DM_DECAY_INJECTION)
        return DM_OK;
    if (info->decay != DM_DECAY_START && info->decay != DM_DECAY_NONE)
        return missing(info, err, "the time to which the image is decay-corrected",
                       "give --decay-correction injection|start|none, or DecayCorrection "
                       "(ADMIN, START, NONE) in the sidecar; ImageDecayCorrected must not "
                       "contradict it");
    if (isnan(half_life))
        return missing(info, err, "the half-life of the PET's radionuclide", half_life_remedy);
    if (!(half_life > 0 && isfinite(half_life)))
        return error_set(err, DM_ERROR_VALUE, file_of(info), half_life_remedy,
                         "half-life %g s is not positive", half_life);
    dm_status status = delay_s(info, &delay, err);
    if (status != DM_OK)
        return status;
    if (delay > MAX_HALF_LIVES * half_life)
        return error_set(err, DM_ERROR_VALUE, file_of(info),
                         "check --injection-time, --scan-time (with dates where they are on "
                         "different days) and --half-life",
                         "the scan %g s after the injection is %.3g half-lives of %g s later",
                         delay, delay / half_life, half_life);
    *share = exp2(-delay / half_life);
    return DM_OK;
}

static dm_status factor_of_suv(const dm_pet_info *info, dm_quantity quantity, double *factor,
                               dm_error *err)
{
    double kg;
    *factor = 1;
    if (quantity == DM_QUANTITY_SUV)
        return DM_OK;
    dm_status status = body_weight(info, &kg, err);
    if (status == DM_OK)
        *factor = DM_REFERENCE_WEIGHT_KG / kg;
    return status;
}

static dm_status factor_of_bqml(const dm_pet_info *info, dm_quantity quantity, double *factor,
                                dm_error *err)
{
    double kg = DM_REFERENCE_WEIGHT_KG, bq = NAN, share = NAN;
    dm_status status = injected_bq(info, &bq, err);
    if (status == DM_OK && quantity == DM_QUANTITY_SUV)
        status = body_weight(info, &kg, err);
    if (status == DM_OK)
        status = remaining_share(info, &share, err);
    if (status == DM_OK)
        *factor = (info->units == DM_UNITS_KBQML ? 1e3 : 1) * kg * 1e3 / (bq * share);
    return status;
}

dm_status dm_pet_factor(const dm_pet_info *info, dm_quantity quantity, double *factor,
                        dm_error *err)
{
    dm_status status;
    double value = NAN;
    *factor = NAN;
    if (quantity != DM_QUANTITY_UPTAKE && quantity != DM_QUANTITY_SUV)
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use a model that takes uptake or SUV",
                         "a PET cannot be converted to quantity %d", (int)quantity);
    if (info->units == DM_UNITS_SUV)
        status = factor_of_suv(info, quantity, &value, err);
    else if (info->units == DM_UNITS_BQML || info->units == DM_UNITS_KBQML)
        status = factor_of_bqml(info, quantity, &value, err);
    else
        status = missing(info, err, "the unit of the PET's values",
                         "give --units suv|bqml|kbqml, or Units in the sidecar");
    if (status == DM_OK)
        *factor = value;
    return status;
}
