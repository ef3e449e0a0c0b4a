/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Structures are handled in groups, which bounds the memory: all of a group at once. First sums,
 * extremes and ranks, whose results say how many bins the histograms have; then the histograms.
 */
#include "predict/cuda/device_dvh.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "dosimetry/dvh.h"
#include "dosimetry/dvh_statistics.h"
#include "kernels/kernels.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/structure_table.h"

/* TotalSegmentator's 117 are one group. 128 take 3 MB of digits and at most 100 MB of bins. */
#define GROUP 128
/* Enough voxels to pay for clearing and giving out a block's counters, and few enough that the tiles
 * of a whole body are several for each of some thousand blocks' places. */
#define TILE_VOXELS 16384
#define MAX_BUFFERS 12

typedef struct work {
    const float *d_dose;
    const dm_labels *labels;
    cudaStream_t stream;
    dm_error *err;
    dm_dvh *dvh;
    uint32_t *threshold; /* keys, ascending */

    size_t first; /* structure of the group */
    unsigned count;
    structure_table table;
    device_structures d_structures;
    device_dvh_rank rank[GROUP][DVH_RANKS];
    device_dvh_summary summary[GROUP];
    device_dvh_bins bins[GROUP];
    size_t all_bins;
    unsigned long long *histogram, *passed;

    void *buffer[MAX_BUFFERS]; /* on the device, of the group */
    size_t buffers;
} work;

/* ---- The device's memory -------------------------------------------------------------------- */

static dm_status device_status(cudaError_t code, dm_error *err)
{
    return device_check(code, "computing DVHs", err);
}

/* A buffer for `count` elements on the device. *pointer is a pointer of any type. */
static dm_status take(work *w, size_t count, size_t size, void *pointer)
{
    size_t bytes;
    void *buffer;
    if (!size_multiply(count, size, &bytes))
        return error_memory(w->err, SIZE_MAX, "DVHs on the device");
    dm_status status = device_alloc(&buffer, bytes ? bytes : 1, "the computation of DVHs", w->err);
    if (status != DM_OK)
        return status;
    w->buffer[w->buffers++] = buffer;
    memcpy(pointer, &buffer, sizeof buffer);
    return DM_OK;
}

/* The same, filled with `from`, which has to stay until the stream has been waited for. */
static dm_status send(work *w, const void *from, size_t count, size_t size, void *pointer)
{
    dm_status status = take(w, count, size, pointer);
    if (status != DM_OK || count == 0)
        return status;
    return device_status(cudaMemcpyAsync(w->buffer[w->buffers - 1], from, count * size,
                                         cudaMemcpyHostToDevice, w->stream),
                         w->err);
}

static dm_status fetch(const work *w, const void *from, size_t bytes, void *to)
{
    if (bytes == 0)
        return DM_OK;
    return device_status(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, w->stream),
                         w->err);
}

static dm_status wait(const work *w)
{
    return device_status(cudaStreamSynchronize(w->stream), w->err);
}

/* Also after an error: copies from or to the host's arrays may still be under way. */
static void end_group(work *w)
{
    cudaStreamSynchronize(w->stream);
    while (w->buffers > 0)
        device_free(w->buffer[--w->buffers]);
    structure_table_free(&w->table);
    free(w->histogram);
    free(w->passed);
    w->histogram = w->passed = NULL;
}

/* ---- Sums, extremes, ranks ------------------------------------------------------------------ */

static dm_structure_dose *structure_of(const work *w, unsigned s)
{
    return &w->dvh->structures[w->first + s];
}

static dm_status send_structures(work *w)
{
    const structure_table *table = &w->table;
    device_structures *d = &w->d_structures;
    *d = (device_structures){.tiles = table->tiles, .count = table->count};
    dm_status status = send(w, table->run, table->runs, sizeof *table->run, &d->run);
    if (status == DM_OK)
        status = send(w, table->tile, table->tiles, sizeof *table->tile, &d->tile);
    if (status == DM_OK)
        status = send(w, table->first_tile, (size_t)table->count + 1, sizeof *table->first_tile,
                      &d->first_tile);
    return status;
}

