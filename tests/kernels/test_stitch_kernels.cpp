// SPDX-License-Identifier: Apache-2.0
// Windows into a volume by the kernels, against the CPU's stitch: the same bytes for any batches,
// any box of the grid and any strides, and the same faults.
#include "volume_case.h"

struct stitch_case {
    int orientation; // of the sum in memory
    size_t dim[3], tile[3];
    double overlap;
    dm_blend blend;
    size_t skip_every;
};

static const stitch_case cases[] = {
    {0, {1, 1, 1}, {1, 1, 1}, 0, DM_BLEND_CONSTANT, 0},
    {0, {1, 1, 1}, {8, 4, 2}, 0.5, DM_BLEND_GAUSSIAN, 0},
    {0, {5, 7, 3}, {16, 8, 33}, 0.5, DM_BLEND_GAUSSIAN, 0},
    {3, {17, 13, 11}, {8, 4, 7}, 0, DM_BLEND_CONSTANT, 0},
    {0, {37, 13, 11}, {17, 5, 3}, 0.5, DM_BLEND_GAUSSIAN, 7},
    {12, {31, 33, 32}, {31, 32, 31}, 0.5, DM_BLEND_GAUSSIAN, 0},
    {0, {65, 6, 5}, {33, 4, 4}, 0.5, DM_BLEND_CONSTANT, 4},
    {45, {12, 11, 13}, {10, 10, 10}, 0.9, DM_BLEND_GAUSSIAN, 5},
    {22, {40, 9, 33}, {16, 8, 16}, 0.25, DM_BLEND_GAUSSIAN, 3},
};

// One volume's tiling, the CPU's sum, and an output for each window: rubbish in the padding.
struct stitch_bench {
    const stitch_case &c;
    dm_grid grid;
    grid_map map;
    tiling tiles;
    device_tiling_copy device;
    size_t voxels; // of a tile
    std::vector<float> sum;
    std::vector<float> outputs; // (windows, tile)

    explicit stitch_bench(const stitch_case &which)
        : c(which), grid(grid_of(which)), map(map_of(grid)), tiles(tiling_of(which)), device(tiles),
          voxels(voxels_of(tiles.tile)), sum(voxels_of(tiles.volume)),
          outputs(some_values(tiles.count * voxels, 5))
    {
        for (size_t i = 0; i < outputs.size(); i++)
            if (i % 3 == 0)
                outputs[i] = -outputs[i];
        for (size_t w = 0; w < tiles.count; w++)
            for (size_t i = 0; i < voxels; i++)
                if (!model_voxel(w, i, NULL))
                    outputs[w * voxels + i] = i % 2 ? NAN : INFINITY;
    }
    stitch_bench(const stitch_bench &) = delete;
    ~stitch_bench()
    {
        tiling_clear(&tiles);
    }

    static dm_grid grid_of(const stitch_case &c)
    {
        const double mm[3] = {1, 1, 1};
        return oriented_grid(c.orientation, c.dim, mm);
    }
    static grid_map map_of(const dm_grid &grid)
    {
        grid_map m;
        CHECK(grid_map_make(&grid, "RAS", NULL, &m, NULL) == DM_OK);
        return m;
    }
    static tiling tiling_of(const stitch_case &c)
    {
        tiling t;
        CHECK(tiling_make(c.dim, c.tile, c.overlap, c.blend, &t, NULL) == DM_OK);
        return t;
    }
    // Of voxel i of window w; false in the padding.
    bool model_voxel(size_t w, size_t i, size_t model[3]) const
    {
        size_t s[3];
        tiling_window(&tiles, w, s);
        const size_t in_tile[3] = {i % tiles.tile[0], i / tiles.tile[0] % tiles.tile[1],
                                   i / tiles.tile[0] / tiles.tile[1]};
        bool inside = true;
        for (int a = 0; a < 3; a++) {
            const size_t v = s[a] + in_tile[a] - tiles.pad_before[a];
            inside = inside && v < tiles.volume[a];
            if (model)
                model[a] = v;
        }
        return inside;
    }
    strided volume(std::vector<float> &values) const
    {
        return strided_exact(&grid, &map, values.data());
    }
    // What the CPU makes of the outputs; true, and `bad`, if it stops at one that is not finite.
    bool cpu_stitch(size_t bad[3])
    {
        stitch *st;
        sum.assign(sum.size(), 0);
        CHECK(stitch_create(&tiles, volume(sum), 0, &st, NULL) == DM_OK);
        const batching b = {1, false, c.skip_every};
        for (size_t w = 0; w < tiles.count; w++)
            if (!(is_skipped(b, w) ? stitch_skip(st, w) : stitch_add(st, w, &outputs[w * voxels])))
                break;
        const bool found = stitch_not_finite(st, bad);
        stitch_free(st);
        return found;
    }
};

