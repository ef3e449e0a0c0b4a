/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cpu/network.h"

#include "base/error.h"
#include "base/parallel.h"
#include "predict/cpu/conv_step.h"
#include "predict/cpu/steps.h"

#include <pthread.h>
#include <stdlib.h>

/* Floats of a row: two of them leave half of a first-level cache free. */
enum { ROW_FLOATS = 2048, ALIGNMENT = 64 };

/* What all workers share of a step. */
typedef struct shared_step {
    conv_step conv;             /* convolutions */
    step_axis maps[3];          /* STEP_PAD, STEP_SLICE, STEP_RESIZE */
    size_t first_link, n_links; /* of each worker's links: what is left of the chain */
} shared_step;

struct network {
    const plan *plan;
    unsigned threads; /* that share a window */
    shared_step *steps;
    size_t n_links;
    size_t scratch_bytes, row_floats, channels; /* largest of any step */
    size_t shared_scratch_bytes;                /* of any step that threads share */
};

typedef struct bound_step {
    tensor_view in, out;
    bound_chain chain;
} bound_step;

/* What each thread of a worker has for itself. */
typedef struct member {
    unsigned char *scratch;
    step_buffers buffers;
    bound_conv *convs; /* by step */
} member;

struct worker {
    const network *network;
    unsigned char *memory; /* the arena, then what follows */
    norm_state norm;
    bound_link *links;
    bound_step *steps;
    member *members;
};

static bool is_convolution(const plan_step *step)
{
    return step->kind == STEP_CONV || step->kind == STEP_CONV_TRANSPOSE;
}

/* ---- Network -------------------------------------------------------------------------------- */

static dm_status check_plan(const plan *p, dm_error *err)
{
    const plan_tensor *ends[2] = {&p->tensors[p->input], &p->tensors[p->output]};
    for (size_t i = 0; i < p->n_tensors; i++)
        if (p->tensors[i].type == ELEMENT_F16)
            return error_set(err, DM_ERROR_UNSUPPORTED, NULL,
                             "use --precision float32 or --precision bf16",
                             "tensor \"%s\" is fp16, which the CPU backend does not compute in",
                             p->tensors[i].name);
    for (int i = 0; i < 2; i++)
        if (ends[i]->pitch != ends[i]->channels)
            return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "insert an Identity before it",
                             "the network's %s \"%s\" is part of a wider tensor (%zu of %zu "
                             "channels)",
                             i ? "output" : "input", ends[i]->name, ends[i]->channels,
                             ends[i]->pitch);
    if (ends[1]->type != ELEMENT_F32)
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, NULL,
                         "the network's output \"%s\" is not float32", ends[1]->name);
    return DM_OK;
}

static void note_size(network *net, size_t floats)
{
    net->row_floats = floats > net->row_floats ? floats : net->row_floats;
}

static dm_status prepare(network *net, const plan_step *step, shared_step *shared, dm_error *err)
{
    const plan_tensor *in = &net->plan->tensors[step->in], *out = &net->plan->tensors[step->out];
    dm_status status = DM_OK;
    size_t done = 0;
    bool mapped = step->kind == STEP_PAD || step->kind == STEP_SLICE || step->kind == STEP_RESIZE;
    for (int a = 0; mapped && status == DM_OK && a < 3; a++)
        status = step_axis_create(step, a, in->dim[a], out->dim[a], &shared->maps[a], err);
    if (is_convolution(step)) {
        status = conv_step_create(net->plan, step, net->threads, &shared->conv, err);
        done = shared->conv.post_done;
        size_t bytes = shared->conv.scratch_bytes;
        if (bytes > net->scratch_bytes)
            net->scratch_bytes = bytes;
        if (conv_step_is_shared(&shared->conv) && bytes > net->shared_scratch_bytes)
            net->shared_scratch_bytes = bytes;
        if (shared->conv.unfold)
            note_size(net, (size_t)step->node->kernel[2] * out->channels);
    }
    shared->first_link = net->n_links;
    shared->n_links = step->n_chain - done + (shared->conv.bias_apart ? 1 : 0);
    net->n_links += shared->n_links;
    return status;
}

