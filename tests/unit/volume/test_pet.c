/* SPDX-License-Identifier: Apache-2.0 */
/* Sidecars of PETs, times, half-lives and the factor to uptake or SUV. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dosemap.h"

#define GA68_S 4062.6

static char folder[] = "/tmp/test_pet_XXXXXX";
static char pet[64], sidecar[64];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(pet, sizeof pet, "%s/sub-1_pet.nii.gz", folder);
    snprintf(sidecar, sizeof sidecar, "%s/sub-1_pet.json", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    remove(sidecar);
    return rmdir(folder);
}

static void write_sidecar(const char *text)
{
    FILE *f = fopen(sidecar, "wb");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static dm_pet_info read_text(const char *text)
{
    dm_pet_info info;
    dm_error err = {0};
    write_sidecar(text);
    dm_status status = dm_pet_info_read(pet, &info, &err);
    if (status != DM_OK)
        print_error("%s %s\n", err.where, err.what);
    assert_int_equal(status, DM_OK);
    assert_string_equal(info.sidecar, sidecar);
    return info;
}

/* The message names the file, the key and the value. */
static void refuse_text(const char *text, dm_status expected, const char *key, const char *value)
{
    dm_pet_info info;
    dm_error err = {0};
    write_sidecar(text);
    assert_int_equal(dm_pet_info_read(pet, &info, &err), expected);
    assert_int_equal(err.status, expected);
    assert_string_equal(err.where, sidecar);
    assert_non_null(strstr(err.what, key));
    assert_non_null(strstr(err.what, value));
    assert_true(strlen(err.remedy) > 0);
    assert_true(isnan(info.injected_mbq) && info.units == DM_UNITS_UNKNOWN && !info.sidecar[0]);
    assert_int_equal(dm_pet_info_read(pet, &info, NULL), expected);
}

static void assert_near(double a, double b, double rtol)
{
    if (!(fabs(a - b) <= rtol * fabs(b)))
        print_error("%.17g is not %.17g\n", a, b);
    assert_true(fabs(a - b) <= rtol * fabs(b));
}

static double factor_of(const dm_pet_info *info, dm_quantity quantity)
{
    double factor = -1;
    dm_error err = {0};
    dm_status status = dm_pet_factor(info, quantity, &factor, &err);
    if (status != DM_OK)
        print_error("%s; %s\n", err.what, err.remedy);
    assert_int_equal(status, DM_OK);
    return factor;
}

static void refuse_factor(const dm_pet_info *info, dm_quantity quantity, const char *what,
                          const char *remedy)
{
    double factor = 1;
    dm_error err = {0};
    assert_int_equal(dm_pet_factor(info, quantity, &factor, &err), DM_ERROR_VALUE);
    if (!strstr(err.what, what) || !strstr(err.remedy, remedy))
        print_error("%s; %s\n", err.what, err.remedy);
    assert_non_null(strstr(err.what, what));
    assert_non_null(strstr(err.remedy, remedy));
    assert_true(isnan(factor));
}

/* 68Ga-PSMA, 118.4 MBq, image 60 min after injection, 80 kg. */
static dm_pet_info ga68(dm_units units, dm_decay decay)
{
    dm_pet_info info;
    dm_pet_info_init(&info);
    info.units = units;
    info.decay = decay;
    info.body_weight_kg = 80;
    info.injected_mbq = 118.4;
    info.half_life_s = GA68_S;
    info.injection_time_s = 36000;
    info.scan_time_s = 39600;
    return info;
}

static void test_real_spect_sidecar(void **state)
{
    (void)state;
    const char *data = getenv("DOSEMAP_TEST_DATA");
    char path[4096];
    dm_pet_info info;
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/lu177_spect/spect_001.nii.gz", data ? data : "../shared/data");
    assert_int_equal(dm_pet_info_read(path, &info, &err), DM_OK);
    if (!info.sidecar[0]) {
        print_message("no real images at %s\n", path);
        skip();
    }
    assert_int_equal(info.units, DM_UNITS_BQML);
    assert_int_equal(info.decay, DM_DECAY_INJECTION);
    assert_near(info.injected_mbq, 7210.43, 1e-12);
    assert_near(info.half_life_s, 574300, 0);
    assert_near(info.scan_time_s, 13 * 3600 + 6 * 60 + 28.148, 1e-12);
    assert_true(isnan(info.body_weight_kg) && isnan(info.injection_time_s));
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), 78700 / 7.21043e9, 1e-12);
    refuse_factor(&info, DM_QUANTITY_SUV, "weight", "--body-weight");
}

