/* SPDX-License-Identifier: Apache-2.0 */
/* How several devices share a volume: each makes a range of planes along the model's z, and runs all
 * rows of windows that reach into it, so that no sum of windows is put together from two devices.
 * Rows over a border are run by both. */
#ifndef DOSEMAP_PREDICT_CUDA_CUDA_SHARES_H
#define DOSEMAP_PREDICT_CUDA_CUDA_SHARES_H

#include "predict/tiling.h"

typedef struct device_share {
    size_t row, row_end;     /* of windows, along z */
    size_t counted;          /* rows from here on are in no share before */
    size_t plane, plane_end; /* of the model's grid */
} device_share;

/* Planes [low, high) of the model's grid that a row of windows reaches. */
size_t window_row_low(const tiling *tiling, size_t row);
size_t window_row_high(const tiling *tiling, size_t row);

/* All of it. */
device_share cuda_share_whole(const tiling *tiling);

/* Shares of as few rows as possible for at most `devices`, in ascending order; how many there are:
 * fewer than `devices` where more gain nothing, one where nothing gains anything. */
size_t cuda_shares(const tiling *tiling, size_t devices, device_share *shares);

#endif
