/* SPDX-License-Identifier: Apache-2.0 */
/* The one comparator of the tests: equal sizes, everything finite, |a-b| <= atol + rtol*|ref|,
 * written so that NaN fails; reports the worst element. */
#ifndef DOSEMAP_TESTS_COMPARE_H
#define DOSEMAP_TESTS_COMPARE_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

static inline bool arrays_close(const float *a, size_t n_a, const float *ref, size_t n_ref,
                                double atol, double rtol)
{
    if (n_a != n_ref) {
        fprintf(stderr, "sizes differ: %zu and %zu\n", n_a, n_ref);
        return false;
    }
    size_t bad = 0, worst = 0;
    double worst_excess = -1;
    for (size_t i = 0; i < n_a; i++) {
        double d = fabs((double)a[i] - (double)ref[i]);
        double limit = atol + rtol * fabs((double)ref[i]);
        bool ok = isfinite(a[i]) && isfinite(ref[i]) && d <= limit;
        if (!ok) {
            double excess = isfinite(d) ? d - limit : INFINITY;
            if (excess > worst_excess) {
                worst_excess = excess;
                worst = i;
            }
            bad++;
        }
    }
    if (bad)
        fprintf(stderr, "%zu of %zu differ; worst at %zu: %.9g, reference %.9g\n", bad, n_a, worst,
                (double)a[worst], (double)ref[worst]);
    return bad == 0;
}

/* Relative L2 deviation; NaN if anything is not finite. */
static inline double relative_l2(const float *a, const float *ref, size_t n)
{
    double num = 0, den = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)ref[i];
        num += d * d;
        den += (double)ref[i] * (double)ref[i];
    }
    return sqrt(num / den);
}

#endif
