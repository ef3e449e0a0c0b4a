/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON beside a PET: BIDS-PET (times in seconds relative to TimeZero) and dcm2niix (DICOM
 * attributes under their keywords). What a sidecar leaves open stays unknown, so that an option can
 * fill it in; what contradicts its own definition is an error.
 */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json_text.h"
#include "dosemap.h"
#include "volume/pet_nuclide.h"

/* Readers below do nothing once one of them has failed. */
typedef struct sidecar {
    const json_t *root;
    const char *path;
    dm_status status;
    dm_error *err;
} sidecar;

static void refuse(sidecar *s, const char *key, const char *wanted)
{
    if (s->status != DM_OK)
        return;
    char *value = json_dumps(json_object_get(s->root, key), JSON_ENCODE_ANY | JSON_COMPACT);
    char remedy[256];
    snprintf(remedy, sizeof remedy, "correct %s in the sidecar, or remove it", key);
    s->status = error_set(s->err, DM_ERROR_VALUE, s->path, remedy, "%s is %.200s, not %s", key,
                          value ? value : "unreadable", wanted);
    free(value);
}

/* NULL where the key is absent or holds one of BIDS's and the converters' words for "unknown". */
static const json_t *member(const sidecar *s, const char *key)
{
    const json_t *value = s->status == DM_OK ? json_object_get(s->root, key) : NULL;
    if (json_is_string(value) &&
        (json_string_length(value) == 0 || strcasecmp(json_string_value(value), "n/a") == 0))
        return NULL;
    return json_is_null(value) ? NULL : value;
}

static double read_number(sidecar *s, const char *key)
{
    const json_t *value = member(s, key);
    if (!value)
        return NAN;
    if (!json_is_number(value)) {
        refuse(s, key, "a number");
        return NAN;
    }
    return json_number_value(value);
}

static double read_not_negative(sidecar *s, const char *key)
{
    double value = read_number(s, key);
    if (value < 0)
        refuse(s, key, "zero or more");
    return value;
}

/* FrameTimesStart and the like: one number per frame. Unknown where there are several frames,
 * because a 3D image of them has no single time. */
static double read_frame_number(sidecar *s, const char *key)
{
    const json_t *value = member(s, key);
    if (!json_is_array(value))
        return read_number(s, key);
    size_t count = json_array_size(value);
    for (size_t i = 0; i < count; i++) {
        if (!json_is_number(json_array_get(value, i))) {
            refuse(s, key, "an array of numbers");
            return NAN;
        }
    }
    return count == 1 ? json_number_value(json_array_get(value, 0)) : NAN;
}

/* "" where unknown. */
static const char *read_string(sidecar *s, const char *key)
{
    const json_t *value = member(s, key);
    if (!value)
        return "";
    if (!json_is_string(value)) {
        refuse(s, key, "a string");
        return "";
    }
    return json_string_value(value);
}

/* A clock time as "13:06:28.148", "2018-11-15T09:22:00", or DICOM's "130628.148" and
 * "20181115092200". Never a bare number of seconds. */
static double read_clock(sidecar *s, const char *key)
{
    const char *t = read_string(s, key);
    char text[64];
    double seconds = NAN;
    size_t digits = strspn(t, "0123456789");
    if (!*t)
        return NAN;
    if (digits == 6)
        snprintf(text, sizeof text, "%.2s:%.2s:%s", t, t + 2, t + 4);
    else if (digits == 14)
        snprintf(text, sizeof text, "%.4s-%.2s-%.2sT%.2s:%.2s:%s", t, t + 4, t + 6, t + 8, t + 10,
                 t + 12);
    else
        snprintf(text, sizeof text, "%s", t);
    if (!strchr(text, ':') || dm_time_parse(text, &seconds, NULL) != DM_OK)
        refuse(s, key, "a time like 13:06:28.148 or 2018-11-15T09:22:00");
    return seconds;
}

/* Letters and digits of a unit in lower case: "Bq/mL", "BQML" and "bq / ml" are one. */
static void unit_word(const char *text, char word[32])
{
    size_t n = 0;
    for (; *text && n < 31; text++)
        if (isalnum((unsigned char)*text))
            word[n++] = (char)tolower((unsigned char)*text);
    word[n] = '\0';
}

