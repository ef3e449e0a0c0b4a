/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations that are affine per channel: BatchNormalization and arithmetic with a weight. Behind a
 * convolution they vanish into its weights,
 *     scale*(W*x + b) + shift = (scale*W)*x + (scale*b + shift),
 * elsewhere they are a link of a chain. Everything is computed in double and rounded once.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/plan_draft.h"

static const graph_value *weight_of(const graph *g, const graph_node *node, size_t input)
{
    return &g->values[node->inputs[input]];
}

static bool is_arithmetic(op_kind op)
{
    return op == OP_ADD || op == OP_MUL || op == OP_SUB;
}

bool node_is_affine(const graph *g, const graph_node *node)
{
    if (node->op == OP_BATCH_NORM)
        return true;
    return is_arithmetic(node->op) &&
           (weight_of(g, node, 0)->is_weight || weight_of(g, node, 1)->is_weight);
}

static void batch_norm(const graph *g, const graph_node *node, channel_affine *a)
{
    const float *gamma = weight_of(g, node, 1)->data, *beta = weight_of(g, node, 2)->data;
    const float *mean = weight_of(g, node, 3)->data, *variance = weight_of(g, node, 4)->data;
    for (size_t c = 0; c < a->channels; c++) {
        double deviation = sqrt((double)variance[c] + (double)node->epsilon);
        a->scale[c] = (double)gamma[c] / deviation;
        a->shift[c] = (double)beta[c] - (double)mean[c] * a->scale[c];
    }
}

static void arithmetic(const graph *g, const graph_node *node, channel_affine *a)
{
    bool first = weight_of(g, node, 0)->is_weight; /* w - x instead of x - w */
    const graph_value *w = weight_of(g, node, first ? 0 : 1);
    for (size_t c = 0; c < a->channels; c++) {
        double value = (double)w->data[w->count == 1 ? 0 : c];
        a->scale[c] = node->op == OP_MUL ? value : node->op == OP_SUB && first ? -1 : 1;
        a->shift[c] = node->op == OP_MUL ? 0 : node->op == OP_SUB && !first ? -value : value;
    }
}

dm_status affine_make(plan_draft *d, const graph_node *node, channel_affine *affine)
{
    affine->channels = draft_channels(d, node->output);
    affine->scale = array_alloc(affine->channels, 2 * sizeof(double));
    if (!affine->scale)
        return error_memory(d->err, affine->channels * 2 * sizeof(double), "a plan");
    affine->shift = affine->scale + affine->channels;
    if (node->op == OP_BATCH_NORM)
        batch_norm(d->g, node, affine);
    else
        arithmetic(d->g, node, affine);
    return DM_OK;
}

void affine_free(channel_affine *affine)
{
    free(affine->scale);
    affine->scale = affine->shift = NULL;
}

/* An array that the plan owns. plan_build made room for two per node. */
static dm_status own(plan_draft *d, size_t count, float **values)
{
    *values = array_zero(count, sizeof **values);
    if (!*values)
        return error_memory(d->err, count * sizeof **values, "a plan's weights");
    d->plan->owned[d->plan->n_owned++] = *values;
    return DM_OK;
}

/* Copies of weights and bias that may be changed; the graph's belong to the graph. */
static dm_status own_weights(plan_draft *d, draft_step *draft, size_t channels)
{
    const graph_value *weight = weight_of(d->g, draft->step.node, 1);
    if (draft->weight)
        return DM_OK;
    dm_status status = own(d, weight->count, &draft->weight);
    if (status == DM_OK)
        status = own(d, channels, &draft->bias);
    if (status != DM_OK)
        return status;
    memcpy(draft->weight, weight->data, weight->count * sizeof(float));
    if (draft->step.bias)
        memcpy(draft->bias, draft->step.bias, channels * sizeof(float));
    draft->step.weight = draft->weight;
    draft->step.bias = draft->bias;
    return DM_OK;
}

dm_status affine_fold(plan_draft *d, draft_step *draft, const channel_affine *affine)
{
    const graph_node *node = draft->step.node;
    const graph_value *weight = weight_of(d->g, node, 1);
    size_t channels = affine->channels, groups = (size_t)node->groups;
    dm_status status = own_weights(d, draft, channels);
    if (status != DM_OK)
        return status;
    /* Rows of equal output channel: (O, I/g, taps), transposed (I, O/g, taps). */
    bool transposed = draft->step.kind == STEP_CONV_TRANSPOSE;
    size_t rows = transposed ? weight->shape[0] * weight->shape[1] : channels;
    size_t length = weight->count / rows, per_group = channels / groups;
    size_t in_group = transposed ? weight->shape[0] / groups : 1;
    for (size_t r = 0; r < rows; r++) {
        size_t o = transposed ? r / per_group / in_group * per_group + r % per_group : r;
        for (size_t i = r * length; i < (r + 1) * length; i++)
            draft->weight[i] = (float)((double)draft->weight[i] * affine->scale[o]);
    }
    for (size_t o = 0; o < channels; o++)
        draft->bias[o] = (float)((double)draft->bias[o] * affine->scale[o] + affine->shift[o]);
    return DM_OK;
}

dm_status affine_link(plan_draft *d, const channel_affine *affine, chain_link *link)
{
    float *scale, *shift;
    dm_status status = own(d, affine->channels, &scale);
    if (status == DM_OK)
        status = own(d, affine->channels, &shift);
    if (status != DM_OK)
        return status;
    for (size_t c = 0; c < affine->channels; c++) {
        scale[c] = (float)affine->scale[c];
        shift[c] = (float)affine->shift[c];
    }
    *link = (chain_link){.op = CHAIN_AFFINE, .tensor = -1, .scale = scale, .shift = shift};
    return DM_OK;
}

dm_status slope_link(plan_draft *d, const graph_value *slope, size_t channels, chain_link *link)
{
    float *scale;
    dm_status status = own(d, channels, &scale);
    if (status != DM_OK)
        return status;
    for (size_t c = 0; c < channels; c++)
        scale[c] = slope->data[slope->count == 1 ? 0 : c];
    *link = (chain_link){.op = CHAIN_PRELU, .tensor = -1, .scale = scale};
    return DM_OK;
}
