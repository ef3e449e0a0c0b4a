/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who computes each convolution of a network fastest on this device, found by timing and kept in a
 * file (tuning_file.h), from which later networks of the same kind take it.
 *
 * Timed are the ways that take a convolution at all: kernels of ours, and the plans that the
 * vendor's library prefers, with what can be joined to them and alone with the passes that this
 * takes. A plan that does not compute what our kernels do (device_library_check.c) never wins.
 */
#ifndef DOSEMAP_PREDICT_CUDA_TUNE_H
#define DOSEMAP_PREDICT_CUDA_TUNE_H

#include "dosemap.h"

/* state: a cuda_state; of several devices, the first is timed. batch: windows per call of the
 * network; 0: as for large volumes. Gives up the state's network. progress may be NULL; non-zero
 * from it ends the work, and nothing is written. report_json (may be NULL): what was timed and
 * chosen, with the file's path and checksum; released with dm_string_free. Errors: UNSUPPORTED
 * (--convolutions library or own leave nothing to choose), IO (the file cannot be written), MEMORY,
 * DEVICE, CANCELLED. */
dm_status cuda_tune(void *state, unsigned batch, dm_progress progress, void *user,
                    char **report_json, dm_error *err);

#endif
