/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where buffers lie. A buffer is in use from the first step that writes into it to the last that
 * reads from it. A step writes over what it reads element by element (the input of STEP_POINTWISE,
 * tensors of the chain) where that is the last use. Then, the largest buffer first, each goes to
 * the smallest gap between those in use at the same time.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/plan_draft.h"

static void use(plan_draft *d, int tensor, size_t when)
{
    plan_buffer *b = &d->buffers[d->tensor_buffer[tensor]];
    b->first = when < b->first ? when : b->first;
    b->last = when > b->last ? when : b->last;
}

static void find_lifetimes(plan_draft *d)
{
    const plan *p = d->plan;
    for (size_t s = 0; s < p->n_steps; s++) {
        const plan_step *step = &p->steps[s];
        use(d, step->in, s + 1);
        use(d, step->out, s + 1);
        for (size_t i = 0; i < step->n_chain; i++)
            if (step->chain[i].tensor >= 0)
                use(d, step->chain[i].tensor, s + 1);
    }
    use(d, p->input, 0);
    use(d, p->output, p->n_steps + 1);
}

/* How often a step reads from a buffer. */
static size_t reads(const plan_draft *d, const plan_step *step, int buffer)
{
    size_t n = d->tensor_buffer[step->in] == buffer;
    for (size_t i = 0; i < step->n_chain; i++)
        n += step->chain[i].tensor >= 0 && d->tensor_buffer[step->chain[i].tensor] == buffer;
    return n;
}

/* `tensor` is read at the element that is written, and by nobody else from now on. */
static bool can_overwrite(const plan_draft *d, const plan_step *step, int tensor, size_t when)
{
    const plan_tensor *from = &d->plan->tensors[tensor], *to = &d->plan->tensors[step->out];
    int buffer = d->tensor_buffer[tensor];
    return d->buffers[buffer].last == when && reads(d, step, buffer) == 1 &&
           from->type == to->type && from->pitch == from->channels && to->pitch == to->channels &&
           from->channels == to->channels && !memcmp(from->dim, to->dim, sizeof from->dim);
}

/* The tensor that the step's result can lie on; -1 for none. */
static int overwritten(const plan_draft *d, const plan_step *step, size_t when)
{
    if (step->kind == STEP_POINTWISE && can_overwrite(d, step, step->in, when))
        return step->in;
    for (size_t i = 0; i < step->n_chain; i++)
        if (step->chain[i].tensor >= 0 && can_overwrite(d, step, step->chain[i].tensor, when))
            return step->chain[i].tensor;
    return -1;
}

static void overwrite(plan_draft *d)
{
    for (size_t s = 0; s < d->plan->n_steps; s++) {
        const plan_step *step = &d->plan->steps[s];
        int tensor = overwritten(d, step, s + 1);
        if (tensor < 0)
            continue;
        plan_buffer *from = &d->buffers[d->tensor_buffer[tensor]];
        plan_buffer *to = &d->buffers[d->tensor_buffer[step->out]];
        from->last = to->last;
        to->bytes = 0;
        d->tensor_buffer[step->out] = d->tensor_buffer[tensor];
    }
}

static bool together(const plan_buffer *a, const plan_buffer *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* placed: sorted by offset. */
static size_t best_offset(plan_buffer *const *placed, size_t n, const plan_buffer *b)
{
    size_t end = 0, best = SIZE_MAX, smallest = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        if (!together(placed[i], b))
            continue;
        if (placed[i]->offset > end) {
            size_t gap = placed[i]->offset - end;
            if (gap >= b->bytes && gap < smallest) {
                smallest = gap;
                best = end;
            }
        }
        size_t past = placed[i]->offset + placed[i]->bytes;
        end = past > end ? past : end;
    }
    return best == SIZE_MAX ? end : best;
}

static int larger_first(const void *left, const void *right)
{
    const plan_buffer *a = *(plan_buffer *const *)left, *b = *(plan_buffer *const *)right;
    if (a->bytes != b->bytes)
        return a->bytes > b->bytes ? -1 : 1;
    if (a->first != b->first)
        return a->first < b->first ? -1 : 1;
    return a < b ? -1 : a > b;
}

static void lay_out(plan_draft *d, plan_buffer **order, plan_buffer **placed)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_buffers; i++)
        if (d->buffers[i].bytes)
            order[n++] = &d->buffers[i];
    qsort(order, n, sizeof *order, larger_first);
    for (size_t i = 0; i < n; i++) {
        plan_buffer *b = order[i];
        size_t at = i;
        b->offset = best_offset(placed, i, b);
        for (; at > 0 && placed[at - 1]->offset > b->offset; at--)
            placed[at] = placed[at - 1];
        placed[at] = b;
        if (b->offset + b->bytes > d->plan->arena_bytes)
            d->plan->arena_bytes = b->offset + b->bytes;
    }
}

/* All buffers together, which no layout exceeds, fit an address. */
static dm_status check_total(const plan_draft *d)
{
    size_t total = 0;
    for (size_t i = 0; i < d->n_buffers; i++) {
        if (d->buffers[i].bytes > SIZE_MAX / 2 - total)
            return error_set(d->err, DM_ERROR_VALUE, NULL, "use a smaller tile",
                             "the activations of a tile of %zu x %zu x %zu voxels (x, y, z) are "
                             "larger than any memory",
                             d->options->tile[2], d->options->tile[1], d->options->tile[0]);
        total += d->buffers[i].bytes;
    }
    return DM_OK;
}

dm_status draft_arena(plan_draft *d)
{
    dm_status status = check_total(d);
    if (status != DM_OK)
        return status;
    plan_buffer **order = array_alloc(d->n_buffers, 2 * sizeof *order);
    if (!order)
        return error_memory(d->err, d->n_buffers * 2 * sizeof *order, "a plan");
    find_lifetimes(d);
    if (d->options->optimise)
        overwrite(d);
    for (size_t i = 0; i < d->n_buffers && !d->options->optimise; i++) {
        d->buffers[i].first = 0;
        d->buffers[i].last = SIZE_MAX;
    }
    lay_out(d, order, order + d->n_buffers);
    for (size_t t = 0; t < d->plan->n_tensors; t++)
        d->plan->tensors[t].offset = d->buffers[d->tensor_buffer[t]].offset;
    free(order);
    return DM_OK;
}

/* What is alive together starts elsewhere, except inside one concatenation. */
bool step_is_in_place(const plan *p, const plan_step *step)
{
    const plan_tensor *out = &p->tensors[step->out];
    bool in_place = out->offset == p->tensors[step->in].offset;
    for (size_t i = 0; i < step->n_chain; i++)
        in_place |=
            step->chain[i].tensor >= 0 && out->offset == p->tensors[step->chain[i].tensor].offset;
    return in_place && out->pitch == out->channels;
}
