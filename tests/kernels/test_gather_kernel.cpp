// SPDX-License-Identifier: Apache-2.0
// Windows of one to four images from the kernel, against the CPU's: the same bytes, maxima and faults.
#include "volume_case.h"

static const intensity_transform identity = {};

struct gather_case {
    const char *name;
    int orientation;
    size_t ras_dim[3];
    double ras_mm[3];
    double model_mm[3]; // 0: as stored
    size_t tile[3];
    double overlap;
    bool nan_to_zero;
    intensity_transform intensity;
    double tolerance; // 0: the same bytes
};

// Images on one grid, their map and tiling, and both sides' gatherers.
struct gather_bench {
    const gather_case &c;
    const size_t channels;
    dm_volume volume[DEVICE_MAX_CHANNELS];
    std::vector<float> data[DEVICE_MAX_CHANNELS];
    intensity_transform intensity[DEVICE_MAX_CHANNELS];
    grid_map map;
    tiling tiles;
    predict_job job;
    gather cpu;

    gather_bench(const gather_case &which, size_t n) : c(which), channels(n)
    {
        memset(volume, 0, sizeof volume);
        memset(&job, 0, sizeof job);
        for (size_t i = 0; i < channels; i++) {
            volume[i].grid = oriented_grid(c.orientation, c.ras_dim, c.ras_mm);
            data[i] = some_values(voxels_of(volume[i].grid.dim), 1 + (unsigned)i);
            volume[i].data = data[i].data();
            intensity[i] = c.intensity;
            const float part = (float)i;
            if (i > 0)
                intensity[i].step[intensity[i].n++] = {INTENSITY_SCALE, 1 + part, part / 4};
            job.channels[i] = {&volume[i], 0.37f / (1 + part), &intensity[i]};
        }
        CHECK(grid_map_make(&volume[0].grid, "RAS", c.model_mm[0] > 0 ? c.model_mm : NULL, &map,
                            NULL) == DM_OK);
        CHECK(tiling_make(map.dim, c.tile, c.overlap, DM_BLEND_CONSTANT, &tiles, NULL) == DM_OK);
        job.n_channels = channels;
        job.pet_channel = channels - 1;
        job.pet = &volume[job.pet_channel];
        job.nan_to_zero = c.nan_to_zero;
        job.map = &map;
        job.tiling = &tiles;
        job.output_intensity = &identity;
        job.skip_air = -INFINITY;
        CHECK(gather_make(&job, ELEMENT_F32, &cpu, NULL) == DM_OK);
    }
    gather_bench(const gather_bench &) = delete;
    ~gather_bench()
    {
        gather_clear(&cpu);
        tiling_clear(&tiles);
    }

    // The CPU's window; at a fault, the channel and the stored voxel in `bad`.
    gather_result cpu_window(size_t w, std::vector<float> &input, size_t *channel,
                             size_t bad[3]) const
    {
        std::vector<float> scratch(cpu.scratch);
        input.assign(voxels_of(tiles.tile) * channels, NAN);
        return gather_window(&cpu, w, scratch.data(), input.data(), channel, bad);
    }
    // That has no fault.
    std::vector<float> good_window(size_t w) const
    {
        std::vector<float> input;
        size_t channel, bad[3];
        CHECK(cpu_window(w, input, &channel, bad) == GATHER_FILLED);
        return input;
    }
    // Source voxels, along the model's axes, that the part of a window inside the volume uses.
    void source_box(size_t w, size_t begin[3], size_t dim[3]) const
    {
        size_t start[3], size[3], at[3];
        tiling_inside(&tiles, w, start, size, at);
        for (int a = 0; a < 3; a++) {
            const axis_table &t = cpu.table[a];
            size_t low = start[a], high = start[a] + size[a];
            if (!map.exact) {
                low = SIZE_MAX;
                high = 0;
                for (size_t i = start[a]; i < start[a] + size[a]; i++) {
                    low = t.first[i] < low ? t.first[i] : low;
                    high = t.first[i] + t.count[i] > high ? t.first[i] + t.count[i] : high;
                }
            }
            begin[a] = low;
            dim[a] = high - low;
        }
    }
};

// The gatherer on the device, with its images restricted to a box.
struct device_gather_copy {
    device_tiling_copy tiles;
    device_tables_copy tables;
    device_box box;
    size_t apart;
    device_buffer<float> images;
    device_gather view;

