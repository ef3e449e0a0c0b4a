/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step of a plan, run by a kernel and by the plan's interpreter on the same arenas. All that is
 * no element of the result has to stay as it was: what lies beside a view, between tensors, and the
 * step's own inputs.
 *
 *     step_case c(samples);
 *     c.set_in(type, dim, channels, view), c.set_out(...);   operands: c.tensor(...)
 *     c.link(CHAIN_ADD_TENSOR, operand);
 *     c.fill(); then, if need be, c.put(...)
 *     c.check([&](device_tensor &in, device_tensor &out, device_epilogue &e) { launch ... });
 */
#ifndef DOSEMAP_TESTS_STEP_CASE_H
#define DOSEMAP_TESTS_STEP_CASE_H

/* Before the toolkit, whose __noinline__ is a macro that these headers do not expect. */
#include <array>
#include <deque>
#include <memory>
#include <vector>

#include <cuda_runtime.h>

#include <math.h>
#include <string.h>

#include "compare.h"
#include "interpreted_step.h"
#include "kernel_case.h"
#include "kernels/kernels.h"

typedef std::array<size_t, 3> size3; /* z, y, x */

/* How a tensor lies in its buffer. */
enum view_kind {
    VIEW_DENSE,
    VIEW_ALIGNED, /* a multiple of 8 channels before and behind it */
    VIEW_SHIFTED  /* one channel before it and two behind: nothing is aligned */
};
#define VIEW_KINDS 3

static const element_type every_type[] = {ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16};
static const size_t every_channels[] = {1, 3, 5, 8, 16, 24, 32, 33};
static const size3 every_dim[] = {{1, 1, 1},  {1, 1, 2},  {3, 5, 7},  {2, 31, 3}, {1, 2, 32},
                                  {33, 1, 3}, {2, 3, 65}, {4, 4, 4},  {13, 1, 1}, {1, 11, 5},
                                  {5, 1, 31}, {2, 2, 33}, {65, 1, 1}, {1, 17, 1}};

/* |kernel - interpreter| <= atol + rtol*|interpreter|, and one rounding of a half type. */
struct step_limits {
    double atol = 2e-6, rtol = 2e-6;
};

static inline float step_random(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 16777216.0f;
}

struct step_case {
    unsigned samples;
    size_t bytes = 64; /* of a sample's arena; the first are nobody's */
    std::vector<interpreted_tensor> tensors;
    std::vector<interpreted_link> links;
    std::deque<std::vector<float>> constants;
    const std::vector<float> *bias = nullptr;
    interpreted_step step;
    std::vector<unsigned char> arenas;
    unsigned seed = 1;

    explicit step_case(unsigned n_samples) : samples(n_samples)
    {
        memset(&step, 0, sizeof step);
        step.kind = INTERPRETED_POINTWISE;
        for (int a = 0; a < 3; a++)
            step.node.kernel[a] = step.node.stride[a] = step.node.dilation[a] = 1;
    }
    step_case(const step_case &) = delete;

    /* ---- Building ---- */

    int tensor(element_type type, size3 dim, size_t channels, view_kind view = VIEW_DENSE)
    {
        interpreted_tensor t;
        memset(&t, 0, sizeof t);
        t.channels = channels;
        memcpy(t.dim, dim.data(), sizeof t.dim);
        t.type = type;
        t.channel_start = view == VIEW_DENSE ? 0 : view == VIEW_ALIGNED ? 8 : 1;
        t.pitch = channels + (view == VIEW_DENSE ? 0 : view == VIEW_ALIGNED ? 24 : 3);
        t.offset = bytes;
        bytes += (voxels(t) * t.pitch * interpreted_size(type) + 63) / 64 * 64 + 64;
        tensors.push_back(t);
        return (int)tensors.size() - 1;
    }
    void set_in(element_type type, size3 dim, size_t channels, view_kind view = VIEW_DENSE)
    {
        step.in = tensor(type, dim, channels, view);
    }
    void set_out(element_type type, size3 dim, size_t channels, view_kind view = VIEW_DENSE)
    {
        step.out = tensor(type, dim, channels, view);
    }
    const interpreted_tensor &in_tensor() const
    {
        return tensors[(size_t)step.in];
    }
    const interpreted_tensor &out_tensor() const
    {
        return tensors[(size_t)step.out];
    }

