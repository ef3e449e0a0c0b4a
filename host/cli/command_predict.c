/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap predict: PETs in, dose maps with sidecars (and DVHs, organ tables) out. */
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/cohort.h"
#include "cli/commands.h"
#include "cli/dose_sidecar.h"
#include "cli/json_work.h"
#include "cli/number_list.h"
#include "cli/pet_options.h"
#include "cli/predict_report.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct predict_args {
    const char *output, *out_dir, *model, *label_names, *tile, *memory, *skip_air, *precision,
        *device, *vx;
    string_list labels;
    pet_args pet;
    double activity_gbq, overlap;
    unsigned threads, batch;
    int blend;
    bool resample_labels, force_tile, nan_to_zero, resume, json, quiet;
} predict_args;

#define FIELD(name) offsetof(predict_args, name)
#define PET_FIELD(name) offsetof(predict_args, pet.name)

/* clang-format off */
static const option_spec predict_options[] = {
    {"output", 'o', OPTION_FILE, FIELD(output), "OUT.nii[.gz|.zst]", "dose map to write (one PET); OUT.json, and with --labels OUT_dvh.tsv and OUT_organs.tsv, appear beside it", 0, 0, "Output"},
    {"out-dir", 0, OPTION_FILE, FIELD(out_dir), "DIR", "folder for the outputs of several PETs, made if it is missing: NAME_pet.nii.gz becomes DIR/NAME_dose.nii.gz", 0, 0, NULL},
    {"activity", 'a', OPTION_NUMBER, FIELD(activity_gbq), "GBQ", "therapy activity administered; the map is then in Gy, without it in Gy/GBq", 1e-6, 200, NULL},
    {"resume", 0, OPTION_FLAG, FIELD(resume), NULL, "skip PETs whose dose map is finished, with the same --activity, --model and --overlap, and with tables if --labels is given", 0, 0, NULL},
    {"model", 'm', OPTION_FILE, FIELD(model), "FILE", "network weights (default: $DOSEMAP_MODEL, then the installed ones)", 0, 0, "Model"},
    PET_OPTIONS(predict_args, pet),
    {"nan-to-zero", 0, OPTION_FLAG, FIELD(nan_to_zero), NULL, "take NaN and Inf voxels as 0 instead of failing", 0, 0, NULL},
    {"labels", 'l', OPTION_FILE_LIST, FIELD(labels), "FILE|DIR", "structures for the DVHs: one multi-label file, or a folder with a mask per structure; with several PETs once for each, in their order", 0, 0, "Structures"},
    {"label-names", 0, OPTION_FILE, FIELD(label_names), "FILE", "JSON or TSV with the names of the ids, or totalsegmentator:total, totalsegmentator:head_glands_cavities", 0, 0, NULL},
    {"resample-labels", 0, OPTION_FLAG, FIELD(resample_labels), NULL, "bring labels from another grid onto the PET's by nearest neighbour", 0, 0, NULL},
    {"vx", 0, OPTION_STRING, FIELD(vx), "D[,D...]", "also report the volume that receives at least D (in the map's unit)", 0, 0, NULL},
    {"tile", 0, OPTION_STRING, FIELD(tile), "N|X,Y,Z|whole|auto", "window in voxels of the model grid (default: the training patch); auto: what is least work within the memory, with --overlap as many voxels as half of the patch unless given", 0, 0, "Windows"},
    {"memory", 0, OPTION_STRING, FIELD(memory), "SIZE[K|M|G|T]", "memory to stay within: --tile auto chooses for it, other tiles that need more are refused (default: what the machine and its limits leave; auto uses 80 % of that)", 0, 0, NULL},
    {"force-tile", 0, OPTION_FLAG, FIELD(force_tile), NULL, "allow a tile other than the training patch for networks that normalise each patch by its own statistics", 0, 0, NULL},
    {"overlap", 0, OPTION_NUMBER, FIELD(overlap), "SHARE", "overlap of neighbouring windows, 0 to 0.9 (default 0.5; 0 for whole; see --tile auto)", 0, 0.9, NULL},
    {"blend", 0, OPTION_CHOICE, FIELD(blend), "gaussian|constant", "weighting of overlapping windows (default gaussian)", 0, 0, NULL},
    {"skip-air", 0, OPTION_STRING, FIELD(skip_air), "VALUE|off", "do not run windows whose maximum uptake is below VALUE (default: the model's)", 0, 0, NULL},
    {"precision", 0, OPTION_STRING, FIELD(precision), "auto|float32|bf16|fp16|tf32", "arithmetic of the network (default auto: the fastest that the model's card vouches for)", 0, 0, "Running"},
    {"device", 0, OPTION_STRING, FIELD(device), "auto|cpu|cuda[:N]", "where to run (default auto)", 0, 0, NULL},
    {"threads", 0, OPTION_COUNT, FIELD(threads), "N", "CPU threads (default: OMP_NUM_THREADS, then all cores)", 1, 4096, NULL},
    {"batch", 0, OPTION_COUNT, FIELD(batch), "N", "windows per call of the network (default: chosen)", 1, 1024, NULL},
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "print one JSON object per PET on standard output", 0, 0, "Messages"},
    {"quiet", 'q', OPTION_FLAG, FIELD(quiet), NULL, "no progress bar and no summary; errors only", 0, 0, NULL},
    {0}};
