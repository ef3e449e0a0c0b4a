/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of our own against the plan interpreter: each from and to views, in float32 and bf16. */
#include "network_case.h"

/* A step before its tensors are known. */
typedef struct step_case {
    const char *name;
    step_kind kind;
    op_kind op;
    size_t channels;
    size_t dim[3];
    graph_node node; /* only what differs from the defaults; kernel 0 counts as 1 */
    bool affine;
    size_t n_chain;
    chain_op chain[4];
} step_case;

static const element_type types[] = {ELEMENT_F32, ELEMENT_BF16};

/* What the result differs by: float32 sums in another order, one rounding to bf16. */
static double tolerance(element_type type)
{
    return type == ELEMENT_BF16 ? 1.0 / 128 : 2e-6;
}

static void set_node(graph_node *node, const graph_node *from)
{
    node->groups = from->groups ? from->groups : 1;
    node->ceil_mode = from->ceil_mode;
    node->count_include_pad = from->count_include_pad;
    node->pad = from->pad;
    node->pad_value = from->pad_value;
    node->resize = from->resize;
    node->coordinates = from->coordinates;
    node->nearest_floor = from->nearest_floor;
    node->channel_begin = from->channel_begin;
    node->channel_step = from->channel_step ? from->channel_step : 1;
    for (int a = 0; a < 3; a++) {
        node->kernel[a] = from->kernel[a] ? from->kernel[a] : 1;
        node->stride[a] = from->stride[a] ? from->stride[a] : 1;
        node->dilation[a] = from->dilation[a] ? from->dilation[a] : 1;
        node->pad_begin[a] = from->pad_begin[a];
        node->pad_end[a] = from->pad_end[a];
        node->scales[a] = from->scales[a];
        node->sizes[a] = from->sizes[a];
        node->slice_begin[a] = from->slice_begin[a];
        node->slice_end[a] = from->slice_end[a] ? from->slice_end[a] : INT32_MAX;
        node->slice_step[a] = from->slice_step[a] ? from->slice_step[a] : 1;
    }
}

static bool run_case(const step_case *c, element_type type)
{
    network_case k;
    size_t out[3], channels = c->channels;
    char reason[200] = "";
    case_begin(&k, type);
    k.step.kind = c->kind;
    k.node.op = c->op;
    set_node(&k.node, &c->node);
    assert_true(node_output_size(&k.node, c->dim, out, reason, sizeof reason));
    if (c->op == OP_SLICE)
        channels = (channels - (size_t)k.node.channel_begin - 1) / (size_t)k.node.channel_step + 1;
    k.step.in = case_tensor(&k, type, c->channels, c->dim[0], c->dim[1], c->dim[2], 1, 2);
    k.step.out = case_tensor(&k, type, channels, out[0], out[1], out[2], 3, 0);
    if (c->affine) {
        k.step.scale = case_floats(&k, channels);
        k.step.shift = case_floats(&k, channels);
    }
    for (size_t i = 0; i < c->n_chain; i++)
        case_link(&k, c->chain[i], k.step.in, 0.3f);
    bool ok = case_agrees(&k, tolerance(type) / 4, tolerance(type));
    if (!ok)
        fprintf(stderr, "^ %s, %s\n", c->name, type == ELEMENT_BF16 ? "bf16" : "float32");
    case_end(&k);
    return ok;
}

static void run_cases(const step_case *cases, size_t n)
{
    int failures = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t t = 0; t < 2; t++)
            failures += !run_case(&cases[i], types[t]);
    assert_int_equal(failures, 0);
}
#define RUN(cases) run_cases(cases, sizeof(cases) / sizeof *(cases))

static void test_norm(void **state)
{
    (void)state;
    static const step_case cases[] = {
        {"instance", STEP_NORM, OP_INSTANCE_NORM, 7, .dim = {5, 3, 11}, .affine = true},
        {"instance, no affine, leaky",
         STEP_NORM,
         OP_INSTANCE_NORM,
         32,
         {4, 4, 4},
         .n_chain = 1,
         .chain = {CHAIN_LEAKY_RELU}},
        {"instance, many rows", STEP_NORM, OP_INSTANCE_NORM, 3, .dim = {17, 19, 23},
         .affine = true},
        {"instance, one channel", STEP_NORM, OP_INSTANCE_NORM, 1, .dim = {13, 7, 5},
         .affine = true},
        {"group", STEP_NORM, OP_GROUP_NORM, 12, .dim = {5, 3, 11}, .node = {.groups = 3},
         .affine = true},
        {"group of all",
         STEP_NORM,
         OP_GROUP_NORM,
         10,
         {9, 5, 11},
         {.groups = 1},
         .affine = true,
         .n_chain = 2,
         .chain = {CHAIN_ADD_TENSOR, CHAIN_RELU}},
    };
    RUN(cases);
}

