/* SPDX-License-Identifier: Apache-2.0 */
/* The CPU backend's part of dm_benchmark. */
#ifndef DOSEMAP_PREDICT_CPU_CPU_MEASURE_H
#define DOSEMAP_PREDICT_CPU_CPU_MEASURE_H

#include "predict/cpu/network.h"
#include "predict/measure.h"

/* workers: n of the network, which run at the same time. */
dm_status cpu_measure(const plan *steps, const network *net, worker *const *workers, unsigned n,
                      const measure_request *request, measure_result *result, dm_error *err);

/* type: of the network's activations. */
dm_status cpu_ceilings(element_type type, unsigned threads, measured_ceilings *ceilings,
                       dm_error *err);

/* Joules of all processor packages since some moment, as Linux's powercap tells; NAN where it does
 * not, or does not let this user read it. */
double cpu_energy(void);

#endif
