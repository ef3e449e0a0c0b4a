/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/structure_table.h"

#include <stdlib.h>

#include "base/error.h"

#define MAX_TILES ((size_t)0x7fffffff) /* blocks of a grid */

static size_t tiles_of(const label_structure *structure, unsigned tile_voxels)
{
    return structure->voxels / tile_voxels + (structure->voxels % tile_voxels > 0);
}

/* Runs from place `place` on, and which run each tile begins and ends in. Returns the next place. */
static uint64_t add_structure(const label_structure *structure, unsigned number,
                              unsigned tile_voxels, uint64_t place, structure_table *table)
{
    uint64_t end = place + structure->voxels, next_tile = place;
    for (size_t r = 0; r < structure->n_runs; r++) {
        const label_run *run = &structure->runs[r];
        uint64_t behind = place + run->length;
        if (run->length == 0)
            continue;
        table->run[table->runs] = (device_run){place, run->start};
        if (place < next_tile) /* the tile before goes on in this run */
            table->tile[table->tiles - 1].runs++;
        for (; next_tile < behind; next_tile += tile_voxels) {
            uint64_t left = end - next_tile;
            table->tile[table->tiles++] =
                (device_tile){.place = next_tile,
                              .run = table->runs,
                              .runs = 1,
                              .voxels = left < tile_voxels ? (unsigned)left : tile_voxels,
                              .structure = number};
        }
        table->runs++;
        place = behind;
    }
    return place;
}

dm_status structure_table_make(const label_structure *structures, unsigned count,
                               unsigned tile_voxels, structure_table *table, dm_error *err)
{
    size_t runs = 0, tiles = 0;
    uint64_t place = 0;
    *table = (structure_table){.count = count};
    for (unsigned s = 0; s < count; s++) {
        runs += structures[s].n_runs;
        tiles += tiles_of(&structures[s], tile_voxels);
        if (tiles > MAX_TILES)
            return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use --device cpu",
                             "the structures have more voxels than a device can count");
    }
    table->run = array_alloc(runs, sizeof *table->run);
    table->tile = array_alloc(tiles, sizeof *table->tile);
    table->first_tile = array_alloc((size_t)count + 1, sizeof *table->first_tile);
    if (!table->run || !table->tile || !table->first_tile) {
        structure_table_free(table);
        return error_memory(err, runs * sizeof *table->run, "the structures' runs");
    }
    for (unsigned s = 0; s < count; s++) {
        table->first_tile[s] = table->tiles;
        place = add_structure(&structures[s], s, tile_voxels, place, table);
    }
    table->first_tile[count] = table->tiles;
    return DM_OK;
}

void structure_table_free(structure_table *table)
{
    free(table->run);
    free(table->tile);
    free(table->first_tile);
    *table = (structure_table){0};
}

unsigned structure_table_find(const structure_table *table, uint64_t place, uint64_t *voxel)
{
    size_t run = 0, tile = 0;
    while (run + 1 < table->runs && table->run[run + 1].place <= place)
        run++;
    while (tile + 1 < table->tiles && table->tile[tile + 1].place <= place)
        tile++;
    *voxel = table->run[run].voxel + (place - table->run[run].place);
    return table->tile[tile].structure;
}
