/* SPDX-License-Identifier: Apache-2.0 */
/* Options that say how a PET is cut and where the network runs, for every command that predicts. */
#ifndef DOSEMAP_CLI_RUNNING_OPTIONS_H
#define DOSEMAP_CLI_RUNNING_OPTIONS_H

#include "cli/options.h"
#include "dosemap.h"

typedef struct running_args {
    const char *tile, *memory, *skip_air, *precision, *device;
    double overlap;
    unsigned threads, batch;
    int blend, convolutions;
    bool force_tile, nan_to_zero;
} running_args;

void running_args_init(running_args *args);

/* Fills these of the options. Returns -1 to go on, or EXIT_USAGE after a message. */
int running_args_apply(const command *cmd, const running_args *args, dm_predict_options *options);

/* "N" or "X,Y,Z", whole numbers from 1 to 65536. False if it is neither. */
bool parse_edges(const char *text, size_t edges[3]);

/* `member` is a running_args of the options struct `type`. */
#define RUNNING_OPTION(type, member, field) (offsetof(type, member) + offsetof(running_args, field))
/* clang-format off */
#define RUNNING_OPTIONS(type, member) \
    {"tile", 0, OPTION_STRING, RUNNING_OPTION(type, member, tile), "N|X,Y,Z|whole|auto", "window in voxels of the model grid (default: the training patch); auto: what is least work within the memory, with --overlap as many voxels as half of the patch unless given", 0, 0, "Windows"}, \
    {"memory", 0, OPTION_STRING, RUNNING_OPTION(type, member, memory), "SIZE[K|M|G|T]", "memory to stay within: --tile auto chooses for it, other tiles that need more are refused (default: what the machine and its limits leave; auto uses 80 % of that)", 0, 0, NULL}, \
    {"force-tile", 0, OPTION_FLAG, RUNNING_OPTION(type, member, force_tile), NULL, "allow a tile other than the training patch for networks that normalise each patch by its own statistics", 0, 0, NULL}, \
    {"overlap", 0, OPTION_NUMBER, RUNNING_OPTION(type, member, overlap), "SHARE", "overlap of neighbouring windows, 0 to 0.9 (default 0.5; 0 for whole; see --tile auto)", 0, 0.9, NULL}, \
    {"blend", 0, OPTION_CHOICE, RUNNING_OPTION(type, member, blend), "gaussian|constant", "weighting of overlapping windows (default gaussian)", 0, 0, NULL}, \
    {"skip-air", 0, OPTION_STRING, RUNNING_OPTION(type, member, skip_air), "VALUE|off", "do not run windows whose maximum uptake is below VALUE (default: the model's)", 0, 0, NULL}, \
    {"precision", 0, OPTION_STRING, RUNNING_OPTION(type, member, precision), "auto|float32|bf16|fp16|tf32", "arithmetic of the network (default auto: the fastest that the model's card vouches for)", 0, 0, "Running"}, \
    {"device", 0, OPTION_STRING, RUNNING_OPTION(type, member, device), "auto|cpu|cuda[:N,M|:all]", "where to run (default auto)", 0, 0, NULL}, \
    {"threads", 0, OPTION_COUNT, RUNNING_OPTION(type, member, threads), "N", "CPU threads (default: OMP_NUM_THREADS, then all cores)", 1, 4096, NULL}, \
    {"batch", 0, OPTION_COUNT, RUNNING_OPTION(type, member, batch), "N", "windows per call of the network (default: chosen)", 1, 1024, NULL}, \
    {"convolutions", 0, OPTION_CHOICE, RUNNING_OPTION(type, member, convolutions), "auto|library|own", "who computes them on a CUDA device: auto: what 'dosemap bench --tune' found fastest, else as library; library: cuDNN first; own: kernels of dosemap only, without cuDNN (default auto)", 0, 0, NULL}
/* Of the PET's group in --help. */
#define NAN_TO_ZERO_OPTION(type, member) \
    {"nan-to-zero", 0, OPTION_FLAG, RUNNING_OPTION(type, member, nan_to_zero), NULL, "take NaN and Inf voxels as 0 instead of failing", 0, 0, NULL}
/* clang-format on */

#endif
