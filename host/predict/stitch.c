/* SPDX-License-Identifier: Apache-2.0 */
/* Adding windows in a fixed order from many threads, and the division at the end. */
#include "predict/stitch.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/parallel.h"
#include "predict/intensity.h"

/* Where a finished window is: a slot's number, or one of these. */
#define WINDOW_PENDING UINT32_MAX
#define WINDOW_SKIPPED (UINT32_MAX - 1)

struct stitch {
    const tiling *tiling;
    strided sum;
    size_t slot_floats;
    float *slots;
    uint32_t *free_slots; /* stack */
    size_t n_free;
    uint32_t *where; /* per window */
    size_t next;     /* the window whose turn it is: only its holder touches `sum` */
    bool adding;
    bool stopped, not_finite;
    size_t bad[3];
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

dm_status stitch_create(const tiling *tiles, strided sum, size_t slots, stitch **made,
                        dm_error *err)
{
    stitch *st = array_zero(1, sizeof *st);
    *made = NULL;
    if (!st)
        return error_memory(err, sizeof *st, "stitching");
    st->tiling = tiles;
    st->sum = sum;
    st->slot_floats = tiles->tile[0] * tiles->tile[1] * tiles->tile[2];
    if (slots > tiles->count - 1)
        slots = tiles->count - 1; /* the first window never waits */
    size_t floats = SIZE_MAX;
    if (size_multiply(slots, st->slot_floats, &floats))
        st->slots = array_alloc(floats, sizeof *st->slots);
    st->free_slots = array_alloc(slots, sizeof *st->free_slots);
    st->where = array_alloc(tiles->count, sizeof *st->where);
    if ((slots && (!st->slots || !st->free_slots)) || !st->where) {
        free(st->slots);
        free(st->free_slots);
        free(st->where);
        free(st);
        return error_memory(err, floats, "windows waiting to be stitched");
    }
    for (size_t i = 0; i < slots; i++)
        st->free_slots[st->n_free++] = (uint32_t)i;
    memset(st->where, 0xff, tiles->count * sizeof *st->where);
    pthread_mutex_init(&st->lock, NULL);
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&st->changed, &clock);
    pthread_condattr_destroy(&clock);
    *made = st;
    return DM_OK;
}

void stitch_free(stitch *st)
{
    if (!st)
        return;
    pthread_cond_destroy(&st->changed);
    pthread_mutex_destroy(&st->lock);
    free(st->slots);
    free(st->free_slots);
    free(st->where);
    free(st);
}

/* ---- Adding --------------------------------------------------------------------------------- */

/* sum += weight * output over a row; true if all outputs are finite. */
static inline bool add_row(const float *output, const float *weight, size_t n, float *sum,
                           ptrdiff_t stride)
{
    int finite = 1;
    for (size_t x = 0; x < n; x++) {
        float v = output[x];
        sum[(ptrdiff_t)x * stride] += weight[x] * v;
        finite &= fabsf(v) <= FLT_MAX;
    }
    return finite;
}

/* The axis of y and z along which the sum's rows lie closer together goes inside, so that rows of
 * permuted volumes find the cache lines of the row before. */
static void loop_order(const strided *sum, int *outer, int *inner)
{
    bool z_inside = labs(sum->stride[2]) < labs(sum->stride[1]);
    *outer = z_inside ? 1 : 2;
    *inner = z_inside ? 2 : 1;
}

/* First voxel of the window, in z, y, x order, that is not finite. */
static void find_bad(stitch *st, size_t w, const float *output)
{
    size_t start[3], size[3], at[3];
    const size_t *tile = st->tiling->tile;
    tiling_inside(st->tiling, w, start, size, at);
    for (size_t i = 0; i < size[0] * size[1] * size[2]; i++) {
        const size_t p[3] = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]};
        size_t voxel = ((at[2] + p[2]) * tile[1] + at[1] + p[1]) * tile[0] + at[0] + p[0];
        if (!isfinite(output[voxel])) {
            for (int a = 0; a < 3; a++)
                st->bad[a] = start[a] + p[a];
            return;
        }
    }
}