/* What dcm2niix wrote for that scan, so that the numbers are checked without the data. */
static void test_dcm2niix(void **state)
{
    (void)state;
    dm_pet_info info = read_text(
        "{\"Modality\": \"PT\", \"AcquisitionTime\": \"13:06:28.148000\","
        "\"RadionuclideTotalDose\": 7.21043e+09, \"RadionuclideHalfLife\": 574300,"
        "\"Units\": \"BQML\", \"DecayCorrection\": \"ADMIN\", \"ImageType\": [\"A\", \"B\"]}");
    assert_near(info.injected_mbq, 7210.43, 1e-12);
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), 78700 / 7.21043e9, 1e-12);
    info = read_text(
        "{\"AcquisitionTime\": \"13:05:5.715000\", \"InjectedRadioactivity\": 118.4,"
        "\"InjectedRadioactivityUnits\": \"MBq\", \"TracerRadionuclide\": \"^68^Gallium\","
        "\"Radiopharmaceutical\": \"PSMA-11\", \"Units\": \"BQML\", \"DecayCorrection\": \"NONE\","
        "\"FrameTimesStart\": [0], \"FrameDuration\": [180], \"TimeZero\": \"13:05:05\","
        "\"PatientWeight\": 81.5}");
    assert_string_equal(info.radionuclide, "Ga68");
    assert_string_equal(info.tracer, "PSMA-11");
    assert_near(info.half_life_s, GA68_S, 1e-12);
    assert_near(info.body_weight_kg, 81.5, 0);
    assert_int_equal(info.decay, DM_DECAY_NONE);
    assert_near(info.scan_time_s, 13 * 3600 + 5 * 60 + 5 + 90, 1e-12);
    /* Nuclear medicine objects have the total dose in MBq. */
    info = read_text("{\"Modality\": \"NM\", \"RadionuclideTotalDose\": 7210.43}");
    assert_near(info.injected_mbq, 7210.43, 1e-12);
    /* dcm2niix from 2024-10 on: the number in Bq, the unit MBq. */
    info = read_text("{\"Units\": \"BQML\", \"DecayCorrection\": \"ADMIN\","
                     "\"InjectedRadioactivity\": 118400000, \"InjectedRadioactivityUnits\": "
                     "\"MBq\"}");
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "118.4 MBq", "--injected");
}

static void test_bids(void **state)
{
    (void)state;
    dm_pet_info info = read_text(
        "{\"Units\": \"kBq/mL\", \"TracerName\": \"PSMA-11\", \"TracerRadionuclide\": \"Ga68\","
        "\"InjectedRadioactivity\": 118400, \"InjectedRadioactivityUnits\": \"kBq\","
        "\"TimeZero\": \"10:00:00\", \"InjectionStart\": 0, \"ScanStart\": 3600,"
        "\"FrameTimesStart\": [3600], \"FrameDuration\": [1200], \"ImageDecayCorrected\": true,"
        "\"ImageDecayCorrectionTime\": 3600, \"BodyWeight\": 80, \"InjectedMass\": \"n/a\"}");
    assert_int_equal(info.units, DM_UNITS_KBQML);
    assert_int_equal(info.decay, DM_DECAY_START);
    assert_near(info.injected_mbq, 118.4, 1e-12);
    assert_near(info.injection_time_s, 36000, 0);
    assert_near(info.scan_time_s, 39600, 0);
    assert_near(factor_of(&info, DM_QUANTITY_SUV), 1e3 * 80e3 / (118.4e6 * exp2(-3600 / GA68_S)),
                1e-12);
    /* Zero at the scan's start, correction to the injection 55 min before. */
    info = read_text("{\"TimeZero\": \"10:00:00\", \"InjectionStart\": -3300, \"ScanStart\": 0,"
                     "\"ImageDecayCorrected\": true, \"ImageDecayCorrectionTime\": -3300}");
    assert_int_equal(info.decay, DM_DECAY_INJECTION);
    /* Corrected to neither: only the reference time counts. */
    info = read_text("{\"TimeZero\": \"10:00:00\", \"InjectionStart\": -3300, \"ScanStart\": 0,"
                     "\"ImageDecayCorrected\": true, \"ImageDecayCorrectionTime\": -300}");
    assert_int_equal(info.decay, DM_DECAY_START);
    assert_near(info.scan_time_s - info.injection_time_s, 3000, 0);
    /* Not corrected: the middle of the frame, whose start counts from TimeZero, not ScanStart. */
    info = read_text(
        "{\"TimeZero\": \"10:00:00\", \"InjectionStart\": 0, \"ScanStart\": 3600,"
        "\"FrameTimesStart\": [3660], \"FrameDuration\": [600], \"ImageDecayCorrected\": false}");
    assert_int_equal(info.decay, DM_DECAY_NONE);
    assert_near(info.scan_time_s, 36000 + 3660 + 300, 0);
    /* Relative times without TimeZero are a clock of their own. */
    info = read_text("{\"InjectionStart\": 0, \"ScanStart\": 3600, \"DecayCorrection\": \"START\","
                     "\"AcquisitionTime\": \"11:00:00\"}");
    assert_near(info.scan_time_s - info.injection_time_s, 3600, 0);
    info = read_text("{\"ScanStart\": 3600, \"DecayCorrection\": \"START\"}");
    assert_true(isnan(info.scan_time_s));
}

