/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much memory a prediction takes, and the tile that is least work within a limit.
 *
 * Memory = program and weights + volumes + tile weights + workers (activations, scratch, a gathered
 * window) + finished windows that wait to be stitched. Work = windows x voxels of a tile: a
 * network's operations are proportional to voxels. Threads run a window each, or where memory or the
 * number of windows does not allow it, share one.
 *
 * Overlap. With the default, half of a training patch, every voxel's dose comes mainly from windows
 * whose edge is at least a quarter of a patch away. A larger tile keeps that with an overlap of as
 * many voxels, which is a smaller share of it.
 */
#ifndef DOSEMAP_PREDICT_TILE_CHOICE_H
#define DOSEMAP_PREDICT_TILE_CHOICE_H

#include "model/plan.h"

typedef struct tile_task {
    size_t volume[3]; /* model grid; x, y, z as all triples here */
    size_t patch[3];  /* training patch: no tile is smaller */
    size_t stride[3]; /* total stride of the network */
    double overlap;   /* share of the tile; NAN: as many voxels as half of a patch */
    unsigned threads;
    double fixed_bytes;      /* program, weights, volumes */
    double worker_per_voxel; /* bytes of one window on its way per voxel of the tile */
    double thread_bytes;
    double limit_bytes;
} tile_task;

typedef struct tile_choice {
    size_t tile[3];
    double overlap; /* three decimals where it was chosen, so that --overlap can repeat it */
    size_t windows;
    unsigned at_once; /* windows; the threads share each of them evenly */
    double bytes;     /* that the prediction takes */
} tile_choice;

/* False if not even the training patch fits the limit; the choice is the patch then. */
bool tile_choose(const tile_task *task, tile_choice *choice);

/* How many windows should run at once: as many as there are threads, unless some of these would be
 * idle too long at the end. */
unsigned tile_at_once(size_t windows, unsigned threads);

/* The whole prediction, with `fixed_bytes` for what depends on neither tile nor threads,
 * `worker_bytes` for each of the windows that run at once and `threads_bytes` for all threads. */
double tile_memory(double fixed_bytes, double worker_bytes, double threads_bytes,
                   const size_t tile[3], size_t windows, unsigned at_once);

/* A window's activations, and copies of whole tensors round convolutions. */
double tile_worker_bytes(const plan *plan);
/* What each thread needs for itself, whether it has a window of its own or a part of one. */
double tile_thread_bytes(const plan *plan);

/* Program, libraries, and the weights as read, folded and packed. */
double tile_program_bytes(const plan *plan);

#endif
