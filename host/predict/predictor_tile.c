/* SPDX-License-Identifier: Apache-2.0 */
/* The predictor's tile: as asked for, or chosen for each volume; and whether it fits the memory. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/available_memory.h"
#include "base/error.h"
#include "predict/predictor.h"
#include "predict/tile_choice.h"

#define OVERLAP_DEFAULT 0.5
/* Of what can be had, where nobody said how much: others want some too. */
#define AUTO_SHARE 0.8
/* Libraries' workspaces and tables on a device, where a tile is to be chosen. */
#define DEVICE_BYTES (288.0 * 1048576)
/* Choices, each with a better estimate than the one before. */
#define CHOICES 4
/* More work for which nobody should read ahead: that gains a few percent. */
#define WORK_TOLERATED 1.02

static const char axis_letter[] = "xyz";

/* ---- What is asked for ---------------------------------------------------------------------- */

/* One axis of a tile that is not the whole volume. */
static dm_status check_tile(const dm_model *model, size_t tile, int axis, bool force, dm_error *err)
{
    const graph *g = &model->graph;
    size_t stride = g->total_stride[2 - axis]; /* z, y, x */
    char remedy[160];
    if (tile % stride != 0) {
        size_t below = tile / stride * stride;
        if (below > 0)
            snprintf(remedy, sizeof remedy, "use --tile %zu or %zu", below, below + stride);
        else
            snprintf(remedy, sizeof remedy, "use --tile %zu", stride);
        return error_set(err, DM_ERROR_VALUE, model->path, remedy,
                         "a tile of %zu voxels along %c is not a multiple of the network's total "
                         "stride %zu",
                         tile, axis_letter[axis], stride);
    }
    if (tile != g->patch[axis] && g->per_tile_statistics && !force)
        return error_set(
            err, DM_ERROR_VALUE, model->path,
            "use the training patch, or --force-tile to accept other doses",
            "a tile of %zu voxels along %c instead of the training patch's %zu changes "
            "what the network computes, because it normalises each tile by its own "
            "statistics",
            tile, axis_letter[axis], g->patch[axis]);
    return DM_OK;
}

static dm_status check_tiles(dm_predictor *p, dm_error *err)
{
    const graph *g = &p->model->graph;
    bool all_whole = true;
    for (int a = 0; a < 3; a++) {
        size_t tile = p->options.tile[a] == 0 ? g->patch[a] : p->options.tile[a];
        p->tile[a] = tile;
        if (tile == DM_TILE_WHOLE) {
            if (g->per_tile_statistics && !p->options.force_tile)
                return error_set(err, DM_ERROR_VALUE, p->model->path,
                                 "use the training patch, or --force-tile to accept other doses",
                                 "the whole volume as one tile along %c changes what the network "
                                 "computes, because it normalises each tile by its own statistics",
                                 axis_letter[a]);
            continue;
        }
        all_whole = false;
        dm_status status = check_tile(p->model, tile, a, p->options.force_tile, err);
        if (status != DM_OK)
            return status;
    }
    p->overlap = p->options.overlap;
    if (isnan(p->overlap))
        p->overlap = all_whole ? 0 : OVERLAP_DEFAULT;
    return DM_OK;
}

static bool is_auto(const dm_predictor *p)
{
    return p->tile[0] == DM_TILE_AUTO;
}

/* All axes are chosen, or none. Larger tiles would change what networks with statistics of each
 * tile compute: those keep the training patch. */
static dm_status check_auto(dm_predictor *p, dm_error *err)
{
    const size_t *tile = p->options.tile;
    if (tile[0] != DM_TILE_AUTO || tile[1] != DM_TILE_AUTO || tile[2] != DM_TILE_AUTO)
        return error_set(err, DM_ERROR_VALUE, NULL, "use auto for all three axes",
                         "the tile is to be chosen along some axes only");
    bool keep = p->model->graph.per_tile_statistics && !p->options.force_tile;
    memcpy(p->tile, keep ? p->model->graph.patch : tile, sizeof p->tile);
    p->overlap = p->options.overlap;
    if (keep && isnan(p->overlap))
        p->overlap = OVERLAP_DEFAULT;
    return DM_OK;
}

