/* SPDX-License-Identifier: Apache-2.0 */
/* Every operator in a graph that loads, and every rule that a node or a graph must keep. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <limits.h>

#include "model/graph.h"
#include "weights_writer.h"

/* ---- Nodes ---------------------------------------------------------------------------------- */

static void add_tensor(weights_writer *w, const char *name, float value, size_t rank,
                       const size_t *shape)
{
    weights_random_about(w, name, 5, value, 0.1f, rank, shape);
}

/* Input x with 4 channels of 8x8x8 voxels. */
static void begin(weights_writer *w)
{
    weights_begin(w, "zyx", 8, 8, 8);
    weights_input(w, "x", 4);
}

/* A palette of weights for nodes that must fail, where the failure comes before unused weights. */
static void add_palette(weights_writer *w)
{
    add_tensor(w, "w", 0, 5, (size_t[]){6, 4, 3, 3, 3});
    add_tensor(w, "t", 0, 5, (size_t[]){4, 3, 2, 2, 2});
    add_tensor(w, "flat", 0, 4, (size_t[]){6, 4, 3, 3});
    add_tensor(w, "v4", 1, 1, (size_t[]){4});
    add_tensor(w, "v5", 1, 1, (size_t[]){5});
    add_tensor(w, "v6", 1, 1, (size_t[]){6});
    add_tensor(w, "one", 1, 1, (size_t[]){1});
    add_tensor(w, "c4", 1, 4, (size_t[]){4, 1, 1, 1});
    add_tensor(w, "c5", 1, 4, (size_t[]){5, 1, 1, 1});
    add_tensor(w, "last4", 1, 4, (size_t[]){1, 1, 1, 4});
    add_tensor(w, "negative", -1, 1, (size_t[]){4});
}

static void expect_failure(weights_writer *w, dm_status status, const char *a, const char *b)
{
    dm_model *model = NULL;
    dm_error err = {0};
    char line[1600];
    dm_status got = weights_load(w, &model, &err);
    dm_error_text(&err, line, sizeof line);
    if (got != status || err.status != status || !strstr(line, a) || !strstr(line, b))
        fail_msg("got %d '%s'; expected %d '%s' '%s'", (int)got, line, (int)status, a, b);
    assert_null(model);
    assert_non_null(strstr(err.where, "dosemap-test-"));
    assert_true(err.remedy[0]);
    weights_end(w);
}

static dm_model *expect_success(weights_writer *w)
{
    dm_model *model = NULL;
    dm_error err = {0};
    char line[1600];
    if (weights_load(w, &model, &err) != DM_OK)
        fail_msg("%s", dm_error_text(&err, line, sizeof line));
    weights_end(w);
    return model;
}

#define K3 "'kernel_shape': [3, 3, 3]"
#define K2 "'kernel_shape': [2, 2, 2]"
#define P1 "'pads': [1, 1, 1, 1, 1, 1]"

/* Operator, inputs, attributes; channels and size of the output for 4 channels of 8x8x8. The
 * weights are those named in the inputs. */
