/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Volumes between host and device in chunks through two pinned buffers, so that the host copies one
 * chunk while the other one is on its way. What goes is a box of a volume: everything along two of
 * its axes and a range along the third, dense on the device.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_TRANSFER_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_TRANSFER_H

#include <cuda_runtime_api.h>

#include "dosemap.h"

typedef struct device_transfer {
    cudaStream_t stream;
    size_t floats; /* of a buffer */
    float *pinned[2];
    cudaEvent_t done[2];
} device_transfer;

/* x fastest; voxels [first, first + count) along `axis`. */
typedef struct volume_box {
    size_t dim[3];
    int axis;
    size_t first, count;
} volume_box;

size_t volume_box_voxels(const volume_box *box);

/* most: floats of the largest volume; least: that a buffer has to hold. */
dm_status device_transfer_create(cudaStream_t stream, size_t most, size_t least,
                                 device_transfer *transfer, dm_error *err);
void device_transfer_clear(device_transfer *transfer);

/* Enqueued on the stream when it returns; the host's data may be changed then. */
dm_status device_transfer_up(device_transfer *transfer, const float *host, const volume_box *box,
                             float *device, const char *doing, dm_error *err);
/* The host has all of it when it returns. */
dm_status device_transfer_down(device_transfer *transfer, const float *device,
                               const volume_box *box, float *host, const char *doing,
                               dm_error *err);

#endif
