/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A backend executes a plan over a volume: one PET goes in on its own grid, the dose map comes out
 * on the same grid with the DVHs; nothing else crosses in between. CPU: predict/cpu/.
 */
#ifndef DOSEMAP_PREDICT_BACKEND_H
#define DOSEMAP_PREDICT_BACKEND_H

#include "dosemap.h"
#include "model/plan.h"
#include "predict/measure.h"
#include "predict/tiling.h"
#include "volume/orientation.h"

#define PREDICT_MAX_CHANNELS 4

/* One channel of the network's input tensor. */
typedef struct predict_channel {
    const dm_volume *volume; /* on the PET's grid */
    float factor;            /* stored value -> the channel's quantity */
    const intensity_transform *intensity;
} predict_channel;

typedef struct predict_job {
    const dm_volume *pet; /* its grid is that of all channels; whom messages speak of */
    bool nan_to_zero;
    size_t n_channels; /* of the plan's input */
    predict_channel channels[PREDICT_MAX_CHANNELS];
    size_t pet_channel; /* that tells air */
    const grid_map *map;
    const tiling *tiling;
    const intensity_transform *output_intensity;
    float skip_air;      /* in the PET channel's quantity; -INFINITY: off */
    float output_factor; /* Gy/GBq -> what the map holds */
    unsigned batch;
    const dm_labels *labels; /* may be NULL */
    dm_dvh_options dvh_options;
    dm_progress progress;
    void *progress_user;
} predict_job;

typedef struct predict_result {
    dm_volume *dose; /* in: made by the caller on the PET's grid */
    dm_dvh *dvh;     /* out, NULL without labels */
    size_t windows_run, windows_skipped;
    unsigned batch; /* windows per call of the network, as it was */
    double seconds_network, seconds_total;
    /* The other stages, in their order; NAN where there is none. */
    double seconds_upload, seconds_finish, seconds_resample, seconds_download, seconds_dvh;
    size_t device_bytes; /* that were in use; 0: the host's only */
    /* The file that the choice of convolutions came from, and its checksum; NULL: none. Valid until
     * the state's next run. */
    const char *tuning_file, *tuning_xxh64;
} predict_result;

typedef struct backend_options {
    const char *device; /* as given: "cpu", "cuda", "cuda:1"; it is one of the backend's */
    dm_precision precision;
    unsigned threads;
    unsigned at_once; /* windows at the same time, which threads share evenly; 1 on a device */
    unsigned batch;   /* windows per call of the network; 0: as the backend thinks best */
    size_t memory;    /* of a device that may be used; 0: what is free */
    dm_convolutions convolutions; /* of a device */
} backend_options;

typedef struct backend {
    const char *name; /* "cpu", "cuda" */
    /* Device and library in words, for provenance. */
    const char *(*description)(void *state);
    /* What the plan should assume. */
    void (*plan_needs)(plan_options *options);
    bool (*supports)(const char *device, dm_precision precision);
    /* Memory of a device that is free now, apart from the host's; NULL: there is only the host's. */
    dm_status (*free_memory)(const char *device, size_t *bytes, dm_error *err);
    /* Prepares primitives, weights and arenas. The plan must outlive the state. */
    dm_status (*create)(const plan *plan, const backend_options *options, void **state,
                        dm_error *err);
    dm_status (*run)(void *state, const predict_job *job, predict_result *result, dm_error *err);
    void (*destroy)(void *state);
    /* The rest is for dm_benchmark. */
    dm_status (*measure)(void *state, const measure_request *request, measure_result *result,
                         dm_error *err);
    dm_status (*ceilings)(void *state, measured_ceilings *ceilings, dm_error *err);
    /* Joules that the device has taken since some moment; NAN where nobody says. */
    double (*energy)(void *state);
    /* Windows per call of the network for a volume of so many; NULL: always one. */
    unsigned (*batch)(void *state, size_t windows);
    /* Times the ways of every convolution for batches of that size (0: as large as the backend
     * likes) and keeps the fastest for later predictions; NULL: there is nothing to choose. */
    dm_status (*tune)(void *state, unsigned batch, dm_progress progress, void *user,
                      char **report_json, dm_error *err);
} backend;

extern const backend cpu_backend;

/* device: as in dm_predict_options; NULL is auto: a CUDA device if one can be used, else the CPU.
 * convolutions: DM_CONVOLUTIONS_OWN does without the vendor's library.
 * Errors: DEVICE if this build or machine has none such, VALUE if the name is none. */
dm_status backend_select(const char *device, dm_convolutions convolutions, const backend **chosen,
                         dm_error *err);

/* Of activations. */
element_type precision_element(dm_precision precision);

/* plan_build with what the backend's convolutions can do. Errors: besides, UNSUPPORTED for tensors
 * with more voxels than backends count. */
dm_status backend_plan(const backend *b, const graph *g, plan_options *options, plan **made,
                       dm_error *err);

#endif
