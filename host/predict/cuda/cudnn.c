/* SPDX-License-Identifier: Apache-2.0 */
/*
 * library_convolution.h through cuDNN's graph interface ("backend API").
 *
 * A spec becomes an operation graph: the convolution, and for what is to be joined pointwise
 * operations behind it. cuDNN's heuristics answer with engine configurations in their order of
 * preference (mode A, then the fallback list); each is turned into an execution plan when its turn
 * comes, and is left out if that fails or if its notes say that it does not keep our word: results
 * that vary from run to run, rounded float32 factors, sums in less than float32, Fourier
 * transforms (whose rounding spreads from hot voxels over the whole tile), Winograd's transforms
 * (whose rounding grows with the tile), a large workspace.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/cudnn_library.h"

enum { MAX_MADE = 24, MAX_CONFIGS = 64, MAX_KNOBS = 16, NAME_SIZE = 192 };

/* What is known of an engine configuration. */
typedef struct engine_config {
    descriptor config;
    char name[NAME_SIZE]; /* as cuDNN's own tools write it: "eng38_k2=5_k24=15", k: knob type */
    bool tensor_cores, run_time_compiled;
    enum { UNTRIED, WORKS, LEFT_OUT } state;
} engine_config;

/* cuDNN's answer for one spec. Shared by the library, which keeps the latest, and by the plans made
 * from it: whether plans need the graph's descriptors after they are finalised is nowhere said. */
struct preferences {
    unsigned owners;
    library_convolution_spec spec;
    size_t n_made;
    descriptor made[MAX_MADE]; /* tensors, operations, the graph */
    descriptor graph;
    size_t n_configs;
    engine_config config[MAX_CONFIGS];
    char problem[PROBLEM_SIZE]; /* why the most preferred of those left out was */
};

struct library_convolution {
    const convolution_library *library;
    preferences *from;
    descriptor plan;
    size_t workspace;
    char text[NAME_SIZE + 128];
};

void cudnn_keep(preferences *p, descriptor d)
{
    assert(p->n_made < MAX_MADE);
    p->made[p->n_made++] = d;
}

void cudnn_release(const convolution_library *l, preferences *p)
{
    if (!p || --p->owners > 0)
        return;
    for (size_t i = p->n_configs; i-- > 0;)
        l->api.cudnnBackendDestroyDescriptor(p->config[i].config);
    for (size_t i = p->n_made; i-- > 0;)
        l->api.cudnnBackendDestroyDescriptor(p->made[i]);
    free(p);
}

/* ---- What cuDNN prefers --------------------------------------------------------------------- */

/* Appends "_k2=5" for every knob, in cuDNN's order. */
static void name_knobs(const cudnn_api *api, engine_config *c)
{
    descriptor knob[MAX_KNOBS];
    int64_t n = cudnn_get_descriptors(api, c->config, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
                                      CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, MAX_KNOBS, knob);
    for (int64_t i = 0; i < n; i++) {
        cudnnBackendKnobType_t type = CUDNN_KNOB_TYPE_COUNTS;
        int64_t value = -1;
        size_t used = strlen(c->name);
        cudnn_get(api, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE, 1, &type);
        cudnn_get(api, knob[i], CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1, &value);
        snprintf(c->name + used, sizeof c->name - used, "_k%d=%lld", (int)type, (long long)value);
        api->cudnnBackendDestroyDescriptor(knob[i]);
    }
}

/* Why an engine with these notes must not be used, or NULL. */
static const char *objection(const library_convolution_spec *s,
                             const bool noted[CUDNN_NUMERICAL_NOTE_TYPE_COUNT])
{
    if (noted[CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC])
        return "its results vary from run to run";
    if (noted[CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION])
        return "it sums in less than float32";
    if (noted[CUDNN_NUMERICAL_NOTE_FFT])
        return "it transforms whole tiles";
    if (s->type == ELEMENT_F32 && !s->tf32 &&
        (noted[CUDNN_NUMERICAL_NOTE_TENSOR_CORE] ||
         noted[CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS]))
        return "it rounds float32 factors";
    /* Once more in half precision; in float32 sums lose digits that the dose needs. */
    if (noted[CUDNN_NUMERICAL_NOTE_WINOGRAD] || noted[CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4] ||
        noted[CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6] ||
        noted[CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13])
        return "it rounds transformed factors";
    return NULL;
}

static void leave_out(preferences *p, engine_config *c, const char *why)
{
    c->state = LEFT_OUT;
    if (!p->problem[0])
        snprintf(p->problem, sizeof p->problem, "%.90s: %.150s", c->name, why);
}