/* clang-format on */

static int run(int argc, char **argv);

const command command_predict = {
    "predict",
    "PET... -o OUT.nii.gz [options]",
    "PET to dose map, with DVHs and an organ table where labels are given",
    "Each PET is NIfTI (.nii, .nii.gz, .nii.zst). Units, injected activity and times are read from "
    "the BIDS-PET or dcm2niix sidecar beside it (same name, .json); options override them. What is "
    "needed and not known is asked for, never guessed. The dose map has the PET's grid and "
    "orientation.",
    predict_options,
    run};

static int parse_tile(const predict_args *args, dm_predict_options *options)
{
    double n[3];
    if (!args->tile)
        return -1;
    bool whole = strcmp(args->tile, "whole") == 0;
    if (whole || strcmp(args->tile, "auto") == 0) {
        for (int a = 0; a < 3; a++)
            options->tile[a] = whole ? DM_TILE_WHOLE : DM_TILE_AUTO;
        return -1;
    }
    size_t count = number_list(args->tile, n, 3);
    if (count == 1)
        n[1] = n[2] = n[0];
    for (int a = 0; a < 3; a++) {
        if ((count != 1 && count != 3) || n[a] < 1 || n[a] > 65536 || n[a] != floor(n[a]))
            return usage_error(&command_predict,
                               "--tile wants N, X,Y,Z in voxels, 'whole' or 'auto', not '%s'",
                               args->tile);
        options->tile[a] = (size_t)n[a];
    }
    return -1;
}

/* "4G", "512MiB", "1.5T", in powers of 1024. */
static int parse_memory(const predict_args *args, dm_predict_options *options)
{
    static const char letters[] = "KMGT";
    char *end = NULL;
    if (!args->memory)
        return -1;
    double bytes = strtod(args->memory, &end);
    const char *letter = *end ? strchr(letters, *end) : NULL;
    if (letter) {
        bytes *= pow(1024, (double)(letter - letters + 1));
        end++;
        if (strcmp(end, "B") == 0 || strcmp(end, "iB") == 0)
            end += strlen(end);
    }
    if (end == args->memory || *end != '\0' || !(bytes >= 1 && bytes < 0x1p60))
        return usage_error(&command_predict, "--memory wants a size like 4G or 800M, not '%s'",
                           args->memory);
    options->memory_bytes = (size_t)bytes;
    return -1;
}