static const struct {
    const char *op, *inputs, *attributes;
    int channels;
    size_t size;
    bool per_tile;
} good[] = {
    {"Conv", "x w", "{" K3 ", " P1 "}", 6, 8, false},
    {"Conv", "x w v6", "{" K3 ", 'strides': [2, 2, 2], 'dilations': [2, 2, 2], 'group': 1}", 6, 2,
     false},
    {"Conv", "x w -", "{" K3 "}", 6, 6, false},
    {"ConvTranspose", "x t", "{" K2 ", 'strides': [2, 2, 2]}", 3, 16, false},
    {"ConvTranspose", "x t",
     "{" K2 ", 'group': 2, 'strides': [2, 2, 2], "
     "'output_padding': [1, 1, 1]}",
     6, 17, false},
    {"BatchNormalization", "x v4 b4 m4 s4", "{'epsilon': 0.001}", 4, 8, false},
    {"InstanceNormalization", "x v4 b4", NULL, 4, 8, true},
    {"GroupNormalization", "x v4 b4", "{'num_groups': 2}", 4, 8, true},
    {"LeakyRelu", "x", "{'alpha': 0}", 4, 8, false},
    {"Relu", "x", "{}", 4, 8, false},
    {"PRelu", "x one", NULL, 4, 8, false},
    {"PRelu", "x c4", NULL, 4, 8, false},
    {"Elu", "x", "{'alpha': 2.5}", 4, 8, false},
    {"Gelu", "x", "{'approximate': 'tanh'}", 4, 8, false},
    {"Sigmoid", "x", NULL, 4, 8, false},
    {"Tanh", "x", NULL, 4, 8, false},
    {"Softplus", "x", NULL, 4, 8, false},
    {"Clip", "x", "{'min': -1, 'max': 500}", 4, 8, false},
    {"Clip", "x", "{'max': -0.5}", 4, 8, false},
    {"Clip", "x", "{'min': 2, 'max': 2}", 4, 8, false},
    {"Add", "x x", NULL, 4, 8, false},
    {"Mul", "c4 x", NULL, 4, 8, false},
    {"Sub", "x scalar", NULL, 4, 8, false},
    {"Mul", "x r5", NULL, 4, 8, false},
    {"Concat", "x x x", "{'axis': 1}", 12, 8, false},
    {"MaxPool", "x", "{" K3 ", " P1 ", 'strides': [2, 2, 2], 'ceil_mode': 1}", 4, 5, false},
    {"AveragePool", "x", "{" K2 ", 'strides': [2, 2, 2], 'count_include_pad': 1}", 4, 4, false},
    {"GlobalAveragePool", "x", NULL, 4, 1, true},
    {"Resize", "x",
     "{'mode': 'linear', 'scales': [2, 2.0, 2], "
     "'coordinate_transformation_mode': 'align_corners'}",
     4, 16, false},
    {"Resize", "x", "{'sizes': [5, 5, 5], 'nearest_mode': 'floor'}", 4, 5, false},
    {"Pad", "x", "{'pads': [1, 1, 1, 2, 2, 2], 'mode': 'reflect'}", 4, 11, false},
    {"Slice", "x",
     "{'starts': [1, 1, -3, 0], 'ends': [9223372036854775807, -1, 4000, 3], "
     "'axes': [1, 2, 3, 4], 'steps': [2, 2, 1, 1]}",
     2, 3, false},
    {"Identity", "x", NULL, 4, 8, false},
};

static void add_named_weights(weights_writer *w, const char *inputs)
{
    static const struct {
        const char *name;
        float value;
        size_t rank, shape[5];
    } all[] = {{"w", 0, 5, {6, 4, 3, 3, 3}},
               {"t", 0, 5, {4, 3, 2, 2, 2}},
               {"v6", 0, 1, {6}},
               {"v4", 1, 1, {4}},
               {"b4", 0, 1, {4}},
               {"m4", 0, 1, {4}},
               {"s4", 1, 1, {4}},
               {"one", 1, 1, {1}},
               {"c4", 1, 4, {4, 1, 1, 1}},
               {"scalar", 1, 0, {0}},
               {"r5", 1, 5, {1, 4, 1, 1, 1}}};
    char padded[128], word[32];
    snprintf(padded, sizeof padded, " %s ", inputs);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        snprintf(word, sizeof word, " %s ", all[i].name);
        if (strstr(padded, word))
            add_tensor(w, all[i].name, all[i].value, all[i].rank, all[i].shape);
    }
}

