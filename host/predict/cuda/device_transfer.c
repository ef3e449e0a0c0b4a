/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_transfer.h"

#include <string.h>

#include "base/error.h"
#include "predict/cuda/device_check.h"

/* More than this gains nothing: a chunk takes a millisecond. */
#define FLOATS_MAX ((size_t)4 << 20)

size_t volume_box_voxels(const volume_box *box)
{
    size_t n = box->count;
    for (int a = 0; a < 3; a++)
        n *= a == box->axis ? 1 : box->dim[a];
    return n;
}

dm_status device_transfer_create(cudaStream_t stream, size_t most, size_t least, device_transfer *t,
                                 dm_error *err)
{
    dm_status status = DM_OK;
    size_t floats = most < FLOATS_MAX ? most : FLOATS_MAX;
    *t = (device_transfer){.stream = stream, .floats = floats > least ? floats : least};
    for (int i = 0; i < 2 && status == DM_OK; i++) {
        void *memory = NULL;
        cudaError_t code = cudaMallocHost(&memory, t->floats * sizeof(float));
        t->pinned[i] = code == cudaSuccess ? memory : NULL;
        if (code == cudaSuccess) {
            code = cudaEventCreateWithFlags(&t->done[i], cudaEventDisableTiming);
            t->done[i] = code == cudaSuccess ? t->done[i] : NULL;
        }
        status = device_check(code, "preparing copies to the device", err);
    }
    if (status != DM_OK)
        device_transfer_clear(t);
    return status;
}

void device_transfer_clear(device_transfer *t)
{
    for (int i = 0; i < 2; i++) {
        if (t->done[i])
            (void)cudaEventDestroy(t->done[i]);
        if (t->pinned[i])
            (void)cudaFreeHost(t->pinned[i]);
    }
    *t = (device_transfer){0};
}

/* Voxels [at, at + n) of the dense box, from or to the volume that it is cut out of. */
static void copy_part(const volume_box *box, size_t at, size_t n, float *volume, float *part,
                      bool into_volume)
{
    size_t inner = 1;
    for (int a = 0; a < box->axis; a++)
        inner *= box->dim[a];
    size_t run = box->count * inner, step = box->dim[box->axis] * inner;
    while (n > 0) {
        size_t within = at % run, length = run - within < n ? run - within : n;
        float *place = volume + at / run * step + box->first * inner + within;
        if (into_volume)
            memcpy(place, part, length * sizeof *part);
        else
            memcpy(part, place, length * sizeof *part);
        at += length;
        part += length;
        n -= length;
    }
}

dm_status device_transfer_up(device_transfer *t, const float *host, const volume_box *box,
                             float *device, const char *doing, dm_error *err)
{
    size_t total = volume_box_voxels(box);
    cudaError_t code = cudaSuccess;
    for (size_t at = 0, i = 0; at < total && code == cudaSuccess; at += t->floats, i ^= 1) {
        size_t n = total - at < t->floats ? total - at : t->floats;
        code = cudaEventSynchronize(t->done[i]); /* the copy before the last one */
        if (code == cudaSuccess) {
            copy_part(box, at, n, (float *)(uintptr_t)host, t->pinned[i], false);
            code = cudaMemcpyAsync(device + at, t->pinned[i], n * sizeof *device,
                                   cudaMemcpyHostToDevice, t->stream);
        }
        if (code == cudaSuccess)
            code = cudaEventRecord(t->done[i], t->stream);
    }
    return device_check(code, doing, err);
}

static size_t chunk_of(const device_transfer *t, size_t total, size_t chunk)
{
    size_t rest = total - chunk * t->floats;
    return rest < t->floats ? rest : t->floats;
}

/* Each chunk is taken out of its buffer while the next one is on its way. */
dm_status device_transfer_down(device_transfer *t, const float *device, const volume_box *box,
                               float *host, const char *doing, dm_error *err)
{
    size_t total = volume_box_voxels(box), chunks = (total + t->floats - 1) / t->floats;
    cudaError_t code = cudaSuccess;
    for (size_t c = 0; c <= chunks && code == cudaSuccess; c++) {
        size_t at = c * t->floats;
        if (c < chunks) {
            code =
                cudaMemcpyAsync(t->pinned[c % 2], device + at, chunk_of(t, total, c) * sizeof *host,
                                cudaMemcpyDeviceToHost, t->stream);
            if (code == cudaSuccess)
                code = cudaEventRecord(t->done[c % 2], t->stream);
        }
        if (c == 0 || code != cudaSuccess)
            continue;
        code = cudaEventSynchronize(t->done[(c - 1) % 2]);
        if (code == cudaSuccess)
            copy_part(box, at - t->floats, chunk_of(t, total, c - 1), host, t->pinned[(c - 1) % 2],
                      true);
    }
    return device_check(code, doing, err);
}
