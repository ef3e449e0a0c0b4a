/* SPDX-License-Identifier: Apache-2.0 */
/* What the graph's fuzz target and its mutator share. */
#ifndef DOSEMAP_TESTS_FUZZ_GRAPH_H
#define DOSEMAP_TESTS_FUZZ_GRAPH_H

#include <jansson.h>

#include "model/graph.h"

/* The graph of an input with weights made for it; false if it is refused. graph_clear it. */
bool fuzz_graph_parse(const json_t *root, graph *g);

/* Makes the channels of weights, groups and outputs follow from the nodes in front of them, and
 * drops the weights that no node reads: what a mutation of one node breaks everywhere else. */
void fuzz_graph_repair(json_t *root);

#endif
