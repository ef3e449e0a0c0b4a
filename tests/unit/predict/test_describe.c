/* SPDX-License-Identifier: Apache-2.0 */
/* dm_model_describe: text and JSON. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "model/graph.h"
#include "weights_writer.h"

static dm_model *load_shipped(void)
{
    char path[1024], text[2048];
    dm_model *model = NULL;
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/../../weights/dosegan-16-constructed.safetensors.zst",
             TEST_GOLDEN_DIR);
    if (dm_model_load(path, &model, &err) != DM_OK)
        fail_msg("%s", dm_error_text(&err, text, sizeof text));
    return model;
}

static char *describe(const dm_model *model, const size_t *tile, dm_precision precision, bool json)
{
    char *text = NULL;
    dm_error err = {0};
    dm_describe_options options = {.precision = precision, .as_json = json};
    if (tile)
        memcpy(options.tile, tile, sizeof options.tile);
    if (dm_model_describe(model, &options, &text, &err) != DM_OK)
        fail_msg("%s", err.what);
    return text;
}

static json_t *describe_json(const dm_model *model, const size_t *tile, dm_precision precision)
{
    char *text = describe(model, tile, precision, true);
    json_error_t e;
    json_t *report = json_loads(text, JSON_REJECT_DUPLICATES, &e);
    if (!report)
        fail_msg("line %d: %s", e.line, e.text);
    dm_string_free(text);
    return report;
}

static void has(const char *text, const char *part)
{
    if (strstr(text, part))
        return;
    fputs(text, stderr);
    fail_msg("\"%s\" is not there", part);
}

/* Characters a line takes on a terminal. */
static size_t columns(const char *line, size_t bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++)
        n += ((unsigned char)line[i] & 0xc0) != 0x80;
    return n;
}

static void check_lines(const char *text)
{
    for (const char *line = text; *line;) {
        size_t n = strcspn(line, "\n");
        assert_int_equal(line[n], '\n');
        if (columns(line, n) > 100 && memchr(line, ' ', n) && !strstr(line, "safetensors"))
            fail_msg("%zu columns: %.*s", columns(line, n), (int)n, line);
        if (n && line[n - 1] == ' ')
            fail_msg("a space at the end: %.*s", (int)n, line);
        line += n + 1;
    }
}

static void test_text_of_a_shipped_network(void **state)
{
    (void)state;
    dm_model *model = load_shipped();
    char *text = describe(model, NULL, DM_PRECISION_FLOAT32, false);
    has(text, "dosegan-16-constructed, version 1\n");
    has(text, "CONSTRUCTED, NOT TRAINED");
    has(text, "constructed, not trained\n");
    has(text, "Apache-2.0\n");
    has(text, "pet: 1 channel, uptake in g/mL\n");
    has(text, "dose: 1 channel, dose_per_activity in Gy/GBq\n");
    has(text, "RAS; the network's axes are x, y, z\n");
    has(text, "multiples of 8 x 8 x 8 voxels\n");
    has(text, "Graph, 80 nodes\n");
    has(text, "3^3 stride 2 pad 1\n");
    has(text, "Plan for a tile of 32 x 32 x 32 voxels in float32, 33 steps\n");
    has(text, "+bias leaky_relu(0.2)");
    has(text, "mul(gate_0_sigmoid)");
    has(text, " GFLOP per window, ");
    has(text, "3 steps write over what they read (=), 6 into a concatenation (+); 0 copies\n");
    check_lines(text);
    dm_string_free(text);
    dm_model_free(model);
}

static double number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    if (!json_is_number(value))
        fail_msg("'%s' is not a number", key);
    return json_number_value(value);
}

static void check_triple(const json_t *object, const char *key, int x, int y, int z)
{
    const json_t *list = json_object_get(object, key);
    assert_int_equal(json_array_size(list), 3);
    assert_int_equal(json_integer_value(json_array_get(list, 0)), x);
    assert_int_equal(json_integer_value(json_array_get(list, 1)), y);
    assert_int_equal(json_integer_value(json_array_get(list, 2)), z);
}

