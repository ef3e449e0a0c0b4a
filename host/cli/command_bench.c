/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap bench: how fast this installation is on this machine, and how near to what bounds it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/ct_options.h"
#include "cli/json_work.h"
#include "cli/pet_options.h"
#include "cli/running_options.h"
#include "cli/same_file.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct bench_args {
    const char *model, *ct, *size, *json;
    running_args running;
    pet_args pet;
    int scenario;
    unsigned runs, warmup;
    bool ct_is_hu, layers, tune, quiet;
} bench_args;

#define FIELD(name) offsetof(bench_args, name)

/* clang-format off */
static const option_spec bench_options[] = {
    {"scenario", 0, OPTION_CHOICE, FIELD(scenario), "all|offline|single-stream|volume", "offline: windows a second of the network alone, on the first of several GPUs; single-stream: latency of one window; volume: PET in memory to dose map in memory (default all)", 0, 0, "What is measured"},
    {"size", 0, OPTION_STRING, FIELD(size), "N|X,Y,Z", "voxels of the PET that is made where none is named (default: 200,200,450 on a GPU, 128,128,256 on the CPU)", 0, 0, NULL},
    {"layers", 0, OPTION_FLAG, FIELD(layers), NULL, "the network's steps one by one as well, with what they move and compute", 0, 0, NULL},
    {"runs", 0, OPTION_COUNT, FIELD(runs), "N", "runs of each scenario (default: 10; of single-stream 100, of volume 3)", 1, 100000, NULL},
    {"warmup", 0, OPTION_COUNT, FIELD(warmup), "N", "runs before these, which do not count (default: 2; of volume 1)", 1, 100000, NULL},
    {"tune", 0, OPTION_FLAG, FIELD(tune), NULL, "first find out who computes each convolution fastest on this GPU, and keep that for later predictions", 0, 0, NULL},
    {"model", 'm', OPTION_FILE, FIELD(model), "FILE", "network weights (default: $DOSEMAP_MODEL, then the installed ones)", 0, 0, "Model"},
    PET_OPTIONS(bench_args, pet),
    NAN_TO_ZERO_OPTION(bench_args, running),
    CT_OPTIONS(FIELD(ct), OPTION_FILE, FIELD(ct_is_hu), ""),
    RUNNING_OPTIONS(bench_args, running),
    {"json", 0, OPTION_FILE, FIELD(json), "FILE|-", "write all figures as one JSON object, to a file or (-) to standard output in the place of the summary", 0, 0, "Messages"},
    {"quiet", 'q', OPTION_FLAG, FIELD(quiet), NULL, "no progress bar and no summary; errors only", 0, 0, NULL},
    {0}};
/* clang-format on */

static int run(int argc, char **argv);

const command command_bench = {
    "bench",
    "[PET] [options]",
    "how fast this installation predicts on this machine",
    "Measures the network alone and whole volumes after a warm-up, and in the same run what bounds "
    "them: copying memory, a large matrix product. Nothing is written but the --json file, and "
    "what --tune finds. Without a PET one is made, the same every time.",
    bench_options,
    run};

typedef struct bench_work {
    const bench_args *args;
    dm_predict_options predict;
    dm_benchmark_options options;
    const char *pet_path;
    dm_model *model;
    dm_volume *pet, *ct;
    dm_pet_info info;
    dm_ct_info ct_info;
    progress_bar bar;
} bench_work;

static bool is_file(const char *json)
{
    return json && strcmp(json, "-") != 0;
}

static int check_arguments(bench_work *w, const string_list *pets)
{
    static const unsigned scenarios[] = {DM_SCENARIO_ALL, DM_SCENARIO_OFFLINE,
                                         DM_SCENARIO_SINGLE_STREAM, DM_SCENARIO_VOLUME};
    const bench_args *args = w->args;
    dm_error err = {0};
    if (pets->count > 1)
        return usage_error(&command_bench, "one PET is measured, not %zu", pets->count);
    if (pets->count == 1 && args->size)
        return usage_error(&command_bench, "--size is for a PET that is made, not for %s",
                           pets->items[0]);
    if (pets->count == 0 && args->ct)
        return usage_error(&command_bench, "--ct %s belongs to a PET, and none is named", args->ct);
    if (args->json && !*args->json)
        return usage_error(&command_bench, "--json wants a file or -, not ''");
    if (is_file(args->json) &&
        (same_file(args->json, args->model) || same_file(args->json, args->ct) ||
         (pets->count == 1 && same_file(args->json, pets->items[0]))))
        return usage_error(&command_bench, "--json %s would overwrite an input", args->json);
    if (args->size && !parse_edges(args->size, w->options.size))
        return usage_error(&command_bench,
                           "--size wants N or X,Y,Z, 1 to 65536 voxels each, not '%s'", args->size);
    if (pet_args_apply(&args->pet, &w->info, &err) != DM_OK)
        return usage_error(&command_bench, "%s; %s", err.what, err.remedy);
    w->options.scenarios = scenarios[args->scenario];
    w->options.runs = args->runs;
    w->options.warmup = args->warmup;
    w->options.layers = args->layers;
    w->options.tune = args->tune;
    w->pet_path = pets->count ? pets->items[0] : NULL;
    return running_args_apply(&command_bench, &args->running, &w->predict);
}

