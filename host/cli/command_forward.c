/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap forward: the network alone, on patches in a safetensors file. */
#include <stdio.h>
#include <stdlib.h>

#include "cli/commands.h"
#include "cli/same_file.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct forward_args {
    const char *output, *device;
    int precision, convolutions;
    unsigned threads;
    bool quiet;
} forward_args;

#define FIELD(name) offsetof(forward_args, name)

/* clang-format off */
static const option_spec forward_options[] = {
    {"output", 'o', OPTION_FILE, FIELD(output), "OUT.safetensors", "what the network makes of the patches, a tensor for each of its outputs", 0, 0, NULL},
    {"precision", 0, OPTION_CHOICE, FIELD(precision), "float32|bf16|fp16|tf32", "arithmetic of the network (default float32)", 0, 0, NULL},
    {"device", 0, OPTION_STRING, FIELD(device), "auto|cpu|cuda[:N]", "where to run (default auto)", 0, 0, NULL},
    {"threads", 0, OPTION_COUNT, FIELD(threads), "N", "CPU threads (default: OMP_NUM_THREADS, then all cores)", 1, 4096, NULL},
    {"convolutions", 0, OPTION_CHOICE, FIELD(convolutions), "auto|library|own", "who computes them; library on the CPU: oneDNN alone, nearer to exact arithmetic and in less memory, but slower (default auto)", 0, 0, NULL},
    {"quiet", 'q', OPTION_FLAG, FIELD(quiet), NULL, "no progress bar; errors only", 0, 0, NULL},
    {0}};
/* clang-format on */

static int run(int argc, char **argv);

const command command_forward = {
    "forward",
    "MODEL IN.safetensors -o OUT.safetensors [options]",
    "the network alone, on patches",
    "No tiling, no units, no intensity transforms: what the network makes of its own values, for "
    "any "
    "network, also one that cannot predict. IN.safetensors has one F32 tensor for each input, "
    "named "
    "as 'dosemap inspect MODEL' does, of shape (patches, channels, and three spatial sizes) along "
    "the network's own axes. OUT.safetensors has one for each output.",
    forward_options,
    run};

static int forward(const forward_args *args, const char *model_path, const char *input)
{
    static const dm_precision precisions[] = {DM_PRECISION_FLOAT32, DM_PRECISION_BF16,
                                              DM_PRECISION_FP16, DM_PRECISION_TF32};
    dm_forward_options options;
    progress_bar bar;
    dm_model *model = NULL;
    dm_error err = {0};
    dm_forward_options_init(&options);
    options.precision = precisions[args->precision];
    options.device = args->device;
    options.threads = args->threads;
    options.convolutions = (dm_convolutions)args->convolutions; /* in the order of the choices */
    options.progress = progress_show;
    options.progress_user = &bar;
    progress_begin(&bar, input, args->quiet);
    dm_status status = dm_model_load(model_path, &model, &err);
    if (status == DM_OK)
        status = dm_model_forward_file(model, input, args->output, &options, &err);
    progress_hide(&bar);
    if (status != DM_OK)
        terminal_error(&err);
    dm_model_free(model);
    return status == DM_OK ? EXIT_DONE : EXIT_FAILED;
}

static int check_arguments(const forward_args *args, const string_list *files)
{
    if (files->count != 2)
        return usage_error(&command_forward,
                           "a weights file and a file of patches are wanted, not %zu files",
                           files->count);
    if (!args->output)
        return usage_error(&command_forward, "where to? -o OUT.safetensors");
    if (same_file(args->output, files->items[0]) || same_file(args->output, files->items[1]))
        return usage_error(&command_forward, "-o %s would overwrite an input", args->output);
    return -1;
}

static int run(int argc, char **argv)
{
    forward_args args = {0};
    string_list files = {0};
    int status = options_parse(&command_forward, argc, argv, &args, &files);
    if (status < 0)
        status = check_arguments(&args, &files);
    if (status < 0)
        status = forward(&args, files.items[0], files.items[1]);
    free(files.items);
    return status;
}
