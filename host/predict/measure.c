/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/measure.h"

#include <math.h>
#include <stdlib.h>

#include "base/error.h"

/* A clock that stands still must not make a run endless. */
#define MAX_CALLS 100000000.0

dm_status measure_make(const measure_request *request, size_t n_layers, measure_result *result,
                       dm_error *err)
{
    size_t bytes = request->runs * sizeof *result->seconds + n_layers * sizeof *result->layers;
    *result = (measure_result){
        .n_runs = request->runs, .n_layers = n_layers, .joules = NAN, .bytes = NAN};
    result->seconds = array_zero(request->runs + 1, sizeof *result->seconds);
    result->layers = array_zero(n_layers + 1, sizeof *result->layers);
    if (result->seconds && result->layers)
        return DM_OK;
    measure_clear(result);
    return error_memory(err, bytes, "times");
}

void measure_clear(measure_result *result)
{
    free(result->seconds);
    free(result->layers);
    *result = (measure_result){0};
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void measure_sort(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare);
}

double measure_percentile(const double *sorted, size_t n, double share)
{
    if (n == 0)
        return NAN;
    if (share == 0.5 && n % 2 == 0)
        return (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
    double rank = ceil(share * (double)n - 1e-9); /* 0.9 * 10 is not quite 9 */
    size_t i = rank < 1 ? 0 : (size_t)rank - 1;
    return sorted[i < n ? i : n - 1];
}

double measure_median(double *values, size_t n)
{
    measure_sort(values, n);
    return measure_percentile(values, n, 0.5);
}

size_t measure_calls(double run_seconds, size_t calls, double seconds)
{
    if (!(run_seconds > 0))
        return 1;
    double wanted = ceil((double)calls * run_seconds / fmax(seconds, 1e-9));
    return wanted < 1 ? 1 : wanted > MAX_CALLS ? (size_t)MAX_CALLS : (size_t)wanted;
}