/* ---- Memory --------------------------------------------------------------------------------- */

/* A device has memory of its own, and that is what is counted then: the weights once, the windows
 * of the smallest batch. Volumes that do not fit beside them pass through it in slabs. */
bool predictor_on_device(const dm_predictor *p)
{
    return p->backend->free_memory != NULL;
}

static double program_bytes(const dm_predictor *p)
{
    return predictor_on_device(p) ? p->plan->weight_bytes : tile_program_bytes(p->plan);
}

/* On a device, as on the CPU, convolutions may have a copy of their input and one of their result.
 * */
static double worker_bytes(const dm_predictor *p)
{
    double largest = 0;
    if (!predictor_on_device(p))
        return tile_worker_bytes(p->plan);
    for (size_t i = 0; i < p->plan->n_tensors; i++)
        largest = fmax(largest, (double)p->plan->tensors[i].buffer_bytes);
    return (double)p->plan->arena_bytes + 2 * largest;
}

static double thread_bytes(const dm_predictor *p)
{
    return predictor_on_device(p) ? 0 : tile_thread_bytes(p->plan);
}

/* All of it, with `fixed` for what depends on neither tile nor threads. */
static double whole_bytes(const dm_predictor *p, double fixed, unsigned threads,
                          const size_t tile[3], size_t windows, unsigned at_once)
{
    if (predictor_on_device(p))
        return fixed + worker_bytes(p);
    return tile_memory(fixed, worker_bytes(p), threads * thread_bytes(p), tile, windows, at_once);
}

static unsigned most_at_once(const dm_predictor *p)
{
    return predictor_on_device(p) ? 1 : p->threads;
}

/* What a volume takes whatever the tile: PET, CT, dose map, what the caller holds, the dose on
 * another grid, and labels: their runs and sorted doses, or the ids while they are read. */
static double volume_bytes(const dm_predictor *p, const dm_volume *pet, const dm_labels *labels,
                           const grid_map *map)
{
    double voxels = (double)dm_grid_voxels(&pet->grid), in_structures = 0;
    double volumes = (p->ct_channel < 0 ? 2 : 3) + (double)p->volumes_beside;
    double bytes = volumes * voxels * sizeof(float);
    if (!map->exact)
        bytes += (double)map->dim[0] * (double)map->dim[1] * (double)map->dim[2] * sizeof(float);
    for (size_t i = 0; labels && i < dm_labels_count(labels); i++)
        in_structures += (double)dm_labels_voxels(labels, i);
    return bytes + 2 * sizeof(float) * in_structures;
}

static dm_status error_too_large(const dm_predictor *p, const size_t tile[3], double needed,
                                 double without_tile, dm_error *err)
{
    char need[SIZE_TEXT], limit[SIZE_TEXT];
    const char *more =
        p->options.memory_bytes ? "raise --memory" : "use a machine with more memory";
    char remedy[160];
    if (without_tile > p->memory_limit)
        snprintf(remedy, sizeof remedy, "%s, or use a smaller volume", more);
    else if (p->options.tile[0] == DM_TILE_AUTO)
        snprintf(remedy, sizeof remedy, "%s, or fewer --threads", more);
    else
        snprintf(remedy, sizeof remedy,
                 "use --tile auto, a smaller --tile or fewer --threads; or %s", more);
    return error_set(err, DM_ERROR_MEMORY, NULL, remedy,
                     "windows of %zu x %zu x %zu voxels need about %s of memory, more than the %s "
                     "that %s",
                     tile[0], tile[1], tile[2], size_text(needed, need),
                     size_text(p->memory_limit, limit),
                     p->options.memory_bytes  ? "--memory allows"
                     : predictor_on_device(p) ? "the device has free"
                                              : "this process can have");
}

/* Before a volume is there: one window of it, at least. */
static dm_status check_window(const dm_predictor *p, dm_error *err)
{
    double program = program_bytes(p);
    double needed = whole_bytes(p, program, 1, p->tile, 1, 1);
    return needed <= p->memory_limit ? DM_OK : error_too_large(p, p->tile, needed, program, err);
}