/* Where a sidecar cannot be taken at its word the value stays unknown, and an option can give it.
 */
static void test_left_open(void **state)
{
    (void)state;
    dm_pet_info info = read_text("{}");
    assert_true(info.units == DM_UNITS_UNKNOWN && info.decay == DM_DECAY_UNKNOWN);
    info =
        read_text("{\"InjectedRadioactivity\": 100, \"PatientWeight\": null, \"Units\": \"n/a\"}");
    assert_true(isnan(info.injected_mbq) && isnan(info.body_weight_kg));
    assert_int_equal(info.units, DM_UNITS_UNKNOWN);
    info = read_text("{\"DecayCorrection\": \"NONE\", \"ImageDecayCorrected\": true}");
    assert_int_equal(info.decay, DM_DECAY_UNKNOWN);
    info = read_text("{\"ImageDecayCorrected\": true}");
    assert_int_equal(info.decay, DM_DECAY_UNKNOWN);
    /* Several frames: a 3D image has no single time. */
    info = read_text("{\"DecayCorrection\": \"NONE\", \"TimeZero\": \"10:00:00\","
                     "\"FrameTimesStart\": [0, 60], \"FrameDuration\": [60, 60]}");
    assert_true(isnan(info.scan_time_s));
    /* Frames counted from the scan's start instead of TimeZero. */
    info = read_text("{\"DecayCorrection\": \"NONE\", \"TimeZero\": \"10:00:00\","
                     "\"ScanStart\": 3600, \"FrameTimesStart\": [0], \"FrameDuration\": [60]}");
    assert_true(isnan(info.scan_time_s));
    info = read_text("{\"TracerRadionuclide\": \"Ge68 generator of some kind\"}");
    assert_string_equal(info.radionuclide, "Ge68 generator ");
    assert_true(isnan(info.half_life_s));
}

