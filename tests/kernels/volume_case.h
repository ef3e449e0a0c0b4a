/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of gather, stitch and resample share: the host's tilings, tables and volumes on
 * the device. */
#ifndef DOSEMAP_TESTS_VOLUME_CASE_H
#define DOSEMAP_TESTS_VOLUME_CASE_H

#include <math.h>

#include "grids.h"
#include "kernel_case.h"
#include "kernels/kernels.h"

extern "C" {
#include "predict/gather.h"
#include "predict/resample.h"
#include "predict/stitch.h"
#include "predict/tiling.h"
}

static inline float bits_value(uint32_t i)
{
    i = (i ^ 0x9e3779b9u) * 2654435761u;
    i = (i ^ i >> 15) * 2246822519u;
    return (float)((i ^ i >> 13) >> 8) / 16777216.0f;
}

/* 0.25 to 4.25, different for each index and seed. */
static inline float some_value(size_t i, unsigned seed)
{
    return 4 * bits_value((uint32_t)i + seed * 7919u) + 0.25f;
}

static inline std::vector<float> some_values(size_t n, unsigned seed)
{
    std::vector<float> values(n);
    for (size_t i = 0; i < n; i++)
        values[i] = some_value(i, seed);
    return values;
}

static inline size_t voxels_of(const size_t dim[3])
{
    return dim[0] * dim[1] * dim[2];
}

static inline void append(std::vector<unsigned> &all, const size_t *values, size_t n)
{
    for (size_t i = 0; i < n; i++)
        all.push_back((unsigned)values[i]);
}

struct device_tiling_copy {
    device_buffer<unsigned> starts; /* x, y, z */
    device_buffer<float> importance;
    device_tiling view;

    explicit device_tiling_copy(const tiling &t)
        : starts(all_starts(t)),
          importance(std::vector<float>(t.importance, t.importance + voxels_of(t.tile)))
    {
        const unsigned *start = starts.data();
        for (int a = 0; a < 3; a++) {
            view.volume[a] = t.volume[a];
            view.tile[a] = t.tile[a];
            view.pad_before[a] = t.pad_before[a];
            view.n[a] = (unsigned)t.n[a];
            view.start[a] = start;
            start += t.n[a];
        }
        view.importance = importance.data();
    }

  private:
    static std::vector<unsigned> all_starts(const tiling &t)
    {
        std::vector<unsigned> all;
        for (int a = 0; a < 3; a++)
            append(all, t.start[a], t.n[a]);
        return all;
    }
};

/* The tables of all three axes, empty ones for an exact map. */
struct device_tables_copy {
    device_buffer<unsigned> numbers; /* first, count, offset of each axis */
    device_buffer<float> weights;
    device_axis_table view[3];

    explicit device_tables_copy(const axis_table table[3])
        : numbers(all_numbers(table)), weights(all_weights(table))
    {
        const unsigned *number = numbers.data();
        const float *weight = weights.data();
        for (int a = 0; a < 3; a++) {
            const size_t n = table[a].n;
            view[a] = {number, number + n, number + 2 * n, weight};
            number += 3 * n;
            weight += weights_of(table[a]);
        }
    }

  private:
    static size_t weights_of(const axis_table &t)
    {
        return t.n ? t.offset[t.n - 1] + t.count[t.n - 1] : 0;
    }
    static std::vector<unsigned> all_numbers(const axis_table table[3])
    {
        std::vector<unsigned> all;
        for (int a = 0; a < 3; a++) {
            append(all, table[a].first, table[a].n);
            append(all, table[a].count, table[a].n);
            append(all, table[a].offset, table[a].n);
        }
        return all;
    }
    static std::vector<float> all_weights(const axis_table table[3])
    {
        std::vector<float> all;
        for (int a = 0; a < 3; a++)
            all.insert(all.end(), table[a].weight, table[a].weight + weights_of(table[a]));
        return all;
    }
};

/* A box of a strided host volume on the device, alone there, with the same order of axes and the
 * same signs of strides. */
struct device_box {
    size_t begin[3], dim[3];
    ptrdiff_t stride[3];
    size_t origin; /* of the box's first voxel in the buffer */
    device_buffer<float> buffer;

