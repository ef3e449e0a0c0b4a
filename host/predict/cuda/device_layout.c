/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_layout.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define ALIGNMENT 256
/* Of every portion's first sample: what 16-byte loads and vendors' libraries ask for. */
#define PORTION_ALIGNMENT 16

/* A piece of memory that tensors share: views of one concatenation, a result on its operand. */
typedef struct buffer {
    size_t sample_bytes;
    size_t first, last; /* operations during which it is in use */
    bool whole;
    bool used;
    unsigned samples;
    size_t bytes, offset;
} buffer;

typedef struct draft {
    const plan *p;
    const lowered_op *ops;
    size_t n_ops;
    unsigned batch;
    size_t n_segments;
    device_segment *segments;
    int *root;       /* per tensor: the tensor that stands for its buffer */
    bool *live;      /* per tensor, of roots */
    bool *written;   /* likewise */
    buffer *buffers; /* likewise */
} draft;

/* ---- Buffers -------------------------------------------------------------------------------- */

static int root_of(const draft *d, int t)
{
    while (d->root[t] != t)
        t = d->root[t];
    return t;
}

static void join(draft *d, int a, int b)
{
    d->root[root_of(d, a)] = root_of(d, b);
}

static bool same_place(const plan_tensor *a, const plan_tensor *b)
{
    return a->offset == b->offset && a->pitch == b->pitch && a->type == b->type &&
           memcmp(a->dim, b->dim, sizeof a->dim) == 0;
}

/* No operation writes it, or not all of it: it is a concatenation, or a part of one. */
static bool is_partial(const draft *d, int t)
{
    const plan_tensor *tensor = &d->p->tensors[t];
    if (tensor->pitch != tensor->channels)
        return true;
    for (size_t i = 0; i < d->n_ops; i++)
        if (d->ops[i].step->out == t)
            return false;
    return t != d->p->input;
}

/* Parts of a concatenation are told by where the plan put them; other tensors of that shape in that
 * place come along, which the plan keeps apart in time. */
static void join_concatenations(draft *d)
{
    for (size_t a = 0; a < d->p->n_tensors; a++)
        for (size_t b = 0; is_partial(d, (int)a) && b < d->p->n_tensors; b++)
            if (same_place(&d->p->tensors[a], &d->p->tensors[b]))
                join(d, (int)a, (int)b);
}

/* A result on an operand, as the plan decided. Convolutions read their operands when a part of the
 * result may be there already: theirs are kept apart. */
static void join_in_place(draft *d)
{
    for (size_t i = 0; i < d->n_ops; i++) {
        const lowered_op *op = &d->ops[i];
        int out = op->step->out, read;
        if (op->kind != LOWERED_STEP || op->step->kind == STEP_CONV ||
            op->step->kind == STEP_CONV_TRANSPOSE)
            continue;
        for (size_t r = 0; (read = lowered_read(op, r)) >= 0; r++)
            if (same_place(&d->p->tensors[read], &d->p->tensors[out]))
                join(d, read, out);
    }
}

/* ---- Segments ------------------------------------------------------------------------------- */

static double tensor_bytes(const plan_tensor *t)
{
    return (double)t->dim[0] * (double)t->dim[1] * (double)t->dim[2] * (double)t->channels *
           (double)element_size(t->type);
}

static size_t voxels_of(const plan_tensor *t)
{
    return t->dim[0] * t->dim[1] * t->dim[2];
}

static size_t level_of(const draft *d, size_t op)
{
    const plan_tensor *t = d->p->tensors;
    size_t in = voxels_of(&t[d->ops[op].step->in]), out = voxels_of(&t[d->ops[op].step->out]);
    return in > out ? in : out;
}

static double op_bytes(const draft *d, size_t op)
{
    double bytes = tensor_bytes(&d->p->tensors[d->ops[op].step->out]);
    int read;
    for (size_t i = 0; (read = lowered_read(&d->ops[op], i)) >= 0; i++)
        bytes += tensor_bytes(&d->p->tensors[read]);
    return bytes;
}

/* The largest divisor of the batch with which every operation at this size keeps to the cache. */
static unsigned samples_at(const draft *d, size_t level, size_t cache_bytes)
{
    double most = 1;
    unsigned samples = 1;
    for (size_t i = 0; i < d->n_ops; i++)
        if (level_of(d, i) == level && op_bytes(d, i) > most)
            most = op_bytes(d, i);
    for (unsigned s = 1; s <= d->batch; s++)
        if (d->batch % s == 0 && s * most <= (double)cache_bytes)
            samples = s;
    return samples;
}

