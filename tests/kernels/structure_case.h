/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of DVHs and image metrics share: structures as masks, as labels, and on the device. */
#ifndef DOSEMAP_TESTS_STRUCTURE_CASE_H
#define DOSEMAP_TESTS_STRUCTURE_CASE_H

#include <cuda_runtime.h>

#include <math.h>
#include <string.h>

#include <functional>
#include <string>
#include <vector>

#include "kernel_case.h"
#include "kernels/kernels.h"
#include "predict/cuda/structure_table.h"

/* The same on every machine. */
struct random_numbers {
    uint64_t state;

    explicit random_numbers(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u + 1)
    {
    }
    double unit() /* [0, 1) */
    {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return (double)(state >> 11) / 9007199254740992.0;
    }
    size_t below(size_t n)
    {
        return (size_t)(unit() * (double)n);
    }
};

/* Whether a test, which runs once in each order of threads, gets the same bytes every time. */
class repeated_results
{
    std::string test;
    std::vector<double> first;
    size_t next = 0;
    bool again = false;

  public:
    void begin(const char *name)
    {
        again = test == name;
        next = 0;
        if (!again)
            first.clear();
        test = name;
    }
    bool same(double v)
    {
        if (!again)
            first.push_back(v);
        next++;
        return memcmp(&first.at(next - 1), &v, sizeof v) == 0;
    }
};

typedef std::function<bool(size_t voxel)> belongs;

/* Labels that own what they point to. */
struct made_labels {
    dm_labels labels;
    std::vector<std::vector<label_run>> runs;
    std::vector<std::string> names;
    std::vector<label_structure> structures;

    made_labels(size_t x, size_t y, size_t z, double mm)
    {
        memset(&labels, 0, sizeof labels);
        const size_t dim[3] = {x, y, z};
        for (int i = 0; i < 3; i++) {
            labels.grid.dim[i] = dim[i];
            labels.grid.spacing_mm[i] = labels.grid.affine[i][i] = mm;
        }
    }
    made_labels(const made_labels &) = delete;

    size_t voxels() const
    {
        return labels.grid.dim[0] * labels.grid.dim[1] * labels.grid.dim[2];
    }

    /* Runs along x, as the reader of label files makes them. */
    void add(const belongs &member)
    {
        size_t n = 0, row = labels.grid.dim[0];
        std::vector<label_run> made;
        for (size_t v = 0; v < voxels(); v++) {
            if (!member(v))
                continue;
            n++;
            if (v % row > 0 && !made.empty() && made.back().start + made.back().length == v)
                made.back().length++;
            else
                made.push_back(label_run{v, 1});
        }
        runs.push_back(made);
        names.push_back("structure " + std::to_string(names.size()));
        structures.push_back(label_structure{NULL, (int32_t)names.size(), n, made.size(), NULL});
    }

    /* After the last add(). */
    const dm_labels *get()
    {
        for (size_t s = 0; s < structures.size(); s++) {
            structures[s].name = &names[s][0];
            structures[s].runs = runs[s].data();
        }
        labels.count = structures.size();
        labels.structures = structures.data();
        return &labels;
    }
};

/* On the device, in guarded buffers. */
struct device_structures_copy {
    structure_table table;
    device_buffer<device_run> run;
    device_buffer<device_tile> tile;
    device_buffer<unsigned> first_tile;
    device_structures view;

    static structure_table make(const dm_labels *labels, unsigned tile_voxels)
    {
        structure_table made;
        CHECK(structure_table_make(labels->structures, (unsigned)labels->count, tile_voxels, &made,
                                   NULL) == DM_OK);
        return made;
    }
    device_structures_copy(const dm_labels *labels, unsigned tile_voxels)
        : table(make(labels, tile_voxels)),
          run(std::vector<device_run>(table.run, table.run + table.runs)),
          tile(std::vector<device_tile>(table.tile, table.tile + table.tiles)),
          first_tile(std::vector<unsigned>(table.first_tile, table.first_tile + table.count + 1)),
          view{run.data(), tile.data(), first_tile.data(), table.tiles, table.count}
    {
    }
    device_structures_copy(const device_structures_copy &) = delete;
    ~device_structures_copy()
    {
        structure_table_free(&table);
    }
};

#endif
