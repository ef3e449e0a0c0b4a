/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/tile_choice.h"

#include <math.h>
#include <string.h>

#include "predict/cpu/cpu_info.h"
#include "predict/cpu/winograd.h"
#include "predict/stitch.h"

/* Sizes tried along an axis; more are thinned evenly. */
#define SIZES_MAX 48
/* Part of their time that threads which share a window are at work. */
#define SHARING 0.95
/* Measured with 5.6 and 22.6 MB of weights, resident, without volumes and workers: the program, and
 * the weights in float32 as read, folded, and while they are packed. */
#define PROGRAM_BYTES (30.0 * 1048576)
#define WEIGHT_COPIES 2.5
/* Minimal filtering takes as many tiles at a time as keep in cache (below), but at least these. */
#define BLOCK_ROWS 8.0
/* Links that the library's convolutions take, at most. */
#define LIBRARY_MAX_POST 8
/* Rows of the other steps, and pieces and blocks that are cut to stay in cache. */
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

/* The tile of minimal filtering, z, y, x; NULL where the library does the convolution. */
static const size_t *filtering_tile(const plan *p, const plan_step *step)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    convolution_spec spec = {
        .in_channels = in->channels, .out_channels = out->channels, .type = p->options.type};
    if (step->kind != STEP_CONV || p->options.direct)
        return NULL;
    spec.groups = (size_t)step->node->groups;
    for (int a = 0; a < 3; a++) {
        spec.in[a] = in->dim[a];
        spec.out[a] = out->dim[a];
        spec.kernel[a] = (size_t)step->node->kernel[a];
        spec.stride[a] = (size_t)step->node->stride[a];
        spec.dilation[a] = (size_t)step->node->dilation[a];
        spec.pad_begin[a] = (size_t)step->node->pad_begin[a];
    }
    int shape = winograd_choose(&spec, winograd_best_kernel(), convolution_gain(spec.type));
    return shape < 0 ? NULL : winograd_shapes[shape];
}

static double points_of(const size_t tile[3])
{
    return (double)((tile[0] + 2) * (tile[1] + 2) * (tile[2] + 2));
}

/* Below AVX-512, many of the library's kernels cannot add a tensor. */
static bool library_adds(void)
{
    return cpu_has(CPU_AVX512F);
}

static bool is_done_by_convolution(const plan *p, const plan_step *step, const chain_link *link,
                                   bool filtered)
{
    const plan_tensor *out = &p->tensors[step->out];
    if (link->op == CHAIN_ADD_TENSOR) {
        const plan_tensor *t = &p->tensors[link->tensor];
        return (filtered || library_adds()) && is_dense(t) && t->channels == out->channels &&
               memcmp(t->dim, out->dim, sizeof t->dim) == 0;
    }
    if (link->op == CHAIN_PRELU) {
        for (size_t c = 1; c < out->channels; c++)
            if (link->scale[c] < link->scale[0] || link->scale[c] > link->scale[0])
                return false;
        return true;
    }
    return link->op == CHAIN_RELU || link->op == CHAIN_LEAKY_RELU;
}

/* Links that a convolution leaves to be applied to a float32 copy of its result. */
static bool has_other_links(const plan *p, const plan_step *step, bool filtered)
{
    for (size_t i = 0; i < step->n_chain; i++)
        if (!is_done_by_convolution(p, step, &step->chain[i], filtered))
            return true;
    return step->n_chain > (filtered ? WINOGRAD_MAX_POST : LIBRARY_MAX_POST);
}

/* Sums that the library may turn out to refuse in a voxelwise convolution. */
static bool has_doubtful_sum(const plan *p, const plan_step *step)
{
    for (size_t i = 0; i < step->n_chain; i++) {
        const chain_link *link = &step->chain[i];
        if (link->op == CHAIN_ADD_TENSOR &&
            (!library_adds() || (p->options.type != ELEMENT_F32 &&
                                 p->tensors[link->tensor].offset != p->tensors[step->out].offset)))
            return true;
    }
    return false;
}

