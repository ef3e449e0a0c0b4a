/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap predict: PETs in, dose maps with sidecars (and DVHs, organ tables) out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/ct_options.h"
#include "cli/json_work.h"
#include "cli/number_list.h"
#include "cli/predict_cohort.h"
#include "cli/terminal.h"
#include "dosemap.h"

#define FIELD(name) offsetof(predict_args, name)
#define PET_FIELD(name) offsetof(predict_args, pet.name)

/* clang-format off */
static const option_spec predict_options[] = {
    {"output", 'o', OPTION_FILE, FIELD(output), "OUT.nii[.gz|.zst]", "dose map to write (one PET); OUT.json, and with --labels OUT_dvh.tsv and OUT_organs.tsv, appear beside it", 0, 0, "Output"},
    {"out-dir", 0, OPTION_FILE, FIELD(out_dir), "DIR", "folder for the outputs of several PETs, made if it is missing: NAME_pet.nii.gz becomes DIR/NAME_dose.nii.gz", 0, 0, NULL},
    {"activity", 'a', OPTION_NUMBER, FIELD(activity_gbq), "GBQ", "therapy activity administered; the map is then in Gy, without it in Gy/GBq", 1e-6, 200, NULL},
    {"resume", 0, OPTION_FLAG, FIELD(resume), NULL, "skip PETs whose dose map is finished, with the same --activity, --model, --overlap and --ct, and with tables if --labels is given", 0, 0, NULL},
    {"model", 'm', OPTION_FILE, FIELD(model), "FILE", "network weights (default: $DOSEMAP_MODEL, then the installed ones)", 0, 0, "Model"},
    PET_OPTIONS(predict_args, pet),
    NAN_TO_ZERO_OPTION(predict_args, running),
    CT_OPTIONS(FIELD(ct), OPTION_FILE_LIST, FIELD(ct_is_hu), "; with several PETs once for each, in their order"),
    {"labels", 'l', OPTION_FILE_LIST, FIELD(labels), "FILE|DIR", "structures for the DVHs: one multi-label file, or a folder with a mask per structure; with several PETs once for each, in their order", 0, 0, "Structures"},
    {"label-names", 0, OPTION_FILE, FIELD(label_names), "FILE", "JSON or TSV with the names of the ids, or totalsegmentator:total, totalsegmentator:head_glands_cavities", 0, 0, NULL},
    {"resample-labels", 0, OPTION_FLAG, FIELD(resample_labels), NULL, "bring labels from another grid onto the PET's by nearest neighbour", 0, 0, NULL},
    {"vx", 0, OPTION_STRING, FIELD(vx), "D[,D...]", "also report the volume that receives at least D (in the map's unit)", 0, 0, NULL},
    RUNNING_OPTIONS(predict_args, running),
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "print one JSON object per PET on standard output", 0, 0, "Messages"},
    {"quiet", 'q', OPTION_FLAG, FIELD(quiet), NULL, "no progress bar and no summary; errors only", 0, 0, NULL},
    {0}};
/* clang-format on */

static int run(int argc, char **argv);

const command command_predict = {
    "predict",
    "PET... -o OUT.nii.gz [options]",
    "PET (and CT) to dose map, with DVHs and an organ table where labels are given",
    "Each PET is NIfTI (.nii, .nii.gz, .nii.zst). Units, injected activity and times are read from "
    "the BIDS-PET or dcm2niix sidecar beside it (same name, .json); options override them. What is "
    "needed and not known is asked for, never guessed. The dose map has the PET's grid and "
    "orientation.",
    predict_options,
    run};

static int fill_options(const predict_args *args, double *vx, dm_predict_options *options)
{
    dm_predict_options_init(options);
    options->activity_gbq = args->activity_gbq;
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
    return running_args_apply(&command_predict, &args->running, options);
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
        if (predict_output_paths(args, pets->items[i], &paths, &unread) != DM_OK)
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
    if (args->ct.count > 0 && args->ct.count != pets->count)
        return usage_error(&command_predict, "%zu PETs but --ct given %zu times: once for each",
                           pets->count, args->ct.count);
    return args->out_dir ? check_outputs_differ(args, pets) : -1;
}

static int run(int argc, char **argv)
{
    predict_args args = {.activity_gbq = NAN};
    pet_args_init(&args.pet);
    running_args_init(&args.running);
    string_list pets = {0};
    double vx[MAX_VX];
    dm_predict_options options;
    dm_model *model = NULL;
    dm_error err = {0};
    predict_job job = {.args = &args, .pets = &pets, .screen = PTHREAD_MUTEX_INITIALIZER};
    char default_model[4096];

    char *line = command_line(argc, argv);
    if (!line)
        exit_without_memory();
    int status = options_parse(&command_predict, argc, argv, &args, &pets);
    if (status < 0)
        status = check_operands(&args, &pets);
    if (status < 0)
        status = fill_options(&args, vx, &options);
    if (status >= 0)
        goto done;
    options.progress = predict_progress;
    options.progress_user = &job;
    job.command_line = line;

    status = EXIT_FAILED;
    if (!args.model) {
        if (dm_default_model_path(default_model, sizeof default_model, &err) != DM_OK)
            goto failed;
        args.model = default_model;
    }
    if (dm_model_load(args.model, &model, &err) != DM_OK ||
        dm_predictor_create(model, &options, &job.predictor, &err) != DM_OK ||
        ct_check(model, args.ct.count > 0, &err) != DM_OK)
        goto failed;
    job.model = model;
    status = predict_cohort(&job);
    goto done;
failed:
    terminal_error(&err);
done:
    dm_predictor_free(job.predictor);
    dm_model_free(model);
    free(args.ct.items);
    free(args.labels.items);
    free(pets.items);
    free(line);
    return status;
}
