/* SPDX-License-Identifier: Apache-2.0 */
/* Several inputs and outputs: what a graph may say of them, and what follows for prediction. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "model/graph.h"
#include "small_models.h"

#define POOL "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}"

/* PET and CT to a dose, and the same at half resolution. */
static void begin(weights_writer *w)
{
    weights_begin(w, "xyz", 8, 8, 8);
    weights_input(w, "pet", 1);
    weights_port(w, "inputs", "ct", 2, "other", "counts");
    weights_port(w, "outputs", "deep", 1, "other", "Gy/GBq");
    weights_output(w, "dose", 1);
    weights_values(w, "w", 5, (const size_t[]){1, 3, 1, 1, 1}, (const float[]){1, 2, 3});
    weights_node(w, "Concat", "join", "pet ct", "all", NULL);
    weights_node(w, "Conv", "conv", "all w -", "dose", "{'kernel_shape': [1, 1, 1]}");
    weights_node(w, "MaxPool", "pool", "dose", "half", POOL);
    weights_node(w, "GlobalAveragePool", "mean", "half", "level", NULL);
    weights_node(w, "Sub", "sub", "half level", "deep", NULL);
}

static json_t *port_of(weights_writer *w, const char *list, size_t i)
{
    return json_array_get(json_object_get(w->graph, list), i);
}

static void test_everything_is_kept(void **state)
{
    (void)state;
    weights_writer w;
    begin(&w);
    dm_model *model = finish_model(&w);
    const graph *g = &model->graph;
    assert_int_equal(g->n_inputs, 2);
    assert_int_equal(g->n_outputs, 2);
    assert_int_equal(graph_input_channels(g), 3);
    assert_int_equal(g->inputs[1].quantity, DM_QUANTITY_OTHER);
    assert_string_equal(g->inputs[1].unit, "counts");
    assert_string_equal(g->values[g->outputs[1].value].name, "dose");
    dm_model_free(model);
}

/* Another output spoils nothing: neither its size nor its statistics. */
static void test_the_dose_decides(void **state)
{
    (void)state;
    weights_writer w;
    begin(&w);
    dm_model *model = finish_model(&w);
    const graph *g = &model->graph;
    assert_int_equal(graph_dose_output(g), 1);
    assert_false(g->outputs[0].voxelwise);
    assert_true(g->outputs[1].voxelwise);
    assert_false(g->per_tile_statistics);
    assert_memory_equal(g->total_stride, ((size_t[]){1, 1, 1}), sizeof g->total_stride);
    dm_model_free(model);

    begin(&w); /* without a dose all nodes count */
    json_object_set_new(port_of(&w, "outputs", 1), "quantity", json_string("other"));
    model = finish_model(&w);
    assert_int_equal(graph_dose_output(&model->graph), -1);
    assert_true(model->graph.per_tile_statistics);
    dm_model_free(model);

    begin(&w); /* two are none */
    json_object_set_new(port_of(&w, "outputs", 0), "quantity", json_string("dose_per_activity"));
    model = finish_model(&w);
    assert_int_equal(graph_dose_output(&model->graph), -1);
    dm_model_free(model);
}

static void test_what_is_needed(void **state)
{
    (void)state;
    weights_writer w;
    begin(&w);
    dm_model *model = finish_model(&w);
    const graph *g = &model->graph;
    bool needed[16];
    static const char *const names[] = {"w", "pet", "ct", "all", "dose"};
    assert_true(g->n_values <= 16);
    graph_needed(g, g->outputs[1].value, needed);
    for (size_t v = 0; v < g->n_values; v++) {
        bool expected = false;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            expected |= !strcmp(names[i], g->values[v].name);
        assert_int_equal(needed[v], expected);
    }
    dm_model_free(model);
}

static void test_an_input_as_output(void **state)
{
    (void)state;
    weights_writer w;
    begin(&w);
    weights_port(&w, "outputs", "ct", 2, "other", "counts");
    dm_model *model = finish_model(&w);
    const graph *g = &model->graph;
    assert_int_equal(g->outputs[2].value, g->inputs[1].value);
    assert_true(g->outputs[2].voxelwise);
    dm_model_free(model);
}

static void refuse(weights_writer *w, const char *text)
{
    dm_model *model = NULL;
    dm_error err = {0};
    char line[1600];
    assert_int_equal(weights_load(w, &model, &err), DM_ERROR_FORMAT);
    dm_error_text(&err, line, sizeof line);
    if (!strstr(line, text))
        fail_msg("\"%s\" is not in \"%s\"", text, line);
    assert_true(err.remedy[0]);
    weights_end(w);
}

static void test_refused(void **state)
{
    (void)state;
    weights_writer w;
    char unit[66] = "";
    begin(&w);
    weights_output(&w, "dose", 1);
    refuse(&w, "graph output 3: 'dose' is an output already");
    begin(&w);
    weights_output(&w, "w", 1);
    refuse(&w, "graph output 3: no node makes the output 'w', nor is it an input");
    begin(&w);
    weights_input(&w, "pet", 1);
    refuse(&w, "graph input 3: the name 'pet' is already taken");
    begin(&w);
    weights_port(&w, "inputs", "wide", (1 << 20) - 2, "other", "1");
    refuse(&w, "its inputs have 1048577 channels; all together can have 1048576");
    memset(unit, 'u', 65);
    begin(&w);
    json_object_set_new(port_of(&w, "inputs", 1), "unit", json_string(unit));
    refuse(&w, "graph input 2: \"unit\" has 65 bytes; it can have 64");
    static const char *const units[] = {"''", "null", "'a\\u0001'"};
    for (size_t i = 0; i < 3; i++) {
        begin(&w);
        json_object_set_new(port_of(&w, "inputs", 1), "unit", weights_json(units[i]));
        refuse(&w, "graph input 2: \"unit\"");
    }
    begin(&w);
    for (int i = 0; i < 15; i++) {
        char name[16];
        snprintf(name, sizeof name, "in%d", i);
        weights_input(&w, name, 1);
    }
    refuse(&w, "\"inputs\" is not a list of 1 to 16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_is_kept),
        cmocka_unit_test(test_the_dose_decides),
        cmocka_unit_test(test_what_is_needed),
        cmocka_unit_test(test_an_input_as_output),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
