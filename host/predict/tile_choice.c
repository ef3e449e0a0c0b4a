/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/tile_choice.h"

#include <math.h>

#include "predict/stitch.h"

/* Sizes tried along an axis; more are thinned evenly. */
#define SIZES_MAX 48
/* Part of their time that threads which share a window are at work. */
#define SHARING 0.95
/* Measured with 5.6 and 22.6 MB of weights, resident, without volumes and workers: the program, and
 * the weights in float32 as read, folded, and while they are packed. */
#define PROGRAM_BYTES (30.0 * 1048576)
#define WEIGHT_COPIES 2.5
/* What minimal filtering makes of 27 taps, at most: blocks of 4x4x4 voxels, and of 2x2x2 in small
 * layers; and of 8 voxels' channels at a time. */
#define LARGE_BLOCK_POINTS 216.0
#define SMALL_BLOCK_POINTS 64.0
#define LARGE_LAYER_VOXELS 512.0
#define BLOCK_ROWS 8.0
/* Rows of the other steps, and buffers of a fixed size. */
#define THREAD_EXTRA_BYTES (768.0 * 1024)
/* Large arrays begin at one and end in one. */
#define HUGE_PAGE (2.0 * 1048576)

/* ---- Memory --------------------------------------------------------------------------------- */

double tile_memory(double fixed_bytes, double worker_bytes, double threads_bytes,
                   const size_t tile[3], size_t windows, unsigned at_once)
{
    double window = (double)tile[0] * (double)tile[1] * (double)tile[2] * sizeof(float);
    double slots = fmin(STITCH_SLOTS_PER_WORKER * (double)at_once, (double)windows - 1);
    return fixed_bytes + threads_bytes + window + at_once * (worker_bytes + window + HUGE_PAGE) +
           slots * window;
}

static double tensor_bytes(const plan_tensor *t, size_t element)
{
    return (double)t->dim[0] * (double)t->dim[1] * (double)t->dim[2] * (double)t->channels *
           (double)element;
}

static bool is_dense(const plan_tensor *t)
{
    return t->pitch == t->channels;
}

/* Links that a library's convolution does not take over. */
static bool has_other_links(const plan_step *step)
{
    for (size_t i = 0; i < step->n_chain; i++)
        if (step->chain[i].op != CHAIN_RELU && step->chain[i].op != CHAIN_LEAKY_RELU &&
            step->chain[i].op != CHAIN_ADD_TENSOR)
            return true;
    return false;
}

static bool is_3x3x3(const graph_node *node)
{
    for (int a = 0; a < 3; a++)
        if (node->kernel[a] != 3 || node->stride[a] != 1 || node->dilation[a] != 1)
            return false;
    return node->groups == 1;
}

/* One plane of the input, with all that each voxel becomes. */
static double plane_bytes(const plan_step *step, const plan_tensor *in, const plan_tensor *out)
{
    double made = (double)out->channels;
    if (step->kind == STEP_CONV_TRANSPOSE)
        for (int a = 0; a < 3; a++)
            made *= step->node->kernel[a];
    return (double)in->dim[1] * (double)in->dim[2] * ((double)in->channels + made) * sizeof(float);
}

/* Convolutions take dense tensors and give dense float32 ones; others are copied. */
static double copy_bytes(const plan *p, const plan_step *step)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    bool transposed = step->kind == STEP_CONV_TRANSPOSE;
    double bytes = 0;
    if ((!transposed && step->kind != STEP_CONV) || conv_is_voxelwise(step->node))
        return 0;
    if (!is_dense(in) || in->type != p->options.type)
        bytes += tensor_bytes(in, element_size(p->options.type));
    if (!is_dense(out) || transposed || has_other_links(step))
        bytes += tensor_bytes(out, sizeof(float));
    return bytes;
}

double tile_worker_bytes(const plan *p)
{
    double copies = 0;
    for (size_t s = 0; s < p->n_steps; s++)
        copies = fmax(copies, copy_bytes(p, &p->steps[s]));
    return (double)p->arena_bytes + copies;
}

/* Those that work voxel by voxel do it some planes at a time. */
static double block_bytes(const plan *p, const plan_step *step)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    if (step->kind != STEP_CONV && step->kind != STEP_CONV_TRANSPOSE)
        return 0;
    if (conv_is_voxelwise(step->node))
        return plane_bytes(step, in, out);
    if (is_3x3x3(step->node))
        return LARGE_BLOCK_POINTS * BLOCK_ROWS * sizeof(float) *
               ((double)in->channels + (double)out->channels);
    return 0;
}

double tile_thread_bytes(const plan *p)
{
    double blocks = 0;
    for (size_t s = 0; s < p->n_steps; s++)
        blocks = fmax(blocks, block_bytes(p, &p->steps[s]));
    return blocks + THREAD_EXTRA_BYTES;
}

