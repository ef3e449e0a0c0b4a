/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans of the vendor's library for the convolutions met so far, each found right once, or that
 * there is none: making and checking one takes seconds, and a cohort's PETs of other sizes want
 * other batches, then the first ones again. Those that no network uses are dropped, the least
 * recently used first, where there are too many. Used by one thread at a time.
 */
#ifndef DOSEMAP_PREDICT_CUDA_LIBRARY_PLANS_H
#define DOSEMAP_PREDICT_CUDA_LIBRARY_PLANS_H

#include "predict/cuda/library_convolution.h"

/* Specs that are kept: those of several networks, which have 20 to 40 each. */
#define LIBRARY_PLANS_KEPT 160

typedef struct library_plans library_plans;

/* The library must outlive it. */
dm_status library_plans_create(convolution_library *library, library_plans **plans, dm_error *err);
/* After all networks that have plans of it. NULL is fine. */
void library_plans_free(library_plans *plans);

/* Why plans of the library are not used, if some computed wrongly; "" if none did. */
const char *library_plans_rejections(const library_plans *plans);

#endif
