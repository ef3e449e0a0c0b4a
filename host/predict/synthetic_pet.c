/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/synthetic_pet.h"

#include <stdint.h>

#define VOXEL_MM 4.0
#define AIR 0.02f
#define BODY 0.8f
#define TISSUE_HU 40.0f

/* Centre and half axes as shares of the volume, from -1 to 1. */
typedef struct organ {
    float centre[3], axis[3], uptake;
} organ;

static const organ body = {{0, 0, 0}, {0.8f, 0.55f, 0.98f}, BODY};
static const organ organs[] = {
    {{0.3f, 0, 0.1f}, {0.28f, 0.25f, 0.12f}, 5},           /* liver */
    {{-0.4f, 0.1f, 0.12f}, {0.1f, 0.12f, 0.06f}, 8},       /* spleen */
    {{0.25f, 0.2f, -0.02f}, {0.08f, 0.1f, 0.07f}, 35},     /* kidneys */
    {{-0.25f, 0.2f, -0.02f}, {0.08f, 0.1f, 0.07f}, 35},    /* */
    {{0, -0.1f, -0.4f}, {0.12f, 0.15f, 0.06f}, 20},        /* bladder */
    {{0.12f, -0.05f, 0.85f}, {0.05f, 0.08f, 0.025f}, 15},  /* glands */
    {{-0.12f, -0.05f, 0.85f}, {0.05f, 0.08f, 0.025f}, 15}, /* */
};

static bool is_in(const organ *o, const float at[3])
{
    float r = 0;
    for (int a = 0; a < 3; a++) {
        float d = (at[a] - o->centre[a]) / o->axis[a];
        r += d * d;
    }
    return r <= 1;
}

static float uptake(const float at[3])
{
    if (!is_in(&body, at))
        return AIR;
    for (size_t i = 0; i < sizeof organs / sizeof *organs; i++)
        if (is_in(&organs[i], at))
            return organs[i].uptake;
    return BODY;
}

/* From 0.5 to 1.5, by the voxel's number (Steele, Lea & Flood 2014, SplitMix64's finish). */
static float noise(uint64_t voxel)
{
    uint64_t z = (voxel + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return 0.5f + (float)((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

/* Where a voxel lies, from -1 to 1. */
static void place(const size_t size[3], size_t voxel, float at[3])
{
    const size_t index[3] = {voxel % size[0], voxel / size[0] % size[1], voxel / size[0] / size[1]};
    for (int a = 0; a < 3; a++)
        at[a] = ((float)index[a] + 0.5f) / (float)size[a] * 2 - 1;
}

static dm_status create(const size_t size[3], dm_volume **volume, dm_error *err)
{
    dm_grid grid = {.dim = {size[0], size[1], size[2]}};
    for (int a = 0; a < 3; a++)
        grid.affine[a][a] = VOXEL_MM;
    return dm_volume_create(&grid, volume, err);
}

dm_status synthetic_pet(const size_t size[3], dm_volume **pet, dm_pet_info *info, dm_error *err)
{
    dm_pet_info_init(info);
    info->units = DM_UNITS_SUV;
    info->body_weight_kg = DM_REFERENCE_WEIGHT_KG;
    dm_status status = create(size, pet, err);
    for (size_t v = 0; status == DM_OK && v < dm_grid_voxels(&(*pet)->grid); v++) {
        float at[3];
        place(size, v, at);
        (*pet)->data[v] = uptake(at) * noise(v);
    }
    return status;
}

dm_status synthetic_ct(const size_t size[3], dm_volume **ct, dm_error *err)
{
    dm_status status = create(size, ct, err);
    for (size_t v = 0; status == DM_OK && v < dm_grid_voxels(&(*ct)->grid); v++) {
        float at[3];
        place(size, v, at);
        (*ct)->data[v] = is_in(&body, at) ? TISSUE_HU * noise(v) : DM_AIR_HU;
    }
    return status;
}