static void test_dicom_times(void **state)
{
    (void)state;
    dm_pet_info info = read_text(
        "{\"DecayCorrection\": \"START\", \"RadiopharmaceuticalStartTime\": \"092200.00\","
        "\"SeriesTime\": \"102000\", \"AcquisitionTime\": \"10:25:30\"}");
    assert_near(info.injection_time_s, 9 * 3600 + 22 * 60, 0);
    assert_near(info.scan_time_s, 10 * 3600 + 20 * 60, 0);
    /* A series time after the acquisition is that of a later reconstruction. */
    info = read_text("{\"DecayCorrection\": \"START\", \"SeriesTime\": \"18:00:00\","
                     "\"AcquisitionTime\": \"10:25:30\"}");
    assert_near(info.scan_time_s, 10 * 3600 + 25 * 60 + 30, 0);
    /* Dates only where both have one. */
    info = read_text("{\"DecayCorrection\": \"START\", \"RadiopharmaceuticalStartDateTime\": "
                     "\"20181115092200.00\", \"AcquisitionDateTime\": \"2018-11-16T13:06:00\","
                     "\"AcquisitionTime\": \"13:06:00\"}");
    assert_near(info.scan_time_s - info.injection_time_s, 27 * 3600 + 44 * 60, 0);
    info = read_text("{\"DecayCorrection\": \"START\", \"AcquisitionTime\": \"13:06:00\","
                     "\"AcquisitionDateTime\": \"2018-11-16T13:06:00\"}");
    assert_near(info.scan_time_s, 13 * 3600 + 6 * 60, 0);
    info = read_text("{\"RadiopharmaceuticalStartTime\": \"09:22:00\","
                     "\"AcquisitionDateTime\": \"2018-11-16T13:06:00\"}");
    refuse_factor(&(dm_pet_info){.units = DM_UNITS_BQML,
                                 .decay = DM_DECAY_START,
                                 .injected_mbq = 100,
                                 .residual_mbq = NAN,
                                 .half_life_s = 574300,
                                 .injection_time_s = info.scan_time_s,
                                 .scan_time_s = info.injection_time_s},
                  DM_QUANTITY_UPTAKE, "before the injection", "--scan-time");
}

static void test_units(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        dm_units units;
    } cases[] = {{"Bq/mL", DM_UNITS_BQML},   {"Bq/ml", DM_UNITS_BQML},   {"BQML", DM_UNITS_BQML},
                 {"kBq/mL", DM_UNITS_KBQML}, {"KBQ/ML", DM_UNITS_KBQML}, {"Bq/cm^3", DM_UNITS_BQML},
                 {"SUV", DM_UNITS_SUV},      {"suv", DM_UNITS_SUV},      {"g/ml", DM_UNITS_SUV},
                 {"GML", DM_UNITS_SUV},      {"SUVbw", DM_UNITS_SUV}};
    char text[128];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, "{\"Units\": \"%s\"}", cases[i].text);
        assert_int_equal(read_text(text).units, cases[i].units);
    }
    static const char *const unknown[] = {"CNTS", "MBq/mL", "SUVlbm", "SUL", "CM2ML", "/", "Bq"};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        snprintf(text, sizeof text, "{\"Units\": \"%s\"}", unknown[i]);
        refuse_text(text, DM_ERROR_VALUE, "Units", unknown[i]);
    }
    refuse_text("{\"Units\": \"GML\", \"SUVType\": \"LBM\"}", DM_ERROR_VALUE, "SUVType", "LBM");
}

static void test_bad_sidecars(void **state)
{
    (void)state;
    refuse_text("{\"Units\": \"Bq/mL\", ", DM_ERROR_FORMAT, "line 1", "");
    refuse_text("", DM_ERROR_FORMAT, "line", "");
    refuse_text("[1]", DM_ERROR_FORMAT, "object", "");
    refuse_text("{\"InjectedRadioactivity\": \"118\"}", DM_ERROR_VALUE, "InjectedRadioactivity",
                "118");
    refuse_text("{\"InjectedRadioactivity\": -5, \"InjectedRadioactivityUnits\": \"MBq\"}",
                DM_ERROR_VALUE, "InjectedRadioactivity", "-5");
    refuse_text("{\"RadionuclideTotalDose\": -1.5}", DM_ERROR_VALUE, "RadionuclideTotalDose",
                "-1.5");
    refuse_text("{\"InjectedRadioactivityUnits\": \"apples\"}", DM_ERROR_VALUE,
                "InjectedRadioactivityUnits", "apples");
    refuse_text("{\"PatientWeight\": [80]}", DM_ERROR_VALUE, "PatientWeight", "[80]");
    refuse_text("{\"Units\": 3}", DM_ERROR_VALUE, "Units", "3");
    refuse_text("{\"DecayCorrection\": \"MAYBE\"}", DM_ERROR_VALUE, "DecayCorrection", "MAYBE");
    refuse_text("{\"ImageDecayCorrected\": \"yes\"}", DM_ERROR_VALUE, "ImageDecayCorrected", "yes");
    refuse_text("{\"TimeZero\": \"25:00:00\"}", DM_ERROR_VALUE, "TimeZero", "25:00:00");
    refuse_text("{\"AcquisitionTime\": \"3600\"}", DM_ERROR_VALUE, "AcquisitionTime", "3600");
    refuse_text("{\"AcquisitionTime\": 130628.1}", DM_ERROR_VALUE, "AcquisitionTime", "130628.1");
    refuse_text("{\"FrameDuration\": [1, \"x\"]}", DM_ERROR_VALUE, "FrameDuration", "x");
    refuse_text("{\"RadionuclideHalfLife\": -1}", DM_ERROR_VALUE, "RadionuclideHalfLife", "-1");
}

