/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of the PET as the network wants them. */
#include "predict/gather.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "predict/intensity.h"

uint16_t bf16_from_float(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (value != value)
        return (uint16_t)(bits >> 16 | 0x40); /* stay NaN when the low bits are cut off */
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

dm_status gather_make(const predict_job *job, element_type type, gather *g, dm_error *err)
{
    memset(g, 0, sizeof *g);
    assert(type == ELEMENT_F32 || type == ELEMENT_BF16);
    assert(job->pet_channel < job->n_channels && job->n_channels <= PREDICT_MAX_CHANNELS);
    const dm_grid *grid = &job->pet->grid;
    const size_t *tile = job->tiling->tile;
    g->job = job;
    g->type = type;
    g->scratch = tile[0] * tile[1] * tile[2];
    for (size_t c = 0; c < job->n_channels; c++) {
        float *data = job->channels[c].volume->data;
        g->source[c] = job->map->exact ? strided_exact(grid, job->map, data)
                                       : strided_permuted(grid, job->map, data);
    }
    if (job->map->exact)
        return DM_OK;
    dm_status status = resample_to_model(grid, job->map, g->table, err);
    if (status == DM_OK)
        g->scratch += resample_scratch(g->table, tile);
    return status;
}

void gather_clear(gather *g)
{
    for (int a = 0; a < 3; a++)
        axis_table_clear(&g->table[a]);
}

/* Stored values to the channel's quantity; returns the largest. */
static float scale_values(const predict_job *job, size_t channel, float *v, size_t n)
{
    const float factor = job->channels[channel].factor;
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        bool taken = !job->nan_to_zero || isfinite(v[i]);
        float q = taken ? v[i] * factor : 0;
        v[i] = q;
        largest = q > largest ? q : largest;
    }
    return largest;
}

/* One channel of the voxels from `voxel` on. */
static void store_row(const gather *g, const float *row, size_t n, void *input, size_t voxel,
                      size_t channel)
{
    const size_t channels = g->job->n_channels;
    if (g->type == ELEMENT_BF16) {
        uint16_t *out = (uint16_t *)input + voxel * channels + channel;
        for (size_t x = 0; x < n; x++)
            out[x * channels] = bf16_from_float(row[x]);
    } else if (channels == 1) {
        memcpy((float *)input + voxel, row, n * sizeof *row);
    } else {
        float *out = (float *)input + voxel * channels + channel;
        for (size_t x = 0; x < n; x++)
            out[x * channels] = row[x];
    }
}

/* The part of a window that lies in the volume. */
typedef struct window_box {
    size_t start[3], size[3], at[3]; /* on the model's grid, and in the tile */
    size_t voxels;
} window_box;

/* A channel's values into scratch, in its quantity; returns the largest. */
static float cut_out(const gather *g, size_t channel, const window_box *w, float *scratch)
{
    const predict_job *job = g->job;
    const size_t *tile = job->tiling->tile;
    strided box = strided_dense(w->size, scratch);
    if (job->map->exact)
        strided_copy(&g->source[channel], w->start, &box);
    else
        resample_box(g->table, &g->source[channel], w->start, &box, job->nan_to_zero,
                     scratch + tile[0] * tile[1] * tile[2]);
    return scale_values(job, channel, scratch, w->voxels);
}

/* Its values through its transform to their places. False, and the voxel, if one has none. */
static bool put_in(const gather *g, size_t channel, const window_box *w, float *scratch,
                   void *input, size_t bad[3])
{
    const predict_job *job = g->job;
    const size_t *tile = job->tiling->tile, *size = w->size;
    intensity_apply(job->channels[channel].intensity, scratch, w->voxels);
    for (size_t i = 0; i < w->voxels; i++) {
        if (!isfinite(scratch[i])) {
            const size_t voxel[3] = {w->start[0] + i % size[0], w->start[1] + i / size[0] % size[1],
                                     w->start[2] + i / size[0] / size[1]};
            stored_voxel(&job->pet->grid, job->map, voxel, bad);
            return false;
        }
    }
    for (size_t z = 0; z < size[2]; z++)
        for (size_t y = 0; y < size[1]; y++)
            store_row(g, scratch + (z * size[1] + y) * size[0], size[0], input,
                      ((w->at[2] + z) * tile[1] + w->at[1] + y) * tile[0] + w->at[0], channel);
    return true;
}

gather_result gather_window(const gather *g, size_t w, float *scratch, void *input, size_t *channel,
                            size_t bad[3])
{
    const predict_job *job = g->job;
    const size_t *tile = job->tiling->tile, voxels = tile[0] * tile[1] * tile[2];
    window_box box = {0};
    tiling_inside(job->tiling, w, box.start, box.size, box.at);
    box.voxels = box.size[0] * box.size[1] * box.size[2];
    /* First the PET, which may tell that the others are not needed. */
    if (cut_out(g, job->pet_channel, &box, scratch) < job->skip_air)
        return GATHER_AIR;
    if (box.voxels < voxels)
        memset(input, 0, voxels * job->n_channels * element_size(g->type));
    *channel = job->n_channels;
    if (!put_in(g, job->pet_channel, &box, scratch, input, bad))
        *channel = job->pet_channel;
    for (size_t c = 0; c < *channel; c++) {
        if (c == job->pet_channel)
            continue;
        cut_out(g, c, &box, scratch);
        if (!put_in(g, c, &box, scratch, input, bad))
            *channel = c;
    }
    return *channel < job->n_channels ? GATHER_NOT_FINITE : GATHER_FILLED;
}
