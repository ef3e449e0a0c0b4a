// SPDX-License-Identifier: Apache-2.0
// Blocks of voxels to their places: by plain loops into a tensor that the interpreter then puts
// through bias and chain.
#include "step_case.h"

struct unfold_case {
    step_case c;
    size3 kernel;
    int blocks;

    unfold_case(unsigned samples, element_type type, size3 in, size3 edges, size_t channels,
                view_kind from, view_kind to)
        : c(samples), kernel(edges)
    {
        size3 out = {in[0] * edges[0], in[1] * edges[1], in[2] * edges[2]};
        blocks = c.tensor(type, in, edges[0] * edges[1] * edges[2] * channels, from);
        c.set_in(type, out, channels); /* the interpreter's: unfolded already */
        c.set_out(type, out, channels, to);
    }

    void unfold()
    {
        const interpreted_tensor &b = c.tensors[(size_t)blocks], &t = c.in_tensor();
        for (unsigned s = 0; s < c.samples; s++)
            for (size_t v = 0; v < c.voxels(t); v++) {
                size_t x = v % t.dim[2], y = v / t.dim[2] % t.dim[1], z = v / t.dim[2] / t.dim[1];
                size_t voxel =
                    (z / kernel[0] * b.dim[1] + y / kernel[1]) * b.dim[2] + x / kernel[2];
                size_t tap =
                    (z % kernel[0] * kernel[1] + y % kernel[1]) * kernel[2] + x % kernel[2];
                for (size_t ch = 0; ch < t.channels; ch++)
                    memcpy(c.at(s, c.step.in, v, ch), c.at(s, blocks, voxel, tap * t.channels + ch),
                           interpreted_size(t.type));
            }
    }

    void check()
    {
        c.fill();
        unfold();
        const int edges[3] = {(int)kernel[0], (int)kernel[1], (int)kernel[2]};
        c.check(
            [&](device_tensor &, device_tensor &out, device_epilogue &e) {
                device_tensor from = c.device_of(blocks);
                return kernel_unfold(edges, &from, &out, c.samples, &e, 0);
            },
            c.links.empty() && !c.bias ? step_limits{0, 0} : step_limits());
    }
};

static void test_shapes()
{
    const size3 kernels[] = {{2, 2, 2}, {1, 2, 3}, {3, 1, 2}, {1, 1, 1}, {4, 2, 1}};
    unsigned i = 0;
    each_shape([&](element_type type, size3 dim, size_t channels, unsigned samples, view_kind in,
                   view_kind out) {
        unfold_case u(samples, type, dim, kernels[i % 5], channels, in, out);
        size3 to = {u.c.out_tensor().dim[0], u.c.out_tensor().dim[1], u.c.out_tensor().dim[2]};
        if (i % 2)
            u.c.with_bias();
        if (i % 3)
            u.c.link(CHAIN_LEAKY_RELU, -1, 0.2f);
        if (i % 4 == 3)
            u.c.link(CHAIN_MUL_TENSOR, u.c.tensor(type, to, 1));
        u.check();
        i++;
    });
}

/* Aligned blocks of a number of channels that cannot be moved by eight: 2*2*2*3 = 24. */
static void test_odd_channels()
{
    for (element_type type : every_type)
        for (size_t channels : {1, 3, 5}) {
            unfold_case u(2, type, {3, 5, 7}, {2, 2, 2}, channels, VIEW_DENSE, VIEW_ALIGNED);
            u.check();
        }
}

/* So many blocks that each thread has several voxels. */
static void test_many()
{
    for (size_t channels : {257, 2056}) {
        unfold_case u(1, ELEMENT_BF16, {1, 33, 33}, {2, 1, 1}, channels, VIEW_DENSE, VIEW_DENSE);
        u.c.with_bias();
        u.check();
    }
}

static void test_nothing()
{
    unfold_case u(1, ELEMENT_F32, {2, 2, 4}, {2, 2, 2}, 8, VIEW_DENSE, VIEW_DENSE);
    u.c.fill();
    const int edges[3] = {2, 2, 2};
    std::vector<unsigned char> made =
        u.c.launched([&](device_tensor &, device_tensor &out, device_epilogue &e) {
            device_tensor from = u.c.device_of(u.blocks);
            return kernel_unfold(edges, &from, &out, 0, &e, 0);
        });
    CHECK(made == u.c.arenas);
}

int main()
{
    return run_in_all_orders({{"shapes", test_shapes},
                              {"odd_channels", test_odd_channels},
                              {"many", test_many},
                              {"nothing", test_nothing}});
}
