/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/predict_cohort.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cohort.h"
#include "cli/ct_options.h"
#include "cli/dose_sidecar.h"
#include "cli/json_work.h"
#include "cli/predict_report.h"
#include "cli/same_file.h"
#include "cli/terminal.h"

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* DIR/NAME_dose.nii.gz for NAME_pet.nii.gz, keeping the input's compression. */
static int output_name(const predict_args *args, const char *pet, char *out, size_t size)
{
    if (args->output)
        return snprintf(out, size, "%s", args->output) < (int)size ? 0 : -1;
    const char *base = file_name(pet);
    const char *suffix = strstr(base, ".nii");
    size_t stem = suffix ? (size_t)(suffix - base) : strlen(base);
    if (stem > 4 && strncmp(base + stem - 4, "_pet", 4) == 0)
        stem -= 4;
    return snprintf(out, size, "%s/%.*s_dose%s", args->out_dir, (int)stem, base,
                    suffix ? suffix : ".nii.gz") < (int)size
               ? 0
               : -1;
}

static void fail(dm_error *err, dm_status status, const char *where, const char *what,
                 const char *remedy)
{
    err->status = status;
    snprintf(err->where, sizeof err->where, "%.511s", where);
    snprintf(err->what, sizeof err->what, "%.511s", what);
    snprintf(err->remedy, sizeof err->remedy, "%.511s", remedy);
}

dm_status predict_output_paths(const predict_args *args, const char *pet, dm_output_paths *paths,
                               dm_error *err)
{
    char dose[4096];
    if (output_name(args, pet, dose, sizeof dose) != 0) {
        fail(err, DM_ERROR_VALUE, pet, "the output's path is too long", "");
        return err->status;
    }
    return dm_output_paths_from(dose, paths, err);
}

/* --out-dir with the folders above it. What fails is reported by check_folder, with each PET. */
static void make_folder(const char *path)
{
    char part[4096];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return;
    for (char *p = part + 1; *p; p++)
        if (*p == '/') {
            *p = '\0';
            mkdir(part, 0777);
            *p = '/';
        }
    mkdir(part, 0777);
}

/* Before the work of hours: the folder can be written to. */
static dm_status check_folder(const char *dose, dm_error *err)
{
    char folder[4096];
    const char *slash = strrchr(dose, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - dose) : 1, slash ? dose : ".");
    if (access(folder[0] ? folder : "/", W_OK | X_OK) != 0) {
        fail(err, DM_ERROR_IO, folder, "the output folder does not exist or cannot be written to",
             "create it, or choose another with -o or --out-dir");
        return err->status;
    }
    return DM_OK;
}

/* What a list of one file per PET has for it. */
static const char *item_or_null(const string_list *list, size_t index)
{
    return list->count ? list->items[index] : NULL;
}

/* Before the work of hours, too: no input is overwritten. `sidecar`: the PET's, or empty. */
static dm_status check_inputs_stay(const predict_args *args, size_t index, const char *pet,
                                   const char *sidecar, const dm_output_paths *paths, dm_error *err)
{
    const char *labels = item_or_null(&args->labels, index);
    const struct {
        const char *path, *what;
    } inputs[] = {{pet, "the PET"},
                  {sidecar, "the PET's sidecar"},
                  {item_or_null(&args->ct, index), "the CT"},
                  {labels, "the labels"},
                  {args->label_names, "the names of the labels"},
                  {args->model, "the model"}};
    const char *outputs[] = {paths->dose, paths->sidecar, labels ? paths->dvh : NULL,
                             labels ? paths->organs : NULL};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        for (size_t o = 0; o < sizeof outputs / sizeof *outputs; o++)
            if (inputs[i].path && outputs[o] && same_file(inputs[i].path, outputs[o])) {
                char what[128];
                snprintf(what, sizeof what, "this output would overwrite %s", inputs[i].what);
                fail(err, DM_ERROR_VALUE, outputs[o], what, "choose another output with -o");
                return err->status;
            }
    return DM_OK;
}

static dm_status read_labels(const predict_args *args, size_t index, const dm_volume *pet,
                             dm_labels **labels, dm_error *err)
{
    *labels = NULL;
    if (args->labels.count == 0)
        return DM_OK;
    dm_status status = dm_labels_read(args->labels.items[index], args->label_names, labels, err);
    if (status != DM_OK || !args->resample_labels)
        return status;
    dm_labels *stored = *labels;
    status = dm_labels_resample(stored, &pet->grid, labels, err);
    dm_labels_free(stored);
    return status;
}

/* ---- One PET on its way --------------------------------------------------------------------- */

typedef struct cohort_item {
    const char *pet_path;
    dm_status status;
    dm_error err;
    bool skipped;
    char note[8704]; /* for the user, before the PET's turn */
    dm_output_paths paths;
    dm_pet_info info;
    dm_volume *pet;
    dm_volume *ct; /* on the PET's grid */
    dm_ct_info ct_info;
    dm_labels *labels;
    dm_prediction *prediction;
} cohort_item;

