/* SPDX-License-Identifier: Apache-2.0 */
/* From the graph's JSON and the container's tensors to a validated `graph`. */
#ifndef DOSEMAP_MODEL_GRAPH_PARSE_H
#define DOSEMAP_MODEL_GRAPH_PARSE_H

#include "model/graph_context.h"
#include "model/safetensors.h"

/* `g` is filled, or cleared on failure. */
dm_status graph_parse(const json_t *root, const safetensors *weights, const char *path, graph *g,
                      dm_error *err);
void graph_clear(graph *g);

/* The parts, in files of their own: */

/* graph_parse_nodes.c: c->nodes into g->nodes, each with its output value. */
dm_status parse_nodes(graph_context *c);

/* graph_parse_attributes.c: reads and checks what belongs to the node alone. */
dm_status parse_attributes(graph_context *c, const json_t *attributes, graph_node *node);

/* graph_channels.c: checks the weights of a node against its input, and finds the channels of its
 * output; resolves a Slice along channels. */
dm_status node_channels(graph_context *c, graph_node *node, size_t *channels);

/* graph_shapes.c: checks the training patch and fills total_stride, which outputs are voxelwise, and
 * per_tile_statistics. */
dm_status infer_shapes(graph_context *c);

#endif
