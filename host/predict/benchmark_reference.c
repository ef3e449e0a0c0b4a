/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/available_memory.h"
#include "base/error.h"
#include "predict/benchmark.h"

/* Windows that are compared. */
#define COMPARED 4

/* One step per node of the graph: nothing of what makes plans fast is in it. */
static dm_status run_reference(benchmark *b, size_t n, float *outputs, dm_error *err)
{
    const size_t *tile = b->volume.tiles.tile;
    plan_options options = {
        .tile = {tile[2], tile[1], tile[0]}, .type = ELEMENT_F32, .output = b->p->output};
    const backend_options one = {
        .device = "cpu", .precision = DM_PRECISION_FLOAT32, .threads = b->p->threads, .at_once = 1};
    const measure_request request = {.windows = b->windows,
                                     .n_windows = n,
                                     .outputs = outputs,
                                     .go_on = benchmark_go_on,
                                     .context = b};
    measure_result none = {0};
    plan *steps = NULL;
    void *state = NULL;
    cpu_backend.plan_needs(&options);
    dm_status status = plan_build(&b->p->model->graph, &options, &steps, err);
    /* The system might give it and end the process when it is used. */
    if (status == DM_OK && steps->arena_bytes > available_memory() / 2)
        status = error_memory(err, steps->arena_bytes, "the reference");
    if (status == DM_OK)
        status = cpu_backend.create(steps, &one, &state, err);
    if (status == DM_OK)
        status = cpu_backend.measure(state, &request, &none, err);
    measure_clear(&none);
    cpu_backend.destroy(state);
    plan_free(steps);
    return status;
}

static void compare(const float *got, const float *want, size_t n, reference_error *error)
{
    double squares = 0, scale = 0, worst = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - (double)want[i];
        squares += d * d;
        scale += (double)want[i] * (double)want[i];
        worst = fabs(d) <= worst ? worst : fabs(d); /* NaN stays */
        largest = fmax(largest, fabs((double)want[i]));
    }
    error->relative_l2 = sqrt(squares / scale);
    error->largest = worst / largest;
}

dm_status benchmark_compare(benchmark *b, dm_error *err)
{
    reference_error *e = &b->error;
    dm_error problem = {0};
    *e = (reference_error){.relative_l2 = NAN, .largest = NAN};
    size_t n = b->n_windows < COMPARED ? b->n_windows : COMPARED;
    float *outputs = array_alloc(n, b->voxels * sizeof *outputs);
    dm_status status =
        outputs ? run_reference(b, n, outputs, &problem)
                : error_memory(&problem, n * b->voxels * sizeof *outputs, "the reference");
    if (status == DM_OK) {
        e->windows = n;
        compare(b->outputs, outputs, n * b->voxels, e);
    }
    free(outputs);
    /* Too large for the CPU is no failure of what was measured. */
    if (status == DM_ERROR_MEMORY || status == DM_ERROR_UNSUPPORTED) {
        snprintf(e->reason, sizeof e->reason, "%s", problem.what);
        return DM_OK;
    }
    if (status != DM_OK && err)
        *err = problem;
    return status;
}
