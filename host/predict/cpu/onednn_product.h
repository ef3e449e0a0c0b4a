/* SPDX-License-Identifier: Apache-2.0 */
/* A large matrix product by oneDNN on all threads: a ceiling with memory in it. */
#ifndef DOSEMAP_PREDICT_CPU_ONEDNN_PRODUCT_H
#define DOSEMAP_PREDICT_CPU_ONEDNN_PRODUCT_H

#include "dosemap.h"

/* FLOP/s of the fastest product of edge x edge matrices within `seconds`, one at least, after one
 * that is not counted. Errors: UNSUPPORTED where oneDNN has none in this type, MEMORY. */
dm_status onednn_product_rate(bool bf16, size_t edge, unsigned threads, double seconds,
                              double *rate, dm_error *err);

#endif
