/* SPDX-License-Identifier: Apache-2.0 */
/* dm_benchmark: one scenario after the other with one predictor, ceilings in the same run. */
#include "predict/benchmark.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/available_memory.h"
#include "base/error.h"
#include "base/json_text.h"
#include "base/output_file.h"
#include "predict/gather.h"
#include "predict/job_messages.h"
#include "predict/synthetic_pet.h"

/* Windows that lie ready, and the bytes that they may take. */
#define WINDOWS 16
#define WINDOW_BYTES ((size_t)256 << 20)
/* A run of the offline scenario: long against what starting and ending it takes. */
#define RUN_SECONDS 0.5
#define RUNS 10
#define RUNS_SINGLE 100
#define RUNS_VOLUME 3
#define WARMUP 2
#define WARMUP_VOLUME 1
#define RUNS_MAX 100000
#define SIZE_MAX_EDGE 65536

const char *const benchmark_stage_keys[STAGES] = {"Prepare",  "Upload",   "Network", "Finish",
                                                  "Resample", "Download", "DVH"};

void dm_benchmark_options_init(dm_benchmark_options *options)
{
    *options = (dm_benchmark_options){.scenarios = DM_SCENARIO_ALL};
}

/* ---- Progress ------------------------------------------------------------------------------- */

static int progress(void *context, double share, const char *stage)
{
    const benchmark *b = context;
    (void)stage;
    return b->progress ? b->progress(b->progress_user, b->from + b->span * share, b->stage) : 0;
}

dm_status benchmark_go_on(void *context, double share, dm_error *err)
{
    const predict_job reported = {.progress = progress, .progress_user = context};
    return job_report(&reported, share, "", err);
}

static dm_status begin(benchmark *b, const char *stage, double span, dm_error *err)
{
    b->from += b->span;
    b->span = span;
    b->stage = stage;
    return benchmark_go_on(b, 0, err);
}

/* ---- What is measured ----------------------------------------------------------------------- */

static dm_status check_options(const dm_benchmark_options *o, const dm_predict_options *predict,
                               dm_error *err)
{
    if ((o->scenarios & DM_SCENARIO_ALL) == 0 || o->scenarios & ~(unsigned)DM_SCENARIO_ALL)
        return error_set(err, DM_ERROR_VALUE, NULL, "use offline, single-stream, volume or all",
                         "there is no set of scenarios number %u", o->scenarios);
    if (o->runs > RUNS_MAX || o->warmup > RUNS_MAX)
        return error_set(err, DM_ERROR_VALUE, NULL, "use fewer runs", "%u runs are more than %d",
                         o->runs > o->warmup ? o->runs : o->warmup, RUNS_MAX);
    for (int a = 0; a < 3; a++)
        if (o->size[a] > SIZE_MAX_EDGE || (o->size[a] == 0) != (o->size[0] == 0))
            return error_set(err, DM_ERROR_VALUE, NULL, "give three sizes from 1 to 65536",
                             "a volume of %zu x %zu x %zu voxels cannot be made", o->size[0],
                             o->size[1], o->size[2]);
    if (predict->n_v_thresholds > 0)
        return error_set(err, DM_ERROR_VALUE, NULL, "leave them out",
                         "thresholds without labels mean nothing");
    return DM_OK;
}

/* The system might give it and end the process when it is used. */
static dm_status check_room(const size_t size[3], int images, dm_error *err)
{
    double bytes = sizeof(float) * (double)size[0] * (double)size[1] * (double)size[2];
    char need[SIZE_TEXT], limit[SIZE_TEXT];
    size_t available = available_memory();
    if (images * bytes <= (double)available)
        return DM_OK;
    return error_set(
        err, DM_ERROR_MEMORY, NULL, "use a smaller --size",
        "%d volumes of %zu x %zu x %zu voxels take %s of memory, more than the %s that "
        "this process can have",
        images, size[0], size[1], size[2], size_text(images * bytes, need),
        size_text((double)available, limit));
}

