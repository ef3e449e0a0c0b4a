/* SPDX-License-Identifier: Apache-2.0 */
/* What a graph takes and gives, and what it needs for that. */
#include "model/graph.h"

int graph_dose_output(const graph *g)
{
    int found = -1;
    for (size_t i = 0; i < g->n_outputs; i++) {
        if (g->outputs[i].quantity != DM_QUANTITY_DOSE_PER_ACTIVITY)
            continue;
        if (found >= 0)
            return -1;
        found = (int)i;
    }
    return found;
}

size_t graph_input_channels(const graph *g)
{
    size_t channels = 0;
    for (size_t i = 0; i < g->n_inputs; i++)
        channels += g->inputs[i].channels;
    return channels;
}

void graph_needed(const graph *g, int value, bool *needed)
{
    for (size_t v = 0; v < g->n_values; v++)
        needed[v] = false;
    needed[value] = true;
    for (size_t n = g->n_nodes; n-- > 0;) {
        const graph_node *node = &g->nodes[n];
        for (size_t i = 0; needed[node->output] && i < node->n_inputs; i++)
            if (node->inputs[i] >= 0)
                needed[node->inputs[i]] = true;
    }
}
