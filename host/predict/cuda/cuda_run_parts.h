/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One job on the device, and what the files that run it share.
 *
 * A slab is some rows of windows along the model's z. For it the device holds the planes of the PET,
 * and of the other images that the network sees, that its windows reach, and the sums of its planes; planes that the next slab adds to stay, the
 * others are finished and go to the host. Usually everything fits and there is one slab, which
 * never leaves the device until the dose is complete; then the sums lie where the dose will (exact
 * maps) and the way back to the PET's grid and the histograms are the device's too. Where several
 * devices share a volume, each has slabs of its share, however few.
 */
#ifndef DOSEMAP_PREDICT_CUDA_CUDA_RUN_PARTS_H
#define DOSEMAP_PREDICT_CUDA_CUDA_RUN_PARTS_H

#include "predict/cuda/cuda_shares.h"
#include "predict/cuda/cuda_state.h"
#include "predict/cuda/device_transfer.h"
#include "predict/resample.h"

/* First faults of the input transform, the network's output, the output's transform. */
enum { FAULT_INPUT, FAULT_OUTPUT, FAULT_DOSE, FAULTS };
#define NO_FAULT_KIND FAULTS

enum { OWNED_MAX = 48 };

typedef struct slab {
    size_t row, row_end; /* of windows, along z */
    size_t low, high;    /* planes of the model's grid that they reach */
    size_t final;        /* planes below this get nothing from later slabs */
    size_t pet, pet_end; /* planes of the PET along pet_axis that they need */
} slab;

typedef struct device_job {
    cuda_state *state;
    const predict_job *job;
    predict_result *result;
    unsigned batch;
    device_share share;
    size_t windows; /* in the share's rows */
    size_t rows;    /* of windows in a slab */
    bool whole;     /* one slab of everything, which stays on the device */
    bool is_shared; /* other devices have other shares */
    int pet_axis;   /* stored axis that is the model's z */

    device_transfer transfer;
    void *owned[OWNED_MAX]; /* device memory of this job */
    size_t n_owned, bytes;
    axis_table to_model[3], from_model[3]; /* on the host; empty for exact maps */
    device_axis_table back[3];
    device_tiling tiling;
    device_gather gather;
    device_volume sum;
    float *d_images, *d_sum, *d_dose; /* d_dose: whole only; exact: d_sum is d_dose */
    size_t pet_planes, sum_planes;    /* that d_images, of each image, and d_sum hold */
    float *model, *own_model;         /* on the host, slabs only: the dose on the model's grid */

    unsigned *list; /* windows to run, with NO_WINDOW up to whole batches */
    size_t n_list, n_run;
    unsigned *d_list, *d_windows;
    float *maximum, *d_maximum;
    unsigned long long *d_faults, *faults; /* pinned: [2][FAULTS] */
    cudaEvent_t done[2];
    cudaGraphExec_t graph;
    size_t windows_before; /* of earlier slabs */
    bool has_run;          /* a batch did: its kernels are loaded, its memory is there */
    int fault;             /* that ended it, NO_FAULT_KIND for none, and which one */
    unsigned long long fault_at;
} device_job;

/* cuda_run.c: the planes of the job's share into its result, or to d->model. Takes `d` with what
 * comes before `transfer` set, and d->model where devices share one; the result's counts and times
 * become those of this job. Clear it afterwards, whatever comes of it. */
dm_status device_job_run(device_job *d, dm_error *err);

/* cuda_run_devices.c: a job that several devices share. */
dm_status device_team_run(cuda_state *first, const predict_job *job, const device_share *shares,
                          size_t n, predict_result *result, dm_error *err);

/* How large the pieces are in which a job runs. */
typedef struct job_pieces {
    unsigned batch;
    size_t rows; /* of windows in a slab */
} job_pieces;
/* False if they are as small as can be. */
bool job_pieces_shrink(job_pieces *pieces);

/* cuda_run_setup.c: memory, tables and the network. */
dm_status device_job_prepare(device_job *d, dm_error *err);
void device_job_clear(device_job *d);
slab device_job_slab(const device_job *d, size_t row);

/* cuda_run_dose.c: the seconds since *since to a stage of the result, when all that was enqueued is
 * done. */
dm_status device_job_lap(const device_job *d, double *since, double *stage, dm_error *err);

/* cuda_run_windows.c: the windows of a slab, added to d->sum. */
dm_status device_job_windows(device_job *d, const slab *part, dm_error *err);
/* The fault that the words in `faults` name, if any: of the first window that has one, and of doses
 * only where no window has. */
dm_status device_job_fault(device_job *d, const unsigned long long *faults, dm_error *err);
/* Of the windows only. */
dm_status device_job_window_fault(device_job *d, const unsigned long long *faults, dm_error *err);
/* Whose fault d->fault_at is. */
size_t device_job_fault_window(const device_job *d);

/* cuda_run_dose.c: from sums to the dose on the PET's grid, in the job's result, and histograms. */
dm_status device_job_upload(device_job *d, const slab *part, dm_error *err);
dm_status device_job_begin_sum(device_job *d, const slab *part, size_t done, size_t high_before,
                               dm_error *err);
dm_status device_job_finish(device_job *d, const slab *part, size_t done, dm_error *err);
dm_status device_job_dose(device_job *d, dm_error *err);
dm_status device_job_histograms(device_job *d, dm_error *err);

#endif