dm_status network_create(const plan *p, unsigned threads, network **created, dm_error *err)
{
    *created = NULL;
    dm_status status = check_plan(p, err);
    if (status != DM_OK)
        return status;
    network *net = array_zero(1, sizeof *net);
    if (!net)
        return error_memory(err, sizeof *net, "the network");
    net->plan = p;
    net->threads = threads;
    net->row_floats = ROW_FLOATS;
    for (size_t i = 0; i < p->n_tensors; i++)
        if (p->tensors[i].channels > net->channels)
            net->channels = p->tensors[i].channels;
    note_size(net, net->channels);
    net->steps = array_zero(p->n_steps + 1, sizeof *net->steps);
    if (!net->steps) {
        network_free(net);
        return error_memory(err, (p->n_steps + 1) * sizeof *net->steps, "the network's steps");
    }
    for (size_t i = 0; status == DM_OK && i < p->n_steps; i++)
        status = prepare(net, &p->steps[i], &net->steps[i], err);
    if (status == DM_OK)
        *created = net;
    else
        network_free(net);
    return status;
}

void network_free(network *net)
{
    if (!net)
        return;
    for (size_t i = 0; net->steps && i < net->plan->n_steps; i++) {
        conv_step_free(&net->steps[i].conv);
        for (int a = 0; a < 3; a++)
            step_axis_free(&net->steps[i].maps[a]);
    }
    free(net->steps);
    free(net);
}

const char *network_library(void)
{
    return convolution_library();
}

bool network_supports(dm_precision precision)
{
    return precision == DM_PRECISION_FLOAT32 ||
           (precision == DM_PRECISION_BF16 && convolution_is_native(ELEMENT_BF16));
}

void network_plan_needs(plan_options *options)
{
    options->conv_reads_views = false;
    options->conv_writes_views = false;
}

const char *network_kernel(const network *net, size_t step)
{
    return conv_step_kernel(&net->steps[step].conv);
}

/* ---- Worker --------------------------------------------------------------------------------- */

/* Where a worker's parts lie in its one piece of memory. */
typedef struct worker_layout {
    size_t parameters, statistics;
    /* The first member runs what is not shared as well; from a member's start: row, operand, scratch. */
    size_t members, operand, scratch, first_bytes, member_bytes;
    size_t bytes;
} worker_layout;