static void read_units(sidecar *s, dm_pet_info *info)
{
    static const struct {
        const char *word;
        dm_units units;
    } known[] = {
        {"bqml", DM_UNITS_BQML},   {"bqcc", DM_UNITS_BQML},    {"bqcm3", DM_UNITS_BQML},
        {"kbqml", DM_UNITS_KBQML}, {"kbqcc", DM_UNITS_KBQML},  {"kbqcm3", DM_UNITS_KBQML},
        {"suv", DM_UNITS_SUV},     {"suvbw", DM_UNITS_SUV},    {"gml", DM_UNITS_SUV},
        {"suvgml", DM_UNITS_SUV},  {"suvbwgml", DM_UNITS_SUV},
    };
    char word[32];
    const char *units = read_string(s, "Units"), *suv_type = read_string(s, "SUVType");
    unit_word(units, word);
    for (size_t i = 0; *word && i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i].word) == 0)
            info->units = known[i].units;
    if (*units && info->units == DM_UNITS_UNKNOWN)
        refuse(s, "Units", "Bq/mL, kBq/mL or SUV (g/mL)");
    if (*suv_type && strcasecmp(suv_type, "BW") != 0)
        refuse(s, "SUVType", "BW: only SUV by body weight can be converted");
}

/* BIDS has a value and its unit. DICOM's Radionuclide Total Dose is in Bq for PET (PS3.3 C.8.9.2)
 * but in MBq for nuclear medicine (C.8.4.10.1.7). */
static void read_activity(sidecar *s, dm_pet_info *info)
{
    static const struct {
        const char *word;
        double mbq;
    } known[] = {{"bq", 1e-6}, {"kbq", 1e-3}, {"mbq", 1}, {"gbq", 1e3}, {"mci", 37}};
    char word[32];
    double injected = read_not_negative(s, "InjectedRadioactivity");
    double total = read_not_negative(s, "RadionuclideTotalDose");
    const char *units = read_string(s, "InjectedRadioactivityUnits");
    double mbq = NAN;
    unit_word(units, word);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i].word) == 0)
            mbq = known[i].mbq;
    if (*units && isnan(mbq))
        refuse(s, "InjectedRadioactivityUnits", "Bq, kBq, MBq, GBq or mCi");
    bool nuclear_medicine = strcasecmp(read_string(s, "Modality"), "NM") == 0;
    if (!isnan(injected * mbq))
        info->injected_mbq = injected * mbq;
    else
        info->injected_mbq = nuclear_medicine ? total : total * 1e-6;
}

static void read_nuclide(sidecar *s, dm_pet_info *info)
{
    const char *name = read_string(s, "TracerRadionuclide");
    const nuclide *n = nuclide_find(name);
    double half_life = read_not_negative(s, "RadionuclideHalfLife");
    if (isnan(half_life))
        half_life = read_not_negative(s, "IsotopeHalfLife"); /* ECAT files through dcm2niix */
    if (n)
        snprintf(info->radionuclide, sizeof info->radionuclide, "%s%u%s", n->symbol, n->mass,
                 n->metastable ? "m" : "");
    else
        snprintf(info->radionuclide, sizeof info->radionuclide, "%s", name);
    info->half_life_s = isnan(half_life) && n ? n->half_life_s : half_life;
    const char *tracer = read_string(s, "TracerName");
    snprintf(info->tracer, sizeof info->tracer, "%s",
             *tracer ? tracer : read_string(s, "Radiopharmaceutical"));
}

/* All of them on one clock, or NAN. */
typedef struct pet_times {
    double injection, series_start, frame_middle, correction;
} pet_times;

/* Dates are used only where the injection has one too: together with a time of day they would be on
 * different clocks. */
static void read_dicom_times(sidecar *s, pet_times *t)
{
    double injection = read_clock(s, "RadiopharmaceuticalStartTime");
    double series = read_clock(s, "SeriesTime"), frame = read_clock(s, "AcquisitionTime");
    double injection_date = read_clock(s, "RadiopharmaceuticalStartDateTime");
    double frame_date = read_clock(s, "AcquisitionDateTime");
    if (isnan(frame) || !isnan(injection_date * frame_date)) {
        injection = isnan(injection_date) ? injection : injection_date;
        frame = frame_date;
        series = NAN;
    }
    t->injection = injection;
    /* A series time after the acquisition is that of a later reconstruction. */
    t->series_start = isnan(frame) || series <= frame ? series : frame;
    t->frame_middle = isnan(frame) ? series : frame;
}

/* BIDS: everything is relative to TimeZero, a time of day. Without TimeZero the relative times are
 * a clock of their own, which does not mix with DICOM's times. */