static bool add_window(stitch *st, size_t w, const float *output)
{
    size_t start[3], size[3], at[3];
    const size_t *tile = st->tiling->tile;
    const ptrdiff_t *stride = st->sum.stride;
    int outer, inner;
    bool finite = true;
    tiling_inside(st->tiling, w, start, size, at);
    loop_order(&st->sum, &outer, &inner);
    float *first = st->sum.data;
    for (int a = 0; a < 3; a++)
        first += (ptrdiff_t)start[a] * stride[a];
    for (size_t o = 0; o < size[outer]; o++) {
        for (size_t i = 0; i < size[inner]; i++) {
            size_t y = outer == 1 ? o : i, z = outer == 1 ? i : o;
            size_t voxel = ((at[2] + z) * tile[1] + at[1] + y) * tile[0] + at[0];
            const float *weight = st->tiling->importance + voxel;
            float *sum = first + (ptrdiff_t)y * stride[1] + (ptrdiff_t)z * stride[2];
            if (stride[0] == 1) /* a constant, so that the loop becomes vectors */
                finite &= add_row(output + voxel, weight, size[0], sum, 1);
            else
                finite &= add_row(output + voxel, weight, size[0], sum, stride[0]);
        }
    }
    return finite;
}

/* Called with the lock when it is window `next`'s turn and nobody is adding; lets go of the lock
 * while adding. */
static void take_turn(stitch *st, const float *output)
{
    st->adding = true;
    pthread_mutex_unlock(&st->lock);
    bool finite = add_window(st, st->next, output);
    if (!finite)
        find_bad(st, st->next, output);
    pthread_mutex_lock(&st->lock);
    st->adding = false;
    if (!finite)
        st->not_finite = st->stopped = true;
    else
        st->next++;
}

/* With the lock: adds whatever is in for the windows from `next` on. */
static void drain(stitch *st)
{
    while (!st->adding && !st->stopped && st->next < st->tiling->count) {
        uint32_t where = st->where[st->next];
        if (where == WINDOW_PENDING)
            break;
        if (where == WINDOW_SKIPPED) {
            st->next++;
            continue;
        }
        take_turn(st, st->slots + where * st->slot_floats);
        st->free_slots[st->n_free++] = where;
        pthread_cond_broadcast(&st->changed);
    }
    pthread_cond_broadcast(&st->changed);
}

bool stitch_add(stitch *st, size_t w, const float *output)
{
    pthread_mutex_lock(&st->lock);
    while (!st->stopped && st->next != w && st->n_free == 0)
        pthread_cond_wait(&st->changed, &st->lock);
    if (!st->stopped && st->next == w) {
        take_turn(st, output);
    } else if (!st->stopped) {
        uint32_t slot = st->free_slots[--st->n_free];
        pthread_mutex_unlock(&st->lock);
        memcpy(st->slots + slot * st->slot_floats, output, st->slot_floats * sizeof *output);
        pthread_mutex_lock(&st->lock);
        st->where[w] = slot;
    }
    drain(st);
    bool going = !st->stopped;
    pthread_mutex_unlock(&st->lock);
    return going;
}

bool stitch_skip(stitch *st, size_t w)
{
    pthread_mutex_lock(&st->lock);
    st->where[w] = WINDOW_SKIPPED;
    drain(st);
    bool going = !st->stopped;
    pthread_mutex_unlock(&st->lock);
    return going;
}

void stitch_stop(stitch *st)
{
    pthread_mutex_lock(&st->lock);
    st->stopped = true;
    pthread_cond_broadcast(&st->changed);
    pthread_mutex_unlock(&st->lock);
}

bool stitch_wait(stitch *st, double seconds, size_t *done)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - floor(seconds)) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&st->lock);
    while (!st->stopped && st->next < st->tiling->count)
        if (pthread_cond_timedwait(&st->changed, &st->lock, &until) == ETIMEDOUT)
            break;
    *done = st->next;
    bool over = st->stopped || st->next == st->tiling->count;
    pthread_mutex_unlock(&st->lock);
    return over;
}

bool stitch_not_finite(stitch *st, size_t voxel[3])
{
    pthread_mutex_lock(&st->lock);
    bool found = st->not_finite;
    memcpy(voxel, st->bad, sizeof st->bad);
    pthread_mutex_unlock(&st->lock);
    return found;
}

/* ---- Finishing ------------------------------------------------------------------------------ */

/* Rows that are finished together: where they lie side by side, 16 floats of a cache line. */
#define ROWS 16

