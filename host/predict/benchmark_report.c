/* SPDX-License-Identifier: Apache-2.0 */
/* What dm_benchmark says; the keys are explained in bench/README.md. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/error.h"
#include "base/json_text.h"
#include "predict/benchmark.h"
#include "predict/cuda_module.h"
#include "predict/doctor.h"

static json_t *number(double value)
{
    return json_real_or_null(value);
}

static json_t *triple(const size_t n[3])
{
    return json_pack("[I,I,I]", (json_int_t)n[0], (json_int_t)n[1], (json_int_t)n[2]);
}

/* In the order in which they were measured. */
static json_t *numbers(const double *values, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_push(&list, number(values[i]));
    return list;
}

/* Of values that stay as they are; NAN where one of them is. */
static double share(const benchmark *b, const double *values, size_t n, double which)
{
    for (size_t i = 0; i < n; i++) {
        if (isnan(values[i]))
            return NAN;
        b->sorted[i] = values[i];
    }
    measure_sort(b->sorted, n);
    return measure_percentile(b->sorted, n, which);
}

static double mean(const double *values, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    return n > 0 ? sum / (double)n : NAN;
}

/* ---- Where and how -------------------------------------------------------------------------- */

static json_t *environment(const benchmark *b)
{
    struct utsname system;
    json_t *root = doctor_facts();
    double pages = (double)sysconf(_SC_PHYS_PAGES), page = (double)sysconf(_SC_PAGESIZE);
    json_put(&root, "memory_bytes", json_integer((json_int_t)(pages * page)));
    json_put(&root, "kernel", json_string_or_null(uname(&system) == 0 ? system.release : NULL));
    json_put(&root, "load", number(b->load));
    json_put(&root, "device", json_string_or_null(b->p->backend->description(b->p->state)));
    return root;
}

static json_t *settings(const benchmark *b)
{
    const dm_predictor *p = b->p;
    const dm_predict_options *o = &b->predict;
    return json_pack(
        "{s:{s:o, s:o, s:s}, s:s, s:s, s:s, s:o, s:f, s:s, s:I, s:I, s:s, s:o, s:I, s:I}", "model",
        "name", json_string_or_null(p->model->name), "path", json_string_or_null(p->model->path),
        "xxh64", p->model->checksum, "backend", p->backend->name, "device", p->device, "precision",
        precision_name(p->precision), "tile", triple(b->volume.tiles.tile), "overlap",
        b->volume.window.overlap, "blend", o->blend == DM_BLEND_GAUSSIAN ? "gaussian" : "constant",
        "batch", (json_int_t)o->batch, "threads", (json_int_t)p->threads, "convolutions",
        convolutions_name(o->convolutions), "skip_air",
        isfinite(p->skip_air) ? number(p->skip_air) : json_string("off"), "warmup",
        (json_int_t)b->options.warmup, "runs", (json_int_t)b->options.runs);
}

static bool is_emulated(const benchmark *b)
{
    const cuda_module *module;
    return b->p->backend != &cpu_backend && cuda_module_load(&module, NULL) == DM_OK &&
           module->emulated;
}

/* ---- Rates ---------------------------------------------------------------------------------- */

static json_t *ceilings(const benchmark *b)
{
    const measured_ceilings *c = &b->ceilings;
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "copy_bytes_per_s", number(c->copy_bytes),
                     "multiply_add_flop_per_s", number(c->fma_flop), "product_flop_per_s",
                     number(c->product_flop), "product_how",
                     json_string_or_null(c->product_how[0] ? c->product_how : NULL),
                     "own_product_flop_per_s", number(c->own_flop));
}

/* Patches per second, in all its units. bytes: that one moves. */
static void put_rates(json_t **root, const benchmark *b, double patches, double bytes)
{
    double flop = patches * b->p->plan->useful_flops;
    json_put(root, "patches_per_s", number(patches));
    json_put(root, "tflop_per_s", number(1e-12 * flop));
    json_put(root, "share_of_multiply_add", number(flop / b->ceilings.fma_flop));
    json_put(root, "share_of_product", number(flop / b->ceilings.product_flop));
    json_put(root, "share_of_copy", number(patches * bytes / b->ceilings.copy_bytes));
}

static json_t *offline(const benchmark *b)
{
    const measure_result *r = &b->offline;
    if (r->n_runs == 0)
        return json_null();
    double median = share(b, r->seconds, r->n_runs, 0.5), patches = (double)r->windows / median;
    json_t *root =
        json_pack("{s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o}", "batch", (json_int_t)r->batch,
                  "at_once", (json_int_t)r->at_once, "patches_per_run", (json_int_t)r->windows,
                  "seconds", numbers(r->seconds, r->n_runs), "median", number(median), "minimum",
                  number(share(b, r->seconds, r->n_runs, 0)), "mvoxel_per_s",
                  number(1e-6 * patches * (double)b->voxels), "joules_per_patch",
                  number(r->joules / ((double)r->windows * (double)r->n_runs)), "bytes_per_patch",
                  number(r->bytes));
    put_rates(&root, b, patches, r->bytes);
    return root;
}