static void test_good_nodes(void **state)
{
    (void)state;
    bool seen[OP_KIND_COUNT] = {false};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        weights_writer w;
        begin(&w);
        add_named_weights(&w, good[i].inputs);
        weights_node(&w, good[i].op, "n", good[i].inputs, "y", good[i].attributes);
        weights_output(&w, "y", good[i].channels);
        dm_model *model = expect_success(&w);
        const graph *g = &model->graph;
        const graph_node *node = &g->nodes[0];
        size_t sizes[32][3];
        assert_true(g->n_values <= 32 && g->n_nodes == 1);
        assert_true(graph_sizes(g, (size_t[]){8, 8, 8}, sizes, NULL, 0));
        assert_string_equal(op_name(node->op), good[i].op);
        assert_int_equal(g->values[node->output].channels, good[i].channels);
        assert_int_equal(g->per_tile_statistics, good[i].per_tile);
        assert_int_equal(g->outputs[0].voxelwise, good[i].size == 8);
        for (int axis = 0; axis < 3 && node->op != OP_SLICE; axis++)
            assert_int_equal(sizes[node->output][axis], good[i].size);
        seen[node->op] = true;
        dm_model_free(model);
    }
    for (int op = 0; op < OP_KIND_COUNT; op++)
        assert_true(seen[op]);
}

/* What the attributes become, and what is there without them. */
static void test_attribute_values(void **state)
{
    (void)state;
    weights_writer w;
    begin(&w);
    add_tensor(&w, "w", 0, 5, (size_t[]){6, 2, 1, 2, 3});
    weights_node(&w, "Conv", "c", "x w", "y",
                 "{'kernel_shape': [1, 2, 3], 'strides': [1, 2, 3], 'dilations': [3, 2, 1], "
                 "'pads': [1, 2, 3, 4, 5, 6], 'group': 2}");
    weights_node(&w, "Slice", "s", "x", "z",
                 "{'starts': [2, -3], 'ends': [-1, 9223372036854775807], 'axes': [4, 1]}");
    weights_node(&w, "Elu", "e", "x", "u", NULL);
    weights_node(&w, "LeakyRelu", "l", "x", "v", NULL);
    weights_output(&w, "y", 6);
    dm_model *model = expect_success(&w);
    const graph_node *c = &model->graph.nodes[0], *s = &model->graph.nodes[1];
    assert_memory_equal(c->kernel, ((int[]){1, 2, 3}), sizeof c->kernel);
    assert_memory_equal(c->stride, ((int[]){1, 2, 3}), sizeof c->stride);
    assert_memory_equal(c->dilation, ((int[]){3, 2, 1}), sizeof c->dilation);
    assert_memory_equal(c->pad_begin, ((int[]){1, 2, 3}), sizeof c->pad_begin);
    assert_memory_equal(c->pad_end, ((int[]){4, 5, 6}), sizeof c->pad_end);
    assert_int_equal(c->groups, 2);
    assert_int_equal(c->n_inputs, 3);
    assert_int_equal(c->inputs[2], -1);
    assert_memory_equal(s->slice_begin, ((int[]){0, 0, 2}), sizeof s->slice_begin);
    assert_memory_equal(s->slice_end, ((int[]){INT_MAX, INT_MAX, -1}), sizeof s->slice_end);
    assert_memory_equal(s->slice_step, ((int[]){1, 1, 1}), sizeof s->slice_step);
    assert_int_equal(s->channel_begin, 1);
    assert_int_equal(s->channel_end, 4); /* resolved */
    assert_true(model->graph.nodes[2].alpha == 1.0f);
    assert_true(model->graph.nodes[3].alpha == 0.01f);
    dm_model_free(model);
}

