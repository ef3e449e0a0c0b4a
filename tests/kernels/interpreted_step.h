/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A step by the plan's executable specification (plan_interpreter.h), for tests in C++, which
 * cannot read the plan's own structures. Names and meanings are those of plan.h and graph.h.
 */
#ifndef DOSEMAP_TESTS_INTERPRETED_STEP_H
#define DOSEMAP_TESTS_INTERPRETED_STEP_H

#include <stdbool.h>
#include <stddef.h>

#include "kernels/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum interpreted_kind {
    INTERPRETED_POINTWISE,
    INTERPRETED_INSTANCE_NORM,
    INTERPRETED_GROUP_NORM,
    INTERPRETED_MAX_POOL,
    INTERPRETED_AVERAGE_POOL,
    INTERPRETED_GLOBAL_AVERAGE_POOL,
    INTERPRETED_RESIZE,
    INTERPRETED_PAD,
    INTERPRETED_SLICE
} interpreted_kind;

/* pad_mode, resize_mode and resize_coordinates of graph.h, in their order. */
enum { INTERPRETED_CONSTANT, INTERPRETED_REFLECT, INTERPRETED_EDGE };
enum { INTERPRETED_NEAREST, INTERPRETED_LINEAR };
enum { INTERPRETED_HALF_PIXEL, INTERPRETED_ALIGN_CORNERS, INTERPRETED_ASYMMETRIC };

typedef struct interpreted_tensor {
    size_t channels, dim[3], pitch, channel_start;
    element_type type;
    size_t offset;
} interpreted_tensor;

typedef struct interpreted_link {
    chain_op op;
    int tensor;
    float alpha;
    const float *scale, *shift; /* never NULL where the operation has them */
} interpreted_link;

typedef struct interpreted_node {
    int kernel[3], stride[3], dilation[3], pad_begin[3], pad_end[3];
    int groups;
    float epsilon;
    bool count_include_pad;
    int pad;
    float pad_value;
    int resize, coordinates;
    bool nearest_floor;
    double scales[3];
    int slice_begin[3], slice_end[3], slice_step[3];
    int channel_begin, channel_step;
} interpreted_node;

typedef struct interpreted_step {
    interpreted_kind kind;
    interpreted_node node;
    const interpreted_tensor *tensors;
    size_t n_tensors;
    int in, out;
    const float *scale, *shift; /* of normalisations, or NULL */
    const interpreted_link *chain;
    size_t n_chain;
} interpreted_step;

/* In the arena of one sample. */
void interpreted_step_run(const interpreted_step *step, unsigned char *arena);

/* The table that the host makes for an axis (z, y, x) of a pad, slice or resize; arrays as long as
 * that axis of the result. */
void interpreted_step_axis(const interpreted_step *step, int axis, int *low, int *high,
                           float *weight);

/* An element of that type as a float, and a float as an element, rounded to the nearest. */
size_t interpreted_size(element_type type);
float interpreted_load(element_type type, const void *at);
void interpreted_store(element_type type, void *at, float value);

#ifdef __cplusplus
}
#endif

#endif
