/* SPDX-License-Identifier: Apache-2.0 */
/* Building dm_labels, for those who read them from files. */
#ifndef DOSEMAP_VOLUME_LABELS_H
#define DOSEMAP_VOLUME_LABELS_H

#include "dosemap.h"
#include "volume/label_names.h"
#include "volume/label_runs.h"

/* `count` empty structures without ids and names. Checks the grid and derives its spacing. */
dm_status labels_new(const dm_grid *grid, size_t count, dm_labels **labels, dm_error *err);

/* name NULL: "label_ID". */
dm_status structure_name(label_structure *structure, const char *name, dm_error *err);

/* Appends voxels [start, start + length), which must lie behind all others and in one row. */
dm_status structure_add_run(label_structure *structure, uint64_t start, uint32_t length,
                            dm_error *err);

/* mask: one byte per voxel of the grid, non-zero is inside. */
dm_status structure_from_mask(label_structure *structure, const dm_grid *grid, const uint8_t *mask,
                              dm_error *err);

/* One structure for each non-zero id; names may be NULL. */
dm_status labels_from_ids(const dm_grid *grid, const int32_t *ids, const label_names *names,
                          dm_labels **labels, dm_error *err);

#endif