static void test_json_of_a_shipped_network(void **state)
{
    (void)state;
    dm_model *model = load_shipped();
    json_t *report = describe_json(model, (size_t[]){16, 24, 40}, DM_PRECISION_FLOAT32);
    json_t *plan = json_object_get(report, "plan"), *steps = json_object_get(plan, "steps"), *step;
    double sums[4] = {0};
    size_t i;
    json_array_foreach(steps, i, step)
    {
        sums[0] += number(step, "flop");
        sums[1] += number(step, "useful_flop");
        sums[2] += number(step, "bytes");
        sums[3] += number(step, "weight_bytes");
    }
    assert_int_equal(json_array_size(steps), 33);
    assert_true(fabs(sums[0] - number(plan, "flop")) < 1);
    assert_true(fabs(sums[1] - number(plan, "useful_flop")) < 1);
    assert_true(fabs(sums[2] - number(plan, "bytes")) < 1);
    assert_true(fabs(sums[3] - number(plan, "weight_bytes")) < 1);
    check_triple(plan, "tile", 16, 24, 40);
    check_triple(json_object_get(json_array_get(steps, 0), "in"), "size", 16, 24, 40);
    check_triple(report, "tile_multiple", 8, 8, 8);
    assert_true(json_is_false(json_object_get(json_object_get(report, "card"), "trained")));
    assert_int_equal(json_array_size(json_object_get(json_object_get(report, "graph"), "nodes")),
                     80);
    assert_string_equal(json_string_value(json_object_get(plan, "precision")), "float32");
    /* Convolution weights and biases, scale and shift of the norms. */
    double parameters = 0;
    for (size_t v = 0; v < model->graph.n_values; v++)
        parameters += (double)model->graph.values[v].count;
    assert_true(fabs(number(report, "parameters") + number(report, "statistics") - parameters) < 1);
    json_decref(report);
    dm_model_free(model);
}

static void test_half_precision_halves_the_arena(void **state)
{
    (void)state;
    dm_model *model = load_shipped();
    json_t *single = describe_json(model, NULL, DM_PRECISION_AUTO);
    json_t *half = describe_json(model, NULL, DM_PRECISION_BF16);
    json_t *a = json_object_get(single, "plan"), *b = json_object_get(half, "plan");
    assert_true(number(b, "arena_bytes") * 2 <= number(a, "arena_bytes") + 128);
    assert_true(number(b, "bytes") < 0.52 * number(a, "bytes"));
    assert_string_equal(json_string_value(json_object_get(b, "precision")), "bf16");
    json_decref(single);
    json_decref(half);
    dm_model_free(model);
}

static void test_a_tile_that_does_not_fit(void **state)
{
    (void)state;
    dm_model *model = load_shipped();
    for (int json = 0; json < 2; json++) {
        char *text = (char *)model;
        dm_error err = {0};
        const dm_describe_options options = {.tile = {32, 20, 32}, .as_json = json};
        assert_int_equal(dm_model_describe(model, &options, &text, &err), DM_ERROR_VALUE);
        assert_null(text);
        has(err.where, "dosegan-16-constructed.safetensors.zst");
        has(err.what, "32 x 20 x 32");
        has(err.remedy, "use 16 or 24 along y");
    }
    dm_model_free(model);
}

