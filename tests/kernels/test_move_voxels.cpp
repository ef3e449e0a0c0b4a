// SPDX-License-Identifier: Apache-2.0
// Padding, slices and resizing by the tables that the host makes, against the interpreter.
#include "step_case.h"

struct map_on_device {
    std::vector<std::unique_ptr<device_buffer<int>>> index;
    std::vector<std::unique_ptr<device_buffer<float>>> weight;
    device_axis_map axis[3];

    explicit map_on_device(step_case &c)
    {
        c.step.tensors = c.tensors.data();
        for (int a = 0; a < 3; a++) {
            size_t n = c.out_tensor().dim[a];
            std::vector<int> low(n), high(n);
            std::vector<float> w(n);
            interpreted_step_axis(&c.step, a, low.data(), high.data(), w.data());
            index.emplace_back(new device_buffer<int>(low));
            axis[a].low = index.back()->data();
            index.emplace_back(new device_buffer<int>(high));
            axis[a].high = index.back()->data();
            weight.emplace_back(new device_buffer<float>(w));
            axis[a].weight = weight.back()->data();
        }
    }
};

static void check_take(step_case &c, float fill = 0)
{
    map_on_device map(c);
    unsigned samples = c.samples;
    interpreted_node &n = c.step.node;
    n.channel_step = n.channel_step ? n.channel_step : 1;
    c.check(
        [&](device_tensor &in, device_tensor &out, device_epilogue &e) {
            return kernel_take_voxels(map.axis, (unsigned)n.channel_begin, (unsigned)n.channel_step,
                                      fill, &in, &out, samples, &e, 0);
        },
        c.links.empty() && !c.bias ? step_limits{0, 0} : step_limits());
}

static void test_pad()
{
    const int begin[3][3] = {{1, 0, 2}, {0, 3, 1}, {2, 2, 0}};
    const int end[3][3] = {{0, 1, 1}, {2, 0, 3}, {0, 2, 2}};
    unsigned i = 0;
    for (element_type type : every_type)
        for (size_t channels : every_channels)
            for (int mode = INTERPRETED_CONSTANT; mode <= INTERPRETED_EDGE; mode++, i++) {
                size3 dim = i % 2 ? size3{3, 4, 7} : size3{4, 5, 33}, to;
                step_case c(1 + i % 5);
                interpreted_node &n = c.step.node;
                for (size_t a = 0; a < 3; a++) {
                    n.pad_begin[a] = begin[i % 3][a];
                    n.pad_end[a] = end[i % 3][a];
                    to[a] = dim[a] + (size_t)n.pad_begin[a] + (size_t)n.pad_end[a];
                }
                n.pad = mode;
                n.pad_value = -0.375f;
                c.step.kind = INTERPRETED_PAD;
                c.set_in(type, dim, channels, (view_kind)(i % VIEW_KINDS));
                c.set_out(type, to, channels, (view_kind)(i / 2 % VIEW_KINDS));
                if (i % 4 == 0)
                    c.with_bias();
                c.fill();
                check_take(c, n.pad_value);
            }
}

static void test_slice()
{
    unsigned i = 0;
    for (element_type type : every_type)
        for (int channel_step : {1, 2, 3})
            for (int channel_begin : {0, 1, 8})
                for (size_t channels : {1, 5, 8, 16}) {
                    step_case c(1 + i % 4);
                    interpreted_node &n = c.step.node;
                    const int first[3] = {0, 1, 5}, step[3] = {2, 1, 3};
                    for (int a = 0; a < 3; a++) {
                        n.slice_begin[a] = first[a];
                        n.slice_end[a] = first[a] + 2 * step[a] + 1; /* three of them */
                        n.slice_step[a] = step[a];
                    }
                    n.channel_begin = channel_begin;
                    n.channel_step = channel_step;
                    c.step.kind = INTERPRETED_SLICE;
                    size_t all = (channels * (size_t)channel_step + 8 + 7) / 8 * 8;
                    c.set_in(type, {5, 7, 13}, all, i % 2 ? VIEW_DENSE : VIEW_ALIGNED);
                    c.set_out(type, {3, 3, 3}, channels, (view_kind)(i % VIEW_KINDS));
                    if (i++ % 3 == 0)
                        c.link(CHAIN_RELU);
                    c.fill();
                    check_take(c);
                }
}