// Stitches batch by batch into a sum on the device.
template <class Batch>
static void stitch_batches(const stitch_bench &b, const batching &batches, Batch stitch_batch)
{
    for (const std::vector<unsigned> &windows : batches_of(batches, b.tiles.count)) {
        device_buffer<unsigned> where(windows);
        CHECK(stitch_batch(windows, where.data()) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
    }
}

// Each place's output, with `extra` elements between samples, `pitch` from voxel to voxel; all that
// is not an output is NaN.
static std::vector<float> batch_outputs(const stitch_bench &b, const std::vector<unsigned> &windows,
                                        size_t sample, size_t pitch)
{
    std::vector<float> values(windows.size() * sample, NAN);
    for (size_t n = 0; n < windows.size(); n++)
        for (size_t i = 0; i < b.voxels && windows[n] != NO_WINDOW; i++)
            values[n * sample + i * pitch] = b.outputs[windows[n] * b.voxels + i];
    return values;
}

static void stitch_into(const stitch_bench &b, const batching &batches, const device_volume &sum,
                        size_t pitch, unsigned long long *fault)
{
    stitch_batches(b, batches, [&](const std::vector<unsigned> &windows, const unsigned *where) {
        const size_t sample = b.voxels * pitch + 3;
        device_buffer<float> outputs(batch_outputs(b, windows, sample, pitch));
        device_tensor tensor = {};
        tensor.data = outputs.data();
        tensor.sample = sample;
        tensor.pitch = pitch;
        tensor.channels = 1;
        for (int a = 0; a < 3; a++)
            tensor.dim[a] = (unsigned)b.tiles.tile[2 - a];
        tensor.type = ELEMENT_F32;
        const cudaError_t error =
            kernel_stitch(&b.device.view, where, (unsigned)windows.size(), &tensor, &sum, fault, 0);
        CHECK(cudaDeviceSynchronize() == cudaSuccess); /* before the outputs are freed */
        return error;
    });
}

// The grid cut into `parts` slabs along an axis, each stitched and finished on its own.
template <class Stitch>
static void in_slabs(const stitch_bench &b, int axis, size_t parts, std::vector<float> &result,
                     Stitch stitch_slab)
{
    const strided whole = b.volume(result);
    for (size_t part = 0; part < parts; part++) {
        size_t begin[3] = {0, 0, 0}, dim[3];
        memcpy(dim, b.tiles.volume, sizeof dim);
        begin[axis] = dim[axis] * part / parts;
        dim[axis] = dim[axis] * (part + 1) / parts - begin[axis];
        device_box box(whole, begin, dim);
        box.upload(whole);
        stitch_slab(box.view());
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        box.download(whole);
    }
}

static const batching some_batches[] = {
    {1, false, 0}, {3, true, 0}, {8, false, 0}, {8, true, 0}, {70, true, 0}};

static batching with_skips(batching b, const stitch_case &c)
{
    b.skip_every = c.skip_every;
    return b;
}

static intensity_transform steps()
{
    intensity_transform t = {};
    t.n = 3;
    t.step[0] = {INTENSITY_SCALE, 1.7f, 0.3f};
    t.step[1] = {INTENSITY_SQUARE, 0, 0};
    t.step[2] = {INTENSITY_SCALE, 0.9f, -0.1f};
    return t;
}

// The sum by several batchings, and the dose after the division, whole and in slabs.
static void check_case(const stitch_case &c, const std::vector<size_t> &which)
{
    stitch_bench b(c);
    const intensity_transform transform = steps();
    size_t bad[3];
    CHECK(!b.cpu_stitch(bad));
    std::vector<float> finished = b.sum;
    CHECK(stitch_finish(&b.tiles, b.volume(finished), &transform, 1.3f, 1, bad, NULL) == DM_OK);
    device_buffer<unsigned long long> fault(std::vector<unsigned long long>{NO_FAULT});
    for (size_t i : which) {
        std::vector<float> sum(b.sum.size(), 0);
        in_slabs(b, (int)(i % 3), 1 + i % 3, sum, [&](const device_volume &slab) {
            stitch_into(b, with_skips(some_batches[i], c), slab, 1 + i % 2, fault.data());
        });
        CHECK(same_bytes(sum.data(), b.sum.data(), sum.size()));
    }
    for (int axis = 0; axis < 3; axis++) {
        std::vector<float> dose = b.sum;
        in_slabs(b, axis, (size_t)axis + 1, dose, [&](const device_volume &slab) {
            CHECK(kernel_finish(&b.device.view, &slab, &transform, 1.3f, fault.data(), 0) ==
                  cudaSuccess);
        });
        CHECK(same_bytes(dose.data(), finished.data(), dose.size()));
    }
    CHECK(fault.download()[0] == NO_FAULT);
}

static void test_cases()
{
    for (const stitch_case &c : cases)
        check_case(c, {0, 1, 2, 3, 4});
}

static void test_orientations()
{
    for (size_t o = 0; o < ORIENTATIONS; o++)
        check_case({(int)o, {7, 5, 9}, {4, 4, 4}, 0.5, DM_BLEND_GAUSSIAN, 0}, {2 + o % 3});
}

// ---- Faults ---------------------------------------------------------------------------------

static void test_output_faults()
{
    unsigned named_faults = 0;
    for (size_t i = 0; i < 12; i++) {
        const stitch_case &c = cases[4 + i % 5];
        stitch_bench b(c);
        const batching batches = with_skips(some_batches[i % 5], c);
        for (size_t k = 0; k < 3; k++)
            b.outputs[(i * 104729 + k * 7907) % b.outputs.size()] = k == 1 ? INFINITY : NAN;
        size_t bad[3], named[3];
        const bool found = b.cpu_stitch(bad);
        device_buffer<unsigned long long> fault(std::vector<unsigned long long>{NO_FAULT});
        std::vector<float> sum(b.sum.size(), 0);
        in_slabs(b, (int)(i % 3), 1 + i % 2, sum, [&](const device_volume &slab) {
            stitch_into(b, batches, slab, 1, fault.data());
        });
        const unsigned long long first = fault.download()[0];
        CHECK(found == (first != NO_FAULT));
        if (!found)
            continue;
        CHECK(b.model_voxel(first / b.voxels, first % b.voxels, named));
        CHECK(memcmp(named, bad, sizeof named) == 0);
        named_faults++;
    }
    CHECK(named_faults >= 8);
}

// The transform has no value for some sums; and a division whose result the factor makes infinite.
static void test_finish_faults()
{
    intensity_transform root = {};
    root.n = 1;
    root.step[0] = {INTENSITY_SQRT, 0, 0};
    for (size_t i = 0; i < 10; i++) {
        const stitch_case &c = cases[3 + i % 6];
        stitch_bench b(c);
        const float factor = i < 5 ? 1.0f : 1e38f;
        for (size_t k = 0; k < b.sum.size(); k++)
            b.sum[k] = 0.01f * some_value(k, 3);
        for (size_t k = 0; k < 3; k++)
            b.sum[(i * 104729 + k * 7907) % b.sum.size()] = i < 5 ? -1.0f : 1e6f;
        size_t bad[3];
        std::vector<float> finished = b.sum, dose = b.sum;
        CHECK(stitch_finish(&b.tiles, b.volume(finished), &root, factor, 1, bad, NULL) ==
              DM_ERROR_VALUE);
        device_buffer<unsigned long long> fault(std::vector<unsigned long long>{NO_FAULT});
        in_slabs(b, (int)(i % 3), 2, dose, [&](const device_volume &slab) {
            CHECK(kernel_finish(&b.device.view, &slab, &root, factor, fault.data(), 0) ==
                  cudaSuccess);
        });
        CHECK(fault.download()[0] ==
              bad[0] + b.tiles.volume[0] * (bad[1] + b.tiles.volume[1] * bad[2]));
    }
}

// ---- The head -------------------------------------------------------------------------------

// One convolution of features into the bench's outputs.
struct head_bench {
    stitch_bench b;
    int kernel;
    unsigned channels;
    size_t pitch, sample;
    element_type type;
    std::vector<float> features; // (windows, sample), exact in the element type
    std::vector<float> weights;  // (taps, channels), too
    float bias, slope;

    head_bench(const stitch_case &c, int k, unsigned n, size_t wider, element_type t)
        : b(c), kernel(k), channels(n), pitch(n + wider), sample(b.voxels * pitch + 8 - wider % 8),
          type(t), weights(some_values((size_t)(k * k * k) * n, 11)), bias(-0.3f), slope(0.2f)
    {
        if (wider % 8 == 0 && n % 8 == 0)
            sample = b.voxels * pitch + 8;
        features.assign(b.tiles.count * sample, NAN);
        for (size_t w = 0; w < b.tiles.count; w++)
            for (size_t v = 0; v < b.voxels; v++)
                for (size_t i = 0; i < channels; i++)
                    features[w * sample + v * pitch + i] =
                        some_value((w * b.voxels + v) * channels + i, 2) - 2;
        for (float &w : weights)
            w = (w - 2) / (float)channels;
        features = decode(encode(features, type), type);
        weights = decode(encode(weights, type), type);
        for (size_t w = 0; w < b.tiles.count; w++)
            for (size_t v = 0; v < b.voxels; v++)
                b.outputs[w * b.voxels + v] = output(w, v);
    }

    // In double, rounded once: bias, leaky ReLU.
    float output(size_t w, size_t voxel) const
    {
        const size_t *tile = b.tiles.tile;
        const ptrdiff_t x = (ptrdiff_t)(voxel % tile[0]),
                        y = (ptrdiff_t)(voxel / tile[0] % tile[1]),
                        z = (ptrdiff_t)(voxel / tile[0] / tile[1]);
        double sum = bias;
        for (int tap = 0; tap < kernel * kernel * kernel; tap++) {
            const ptrdiff_t at[3] = {x + tap % kernel - kernel / 2,
                                     y + tap / kernel % kernel - kernel / 2,
                                     z + tap / kernel / kernel - kernel / 2};
            bool inside = true;
            for (int a = 0; a < 3; a++)
                inside = inside && at[a] >= 0 && at[a] < (ptrdiff_t)tile[a];
            if (!inside)
                continue;
            const size_t from = (size_t)at[0] + tile[0] * ((size_t)at[1] + tile[1] * (size_t)at[2]);
            for (size_t i = 0; i < channels; i++)
                sum += (double)weights[(size_t)tap * channels + i] *
                       (double)features[w * sample + from * pitch + i];
        }
        return (float)(sum < 0 ? (double)slope * sum : sum);
    }
};

template <class T>
static void head_into(const head_bench &h, const batching &batches, const device_volume &sum,
                      unsigned long long *fault)
{
    device_buffer<T> weights(to_elements<T>(h.weights));
    device_buffer<float> bias(std::vector<float>{h.bias});
    device_convolution head = {};
    for (int a = 0; a < 3; a++) {
        head.kernel[a] = h.kernel;
        head.stride[a] = head.dilation[a] = 1;
        head.pad_begin[a] = h.kernel / 2;
    }
    head.groups = 1;
    head.weight = weights.data();
    device_epilogue epilogue = {};
    epilogue.bias = bias.data();
    epilogue.n = 1;
    epilogue.link[0].op = CHAIN_LEAKY_RELU;
    epilogue.link[0].alpha = h.slope;
    stitch_batches(h.b, batches, [&](const std::vector<unsigned> &windows, const unsigned *where) {
        std::vector<float> values(windows.size() * h.sample, NAN);
        for (size_t n = 0; n < windows.size(); n++)
            if (windows[n] != NO_WINDOW)
                memcpy(&values[n * h.sample], &h.features[windows[n] * h.sample],
                       h.sample * sizeof(float));
        device_buffer<T> features(to_elements<T>(values));
        device_tensor in = {};
        in.data = features.data();
        in.sample = h.sample;
        in.pitch = h.pitch;
        in.channels = h.channels;
        for (int a = 0; a < 3; a++)
            in.dim[a] = (unsigned)h.b.tiles.tile[2 - a];
        in.type = h.type;
        CHECK(head_stitch_takes(&head, &in, &epilogue));
        const cudaError_t error = kernel_head_stitch(&head, &in, &epilogue, &h.b.device.view, where,
                                                     (unsigned)windows.size(), &sum, fault, 0);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        return error;
    });
}

// The CPU's sum of outputs computed in double, within what float32 rounds in so many products; all
// batchings and slabs to the same bytes.
template <class T>
static void check_head(const stitch_case &c, int kernel, unsigned channels, size_t wider,
                       element_type type)
{
    head_bench h(c, kernel, channels, wider, type);
    size_t bad[3];
    CHECK(!h.b.cpu_stitch(bad));
    std::vector<float> first;
    for (size_t i = 0; i < 3; i++) {
        device_buffer<unsigned long long> fault(std::vector<unsigned long long>{NO_FAULT});
        std::vector<float> sum(h.b.sum.size(), 0);
        in_slabs(h.b, (int)i, i + 1, sum, [&](const device_volume &slab) {
            head_into<T>(h, with_skips(some_batches[i], c), slab, fault.data());
        });
        CHECK(fault.download()[0] == NO_FAULT);
        CHECK(arrays_close(sum.data(), sum.size(), h.b.sum.data(), sum.size(), 4e-6, 1e-6));
        if (i == 0)
            first = sum;
        CHECK(same_bytes(sum.data(), first.data(), sum.size()));
    }
}

static void test_head()
{
    static const stitch_case small[] = {
        {0, {9, 7, 8}, {4, 5, 6}, 0.5, DM_BLEND_GAUSSIAN, 0},
        {29, {33, 5, 4}, {17, 4, 3}, 0.5, DM_BLEND_GAUSSIAN, 4},
        {0, {2, 3, 1}, {4, 4, 4}, 0, DM_BLEND_CONSTANT, 0},
    };
    for (const stitch_case &c : small)
        for (int kernel : {1, 3}) {
            check_head<float>(c, kernel, 1, 0, ELEMENT_F32);
            check_head<float>(c, kernel, 16, 8, ELEMENT_F32);
            check_head<float>(c, kernel, 8, 3, ELEMENT_F32);
            check_head<__nv_bfloat16>(c, kernel, 16, 0, ELEMENT_BF16);
            check_head<__nv_bfloat16>(c, kernel, 7, 2, ELEMENT_BF16);
            check_head<__half>(c, kernel, 24, 16, ELEMENT_F16);
            check_head<__half>(c, kernel, 33, 0, ELEMENT_F16);
        }
}

// More windows in a batch than one launch takes.
static void test_large_batch()
{
    const stitch_case c = {5, {34, 33, 1}, {2, 2, 1}, 0.5, DM_BLEND_GAUSSIAN, 0};
    head_bench h(c, 1, 1, 0, ELEMENT_F32);
    size_t bad[3];
    CHECK(h.b.tiles.count == 1056 && !h.b.cpu_stitch(bad));
    device_buffer<unsigned long long> fault(std::vector<unsigned long long>{NO_FAULT});
    std::vector<float> sum(h.b.sum.size(), 0), head_sum = sum;
    in_slabs(h.b, 0, 1, sum, [&](const device_volume &slab) {
        stitch_into(h.b, {1056, false, 0}, slab, 1, fault.data());
    });
    CHECK(same_bytes(sum.data(), h.b.sum.data(), sum.size()));
    in_slabs(h.b, 0, 1, head_sum, [&](const device_volume &slab) {
        head_into<float>(h, {1056, false, 0}, slab, fault.data());
    });
    CHECK(arrays_close(head_sum.data(), sum.size(), h.b.sum.data(), sum.size(), 4e-6, 1e-6));
}

// A feature that is not finite makes the outputs around it so.
static void test_head_faults()
{
    for (int kernel : {1, 3}) {
        head_bench h(cases[4], kernel, 5, 1, ELEMENT_F32);
        for (size_t k = 1; k < 4; k++) {
            const size_t w = 3 + 17 * k, voxel = k * 6151 % h.b.voxels;
            h.features[w * h.sample + voxel * h.pitch + k] = k == 2 ? NAN : INFINITY;
        }
        for (size_t w = 0; w < h.b.tiles.count; w++)
            for (size_t v = 0; v < h.b.voxels; v++)
                h.b.outputs[w * h.b.voxels + v] = h.output(w, v);
        size_t bad[3], named[3];
        CHECK(h.b.cpu_stitch(bad));
        device_buffer<unsigned long long> fault(std::vector<unsigned long long>{NO_FAULT});
        std::vector<float> sum(h.b.sum.size(), 0);
        in_slabs(h.b, 2, 1, sum, [&](const device_volume &slab) {
            head_into<float>(h, with_skips(some_batches[3], cases[4]), slab, fault.data());
        });
        const unsigned long long first = fault.download()[0];
        CHECK(h.b.model_voxel(first / h.b.voxels, first % h.b.voxels, named));
        CHECK(memcmp(named, bad, sizeof named) == 0);
    }
}

static void test_head_takes()
{
    device_convolution head = {{3, 3, 3}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, 1, false, false, NULL};
    device_tensor in = {NULL, 0, 16, 16, {4, 4, 4}, ELEMENT_BF16};
    device_epilogue epilogue = {};
    epilogue.n = 1;
    epilogue.link[0].op = CHAIN_RELU;
    CHECK(head_stitch_takes(&head, &in, &epilogue));
    const auto refuses = [&](auto change) {
        device_convolution other = head;
        device_tensor wider = in;
        device_epilogue end = epilogue;
        change(other, wider, end);
        return !head_stitch_takes(&other, &wider, &end);
    };
    typedef device_convolution &convolution;
    typedef device_tensor &tensor;
    typedef device_epilogue &chain;
    CHECK(refuses([](convolution h, tensor, chain) { h.stride[1] = 2; }));
    CHECK(refuses([](convolution h, tensor, chain) { h.dilation[2] = 2; }));
    CHECK(refuses([](convolution h, tensor, chain) { h.pad_begin[0] = 0; }));
    CHECK(refuses([](convolution h, tensor, chain) { h.kernel[0] = 1; }));
    CHECK(refuses([](convolution h, tensor, chain) { h.groups = 2; }));
    CHECK(refuses([](convolution h, tensor, chain) { h.transposed = true; }));
    CHECK(refuses([](convolution, tensor t, chain) { t.channels = 4096; }));
    CHECK(refuses([](convolution, tensor, chain e) { e.link[0].op = CHAIN_MUL_TENSOR; }));
}

int main()
{
    return run_in_all_orders({{"cases", test_cases},
                              {"orientations", test_orientations},
                              {"output faults", test_output_faults},
                              {"finish faults", test_finish_faults},
                              {"head", test_head},
                              {"large batch", test_large_batch},
                              {"head faults", test_head_faults},
                              {"head takes", test_head_takes}});
}
