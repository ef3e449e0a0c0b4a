/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel_convolution_halo against the definition: boxes cut by the end of every axis, paddings from
 * none to wider than the kernel, several samples, more than one tile and step of channels, views,
 * both types and all chains.
 *
 * Tolerance (convolution_case.h): products of half types are exact in float, so what is left is the
 * sum in float and half a unit of the result's last place.
 */
#include "convolution_case.h"

typedef convolution_case ccase;

static const element_type types[2] = {ELEMENT_BF16, ELEMENT_F16};

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
    c.dim[0] = z;
    c.dim[1] = y;
    c.dim[2] = x;
    c.in_channels = in;
    c.out_channels = out;
    set3(c.kernel, 3, 3, 3);
    set3(c.pad_begin, 1, 1, 1);
    set3(c.pad_end, 1, 1, 1);
    return c;
}

/* Every instance of the kernel, under all schedules: several boxes, steps of channels and chains. */
static void instances(test_report *report)
{
    static const unsigned channels[3] = {16, 32, 64};
    int n = 0;
    for (int type = 0; type < 2; type++)
        for (int out = 0; out < 3; out++)
            for (unsigned in = 16; in <= 48; in += 16, n++) {
                ccase c = case_of(types[type], 5, 9, 17, in, channels[out]);
                c.in_view = {8u * ((unsigned)n % 3), 8u * ((unsigned)n % 2)};
                c.out_view = {n % 3 == 2 ? 3u : 16u, n % 2 ? 0u : 8u}; /* 3: not by 16 bytes */
                c.chain = (chain_kind)(n % chain_kinds);
                report->add(check_convolution(c, kernel_convolution_halo, -1));
            }
}

/* Of each axis, none to more than the kernel, the two ends different. */
static void paddings(test_report *report)
{
    static const int pads[5][2] = {{0, 0}, {0, 1}, {1, 0}, {2, 2}, {3, 0}};
    for (int axis = 0; axis < 3; axis++)
        for (int pad = 0; pad < 5; pad++) {
            ccase c = case_of(types[pad % 2], 4, 6, 15, 16, 16);
            c.pad_begin[axis] = pads[pad][0];
            c.pad_end[axis] = pads[pad][1];
            c.chain = BIAS;
            report->add(check_convolution(c, kernel_convolution_halo, axis + pad));
        }
}

/* 1, primes and lengths around 32 and 64 along each axis; several samples. */
static void sizes(test_report *report)
{
    static const unsigned dims[9][3] = {{1, 1, 1},  {1, 1, 65}, {2, 33, 1}, {31, 1, 3}, {1, 4, 32},
                                        {7, 5, 11}, {1, 8, 16}, {4, 8, 31}, {65, 2, 2}};
    static const unsigned channels[9][2] = {{64, 128}, {16, 16}, {32, 48}, {16, 32}, {48, 64},
                                            {32, 16},  {16, 96}, {32, 32}, {16, 16}};
    for (int i = 0; i < 9; i++) {
        ccase c = case_of(types[i % 2], dims[i][0], dims[i][1], dims[i][2], channels[i][0],
                          channels[i][1]);
        c.samples = i % 2 ? 1 : 3;
        c.out_view = {0, 16};
        c.chain = (chain_kind)(i % chain_kinds);
        report->add(check_convolution(c, kernel_convolution_halo, i));
    }
}

/* A result of another type than the input's. */
static void mixed(test_report *report)
{
    ccase c = case_of(ELEMENT_BF16, 2, 3, 5, 32, 32);
    c.out_type = ELEMENT_F32;
    c.chain = LONG_CHAIN;
    report->add(check_convolution(c, kernel_convolution_halo, -1));
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
        kernel_convolution_halo(&convolution, &in, &out, c.samples, &epilogue, nullptr);
    cuda_or_die(cudaDeviceSynchronize(), "nothing");
    return !convolution_halo_takes(&convolution, &in, &out) && error != cudaSuccess &&
           s.out.bytes.download() == s.out.bytes.host;
}

static void refusals(test_report *report)
{
    const ccase good = case_of(ELEMENT_BF16, 3, 4, 5, 32, 32);
    report->add(check_convolution(good, kernel_convolution_halo, 0));
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
    c.type = c.out_type = ELEMENT_F32;
    c.tf32 = true;
    report->add(refuses(c));
    report->add(refuses(good, true));
    for (int axis = 0; axis < 3; axis++) {
        c = good;
        c.kernel[axis] = 2;
        report->add(refuses(c));
        c = good;
        c.stride[axis] = 2;
        report->add(refuses(c));
        c = good;
        c.dilation[axis] = 2;
        report->add(refuses(c));
    }
}

/* Where boxes are full it is worth it; where most of them is beyond the result it is not. */
static void pays(test_report *report)
{
    static const struct {
        unsigned dim[3];
        bool pays;
    } cases[] = {{{32, 32, 32}, true}, {{16, 16, 16}, true}, {{33, 31, 33}, true},
                 {{4, 8, 8}, true},    {{4, 8, 7}, false},   {{4, 4, 4}, false},
                 {{1, 1, 1}, false},   {{2, 8, 16}, true},   {{1, 64, 64}, false}};
    for (const auto &c : cases) {
        device_tensor out = {nullptr, 0, 16, 16, {c.dim[0], c.dim[1], c.dim[2]}, ELEMENT_BF16};
        report->add(convolution_halo_pays(&out) == c.pays);
    }
}

int main(void)
{
    if (int skipped = skipped_without_device())
        return skipped;
    test_report report;
    instances(&report);
    paddings(&report);
    sizes(&report);
    mixed(&report);
    refusals(&report);
    pays(&report);
    return report.finish("convolution_halo");
}