/* Copies round the library's convolutions, which take dense tensors and give dense ones. */
static bool is_packed(const plan *p, const plan_tensor *in)
{
    return !is_dense(in) || in->type != p->options.type;
}

static bool is_staged(const plan *p, const plan_step *step)
{
    if (step->kind == STEP_CONV_TRANSPOSE && !conv_is_voxelwise(step->node) &&
        (step->bias || step->n_chain > 0))
        return true;
    return !is_dense(&p->tensors[step->out]) || has_other_links(p, step, false);
}

/* The library's convolutions by matrix products, below AVX2 and for transposed ones below AVX-512,
 * spread the taps of a plane, or of the whole source, and add up in a copy of the result. */
static double spread_bytes(const plan *p, const plan_step *step)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    bool transposed = step->kind == STEP_CONV_TRANSPOSE;
    double taps = sizeof(float);
    if (cpu_has(transposed ? CPU_AVX512F : CPU_AVX2))
        return 0;
    for (int a = 0; a < 3; a++)
        taps *= step->node->kernel[a];
    if (transposed)
        return taps * (double)out->channels * tensor_bytes(in, 1) / (double)in->channels;
    return taps * (double)in->channels * (double)out->dim[1] * (double)out->dim[2] +
           2 * tensor_bytes(out, sizeof(float));
}

/* Voxelwise convolutions have copies of a few planes, but of all if the library refuses a sum. */
static double copy_bytes(const plan *p, const plan_step *step)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    if ((step->kind != STEP_CONV_TRANSPOSE && step->kind != STEP_CONV) || filtering_tile(p, step))
        return 0;
    if (conv_is_voxelwise(step->node))
        return step->kind == STEP_CONV && has_doubtful_sum(p, step)
                   ? tensor_bytes(out, sizeof(float))
                   : 0;
    double bytes = spread_bytes(p, step);
    if (is_packed(p, in))
        bytes += tensor_bytes(in, element_size(p->options.type));
    if (is_staged(p, step))
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

/* One plane of the input, with all that each voxel becomes, as far as they are copied. */
static double plane_bytes(const plan *p, const plan_step *step)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    bool transposed = step->kind == STEP_CONV_TRANSPOSE;
    double made = transposed || is_staged(p, step) || has_doubtful_sum(p, step) ? sizeof(float) : 0;
    double bytes =
        is_packed(p, in) ? (double)in->channels * (double)element_size(p->options.type) : 0;
    for (int a = 0; a < 3 && transposed; a++)
        made *= step->node->kernel[a];
    return (double)in->dim[1] * (double)in->dim[2] * (bytes + made * (double)out->channels);
}

/* A block of tiles, and some planes of the result where that is not final. */
static double filtering_bytes(const plan *p, const plan_step *step, const size_t tile[3])
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    double bytes = points_of(tile) * BLOCK_ROWS * sizeof(float) *
                   ((double)in->channels + (double)out->channels);
    if (has_other_links(p, step, true))
        bytes += (double)tile[0] * tensor_bytes(out, sizeof(float)) / (double)out->dim[0];
    return bytes;
}

/* Those that work voxel by voxel do it some planes at a time. */
static double block_bytes(const plan *p, const plan_step *step)
{
    if (step->kind != STEP_CONV && step->kind != STEP_CONV_TRANSPOSE)
        return 0;
    if (conv_is_voxelwise(step->node))
        return plane_bytes(p, step);
    const size_t *tile = filtering_tile(p, step);
    return tile ? filtering_bytes(p, step, tile) : 0;
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
        const size_t *tile = filtering_tile(p, step);
        double copies = tile ? points_of(tile) / 27 : 1;
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
    unsigned each = threads / (at_once > 0 ? at_once : 1);
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
    return best > 0 ? best : 1;
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
