/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of dm_labels: each structure as runs of voxels along x, in ascending order. One form for
 * multi-label files and for folders of overlapping masks, and the form a device receives. */
#ifndef DOSEMAP_VOLUME_LABEL_RUNS_H
#define DOSEMAP_VOLUME_LABEL_RUNS_H

#include "dosemap.h"

typedef struct label_run {
    uint64_t start;  /* linear voxel index, x fastest */
    uint32_t length; /* voxels; a run does not cross a row */
} label_run;

typedef struct label_structure {
    char *name;
    int32_t id;
    size_t voxels;
    size_t n_runs;
    label_run *runs;
} label_structure;

struct dm_labels {
    dm_grid grid;
    size_t count;
    label_structure *structures;
};

#endif
