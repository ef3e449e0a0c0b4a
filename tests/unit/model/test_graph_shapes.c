/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes of operators against counting their windows; the step of tiles that follows from them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <limits.h>

#include "model/graph.h"
#include "weights_writer.h"

/* ---- Sizes ---------------------------------------------------------------------------------- */

static graph_node plain_node(op_kind op)
{
    graph_node node = {.op = op};
    for (int i = 0; i < 3; i++) {
        node.kernel[i] = node.stride[i] = node.dilation[i] = node.slice_step[i] = 1;
        node.slice_end[i] = INT_MAX;
    }
    return node;
}

/* Output size along the first axis; 0 if there is none. */
static size_t size_of(const graph_node *node, size_t n)
{
    char reason[200] = "";
    size_t in[3] = {n, n, n}, out[3] = {0, 0, 0};
    bool ok = node_output_size(node, in, out, reason, sizeof reason);
    assert_true(ok == !reason[0]); /* a reason exactly where there is no size */
    return ok ? out[0] : 0;
}

/* Windows of extent e that fit into n voxels with padding, by counting them one after another.
 * Ceil mode: PyTorch and ONNX also take a last one that runs over the end, if it begins inside the
 * input or the padding before it. */
static size_t count_windows(int n, int p0, int p1, int e, int stride, bool ceil_mode)
{
    size_t count = 0;
    int begin = -p0;
    for (; begin + e <= n + p1; begin += stride)
        count++;
    bool covered = count && begin - stride + e == n + p1;
    return count + (count && ceil_mode && !covered && begin < n);
}

static void test_window_sizes(void **state)
{
    (void)state;
    size_t checked = 0;
    for (int kernel = 1; kernel <= 5; kernel++)
        for (int stride = 1; stride <= 4; stride++)
            for (int dilation = 1; dilation <= 2; dilation++)
                for (int p0 = 0; p0 <= 2; p0++)
                    for (int p1 = 0; p1 <= 2; p1++)
                        for (int n = 1; n <= 17; n++) {
                            graph_node node = plain_node(OP_CONV);
                            int extent = (kernel - 1) * dilation + 1;
                            for (int i = 0; i < 3; i++) {
                                node.kernel[i] = kernel;
                                node.stride[i] = stride;
                                node.dilation[i] = dilation;
                                node.pad_begin[i] = p0;
                                node.pad_end[i] = p1;
                            }
                            assert_int_equal(size_of(&node, (size_t)n),
                                             count_windows(n, p0, p1, extent, stride, false));
                            if (p0 >= extent || p1 >= extent || (p0 && dilation > n))
                                continue; /* not a pool that loads, or not a tile it takes */
                            node.op = OP_MAX_POOL;
                            for (int ceil_mode = 0; ceil_mode < 2; ceil_mode++) {
                                node.ceil_mode = ceil_mode;
                                assert_int_equal(
                                    size_of(&node, (size_t)n),
                                    count_windows(n, p0, p1, extent, stride, ceil_mode));
                                checked++;
                            }
                        }
    assert_true(checked > 5000);
}

/* A window that begins in the padding must not step over an input smaller than its dilation. */
static void test_max_pool_without_a_voxel(void **state)
{
    (void)state;
    graph_node node = plain_node(OP_MAX_POOL);
    for (int i = 0; i < 3; i++) {
        node.kernel[i] = 2;
        node.dilation[i] = 2;
        node.pad_begin[i] = node.pad_end[i] = 1;
    }
    assert_int_equal(size_of(&node, 1), 0);
    assert_int_equal(size_of(&node, 2), 2);
}

/* A transposed convolution undoes the convolution's size, and output_padding fills the remainder.
 */
static void test_transposed_sizes(void **state)
{
    (void)state;
    for (int kernel = 1; kernel <= 5; kernel++)
        for (int stride = 1; stride <= 4; stride++)
            for (int dilation = 1; dilation <= 2; dilation++)
                for (int p = 0; p <= 1; p++)
                    for (int n = 5; n <= 20; n++) {
                        graph_node down = plain_node(OP_CONV);
                        for (int i = 0; i < 3; i++) {
                            down.kernel[i] = kernel;
                            down.stride[i] = stride;
                            down.dilation[i] = dilation;
                            down.pad_begin[i] = down.pad_end[i] = p;
                        }
                        size_t small = size_of(&down, (size_t)n);
                        if (!small)
                            continue;
                        graph_node up = down;
                        up.op = OP_CONV_TRANSPOSE;
                        int rest = (n + 2 * p - (kernel - 1) * dilation - 1) % stride;
                        for (int i = 0; i < 3; i++)
                            up.output_padding[i] = rest;
                        assert_int_equal(size_of(&up, small), n);
                    }
    graph_node all_cut = plain_node(OP_CONV_TRANSPOSE);
    all_cut.pad_begin[0] = all_cut.pad_end[0] = 1;
    assert_int_equal(size_of(&all_cut, 2), 0);
    assert_int_equal(size_of(&all_cut, 3), 1);
}

