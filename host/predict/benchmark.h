/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of dm_benchmark: what is measured, and what is said of it. */
#ifndef DOSEMAP_PREDICT_BENCHMARK_H
#define DOSEMAP_PREDICT_BENCHMARK_H

#include "predict/predictor.h"

/* Of a volume, in its runs; [n] each. */
enum {
    STAGE_PREPARE,
    STAGE_UPLOAD,
    STAGE_NETWORK,
    STAGE_FINISH,
    STAGE_RESAMPLE,
    STAGE_DOWNLOAD,
    STAGE_DVH,
    STAGES
};
extern const char *const benchmark_stage_keys[STAGES]; /* of the provenance */

typedef struct volume_times {
    size_t n, windows, skipped;
    unsigned batch;
    double *seconds, *stages[STAGES], *joules, *host_joules;
    char xxh64[17];
    bool same_bytes;
    json_t *tuning;      /* of the provenance */
    size_t device_bytes; /* the same */
} volume_times;

typedef struct reference_error {
    size_t windows;
    double relative_l2, largest;
    char reason[512]; /* why there is none */
} reference_error;

typedef struct benchmark {
    dm_predict_options predict; /* the caller's, but for progress */
    dm_benchmark_options options;
    dm_progress progress;
    void *progress_user;
    double from, span; /* of what is under way, in all */
    const char *stage;

    dm_predictor *p;
    dm_patient patient;
    dm_volume *made_pet, *made_ct; /* where no patient was given */
    dm_pet_info made_info;
    volume_job volume;
    size_t voxels, n_windows; /* of a window; that are looked at */
    float *windows, *outputs;

    double load, host_peak_bytes;
    char date[32];
    json_t *tune;
    measured_ceilings ceilings;
    double *sorted; /* room for the runs of a scenario */
    measure_result offline, single;
    volume_times volumes;
    reference_error error;
} benchmark;

/* benchmark_reference.c: the outputs against float32 on the CPU. */
dm_status benchmark_compare(benchmark *b, dm_error *err);

/* benchmark_report.c: bench/README.md says what is in it. NULL when memory is short. */
json_t *benchmark_report(const benchmark *b);

/* measure_request.go_on; the context is a benchmark. */
dm_status benchmark_go_on(void *context, double share, dm_error *err);

#endif
