/* SPDX-License-Identifier: Apache-2.0 */
/*
 * library_convolution.h on the CPU, for the emulated CUDA backend: whole volumes in minutes.
 *
 * A plan's run is work of the stream (cudaLaunchHostFunc): it runs when its turn comes, and is
 * captured into graphs like a kernel. It checks what a device would not forgive: alignment, tensors
 * that overlap, and a workspace that is too small or used by someone else meanwhile.
 *
 * Sums are float: over the input channels of a tap in order, then over the taps in order (z, y, x).
 * Lanes of a vector are output channels, so that no sum depends on the machine, on its vectors or on
 * the number of threads: the file has to be compiled with -ffp-contract=off, as -std=c11 does.
 */
#include "library_convolution_reference.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cores.h"
#include "base/error.h"
#include "base/parallel.h"
#include "plan_interpreter.h"
#include "predict/cuda/library_convolution.h"

struct convolution_library {
    char name[32];
};

/* Arguments of one run; they have to stay for as long as a graph may repeat it. */
typedef struct enqueued {
    struct enqueued *before;
    const library_convolution *convolution;
    const void *x, *weight, *residual;
    const float *bias;
    void *y, *workspace;
} enqueued;

struct library_convolution {
    library_convolution_spec spec;
    reference_fault fault;
    unsigned candidate, late_ms;
    size_t workspace;
    enqueued *runs;
    char text[96];
};

/* ---- Settings ------------------------------------------------------------------------------- */

static struct {
    reference_fault fault;
    unsigned candidates;
    bool unjoined, absent;
    unsigned offered, fast, late_ms;
} settings;
static atomic_uint plans_made, plans_restored, runs_enqueued;

void reference_convolution_set_fault(reference_fault fault, unsigned candidates)
{
    settings.fault = fault;
    settings.candidates = candidates;
}

void reference_convolution_set_joins(bool joins)
{
    settings.unjoined = !joins;
}

void reference_convolution_set_offers(unsigned offered, unsigned fast, unsigned late_ms)
{
    settings.offered = offered;
    settings.fast = fast;
    settings.late_ms = late_ms;
}

unsigned reference_convolution_restored(void)
{
    return atomic_load(&plans_restored);
}

unsigned reference_convolution_plans(void)
{
    return atomic_load(&plans_made);
}

unsigned reference_convolution_runs(void)
{
    return atomic_load(&runs_enqueued);
}

/* An unknown word ends the program: a test with a misspelt fault would pass. */
static void read_environment(void)
{
    static const char *const words[] = {
        [REFERENCE_WRONG] = "wrong=",   [REFERENCE_STALE] = "stale=",
        [REFERENCE_SAMPLE] = "sample=", [REFERENCE_BORDER] = "border=",
        [REFERENCE_TAP] = "tap=",       [REFERENCE_NAN] = "nan=",
        [REFERENCE_FAILS] = "fails=",   [REFERENCE_UNRECORDED] = "unrecorded=",
        [REFERENCE_NO_PLAN] = "none="};
    const char *list = getenv("DOSEMAP_REFERENCE_CONVOLUTION");
    settings.absent = false;
    while (list && *list) {
        bool known = strncmp(list, "unjoined", 8) == 0;
        if (known)
            reference_convolution_set_joins(false);
        if (!known && strncmp(list, "absent", 6) == 0)
            known = settings.absent = true;
        unsigned offered, fast, late_ms;
        if (!known && sscanf(list, "offers=%u:%u:%u", &offered, &fast, &late_ms) == 3) {
            reference_convolution_set_offers(offered, fast, late_ms);
            known = true;
        }
        for (int f = REFERENCE_WRONG; f <= REFERENCE_NO_PLAN && !known; f++) {
            known = strncmp(list, words[f], strlen(words[f])) == 0;
            if (known)
                reference_convolution_set_fault(
                    (reference_fault)f, (unsigned)strtoul(list + strlen(words[f]), NULL, 10));
        }
        if (!known) {
            fprintf(stderr, "DOSEMAP_REFERENCE_CONVOLUTION: '%s'\n", list);
            abort();
        }
        list += strcspn(list, ",");
        list += *list == ',';
    }
}

/* ---- The convolution ------------------------------------------------------------------------ */

enum { LANES = 16, VOXELS = 6 };
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

/* A convolution in float, its operands laid out for the inner loop. */
typedef struct work {
    const enqueued *call;
    const library_convolution_spec *spec;
    size_t per_in, per_out, blocks; /* of a group; blocks of LANES output channels */
    size_t taps;
    float *x;       /* as the input */
    float *weights; /* (group, block, tap, input channel of the group, LANES) */
    float *zeros;   /* a voxel of padding */
    atomic_size_t next_plane;
} work;

