/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap predict: PETs in, dose maps with sidecars (and DVHs, organ tables) out. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/dose_sidecar.h"
#include "cli/json_work.h"
#include "cli/number_list.h"
#include "cli/pet_options.h"
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

/* DIR/NAME_dose.nii.gz for NAME_pet.nii.gz, keeping the input's compression. */
static int output_name(const predict_args *args, const char *pet, char *out, size_t size)
{
    if (args->output)
        return snprintf(out, size, "%s", args->output) < (int)size ? 0 : -1;
    const char *base = strrchr(pet, '/') ? strrchr(pet, '/') + 1 : pet;
    const char *suffix = strstr(base, ".nii");
    size_t stem = suffix ? (size_t)(suffix - base) : strlen(base);
    if (stem > 4 && strncmp(base + stem - 4, "_pet", 4) == 0)
        stem -= 4;
    return snprintf(out, size, "%s/%.*s_dose%s", args->out_dir, (int)stem, base,
                    suffix ? suffix : ".nii.gz") < (int)size
               ? 0
               : -1;
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
    for (size_t i = 0; args->out_dir && i < pets->count; i++)
        for (size_t j = 0; j < i; j++) {
            char a[4096], b[4096];
            if (output_name(args, pets->items[i], a, sizeof a) == 0 &&
                output_name(args, pets->items[j], b, sizeof b) == 0 && strcmp(a, b) == 0)
                return usage_error(&command_predict, "%s and %s would both become %s",
                                   pets->items[j], pets->items[i], a);
        }
    return -1;
}

