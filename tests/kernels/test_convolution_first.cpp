/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel_convolution_first against the definition, and to the last bit against kernel_convolution:
 * 1 to 4 input channels, any number of output channels, kernels, strides, dilations and paddings,
 * sizes of 1, primes and around 32 and 64, views, types and chains.
 *
 * Tolerance (convolution_case.h): half a unit of the result's last place and the sum in float.
 */
#include "convolution_case.h"

typedef convolution_case ccase;

static void set3(int to[3], int z, int y, int x)
{
    to[0] = z;
    to[1] = y;
    to[2] = x;
}

static ccase case_of(int type, unsigned z, unsigned y, unsigned x, unsigned in, unsigned out)
{
    ccase c;
    c.type = c.out_type = (element_type)type;
    c.dim[0] = z;
    c.dim[1] = y;
    c.dim[2] = x;
    c.in_channels = in;
    c.out_channels = out;
    return c;
}

static void pad_same(ccase *c)
{
    for (int a = 0; a < 3; a++)
        c->pad_begin[a] = c->pad_end[a] = c->dilation[a] * (c->kernel[a] - 1) / 2;
}

static bool same_as_generic(const ccase &c)
{
    unsigned dim[3];
    c.result_dim(dim);
    convolution_setup s(c, dim);
    std::vector<float> first, generic;
    bool good = launch_convolution(s, kernel_convolution_first, 0, &first) &&
                launch_convolution(s, kernel_convolution, 0, &generic) &&
                memcmp(first.data(), generic.data(), 4 * first.size()) == 0;
    if (!good)
        fprintf(stderr, "%s: not the same as kernel_convolution\n", c.name().c_str());
    return good;
}

/* Every number of input channels and type, under all schedules. */
static void instances(test_report *report)
{
    static const unsigned out[4] = {32, 5, 24, 72};
    for (int type = 0; type < 3; type++)
        for (unsigned in = 1; in <= 4; in++) {
            ccase c = case_of(type, 5, 6, 7, in, out[in - 1]);
            set3(c.kernel, 3, 3, 3);
            pad_same(&c);
            c.samples = in == 1 ? 3 : 1;
            c.in_view = {in % 3, in / 2};
            c.out_view = {in % 2 ? 8u : 3u, in == 1 ? 8u : 0u};
            c.chain = (chain_kind)(in % chain_kinds);
            report->add(check_convolution(c, kernel_convolution_first, -1));
            report->add(same_as_generic(c));
        }
}

static void shapes(test_report *report)
{
    static const int pads[3][2] = {{0, 0}, {1, 0}, {1, 3}}, edges[4] = {1, 2, 3, 5};
    int n = 0;
    for (int edge = 0; edge < 4; edge++)
        for (int stride = 1; stride <= 2; stride++)
            for (int dilation = 1; dilation <= 2; dilation++)
                for (int pad = 0; pad < 3; pad++, n++) {
                    ccase c = case_of(n % 3, 5, 6, 9, 1 + (unsigned)n % 2, n % 2 ? 8 : 11);
                    unsigned unused[3];
                    int k = edges[edge];
                    set3(c.kernel, k, k > 2 ? 2 : 1, k);
                    set3(c.stride, stride, 1, stride);
                    set3(c.dilation, dilation, 1, dilation);
                    set3(c.pad_begin, pads[pad][0], 0, pads[pad][1]);
                    set3(c.pad_end, pads[pad][1], 1, pads[pad][0]);
                    c.chain = BIAS_LEAKY;
                    if (c.result_dim(unused))
                        report->add(check_convolution(c, kernel_convolution_first, n));
                }
}

static void sizes(test_report *report)
{
    static const unsigned dims[7][3] = {{1, 1, 1},  {1, 1, 65}, {3, 33, 2}, {31, 1, 5},
                                        {5, 4, 32}, {7, 5, 31}, {2, 3, 33}};
    for (int i = 0; i < 7; i++) {
        ccase c = case_of(i % 3, dims[i][0], dims[i][1], dims[i][2], i % 3 ? 1 : 3, 16);
        set3(c.kernel, 3, 3, 3);
        pad_same(&c);
        c.chain = (chain_kind)(i % chain_kinds);
        report->add(check_convolution(c, kernel_convolution_first, i));
    }
}

/* Rows in which a thread has several voxels, with strides and dilations. */
static void long_rows(test_report *report)
{
    for (int type = 0; type < 3; type++) {
        ccase c = case_of(type, 3, 5, type == 1 ? 131 : 67, 1 + (unsigned)type, 8);
        set3(c.kernel, 2, 3, 3);
        set3(c.stride, 1, 2, 2 + type % 2);
        set3(c.dilation, 2, 1, 1 + type);
        pad_same(&c);
        c.chain = BIAS;
        report->add(check_convolution(c, kernel_convolution_first, type));
        report->add(same_as_generic(c));
    }
}

/* Weights and bricks so large that a block makes fewer output channels, and too large. */
static void large(test_report *report)
{
    ccase c = case_of(ELEMENT_BF16, 3, 4, 5, 3, 64);
    set3(c.kernel, 5, 5, 5);
    pad_same(&c);
    report->add(check_convolution(c, kernel_convolution_first, 1));
    report->add(same_as_generic(c));

    set3(c.kernel, 9, 9, 9);
    pad_same(&c);
    c.in_channels = 4;
    c.out_channels = 1;
    unsigned dim[3];
    c.result_dim(dim);
    convolution_setup s(c, dim);
    device_convolution convolution = s.convolution();
    device_tensor in = s.in.on_device(), out = s.out.on_device();
    device_epilogue epilogue = s.epilogue();
    report->add(!convolution_first_takes(&convolution, &in, &out) &&
                kernel_convolution_first(&convolution, &in, &out, 1, &epilogue, nullptr) !=
                    cudaSuccess);
}

int main(void)
{
    if (int skipped = skipped_without_device())
        return skipped;
    test_report report;
    instances(&report);
    shapes(&report);
    sizes(&report);
    long_rows(&report);
    large(&report);
    return report.finish("convolution_first");
}