/* One tap of VOXELS voxels: sum[v] += x[v][i] * weights[i], i in order. */
#if defined(__x86_64__)
#define TARGETS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define TARGETS
#endif
/* The addresses are this file's own arithmetic and the tests' subject is elsewhere. */
#define INNER __attribute__((optimize("O3"), no_sanitize("address", "undefined", "thread")))

TARGETS INNER static void add_tap(const float *const x[VOXELS], const float *weights, size_t n,
                                  float *sums)
{
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0};
    for (size_t i = 0; i < n; i++) {
        const lanes w = *(const lanes *)(weights + i * LANES);
        s0 += x[0][i] * w;
        s1 += x[1][i] * w;
        s2 += x[2][i] * w;
        s3 += x[3][i] * w;
        s4 += x[4][i] * w;
        s5 += x[5][i] * w;
    }
    lanes *to = (lanes *)sums;
    to[0] += s0;
    to[1] += s1;
    to[2] += s2;
    to[3] += s3;
    to[4] += s4;
    to[5] += s5;
}

/* The input's voxel under a tap, or the one of zeros. */
static const float *input_voxel(const work *w, size_t sample, const size_t at[3], const size_t k[3])
{
    const library_convolution_spec *s = w->spec;
    size_t voxel = sample;
    for (int a = 0; a < 3; a++) {
        long i = (long)at[a] * s->stride[a] + (long)k[a] * s->dilation[a] - s->pad_begin[a];
        if (i < 0 || i >= (long)s->in_dim[a])
            return NULL;
        voxel = voxel * s->in_dim[a] + (size_t)i;
    }
    return w->x + voxel * s->in_channels;
}

/* LANES output channels of up to VOXELS voxels of one row. */
static void sum_voxels(const work *w, size_t sample, const size_t start[3], size_t n, size_t group,
                       size_t block, float sums[VOXELS * LANES])
{
    const library_convolution_spec *s = w->spec;
    const size_t edge[3] = {(size_t)s->kernel[0], (size_t)s->kernel[1], (size_t)s->kernel[2]};
    memset(sums, 0, VOXELS * LANES * sizeof *sums);
    for (size_t tap = 0; tap < w->taps; tap++) {
        const size_t k[3] = {tap / (edge[1] * edge[2]), tap / edge[2] % edge[1], tap % edge[2]};
        const float *x[VOXELS];
        bool any = false;
        for (size_t v = 0; v < VOXELS; v++) {
            const size_t at[3] = {start[0], start[1], start[2] + v};
            const float *in = v < n ? input_voxel(w, sample, at, k) : NULL;
            x[v] = in ? in + group * w->per_in : w->zeros;
            any = any || in;
        }
        size_t row = ((group * w->blocks + block) * w->taps + tap) * w->per_in;
        if (any)
            add_tap(x, w->weights + row * LANES, w->per_in, sums);
    }
}

static void store(const work *w, size_t voxel, size_t channel, float v)
{
    const enqueued *call = w->call;
    const library_convolution_spec *s = w->spec;
    const reference_fault fault = call->convolution->fault;
    size_t bytes = element_size(s->type), at = (voxel * s->out_channels + channel) * bytes;
    if (s->bias)
        v += call->bias[channel];
    if (s->residual)
        v += (float)element_load(s->type, (const char *)call->residual + at);
    if (s->activate)
        v = v < 0 ? s->slope * v : v;
    if (fault == REFERENCE_NAN && s->activate && isnan(v))
        v = 0;
    if (fault == REFERENCE_BORDER && voxel % s->out_dim[2] == 0)
        v *= 1 + 1.0f / 64;
    if (fault == REFERENCE_WRONG && channel + 1 == s->out_channels)
        v = 1.25f * v + 0.5f;
    element_store(s->type, (char *)call->y + at, (double)v);
}

static void run_row(const work *w, size_t sample, size_t z, size_t y)
{
    const library_convolution_spec *s = w->spec;
    float sums[VOXELS * LANES];
    for (size_t x = 0; x < s->out_dim[2]; x += VOXELS) {
        const size_t start[3] = {z, y, x};
        size_t n = s->out_dim[2] - x < VOXELS ? s->out_dim[2] - x : VOXELS;
        size_t voxel = ((sample * s->out_dim[0] + z) * s->out_dim[1] + y) * s->out_dim[2] + x;
        for (size_t part = 0; part < (size_t)s->groups * w->blocks; part++) {
            size_t group = part / w->blocks, first = part % w->blocks * LANES;
            size_t channels = w->per_out - first < LANES ? w->per_out - first : LANES;
            sum_voxels(w, sample, start, n, group, part % w->blocks, sums);
            for (size_t v = 0; v < n; v++)
                for (size_t c = 0; c < channels; c++)
                    store(w, voxel + v, group * w->per_out + first + c, sums[v * LANES + c]);
        }
    }
}

