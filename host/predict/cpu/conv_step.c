/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cpu/conv_step.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>

/* Pack and stage of a piece together: with 256 KiB, a quarter of the second-level cache, the
 * largest transposed convolution of dosegan took 0.99 ms in bf16; 1.13 with 512 KiB (Zen 4). */
enum { PIECE_BYTES = 256 * 1024, ALIGNMENT = 64 };

static bool all_equal(const int a[3], int value)
{
    return a[0] == value && a[1] == value && a[2] == value;
}

static bool has_no_padding(const graph_node *node)
{
    return all_equal(node->pad_begin, 0) && all_equal(node->pad_end, 0) &&
           all_equal(node->dilation, 1);
}

static bool is_voxelwise(const plan_step *step)
{
    const graph_node *node = step->node;
    return step->kind == STEP_CONV && all_equal(node->kernel, 1) && all_equal(node->stride, 1) &&
           has_no_padding(node);
}

static bool can_unfold(const plan_step *step)
{
    const graph_node *node = step->node;
    return step->kind == STEP_CONV_TRANSPOSE && node->groups == 1 && has_no_padding(node) &&
           all_equal(node->output_padding, 0) &&
           memcmp(node->kernel, node->stride, sizeof node->kernel) == 0;
}

/* ---- The chain as post-operations ----------------------------------------------------------- */

static bool same_slope(const float *slope, size_t channels)
{
    for (size_t c = 1; c < channels; c++)
        if (slope[c] < slope[0] || slope[c] > slope[0])
            return false;
    return true;
}

/* False where oneDNN cannot do the link, or not with what lies in the arena. */
static bool as_post(const plan *p, const plan_step *step, const chain_link *link,
                    post_operation *post)
{
    const plan_tensor *out = &p->tensors[step->out];
    *post = (post_operation){.op = link->op, .alpha = link->alpha};
    switch (link->op) {
    case CHAIN_ADD_TENSOR: {
        const plan_tensor *t = &p->tensors[link->tensor];
        if (step->kind != STEP_CONV || t->pitch != t->channels || t->channels != out->channels ||
            memcmp(t->dim, out->dim, sizeof t->dim) != 0)
            return false;
        post->type = t->type;
        post->in_place = t->offset == out->offset && t->type == out->type;
        return true;
    }
    case CHAIN_PRELU:
        post->op = CHAIN_LEAKY_RELU;
        post->alpha = link->scale[0];
        return same_slope(link->scale, out->channels);
    case CHAIN_RELU:
    case CHAIN_LEAKY_RELU:
        return true;
    case CHAIN_ELU:
    case CHAIN_GELU:
    case CHAIN_GELU_TANH:
    case CHAIN_SIGMOID:
    case CHAIN_TANH:
    case CHAIN_SOFTPLUS:
        /* oneDNN computes exponentials for 16 channels even of one: a gate's sigmoid costs twice
         * its convolution there, and a tenth of it in our chain. */
        return out->channels >= 8;
    default:
        return false;
    }
}

static bool has_alpha(const post_operation *post)
{
    return post->op == CHAIN_RELU || post->op == CHAIN_LEAKY_RELU || post->op == CHAIN_ELU;
}

/* oneDNN 2.6 computes two post-operations of one kind with the alpha of one of them. */
static bool same_alpha(const post_operation *post, size_t n)
{
    for (size_t i = 0; i < n && has_alpha(&post[n]); i++)
        if (has_alpha(&post[i]) && (post[i].alpha < post[n].alpha || post[i].alpha > post[n].alpha))
            return false;
    return true;
}

static size_t collect_post(const plan *p, const plan_step *step, post_operation *post)
{
    size_t n = 0;
    while (n < step->n_chain && n < CONV_STEP_MAX_POST &&
           as_post(p, step, &step->chain[n], &post[n]) && same_alpha(post, n))
        n++;
    return n;
}

/* ---- Making --------------------------------------------------------------------------------- */

/* (I, O, taps) to (taps, O, I), and the bias once for each tap. */
static dm_status unfold_weights(const plan_step *step, size_t in, size_t out, size_t taps,
                                float **weight, float **bias, dm_error *err)
{
    *weight = array_alloc(in * out * taps, sizeof **weight);
    *bias = array_alloc(out * taps, sizeof **bias);
    if (!*weight || !*bias)
        return error_memory(err, in * out * taps * sizeof **weight, step->name);
    for (size_t k = 0; k < taps; k++)
        for (size_t o = 0; o < out; o++) {
            (*bias)[k * out + o] = step->bias ? step->bias[o] : 0;
            for (size_t i = 0; i < in; i++)
                (*weight)[(k * out + o) * in + i] = step->weight[(i * out + o) * taps + k];
        }
    return DM_OK;
}

