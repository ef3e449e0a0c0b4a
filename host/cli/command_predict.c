/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap predict: PETs in, dose maps with sidecars (and DVHs, organ tables) out. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
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
    {"convolutions", 0, OPTION_CHOICE, FIELD(convolutions), "auto|library|own", "who computes them on a CUDA device: auto: what 'dosemap bench --tune' found fastest, else as library; library: cuDNN first; own: kernels of dosemap only, without cuDNN (default auto)", 0, 0, NULL},
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
    options->convolutions = (dm_convolutions)args->convolutions; /* in the order of the choices */
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
    return args->out_dir ? check_outputs_differ(args, pets) : -1;
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
    predict_job job = {.args = &args, .pets = &pets, .screen = PTHREAD_MUTEX_INITIALIZER};
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
        dm_predictor_create(model, &options, &job.predictor, &err) != DM_OK)
        goto failed;
    job.model = model;
    status = predict_cohort(&job);
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