static void run_planes(void *context, unsigned part)
{
    (void)part;
    work *w = context;
    const library_convolution_spec *s = w->spec;
    for (;;) {
        size_t plane = atomic_fetch_add(&w->next_plane, 1);
        size_t sample = plane / s->out_dim[0], z = plane % s->out_dim[0];
        if (sample >= s->samples)
            return;
        reference_fault fault = w->call->convolution->fault;
        if ((fault == REFERENCE_STALE && z + 1 == s->out_dim[0]) ||
            (fault == REFERENCE_SAMPLE && sample == s->samples / 2))
            continue;
        for (size_t y = 0; y < s->out_dim[1]; y++)
            run_row(w, sample, z, y);
    }
}

/* ---- Operands ------------------------------------------------------------------------------- */

/* To TF32's 10 bits behind the point, to nearest even. */
static float round_tf32(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (isfinite(f))
        bits = (bits + 0xfff + ((bits >> 13) & 1)) & ~UINT32_C(0x1fff);
    memcpy(&f, &bits, sizeof f);
    return f;
}

static float factor(const library_convolution_spec *s, const void *data, size_t i)
{
    float f = (float)element_load(s->type, (const char *)data + i * element_size(s->type));
    return s->tf32 ? round_tf32(f) : f;
}

static float *floats(size_t n)
{
    float *f = array_zero(n, sizeof *f);
    if (!f) {
        fprintf(stderr, "no memory for a reference convolution\n");
        abort();
    }
    return f;
}

static void lay_out(work *w)
{
    const library_convolution_spec *s = w->spec;
    size_t n = s->samples * s->in_dim[0] * s->in_dim[1] * s->in_dim[2] * s->in_channels;
    w->x = floats(n);
    for (size_t i = 0; i < n; i++)
        w->x[i] = factor(s, w->call->x, i);
    w->zeros = floats(w->per_in);
    w->weights = floats((size_t)s->groups * w->blocks * w->taps * w->per_in * LANES);
    for (size_t o = 0; o < s->out_channels; o++)
        for (size_t tap = 0; tap < w->taps; tap++)
            for (size_t i = 0; i < w->per_in; i++) {
                size_t block = o / w->per_out * w->blocks + o % w->per_out / LANES;
                size_t to = ((block * w->taps + tap) * w->per_in + i) * LANES;
                w->weights[to + o % w->per_out % LANES] =
                    factor(s, w->call->weight, (o * w->taps + tap) * w->per_in + i);
                if (w->call->convolution->fault == REFERENCE_TAP && tap == 0 && i == 0)
                    w->weights[to + o % w->per_out % LANES] = 0;
            }
}

static unsigned threads(void)
{
    const char *said = getenv("DOSEMAP_EMULATED_THREADS");
    return cores_or(said ? (unsigned)strtoul(said, NULL, 10) : 0);
}

/* The workspace is the run's own from beginning to end. */
static void run_now(void *argument)
{
    const enqueued *call = argument;
    const library_convolution_spec *s = &call->convolution->spec;
    const size_t groups = (size_t)s->groups;
    work w = {.call = call,
              .spec = s,
              .per_in = s->in_channels / groups,
              .per_out = s->out_channels / groups,
              .taps = (size_t)s->kernel[0] * (size_t)s->kernel[1] * (size_t)s->kernel[2]};
    w.blocks = (w.per_out + LANES - 1) / LANES;
    unsigned char *workspace = call->workspace;
    const struct timespec late = {.tv_nsec = (long)call->convolution->late_ms * 1000000};
    nanosleep(&late, NULL);
    for (size_t i = 0; i < call->convolution->workspace; i++)
        workspace[i] = (unsigned char)(i % 251);
    lay_out(&w);
    parallel_run(threads(), run_planes, &w);
    for (size_t i = 0; i < call->convolution->workspace; i++)
        if (workspace[i] != (unsigned char)(i % 251)) {
            fprintf(stderr, "a convolution's workspace was overwritten while it ran\n");
            abort();
        }
    free(w.x);
    free(w.zeros);
    free(w.weights);
}