    device_box(const strided &volume, const size_t box_begin[3], const size_t box_dim[3])
        : buffer(place_axes(volume, box_begin, box_dim))
    {
    }
    device_volume view()
    {
        device_volume v;
        v.data = buffer.data() + origin;
        for (int a = 0; a < 3; a++) {
            v.stride[a] = stride[a];
            v.begin[a] = begin[a];
            v.dim[a] = dim[a];
        }
        return v;
    }
    std::vector<float> cut_out(const strided &volume) const
    {
        std::vector<float> values(voxels_of(dim));
        copy(volume, values, false);
        return values;
    }
    void upload(const strided &volume)
    {
        buffer.upload(cut_out(volume));
    }
    void download(const strided &volume)
    {
        std::vector<float> values = buffer.download();
        copy(volume, values, true);
    }

  private:
    /* Dense, in the order of the volume's strides; the number of voxels. */
    size_t place_axes(const strided &volume, const size_t box_begin[3], const size_t box_dim[3])
    {
        for (int a = 0; a < 3; a++) {
            begin[a] = box_begin[a];
            dim[a] = box_dim[a];
        }
        origin = 0;
        for (int a = 0; a < 3; a++) {
            stride[a] = 1;
            for (int b = 0; b < 3; b++)
                if (labs(volume.stride[b]) < labs(volume.stride[a]) ||
                    (labs(volume.stride[b]) == labs(volume.stride[a]) && b < a))
                    stride[a] *= (ptrdiff_t)dim[b];
            if (volume.stride[a] < 0) {
                stride[a] = -stride[a];
                origin += (dim[a] - 1) * (size_t)-stride[a];
            }
        }
        return voxels_of(dim);
    }
    void copy(const strided &volume, std::vector<float> &values, bool to_volume) const
    {
        for (size_t z = 0; z < dim[2]; z++)
            for (size_t y = 0; y < dim[1]; y++)
                for (size_t x = 0; x < dim[0]; x++) {
                    float &device =
                        values[(size_t)((ptrdiff_t)origin + (ptrdiff_t)x * stride[0] +
                                        (ptrdiff_t)y * stride[1] + (ptrdiff_t)z * stride[2])];
                    float &host = volume.data[(ptrdiff_t)(begin[0] + x) * volume.stride[0] +
                                              (ptrdiff_t)(begin[1] + y) * volume.stride[1] +
                                              (ptrdiff_t)(begin[2] + z) * volume.stride[2]];
                    if (to_volume)
                        host = device;
                    else
                        device = host;
                }
    }
};

/* Bit for bit, zeros of either sign apart too; says where they differ first. */
static inline bool same_bytes(const float *a, const float *ref, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(&a[i], &ref[i], sizeof *a) != 0) {
            fprintf(stderr, "of %zu the first that differs is %zu: %.9g, reference %.9g\n", n, i,
                    (double)a[i], (double)ref[i]);
            return false;
        }
    return true;
}

/* Windows in batches of `batch` places, of which some are unused; windows that `skips` names are
 * air. */
struct batching {
    unsigned batch;
    bool gaps;         /* every third place is unused */
    size_t skip_every; /* 0: none */
};

static inline bool is_skipped(const batching &b, size_t window)
{
    return b.skip_every && window % b.skip_every == b.skip_every - 1;
}

static inline std::vector<std::vector<unsigned>> batches_of(const batching &b, size_t windows)
{
    std::vector<std::vector<unsigned>> all;
    std::vector<unsigned> now;
    for (size_t w = 0; w < windows; w++) {
        if (is_skipped(b, w))
            continue;
        if (b.gaps && b.batch > 1 && now.size() % 3 == 1)
            now.push_back(NO_WINDOW);
        if (now.size() < b.batch)
            now.push_back((unsigned)w);
        else
            w--; /* into the next batch */
        if (now.size() == b.batch) {
            all.push_back(now);
            now.clear();
        }
    }
    if (!now.empty()) {
        now.resize(b.batch, NO_WINDOW);
        all.push_back(now);
    }
    return all;
}

#endif
