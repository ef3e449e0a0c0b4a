/* SPDX-License-Identifier: Apache-2.0 */
/* dm_labels as an object: made from ids and masks, named, looked at. From files: labels_read.c; onto
 * other grids: labels_resample.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "volume/grid.h"
#include "volume/label_runs.h"
#include "volume/labels.h"

/* Below this a row's voxels, and the lengths of runs, fit into 32 bits. */
#define MAX_ROW ((size_t)UINT32_MAX)

/* *checked: the grid with the spacing that follows from its affine, as for volumes. */
static dm_status check_grid(const dm_grid *grid, dm_grid *checked, dm_error *err)
{
    char reason[200];
    size_t bytes;
    *checked = *grid;
    if (!grid_float_bytes(grid, &bytes) || grid->dim[0] > MAX_ROW)
        return error_set(err, DM_ERROR_VALUE, NULL, "give three positive sizes that fit in memory",
                         "labels on a grid of %zux%zux%zu voxels cannot be made", grid->dim[0],
                         grid->dim[1], grid->dim[2]);
    if (!grid_derive_spacing(checked, reason, sizeof reason))
        return error_set(err, DM_ERROR_VALUE, NULL, "give a finite affine whose axes span space",
                         "%s", reason);
    return DM_OK;
}

dm_status labels_new(const dm_grid *grid, size_t count, dm_labels **labels, dm_error *err)
{
    dm_grid checked;
    *labels = NULL;
    dm_status status = check_grid(grid, &checked, err);
    if (status != DM_OK)
        return status;
    dm_labels *l = calloc(1, sizeof *l);
    if (l)
        l->structures = calloc(count ? count : 1, sizeof *l->structures);
    if (!l || !l->structures) {
        free(l);
        return error_memory(err, count * sizeof *l->structures, "labels");
    }
    l->grid = checked;
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

/* The array doubles as it fills. */
dm_status structure_add_run(label_structure *structure, uint64_t start, uint32_t length,
                            dm_error *err)
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

/* Adds one row's runs of equal non-zero ids; `list` holds the ids of the structures, ascending. */
static dm_status collect_row(dm_labels *labels, const int32_t *row, uint64_t start,
                             const int32_t *list, dm_error *err)
{
    size_t n = labels->grid.dim[0];
    for (size_t x = 0; x < n;) {
        int32_t id = row[x];
        size_t end = x + 1;
        while (end < n && row[end] == id)
            end++;
        if (id != 0) {
            const int32_t *at = bsearch(&id, list, labels->count, sizeof *list, compare_ids);
            dm_status status = structure_add_run(&labels->structures[at - list], start + x,
                                                 (uint32_t)(end - x), err);
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
    dm_grid checked;
    *labels = NULL;
    dm_status status = check_grid(grid, &checked, err);
    if (status == DM_OK)
        status = distinct_ids(ids, dm_grid_voxels(grid), &list, &count, err);
    if (status == DM_OK)
        status = labels_new(grid, count, labels, err);
    for (size_t s = 0; status == DM_OK && s < count; s++) {
        (*labels)->structures[s].id = list[s];
        status = structure_name(&(*labels)->structures[s],
                                names ? label_names_find(names, list[s]) : NULL, err);
    }
    size_t n = dm_grid_voxels(grid);
    for (size_t start = 0; status == DM_OK && start < n; start += grid->dim[0])
        status = collect_row(*labels, ids + start, start, list, err);
    free(list);
    if (status != DM_OK) {
        dm_labels_free(*labels);
        *labels = NULL;
    }
    return status;
}

dm_status dm_labels_create(const dm_grid *grid, const int32_t *ids, const char *names_path,
                           dm_labels **labels, dm_error *err)
{
    label_names names = {0};
    *labels = NULL;
    dm_status status = names_path ? label_names_read(names_path, &names, err) : DM_OK;
    if (status == DM_OK)
        status = labels_from_ids(grid, ids, &names, labels, err);
    label_names_clear(&names);
    return status;
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
                dm_status status =
                    structure_add_run(structure, start + x, (uint32_t)(end - x), err);
                if (status != DM_OK)
                    return status;
            }
            x = end > x ? end : x + 1;
        }
    return DM_OK;
}

/* ---- Names that callers give ---------------------------------------------------------------- */

/* A name for structure `s`: one that tables can hold, and none of the others. */
static dm_status check_name(const dm_labels *labels, size_t s, const char *name, dm_error *err)
{
    const int id = (int)labels->structures[s].id;
    if (!name || !label_name_usable(name))
        return error_set(err, DM_ERROR_VALUE, NULL, "give it a printable name in UTF-8",
                         "the name of structure %d is empty, has control characters or is not "
                         "UTF-8",
                         id);
    for (size_t i = 0; i < labels->count; i++) {
        const label_structure *other = &labels->structures[i];
        if (i != s && other->name && strcmp(other->name, name) == 0)
            return error_set(err, DM_ERROR_VALUE, NULL, "give each structure a name of its own",
                             "structures %d and %d would both be called '%s'", (int)other->id, id,
                             name);
    }
    return DM_OK;
}

dm_status dm_labels_create_masks(const dm_grid *grid, size_t n, const char *const *names,
                                 const uint8_t *const *masks, dm_labels **labels, dm_error *err)
{
    *labels = NULL;
    if (n > MAX_STRUCTURES)
        return error_set(err, DM_ERROR_VALUE, NULL, "use fewer masks", "%zu masks are more than %d",
                         n, MAX_STRUCTURES);
    dm_status status = labels_new(grid, n, labels, err);
    for (size_t s = 0; status == DM_OK && s < n; s++) {
        label_structure *structure = &(*labels)->structures[s];
        structure->id = (int32_t)s + 1;
        status = check_name(*labels, s, names[s], err);
        if (status == DM_OK)
            status = structure_name(structure, names[s], err);
        if (status == DM_OK)
            status = structure_from_mask(structure, &(*labels)->grid, masks[s], err);
    }
    if (status != DM_OK) {
        dm_labels_free(*labels);
        *labels = NULL;
    }
    return status;
}

dm_status dm_labels_rename(dm_labels *labels, int32_t id, const char *name, dm_error *err)
{
    size_t s = 0;
    while (s < labels->count && labels->structures[s].id != id)
        s++;
    if (s == labels->count)
        return error_set(err, DM_ERROR_VALUE, NULL, "name a structure that the labels have",
                         "the labels have no structure %d", (int)id);
    char *before = labels->structures[s].name;
    dm_status status = check_name(labels, s, name, err);
    if (status == DM_OK)
        status = structure_name(&labels->structures[s], name, err);
    if (status == DM_OK)
        free(before);
    else
        labels->structures[s].name = before;
    return status;
}

/* ---- Looking -------------------------------------------------------------------------------- */

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
