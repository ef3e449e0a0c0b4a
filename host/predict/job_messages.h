/* SPDX-License-Identifier: Apache-2.0 */
/* What every backend tells the user while it runs a job, in the same words. */
#ifndef DOSEMAP_PREDICT_JOB_MESSAGES_H
#define DOSEMAP_PREDICT_JOB_MESSAGES_H

#include "predict/backend.h"

/* Share of the progress bar for the network; resampling and histograms have the rest. */
#define NETWORK_SHARE 0.97

/* DM_CANCELLED if the caller asks to stop. */
dm_status job_report(const predict_job *job, double share, const char *stage, dm_error *err);

/* A voxel of a channel's image for which the model's intensity transform has no finite value. */
dm_status job_bad_input(const predict_job *job, size_t channel, const size_t stored[3],
                        dm_error *err);

/* A voxel of the model's grid at which `what` is not finite. */
dm_status job_not_finite(const predict_job *job, const size_t model[3], const char *what,
                         dm_error *err);
extern const char job_network_output[], job_transformed_dose[];

/* Seconds of a clock that only goes forward. */
double job_clock(void);

#endif
