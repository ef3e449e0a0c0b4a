/* SPDX-License-Identifier: Apache-2.0 */
/* Who computes a convolution of the device's network, and how its result gets into place. */
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"

/* Below that, vendors' kernels pad to 8 channels, or want workspaces of megabytes. */
#define LIBRARY_MIN_CHANNELS 5

static bool is_dense(const device_tensor *t)
{
    return t->pitch == t->channels &&
           t->sample == (size_t)t->dim[0] * t->dim[1] * t->dim[2] * t->channels;
}

static bool is_aligned(const void *data)
{
    return (uintptr_t)data % LIBRARY_CONVOLUTION_ALIGNMENT == 0;
}

/* ---- The library ---------------------------------------------------------------------------- */

/* Padding at the end that the sizes imply, where it is the same as at the start; -1 where not. */
static int symmetric_padding(const device_convolution *conv, const device_tensor *in,
                             const device_tensor *out, int axis)
{
    long long pad = conv->pad_begin[axis];
    long long reach = (long long)conv->dilation[axis] * (conv->kernel[axis] - 1) + 1;
    long long room = (long long)in->dim[axis] + 2 * pad - reach;
    if (room < 0 || room / conv->stride[axis] + 1 != (long long)out->dim[axis])
        return -1;
    return conv->pad_begin[axis];
}

static bool fill_spec(const device_network *net, const device_convolution *conv,
                      const device_tensor *in, const device_tensor *out, unsigned samples,
                      library_convolution_spec *spec)
{
    memset(spec, 0, sizeof *spec); /* with its gaps: specs are compared byte by byte */
    if (conv->transposed || conv->groups != 1 || in->type != out->type ||
        in->channels < LIBRARY_MIN_CHANNELS || out->channels < LIBRARY_MIN_CHANNELS)
        return false;
    spec->type = in->type;
    spec->tf32 = net->options.tf32 && in->type == ELEMENT_F32;
    spec->precompiled = !net->options.compile;
    spec->samples = samples;
    spec->in_channels = in->channels;
    spec->out_channels = out->channels;
    spec->groups = 1;
    for (int a = 0; a < 3; a++) {
        spec->in_dim[a] = in->dim[a];
        spec->out_dim[a] = out->dim[a];
        spec->kernel[a] = conv->kernel[a];
        spec->stride[a] = conv->stride[a];
        spec->dilation[a] = conv->dilation[a];
        spec->pad_begin[a] = conv->pad_begin[a];
        spec->pad_end[a] = symmetric_padding(conv, in, out, a);
        if (spec->pad_end[a] < 0)
            return false;
    }
    return true;
}

/* A tensor that the library can add: like the result, and not in its place. */
static bool can_be_residual(const device_network *net, const device_op *op,
                            const device_tensor *out)
{
    if (op->n_links == 0 || op->links[0].op != CHAIN_ADD_TENSOR)
        return false;
    device_tensor t = network_tensor(net, op->link_tensors[0], 0);
    return is_dense(&t) && t.type == out->type && t.channels == out->channels &&
           memcmp(t.dim, out->dim, sizeof t.dim) == 0 && t.data != out->data && is_aligned(t.data);
}

/* What the library may join to the convolution. */
static void fill_joined(const device_network *net, const device_op *op, const device_tensor *out,
                        library_convolution_spec *spec, convolution_choice *choice)
{
    size_t next = 0;
    spec->bias = op->bias != NULL;
    choice->residual = -1;
    if (can_be_residual(net, op, out)) {
        spec->residual = true;
        choice->residual = op->link_tensors[next++];
    }
    if (next < op->n_links &&
        (op->links[next].op == CHAIN_RELU || op->links[next].op == CHAIN_LEAKY_RELU)) {
        spec->activate = true;
        spec->slope = op->links[next].op == CHAIN_RELU ? 0 : op->links[next].alpha;
        next++;
    }
    choice->links_done = next;
    choice->bias_done = true;
}

bool convolution_spec(const device_network *net, device_op *op, const device_tensor *in,
                      const device_tensor *out, unsigned samples, bool links, bool joined,
                      library_convolution_spec *spec)
{
    convolution_choice *c = &op->conv;
    c->links_done = 0;
    c->residual = -1;
    c->bias_done = !links || !op->bias;
    if (!fill_spec(net, &c->conv, in, out, samples, spec) || !is_aligned(c->conv.weight))
        return false;
    if (!joined)
        return true;
    if (links)
        fill_joined(net, op, out, spec, c);
    return spec->bias || spec->residual || spec->activate;
}

/* Does the rest of the chain read what lies in the result's place? */
static bool reads_place_of(const device_network *net, const device_op *op, const device_tensor *out)
{
    for (size_t i = op->conv.links_done; i < op->n_links; i++)
        if (op->link_tensors[i] >= 0 &&
            network_tensor(net, op->link_tensors[i], 0).data == out->data)
            return true;
    return false;
}

