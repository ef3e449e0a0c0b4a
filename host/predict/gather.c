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
    const dm_volume *pet = job->pet;
    const size_t *tile = job->tiling->tile;
    g->job = job;
    g->type = type;
    g->scratch = tile[0] * tile[1] * tile[2];
    if (job->map->exact) {
        g->source = strided_exact(&pet->grid, job->map, pet->data);
        return DM_OK;
    }
    g->source = strided_permuted(&pet->grid, job->map, pet->data);
    dm_status status = resample_to_model(&pet->grid, job->map, g->table, err);
    if (status == DM_OK)
        g->scratch += resample_scratch(g->table, tile);
    return status;
}

void gather_clear(gather *g)
{
    for (int a = 0; a < 3; a++)
        axis_table_clear(&g->table[a]);
}

/* Stored values to the input quantity; returns the largest. */
static float scale_values(const predict_job *job, float *v, size_t n)
{
    float largest = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        bool taken = !job->nan_to_zero || isfinite(v[i]);
        float q = taken ? v[i] * job->channels[0].factor : 0;
        v[i] = q;
        largest = q > largest ? q : largest;
    }
    return largest;
}

static void store_row(const gather *g, const float *row, size_t n, void *input, size_t voxel)
{
    if (g->type == ELEMENT_F32) {
        memcpy((float *)input + voxel, row, n * sizeof *row);
    } else {
        uint16_t *out = (uint16_t *)input + voxel;
        for (size_t x = 0; x < n; x++)
            out[x] = bf16_from_float(row[x]);
    }
}

gather_result gather_window(const gather *g, size_t w, float *scratch, void *input, size_t bad[3])
{
    const predict_job *job = g->job;
    const tiling *t = job->tiling;
    size_t start[3], size[3], at[3];
    tiling_inside(t, w, start, size, at);
    size_t inside = size[0] * size[1] * size[2], tile = t->tile[0] * t->tile[1] * t->tile[2];
    strided box = strided_dense(size, scratch);
    if (job->map->exact)
        strided_copy(&g->source, start, &box);
    else
        resample_box(g->table, &g->source, start, &box, job->nan_to_zero, scratch + tile);
    if (scale_values(job, scratch, inside) < job->skip_air)
        return GATHER_AIR;
    intensity_apply(job->channels[0].intensity, scratch, inside);
    for (size_t i = 0; i < inside; i++) {
        if (!isfinite(scratch[i])) {
            const size_t voxel[3] = {start[0] + i % size[0], start[1] + i / size[0] % size[1],
                                     start[2] + i / size[0] / size[1]};
            stored_voxel(&job->pet->grid, job->map, voxel, bad);
            return GATHER_NOT_FINITE;
        }
    }
    if (inside < tile)
        memset(input, 0, tile * element_size(g->type));
    for (size_t z = 0; z < size[2]; z++)
        for (size_t y = 0; y < size[1]; y++)
            store_row(g, scratch + (z * size[1] + y) * size[0], size[0], input,
                      ((at[2] + z) * t->tile[1] + at[1] + y) * t->tile[0] + at[0]);
    return GATHER_FILLED;
}
