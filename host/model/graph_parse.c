/* SPDX-License-Identifier: Apache-2.0 */
/* The graph's head, its inputs and outputs, and the weights; nodes are in graph_parse_nodes.c. */
#include "model/graph_parse.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "model/graph_ops.h"

#define MAX_NODES 4096
#define MAX_PORTS 16
#define MAX_PATCH 1024
#define MAX_UNIT 64

/* "RAS" and the like: one letter of each pair, in any order; or "stored". */
static bool orientation_known(const char *text)
{
    static const char pairs[] = "RLAPSI";
    unsigned seen = 0;
    if (!strcmp(text, "stored"))
        return true;
    for (size_t i = 0; i < 3; i++) {
        const char *letter = text[i] ? strchr(pairs, text[i]) : NULL;
        if (!letter)
            return false;
        seen |= 1u << ((letter - pairs) / 2);
    }
    return seen == 7 && !text[3];
}

static dm_status parse_axes(graph_context *c, const json_t *root)
{
    graph *g = c->g;
    const char *axes = json_string_value(json_object_get(root, "spatial_axes"));
    const char *orientation = json_string_value(json_object_get(root, "orientation"));
    if (!axes || (strcmp(axes, "xyz") && strcmp(axes, "zyx")))
        return context_bad(c, "\"spatial_axes\" is '%.32s'; it can be 'xyz' or 'zyx'",
                           axes ? axes : "not a string");
    if (!orientation || !orientation_known(orientation))
        return context_bad(c,
                           "\"orientation\" is '%.32s'; it can be three letters, one each of R or "
                           "L, A or P, S or I, or 'stored'",
                           orientation ? orientation : "not a string");
    g->axes_xyz = !strcmp(axes, "xyz");
    memcpy(g->orientation, orientation, strlen(orientation) + 1);
    return DM_OK;
}

static dm_status parse_head(graph_context *c, const json_t *root)
{
    graph *g = c->g;
    const json_t *version = json_object_get(root, "graph_version");
    const char *name = NULL;
    long patch[3];
    if (!json_is_integer(version))
        return context_bad(c, "\"graph_version\" is missing or not an integer");
    if (json_integer_value(version) != 1)
        return context_fail(c, DM_ERROR_UNSUPPORTED, "use a newer dosemap, or export it again",
                            "\"graph_version\" is %" JSON_INTEGER_FORMAT "; this program reads 1",
                            json_integer_value(version));
    g->graph_version = 1;
    dm_status status = context_keys(c, root,
                                    "graph_version name spatial_axes orientation patch_size "
                                    "voxel_size_mm inputs outputs nodes",
                                    "");
    if (status == DM_OK)
        status = context_name(c, json_object_get(root, "name"), "name", &name);
    if (status == DM_OK)
        status = context_copy(c, name, &g->name);
    if (status == DM_OK)
        status = parse_axes(c, root);
    if (status == DM_OK)
        status = context_integers(c, json_object_get(root, "patch_size"), "patch_size", 3, 1,
                                  MAX_PATCH, patch);
    if (status != DM_OK)
        return status;
    for (size_t i = 0; i < 3; i++)
        g->patch[i] = (size_t)patch[i];
    const json_t *voxel = json_object_get(root, "voxel_size_mm");
    g->has_voxel_mm = !json_is_null(voxel);
    if (!g->has_voxel_mm)
        return DM_OK;
    return context_numbers(c, voxel, "voxel_size_mm", 3, 0.01, 1000, g->voxel_mm);
}

static dm_status add_weight(graph_context *c, const safetensors *weights,
                            const stored_tensor *tensor)
{
    int id = -1;
    dm_status status = context_add_value(c, tensor->name, &id);
    if (status != DM_OK)
        return status;
    graph_value *value = &c->g->values[id];
    value->is_weight = true;
    value->rank = tensor->rank;
    value->count = tensor->count;
    memcpy(value->shape, tensor->shape, sizeof value->shape);
    return safetensors_values(weights, tensor, c->path, &value->data, c->err);
}

