// SPDX-License-Identifier: Apache-2.0
// From the model's grid back to the PET's by the kernel, against the CPU's resampling: the same
// bytes for any strides, sizes and boxes.
#include "volume_case.h"

struct resample_case {
    int orientation; // of the PET in memory
    size_t ras_dim[3];
    double ras_mm[3], model_mm[3];
};

static const resample_case cases[] = {
    {0, {1, 1, 1}, {1, 1, 1}, {2, 0.3, 1.1}},
    {0, {7, 5, 3}, {1, 1, 1}, {0.4, 0.6, 0.8}},
    {13, {37, 13, 11}, {1, 1, 1}, {2.3, 3.1, 1.9}},
    {26, {31, 33, 32}, {1, 1.5, 2}, {1.3, 1.3, 1.3}},
    {0, {65, 6, 5}, {4, 4, 4}, {1.7, 5, 3}},
    {47, {9, 8, 7}, {1, 1, 1}, {1, 1, 0.2}},
};

struct resample_bench {
    dm_volume volume;
    std::vector<float> expected, model;
    grid_map map;
    axis_table table[3];
    strided source, target;
    std::vector<device_tables_copy> tables; // one, made last

    explicit resample_bench(const resample_case &c)
    {
        memset(&volume, 0, sizeof volume);
        volume.grid = oriented_grid(c.orientation, c.ras_dim, c.ras_mm);
        CHECK(grid_map_make(&volume.grid, "RAS", c.model_mm, &map, NULL) == DM_OK);
        CHECK(!map.exact);
        CHECK(resample_from_model(&volume.grid, &map, table, NULL) == DM_OK);
        expected.assign(voxels_of(volume.grid.dim), NAN);
        model = some_values(voxels_of(map.dim), 9);
        source = strided_dense(map.dim, model.data());
        target = strided_permuted(&volume.grid, &map, expected.data());
        std::vector<float> scratch(resample_scratch(table, target.dim));
        const size_t start[3] = {0, 0, 0};
        resample_box(table, &source, start, &target, false, scratch.data());
        tables.emplace_back(table);
    }
    resample_bench(const resample_bench &) = delete;
    ~resample_bench()
    {
        for (axis_table &t : table)
            axis_table_clear(&t);
    }

    // The box of the source that a box of the target uses.
    void source_box(const size_t begin[3], const size_t dim[3], size_t source_begin[3],
                    size_t source_dim[3]) const
    {
        for (int a = 0; a < 3; a++) {
            size_t low = SIZE_MAX, high = 0;
            for (size_t i = begin[a]; i < begin[a] + dim[a]; i++) {
                const size_t first = table[a].first[i], end = first + table[a].count[i];
                low = first < low ? first : low;
                high = end > high ? end : high;
            }
            source_begin[a] = low;
            source_dim[a] = high - low;
        }
    }
};

// The target in slabs along an axis; each sees no more of the source than it needs.
static void check_slabs(const resample_bench &b, int axis, size_t parts)
{
    std::vector<float> made(b.expected.size(), NAN);
    strided target = b.target;
    target.data = made.data();
    for (size_t part = 0; part < parts; part++) {
        size_t begin[3] = {0, 0, 0}, dim[3], source_begin[3], source_dim[3];
        memcpy(dim, target.dim, sizeof dim);
        begin[axis] = dim[axis] * part / parts;
        dim[axis] = dim[axis] * (part + 1) / parts - begin[axis];
        if (dim[axis] == 0)
            continue;
        b.source_box(begin, dim, source_begin, source_dim);
        device_box from(b.source, source_begin, source_dim), to(target, begin, dim);
        from.upload(b.source);
        const device_volume source = from.view(), slab = to.view();
        CHECK(kernel_resample(b.tables[0].view, &source, &slab, 0) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
        to.download(target);
    }
    CHECK(same_bytes(made.data(), b.expected.data(), made.size()));
    CHECK(arrays_close(made.data(), made.size(), b.expected.data(), made.size(), 0, 0));
}

static void test_cases()
{
    for (const resample_case &c : cases) {
        const resample_bench b(c);
        check_slabs(b, 0, 1);
        for (int axis = 0; axis < 3; axis++)
            for (size_t parts : {2, 5})
                check_slabs(b, axis, parts);
    }
}

static void test_orientations()
{
    for (int o = 0; o < ORIENTATIONS; o++) {
        const resample_bench finer({o, {7, 6, 5}, {2, 3, 4}, {1.7, 1.3, 2.9}});
        check_slabs(finer, 0, 1);
        const resample_bench coarser({o, {9, 7, 8}, {1, 1, 1}, {1.7, 2.3, 1.1}});
        check_slabs(coarser, 1, 1);
    }
}

// Nothing to do is no launch.
static void test_empty_box()
{
    const resample_bench b(cases[1]);
    const size_t begin[3] = {0, 0, 0}, one[3] = {1, 1, 1};
    device_box box(b.source, begin, one);
    device_volume source = box.view(), target = box.view();
    target.dim[1] = 0;
    CHECK(kernel_resample(b.tables[0].view, &source, &target, 0) == cudaSuccess);
    CHECK(cudaDeviceSynchronize() == cudaSuccess);
    CHECK(std::isnan(box.buffer.download()[0]));
}

int main()
{
    return run_in_all_orders({{"cases", test_cases},
                              {"orientations", test_orientations},
                              {"empty box", test_empty_box}});
}
