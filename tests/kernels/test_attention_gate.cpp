/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel_attention_gate against the gate's equations in double, and to the last bit against the
 * steps that it stands for: convolution, convolution + add + relu, convolution + sigmoid, multiply.
 *
 * Tolerance: g, a and s are rounded where the kernel rounds them. A sum in float that lies near the
 * middle between two values may be rounded the other way, which moves a by a unit in the last
 * place, and with it s; s, too, may fall to the other side: so two units of out's last place, and
 * in float32 the sums' rounding. That the very values are right is what the comparison with the
 * steps shows.
 */
#include "convolution_case.h"

struct gate_case {
    element_type type;
    unsigned samples, dim[3], coarse, skip, inner;
    view_of coarse_view, skip_view, out_view;
    bool bias;
};

struct gate_setup {
    gate_case c;
    test_tensor coarse, skip, out;
    test_values coarse_weight, skip_weight, psi_weight, coarse_bias, skip_bias, psi_bias;

    explicit gate_setup(const gate_case &c_)
        : c(c_), coarse(c.type, c.samples, c.dim, c.coarse, c.coarse_view),
          skip(c.type, c.samples, c.dim, c.skip, c.skip_view),
          out(c.type, c.samples, c.dim, c.skip, c.out_view),
          coarse_weight(c.type, (size_t)c.inner * c.coarse, 3, 2 / sqrt(c.coarse)),
          skip_weight(c.type, (size_t)c.inner * c.skip, 4, 2 / sqrt(c.skip)),
          psi_weight(c.type, c.inner, 5, 4 / sqrt(c.inner)),
          coarse_bias(ELEMENT_F32, c.inner, 6, 1), skip_bias(ELEMENT_F32, c.inner, 7, 1),
          psi_bias(ELEMENT_F32, 1, 8, 1)
    {
        coarse.fill(1);
        skip.fill(2);
    }
    device_gate gate() const
    {
        return {coarse_weight.bytes.device_data(),
                skip_weight.bytes.device_data(),
                psi_weight.bytes.device_data(),
                c.bias ? coarse_bias.floats() : nullptr,
                c.bias ? skip_bias.floats() : nullptr,
                c.bias ? psi_bias.floats() : nullptr,
                c.inner};
    }
    std::vector<float> reference()
    {
        std::vector<float> values(out.values());
        for (size_t voxel = 0; voxel < c.samples * out.voxels(); voxel++) {
            double sum = c.bias ? (double)psi_bias.get(0) : 0;
            for (unsigned f = 0; f < c.inner; f++) {
                double g = c.bias ? (double)coarse_bias.get(f) : 0;
                double a = c.bias ? (double)skip_bias.get(f) : 0;
                for (unsigned i = 0; i < c.coarse; i++)
                    g += (double)coarse.get(voxel * c.coarse + i) *
                         (double)coarse_weight.get((size_t)f * c.coarse + i);
                for (unsigned i = 0; i < c.skip; i++)
                    a += (double)skip.get(voxel * c.skip + i) *
                         (double)skip_weight.get((size_t)f * c.skip + i);
                a += (double)round_to(c.type, (float)g);
                sum += (double)round_to(c.type, a < 0 ? 0 : (float)a) * (double)psi_weight.get(f);
            }
            float s = round_to(c.type, (float)(1 / (1 + exp(-sum))));
            for (unsigned i = 0; i < c.skip; i++)
                values[voxel * c.skip + i] = skip.get(voxel * c.skip + i) * s;
        }
        return values;
    }
    /* By the kernels of the separate steps. */
    std::vector<float> steps()
    {
        unsigned inner = c.inner;
        test_tensor g(c.type, c.samples, c.dim, inner), a(c.type, c.samples, c.dim, inner);
        test_tensor s(c.type, c.samples, c.dim, 1);
        convolve(coarse, g, coarse_weight, c.bias ? coarse_bias.floats() : nullptr, {});
        device_epilogue add_relu = {};
        add_relu.link[add_relu.n++] = {CHAIN_ADD_TENSOR, 0, nullptr, nullptr, g.operand()};
        add_relu.link[add_relu.n++] = {CHAIN_RELU, 0, nullptr, nullptr, {}};
        convolve(skip, a, skip_weight, c.bias ? skip_bias.floats() : nullptr, add_relu);
        device_epilogue sigmoid = {};
        sigmoid.link[sigmoid.n++] = {CHAIN_SIGMOID, 0, nullptr, nullptr, {}};
        convolve(a, s, psi_weight, c.bias ? psi_bias.floats() : nullptr, sigmoid);
        device_epilogue multiply = {};
        multiply.link[multiply.n++] = {CHAIN_MUL_TENSOR, 0, nullptr, nullptr, s.operand()};
        device_tensor from = skip.on_device(), to = out.on_device();
        out.bytes.upload();
        cuda_or_die(kernel_pointwise(&from, &to, c.samples, &multiply, nullptr), "multiply");
        cuda_or_die(cudaDeviceSynchronize(), "steps");
        std::vector<float> values;
        out.results(&values);
        return values;
    }

  private:
    void convolve(const test_tensor &from, test_tensor &to, const test_values &weight,
                  const float *bias, device_epilogue epilogue) const
    {
        device_convolution convolution = {
            {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0},
            1,         false,     false,     weight.bytes.device_data()};
        device_tensor in = from.on_device(), result = to.on_device();
        epilogue.bias = bias;
        to.bytes.upload();
        cuda_or_die(kernel_convolution(&convolution, &in, &result, c.samples, &epilogue, nullptr),
                    "step");
        cuda_or_die(cudaDeviceSynchronize(), "step");
    }
};