static void choose_ranks(work *w)
{
    memset(w->rank, 0, sizeof w->rank);
    for (unsigned s = 0; s < w->count; s++) {
        size_t rank[DVH_RANKS];
        if (structure_of(w, s)->voxels == 0)
            continue;
        dvh_ranks(structure_of(w, s), rank);
        for (size_t r = 0; r < DVH_RANKS; r++)
            w->rank[s][r].rank = rank[r];
    }
}

static dm_status compute_statistics(work *w)
{
    device_dvh_statistics d = {.dose = w->d_dose, .structures = w->d_structures};
    size_t ranks = w->count * (size_t)DVH_RANKS;
    choose_ranks(w);
    dm_status status = send(w, w->rank, ranks, sizeof **w->rank, &d.rank);
    if (status == DM_OK)
        status = take(w, w->count, sizeof *d.summary, &d.summary);
    if (status == DM_OK)
        status = take(w, w->table.tiles, sizeof *d.partial, &d.partial);
    if (status == DM_OK)
        status = take(w, ranks * DEVICE_DVH_DIGITS, sizeof *d.digits, &d.digits);
    if (status == DM_OK)
        status = device_status(kernel_dvh_statistics(&d, w->stream), w->err);
    if (status == DM_OK)
        status = fetch(w, d.rank, ranks * sizeof **w->rank, w->rank);
    if (status == DM_OK)
        status = fetch(w, d.summary, w->count * sizeof *w->summary, w->summary);
    return status == DM_OK ? wait(w) : status;
}

static dm_status report_fault(const work *w, uint64_t place)
{
    uint64_t voxel;
    float dose = 0;
    unsigned s = structure_table_find(&w->table, place, &voxel);
    dm_status status = fetch(w, w->d_dose + voxel, sizeof dose, &dose);
    if (status == DM_OK)
        status = wait(w);
    return status == DM_OK ? dvh_not_finite(w->labels, w->first + s, voxel, dose, w->err) : status;
}

static dm_status keep_statistics(work *w)
{
    for (unsigned s = 0; s < w->count; s++)
        if (w->summary[s].fault != NO_FAULT)
            return report_fault(w, w->summary[s].fault);
    w->all_bins = 0;
    for (unsigned s = 0; s < w->count; s++) {
        dm_structure_dose *out = structure_of(w, s);
        const device_dvh_summary *summary = &w->summary[s];
        uint32_t key[DVH_RANKS];
        w->bins[s] = (device_dvh_bins){.first = w->all_bins};
        if (out->voxels == 0)
            continue;
        out->mean = (summary->sum.sum + summary->sum.lost) / (double)out->voxels;
        out->minimum = dvh_key_dose(summary->lowest);
        out->maximum = dvh_key_dose(summary->highest);
        for (size_t r = 0; r < DVH_RANKS; r++)
            key[r] = w->rank[s][r].key;
        dvh_set_statistics(key, out);
        if (!dvh_make_bins(out))
            return error_memory(w->err, sizeof *out->histogram, "the DVH of a structure");
        w->bins[s].width = out->bin_width;
        w->bins[s].bins = (unsigned)out->bins;
        w->all_bins += out->bins;
    }
    return DM_OK;
}

/* ---- Histograms and thresholds -------------------------------------------------------------- */