static pet_times read_times(sidecar *s)
{
    pet_times t = {NAN, NAN, NAN, NAN};
    double zero = read_clock(s, "TimeZero");
    double injection = read_number(s, "InjectionStart"), scan = read_number(s, "ScanStart");
    double frame = read_frame_number(s, "FrameTimesStart");
    double duration = read_frame_number(s, "FrameDuration");
    double correction = read_number(s, "ImageDecayCorrectionTime");
    read_dicom_times(s, &t);
    if (isnan(zero) && !isnan(injection)) {
        zero = 0;
        t.series_start = t.frame_middle = NAN;
    }
    if (!isnan(zero + injection))
        t.injection = zero + injection;
    if (!isnan(zero + scan))
        t.series_start = zero + scan;
    /* A frame before its own scan is counted from another zero than the specification's. */
    if (!isnan(zero + frame))
        t.frame_middle = frame < scan ? NAN : zero + frame;
    else if (!isnan(zero + scan))
        t.frame_middle = zero + scan;
    if (!isnan(duration))
        t.frame_middle += duration / 2;
    t.correction = zero + correction;
    return t;
}

/* DICOM's word decides; BIDS's flag beside it must not contradict it. */
static dm_decay read_dicom_decay(sidecar *s)
{
    const char *word = read_string(s, "DecayCorrection");
    dm_decay decay = DM_DECAY_UNKNOWN;
    if (strcasecmp(word, "ADMIN") == 0)
        decay = DM_DECAY_INJECTION;
    else if (strcasecmp(word, "START") == 0)
        decay = DM_DECAY_START;
    else if (strcasecmp(word, "NONE") == 0)
        decay = DM_DECAY_NONE;
    else if (*word)
        refuse(s, "DecayCorrection", "NONE, START or ADMIN");
    return decay;
}

static void read_decay(sidecar *s, dm_pet_info *info)
{
    pet_times t = read_times(s);
    dm_decay decay = read_dicom_decay(s);
    const json_t *flag = member(s, "ImageDecayCorrected");
    if (flag && !json_is_boolean(flag))
        refuse(s, "ImageDecayCorrected", "true or false");
    bool corrected = json_is_true(flag);
    if (decay != DM_DECAY_UNKNOWN) {
        if (flag && corrected == (decay == DM_DECAY_NONE))
            decay = DM_DECAY_UNKNOWN;
    } else if (flag && !corrected) {
        decay = DM_DECAY_NONE;
    } else if (corrected && fabs(t.correction - t.injection) <= 1) {
        decay = DM_DECAY_INJECTION;
    } else if (corrected && !isnan(t.correction)) {
        /* Only the time that the image refers to matters, be it the series' start or not. */
        decay = DM_DECAY_START;
        t.series_start = t.correction;
    }
    info->decay = decay;
    info->injection_time_s = t.injection;
    info->scan_time_s = decay == DM_DECAY_NONE ? t.frame_middle : t.series_start;
}

static dm_status read_sidecar(sidecar *s, dm_pet_info *info)
{
    if (!json_is_object(s->root))
        return error_set(s->err, DM_ERROR_FORMAT, s->path, "write a JSON object of BIDS-PET keys",
                         "the sidecar is not a JSON object");
    read_units(s, info);
    read_activity(s, info);
    read_nuclide(s, info);
    read_decay(s, info);
    info->body_weight_kg = read_not_negative(s, "PatientWeight");
    double body_weight = read_not_negative(s, "BodyWeight");
    if (!isnan(body_weight))
        info->body_weight_kg = body_weight;
    return s->status;
}

/* False if the PET is not named like a NIfTI file or the path is too long for one. */
static bool sidecar_path(const char *pet_path, char *path, size_t size)
{
    static const char *const endings[] = {".nii", ".nii.gz", ".nii.zst"};
    size_t length = strlen(pet_path);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t ending = strlen(endings[i]);
        if (length <= ending || strcmp(pet_path + length - ending, endings[i]) != 0)
            continue;
        if (length - ending + sizeof ".json" > size)
            return false;
        snprintf(path, size, "%.*s.json", (int)(length - ending), pet_path);
        return true;
    }
    return false;
}

dm_status dm_pet_info_read(const char *pet_path, dm_pet_info *info, dm_error *err)
{
    char path[4096];
    json_t *root = NULL;
    dm_pet_info found;
    dm_pet_info_init(info);
    dm_pet_info_init(&found);
    if (!sidecar_path(pet_path, path, sizeof path))
        return DM_OK;
    if (access(path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR))
        return DM_OK;
    dm_status status = json_parse_file(path, &root, err);
    if (status == DM_OK) {
        sidecar s = {root, path, DM_OK, err};
        snprintf(found.sidecar, sizeof found.sidecar, "%.511s", path);
        status = read_sidecar(&s, &found);
    }
    json_decref(root);
    if (status == DM_OK)
        *info = found;
    return status;
}