/* ---- For all volumes ------------------------------------------------------------------------ */

static dm_status set_limit(dm_predictor *p, dm_error *err)
{
    size_t bytes = p->options.memory_bytes;
    dm_status status = DM_OK;
    if (bytes == 0 && predictor_on_device(p))
        status = p->backend->free_memory(p->device, &bytes, err);
    else if (bytes == 0)
        bytes = available_memory();
    p->memory_limit = bytes == SIZE_MAX ? INFINITY : (double)bytes;
    return status;
}

/* Memory is proportional to voxels: a plan of the patch tells how much. */
static dm_status measure_patch(dm_predictor *p, dm_error *err)
{
    const size_t *patch = p->model->graph.patch;
    dm_status status = predictor_plan(p, patch, err);
    if (status != DM_OK)
        return status;
    p->program_bytes = program_bytes(p);
    p->worker_per_voxel = worker_bytes(p) / (double)(patch[0] * patch[1] * patch[2]);
    p->thread_bytes = thread_bytes(p);
    predictor_drop_plan(p);
    return DM_OK;
}

dm_status predictor_tile_create(dm_predictor *p, dm_error *err)
{
    const size_t *asked = p->options.tile;
    bool some_auto =
        asked[0] == DM_TILE_AUTO || asked[1] == DM_TILE_AUTO || asked[2] == DM_TILE_AUTO;
    dm_status status = set_limit(p, err);
    if (status == DM_OK)
        status = some_auto ? check_auto(p, err) : check_tiles(p, err);
    if (status != DM_OK)
        return status;
    if (is_auto(p))
        return measure_patch(p, err);
    if (p->tile[0] == DM_TILE_WHOLE || p->tile[1] == DM_TILE_WHOLE || p->tile[2] == DM_TILE_WHOLE)
        return DM_OK;
    status = predictor_plan(p, p->tile, err);
    return status == DM_OK ? check_window(p, err) : status;
}

/* ---- For one volume ------------------------------------------------------------------------- */

/* Whole axes are rounded up to the total stride. */
static dm_status round_up(const dm_predictor *p, const size_t volume[3], size_t tile[3],
                          dm_error *err)
{
    for (int a = 0; a < 3; a++) {
        size_t stride = p->model->graph.total_stride[2 - a];
        tile[a] = p->tile[a];
        if (tile[a] == DM_TILE_WHOLE) {
            if (volume[a] > SIZE_MAX - stride)
                return error_memory(err, SIZE_MAX, "a tile of the whole volume");
            tile[a] = (volume[a] + stride - 1) / stride * stride;
        }
    }
    return DM_OK;
}

static size_t count_windows(const size_t volume[3], const volume_tile *w)
{
    size_t windows = 1;
    for (int a = 0; a < 3; a++)
        if (!size_multiply(windows, tiling_windows(volume[a], w->tile[a], w->overlap), &windows))
            windows = SIZE_MAX;
    return windows;
}

/* Memory with the plan as it is. */
static double planned_bytes(const dm_predictor *p, const size_t volume[3], double volumes,
                            const volume_tile *w)
{
    return whole_bytes(p, program_bytes(p) + volumes, p->threads, w->tile, count_windows(volume, w),
                       w->at_once);
}

static tile_task make_task(const dm_predictor *p, const size_t volume[3], double volumes)
{
    const graph *g = &p->model->graph;
    bool given = p->options.memory_bytes > 0;
    tile_task task = {.overlap = p->overlap,
                      .threads = most_at_once(p),
                      .fixed_bytes =
                          p->program_bytes + volumes + (predictor_on_device(p) ? DEVICE_BYTES : 0),
                      .worker_per_voxel = p->worker_per_voxel,
                      .thread_bytes = p->thread_bytes,
                      .limit_bytes = given ? p->memory_limit : AUTO_SHARE * p->memory_limit};
    for (int a = 0; a < 3; a++) {
        task.volume[a] = volume[a];
        task.patch[a] = g->patch[a];
        task.stride[a] = g->total_stride[2 - a];
    }
    return task;
}

