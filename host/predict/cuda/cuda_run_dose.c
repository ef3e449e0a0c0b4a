/* SPDX-License-Identifier: Apache-2.0 */
/* PET and other images to the device, and the way from sums of windows to the dose on the PET's
 * grid. */
#include <nvtx3/nvToolsExt.h>

#include "predict/cuda/cuda_run_parts.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_dvh.h"
#include "predict/job_messages.h"

/* A range of planes of a stored volume, dense on the device, along the model's axes. */
static device_volume stored_box(const device_job *d, float *data, size_t first, size_t end,
                                bool flip)
{
    const grid_map *map = d->job->map;
    size_t dim[3];
    device_volume v = {.data = data};
    for (int a = 0; a < 3; a++)
        dim[a] = a == d->pet_axis ? end - first : d->job->pet->grid.dim[a];
    const ptrdiff_t step[3] = {1, (ptrdiff_t)dim[0], (ptrdiff_t)(dim[0] * dim[1])};
    for (int a = 0; a < 3; a++) {
        int stored = map->axis[a].source_axis;
        v.dim[a] = dim[stored];
        v.stride[a] = step[stored];
        if (flip && map->axis[a].scale < 0) {
            v.data += (ptrdiff_t)(dim[stored] - 1) * step[stored];
            v.stride[a] = -step[stored];
        }
    }
    v.begin[2] = first;
    return v;
}

static volume_box stored_range(const device_job *d, size_t first, size_t end)
{
    const size_t *dim = d->job->pet->grid.dim;
    return (volume_box){
        .dim = {dim[0], dim[1], dim[2]}, .axis = d->pet_axis, .first = first, .count = end - first};
}

/* Planes [first, end) of the model's grid. */
static device_volume model_box(const device_job *d, float *data, size_t first, size_t end)
{
    const size_t *dim = d->job->map->dim;
    return (device_volume){.data = data,
                           .stride = {1, (ptrdiff_t)dim[0], (ptrdiff_t)(dim[0] * dim[1])},
                           .begin = {0, 0, first},
                           .dim = {dim[0], dim[1], end - first}};
}

static volume_box model_range(const device_job *d, size_t first, size_t end)
{
    const size_t *dim = d->job->map->dim;
    return (volume_box){
        .dim = {dim[0], dim[1], dim[2]}, .axis = 2, .first = first, .count = end - first};
}

dm_status device_job_lap(const device_job *d, double *since, double *stage, dm_error *err)
{
    dm_status status =
        device_check(cudaStreamSynchronize(d->state->stream), "waiting for the device", err);
    double now = job_clock();
    *stage += now - *since;
    *since = now;
    return status;
}

/* ---- Before the windows --------------------------------------------------------------------- */

dm_status device_job_upload(device_job *d, const slab *part, dm_error *err)
{
    const predict_job *job = d->job;
    volume_box box = stored_range(d, part->pet, part->pet_end);
    dm_status status = DM_OK;
    nvtxRangePushA("images up");
    for (size_t c = 0; c < job->n_channels && status == DM_OK; c++)
        status = device_transfer_up(&d->transfer, job->channels[c].volume->data, &box,
                                    d->d_images + (ptrdiff_t)c * d->gather.apart,
                                    "copying the images to the device", err);
    nvtxRangePop();
    d->gather.source = stored_box(d, d->d_images, part->pet, part->pet_end, job->map->exact);
    if (job->map->exact) /* flipped planes count from the other end */
        d->gather.source.begin[2] = part->low;
    return status;
}

/* Moves planes to the front, as many at a time as do not overlap. */
static cudaError_t move_planes(float *data, size_t plane, size_t from, size_t n,
                               cudaStream_t stream)
{
    cudaError_t code = cudaSuccess;
    for (size_t z = 0; from > 0 && z < n && code == cudaSuccess; z += from) {
        size_t count = n - z < from ? n - z : from;
        code = cudaMemcpyAsync(data + z * plane, data + (from + z) * plane,
                               count * plane * sizeof *data, cudaMemcpyDeviceToDevice, stream);
    }
    return code;
}

/* Sums of planes [done, high_before) lie at the front of what the last slab left behind its
 * finished planes: brought to the start, and zeros behind them. */
