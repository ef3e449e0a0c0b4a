/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors of the device's network, its scratch memory, and the chains at the ends of its
 * operations. */
#include "base/error.h"
#include "predict/cuda/device_network_parts.h"

#define ALIGNMENT 256

/* ---- Tensors and scratch memory ------------------------------------------------------------- */

device_tensor network_tensor(const device_network *net, int tensor, unsigned first)
{
    const plan_tensor *t = &net->plan->tensors[tensor];
    const device_place *place = &net->layout.tensors[tensor];
    size_t size = element_size(t->type);
    device_tensor made = {.sample = place->sample,
                          .pitch = t->pitch,
                          .channels = (unsigned)t->channels,
                          .dim = {(unsigned)t->dim[0], (unsigned)t->dim[1], (unsigned)t->dim[2]},
                          .type = t->type};
    if (place->offset != SIZE_MAX)
        made.data = net->arena + place->offset + t->channel_start * size +
                    (place->whole ? first * place->sample * size : 0);
    return made;
}

static const device_segment *segment_of(const device_network *net, size_t op)
{
    const device_segment *s = net->layout.segments;
    while (op >= s->end)
        s++;
    return s;
}

unsigned network_samples(const device_network *net, size_t op)
{
    return segment_of(net, op)->samples;
}

static size_t dense_sample(const device_tensor *t)
{
    return (size_t)t->dim[0] * t->dim[1] * t->dim[2] * t->channels;
}

size_t dense_bytes(const device_tensor *t, element_type type, unsigned samples)
{
    return dense_sample(t) * element_size(type) * samples;
}

device_tensor scratch_tensor(const device_network *net, const device_tensor *t, element_type type,
                             size_t at)
{
    device_tensor made = *t;
    made.data = net->scratch + at;
    made.sample = dense_sample(t);
    made.pitch = t->channels;
    made.type = type;
    return made;
}

dm_status scratch_take(device_op *op, size_t bytes, size_t *at, dm_error *err)
{
    if (bytes > SIZE_MAX / 2 - ALIGNMENT - op->scratch_bytes)
        return error_memory(err, SIZE_MAX, op->step->name);
    *at = op->scratch_bytes;
    op->scratch_bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return DM_OK;
}

/* ---- Chains --------------------------------------------------------------------------------- */

/* Along axes and channels of which the tensor has one, steps are 0. */
static device_operand operand_of(const device_network *net, int tensor, unsigned first)
{
    device_tensor t = network_tensor(net, tensor, first);
    return (device_operand){.data = t.data,
                            .sample = t.sample,
                            .z = t.dim[0] == 1 ? 0 : (size_t)t.dim[1] * t.dim[2] * t.pitch,
                            .y = t.dim[1] == 1 ? 0 : t.dim[2] * t.pitch,
                            .x = t.dim[2] == 1 ? 0 : t.pitch,
                            .c = t.channels == 1 ? 0 : 1,
                            .type = t.type};
}

device_epilogue epilogue_of(const device_network *net, const device_op *op, const float *bias,
                            size_t from, size_t n, unsigned first)
{
    device_epilogue epilogue = {.bias = bias, .n = (unsigned)n};
    for (size_t i = 0; i < n; i++) {
        epilogue.link[i] = op->links[from + i];
        if (op->link_tensors[from + i] >= 0)
            epilogue.link[i].operand = operand_of(net, op->link_tensors[from + i], first);
    }
    return epilogue;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

device_tensor first_target(const device_network *net, const device_op *op, const device_tensor *out,
                           size_t *links)
{
    *links = smaller(op->n_links, DEVICE_MAX_LINKS);
    return *links < op->n_links ? scratch_tensor(net, out, ELEMENT_F32, op->float_at) : *out;
}

/* Passes of DEVICE_MAX_LINKS each, in float32 between them, so that nothing is rounded twice and no
 * operand that lies in the result's place is overwritten before it is read. */
cudaError_t finish_chain(const device_network *net, const device_op *op, device_tensor value,
                         const device_tensor *out, const float *bias, size_t from, unsigned first,
                         unsigned samples)
{
    cudaError_t code;
    bool last;
    do {
        size_t n = smaller(op->n_links - from, DEVICE_MAX_LINKS);
        last = from + n == op->n_links;
        device_tensor target = last ? *out : scratch_tensor(net, out, ELEMENT_F32, op->float_at);
        device_epilogue epilogue = epilogue_of(net, op, bias, from, n, first);
        code = net->kernels->pointwise(&value, &target, samples, &epilogue, net->options.stream);
        value = target;
        from += n;
        bias = NULL;
    } while (code == cudaSuccess && !last);
    return code;
}