static int fill_options(const predict_args *args, double *vx, dm_predict_options *options)
{
    dm_predict_options_init(options);
    options->force_tile = args->force_tile;
    options->overlap = args->overlap;
    options->blend = args->blend == 0 ? DM_BLEND_GAUSSIAN : DM_BLEND_CONSTANT;
    options->device = args->device;
    options->threads = args->threads;
    options->batch = args->batch;
    options->activity_gbq = args->activity_gbq;
    options->nan_to_zero = args->nan_to_zero;
    if (args->skip_air && strcmp(args->skip_air, "off") == 0)
        options->skip_air = -INFINITY;
    else if (args->skip_air &&
             (!parse_number(args->skip_air, &options->skip_air) || isinf(options->skip_air)))
        return usage_error(&command_predict, "--skip-air wants a number or 'off', not '%s'",
                           args->skip_air);
    if (args->precision) {
        static const dm_precision order[] = {DM_PRECISION_AUTO, DM_PRECISION_FLOAT32,
                                             DM_PRECISION_BF16, DM_PRECISION_FP16,
                                             DM_PRECISION_TF32};
        int i = choice_index("auto|float32|bf16|fp16|tf32", args->precision);
        if (i < 0)
            return usage_error(&command_predict,
                               "--precision is auto, float32, bf16, fp16 or tf32, not '%s'",
                               args->precision);
        options->precision = order[i];
    }
    if (args->vx) {
        options->n_v_thresholds = number_list(args->vx, vx, MAX_VX);
        options->v_thresholds = vx;
        if (options->n_v_thresholds == 0)
            return usage_error(&command_predict, "--vx wants doses like 5,10,20, not '%s'",
                               args->vx);
    }
    /* Words that nobody knows are found before the first PET is read. */
    dm_pet_info unread = {0};
    dm_error err = {0};
    if (pet_args_apply(&args->pet, &unread, &err) != DM_OK)
        return usage_error(&command_predict, "%s; %s", err.what, err.remedy);
    int status = parse_tile(args, options);
    return status < 0 ? parse_memory(args, options) : status;
}

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

static dm_status output_paths(const predict_args *args, const char *pet, dm_output_paths *paths,
                              dm_error *err)
{
    char dose[4096];
    if (output_name(args, pet, dose, sizeof dose) != 0) {
        fail(err, DM_ERROR_VALUE, pet, "the output's path is too long", "");
        return err->status;
    }
    return dm_output_paths_from(dose, paths, err);
}

/* Every PET has files of its own. What NAME.nii and NAME.nii.gz would share is all but the dose map:
 * the sidecar tells them apart. Names that no output can have are reported with their PET. */
static int check_outputs_differ(const predict_args *args, const string_list *pets)
{
    char **sidecars = calloc(pets->count, sizeof *sidecars);
    int status = -1;
    if (!sidecars)
        exit_without_memory();
    for (size_t i = 0; status < 0 && i < pets->count; i++) {
        dm_output_paths paths;
        dm_error unread = {0};
        if (output_paths(args, pets->items[i], &paths, &unread) != DM_OK)
            continue;
        sidecars[i] = strdup(paths.sidecar);
        if (!sidecars[i])
            exit_without_memory();
        for (size_t j = 0; status < 0 && j < i; j++)
            if (sidecars[j] && strcmp(sidecars[i], sidecars[j]) == 0)
                status =
                    usage_error(&command_predict,
                                "%s and %s would both write %s: rename one of them, or predict "
                                "them into different folders",
                                pets->items[j], pets->items[i], sidecars[i]);
    }
    for (size_t i = 0; i < pets->count; i++)
        free(sidecars[i]);
    free(sidecars);
    return status;
}

static int check_operands(const predict_args *args, const string_list *pets)
{
    if (pets->count == 0)
        return usage_error(&command_predict, "no PET given");
    if (!args->output && !args->out_dir)
        return usage_error(&command_predict, "where to? -o OUT.nii.gz, or --out-dir DIR");
    if (args->output && args->out_dir)
        return usage_error(&command_predict, "-o and --out-dir exclude each other");
    if (args->output && pets->count > 1)
        return usage_error(&command_predict, "-o takes one PET; use --out-dir DIR for %zu",
                           pets->count);
    if (args->labels.count > 0 && args->labels.count != pets->count)
        return usage_error(&command_predict, "%zu PETs but --labels given %zu times: once for each",
                           pets->count, args->labels.count);
    return args->out_dir ? check_outputs_differ(args, pets) : -1;
}