static void fail(dm_error *err, dm_status status, const char *where, const char *what,
                 const char *remedy)
{
    err->status = status;
    snprintf(err->where, sizeof err->where, "%.511s", where);
    snprintf(err->what, sizeof err->what, "%.511s", what);
    snprintf(err->remedy, sizeof err->remedy, "%.511s", remedy);
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

static void print_json(const char *pet, const dm_output_paths *paths,
                       const dm_prediction *prediction)
{
    json_t *object = json_object();
    json_object_set_new(object, "pet", json_string(pet));
    json_object_set_new(object, "dose", json_string(paths->dose));
    json_object_set_new(object, "sidecar", json_string(paths->sidecar));
    const dm_dvh *dvh = dm_prediction_dvh(prediction);
    char *organs = NULL;
    if (dvh) {
        if (dm_dvh_json(dvh, &organs, NULL) != DM_OK)
            exit_without_memory();
        json_object_set_new(object, "dvh", json_string(paths->dvh));
        json_object_set_new(object, "organs", json_string(paths->organs));
        json_object_set_new(object, "structures", json_loads(organs, 0, NULL));
        dm_string_free(organs);
    }
    json_object_set_new(object, "provenance",
                        json_loads(dm_prediction_provenance_json(prediction), 0, NULL));
    json_dumpf(object, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(object);
}

/* Nobody should take a constructed example for a trained network. */
static void print_weights(const dm_prediction *prediction)
{
    json_t *provenance = json_loads(dm_prediction_provenance_json(prediction), 0, NULL);
    const json_t *model = json_object_get(provenance, "Model");
    const char *name = json_string_value(json_object_get(model, "Name"));
    const json_t *trained = json_object_get(model, "Trained");
    printf("weights      %s%s\n", name ? name : "without a name",
           json_is_false(trained) ? ": constructed, NOT TRAINED" : "");
    json_decref(provenance);
}

/* What --tile auto chose, in options that repeat it. */
static void print_tile(const char *pet, const dm_prediction *prediction)
{
    json_t *provenance = json_loads(dm_prediction_provenance_json(prediction), 0, NULL);
    const json_t *options = json_object_get(provenance, "Options");
    const json_t *tile = json_object_get(options, "Tile");
    const json_t *windows = json_object_get(provenance, "Windows");
    json_int_t n[3], all = json_integer_value(json_object_get(windows, "Run")) +
                           json_integer_value(json_object_get(windows, "Skipped"));
    for (size_t a = 0; a < 3; a++)
        n[a] = json_integer_value(json_array_get(tile, a));
    if (json_is_true(json_object_get(options, "TileChosen")))
        fprintf(stderr,
                "dosemap: %s: --tile %lld,%lld,%lld --overlap %g, %lld window%s, about %.2f GiB\n",
                pet, (long long)n[0], (long long)n[1], (long long)n[2],
                json_number_value(json_object_get(options, "Overlap")), (long long)all,
                all == 1 ? "" : "s",
                json_number_value(json_object_get(options, "MemoryNeeded")) / 0x1p30);
    json_decref(provenance);
}

static void report(const predict_args *args, const char *pet, const dm_output_paths *paths,
                   const dm_prediction *prediction)
{
    bool has_dvh = dm_prediction_dvh(prediction) != NULL;
    json_work_begin();
    if (args->json) {
        print_json(pet, paths, prediction);
    } else if (!args->quiet) {
        print_tile(pet, prediction);
        printf("dose map     %s\nsidecar      %s\n", paths->dose, paths->sidecar);
        if (has_dvh)
            printf("DVH          %s\norgan table  %s\n", paths->dvh, paths->organs);
        print_weights(prediction);
    }
    json_work_end();
    fflush(stdout);
}

typedef struct cohort_job {
    const predict_args *args;
    const dm_model *model;
    dm_predictor *predictor;
    const char *command_line;
} cohort_job;

/* The option that an earlier prediction was made without or with another value of, or NULL. */
static const char *other_option(const cohort_job *cohort, const json_t *sidecar,
                                const dm_output_paths *paths)
{
    const predict_args *args = cohort->args;
    const json_t *activity = json_object_get(sidecar, "TherapyActivityGBq");
    const json_t *overlap = json_object_get(json_object_get(sidecar, "Options"), "Overlap");
    const char *model =
        json_string_value(json_object_get(json_object_get(sidecar, "Model"), "Name"));
    if (isnan(args->activity_gbq) ? json_is_number(activity)
                                  : json_number_value(activity) != args->activity_gbq)
        return "--activity";
    if (!model || strcmp(model, dm_model_name(cohort->model)) != 0)
        return "--model";
    if (!isnan(args->overlap) && json_number_value(overlap) != args->overlap)
        return "--overlap";
    if (args->labels.count > 0 &&
        (!dose_sidecar_has_output(sidecar, "dvh") || access(paths->dvh, R_OK) != 0 ||
         !dose_sidecar_has_output(sidecar, "organs") || access(paths->organs, R_OK) != 0))
        return "--labels";
    return NULL;
}

static bool is_finished(const cohort_job *cohort, const dm_output_paths *paths)
{
    if (!dm_prediction_is_complete(paths->dose))
        return false;
    json_t *sidecar = NULL;
    dm_error unread = {0};
    if (!dose_sidecar_load(paths->dose, &sidecar, &unread))
        return false;
    const char *other = other_option(cohort, sidecar, paths);
    json_decref(sidecar);
    if (!cohort->args->quiet && other)
        fprintf(stderr, "dosemap: %s is finished, but with another %s: made again\n", paths->dose,
                other);
    else if (!cohort->args->quiet)
        fprintf(stderr, "dosemap: %s is finished, skipped\n", paths->dose);
    return !other;
}

static dm_status predict_one(const cohort_job *cohort, const char *pet_path, size_t index,
                             dm_error *err)
{
    const predict_args *args = cohort->args;
    dm_volume *pet = NULL;
    dm_labels *labels = NULL;
    dm_prediction *prediction = NULL;
    dm_pet_info info;
    dm_output_paths paths;
    char dose[4096];

    if (output_name(args, pet_path, dose, sizeof dose) != 0) {
        fail(err, DM_ERROR_VALUE, pet_path, "the output's path is too long", "");
        return err->status;
    }
    dm_status status = dm_output_paths_from(dose, &paths, err);
    if (status != DM_OK || (status = check_folder(dose, err)) != DM_OK)
        return status;
    if (args->resume && is_finished(cohort, &paths))
        return DM_OK;
    if ((status = dm_pet_info_read(pet_path, &info, err)) != DM_OK ||
        (status = check_inputs_stay(args, index, pet_path, info.sidecar, &paths, err)) != DM_OK ||
        (status = dm_volume_read(pet_path, &pet, err)) != DM_OK ||
        (status = pet_args_apply(&args->pet, &info, err)) != DM_OK ||
        (status = read_labels(args, index, pet, &labels, err)) != DM_OK ||
        (status = dm_predictor_run(cohort->predictor, pet, &info, labels, &prediction, err)) !=
            DM_OK)
        goto done;
    dm_sources sources = {pet_path, args->labels.count ? args->labels.items[index] : NULL,
                          cohort->command_line};
    status = dm_prediction_write(prediction, dose, &sources, args->threads, err);
    if (status == DM_OK)
        report(args, pet_path, &paths, prediction);
done:
    if (status != DM_OK && err->where[0] == '\0')
        snprintf(err->where, sizeof err->where, "%.511s", pet_path);
    dm_prediction_free(prediction);
    dm_labels_free(labels);
    dm_volume_free(pet);
    return status;
}

static int predict_all(cohort_job *cohort, const string_list *pets, progress_bar *bar)
{
    int exit_status = EXIT_DONE;
    if (cohort->args->out_dir)
        make_folder(cohort->args->out_dir);
    for (size_t i = 0; i < pets->count; i++) {
        dm_error err = {0};
        const char *slash = strrchr(pets->items[i], '/');
        progress_begin(bar, slash ? slash + 1 : pets->items[i],
                       cohort->args->quiet || cohort->args->json);
        dm_status status = predict_one(cohort, pets->items[i], i, &err);
        progress_end(bar);
        if (status != DM_OK) {
            terminal_error(&err);
            exit_status = EXIT_FAILED;
        }
    }
    return exit_status;
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
    progress_bar bar = {0};
    cohort_job cohort = {&args, NULL, NULL, NULL};
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
    options.progress = progress_show;
    options.progress_user = &bar;
    cohort.command_line = line;

    status = EXIT_FAILED;
    if (!args.model) {
        if (dm_default_model_path(default_model, sizeof default_model, &err) != DM_OK)
            goto failed;
        args.model = default_model;
    }
    if (dm_model_load(args.model, &model, &err) != DM_OK ||
        dm_predictor_create(model, &options, &cohort.predictor, &err) != DM_OK)
        goto failed;
    cohort.model = model;
    status = predict_all(&cohort, &pets, &bar);
    goto done;
failed:
    terminal_error(&err);
done:
    dm_predictor_free(cohort.predictor);
    dm_model_free(model);
    free(args.labels.items);
    free(pets.items);
    free(line);
    return status;
}