/* ---- library_convolution.h ------------------------------------------------------------------ */

static dm_status look_for_it(dm_error *err)
{
    read_environment();
    return settings.absent ? error_set(err, DM_ERROR_DEVICE, NULL, "install it",
                                       "the reference convolution is not found")
                           : DM_OK;
}

dm_status convolution_library_probe(char version[32], dm_error *err)
{
    dm_status status = look_for_it(err);
    snprintf(version, 32, "%s", status == DM_OK ? "reference" : "");
    return status;
}

dm_status convolution_library_open(convolution_library **library, dm_error *err)
{
    *library = NULL;
    dm_status status = look_for_it(err);
    if (status != DM_OK)
        return status;
    *library = calloc(1, sizeof **library);
    if (!*library)
        return error_memory(err, sizeof **library, "the reference convolution");
    snprintf((*library)->name, sizeof(*library)->name, "reference convolution");
    return DM_OK;
}

dm_status convolution_library_open_for(const char *device_json, convolution_library **library,
                                       dm_error *err)
{
    (void)device_json;
    return convolution_library_open(library, err);
}

void convolution_library_free(convolution_library *library)
{
    free(library);
}

const char *convolution_library_name(const convolution_library *library)
{
    return library->name;
}

static dm_status no_plan(dm_error *err)
{
    return error_set(err, DM_ERROR_UNSUPPORTED, NULL, NULL, "the reference has no plan");
}

/* How many plans there are for a spec. */
static unsigned candidates_of(const library_convolution_spec *spec)
{
    bool joined = spec->bias || spec->residual || spec->activate;
    if (joined && (settings.unjoined || spec->precompiled))
        return 0;
    return settings.offered ? settings.offered : joined ? 1 : 2;
}

dm_status library_convolution_offers(convolution_library *library,
                                     const library_convolution_spec *spec, char *text, size_t size,
                                     dm_error *err)
{
    (void)library;
    dm_status status = library_convolution_check(spec, err);
    if (status == DM_OK)
        snprintf(text, size, "%s", candidates_of(spec) ? "reference\n" : "");
    return status;
}

dm_status library_convolution_create(convolution_library *library,
                                     const library_convolution_spec *spec, unsigned candidate,
                                     library_convolution **convolution, dm_error *err)
{
    (void)library;
    *convolution = NULL;
    dm_status status = library_convolution_check(spec, err);
    if (status != DM_OK)
        return status;
    bool faulty = candidate < settings.candidates;
    if (candidate >= candidates_of(spec) || (faulty && settings.fault == REFERENCE_NO_PLAN))
        return no_plan(err);
    library_convolution *c = calloc(1, sizeof *c);
    if (!c)
        return error_memory(err, sizeof *c, "a reference convolution");
    c->spec = *spec;
    c->fault = faulty ? settings.fault : REFERENCE_SOUND;
    c->candidate = candidate;
    c->late_ms = settings.offered && candidate != settings.fast ? settings.late_ms : 0;
    c->workspace = candidate == 0 ? 1000 + 8 * spec->out_channels : 0;
    snprintf(c->text, sizeof c->text, "reference %u%s%s%s", candidate, spec->bias ? " + bias" : "",
             spec->residual ? " + residual" : "", spec->activate ? " + activation" : "");
    atomic_fetch_add(&plans_made, 1);
    *convolution = c;
    return DM_OK;
}

/* All of a spec that a plan depends on, and which plan it is. */
static void write_saved(const library_convolution_spec *s, unsigned candidate, char text[320])
{
    int n = snprintf(text, 320, "plan %u of %d %d %u %zu %zu %d %d %d %d %a", candidate,
                     (int)s->type, s->tf32, s->samples, s->in_channels, s->out_channels, s->groups,
                     s->bias, s->residual, s->activate, (double)s->slope);
    for (int a = 0; a < 3; a++)
        n += snprintf(text + n, (size_t)(320 - n), ", %zu %zu %d %d %d %d %d", s->in_dim[a],
                      s->out_dim[a], s->kernel[a], s->stride[a], s->dilation[a], s->pad_begin[a],
                      s->pad_end[a]);
}

dm_status library_convolution_save(const library_convolution *convolution, char **saved,
                                   dm_error *err)
{
    *saved = malloc(320);
    if (!*saved)
        return error_memory(err, 320, "a reference convolution's plan");
    write_saved(&convolution->spec, convolution->candidate, *saved);
    return DM_OK;
}