/* A mean a thousand times the deviation: E[x^2] - mean^2 in float32 has no correct digit left. */
static void test_norm_far_from_zero(void **state)
{
    (void)state;
    enum { VOXELS = 4096, CHANNELS = 3 };
    const size_t count = (size_t)VOXELS * CHANNELS;
    network_case k;
    dm_error err = {0};
    network *net;
    worker *w;
    case_begin(&k, ELEMENT_F32);
    k.step.kind = STEP_NORM;
    k.node.op = OP_INSTANCE_NORM;
    k.step.in = case_tensor(&k, ELEMENT_F32, CHANNELS, 16, 16, 16, 0, 0);
    k.step.out = case_tensor(&k, ELEMENT_F32, CHANNELS, 16, 16, 16, 0, 0);
    case_ends(&k);
    assert_int_equal(network_create(&k.p, 1, &net, &err), DM_OK);
    assert_int_equal(worker_create(net, &w, &err), DM_OK);
    float *in = worker_arena(w), *out = in + k.tensors[k.step.out].offset / sizeof(float);
    double mean[CHANNELS] = {0}, variance[CHANNELS] = {0};
    for (size_t i = 0; i < count; i++) {
        in[i] = 1000.0f + case_random(&k);
        mean[i % CHANNELS] += (double)in[i] / VOXELS;
    }
    for (size_t i = 0; i < count; i++) {
        double d = (double)in[i] - mean[i % CHANNELS];
        variance[i % CHANNELS] += d * d / VOXELS;
    }
    assert_int_equal(worker_run(w, &err), DM_OK);
    for (size_t i = 0; i < count; i++) {
        double want = ((double)in[i] - mean[i % CHANNELS]) /
                      sqrt(variance[i % CHANNELS] + (double)k.node.epsilon);
        assert_true(fabs((double)out[i] - want) <= 1e-4);
    }
    worker_free(w);
    network_free(net);
    case_end(&k);
}

static void test_pools(void **state)
{
    (void)state;
    static const step_case cases[] = {
        {"max 2",
         STEP_MAX_POOL,
         OP_MAX_POOL,
         8,
         {6, 4, 8},
         .node = {.kernel = {2, 2, 2}, .stride = {2, 2, 2}}},
        {"max 3 padded, ceil",
         STEP_MAX_POOL,
         OP_MAX_POOL,
         5,
         {6, 7, 8},
         .node = {.kernel = {3, 3, 3},
                  .stride = {2, 2, 2},
                  .pad_begin = {1, 1, 1},
                  .pad_end = {1, 1, 1},
                  .ceil_mode = true}},
        {"max dilated",
         STEP_MAX_POOL,
         OP_MAX_POOL,
         3,
         {9, 8, 7},
         .node = {.kernel = {3, 2, 2},
                  .stride = {1, 2, 1},
                  .dilation = {2, 3, 2},
                  .pad_begin = {2, 1, 0},
                  .pad_end = {1, 1, 1}},
         .n_chain = 1,
         .chain = {CHAIN_SIGMOID}},
        {"average 2",
         STEP_AVERAGE_POOL,
         OP_AVERAGE_POOL,
         8,
         {6, 4, 8},
         .node = {.kernel = {2, 2, 2}, .stride = {2, 2, 2}}},
        {"average padded",
         STEP_AVERAGE_POOL,
         OP_AVERAGE_POOL,
         5,
         {6, 7, 8},
         .node = {.kernel = {3, 3, 3},
                  .stride = {2, 2, 2},
                  .pad_begin = {1, 1, 1},
                  .pad_end = {1, 1, 1},
                  .ceil_mode = true}},
        {"average padded and counted",
         STEP_AVERAGE_POOL,
         OP_AVERAGE_POOL,
         5,
         {6, 7, 8},
         .node = {.kernel = {3, 3, 3},
                  .stride = {2, 2, 2},
                  .pad_begin = {1, 1, 0},
                  .pad_end = {1, 1, 0},
                  .ceil_mode = true,
                  .count_include_pad = true}},
        {"global",
         STEP_GLOBAL_AVERAGE_POOL,
         OP_GLOBAL_AVERAGE_POOL,
         19,
         {13, 7, 11},
         .n_chain = 1,
         .chain = {CHAIN_AFFINE}},
    };
    RUN(cases);
}