/* The largest number of planes that divides the input and keeps a piece in cache. */
static size_t piece_planes(const plan_tensor *in, size_t bytes_per_voxel)
{
    size_t plane = in->dim[1] * in->dim[2] * bytes_per_voxel, best = 1;
    for (size_t n = 2; n <= in->dim[0]; n++)
        if (in->dim[0] % n == 0 && n * plane <= PIECE_BYTES)
            best = n;
    return best;
}

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static void fill_spec(const plan *p, const plan_step *step, const conv_step *conv, unsigned threads,
                      convolution_spec *spec)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    const graph_node *node = step->node;
    *spec = (convolution_spec){.name = step->name,
                               .threads = conv->pieces ? 1 : threads,
                               .transposed = step->kind == STEP_CONV_TRANSPOSE && !conv->unfold,
                               .in_channels = in->channels,
                               .out_channels = out->channels,
                               .groups = (size_t)node->groups,
                               .weight = step->weight,
                               .bias = conv->bias_apart ? NULL : step->bias,
                               .type = p->options.type,
                               .out_type = out->type,
                               .staged = conv->stage,
                               .post = conv->post};
    for (int a = 0; a < 3; a++) {
        spec->in[a] = in->dim[a];
        spec->out[a] = conv->unfold ? in->dim[a] : out->dim[a];
        spec->kernel[a] = conv->unfold ? 1 : (size_t)node->kernel[a];
        spec->stride[a] = conv->unfold ? 1 : (size_t)node->stride[a];
        spec->dilation[a] = (size_t)node->dilation[a];
        spec->pad_begin[a] = (size_t)node->pad_begin[a];
    }
    if (conv->planes < in->dim[0])
        spec->in[0] = spec->out[0] = conv->planes;
}

static dm_status create(const plan *p, const plan_step *step, unsigned threads, conv_step *conv,
                        dm_error *err)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    size_t taps = (size_t)step->node->kernel[0] * (size_t)step->node->kernel[1] *
                  (size_t)step->node->kernel[2];
    float *weight = NULL, *bias = NULL;
    convolution_spec spec;
    dm_status status = DM_OK;
    conv->source_type = p->options.type;
    conv->unfold = can_unfold(step);
    conv->bias_apart = step->kind == STEP_CONV_TRANSPOSE && !conv->unfold && step->bias;
    size_t n_post = step->kind == STEP_CONV || conv->unfold ? collect_post(p, step, conv->post) : 0;
    conv->pack = in->pitch != in->channels || in->type != p->options.type;
    conv->stage =
        conv->unfold || conv->bias_apart || out->pitch != out->channels || n_post < step->n_chain;
    conv->stage_channels = out->channels * (conv->unfold ? taps : 1);
    conv->pieces = is_voxelwise(step) || conv->unfold;
    conv->planes = in->dim[0];
    /* One piece where there is nothing to keep in cache and nobody to share it with. */
    if (conv->pieces && (conv->pack || conv->stage || threads > 1))
        conv->planes = piece_planes(in, (conv->pack ? in->channels : 0) * sizeof(float) +
                                            conv->stage_channels * sizeof(float));
    fill_spec(p, step, conv, threads, &spec);
    spec.n_post = n_post;
    if (conv->unfold) {
        status = unfold_weights(step, in->channels, out->channels, taps, &weight, &bias, err);
        spec.out_channels = conv->stage_channels;
        spec.weight = weight;
        spec.bias = bias;
    }
    const winograd_kernel *kernel = winograd_best_kernel();
    int shape = -1;
    if (!p->options.direct)
        shape = winograd_choose(&spec, kernel, convolution_gain(spec.type));
    if (status == DM_OK && shape >= 0) {
        conv->pack = false;
        status = winograd_create(&spec, kernel, shape, &conv->winograd, &conv->post_done, err);
        conv->stage = conv->post_done < step->n_chain;
    } else if (status == DM_OK) {
        status = convolution_create(&spec, &conv->conv, &conv->post_done, err);
        conv->stage = conv->stage || conv->post_done < n_post;
    }
    free(weight);
    free(bias);
    return status;
}

dm_status conv_step_create(const plan *p, const plan_step *step, unsigned threads, conv_step *conv,
                           dm_error *err)
{
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    *conv = (conv_step){0};
    dm_status status = create(p, step, threads, conv, err);
    if (status != DM_OK)
        return status;
    size_t in_plane = in->dim[1] * in->dim[2], out_voxels = out->dim[0] * out->dim[1] * out->dim[2];
    size_t stage_voxels =
        conv->planes < in->dim[0] || conv->unfold ? conv->planes * in_plane : out_voxels;
    if (conv->winograd)
        stage_voxels = winograd_planes_per_tile(conv->winograd) * in_plane;
    conv->pack_at = aligned(conv->winograd ? winograd_scratch_bytes(conv->winograd)
                                           : convolution_scratch_bytes(conv->conv));
    conv->stage_at = conv->pack_at;
    if (conv->pack)
        conv->stage_at +=
            aligned(conv->planes * in_plane * in->channels * element_size(p->options.type));
    conv->scratch_bytes = conv->stage_at;
    if (conv->stage)
        conv->scratch_bytes += aligned(stage_voxels * conv->stage_channels * sizeof(float));
    return DM_OK;
}

