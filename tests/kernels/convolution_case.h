/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of convolutions and of the attention gate share: tensors on the device among
 * poison, and convolutions from their definition in double.
 *
 * Tensors lie in buffers of 0xff bytes, NaN in every element type: guard zones at both ends, the
 * other channels of a view's buffer, gaps between samples. A kernel that reads what is not its
 * input gives NaN; after each launch every byte that is not the result has to be as before.
 */
#ifndef DOSEMAP_TESTS_CONVOLUTION_CASE_H
#define DOSEMAP_TESTS_CONVOLUTION_CASE_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef DOSEMAP_EMULATED_CUDA
#include "emulation.h"
#endif
#include "compare.h"
#include "device_case.h"
#include "kernels/kernels.h"

/* Schedules of the emulated toolkit; a GPU has its own. */
#ifdef DOSEMAP_EMULATED_CUDA
static const int schedules = EMULATION_ORDERS;
static inline void set_schedule(int order)
{
    emulation_set_order(order);
}
#else
static const int schedules = 2; /* the same twice: has to give the same bytes */
static inline void set_schedule(int)
{
}
#endif

static inline void cuda_or_die(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

/* ---- Elements ------------------------------------------------------------------------------- */

static inline size_t bytes_of(element_type type)
{
    return type == ELEMENT_F32 ? 4 : 2;
}

static inline float get_element(element_type type, const unsigned char *at)
{
    if (type == ELEMENT_F32) {
        float v;
        memcpy(&v, at, sizeof v);
        return v;
    }
    if (type == ELEMENT_BF16) {
        __nv_bfloat16 v;
        memcpy(&v, at, sizeof v);
        return __bfloat162float(v);
    }
    __half v;
    memcpy(&v, at, sizeof v);
    return __half2float(v);
}

static inline void set_element(element_type type, unsigned char *at, float v)
{
    if (type == ELEMENT_F32) {
        memcpy(at, &v, sizeof v);
    } else if (type == ELEMENT_BF16) {
        __nv_bfloat16 rounded = __float2bfloat16_rn(v);
        memcpy(at, &rounded, sizeof rounded);
    } else {
        __half rounded = __float2half_rn(v);
        memcpy(at, &rounded, sizeof rounded);
    }
}

static inline float round_to(element_type type, float v)
{
    unsigned char bytes[4];
    set_element(type, bytes, v);
    return get_element(type, bytes);
}

/* As tensor cores take float32: 11 significant bits, ties away from zero. */
static inline float round_to_tf32(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits = (bits + 0x1000) & ~0x1fffu;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* In [-1, 1], the same for the same seed and index. */
static inline float noise(uint64_t seed, uint64_t index)
{
    uint64_t h = (seed * 0x9e3779b97f4a7c15u) ^ (index + 0x632be59bd9b4e019u);
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    h ^= h >> 31;
    return (float)((double)(h >> 11) / 4503599627370496.0 - 1.0);
}

/* ---- Tensors -------------------------------------------------------------------------------- */

static const size_t guard_bytes = 256;

/* Bytes on the device and what the host knows of them. */
struct poisoned_bytes {
    std::vector<unsigned char> host;
    void *device = nullptr;

    explicit poisoned_bytes(size_t n) : host(n + 2 * guard_bytes, 0xff)
    {
        cuda_or_die(cudaMalloc(&device, host.size()), "cudaMalloc");
    }
    ~poisoned_bytes()
    {
        cudaFree(device);
    }
    poisoned_bytes(const poisoned_bytes &) = delete;
    poisoned_bytes &operator=(const poisoned_bytes &) = delete;
    unsigned char *data()
    {
        return host.data() + guard_bytes;
    }
    unsigned char *device_data() const
    {
        return static_cast<unsigned char *>(device) + guard_bytes;
    }
    void upload() const
    {
        cuda_or_die(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice), "upload");
    }
    std::vector<unsigned char> download() const
    {
        std::vector<unsigned char> bytes(host.size());
        cuda_or_die(cudaMemcpy(bytes.data(), device, bytes.size(), cudaMemcpyDeviceToHost),
                    "download");
        return bytes;
    }
};

/* A view: `before` channels lie before it in its buffer, `after` behind it. */
struct view_of {
    unsigned before, after;
};

struct test_tensor {
    element_type type;
    unsigned samples, dim[3], channels;
    view_of view;
    size_t pitch, sample;
    poisoned_bytes bytes;

    test_tensor(element_type type_, unsigned samples_, const unsigned dim_[3], unsigned channels_,
                view_of view_ = {0, 0})
        : type(type_), samples(samples_), dim{dim_[0], dim_[1], dim_[2]}, channels(channels_),
          view(view_), pitch((size_t)view_.before + channels_ + view_.after),
          sample((voxels() * pitch + 23) / 8 * 8), /* with a gap */
          bytes(samples_ * sample * bytes_of(type_))
    {
    }
    size_t voxels() const
    {
        return (size_t)dim[0] * dim[1] * dim[2];
    }
    size_t values() const
    {
        return samples * voxels() * channels;
    }
    /* Of value i in the order (sample, z, y, x, channel). */
    size_t offset(size_t i) const
    {
        size_t c = i % channels, voxel = i / channels % voxels(), n = i / channels / voxels();
        return (n * sample + voxel * pitch + view.before + c) * bytes_of(type);
    }
    size_t index(unsigned n, const unsigned at[3], unsigned c) const
    {
        size_t voxel = ((size_t)at[0] * dim[1] + at[1]) * dim[2] + at[2];
        return (n * voxels() + voxel) * channels + c;
    }
    float get(size_t i)
    {
        return get_element(type, bytes.data() + offset(i));
    }
    void fill(uint64_t seed)
    {
        for (size_t i = 0; i < values(); i++)
            set_element(type, bytes.data() + offset(i), noise(seed, i));
        bytes.upload();
    }
    device_tensor on_device() const
    {
        return {bytes.device_data() + view.before * bytes_of(type),
                sample,
                pitch,
                channels,
                {dim[0], dim[1], dim[2]},
                type};
    }
    device_operand operand() const
    {
        device_operand o = {bytes.device_data() + view.before * bytes_of(type),
                            sample,
                            dim[0] == 1 ? 0 : (size_t)dim[1] * dim[2] * pitch,
                            dim[1] == 1 ? 0 : dim[2] * pitch,
                            dim[2] == 1 ? 0 : pitch,
                            channels == 1 ? (size_t)0 : 1,
                            type};
        return o;
    }
    /* What a launch left in the view; false if it wrote anywhere else. */
    bool results(std::vector<float> *out)
    {
        std::vector<unsigned char> after = bytes.download(), expected = bytes.host;
        out->resize(values());
        for (size_t i = 0; i < values(); i++) {
            size_t at = guard_bytes + offset(i);
            (*out)[i] = get_element(type, after.data() + at);
            memcpy(expected.data() + at, after.data() + at, bytes_of(type));
        }
        if (after == expected)
            return true;
        fprintf(stderr, "bytes that are no part of the result were written\n");
        return false;
    }
};

/* float32 or half values, dense, on the device. */
struct test_values {
    element_type type;
    size_t n;
    poisoned_bytes bytes;

    test_values(element_type type_, size_t n_, uint64_t seed, double scale)
        : type(type_), n(n_), bytes(n_ * bytes_of(type_))
    {
        for (size_t i = 0; i < n; i++)
            set_element(type, bytes.data() + i * bytes_of(type), (float)scale * noise(seed, i));
        bytes.upload();
    }
    float get(size_t i)
    {
        return get_element(type, bytes.data() + i * bytes_of(type));
    }
    const float *floats() const
    {
        return reinterpret_cast<const float *>(bytes.device_data());
    }
};

/* ---- Convolutions --------------------------------------------------------------------------- */

enum chain_kind { NO_CHAIN, BIAS, BIAS_LEAKY, RESIDUAL_IN_PLACE, LONG_CHAIN, chain_kinds };

struct convolution_case {
    element_type type = ELEMENT_F32, out_type = ELEMENT_F32;
    unsigned samples = 1, dim[3] = {1, 1, 1}, in_channels = 1, out_channels = 1, groups = 1;
    int kernel[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, dilation[3] = {1, 1, 1};
    int pad_begin[3] = {0, 0, 0}, pad_end[3] = {0, 0, 0};
    bool transposed = false, tf32 = false;
    view_of in_view = {0, 0}, out_view = {0, 0};
    chain_kind chain = NO_CHAIN;

    /* False if nothing is left. */
    bool result_dim(unsigned out[3]) const
    {
        for (int a = 0; a < 3; a++) {
            int reach = dilation[a] * (kernel[a] - 1) + 1, pads = pad_begin[a] + pad_end[a];
            int n = (int)dim[a];
            int size = transposed ? (n - 1) * stride[a] - pads + reach
                                  : (n + pads - reach < 0 ? 0 : (n + pads - reach) / stride[a] + 1);
            if (size <= 0)
                return false;
            out[a] = (unsigned)size;
        }
        return true;
    }
    unsigned taps() const
    {
        return (unsigned)(kernel[0] * kernel[1] * kernel[2]);
    }
    std::string name() const
    {
        static const char *const types[] = {"f32", "bf16", "f16"};
        char text[400];
        snprintf(text, sizeof text,
                 "%s->%s%s n%u %ux%ux%u c%u->%u g%u k%d,%d,%d s%d,%d,%d d%d,%d,%d p%d,%d,%d/"
                 "%d,%d,%d%s in %u+%u out %u+%u chain %d",
                 types[type], types[out_type], tf32 ? " tf32" : "", samples, dim[0], dim[1], dim[2],
                 in_channels, out_channels, groups, kernel[0], kernel[1], kernel[2], stride[0],
                 stride[1], stride[2], dilation[0], dilation[1], dilation[2], pad_begin[0],
                 pad_begin[1], pad_begin[2], pad_end[0], pad_end[1], pad_end[2],
                 transposed ? " transposed" : "", in_view.before, in_view.after, out_view.before,
                 out_view.after, chain);
        return text;
    }
};

/* Everything a launch of a case needs, and its result from the definition. */
struct convolution_setup {
    convolution_case c;
    test_tensor in, out, gate;
    test_values weight, bias, scale, shift;

    /* c has a result. */
    convolution_setup(const convolution_case &c_, const unsigned out_dim[3])
        : c(c_), in(c.type, c.samples, c.dim, c.in_channels, c.in_view),
          out(c.out_type, c.samples, out_dim, c.out_channels, c.out_view),
          gate(c.type, c.samples, out_dim, 1),
          weight(c.type, (size_t)c.out_channels * c.taps() * (c.in_channels / c.groups), 2,
                 1 / sqrt((double)c.taps() * (c.in_channels / c.groups))),
          bias(ELEMENT_F32, c.out_channels, 3, 1), scale(ELEMENT_F32, c.out_channels, 4, 2),
          shift(ELEMENT_F32, c.out_channels, 5, 1)
    {
        in.fill(1);
        gate.fill(6);
        if (c.chain == RESIDUAL_IN_PLACE)
            out.fill(7);
    }
    device_convolution convolution() const
    {
        device_convolution d = {};
        for (int a = 0; a < 3; a++) {
            d.kernel[a] = c.kernel[a];
            d.stride[a] = c.stride[a];
            d.dilation[a] = c.dilation[a];
            d.pad_begin[a] = c.pad_begin[a];
        }
        d.groups = c.groups;
        d.transposed = c.transposed;
        d.tf32 = c.tf32;
        d.weight = weight.bytes.device_data();
        return d;
    }
    device_epilogue epilogue() const
    {
        device_epilogue e = {};
        if (c.chain != NO_CHAIN)
            e.bias = bias.floats();
        if (c.chain == BIAS_LEAKY)
            e.link[e.n++] = {CHAIN_LEAKY_RELU, 0.2f, nullptr, nullptr, {}};
        if (c.chain == RESIDUAL_IN_PLACE) {
            e.link[e.n++] = {CHAIN_ADD_TENSOR, 0, nullptr, nullptr, out.operand()};
            e.link[e.n++] = {CHAIN_RELU, 0, nullptr, nullptr, {}};
        }
        if (c.chain == LONG_CHAIN) {
            e.link[e.n++] = {CHAIN_AFFINE, 0, scale.floats(), shift.floats(), {}};
            e.link[e.n++] = {CHAIN_PRELU, 0, shift.floats(), nullptr, {}};
            e.link[e.n++] = {CHAIN_MUL_TENSOR, 0, nullptr, nullptr, gate.operand()};
            e.link[e.n++] = {CHAIN_TANH, 0, nullptr, nullptr, {}};
        }
        return e;
    }
    double end(double v, size_t i)
    {
        size_t channel = i % c.out_channels;
        if (c.chain != NO_CHAIN)
            v += (double)bias.get(channel);
        if (c.chain == BIAS_LEAKY)
            v = v < 0 ? (double)0.2f * v : v;
        if (c.chain == RESIDUAL_IN_PLACE) {
            v += (double)out.get(i);
            v = v < 0 ? 0 : v;
        }
        if (c.chain == LONG_CHAIN) {
            v = (double)scale.get(channel) * v + (double)shift.get(channel);
            v = v < 0 ? (double)shift.get(channel) * v : v;
            v = tanh(v * (double)gate.get(i / c.out_channels));
        }
        return v;
    }
    double factor(test_values &v, size_t i) const
    {
        return (double)(c.tf32 ? round_to_tf32(v.get(i)) : v.get(i));
    }
    /* From the input's side: each input voxel adds to the results that see it. */
    std::vector<float> reference()
    {
        std::vector<double> sum(out.values());
        unsigned per_in = c.in_channels / c.groups, per_out = c.out_channels / c.groups;
        unsigned at[3], k[3], to[3];
        for (size_t voxel = 0; voxel < c.samples * in.voxels(); voxel++) {
            unsigned n = (unsigned)(voxel / in.voxels());
            at[0] = (unsigned)(voxel % in.voxels() / (c.dim[1] * c.dim[2]));
            at[1] = (unsigned)(voxel / c.dim[2] % c.dim[1]);
            at[2] = (unsigned)(voxel % c.dim[2]);
            for (unsigned tap = 0; tap < c.taps(); tap++) {
                k[0] = tap / (unsigned)(c.kernel[1] * c.kernel[2]);
                k[1] = tap / (unsigned)c.kernel[2] % (unsigned)c.kernel[1];
                k[2] = tap % (unsigned)c.kernel[2];
                if (!result_under(at, k, to))
                    continue;
                double *s = &sum[out.index(n, to, 0)];
                for (unsigned o = 0; o < c.out_channels; o++)
                    for (unsigned i = 0; i < per_in; i++) {
                        size_t x = in.index(n, at, o / per_out * per_in + i);
                        float v = c.tf32 ? round_to_tf32(in.get(x)) : in.get(x);
                        size_t w = ((size_t)o * c.taps() + tap) * per_in + i;
                        s[o] += (double)v * factor(weight, w);
                    }
            }
        }
        std::vector<float> values(sum.size());
        for (size_t i = 0; i < sum.size(); i++)
            values[i] = (float)end(sum[i], i);
        return values;
    }

  private:
    bool result_under(const unsigned at[3], const unsigned k[3], unsigned to[3]) const
    {
        for (int a = 0; a < 3; a++) {
            int reach = (int)k[a] * c.dilation[a] - c.pad_begin[a], i = (int)at[a];
            int o = c.transposed ? i * c.stride[a] + reach : i - reach;
            if (o < 0 || (!c.transposed && o % c.stride[a]))
                return false;
            to[a] = (unsigned)(c.transposed ? o : o / c.stride[a]);
            if (to[a] >= out.dim[a])
                return false;
        }
        return true;
    }
};

/* Against results that are not rounded: half a unit of the result's last place, and the rounding of
 * sums in float. Values are of the order of 1. */
static inline double rounding_of(element_type type)
{
    return type == ELEMENT_F32 ? 2e-6 : type == ELEMENT_BF16 ? 0x1p-8 + 2e-6 : 0x1p-11 + 2e-6;
}
/* A tensor core cuts its sums off at the alignment of the largest term, eight or four terms at a
 * time: relative to a product of 27*32 terms by some 1e-5 with TF32. */
#ifdef DOSEMAP_EMULATED_CUDA
static const double sum_rounding = 3e-6;
#else
static const double sum_rounding = 2e-5;
#endif

typedef cudaError_t (*convolution_kernel)(const device_convolution *, const device_tensor *,
                                          const device_tensor *, unsigned, const device_epilogue *,
                                          cudaStream_t);

/* Launches under one schedule; false if what came back is no result. */
static inline bool launch_convolution(convolution_setup &s, convolution_kernel kernel, int schedule,
                                      std::vector<float> *values)
{
    device_convolution convolution = s.convolution();
    device_tensor in = s.in.on_device(), out = s.out.on_device();
    device_epilogue epilogue = s.epilogue();
    s.out.bytes.upload();
    set_schedule(schedule);
    cuda_or_die(kernel(&convolution, &in, &out, s.c.samples, &epilogue, nullptr), "launch");
    cuda_or_die(cudaDeviceSynchronize(), "kernel");
    return s.out.results(values);
}

/* schedule < 0: all of them, which have to agree to the last bit. */
static inline bool check_convolution(const convolution_case &c, convolution_kernel kernel,
                                     int schedule)
{
    unsigned out_dim[3];
    if (!c.result_dim(out_dim)) {
        fprintf(stderr, "%s: has no result\n", c.name().c_str());
        return false;
    }
    convolution_setup s(c, out_dim);
    std::vector<float> expected = s.reference(), values, first;
    int begin = schedule < 0 ? 0 : schedule % schedules;
    int end = schedule < 0 ? schedules : begin + 1;
    for (int order = begin; order < end; order++) {
        bool good = launch_convolution(s, kernel, order, &values) &&
                    arrays_close(values.data(), values.size(), expected.data(), expected.size(),
                                 sum_rounding, rounding_of(c.out_type));
        if (good && order != begin && memcmp(values.data(), first.data(), 4 * first.size()) != 0) {
            fprintf(stderr, "schedules differ\n");
            good = false;
        }
        if (!good) {
            fprintf(stderr, "%s: schedule %d\n", c.name().c_str(), order);
            return false;
        }
        first = values;
    }
    return true;
}

/* Counts and names what failed; the exit status. */
struct test_report {
    unsigned done = 0, failed = 0;
    void add(bool good)
    {
        done++;
        failed += !good;
    }
    int finish(const char *what) const
    {
        printf("%s: %u of %u cases failed\n", what, failed, done);
        return failed || !done ? 1 : 0;
    }
};

#endif