    /* `n` values of [low, high), kept as long as the case. */
    const std::vector<float> &random_constant(size_t n, float low, float high)
    {
        constants.emplace_back(n);
        for (float &v : constants.back())
            v = low + (high - low) * step_random(&seed);
        return constants.back();
    }
    void link(chain_op op, int operand = -1, float alpha = 0)
    {
        interpreted_link l = {op, operand, alpha, nullptr, nullptr};
        size_t channels = out_tensor().channels;
        if (op == CHAIN_AFFINE || op == CHAIN_PRELU)
            l.scale = random_constant(channels, -1, 2).data();
        if (op == CHAIN_AFFINE)
            l.shift = random_constant(channels, -1, 1).data();
        links.push_back(l);
    }
    void with_bias()
    {
        bias = &random_constant(out_tensor().channels, -1, 1);
    }

    /* ---- Values ---- */

    unsigned char *at(unsigned sample, int id, size_t voxel, size_t c)
    {
        const interpreted_tensor &t = tensors[(size_t)id];
        return arenas.data() + sample * bytes + t.offset +
               (voxel * t.pitch + t.channel_start + c) * interpreted_size(t.type);
    }
    static size_t voxels(const interpreted_tensor &t)
    {
        return t.dim[0] * t.dim[1] * t.dim[2];
    }
    void put(unsigned sample, int id, size_t voxel, size_t c, float value)
    {
        interpreted_store(tensors[(size_t)id].type, at(sample, id, voxel, c), value);
    }

    /* All tensors but a separate result: random, [low, high). Everything else: NaN bytes. */
    void fill(float low = -3, float high = 3)
    {
        bytes = (bytes + 63) / 64 * 64;
        arenas.assign(samples * bytes, 0xff);
        for (unsigned s = 0; s < samples; s++)
            for (int id = 0; id < (int)tensors.size(); id++) {
                const interpreted_tensor &t = tensors[(size_t)id];
                bool result = id == step.out && !result_is_read();
                for (size_t v = 0; v < voxels(t) && !result; v++)
                    for (size_t c = 0; c < t.channels; c++)
                        put(s, id, v, c, low + (high - low) * step_random(&seed));
            }
    }
    bool result_is_read() const
    {
        bool read = step.in == step.out;
        for (const interpreted_link &l : links)
            read = read || l.tensor == step.out;
        return read;
    }

    /* ---- The kernel's side ---- */

    std::unique_ptr<device_buffer<unsigned char>> device;
    std::vector<std::unique_ptr<device_buffer<float>>> device_constants;

    device_tensor device_of(int id)
    {
        const interpreted_tensor &t = tensors[(size_t)id];
        device_tensor d;
        memset(&d, 0, sizeof d);
        d.data = device->data() + t.offset + t.channel_start * interpreted_size(t.type);
        d.sample = bytes / interpreted_size(t.type);
        d.pitch = t.pitch;
        d.channels = (unsigned)t.channels;
        for (int a = 0; a < 3; a++)
            d.dim[a] = (unsigned)t.dim[a];
        d.type = t.type;
        return d;
    }
    const float *on_device(const float *values, size_t n)
    {
        if (!values)
            return nullptr;
        device_constants.emplace_back(
            new device_buffer<float>(std::vector<float>(values, values + n)));
        return device_constants.back()->data();
    }
    device_operand operand_of(int id)
    {
        const interpreted_tensor &t = tensors[(size_t)id];
        device_tensor d = device_of(id);
        device_operand o;
        memset(&o, 0, sizeof o);
        o.data = d.data;
        o.sample = d.sample;
        o.type = d.type;
        o.c = t.channels > 1;
        o.x = t.dim[2] > 1 ? t.pitch : 0;
        o.y = t.dim[1] > 1 ? t.pitch * t.dim[2] : 0;
        o.z = t.dim[0] > 1 ? t.pitch * t.dim[2] * t.dim[1] : 0;
        return o;
    }
    device_epilogue epilogue()
    {
        device_epilogue e;
        memset(&e, 0, sizeof e);
        size_t channels = out_tensor().channels;
        if (bias)
            e.bias = on_device(bias->data(), channels);
        CHECK(links.size() <= DEVICE_MAX_LINKS);
        for (const interpreted_link &l : links) {
            device_link *d = &e.link[e.n++];
            d->op = l.op;
            d->alpha = l.alpha;
            d->scale = on_device(l.scale, channels);
            d->shift = on_device(l.shift, channels);
            if (l.op <= CHAIN_RSUB_TENSOR)
                d->operand = operand_of(l.tensor);
        }
        return e;
    }

