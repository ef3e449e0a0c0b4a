/* SPDX-License-Identifier: Apache-2.0 */
/* dm_labels as an object: made from ids, resampled, looked at. Reading files: labels_read.c. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "volume/label_runs.h"
#include "volume/labels.h"

dm_status labels_new(const dm_grid *grid, size_t count, dm_labels **labels, dm_error *err)
{
    dm_labels *l = calloc(1, sizeof *l);
    *labels = NULL;
    if (l)
        l->structures = calloc(count ? count : 1, sizeof *l->structures);
    if (!l || !l->structures) {
        free(l);
        return error_memory(err, count * sizeof *l->structures, "labels");
    }
    l->grid = *grid;
    l->count = count;
    *labels = l;
    return DM_OK;
}

void dm_labels_free(dm_labels *labels)
{
    if (!labels)
        return;
    for (size_t s = 0; s < labels->count; s++) {
        free(labels->structures[s].name);
        free(labels->structures[s].runs);
    }
    free(labels->structures);
    free(labels);
}

dm_status structure_name(label_structure *structure, const char *name, dm_error *err)
{
    char number[32];
    if (!name) {
        snprintf(number, sizeof number, "label_%d", (int)structure->id);
        name = number;
    }
    structure->name = strdup(name);
    return structure->name ? DM_OK : error_memory(err, strlen(name), "a label's name");
}

/* Appends voxels [start, start + length) to a structure; the array doubles as it fills. */
static dm_status add_run(label_structure *structure, uint64_t start, uint32_t length, dm_error *err)
{
    size_t n = structure->n_runs;
    if ((n & (n - 1)) == 0) {
        size_t capacity = n ? 2 * n : 1;
        label_run *runs = realloc(structure->runs, capacity * sizeof *runs);
        if (!runs)
            return error_memory(err, capacity * sizeof *runs, "labels");
        structure->runs = runs;
    }
    structure->runs[structure->n_runs++] = (label_run){start, length};
    structure->voxels += length;
    return DM_OK;
}

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

#define MAX_STRUCTURES 65536

/* The distinct non-zero ids in ascending order. */
static dm_status distinct_ids(const int32_t *ids, size_t n, int32_t **found, size_t *count,
                              dm_error *err)
{
    size_t capacity = 256;
    int32_t *list = malloc(capacity * sizeof *list), last = 0;
    *found = NULL;
    *count = 0;
    for (size_t i = 0; list && i < n; i++) {
        if (ids[i] == 0 || ids[i] == last)
            continue;
        last = ids[i];
        if (bsearch(&last, list, *count, sizeof *list, compare_ids))
            continue;
        if (*count >= MAX_STRUCTURES) {
            free(list);
            return error_set(err, DM_ERROR_VALUE, NULL, "is this a label map?",
                             "more than %d different ids", MAX_STRUCTURES);
        }
        if (*count == capacity) {
            capacity *= 2;
            int32_t *larger = realloc(list, capacity * sizeof *list);
            if (!larger)
                free(list);
            list = larger;
        }
        if (list) {
            size_t at = *count;
            while (at > 0 && list[at - 1] > last)
                at--;
            memmove(list + at + 1, list + at, (*count - at) * sizeof *list);
            list[at] = last;
            ++*count;
        }
    }
    *found = list;
    return list ? DM_OK : error_memory(err, capacity * sizeof *list, "labels");
}

/* Runs of equal non-zero ids along x. */
static dm_status collect_runs(dm_labels *labels, const int32_t *ids, const int32_t *list,
                              dm_error *err)
{
    size_t row = labels->grid.dim[0], n = dm_grid_voxels(&labels->grid);
    for (size_t start = 0; start < n; start += row)
        for (size_t x = 0; x < row;) {
            int32_t id = ids[start + x];
            size_t end = x + 1;
            while (end < row && ids[start + end] == id)
                end++;
            if (id != 0) {
                const int32_t *at = bsearch(&id, list, labels->count, sizeof *list, compare_ids);
                dm_status status =
                    add_run(&labels->structures[at - list], start + x, (uint32_t)(end - x), err);
                if (status != DM_OK)
                    return status;
            }
            x = end;
        }
    return DM_OK;
}

dm_status labels_from_ids(const dm_grid *grid, const int32_t *ids, const label_names *names,
                          dm_labels **labels, dm_error *err)
{
    int32_t *list = NULL;
    size_t count = 0;
    *labels = NULL;
    dm_status status = distinct_ids(ids, dm_grid_voxels(grid), &list, &count, err);
    if (status == DM_OK)
        status = labels_new(grid, count, labels, err);
    for (size_t s = 0; status == DM_OK && s < count; s++) {
        (*labels)->structures[s].id = list[s];
        status = structure_name(&(*labels)->structures[s],
                                names ? label_names_find(names, list[s]) : NULL, err);
    }
    if (status == DM_OK)
        status = collect_runs(*labels, ids, list, err);
    free(list);
    if (status != DM_OK) {
        dm_labels_free(*labels);
        *labels = NULL;
    }
    return status;
}

