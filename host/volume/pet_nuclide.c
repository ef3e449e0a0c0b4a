/* SPDX-License-Identifier: Apache-2.0 */
/* Half-lives of ICRP Publication 107 (2008), and the spellings of a radionuclide: BIDS has "Ga68",
 * DICOM (context group 4020) "^68^Gallium", papers "68Ga", "Ga-68" and "[68Ga]". */
#include "volume/pet_nuclide.h"

#include <ctype.h>
#include <math.h>
#include <string.h>
#include <strings.h>

#include "dosemap.h"

#define MINUTES 60.0
#define HOURS 3600.0
#define DAYS 86400.0

static const nuclide nuclides[] = {
    {"C", "Carbon", 11, false, 20.39 * MINUTES},
    {"N", "Nitrogen", 13, false, 9.965 * MINUTES},
    {"O", "Oxygen", 15, false, 122.24},
    {"F", "Fluorine", 18, false, 109.77 * MINUTES},
    {"Sc", "Scandium", 43, false, 3.891 * HOURS},
    {"Sc", "Scandium", 44, false, 3.97 * HOURS},
    {"Co", "Cobalt", 55, false, 17.53 * HOURS},
    {"Cu", "Copper", 61, false, 3.333 * HOURS},
    {"Cu", "Copper", 64, false, 12.700 * HOURS},
    {"Ga", "Gallium", 67, false, 3.2612 * DAYS},
    {"Ga", "Gallium", 68, false, 67.71 * MINUTES},
    {"Rb", "Rubidium", 82, false, 1.273 * MINUTES},
    {"Y", "Yttrium", 86, false, 14.74 * HOURS},
    {"Zr", "Zirconium", 89, false, 78.41 * HOURS},
    {"Y", "Yttrium", 90, false, 64.10 * HOURS},
    {"Tc", "Technetium", 99, true, 6.015 * HOURS},
    {"In", "Indium", 111, false, 2.8047 * DAYS},
    {"I", "Iodine", 123, false, 13.27 * HOURS},
    {"I", "Iodine", 124, false, 4.1760 * DAYS},
    {"I", "Iodine", 131, false, 8.02070 * DAYS},
    {"Tb", "Terbium", 152, false, 17.5 * HOURS},
    {"Tb", "Terbium", 161, false, 6.906 * DAYS},
    {"Lu", "Lutetium", 177, false, 6.647 * DAYS},
    {"Ac", "Actinium", 225, false, 10.0 * DAYS},
};

/* One run of digits and one of letters, in either order; an m behind the digits that does not begin
 * a symbol ("99mTc", "Tc99m", but not "26Mg") marks a metastable state. */
static bool split(const char *text, char letters[24], unsigned *mass, bool *metastable)
{
    size_t n = 0;
    unsigned digit_runs = 0, letter_runs = 0;
    char before = ' ';
    *mass = 0;
    *metastable = false;
    for (const char *c = text; *c; before = *c++) {
        if (isdigit((unsigned char)*c)) {
            digit_runs += !isdigit((unsigned char)before);
            *mass = *mass * 10 + (unsigned)(*c - '0');
            if (*mass > 999)
                return false;
        } else if (isalpha((unsigned char)*c)) {
            if (isdigit((unsigned char)before) && tolower(*c) == 'm' &&
                !islower((unsigned char)c[1])) {
                *metastable = true;
                continue;
            }
            letter_runs += n == 0 || !isalpha((unsigned char)before);
            if (n == 23)
                return false;
            letters[n++] = *c;
        } else if (!strchr(" ^-_[]()", *c)) {
            return false;
        }
    }
    letters[n] = '\0';
    return digit_runs == 1 && letter_runs == 1;
}

const nuclide *nuclide_find(const char *text)
{
    char letters[24];
    unsigned mass;
    bool metastable;
    if (!text || !split(text, letters, &mass, &metastable))
        return NULL;
    for (size_t i = 0; i < sizeof nuclides / sizeof *nuclides; i++) {
        const nuclide *n = &nuclides[i];
        if (n->mass == mass && n->metastable == metastable &&
            (strcasecmp(letters, n->symbol) == 0 || strcasecmp(letters, n->element) == 0))
            return n;
    }
    return NULL;
}

double dm_half_life_s(const char *radionuclide)
{
    const nuclide *n = nuclide_find(radionuclide);
    return n ? n->half_life_s : NAN;
}
