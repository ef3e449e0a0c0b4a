/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The statistics of a structure from a few of its sorted doses. The CPU sorts all of them, a device
 * selects these few: what is asked for, and what is made of it, is here.
 */
#ifndef DOSEMAP_DOSIMETRY_DVH_STATISTICS_H
#define DOSEMAP_DOSIMETRY_DVH_STATISTICS_H

#include "dosemap.h"
#include "kernels/dvh_value.h"

/* Which voxels decide the statistics, 0 being the hottest. s: voxels (at least one) and volume. */
void dvh_ranks(const dm_structure_dose *s, size_t rank[DVH_RANKS]);

/* D2, D50, D95, D98 and D2cc from the keys of the voxels that dvh_ranks named. */
void dvh_set_statistics(const uint32_t key[DVH_RANKS], dm_structure_dose *s);

/* Doses are compared with a threshold in the map's own precision, so that a map of 0.7f has
 * V0.7 = 100 %. */
uint32_t dvh_threshold_key(double threshold);
/* Vx of n voxels, of which `at_least` have at least the threshold. */
double dvh_percent(size_t at_least, size_t n);

/* Bin width, bins and empty bins, from the maximum. False if there is no memory for them. */
bool dvh_make_bins(dm_structure_dose *s);

#endif