static cohort_item *item_of(const predict_job *job, size_t index)
{
    return &job->items[index % COHORT_PLACES];
}

/* The option that an earlier prediction was made without or with another value of, or NULL. */
static const char *other_option(const predict_job *job, size_t index, const json_t *sidecar,
                                const dm_output_paths *paths)
{
    const predict_args *args = job->args;
    const json_t *activity = json_object_get(sidecar, "TherapyActivityGBq");
    const json_t *overlap = json_object_get(json_object_get(sidecar, "Options"), "Overlap");
    const char *model =
        json_string_value(json_object_get(json_object_get(sidecar, "Model"), "Name"));
    if (isnan(args->activity_gbq) ? json_is_number(activity)
                                  : json_number_value(activity) != args->activity_gbq)
        return "--activity";
    if (!model || strcmp(model, dm_model_name(job->model)) != 0)
        return "--model";
    if (!isnan(args->running.overlap) && json_number_value(overlap) != args->running.overlap)
        return "--overlap";
    const char *ct = item_or_null(&args->ct, index),
               *earlier_ct = dose_sidecar_source(sidecar, "ct");
    if (!ct != !earlier_ct || (ct && strcmp(ct, earlier_ct) != 0))
        return "--ct";
    if (args->labels.count > 0 &&
        (!dose_sidecar_has_output(sidecar, "dvh") || access(paths->dvh, R_OK) != 0 ||
         !dose_sidecar_has_output(sidecar, "organs") || access(paths->organs, R_OK) != 0))
        return "--labels";
    return NULL;
}

static bool is_finished(const predict_job *job, size_t index, cohort_item *item)
{
    const char *dose = item->paths.dose;
    if (!dm_prediction_is_complete(dose))
        return false;
    json_t *sidecar = NULL;
    dm_error unread = {0};
    if (!dose_sidecar_load(dose, &sidecar, &unread))
        return false;
    const char *other = other_option(job, index, sidecar, &item->paths);
    json_decref(sidecar);
    if (other)
        snprintf(item->note, sizeof item->note,
                 "dosemap: %s is finished, but with another %s: made again\n", dose, other);
    else
        snprintf(item->note, sizeof item->note, "dosemap: %s is finished, skipped\n", dose);
    return !other;
}

static dm_status read_ct(const predict_args *args, size_t index, cohort_item *item)
{
    const dm_ct_options options = {.is_hu = args->ct_is_hu,
                                   .nan_to_air = args->running.nan_to_zero};
    const char *path = item_or_null(&args->ct, index);
    if (!path)
        return DM_OK;
    dm_status status = ct_read(path, item->pet, &options, &item->ct, &item->ct_info, &item->err);
    if (status == DM_OK)
        ct_note(path, &item->ct_info, item->note + strlen(item->note),
                sizeof item->note - strlen(item->note));
    return status;
}

static dm_status read_item(const predict_job *job, size_t index, cohort_item *item)
{
    const predict_args *args = job->args;
    dm_error *err = &item->err;
    dm_status status = predict_output_paths(args, item->pet_path, &item->paths, err);
    if (status != DM_OK || (status = check_folder(item->paths.dose, err)) != DM_OK)
        return status;
    item->skipped = args->resume && is_finished(job, index, item);
    if (item->skipped)
        return DM_OK;
    if ((status = dm_pet_info_read(item->pet_path, &item->info, err)) == DM_OK &&
        (status = check_inputs_stay(args, index, item->pet_path, item->info.sidecar, &item->paths,
                                    err)) == DM_OK &&
        (status = dm_volume_read(item->pet_path, &item->pet, err)) == DM_OK &&
        (status = pet_args_apply(&args->pet, &item->info, err)) == DM_OK &&
        (status = read_ct(args, index, item)) == DM_OK)
        status = read_labels(args, index, item->pet, &item->labels, err);
    return status;
}

static void drop_inputs(cohort_item *item)
{
    dm_labels_free(item->labels);
    dm_volume_free(item->ct);
    dm_volume_free(item->pet);
    item->labels = NULL;
    item->ct = NULL;
    item->pet = NULL;
}

/* ---- Stages of a cohort --------------------------------------------------------------------- */

static void read_stage(void *context, size_t index)
{
    predict_job *job = context;
    cohort_item *item = item_of(job, index);
    memset(item, 0, sizeof *item);
    item->pet_path = job->pets->items[index];
    item->status = read_item(job, index, item);
    if (item->status != DM_OK)
        drop_inputs(item);
}