static void find_segments(draft *d, size_t cache_bytes)
{
    d->n_segments = 0;
    for (size_t i = 0; i < d->n_ops; i++) {
        unsigned samples = samples_at(d, level_of(d, i), cache_bytes);
        device_segment *last = d->n_segments ? &d->segments[d->n_segments - 1] : NULL;
        if (last && last->samples == samples)
            last->end = i + 1;
        else
            d->segments[d->n_segments++] = (device_segment){i, i + 1, samples};
    }
}

static const device_segment *segment_of(const draft *d, size_t op)
{
    const device_segment *s = d->segments;
    while (op >= s->end)
        s++;
    return s;
}

/* ---- Lifetimes ------------------------------------------------------------------------------ */

static void use(draft *d, int tensor, size_t op)
{
    buffer *b = &d->buffers[root_of(d, tensor)];
    unsigned samples = segment_of(d, op)->samples;
    b->first = b->used && b->first < op ? b->first : op;
    b->last = b->used && b->last > op ? b->last : op;
    b->samples = samples > b->samples ? samples : b->samples;
    b->used = true;
}

static bool reads_buffer(const draft *d, size_t op, int root)
{
    int read;
    for (size_t i = 0; (read = lowered_read(&d->ops[op], i)) >= 0; i++)
        if (root_of(d, read) == root)
            return true;
    return false;
}

/* Buffers whose contents pass from one segment to a later one. Going back from the end, what an
 * operation reads is live before it, what it writes as a whole is not; what nobody wrote before is
 * not live either. */
static void find_whole(draft *d)
{
    size_t n = d->p->n_tensors;
    memset(d->live, 0, n * sizeof *d->live);
    d->live[root_of(d, d->p->output)] = true;
    for (size_t i = d->n_ops; i-- > 0;) {
        int out = d->ops[i].step->out, read;
        const plan_tensor *t = &d->p->tensors[out];
        if (t->pitch == t->channels && !reads_buffer(d, i, root_of(d, out)))
            d->live[root_of(d, out)] = false;
        for (size_t r = 0; (read = lowered_read(&d->ops[i], r)) >= 0; r++)
            d->live[root_of(d, read)] = true;
        if (i == 0 || segment_of(d, i)->first != i)
            continue;
        memset(d->written, 0, n * sizeof *d->written);
        d->written[root_of(d, d->p->input)] = true;
        for (size_t w = 0; w < i; w++)
            d->written[root_of(d, d->ops[w].step->out)] = true;
        for (size_t b = 0; b < n; b++)
            d->buffers[b].whole |= d->live[b] && d->written[b];
    }
}

/* A whole buffer is in use during all of its segments: each goes over its operations again for the
 * next samples. */
static void find_lifetimes(draft *d)
{
    for (size_t i = 0; i < d->n_ops; i++) {
        int read;
        use(d, d->ops[i].step->out, i);
        for (size_t r = 0; (read = lowered_read(&d->ops[i], r)) >= 0; r++)
            use(d, read, i);
    }
    use(d, d->p->input, 0);
    use(d, d->p->output, d->n_ops - 1);
    for (size_t t = 0; t < d->p->n_tensors; t++) {
        buffer *b = &d->buffers[t];
        if (!b->used || !b->whole)
            continue;
        b->samples = d->batch;
        b->first = segment_of(d, b->first)->first;
        b->last = segment_of(d, b->last)->end - 1;
    }
}

/* ---- Placing -------------------------------------------------------------------------------- */