    /* ---- Both ---- */

    /* A bias, and what an AFFINE leaves out, the interpreter gets as constants. */
    std::vector<unsigned char> interpreted()
    {
        std::vector<interpreted_link> chain;
        size_t channels = out_tensor().channels;
        constants.emplace_back(channels, 1.0f);
        const float *ones = constants.back().data();
        constants.emplace_back(channels, 0.0f);
        const float *zeros = constants.back().data();
        if (bias)
            chain.push_back({CHAIN_AFFINE, -1, 0, ones, bias->data()});
        for (interpreted_link l : links) {
            l.scale = l.scale ? l.scale : ones;
            l.shift = l.shift ? l.shift : zeros;
            chain.push_back(l);
        }
        step.chain = chain.data();
        step.n_chain = chain.size();
        step.tensors = tensors.data();
        step.n_tensors = tensors.size();
        std::vector<unsigned char> made = arenas;
        for (unsigned s = 0; s < samples; s++)
            interpreted_step_run(&step, made.data() + s * bytes);
        return made;
    }

    /* The kernel's arenas. */
    template <class Launch> std::vector<unsigned char> launched(Launch launch)
    {
        device.reset(new device_buffer<unsigned char>(arenas));
        device_constants.clear();
        device_tensor in = device_of(step.in), out = device_of(step.out);
        device_epilogue e = epilogue();
        CHECK(launch(in, out, e) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        return device->download();
    }

    /* The result's elements, in order, of arenas whose own are then made those of `arenas`. */
    std::vector<float> take_result(std::vector<unsigned char> &from) const
    {
        const interpreted_tensor &t = out_tensor();
        size_t size = interpreted_size(t.type), n = voxels(t);
        std::vector<float> values;
        values.reserve(samples * n * t.channels);
        for (unsigned s = 0; s < samples; s++)
            for (size_t v = 0; v < n; v++)
                for (size_t c = 0; c < t.channels; c++) {
                    size_t i = s * bytes + t.offset + (v * t.pitch + t.channel_start + c) * size;
                    values.push_back(interpreted_load(t.type, &from[i]));
                    memcpy(&from[i], &arenas[i], size);
                }
        return values;
    }

    /* launch(in, out, epilogue) returns the launcher's error. */
    template <class Launch> void check(Launch launch, step_limits limits = step_limits())
    {
        std::vector<unsigned char> made = launched(launch), expected = interpreted();
        std::vector<float> a = take_result(made), ref = take_result(expected);
        /* Both round, and may do so to neighbours. */
        element_type type = out_tensor().type;
        double ulp = type == ELEMENT_BF16 ? 1.0 / 128 : type == ELEMENT_F16 ? 1.0 / 1024 : 0;
        bool close = arrays_close(a.data(), a.size(), ref.data(), ref.size(), limits.atol,
                                  limits.rtol + ulp);
        if (!close)
            describe();
        CHECK(close);
        CHECK(made == arenas); /* nothing else was written */
        /* But few do: with another way of rounding every second value would differ. */
        size_t others = 0;
        for (size_t i = 0; i < a.size(); i++)
            others += !(a[i] == ref[i]);
        CHECK(type != ELEMENT_BF16 || 4 * others <= a.size() + 16);
    }
    void describe() const
    {
        fprintf(stderr, "%u samples, step %d", samples, (int)step.kind);
        for (const interpreted_tensor &t : tensors)
            fprintf(stderr, "; type %d, %zu x %zu x %zu x %zu, pitch %zu from %zu", (int)t.type,
                    t.dim[0], t.dim[1], t.dim[2], t.channels, t.pitch, t.channel_start);
        for (const interpreted_link &l : links)
            fprintf(stderr, "; op %d", (int)l.op);
        fprintf(stderr, "%s\n", bias ? "; bias" : "");
    }
};

/* Calls function(type, dim, channels, samples, view of in, view of out) for each type with each
 * number of channels; sizes, samples and views take turns, so that each meets many others. */
template <class Function> static inline void each_shape(Function function)
{
    unsigned i = 0;
    for (element_type type : every_type)
        for (size_t channels : every_channels)
            for (int round = 0; round < 4; round++, i++) {
                size3 dim = every_dim[(i * 5 + i / 14) % (sizeof every_dim / sizeof *every_dim)];
                function(type, dim, channels, 1 + i % 5, (view_kind)(i % VIEW_KINDS),
                         (view_kind)(i / 2 % VIEW_KINDS));
            }
}

#endif