/* Chooses, plans, and chooses again where the plan takes more than was thought. */
static dm_status choose(dm_predictor *p, const size_t volume[3], double volumes, volume_tile *w,
                        dm_error *err)
{
    tile_task task = make_task(p, volume, volumes);
    for (int i = 0; i < CHOICES; i++) {
        tile_choice choice;
        bool fits = tile_choose(&task, &choice);
        memcpy(w->tile, choice.tile, sizeof w->tile);
        w->overlap = choice.overlap;
        w->at_once = choice.at_once;
        dm_status status = predictor_plan(p, w->tile, err);
        if (status != DM_OK)
            return status;
        if (!fits || planned_bytes(p, volume, volumes, w) <= task.limit_bytes)
            break;
        double voxels = (double)w->tile[0] * (double)w->tile[1] * (double)w->tile[2];
        double more = worker_bytes(p) / voxels / task.worker_per_voxel;
        task.worker_per_voxel *= fmax(more, 1.02);
        task.thread_bytes = fmax(task.thread_bytes, thread_bytes(p));
        task.fixed_bytes = fmax(task.fixed_bytes, program_bytes(p) + volumes);
    }
    return DM_OK;
}

dm_status predictor_tile_for(dm_predictor *p, const dm_volume *pet, const dm_labels *labels,
                             const grid_map *map, volume_tile *w, dm_error *err)
{
    double volumes = predictor_on_device(p) ? 0 : volume_bytes(p, pet, labels, map);
    dm_status status;
    if (is_auto(p)) {
        status = choose(p, map->dim, volumes, w, err);
    } else {
        w->overlap = p->overlap;
        status = round_up(p, map->dim, w->tile, err);
        if (status == DM_OK)
            status = predictor_plan(p, w->tile, err);
        if (status == DM_OK)
            w->at_once = tile_at_once(count_windows(map->dim, w), most_at_once(p));
    }
    if (status != DM_OK)
        return status;
    w->memory_bytes = planned_bytes(p, map->dim, volumes, w);
    if (w->memory_bytes > p->memory_limit && w->at_once > 1) {
        w->at_once = 1;
        w->memory_bytes = planned_bytes(p, map->dim, volumes, w);
    }
    if (w->memory_bytes <= p->memory_limit)
        return DM_OK;
    return error_too_large(p, w->tile, w->memory_bytes, program_bytes(p) + volumes, err);
}

/* ---- Room for other volumes ----------------------------------------------------------------- */

static double work(const tile_choice *c)
{
    return (double)c->windows * (double)c->tile[0] * (double)c->tile[1] * (double)c->tile[2];
}

bool dm_predictor_reserve(dm_predictor *p, const dm_grid *grid, const dm_labels *labels,
                          unsigned volumes)
{
    const graph *g = &p->model->graph;
    const dm_volume pet = {.grid = *grid};
    grid_map map;
    volume_tile window = {.at_once = 0};
    bool room = false;
    p->volumes_beside = 0;
    if (grid_map_make(grid, g->orientation, g->has_voxel_mm ? g->voxel_mm : NULL, &map, NULL) !=
        DM_OK)
        return false;
    double without = volume_bytes(p, &pet, labels, &map);
    p->volumes_beside = volumes;
    if (predictor_on_device(p)) { /* other volumes wait in the host's memory */
        room = volume_bytes(p, &pet, labels, &map) <= AUTO_SHARE * (double)available_memory();
    } else if (is_auto(p)) {
        tile_choice most, reserved;
        const tile_task task = make_task(p, map.dim, without),
                        less = make_task(p, map.dim, volume_bytes(p, &pet, labels, &map));
        room = tile_choose(&task, &most) && tile_choose(&less, &reserved) &&
               work(&reserved) <= WORK_TOLERATED * work(&most);
    } else {
        room = predictor_tile_for(p, &pet, labels, &map, &window, NULL) == DM_OK;
    }
    if (!room)
        p->volumes_beside = 0;
    return room;
}