static size_t place(size_t *end, size_t bytes)
{
    size_t at = *end;
    *end += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static worker_layout lay_out(const network *net)
{
    worker_layout l = {0};
    size_t end = 0;
    place(&end, net->plan->arena_bytes);
    l.parameters = place(&end, 3 * net->channels * sizeof(float));
    l.statistics = place(&end, 2 * net->channels * sizeof(double));
    l.members = end;
    size_t part = 0;
    place(&part, net->row_floats * sizeof(float));
    l.operand = place(&part, net->row_floats * sizeof(float));
    l.scratch = part;
    l.first_bytes = l.member_bytes = part;
    place(&l.first_bytes, net->scratch_bytes);
    place(&l.member_bytes, net->shared_scratch_bytes);
    l.bytes = end + l.first_bytes + (net->threads - 1) * l.member_bytes;
    return l;
}

size_t network_worker_bytes(const network *net)
{
    return lay_out(net).bytes;
}

static tensor_view view_of(const worker *w, int tensor)
{
    const plan_tensor *t = &w->network->plan->tensors[tensor];
    tensor_view view = {.data = w->memory + t->offset + t->channel_start * element_size(t->type),
                        .channels = t->channels,
                        .pitch = t->pitch,
                        .dim = {t->dim[0], t->dim[1], t->dim[2]},
                        .type = t->type};
    return view;
}

static bool has_tensor(chain_op op)
{
    return op == CHAIN_ADD_TENSOR || op == CHAIN_MUL_TENSOR || op == CHAIN_SUB_TENSOR ||
           op == CHAIN_RSUB_TENSOR;
}

static void bind_chain(worker *w, const plan_step *step, const shared_step *shared,
                       bound_step *bound)
{
    bound_link *link = w->links + shared->first_link;
    bound->chain = (bound_chain){shared->n_links, link};
    if (shared->conv.bias_apart)
        *link++ = (bound_link){.op = CHAIN_AFFINE, .shift = step->bias};
    for (size_t i = shared->conv.post_done; i < step->n_chain; i++, link++) {
        const chain_link *from = &step->chain[i];
        *link = (bound_link){from->op, from->alpha, from->scale, from->shift, {0}};
        if (has_tensor(from->op))
            link->tensor = view_of(w, from->tensor);
    }
}

static dm_status bind_conv(worker *w, const plan_step *step, const shared_step *shared,
                           const bound_step *bound, bound_conv *conv, dm_error *err)
{
    conv->conv = &shared->conv;
    conv->in = bound->in;
    conv->out = bound->out;
    conv->rest = bound->chain;
    for (size_t i = 0; i < shared->conv.post_done; i++)
        if (has_tensor(step->chain[i].op))
            conv->operands[i] = view_of(w, step->chain[i].tensor).data;
    return shared->conv.conv ? convolution_bind(shared->conv.conv, &conv->binding, err) : DM_OK;
}

static dm_status bind_step(worker *w, size_t index, dm_error *err)
{
    const plan_step *step = &w->network->plan->steps[index];
    const shared_step *shared = &w->network->steps[index];
    bound_step *bound = &w->steps[index];
    dm_status status = DM_OK;
    bound->in = view_of(w, step->in);
    bound->out = view_of(w, step->out);
    bind_chain(w, step, shared, bound);
    for (unsigned i = 0; is_convolution(step) && i < w->network->threads && status == DM_OK; i++)
        status = bind_conv(w, step, shared, bound, &w->members[i].convs[index], err);
    return status;
}

static dm_status allocate(worker *w, dm_error *err)
{
    const network *net = w->network;
    worker_layout l = lay_out(net);
    /* Not cleared: the threads that first write it touch its pages, side by side. */
    w->memory = array_alloc(l.bytes, 1);
    w->links = array_zero(net->n_links + 1, sizeof *w->links);
    w->steps = array_zero(net->plan->n_steps + 1, sizeof *w->steps);
    w->members = array_zero(net->threads, sizeof *w->members);
    if (!w->memory || !w->links || !w->steps || !w->members)
        return error_memory(err, l.bytes, "a worker's activations; a smaller tile needs less");
    w->norm.mean = (double *)(w->memory + l.statistics);
    w->norm.variance = w->norm.mean + net->channels;
    w->norm.centre = (float *)(w->memory + l.parameters);
    w->norm.scale = w->norm.centre + net->channels;
    w->norm.shift = w->norm.scale + net->channels;
    for (unsigned i = 0; i < net->threads; i++) {
        member *m = &w->members[i];
        unsigned char *start = w->memory + l.members;
        if (i > 0)
            start += l.first_bytes + (i - 1) * l.member_bytes;
        m->scratch = start + l.scratch;
        m->buffers = (step_buffers){.share = i,
                                    .shares = net->threads,
                                    .row_floats = net->row_floats,
                                    .row = (float *)start,
                                    .operand = (float *)(start + l.operand)};
        m->convs = array_zero(net->plan->n_steps + 1, sizeof *m->convs);
        if (!m->convs)
            return error_memory(err, net->plan->n_steps * sizeof *m->convs, "a worker's steps");
    }
    return DM_OK;
}

dm_status worker_create(const network *net, worker **created, dm_error *err)
{
    *created = NULL;
    worker *w = array_zero(1, sizeof *w);
    if (!w)
        return error_memory(err, sizeof *w, "a worker");
    w->network = net;
    dm_status status = allocate(w, err);
    for (size_t i = 0; status == DM_OK && i < net->plan->n_steps; i++)
        status = bind_step(w, i, err);
    if (status == DM_OK)
        *created = w;
    else
        worker_free(w);
    return status;
}

void worker_free(worker *w)
{
    if (!w)
        return;
    for (unsigned m = 0; w->members && m < w->network->threads; m++) {
        for (size_t i = 0; w->members[m].convs && i < w->network->plan->n_steps; i++)
            convolution_unbind(w->members[m].convs[i].binding);
        free(w->members[m].convs);
    }
    free(w->members);
    free(w->steps);
    free(w->links);
    free(w->memory);
    free(w);
}

void *worker_arena(worker *w)
{
    return w->memory;
}

void *worker_input(worker *w)
{
    return view_of(w, w->network->plan->input).data;
}

const float *worker_output(const worker *w)
{
    return view_of(w, w->network->plan->output).data;
}

/* ---- Running -------------------------------------------------------------------------------- */

static void run_mapped(const step_buffers *buffers, const plan_step *step,
                       const shared_step *shared, const bound_step *bound)
{
    const graph_node *node = step->node;
    bool slice = step->kind == STEP_SLICE;
    if (step->kind == STEP_RESIZE && node->resize == RESIZE_LINEAR)
        step_interpolate(buffers, shared->maps, &bound->in, &bound->out, &bound->chain);
    else
        step_gather(buffers, shared->maps, slice ? (size_t)node->channel_begin : 0,
                    slice ? (size_t)node->channel_step : 1, node->pad_value, &bound->in,
                    &bound->out, &bound->chain);
}

/* One member's share of a step, or all of it. */
static dm_status run_share(worker *w, size_t index, member *m, dm_error *err)
{
    const plan_step *step = &w->network->plan->steps[index];
    const shared_step *shared = &w->network->steps[index];
    const bound_step *bound = &w->steps[index];
    const step_buffers *buffers = &m->buffers;
    switch (step->kind) {
    case STEP_CONV:
    case STEP_CONV_TRANSPOSE:
        return conv_step_run(&m->convs[index], step, buffers, m->scratch, err);
    case STEP_NORM:
        step_norm_apply(buffers, &w->norm, &bound->in, &bound->out, &bound->chain);
        break;
    case STEP_POINTWISE:
    case STEP_COPY:
        step_pointwise(buffers, &bound->in, &bound->out, &bound->chain);
        break;
    case STEP_MAX_POOL:
        step_max_pool(buffers, step->node, &bound->in, &bound->out, &bound->chain);
        break;
    case STEP_AVERAGE_POOL:
        step_average_pool(buffers, step->node, &bound->in, &bound->out, &bound->chain);
        break;
    case STEP_GLOBAL_AVERAGE_POOL:
        step_global_average_pool(buffers, &w->norm, &bound->in, &bound->out, &bound->chain);
        break;
    case STEP_PAD:
    case STEP_SLICE:
    case STEP_RESIZE:
        run_mapped(buffers, step, shared, bound);
        break;
    }
    return DM_OK;
}

typedef struct shared_run {
    worker *worker;
    size_t step;
    pthread_mutex_t lock; /* of error: any share's */
    dm_error error;
} shared_run;

static void run_part(void *context, unsigned part)
{
    shared_run *run = context;
    dm_error error = {0};
    if (run_share(run->worker, run->step, &run->worker->members[part], &error) == DM_OK)
        return;
    pthread_mutex_lock(&run->lock);
    run->error = error;
    pthread_mutex_unlock(&run->lock);
}

static bool is_shared(const network *net, size_t index)
{
    const plan_step *step = &net->plan->steps[index];
    if (is_convolution(step))
        return conv_step_is_shared(&net->steps[index].conv);
    return step->kind != STEP_GLOBAL_AVERAGE_POOL;
}

dm_status worker_run_step(worker *w, size_t index, dm_error *err)
{
    const network *net = w->network;
    const plan_step *step = &net->plan->steps[index];
    member *leader = &w->members[0];
    if (step->kind == STEP_NORM)
        step_norm_measure(&leader->buffers, step, &w->steps[index].in, &w->norm);
    if (net->threads == 1 || !is_shared(net, index))
        return run_share(w, index, leader, err);
    shared_run run = {.worker = w, .step = index};
    pthread_mutex_init(&run.lock, NULL);
    parallel_run(net->threads, run_part, &run);
    pthread_mutex_destroy(&run.lock);
    if (run.error.status != DM_OK && err)
        *err = run.error;
    return run.error.status;
}

dm_status worker_run(worker *w, dm_error *err)
{
    for (size_t i = 0; i < w->network->plan->n_steps; i++) {
        dm_status status = worker_run_step(w, i, err);
        if (status != DM_OK)
            return status;
    }
    return DM_OK;
}
