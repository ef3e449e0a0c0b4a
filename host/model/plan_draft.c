/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes to steps. A pointwise node joins the step that makes its input, if it is the only reader
 * and the size stays: it becomes a link of that step's chain. Of two operands the one that is made
 * later takes it, since the other is ready by then.
 */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/plan_draft.h"

int draft_joined(const plan_draft *d)
{
    return (int)d->g->n_values;
}

static const graph_port *output_of(const plan_draft *d)
{
    return &d->g->outputs[d->options->output];
}

static const graph_value *value_of(const plan_draft *d, int value)
{
    return &d->g->values[value > draft_joined(d) ? output_of(d)->value : value];
}

size_t draft_channels(const plan_draft *d, int value)
{
    return value == draft_joined(d) ? graph_input_channels(d->g) : value_of(d, value)->channels;
}

const char *draft_name(const plan_draft *d, int value)
{
    return value == draft_joined(d) ? "inputs" : value_of(d, value)->name;
}

bool is_convolution(const plan_step *step)
{
    return step->kind == STEP_CONV || step->kind == STEP_CONV_TRANSPOSE;
}

static bool same_shape(const plan_draft *d, int a, int b)
{
    return draft_channels(d, a) == draft_channels(d, b) &&
           !memcmp(d->sizes[a], d->sizes[b], sizeof d->sizes[a]);
}

static int input_of(const plan_draft *d, const graph_node *node, size_t i)
{
    return d->alias[node->inputs[i]];
}

/* ---- Steps ---------------------------------------------------------------------------------- */

static draft_step *add_step(plan_draft *d, step_kind kind, const graph_node *node, int in, int out)
{
    draft_step *draft = &d->steps[d->n_steps];
    *draft =
        (draft_step){.step = {.kind = kind,
                              .name = node ? node->name : draft_name(d, out),
                              .node = kind == STEP_POINTWISE || kind == STEP_COPY ? NULL : node,
                              .in = in,
                              .out = out}};
    d->producer[out] = (int)d->n_steps++;
    return draft;
}

static dm_status add_link(plan_draft *d, draft_step *draft, const chain_link *link)
{
    size_t n = draft->step.n_chain;
    chain_link *chain = realloc(draft->step.chain, (n + 1) * sizeof *chain);
    if (!chain)
        return error_memory(d->err, (n + 1) * sizeof *chain, "a plan");
    chain[n] = *link;
    draft->step.chain = chain;
    draft->step.n_chain = n + 1;
    return DM_OK;
}

/* The step that a pointwise operation from `in` to `out` can join; NULL for none. */
static draft_step *joinable(plan_draft *d, int in, int out)
{
    if (!d->options->optimise || d->producer[in] < 0 || d->uses[in] != 1 || !same_shape(d, in, out))
        return NULL;
    draft_step *draft = &d->steps[d->producer[in]];
    return draft->concat ? NULL : draft;
}

/* The step whose chain the node's operation belongs to: one that it joins, or a new one. */
static draft_step *chain_step(plan_draft *d, const graph_node *node, int in, bool join)
{
    draft_step *draft = join ? joinable(d, in, node->output) : NULL;
    if (!draft)
        return add_step(d, STEP_POINTWISE, node, in, node->output);
    draft->step.out = node->output;
    d->producer[node->output] = d->producer[in];
    return draft;
}

/* ---- Pointwise nodes ------------------------------------------------------------------------ */

static dm_status add_affine(plan_draft *d, const graph_node *node)
{
    size_t i = node->op != OP_BATCH_NORM && d->g->values[node->inputs[0]].is_weight ? 1 : 0;
    channel_affine affine = {0};
    chain_link link;
    dm_status status = affine_make(d, node, &affine);
    if (status != DM_OK)
        return status;
    draft_step *draft = chain_step(d, node, input_of(d, node, i), true);
    if (is_convolution(&draft->step) && !draft->step.n_chain) {
        status = affine_fold(d, draft, &affine);
    } else {
        status = affine_link(d, &affine, &link);
        if (status == DM_OK)
            status = add_link(d, draft, &link);
    }
    affine_free(&affine);
    return status;
}

static bool activation_link(const graph_node *node, chain_link *link)
{
    static const int links[OP_KIND_COUNT] = {
        [OP_RELU] = CHAIN_RELU,   [OP_LEAKY_RELU] = CHAIN_LEAKY_RELU,
        [OP_PRELU] = CHAIN_PRELU, [OP_ELU] = CHAIN_ELU,
        [OP_GELU] = CHAIN_GELU,   [OP_SIGMOID] = CHAIN_SIGMOID,
        [OP_TANH] = CHAIN_TANH,   [OP_SOFTPLUS] = CHAIN_SOFTPLUS,
    };
    if (!links[node->op]) /* 0 is CHAIN_ADD_TENSOR, which is no activation */
        return false;
    *link = (chain_link){.op = (chain_op)links[node->op], .tensor = -1, .alpha = node->alpha};
    if (node->op == OP_GELU && node->gelu_tanh)
        link->op = CHAIN_GELU_TANH;
    return true;
}

