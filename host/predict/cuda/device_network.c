/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_network.h"

#include <stdlib.h>

#include "base/error.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"

#define ALIGNMENT 256
#define DRY_ARENA ((uintptr_t)1 << 44)
#define DRY_SCRATCH ((uintptr_t)1 << 45)

void device_network_plan_needs(plan_options *options)
{
    options->conv_reads_views = true;
    options->conv_writes_views = true;
}

/* ---- Lowering -------------------------------------------------------------------------------- */

/* Before anything is placed: with addresses as well aligned as the layout makes them. */
static device_tensor unplaced(const plan *p, int tensor)
{
    const plan_tensor *t = &p->tensors[tensor];
    uintptr_t data = ALIGNMENT + t->channel_start * element_size(t->type);
    return (device_tensor){.data = (void *)data,
                           .sample = t->dim[0] * t->dim[1] * t->dim[2] * t->pitch,
                           .pitch = t->pitch,
                           .channels = (unsigned)t->channels,
                           .dim = {(unsigned)t->dim[0], (unsigned)t->dim[1], (unsigned)t->dim[2]},
                           .type = t->type};
}

typedef struct gate_context {
    device_network *net;
    dm_status status;
    dm_error *err;
} gate_context;

static bool takes_gate(const plan *p, const lowered_op *op, void *context)
{
    gate_context *c = context;
    device_gate gate = {0};
    if (c->status == DM_OK)
        c->status = network_fill_gate(c->net, op, &gate, c->err);
    if (c->status != DM_OK)
        return false;
    device_tensor coarse = unplaced(p, op->coarse->in), skip = unplaced(p, op->skip->in),
                  out = unplaced(p, op->step->out);
    return attention_gate_takes(&gate, &coarse, &skip, &out);
}

/* A gate reads voxels that its threads did not write: its result has to lie elsewhere. */
static bool has_gate_in_place(const device_network *net)
{
    for (size_t i = 0; i < net->n_ops; i++) {
        const lowered_op *op = &net->ops[i].lowered;
        int read;
        for (size_t r = 0; op->kind == LOWERED_GATE && (read = lowered_read(op, r)) >= 0; r++)
            if (network_tensor(net, read, 0).data == network_tensor(net, op->step->out, 0).data)
                return true;
    }
    return false;
}

static dm_status lay_out(device_network *net, lowered_op *lowered, bool gates, dm_error *err)
{
    gate_context context = {net, DM_OK, err};
    net->n_ops = lower_plan(net->plan, gates ? takes_gate : NULL, &context, lowered);
    for (size_t i = 0; i < net->n_ops; i++) {
        net->ops[i].lowered = lowered[i];
        net->ops[i].step = lowered[i].step;
    }
    if (context.status != DM_OK)
        return context.status;
    device_layout_clear(&net->layout);
    return device_layout_make(net->plan, lowered, net->n_ops, net->options.batch,
                              net->options.cache_bytes, &net->layout, err);
}

static dm_status lower(device_network *net, dm_error *err)
{
    size_t n = net->plan->n_steps + 1;
    lowered_op *lowered = array_zero(n, sizeof *lowered);
    net->ops = array_zero(n, sizeof *net->ops);
    if (!lowered || !net->ops) {
        free(lowered);
        return error_memory(err, n * sizeof *net->ops, "the network's steps");
    }
    dm_status status = lay_out(net, lowered, true, err);
    if (status == DM_OK && has_gate_in_place(net))
        status = lay_out(net, lowered, false, err);
    free(lowered);
    return status;
}

static dm_status check_plan(const plan *p, dm_error *err)
{
    for (size_t i = 0; i < p->n_tensors; i++) {
        const plan_tensor *t = &p->tensors[i];
        size_t voxels, plane;
        if (!size_multiply(t->dim[0], t->dim[1], &plane) ||
            !size_multiply(plane, t->dim[2], &voxels) || voxels > INT32_MAX)
            return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use a smaller --tile",
                             "tensor \"%s\" has more than %d voxels", t->name, INT32_MAX);
    }
    return DM_OK;
}