static void test_no_sidecar(void **state)
{
    (void)state;
    static const char *const names[] = {"/nonexistent/a.nii.gz", "a_dose_of_no_one.nii.zst",
                                        "x.mha", ".nii", ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        dm_pet_info info;
        memset(&info, 0x5a, sizeof info);
        assert_int_equal(dm_pet_info_read(names[i], &info, NULL), DM_OK);
        assert_true(info.units == DM_UNITS_UNKNOWN && info.decay == DM_DECAY_UNKNOWN);
        assert_true(isnan(info.body_weight_kg) && isnan(info.injected_mbq) &&
                    isnan(info.residual_mbq) && isnan(info.half_life_s) &&
                    isnan(info.injection_time_s) && isnan(info.scan_time_s));
        assert_true(!info.radionuclide[0] && !info.tracer[0] && !info.sidecar[0]);
    }
}

static void test_sidecar_names(void **state)
{
    (void)state;
    static const char *const endings[] = {"nii", "nii.gz", "nii.zst"};
    write_sidecar("{\"Units\": \"SUV\"}");
    for (size_t i = 0; i < 3; i++) {
        char path[96];
        dm_pet_info info;
        snprintf(path, sizeof path, "%s/sub-1_pet.%s", folder, endings[i]);
        assert_int_equal(dm_pet_info_read(path, &info, NULL), DM_OK);
        assert_int_equal(info.units, DM_UNITS_SUV);
    }
}

static void test_factor_formulas(void **state)
{
    (void)state;
    double share = exp2(-3600 / GA68_S);
    dm_pet_info info = ga68(DM_UNITS_BQML, DM_DECAY_INJECTION);
    assert_near(factor_of(&info, DM_QUANTITY_SUV), 80e3 / 118.4e6, 1e-14);
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), 78.7e3 / 118.4e6, 1e-14);
    info = ga68(DM_UNITS_BQML, DM_DECAY_START);
    assert_near(factor_of(&info, DM_QUANTITY_SUV), 80e3 / (118.4e6 * share), 1e-14);
    info.decay = DM_DECAY_NONE;
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), 78.7e3 / (118.4e6 * share), 1e-14);
    /* The wrong reference time costs a factor 1.85 at 60 min. */
    double start = factor_of(&info, DM_QUANTITY_UPTAKE);
    info.decay = DM_DECAY_INJECTION;
    assert_near(start / factor_of(&info, DM_QUANTITY_UPTAKE), 1.8482, 1e-4);
    info.units = DM_UNITS_KBQML;
    assert_near(factor_of(&info, DM_QUANTITY_SUV), 1e3 * 80e3 / 118.4e6, 1e-14);
    info.residual_mbq = 18.4;
    assert_near(factor_of(&info, DM_QUANTITY_SUV), 1e3 * 80e3 / 100e6, 1e-14);
    info = ga68(DM_UNITS_SUV, DM_DECAY_UNKNOWN);
    assert_near(factor_of(&info, DM_QUANTITY_SUV), 1, 0);
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), 78.7 / 80, 1e-15);
    /* A uniform body has SUV 1: C = A / m. */
    info = ga68(DM_UNITS_BQML, DM_DECAY_NONE);
    assert_near(118.4e6 * share / 80e3 * factor_of(&info, DM_QUANTITY_SUV), 1, 1e-14);
}

