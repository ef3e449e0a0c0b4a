/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap inspect: what is in a weights file, the plan for one tile, and what it costs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/running_options.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct inspect_args {
    const char *tile;
    int precision;
    int plan;
    unsigned batch;
    double windows;
    int convolutions;
    const char *device_properties;
    bool json;
    bool compare;
} inspect_args;

#define FIELD(name) offsetof(inspect_args, name)

/* clang-format off */
static const option_spec inspect_options[] = {
    {"tile", 0, OPTION_STRING, FIELD(tile), "N|X,Y,Z", "plan for this tile (default: the training patch)", 0, 0, NULL},
    {"precision", 0, OPTION_CHOICE, FIELD(precision), "float32|bf16|fp16|tf32", "plan for this precision (default float32)", 0, 0, NULL},
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "print JSON", 0, 0, NULL},
    {"compare", 0, OPTION_FLAG, FIELD(compare), NULL, "what differs between two weights files", 0, 0, NULL},
    {"plan", 0, OPTION_CHOICE, FIELD(plan), "cpu|cuda", "cuda: with what each operation of a GPU moves and computes", 0, 0, "What a GPU would do (with a build for CUDA; no GPU is needed)"},
    {"batch", 0, OPTION_COUNT, FIELD(batch), "N", "windows per call of the network (default: as predict chooses)", 1, 1024, NULL},
    {"windows", 0, OPTION_NUMBER, FIELD(windows), "N", "windows of the volume (default: of 200x200x450 voxels)", 1, 1e15, NULL},
    {"convolutions", 0, OPTION_CHOICE, FIELD(convolutions), "auto|library|own", "who computes convolutions (default auto)", 0, 0, NULL},
    {"device-properties", 0, OPTION_FILE, FIELD(device_properties), "FILE.json", "of the GPU, as cuDNN writes them (default: the one here, else an H100)", 0, 0, NULL},
    {0}};
/* clang-format on */

static int run(int argc, char **argv);

const command command_inspect = {"inspect",
                                 "[FILE] [options] | --compare A B",
                                 "card, graph, plan and cost of a weights file",
                                 "Without FILE the default weights are shown.",
                                 inspect_options,
                                 run};

static dm_describe_options options_of(const inspect_args *args, const size_t tile[3])
{
    static const dm_precision precisions[] = {DM_PRECISION_FLOAT32, DM_PRECISION_BF16,
                                              DM_PRECISION_FP16, DM_PRECISION_TF32};
    static const dm_convolutions convolutions[] = {DM_CONVOLUTIONS_AUTO, DM_CONVOLUTIONS_LIBRARY,
                                                   DM_CONVOLUTIONS_OWN};
    dm_describe_options options;
    dm_describe_options_init(&options);
    for (int a = 0; a < 3; a++)
        options.tile[a] = tile[a];
    options.precision = precisions[args->precision];
    options.as_json = args->json;
    options.plan = args->plan == 1 ? DM_PLAN_CUDA : DM_PLAN_CPU;
    options.batch = args->batch;
    options.windows = (size_t)args->windows;
    options.convolutions = convolutions[args->convolutions];
    options.device_properties = args->device_properties;
    return options;
}

static int inspect(const char *path, const inspect_args *args, const size_t tile[3])
{
    const dm_describe_options options = options_of(args, tile);
    dm_model *model = NULL;
    char *text = NULL, default_path[4096];
    dm_error err = {0};
    dm_status status = DM_OK;
    if (!path) {
        status = dm_default_model_path(default_path, sizeof default_path, &err);
        path = default_path;
    }
    if (status == DM_OK)
        status = dm_model_load(path, &model, &err);
    if (status == DM_OK)
        status = dm_model_describe(model, &options, &text, &err);
    if (status == DM_OK)
        fputs(text, stdout);
    else
        terminal_error(&err);
    dm_string_free(text);
    dm_model_free(model);
    return status == DM_OK ? EXIT_DONE : EXIT_FAILED;
}

static int compare(const string_list *files, const inspect_args *args)
{
    dm_model *model[2] = {NULL, NULL};
    char *text = NULL;
    dm_error err = {0};
    dm_status status = dm_model_load(files->items[0], &model[0], &err);
    if (status == DM_OK)
        status = dm_model_load(files->items[1], &model[1], &err);
    if (status == DM_OK)
        status = dm_model_compare(model[0], model[1], args->json, NULL, &text, &err);
    if (status == DM_OK)
        fputs(text, stdout);
    else
        terminal_error(&err);
    dm_string_free(text);
    dm_model_free(model[0]);
    dm_model_free(model[1]);
    return status == DM_OK ? EXIT_DONE : EXIT_FAILED;
}

static int check_arguments(const inspect_args *args, const string_list *files, size_t tile[3])
{
    if (args->compare && files->count != 2)
        return usage_error(&command_inspect, "--compare wants two weights files, not %zu",
                           files->count);
    if (args->compare && (args->tile || args->precision || args->plan))
        return usage_error(&command_inspect, "--compare looks at files, not at plans: it goes with "
                                             "--json only");
    if (!args->compare && files->count > 1)
        return usage_error(&command_inspect, "one weights file is wanted, not %zu", files->count);
    if (args->tile && !parse_edges(args->tile, tile))
        return usage_error(&command_inspect, "--tile wants N or X,Y,Z, not '%s'", args->tile);
    if (args->windows > 0 && args->windows != floor(args->windows))
        return usage_error(&command_inspect, "--windows wants a whole number");
    if (args->plan == 0 &&
        (args->batch || args->windows > 0 || args->convolutions || args->device_properties))
        return usage_error(&command_inspect, "--batch, --windows, --convolutions and "
                                             "--device-properties go with --plan cuda");
    return -1;
}

static int run(int argc, char **argv)
{
    inspect_args args = {0};
    string_list files = {0};
    size_t tile[3] = {0};
    int status = options_parse(&command_inspect, argc, argv, &args, &files);
    if (status < 0)
        status = check_arguments(&args, &files, tile);
    if (status < 0 && args.compare)
        status = compare(&files, &args);
    else if (status < 0)
        status = inspect(files.count ? files.items[0] : NULL, &args, tile);
    free(files.items);
    return status;
}
