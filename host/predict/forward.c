/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/forward.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/available_memory.h"
#include "base/cores.h"
#include "base/error.h"
#include "predict/predictor.h"

/* Patches of inputs and outputs that are in memory at a time, beside at least one. */
#define GROUP_BYTES ((size_t)64 << 20)

void dm_forward_options_init(dm_forward_options *options)
{
    *options = (dm_forward_options){.precision = DM_PRECISION_FLOAT32};
}

static const char *port_name(const graph *g, const graph_port *port)
{
    return g->values[port->value].name;
}

size_t patch_elements(const dm_patches *p)
{
    return p->channels * p->size[0] * p->size[1] * p->size[2];
}

/* ---- Inputs and outputs --------------------------------------------------------------------- */

static void list_ports(const graph *g, const graph_port *ports, size_t n, char *text, size_t size)
{
    text[0] = 0;
    for (size_t i = 0; i < n; i++) {
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s'%s'", i ? ", " : "", port_name(g, &ports[i]));
    }
}

static dm_status find_inputs(const graph *g, const dm_patches *inputs, size_t n_inputs,
                             const char *where, size_t *order, dm_error *err)
{
    char known[300], remedy[400];
    list_ports(g, g->inputs, g->n_inputs, known, sizeof known);
    snprintf(remedy, sizeof remedy, "the network's inputs are %s", known);
    for (size_t p = 0; p < g->n_inputs; p++)
        order[p] = n_inputs;
    for (size_t i = 0; i < n_inputs; i++) {
        size_t p = 0;
        while (p < g->n_inputs && strcmp(inputs[i].name, port_name(g, &g->inputs[p])))
            p++;
        if (p == g->n_inputs)
            return error_set(err, DM_ERROR_VALUE, where, remedy,
                             "'%.128s' is no input of network '%.128s'", inputs[i].name, g->name);
        if (order[p] < n_inputs)
            return error_set(err, DM_ERROR_VALUE, where, remedy,
                             "the input '%.128s' is given twice", inputs[i].name);
        order[p] = i;
    }
    for (size_t p = 0; p < g->n_inputs; p++)
        if (order[p] == n_inputs)
            return error_set(err, DM_ERROR_VALUE, where, remedy, "the input '%.128s' is missing",
                             port_name(g, &g->inputs[p]));
    return DM_OK;
}

static dm_status check_input(const graph *g, size_t p, const dm_patches *input,
                             const dm_patches *first, const char *where, dm_error *err)
{
    const size_t *s = input->size;
    size_t elements = input->count;
    if (input->channels != g->inputs[p].channels)
        return error_set(err, DM_ERROR_VALUE, where, "give it the channels that the network has",
                         "the input '%.128s' has %zu channels; network '%.128s' takes %zu",
                         input->name, input->channels, g->name, g->inputs[p].channels);
    if (input->count != first->count || memcmp(s, first->size, sizeof input->size))
        return error_set(err, DM_ERROR_VALUE, where, "give all inputs the same patches",
                         "the input '%.128s' has %zu patches of %zu x %zu x %zu voxels, '%.128s' "
                         "%zu of %zu x %zu x %zu",
                         input->name, input->count, s[0], s[1], s[2], first->name, first->count,
                         first->size[0], first->size[1], first->size[2]);
    bool fits = size_multiply(elements, input->channels, &elements);
    for (int a = 0; a < 3; a++)
        fits = fits && size_multiply(elements, s[a], &elements);
    if (!fits || elements == 0 || elements > SIZE_MAX / 8)
        return error_set(err, DM_ERROR_VALUE, where, "give patches with voxels that fit in memory",
                         "the input '%.128s' has %zu patches of %zu x %zu x %zu voxels",
                         input->name, input->count, s[0], s[1], s[2]);
    return DM_OK;
}

/* The network's own axes <-> z, y, x. */
static void turn_axes(const graph *g, const size_t from[3], size_t to[3])
{
    for (int a = 0; a < 3; a++)
        to[a] = from[g->axes_xyz ? 2 - a : a];
}

