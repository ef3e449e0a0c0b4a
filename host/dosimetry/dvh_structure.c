/* SPDX-License-Identifier: Apache-2.0 */
/* One structure: its doses are sorted exactly, as integers whose order is that of the floats. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "dosimetry/dvh.h"
#include "kernels/dvh_bin.h"

#define DIGIT_BITS 11
#define DIGITS 3
#define BUCKETS ((size_t)1 << DIGIT_BITS)

/* IEEE 754 order as unsigned order: negative numbers are inverted, positive ones get the top bit.
 * Adding zero makes -0 and 0 one. */
static uint32_t float_key(float value)
{
    uint32_t bits;
    value += 0.0f;
    memcpy(&bits, &value, sizeof bits);
    return bits ^ (bits & 0x80000000u ? 0xffffffffu : 0x80000000u);
}

static double key_dose(uint32_t key)
{
    float value;
    uint32_t bits = key ^ (key & 0x80000000u ? 0x80000000u : 0xffffffffu);
    memcpy(&value, &bits, sizeof value);
    return (double)value;
}

/* Least significant digit first; a digit that all keys share costs nothing. Returns whichever array
 * holds the result. counts: [DIGITS][BUCKETS], zero. */
static uint32_t *sort_keys(uint32_t *keys, uint32_t *other, size_t n, size_t *counts)
{
    for (size_t i = 0; i < n; i++)
        for (unsigned d = 0; d < DIGITS; d++)
            counts[d * BUCKETS + (keys[i] >> (d * DIGIT_BITS) & (BUCKETS - 1))]++;
    for (unsigned d = 0; d < DIGITS; d++) {
        size_t *count = counts + d * BUCKETS, start = 0;
        if (count[keys[0] >> (d * DIGIT_BITS) & (BUCKETS - 1)] == n)
            continue;
        for (size_t b = 0; b < BUCKETS; b++) {
            size_t here = count[b];
            count[b] = start;
            start += here;
        }
        for (size_t i = 0; i < n; i++)
            other[count[keys[i] >> (d * DIGIT_BITS) & (BUCKETS - 1)]++] = keys[i];
        uint32_t *sorted = other;
        other = keys;
        keys = sorted;
    }
    return keys;
}

/* Keys in the order of the runs, and the mean by a compensated sum (Neumaier) in that order. */
static bool gather(const float *dose, const label_structure *structure, uint32_t *keys,
                   double *mean, uint64_t *bad)
{
    double sum = 0, lost = 0;
    size_t n = 0;
    for (size_t r = 0; r < structure->n_runs; r++) {
        const float *run = dose + structure->runs[r].start;
        for (size_t i = 0; i < structure->runs[r].length; i++) {
            double value = (double)run[i], next = sum + value;
            if (!isfinite(run[i])) {
                *bad = structure->runs[r].start + i;
                return false;
            }
            lost += fabs(sum) >= fabs(value) ? (sum - next) + value : (value - next) + sum;
            sum = next;
            keys[n++] = float_key(run[i]);
        }
    }
    *mean = (sum + lost) / (double)n;
    return true;
}

/* The lowest dose of the hottest `voxels`, a fraction allowed (dvh.h). ascending: n keys. */
static double hottest(const uint32_t *ascending, size_t n, double voxels)
{
    if (voxels <= 1)
        return key_dose(ascending[n - 1]);
    if (voxels >= (double)n)
        return key_dose(ascending[0]);
    size_t k = (size_t)voxels;
    double above = key_dose(ascending[n - k]), below = key_dose(ascending[n - k - 1]);
    return above + (voxels - (double)k) * (below - above);
}

static double hottest_percent(const uint32_t *ascending, size_t n, double percent)
{
    return hottest(ascending, n, (double)n * percent / 100);
}

/* Share of the voxels with at least this dose, compared in the map's own precision, so that a map
 * of 0.7f has V0.7 = 100 %. */
static double percent_at_least(const uint32_t *ascending, size_t n, double threshold)
{
    uint32_t key = float_key(threshold > FLT_MAX ? INFINITY : (float)threshold);
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ascending[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    return 100 * (double)(n - low) / (double)n;
}

static void statistics(const uint32_t *ascending, size_t n, dm_structure_dose *out)
{
    out->minimum = key_dose(ascending[0]);
    out->maximum = key_dose(ascending[n - 1]);
    out->d2 = hottest_percent(ascending, n, 2);
    out->d50 = hottest_percent(ascending, n, 50);
    out->d95 = hottest_percent(ascending, n, 95);
    out->d98 = hottest_percent(ascending, n, 98);
    /* An affine in float32 must not put a structure of exactly 2 cm3 below it. */
    if (out->volume_cm3 * (1 + 1e-6) >= 2)
        out->d2cc = hottest(ascending, n, 2 / out->volume_cm3 * (double)n);
}

static bool histogram(const uint32_t *ascending, size_t n, dm_structure_dose *out)
{
    double width = dvh_bin_width(out->maximum);
    uint32_t bins = dvh_bin_count(out->maximum, width);
    uint64_t *counts = array_zero(bins, sizeof *counts);
    if (!counts)
        return false;
    for (size_t i = 0; i < n; i++)
        counts[dvh_bin((float)key_dose(ascending[i]), width, bins)]++;
    out->bin_width = width;
    out->bins = bins;
    out->histogram = counts;
    return true;
}

dm_status dvh_structure_fill(const float *dose, const label_structure *structure,
                             const double *thresholds, size_t n_thresholds, dm_structure_dose *out,
                             double *v_percent, uint64_t *bad)
{
    size_t n = structure->voxels;
    dm_status status = DM_ERROR_MEMORY;
    uint32_t *keys = array_alloc(n, sizeof *keys), *other = array_alloc(n, sizeof *other);
    size_t *counts = array_zero(DIGITS * BUCKETS, sizeof *counts);
    if (!keys || !other || !counts)
        goto done;
    status = DM_ERROR_VALUE;
    if (!gather(dose, structure, keys, &out->mean, bad))
        goto done;
    const uint32_t *ascending = sort_keys(keys, other, n, counts);
    statistics(ascending, n, out);
    for (size_t i = 0; i < n_thresholds; i++)
        v_percent[i] = percent_at_least(ascending, n, thresholds[i]);
    status = histogram(ascending, n, out) ? DM_OK : DM_ERROR_MEMORY;
done:
    free(keys);
    free(other);
    free(counts);
    return status;
}
