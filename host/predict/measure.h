/* SPDX-License-Identifier: Apache-2.0 */
/* What a backend measures of itself for dm_benchmark. */
#ifndef DOSEMAP_PREDICT_MEASURE_H
#define DOSEMAP_PREDICT_MEASURE_H

#include "dosemap.h"

/* The network alone on windows that lie ready where it runs: neither cutting out nor stitching, no
 * copies to or from a device. Rounding the input to the network's element type is part of it. */
typedef struct measure_request {
    const float *windows; /* [n_windows] dense (z, y, x, C) of the plan's input tensor, as the
                             network takes them */
    size_t n_windows;     /* at least 1; where more are run they repeat */
    float *outputs;       /* [n_windows] dense (z, y, x, C) of the plan's output tensor, whose size
                             may be another; NULL: nobody asks */
    size_t job_windows;   /* of the volume: batch and plans are those of such a job */
    unsigned batch;       /* windows per call; 0: as for the volume */
    double run_seconds;   /* that a run lasts at least, by as many calls as it takes; 0: one call */
    unsigned warmup, runs; /* at least 1 and 0 */
    bool layers;           /* the steps one by one as well, in as many runs */
    /* Between runs, with the share done; anything but DM_OK ends the measurement. */
    dm_status (*go_on)(void *context, double share, dm_error *err);
    void *context;
} measure_request;

/* A step. seconds: median over the runs, of one window where `at_once` of them run at the same time,
 * by which they are divided: so the steps of a window add up to what a window costs the machine. */
typedef struct measure_layer {
    char name[128], way[160];
    double seconds, bytes, flop; /* of a window; NAN: not known */
} measure_layer;

/* Released with measure_clear. */
typedef struct measure_result {
    unsigned batch;   /* windows per call, as it was */
    unsigned at_once; /* calls at the same time */
    size_t windows;   /* of a run */
    size_t n_runs;
    double *seconds; /* [n_runs] */
    double joules;   /* of all runs; NAN: nobody says */
    size_t n_layers;
    measure_layer *layers;
    double bytes;        /* that a window moves, each step's operands once; NAN: not known */
    size_t device_bytes; /* that the network took; 0 on the host */
} measure_result;

/* NAN: not measured, since the backend has no such thing. */
typedef struct measured_ceilings {
    double copy_bytes;     /* read and written, per second */
    double fma_flop;       /* from registers, per second */
    double product_flop;   /* a large matrix product by the vendor's library, in the precision */
    double own_flop;       /* the same by the backend's own kernel */
    char product_how[160]; /* which kernel of the library's that was */
} measured_ceilings;

/* Room for the runs, and for n layers. */
dm_status measure_make(const measure_request *request, size_t n_layers, measure_result *result,
                       dm_error *err);
void measure_clear(measure_result *result);

/* Ascending. */
void measure_sort(double *values, size_t n);
/* The smallest of sorted values that a share of them does not exceed (nearest rank); of two values
 * in the middle, for 0.5, their mean. NAN for n == 0. */
double measure_percentile(const double *sorted, size_t n, double share);
/* Sorts them. */
double measure_median(double *values, size_t n);

/* Calls of a run that lasts so long, if `calls` lasted `seconds`. */
size_t measure_calls(double run_seconds, size_t calls, double seconds);

#endif