    device_gather_copy(const gather_bench &b, const size_t begin[3], const size_t dim[3])
        : tiles(b.tiles), tables(b.cpu.table), box(b.cpu.source[0], begin, dim),
          apart(voxels_of(dim) + 3), images(all_images(b))
    {
        view = {};
        view.source = box.view();
        view.source.data = images.data() + box.origin;
        view.apart = (ptrdiff_t)apart;
        view.channels = (unsigned)b.channels;
        view.air_channel = (unsigned)b.job.pet_channel;
        view.exact = b.map.exact;
        for (int a = 0; a < 3; a++)
            view.table[a] = tables.view[a];
        view.nan_to_zero = b.job.nan_to_zero;
        for (size_t c = 0; c < b.channels; c++)
            view.channel[c] = {b.job.channels[c].factor, b.intensity[c]};
        view.tiling = tiles.view;
    }

  private:
    std::vector<float> all_images(const gather_bench &b) const
    {
        std::vector<float> all(b.channels * apart, NAN);
        for (size_t c = 0; c < b.channels; c++) {
            const std::vector<float> one = box.cut_out(b.cpu.source[c]);
            std::copy(one.begin(), one.end(), all.begin() + (ptrdiff_t)(c * apart));
        }
        return all;
    }
};

// Where a batch goes: voxels `room` times as far apart as their channels need.
static device_tensor tensor_for(const device_gather &g, size_t room, element_type type)
{
    device_tensor tensor = {};
    tensor.pitch = g.channels * room;
    tensor.sample = voxels_of(g.tiling.tile) * tensor.pitch + 5 * g.channels;
    tensor.channels = g.channels;
    for (int a = 0; a < 3; a++)
        tensor.dim[a] = (unsigned)g.tiling.tile[2 - a];
    tensor.type = type;
    return tensor;
}