dm_status forward_shapes(const dm_model *model, const dm_patches *inputs, size_t n_inputs,
                         const char *where, size_t *order, dm_patches *outputs, dm_error *err)
{
    const graph *g = &model->graph;
    size_t tile[3];
    dm_status status = find_inputs(g, inputs, n_inputs, where, order, err);
    for (size_t p = 0; p < g->n_inputs && status == DM_OK; p++)
        status = check_input(g, p, &inputs[order[p]], &inputs[order[0]], where, err);
    if (status != DM_OK)
        return status;
    size_t(*sizes)[3] = array_alloc(g->n_values, sizeof *sizes);
    if (!sizes)
        return error_memory(err, g->n_values * sizeof *sizes, "the sizes of the network");
    turn_axes(g, inputs[0].size, tile);
    status = plan_sizes(g, tile, sizes, err);
    for (size_t o = 0; o < g->n_outputs && status == DM_OK; o++) {
        const graph_port *port = &g->outputs[o];
        outputs[o] = (dm_patches){
            .name = port_name(g, port), .count = inputs[0].count, .channels = port->channels};
        turn_axes(g, sizes[port->value], outputs[o].size);
    }
    free(sizes);
    if (status != DM_OK && where)
        error_at(err, where);
    return status;
}

/* ---- One output ----------------------------------------------------------------------------- */

typedef struct forward_job {
    const dm_model *model;
    const forward_ends *ends;
    const dm_forward_options *options;
    const backend *backend;
    dm_precision precision;
    unsigned threads, at_once; /* patches at the same time, which threads share */
    size_t tile[3];            /* z, y, x */
    size_t count, group;
    size_t output;
    plan *plan;
    void *state;
    size_t n_in, n_out;       /* elements of a patch of the plan's tensors */
    float *windows, *results; /* [group] as the backend has them */
    float *patch;             /* one, of any port */
} forward_job;

static void clear(forward_job *j)
{
    if (j->state)
        j->backend->destroy(j->state);
    plan_free(j->plan);
    free(j->windows);
    free(j->results);
    free(j->patch);
    j->state = NULL;
    j->plan = NULL;
    j->windows = j->results = j->patch = NULL;
}

static size_t elements(const plan_tensor *t)
{
    return t->dim[0] * t->dim[1] * t->dim[2] * t->channels;
}

static double memory_of(const forward_job *j)
{
    double arenas = j->backend == &cpu_backend ? (double)j->plan->arena_bytes : 0;
    return j->at_once * arenas + (double)j->group * (double)(j->n_in + j->n_out) * sizeof(float);
}

/* Fewer patches at the same time where memory is short. */
static dm_status check_memory(forward_job *j, dm_error *err)
{
    char needs[SIZE_TEXT], has[SIZE_TEXT];
    double available = (double)available_memory();
    while (memory_of(j) > available && j->at_once > 1)
        j->at_once /= 2;
    if (memory_of(j) <= available)
        return DM_OK;
    return error_set(err, DM_ERROR_MEMORY, NULL, "use smaller patches",
                     "a patch of %zu x %zu x %zu voxels (x, y, z) takes %s; this process can have "
                     "%s",
                     j->tile[2], j->tile[1], j->tile[0], size_text(memory_of(j), needs),
                     size_text(available, has));
}

