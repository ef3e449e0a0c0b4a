/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/cuda_shares.h"

size_t window_row_low(const tiling *t, size_t row)
{
    size_t start = t->start[2][row], before = t->pad_before[2];
    return start > before ? start - before : 0;
}

size_t window_row_high(const tiling *t, size_t row)
{
    size_t end = t->start[2][row] + t->tile[2] - t->pad_before[2];
    return end < t->volume[2] ? end : t->volume[2];
}

device_share cuda_share_whole(const tiling *t)
{
    return (device_share){.row_end = t->n[2], .plane_end = t->volume[2]};
}

/* Shares of at most that many rows: each begins where the one before ends, and ends where the first
 * row begins that it does not run. Returns how many there are, more than `most` if they do not
 * do. */
static size_t cut(const tiling *t, size_t rows, size_t most, device_share *shares)
{
    size_t n = 0, row = 0, plane = 0, counted = 0;
    while (plane < t->volume[2]) {
        while (window_row_high(t, row) <= plane)
            row++;
        size_t end = t->n[2] - row < rows ? t->n[2] : row + rows;
        size_t plane_end = end == t->n[2] ? t->volume[2] : window_row_low(t, end);
        if (plane_end <= plane || n == most)
            return most + 1;
        shares[n++] = (device_share){.row = row,
                                     .row_end = end,
                                     .counted = counted > row ? counted : row,
                                     .plane = plane,
                                     .plane_end = plane_end};
        plane = plane_end;
        counted = end;
    }
    return n;
}

size_t cuda_shares(const tiling *t, size_t devices, device_share *shares)
{
    /* What saves less than a tenth of the rows does not pay. */
    for (size_t rows = 1; rows * 10 <= t->n[2] * 9; rows++) {
        size_t n = cut(t, rows, devices, shares);
        if (n <= devices)
            return n;
    }
    shares[0] = cuda_share_whole(t);
    return 1;
}
