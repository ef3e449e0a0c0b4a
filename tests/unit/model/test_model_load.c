/* SPDX-License-Identifier: Apache-2.0 */
/* Whole weights files: what a model holds after loading, and what is refused, down to single bytes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <limits.h>
#include <math.h>

#include "model/graph.h"
#include "weights_writer.h"

#define K3 "'kernel_shape': [3, 3, 3], 'pads': [1, 1, 1, 1, 1, 1]"

/* A small network that is right in everything. */
static void good_file(weights_writer *w)
{
    weights_begin(w, "xyz", 8, 8, 8);
    weights_input(w, "x", 1);
    weights_output(w, "y", 2);
    weights_random(w, "weight", 1, 0.5f, 5, (size_t[]){2, 1, 3, 3, 3});
    weights_random(w, "bias", 2, 0.5f, 1, (size_t[]){2});
    weights_node(w, "Conv", "conv", "x weight bias", "t", "{" K3 "}");
    weights_node(w, "LeakyRelu", "act", "t", "y", "{'alpha': 0.2}");
}

static dm_model *load_or_fail(weights_writer *w)
{
    dm_model *model = NULL;
    dm_error err = {0};
    char line[1600];
    if (weights_load(w, &model, &err) != DM_OK)
        fail_msg("%s", dm_error_text(&err, line, sizeof line));
    weights_end(w);
    return model;
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

static void test_everything_is_kept(void **state)
{
    (void)state;
    weights_writer w;
    good_file(&w);
    json_t *input = json_array_get(json_object_get(w.graph, "inputs"), 0);
    json_object_set_new(input, "quantity", json_string("suv"));
    json_object_set_new(input, "intensity",
                        weights_json("[{'clip': [0, 40]}, {'scale': 0.5, 'offset': -1}, {'log1p': "
                                     "true}, {'expm1': true}, {'sqrt': true}, {'square': true}]"));
    json_object_set_new(w.graph, "orientation", json_string("PLI"));
    json_object_set_new(w.graph, "patch_size", weights_json("[4, 6, 9]"));
    json_object_set_new(w.graph, "voxel_size_mm", weights_json("[2, 2.5, 3]"));
    json_object_update_new(w.card,
                           weights_json("{'name': 'my card', 'skip_air': 0.05, 'x': [1], "
                                        "'precision': {'tf32': "
                                        "{'organ_mean_deviation_percent': 0.5}, 'bf16': "
                                        "{'organ_mean_deviation_percent': 0.51}, 'int8': 1, "
                                        "'fp16': {'organ_mean_deviation_percent': 0}}}"));
    char *card = json_dumps(w.card, 0), *text = json_dumps(w.graph, 0);
    dm_model *model = load_or_fail(&w);
    const graph *g = &model->graph;
    assert_string_equal(dm_model_name(model), "my card");
    assert_non_null(strstr(dm_model_path(model), "dosemap-test-"));
    assert_int_equal(dm_model_input_quantity(model), DM_QUANTITY_SUV);
    assert_string_equal(dm_model_card_json(model), card);
    assert_string_equal(dm_model_graph_json(model), text);
    assert_string_equal(model->provenance_json, "{\"made_by\": \"a test\"}");
    assert_int_equal(strlen(model->checksum), 16);
    assert_true(model->skip_air == 0.05);
    assert_int_equal(model->native_precisions, 1u << DM_PRECISION_FLOAT32 |
                                                   1u << DM_PRECISION_TF32 |
                                                   1u << DM_PRECISION_FP16);
    assert_string_equal(g->name, "test");
    assert_string_equal(g->orientation, "PLI");
    assert_memory_equal(g->patch, ((size_t[]){4, 6, 9}), sizeof g->patch);
    assert_true(g->has_voxel_mm && g->voxel_mm[0] == 2 && g->voxel_mm[1] == 2.5);
    assert_int_equal(g->n_inputs, 1);
    assert_int_equal(g->outputs[0].quantity, DM_QUANTITY_DOSE_PER_ACTIVITY);
    assert_string_equal(g->outputs[0].unit, "Gy/GBq");
    assert_int_equal(g->outputs[0].channels, 2);
    assert_int_equal(g->outputs[0].intensity.n, 0);
    const intensity_transform *t = &g->inputs[0].intensity;
    const intensity_kind kinds[] = {INTENSITY_CLIP,  INTENSITY_SCALE, INTENSITY_LOG1P,
                                    INTENSITY_EXPM1, INTENSITY_SQRT,  INTENSITY_SQUARE};
    assert_int_equal(t->n, 6);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(t->step[i].kind, kinds[i]);
    assert_true(t->step[0].a == 0 && t->step[0].b == 40);
    assert_true(t->step[1].a == 0.5f && t->step[1].b == -1);
    assert_true(g->outputs[0].voxelwise);
    assert_memory_equal(g->total_stride, ((size_t[]){1, 1, 1}), sizeof g->total_stride);
    dm_model_free(model);
    free(card);
    free(text);
}

static void test_card_defaults(void **state)
{
    (void)state;
    weights_writer w;
    good_file(&w);
    json_object_clear(w.card);
    dm_model *model = load_or_fail(&w);
    assert_string_equal(dm_model_name(model), "test"); /* the graph's */
    assert_true(isinf(model->skip_air) && model->skip_air < 0);
    assert_int_equal(model->native_precisions, 1u << DM_PRECISION_FLOAT32);
    assert_false(model->graph.has_voxel_mm);
    dm_model_free(model);
    dm_model_free(NULL);
}

/* A kernel's element [o][i][a][b][c] is 10000 o + 1000 i + 100 a + 10 b + c. */
static void numbered_kernel(weights_writer *w, const char *name, const size_t shape[5])
{
    float values[256];
    size_t n = 0;
    for (size_t o = 0; o < shape[0]; o++)
        for (size_t i = 0; i < shape[1]; i++)
            for (size_t a = 0; a < shape[2]; a++)
                for (size_t b = 0; b < shape[3]; b++)
                    for (size_t c = 0; c < shape[4]; c++)
                        values[n++] = (float)(10000 * o + 1000 * i + 100 * a + 10 * b + c);
    weights_values(w, name, 5, shape, values);
}

static void anisotropic(weights_writer *w, const char *axes)
{
    weights_begin(w, axes, 5, 6, 7);
    weights_input(w, "x", 2);
    weights_output(w, "y", 2);
    numbered_kernel(w, "k", (size_t[]){2, 2, 1, 2, 3});
    weights_values(w, "per_channel", 5, (size_t[]){1, 2, 1, 1, 1}, (float[]){3, 4});
    /* the kernel is used twice, but turned once */
    weights_node(w, "Conv", "a", "x k", "u",
                 "{'kernel_shape': [1, 2, 3], 'strides': [1, 2, 3], 'dilations': [4, 5, 1], "
                 "'pads': [1, 2, 3, 4, 5, 6]}");
    weights_node(w, "ConvTranspose", "b", "x k", "v",
                 "{'kernel_shape': [1, 2, 3], 'strides': [1, 2, 3], 'output_padding': [0, 1, 2]}");
    weights_node(w, "Resize", "r", "x", "s", "{'scales': [1, 2, 3]}");
    weights_node(w, "Resize", "q", "x", "z", "{'sizes': [11, 12, 13]}");
    weights_node(w, "Slice", "c", "x", "p",
                 "{'starts': [1, 2], 'ends': [-1, 5], 'axes': [2, 4], 'steps': [1, 2]}");
    weights_node(w, "Mul", "m", "x per_channel", "y", NULL);
}

static void check_reversed(const int *values, bool xyz, int a, int b, int c)
{
    assert_int_equal(values[xyz ? 2 : 0], a);
    assert_int_equal(values[1], b);
    assert_int_equal(values[xyz ? 0 : 2], c);
}

static void test_spatial_axes(void **state)
{
    (void)state;
    for (int xyz = 0; xyz < 2; xyz++) {
        weights_writer w;
        anisotropic(&w, xyz ? "xyz" : "zyx");
        dm_model *model = load_or_fail(&w);
        const graph_node *node = model->graph.nodes;
        const graph_value *k = &model->graph.values[node[0].inputs[1]];
        const graph_value *s = &model->graph.values[node[5].inputs[1]];
        assert_int_equal(model->graph.axes_xyz, xyz);
        check_reversed(node[0].kernel, xyz, 1, 2, 3);
        check_reversed(node[0].stride, xyz, 1, 2, 3);
        check_reversed(node[0].dilation, xyz, 4, 5, 1);
        check_reversed(node[0].pad_begin, xyz, 1, 2, 3);
        check_reversed(node[0].pad_end, xyz, 4, 5, 6);
        check_reversed(node[1].output_padding, xyz, 0, 1, 2);
        check_reversed(node[3].sizes, xyz, 11, 12, 13);
        check_reversed(node[4].slice_begin, xyz, 1, 0, 2);
        check_reversed(node[4].slice_end, xyz, -1, INT_MAX, 5);
        check_reversed(node[4].slice_step, xyz, 1, 1, 2);
        assert_true(node[2].scales[xyz ? 2 : 0] == 1 && node[2].scales[xyz ? 0 : 2] == 3);
        assert_true(s->data[0] == 3 && s->data[1] == 4);
        const size_t d = xyz ? 3 : 1, h = 2, v = xyz ? 1 : 3; /* kernel in memory order */
        assert_memory_equal(k->shape, ((size_t[]){2, 2, d, h, v}), sizeof k->shape);
        for (size_t i = 0; i < k->count; i++) {
            size_t c = i % v, b = i / v % h, a = i / v / h % d, pair = i / v / h / d;
            size_t first = xyz ? c : a, last = xyz ? a : c;
            float expected =
                (float)(10000 * (pair / 2) + 1000 * (pair % 2) + 100 * first + 10 * b + last);
            assert_true(k->data[i] == expected);
        }
        /* the patch is x, y, z in either case */
        assert_memory_equal(model->graph.patch, ((size_t[]){5, 6, 7}), sizeof model->graph.patch);
        dm_model_free(model);
    }
}

static void test_graph_head(void **state)
{
    (void)state;
    const struct {
        const char *key, *value, *text;
    } cases[] = {
        {"graph_version", "'1'", "\"graph_version\" is missing or not an integer"},
        {"more", "1", "unknown key 'more'; known are: graph_version name"},
        {"voxel_size_mm", NULL, "the key 'voxel_size_mm' is missing"},
        {"nodes", NULL, "the key 'nodes' is missing"},
        {"name", "1", "\"name\" is not a string"},
        {"spatial_axes", "'yxz'", "\"spatial_axes\" is 'yxz'; it can be 'xyz' or 'zyx'"},
        {"spatial_axes", "1", "\"spatial_axes\" is 'not a string'"},
        {"orientation", "'RLS'", "\"orientation\" is 'RLS'"},
        {"orientation", "'RA'", "\"orientation\" is 'RA'"},
        {"orientation", "'RASS'", "\"orientation\" is 'RASS'"},
        {"orientation", "'ras'", "\"orientation\" is 'ras'"},
        {"patch_size", "[8, 8]", "\"patch_size\" is not a list of 3"},
        {"patch_size", "[8, 8, 0]", "\"patch_size\" is 0; 1 to 1024"},
        {"patch_size", "[8, 8, 1025]", "\"patch_size\" is 1025; 1 to 1024"},
        {"voxel_size_mm", "[1, 1, 0]", "\"voxel_size_mm\" is 0"},
        {"voxel_size_mm", "1", "\"voxel_size_mm\" is not a list"},
        {"inputs", "[]", "\"inputs\" is not a list of 1 to 16"},
        {"inputs", "[1]", "graph input 1: it is not an object"},
        {"outputs", "{}", "\"outputs\" is not a list of 1 to 16"},
        {"nodes", "[]", "\"nodes\" is not a list of 1 to"},
        {"nodes", "[1]", "graph node 1: it is not an object"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        weights_writer w;
        good_file(&w);
        if (cases[i].value)
            json_object_set_new(w.graph, cases[i].key, weights_json(cases[i].value));
        else
            json_object_del(w.graph, cases[i].key);
        expect_failure(&w, DM_ERROR_FORMAT, "graph", cases[i].text);
    }
    weights_writer w;
    good_file(&w);
    json_object_set_new(w.graph, "graph_version", json_integer(2));
    json_object_set_new(w.graph, "new_in_2", json_true());
    expect_failure(&w, DM_ERROR_UNSUPPORTED, "\"graph_version\" is 2; this program reads 1",
                   "use a newer dosemap");
}

static void test_orientations(void **state)
{
    (void)state;
    const char *good[] = {"RAS", "LPS", "IRP", "SAL", "AIR", "stored"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        weights_writer w;
        good_file(&w);
        json_object_set_new(w.graph, "orientation", json_string(good[i]));
        dm_model *model = load_or_fail(&w);
        assert_string_equal(model->graph.orientation, good[i]);
        dm_model_free(model);
    }
}

static void test_ports(void **state)
{
    (void)state;
    const struct {
        const char *list, *key, *value, *text;
    } cases[] = {
        {"inputs", "unit", "'SUV'", "\"unit\" is 'SUV'; 'uptake' is in g/mL"},
        {"outputs", "unit", "'mGy/MBq'", "\"unit\" is 'mGy/MBq'; 'dose_per_activity' is in Gy/GBq"},
        {"inputs", "channels", "0", "\"channels\" is 0; 1 to 1048576"},
        {"inputs", "channels", "2", "node 'conv' (Conv): weight 'weight'"},
        {"outputs", "channels", "3", "graph output 1: 'y' has 2 channels, not 3"},
        {"outputs", "name", "'x'", "graph output 1: 'x' has 1 channels, not 2"},
        {"outputs", "name", "'nothing'",
         "graph output 1: no node makes the output 'nothing', nor is it an input"},
        {"outputs", "name", "'weight'", "graph output 1: no node makes the output 'weight'"},
        {"inputs", "name", "'weight'", "graph input 1: the name 'weight' is already taken"},
        {"inputs", "more", "1", "graph input 1: unknown key 'more'"},
        {"inputs", "intensity", "{}", "\"intensity\" is not a list of at most 8"},
        {"inputs", "intensity", "[1]", "a step of \"intensity\" is none of"},
        {"inputs", "intensity", "[{'log': true}]", "a step of \"intensity\" is none of"},
        {"inputs", "intensity", "[{'log1p': 1}]", "a step of \"intensity\" is none of"},
        {"inputs", "intensity", "[{'log1p': true, 'sqrt': true}]", "is none of"},
        {"inputs", "intensity", "[{'scale': 2}]", "is none of"},
        {"inputs", "intensity", "[{'scale': 0, 'offset': 1}]", "\"scale\" is 0"},
        {"inputs", "intensity", "[{'scale': 1, 'offset': '1'}]", "\"offset\" is not a number"},
        {"inputs", "intensity", "[{'clip': [2, 1]}]", "\"clip\" is [2, 1]"},
        {"inputs", "intensity", "[{'clip': [2]}]", "\"clip\" is not a list of 2"},
        {"inputs", "intensity",
         "[{'sqrt': true}, {'sqrt': true}, {'sqrt': true}, {'sqrt': true}, {'sqrt': true}, "
         "{'sqrt': true}, {'sqrt': true}, {'sqrt': true}, {'sqrt': true}]",
         "at most 8"},
    };
    weights_writer w;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        good_file(&w);
        json_t *port = json_array_get(json_object_get(w.graph, cases[i].list), 0);
        json_object_set_new(port, cases[i].key, weights_json(cases[i].value));
        expect_failure(&w, DM_ERROR_FORMAT, "graph", cases[i].text);
    }
    good_file(&w);
    json_object_set_new(json_array_get(json_object_get(w.graph, "inputs"), 0), "quantity",
                        json_string("counts"));
    expect_failure(&w, DM_ERROR_UNSUPPORTED, "\"quantity\" is 'counts'", "uptake, suv, hu, dose");
}

static void test_unused_and_undefined(void **state)
{
    (void)state;
    weights_writer w;
    good_file(&w);
    weights_random(&w, "spare", 3, 1, 1, (size_t[]){2});
    expect_failure(&w, DM_ERROR_FORMAT, "no node uses the tensor 'spare'", "remove the tensor");
    good_file(&w);
    json_object_set_new(w.graph, "patch_size", weights_json("[8, 1, 8]"));
    json_object_set_new(
        json_object_get(json_array_get(json_object_get(w.graph, "nodes"), 0), "attributes"), "pads",
        weights_json("[0, 0, 0, 0, 0, 0]"));
    expect_failure(&w, DM_ERROR_FORMAT, "not defined for its patch_size 8, 1, 8",
                   "node 'conv' (Conv): along y, 1 voxels with padding do not hold the kernel's 3");
    good_file(&w); /* a branch that leads nowhere does no harm */
    weights_node(&w, "Relu", "dead", "t", "nowhere", NULL);
    dm_model_free(load_or_fail(&w));
}

static void test_metadata(void **state)
{
    (void)state;
    const char *keys[] = {"dosemap.format", "dosemap.graph", "dosemap.card", "dosemap.provenance",
                          "dosemap.xxh64"};
    weights_writer w;
    for (size_t i = 0; i < 5; i++) {
        good_file(&w);
        weights_metadata(&w, keys[i], NULL);
        expect_failure(&w, DM_ERROR_FORMAT, "its metadata has no '", keys[i]);
    }
    good_file(&w);
    weights_metadata(&w, "dosemap.format", "2");
    expect_failure(&w, DM_ERROR_UNSUPPORTED, "dosemap.format is '2'; this program reads 1",
                   "newer");
    good_file(&w);
    weights_metadata(&w, "dosemap.xxh64", "0123456789abcdef");
    expect_failure(&w, DM_ERROR_FORMAT, "dosemap.xxh64 says '0123456789abcdef'", "damaged");
    for (size_t i = 1; i < 4; i++) {
        good_file(&w);
        weights_metadata(&w, keys[i], "{\"a\": 1, \"a\": 2}");
        expect_failure(&w, DM_ERROR_FORMAT, keys[i], "duplicate");
    }
    good_file(&w);
    weights_metadata(&w, "dosemap.card", "[]");
    expect_failure(&w, DM_ERROR_FORMAT, "card: it is not an object", "");
    good_file(&w);
    weights_metadata(&w, "dosemap.graph", "[]");
    expect_failure(&w, DM_ERROR_FORMAT, "graph: \"graph_version\" is missing", "");
    char deep[401];
    memset(deep, '[', 200);
    memset(deep + 200, ']', 200);
    deep[400] = 0;
    good_file(&w);
    weights_metadata(&w, "dosemap.graph", deep);
    expect_failure(&w, DM_ERROR_FORMAT, "dosemap.graph", "more than 64 levels deep");
}

static void test_card(void **state)
{
    (void)state;
    const struct {
        const char *text, *message;
    } cases[] = {
        {"{'name': 1}", "card: \"name\" is not a string"},
        {"{'skip_air': '1'}", "card: \"skip_air\" is not a number"},
        {"{'precision': []}", "card: \"precision\" is not an object"},
        {"{'precision': {'bf16': {}}}",
         "card precision bf16: \"organ_mean_deviation_percent\" is not a number"},
        {"{'precision': {'fp16': {'organ_mean_deviation_percent': -1}}}", "card precision fp16"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        weights_writer w;
        good_file(&w);
        json_decref(w.card);
        w.card = weights_json(cases[i].text);
        expect_failure(&w, DM_ERROR_FORMAT, cases[i].message, "");
    }
}

static void test_not_finite(void **state)
{
    (void)state;
    weights_writer w;
    good_file(&w);
    const float nan_value = NAN;
    memcpy(w.data + 4 * 17, &nan_value, 4);
    expect_failure(&w, DM_ERROR_FORMAT, "tensor 'weight': element 17 of 54 is", "nan");
}

/* Cut anywhere, the file is refused. */
static void test_truncated_everywhere(void **state)
{
    (void)state;
    weights_writer w;
    size_t size = 0;
    dm_model *model = NULL;
    dm_error err;
    good_file(&w);
    uint8_t *image = weights_image(&w, NULL, &size);
    assert_int_equal(weights_load_bytes(image, size, &model, &err), DM_OK);
    dm_model_free(model);
    for (size_t n = 0; n < size; n++) {
        assert_int_equal(weights_load_bytes(image, n, &model, &err), DM_ERROR_FORMAT);
        assert_null(model);
    }
    free(image);
    weights_end(&w);
}

/* One bit wrong: in the data always found by the checksum; in the header refused, or at most
 * another valid file (a letter of a name). */
static void test_flipped_bits(void **state)
{
    (void)state;
    weights_writer w;
    size_t size = 0, refused = 0;
    dm_model *model = NULL;
    dm_error err;
    good_file(&w);
    uint8_t *image = weights_image(&w, NULL, &size);
    size_t data = size - w.data_size;
    for (size_t i = 0; i < size; i++) {
        image[i] ^= (uint8_t)(1u << (i * 5 % 8));
        dm_status status = weights_load_bytes(image, size, &model, &err);
        image[i] ^= (uint8_t)(1u << (i * 5 % 8));
        refused += status != DM_OK;
        assert_true((status == DM_OK) == (model != NULL));
        dm_model_free(model);
        if (i < 8)
            assert_int_equal(status, DM_ERROR_FORMAT);
        if (i >= data) {
            assert_int_equal(status, DM_ERROR_FORMAT);
            assert_non_null(strstr(err.what, "XXH64"));
        }
    }
    assert_true(refused > size / 2);
    free(image);
    weights_end(&w);
}

static void test_compressed(void **state)
{
    (void)state;
    weights_writer w;
    char path[] = "/tmp/dosemap-model-XXXXXX.safetensors.zst";
    dm_model *model = NULL;
    dm_error err = {0};
    good_file(&w);
    int fd = mkstemps(path, 16);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(weights_save(&w, path, &err), DM_OK);
    assert_int_equal(dm_model_load(path, &model, &err), DM_OK);
    assert_string_equal(dm_model_path(model), path);
    dm_model_free(model);
    unlink(path);
    weights_end(&w);
}

/* The weights in the repository: 7,946,292 and 1,987,868 parameters, and the running means and
 * variances of 1856 and 928 channels. */
static void test_shipped(void **state)
{
    (void)state;
    const struct {
        const char *file;
        size_t parameters;
    } shipped[] = {{"dosegan-constructed", 7946292 + 2 * 1856},
                   {"dosegan-16-constructed", 1987868 + 2 * 928}};
    for (size_t i = 0; i < 2; i++) {
        char path[1024], line[1600];
        dm_model *model = NULL;
        dm_error err = {0};
        snprintf(path, sizeof path, TEST_GOLDEN_DIR "/../../weights/%s.safetensors.zst",
                 shipped[i].file);
        if (dm_model_load(path, &model, &err) != DM_OK)
            fail_msg("%s", dm_error_text(&err, line, sizeof line));
        size_t parameters = 0;
        for (size_t v = 0; v < model->graph.n_values; v++)
            parameters += model->graph.values[v].count;
        assert_int_equal(parameters, shipped[i].parameters);
        assert_true(model->graph.outputs[0].voxelwise);
        assert_false(model->graph.per_tile_statistics);
        assert_memory_equal(model->graph.total_stride, ((size_t[]){8, 8, 8}), 24);
        assert_memory_equal(model->graph.patch, ((size_t[]){32, 32, 32}), 24);
        dm_model_free(model);
    }
}

static void test_no_file(void **state)
{
    (void)state;
    dm_model *model = NULL;
    dm_error err = {0};
    assert_int_equal(dm_model_load("/nowhere/a.safetensors.zst", &model, &err), DM_ERROR_IO);
    assert_string_equal(err.where, "/nowhere/a.safetensors.zst");
    assert_int_equal(dm_model_load("", &model, &err), DM_ERROR_VALUE);
    assert_int_equal(dm_model_load(NULL, &model, NULL), DM_ERROR_VALUE);
    assert_null(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_is_kept),
        cmocka_unit_test(test_card_defaults),
        cmocka_unit_test(test_spatial_axes),
        cmocka_unit_test(test_graph_head),
        cmocka_unit_test(test_orientations),
        cmocka_unit_test(test_ports),
        cmocka_unit_test(test_unused_and_undefined),
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_card),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_truncated_everywhere),
        cmocka_unit_test(test_flipped_bits),
        cmocka_unit_test(test_compressed),
        cmocka_unit_test(test_shipped),
        cmocka_unit_test(test_no_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
