/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DOSEMAP_PREDICT_CPU_FMA_RATE_H
#define DOSEMAP_PREDICT_CPU_FMA_RATE_H

#include <stdbool.h>

/* What so many threads multiply and add from registers alone, in FLOP/s, over about `seconds`: the
 * ceiling of any direct convolution. NAN where the CPU has no instructions for it. */
double fma_rate(bool bf16, unsigned threads, double seconds);

#endif
