// SPDX-License-Identifier: Apache-2.0
// The pointwise chain: every operation, operand, view, type and size, and in place.
#include "step_case.h"

static void check_pointwise(step_case &c)
{
    unsigned samples = c.samples;
    c.check([&](device_tensor &in, device_tensor &out, device_epilogue &e) {
        return kernel_pointwise(&in, &out, samples, &e, 0);
    });
}

static void test_shapes()
{
    each_shape([](element_type type, size3 dim, size_t channels, unsigned samples, view_kind in,
                  view_kind out) {
        step_case c(samples);
        c.set_in(type, dim, channels, in);
        c.set_out(type, dim, channels, out);
        c.with_bias();
        c.link(CHAIN_ADD_TENSOR, c.tensor(type, dim, channels, out));
        c.link(CHAIN_LEAKY_RELU, -1, 0.01f);
        c.fill();
        check_pointwise(c);
    });
}

static void test_copies()
{
    for (element_type from : every_type)
        for (element_type to : every_type)
            for (size_t channels : every_channels) {
                step_case c(2);
                c.set_in(from, {2, 3, 31}, channels, VIEW_ALIGNED);
                c.set_out(to, {2, 3, 31}, channels);
                c.fill();
                check_pointwise(c);
            }
}

/* Each operation alone, of values small and large. */
static void test_operations()
{
    for (int op = CHAIN_AFFINE; op <= CHAIN_AT_MOST; op++)
        for (element_type type : every_type)
            for (size_t channels : {5, 24})
                for (float reach : {0.01f, 3.0f, 40.0f}) {
                    step_case c(2);
                    c.set_in(type, {3, 5, 7}, channels);
                    c.set_out(type, {3, 5, 7}, channels, VIEW_ALIGNED);
                    c.link((chain_op)op, -1, 0.3f);
                    c.fill(-reach, reach);
                    check_pointwise(c);
                }
}

/* scale without shift, and the reverse. */
static void test_affine_without()
{
    for (size_t channels : {3, 16})
        for (int without = 0; without < 3; without++) {
            step_case c(3);
            c.set_in(ELEMENT_F32, {2, 1, 33}, channels);
            c.set_out(ELEMENT_F32, {2, 1, 33}, channels);
            c.link(CHAIN_AFFINE);
            if (without != 1)
                c.links[0].scale = nullptr;
            if (without != 0)
                c.links[0].shift = nullptr;
            c.fill();
            check_pointwise(c);
        }
}

/* Operands of the result's size, of one channel, of one voxel, of both; of each type and view. */
static void test_operands()
{
    for (int op = CHAIN_ADD_TENSOR; op <= CHAIN_RSUB_TENSOR; op++)
        for (element_type type : every_type)
            for (size_t channels : {8, 33, 32})
                for (int kind = 0; kind < 4; kind++)
                    for (int view = 0; view < VIEW_KINDS; view++) {
                        size3 dim = {3, 2, 31}, one = {1, 1, 1};
                        step_case c(2);
                        c.set_in(ELEMENT_BF16, dim, channels);
                        c.set_out(ELEMENT_BF16, dim, channels, (view_kind)view);
                        c.link((chain_op)op, c.tensor(type, kind & 1 ? one : dim,
                                                      kind & 2 ? 1 : channels, (view_kind)view));
                        c.fill();
                        check_pointwise(c);
                    }
}

/* Repeated along some axes only, so that the voxel's number alone does not say where they are. */
static void test_partly_repeated()
{
    for (size3 dim : {size3{1, 5, 7}, size3{3, 1, 7}, size3{3, 5, 1}, size3{3, 1, 1}})
        for (size_t channels : {3, 8})
            for (bool input : {false, true}) {
                step_case c(2);
                c.set_in(ELEMENT_F32, input ? dim : size3{3, 5, 7}, channels);
                c.set_out(ELEMENT_F32, {3, 5, 7}, channels);
                c.link(CHAIN_SUB_TENSOR, c.tensor(ELEMENT_F16, input ? size3{3, 5, 7} : dim, 1));
                c.fill();
                check_pointwise(c);
            }
}

/* The input repeated: one value for each channel times a map. */
static void test_repeated_input()
{
    for (element_type type : every_type)
        for (size_t channels : {5, 16}) {
            step_case c(3);
            c.set_in(type, {1, 1, 1}, channels);
            c.set_out(type, {2, 5, 13}, channels, VIEW_ALIGNED);
            c.link(CHAIN_MUL_TENSOR, c.tensor(type, {2, 5, 13}, 1));
            c.fill();
            check_pointwise(c);

            step_case map(2);
            map.set_in(type, {2, 5, 13}, 1);
            map.set_out(type, {2, 5, 13}, channels);
            map.link(CHAIN_RELU);
            map.fill();
            check_pointwise(map);
        }
}

