/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cpu/winograd.h"

#include "base/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    ALIGNMENT = 64,
    POINTS_MAX = 6 * 6 * 6,
    PANEL_MAX = 32,
    /* Input and product of a block of tiles together. */
    BLOCK_BYTES = 512 * 1024,
    ROWS_MIN = 8,
    ROWS_MAX = 32
};

const size_t winograd_shapes[WINOGRAD_SHAPES][3] = {{2, 2, 2}, {2, 2, 4}, {2, 4, 4}, {4, 4, 4}};

struct winograd {
    const winograd_kernel *kernel;
    int shape;
    winograd_job job; /* without tensors and buffers */
    float *memory;    /* weights, bias, zeros */
};

const winograd_kernel *winograd_best_kernel(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && winograd_avx512.lanes)
        return &winograd_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && winograd_avx2.lanes)
        return &winograd_avx2;
#endif
    return NULL;
}

static bool suits(const convolution_spec *spec, const winograd_kernel *kernel)
{
    if (!kernel || spec->transposed || spec->groups != 1 || spec->type == ELEMENT_F16 ||
        spec->in_channels % kernel->lanes != 0 || spec->out_channels % kernel->lanes != 0)
        return false;
    for (int a = 0; a < 3; a++)
        if (spec->kernel[a] != 3 || spec->stride[a] != 1 || spec->dilation[a] != 1 ||
            spec->pad_begin[a] != 1 || spec->in[a] != spec->out[a])
            return false;
    return true;
}

/* ---- Which shape ---------------------------------------------------------------------------- */

static size_t tiles_along(size_t voxels, size_t m)
{
    return (voxels + m - 1) / m;
}

static size_t points_of(const size_t m[3])
{
    return (m[0] + 2) * (m[1] + 2) * (m[2] + 2);
}

static size_t tiles_of(const convolution_spec *spec, const size_t m[3])
{
    return tiles_along(spec->out[0], m[0]) * tiles_along(spec->out[1], m[1]) *
           tiles_along(spec->out[2], m[2]);
}

static size_t rows_of(const convolution_spec *spec, const size_t m[3])
{
    size_t tiles = tiles_of(spec, m);
    size_t rows = BLOCK_BYTES / (points_of(m) * (spec->in_channels + spec->out_channels) * 4);
    rows = rows / ROWS_MIN * ROWS_MIN;
    rows = rows < ROWS_MIN ? ROWS_MIN : rows > ROWS_MAX ? ROWS_MAX : rows;
    return rows < tiles ? rows : tiles;
}

/* Multiply-adds of one channel pair that a direct convolution does, taps on padding left out. */
static double direct_cost(const convolution_spec *spec)
{
    double taps = 1;
    for (int a = 0; a < 3; a++)
        taps *= 3.0 * (double)spec->out[a] - 2;
    return taps;
}

/* The same measure for a shape: products, transforms and the weights' way from memory, in time of
 * one multiply-add; fitted to measurements on Zen 4. */
static double shape_cost(const convolution_spec *spec, const size_t m[3])
{
    double in = (double)spec->in_channels, out = (double)spec->out_channels;
    double tiles = (double)tiles_of(spec, m), points = (double)points_of(m);
    double blocks = (double)tiles_along(tiles_of(spec, m), rows_of(spec, m));
    double transforms = points * 20 * (1 / in + 1 / out);
    double weights = blocks * points * 3;
    return tiles * (points + transforms) + weights;
}

int winograd_choose(const convolution_spec *spec, const winograd_kernel *kernel, double gain)
{
    int best = -1;
    double least = direct_cost(spec) / gain;
    for (int s = 0; s < WINOGRAD_SHAPES && suits(spec, kernel); s++) {
        double cost = shape_cost(spec, winograd_shapes[s]);
        if (cost < least) {
            least = cost;
            best = s;
        }
    }
    return best;
}

/* ---- Weights -------------------------------------------------------------------------------- */

/* G of F(m, 3): three taps to m+2 points. */
static void transform_axis(size_t m, const double g[3], double *to, size_t step)
{
    const double a = sqrt(0.5), b = sqrt(2);
    if (m == 2) {
        to[0] = g[0];
        to[step] = (g[0] + g[1] + g[2]) / 2;
        to[2 * step] = (g[0] - g[1] + g[2]) / 2;
        to[3 * step] = g[2];
        return;
    }
    double even = -(g[0] + g[2] / 2) / 1.5, odd = -a * g[1] / 1.5;
    double even2 = (g[0] + 2 * g[2]) / 6, odd2 = b * g[1] / 6;
    to[0] = g[0];
    to[step] = even + odd;
    to[2 * step] = even - odd;
    to[3 * step] = even2 + odd2;
    to[4 * step] = even2 - odd2;
    to[5 * step] = g[2];
}

/* 27 taps to the points of a tile, in double precision. */
static void transform_taps(const size_t m[3], const float *taps, double *points)
{
    size_t ex = m[2] + 2, ey = m[1] + 2;
    double along_x[9 * 6], along_y[3 * 36];
    for (size_t zy = 0; zy < 9; zy++) {
        const double g[3] = {taps[zy * 3], taps[zy * 3 + 1], taps[zy * 3 + 2]};
        transform_axis(m[2], g, along_x + zy * ex, 1);
    }
    for (size_t z = 0; z < 3; z++)
        for (size_t x = 0; x < ex; x++) {
            const double *from = along_x + z * 3 * ex + x;
            const double g[3] = {from[0], from[ex], from[2 * ex]};
            transform_axis(m[1], g, along_y + z * ey * ex + x, ex);
        }
    for (size_t yx = 0; yx < ey * ex; yx++) {
        const double g[3] = {along_y[yx], along_y[ey * ex + yx], along_y[2 * ey * ex + yx]};
        transform_axis(m[0], g, points + yx, ey * ex);
    }
}