/* Reads the engine's notes; leaves it out if they say so. */
static void examine(const cudnn_api *api, preferences *p, engine_config *c)
{
    descriptor engine = NULL;
    cudnnBackendNumericalNote_t numerical[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendBehaviorNote_t behaviour[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
    bool noted[CUDNN_NUMERICAL_NOTE_TYPE_COUNT] = {0};
    int64_t index = -1;
    if (cudnn_get_descriptors(api, c->config, CUDNN_ATTR_ENGINECFG_ENGINE,
                              CUDNN_BACKEND_ENGINE_DESCRIPTOR, 1, &engine) != 1) {
        leave_out(p, c, "it has no engine");
        return;
    }
    cudnn_get(api, engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &index);
    snprintf(c->name, sizeof c->name, "eng%lld", (long long)index);
    name_knobs(api, c);
    int64_t n = cudnn_get(api, engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                          CUDNN_NUMERICAL_NOTE_TYPE_COUNT, numerical);
    for (int64_t i = 0; i < n; i++)
        if (numerical[i] < CUDNN_NUMERICAL_NOTE_TYPE_COUNT)
            noted[numerical[i]] = true;
    n = cudnn_get(api, engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                  CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, behaviour);
    for (int64_t i = 0; i < n; i++)
        c->run_time_compiled |= behaviour[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
    c->tensor_cores = noted[CUDNN_NUMERICAL_NOTE_TENSOR_CORE];
    const char *why = objection(&p->spec, noted);
    if (!why && p->spec.precompiled && c->run_time_compiled)
        why = "it is compiled at run time";
    if (why)
        leave_out(p, c, why);
    for (const engine_config *before = p->config; before < c; before++)
        if (strcmp(before->name, c->name) == 0)
            c->state = LEFT_OUT; /* offered by both modes */
    api->cudnnBackendDestroyDescriptor(engine);
}

/* Appends what one mode of the heuristics offers. A mode that fails offers nothing. */
static void ask(const convolution_library *l, preferences *p, cudnnBackendHeurMode_t mode)
{
    const cudnn_api *api = &l->api;
    descriptor answer[MAX_CONFIGS];
    builder b = {.library = l, .p = p};
    descriptor h = cudnn_make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    cudnn_set_descriptor(&b, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, p->graph);
    cudnn_set(&b, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (l->device)
        cudnn_set_descriptor(&b, h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, l->device);
    cudnn_finish(&b, h, "the heuristics");
    if (b.status != CUDNN_STATUS_SUCCESS) {
        if (!p->problem[0])
            memcpy(p->problem, b.problem, sizeof p->problem);
        return;
    }
    int64_t n = cudnn_get_descriptors(api, h, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                      CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                      (int64_t)(MAX_CONFIGS - p->n_configs), answer);
    for (int64_t i = 0; i < n; i++) {
        engine_config *c = &p->config[p->n_configs++];
        c->config = answer[i];
        examine(api, p, c);
    }
}

/* cuDNN's refusals are the caller's cue to do it alone; only a shortage of memory is an error. */
static dm_status refusal(const convolution_library *l, cudnnStatus_t status, const char *text,
                         dm_error *err)
{
    if (cudnn_is_memory(status))
        return cudnn_failure(l, status, text, err);
    return error_set(err, DM_ERROR_UNSUPPORTED, NULL, NULL, "%s has no plan: %s", l->name, text);
}

/* Into l->latest, unless they are there already. */
static dm_status find_preferences(convolution_library *l, const library_convolution_spec *spec,
                                  dm_error *err)
{
    if (l->latest && library_convolution_same(&l->latest->spec, spec))
        return DM_OK;
    preferences *p = calloc(1, sizeof *p);
    if (!p)
        return error_memory(err, sizeof *p, "a convolution's plans");
    p->owners = 1;
    p->spec = *spec;
    builder b = {.library = l, .p = p};
    p->graph = cudnn_graph_of(&b, spec);
    if (b.status != CUDNN_STATUS_SUCCESS) {
        cudnn_release(l, p);
        return refusal(l, b.status, b.problem, err);
    }
    ask(l, p, CUDNN_HEUR_MODE_A);
    ask(l, p, CUDNN_HEUR_MODE_FALLBACK);
    cudnn_release(l, l->latest);
    l->latest = p;
    return DM_OK;
}

/* A convolution that every device can do. */
dm_status cudnn_check_engines(convolution_library *l, dm_error *err)
{
    library_convolution_spec s = {
        .type = ELEMENT_F32, .samples = 1, .in_channels = 32, .out_channels = 32, .groups = 1};
    for (int a = 0; a < 3; a++) {
        s.in_dim[a] = s.out_dim[a] = 8;
        s.kernel[a] = 3;
        s.stride[a] = s.dilation[a] = s.pad_begin[a] = s.pad_end[a] = 1;
    }
    dm_status status = find_preferences(l, &s, err);
    if (status != DM_OK || l->latest->n_configs > 0)
        return status;
    return error_set(err, DM_ERROR_DEVICE, l->api.file, CUDNN_REINSTALL,
                     "%s offers no engine at all; its libcudnn_heuristic or "
                     "libcudnn_engines_precompiled are probably missing%s%s",
                     l->name, l->latest->problem[0] ? ": " : "", l->latest->problem);
}

/* ---- Plans ---------------------------------------------------------------------------------- */

static void set_device(builder *b, descriptor plan)
{
    const convolution_library *l = b->library;
    if (l->handle)
        cudnn_set(b, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &l->handle);
    else
        cudnn_set_descriptor(b, plan, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, l->device);
}

/* A finalised plan and its workspace, or NULL, the configuration being left out then. */
static descriptor try_plan(const convolution_library *l, preferences *p, engine_config *c,
                           size_t *workspace, cudnnStatus_t *status)
{
    builder b = {.library = l};
    int64_t bytes = -1;
    descriptor plan = cudnn_make(&b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    cudnn_set_descriptor(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, c->config);
    set_device(&b, plan);
    cudnn_finish(&b, plan, "its plan");
    *status = b.status;
    if (b.status == CUDNN_STATUS_SUCCESS &&
        (cudnn_get(&l->api, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                   &bytes) != 1 ||
         bytes < 0 || (uint64_t)bytes > LIBRARY_CONVOLUTION_MAX_WORKSPACE))
        snprintf(b.problem, sizeof b.problem, "its workspace is %lld bytes", (long long)bytes);
    if (!b.problem[0]) {
        c->state = WORKS;
        *workspace = (size_t)bytes;
        return plan;
    }
    if (!cudnn_is_memory(b.status))
        leave_out(p, c, b.problem);
    if (plan)
        l->api.cudnnBackendDestroyDescriptor(plan);
    return NULL;
}

static void describe(library_convolution *c, const engine_config *config)
{
    const library_convolution_spec *s = &c->from->spec;
    snprintf(c->text, sizeof c->text, "%s: %s, workspace %.1f MB%s%s%s%s", config->name,
             config->tensor_cores ? "tensor cores" : "CUDA cores", (double)c->workspace / 1e6,
             config->run_time_compiled ? ", compiled at run time" : "", s->bias ? " + bias" : "",
             s->residual ? " + residual" : "", s->activate ? " + activation" : "");
}

dm_status library_convolution_offers(convolution_library *library,
                                     const library_convolution_spec *spec, char *text, size_t size,
                                     dm_error *err)
{
    text[0] = '\0';
    dm_status status = library_convolution_check(spec, err);
    if (status == DM_OK)
        status = find_preferences(library, spec, err);
    if (status != DM_OK)
        return status;
    const preferences *p = library->latest;
    size_t used = 0;
    for (size_t i = 0; i < p->n_configs && used < size; i++) {
        const engine_config *c = &p->config[i];
        if (c->state != LEFT_OUT)
            used += (size_t)snprintf(text + used, size - used, "%s%s%s\n", c->name,
                                     c->tensor_cores ? ", tensor cores" : "",
                                     c->run_time_compiled ? ", compiled at run time" : "");
    }
    return DM_OK;
}

/* The candidate-th configuration that works, and its plan. */
static dm_status choose(library_convolution *out, unsigned candidate, dm_error *err)
{
    const convolution_library *l = out->library;
    preferences *p = out->from;
    unsigned n = 0;
    for (size_t i = 0; i < p->n_configs; i++) {
        engine_config *c = &p->config[i];
        bool known = c->state == WORKS;
        if (c->state == LEFT_OUT || (known && n++ < candidate))
            continue;
        cudnnStatus_t status;
        descriptor plan = try_plan(l, p, c, &out->workspace, &status);
        if (!plan && cudnn_is_memory(status))
            return cudnn_failure(l, status, c->name, err);
        if (!plan)
            continue;
        if (known || n++ == candidate) {
            out->plan = plan;
            describe(out, c);
            return DM_OK;
        }
        l->api.cudnnBackendDestroyDescriptor(plan);
    }
    char text[PROBLEM_SIZE + 64];
    snprintf(text, sizeof text, "%u of %zu engines offered can be used%s%s", n, p->n_configs,
             p->problem[0] ? "; not, for example, " : "", p->problem);
    return refusal(l, CUDNN_STATUS_NOT_SUPPORTED, text, err);
}

/* Is it one, and one that may be asked for? */
static dm_status check_spec(const convolution_library *library,
                            const library_convolution_spec *spec, dm_error *err)
{
    dm_status status = library_convolution_check(spec, err);
    if (status == DM_OK && spec->tf32 && !convolution_library_tf32_is_sound(library->version))
        status = error_set(err, DM_ERROR_UNSUPPORTED, NULL, "install cuDNN 9.16 or newer",
                           "%s computes 3D convolutions in TF32 wrongly", library->name);
    return status;
}

/* Without a plan yet. */
static dm_status make(convolution_library *library, preferences *from, library_convolution **made,
                      dm_error *err)
{
    *made = calloc(1, sizeof **made);
    if (!*made)
        return error_memory(err, sizeof **made, "a convolution's plan");
    (*made)->library = library;
    (*made)->from = from;
    from->owners++;
    return DM_OK;
}

dm_status library_convolution_create(convolution_library *library,
                                     const library_convolution_spec *spec, unsigned candidate,
                                     library_convolution **convolution, dm_error *err)
{
    library_convolution *c = NULL;
    *convolution = NULL;
    dm_status status = check_spec(library, spec, err);
    if (status == DM_OK)
        status = find_preferences(library, spec, err);
    if (status == DM_OK)
        status = make(library, library->latest, &c, err);
    if (status == DM_OK)
        status = choose(c, candidate, err);
    if (status == DM_OK)
        *convolution = c;
    else
        library_convolution_free(c);
    return status;
}

/* ---- Plans that were found before ----------------------------------------------------------- */

dm_status library_convolution_save(const library_convolution *convolution, char **saved,
                                   dm_error *err)
{
    const cudnn_api *api = &convolution->library->api;
    int64_t size = 0, got = 0;
    *saved = NULL;
    if (api->cudnnBackendGetAttribute(convolution->plan,
                                      CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
                                      CUDNN_TYPE_CHAR, 0, &size, NULL) != CUDNN_STATUS_SUCCESS ||
        size <= 0)
        return DM_OK;
    char *text = calloc((size_t)size + 1, 1);
    if (!text)
        return error_memory(err, (size_t)size + 1, "a convolution's plan");
    if (api->cudnnBackendGetAttribute(convolution->plan,
                                      CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION,
                                      CUDNN_TYPE_CHAR, size, &got, text) == CUDNN_STATUS_SUCCESS)
        *saved = text;
    else
        free(text);
    return DM_OK;
}

/* The engine of a plan, examined as those that the heuristics name. */
static bool examine_plan(const convolution_library *l, preferences *p, descriptor plan)
{
    engine_config *c = &p->config[p->n_configs];
    if (cudnn_get_descriptors(&l->api, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                              CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, 1, &c->config) != 1)
        return false;
    p->n_configs++;
    examine(&l->api, p, c);
    return c->state != LEFT_OUT;
}

/* Is that the name in front of the colon of a description? */
static bool is_engine(const engine_config *c, const char *description)
{
    size_t n = strcspn(description, ":");
    return strlen(c->name) == n && memcmp(c->name, description, n) == 0;
}

/* Leaves c->plan empty where the library does not take it, or it is not what it should be. */
static void restore(library_convolution *c, const char *engine, const char *saved)
{
    const convolution_library *l = c->library;
    builder b = {.library = l};
    int64_t bytes = -1;
    descriptor plan = cudnn_make(&b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set_device(&b, plan);
    cudnn_set(&b, plan, CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
              (int64_t)strlen(saved), saved);
    cudnn_finish(&b, plan, "its plan");
    if (b.status == CUDNN_STATUS_SUCCESS && examine_plan(l, c->from, plan) &&
        is_engine(&c->from->config[0], engine) &&
        cudnn_get(&l->api, plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                  &bytes) == 1 &&
        bytes >= 0 && (uint64_t)bytes <= LIBRARY_CONVOLUTION_MAX_WORKSPACE) {
        c->plan = plan;
        c->workspace = (size_t)bytes;
        describe(c, &c->from->config[0]);
    } else if (plan) {
        l->api.cudnnBackendDestroyDescriptor(plan);
    }
}

static dm_status find_saved(convolution_library *library, const library_convolution_spec *spec,
                            const char *engine, const char *saved,
                            library_convolution **convolution, dm_error *err)
{
    library_convolution *c = NULL;
    preferences *p = calloc(1, sizeof *p);
    if (!p)
        return error_memory(err, sizeof *p, "a convolution's plans");
    p->spec = *spec;
    dm_status status = make(library, p, &c, err);
    if (status != DM_OK) {
        free(p);
        return status;
    }
    restore(c, engine, saved);
    if (c->plan)
        *convolution = c;
    else
        library_convolution_free(c);
    return DM_OK;
}

/* From one of the latest preferences. */
static dm_status find_offered(convolution_library *library, engine_config *config,
                              library_convolution **convolution, dm_error *err)
{
    cudnnStatus_t code = CUDNN_STATUS_SUCCESS;
    library_convolution *c = NULL;
    dm_status status = make(library, library->latest, &c, err);
    if (status != DM_OK)
        return status;
    c->plan = try_plan(library, c->from, config, &c->workspace, &code);
    if (c->plan) {
        describe(c, config);
        *convolution = c;
        return DM_OK;
    }
    library_convolution_free(c);
    return cudnn_is_memory(code) ? cudnn_failure(library, code, config->name, err)
                                 : refusal(library, code, "the engine has none any more", err);
}

dm_status library_convolution_find(convolution_library *library,
                                   const library_convolution_spec *spec, const char *engine,
                                   const char *saved, library_convolution **convolution,
                                   dm_error *err)
{
    *convolution = NULL;
    dm_status status = check_spec(library, spec, err);
    if (status == DM_OK && saved)
        status = find_saved(library, spec, engine, saved, convolution, err);
    if (status != DM_OK || *convolution)
        return status;
    status = find_preferences(library, spec, err);
    for (size_t i = 0; status == DM_OK && i < library->latest->n_configs; i++) {
        engine_config *config = &library->latest->config[i];
        if (config->state != LEFT_OUT && is_engine(config, engine))
            return find_offered(library, config, convolution, err);
    }
    return status == DM_OK
               ? refusal(library, CUDNN_STATUS_NOT_SUPPORTED, "the engine is not offered", err)
               : status;
}

void library_convolution_free(library_convolution *convolution)
{
    if (!convolution)
        return;
    if (convolution->plan)
        convolution->library->api.cudnnBackendDestroyDescriptor(convolution->plan);
    cudnn_release(convolution->library, convolution->from);
    free(convolution);
}

const library_convolution_spec *library_convolution_spec_of(const library_convolution *convolution)
{
    return &convolution->from->spec;
}

size_t library_convolution_workspace(const library_convolution *convolution)
{
    return convolution->workspace;
}

const char *library_convolution_describe(const library_convolution *convolution)
{
    return convolution->text;
}

dm_status library_convolution_run(const library_convolution *convolution, const void *x,
                                  const void *weight, const float *bias, const void *residual,
                                  void *y, void *workspace, cudaStream_t stream, dm_error *err)
{
    const convolution_library *l = convolution->library;
    const library_convolution_spec *s = &convolution->from->spec;
    if (!l->handle)
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, NULL,
                         "cuDNN was opened without a device: plans cannot run");
    int64_t uid[5] = {UID_X, UID_WEIGHT, UID_Y}, n = 3;
    const void *data[5] = {x, weight, y};
    if (s->bias) {
        uid[n] = UID_BIAS;
        data[n++] = bias;
    }
    if (s->residual) {
        uid[n] = UID_RESIDUAL;
        data[n++] = residual;
    }
    builder b = {.library = l};
    descriptor pack = cudnn_make(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    cudnn_set(&b, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uid);
    cudnn_set(&b, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, data);
    cudnn_set(&b, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    cudnn_finish(&b, pack, "its data");
    if (b.status == CUDNN_STATUS_SUCCESS)
        cudnn_note(&b, l->api.cudnnSetStream(l->handle, stream), "its stream");
    if (b.status == CUDNN_STATUS_SUCCESS)
        cudnn_note(&b, l->api.cudnnBackendExecute(l->handle, convolution->plan, pack),
                   "running it");
    if (pack)
        l->api.cudnnBackendDestroyDescriptor(pack);
    return b.status == CUDNN_STATUS_SUCCESS ? DM_OK : cudnn_failure(l, b.status, b.problem, err);
}
