/* SPDX-License-Identifier: Apache-2.0 */
/* The table that kernels find the voxels of structures by (kernels.h, "Voxels of structures"). */
#ifndef DOSEMAP_PREDICT_CUDA_STRUCTURE_TABLE_H
#define DOSEMAP_PREDICT_CUDA_STRUCTURE_TABLE_H

#include "dosemap.h"
#include "kernels/kernels.h"
#include "volume/label_runs.h"

#ifdef __cplusplus
extern "C" {
#endif

/* On the host, all arrays owned. */
typedef struct structure_table {
    device_run *run;
    size_t runs;
    device_tile *tile;
    unsigned *first_tile; /* [count + 1] */
    unsigned tiles, count;
} structure_table;

/* tile_voxels: of every tile but the last of each structure. Structures without voxels have no
 * tiles. Errors: MEMORY; UNSUPPORTED for more tiles than a grid has blocks. */
dm_status structure_table_make(const label_structure *structures, unsigned count,
                               unsigned tile_voxels, structure_table *table, dm_error *err);
void structure_table_free(structure_table *table);

/* Which structure has that place, and which voxel it is. */
unsigned structure_table_find(const structure_table *table, uint64_t place, uint64_t *voxel);

#ifdef __cplusplus
}
#endif

#endif