/* The last three axes x, y, z -> z, y, x. */
static dm_status reverse_kernel(graph_context *c, graph_value *value)
{
    size_t nx = value->shape[2], ny = value->shape[3], nz = value->shape[4];
    size_t voxels = nx * ny * nz, kernels = value->count / voxels;
    float *turned = array_alloc(value->count, sizeof *turned), *to = turned;
    if (!turned)
        return error_memory(c->err, value->count * sizeof *turned, value->name);
    for (size_t k = 0; k < kernels; k++)
        for (size_t z = 0; z < nz; z++)
            for (size_t y = 0; y < ny; y++)
                for (size_t x = 0; x < nx; x++)
                    *to++ = value->data[k * voxels + (x * ny + y) * nz + z];
    free(value->data);
    value->data = turned;
    value->shape[2] = nz;
    value->shape[4] = nx;
    return DM_OK;
}

/* Tensors of five dimensions are kernels, or (1, C, 1, 1, 1), which turns into itself. */
static dm_status add_weights(graph_context *c, const safetensors *weights)
{
    for (size_t i = 0; i < weights->n_tensors; i++) {
        dm_status status = add_weight(c, weights, &weights->tensors[i]);
        if (status == DM_OK && c->g->axes_xyz && weights->tensors[i].rank == 5)
            status = reverse_kernel(c, &c->g->values[c->g->n_values - 1]);
        if (status != DM_OK)
            return status;
    }
    return DM_OK;
}

/* Of the quantity "other": any. */
static dm_status parse_unit(graph_context *c, const json_t *json, graph_port *port)
{
    const char *unit = NULL;
    dm_status status = context_name(c, json, "unit", &unit);
    if (status != DM_OK)
        return status;
    if (strlen(unit) > MAX_UNIT)
        return context_bad(c, "\"unit\" has %zu bytes; it can have %d", strlen(unit), MAX_UNIT);
    port->quantity = DM_QUANTITY_OTHER;
    return context_copy(c, unit, &port->unit);
}

static dm_status parse_quantity(graph_context *c, const json_t *json, graph_port *port)
{
    static const struct {
        const char *name, *unit;
        dm_quantity quantity;
    } known[] = {{"uptake", "g/mL", DM_QUANTITY_UPTAKE},
                 {"suv", "g/mL", DM_QUANTITY_SUV},
                 {"hu", "HU", DM_QUANTITY_HU},
                 {"dose_per_activity", "Gy/GBq", DM_QUANTITY_DOSE_PER_ACTIVITY}};
    const char *quantity = json_string_value(json_object_get(json, "quantity"));
    const char *unit = json_string_value(json_object_get(json, "unit"));
    if (quantity && !strcmp(quantity, "other"))
        return parse_unit(c, json_object_get(json, "unit"), port);
    for (size_t i = 0; quantity && i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(quantity, known[i].name))
            continue;
        if (!unit || strcmp(unit, known[i].unit))
            return context_bad(c, "\"unit\" is '%.32s'; '%s' is in %s",
                               unit ? unit : "not a string", quantity, known[i].unit);
        port->quantity = known[i].quantity;
        return context_copy(c, unit, &port->unit);
    }
    return context_fail(c, DM_ERROR_UNSUPPORTED, "name the quantity as weights/FORMAT.md does",
                        "\"quantity\" is '%.32s'; it can be uptake, suv, hu, dose_per_activity, "
                        "other",
                        quantity ? quantity : "not a string");
}