/* ---- Making ---------------------------------------------------------------------------------- */

/* Of a dry network, an address that means nothing: the parameters' lie elsewhere. */
static dm_status take_memory(const device_network *net, size_t bytes, uintptr_t dry,
                             const char *what, unsigned char **taken, dm_error *err)
{
    void *memory = (void *)dry;
    dm_status status = net->options.dry ? DM_OK : device_alloc(&memory, bytes, what, err);
    *taken = memory;
    return status;
}

static dm_status create(device_network *net, dm_error *err)
{
    dm_status status = check_plan(net->plan, err);
    if (status == DM_OK)
        status = lower(net, err);
    if (status == DM_OK)
        status = take_memory(net, net->layout.bytes, DRY_ARENA, "the network's activations",
                             &net->arena, err);
    net->halo = true;
    if (status == DM_OK && !net->options.dry && net->plan->options.type != ELEMENT_F32)
        status = own_check_halo(net, net->plan->options.type, &net->halo, err);
    for (size_t i = 0; status == DM_OK && i < net->n_ops; i++) {
        if (net->options.go_on)
            status = net->options.go_on(net->options.context, err);
        if (status == DM_OK)
            status = network_prepare(net, i, err);
        if (net->ops[i].scratch_bytes > net->scratch_bytes)
            net->scratch_bytes = net->ops[i].scratch_bytes;
    }
    net->options.context = NULL; /* was there for making it only */
    library_free_check(net);
    if (status == DM_OK)
        status = take_memory(net, net->scratch_bytes, DRY_SCRATCH, "the network's scratch memory",
                             &net->scratch, err);
    return status;
}

dm_status device_network_create(const plan *p, const device_network_options *options,
                                device_network **created, dm_error *err)
{
    device_network *net = array_zero(1, sizeof *net);
    *created = NULL;
    if (!net)
        return error_memory(err, sizeof *net, "the network");
    net->plan = p;
    net->options = *options;
    net->kernels = options->kernels ? options->kernels : &device_kernels_run;
    dm_status status = create(net, err);
    if (status == DM_OK)
        *created = net;
    else
        device_network_free(net);
    return status;
}

void device_network_free(device_network *net)
{
    if (!net)
        return;
    if (!net->options.dry && cudaStreamSynchronize(net->options.stream) != cudaSuccess)
        (void)cudaGetLastError();
    for (size_t i = 0; i < net->n_ops; i++) {
        for (int a = 0; a < 3; a++)
            device_free((void *)(uintptr_t)net->ops[i].maps[a].low);
        library_release(net->options.plans, net->ops[i].conv.library);
        free(net->ops[i].links);
        free(net->ops[i].link_tensors);
    }
    free(net->ops);
    library_free_check(net);
    device_layout_clear(&net->layout);
    if (!net->options.dry) {
        device_free(net->arena);
        device_free(net->scratch);
    }
    free(net);
}

size_t device_network_bytes(const device_network *net)
{
    /* The scratch memory comes when checks are done with theirs. */
    size_t check = net->check.most;
    return net->layout.bytes + (net->scratch_bytes > check ? net->scratch_bytes : check);
}

const char *device_network_way(const device_network *net, size_t step)
{
    for (size_t i = 0; i < net->n_ops; i++)
        if (net->ops[i].step == &net->plan->steps[step])
            return net->ops[i].way;
    return "part of a gate";
}

void device_network_tuned(const device_network *net, unsigned *tuned, unsigned *convolutions)
{
    *tuned = net->n_tuned;
    *convolutions = net->n_convolutions;
}

const char *device_network_rejections(const device_network *net)
{
    return net->halo ? "" : "kernel_convolution_halo, which computes wrongly on this device";
}

const plan_step *device_network_step(const device_network *net, size_t op)
{
    return op < net->n_ops ? net->ops[op].step : NULL;
}

device_tensor device_network_tensor(const device_network *net, int tensor)
{
    return network_tensor(net, tensor, 0);
}