static void test_other_sizes(void **state)
{
    (void)state;
    graph_node node = plain_node(OP_RESIZE);
    const struct {
        double scale;
        size_t in, out;
    } resize[] = {{2, 7, 14},  {0.5, 7, 3},     {1.5, 5, 7},
                  {0.3, 3, 0}, {1.0 / 3, 9, 3}, {1024, 1, 1024}};
    for (size_t i = 0; i < sizeof resize / sizeof resize[0]; i++) {
        node.scales[0] = node.scales[1] = node.scales[2] = resize[i].scale;
        assert_int_equal(size_of(&node, resize[i].in), resize[i].out);
    }
    node.sizes[0] = node.sizes[1] = node.sizes[2] = 11;
    assert_int_equal(size_of(&node, 3), 11);

    node = plain_node(OP_PAD);
    node.pad_begin[0] = 2;
    node.pad_end[0] = 3;
    assert_int_equal(size_of(&node, 3), 8);
    node.pad = PAD_REFLECT;
    assert_int_equal(size_of(&node, 3), 0); /* three voxels reflect two */
    assert_int_equal(size_of(&node, 4), 9);

    node = plain_node(OP_GLOBAL_AVERAGE_POOL);
    assert_int_equal(size_of(&node, 17), 1);
    node = plain_node(OP_RELU);
    assert_int_equal(size_of(&node, 17), 17);
    assert_int_equal(size_of(&node, 0), 0);
    assert_int_equal(size_of(&node, GRAPH_MAX_EXTENT), GRAPH_MAX_EXTENT);
    assert_int_equal(size_of(&node, GRAPH_MAX_EXTENT + 1), 0);
    node = plain_node(OP_CONV_TRANSPOSE);
    node.stride[0] = node.stride[1] = node.stride[2] = 1024;
    assert_int_equal(size_of(&node, GRAPH_MAX_EXTENT), 0);
}

/* Each axis on its own, and the reason names it. */
static void test_axes_are_separate(void **state)
{
    (void)state;
    graph_node node = plain_node(OP_CONV);
    size_t in[3] = {4, 5, 6}, out[3];
    char reason[200];
    memcpy(node.stride, (int[]){1, 2, 3}, sizeof node.stride);
    memcpy(node.kernel, (int[]){1, 2, 3}, sizeof node.kernel);
    assert_true(node_output_size(&node, in, out, reason, sizeof reason));
    assert_int_equal(out[0], 4);
    assert_int_equal(out[1], 2);
    assert_int_equal(out[2], 2);
    in[1] = 1;
    assert_false(node_output_size(&node, in, out, reason, sizeof reason));
    assert_non_null(strstr(reason, "along y"));
    assert_false(node_output_size(&node, in, out, NULL, 0));
}

/* numpy's a[begin:end:step] as a list of picks. */
static void test_slices(void **state)
{
    (void)state;
    const int ends[] = {INT_MIN, -8, -7, -3, -1, 0, 1, 3, 6, 7, 8, INT_MAX};
    const size_t n_ends = sizeof ends / sizeof ends[0];
    for (int n = 1; n <= 7; n += 3)
        for (size_t b = 0; b < n_ends; b++)
            for (size_t e = 0; e < n_ends; e++)
                for (int step = 1; step <= 4; step++) {
                    long from = ends[b] < 0 ? (long)ends[b] + n : ends[b];
                    long to = ends[e] < 0 ? (long)ends[e] + n : ends[e];
                    size_t picks = 0, first = 0, count = 0, got = 0;
                    long i = from < 0 ? 0 : from;
                    size_t expected_first = (size_t)i;
                    for (; i < n && i < to; i += step)
                        picks++;
                    bool ok = slice_resolve(ends[b], ends[e], step, (size_t)n, &first, &count);
                    got = ok ? count : 0;
                    assert_int_equal(got, picks);
                    if (ok)
                        assert_int_equal(first, expected_first);
                }
}

/* ---- Total stride --------------------------------------------------------------------------- */

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

#define HALVE "'kernel_shape': [3, 3, 3], 'pads': [1, 1, 1, 1, 1, 1]"