static void test_only_what_is_needed(void **state)
{
    (void)state;
    dm_pet_info info;
    dm_pet_info_init(&info);
    info.units = DM_UNITS_SUV;
    assert_near(factor_of(&info, DM_QUANTITY_SUV), 1, 0);
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "weight", "--body-weight KG");
    info.units = DM_UNITS_BQML;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "injected activity", "--injected MBQ");
    info.injected_mbq = 100;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "decay-corrected",
                  "--decay-correction injection|start|none");
    refuse_factor(&info, DM_QUANTITY_SUV, "weight", "--body-weight KG");
    info.decay = DM_DECAY_INJECTION;
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), 78700 / 1e8, 1e-14);
    info.decay = DM_DECAY_START;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "half-life", "--half-life S");
    info.half_life_s = GA68_S;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "injection time", "--injection-time");
    info.injection_time_s = 0;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "refers to", "--scan-time");
    info.scan_time_s = GA68_S;
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), 2 * 78700 / 1e8, 1e-14);
    info.units = DM_UNITS_UNKNOWN;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "unit", "--units suv|bqml|kbqml");
    double factor = 1;
    assert_int_equal(dm_pet_factor(&info, DM_QUANTITY_HU, &factor, NULL), DM_ERROR_UNSUPPORTED);
    assert_true(isnan(factor));
}

static void test_factor_ranges(void **state)
{
    (void)state;
    dm_pet_info info = ga68(DM_UNITS_BQML, DM_DECAY_START);
    static const double bad_weights[] = {0, -3, 0.9, 501, INFINITY};
    for (size_t i = 0; i < 5; i++) {
        info.body_weight_kg = bad_weights[i];
        refuse_factor(&info, DM_QUANTITY_SUV, "kg", "--body-weight");
    }
    info = ga68(DM_UNITS_BQML, DM_DECAY_START);
    static const double bad_activities[] = {0, -1, INFINITY, 118.4e6, 118.4e-6};
    for (size_t i = 0; i < 5; i++) {
        info.injected_mbq = bad_activities[i];
        refuse_factor(&info, DM_QUANTITY_UPTAKE, "MBq", "--injected");
    }
    info = ga68(DM_UNITS_BQML, DM_DECAY_START);
    info.residual_mbq = 118.4;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "118.4", "--residual");
    info.residual_mbq = -1;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "-1", "--residual");
    info = ga68(DM_UNITS_BQML, DM_DECAY_START);
    info.half_life_s = 0;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "half-life 0", "--half-life");
    info = ga68(DM_UNITS_BQML, DM_DECAY_START);
    info.injection_time_s = 100000; /* not a time of day: no midnight in between */
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "before the injection", "--injection-time");
    info.injection_time_s = 36000;
    info.scan_time_s = 36000 + 7.1 * GA68_S;
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "7.1 half-lives", "--scan-time");
    info.scan_time_s = 32400; /* reads as 23 h later */
    refuse_factor(&info, DM_QUANTITY_UPTAKE, "half-lives", "dates");
}

static void test_midnight(void **state)
{
    (void)state;
    dm_pet_info info = ga68(DM_UNITS_BQML, DM_DECAY_START);
    double reference = factor_of(&info, DM_QUANTITY_UPTAKE);
    dm_error err = {0};
    assert_int_equal(dm_time_parse("23:40:00", &info.injection_time_s, &err), DM_OK);
    assert_int_equal(dm_time_parse("00:40:00", &info.scan_time_s, &err), DM_OK);
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), reference, 1e-14);
    assert_int_equal(dm_time_parse("2019-12-31T23:40:00", &info.injection_time_s, &err), DM_OK);
    assert_int_equal(dm_time_parse("2020-01-01T00:40:00", &info.scan_time_s, &err), DM_OK);
    assert_near(factor_of(&info, DM_QUANTITY_UPTAKE), reference, 1e-14);
}

