/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instance and group normalisation, y = (x - mean)/sqrt(variance + epsilon)*scale + shift with the
 * biased variance over a group's channels and all voxels. Mean first, then the squares of what is
 * left, in double: E[x^2] - mean^2 loses everything where the mean is large.
 */
#include "predict/cpu/steps.h"

#include <math.h>

MANY_CPUS
static void add_rows(const float *restrict row, size_t n, size_t channels, double *restrict sum)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++)
            sum[c] += (double)row[v * channels + c];
}

MANY_CPUS
static void add_squares(const float *restrict row, size_t n, size_t channels,
                        const double *restrict mean, double *restrict sum)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++) {
            double d = (double)row[v * channels + c] - mean[c];
            sum[c] += d * d;
        }
}

MANY_CPUS
static void normalise(float *restrict row, size_t n, size_t channels, const float *restrict mean,
                      const float *restrict scale, const float *restrict shift)
{
    for (size_t v = 0; v < n; v++)
        for (size_t c = 0; c < channels; c++) {
            float *x = &row[v * channels + c];
            *x = (*x - mean[c]) * scale[c] + shift[c];
        }
}

/* Per channel: the sum over all voxels of x, or of (x - mean)^2. */
static void sum_channels(const step_buffers *buffers, const tensor_view *in, const double *mean,
                         double *sum)
{
    size_t channels = in->channels, voxels = view_voxels(in);
    size_t capacity = rows_capacity(buffers, channels);
    for (size_t c = 0; c < channels; c++)
        sum[c] = 0;
    for (size_t v = 0; v < voxels; v += capacity) {
        size_t n = voxels - v < capacity ? voxels - v : capacity;
        rows_load(in, in, v, n, buffers->row);
        if (mean)
            add_squares(buffers->row, n, channels, mean, sum);
        else
            add_rows(buffers->row, n, channels, sum);
    }
}

/* Turns sums per channel into the mean over each group. */
static void average_groups(double *sum, size_t channels, size_t groups, size_t voxels)
{
    size_t size = channels / groups;
    for (size_t g = 0; g < groups; g++) {
        double total = 0;
        for (size_t c = g * size; c < (g + 1) * size; c++)
            total += sum[c];
        for (size_t c = g * size; c < (g + 1) * size; c++)
            sum[c] = total / ((double)size * (double)voxels);
    }
}

void step_norm_measure(const step_buffers *buffers, const plan_step *step, const tensor_view *in,
                       norm_state *state)
{
    size_t channels = in->channels, voxels = view_voxels(in);
    size_t groups = step->node->op == OP_INSTANCE_NORM ? channels : (size_t)step->node->groups;
    sum_channels(buffers, in, NULL, state->mean);
    average_groups(state->mean, channels, groups, voxels);
    sum_channels(buffers, in, state->mean, state->variance);
    average_groups(state->variance, channels, groups, voxels);
    for (size_t c = 0; c < channels; c++) {
        double s = 1 / sqrt(state->variance[c] + (double)step->node->epsilon);
        state->centre[c] = (float)state->mean[c];
        state->scale[c] = (float)(step->scale ? s * (double)step->scale[c] : s);
        state->shift[c] = step->shift ? step->shift[c] : 0;
    }
}

void step_norm_apply(const step_buffers *buffers, const norm_state *state, const tensor_view *in,
                     const tensor_view *out, const bound_chain *chain)
{
    size_t channels = in->channels, plane = in->dim[1] * in->dim[2];
    size_t capacity = rows_capacity(buffers, channels), first, end;
    share_planes(buffers, in->dim[0], &first, &end);
    for (size_t v = first * plane; v < end * plane; v += capacity) {
        size_t n = end * plane - v < capacity ? end * plane - v : capacity;
        rows_load(in, in, v, n, buffers->row);
        normalise(buffers->row, n, channels, state->centre, state->scale, state->shift);
        rows_finish(buffers, out, chain, v, n);
    }
}

void step_global_average_pool(const step_buffers *buffers, norm_state *state, const tensor_view *in,
                              const tensor_view *out, const bound_chain *chain)
{
    sum_channels(buffers, in, NULL, state->mean);
    for (size_t c = 0; c < in->channels; c++)
        buffers->row[c] = (float)(state->mean[c] / (double)view_voxels(in));
    rows_finish(buffers, out, chain, 0, 1);
}
