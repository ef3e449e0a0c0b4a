// SPDX-License-Identifier: Apache-2.0
// Instance and group normalisation and the global average: digits where the mean is large, sums in
// one order whatever the schedule and the number of samples, and the steps against the interpreter.
#include "step_case.h"

struct statistics_call {
    device_buffer<float> statistics;
    device_buffer<unsigned char> workspace;

    statistics_call(const device_tensor &in, unsigned samples, unsigned groups)
        : statistics((size_t)samples * groups * 2),
          workspace(normalise_workspace(&in, samples, groups))
    {
    }
    cudaError_t run(const device_tensor &in, unsigned samples, unsigned groups, float epsilon)
    {
        return kernel_normalise_statistics(&in, samples, groups, epsilon, statistics.data(),
                                           workspace.data(), 0);
    }
};

/* ---- Statistics alone ---- */

/* What voxels hold: random values of one deviation about a mean, or something that is hard. */
enum values_kind {
    VALUES_CENTRED,
    VALUES_LIFTED,  /* mean 1000 deviations */
    VALUES_OUTLIER, /* the first voxel 2000 deviations off */
    VALUES_CONSTANT,
    VALUES_RAMP /* of the voxel's number: chunks differ */
};
#define VALUES_KINDS 5

static void fill_values(step_case &c, int kind)
{
    c.fill(-1, 1);
    const interpreted_tensor &t = c.in_tensor();
    size_t n = c.voxels(t);
    for (unsigned s = 0; s < c.samples; s++)
        for (size_t v = 0; v < n; v++)
            for (size_t ch = 0; ch < t.channels; ch++) {
                float x = interpreted_load(t.type, c.at(s, c.step.in, v, ch));
                if (kind == VALUES_LIFTED)
                    x += 1000;
                else if (kind == VALUES_OUTLIER)
                    x = v == 0 ? 2000 : x;
                else if (kind == VALUES_CONSTANT)
                    x = 7.25f + (float)ch;
                else if (kind == VALUES_RAMP)
                    x += 10 * (float)v / (float)n;
                c.put(s, c.step.in, v, ch, x);
            }
}

/* In two passes, in double. */
static void reference_statistics(step_case &c, unsigned groups, float epsilon,
                                 std::vector<float> &mean, std::vector<float> &inverse)
{
    const interpreted_tensor &t = c.in_tensor();
    size_t n = c.voxels(t), per = t.channels / groups;
    for (unsigned s = 0; s < c.samples; s++)
        for (size_t g = 0; g < groups; g++) {
            double sum = 0, squares = 0, count = (double)(n * per);
            for (int pass = 0; pass < 2; pass++)
                for (size_t v = 0; v < n; v++)
                    for (size_t ch = g * per; ch < (g + 1) * per; ch++) {
                        double x = (double)interpreted_load(t.type, c.at(s, c.step.in, v, ch));
                        if (pass)
                            squares += (x - sum / count) * (x - sum / count);
                        else
                            sum += x;
                    }
            mean.push_back((float)(sum / count));
            inverse.push_back((float)(1 / sqrt(squares / count + (double)epsilon)));
        }
}

static std::vector<float> statistics_of(step_case &c, unsigned samples, unsigned groups,
                                        float epsilon)
{
    std::vector<float> made;
    std::vector<unsigned char> after =
        c.launched([&](device_tensor &in, device_tensor &, device_epilogue &) {
            statistics_call call(in, samples, groups);
            cudaError_t error = call.run(in, samples, groups, epsilon);
            made = call.statistics.download();
            return error;
        });
    CHECK(after == c.arenas);
    return made;
}

static void check_statistics(step_case &c, unsigned groups, int kind)
{
    const float epsilon = 1e-5f;
    fill_values(c, kind);
    std::vector<float> made = statistics_of(c, c.samples, groups, epsilon), mean, inverse;
    std::vector<float> mean_made, inverse_made;
    for (size_t i = 0; i < made.size(); i += 2) {
        mean_made.push_back(made[i]);
        inverse_made.push_back(made[i + 1]);
    }
    reference_statistics(c, groups, epsilon, mean, inverse);
    for (size_t i = 0; i < mean.size(); i++) { /* relative to |mean| + deviation */
        float scale = fabsf(mean[i]) + 1 / inverse[i];
        mean_made[i] /= scale;
        mean[i] /= scale;
    }
    bool close = close_to(mean_made, mean, 2e-7, 0) && close_to(inverse_made, inverse, 0, 1e-6);
    if (!close) {
        fprintf(stderr, "values %d, %u groups: ", kind, groups);
        c.describe();
    }
    CHECK(close);
}