static bool same_file(const char *a, const char *b)
{
    struct stat sa, sb;
    return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
           sa.st_ino == sb.st_ino;
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

/* Before the work of hours, too: no input is overwritten. `sidecar`: the PET's, or empty. */
static dm_status check_inputs_stay(const predict_args *args, size_t index, const char *pet,
                                   const char *sidecar, const dm_output_paths *paths, dm_error *err)
{
    const char *labels = args->labels.count ? args->labels.items[index] : NULL;
    const struct {
        const char *path, *what;
    } inputs[] = {{pet, "the PET"},
                  {sidecar, "the PET's sidecar"},
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
    char note[4352]; /* for the user, before the PET's turn */
    dm_output_paths paths;
    dm_pet_info info;
    dm_volume *pet;
    dm_labels *labels;
    dm_prediction *prediction;
} cohort_item;

typedef struct cohort_job {
    const predict_args *args;
    const string_list *pets;
    const dm_model *model;
    dm_predictor *predictor;
    const char *command_line;
    cohort_item *items; /* COHORT_PLACES */
    int exit_status;
    pthread_mutex_t
        screen; /* of what is on it: messages come from one thread, the bar from another */
    progress_bar bar;
} cohort_job;

static cohort_item *item_of(const cohort_job *job, size_t index)
{
    return &job->items[index % COHORT_PLACES];
}

/* The option that an earlier prediction was made without or with another value of, or NULL. */
static const char *other_option(const cohort_job *job, const json_t *sidecar,
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
    if (!isnan(args->overlap) && json_number_value(overlap) != args->overlap)
        return "--overlap";
    if (args->labels.count > 0 &&
        (!dose_sidecar_has_output(sidecar, "dvh") || access(paths->dvh, R_OK) != 0 ||
         !dose_sidecar_has_output(sidecar, "organs") || access(paths->organs, R_OK) != 0))
        return "--labels";
    return NULL;
}

static bool is_finished(const cohort_job *job, cohort_item *item)
{
    const char *dose = item->paths.dose;
    if (!dm_prediction_is_complete(dose))
        return false;
    json_t *sidecar = NULL;
    dm_error unread = {0};
    if (!dose_sidecar_load(dose, &sidecar, &unread))
        return false;
    const char *other = other_option(job, sidecar, &item->paths);
    json_decref(sidecar);
    if (other)
        snprintf(item->note, sizeof item->note,
                 "dosemap: %s is finished, but with another %s: made again\n", dose, other);
    else
        snprintf(item->note, sizeof item->note, "dosemap: %s is finished, skipped\n", dose);
    return !other;
}

static dm_status read_item(const cohort_job *job, size_t index, cohort_item *item)
{
    const predict_args *args = job->args;
    dm_error *err = &item->err;
    dm_status status = output_paths(args, item->pet_path, &item->paths, err);
    if (status != DM_OK || (status = check_folder(item->paths.dose, err)) != DM_OK)
        return status;
    item->skipped = args->resume && is_finished(job, item);
    if (item->skipped)
        return DM_OK;
    if ((status = dm_pet_info_read(item->pet_path, &item->info, err)) == DM_OK &&
        (status = check_inputs_stay(args, index, item->pet_path, item->info.sidecar, &item->paths,
                                    err)) == DM_OK &&
        (status = dm_volume_read(item->pet_path, &item->pet, err)) == DM_OK &&
        (status = pet_args_apply(&args->pet, &item->info, err)) == DM_OK)
        status = read_labels(args, index, item->pet, &item->labels, err);
    return status;
}

static void drop_inputs(cohort_item *item)
{
    dm_labels_free(item->labels);
    dm_volume_free(item->pet);
    item->labels = NULL;
    item->pet = NULL;
}

/* ---- Stages of a cohort --------------------------------------------------------------------- */

static void read_stage(void *context, size_t index)
{
    cohort_job *job = context;
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
    const cohort_job *job = context;
    const predict_args *args = job->args;
    const char *inputs[] = {job->pets->items[index],
                            args->labels.count ? args->labels.items[index] : NULL};
    for (size_t before = index > 2 ? index - 2 : 0; before < index; before++) {
        char output[4096];
        if (output_name(args, job->pets->items[before], output, sizeof output) != 0)
            continue;
        const char *name = file_name(output), *suffix = strstr(name, ".nii");
        size_t stem = suffix ? (size_t)(suffix - name) : strlen(name);
        for (size_t i = 0; i < 2; i++)
            if (inputs[i] && strncmp(file_name(inputs[i]), name, stem) == 0)
                return false;
    }
    return true;
}

/* For the next PET, and for the last one's dose map. */
static bool has_room(void *context, size_t index)
{
    cohort_job *job = context;
    const cohort_item *item = item_of(job, index);
    if (item->status != DM_OK || item->skipped)
        return item->status != DM_ERROR_MEMORY;
    return dm_predictor_reserve(job->predictor, &item->pet->grid, item->labels, 2);
}

static void read_again(void *context, size_t index)
{
    cohort_job *job = context;
    const cohort_item *item = item_of(job, index);
    if (item->status != DM_ERROR_MEMORY)
        return;
    read_stage(context, index);
    /* Alone now: nothing beside it, whatever was reserved for the PET before. */
    if (item->status == DM_OK && !item->skipped)
        dm_predictor_reserve(job->predictor, &item->pet->grid, item->labels, 0);
}

static int show_progress(void *user, double share, const char *stage)
{
    cohort_job *job = user;
    pthread_mutex_lock(&job->screen);
    int stop = progress_show(&job->bar, share, stage);
    pthread_mutex_unlock(&job->screen);
    return stop;
}

static void predict_stage(void *context, size_t index)
{
    cohort_job *job = context;
    cohort_item *item = item_of(job, index);
    if (item->status != DM_OK || item->skipped)
        return;
    pthread_mutex_lock(&job->screen);
    progress_begin(&job->bar, file_name(item->pet_path), job->args->quiet || job->args->json);
    pthread_mutex_unlock(&job->screen);
    item->status = dm_predictor_run(job->predictor, item->pet, &item->info, item->labels,
                                    &item->prediction, &item->err);
    drop_inputs(item);
    pthread_mutex_lock(&job->screen);
    progress_hide(&job->bar);
    pthread_mutex_unlock(&job->screen);
}

static void announce_stage(void *context, size_t index)
{
    cohort_job *job = context;
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
    cohort_job *job = context;
    const predict_args *args = job->args;
    cohort_item *item = item_of(job, index);
    if (item->skipped)
        return;
    dm_sources sources = {item->pet_path, args->labels.count ? args->labels.items[index] : NULL,
                          job->command_line};
    if (item->status == DM_OK)
        item->status = dm_prediction_write(item->prediction, item->paths.dose, &sources,
                                           args->threads, &item->err);
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

static int predict_all(cohort_job *job)
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

static char *join_arguments(int argc, char **argv)
{
    size_t size = 1, used = 0;
    for (int i = 0; i < argc; i++)
        size += strlen(argv[i]) + 1;
    char *line = calloc(size, 1);
    for (int i = 0; line && i < argc; i++)
        used += (size_t)snprintf(line + used, size - used, "%s%s", i ? " " : "", argv[i]);
    return line;
}

static int run(int argc, char **argv)
{
    predict_args args = {.activity_gbq = NAN, .overlap = NAN};
    pet_args_init(&args.pet);
    string_list pets = {0};
    double vx[MAX_VX];
    dm_predict_options options;
    dm_model *model = NULL;
    dm_error err = {0};
    cohort_job job = {.args = &args, .pets = &pets, .screen = PTHREAD_MUTEX_INITIALIZER};
    char default_model[4096];

    char *line = join_arguments(argc, argv);
    if (!line)
        exit_without_memory();
    int status = options_parse(&command_predict, argc, argv, &args, &pets);
    if (status < 0)
        status = check_operands(&args, &pets);
    if (status < 0)
        status = fill_options(&args, vx, &options);
    if (status >= 0)
        goto done;
    options.progress = show_progress;
    options.progress_user = &job;
    job.command_line = line;

    status = EXIT_FAILED;
    if (!args.model) {
        if (dm_default_model_path(default_model, sizeof default_model, &err) != DM_OK)
            goto failed;
        args.model = default_model;
    }
    if (dm_model_load(args.model, &model, &err) != DM_OK ||
        dm_predictor_create(model, &options, &job.predictor, &err) != DM_OK)
        goto failed;
    job.model = model;
    status = predict_all(&job);
    goto done;
failed:
    terminal_error(&err);
done:
    dm_predictor_free(job.predictor);
    dm_model_free(model);
    free(args.labels.items);
    free(pets.items);
    free(line);
    return status;
}