static dm_status prepare(forward_job *j, dm_error *err)
{
    plan_options options = {.tile = {j->tile[0], j->tile[1], j->tile[2]},
                            .type = precision_element(j->precision),
                            .optimise = true,
                            .direct = j->options->convolutions == DM_CONVOLUTIONS_LIBRARY,
                            .output = j->output};
    backend_options wanted = {.device = j->options->device ? j->options->device : "auto",
                              .precision = j->precision,
                              .threads = j->threads,
                              .convolutions = j->options->convolutions};
    dm_status status = backend_plan(j->backend, &j->model->graph, &options, &j->plan, err);
    if (status != DM_OK)
        return status;
    j->n_in = elements(&j->plan->tensors[j->plan->input]);
    j->n_out = elements(&j->plan->tensors[j->plan->output]);
    j->group = GROUP_BYTES / sizeof(float) / (j->n_in + j->n_out);
    j->group = j->group < 1 ? 1 : j->group > j->count ? j->count : j->group;
    bool host = j->backend == &cpu_backend;
    j->at_once = !host ? 1 : j->threads < j->group ? j->threads : (unsigned)j->group;
    status = check_memory(j, err);
    if (status != DM_OK)
        return status;
    wanted.at_once = j->at_once;
    j->windows = array_alloc(j->group * j->n_in, sizeof *j->windows);
    j->results = array_alloc(j->group * j->n_out, sizeof *j->results);
    j->patch = array_alloc(j->n_in > j->n_out ? j->n_in : j->n_out, sizeof *j->patch);
    if (!j->windows || !j->results || !j->patch)
        return error_memory(err, j->group * (j->n_in + j->n_out) * sizeof(float), "patches");
    return j->backend->create(j->plan, &wanted, &j->state, err);
}

/* ---- Patches -------------------------------------------------------------------------------- */

/* How the two layouts of a patch lie to each other: (c, i, j, k) in the network's own axes, and
 * (z, y, x, c) with other channels beside. */
typedef struct patch_layout {
    size_t channels, size[3]; /* along the network's own axes */
    size_t step[3];           /* of i, j, k in the other one, in elements */
} patch_layout;

static patch_layout layout_of(const graph *g, size_t channels, const size_t dim[3], size_t pitch)
{
    patch_layout l = {.channels = channels};
    const size_t zyx[3] = {dim[1] * dim[2] * pitch, dim[2] * pitch, pitch};
    turn_axes(g, dim, l.size);
    turn_axes(g, zyx, l.step);
    return l;
}

static void to_window(const patch_layout *l, const float *patch, float *window)
{
    for (size_t c = 0; c < l->channels; c++)
        for (size_t i = 0; i < l->size[0]; i++)
            for (size_t j = 0; j < l->size[1]; j++)
                for (size_t k = 0; k < l->size[2]; k++)
                    window[i * l->step[0] + j * l->step[1] + k * l->step[2] + c] = *patch++;
}

static void from_window(const patch_layout *l, const float *window, float *patch)
{
    for (size_t c = 0; c < l->channels; c++)
        for (size_t i = 0; i < l->size[0]; i++)
            for (size_t j = 0; j < l->size[1]; j++)
                for (size_t k = 0; k < l->size[2]; k++)
                    *patch++ = window[i * l->step[0] + j * l->step[1] + k * l->step[2] + c];
}

static dm_status check_finite(const patch_layout *l, const float *patch, const char *what,
                              const char *name, size_t index, const char *where, const char *remedy,
                              dm_error *err)
{
    size_t n = l->channels * l->size[0] * l->size[1] * l->size[2], at = 0;
    while (at < n && isfinite(patch[at]))
        at++;
    if (at == n)
        return DM_OK;
    size_t k = at % l->size[2], j = at / l->size[2] % l->size[1];
    size_t i = at / l->size[2] / l->size[1] % l->size[0];
    return error_set(err, DM_ERROR_VALUE, where, remedy,
                     "the %s '%.128s' is %g in patch %zu, channel %zu, voxel (%zu, %zu, %zu)", what,
                     name, (double)patch[at], index, at / (n / l->channels), i, j, k);
}

static dm_status fill_window(const forward_job *j, size_t patch, float *window, dm_error *err)
{
    const graph *g = &j->model->graph;
    size_t channels = graph_input_channels(g), start = 0;
    dm_status status = DM_OK;
    for (size_t p = 0; p < g->n_inputs && status == DM_OK; p++) {
        const patch_layout l = layout_of(g, g->inputs[p].channels, j->tile, channels);
        status = j->ends->read(j->ends->context, p, patch, j->patch, err);
        if (status == DM_OK)
            status = check_finite(&l, j->patch, "input", port_name(g, &g->inputs[p]), patch,
                                  j->ends->where, "replace what is not finite", err);
        if (status == DM_OK)
            to_window(&l, j->patch, window + start);
        start += g->inputs[p].channels;
    }
    return status;
}