/* Rows between the volume and `values`, x fastest there. `apart`: from one row to the next. */
static void move_rows(float *rows, ptrdiff_t stride, ptrdiff_t apart, size_t n, size_t count,
                      float *values, bool back)
{
    for (size_t x = 0; x < n; x++) {
        float *at = rows + (ptrdiff_t)x * stride;
        for (size_t r = 0; r < count; r++) {
            if (back)
                at[(ptrdiff_t)r * apart] = values[r * n + x];
            else
                values[r * n + x] = at[(ptrdiff_t)r * apart];
        }
    }
}

/* Sums of one row to doses; the first position that is not finite, or n. */
static size_t finish_row(const tiling *t, size_t y, size_t z, const intensity_transform *transform,
                         float factor, float *total, float *value)
{
    size_t n = t->volume[0], bad = n;
    tiling_total_row(t, y, z, total);
    for (size_t x = 0; x < n; x++)
        value[x] /= total[x];
    intensity_apply(transform, value, n);
    for (size_t x = n; x-- > 0;) {
        value[x] *= factor;
        if (!isfinite(value[x]))
            bad = x;
    }
    return bad;
}

typedef struct finish_job {
    const tiling *tiling;
    strided sum;
    const intensity_transform *transform;
    float factor;
    unsigned parts;
    float *scratch;    /* ROWS and one rows per part */
    size_t *first_bad; /* per part: voxel on the model's grid, or SIZE_MAX */
} finish_job;

/* A slab along the outer of y and z, some rows along the inner at a time. */
static void finish_part(void *context, unsigned part)
{
    const finish_job *job = context;
    const size_t *volume = job->tiling->volume;
    const ptrdiff_t *stride = job->sum.stride;
    const bool apart = stride[0] != 1; /* voxels of a row: brought together */
    size_t n = volume[0], first_bad = SIZE_MAX;
    float *total = job->scratch + (size_t)part * (ROWS + 1) * n, *values = total + n;
    int outer, inner;
    loop_order(&job->sum, &outer, &inner);
    size_t end = volume[outer] * (part + 1) / job->parts;
    for (size_t o = volume[outer] * part / job->parts; o < end; o++) {
        for (size_t i = 0; i < volume[inner]; i += ROWS) {
            size_t count = volume[inner] - i < ROWS ? volume[inner] - i : ROWS;
            float *rows =
                job->sum.data + (ptrdiff_t)o * stride[outer] + (ptrdiff_t)i * stride[inner];
            if (apart)
                move_rows(rows, stride[0], stride[inner], n, count, values, false);
            for (size_t r = 0; r < count; r++) {
                size_t y = outer == 1 ? o : i + r, z = outer == 1 ? i + r : o;
                float *row = apart ? values + r * n : rows + (ptrdiff_t)r * stride[inner];
                size_t x = finish_row(job->tiling, y, z, job->transform, job->factor, total, row);
                size_t at = x + n * (y + volume[1] * z);
                if (x < n && at < first_bad)
                    first_bad = at;
            }
            if (apart)
                move_rows(rows, stride[0], stride[inner], n, count, values, true);
        }
    }
    job->first_bad[part] = first_bad;
}

dm_status stitch_finish(const tiling *tiles, strided sum, const intensity_transform *transform,
                        float factor, unsigned threads, size_t bad[3], dm_error *err)
{
    const size_t *volume = tiles->volume;
    size_t outer = volume[1] > volume[2] ? volume[1] : volume[2], first_bad = SIZE_MAX;
    finish_job job = {tiles, sum, transform, factor, 1, NULL, NULL};
    if (threads > 1)
        job.parts = threads < outer ? threads : (unsigned)outer;
    job.scratch = array_alloc(job.parts, (ROWS + 1) * volume[0] * sizeof *job.scratch);
    job.first_bad = array_alloc(job.parts, sizeof *job.first_bad);
    dm_status status = DM_OK;
    if (!job.scratch || !job.first_bad) {
        status = error_memory(err, (size_t)job.parts * (ROWS + 1) * volume[0] * sizeof *job.scratch,
                              "stitching");
        goto done;
    }
    parallel_run(job.parts, finish_part, &job);
    for (unsigned i = 0; i < job.parts; i++)
        first_bad = job.first_bad[i] < first_bad ? job.first_bad[i] : first_bad;
    if (first_bad != SIZE_MAX) {
        bad[0] = first_bad % volume[0];
        bad[1] = first_bad / volume[0] % volume[1];
        bad[2] = first_bad / volume[0] / volume[1];
        status = DM_ERROR_VALUE;
    }
done:
    free(job.scratch);
    free(job.first_bad);
    return status;
}