static void test_resize(void **state)
{
    (void)state;
    static step_case cases[64];
    size_t n = 0;
    for (int coordinates = 0; coordinates < 3; coordinates++)
        for (int mode = 0; mode < 3; mode++)
            for (int size = 0; size < 4; size++) {
                step_case *c = &cases[n++];
                *c = (step_case){"resize", STEP_RESIZE, OP_RESIZE, 5, .dim = {4, 3, 5}};
                c->node.coordinates = (resize_coordinates)coordinates;
                c->node.resize = mode ? RESIZE_NEAREST : RESIZE_LINEAR;
                c->node.nearest_floor = mode == 2;
                for (int a = 0; a < 3; a++) {
                    c->node.scales[a] = size == 0 ? 2 : size == 1 ? 1.7 : 0;
                    c->node.sizes[a] = size == 2 ? 2 + a : size == 3 ? 1 : 0;
                }
            }
    cases[n++] = (step_case){"one voxel up", STEP_RESIZE,
                             OP_RESIZE,      3,
                             {1, 1, 1},      {.resize = RESIZE_LINEAR, .scales = {3, 2, 2}},
                             .n_chain = 1,   .chain = {CHAIN_TANH}};
    run_cases(cases, n);
}

/* torch.nn.functional.interpolate of 0, 1, 4 along one axis. */
static void test_resize_values(void **state)
{
    (void)state;
    static const struct {
        resize_mode mode;
        resize_coordinates coordinates;
        bool floor;
        float want[6];
    } known[] = {
        {RESIZE_LINEAR, RESIZE_HALF_PIXEL, false, {0, 0.25f, 0.75f, 1.75f, 3.25f, 4}},
        {RESIZE_LINEAR, RESIZE_ALIGN_CORNERS, false, {0, 0.4f, 0.8f, 1.6f, 2.8f, 4}},
        {RESIZE_LINEAR, RESIZE_ASYMMETRIC, false, {0, 0.5f, 1, 2.5f, 4, 4}},
        {RESIZE_NEAREST, RESIZE_ASYMMETRIC, true, {0, 0, 1, 1, 4, 4}},
        {RESIZE_NEAREST, RESIZE_HALF_PIXEL, false, {0, 0, 1, 1, 4, 4}},
        {RESIZE_NEAREST, RESIZE_ASYMMETRIC, false, {0, 0, 1, 1, 4, 4}},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        network_case k;
        dm_error err = {0};
        network *net;
        worker *w;
        case_begin(&k, ELEMENT_F32);
        k.step.kind = STEP_RESIZE;
        k.node.op = OP_RESIZE;
        k.node.resize = known[i].mode;
        k.node.coordinates = known[i].coordinates;
        k.node.nearest_floor = known[i].floor;
        k.node.scales[0] = k.node.scales[1] = 1;
        k.node.scales[2] = 2;
        k.step.in = case_tensor(&k, ELEMENT_F32, 1, 1, 1, 3, 0, 0);
        k.step.out = case_tensor(&k, ELEMENT_F32, 1, 1, 1, 6, 0, 0);
        case_ends(&k);
        assert_int_equal(network_create(&k.p, 1, &net, &err), DM_OK);
        assert_int_equal(worker_create(net, &w, &err), DM_OK);
        float *in = worker_arena(w), *out = in + k.tensors[k.step.out].offset / sizeof(float);
        memcpy(in, (float[]){0, 1, 4}, 3 * sizeof(float));
        assert_int_equal(worker_run(w, &err), DM_OK);
        assert_true(arrays_close(out, 6, known[i].want, 6, 1e-6, 0));
        worker_free(w);
        network_free(net);
        case_end(&k);
    }
}

static void test_pad(void **state)
{
    (void)state;
    static const step_case cases[] = {
        {"constant",
         STEP_PAD,
         OP_PAD,
         4,
         {3, 4, 5},
         .node = {.pad_begin = {2, 0, 7},
                  .pad_end = {1, 3, 0},
                  .pad = PAD_CONSTANT,
                  .pad_value = -1.5f}},
        {"reflect",
         STEP_PAD,
         OP_PAD,
         4,
         {3, 4, 5},
         .node = {.pad_begin = {2, 0, 4}, .pad_end = {1, 3, 0}, .pad = PAD_REFLECT}},
        {"edge",
         STEP_PAD,
         OP_PAD,
         4,
         {3, 4, 5},
         .node = {.pad_begin = {2, 0, 7}, .pad_end = {1, 3, 0}, .pad = PAD_EDGE},
         .n_chain = 1,
         .chain = {CHAIN_ELU}},
    };
    RUN(cases);
}

