/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of dm_predictor and dm_prediction. */
#ifndef DOSEMAP_PREDICT_PREDICTOR_H
#define DOSEMAP_PREDICT_PREDICTOR_H

#include <jansson.h>

#include "predict/backend.h"

struct dm_predictor {
    const dm_model *model;
    dm_predict_options options; /* as given, with what it points to owned below */
    char *device;
    double *v_thresholds;
    size_t tile[3]; /* x, y, z; DM_TILE_WHOLE until a volume says more */
    double overlap, skip_air;
    dm_precision precision; /* not AUTO */
    unsigned threads, batch;
    const backend *backend;
    /* Made for one tile size and kept for the next volume. */
    plan *plan;
    void *state;
    size_t plan_tile[3]; /* x, y, z */
};

struct dm_prediction {
    dm_volume *dose;
    dm_dvh *dvh;
    json_t *provenance;
    char *provenance_text;
    char pet_sidecar[512]; /* that quantified the PET; empty if none */
};

/* What one prediction was made from and how. */
typedef struct provenance_facts {
    const dm_predictor *predictor;
    const dm_volume *pet;
    const dm_pet_info *info;
    double pet_factor;
    const grid_map *map;
    const tiling *tiling;
    const predict_result *result;
    double seconds_prepare;
} provenance_facts;

/* A new reference; NULL when memory is short. */
json_t *provenance_make(const provenance_facts *facts);

const char *precision_name(dm_precision precision);

#endif