dm_status library_convolution_find(convolution_library *library,
                                   const library_convolution_spec *spec, const char *engine,
                                   const char *saved, library_convolution **convolution,
                                   dm_error *err)
{
    char expected[320];
    *convolution = NULL;
    for (unsigned candidate = 0;; candidate++) {
        unsigned before = atomic_load(&plans_made);
        dm_status status = library_convolution_create(library, spec, candidate, convolution, err);
        if (status != DM_OK)
            return status;
        atomic_store(&plans_made, before); /* of those that are only looked at */
        if (strcmp((*convolution)->text, engine) == 0)
            break;
        library_convolution_free(*convolution);
        *convolution = NULL;
    }
    write_saved(spec, (*convolution)->candidate, expected);
    bool restored = saved && strcmp(saved, expected) == 0;
    atomic_fetch_add(restored ? &plans_restored : &plans_made, 1);
    return DM_OK;
}

void library_convolution_free(library_convolution *convolution)
{
    if (!convolution)
        return;
    while (convolution->runs) {
        enqueued *last = convolution->runs;
        convolution->runs = last->before;
        free(last);
    }
    free(convolution);
}

const library_convolution_spec *library_convolution_spec_of(const library_convolution *convolution)
{
    return &convolution->spec;
}

size_t library_convolution_workspace(const library_convolution *convolution)
{
    return convolution->workspace;
}

const char *library_convolution_describe(const library_convolution *convolution)
{
    return convolution->text;
}

static size_t tensor_bytes(const library_convolution_spec *s, size_t channels, const size_t dim[3])
{
    return s->samples * dim[0] * dim[1] * dim[2] * channels * element_size(s->type);
}

static bool apart(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    uintptr_t p = (uintptr_t)a, q = (uintptr_t)b;
    return p + a_bytes <= q || q + b_bytes <= p;
}

/* What would be undefined on a device, in words; NULL if all is well. */
static const char *misuse(const enqueued *call)
{
    const library_convolution_spec *s = &call->convolution->spec;
    const uintptr_t aligned = (uintptr_t)call->x | (uintptr_t)call->weight | (uintptr_t)call->y |
                              (uintptr_t)call->residual | (uintptr_t)call->workspace;
    size_t in = tensor_bytes(s, s->in_channels, s->in_dim);
    size_t out = tensor_bytes(s, s->out_channels, s->out_dim);
    size_t workspace = call->convolution->workspace;
    if (aligned % LIBRARY_CONVOLUTION_ALIGNMENT || (uintptr_t)call->bias % sizeof(float))
        return "an operand is not aligned";
    if (!call->x || !call->weight || !call->y || (workspace && !call->workspace))
        return "an operand is missing";
    if (s->bias != !!call->bias || s->residual != !!call->residual)
        return "bias or residual are there unasked or missing";
    if (!apart(call->y, out, call->x, in) ||
        (s->residual && !apart(call->y, out, call->residual, out)))
        return "the result overlaps an operand";
    if (workspace && (!apart(call->workspace, workspace, call->x, in) ||
                      !apart(call->workspace, workspace, call->y, out)))
        return "the workspace overlaps a tensor";
    return NULL;
}

static bool is_recorded(cudaStream_t stream)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    return cudaStreamIsCapturing(stream, &status) == cudaSuccess &&
           status != cudaStreamCaptureStatusNone;
}

dm_status library_convolution_run(const library_convolution *convolution, const void *x,
                                  const void *weight, const float *bias, const void *residual,
                                  void *y, void *workspace, cudaStream_t stream, dm_error *err)
{
    const enqueued arguments = {convolution->runs, convolution, x, weight,
                                residual,          bias,        y, workspace};
    bool fails = convolution->fault == REFERENCE_FAILS ||
                 (convolution->fault == REFERENCE_UNRECORDED && is_recorded(stream));
    const char *wrong = fails ? "planted" : misuse(&arguments);
    if (wrong)
        return error_set(err, DM_ERROR_DEVICE, NULL, NULL, "running a convolution: %s", wrong);
    enqueued *call = malloc(sizeof *call);
    if (!call)
        return error_memory(err, sizeof *call, "a convolution's arguments");
    *call = arguments;
    cudaError_t status = cudaLaunchHostFunc(stream, run_now, call);
    if (status != cudaSuccess) {
        free(call);
        return error_set(err, DM_ERROR_DEVICE, NULL, NULL, "running a convolution: %s",
                         cudaGetErrorString(status));
    }
    /* The list is no part of what the caller sees as constant. */
    ((library_convolution *)(uintptr_t)convolution)->runs = call;
    atomic_fetch_add(&runs_enqueued, 1);
    return DM_OK;
}