static json_t *single_stream(const benchmark *b)
{
    const measure_result *r = &b->single;
    if (r->n_runs == 0)
        return json_null();
    double average = mean(r->seconds, r->n_runs);
    json_t *root = json_pack("{s:{s:o, s:o, s:o, s:o, s:o, s:o}, s:I}", "latency", "minimum",
                             number(share(b, r->seconds, r->n_runs, 0)), "p50",
                             number(share(b, r->seconds, r->n_runs, 0.5)), "p90",
                             number(share(b, r->seconds, r->n_runs, 0.9)), "p99",
                             number(share(b, r->seconds, r->n_runs, 0.99)), "maximum",
                             number(share(b, r->seconds, r->n_runs, 1)), "mean", number(average),
                             "runs", (json_int_t)r->n_runs);
    put_rates(&root, b, 1 / average, r->bytes);
    return root;
}

static json_t *stages(const benchmark *b)
{
    static const char *const keys[STAGES] = {"prepare",  "upload",   "network", "finish",
                                             "resample", "download", "dvh"};
    const volume_times *v = &b->volumes;
    json_t *root = json_object();
    for (int s = 0; s < STAGES; s++)
        json_put(&root, keys[s], number(share(b, v->stages[s], v->n, 0.5)));
    return root;
}

static json_t *volume(const benchmark *b)
{
    const volume_times *v = &b->volumes;
    if (v->n == 0)
        return json_null();
    double median = share(b, v->seconds, v->n, 0.5);
    const char *path = b->made_pet ? "synthetic" : b->options.pet_path;
    json_t *root = json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:o, s:s, s:b, s:o, s:o}", "pet",
        json_string_or_null(path), "size", triple(b->patient.pet->grid.dim), "seconds",
        numbers(v->seconds, v->n), "median", number(median), "minimum",
        number(share(b, v->seconds, v->n, 0)), "p90", number(share(b, v->seconds, v->n, 0.9)),
        "stages", stages(b), "windows", (json_int_t)v->windows, "windows_skipped",
        (json_int_t)v->skipped, "batch", (json_int_t)v->batch, "mvoxel_per_s",
        number(1e-6 * (double)dm_grid_voxels(&b->patient.pet->grid) / median), "output_xxh64",
        v->xxh64, "same_bytes", (int)v->same_bytes, "joules", number(mean(v->joules, v->n)),
        "host_joules", number(mean(v->host_joules, v->n)));
    put_rates(&root, b, (double)v->windows / median, b->offline.bytes);
    return root;
}

static json_t *layers(const benchmark *b, double *total)
{
    const measure_result *r = &b->offline;
    const measured_ceilings *c = &b->ceilings;
    *total = 0;
    if (r->n_layers == 0) {
        *total = NAN;
        return json_null();
    }
    json_t *list = json_array();
    for (size_t i = 0; i < r->n_layers; i++) {
        const measure_layer *l = &r->layers[i];
        double bytes = l->bytes / l->seconds, flop = l->flop / l->seconds;
        *total += l->seconds;
        json_push(&list, json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "name",
                                   json_string_or_null(l->name), "way", json_string_or_null(l->way),
                                   "seconds", number(l->seconds), "bytes", number(l->bytes), "flop",
                                   number(l->flop), "bytes_per_s", number(bytes), "flop_per_s",
                                   number(flop), "share_of_copy", number(bytes / c->copy_bytes),
                                   "share_of_product", number(flop / c->product_flop)));
    }
    return list;
}

static json_t *error_facts(const reference_error *e)
{
    return json_pack("{s:s, s:I, s:o, s:o, s:o}", "reference",
                     "float32 on the CPU, one step per node", "windows", (json_int_t)e->windows,
                     "relative_l2", number(e->relative_l2), "largest", number(e->largest), "reason",
                     json_string_or_null(e->reason[0] ? e->reason : NULL));
}

static json_t *bytes_or_null(double bytes)
{
    return isfinite(bytes) ? json_integer((json_int_t)bytes) : json_null();
}

static json_t *memory(const benchmark *b)
{
    size_t network = b->offline.device_bytes, volume_bytes = b->volumes.device_bytes;
    size_t device = network > volume_bytes ? network : volume_bytes;
    return json_pack("{s:o, s:o}", "host_peak_bytes", bytes_or_null(b->host_peak_bytes),
                     "device_bytes", device > 0 ? bytes_or_null((double)device) : json_null());
}

json_t *benchmark_report(const benchmark *b)
{
    double total;
    const plan *steps = b->p->plan;
    json_t *rows = layers(b, &total);
    json_t *tuning = b->volumes.tuning;
    return json_pack(
        "{s:i, s:s, s:o, s:b, s:o, s:o, s:{s:I, s:f, s:f}, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o,"
        " s:O, s:O}",
        "schema_version", 1, "date", b->date, "command_line",
        json_string_or_null(b->options.command_line), "emulated", (int)is_emulated(b),
        "environment", environment(b), "settings", settings(b), "network", "voxels",
        (json_int_t)b->voxels, "flop", steps->flops, "useful_flop", steps->useful_flops, "ceilings",
        ceilings(b), "offline", offline(b), "single_stream", single_stream(b), "volume", volume(b),
        "layers", rows, "layers_seconds", number(total), "error", error_facts(&b->error), "memory",
        memory(b), "tune", b->tune ? b->tune : json_null(), "tuning",
        tuning ? tuning : json_null());
}
