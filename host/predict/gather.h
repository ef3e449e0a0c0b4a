/* SPDX-License-Identifier: Apache-2.0 */
/* A window of the PET, and of other images on its grid, as the network wants it: on the model's grid,
 * each image in its quantity and through its intensity transform as one channel, in the network's
 * element type, with zeros around the volume. */
#ifndef DOSEMAP_PREDICT_GATHER_H
#define DOSEMAP_PREDICT_GATHER_H

#include "predict/backend.h"
#include "predict/resample.h"

/* Borrows what the job points to. Read-only afterwards: many threads may gather at once. */
typedef struct gather {
    const predict_job *job;
    strided source[PREDICT_MAX_CHANNELS];
    axis_table table[3]; /* resampling maps only; all channels have the PET's grid */
    element_type type;
    size_t scratch; /* floats that each caller of gather_window brings */
} gather;

typedef enum gather_result {
    GATHER_FILLED,
    GATHER_AIR,       /* the PET lies below skip_air everywhere: the input was not filled */
    GATHER_NOT_FINITE /* the intensity transform of `channel`, the first such, has no value for a
                         voxel; `bad` names it */
} gather_result;

dm_status gather_make(const predict_job *job, element_type type, gather *g, dm_error *err);
void gather_clear(gather *g);

/* Fills `input` (z, y, x, n_channels) with window w. `bad`: a voxel of the stored images. */
gather_result gather_window(const gather *g, size_t w, float *scratch, void *input, size_t *channel,
                            size_t bad[3]);

/* Float32 to bfloat16, rounded to the nearest, ties to even. */
uint16_t bf16_from_float(float value);

#endif
