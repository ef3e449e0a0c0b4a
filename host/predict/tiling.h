/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sliding windows as MONAI's sliding_window_inference defines them: scan interval, last window
 * shifted inwards, volumes smaller than the tile padded with zeros (half before), constant or
 * Gaussian importance.
 */
#ifndef DOSEMAP_PREDICT_TILING_H
#define DOSEMAP_PREDICT_TILING_H

#include "dosemap.h"

typedef struct tiling {
    size_t volume[3];     /* model grid, x, y, z */
    size_t tile[3];       /* x, y, z */
    size_t pad_before[3]; /* zeros before the volume; window starts count from the padding */
    size_t padded[3];
    size_t n[3]; /* windows along x, y, z */
    size_t *start[3];
    size_t count;      /* n[0]*n[1]*n[2]; window w = ix + n[0]*(iy + n[1]*iz) */
    float *importance; /* tile[0]*tile[1]*tile[2], x fastest */
} tiling;

dm_status tiling_make(const size_t volume[3], const size_t tile[3], double overlap, dm_blend blend,
                      tiling *tiling, dm_error *err);
void tiling_clear(tiling *tiling);

/* Windows along one axis of a volume, 1 where the tile is as long. */
size_t tiling_windows(size_t length, size_t tile, double overlap);

/* Start (in the padded grid; may lie before the volume by pad_before) of window w. */
void tiling_window(const tiling *tiling, size_t w, size_t start[3]);

/* The part of window w that lies in the volume: `size` voxels from `start` of the model grid, which
 * sit at `at` inside the tile. */
void tiling_inside(const tiling *tiling, size_t w, size_t start[3], size_t size[3], size_t at[3]);

/* Sum of the importance of all windows over one row of the volume (not padded): total[x],
 * x = 0..volume[0]-1, in a fixed order. */
void tiling_total_row(const tiling *tiling, size_t y, size_t z, float *total);

#endif
