/* SPDX-License-Identifier: Apache-2.0 */
/* How DVHs order doses and add them up: the same keys and sums on every backend. */
#ifndef DOSEMAP_KERNELS_DVH_VALUE_H
#define DOSEMAP_KERNELS_DVH_VALUE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels/dvh_bin.h" /* DM_SHARED_FN */

/* Voxels of a structure, by their place in the order of doses, that decide its statistics: two for
 * each of D2, D50, D95, D98 and D2cc (dosimetry/dvh_statistics.h). */
#define DVH_RANKS 10

/* IEEE 754 order as unsigned order: negative numbers are inverted, positive ones get the top bit.
 * Adding zero makes -0 and 0 one. */
DM_SHARED_FN uint32_t dvh_key(float dose)
{
    uint32_t bits;
    dose += 0.0f;
    memcpy(&bits, &dose, sizeof bits);
    return bits ^ (bits & 0x80000000u ? 0xffffffffu : 0x80000000u);
}

DM_SHARED_FN double dvh_key_dose(uint32_t key)
{
    float dose;
    uint32_t bits = key ^ (key & 0x80000000u ? 0x80000000u : 0xffffffffu);
    memcpy(&dose, &bits, sizeof dose);
    return (double)dose;
}

DM_SHARED_FN int dvh_is_finite(float dose)
{
    uint32_t bits;
    memcpy(&bits, &dose, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

/* A compensated sum (Neumaier 1974): what each addition rounds away is added up beside it. */
typedef struct dvh_sum {
    double sum, lost;
} dvh_sum;

DM_SHARED_FN void dvh_sum_add(dvh_sum *s, double value)
{
    double next = s->sum + value;
    s->lost += fabs(s->sum) >= fabs(value) ? (s->sum - next) + value : (value - next) + s->sum;
    s->sum = next;
}

DM_SHARED_FN void dvh_sum_join(dvh_sum *s, dvh_sum other)
{
    dvh_sum_add(s, other.sum);
    s->lost += other.lost;
}

#endif
