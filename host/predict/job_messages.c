/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/job_messages.h"

#include <time.h>

#include "base/error.h"
#include "predict/resample.h"

const char job_network_output[] = "the network's output";
const char job_transformed_dose[] = "the dose after the model's output transform";

dm_status job_report(const predict_job *job, double share, const char *stage, dm_error *err)
{
    if (job->progress && job->progress(job->progress_user, share, stage) != 0)
        return error_set(err, DM_CANCELLED, NULL, NULL, "cancelled");
    return DM_OK;
}

dm_status job_bad_input(const predict_job *job, size_t channel, const size_t stored[3],
                        dm_error *err)
{
    const predict_channel *image = &job->channels[channel];
    const size_t *dim = job->pet->grid.dim;
    float value = image->volume->data[stored[0] + dim[0] * (stored[1] + dim[1] * stored[2])];
    if (channel != job->pet_channel)
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "check the CT's values and units: the model wants Hounsfield units",
                         "the model's intensity transform has no finite value for voxel (%zu, %zu, "
                         "%zu) of the CT on the PET's grid, %g",
                         stored[0], stored[1], stored[2], (double)value);
    return error_set(
        err, DM_ERROR_VALUE, NULL,
        "check the PET's values and units; negative values do not fit this model",
        "the model's intensity transform has no finite value for voxel (%zu, %zu, %zu), "
        "%g as stored, %g in the input quantity",
        stored[0], stored[1], stored[2], (double)value, (double)(value * image->factor));
}

dm_status job_not_finite(const predict_job *job, const size_t model[3], const char *what,
                         dm_error *err)
{
    size_t ijk[3];
    stored_voxel(&job->pet->grid, job->map, model, ijk);
    return error_set(err, DM_ERROR_VALUE, NULL,
                     "check the PET's units; if the values are right, the model does not suit them",
                     "%s is not finite at voxel (%zu, %zu, %zu)", what, ijk[0], ijk[1], ijk[2]);
}

double job_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