static dm_status make_patient(benchmark *b, dm_error *err)
{
    static const size_t large[3] = {200, 200, 450}, small[3] = {128, 128, 256};
    const size_t *size = b->options.size;
    if (b->patient.pet)
        return DM_OK;
    if (size[0] == 0)
        size = predictor_on_device(b->p) ? large : small;
    bool with_ct = b->p->ct_channel >= 0;
    dm_status status = check_room(size, with_ct ? 3 : 2, err); /* and the dose map */
    if (status == DM_OK)
        status = synthetic_pet(size, &b->made_pet, &b->made_info, err);
    if (status == DM_OK && with_ct)
        status = synthetic_ct(size, &b->made_ct, err);
    b->patient = (dm_patient){.pet = b->made_pet, .info = &b->made_info, .ct = b->made_ct};
    return status;
}

/* Some windows of the volume, evenly spread, air or not. */
static dm_status make_windows(benchmark *b, dm_error *err)
{
    const tiling *t = &b->volume.tiles;
    predict_job job = b->volume.job;
    gather g = {0};
    size_t most, channel, bad[3];
    b->voxels = t->tile[0] * t->tile[1] * t->tile[2];
    const size_t floats = b->voxels * job.n_channels;
    most = WINDOW_BYTES / (floats * sizeof(float));
    most = most < 1 ? 1 : most > WINDOWS ? WINDOWS : most;
    b->n_windows = t->count < most ? t->count : most;
    b->windows = array_zero(b->n_windows, floats * sizeof(float));
    b->outputs = array_zero(b->n_windows, b->voxels * sizeof(float));
    if (!b->windows || !b->outputs)
        return error_memory(err, b->n_windows * (floats + b->voxels) * sizeof(float), "windows");
    job.skip_air = -INFINITY;
    dm_status status = gather_make(&job, ELEMENT_F32, &g, err);
    float *scratch = status == DM_OK ? array_alloc(g.scratch, sizeof *scratch) : NULL;
    if (status == DM_OK && !scratch)
        status = error_memory(err, g.scratch * sizeof *scratch, "windows");
    for (size_t i = 0; i < b->n_windows && status == DM_OK; i++)
        if (gather_window(&g, (2 * i + 1) * t->count / (2 * b->n_windows), scratch,
                          b->windows + i * floats, &channel, bad) == GATHER_NOT_FINITE)
            status = job_bad_input(&job, channel, bad, err);
    free(scratch);
    gather_clear(&g);
    return status;
}

static measure_request make_request(benchmark *b, unsigned runs)
{
    return (measure_request){.windows = b->windows,
                             .n_windows = b->n_windows,
                             .job_windows = b->volume.tiles.count,
                             .warmup = b->options.warmup ? b->options.warmup : WARMUP,
                             .runs = b->options.runs ? b->options.runs : runs,
                             .go_on = benchmark_go_on,
                             .context = b};
}

/* Also where it is not asked for: its outputs are compared. */
static dm_status run_offline(benchmark *b, dm_error *err)
{
    measure_request request = make_request(b, RUNS);
    dm_status status = begin(b, "offline", 0.25, err);
    request.outputs = b->outputs;
    request.batch = b->predict.batch;
    request.run_seconds = RUN_SECONDS;
    request.layers = b->options.layers;
    if (!(b->options.scenarios & DM_SCENARIO_OFFLINE))
        request.runs = 0;
    if (status == DM_OK)
        status = b->p->backend->measure(b->p->state, &request, &b->offline, err);
    return status;
}

static dm_status run_single(benchmark *b, dm_error *err)
{
    measure_request request = make_request(b, RUNS_SINGLE);
    dm_status status = begin(b, "single stream", 0.1, err);
    request.batch = 1;
    if (status == DM_OK)
        status = predictor_prepare(b->p, 1, err);
    if (status == DM_OK)
        status = b->p->backend->measure(b->p->state, &request, &b->single, err);
    return status;
}

/* ---- Whole volumes -------------------------------------------------------------------------- */

static dm_status make_times(volume_times *v, size_t runs, dm_error *err)
{
    double **const arrays[] = {&v->seconds, &v->joules, &v->host_joules};
    bool made = true;
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        made = (*arrays[i] = array_zero(runs, sizeof **arrays[i])) && made;
    for (int s = 0; s < STAGES; s++)
        made = (v->stages[s] = array_zero(runs, sizeof *v->stages[s])) && made;
    v->same_bytes = true;
    return made ? DM_OK : error_memory(err, runs * sizeof *v->seconds, "times");
}

