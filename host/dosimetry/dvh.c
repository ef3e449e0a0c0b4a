/* SPDX-License-Identifier: Apache-2.0 */
/* DVHs of all structures: one structure is the unit of work, so that threads change no result. */
#include "dosimetry/dvh.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cores.h"
#include "base/error.h"
#include "base/parallel.h"

#define MAX_THREADS 64

/* Also right where the axes are sheared. */
static double voxel_cm3(const dm_grid *grid)
{
    const double(*a)[4] = grid->affine;
    double determinant = a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) -
                         a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0]) +
                         a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0]);
    return fabs(determinant) / 1000;
}

void dm_dvh_free(dm_dvh *dvh)
{
    if (!dvh)
        return;
    for (size_t i = 0; dvh->structures && i < dvh->count; i++) {
        free((void *)dvh->structures[i].name);
        free((void *)dvh->structures[i].histogram);
    }
    free(dvh->structures);
    free(dvh->thresholds);
    free(dvh->v_percent);
    free(dvh);
}

static dm_status check_thresholds(const dm_dvh_options *options, dm_error *err)
{
    for (size_t i = 0; i < options->n_v_thresholds; i++) {
        double threshold = options->v_thresholds[i];
        if (!(threshold >= 0 && isfinite(threshold)))
            return error_set(err, DM_ERROR_VALUE, NULL, "give doses of zero or more",
                             "the dose %g for Vx is not one", threshold);
    }
    return DM_OK;
}

static bool allocate(dm_dvh *dvh, size_t count, size_t n_thresholds)
{
    size_t cells;
    if (!size_multiply(count, n_thresholds, &cells))
        return false;
    dvh->structures = array_zero(count, sizeof *dvh->structures);
    dvh->thresholds = array_zero(n_thresholds, sizeof *dvh->thresholds);
    dvh->v_percent = array_zero(cells, sizeof *dvh->v_percent);
    return dvh->structures && dvh->thresholds && dvh->v_percent;
}

static bool describe(const label_structure *structure, double cm3, double *v_percent,
                     size_t n_thresholds, dm_structure_dose *s)
{
    *s = (dm_structure_dose){.name = strdup(structure->name),
                             .id = structure->id,
                             .voxels = structure->voxels,
                             .volume_cm3 = (double)structure->voxels * cm3,
                             .mean = NAN,
                             .minimum = NAN,
                             .maximum = NAN,
                             .d2 = NAN,
                             .d50 = NAN,
                             .d95 = NAN,
                             .d98 = NAN,
                             .d2cc = NAN,
                             .v_percent = v_percent,
                             .bin_width = NAN};
    for (size_t i = 0; i < n_thresholds; i++)
        v_percent[i] = NAN;
    return s->name;
}

dm_status dvh_create(const dm_labels *labels, const dm_dvh_options *options, dm_dvh **dvh,
                     dm_error *err)
{
    double cm3 = voxel_cm3(&labels->grid);
    *dvh = NULL;
    dm_status status = check_thresholds(options, err);
    if (status != DM_OK)
        return status;
    dm_dvh *d = array_zero(1, sizeof *d);
    bool ok = d && allocate(d, labels->count, options->n_v_thresholds);
    if (ok) {
        d->count = labels->count;
        d->n_thresholds = options->n_v_thresholds;
        d->per_activity = options->per_activity;
        if (d->n_thresholds)
            memcpy(d->thresholds, options->v_thresholds, d->n_thresholds * sizeof *d->thresholds);
    }
    for (size_t i = 0; ok && i < labels->count; i++)
        ok = describe(&labels->structures[i], cm3, d->v_percent + i * d->n_thresholds,
                      d->n_thresholds, &d->structures[i]);
    if (!ok) {
        dm_dvh_free(d);
        return error_memory(err, labels->count * sizeof(dm_structure_dose), "DVHs");
    }
    *dvh = d;
    return DM_OK;
}

/* What became of a structure; reported in the order of the structures, not of the threads. */
typedef struct outcome {
    dm_status status;
    uint64_t bad_voxel;
} outcome;