dm_status convolution_use_library(const device_network *net, device_op *op, const device_tensor *in,
                                  const device_tensor *out, unsigned samples, bool links,
                                  const library_convolution *made, dm_error *err)
{
    convolution_choice *c = &op->conv;
    size_t more = links ? op->n_links - c->links_done : 0;
    dm_status status = DM_OK;
    c->way = WAY_LIBRARY;
    c->library = made;
    c->pack = !is_dense(in) || !is_aligned(in->data);
    c->stage = !is_dense(out) || !is_aligned(out->data) || more > DEVICE_MAX_LINKS ||
               (links && reads_place_of(net, op, out));
    if (c->pack)
        status = scratch_take(op, dense_bytes(in, in->type, samples), &c->pack_at, err);
    if (status == DM_OK && c->stage)
        status = scratch_take(op, dense_bytes(out, out->type, samples), &c->stage_at, err);
    if (status == DM_OK)
        status = scratch_take(op, library_convolution_workspace(made), &c->workspace_at, err);
    snprintf(op->way, sizeof op->way, "library%s%s: %.100s", c->pack ? ", packed" : "",
             c->stage ? ", staged" : "", library_convolution_describe(made));
    return status;
}

/* First with what can be joined, then alone. */
static dm_status choose_library(device_network *net, device_op *op, const device_tensor *in,
                                const device_tensor *out, unsigned samples, bool links,
                                dm_error *err)
{
    for (int joined = 1; joined >= 0; joined--) {
        library_convolution_spec spec;
        const library_convolution *made = NULL;
        if (!convolution_spec(net, op, in, out, samples, links, joined, &spec))
            continue;
        dm_status status = library_find(net, op->step->name, &spec, &op->conv.conv,
                                        joined ? op->bias : NULL, &made, err);
        if (status != DM_OK)
            return status;
        if (made)
            return convolution_use_library(net, op, in, out, samples, links, made, err);
    }
    return DM_OK;
}

/* ---- Kernels of ours ------------------------------------------------------------------------ */

/* As tuning files have them. */
static const char *const way_names[] = {[WAY_ANY] = "any",
                                        [WAY_FIRST] = "first",
                                        [WAY_TENSOR_CORE] = "tensor_core",
                                        [WAY_HALO] = "halo",
                                        [WAY_LIBRARY] = "library"};

const char *convolution_way_name(convolution_way way)
{
    return way_names[way];
}

static bool takes(const device_network *net, convolution_way way, const device_convolution *conv,
                  const device_tensor *in, const device_tensor *target)
{
    switch (way) {
    case WAY_FIRST:
        return convolution_first_takes(conv, in, target);
    case WAY_TENSOR_CORE:
        return convolution_tensor_core_takes(conv, in, target);
    case WAY_HALO:
        return net->halo && convolution_halo_takes(conv, in, target);
    case WAY_ANY:
        return true;
    default:
        return false;
    }
}

bool convolution_use_own(const device_network *net, device_op *op, const device_tensor *in,
                         const device_tensor *out, bool links, convolution_way way)
{
    static const char *const kernels[] = {[WAY_ANY] = "kernel_convolution",
                                          [WAY_FIRST] = "kernel_convolution_first",
                                          [WAY_TENSOR_CORE] = "kernel_convolution_tensor_core",
                                          [WAY_HALO] = "kernel_convolution_halo"};
    size_t n = 0;
    device_tensor target = links ? first_target(net, op, out, &n) : *out;
    if (!takes(net, way, &op->conv.conv, in, &target))
        return false;
    op->conv.way = way;
    op->conv.residual = -1;
    snprintf(op->way, sizeof op->way, "%s", kernels[way]);
    return true;
}

/* The first that takes it. False if that is the one for any case. */
static bool choose_own(const device_network *net, device_op *op, const device_tensor *in,
                       const device_tensor *out, bool links)
{
    if (convolution_halo_pays(out) && convolution_use_own(net, op, in, out, links, WAY_HALO))
        return true;
    if (convolution_use_own(net, op, in, out, links, WAY_TENSOR_CORE))
        return true;
    (void)convolution_use_own(net, op, in, out, links, WAY_ANY);
    return false;
}

/* ---- The choice ----------------------------------------------------------------------------- */