static double seconds_of(const json_t *seconds, int stage)
{
    const json_t *value = json_object_get(seconds, benchmark_stage_keys[stage]);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

/* What a run gave; the first one's bytes are what all others should have. */
static void note_run(volume_times *v, const dm_prediction *prediction, bool timed)
{
    const dm_volume *dose = dm_prediction_dose(prediction);
    const json_t *root = prediction->provenance;
    const json_t *windows = json_object_get(root, "Windows");
    char xxh64[17];
    bytes_checksum(dose->data, dm_grid_voxels(&dose->grid) * sizeof *dose->data, xxh64);
    if (!v->xxh64[0])
        memcpy(v->xxh64, xxh64, sizeof xxh64);
    v->same_bytes &= strcmp(v->xxh64, xxh64) == 0;
    v->windows = (size_t)json_integer_value(json_object_get(windows, "Run"));
    v->skipped = (size_t)json_integer_value(json_object_get(windows, "Skipped"));
    v->batch =
        (unsigned)json_integer_value(json_object_get(json_object_get(root, "Options"), "Batch"));
    v->device_bytes = (size_t)json_integer_value(
        json_object_get(json_object_get(root, "Options"), "DeviceMemory"));
    json_decref(v->tuning);
    v->tuning = json_incref(json_object_get(root, "Tuning"));
    for (int s = 0; s < STAGES && timed; s++)
        v->stages[s][v->n] = seconds_of(json_object_get(root, "Seconds"), s);
}

static dm_status run_volume(benchmark *b, bool timed, dm_error *err)
{
    volume_times *v = &b->volumes;
    const backend *engine = b->p->backend;
    dm_prediction *prediction = NULL;
    double joules = b->p->state ? engine->energy(b->p->state) : NAN;
    double host_joules = cpu_backend.energy(NULL), start = job_clock();
    dm_status status = dm_predictor_run(b->p, &b->patient, &prediction, err);
    double seconds = job_clock() - start;
    if (status == DM_OK) {
        note_run(v, prediction, timed);
        if (timed) {
            v->seconds[v->n] = seconds;
            v->joules[v->n] = engine->energy(b->p->state) - joules;
            v->host_joules[v->n] = cpu_backend.energy(NULL) - host_joules;
            v->n++;
        }
    }
    dm_prediction_free(prediction);
    return status;
}

static dm_status run_volumes(benchmark *b, dm_error *err)
{
    unsigned runs = b->options.runs ? b->options.runs : RUNS_VOLUME;
    unsigned warmup = b->options.warmup ? b->options.warmup : WARMUP_VOLUME;
    dm_status status = make_times(&b->volumes, runs, err);
    for (unsigned i = 0; i < warmup + runs && status == DM_OK; i++) {
        status = begin(b, "volume", 0.5 / (warmup + runs), err);
        if (status == DM_OK)
            status = run_volume(b, i >= warmup, err);
    }
    return status;
}

/* ---- All of it ------------------------------------------------------------------------------ */

static dm_status tune(benchmark *b, dm_error *err)
{
    const backend *engine = b->p->backend;
    char *text = NULL;
    if (!b->options.tune)
        return DM_OK;
    if (!engine->tune)
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "leave --tune out, or use --device cuda",
                         "there is nothing to tune on the device '%s'", engine->name);
    /* What is found holds for one size of batches: that of this volume. */
    unsigned batch = engine->batch ? engine->batch(b->p->state, b->volume.tiles.count) : 1;
    dm_status status = begin(b, "tune", 0.05, err);
    if (status == DM_OK)
        status = engine->tune(b->p->state, batch, progress, b, &text, err);
    if (status == DM_OK && text)
        status = json_parse(text, strlen(text), "the report of tuning", &b->tune, err);
    dm_string_free(text);
    return status;
}

/* Bytes of a line "NAME:  123 kB" of /proc/self/status; NAN if it is not there. */
static double process_bytes(const char *name)
{
    char line[256];
    double kib = NAN;
    size_t length = strlen(name);
    FILE *f = fopen("/proc/self/status", "re");
    while (f && isnan(kib) && fgets(line, sizeof line, f))
        if (strncmp(line, name, length) == 0 && line[length] == ':')
            kib = strtod(line + length + 1, NULL);
    if (f)
        fclose(f);
    return 1024 * kib;
}

