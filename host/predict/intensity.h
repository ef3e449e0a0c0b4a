/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_PREDICT_INTENSITY_H
#define DOSEMAP_PREDICT_INTENSITY_H

#include "model/graph.h"

/* Applies the steps of a transform, in order, to each of n values in place. NaN stays NaN. */
void intensity_apply(const intensity_transform *transform, float *values, size_t n);

#endif