// Runs one batch; `out` receives (places, tile, channels) floats. What lies between the samples and
// between the voxels is checked to be left alone.
static void run_batch(const device_gather &g, const std::vector<unsigned> &windows,
                      element_type type, size_t room, unsigned long long *fault,
                      std::vector<float> &out)
{
    const size_t bytes = type_bytes(type), voxels = voxels_of(g.tiling.tile);
    device_tensor tensor = tensor_for(g, room, type);
    const size_t sample = tensor.sample, pitch = tensor.pitch, channels = g.channels;
    device_buffer<unsigned char> data(windows.size() * sample * bytes);
    device_buffer<unsigned> where(windows);
    device_buffer<unsigned long long> first_fault(std::vector<unsigned long long>{NO_FAULT});
    tensor.data = data.data();
    CHECK(kernel_gather(&g, where.data(), (unsigned)windows.size(), &tensor, first_fault.data(),
                        0) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    *fault = first_fault.download()[0];
    const std::vector<unsigned char> raw = data.download();
    const std::vector<float> values = decode(raw, type);
    out.assign(windows.size() * voxels * channels, NAN);
    for (size_t i = 0; i < windows.size() * sample; i++) {
        const size_t n = i / sample, voxel = i % sample / pitch, channel = i % sample % pitch;
        if (channel < channels && voxel < voxels)
            out[(n * voxels + voxel) * channels + channel] = values[i];
        else
            for (size_t byte = 0; byte < bytes; byte++)
                CHECK(raw[i * bytes + byte] == 0xff);
    }
}

static void check_windows(const gather_bench &b, const device_gather &g, const batching &batches,
                          element_type type, size_t room)
{
    const size_t values = voxels_of(b.tiles.tile) * b.channels;
    std::vector<float> expected, out;
    for (const std::vector<unsigned> &windows : batches_of(batches, b.tiles.count)) {
        unsigned long long fault;
        run_batch(g, windows, type, room, &fault, out);
        CHECK(fault == NO_FAULT);
        for (size_t n = 0; n < windows.size(); n++) {
            if (windows[n] == NO_WINDOW)
                expected.assign(values, 0);
            else
                expected = b.good_window(windows[n]);
            expected = decode(encode(expected, type), type);
            const float *made = &out[n * values];
            CHECK(b.c.tolerance > 0 || same_bytes(made, expected.data(), values));
            // A value that differs by an ulp may fall to the other side in a half type.
            const double ulp = type == ELEMENT_F32 ? 0 : type == ELEMENT_BF16 ? 0x1p-8 : 0x1p-11;
            CHECK(arrays_close(made, values, expected.data(), values, b.c.tolerance,
                               b.c.tolerance > 0 ? b.c.tolerance + ulp : 0));
        }
    }
}

// Largest quantity of the PET in each window, NaN ignored, whatever the other images hold; on the
// CPU from a gatherer of the PET alone, without a transform.
static void check_maxima(const gather_case &c, bool with_nan, size_t channels)
{
    gather_case plain = c;
    plain.intensity = identity;
    gather_bench b(plain, channels);
    std::vector<float> &pet = b.data[b.job.pet_channel];
    for (size_t i = 0; i < pet.size(); i++)
        pet[i] -= 2; // both signs
    for (size_t i = 0; with_nan && i < pet.size(); i += 7)
        pet[i] = NAN;
    predict_job alone = b.job;
    gather cpu;
    alone.n_channels = 1;
    alone.channels[0] = {b.job.pet, b.job.channels[b.job.pet_channel].factor, &identity};
    alone.pet_channel = 0;
    CHECK(gather_make(&alone, ELEMENT_F32, &cpu, NULL) == DM_OK);
    const size_t begin[3] = {0, 0, 0};
    device_gather_copy g(b, begin, b.cpu.source[0].dim);
    std::vector<unsigned> windows;
    std::vector<float> expected, scratch(cpu.scratch), input(voxels_of(b.tiles.tile));
    for (size_t w = 0; w < b.tiles.count; w++) {
        size_t bad[3], channel, start[3], size[3], at[3];
        tiling_inside(&b.tiles, w, start, size, at);
        gather_window(&cpu, w, scratch.data(), input.data(), &channel, bad);
        float largest = -INFINITY; // the scratch holds the quantities of the part inside
        for (size_t i = 0; i < voxels_of(size); i++)
            largest = scratch[i] > largest ? scratch[i] : largest;
        if (w % 4 == 3) {
            windows.push_back(NO_WINDOW);
            expected.push_back(-INFINITY);
        }
        windows.push_back((unsigned)w);
        expected.push_back(largest);
    }
    gather_clear(&cpu);
    device_buffer<unsigned> where(windows);
    device_buffer<float> maximum(windows.size());
    CHECK(kernel_window_maximum(&g.view, where.data(), (unsigned)windows.size(), maximum.data(),
                                0) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    const std::vector<float> made = maximum.download();
    for (size_t i = 0; i < made.size(); i++)
        CHECK(made[i] == expected[i]);
}

static intensity_transform linear_steps()
{
    intensity_transform t = {};
    t.n = 5;
    t.step[0] = {INTENSITY_CLIP, 0.2f, 1.3f};
    t.step[1] = {INTENSITY_SCALE, 1.7f, -0.1f};
    t.step[2] = {INTENSITY_SQUARE, 0, 0};
    t.step[3] = {INTENSITY_SCALE, 0.9f, 0.3f};
    t.step[4] = {INTENSITY_SQRT, 0, 0};
    return t;
}

static intensity_transform log_steps()
{
    intensity_transform t = {};
    t.n = 3;
    t.step[0] = {INTENSITY_LOG1P, 0, 0};
    t.step[1] = {INTENSITY_SCALE, 0.5f, 0.1f};
    t.step[2] = {INTENSITY_EXPM1, 0, 0};
    return t;
}

static void run_case(const gather_case &c, element_type type, const batching &batches, size_t room,
                     size_t channels)
{
    gather_bench b(c, channels);
    const size_t begin[3] = {0, 0, 0};
    for (size_t n = 0; c.nan_to_zero && n < channels; n++)
        for (size_t i = n; i < b.data[n].size(); i += 5)
            b.data[n][i] = i % 2 ? NAN : i % 3 ? INFINITY : -INFINITY;
    device_gather_copy g(b, begin, b.cpu.source[0].dim);
    check_windows(b, g.view, batches, type, room);
}

// Every stored orientation, exact: a permutation with flips.
static void test_orientations()
{
    for (int o = 0; o < ORIENTATIONS; o++) {
        const size_t channels = o % 6 == 5 ? 2 : 1;
        const gather_case c = {"exact",   o,   {7, 5, 11}, {1, 1.5, 2}, {0, 0, 0},
                               {4, 4, 8}, 0.5, false,      identity,    0};
        run_case(c, ELEMENT_F32, {3, true, 0}, 1, channels);
        const gather_case r = {"resampled", o,    {7, 5, 9}, {1, 1.5, 2}, {1.4, 1.1, 1.6},
                               {5, 3, 8},   0.25, false,     identity,    0};
        run_case(r, ELEMENT_F32, {8, false, 0}, 1, channels);
    }
}

static const gather_case cases[] = {
    {"one voxel", 0, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}, 0, false, identity, 0},
    {"one voxel in a tile", 0, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {8, 4, 2}, 0, false, identity, 0},
    {"tile beyond the volume",
     3,
     {5, 7, 3},
     {1, 1, 1},
     {0, 0, 0},
     {16, 8, 33},
     0.5,
     false,
     identity,
     0},
    {"prime sizes",
     0,
     {37, 13, 7},
     {1, 1, 1},
     {0, 0, 0},
     {17, 5, 3},
     0.3,
     false,
     linear_steps(),
     0},
    {"31", 17, {31, 33, 32}, {1, 1, 1}, {0, 0, 0}, {31, 31, 31}, 0.5, false, identity, 0},
    {"33", 8, {33, 32, 31}, {1, 1, 1}, {0, 0, 0}, {33, 33, 33}, 0.9, false, identity, 0},
    {"65", 0, {65, 4, 5}, {1, 1, 1}, {0, 0, 0}, {65, 2, 2}, 0, false, identity, 0},
    {"overlap 0.9", 40, {13, 12, 11}, {1, 1, 1}, {0, 0, 0}, {10, 10, 10}, 0.9, true, identity, 0},
    {"finer", 21, {9, 8, 7}, {3, 2, 4}, {1.3, 1.7, 1.1}, {8, 8, 8}, 0.5, false, linear_steps(), 0},
    {"coarser", 30, {33, 31, 29}, {1, 1.5, 2}, {3.3, 3.7, 5.1}, {8, 4, 4}, 0.5, false, identity, 0},
    {"one axis coarser",
     5,
     {16, 15, 14},
     {1, 1, 1},
     {1, 2.5, 0.7},
     {8, 8, 8},
     0.25,
     true,
     linear_steps(),
     0},
    {"log and exp", 0, {9, 8, 7}, {1, 1, 1}, {0, 0, 0}, {8, 8, 8}, 0.5, false, log_steps(), 1e-6},
};

static void test_cases()
{
    static const element_type types[] = {ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16};
    static const batching batches[] = {{1, false, 0}, {3, true, 4}, {8, true, 3}, {8, false, 0}};
    for (const gather_case &c : cases) {
        for (element_type type : types)
            for (size_t i = 0; i < 4; i++)
                if (type == ELEMENT_F32 || i == 1)
                    run_case(c, type, batches[i], i == 1 ? 3 : 1, 1);
        for (size_t channels = 2; channels <= DEVICE_MAX_CHANNELS; channels++)
            run_case(c, ELEMENT_F32, batches[2], 1, channels);
        run_case(c, ELEMENT_BF16, batches[3], 1, 2);
        run_case(c, ELEMENT_F16, batches[3], 3, 3);
        run_case(c, ELEMENT_BF16, batches[3], 3, 4);
        check_maxima(c, false, 1);
        check_maxima(c, true, 1);
        check_maxima(c, true, 2);
    }
}

// The device holds no more of the images than one window needs.
static void test_source_box()
{
    for (const gather_case &c : cases) {
        gather_bench b(c, 1 + (size_t)(&c - cases) % 2);
        for (size_t w = 0; w < b.tiles.count; w += 3) {
            size_t begin[3], dim[3];
            std::vector<float> out;
            unsigned long long fault;
            b.source_box(w, begin, dim);
            device_gather_copy g(b, begin, dim);
            run_batch(g.view, {(unsigned)w}, ELEMENT_F32, 1, &fault, out);
            const std::vector<float> expected = b.good_window(w);
            CHECK(arrays_close(out.data(), out.size(), expected.data(), expected.size(), 0,
                               c.tolerance));
        }
    }
}

static void check_fault(gather_bench &b)
{
    const size_t begin[3] = {0, 0, 0}, voxels = voxels_of(b.c.tile);
    device_gather_copy g(b, begin, b.cpu.source[0].dim);
    std::vector<unsigned> windows(b.tiles.count);
    std::vector<float> out, input;
    unsigned long long fault;
    size_t bad[3] = {0}, channel = 0, named[3], start[3], w = 0;
    for (size_t k = 0; k < windows.size(); k++)
        windows[k] = (unsigned)k;
    run_batch(g.view, windows, ELEMENT_F32, 1, &fault, out);
    while (w < b.tiles.count && b.cpu_window(w, input, &channel, bad) == GATHER_FILLED)
        w++;
    CHECK(w < b.tiles.count);
    const size_t in_tile = fault % voxels;
    CHECK(fault / voxels == w * b.channels + channel);
    tiling_window(&b.tiles, w, start);
    const size_t model[3] = {start[0] + in_tile % b.c.tile[0] - b.tiles.pad_before[0],
                             start[1] + in_tile / b.c.tile[0] % b.c.tile[1] - b.tiles.pad_before[1],
                             start[2] + in_tile / b.c.tile[0] / b.c.tile[1] -
                                 b.tiles.pad_before[2]};
    stored_voxel(&b.volume[0].grid, &b.map, model, named);
    CHECK(memcmp(named, bad, sizeof named) == 0);
}

// The first voxel without a finite value is the one that the CPU names, in the same image.
static void test_faults()
{
    static const float wrong[] = {-40, NAN, INFINITY};
    for (int o : {0, 11, 38}) {
        const gather_case c = {"faults",  o,   {13, 11, 9}, {1, 1, 1},   {0, 0, 0},
                               {8, 4, 6}, 0.5, false,       log_steps(), 0};
        for (size_t i = 0; i < 12; i++) {
            gather_bench b(c, 1 + i % 3);
            std::vector<float> &first = b.data[i % b.channels];
            std::vector<float> &second = b.data[(i / 3) % b.channels];
            first[(i * 3571) % first.size()] = wrong[i % 3] * (float)b.channels;
            second[(i * 7919 + 17) % second.size()] = wrong[(i + 1) % 3] * (float)b.channels;
            check_fault(b);
        }
    }
}

// Places where the channels of a voxel cannot be stored at once, and more of them than there may be.
static void test_refusals()
{
    const gather_case c = {"refused", 0,   {8, 8, 8}, {1, 1, 1}, {0, 0, 0},
                           {8, 8, 8}, 0.5, false,     identity,  0};
    for (size_t channels = 1; channels <= DEVICE_MAX_CHANNELS; channels++) {
        gather_bench b(c, channels);
        const size_t begin[3] = {0, 0, 0};
        device_gather_copy g(b, begin, b.cpu.source[0].dim);
        device_buffer<unsigned> window(std::vector<unsigned>{0});
        device_buffer<unsigned long long> fault(std::vector<unsigned long long>{NO_FAULT});
        device_tensor right = tensor_for(g.view, 2, ELEMENT_BF16);
        device_buffer<unsigned char> data(2 * right.sample + 2);
        right.data = data.data();
        const auto gives = [&](const device_tensor &t, cudaError_t code) {
            CHECK(kernel_gather(&g.view, window.data(), 1, &t, fault.data(), 0) == code);
        };
        const bool whole = channels % 2 == 0;
        device_tensor t = right;
        gives(t, cudaSuccess);
        t.pitch -= 1;
        gives(t, whole ? cudaErrorInvalidValue : cudaSuccess);
        t = right;
        t.sample -= 1;
        gives(t, whole ? cudaErrorInvalidValue : cudaSuccess);
        t = right;
        t.data = data.data() + 2;
        gives(t, whole ? cudaErrorInvalidValue : cudaSuccess);
        t = right;
        t.channels = channels % DEVICE_MAX_CHANNELS + 1;
        gives(t, cudaErrorInvalidValue);
        g.view.channels = t.channels = DEVICE_MAX_CHANNELS + 1;
        gives(t, cudaErrorInvalidValue);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
    }
}

int main()
{
    return run_in_all_orders({{"refusals", test_refusals},
                              {"faults", test_faults},
                              {"orientations", test_orientations},
                              {"cases", test_cases},
                              {"source box", test_source_box}});
}