static dm_status create(benchmark *b, const dm_model *model, dm_error *err)
{
    time_t now = time(NULL);
    struct tm utc;
    double load[1];
    b->load = getloadavg(load, 1) == 1 ? load[0] : NAN;
    if (gmtime_r(&now, &utc))
        (void)strftime(b->date, sizeof b->date, "%Y-%m-%dT%H:%M:%SZ", &utc);
    b->progress = b->predict.progress;
    b->progress_user = b->predict.progress_user;
    b->predict.progress = progress;
    b->predict.progress_user = b;
    b->stage = "prepare";
    dm_status status = dm_predictor_create(model, &b->predict, &b->p, err);
    if (status == DM_OK)
        status = make_patient(b, err);
    if (status == DM_OK)
        status = volume_job_make(b->p, &b->patient, &b->volume, err);
    if (status == DM_OK)
        status = make_windows(b, err);
    return status;
}

/* Those that there is no room for are not known. */
static dm_status find_ceilings(benchmark *b, dm_error *err)
{
    dm_status status = b->p->backend->ceilings(b->p->state, &b->ceilings, err);
    if (status == DM_ERROR_MEMORY) {
        status = DM_OK;
        if (err)
            *err = (dm_error){0};
    }
    return status;
}

static dm_status run(benchmark *b, dm_error *err)
{
    dm_status status = tune(b, err);
    if (status == DM_OK)
        status = run_offline(b, err);
    if (status == DM_OK && b->options.scenarios & DM_SCENARIO_SINGLE_STREAM)
        status = run_single(b, err);
    if (status == DM_OK && b->options.scenarios & DM_SCENARIO_VOLUME)
        status = run_volumes(b, err);
    /* Ceilings and reference have nothing to do with it. */
    b->host_peak_bytes = process_bytes("VmHWM");
    if (status == DM_OK)
        status = begin(b, "ceilings", 0.05, err);
    if (status == DM_OK)
        status = find_ceilings(b, err);
    if (status == DM_OK)
        status = begin(b, "reference", 0.05, err);
    return status == DM_OK ? benchmark_compare(b, err) : status;
}

static dm_status make_room(benchmark *b, dm_error *err)
{
    size_t n = b->offline.n_runs > b->single.n_runs ? b->offline.n_runs : b->single.n_runs;
    n = b->volumes.n > n ? b->volumes.n : n;
    b->sorted = array_alloc(n + 1, sizeof *b->sorted);
    return b->sorted ? DM_OK : error_memory(err, n * sizeof *b->sorted, "the report");
}

static void clear(benchmark *b)
{
    volume_times *v = &b->volumes;
    volume_job_clear(&b->volume);
    dm_predictor_free(b->p);
    dm_volume_free(b->made_pet);
    dm_volume_free(b->made_ct);
    measure_clear(&b->offline);
    measure_clear(&b->single);
    free(v->seconds);
    free(v->joules);
    free(v->host_joules);
    for (int s = 0; s < STAGES; s++)
        free(v->stages[s]);
    json_decref(v->tuning);
    json_decref(b->tune);
    free(b->windows);
    free(b->outputs);
    free(b->sorted);
}

dm_status dm_benchmark(const dm_model *model, const dm_predict_options *predict,
                       const dm_benchmark_options *options, const dm_patient *patient, char **json,
                       dm_error *err)
{
    benchmark b = {.from = 0};
    json_t *report = NULL;
    *json = NULL;
    if (patient)
        b.patient = *patient;
    b.patient.labels = NULL;
    if (predict)
        b.predict = *predict;
    else
        dm_predict_options_init(&b.predict);
    if (options)
        b.options = *options;
    else
        dm_benchmark_options_init(&b.options);
    if (b.options.layers)
        b.options.scenarios |= DM_SCENARIO_OFFLINE;
    dm_status status = check_options(&b.options, &b.predict, err);
    if (status == DM_OK)
        status = create(&b, model, err);
    if (status == DM_OK)
        status = run(&b, err);
    if (status == DM_OK)
        status = make_room(&b, err);
    if (status == DM_OK) {
        report = benchmark_report(&b);
        status = report ? json_print(report, json, err) : error_memory(err, 65536, "the report");
    }
    json_decref(report);
    clear(&b);
    return status;
}