static bool check_gate(const gate_case &c)
{
    gate_setup s(c);
    std::vector<float> expected = s.reference(), steps = s.steps(), values;
    double unit = c.type == ELEMENT_F32 ? 1e-5 : c.type == ELEMENT_BF16 ? 0x1p-6 : 0x1p-9;
    device_gate gate = s.gate();
    device_tensor coarse = s.coarse.on_device(), skip = s.skip.on_device(), out = s.out.on_device();
    for (int order = 0; order < schedules; order++) {
        s.out.bytes.upload();
        set_schedule(order);
        cuda_or_die(kernel_attention_gate(&gate, &coarse, &skip, &out, c.samples, nullptr),
                    "launch");
        cuda_or_die(cudaDeviceSynchronize(), "kernel");
        bool good =
            s.out.results(&values) && arrays_close(values.data(), values.size(), expected.data(),
                                                   expected.size(), 1e-6, unit);
        if (good && memcmp(values.data(), steps.data(), 4 * steps.size()) != 0) {
            fprintf(stderr, "not the same as step by step\n");
            good = false;
        }
        if (!good) {
            fprintf(stderr, "type %d, %u + %u channels, %u inner, %ux%ux%u, schedule %d\n", c.type,
                    c.coarse, c.skip, c.inner, c.dim[0], c.dim[1], c.dim[2], order);
            return false;
        }
    }
    return true;
}

static void gates(test_report *report)
{
    static const gate_case cases[] = {
        /* as in the networks: the result is a part of a concatenation */
        {ELEMENT_F32, 2, {3, 5, 31}, 32, 32, 16, {0, 0}, {0, 0}, {32, 0}, true},
        {ELEMENT_F32, 1, {5, 5, 5}, 64, 32, 32, {64, 0}, {0, 0}, {0, 64}, false},
        {ELEMENT_F32, 3, {1, 1, 17}, 96, 128, 64, {0, 0}, {0, 0}, {0, 128}, true},
        {ELEMENT_F32, 1, {2, 3, 65}, 16, 16, 8, {0, 0}, {8, 8}, {16, 0}, true},
        /* odd channels, unaligned views, sizes of 1 */
        {ELEMENT_F32, 1, {1, 1, 1}, 1, 1, 1, {1, 0}, {0, 1}, {1, 1}, true},
        {ELEMENT_F32, 3, {2, 1, 33}, 5, 7, 3, {3, 1}, {1, 0}, {0, 2}, false},
        {ELEMENT_F32, 1, {7, 11, 5}, 9, 24, 10, {0, 0}, {1, 0}, {8, 0}, true},
        {ELEMENT_F32, 1, {2, 2, 67}, 24, 17, 66, {0, 0}, {0, 3}, {4, 4}, true},
    };
    for (gate_case c : cases)
        for (int type = 0; type < 3; type++) {
            c.type = (element_type)type;
            report->add(check_gate(c));
        }
}

/* The result and the coarse tensor are the two halves of one concatenation. */
static bool beside_coarse(element_type type)
{
    const gate_case c = {type, 2, {3, 1, 31}, 32, 32, 16, {32, 0}, {0, 0}, {32, 0}, true};
    gate_setup s(c);
    std::vector<float> steps = s.steps();
    device_gate gate = s.gate();
    device_tensor coarse = s.coarse.on_device(), skip = s.skip.on_device(), out = coarse;
    out.data = static_cast<unsigned char *>(coarse.data) - 32 * bytes_of(type);
    for (int order = 0; order < schedules; order++) {
        s.coarse.bytes.upload();
        set_schedule(order);
        cuda_or_die(kernel_attention_gate(&gate, &coarse, &skip, &out, c.samples, nullptr),
                    "launch");
        cuda_or_die(cudaDeviceSynchronize(), "kernel");
        std::vector<unsigned char> bytes = s.coarse.bytes.download();
        for (size_t i = 0; i < steps.size(); i++) {
            size_t at = guard_bytes + s.coarse.offset(i); /* as many channels */
            float v = get_element(type, bytes.data() + at - 32 * bytes_of(type));
            if (memcmp(&v, &steps[i], sizeof v) != 0 ||
                memcmp(&bytes[at], &s.coarse.bytes.host[at], bytes_of(type)) != 0) {
                fprintf(stderr, "beside coarse: type %d, value %zu, schedule %d\n", type, i, order);
                return false;
            }
        }
    }
    return true;
}

static bool refuses(const gate_case &c, bool other_size)
{
    gate_setup s(c);
    device_gate gate = s.gate();
    device_tensor coarse = s.coarse.on_device(), skip = s.skip.on_device(), out = s.out.on_device();
    coarse.dim[0] += other_size;
    return !attention_gate_takes(&gate, &coarse, &skip, &out) &&
           kernel_attention_gate(&gate, &coarse, &skip, &out, c.samples, nullptr) != cudaSuccess;
}

int main(void)
{
    if (int skipped = skipped_without_device())
        return skipped;
    test_report report;
    gates(&report);
    for (int type = 0; type < 3; type++)
        report.add(beside_coarse((element_type)type));
    const gate_case good = {ELEMENT_F32, 1, {2, 2, 2}, 8, 8, 4, {0, 0}, {0, 0}, {0, 0}, true};
    report.add(refuses(good, true));
    gate_case large = good; /* weights that do not fit */
    large.coarse = large.skip = 256;
    large.inner = 128;
    report.add(refuses(large, false));
    return report.finish("attention_gate");
}