/* To `to` by sizes, or by scales where that is what their ratio is. */
static void set_resize(step_case &c, int mode, int coordinates, size3 in, size3 to, bool scales)
{
    interpreted_node &n = c.step.node;
    c.step.kind = INTERPRETED_RESIZE;
    n.resize = mode;
    n.coordinates = coordinates;
    for (size_t a = 0; a < 3; a++)
        n.scales[a] = scales ? ((double)to[a] + 0.25) / (double)in[a] : 0;
}

struct resize_sizes {
    size3 in, out;
};
static const resize_sizes resizes[] = {{{3, 4, 5}, {6, 8, 10}}, {{2, 3, 31}, {3, 7, 33}},
                                       {{5, 7, 13}, {2, 3, 5}}, {{1, 1, 1}, {3, 2, 4}},
                                       {{4, 1, 9}, {4, 2, 1}},  {{2, 2, 2}, {2, 2, 65}}};

template <class Function> static void each_resize(Function function)
{
    unsigned i = 0;
    for (const resize_sizes &r : resizes)
        for (int coordinates = 0; coordinates < 3; coordinates++)
            for (bool scales : {false, true})
                for (element_type type : every_type) {
                    size_t channels = every_channels[(i * 3 + i / 8) % 8];
                    step_case c(1 + i % 3);
                    c.set_in(type, r.in, channels, (view_kind)(i % VIEW_KINDS));
                    c.set_out(type, r.out, channels, (view_kind)(i / 3 % VIEW_KINDS));
                    if (i % 3 == 0)
                        c.link(CHAIN_LEAKY_RELU, -1, 0.1f);
                    if (i % 5 == 0)
                        c.link(CHAIN_ADD_TENSOR, c.tensor(type, r.out, channels));
                    function(c, coordinates, r, scales, i++);
                }
}

static void test_nearest()
{
    each_resize([](step_case &c, int coordinates, const resize_sizes &r, bool scales, unsigned i) {
        set_resize(c, INTERPRETED_NEAREST, coordinates, r.in, r.out, scales);
        c.step.node.nearest_floor = i % 2;
        c.fill();
        check_take(c);
    });
}

static void check_interpolate(step_case &c)
{
    map_on_device map(c);
    unsigned samples = c.samples;
    c.check([&](device_tensor &in, device_tensor &out, device_epilogue &e) {
        return kernel_interpolate(map.axis, &in, &out, samples, &e, 0);
    });
}

static void test_linear()
{
    each_resize([](step_case &c, int coordinates, const resize_sizes &r, bool scales, unsigned) {
        set_resize(c, INTERPRETED_LINEAR, coordinates, r.in, r.out, scales);
        c.fill();
        check_interpolate(c);
    });
}

static void test_linear_channels()
{
    for (element_type type : every_type)
        for (size_t channels : every_channels)
            for (int view = 0; view < VIEW_KINDS; view++) {
                size3 in = {3, 4, 5}, out = {6, 8, 10};
                step_case c(2);
                c.set_in(type, in, channels, (view_kind)view);
                c.set_out(type, out, channels, (view_kind)(view / 2));
                set_resize(c, INTERPRETED_LINEAR, INTERPRETED_HALF_PIXEL, in, out, false);
                c.fill();
                check_interpolate(c);
            }
}

/* So many blocks that each thread has several voxels. */
static void test_many()
{
    for (bool linear : {false, true}) {
        size3 in = {7, 7, 11}, out = {13, 13, 13};
        step_case c(1);
        c.set_in(ELEMENT_F32, in, 257);
        c.set_out(ELEMENT_F32, out, 257);
        set_resize(c, linear, INTERPRETED_HALF_PIXEL, in, out, false);
        c.fill();
        if (linear)
            check_interpolate(c);
        else
            check_take(c);
    }
}

static void test_nothing()
{
    step_case c(1);
    c.set_in(ELEMENT_F32, {2, 2, 4}, 8);
    c.set_out(ELEMENT_F32, {2, 2, 4}, 8);
    c.fill();
    device_axis_map axis[3] = {};
    std::vector<unsigned char> made =
        c.launched([&](device_tensor &in, device_tensor &out, device_epilogue &e) {
            CHECK(kernel_take_voxels(axis, 0, 1, 0, &in, &out, 0, &e, 0) == cudaSuccess);
            return kernel_interpolate(axis, &in, &out, 0, &e, 0);
        });
    CHECK(made == c.arenas);
}

int main()
{
    return run_in_all_orders({{"pad", test_pad},
                              {"slice", test_slice},
                              {"nearest", test_nearest},
                              {"linear", test_linear},
                              {"linear_channels", test_linear_channels},
                              {"many", test_many},
                              {"nothing", test_nothing}});
}
