/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap inspect: what is in a weights file, the plan for one tile, and what it costs. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/number_list.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct inspect_args {
    const char *tile;
    int precision;
    bool json;
} inspect_args;

#define FIELD(name) offsetof(inspect_args, name)

/* clang-format off */
static const option_spec inspect_options[] = {
    {"tile", 0, OPTION_STRING, FIELD(tile), "N|X,Y,Z", "plan for this tile (default: the training patch)", 0, 0, NULL},
    {"precision", 0, OPTION_CHOICE, FIELD(precision), "float32|bf16", "plan for this precision (default float32)", 0, 0, NULL},
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "print JSON", 0, 0, NULL},
    {0}};
/* clang-format on */

static int run(int argc, char **argv);

const command command_inspect = {"inspect",
                                 "[FILE] [options]",
                                 "card, graph, plan and cost of a weights file",
                                 "Without FILE the default weights are shown.",
                                 inspect_options,
                                 run};

static int inspect(const char *path, const inspect_args *args, const size_t *tile)
{
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
        status = dm_model_describe(model, tile,
                                   args->precision == 1 ? DM_PRECISION_BF16 : DM_PRECISION_FLOAT32,
                                   args->json, &text, &err);
    if (status == DM_OK)
        fputs(text, stdout);
    else
        terminal_error(&err);
    dm_string_free(text);
    dm_model_free(model);
    return status == DM_OK ? EXIT_DONE : EXIT_FAILED;
}

static int run(int argc, char **argv)
{
    inspect_args args = {0};
    string_list files = {0};
    double n[3];
    size_t tile[3], count = 0;
    int status = options_parse(&command_inspect, argc, argv, &args, &files);
    if (status < 0 && files.count > 1)
        status = usage_error(&command_inspect, "one weights file is wanted, not %zu", files.count);
    if (status < 0 && args.tile) {
        count = number_list(args.tile, n, 3);
        for (size_t a = 0; a < 3; a++) {
            double edge = count == 1 ? n[0] : count == 3 ? n[a] : 0;
            if (!(edge >= 1 && edge <= 65536 && edge == floor(edge))) {
                status =
                    usage_error(&command_inspect, "--tile wants N or X,Y,Z, not '%s'", args.tile);
                break;
            }
            tile[a] = (size_t)edge;
        }
    }
    if (status < 0)
        status = inspect(files.count ? files.items[0] : NULL, &args, count ? tile : NULL);
    free(files.items);
    return status;
}