static void test_time_parse(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        double seconds;
    } good[] = {{"13:06:28.148", 47188.148},
                {"00:00:00", 0},
                {"9:22", 33720},
                {" 13:05:5.715000 ", 47105.715},
                {"23:59:60", 86400},
                {"3600", 3600},
                {"-90.5", -90.5},
                {"92200s", 92200},
                {"092200 ", NAN},
                {"1970-01-01T00:00:00", 0},
                {"2018-11-15T09:22:00", 1542273720},
                {"2018-11-15 09:22:00.5Z", 1542273720.5},
                {"2000-02-29T00:00:00", 951782400},
                {"1900-01-01T00:00:00", -2208988800.0}};
    static const char *const bad[] = {"",
                                      "noon",
                                      "24:00:00",
                                      "12:60:00",
                                      "12:00:61",
                                      "12:0a",
                                      "2018-13-01T00:00:00",
                                      "1:2:3:4",
                                      "12:",
                                      "2019-02-29T00:00:00",
                                      "1e3",
                                      "12,5",
                                      "2018-11-15",
                                      "inf",
                                      "nan",
                                      "12:00:00+01:00",
                                      "--5",
                                      "0x10",
                                      "99999999999999999999",
                                      "2018-1-15T09:22:00",
                                      "2018-11-31T00:00:00"};
    double seconds;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        dm_error err = {0};
        dm_status status = dm_time_parse(good[i].text, &seconds, &err);
        if (isnan(good[i].seconds)) {
            assert_int_equal(status, DM_ERROR_VALUE);
            assert_non_null(strstr(err.what, "HHMMSS"));
            continue;
        }
        assert_int_equal(status, DM_OK);
        assert_true(fabs(seconds - good[i].seconds) < 1e-6);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dm_error err = {0};
        seconds = -7;
        if (dm_time_parse(bad[i], &seconds, &err) != DM_ERROR_VALUE)
            print_error("'%s' was taken as %g\n", bad[i], seconds);
        assert_int_equal(err.status, DM_ERROR_VALUE);
        assert_non_null(strstr(err.what, bad[i]));
        assert_non_null(strstr(err.remedy, "HH:MM:SS"));
        assert_true(seconds == -7);
    }
}

static void test_half_lives(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        double seconds;
    } cases[] = {/* shared/data/decay, which is ICRP 107's data */
                 {"F18", 109.77 * 60},
                 {"Ga68", 67.71 * 60},
                 {"I131", 8.0207 * 86400},
                 {"Lu177", 6.647 * 86400},
                 {"Tb161", 6.906 * 86400},
                 {"Y90", 64.1 * 3600},
                 {"Ac225", 10.0 * 86400},
                 /* spellings */
                 {"68Ga", GA68_S},
                 {"Ga-68", GA68_S},
                 {"[68Ga]", GA68_S},
                 {"^68^Gallium", GA68_S},
                 {"Gallium-68", GA68_S},
                 {"gallium 68", GA68_S},
                 {"GA68", GA68_S},
                 {"^18^Fluorine", 6586.2},
                 {"Tc99m", 21654},
                 {"99mTc", 21654},
                 {"99MTC", 21654},
                 {"^99m^Technetium", 21654},
                 {"Technetium-99m", 21654},
                 {"82Rb", 76.38},
                 {"15O", 122.24},
                 {"C-11", 1223.4},
                 {"N13", 597.9},
                 {"64Cu", 45720},
                 {"89Zr", 282276},
                 {"In111", 242326.08},
                 {"124I", 360806.4},
                 {"Sc44", 14292},
                 {"86Y", 53064},
                 {"Co55", 63108}};
    static const char *const unknown[] = {"",      "68",     "Ga",
                                          "Ga69",  "Tc99",   "Y90m",
                                          "Ga6 8", "68Ga68", "[68Ga]Ga-PSMA-11",
                                          "Xx11",  "F18x",   "4294967364Ga",
                                          "Ga68/2"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!(fabs(dm_half_life_s(cases[i].name) / cases[i].seconds - 1) < 1e-12))
            print_error("%s: %g\n", cases[i].name, dm_half_life_s(cases[i].name));
        assert_near(dm_half_life_s(cases[i].name), cases[i].seconds, 1e-12);
    }
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        assert_true(isnan(dm_half_life_s(unknown[i])));
    assert_true(isnan(dm_half_life_s(NULL)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_real_spect_sidecar),
        cmocka_unit_test(test_dcm2niix),
        cmocka_unit_test(test_bids),
        cmocka_unit_test(test_left_open),
        cmocka_unit_test(test_dicom_times),
        cmocka_unit_test(test_units),
        cmocka_unit_test(test_bad_sidecars),
        cmocka_unit_test(test_no_sidecar),
        cmocka_unit_test(test_sidecar_names),
        cmocka_unit_test(test_factor_formulas),
        cmocka_unit_test(test_only_what_is_needed),
        cmocka_unit_test(test_factor_ranges),
        cmocka_unit_test(test_midnight),
        cmocka_unit_test(test_time_parse),
        cmocka_unit_test(test_half_lives),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