/* Before minutes of work: is there a folder for the file? */
static dm_status check_folder(const char *json, dm_error *err)
{
    char folder[4096];
    struct stat there;
    const char *slash = strrchr(json, '/');
    int length = slash ? (int)(slash - json) + 1 : 1;
    snprintf(folder, sizeof folder, "%.*s", length, slash ? json : ".");
    bool is_folder = stat(json, &there) == 0 && S_ISDIR(there.st_mode);
    if (!is_folder && access(folder, W_OK) == 0)
        return DM_OK;
    err->status = DM_ERROR_IO;
    snprintf(err->where, sizeof err->where, "%s", json);
    snprintf(err->what, sizeof err->what, "cannot be written: %s",
             strerror(is_folder ? EISDIR : errno));
    snprintf(err->remedy, sizeof err->remedy, "name another file with --json");
    return err->status;
}

/* Nor those that no argument names: the model that is used by default, the PET's sidecar. */
static dm_status check_inputs_stay(const char *json, const char *model, const char *sidecar,
                                   dm_error *err)
{
    const char *what = same_file(json, model)     ? "the model"
                       : same_file(json, sidecar) ? "the PET's sidecar"
                                                  : NULL;
    if (!is_file(json) || !what)
        return DM_OK;
    err->status = DM_ERROR_VALUE;
    snprintf(err->where, sizeof err->where, "%s", json);
    snprintf(err->what, sizeof err->what, "this report would overwrite %s", what);
    snprintf(err->remedy, sizeof err->remedy, "name another file with --json");
    return err->status;
}

static dm_status load(bench_work *w, dm_error *err)
{
    const char *path = w->args->model;
    char default_model[4096];
    dm_status status = is_file(w->args->json) ? check_folder(w->args->json, err) : DM_OK;
    if (status == DM_OK && !path) {
        status = dm_default_model_path(default_model, sizeof default_model, err);
        path = default_model;
    }
    if (status == DM_OK)
        status = dm_model_load(path, &w->model, err);
    if (status == DM_OK && w->pet_path) {
        status = ct_check(w->model, w->args->ct != NULL, err);
        if (status == DM_OK)
            status = dm_volume_read(w->pet_path, &w->pet, err);
        if (status == DM_OK)
            status = dm_pet_info_read(w->pet_path, &w->info, err);
        if (status == DM_OK)
            status = pet_args_apply(&w->args->pet, &w->info, err);
        if (status == DM_OK && w->args->ct)
            status = ct_read(w->args->ct, w->pet,
                             &(dm_ct_options){w->args->ct_is_hu, w->predict.nan_to_zero}, &w->ct,
                             &w->ct_info, err);
    }
    if (status == DM_OK)
        status = check_inputs_stay(w->args->json, path, w->info.sidecar, err);
    return status;
}

/* The report to where it was asked for; false after a message. */
static bool publish(const bench_work *w, const char *json)
{
    const char *path = w->args->json;
    bool written = true;
    json_work_begin();
    if (path && !is_file(path))
        printf("%s\n", json);
    else if (!w->args->quiet)
        bench_report(stdout, json);
    json_work_end();
    if (is_file(path)) {
        dm_error err = {0};
        written = dm_text_write(path, json, &err) == DM_OK;
        if (!written)
            terminal_error(&err);
    }
    return written;
}

static int bench(bench_work *w)
{
    dm_error err = {0};
    char *json = NULL;
    bool done = false;
    progress_begin(&w->bar, "bench", w->args->quiet);
    w->predict.progress = progress_show;
    w->predict.progress_user = &w->bar;
    dm_status status = load(w, &err);
    const dm_patient patient = {
        .pet = w->pet, .info = &w->info, .ct = w->ct, .ct_info = &w->ct_info};
    if (status == DM_OK)
        status =
            dm_benchmark(w->model, &w->predict, &w->options, w->pet ? &patient : NULL, &json, &err);
    progress_hide(&w->bar);
    if (status == DM_OK)
        done = publish(w, json);
    else
        terminal_error(&err);
    dm_string_free(json);
    dm_volume_free(w->ct);
    dm_volume_free(w->pet);
    dm_model_free(w->model);
    return done ? EXIT_DONE : EXIT_FAILED;
}

static int run(int argc, char **argv)
{
    bench_args args = {0};
    bench_work work = {.args = &args};
    string_list pets = {0};
    char *line = command_line(argc, argv);
    if (!line)
        exit_without_memory();
    pet_args_init(&args.pet);
    running_args_init(&args.running);
    dm_predict_options_init(&work.predict);
    dm_benchmark_options_init(&work.options);
    dm_pet_info_init(&work.info);
    int status = options_parse(&command_bench, argc, argv, &args, &pets);
    if (status < 0)
        status = check_arguments(&work, &pets);
    if (status < 0) {
        work.options.pet_path = work.pet_path;
        work.options.command_line = line;
        status = bench(&work);
    }
    free(line);
    free(pets.items);
    return status;
}