/* A panel's outputs side by side, so that what is written lies together. */
static void pack_weights(const convolution_spec *spec, const size_t m[3], size_t panel, float *to)
{
    size_t in = spec->in_channels, out = spec->out_channels, n = points_of(m);
    double points[PANEL_MAX][POINTS_MAX];
    for (size_t first = 0; first < out; first += panel)
        for (size_t i = 0; i < in; i++) {
            for (size_t o = 0; o < panel; o++)
                transform_taps(m, spec->weight + ((first + o) * in + i) * 27, points[o]);
            for (size_t p = 0; p < n; p++)
                for (size_t o = 0; o < panel; o++)
                    to[(p * out + first) * in + i * panel + o] = (float)points[o][p];
        }
}

/* ---- Making --------------------------------------------------------------------------------- */

static size_t collect_post(const convolution_spec *spec, post_operation *post)
{
    size_t n = 0;
    for (; n < spec->n_post && n < WINOGRAD_MAX_POST; n++) {
        chain_op op = spec->post[n].op;
        if (op != CHAIN_ADD_TENSOR && op != CHAIN_RELU && op != CHAIN_LEAKY_RELU)
            break;
        post[n] = spec->post[n];
        if (op == CHAIN_RELU)
            post[n].alpha = 0;
    }
    return n;
}

/* The case that the kernel has a short way for. */
static void set_slope(winograd_job *job)
{
    job->slope = job->n_post == 0 ? 1 : job->post[0].alpha;
    job->simple = job->n_post == 0 || (job->n_post == 1 && job->post[0].op != CHAIN_ADD_TENSOR &&
                                       job->slope >= 0 && job->slope <= 1);
}

dm_status winograd_create(const convolution_spec *spec, const winograd_kernel *kernel, int shape,
                          winograd **made, size_t *post_done, dm_error *err)
{
    *made = NULL;
    *post_done = 0;
    const size_t *m = winograd_shapes[shape];
    size_t in = spec->in_channels, out = spec->out_channels, weights = points_of(m) * in * out;
    size_t bytes = (weights + out + in) * sizeof(float);
    winograd *w = array_zero(1, sizeof *w);
    if (!w)
        return error_memory(err, sizeof *w, spec->name);
    w->memory = array_zero(weights + out + in, sizeof *w->memory);
    if (!w->memory) {
        free(w);
        return error_memory(err, bytes, spec->name);
    }
    w->kernel = kernel;
    w->shape = shape;
    winograd_job *job = &w->job;
    for (int a = 0; a < 3; a++) {
        job->dim[a] = spec->out[a];
        job->tiles[a] = tiles_along(spec->out[a], m[a]);
    }
    job->in_channels = in;
    job->out_channels = out;
    job->panel = out % (2 * kernel->lanes) == 0 ? 2 * kernel->lanes : kernel->lanes;
    job->rows = rows_of(spec, m);
    job->weights = w->memory;
    job->bias = w->memory + weights;
    job->zeros = w->memory + weights + out;
    job->n_post = *post_done = collect_post(spec, job->post);
    set_slope(job);
    pack_weights(spec, m, job->panel, w->memory);
    if (spec->bias)
        memcpy(w->memory + weights, spec->bias, out * sizeof(float));
    *made = w;
    return DM_OK;
}

void winograd_free(winograd *w)
{
    if (!w)
        return;
    free(w->memory);
    free(w);
}

const char *winograd_name(const winograd *w)
{
    return w->kernel->name;
}

static size_t buffer_floats(const winograd *w, size_t channels)
{
    return points_of(winograd_shapes[w->shape]) * (w->job.rows * channels + w->kernel->lanes);
}

size_t winograd_scratch_bytes(const winograd *w)
{
    size_t floats = buffer_floats(w, w->job.in_channels) + buffer_floats(w, w->job.out_channels);
    return (floats * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t winograd_tile_planes(const winograd *w)
{
    return w->job.tiles[0];
}

size_t winograd_planes_per_tile(const winograd *w)
{
    return winograd_shapes[w->shape][0];
}

void winograd_run(const winograd *w, const winograd_tensor *in, const winograd_tensor *out,
                  const winograd_tensor *operands, size_t first, size_t last, void *scratch)
{
    winograd_job job = w->job;
    size_t plane = job.tiles[1] * job.tiles[2];
    job.in = *in;
    job.out = *out;
    job.first_plane = first * winograd_shapes[w->shape][0];
    for (size_t i = 0; i < job.n_post; i++)
        job.operand[i] = operands[i];
    job.input = scratch;
    job.product = job.input + buffer_floats(w, job.in_channels);
    for (size_t t = first * plane; t < last * plane; t += job.rows) {
        size_t left = last * plane - t;
        w->kernel->run[w->shape](&job, t, left < job.rows ? left : job.rows);
    }
}
