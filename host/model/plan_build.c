/* SPDX-License-Identifier: Apache-2.0 */
/* From a graph to a plan: checks what a plan asks of both, then runs the passes in plan_draft.h. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/plan_draft.h"

size_t element_size(element_type type)
{
    return type == ELEMENT_F32 ? 4 : 2;
}

void plan_options_cpu(plan_options *options)
{
    /* oneDNN 2.6 and 3.2 fall to reference kernels, a hundredfold slower, on a pitch wider than the
     * channels. */
    options->conv_reads_views = false;
    options->conv_writes_views = false;
}

bool conv_is_voxelwise(const graph_node *node)
{
    bool transposed = node->op == OP_CONV_TRANSPOSE;
    bool voxelwise = node->op == OP_CONV || (transposed && node->groups == 1);
    for (int a = 0; a < 3; a++)
        voxelwise = voxelwise && node->kernel[a] == node->stride[a] && node->dilation[a] == 1 &&
                    (transposed || node->kernel[a] == 1) && !node->pad_begin[a] &&
                    !node->pad_end[a] && !node->output_padding[a];
    return voxelwise;
}

/* Along x, y and z in this order: "24 or 32 along x, ..." for the axes that do not fit. */
static void nearest_tiles(const size_t tile[3], const size_t stride[3], char *text, size_t size)
{
    text[0] = 0;
    for (int axis = 2; axis >= 0; axis--) {
        size_t used = strlen(text), below = tile[axis] / stride[axis] * stride[axis];
        const char *comma = used ? ", " : "";
        if (tile[axis] && tile[axis] % stride[axis] == 0)
            continue;
        if (below)
            snprintf(text + used, size - used, "%s%zu or %zu along %c", comma, below,
                     below + stride[axis], "zyx"[axis]);
        else
            snprintf(text + used, size - used, "%s%zu along %c", comma, stride[axis], "zyx"[axis]);
    }
}

static dm_status check_tile(const graph *g, const size_t tile[3], dm_error *err)
{
    size_t stride[3];
    char nearest[256], remedy[320];
    for (int a = 0; a < 3; a++) {
        if (tile[a] > GRAPH_MAX_EXTENT)
            return error_set(err, DM_ERROR_VALUE, NULL, "use a smaller tile",
                             "a tile of %zu x %zu x %zu voxels (x, y, z) exceeds %zu along %c",
                             tile[2], tile[1], tile[0], GRAPH_MAX_EXTENT, "zyx"[a]);
        stride[a] = g->total_stride[a] ? g->total_stride[a] : 1;
    }
    nearest_tiles(tile, stride, nearest, sizeof nearest);
    if (!*nearest)
        return DM_OK;
    snprintf(remedy, sizeof remedy, "use %s", nearest);
    return error_set(err, DM_ERROR_VALUE, NULL, remedy,
                     "a tile of %zu x %zu x %zu voxels (x, y, z) is not a multiple of %zu x %zu x "
                     "%zu, the total stride of network '%.128s'",
                     tile[2], tile[1], tile[0], stride[2], stride[1], stride[0], g->name);
}

dm_status plan_sizes(const graph *g, const size_t tile[3], size_t (*sizes)[3], dm_error *err)
{
    char reason[400];
    dm_status status = check_tile(g, tile, err);
    if (status != DM_OK || graph_sizes(g, tile, sizes, reason, sizeof reason))
        return status;
    return error_set(err, DM_ERROR_VALUE, NULL, "use the training patch or a larger tile",
                     "network '%.64s' is not defined for a tile of %zu x %zu x %zu voxels "
                     "(x, y, z): %s",
                     g->name, tile[2], tile[1], tile[0], reason);
}

static dm_status allocate(plan_draft *d)
{
    size_t n = d->n_values = d->g->n_values + 2, ports = d->g->n_inputs;
    d->needed = array_zero(n, sizeof *d->needed);
    d->sizes = array_zero(n, sizeof *d->sizes);
    d->alias = array_zero(n, sizeof *d->alias);
    d->uses = array_zero(n, sizeof *d->uses);
    d->producer = array_alloc(n, sizeof *d->producer);
    d->parent = array_alloc(n, sizeof *d->parent);
    d->start = array_zero(n, sizeof *d->start);
    d->tensor = array_alloc(n, sizeof *d->tensor);
    d->buffer = array_alloc(n, sizeof *d->buffer);
    d->conv_read = array_zero(n, sizeof *d->conv_read);
    if (d->sizes)
        memcpy(d->sizes[draft_joined(d)], d->options->tile, sizeof d->sizes[0]);
    d->steps = array_zero(d->g->n_nodes + ports + 1, sizeof *d->steps);
    d->plan->ports = array_zero(ports, sizeof *d->plan->ports);
    d->plan->owned = array_zero(d->g->n_nodes + 1, 2 * sizeof *d->plan->owned);
    if (!d->needed || !d->plan->ports || !d->sizes || !d->alias || !d->uses || !d->producer ||
        !d->parent || !d->start || !d->tensor || !d->buffer || !d->conv_read || !d->steps ||
        !d->plan->owned)
        return error_memory(d->err, n * sizeof *d->sizes, "a plan");
    for (size_t v = 0; v < n; v++)
        d->producer[v] = d->parent[v] = d->tensor[v] = d->buffer[v] = -1;
    return DM_OK;
}

static void draft_clear(plan_draft *d)
{
    for (size_t s = 0; s < d->n_steps; s++)
        free(d->steps[s].step.chain);
    free(d->needed);
    free(d->sizes);
    free(d->alias);
    free(d->uses);
    free(d->producer);
    free(d->parent);
    free(d->start);
    free(d->tensor);
    free(d->buffer);
    free(d->conv_read);
    free(d->steps);
    free(d->tensor_buffer);
    free(d->buffers);
}

dm_status plan_build(const graph *g, const plan_options *options, plan **result, dm_error *err)
{
    plan_draft draft = {.g = g, .options = options, .err = err};
    assert(options->output < g->n_outputs);
    *result = NULL;
    plan *p = draft.plan = array_zero(1, sizeof *p);
    if (!p)
        return error_memory(err, sizeof *p, "a plan");
    p->graph = g;
    p->options = *options;
    dm_status status = allocate(&draft);
    if (status == DM_OK)
        status = plan_sizes(g, options->tile, draft.sizes, err);
    if (status == DM_OK)
        status = draft_steps(&draft);
    if (status == DM_OK)
        status = draft_place(&draft);
    if (status == DM_OK)
        status = draft_arena(&draft);
    draft_clear(&draft);
    if (status != DM_OK) {
        plan_free(p);
        return status;
    }
    plan_cost(p);
    *result = p;
    return DM_OK;
}

void plan_free(plan *p)
{
    if (!p)
        return;
    for (size_t s = 0; s < p->n_steps; s++)
        free(p->steps[s].chain);
    for (size_t i = 0; i < p->n_owned; i++)
        free(p->owned[i]);
    free(p->steps);
    free(p->tensors);
    free(p->owned);
    free(p->ports);
    free(p);
}