/* `levels` halvings with a kernel of 3 and doublings back, joined where `skips`. */
static dm_model *hourglass(const char *axes, int patch, int levels, const char *strides, bool skips,
                           const char *up_op, const char *up_attributes)
{
    weights_writer w;
    char attributes[200], in[40] = "x", out[40], both[96];
    weights_begin(&w, axes, patch, patch, patch);
    weights_input(&w, "x", 2);
    weights_random(&w, "w", 5, 0.1f, 5, (size_t[]){2, 2, 3, 3, 3});
    if (!strcmp(up_op, "ConvTranspose"))
        weights_random(&w, "t", 6, 0.1f, 5, (size_t[]){2, 2, 2, 2, 2});
    snprintf(attributes, sizeof attributes, "{" HALVE ", 'strides': %s}", strides);
    for (int i = 0; i < levels; i++) {
        snprintf(out, sizeof out, "down%d", i);
        weights_node(&w, "Conv", out, strcat(strcpy(both, in), " w"), out, attributes);
        strcpy(in, out);
    }
    for (int i = levels - 1; i >= 0; i--) {
        char up[40], skip[40];
        snprintf(up, sizeof up, "up%d", i);
        snprintf(out, sizeof out, "sum%d", i);
        if (i)
            snprintf(skip, sizeof skip, "down%d", i - 1);
        else
            strcpy(skip, "x");
        snprintf(both, sizeof both, "%s%s", in, !strcmp(up_op, "ConvTranspose") ? " t" : "");
        weights_node(&w, up_op, up, both, up, up_attributes);
        snprintf(both, sizeof both, "%s %s", up, skips ? skip : up);
        weights_node(&w, "Add", out, both, out, NULL);
        strcpy(in, out);
    }
    weights_output(&w, in, 2);
    return expect_success(&w);
}

#define DOUBLE "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}"

static void check_stride(dm_model *model, bool voxelwise, size_t z, size_t y, size_t x)
{
    const size_t expected[3] = {z, y, x};
    assert_int_equal(model->graph.outputs[0].voxelwise, voxelwise);
    for (int i = 0; i < 3; i++)
        assert_int_equal(model->graph.total_stride[i], expected[i]);
    dm_model_free(model);
}

static void test_total_stride(void **state)
{
    (void)state;
    const char *two = "[2, 2, 2]", *t = "ConvTranspose";
    check_stride(hourglass("xyz", 32, 3, two, true, t, DOUBLE), true, 8, 8, 8);
    check_stride(hourglass("xyz", 32, 4, two, true, t, DOUBLE), true, 16, 16, 16);
    check_stride(hourglass("xyz", 32, 5, two, true, t, DOUBLE), true, 32, 32, 32);
    check_stride(hourglass("xyz", 24, 3, two, true, t, DOUBLE), true, 8, 8, 8);
    check_stride(hourglass("zyx", 32, 2, two, false, t, DOUBLE), true, 4, 4, 4);
    check_stride(hourglass("zyx", 7, 2, "[1, 1, 1]", true, "Resize", "{'scales': [1, 1, 1]}"), true,
                 1, 1, 1);
    check_stride(hourglass("xyz", 32, 2, two, true, "Resize", "{'scales': [2, 2, 2]}"), true, 4, 4,
                 4);
    check_stride(hourglass("zyx", 36, 2, "[1, 2, 3]", true, "Resize", "{'scales': [1, 2, 3]}"),
                 true, 1, 4, 9);
    check_stride(hourglass("xyz", 36, 2, "[1, 2, 3]", true, "Resize", "{'scales': [1, 2, 3]}"),
                 true, 9, 4, 1);
    /* an output of another size than the input's */
    check_stride(hourglass("zyx", 12, 1, two, false, "Resize", "{'sizes': [5, 6, 7]}"), false, 1, 1,
                 1);
    /* only ever this size: any other step would be wrong */
    check_stride(hourglass("zyx", 12, 1, two, false, "Resize", "{'sizes': [12, 12, 12]}"), true, 12,
                 12, 12);
}

/* A tile that is a multiple of the stride works and others do not. */
static void test_stride_is_the_smallest(void **state)
{
    (void)state;
    dm_model *model = hourglass("xyz", 24, 3, "[2, 2, 2]", true, "ConvTranspose", DOUBLE);
    const graph *g = &model->graph;
    size_t sizes[64][3];
    char reason[300];
    assert_true(g->n_values <= 64);
    for (size_t n = 1; n <= 100; n++) {
        size_t tile[3] = {24, n, 24};
        bool defined = graph_sizes(g, tile, sizes, reason, sizeof reason);
        /* At one voxel the skips broadcast, and the output is larger than the tile. */
        bool same = defined && !memcmp(sizes[g->outputs[0].value], tile, sizeof tile);
        assert_int_equal(same, n % 8 == 0);
        if (!defined)
            assert_non_null(strstr(reason, "(Add): 'up"));
    }
    dm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_window_sizes),      cmocka_unit_test(test_max_pool_without_a_voxel),
        cmocka_unit_test(test_transposed_sizes),  cmocka_unit_test(test_other_sizes),
        cmocka_unit_test(test_axes_are_separate), cmocka_unit_test(test_slices),
        cmocka_unit_test(test_total_stride),      cmocka_unit_test(test_stride_is_the_smallest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
