/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the activations of a batch lie on the device, and in what portions they are computed.
 *
 * Operations at one spatial size form a segment, which runs for `samples` windows of the batch at a
 * time: few at the highest resolution, so that what one operation writes is still in the
 * second-level cache when the next one reads it; the whole batch at the coarse levels, whose
 * matrices would be too small otherwise. A buffer that lives inside a segment exists once for these
 * samples; one that several segments share exists for the whole batch. So the plan's own arena,
 * laid out for one sample, is not used: buffers are told apart anew, and placed for their lifetimes
 * in operations.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_LAYOUT_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_LAYOUT_H

#include "predict/cuda/device_lowering.h"

typedef struct device_segment {
    size_t first, end; /* operations */
    unsigned samples;  /* at a time; divides the batch */
} device_segment;

typedef struct device_place {
    size_t offset; /* bytes from the arena's start to the buffer; SIZE_MAX: nobody uses it */
    size_t sample; /* elements from one sample to the next */
    bool whole;    /* holds all samples of the batch, not only those of a portion */
} device_place;

typedef struct device_layout {
    unsigned batch;
    size_t n_segments;
    device_segment *segments;
    device_place *tensors; /* of the plan */
    size_t bytes;
} device_layout;

/* cache_bytes: that the tensors of one operation should not exceed. */
dm_status device_layout_make(const plan *steps, const lowered_op *ops, size_t n_ops, unsigned batch,
                             size_t cache_bytes, device_layout *layout, dm_error *err);
void device_layout_clear(device_layout *layout);

#endif