static dm_status add_activation(plan_draft *d, const graph_node *node, chain_link *link)
{
    dm_status status = DM_OK;
    if (link->op == CHAIN_PRELU)
        status =
            slope_link(d, &d->g->values[node->inputs[1]], draft_channels(d, node->output), link);
    if (status != DM_OK)
        return status;
    return add_link(d, chain_step(d, node, input_of(d, node, 0), true), link);
}

/* A link for each bound, of which there is one at least. */
static dm_status add_clip(plan_draft *d, const graph_node *node)
{
    chain_link link = {.op = CHAIN_AT_LEAST, .tensor = -1, .alpha = node->low};
    draft_step *draft = chain_step(d, node, input_of(d, node, 0), true);
    dm_status status = isfinite(node->low) ? add_link(d, draft, &link) : DM_OK;
    link.op = CHAIN_AT_MOST;
    link.alpha = node->high;
    if (status == DM_OK && isfinite(node->high))
        status = add_link(d, draft, &link);
    return status;
}

/* The whole of `value`, or one value of it along all three axes. */
static dm_status check_broadcast(plan_draft *d, const graph_node *node, int value)
{
    const size_t *size = d->sizes[value], *whole = d->sizes[node->output];
    bool one = size[0] == 1 && size[1] == 1 && size[2] == 1;
    if (one || !memcmp(size, whole, 3 * sizeof *size))
        return DM_OK;
    return error_set(d->err, DM_ERROR_UNSUPPORTED, NULL,
                     "resize the operand to the result's size in the graph",
                     "node '%.128s' (%s): '%.128s' has %zu x %zu x %zu voxels and the result "
                     "%zu x %zu x %zu (z, y, x); an operand of the same size or of one voxel is "
                     "possible",
                     node->name, op_name(node->op), draft_name(d, value), size[0], size[1], size[2],
                     whole[0], whole[1], whole[2]);
}

/* The operand that an operation runs on where it joins none: one that has the result's size, if
 * possible one that nobody else reads, because it can then be overwritten. */
static size_t running_operand(const plan_draft *d, const int operand[2], int out)
{
    if (!same_shape(d, operand[0], out))
        return 1;
    return same_shape(d, operand[1], out) && d->uses[operand[0]] > 1 && d->uses[operand[1]] == 1;
}

static dm_status add_arithmetic(plan_draft *d, const graph_node *node)
{
    int operand[2] = {input_of(d, node, 0), input_of(d, node, 1)};
    size_t i = d->producer[operand[1]] > d->producer[operand[0]];
    bool join = joinable(d, operand[i], node->output);
    if (!join)
        i = running_operand(d, operand, node->output);
    chain_link link = {.op = node->op == OP_ADD   ? CHAIN_ADD_TENSOR
                             : node->op == OP_MUL ? CHAIN_MUL_TENSOR
                             : i == 0             ? CHAIN_SUB_TENSOR
                                                  : CHAIN_RSUB_TENSOR,
                       .tensor = operand[1 - i]};
    dm_status status = check_broadcast(d, node, link.tensor);
    if (status != DM_OK)
        return status;
    return add_link(d, chain_step(d, node, operand[i], join), &link);
}

/* ---- Other nodes ---------------------------------------------------------------------------- */

static void add_plain(plan_draft *d, const graph_node *node)
{
    static const step_kind kinds[OP_KIND_COUNT] = {
        [OP_CONV] = STEP_CONV,
        [OP_CONV_TRANSPOSE] = STEP_CONV_TRANSPOSE,
        [OP_INSTANCE_NORM] = STEP_NORM,
        [OP_GROUP_NORM] = STEP_NORM,
        [OP_CONCAT] = STEP_COPY,
        [OP_MAX_POOL] = STEP_MAX_POOL,
        [OP_AVERAGE_POOL] = STEP_AVERAGE_POOL,
        [OP_GLOBAL_AVERAGE_POOL] = STEP_GLOBAL_AVERAGE_POOL,
        [OP_RESIZE] = STEP_RESIZE,
        [OP_PAD] = STEP_PAD,
        [OP_SLICE] = STEP_SLICE,
        [OP_IDENTITY] = STEP_COPY,
    };
    int in = input_of(d, node, 0);
    draft_step *draft = add_step(d, kinds[node->op], node, in, node->output);
    plan_step *step = &draft->step;
    if (node->op == OP_CONCAT)
        draft->concat = node;
    if (is_convolution(step)) {
        step->weight = d->g->values[node->inputs[1]].data;
        step->bias =
            node->n_inputs > 2 && node->inputs[2] >= 0 ? d->g->values[node->inputs[2]].data : NULL;
        d->conv_read[in] |= !conv_is_voxelwise(node);
    } else if (step->kind == STEP_NORM) {
        step->scale = d->g->values[node->inputs[1]].data;
        step->shift = d->g->values[node->inputs[2]].data;
    }
}

