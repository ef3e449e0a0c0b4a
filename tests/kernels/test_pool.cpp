// SPDX-License-Identifier: Apache-2.0
// Maximum and average pooling: windows, borders, padding, ceil_mode, NaN.
#include "step_case.h"

struct pool_kind {
    int kernel[3], stride[3], dilation[3], begin[3], end[3];
    bool ceil_mode, count_include_pad;
};

static const pool_kind kinds[] = {
    {{2, 2, 2}, {2, 2, 2}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}, false, false},
    {{2, 2, 2}, {2, 2, 2}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}, true, true},
    {{2, 2, 2}, {1, 2, 3}, {1, 1, 1}, {1, 0, 1}, {0, 1, 1}, true, false},
    {{2, 2, 2}, {2, 1, 2}, {2, 3, 1}, {1, 1, 0}, {1, 0, 1}, false, true},
    {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, false, true},
    {{3, 3, 3}, {2, 2, 2}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, true, true},
    {{3, 3, 3}, {1, 1, 1}, {2, 1, 3}, {1, 1, 1}, {1, 1, 1}, false, false},
    {{1, 3, 2}, {1, 1, 2}, {1, 2, 1}, {0, 2, 0}, {0, 0, 1}, true, true},
    {{1, 1, 1}, {1, 2, 3}, {1, 1, 1}, {0, 0, 0}, {0, 0, 0}, false, false},
    {{5, 4, 7}, {3, 4, 2}, {1, 1, 1}, {2, 1, 3}, {2, 3, 3}, true, true},
    {{3, 5, 1}, {3, 1, 1}, {1, 1, 1}, {2, 0, 0}, {0, 4, 0}, false, false},
};

/* As ONNX has it: with ceil_mode the last window begins in the input or the padding before it. */
static size_t pooled_size(const pool_kind &k, int a, size_t in, bool maximum)
{
    int reach = (k.kernel[a] - 1) * (maximum ? k.dilation[a] : 1) + 1;
    int room = (int)in + k.begin[a] + k.end[a] - reach;
    if (room < 0)
        return 0;
    int n = room / k.stride[a] + 1;
    if (k.ceil_mode && room % k.stride[a] && n * k.stride[a] < (int)in + k.begin[a])
        n++;
    return (size_t)n;
}

/* False where the windows do not fit this input. */
static bool pool_sizes(const pool_kind &k, size3 in, bool maximum, size3 &out)
{
    for (int a = 0; a < 3; a++)
        out[(size_t)a] = pooled_size(k, a, in[(size_t)a], maximum);
    return out[0] && out[1] && out[2];
}

static void set_kind(step_case &c, const pool_kind &k, bool maximum)
{
    c.step.kind = maximum ? INTERPRETED_MAX_POOL : INTERPRETED_AVERAGE_POOL;
    interpreted_node &n = c.step.node;
    memcpy(n.kernel, k.kernel, sizeof n.kernel);
    memcpy(n.stride, k.stride, sizeof n.stride);
    memcpy(n.dilation, k.dilation, sizeof n.dilation);
    memcpy(n.pad_begin, k.begin, sizeof n.pad_begin);
    memcpy(n.pad_end, k.end, sizeof n.pad_end);
    n.count_include_pad = k.count_include_pad;
}

static device_pool pool_of(const pool_kind &k, bool maximum)
{
    device_pool p;
    memcpy(p.kernel, k.kernel, sizeof p.kernel);
    memcpy(p.stride, k.stride, sizeof p.stride);
    memcpy(p.dilation, k.dilation, sizeof p.dilation);
    memcpy(p.pad_begin, k.begin, sizeof p.pad_begin);
    memcpy(p.pad_end, k.end, sizeof p.pad_end);
    p.maximum = maximum;
    p.count_include_pad = k.count_include_pad;
    return p;
}

static void check_pool(step_case &c, const pool_kind &k, bool maximum)
{
    unsigned samples = c.samples;
    device_pool pool = pool_of(k, maximum);
    c.check([&](device_tensor &in, device_tensor &out,
                device_epilogue &e) { return kernel_pool(&pool, &in, &out, samples, &e, 0); },
            c.links.empty() && maximum ? step_limits{0, 0} : step_limits());
}