static dm_status parse_step(graph_context *c, const json_t *json, intensity_step *step)
{
    static const struct {
        const char *name;
        intensity_kind kind;
    } plain[] = {{"log1p", INTENSITY_LOG1P},
                 {"expm1", INTENSITY_EXPM1},
                 {"sqrt", INTENSITY_SQRT},
                 {"square", INTENSITY_SQUARE}};
    double x[2] = {0, 0};
    dm_status status = DM_OK;
    size_t keys = json_object_size(json);
    if (keys == 2 && json_object_get(json, "scale") && json_object_get(json, "offset")) {
        step->kind = INTENSITY_SCALE;
        status = context_number(c, json_object_get(json, "scale"), "scale", -FLT_MAX, FLT_MAX, x);
        if (status == DM_OK)
            status = context_number(c, json_object_get(json, "offset"), "offset", -FLT_MAX, FLT_MAX,
                                    x + 1);
        if (status == DM_OK && (float)x[0] == 0)
            status = context_bad(c, "\"scale\" is 0");
    } else if (keys == 1 && json_object_get(json, "clip")) {
        step->kind = INTENSITY_CLIP;
        status = context_numbers(c, json_object_get(json, "clip"), "clip", 2, -FLT_MAX, FLT_MAX, x);
        if (status == DM_OK && x[0] >= x[1])
            status = context_bad(c, "\"clip\" is [%g, %g]; the first must be smaller", x[0], x[1]);
    } else {
        size_t i = 0;
        while (i < 4 && !(keys == 1 && json_is_true(json_object_get(json, plain[i].name))))
            i++;
        if (i == 4)
            return context_bad(c, "a step of \"intensity\" is none of: scale and offset, clip, "
                                  "log1p, expm1, sqrt, square (true)");
        step->kind = plain[i].kind;
    }
    step->a = (float)x[0];
    step->b = (float)x[1];
    return status;
}

static dm_status parse_intensity(graph_context *c, const json_t *json, intensity_transform *to)
{
    size_t i;
    json_t *step;
    if (!json_is_array(json) || json_array_size(json) > INTENSITY_MAX_STEPS)
        return context_bad(c, "\"intensity\" is not a list of at most %d steps",
                           INTENSITY_MAX_STEPS);
    json_array_foreach((json_t *)json, i, step)
    {
        dm_status status = parse_step(c, step, &to->step[i]);
        if (status != DM_OK)
            return status;
        to->n++;
    }
    return DM_OK;
}

static dm_status parse_port(graph_context *c, const json_t *json, graph_port *port,
                            const char **name)
{
    long channels = 0;
    dm_status status = context_keys(c, json, "name quantity unit channels intensity", "");
    if (status == DM_OK)
        status = context_name(c, json_object_get(json, "name"), "name", name);
    /* `forward` names tensors of a safetensors file so. */
    if (status == DM_OK && !strcmp(*name, "__metadata__"))
        status = context_bad(c, "\"name\" is __metadata__, which safetensors keeps for itself");
    if (status == DM_OK)
        status = parse_quantity(c, json, port);
    if (status == DM_OK)
        status = context_integer(c, json_object_get(json, "channels"), "channels", 1,
                                 (long)GRAPH_MAX_CHANNELS, &channels);
    if (status == DM_OK)
        status = parse_intensity(c, json_object_get(json, "intensity"), &port->intensity);
    port->channels = (size_t)channels;
    return status;
}

static dm_status parse_input(graph_context *c, const json_t *json, graph_port *port)
{
    const char *name = NULL;
    dm_status status = parse_port(c, json, port, &name);
    if (status == DM_OK)
        status = context_add_value(c, name, &port->value);
    if (status == DM_OK)
        c->g->values[port->value].channels = port->channels;
    return status;
}

static dm_status parse_output(graph_context *c, const json_t *json, graph_port *port)
{
    const char *name = NULL;
    const graph *g = c->g;
    dm_status status = parse_port(c, json, port, &name);
    if (status != DM_OK)
        return status;
    const json_t *id = json_object_get(c->ids, name);
    port->value = id ? (int)json_integer_value(id) : 0;
    if (!id || g->values[port->value].is_weight)
        return context_bad(c, "no node makes the output '%s', nor is it an input", name);
    for (const graph_port *other = g->outputs; other < port; other++)
        if (other->value == port->value)
            return context_bad(c, "'%s' is an output already", name);
    if (g->values[port->value].channels != port->channels)
        return context_bad(c, "'%s' has %zu channels, not %zu as \"channels\" says", name,
                           g->values[port->value].channels, port->channels);
    return DM_OK;
}

typedef dm_status port_parser(graph_context *c, const json_t *json, graph_port *port);

