/* SPDX-License-Identifier: Apache-2.0 */
/* One structure: its doses are sorted exactly, as integers whose order is that of the floats. */
#include <stdlib.h>

#include "base/error.h"
#include "dosimetry/dvh.h"
#include "dosimetry/dvh_statistics.h"
#include "kernels/dvh_bin.h"

#define DIGIT_BITS 11
#define DIGITS 3
#define BUCKETS ((size_t)1 << DIGIT_BITS)

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

/* Keys in the order of the runs, and the mean in that order. */
static bool gather(const float *dose, const label_structure *structure, uint32_t *keys,
                   double *mean, uint64_t *bad)
{
    dvh_sum sum = {0, 0};
    size_t n = 0;
    for (size_t r = 0; r < structure->n_runs; r++) {
        const float *run = dose + structure->runs[r].start;
        for (size_t i = 0; i < structure->runs[r].length; i++) {
            if (!dvh_is_finite(run[i])) {
                *bad = structure->runs[r].start + i;
                return false;
            }
            dvh_sum_add(&sum, (double)run[i]);
            keys[n++] = dvh_key(run[i]);
        }
    }
    *mean = (sum.sum + sum.lost) / (double)n;
    return true;
}

/* How many of the n keys are below this one. */
static size_t keys_below(const uint32_t *ascending, size_t n, uint32_t key)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ascending[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void statistics(const uint32_t *ascending, size_t n, dm_structure_dose *out)
{
    size_t rank[DVH_RANKS];
    uint32_t key[DVH_RANKS];
    dvh_ranks(out, rank);
    for (size_t i = 0; i < DVH_RANKS; i++)
        key[i] = ascending[n - 1 - rank[i]];
    dvh_set_statistics(key, out);
    out->minimum = dvh_key_dose(ascending[0]);
    out->maximum = dvh_key_dose(ascending[n - 1]);
}

static bool histogram(const uint32_t *ascending, size_t n, dm_structure_dose *out)
{
    if (!dvh_make_bins(out))
        return false;
    uint64_t *counts = (uint64_t *)out->histogram; /* ours until it is given out */
    for (size_t i = 0; i < n; i++)
        counts[dvh_bin((float)dvh_key_dose(ascending[i]), out->bin_width, (uint32_t)out->bins)]++;
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
        v_percent[i] =
            dvh_percent(n - keys_below(ascending, n, dvh_threshold_key(thresholds[i])), n);
    status = histogram(ascending, n, out) ? DM_OK : DM_ERROR_MEMORY;
done:
    free(keys);
    free(other);
    free(counts);
    return status;
}