static size_t rounded(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static bool together(const buffer *a, const buffer *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* The lowest place for b that is free of those placed before it. */
static size_t free_place(buffer *const *placed, size_t n, const buffer *b)
{
    size_t offset = 0;
    for (size_t i = 0; i < n; i++) {
        const buffer *other = placed[i];
        if (together(other, b) && other->offset < offset + b->bytes &&
            offset < other->offset + other->bytes) {
            offset = other->offset + other->bytes;
            i = SIZE_MAX; /* from the start again */
        }
    }
    return offset;
}

static int larger_first(const void *left, const void *right)
{
    const buffer *a = *(buffer *const *)left, *b = *(buffer *const *)right;
    if (a->bytes != b->bytes)
        return a->bytes > b->bytes ? -1 : 1;
    return a < b ? -1 : a > b;
}

static dm_status place_buffers(draft *d, size_t *arena, dm_error *err)
{
    buffer **order = array_alloc(d->p->n_tensors, sizeof *order);
    size_t n = 0;
    *arena = 0;
    if (!order)
        return error_memory(err, d->p->n_tensors * sizeof *order, "the device's arena");
    for (size_t t = 0; t < d->p->n_tensors; t++) {
        buffer *b = &d->buffers[t];
        if (!b->used)
            continue;
        if (!size_multiply(b->sample_bytes, b->samples, &b->bytes) ||
            b->bytes > SIZE_MAX / 4 / d->p->n_tensors) {
            free(order);
            return error_memory(err, SIZE_MAX, "the device's arena");
        }
        b->bytes = rounded(b->bytes);
        order[n++] = b;
    }
    qsort(order, n, sizeof *order, larger_first);
    for (size_t i = 0; i < n; i++) {
        order[i]->offset = free_place(order, i, order[i]);
        size_t end = order[i]->offset + order[i]->bytes;
        *arena = end > *arena ? end : *arena;
    }
    free(order);
    return DM_OK;
}

/* Would a portion of a whole buffer start where loads of 16 bytes cannot? */
static bool has_odd_portions(const draft *d)
{
    for (size_t s = 0; s < d->n_segments; s++)
        for (size_t t = 0; t < d->p->n_tensors; t++)
            if (d->buffers[t].used && d->buffers[t].whole && d->segments[s].samples != d->batch &&
                d->buffers[t].sample_bytes * d->segments[s].samples % PORTION_ALIGNMENT)
                return true;
    return false;
}

static void find_buffers(draft *d, size_t cache_bytes)
{
    find_segments(d, cache_bytes);
    memset(d->buffers, 0, d->p->n_tensors * sizeof *d->buffers);
    for (size_t t = 0; t < d->p->n_tensors; t++) {
        const plan_tensor *tensor = &d->p->tensors[t];
        d->buffers[t].sample_bytes = voxels_of(tensor) * tensor->pitch * element_size(tensor->type);
    }
    find_whole(d);
    find_lifetimes(d);
}

static void publish(const draft *d, device_layout *layout)
{
    layout->batch = d->batch;
    layout->n_segments = d->n_segments;
    for (size_t t = 0; t < d->p->n_tensors; t++) {
        const plan_tensor *tensor = &d->p->tensors[t];
        const buffer *b = &d->buffers[root_of(d, (int)t)];
        layout->tensors[t] = (device_place){.offset = b->used ? b->offset : SIZE_MAX,
                                            .sample = voxels_of(tensor) * tensor->pitch,
                                            .whole = b->whole};
    }
}

dm_status device_layout_make(const plan *p, const lowered_op *ops, size_t n_ops, unsigned batch,
                             size_t cache_bytes, device_layout *layout, dm_error *err)
{
    draft d = {.p = p, .ops = ops, .n_ops = n_ops, .batch = batch};
    size_t n = p->n_tensors;
    dm_status status = DM_OK;
    *layout = (device_layout){0};
    d.segments = layout->segments = array_zero(n_ops + 1, sizeof *d.segments);
    layout->tensors = array_zero(n, sizeof *layout->tensors);
    d.root = array_alloc(n, sizeof *d.root);
    d.live = array_zero(n, sizeof *d.live);
    d.written = array_zero(n, sizeof *d.written);
    d.buffers = array_zero(n, sizeof *d.buffers);
    if (!d.segments || !layout->tensors || !d.root || !d.live || !d.written || !d.buffers) {
        status = error_memory(err, n * sizeof *d.buffers, "the device's arena");
        goto done;
    }
    for (size_t t = 0; t < n; t++)
        d.root[t] = (int)t;
    join_concatenations(&d);
    join_in_place(&d);
    find_buffers(&d, cache_bytes);
    if (has_odd_portions(&d))
        find_buffers(&d, SIZE_MAX);
    status = place_buffers(&d, &layout->bytes, err);
    if (status == DM_OK)
        publish(&d, layout);
done:
    free(d.root);
    free(d.live);
    free(d.written);
    free(d.buffers);
    if (status != DM_OK)
        device_layout_clear(layout);
    return status;
}

void device_layout_clear(device_layout *layout)
{
    free(layout->segments);
    free(layout->tensors);
    *layout = (device_layout){0};
}