/* False for what may be an output that is still to be written: told by its name, in any folder. */
static bool can_read_ahead(void *context, size_t index)
{
    const predict_job *job = context;
    const predict_args *args = job->args;
    const char *inputs[] = {job->pets->items[index], item_or_null(&args->ct, index),
                            item_or_null(&args->labels, index)};
    for (size_t before = index > 2 ? index - 2 : 0; before < index; before++) {
        char output[4096];
        if (output_name(args, job->pets->items[before], output, sizeof output) != 0)
            continue;
        const char *name = file_name(output), *suffix = strstr(name, ".nii");
        size_t stem = suffix ? (size_t)(suffix - name) : strlen(name);
        for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
            if (inputs[i] && strncmp(file_name(inputs[i]), name, stem) == 0)
                return false;
    }
    return true;
}

/* For the next PET, with its CT as it is stored and on the PET's grid, and for the last one's dose
 * map. */
static bool has_room(void *context, size_t index)
{
    predict_job *job = context;
    const cohort_item *item = item_of(job, index);
    if (item->status != DM_OK || item->skipped)
        return item->status != DM_ERROR_MEMORY;
    unsigned volumes = item->ct ? 3 + ct_volumes(&item->ct_info, item->pet) : 2;
    return dm_predictor_reserve(job->predictor, &item->pet->grid, item->labels, volumes);
}

static void read_again(void *context, size_t index)
{
    predict_job *job = context;
    const cohort_item *item = item_of(job, index);
    if (item->status != DM_ERROR_MEMORY)
        return;
    read_stage(context, index);
    /* Alone now: nothing beside it, whatever was reserved for the PET before. */
    if (item->status == DM_OK && !item->skipped)
        dm_predictor_reserve(job->predictor, &item->pet->grid, item->labels, 0);
}

int predict_progress(void *user, double share, const char *stage)
{
    predict_job *job = user;
    pthread_mutex_lock(&job->screen);
    int stop = progress_show(&job->bar, share, stage);
    pthread_mutex_unlock(&job->screen);
    return stop;
}

static void predict_stage(void *context, size_t index)
{
    predict_job *job = context;
    cohort_item *item = item_of(job, index);
    if (item->status != DM_OK || item->skipped)
        return;
    pthread_mutex_lock(&job->screen);
    progress_begin(&job->bar, file_name(item->pet_path), job->args->quiet || job->args->json);
    pthread_mutex_unlock(&job->screen);
    const dm_patient patient = {.pet = item->pet,
                                .info = &item->info,
                                .ct = item->ct,
                                .ct_info = &item->ct_info,
                                .labels = item->labels};
    item->status = dm_predictor_run(job->predictor, &patient, &item->prediction, &item->err);
    drop_inputs(item);
    pthread_mutex_lock(&job->screen);
    progress_hide(&job->bar);
    pthread_mutex_unlock(&job->screen);
}

static void announce_stage(void *context, size_t index)
{
    predict_job *job = context;
    const cohort_item *item = item_of(job, index);
    if (!item->note[0] || job->args->quiet)
        return;
    pthread_mutex_lock(&job->screen);
    progress_hide(&job->bar);
    fputs(item->note, stderr);
    pthread_mutex_unlock(&job->screen);
}

static void write_stage(void *context, size_t index)
{
    predict_job *job = context;
    const predict_args *args = job->args;
    cohort_item *item = item_of(job, index);
    if (item->skipped)
        return;
    const dm_sources sources = {.pet_path = item->pet_path,
                                .ct_path = item_or_null(&args->ct, index),
                                .labels_path = item_or_null(&args->labels, index),
                                .command_line = job->command_line};
    if (item->status == DM_OK)
        item->status = dm_prediction_write(item->prediction, item->paths.dose, &sources,
                                           args->running.threads, &item->err);
    pthread_mutex_lock(&job->screen);
    progress_hide(&job->bar);
    if (item->status == DM_OK) {
        json_work_begin();
        if (args->json)
            report_json(item->pet_path, &item->paths, item->prediction);
        else if (!args->quiet)
            report_text(item->pet_path, &item->paths, item->prediction);
        json_work_end();
    } else {
        if (item->err.where[0] == '\0')
            snprintf(item->err.where, sizeof item->err.where, "%.511s", item->pet_path);
        terminal_error(&item->err);
        job->exit_status = EXIT_FAILED;
    }
    pthread_mutex_unlock(&job->screen);
    dm_prediction_free(item->prediction);
    item->prediction = NULL;
}

int predict_cohort(predict_job *job)
{
    const cohort c = {.count = job->pets->count,
                      .context = job,
                      .read = read_stage,
                      .can_read_ahead = can_read_ahead,
                      .has_room = has_room,
                      .read_again = read_again,
                      .predict = predict_stage,
                      .announce = announce_stage,
                      .write = write_stage};
    job->items = calloc(COHORT_PLACES, sizeof *job->items);
    if (!job->items)
        exit_without_memory();
    if (job->args->out_dir)
        make_folder(job->args->out_dir);
    cohort_run(&c);
    free(job->items);
    return job->exit_status;
}