static void test_statistics()
{
    unsigned i = 0;
    each_shape([&](element_type type, size3 dim, size_t channels, unsigned samples, view_kind in,
                   view_kind) {
        step_case c(samples);
        c.set_in(type, dim, channels, in);
        c.step.out = c.step.in;
        unsigned groups = (unsigned)channels;
        if (i % 3 == 1)
            groups = 1;
        else if (i % 3 == 2)
            groups = channels % 4 ? (unsigned)channels : (unsigned)channels / 4;
        check_statistics(c, groups, (int)(i++ % VALUES_KINDS));
    });
}

/* Many chunks: in the block, over the blocks, and the last one short. */
static void test_large()
{
    struct {
        size3 dim;
        size_t channels;
        unsigned groups;
        element_type type;
    } sizes[] = {{{33, 65, 3}, 8, 8, ELEMENT_BF16},     {{33, 65, 3}, 8, 2, ELEMENT_F32},
                 {{5, 33, 65}, 64, 16, ELEMENT_F16},    {{33, 65, 5}, 1, 1, ELEMENT_F32},
                 {{31, 65, 5}, 3, 1, ELEMENT_BF16},     {{3, 13, 211}, 255, 255, ELEMENT_F32},
                 {{1, 3, 5}, 2056, 2056, ELEMENT_BF16}, {{3, 3, 5}, 300, 3, ELEMENT_F16}};
    for (auto &size : sizes)
        for (int kind = 0; kind < VALUES_KINDS; kind += 1 + (size.channels > 64)) {
            step_case c(size.channels > 8 ? 1 : 2);
            c.set_in(size.type, size.dim, size.channels);
            c.step.out = c.step.in;
            check_statistics(c, size.groups, kind);
        }
}

/* The same bytes in each order of threads, and of a sample alone or among others. */
static void test_same_bytes()
{
    static std::vector<std::vector<float>> first;
    size_t i = 0;
    for (element_type type : every_type)
        for (size_t channels : {5, 24}) {
            step_case c(3);
            c.set_in(type, {7, 13, 31}, channels);
            c.step.out = c.step.in;
            fill_values(c, VALUES_RAMP);
            unsigned groups = (unsigned)channels;
            std::vector<float> all = statistics_of(c, 3, groups, 1e-5f);
            std::vector<float> one = statistics_of(c, 1, groups, 1e-5f);
            CHECK(!memcmp(all.data(), one.data(), one.size() * sizeof one[0]));
            if (i == first.size())
                first.push_back(all);
            CHECK(!memcmp(all.data(), first[i].data(), all.size() * sizeof all[0]));
            i++;
        }
}

/* ---- Steps ---- */

struct affine {
    bool scale, shift;
};

static void check_step(step_case &c, unsigned groups, affine with, step_limits limits)
{
    size_t channels = c.in_tensor().channels;
    c.step.kind = groups == channels ? INTERPRETED_INSTANCE_NORM : INTERPRETED_GROUP_NORM;
    c.step.node.groups = (int)groups;
    c.step.node.epsilon = 1e-5f;
    c.step.scale = with.scale ? c.random_constant(channels, 0.5f, 2).data() : nullptr;
    c.step.shift = with.shift ? c.random_constant(channels, -1, 1).data() : nullptr;
    unsigned samples = c.samples;
    c.check(
        [&](device_tensor &in, device_tensor &out, device_epilogue &e) {
            statistics_call call(in, samples, groups);
            cudaError_t error = call.run(in, samples, groups, c.step.node.epsilon);
            if (error == cudaSuccess)
                error = kernel_normalise_apply(&in, &out, samples, groups, call.statistics.data(),
                                               c.on_device(c.step.scale, channels),
                                               c.on_device(c.step.shift, channels), &e, 0);
            CHECK(cudaDeviceSynchronize() == cudaSuccess);
            return error;
        },
        limits);
}

