/* SPDX-License-Identifier: Apache-2.0 */
/* Dx and D2cc as points of the volume curve (dvh.h). */
#include "dosimetry/dvh_statistics.h"

#include <assert.h>
#include <float.h>
#include <math.h>

#include "base/error.h"
#include "kernels/dvh_bin.h"

/* Between two voxels next to each other in the order, or one voxel twice. */
typedef struct curve_point {
    size_t above, below;
    double part; /* of the way from above to below */
} curve_point;

/* The lowest dose of the hottest `voxels` of n, a fraction allowed. */
static curve_point hottest(double voxels, size_t n)
{
    if (voxels <= 1)
        return (curve_point){0, 0, 0};
    if (voxels >= (double)n)
        return (curve_point){n - 1, n - 1, 0};
    size_t k = (size_t)voxels;
    return (curve_point){k - 1, k, voxels - (double)k};
}

enum { D2, D50, D95, D98, D2CC, POINTS };
static_assert(DVH_RANKS == 2 * POINTS, "two ranks for each point");

/* An affine in float32 must not put a structure of exactly 2 cm3 below it. */
static bool has_d2cc(const dm_structure_dose *s)
{
    return s->volume_cm3 * (1 + 1e-6) >= 2;
}

static void curve_points(const dm_structure_dose *s, curve_point point[POINTS])
{
    static const double percent[] = {[D2] = 2, [D50] = 50, [D95] = 95, [D98] = 98};
    size_t n = s->voxels;
    for (int i = D2; i <= D98; i++)
        point[i] = hottest((double)n * percent[i] / 100, n);
    point[D2CC] = hottest(has_d2cc(s) ? 2 / s->volume_cm3 * (double)n : 0, n);
}

void dvh_ranks(const dm_structure_dose *s, size_t rank[DVH_RANKS])
{
    curve_point point[POINTS];
    curve_points(s, point);
    for (size_t i = 0; i < POINTS; i++) {
        rank[2 * i] = point[i].above;
        rank[2 * i + 1] = point[i].below;
    }
}

void dvh_set_statistics(const uint32_t key[DVH_RANKS], dm_structure_dose *s)
{
    curve_point point[POINTS];
    double dose[POINTS];
    curve_points(s, point);
    for (size_t i = 0; i < POINTS; i++) {
        double above = dvh_key_dose(key[2 * i]), below = dvh_key_dose(key[2 * i + 1]);
        dose[i] = above + point[i].part * (below - above);
    }
    s->d2 = dose[D2];
    s->d50 = dose[D50];
    s->d95 = dose[D95];
    s->d98 = dose[D98];
    if (has_d2cc(s))
        s->d2cc = dose[D2CC];
}

uint32_t dvh_threshold_key(double threshold)
{
    return dvh_key(threshold > FLT_MAX ? INFINITY : (float)threshold);
}

double dvh_percent(size_t at_least, size_t n)
{
    return 100 * (double)at_least / (double)n;
}

bool dvh_make_bins(dm_structure_dose *s)
{
    double width = dvh_bin_width(s->maximum);
    uint32_t bins = dvh_bin_count(s->maximum, width);
    s->histogram = array_zero(bins, sizeof *s->histogram);
    if (!s->histogram)
        return false;
    s->bin_width = width;
    s->bins = bins;
    return true;
}