/* What was found fastest; false if nothing was, or it cannot be used any more. */
static dm_status choose_tuned(device_network *net, device_op *op, const device_tensor *in,
                              const device_tensor *out, unsigned samples, bool links, bool *chosen,
                              dm_error *err)
{
    char operands[CONVOLUTION_OPERANDS];
    tuned_layer layer;
    library_convolution_spec spec;
    const library_convolution *made = NULL;
    *chosen = false;
    if (!net->options.tuning || net->options.convolutions != DM_CONVOLUTIONS_AUTO ||
        !convolution_operands(net, op, in, out, samples, links, operands) ||
        !tuning_find(net->options.tuning, operands, &layer))
        return DM_OK;
    for (convolution_way way = WAY_ANY; way < WAY_LIBRARY && !*chosen; way++)
        if (strcmp(layer.way, way_names[way]) == 0)
            *chosen = convolution_use_own(net, op, in, out, links, way);
    if (*chosen || strcmp(layer.way, way_names[WAY_LIBRARY]) != 0 || !layer.engine ||
        !convolution_spec(net, op, in, out, samples, links, layer.joined, &spec))
        return DM_OK;
    spec.precompiled = false;
    dm_status status = library_find_tuned(net, op->step->name, &spec, &layer, &op->conv.conv,
                                          layer.joined ? op->bias : NULL, &made, err);
    if (status == DM_OK && made) {
        *chosen = true;
        status = convolution_use_library(net, op, in, out, samples, links, made, err);
    }
    return status;
}

/* The library reads and writes dense tensors. A pass over the result that is there anyway puts it
 * where it belongs; else a kernel of ours is better. */
static bool is_view(const device_op *op, const device_tensor *in, const device_tensor *out,
                    bool links)
{
    return !is_dense(in) || (!is_dense(out) && (!links || (!op->bias && op->n_links == 0)));
}

dm_status convolution_choose(device_network *net, device_op *op, const device_tensor *in,
                             const device_tensor *out, unsigned samples, bool links, dm_error *err)
{
    bool chosen;
    dm_status status = choose_tuned(net, op, in, out, samples, links, &chosen, err);
    net->n_convolutions++;
    net->n_tuned += chosen;
    if (status != DM_OK || chosen || convolution_use_own(net, op, in, out, links, WAY_FIRST))
        return status;
    bool own = choose_own(net, op, in, out, links);
    if (net->options.convolutions == DM_CONVOLUTIONS_OWN || (own && is_view(op, in, out, links)))
        return DM_OK;
    return choose_library(net, op, in, out, samples, links, err);
}

/* ---- Running -------------------------------------------------------------------------------- */

static cudaError_t run_own(const device_network *net, const device_op *op, const device_tensor *in,
                           const device_tensor *out, unsigned first, unsigned samples, bool links)
{
    const convolution_choice *c = &op->conv;
    cudaStream_t stream = net->options.stream;
    size_t n = 0;
    device_tensor target = links ? first_target(net, op, out, &n) : *out;
    device_epilogue epilogue = {0};
    if (links)
        epilogue = epilogue_of(net, op, op->bias, 0, n, first);
    cudaError_t code =
        c->way == WAY_FIRST
            ? net->kernels->convolution_first(&c->conv, in, &target, samples, &epilogue, stream)
        : c->way == WAY_TENSOR_CORE ? net->kernels->convolution_tensor_core(
                                          &c->conv, in, &target, samples, &epilogue, stream)
        : c->way == WAY_HALO
            ? net->kernels->convolution_halo(&c->conv, in, &target, samples, &epilogue, stream)
            : net->kernels->convolution(&c->conv, in, &target, samples, &epilogue, stream);
    if (code == cudaSuccess && links && n < op->n_links)
        code = finish_chain(net, op, target, out, NULL, n, first, samples);
    return code;
}

static dm_status run_library(const device_network *net, const device_op *op,
                             const device_tensor *in, const device_tensor *out, unsigned first,
                             unsigned samples, bool links, dm_error *err)
{
    const convolution_choice *c = &op->conv;
    device_tensor x = *in, y = *out;
    const device_epilogue nothing = {0};
    const void *residual = NULL;
    if (c->pack) {
        x = scratch_tensor(net, in, in->type, c->pack_at);
        dm_status status =
            device_check(net->kernels->pointwise(in, &x, samples, &nothing, net->options.stream),
                         op->step->name, err);
        if (status != DM_OK)
            return status;
    }
    if (c->stage)
        y = scratch_tensor(net, out, out->type, c->stage_at);
    if (c->residual >= 0)
        residual = network_tensor(net, c->residual, first).data;
    dm_status status = net->kernels->library(
        c->library, x.data, c->conv.weight, links && c->bias_done ? op->bias : NULL, residual,
        y.data, net->scratch + c->workspace_at, net->options.stream, err);
    device_add_remedy(status, err);
    bool rest = links && (!c->bias_done || c->links_done < op->n_links);
    if (status == DM_OK && (c->stage || rest))
        status = device_check(finish_chain(net, op, y, out, c->bias_done ? NULL : op->bias,
                                           links ? c->links_done : op->n_links, first, samples),
                              op->step->name, err);
    return status;
}

dm_status convolution_run_choice(const device_network *net, const device_op *op,
                                 const device_tensor *in, const device_tensor *out, unsigned first,
                                 unsigned samples, bool links, dm_error *err)
{
    if (op->conv.way == WAY_LIBRARY)
        return run_library(net, op, in, out, first, samples, links, err);
    return device_check(run_own(net, op, in, out, first, samples, links), op->step->name, err);
}
