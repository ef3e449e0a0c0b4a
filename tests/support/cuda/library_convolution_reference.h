/* SPDX-License-Identifier: Apache-2.0 */
/* Faults that tests plant in the convolutions of library_convolution_reference.c. All settings are
 * the process's and hold for plans made from then on. */
#ifndef DOSEMAP_TESTS_LIBRARY_CONVOLUTION_REFERENCE_H
#define DOSEMAP_TESTS_LIBRARY_CONVOLUTION_REFERENCE_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum reference_fault {
    REFERENCE_SOUND,
    REFERENCE_WRONG,  /* the last output channel of every voxel is 1.25 times too large, plus 0.5 */
    REFERENCE_STALE,  /* the last plane of every sample's output is not written */
    REFERENCE_SAMPLE, /* the middle sample's output is not written */
    REFERENCE_BORDER, /* the first x of every row is larger by a 64th */
    REFERENCE_TAP,    /* the first tap's first channel is left out */
    REFERENCE_NAN,    /* the activation makes 0 of NaN, as max(v, 0) does */
    REFERENCE_FAILS,  /* running returns DM_ERROR_DEVICE */
    REFERENCE_UNRECORDED, /* running does so while the stream is recorded into a graph */
    REFERENCE_NO_PLAN     /* there is none: DM_ERROR_UNSUPPORTED */
} reference_fault;

/* The candidates 0 .. candidates-1 of every spec have the fault. (A spec has two candidates if it
 * asks for the convolution alone, and one if anything is joined.) */
void reference_convolution_set_fault(reference_fault fault, unsigned candidates);

/* Whether bias, residual and activation can be joined; true at first. */
void reference_convolution_set_joins(bool joins);

/* Every spec for which there is a plan at all has `offered` of them (0: as many as said above), and
 * all but number `fast` take late_ms, below 1000, longer to run. */
void reference_convolution_set_offers(unsigned offered, unsigned fast, unsigned late_ms);

/* The same for a program: $DOSEMAP_REFERENCE_CONVOLUTION, read when the library is opened, a list
 * such as "unjoined,wrong=1": unjoined; absent (the library is not installed);
 * offers=OFFERED:FAST:LATE_MS; one of wrong, stale,
 * sample, border, tap, nan, fails, unrecorded, none with a number of candidates. Without the
 * variable, the settings stay as they are. */

/* How many plans were made and runs enqueued since the process began. */
unsigned reference_convolution_plans(void);
unsigned reference_convolution_runs(void);
/* Plans that came from what library_convolution_save wrote. */
unsigned reference_convolution_restored(void);

#ifdef __cplusplus
}
#endif

#endif