static void test_in_place()
{
    for (element_type type : every_type)
        for (size_t channels : every_channels)
            for (int operand = 0; operand < 2; operand++) {
                size3 dim = {2, 7, 11};
                step_case c(2);
                c.set_out(type, dim, channels, channels % 16 ? VIEW_SHIFTED : VIEW_ALIGNED);
                if (operand) { /* the result lies where the operand lay */
                    c.set_in(type, dim, channels);
                    c.link(CHAIN_RSUB_TENSOR, c.step.out);
                    c.link(CHAIN_RELU);
                } else {
                    c.step.in = c.step.out;
                    c.with_bias();
                    c.link(CHAIN_LEAKY_RELU, -1, 0.2f);
                    c.link(CHAIN_ADD_TENSOR, c.tensor(type, dim, channels));
                }
                c.fill();
                check_pointwise(c);
            }
}

/* As many links as there can be, which only this order makes right. */
static void test_long_chain()
{
    for (element_type type : every_type)
        for (size_t channels : {24, 5}) {
            size3 dim = {5, 3, 11};
            step_case c(2);
            c.set_in(type, dim, channels);
            c.set_out(type, dim, channels);
            c.with_bias();
            c.link(CHAIN_AFFINE);
            c.link(CHAIN_TANH);
            c.link(CHAIN_MUL_TENSOR, c.tensor(type, dim, 1));
            c.link(CHAIN_ELU, -1, 0.7f);
            c.link(CHAIN_RSUB_TENSOR, c.tensor(type, {1, 1, 1}, channels));
            c.link(CHAIN_PRELU);
            CHECK(c.links.size() == DEVICE_MAX_LINKS);
            c.fill();
            check_pointwise(c);
        }
}

/* An operand that all samples share: in the first one's arena, and NaN in the others'. */
static void test_shared_operand()
{
    for (size_t channels : {3, 8}) {
        step_case c(4);
        c.set_in(ELEMENT_F32, {2, 2, 5}, channels);
        c.set_out(ELEMENT_F32, {2, 2, 5}, channels);
        int operand = c.tensor(ELEMENT_F32, {2, 2, 5}, channels);
        c.fill();
        std::vector<unsigned char> made =
            c.launched([&](device_tensor &in, device_tensor &out, device_epilogue &e) {
                e.n = 1;
                e.link[0].op = CHAIN_ADD_TENSOR;
                e.link[0].operand = c.operand_of(operand);
                e.link[0].operand.sample = 0;
                return kernel_pointwise(&in, &out, 4, &e, 0);
            });
        std::vector<float> a = c.take_result(made), expected;
        for (unsigned s = 0; s < 4; s++)
            for (size_t v = 0; v < 20; v++)
                for (size_t ch = 0; ch < channels; ch++)
                    expected.push_back(interpreted_load(ELEMENT_F32, c.at(s, c.step.in, v, ch)) +
                                       interpreted_load(ELEMENT_F32, c.at(0, operand, v, ch)));
        CHECK(arrays_close(a.data(), a.size(), expected.data(), expected.size(), 0, 0));
    }
}

/* More channels than a block has threads, and so many blocks that threads have several voxels. */
static void test_many()
{
    for (size_t channels : {257, 2056}) {
        size3 dim = {33, 65, 1};
        step_case c(channels < 1000 ? 2 : 1);
        c.set_in(ELEMENT_BF16, dim, channels);
        c.set_out(ELEMENT_BF16, dim, channels);
        c.with_bias();
        c.link(CHAIN_RELU);
        c.fill();
        check_pointwise(c);
    }
}

static void test_nothing()
{
    step_case c(1);
    c.set_in(ELEMENT_F32, {2, 3, 4}, 8);
    c.set_out(ELEMENT_F32, {2, 3, 4}, 8);
    c.fill();
    std::vector<unsigned char> made =
        c.launched([](device_tensor &in, device_tensor &out, device_epilogue &e) {
            cudaError_t error = kernel_pointwise(&in, &out, 0, &e, 0);
            in.dim[1] = out.dim[1] = 0;
            return error == cudaSuccess ? kernel_pointwise(&in, &out, 3, &e, 0) : error;
        });
    CHECK(made == c.arenas);
}

int main()
{
    return run_in_all_orders({{"shapes", test_shapes},
                              {"copies", test_copies},
                              {"operations", test_operations},
                              {"affine_without", test_affine_without},
                              {"operands", test_operands},
                              {"partly_repeated", test_partly_repeated},
                              {"repeated_input", test_repeated_input},
                              {"in_place", test_in_place},
                              {"long_chain", test_long_chain},
                              {"shared_operand", test_shared_operand},
                              {"many", test_many},
                              {"nothing", test_nothing}});
}