static int compare_keys(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static dm_status sort_thresholds(work *w)
{
    size_t n = w->dvh->n_thresholds;
    w->threshold = n < UINT32_MAX ? array_alloc(n, sizeof *w->threshold) : NULL;
    if (!w->threshold)
        return error_memory(w->err, n * sizeof *w->threshold, "DVHs");
    for (size_t i = 0; i < n; i++)
        w->threshold[i] = dvh_threshold_key(w->dvh->thresholds[i]);
    qsort(w->threshold, n, sizeof *w->threshold, compare_keys);
    return DM_OK;
}

static dm_status count_voxels(work *w)
{
    size_t n = w->dvh->n_thresholds, classes = w->count * (n + 1);
    unsigned long long *d_histogram = NULL, *d_passed = NULL;
    device_dvh_bins *d_bins = NULL;
    unsigned *d_threshold = NULL;
    w->histogram = array_alloc(w->all_bins, sizeof *w->histogram);
    w->passed = array_zero(classes, sizeof *w->passed);
    if (!w->histogram || !w->passed)
        return error_memory(w->err, w->all_bins * sizeof *w->histogram, "DVHs");
    dm_status status = send(w, w->bins, w->count, sizeof *w->bins, &d_bins);
    if (status == DM_OK)
        status = send(w, w->threshold, n, sizeof *w->threshold, &d_threshold);
    if (status == DM_OK)
        status = take(w, w->all_bins, sizeof *d_histogram, &d_histogram);
    if (status == DM_OK)
        status = take(w, classes, sizeof *d_passed, &d_passed);
    if (status == DM_OK)
        status = device_status(kernel_dvh_histogram(w->d_dose, &w->d_structures, d_bins,
                                                    d_histogram, w->all_bins, d_threshold,
                                                    (unsigned)n, d_passed, w->stream),
                               w->err);
    if (status == DM_OK)
        status = fetch(w, d_histogram, w->all_bins * sizeof *w->histogram, w->histogram);
    if (status == DM_OK && n > 0)
        status = fetch(w, d_passed, classes * sizeof *w->passed, w->passed);
    return status == DM_OK ? wait(w) : status;
}

static void keep_percentages(const work *w, const unsigned long long *passed, size_t voxels,
                             double *v_percent)
{
    size_t n = w->dvh->n_thresholds;
    for (size_t i = 0; i < n; i++) {
        uint32_t key = dvh_threshold_key(w->dvh->thresholds[i]);
        size_t at_least = 0;
        for (size_t c = n; c > 0 && w->threshold[c - 1] >= key; c--)
            at_least += (size_t)passed[c];
        v_percent[i] = dvh_percent(at_least, voxels);
    }
}

static void keep_counts(work *w)
{
    size_t n = w->dvh->n_thresholds;
    for (unsigned s = 0; s < w->count; s++) {
        dm_structure_dose *out = structure_of(w, s);
        if (out->voxels == 0)
            continue;
        /* Ours until it is given out. */
        memcpy((uint64_t *)out->histogram, w->histogram + w->bins[s].first,
               out->bins * sizeof *out->histogram);
        keep_percentages(w, w->passed + s * (n + 1), out->voxels,
                         w->dvh->v_percent + (w->first + s) * n);
    }
}

/* ---- All ------------------------------------------------------------------------------------ */

static dm_status compute_group(work *w)
{
    dm_status status = structure_table_make(w->labels->structures + w->first, w->count, TILE_VOXELS,
                                            &w->table, w->err);
    if (status != DM_OK || w->table.tiles == 0)
        return status;
    status = send_structures(w);
    if (status == DM_OK)
        status = compute_statistics(w);
    if (status == DM_OK)
        status = keep_statistics(w);
    if (status == DM_OK)
        status = count_voxels(w);
    if (status == DM_OK)
        keep_counts(w);
    return status;
}

dm_status device_dvh(const float *d_dose, const dm_labels *labels, const dm_dvh_options *options,
                     cudaStream_t stream, dm_dvh **dvh, dm_error *err)
{
    static const dm_dvh_options none;
    *dvh = NULL;
    work *w = array_zero(1, sizeof *w);
    if (!w)
        return error_memory(err, sizeof *w, "DVHs");
    w->d_dose = d_dose;
    w->labels = labels;
    w->stream = stream;
    w->err = err;
    dm_status status = dvh_create(labels, options ? options : &none, &w->dvh, err);
    if (status == DM_OK)
        status = sort_thresholds(w);
    for (; status == DM_OK && w->first < labels->count; w->first += GROUP) {
        size_t left = labels->count - w->first;
        w->count = left < GROUP ? (unsigned)left : GROUP;
        status = compute_group(w);
        end_group(w);
    }
    if (status == DM_OK)
        *dvh = w->dvh;
    else
        dm_dvh_free(w->dvh);
    free(w->threshold);
    free(w);
    return status;
}