/* Every operator that has something to say about itself, and names that do not fit a line. */
static void write_odd_network(weights_writer *w)
{
    weights_begin(w, "zyx", 8, 8, 8);
    weights_input(w, "x", 2);
    weights_output(w, "y", 1);
    weights_random(w, "w", 1, 0.3f, 5, (size_t[]){2, 2, 3, 1, 5});
    weights_random(w, "u", 2, 0.3f, 5, (size_t[]){1, 16, 1, 1, 1});
    weights_random(w, "one", 3, 0.3f, 1, (size_t[]){2});
    weights_node(w, "Conv", "a-node-with-a-name-that-is-much-longer-than-a-column-of-the-table",
                 "x w", "a-value-whose-name-is-longer-than-any-cell-of-the-table-should-be-wide",
                 "{'kernel_shape': [3, 1, 5], 'pads': [1, 0, 2, 1, 0, 2]}");
    weights_node(w, "GroupNormalization", "norm",
                 "a-value-whose-name-is-longer-than-any-cell-of-the-table-should-be-wide one one",
                 "n", "{'num_groups': 2}");
    weights_node(w, "Gelu", "gelu", "n", "g", "{'approximate': 'tanh'}");
    weights_node(w, "MaxPool", "pool", "g", "p",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2], 'ceil_mode': 1}");
    weights_node(w, "Clip", "clip", "p", "b", "{'min': -1, 'max': 500}");
    weights_node(w, "Resize", "grow", "b", "r",
                 "{'mode': 'nearest', 'scales': [2.0, 2.0, 2.0], 'nearest_mode': 'floor'}");
    weights_node(w, "Pad", "pad", "r", "q", "{'pads': [1, 0, 0, 0, 0, 0], 'mode': 'edge'}");
    weights_node(w, "Slice", "cut", "q", "s",
                 "{'starts': [1], 'ends': [9], 'axes': [2], 'steps': [1]}");
    weights_node(w, "Concat", "cat", "s s x s n n x x", "c", NULL);
    weights_node(w, "Conv", "head", "c u", "y", "{'kernel_shape': [1, 1, 1]}");
}

static void test_text_of_an_odd_network(void **state)
{
    (void)state;
    weights_writer w;
    dm_model *model = NULL;
    dm_error err = {0};
    char message[2048];
    write_odd_network(&w);
    json_t *input = json_array_get(json_object_get(w.graph, "inputs"), 0);
    json_object_set_new(input, "intensity",
                        weights_json("[{'scale': 0.5, 'offset': 1}, {'clip': [0, 30]},"
                                     " {'log1p': true}]"));
    json_object_set_new(w.card, "summary", json_string("red \x1b[31m and \xc2\x9b bells \a"));
    json_object_set_new(w.card, "who_made_it",
                        weights_json("['\u00e9\u00e8 two words', {'a': 1}, 3]"));
    if (weights_load(&w, &model, &err) != DM_OK)
        fail_msg("%s", dm_error_text(&err, message, sizeof message));
    char *text = describe(model, NULL, DM_PRECISION_FLOAT32, false);
    has(text, "test, version 1\nred ?[31m and ? bells ?\n");
    has(text, "who made it     - \xc3\xa9\xc3\xa8 two words\n                - {\"a\": 1}\n"
              "                - 3\n");
    has(text, "x: 2 channels, uptake in g/mL; times 0.5 plus 1, clip to [0, 30], log1p\n");
    has(text, "the network's axes are z, y, x\n");
    has(text, "statistics per tile");
    has(text, "  5x1x3 pad 2,0,1\n");
    has(text, "  groups 2\n");
    has(text, "  2^3 stride 2 ceil\n");
    has(text, "  nearest by 2,2,2 ha..\n");
    has(text, "  edge pad_begin 0,0,1\n");
    has(text, "  min -1 max 500\n");
    has(text, "max(-1) min(500)");
    has(text, "  channels 0:2:1 z 1:..\n");
    has(text, "a-node-with-a-name");
    assert_null(strchr(text, '\x1b'));
    check_lines(text);
    dm_string_free(text);
    json_t *report = describe_json(model, NULL, DM_PRECISION_FLOAT32);
    assert_true(json_is_true(json_object_get(report, "per_tile_statistics")));
    assert_true(number(json_object_get(report, "plan"), "copies") >= 5);
    json_decref(report);
    text = describe(model, NULL, DM_PRECISION_FLOAT32, true);
    has(text, "\"op\": \"max\"");
    has(text, "\"alpha\": 500.0");
    dm_string_free(text);
    dm_model_free(model);
    weights_end(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_of_a_shipped_network),
        cmocka_unit_test(test_json_of_a_shipped_network),
        cmocka_unit_test(test_half_precision_halves_the_arena),
        cmocka_unit_test(test_a_tile_that_does_not_fit),
        cmocka_unit_test(test_text_of_an_odd_network),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