dm_status device_job_begin_sum(device_job *d, const slab *part, size_t done, size_t high_before,
                               dm_error *err)
{
    const size_t *dim = d->job->map->dim;
    size_t plane = dim[0] * dim[1], kept = high_before > done ? high_before - done : 0;
    cudaStream_t stream = d->state->stream;
    cudaError_t code = cudaSuccess;
    if (d->whole && d->job->map->exact) {
        size_t planes = d->job->pet->grid.dim[d->pet_axis];
        d->sum = stored_box(d, d->d_sum, 0, planes, true);
        d->sum.begin[2] = 0;
    } else {
        size_t finished = kept > 0 ? done - d->sum.begin[2] : 0;
        code = move_planes(d->d_sum, plane, finished, kept, stream);
        d->sum = model_box(d, d->d_sum, done, part->high);
    }
    if (code == cudaSuccess)
        code = cudaMemsetAsync(d->d_sum + kept * plane, 0,
                               (part->high - done - kept) * plane * sizeof *d->d_sum, stream);
    return device_check(code, "preparing the sums of windows", err);
}

/* ---- Behind them ---------------------------------------------------------------------------- */

/* Finished planes of the model's grid into the dose map, or beside it where it is resampled. */
static dm_status take_planes(device_job *d, size_t done, size_t end, dm_error *err)
{
    const grid_map *map = d->job->map;
    dm_volume *dose = d->result->dose;
    volume_box box = model_range(d, done, end);
    if (!map->exact)
        return device_transfer_down(&d->transfer, d->d_sum, &box, d->model,
                                    "copying the dose from the device", err);
    size_t plane = map->dim[0] * map->dim[1];
    size_t at_once = d->transfer.floats / plane; /* planes that a buffer takes */
    const strided target = strided_exact(&dose->grid, map, dose->data);
    dm_status status = DM_OK;
    for (size_t z = done; z < end && status == DM_OK; z += at_once) {
        size_t n = end - z < at_once ? end - z : at_once;
        const size_t dim[3] = {map->dim[0], map->dim[1], n}, start[3] = {0, 0, 0};
        strided part = target;
        part.data += (ptrdiff_t)z * target.stride[2];
        part.dim[2] = n;
        status = device_check(cudaMemcpyAsync(d->transfer.pinned[0], d->d_sum + (z - done) * plane,
                                              n * plane * sizeof(float), cudaMemcpyDeviceToHost,
                                              d->state->stream),
                              "copying the dose from the device", err);
        if (status == DM_OK)
            status = device_check(cudaStreamSynchronize(d->state->stream),
                                  "copying the dose from the device", err);
        if (status == DM_OK) {
            const strided source = strided_dense(dim, d->transfer.pinned[0]);
            strided_copy(&source, start, &part);
        }
    }
    return status;
}

/* Sums of planes [done, final) to doses. */
dm_status device_job_finish(device_job *d, const slab *part, size_t done, dm_error *err)
{
    const predict_job *job = d->job;
    cudaStream_t stream = d->state->stream;
    device_volume finished = d->sum;
    double start = job_clock();
    finished.dim[2] = part->final - done;
    nvtxRangePushA("finish");
    cudaError_t code = finished.dim[2] == 0
                           ? cudaSuccess
                           : kernel_finish(&d->tiling, &finished, job->output_intensity,
                                           job->output_factor, d->d_faults + FAULT_DOSE, stream);
    if (code == cudaSuccess)
        code = cudaMemcpyAsync(d->faults, d->d_faults, FAULTS * sizeof *d->faults,
                               cudaMemcpyDeviceToHost, stream);
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(stream);
    dm_status status = device_check(code, "dividing the sums of windows", err);
    if (status == DM_OK)
        status = device_job_fault(d, d->faults, err);
    if (status == DM_OK)
        status = device_job_lap(d, &start, &d->result->seconds_finish, err);
    if (status == DM_OK && !d->whole) {
        status = take_planes(d, done, part->final, err);
        d->result->seconds_download += job_clock() - start;
    }
    nvtxRangePop();
    return status;
}

/* Planes of the model's grid from which planes [first, end) of the result are resampled. */
static void model_planes(const device_job *d, size_t first, size_t end, size_t *low, size_t *high)
{
    const axis_table *table = &d->from_model[2];
    *low = SIZE_MAX;
    *high = 0;
    for (size_t t = first; t < end; t++) {
        size_t last = table->first[t] + table->count[t];
        *low = table->first[t] < *low ? table->first[t] : *low;
        *high = last > *high ? last : *high;
    }
}

