/* SPDX-License-Identifier: Apache-2.0 */
/* How one axis of the result of STEP_PAD, STEP_SLICE or STEP_RESIZE falls onto the input: result i
 * is in[low[i]] + weight[i]*(in[high[i]] - in[low[i]]), or `fill` where low[i] is -1. */
#ifndef DOSEMAP_PREDICT_STEP_AXIS_H
#define DOSEMAP_PREDICT_STEP_AXIS_H

#include "model/plan.h"

typedef struct step_axis {
    size_t n;
    int *low, *high; /* owned, in one allocation with weight */
    float *weight;
} step_axis;

/* axis: z, y, x; in, out: its lengths. */
dm_status step_axis_create(const plan_step *step, int axis, size_t in, size_t out, step_axis *made,
                           dm_error *err);
void step_axis_free(step_axis *axis);

#endif