static void test_steps()
{
    unsigned i = 0;
    each_shape([&](element_type type, size3 dim, size_t channels, unsigned samples, view_kind in,
                   view_kind out) {
        step_case c(samples);
        c.set_in(type, dim, channels, in);
        c.set_out(type, dim, channels, out);
        if (i % 2)
            c.link(CHAIN_LEAKY_RELU, -1, 0.01f);
        if (i % 3 == 0)
            c.link(CHAIN_ADD_TENSOR, c.tensor(type, dim, i % 4 ? channels : 1));
        c.fill();
        unsigned groups = i % 5 < 3 ? (unsigned)channels : channels % 4 ? 1 : 4;
        check_step(c, groups, {i % 7 != 0, i % 6 != 0}, {4e-6, 4e-6});
        i++;
    });
}

/* A mean of 1000 deviations: float holds the mean to 3e-5 deviations, and so does the CPU. */
static void test_lifted()
{
    for (size_t channels : {3, 16}) {
        step_case c(2);
        c.set_in(ELEMENT_F32, {5, 13, 31}, channels);
        c.set_out(ELEMENT_F32, {5, 13, 31}, channels);
        fill_values(c, VALUES_LIFTED);
        check_step(c, (unsigned)channels, {true, true}, {2e-4, 1e-6});
    }
}

static void test_in_place()
{
    for (element_type type : every_type)
        for (size_t channels : {5, 32}) {
            step_case c(2);
            c.set_in(type, {3, 7, 11}, channels, VIEW_ALIGNED);
            c.step.out = c.step.in;
            c.link(CHAIN_RELU);
            c.fill();
            check_step(c, (unsigned)channels, {true, true}, {4e-6, 4e-6});
        }
}

/* So many blocks that each thread has several voxels, in more than one round. */
static void test_many()
{
    for (size_t channels : {257, 2056}) {
        step_case c(channels < 1000 ? 3 : 1);
        c.set_in(ELEMENT_F32, {33, 65, 1}, channels);
        c.set_out(ELEMENT_F32, {33, 65, 1}, channels);
        c.link(CHAIN_RELU);
        c.fill();
        check_step(c, (unsigned)channels, {true, true}, {4e-6, 4e-6});
    }
}

static void test_global_average()
{
    each_shape([](element_type type, size3 dim, size_t channels, unsigned samples, view_kind in,
                  view_kind out) {
        step_case c(samples);
        c.set_in(type, dim, channels, in);
        c.set_out(type, {1, 1, 1}, channels, out);
        c.step.kind = INTERPRETED_GLOBAL_AVERAGE_POOL;
        c.link(CHAIN_AFFINE);
        c.link(CHAIN_SIGMOID);
        c.fill();
        c.check([&](device_tensor &from, device_tensor &to, device_epilogue &e) {
            unsigned groups = (unsigned)channels;
            statistics_call call(from, samples, groups);
            cudaError_t error = call.run(from, samples, groups, 1e-5f);
            if (error == cudaSuccess)
                error = kernel_global_average(call.statistics.data(), &to, samples, &e, 0);
            CHECK(cudaDeviceSynchronize() == cudaSuccess);
            return error;
        });
    });
}

static void test_nothing()
{
    step_case c(1);
    c.set_in(ELEMENT_F32, {2, 3, 4}, 8);
    c.set_out(ELEMENT_F32, {2, 3, 4}, 8);
    c.fill();
    std::vector<unsigned char> made =
        c.launched([](device_tensor &in, device_tensor &out, device_epilogue &e) {
            for (unsigned samples : {0, 2}) {
                if (samples)
                    in.dim[0] = out.dim[0] = 0;
                CHECK(kernel_normalise_statistics(&in, samples, 8, 0, nullptr, nullptr, 0) ==
                      cudaSuccess);
                CHECK(kernel_normalise_apply(&in, &out, samples, 8, nullptr, nullptr, nullptr, &e,
                                             0) == cudaSuccess);
            }
            return kernel_global_average(nullptr, &out, 0, &e, 0);
        });
    CHECK(made == c.arenas);
}

int main()
{
    return run_in_all_orders({{"statistics", test_statistics},
                              {"large", test_large},
                              {"same_bytes", test_same_bytes},
                              {"steps", test_steps},
                              {"lifted", test_lifted},
                              {"in_place", test_in_place},
                              {"many", test_many},
                              {"global_average", test_global_average},
                              {"nothing", test_nothing}});
}
