/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of dm_predictor and dm_prediction. */
#ifndef DOSEMAP_PREDICT_PREDICTOR_H
#define DOSEMAP_PREDICT_PREDICTOR_H

#include <jansson.h>

#include "predict/backend.h"

#define PREDICT_BATCH_MAX 4096

struct dm_predictor {
    const dm_model *model;
    /* Of the network's input tensor: the model's inputs side by side, of one channel each but with
     * network values. ct_channel: -1 for none. */
    size_t n_channels;
    int pet_channel, ct_channel;
    size_t output;              /* of the model's outputs: the dose */
    dm_predict_options options; /* as given, with what it points to owned below */
    char *device;
    double *v_thresholds;
    size_t tile[3]; /* x, y, z; DM_TILE_WHOLE and DM_TILE_AUTO until a volume says more */
    double overlap; /* NAN until DM_TILE_AUTO has chosen */
    double skip_air;
    unsigned volumes_beside; /* that the caller holds */
    double memory_limit;     /* bytes; infinite where nothing is known */
    /* DM_TILE_AUTO, from a plan of the training patch: */
    double program_bytes, worker_per_voxel, thread_bytes;
    dm_precision precision; /* not AUTO */
    unsigned threads, batch;
    const backend *backend;
    /* Made for one tile size and kept for the next volume. */
    plan *plan;
    void *state;
    size_t plan_tile[3]; /* x, y, z */
    unsigned at_once;    /* windows */
};

struct dm_prediction {
    dm_volume *dose;
    dm_dvh *dvh;
    json_t *provenance;
    char *provenance_text;
    char pet_sidecar[512]; /* that quantified the PET; empty if none */
};

/* How one volume is cut, and what its prediction takes. */
typedef struct volume_tile {
    size_t tile[3]; /* x, y, z */
    double overlap;
    unsigned at_once; /* windows */
    double memory_bytes;
} volume_tile;

/* A volume on its way to the backend. Refers to itself: it stays where it was made. */
typedef struct volume_job {
    double factor;       /* from stored values to the network's input */
    double activity_gbq; /* of the therapy; NAN: the map is per activity */
    grid_map map;
    volume_tile window;
    tiling tiles;
    predict_job job;
} volume_job;

/* What one prediction was made from and how. */
typedef struct provenance_facts {
    const dm_predictor *predictor;
    const dm_patient *patient;
    const volume_job *volume;
    const predict_result *result;
    double seconds_prepare;
} provenance_facts;

/* A new reference; NULL when memory is short. */
json_t *provenance_make(const provenance_facts *facts);

/* predictor_ports.c: which of the model's inputs and outputs are taken, and that it is one for
 * prediction. */
dm_status predictor_find_ports(dm_predictor *p, bool network_values, dm_error *err);

/* predictor_tile.c: checks the tile that the options ask for, and plans it unless it depends on the
 * volume. */
dm_status predictor_tile_create(dm_predictor *p, dm_error *err);
/* The tile for a volume, planned, and that it fits the memory. */
dm_status predictor_tile_for(dm_predictor *p, const dm_volume *pet, const dm_labels *labels,
                             const grid_map *map, volume_tile *window, dm_error *err);

/* The plan for a tile (x, y, z), kept from the last volume where it is the same. */
dm_status predictor_plan(dm_predictor *p, const size_t tile[3], dm_error *err);
void predictor_drop_plan(dm_predictor *p);

/* The backend for so many windows of the plan at once, kept from the last volume where both are. */
dm_status predictor_prepare(dm_predictor *p, unsigned at_once, dm_error *err);

/* All checks, the tile, and the backend made ready. Clear it whatever was returned. */
dm_status volume_job_make(dm_predictor *p, const dm_patient *patient, volume_job *job,
                          dm_error *err);
void volume_job_clear(volume_job *job);

/* Does the backend have memory of its own, and work on windows in batches? */
bool predictor_on_device(const dm_predictor *p);

const char *precision_name(dm_precision precision);
const char *convolutions_name(dm_convolutions convolutions);

#endif