static const struct {
    const char *op, *inputs, *attributes, *text;
} bad[] = {
    /* attributes */
    {"Conv", "x w", "{" K3 ", 'auto_pad': 'SAME'}",
     "unknown attribute 'auto_pad'; known are: kernel"},
    {"Relu", "x", "{'alpha': 1}", "unknown attribute 'alpha'; known are: none"},
    {"MaxPool", "x", "{" K2 ", 'count_include_pad': 1}", "unknown attribute 'count_include_pad'"},
    {"Conv", "x w", NULL, "the attribute \"kernel_shape\" is missing"},
    {"Conv", "x w", "[]", "\"attributes\" is not an object"},
    {"Conv", "x w", "{'kernel_shape': [3, 3]}", "\"kernel_shape\" is not a list of 3"},
    {"Conv", "x w", "{'kernel_shape': 3}", "\"kernel_shape\" is not a list of 3"},
    {"Conv", "x w", "{'kernel_shape': [3, 3, 3.0]}", "\"kernel_shape\" is not an integer"},
    {"Conv", "x w", "{'kernel_shape': [3, 3, 0]}", "\"kernel_shape\" is 0; 1 to 1024"},
    {"Conv", "x w", "{'kernel_shape': [3, 3, 1025]}", "\"kernel_shape\" is 1025; 1 to 1024"},
    {"Conv", "x w", "{" K3 ", 'strides': [1, 1, 4294967297]}", "\"strides\" is 4294967297"},
    {"Conv", "x w", "{" K3 ", 'dilations': [1, -1, 1]}", "\"dilations\" is -1"},
    {"Conv", "x w", "{" K3 ", 'pads': [0, 0, 0]}", "\"pads\" is not a list of 6"},
    {"Conv", "x w", "{" K3 ", 'pads': [0, 0, 0, 0, 0, -1]}", "\"pads\" is -1; 0 to 65536"},
    {"Conv", "x w", "{" K3 ", 'group': 0}", "\"group\" is 0"},
    {"ConvTranspose", "x t", "{" K2 ", 'strides': [2, 2, 2], 'output_padding': [2, 0, 0]}",
     "\"output_padding\" has 2; it must be smaller than the stride"},
    {"LeakyRelu", "x", "{'alpha': 1e39}", "\"alpha\" is 1e+39"},
    {"LeakyRelu", "x", "{'alpha': '1'}", "\"alpha\" is not a number"},
    {"Clip", "x", NULL, "it needs \"min\", \"max\" or both"},
    {"Clip", "x", "{'min': 2, 'max': 1.5}", "\"min\" is 2 and \"max\" 1.5"},
    {"Clip", "x", "{'max': 1e39}", "\"max\" is 1e+39"},
    {"Clip", "x", "{'min': null}", "\"min\" is not a number"},
    {"Relu", "x", "{'min': 1}", "unknown attribute 'min'"},
    {"InstanceNormalization", "x v4 v4", "{'epsilon': 0}", "\"epsilon\" is 0"},
    {"Concat", "x x", "{'axis': 2}", "\"axis\" is 2; 1 to 1"},
    {"MaxPool", "x", "{" K2 ", 'ceil_mode': 2}", "\"ceil_mode\" is 2"},
    {"MaxPool", "x", "{" K2 ", 'pads': [0, 0, 2, 0, 0, 0]}",
     "\"pads\" has 2, which is not smaller"},
    {"Resize", "x", "{}", "either \"scales\" or \"sizes\""},
    {"Resize", "x", "{'scales': [2, 2, 2], 'sizes': [8, 8, 8]}", "either \"scales\" or \"sizes\""},
    {"Resize", "x", "{'scales': [2, 2, 0]}", "\"scales\" is 0"},
    {"Pad", "x", "{}", "the attribute \"pads\" is missing"},
    {"Slice", "x", "{'starts': [0], 'ends': [1]}", "the attribute \"axes\" is missing"},
    {"Slice", "x", "{'starts': [0], 'ends': [1], 'axes': [0]}", "\"axes\" has 0; 1 to 4"},
    {"Slice", "x", "{'starts': [0], 'ends': [1], 'axes': [-1]}", "\"axes\" has -1; 1 to 4"},
    {"Slice", "x", "{'starts': [0, 0], 'ends': [1, 1], 'axes': [2, 2]}", "\"axes\" has 2"},
    {"Slice", "x", "{'starts': [0], 'ends': [1, 2], 'axes': [1]}",
     "\"ends\" is not a list as long"},
    {"Slice", "x", "{'starts': [0.5], 'ends': [1], 'axes': [1]}",
     "\"starts\" is not a list of int"},
    {"Slice", "x", "{'starts': [0], 'ends': [1], 'axes': [1], 'steps': [-1]}", "\"steps\" has -1"},
    {"Slice", "x", "{'starts': [], 'ends': [], 'axes': []}", "is not a list as long"},
    {"Slice", "x", "{'starts': [4], 'ends': [9], 'axes': [1]}", "no channel of 4 lies between 4"},
    /* inputs */
    {"Conv", "x", "{" K3 "}", "it has 1 inputs; 2 to 3 are possible"},
    {"Conv", "x w v6 v6", "{" K3 "}", "it has 4 inputs; 2 to 3 are possible"},
    {"Conv", "- w", "{" K3 "}", "input 1 is left out, but Conv needs it"},
    {"Conv", "x -", "{" K3 "}", "input 2 is left out, but Conv needs it"},
    {"Concat", "x -", NULL, "input 2 is left out, but Concat needs it"},
    {"Conv", "w x", "{" K3 "}", "input 1, 'w', is a weight; it must be computed"},
    {"Conv", "x x", "{" K3 "}", "input 2, 'x', is computed; it must be a weight"},
    {"Concat", "x c4", NULL, "input 2, 'c4', is a weight"},
    {"Relu", "c4", NULL, "input 1, 'c4', is a weight"},
    {"Add", "c4 c4", NULL, "both inputs, 'c4' and 'c4', are weights"},
    {"Relu", "nothing", NULL, "input 'nothing' is neither an input of the graph, nor a weight"},
    {"Relu", "y", NULL, "input 'y' is used before node 'n' makes it"},
    {"Relu", "later", NULL,
     "input 'later' is used before node 'last' makes it: the nodes are out of"},
    /* weights */
    {"Conv", "x flat", "{" K3 "}", "weight 'flat' has shape [6, 4, 3, 3]"},
    {"Conv", "x w", "{" K2 "}",
     "[6, 4, 3, 3, 3] (z, y, x); kernel_shape asks for [.., .., 2, 2, 2]"},
    {"Conv", "x w", "{" K3 ", 'group': 2}", "does not fit 4 input channels in 2 groups"},
    {"Conv", "x w", "{" K3 ", 'group': 1048576}", "does not fit 4 input channels"},
    {"Conv", "x w v5", "{" K3 "}", "weight 'v5' has shape [5]; [6] is needed"},
    {"Conv", "x w c4", "{" K3 "}", "weight 'c4' has shape [4, 1, 1, 1]; [6] is needed"},
    {"ConvTranspose", "x w", "{" K3 "}", "does not fit 4 input channels in 1 groups"},
    {"ConvTranspose", "x t", "{" K2 ", 'group': 3}", "does not fit 4 input channels in 3 groups"},
    {"ConvTranspose", "x t v4", "{" K2 "}", "weight 'v4' has shape [4]; [3] is needed"},
    {"BatchNormalization", "x v4 v4 v5 v4", NULL, "weight 'v5' has shape [5]; [4] is needed"},
    {"BatchNormalization", "x v4 v4 v4 negative", NULL, "variance 'negative' of channel 0 is -"},
    {"InstanceNormalization", "x v5 v4", NULL, "weight 'v5'"},
    {"GroupNormalization", "x v4 v4", "{'num_groups': 3}", "3, which does not divide 4 channels"},
    {"GroupNormalization", "x v4 v4", NULL, "the attribute \"num_groups\" is missing"},
    {"PRelu", "x v4", NULL, "weight 'v4' has shape [4]; a single value or [4, 1, 1, 1]"},
    {"PRelu", "x c5", NULL, "weight 'c5' has shape [5, 1, 1, 1]"},
    {"Mul", "x last4", NULL, "weight 'last4' has shape [1, 1, 1, 4]"},
    {"Add", "c5 x", NULL, "weight 'c5' has shape [5, 1, 1, 1]"},
};

