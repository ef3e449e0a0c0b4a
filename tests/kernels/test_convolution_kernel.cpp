/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel_convolution against the definition: every shape of kernel, stride, dilation, padding,
 * group and transposition, sizes of 1, primes and around 32 and 64, views, types and chains.
 *
 * Tolerance (convolution_case.h): the reference is not rounded, so a result may be half a unit of
 * its last place away, 2^-8 (bf16) or 2^-11 (fp16), plus what the sum in float loses. A wrong or
 * missing product would be about 1/sqrt(products), a thousand times more.
 */
#include "convolution_case.h"

typedef convolution_case ccase;

static void set3(int to[3], int z, int y, int x)
{
    to[0] = z;
    to[1] = y;
    to[2] = x;
}

static void set_dim(ccase *c, unsigned z, unsigned y, unsigned x)
{
    c->dim[0] = z;
    c->dim[1] = y;
    c->dim[2] = x;
}

/* Everything that the index arithmetic depends on, with every other one, at small sizes. */
static void shapes(test_report *report)
{
    static const int pads[4][2] = {{0, 0}, {1, 1}, {0, 1}, {2, 1}}, edges[4] = {1, 2, 3, 5};
    int schedule = 0;
    for (int transposed = 0; transposed < 2; transposed++)
        for (int edge = 0; edge < 4; edge++)
            for (int stride = 1; stride <= 2; stride++)
                for (int dilation = 1; dilation <= 2; dilation++)
                    for (int pad = 0; pad < 4; pad++)
                        for (unsigned per = 1; per <= 9; per += 8) {
                            ccase c;
                            unsigned unused[3];
                            int k = edges[edge];
                            c.transposed = transposed;
                            set3(c.kernel, k, k > 1 ? k - 1 : 1, k);
                            set3(c.stride, stride, 1, stride);
                            set3(c.dilation, dilation, 1, dilation);
                            set3(c.pad_begin, pads[pad][0], pads[pad][1], pads[pad][0]);
                            set3(c.pad_end, pads[pad][1], pads[pad][0], pads[pad][1]);
                            set_dim(&c, 3, 5, 7);
                            c.in_channels = 3;
                            c.out_channels = per; /* 1: direct kernel, 9: tiles */
                            c.chain = BIAS;
                            if (c.result_dim(unused))
                                report->add(check_convolution(c, kernel_convolution, schedule++));
                        }
}

/* Groups, types, samples, views and chains. */
static void kinds(test_report *report)
{
    static const unsigned channels[6][3] = {/* in, out, groups */ {4, 16, 2},
                                            {6, 6, 6},
                                            {5, 10, 5},
                                            {18, 33, 3},
                                            {17, 40, 1},
                                            {16, 2, 2}};
    for (int type = 0; type < 3; type++)
        for (int i = 0; i < 6; i++)
            for (int transposed = 0; transposed < 2; transposed++) {
                ccase c;
                c.type = (element_type)type;
                c.out_type = i == 5 ? ELEMENT_F32 : c.type;
                c.samples = i % 2 ? 3 : 1;
                set_dim(&c, 2, 3, 5);
                c.in_channels = channels[i][0];
                c.out_channels = channels[i][1];
                c.groups = channels[i][2];
                set3(c.kernel, 3, 1, 2);
                set3(c.stride, 1, 2, 2);
                set3(c.pad_begin, 1, 0, 1);
                c.transposed = transposed;
                c.in_view = {(unsigned)i % 3, (unsigned)i / 2};
                c.out_view = {i % 2 ? 8u : 3u, i % 3 ? 0u : 8u};
                c.chain = (chain_kind)((i + type + transposed) % chain_kinds);
                report->add(check_convolution(c, kernel_convolution, -1));
            }
}

/* Long rows and sums: more than one tile of cells, of channels and of the summed axis. */
static void sizes(test_report *report)
{
    static const unsigned dims[8][3] = {{1, 1, 1},  {1, 1, 65}, {3, 33, 2}, {31, 1, 5},
                                        {2, 4, 32}, {65, 2, 1}, {7, 5, 11}, {1, 13, 17}};
    static const unsigned channels[8][2] = {{64, 64}, {3, 9},  {16, 8},  {8, 1},
                                            {33, 31}, {1, 32}, {40, 65}, {2, 3}};
    for (int i = 0; i < 8; i++)
        for (int type = 0; type < 3; type++) {
            ccase c;
            c.type = c.out_type = (element_type)type;
            set_dim(&c, dims[i][0], dims[i][1], dims[i][2]);
            c.in_channels = channels[i][0];
            c.out_channels = channels[i][1];
            set3(c.kernel, 3, 3, 3);
            set3(c.pad_begin, 1, 1, 1);
            set3(c.pad_end, 1, 1, 1);
            c.out_view = {8, 0};
            c.chain = (chain_kind)((i + type) % chain_kinds);
            report->add(check_convolution(c, kernel_convolution, i + type));
        }
}

/* Strides beyond the kernel: results that no input reaches; kernels beyond the input. */
static void extremes(test_report *report)
{
    for (unsigned out = 2; out <= 16; out += 14) {
        ccase c;
        set_dim(&c, 2, 3, 4);
        c.in_channels = 5;
        c.out_channels = out;
        c.transposed = true;
        c.chain = BIAS_LEAKY;
        set3(c.kernel, 2, 1, 2);
        set3(c.stride, 3, 2, 5);
        report->add(check_convolution(c, kernel_convolution, -1));
        c.transposed = false;
        set3(c.kernel, 7, 9, 3);
        set3(c.stride, 1, 1, 4);
        set3(c.pad_begin, 5, 7, 3);
        set3(c.pad_end, 4, 6, 0);
        report->add(check_convolution(c, kernel_convolution, -1));
    }
}

/* Nothing is launched, and nothing written. */
static void nothing(test_report *report)
{
    ccase c;
    set_dim(&c, 2, 2, 2);
    c.out_channels = 9;
    unsigned dim[3];
    c.result_dim(dim);
    convolution_setup s(c, dim);
    device_convolution convolution = s.convolution();
    device_tensor in = s.in.on_device(), out = s.out.on_device();
    device_epilogue epilogue = s.epilogue();
    s.out.bytes.upload();
    cudaError_t error = kernel_convolution(&convolution, &in, &out, 0, &epilogue, nullptr);
    cuda_or_die(cudaDeviceSynchronize(), "no samples");
    report->add(error == cudaSuccess && s.out.bytes.download() == s.out.bytes.host);
}

int main(void)
{
    if (int skipped = skipped_without_device())
        return skipped;
    test_report report;
    shapes(&report);
    kinds(&report);
    sizes(&report);
    extremes(&report);
    nothing(&report);
    return report.finish("convolution");
}