static dm_status add_node(plan_draft *d, const graph_node *node)
{
    chain_link link;
    if (!d->needed[node->output] || d->alias[node->output] != node->output)
        return DM_OK;
    if (node_is_affine(d->g, node))
        return add_affine(d, node);
    if (node->op == OP_ADD || node->op == OP_MUL || node->op == OP_SUB)
        return add_arithmetic(d, node);
    if (node->op == OP_CLIP)
        return add_clip(d, node);
    if (activation_link(node, &link))
        return add_activation(d, node, &link);
    add_plain(d, node);
    return DM_OK;
}

/* All inputs of the network in their order. */
static bool joins_inputs(const plan_draft *d, const graph_node *node)
{
    bool all = node->op == OP_CONCAT && node->n_inputs == d->g->n_inputs;
    for (size_t i = 0; all && i < node->n_inputs; i++)
        all = input_of(d, node, i) == d->g->inputs[i].value;
    return all;
}

/* Identity, and the concatenation of one tensor, are their input; the concatenation of all inputs is
 * the input tensor. */
static void find_aliases(plan_draft *d)
{
    for (size_t v = 0; v < d->n_values; v++)
        d->alias[v] = (int)v;
    for (size_t n = 0; n < d->g->n_nodes && d->options->optimise; n++) {
        const graph_node *node = &d->g->nodes[n];
        if (node->op == OP_IDENTITY || (node->op == OP_CONCAT && node->n_inputs == 1))
            d->alias[node->output] = input_of(d, node, 0);
        else if (joins_inputs(d, node))
            d->alias[node->output] = draft_joined(d);
    }
}

static void find_uses(plan_draft *d)
{
    graph_needed(d->g, output_of(d)->value, d->needed);
    for (size_t n = 0; n < d->g->n_nodes; n++) {
        const graph_node *node = &d->g->nodes[n];
        bool runs = d->needed[node->output] && d->alias[node->output] == node->output;
        for (size_t i = 0; i < node->n_inputs && runs; i++)
            if (node->inputs[i] >= 0)
                d->uses[input_of(d, node, i)]++;
    }
    d->output = d->alias[output_of(d)->value];
    d->uses[d->output]++;
}

/* Of several inputs, those that are read alone are taken out of the input tensor. First of all, so
 * that it need not be kept. */
static void take_inputs(plan_draft *d)
{
    const graph *g = d->g;
    size_t start = 0;
    d->input = g->n_inputs > 1 ? draft_joined(d) : g->inputs[0].value;
    for (size_t i = 0; i < g->n_inputs && g->n_inputs > 1; i++) {
        const graph_port *port = &g->inputs[i];
        graph_node *node = &d->plan->ports[i];
        *node = (graph_node){.op = OP_SLICE,
                             .name = g->values[port->value].name,
                             .output = port->value,
                             .kernel = {1, 1, 1},
                             .stride = {1, 1, 1},
                             .dilation = {1, 1, 1},
                             .groups = 1,
                             .slice_end = {INT_MAX, INT_MAX, INT_MAX},
                             .slice_step = {1, 1, 1},
                             .channel_begin = (int)start,
                             .channel_end = (int)(start + port->channels),
                             .channel_step = 1};
        start += port->channels;
        if (!d->uses[port->value])
            continue;
        add_step(d, STEP_SLICE, node, d->input, port->value);
        d->uses[d->input]++;
    }
}

/* The output is float32 and has memory of its own, so it is copied if it is the input, and in other
 * types if it is made of parts that somebody else may read. Nobody reads it: what does is not needed
 * for it. */
static void finish_output(plan_draft *d)
{
    int made = d->producer[d->output];
    bool converted = d->options->type != ELEMENT_F32;
    if (made >= 0 && !(converted && d->steps[made].concat))
        return;
    int copy = (int)d->n_values - 1;
    memcpy(d->sizes[copy], d->sizes[d->output], sizeof d->sizes[copy]);
    add_step(d, STEP_COPY, NULL, d->output, copy);
    d->output = copy;
}

dm_status draft_steps(plan_draft *d)
{
    find_aliases(d);
    find_uses(d);
    take_inputs(d);
    for (size_t n = 0; n < d->g->n_nodes; n++) {
        dm_status status = add_node(d, &d->g->nodes[n]);
        if (status != DM_OK)
            return status;
    }
    finish_output(d);
    return DM_OK;
}