typedef struct work {
    const float *dose;
    const dm_labels *labels;
    dm_dvh *dvh;
    outcome *outcomes;
    atomic_size_t next;
} work;

/* One of several threads; each takes the next structure until there is none. */
static void fill_structures(void *context, unsigned part)
{
    work *w = context;
    size_t i;
    (void)part;
    while ((i = atomic_fetch_add(&w->next, 1)) < w->dvh->count) {
        if (w->labels->structures[i].voxels > 0)
            w->outcomes[i].status = dvh_structure_fill(
                w->dose, &w->labels->structures[i], w->dvh->thresholds, w->dvh->n_thresholds,
                &w->dvh->structures[i], w->dvh->v_percent + i * w->dvh->n_thresholds,
                &w->outcomes[i].bad_voxel);
    }
}

dm_status dvh_not_finite(const dm_labels *labels, size_t structure, uint64_t voxel, float dose,
                         dm_error *err)
{
    const size_t *dim = labels->grid.dim;
    return error_set(err, DM_ERROR_VALUE, NULL,
                     "repair the dose map, or take the voxel out of the structure",
                     "the dose in voxel (%zu, %zu, %zu) of '%s' is %g", (size_t)voxel % dim[0],
                     (size_t)voxel / dim[0] % dim[1], (size_t)voxel / dim[0] / dim[1],
                     labels->structures[structure].name, (double)dose);
}

static dm_status report(const work *w, dm_error *err)
{
    for (size_t i = 0; i < w->dvh->count; i++) {
        const outcome *o = &w->outcomes[i];
        if (o->status == DM_ERROR_MEMORY)
            return error_memory(err, w->dvh->structures[i].voxels * 2 * sizeof(uint32_t),
                                "the DVH of a structure");
        if (o->status != DM_OK)
            return dvh_not_finite(w->labels, i, o->bad_voxel, w->dose[o->bad_voxel], err);
    }
    return DM_OK;
}

dm_status dvh_from_voxels(const float *dose, const dm_labels *labels, const dm_dvh_options *options,
                          dm_dvh **dvh, dm_error *err)
{
    static const dm_dvh_options none;
    work w = {.dose = dose, .labels = labels};
    const dm_dvh_options *o = options ? options : &none;
    dm_status status = dvh_create(labels, o, &w.dvh, err);
    *dvh = NULL;
    if (!w.dvh)
        return status;
    w.outcomes = array_zero(labels->count, sizeof *w.outcomes);
    if (w.outcomes) {
        size_t threads = cores_or(o->threads);
        if (threads > w.dvh->count)
            threads = w.dvh->count;
        if (threads > MAX_THREADS)
            threads = MAX_THREADS;
        parallel_run((unsigned)threads, fill_structures, &w);
        status = report(&w, err);
    } else {
        status = error_memory(err, labels->count * sizeof *w.outcomes, "DVHs");
    }
    free(w.outcomes);
    if (status == DM_OK)
        *dvh = w.dvh;
    else
        dm_dvh_free(w.dvh);
    return status;
}

dm_status dm_dvh_compute(const dm_volume *dose, const dm_labels *labels,
                         const dm_dvh_options *options, dm_dvh **dvh, dm_error *err)
{
    char reason[256] = "";
    *dvh = NULL;
    if (!dm_grid_equal(&dose->grid, &labels->grid, reason, sizeof reason))
        return error_set(err, DM_ERROR_VALUE, NULL,
                         "bring the labels onto the dose map's grid (--resample-labels)",
                         "the dose map and the labels lie on different grids: %s", reason);
    return dvh_from_voxels(dose->data, labels, options, dvh, err);
}

size_t dm_dvh_count(const dm_dvh *dvh)
{
    return dvh->count;
}

const dm_structure_dose *dm_dvh_structure(const dm_dvh *dvh, size_t index)
{
    return index < dvh->count ? &dvh->structures[index] : NULL;
}