/* Every window on every shape, in which half of the numbers of channels take the slow way. */
static void test_windows()
{
    unsigned i = 0, checked = 0;
    for (const pool_kind &k : kinds)
        for (bool maximum : {false, true})
            for (size3 dim : {size3{5, 6, 7}, size3{9, 4, 33}, size3{1, 1, 1}, size3{2, 31, 3},
                              size3{13, 3, 8}, size3{4, 1, 65}})
                for (element_type type : every_type) {
                    size3 out;
                    size_t channels = every_channels[i++ % 8];
                    if (!pool_sizes(k, dim, maximum, out))
                        continue;
                    step_case c(1 + i % 5);
                    c.set_in(type, dim, channels, (view_kind)(i % VIEW_KINDS));
                    c.set_out(type, out, channels, (view_kind)(i / 3 % VIEW_KINDS));
                    set_kind(c, k, maximum);
                    if (i % 2)
                        c.link(CHAIN_MUL_TENSOR, c.tensor(type, out, 1));
                    c.fill();
                    check_pool(c, k, maximum);
                    checked++;
                }
    CHECK(checked > 200);
}

static void test_channels()
{
    const pool_kind &k = kinds[1];
    for (element_type type : every_type)
        for (size_t channels : {1, 3, 5, 8, 16, 24, 32, 33, 264})
            for (bool maximum : {false, true}) {
                step_case c(2);
                size3 out;
                CHECK(pool_sizes(k, {4, 5, 31}, maximum, out));
                c.set_in(type, {4, 5, 31}, channels);
                c.set_out(type, out, channels, VIEW_ALIGNED);
                set_kind(c, k, maximum);
                c.with_bias();
                c.link(CHAIN_RELU);
                c.fill();
                check_pool(c, k, maximum);
            }
}

/* A NaN anywhere in a window is its maximum; -infinity and numbers below any other are kept. */
static void test_nan()
{
    for (const pool_kind &k : {kinds[0], kinds[4]})
        for (size_t channels : {3, 8})
            for (element_type type : every_type) {
                size3 dim = {4, 6, 8}, to;
                CHECK(pool_sizes(k, dim, true, to));
                step_case c(1);
                c.set_in(type, dim, channels);
                c.set_out(type, to, channels);
                set_kind(c, k, true);
                c.fill(-9, -8);
                for (size_t v = 0; v < 192; v += 7)
                    c.put(0, c.step.in, v, v % channels, v % 2 ? NAN : -INFINITY);
                device_pool pool = pool_of(k, true);
                std::vector<unsigned char> made =
                    c.launched([&](device_tensor &in, device_tensor &out, device_epilogue &e) {
                        return kernel_pool(&pool, &in, &out, 1, &e, 0);
                    });
                std::vector<unsigned char> expected = c.interpreted();
                std::vector<float> a = c.take_result(made), ref = c.take_result(expected);
                size_t nans = 0;
                for (size_t i = 0; i < a.size(); i++) {
                    CHECK(isnan(ref[i]) ? isnan(a[i]) : a[i] == ref[i]);
                    nans += isnan(ref[i]);
                }
                CHECK(nans > 5 && nans < a.size());
            }
}

/* So many blocks that each thread has several voxels. */
static void test_many()
{
    const pool_kind &k = kinds[0];
    step_case c(1);
    c.set_in(ELEMENT_BF16, {26, 26, 26}, 257);
    c.set_out(ELEMENT_BF16, {13, 13, 13}, 257);
    set_kind(c, k, true);
    c.fill();
    check_pool(c, k, true);
}

static void test_nothing()
{
    step_case c(1);
    c.set_in(ELEMENT_F32, {2, 2, 4}, 8);
    c.set_out(ELEMENT_F32, {1, 1, 2}, 8);
    c.fill();
    device_pool pool = pool_of(kinds[0], true);
    std::vector<unsigned char> made =
        c.launched([&](device_tensor &in, device_tensor &out, device_epilogue &e) {
            return kernel_pool(&pool, &in, &out, 0, &e, 0);
        });
    CHECK(made == c.arenas);
}

int main()
{
    return run_in_all_orders({{"windows", test_windows},
                              {"channels", test_channels},
                              {"nan", test_nan},
                              {"many", test_many},
                              {"nothing", test_nothing}});
}