double tile_program_bytes(const plan *p)
{
    double to_float = (double)sizeof(float) / (double)element_size(p->options.type), packed = 0;
    for (size_t s = 0; s < p->n_steps; s++) {
        const plan_step *step = &p->steps[s];
        bool large =
            tensor_bytes(&p->tensors[step->out], 1) / (double)p->tensors[step->out].channels >=
            LARGE_LAYER_VOXELS;
        double copies = 1;
        if (step->kind == STEP_CONV && is_3x3x3(step->node))
            copies = (large ? LARGE_BLOCK_POINTS : SMALL_BLOCK_POINTS) / 27;
        packed += copies * step->weight_bytes * to_float;
    }
    return PROGRAM_BYTES + WEIGHT_COPIES * p->weight_bytes * to_float + packed;
}

/* ---- Choice --------------------------------------------------------------------------------- */

/* Tile sizes along an axis, from the patch to the whole volume. */
static size_t list_sizes(const tile_task *task, int axis, size_t sizes[SIZES_MAX])
{
    size_t stride = task->stride[axis], smallest = task->patch[axis];
    size_t whole = (task->volume[axis] + stride - 1) / stride * stride, n = 0;
    if (whole <= smallest) {
        sizes[0] = smallest;
        return 1;
    }
    size_t steps = (whole - smallest) / stride, skip = steps / (SIZES_MAX - 1) + 1;
    for (size_t i = 0; i < steps; i += skip)
        sizes[n++] = smallest + i * stride;
    sizes[n++] = whole;
    return n;
}

/* In windows on one thread. */
static double time_of(size_t windows, unsigned at_once, unsigned threads)
{
    unsigned each = threads / at_once;
    return ceil((double)windows / at_once) / (each > 1 ? SHARING * each : 1);
}

/* Of all numbers that leave each window as many threads, the largest is best: those alone are tried,
 * some two square roots of the threads. */
unsigned tile_at_once(size_t windows, unsigned threads)
{
    unsigned best = windows < threads ? (unsigned)windows : threads;
    for (unsigned n = best; n > 0; n = threads / (threads / n + 1))
        if (time_of(windows, n, threads) < time_of(windows, best, threads))
            best = n;
    return best;
}

/* One share for all axes that are cut. */
static double overlap_share(const tile_task *task, const size_t tile[3])
{
    double share = 0;
    if (!isnan(task->overlap))
        return task->overlap;
    for (int a = 0; a < 3; a++)
        if (tile[a] < task->volume[a])
            share = fmax(share, (double)task->patch[a] / 2 / (double)tile[a]);
    return share > 0 ? fmin(0.5, ceil(share * 1000 - 1e-9) / 1000) : 0;
}

/* With one window at once, or as many as are best. */
static tile_choice evaluate(const tile_task *task, const size_t tile[3], bool one)
{
    double voxels = (double)tile[0] * (double)tile[1] * (double)tile[2];
    tile_choice made = {
        .tile = {tile[0], tile[1], tile[2]}, .overlap = overlap_share(task, tile), .windows = 1};
    for (int a = 0; a < 3; a++)
        made.windows *= tiling_windows(task->volume[a], tile[a], made.overlap);
    made.at_once = one ? 1 : tile_at_once(made.windows, task->threads);
    made.bytes = tile_memory(task->fixed_bytes, voxels * task->worker_per_voxel,
                             task->threads * task->thread_bytes, tile, made.windows, made.at_once);
    return made;
}

/* Voxels through the network, or as many as it would be with even work for all threads. */
static double cost(const tile_task *task, const tile_choice *c)
{
    double voxels = (double)c->tile[0] * (double)c->tile[1] * (double)c->tile[2];
    return time_of(c->windows, c->at_once, task->threads) * task->threads * voxels;
}

/* Keeps what is less work, or as much work in less memory. */
static void keep_better(const tile_task *task, const tile_choice *made, tile_choice *best)
{
    double work = cost(task, made), least = cost(task, best);
    bool fits = made->bytes <= task->limit_bytes;
    if (fits && (!(best->bytes <= task->limit_bytes) || work < least ||
                 (work <= least && made->bytes < best->bytes)))
        *best = *made;
}

bool tile_choose(const tile_task *task, tile_choice *choice)
{
    size_t size[3][SIZES_MAX], n[3];
    for (int a = 0; a < 3; a++)
        n[a] = list_sizes(task, a, size[a]);
    *choice = evaluate(task, task->patch, true);
    for (size_t z = 0; z < n[2]; z++)
        for (size_t y = 0; y < n[1]; y++)
            for (size_t x = 0; x < n[0]; x++) {
                const size_t tile[3] = {size[0][x], size[1][y], size[2][z]};
                if ((double)tile[0] * (double)tile[1] * (double)tile[2] > INT32_MAX)
                    continue;
                for (int one = 0; one < (task->threads > 1 ? 2 : 1); one++) {
                    const tile_choice made = evaluate(task, tile, one);
                    keep_better(task, &made, choice);
                }
            }
    return choice->bytes <= task->limit_bytes;
}