static dm_status take_result(const forward_job *j, size_t patch, const float *result, dm_error *err)
{
    const graph *g = &j->model->graph;
    const plan_tensor *out = &j->plan->tensors[j->plan->output];
    const patch_layout l = layout_of(g, out->channels, out->dim, out->channels);
    from_window(&l, result, j->patch);
    dm_status status =
        check_finite(&l, j->patch, "output", port_name(g, &g->outputs[j->output]), patch,
                     j->model->path, "check the inputs' values, and try --precision float32", err);
    if (status == DM_OK)
        status = j->ends->write(j->ends->context, j->output, patch, j->patch, j->n_out, err);
    return status;
}

/* ---- Running -------------------------------------------------------------------------------- */

static dm_status report(const forward_job *j, size_t done, dm_error *err)
{
    const dm_forward_options *o = j->options;
    double outputs = (double)j->model->graph.n_outputs;
    double share = ((double)j->output + (double)done / (double)j->count) / outputs;
    if (o->progress && o->progress(o->progress_user, share, "network"))
        return error_set(err, DM_CANCELLED, NULL, NULL, "cancelled");
    return DM_OK;
}

static dm_status run_group(forward_job *j, size_t first, dm_error *err)
{
    size_t n = j->count - first < j->group ? j->count - first : j->group;
    measure_result none = {0};
    const measure_request request = {
        .windows = j->windows, .n_windows = n, .outputs = j->results, .job_windows = j->group};
    dm_status status = DM_OK;
    for (size_t i = 0; i < n && status == DM_OK; i++)
        status = fill_window(j, first + i, j->windows + i * j->n_in, err);
    if (status == DM_OK)
        status = j->backend->measure(j->state, &request, &none, err);
    measure_clear(&none);
    for (size_t i = 0; i < n && status == DM_OK; i++)
        status = take_result(j, first + i, j->results + i * j->n_out, err);
    return status == DM_OK ? report(j, first + n, err) : status;
}

static dm_status check_options(const dm_forward_options *o, dm_error *err)
{
    if ((unsigned)o->precision > DM_PRECISION_FP16)
        return error_set(err, DM_ERROR_VALUE, NULL, "use one of the listed precisions",
                         "there is no precision number %d", (int)o->precision);
    if ((unsigned)o->convolutions > DM_CONVOLUTIONS_OWN)
        return error_set(err, DM_ERROR_VALUE, NULL, "use auto, library or own",
                         "there is no choice of convolutions number %d", (int)o->convolutions);
    return DM_OK;
}

static dm_status choose_backend(forward_job *j, dm_error *err)
{
    const char *device = j->options->device ? j->options->device : "auto";
    dm_status status = backend_select(device, j->options->convolutions, &j->backend, err);
    if (status != DM_OK || j->backend->supports(device, j->precision))
        return status;
    return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use --precision float32",
                     "precision %s is not something the device '%s' does natively",
                     precision_name(j->precision), j->backend->name);
}

dm_status forward_run(const dm_model *model, const size_t size[3], size_t count,
                      const dm_forward_options *options, const forward_ends *ends, dm_error *err)
{
    forward_job j = {.model = model, .ends = ends, .options = options, .count = count};
    j.precision =
        options->precision == DM_PRECISION_AUTO ? DM_PRECISION_FLOAT32 : options->precision;
    j.threads = cores_or(options->threads);
    turn_axes(&model->graph, size, j.tile);
    dm_status status = check_options(options, err);
    if (status == DM_OK)
        status = choose_backend(&j, err);
    for (; j.output < model->graph.n_outputs && status == DM_OK; j.output++) {
        status = prepare(&j, err);
        for (size_t first = 0; first < count && status == DM_OK; first += j.group)
            status = run_group(&j, first, err);
        clear(&j);
    }
    if (status != DM_OK)
        error_at(err, model->path);
    return status;
}
