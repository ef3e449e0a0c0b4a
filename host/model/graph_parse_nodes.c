/* SPDX-License-Identifier: Apache-2.0 */
/* The graph's nodes: operator, names, inputs by value, attributes, output. */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/graph_ops.h"
#include "model/graph_parse.h"

/* The name of a node that makes `value`, for the message when it is used too early; NULL: none. */
static const char *maker_of(const graph_context *c, const char *value)
{
    size_t i, k;
    json_t *node, *output;
    json_array_foreach((json_t *)c->nodes, i, node)
    {
        json_array_foreach(json_object_get(node, "outputs"), k, output)
        {
            const char *name = json_string_value(output);
            if (name && !strcmp(name, value))
                return json_string_value(json_object_get(node, "name"));
        }
    }
    return NULL;
}

static dm_status unknown_input(graph_context *c, const char *name)
{
    const char *maker = maker_of(c, name);
    if (maker)
        return context_fail(c, DM_ERROR_FORMAT,
                            "list the nodes so that every input is made before it is used",
                            "input '%s' is used before node '%.255s' makes it: the nodes are out "
                            "of order or form a cycle",
                            name, maker);
    return context_fail(c, DM_ERROR_FORMAT, "correct the name, or export the network again",
                        "input '%s' is neither an input of the graph, nor a weight in this file, "
                        "nor the output of a node",
                        name);
}

/* Inputs after the first are weights for most operators; the first is never one, except where the
 * operands are equal in rank. */
static dm_status check_role(graph_context *c, const graph_node *node, size_t i)
{
    const op_info *info = &op_table[node->op];
    const graph_value *value = &c->g->values[node->inputs[i]];
    bool either = node->op == OP_ADD || node->op == OP_MUL || node->op == OP_SUB;
    bool wants_weight = i > 0 && info->weights_last;
    if (either || value->is_weight == wants_weight)
        return DM_OK;
    return context_bad(c, "input %zu, '%s', is %s; it must be %s", i + 1, value->name,
                       value->is_weight ? "a weight" : "computed",
                       wants_weight ? "a weight" : "computed by the graph");
}

static dm_status resolve_input(graph_context *c, graph_node *node, size_t i, const json_t *input)
{
    const char *name = json_string_value(input);
    if (!name)
        return context_bad(c, "input %zu is not a name", i + 1);
    if (!*name) {
        if (i >= op_table[node->op].min_inputs && node->op != OP_CONCAT)
            return DM_OK;
        return context_bad(c, "input %zu is left out, but %s needs it", i + 1, op_name(node->op));
    }
    dm_status status = context_name(c, input, "inputs", &name);
    if (status != DM_OK)
        return status;
    const json_t *id = json_object_get(c->ids, name);
    if (!id)
        return unknown_input(c, name);
    node->inputs[i] = (int)json_integer_value(id);
    c->used[node->inputs[i]] = true;
    return check_role(c, node, i);
}

static dm_status parse_inputs(graph_context *c, const json_t *inputs, graph_node *node)
{
    const op_info *info = &op_table[node->op];
    size_t n = json_array_size(inputs);
    if (!json_is_array(inputs) || n < info->min_inputs || n > info->max_inputs)
        return context_bad(c, "it has %zu inputs; %zu to %zu are possible", n, info->min_inputs,
                           info->max_inputs);
    node->n_inputs = node->op == OP_CONCAT ? n : info->max_inputs;
    node->inputs = array_alloc(node->n_inputs, sizeof *node->inputs);
    if (!node->inputs)
        return error_memory(c->err, node->n_inputs * sizeof *node->inputs, "a node's inputs");
    for (size_t i = 0; i < node->n_inputs; i++)
        node->inputs[i] = -1;
    for (size_t i = 0; i < n; i++) {
        dm_status status = resolve_input(c, node, i, json_array_get(inputs, i));
        if (status != DM_OK)
            return status;
    }
    return DM_OK;
}

static dm_status parse_output(graph_context *c, const json_t *outputs, graph_node *node)
{
    const char *name = NULL;
    size_t channels = 0;
    if (json_array_size(outputs) != 1)
        return context_bad(c, "\"outputs\" is not a list of one name");
    dm_status status = context_name(c, json_array_get(outputs, 0), "outputs", &name);
    if (status == DM_OK)
        status = node_channels(c, node, &channels);
    if (status == DM_OK)
        status = context_add_value(c, name, &node->output);
    if (status == DM_OK)
        c->g->values[node->output].channels = channels;
    return status;
}

static dm_status parse_operator(graph_context *c, const json_t *json, graph_node *node)
{
    const char *op = json_string_value(json_object_get(json, "op"));
    char known[512], remedy[600] = "this program handles: ";
    if (!op)
        return context_bad(c, "\"op\" is not a string");
    if (op_find(op, &node->op))
        return DM_OK;
    op_list(known, sizeof known);
    strncat(remedy, known, sizeof remedy - strlen(remedy) - 1);
    return context_fail(c, DM_ERROR_UNSUPPORTED, remedy, "unknown operator '%.64s'", op);
}

static dm_status parse_node(graph_context *c, const json_t *json, graph_node *node)
{
    const char *name = NULL;
    dm_status status = context_keys(c, json, "op name inputs outputs", "attributes");
    if (status == DM_OK)
        status = context_name(c, json_object_get(json, "name"), "name", &name);
    if (status != DM_OK)
        return status;
    context_at(c, "graph node '%s'", name);
    if (json_object_get(c->node_names, name))
        return context_bad(c, "another node has the same name");
    if (json_object_set_new(c->node_names, name, json_true()))
        return error_memory(c->err, strlen(name), "the list of nodes");
    status = context_copy(c, name, &node->name);
    if (status == DM_OK)
        status = parse_operator(c, json, node);
    if (status != DM_OK)
        return status;
    context_at(c, "graph node '%s' (%s)", name, op_name(node->op));
    status = parse_inputs(c, json_object_get(json, "inputs"), node);
    if (status == DM_OK)
        status = parse_attributes(c, json_object_get(json, "attributes"), node);
    if (status == DM_OK)
        status = parse_output(c, json_object_get(json, "outputs"), node);
    return status;
}

dm_status parse_nodes(graph_context *c)
{
    size_t i;
    json_t *json;
    json_array_foreach((json_t *)c->nodes, i, json)
    {
        graph_node *node = &c->g->nodes[c->g->n_nodes++];
        context_at(c, "graph node %zu", i + 1);
        dm_status status = parse_node(c, json, node);
        if (status != DM_OK)
            return status;
    }
    return DM_OK;
}