/* Planes [first, end) of the dose map, from the model's grid on the host. The device's memory for
 * images and sums takes both. */
static dm_status resample_planes(device_job *d, size_t first, size_t end, dm_error *err)
{
    size_t low, high;
    model_planes(d, first, end, &low, &high);
    volume_box up = model_range(d, low, high), down = stored_range(d, first, end);
    dm_status status = device_transfer_up(&d->transfer, d->model, &up, d->d_sum,
                                          "copying the dose to the device", err);
    if (status != DM_OK)
        return status;
    device_volume source = model_box(d, d->d_sum, low, high);
    device_volume target = stored_box(d, d->d_images, first, end, false);
    status = device_check(kernel_resample(d->back, &source, &target, d->state->stream),
                          "resampling the dose", err);
    if (status == DM_OK)
        status = device_transfer_down(&d->transfer, d->d_images, &down, d->result->dose->data,
                                      "copying the dose from the device", err);
    return status;
}

static dm_status resample_in_parts(device_job *d, dm_error *err)
{
    size_t planes = d->from_model[2].n, end;
    dm_status status = DM_OK;
    for (size_t first = 0; first < planes && status == DM_OK; first = end) {
        size_t low, high;
        for (end = first + 1; end < planes && end - first < d->pet_planes; end++) {
            model_planes(d, first, end + 1, &low, &high);
            if (high - low > d->sum_planes)
                break;
        }
        status = resample_planes(d, first, end, err);
    }
    return status;
}

static dm_status resample_whole(device_job *d, dm_error *err)
{
    size_t planes = d->job->pet->grid.dim[d->pet_axis];
    device_volume source = model_box(d, d->d_sum, 0, d->job->map->dim[2]);
    device_volume target = stored_box(d, d->d_dose, 0, planes, false);
    return device_check(kernel_resample(d->back, &source, &target, d->state->stream),
                        "resampling the dose", err);
}

dm_status device_job_dose(device_job *d, dm_error *err)
{
    dm_status status = DM_OK;
    double start = job_clock();
    nvtxRangePushA("dose");
    if (!d->job->map->exact) {
        status = d->whole ? resample_whole(d, err) : resample_in_parts(d, err);
        if (status == DM_OK)
            status = device_job_lap(d, &start, &d->result->seconds_resample, err);
    }
    if (status == DM_OK && d->whole) {
        volume_box all = stored_range(d, 0, d->job->pet->grid.dim[d->pet_axis]);
        status = device_transfer_down(&d->transfer, d->d_dose, &all, d->result->dose->data,
                                      "copying the dose from the device", err);
        d->result->seconds_download += job_clock() - start;
    }
    nvtxRangePop();
    return status;
}

/* The dose map as the devices have put it together on the host, back to this one. */
static dm_status bring_dose(device_job *d, dm_error *err)
{
    volume_box all = stored_range(d, 0, d->job->pet->grid.dim[d->pet_axis]);
    void *made = NULL;
    dm_status status =
        device_alloc(&made, volume_box_voxels(&all) * sizeof(float), "the dose map", err);
    if (status != DM_OK)
        return status;
    d->owned[d->n_owned++] = made;
    d->d_dose = made;
    return device_transfer_up(&d->transfer, d->result->dose->data, &all, d->d_dose,
                              "copying the dose to the device", err);
}

/* On the device where its memory suffices, and the dose is there as a whole or, because several
 * devices made it, would be there if one had. */
dm_status device_job_histograms(device_job *d, dm_error *err)
{
    const predict_job *job = d->job;
    predict_result *result = d->result;
    double start = job_clock();
    dm_status status = job_report(job, 0.99, "dvh", err);
    dm_error ignored = {0};
    if (status != DM_OK)
        return status;
    nvtxRangePushA("histograms");
    status = d->is_shared ? bring_dose(d, &ignored) : d->whole ? DM_OK : DM_ERROR_MEMORY;
    if (status == DM_OK)
        status = device_dvh(d->d_dose, job->labels, &job->dvh_options, d->state->stream,
                            &result->dvh, &ignored);
    if (status == DM_ERROR_MEMORY)
        status = dm_dvh_compute(result->dose, job->labels, &job->dvh_options, &result->dvh, err);
    else if (status != DM_OK && err)
        *err = ignored;
    device_add_remedy(status, err);
    result->seconds_dvh = job_clock() - start;
    nvtxRangePop();
    return status;
}
