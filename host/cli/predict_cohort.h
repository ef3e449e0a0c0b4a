/* SPDX-License-Identifier: Apache-2.0 */
/* The PETs of `dosemap predict`, read, predicted and written as a cohort. */
#ifndef DOSEMAP_CLI_PREDICT_COHORT_H
#define DOSEMAP_CLI_PREDICT_COHORT_H

#include <pthread.h>
#include <stdbool.h>

#include "cli/options.h"
#include "cli/pet_options.h"
#include "cli/running_options.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct predict_args {
    const char *output, *out_dir, *model, *label_names, *vx;
    string_list ct, labels;
    pet_args pet;
    running_args running;
    double activity_gbq;
    bool ct_is_hu, resample_labels, resume, json, quiet;
} predict_args;

typedef struct predict_job {
    const predict_args *args;
    const string_list *pets;
    const dm_model *model;
    dm_predictor *predictor;
    const char *command_line;
    struct cohort_item *items; /* COHORT_PLACES */
    int exit_status;
    pthread_mutex_t
        screen; /* of what is on it: messages come from one thread, the bar from another */
    progress_bar bar;
} predict_job;

/* Where a PET's outputs go. */
dm_status predict_output_paths(const predict_args *args, const char *pet, dm_output_paths *paths,
                               dm_error *err);

/* The predictor's options.progress, with the job as progress_user. */
int predict_progress(void *job, double share, const char *stage);

/* All of them; an error of one does not stop the others. Returns the exit status. */
int predict_cohort(predict_job *job);

#endif
