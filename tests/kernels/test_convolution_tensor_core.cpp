/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel_convolution_tensor_core against the definition: every width of tile and depth of step,
 * kernels, strides, dilations and paddings, sizes of 1, primes and around 32 and 64, views, types
 * and chains.
 *
 * Tolerance (convolution_case.h): products of half types are exact in float; the reference rounds
 * float32 factors to TF32 as the kernel does. So what is left is the sum in float and half a unit
 * of the result's last place.
 */
#include "convolution_case.h"

typedef convolution_case ccase;

static const element_type types[3] = {ELEMENT_BF16, ELEMENT_F16, ELEMENT_F32};

static void set3(int to[3], int z, int y, int x)
{
    to[0] = z;
    to[1] = y;
    to[2] = x;
}

static ccase case_of(element_type type, unsigned z, unsigned y, unsigned x, unsigned in,
                     unsigned out)
{
    ccase c;
    c.type = c.out_type = type;
    c.tf32 = type == ELEMENT_F32;
    c.dim[0] = z;
    c.dim[1] = y;
    c.dim[2] = x;
    c.in_channels = in;
    c.out_channels = out;
    return c;
}

/* Every instance of the kernel, under all schedules: 3x3x3 with padding, several blocks. */
static void instances(test_report *report)
{
    static const unsigned channels[3] = {16, 32, 64};
    int n = 0;
    for (int type = 0; type < 3; type++)
        for (int out = 0; out < 3; out++)
            for (unsigned in = 16; in <= 32; in += 16, n++) {
                ccase c = case_of(types[type], 3, 5, 11, in, channels[out]);
                set3(c.kernel, 3, 3, 3);
                set3(c.pad_begin, 1, 1, 1);
                set3(c.pad_end, 1, 1, 1);
                c.in_view = {8u * ((unsigned)n % 3), 8u * ((unsigned)n % 2)};
                c.out_view = {n % 3 == 2 ? 3u : 16u, n % 2 ? 0u : 8u}; /* 3: not by 16 bytes */
                c.chain = (chain_kind)(n % chain_kinds);
                report->add(check_convolution(c, kernel_convolution_tensor_core, -1));
            }
}

/* Shapes of kernel, stride, dilation and padding, with each other. */
static void shapes(test_report *report)
{
    static const int pads[3][2] = {{0, 0}, {1, 0}, {1, 2}}, edges[4] = {1, 2, 3, 5};
    int n = 0;
    for (int edge = 0; edge < 4; edge++)
        for (int stride = 1; stride <= 2; stride++)
            for (int dilation = 1; dilation <= 2; dilation++)
                for (int pad = 0; pad < 3; pad++, n++) {
                    ccase c = case_of(types[n % 3], 4, 6, 9, n % 2 ? 16 : 32, 16);
                    unsigned unused[3];
                    int k = edges[edge];
                    set3(c.kernel, k > 2 ? 2 : 1, k, k);
                    set3(c.stride, 1, stride, stride);
                    set3(c.dilation, 1, dilation, dilation);
                    set3(c.pad_begin, 0, pads[pad][0], pads[pad][1]);
                    set3(c.pad_end, 1, pads[pad][1], pads[pad][0]);
                    c.chain = BIAS;
                    if (c.result_dim(unused))
                        report->add(check_convolution(c, kernel_convolution_tensor_core, n));
                }
}

/* Rows of 1, primes and lengths around 32 and 64; several samples; more than 64 channels. */
static void sizes(test_report *report)
{
    static const unsigned dims[7][3] = {{1, 1, 1},  {1, 1, 65}, {2, 33, 1}, {31, 1, 3},
                                        {1, 4, 32}, {7, 5, 11}, {1, 8, 16}};
    static const unsigned channels[7][2] = {{64, 128}, {16, 16}, {32, 48}, {16, 32},
                                            {48, 64},  {32, 16}, {16, 96}};
    for (int i = 0; i < 7; i++) {
        ccase c = case_of(types[i % 3], dims[i][0], dims[i][1], dims[i][2], channels[i][0],
                          channels[i][1]);
        c.samples = i % 2 ? 1 : 3;
        set3(c.kernel, 1, 3, 3);
        set3(c.pad_begin, 0, 1, 1);
        set3(c.pad_end, 0, 1, 1);
        c.out_view = {0, 16};
        c.chain = (chain_kind)(i % chain_kinds);
        report->add(check_convolution(c, kernel_convolution_tensor_core, i));
    }
}

/* A result of another type than the input's. */
static void mixed(test_report *report)
{
    ccase c = case_of(ELEMENT_BF16, 2, 3, 5, 32, 32);
    c.out_type = ELEMENT_F32;
    c.chain = LONG_CHAIN;
    report->add(check_convolution(c, kernel_convolution_tensor_core, -1));
}

/* What it has to leave to others, with an error instead of a result. */
static bool refuses(ccase c, bool misaligned = false)
{
    unsigned dim[3];
    c.result_dim(dim);
    convolution_setup s(c, dim);
    device_convolution convolution = s.convolution();
    device_tensor in = s.in.on_device(), out = s.out.on_device();
    device_epilogue epilogue = s.epilogue();
    s.out.bytes.upload();
    if (misaligned)
        convolution.weight = s.weight.bytes.device_data() + 2;
    cudaError_t error =
        kernel_convolution_tensor_core(&convolution, &in, &out, c.samples, &epilogue, nullptr);
    cuda_or_die(cudaDeviceSynchronize(), "nothing");
    return !convolution_tensor_core_takes(&convolution, &in, &out) && error != cudaSuccess &&
           s.out.bytes.download() == s.out.bytes.host;
}

static void refusals(test_report *report)
{
    const ccase good = case_of(ELEMENT_BF16, 2, 3, 5, 32, 32);
    report->add(check_convolution(good, kernel_convolution_tensor_core, 0));
    ccase c = good;
    c.in_channels = 24;
    report->add(refuses(c));
    c = good;
    c.out_channels = 8;
    report->add(refuses(c));
    c = good;
    c.groups = 2;
    report->add(refuses(c));
    c = good;
    c.transposed = true;
    report->add(refuses(c));
    c = good;
    c.in_view = {4, 4};
    report->add(refuses(c));
    c = good;
    c.in_view = {0, 4};
    report->add(refuses(c));
    c = good;
    c.type = ELEMENT_F32; /* exact products are asked for */
    report->add(refuses(c));
    report->add(refuses(good, true));
}

int main(void)
{
    if (int skipped = skipped_without_device())
        return skipped;
    test_report report;
    instances(&report);
    shapes(&report);
    sizes(&report);
    mixed(&report);
    refusals(&report);
    return report.finish("convolution_tensor_core");
}
