/* SPDX-License-Identifier: Apache-2.0 */
/* Which of a model's inputs and outputs a prediction takes: told by what they mean, or, where images
 * and map hold the network's own values, by their number and order. */
#include "base/error.h"
#include "model/describe.h"
#include "predict/predictor.h"

/* The patient's images: PET and CT. */
#define MAX_IMAGES 2

static const char another_model[] =
    "use a model from PET, or PET and CT, to dose; 'dosemap forward' runs any network on patches";
static const char forward_instead[] = "'dosemap forward' runs any network on patches";

static const char *port_name(const graph *g, const graph_port *port)
{
    return g->values[port->value].name;
}

static dm_status check_channels(const dm_predictor *p, const graph_port *port, const char *which,
                                const char *remedy, dm_error *err)
{
    if (port->channels == 1)
        return DM_OK;
    return error_set(err, DM_ERROR_UNSUPPORTED, p->model->path, remedy,
                     "the model's %s \"%s\" has %zu channels, not one", which,
                     port_name(&p->model->graph, port), port->channels);
}

/* One PET, and at most one CT. */
static dm_status find_inputs(dm_predictor *p, dm_error *err)
{
    const graph *g = &p->model->graph;
    const char *path = p->model->path;
    p->n_channels = g->n_inputs;
    p->pet_channel = p->ct_channel = -1;
    for (size_t i = 0; i < g->n_inputs; i++) {
        const graph_port *port = &g->inputs[i];
        bool is_ct = port->quantity == DM_QUANTITY_HU;
        int *channel = is_ct ? &p->ct_channel : &p->pet_channel;
        if (!is_ct && port->quantity != DM_QUANTITY_UPTAKE && port->quantity != DM_QUANTITY_SUV)
            return error_set(err, DM_ERROR_UNSUPPORTED, path, another_model,
                             "the model's input \"%s\" is %s, neither a PET (uptake or suv) nor a "
                             "CT (hu)",
                             port_name(g, port), quantity_name(port->quantity));
        if (*channel >= 0)
            return error_set(err, DM_ERROR_UNSUPPORTED, path, another_model,
                             "the model takes two %ss, \"%s\" and \"%s\"", is_ct ? "CT" : "PET",
                             port_name(g, &g->inputs[*channel]), port_name(g, port));
        dm_status status = check_channels(p, port, "input", another_model, err);
        if (status != DM_OK)
            return status;
        *channel = (int)i;
    }
    if (p->pet_channel < 0)
        return error_set(err, DM_ERROR_UNSUPPORTED, path, another_model,
                         "the model takes no PET: none of its inputs is uptake or suv");
    return DM_OK;
}

/* One output of dose. */
static dm_status find_output(dm_predictor *p, dm_error *err)
{
    const graph *g = &p->model->graph;
    size_t doses = 0;
    for (size_t i = 0; i < g->n_outputs; i++)
        doses += g->outputs[i].quantity == DM_QUANTITY_DOSE_PER_ACTIVITY;
    if (doses == 0)
        return error_set(err, DM_ERROR_UNSUPPORTED, p->model->path, another_model,
                         "the model gives no dose: its output \"%s\" is %s, not dose_per_activity",
                         port_name(g, &g->outputs[0]), quantity_name(g->outputs[0].quantity));
    if (doses > 1)
        return error_set(err, DM_ERROR_UNSUPPORTED, p->model->path, another_model,
                         "the model has %zu outputs of dose_per_activity, not one", doses);
    p->output = (size_t)graph_dose_output(g);
    return DM_OK;
}

/* The images are the channels, in the graph's order, whatever they mean; the output is the dose or
 * the only one. */
static dm_status find_network_ports(dm_predictor *p, dm_error *err)
{
    const graph *g = &p->model->graph;
    const int dose = graph_dose_output(g);
    p->n_channels = graph_input_channels(g);
    if (p->n_channels > MAX_IMAGES)
        return error_set(err, DM_ERROR_UNSUPPORTED, p->model->path, forward_instead,
                         "the model's inputs have %zu channels, and there are at most %d images",
                         p->n_channels, MAX_IMAGES);
    p->pet_channel = 0;
    p->ct_channel = p->n_channels == MAX_IMAGES ? 1 : -1;
    if (dose < 0 && g->n_outputs > 1)
        return error_set(err, DM_ERROR_UNSUPPORTED, p->model->path, forward_instead,
                         "the model has %zu outputs, and not one of them alone is "
                         "dose_per_activity",
                         g->n_outputs);
    p->output = dose < 0 ? 0 : (size_t)dose;
    return DM_OK;
}

dm_status predictor_find_ports(dm_predictor *p, bool network_values, dm_error *err)
{
    const graph *g = &p->model->graph;
    const char *remedy = network_values ? forward_instead : another_model;
    dm_status status = network_values ? find_network_ports(p, err) : find_inputs(p, err);
    if (status == DM_OK && !network_values)
        status = find_output(p, err);
    if (status != DM_OK)
        return status;
    const graph_port *port = &g->outputs[p->output];
    status = check_channels(p, port, "output", remedy, err);
    if (status == DM_OK && !port->voxelwise)
        return error_set(err, DM_ERROR_UNSUPPORTED, p->model->path, remedy,
                         "the model's output \"%s\" has another size than its input, not one %s "
                         "per voxel",
                         port_name(g, port), network_values ? "value" : "dose");
    return status;
}