static void test_bad_nodes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        weights_writer w;
        char node[64];
        begin(&w);
        add_palette(&w);
        weights_node(&w, bad[i].op, "n", bad[i].inputs, "y", bad[i].attributes);
        weights_node(&w, "Relu", "last", "x", "later", NULL);
        weights_output(&w, "y", 4);
        snprintf(node, sizeof node, "graph node 'n' (%s): ", bad[i].op);
        expect_failure(&w, DM_ERROR_FORMAT, node, bad[i].text);
    }
}

static void test_unsupported(void **state)
{
    (void)state;
    const struct {
        const char *op, *attributes, *text;
    } cases[] = {
        {"Einsum", NULL,
         "graph node 'n': unknown operator 'Einsum'; this program handles: Conv, Conv"},
        {"Einsum", NULL, "Pad, Slice, Identity"},
        {"conv", NULL, "unknown operator 'conv'"},
        {"Resize", "{'mode': 'cubic', 'scales': [2, 2, 2]}",
         "\"mode\" is cubic; possible are: nearest, linear"},
        {"Pad", "{'mode': 'wrap', 'pads': [0, 0, 0, 0, 0, 0]}",
         "\"mode\" is wrap; possible are: constant, reflect, edge"},
        {"Gelu", "{'approximate': 1}", "\"approximate\" is not a string"},
        {"Resize", "{'scales': [2, 2, 2], 'nearest_mode': 'ceil'}", "\"nearest_mode\" is ceil"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        weights_writer w;
        begin(&w);
        weights_node(&w, cases[i].op, "n", "x", "y", cases[i].attributes);
        weights_output(&w, "y", 4);
        expect_failure(&w, DM_ERROR_UNSUPPORTED, "graph node 'n'", cases[i].text);
    }
}

/* ---- Graphs --------------------------------------------------------------------------------- */

static void test_cycle_and_names(void **state)
{
    (void)state;
    weights_writer w;
    begin(&w);
    weights_node(&w, "Add", "a", "x u", "t", NULL);
    weights_node(&w, "Relu", "b", "t", "u", NULL);
    weights_output(&w, "u", 4);
    expect_failure(&w, DM_ERROR_FORMAT, "graph node 'a' (Add)",
                   "input 'u' is used before node 'b' makes it");
    const char *outputs[] = {"t", "x", "w"};
    for (size_t i = 0; i < 3; i++) {
        begin(&w);
        add_tensor(&w, "w", 0, 0, NULL);
        weights_node(&w, "Mul", "a", "x w", "t", NULL);
        weights_node(&w, "Relu", "b", "t", outputs[i], NULL);
        weights_output(&w, "t", 4);
        expect_failure(&w, DM_ERROR_FORMAT, "graph node 'b' (Relu): the name '", "already taken");
    }
    begin(&w);
    weights_input(&w, "x", 4);
    weights_node(&w, "Relu", "a", "x", "t", NULL);
    weights_output(&w, "t", 4);
    expect_failure(&w, DM_ERROR_FORMAT, "graph input 2", "the name 'x' is already taken");
    begin(&w);
    weights_node(&w, "Relu", "a", "x", "t", NULL);
    weights_node(&w, "Relu", "a", "x", "u", NULL);
    weights_output(&w, "t", 4);
    expect_failure(&w, DM_ERROR_FORMAT, "graph node 'a'", "another node has the same name");
}

static void test_too_many_channels(void **state)
{
    (void)state;
    weights_writer w;
    weights_begin(&w, "xyz", 2, 2, 2);
    weights_input(&w, "x", 1 << 19);
    weights_node(&w, "Concat", "twice", "x x", "t", NULL);
    weights_node(&w, "Concat", "thrice", "x t", "y", NULL);
    weights_output(&w, "y", 3 << 19);
    expect_failure(&w, DM_ERROR_FORMAT, "graph node 'thrice' (Concat)",
                   "its output has 1572864 channels; at most 1048576");
}

static void test_empty_slice(void **state)
{
    (void)state;
    weights_writer w;
    begin(&w);
    weights_node(&w, "Slice", "s", "x", "y", "{'starts': [8], 'ends': [9], 'axes': [2]}");
    weights_output(&w, "y", 4);
    expect_failure(&w, DM_ERROR_FORMAT, "node 's' (Slice)",
                   "along z, no voxel of 8 lies between 8 and 9");
}

static void test_node_keys(void **state)
{
    (void)state;
    const struct {
        const char *key, *value, *text;
    } cases[] = {{"doc", "1", "unknown key 'doc'; known are: op name inputs outputs attributes"},
                 {"op", "1", "\"op\" is not a string"},
                 {"name", "''", "\"name\" is not a string of 1 to 255"},
                 {"name", "'a\\u001b[0m'", "\"name\" is not a string of 1 to 255"},
                 {"inputs", "'x'", "it has 0 inputs; 1 to 1"},
                 {"inputs", "[1]", "input 1 is not a name"},
                 {"outputs", "['y', 'z']", "\"outputs\" is not a list of one name"},
                 {"outputs", "[]", "\"outputs\" is not a list of one name"},
                 {"outputs", "['']", "\"outputs\" is not a string of 1 to 255"},
                 {"op", NULL, "the key 'op' is missing"},
                 {"outputs", NULL, "the key 'outputs' is missing"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        weights_writer w;
        begin(&w);
        weights_node(&w, "Relu", "n", "x", "y", NULL);
        weights_output(&w, "y", 4);
        if (cases[i].value)
            json_object_set_new(weights_last_node(&w), cases[i].key, weights_json(cases[i].value));
        else
            json_object_del(weights_last_node(&w), cases[i].key);
        expect_failure(&w, DM_ERROR_FORMAT, "graph node", cases[i].text);
    }
}

static void test_joined_sizes(void **state)
{
    (void)state;
    const char *pool = "{" K2 ", 'strides': [2, 2, 2]}";
    weights_writer w;
    begin(&w);
    weights_node(&w, "MaxPool", "p", "x", "half", pool);
    weights_node(&w, "Add", "sum", "x half", "y", NULL);
    weights_output(&w, "y", 4);
    expect_failure(&w, DM_ERROR_FORMAT, "not defined for its patch_size 8, 8, 8",
                   "node 'sum' (Add): 'x' has 8 x 8 x 8 voxels and 'half' 4 x 4 x 4");
    begin(&w);
    weights_node(&w, "GlobalAveragePool", "p", "x", "mean", NULL);
    weights_node(&w, "Concat", "cat", "x mean", "y", NULL);
    weights_output(&w, "y", 8);
    expect_failure(&w, DM_ERROR_FORMAT, "node 'cat' (Concat)", "'mean' 1 x 1 x 1");
    begin(&w);
    weights_node(&w, "GlobalAveragePool", "p", "x", "mean", NULL);
    weights_node(&w, "Slice", "s", "x", "first", "{'starts': [0], 'ends': [1], 'axes': [1]}");
    weights_node(&w, "Mul", "outer", "mean first", "y", NULL);
    weights_output(&w, "y", 4);
    expect_failure(&w, DM_ERROR_FORMAT, "node 'outer' (Mul)",
                   "neither 'mean' nor 'first' has the size of the result");
    begin(&w);
    weights_node(&w, "Slice", "s", "x", "two", "{'starts': [0], 'ends': [2], 'axes': [1]}");
    weights_node(&w, "Sub", "d", "two x", "y", NULL);
    weights_output(&w, "y", 4);
    expect_failure(&w, DM_ERROR_FORMAT, "graph node 'd' (Sub)", "'two' has 2 channels and 'x' 4");
    begin(&w); /* squeeze and excitation, and a spatial gate, in either order of the operands */
    weights_node(&w, "GlobalAveragePool", "p", "x", "mean", NULL);
    weights_node(&w, "Slice", "s", "x", "first", "{'starts': [0], 'ends': [1], 'axes': [1]}");
    weights_node(&w, "Mul", "m", "mean x", "a", NULL);
    weights_node(&w, "Mul", "n", "a first", "b", NULL);
    weights_node(&w, "Mul", "o", "first b", "y", NULL);
    weights_output(&w, "y", 4);
    dm_model *model = expect_success(&w);
    assert_true(model->graph.outputs[0].voxelwise);
    assert_true(model->graph.per_tile_statistics);
    dm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_nodes),      cmocka_unit_test(test_attribute_values),
        cmocka_unit_test(test_bad_nodes),       cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_cycle_and_names), cmocka_unit_test(test_too_many_channels),
        cmocka_unit_test(test_empty_slice),     cmocka_unit_test(test_node_keys),
        cmocka_unit_test(test_joined_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
