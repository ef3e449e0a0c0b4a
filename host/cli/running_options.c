/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/running_options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli/number_list.h"

void running_args_init(running_args *args)
{
    *args = (running_args){.overlap = NAN};
}

bool parse_edges(const char *text, size_t edges[3])
{
    double n[3];
    size_t count = number_list(text, n, 3);
    for (size_t a = 0; a < 3; a++) {
        double edge = count == 1 ? n[0] : count == 3 ? n[a] : 0;
        if (!(edge >= 1 && edge <= 65536 && edge == floor(edge)))
            return false;
        edges[a] = (size_t)edge;
    }
    return true;
}

static int parse_tile(const command *cmd, const char *text, size_t tile[3])
{
    bool whole = strcmp(text, "whole") == 0;
    if (whole || strcmp(text, "auto") == 0) {
        for (int a = 0; a < 3; a++)
            tile[a] = whole ? DM_TILE_WHOLE : DM_TILE_AUTO;
        return -1;
    }
    if (parse_edges(text, tile))
        return -1;
    return usage_error(cmd, "--tile wants N, X,Y,Z in voxels, 'whole' or 'auto', not '%s'", text);
}

/* "4G", "512MiB", "1.5T", in powers of 1024. */
static int parse_memory(const command *cmd, const char *text, size_t *memory)
{
    static const char letters[] = "KMGT";
    char *end = NULL;
    double bytes = strtod(text, &end);
    const char *letter = *end ? strchr(letters, *end) : NULL;
    if (letter) {
        bytes *= pow(1024, (double)(letter - letters + 1));
        end++;
        if (strcmp(end, "B") == 0 || strcmp(end, "iB") == 0)
            end += strlen(end);
    }
    if (end == text || *end != '\0' || !(bytes >= 1 && bytes < 0x1p60))
        return usage_error(cmd, "--memory wants a size like 4G or 800M, not '%s'", text);
    *memory = (size_t)bytes;
    return -1;
}

static int parse_precision(const command *cmd, const char *text, dm_precision *precision)
{
    static const dm_precision order[] = {DM_PRECISION_AUTO, DM_PRECISION_FLOAT32, DM_PRECISION_BF16,
                                         DM_PRECISION_FP16, DM_PRECISION_TF32};
    int i = choice_index("auto|float32|bf16|fp16|tf32", text);
    if (i < 0)
        return usage_error(cmd, "--precision is auto, float32, bf16, fp16 or tf32, not '%s'", text);
    *precision = order[i];
    return -1;
}

static int parse_skip_air(const command *cmd, const char *text, double *skip_air)
{
    if (strcmp(text, "off") == 0)
        *skip_air = -INFINITY;
    else if (!parse_number(text, skip_air) || isinf(*skip_air))
        return usage_error(cmd, "--skip-air wants a number or 'off', not '%s'", text);
    return -1;
}

int running_args_apply(const command *cmd, const running_args *args, dm_predict_options *options)
{
    int status = -1;
    options->force_tile = args->force_tile;
    options->overlap = args->overlap;
    options->blend = args->blend == 0 ? DM_BLEND_GAUSSIAN : DM_BLEND_CONSTANT;
    options->device = args->device;
    options->threads = args->threads;
    options->batch = args->batch;
    options->convolutions = (dm_convolutions)args->convolutions; /* in the order of the choices */
    options->nan_to_zero = args->nan_to_zero;
    if (args->skip_air)
        status = parse_skip_air(cmd, args->skip_air, &options->skip_air);
    if (status < 0 && args->precision)
        status = parse_precision(cmd, args->precision, &options->precision);
    if (status < 0 && args->tile)
        status = parse_tile(cmd, args->tile, options->tile);
    if (status < 0 && args->memory)
        status = parse_memory(cmd, args->memory, &options->memory_bytes);
    return status;
}
