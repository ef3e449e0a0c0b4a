/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What winograd.c hands to the kernels of winograd_kernel_body.h, which are compiled once for each
 * instruction set.
 */
#ifndef DOSEMAP_PREDICT_CPU_WINOGRAD_KERNEL_H
#define DOSEMAP_PREDICT_CPU_WINOGRAD_KERNEL_H

#include "predict/cpu/convolution.h"

/* Sizes of an output tile, z, y, x: 2 or 4 voxels along each axis. */
enum { WINOGRAD_SHAPES = 4, WINOGRAD_MAX_POST = 4 };
extern const size_t winograd_shapes[WINOGRAD_SHAPES][3];

/* Points of F(4, 3). */
#define WINOGRAD_A 0.70710678f
#define WINOGRAD_B 1.41421356f

typedef struct winograd_tensor {
    void *data; /* first channel of voxel 0 */
    size_t pitch;
    element_type type;
} winograd_tensor;

/* One convolution; each thread has its own `input` and `product`. */
typedef struct winograd_job {
    size_t dim[3], tiles[3]; /* z, y, x; of the whole tensor */
    size_t in_channels, out_channels;
    winograd_tensor in;
    winograd_tensor out; /* its voxel 0 is voxel (first_plane, 0, 0) of the result */
    size_t first_plane;
    const float *weights; /* transformed: [point][outputs / panel][in_channels][panel] */
    size_t panel;         /* outputs side by side: kernel->lanes or twice that */
    const float *bias;
    const float *zeros; /* in_channels of them */
    bool simple;        /* post-operations are none, or one max(slope*v, v) */
    float slope;
    size_t n_post;
    post_operation post[WINOGRAD_MAX_POST];
    winograd_tensor operand[WINOGRAD_MAX_POST]; /* of ADD_TENSOR, voxel 0 as `out` */
    size_t rows;                                /* tiles that the buffers hold */
    float *input;                               /* [point][rows*in_channels + lanes] */
    float *product;                             /* [point][rows*out_channels + lanes] */
} winograd_job;

typedef struct winograd_kernel {
    size_t lanes;
    const char *name;
    /* Tiles [first, first + n), n <= rows, counted z, y, x. By shape. */
    void (*run[WINOGRAD_SHAPES])(const winograd_job *job, size_t first, size_t n);
} winograd_kernel;

extern const winograd_kernel winograd_avx512, winograd_avx2;

#endif