bool conv_step_is_shared(const conv_step *conv)
{
    return conv->winograd || conv->pieces;
}

void conv_step_free(conv_step *conv)
{
    convolution_free(conv->conv);
    winograd_free(conv->winograd);
    conv->conv = NULL;
    conv->winograd = NULL;
}

const char *conv_step_kernel(const conv_step *conv)
{
    return conv->winograd ? winograd_name(conv->winograd)
           : conv->conv   ? convolution_kernel(conv->conv)
                          : NULL;
}

/* ---- Running -------------------------------------------------------------------------------- */

static void finish_piece(const bound_conv *bound, const plan_step *step,
                         const step_buffers *buffers, void *stage, size_t z)
{
    const conv_step *conv = bound->conv;
    tensor_view done = {.data = stage,
                        .channels = conv->stage_channels,
                        .pitch = conv->stage_channels,
                        .type = ELEMENT_F32};
    if (conv->unfold) {
        memcpy(done.dim, bound->in.dim, sizeof done.dim);
        done.dim[0] = conv->planes;
        step_unfold(buffers, step->node->kernel, &done, z, &bound->out, &bound->rest);
        return;
    }
    memcpy(done.dim, bound->out.dim, sizeof done.dim);
    if (conv->planes < bound->in.dim[0])
        done.dim[0] = conv->planes;
    step_pointwise_part(buffers, &done, z * done.dim[1] * done.dim[2], &bound->out, &bound->rest);
}

/* Planes of tiles [first, last). */
static void run_winograd(const bound_conv *bound, const step_buffers *buffers,
                         unsigned char *scratch, size_t first, size_t last)
{
    const conv_step *conv = bound->conv;
    const size_t planes = winograd_planes_per_tile(conv->winograd);
    const size_t plane = bound->out.dim[1] * bound->out.dim[2];
    const winograd_tensor in = {bound->in.data, bound->in.pitch, bound->in.type};
    const size_t step = conv->stage ? 1 : last - first;
    for (size_t t = first; t < last; t += step) {
        size_t z = t * planes, end = (t + step) * planes;
        end = end < bound->out.dim[0] ? end : bound->out.dim[0];
        tensor_view part = view_planes(&bound->out, z, end - z);
        winograd_tensor out = {part.data, part.pitch, part.type}, operands[WINOGRAD_MAX_POST];
        for (size_t i = 0; i < conv->post_done; i++)
            operands[i] = (winograd_tensor){.data = bound->operands[i]
                                                        ? (char *)(uintptr_t)bound->operands[i] +
                                                              z * plane * part.channels *
                                                                  element_size(conv->post[i].type)
                                                        : NULL,
                                            .pitch = part.channels,
                                            .type = conv->post[i].type};
        if (conv->stage)
            out = (winograd_tensor){scratch + conv->stage_at, part.channels, ELEMENT_F32};
        winograd_run(conv->winograd, &in, &out, operands, t, t + step, scratch);
        if (conv->stage) {
            tensor_view done = part;
            done.data = out.data;
            done.pitch = out.pitch;
            done.type = out.type;
            step_pointwise_part(buffers, &done, z * plane, &bound->out, &bound->rest);
        }
    }
}

dm_status conv_step_run(const bound_conv *bound, const plan_step *step, const step_buffers *buffers,
                        unsigned char *scratch, dm_error *err)
{
    const conv_step *conv = bound->conv;
    const bound_chain nothing = {0};
    size_t first = 0, end = 1;
    if (conv->winograd)
        end = winograd_tile_planes(conv->winograd);
    else if (conv->pieces)
        end = bound->in.dim[0] / conv->planes;
    if (conv_step_is_shared(conv))
        share_planes(buffers, end, &first, &end);
    if (conv->winograd) {
        run_winograd(bound, buffers, scratch, first, end);
        return DM_OK;
    }
    for (size_t piece = first; piece < end; piece++) {
        size_t z = piece * conv->planes;
        tensor_view in = view_planes(&bound->in, z, conv->planes);
        size_t voxel = z * in.dim[1] * in.dim[2]; /* of the result, when there are pieces */
        const void *operands[CONV_STEP_MAX_POST] = {0};
        if (conv->pack) {
            tensor_view packed = in;
            packed.data = scratch + conv->pack_at;
            packed.pitch = packed.channels;
            packed.type = conv->source_type;
            step_pointwise_part(buffers, &in, 0, &packed, &nothing);
            in = packed;
        }
        for (size_t i = 0; i < conv->post_done; i++)
            if (bound->operands[i])
                operands[i] = (const char *)bound->operands[i] +
                              voxel * bound->out.channels * element_size(conv->post[i].type);
        void *to = conv->stage ? scratch + conv->stage_at
                               : (unsigned char *)bound->out.data +
                                     voxel * bound->out.channels * element_size(bound->out.type);
        dm_status status = convolution_run(bound->binding, in.data, to, operands, scratch, err);
        if (status != DM_OK)
            return status;
        if (conv->stage)
            finish_piece(bound, step, buffers, to, z);
    }
    return DM_OK;
}