static void test_slice(void **state)
{
    (void)state;
    static const step_case cases[] = {
        {"spatial",
         STEP_SLICE,
         OP_SLICE,
         4,
         {9, 8, 7},
         .node = {.slice_begin = {2, -5, 0}, .slice_end = {8, -1, 6}, .slice_step = {3, 1, 2}}},
        {"channels", STEP_SLICE, OP_SLICE, 11, .dim = {3, 2, 5},
         .node = {.channel_begin = 2, .channel_step = 3}},
    };
    RUN(cases);
}

static void test_copy(void **state)
{
    (void)state;
    static const step_case cases[] = {
        {"copy", STEP_COPY, OP_IDENTITY, 9, .dim = {5, 6, 7}},
        {"copy of one channel", STEP_COPY, OP_IDENTITY, 1, .dim = {50, 6, 70}},
    };
    RUN(cases);
}

static void test_chain_links(void **state)
{
    (void)state;
    int failures = 0;
    for (int op = CHAIN_ADD_TENSOR; op <= CHAIN_AT_MOST; op++)
        for (size_t t = 0; t < 2; t++) {
            step_case c = {"link",
                           STEP_POINTWISE,
                           OP_IDENTITY,
                           6,
                           {7, 11, 9},
                           .n_chain = 3,
                           .chain = {CHAIN_AFFINE, (chain_op)op, (chain_op)op}};
            if (!run_case(&c, types[t])) {
                fprintf(stderr, "^ chain operation %d\n", op);
                failures++;
            }
        }
    assert_int_equal(failures, 0);
}

/* Operands of one channel, of one voxel, of one plane, and a single number. */
static void test_chain_repeats_operands(void **state)
{
    (void)state;
    static const size_t shapes[][4] = {{1, 6, 5, 7},  {10, 1, 1, 1}, {1, 1, 1, 1},
                                       {10, 1, 5, 7}, {1, 6, 1, 7},  {10, 6, 5, 1}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t t = 0; t < 2; t++) {
            network_case k;
            const size_t *d = shapes[s];
            case_begin(&k, types[t]);
            k.step.kind = STEP_POINTWISE;
            k.step.in = case_tensor(&k, types[t], 10, 6, 5, 7, 0, 6);
            k.step.out = case_tensor(&k, types[t], 10, 6, 5, 7, 2, 0);
            int operand = case_tensor(&k, types[t], d[0], d[1], d[2], d[3], 1, 1);
            case_link(&k, CHAIN_MUL_TENSOR, operand, 0);
            case_link(&k, CHAIN_RSUB_TENSOR, operand, 0);
            assert_true(case_agrees(&k, tolerance(types[t]) / 4, tolerance(types[t])));
            case_end(&k);
        }
}

/* A gate's map times the skip's tensor: the running value is the smaller one. */
static void test_pointwise_repeats_input(void **state)
{
    (void)state;
    network_case k;
    case_begin(&k, ELEMENT_F32);
    k.step.kind = STEP_POINTWISE;
    k.step.in = case_tensor(&k, ELEMENT_F32, 1, 6, 5, 7, 0, 0);
    k.step.out = case_tensor(&k, ELEMENT_F32, 10, 6, 5, 7, 0, 10);
    case_link(&k, CHAIN_MUL_TENSOR, case_tensor(&k, ELEMENT_F32, 10, 6, 5, 7, 0, 0), 0);
    assert_true(case_agrees(&k, 1e-6, 1e-6));
    case_end(&k);
}

static void test_pointwise_in_place(void **state)
{
    (void)state;
    network_case k;
    case_begin(&k, ELEMENT_BF16);
    k.step.kind = STEP_POINTWISE;
    k.step.in = k.step.out = case_tensor(&k, ELEMENT_BF16, 33, 6, 15, 7, 5, 0);
    case_link(&k, CHAIN_ADD_TENSOR, case_tensor(&k, ELEMENT_BF16, 33, 6, 15, 7, 0, 0), 0);
    case_link(&k, CHAIN_RELU, 0, 0);
    assert_true(case_agrees(&k, 1e-3, 1.0 / 128));
    case_end(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_norm_far_from_zero),
        cmocka_unit_test(test_pools),
        cmocka_unit_test(test_resize),
        cmocka_unit_test(test_resize_values),
        cmocka_unit_test(test_pad),
        cmocka_unit_test(test_slice),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_chain_links),
        cmocka_unit_test(test_chain_repeats_operands),
        cmocka_unit_test(test_pointwise_repeats_input),
        cmocka_unit_test(test_pointwise_in_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