static dm_status parse_ports(graph_context *c, const json_t *list, const char *kind,
                             port_parser *parse, graph_port **ports, size_t *n_ports)
{
    size_t i, n = json_array_size(list);
    json_t *json;
    if (n < 1 || n > MAX_PORTS)
        return context_bad(c, "\"%ss\" is not a list of 1 to %d", kind, MAX_PORTS);
    *ports = array_zero(n, sizeof **ports);
    if (!*ports)
        return error_memory(c->err, n * sizeof **ports, kind);
    *n_ports = n;
    json_array_foreach((json_t *)list, i, json)
    {
        context_at(c, "graph %s %zu", kind, i + 1);
        dm_status status = parse(c, json, &(*ports)[i]);
        if (status != DM_OK)
            return status;
    }
    context_at(c, "graph");
    return DM_OK;
}

static dm_status check_used(graph_context *c)
{
    for (size_t i = 0; i < c->g->n_values; i++)
        if (c->g->values[i].is_weight && !c->used[i])
            return context_fail(c, DM_ERROR_FORMAT,
                                "remove the tensor, or export the network again",
                                "no node uses the tensor '%s'", c->g->values[i].name);
    return DM_OK;
}

static dm_status allocate(graph_context *c, const json_t *root, const safetensors *weights)
{
    graph *g = c->g;
    size_t nodes = json_array_size(c->nodes);
    if (nodes < 1 || nodes > MAX_NODES)
        return context_bad(c, "\"nodes\" is not a list of 1 to %d", MAX_NODES);
    size_t most = weights->n_tensors + json_array_size(json_object_get(root, "inputs")) + nodes;
    c->ids = json_object();
    c->node_names = json_object();
    c->used = array_zero(most, sizeof *c->used);
    g->values = array_zero(most, sizeof *g->values);
    g->nodes = array_zero(nodes, sizeof *g->nodes);
    if (!c->ids || !c->node_names || !c->used || !g->values || !g->nodes)
        return error_memory(c->err, most * sizeof *g->values, "the graph");
    return DM_OK;
}

dm_status graph_parse(const json_t *root, const safetensors *weights, const char *path, graph *g,
                      dm_error *err)
{
    graph_context c = {.path = path, .err = err, .g = g};
    memset(g, 0, sizeof *g);
    context_at(&c, "graph");
    c.nodes = json_object_get(root, "nodes");
    dm_status status = parse_head(&c, root);
    if (status == DM_OK)
        status = allocate(&c, root, weights);
    if (status == DM_OK)
        status = add_weights(&c, weights);
    if (status == DM_OK)
        status = parse_ports(&c, json_object_get(root, "inputs"), "input", parse_input, &g->inputs,
                             &g->n_inputs);
    if (status == DM_OK && graph_input_channels(g) > GRAPH_MAX_CHANNELS)
        status = context_bad(&c, "its inputs have %zu channels; all together can have %zu",
                             graph_input_channels(g), GRAPH_MAX_CHANNELS);
    if (status == DM_OK)
        status = parse_nodes(&c);
    context_at(&c, "graph");
    if (status == DM_OK)
        status = parse_ports(&c, json_object_get(root, "outputs"), "output", parse_output,
                             &g->outputs, &g->n_outputs);
    if (status == DM_OK)
        status = check_used(&c);
    if (status == DM_OK)
        status = infer_shapes(&c);
    json_decref(c.ids);
    json_decref(c.node_names);
    free(c.used);
    if (status != DM_OK) {
        error_at(err, path);
        graph_clear(g);
    }
    return status;
}

static void free_ports(graph_port *ports, size_t n)
{
    for (size_t i = 0; i < n; i++)
        free(ports[i].unit);
    free(ports);
}

void graph_clear(graph *g)
{
    for (size_t i = 0; i < g->n_values; i++) {
        free(g->values[i].name);
        free(g->values[i].data);
    }
    for (size_t i = 0; i < g->n_nodes; i++) {
        free(g->nodes[i].name);
        free(g->nodes[i].inputs);
    }
    free_ports(g->inputs, g->n_inputs);
    free_ports(g->outputs, g->n_outputs);
    free(g->name);
    free(g->values);
    free(g->nodes);
    memset(g, 0, sizeof *g);
}
