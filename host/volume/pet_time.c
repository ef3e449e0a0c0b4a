/* SPDX-License-Identifier: Apache-2.0 */
/* Times as people and sidecars write them. Read without strtod, which takes the decimal comma of
 * the caller's locale for granted. */
#include <ctype.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"
#include "dosemap.h"

/* `least` to `most` digits. */
static bool read_digits(const char **text, int least, int most, int64_t *value)
{
    int n = 0;
    for (*value = 0; n < most && isdigit((unsigned char)**text); n++)
        *value = *value * 10 + (*(*text)++ - '0');
    return n >= least && !isdigit((unsigned char)**text);
}

/* ".148", or nothing. */
static double read_fraction(const char **text)
{
    double value = 0, unit = 0.1;
    if (**text != '.')
        return 0;
    for (++*text; isdigit((unsigned char)**text); ++*text, unit /= 10)
        value += unit * (**text - '0');
    return value;
}

/* H:MM[:SS[.fff]]; dcm2niix drops the leading zero of the seconds. */
static bool read_time_of_day(const char **text, double *seconds)
{
    int64_t h, m, s = 0;
    if (!read_digits(text, 1, 2, &h) || *(*text)++ != ':' || !read_digits(text, 1, 2, &m))
        return false;
    if (**text == ':') {
        ++*text;
        if (!read_digits(text, 1, 2, &s))
            return false;
    }
    *seconds = (double)(h * 3600 + m * 60 + s) + read_fraction(text);
    return h < 24 && m < 60 && s < 61; /* 60: a leap second */
}

/* Days since 1970-01-01 in the Gregorian calendar, counting years from March so that the leap day
 * is the last one. */
static int64_t days_since_epoch(int64_t year, int64_t month, int64_t day)
{
    year -= month <= 2;
    int64_t era = year / 400, year_of_era = year % 400;
    int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
           719468;
}

/* YYYY-MM-DDTHH:MM:SS[.fff][Z]. */
static bool read_date_time(const char **text, double *seconds)
{
    static const int month_days[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int64_t year, month, day;
    double time;
    if (!read_digits(text, 4, 4, &year) || *(*text)++ != '-' || !read_digits(text, 2, 2, &month) ||
        *(*text)++ != '-' || !read_digits(text, 2, 2, &day))
        return false;
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (year < 1 || month < 1 || month > 12 || day < 1 || day > month_days[month - 1] ||
        (month == 2 && day == 29 && !leap))
        return false;
    if (**text != 'T' && **text != ' ')
        return false;
    ++*text;
    if (!read_time_of_day(text, &time))
        return false;
    *text += **text == 'Z';
    *seconds = (double)days_since_epoch(year, month, day) * 86400 + time;
    return true;
}

/* [-]digits[.fff][s] */
static bool read_seconds(const char **text, double *seconds, bool *explicit_unit)
{
    bool negative = **text == '-';
    int64_t whole;
    *text += negative;
    if (!read_digits(text, 1, 15, &whole))
        return false;
    *seconds = (double)whole + read_fraction(text);
    if (negative)
        *seconds = -*seconds;
    *explicit_unit = **text == 's';
    *text += *explicit_unit;
    return true;
}

/* DICOM writes 09:22:00 as 092200, which as seconds would be a day and a half. */
static bool may_be_dicom_time(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    return digits == 6 && text[0] <= '2' && text[2] < '6' && text[4] < '6';
}

dm_status dm_time_parse(const char *text, double *seconds, dm_error *err)
{
    static const char forms[] =
        "write HH:MM:SS, YYYY-MM-DDTHH:MM:SS or a number of seconds such as 3600";
    bool explicit_unit = false, ok;
    double value = 0;
    const char *c = text + strspn(text, " \t");
    if (strchr(c, ':'))
        ok = strchr(c + (*c == '-'), '-') ? read_date_time(&c, &value)
                                          : read_time_of_day(&c, &value);
    else
        ok = read_seconds(&c, &value, &explicit_unit);
    c += strspn(c, " \t");
    if (!ok || *c)
        return error_set(err, DM_ERROR_VALUE, NULL, forms, "'%s' is not a time", text);
    if (!strchr(text, ':') && !explicit_unit && may_be_dicom_time(text + strspn(text, " \t")))
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "write a time of day as HH:MM:SS, or seconds with an s behind them",
                         "'%s' may be a time of day (HHMMSS) or a number of seconds", text);
    *seconds = value;
    return DM_OK;
}