dm_status dm_labels_create(const dm_grid *grid, const int32_t *ids, dm_labels **labels,
                           dm_error *err)
{
    return labels_from_ids(grid, ids, NULL, labels, err);
}

dm_status structure_from_mask(label_structure *structure, const dm_grid *grid, const uint8_t *mask,
                              dm_error *err)
{
    size_t row = grid->dim[0], n = dm_grid_voxels(grid);
    for (size_t start = 0; start < n; start += row)
        for (size_t x = 0; x < row;) {
            size_t end = x;
            while (end < row && mask[start + end])
                end++;
            if (end > x) {
                dm_status status = add_run(structure, start + x, (uint32_t)(end - x), err);
                if (status != DM_OK)
                    return status;
            }
            x = end > x ? end : x + 1;
        }
    return DM_OK;
}

/* Inverse of the affine's 3x3 part; false if it has none. */
static bool invert(const double a[3][4], double inverse[3][3])
{
    double cofactor[3][3], determinant = 0;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++) {
            int r = (i + 1) % 3, s = (i + 2) % 3, c = (j + 1) % 3, d = (j + 2) % 3;
            cofactor[i][j] = a[r][c] * a[s][d] - a[r][d] * a[s][c];
        }
    for (int j = 0; j < 3; j++)
        determinant += a[0][j] * cofactor[0][j];
    if (!isfinite(determinant) || determinant == 0)
        return false;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            inverse[i][j] = cofactor[j][i] / determinant;
    return true;
}

/* m takes an index on `to` to the (fractional) index on `from`. */
static bool index_map(const dm_grid *from, const dm_grid *to, double m[3][4])
{
    double inverse[3][3];
    if (!invert(from->affine, inverse))
        return false;
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 4; j++) {
            m[i][j] = 0;
            for (int k = 0; k < 3; k++)
                m[i][j] += inverse[i][k] * (to->affine[k][j] - (j == 3 ? from->affine[k][3] : 0.0));
        }
    return true;
}

/* mask on `to` from mask on `from`: the value at the nearest voxel centre, 0 outside. */
static void resample_mask(const dm_grid *from, const uint8_t *in, const dm_grid *to, double m[3][4],
                          uint8_t *out)
{
    for (size_t z = 0, v = 0; z < to->dim[2]; z++)
        for (size_t y = 0; y < to->dim[1]; y++)
            for (size_t x = 0; x < to->dim[0]; x++, v++) {
                size_t index[3];
                bool inside = true;
                for (int a = 0; a < 3 && inside; a++) {
                    double c = floor(m[a][0] * (double)x + m[a][1] * (double)y +
                                     m[a][2] * (double)z + m[a][3] + 0.5);
                    inside = c >= 0 && c < (double)from->dim[a];
                    index[a] = inside ? (size_t)c : 0;
                }
                out[v] =
                    inside && in[index[0] + from->dim[0] * (index[1] + from->dim[1] * index[2])];
            }
}

dm_status dm_labels_resample(const dm_labels *labels, const dm_grid *grid, dm_labels **resampled,
                             dm_error *err)
{
    double m[3][4];
    *resampled = NULL;
    if (!index_map(&labels->grid, grid, m))
        return error_set(err, DM_ERROR_VALUE, NULL, "correct the labels' affine",
                         "the labels' affine cannot be inverted");
    size_t n_in = dm_grid_voxels(&labels->grid), n_out = dm_grid_voxels(grid);
    uint8_t *in = array_alloc(n_in, 1), *out = array_alloc(n_out, 1);
    dm_labels *result = NULL;
    dm_status status = in && out ? labels_new(grid, labels->count, &result, err)
                                 : error_memory(err, n_in + n_out, "labels");
    for (size_t s = 0; status == DM_OK && s < labels->count; s++) {
        const label_structure *from = &labels->structures[s];
        memset(in, 0, n_in);
        for (size_t r = 0; r < from->n_runs; r++)
            memset(in + from->runs[r].start, 1, from->runs[r].length);
        resample_mask(&labels->grid, in, grid, m, out);
        result->structures[s].id = from->id;
        status = structure_name(&result->structures[s], from->name, err);
        if (status == DM_OK)
            status = structure_from_mask(&result->structures[s], grid, out, err);
    }
    free(in);
    free(out);
    if (status != DM_OK) {
        dm_labels_free(result);
        return status;
    }
    *resampled = result;
    return DM_OK;
}

const dm_grid *dm_labels_grid(const dm_labels *labels)
{
    return &labels->grid;
}

size_t dm_labels_count(const dm_labels *labels)
{
    return labels->count;
}

const char *dm_labels_name(const dm_labels *labels, size_t index)
{
    return labels->structures[index].name;
}

int32_t dm_labels_id(const dm_labels *labels, size_t index)
{
    return labels->structures[index].id;
}

size_t dm_labels_voxels(const dm_labels *labels, size_t index)
{
    return labels->structures[index].voxels;
}
