/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Windows back into a volume: sum of importance * output, divided by the sum of the importance.
 * Windows are added in ascending order whatever order they finish in, so that the same input gives
 * the same bytes for any number of threads and any batch.
 */
#ifndef DOSEMAP_PREDICT_STITCH_H
#define DOSEMAP_PREDICT_STITCH_H

#include "model/graph.h"
#include "predict/resample.h"
#include "predict/tiling.h"

typedef struct stitch stitch;

/* Finished windows per worker that may wait for their turn to be added: enough that no core idles
 * while one window takes twice as long as the others. */
enum { STITCH_SLOTS_PER_WORKER = 2 };

/* sum: zeros, tiling->volume voxels; borrowed, as is the tiling. slots: finished windows that may
 * be kept until their turn comes; their threads go on meanwhile. */
dm_status stitch_create(const tiling *tiling, strided sum, size_t slots, stitch **stitch,
                        dm_error *err);
void stitch_free(stitch *stitch);

/* Hand in window w, its output (z, y, x) or that it was not run, which adds zero. Each window once;
 * each thread in ascending order. May wait until earlier windows are in. False: stopped. */
bool stitch_add(stitch *stitch, size_t w, const float *output);
bool stitch_skip(stitch *stitch, size_t w);

/* No window is added any more; waiting threads return. */
void stitch_stop(stitch *stitch);

/* Waits until all windows are in or it was stopped (true), or `seconds` are over (false); `done`:
 * the windows that are in. */
bool stitch_wait(stitch *stitch, double seconds, size_t *done);

/* True if a window had an output that is not finite (which also stops): the voxel of the first, on
 * the model's grid. */
bool stitch_not_finite(stitch *stitch, size_t voxel[3]);

/* When all windows are in: sum -> factor * transform(sum / total importance). DM_ERROR_VALUE and
 * the model voxel in `bad` where the transform has no finite value. */
dm_status stitch_finish(const tiling *tiling, strided sum, const intensity_transform *transform,
                        float factor, unsigned threads, size_t bad[3], dm_error *err);

#endif
