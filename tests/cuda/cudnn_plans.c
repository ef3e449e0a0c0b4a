/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Has cuDNN a plan for every convolution of the shipped networks? Asked for devices that are not
 * there, in every type and batch size; fails if one has none. Which engines it chooses is printed,
 * or written as the tables in bench/results/.
 *
 *     cudnn_plans [--joined] DEVICE_FOLDER WEIGHTS_FOLDER [TABLE]
 *
 * --joined: bias, residual and activation joined to the convolution, which cuDNN compiles at run
 * time for the most part. Without a driver the engines can be listed, not made; what is tested is
 * that asking for them ends in a plan or in DM_ERROR_UNSUPPORTED.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/plan.h"
#include "predict/cuda/library_convolution.h"

/* As the executor has it: below, own kernels are better. */
#define MIN_CHANNELS 5
#define MAX_LAYERS 64
#define MAX_COUNTED 8

static const char *const weights_files[] = {"dosegan-constructed.safetensors.zst",
                                            "dosegan-16-constructed.safetensors.zst"};
static const char *const device_files[] = {"device_sm80.json", "device_sm90.json",
                                           "device_sm100.json"};
static const unsigned batches[] = {1, 8, 64};
enum { N_WEIGHTS = 2, N_DEVICES = 3, N_BATCHES = 3, N_TYPES = 4 };
static const struct {
    const char *name;
    element_type type;
    bool tf32;
} types[N_TYPES] = {{"float32", ELEMENT_F32, false},
                    {"tf32", ELEMENT_F32, true},
                    {"bf16", ELEMENT_BF16, false},
                    {"fp16", ELEMENT_F16, false}};

/* A convolution, and the layers that have it. */
typedef struct layer {
    library_convolution_spec spec;
    char names[1024];
} layer;

typedef struct table {
    FILE *out;
    bool joined;
    size_t asked, missing;
} table;

/* ---- The networks' convolutions ------------------------------------------------------------- */

static void *stop(const char *what, const char *why)
{
    fprintf(stderr, "cudnn_plans: %s: %s\n", what, why);
    exit(1);
}

static dm_model *load_model(const char *folder, const char *file)
{
    char path[4096];
    dm_model *model = NULL;
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return dm_model_load(path, &model, &err) == DM_OK ? model : stop(path, err.what);
}

static bool same_tensor(const plan_tensor *a, const plan_tensor *b)
{
    return a->channels == b->channels && memcmp(a->dim, b->dim, sizeof a->dim) == 0;
}

/* What of the step's chain fits y = act(conv + bias + residual). */
static void join(const plan *p, const plan_step *step, library_convolution_spec *spec)
{
    size_t next = 0;
    spec->bias = step->bias != NULL;
    if (next < step->n_chain && step->chain[next].op == CHAIN_ADD_TENSOR &&
        same_tensor(&p->tensors[step->chain[next].tensor], &p->tensors[step->out])) {
        spec->residual = true;
        next++;
    }
    if (next < step->n_chain &&
        (step->chain[next].op == CHAIN_RELU || step->chain[next].op == CHAIN_LEAKY_RELU)) {
        spec->activate = true;
        spec->slope = step->chain[next].op == CHAIN_RELU ? 0 : step->chain[next].alpha;
    }
}

/* A transposed convolution whose kernel is its stride is a product: all taps' channels of a voxel. */
static bool spec_of(const plan *p, const plan_step *step, library_convolution_spec *spec)
{
    const graph_node *node = step->node;
    const plan_tensor *in = &p->tensors[step->in], *out = &p->tensors[step->out];
    bool product = step->kind == STEP_CONV_TRANSPOSE && conv_is_voxelwise(node);
    if ((step->kind != STEP_CONV && !product) || node->groups != 1)
        return false;
    size_t taps = 1;
    *spec = (library_convolution_spec){.in_channels = in->channels, .groups = 1};
    for (int a = 0; a < 3; a++) {
        taps *= (size_t)node->kernel[a];
        spec->in_dim[a] = in->dim[a];
        spec->out_dim[a] = product ? in->dim[a] : out->dim[a];
        spec->kernel[a] = product ? 1 : node->kernel[a];
        spec->stride[a] = product ? 1 : node->stride[a];
        spec->dilation[a] = node->dilation[a];
        spec->pad_begin[a] = product ? 0 : node->pad_begin[a];
        spec->pad_end[a] = product ? 0 : node->pad_end[a];
    }
    spec->out_channels = out->channels * (product ? taps : 1);
    return spec->in_channels >= MIN_CHANNELS && spec->out_channels >= MIN_CHANNELS;
}

static size_t add_layer(layer *layers, size_t n, const library_convolution_spec *spec,
                        const char *name)
{
    size_t i = 0;
    while (i < n && !library_convolution_same(&layers[i].spec, spec))
        i++;
    if (i == MAX_LAYERS)
        stop(name, "too many layers");
    size_t used = i < n ? strlen(layers[i].names) : 0;
    layers[i].spec = *spec;
    snprintf(layers[i].names + used, sizeof layers[i].names - used, "%s%s", used ? ", " : "", name);
    return i < n ? n : n + 1;
}

/* Equal ones once; type and batch are left open. */
static size_t find_layers(const dm_model *model, bool joined, layer *layers)
{
    plan_options options = {.type = ELEMENT_F32, .optimise = true};
    for (int a = 0; a < 3; a++)
        options.tile[a] = model->graph.patch[2 - a];
    plan *p = NULL;
    dm_error err = {0};
    if (plan_build(&model->graph, &options, &p, &err) != DM_OK)
        stop(dm_model_name(model), err.what);
    size_t n = 0;
    for (size_t i = 0; i < p->n_steps; i++) {
        const plan_step *step = &p->steps[i];
        library_convolution_spec spec;
        if (!spec_of(p, step, &spec))
            continue;
        if (joined && step->kind == STEP_CONV)
            join(p, step, &spec);
        if (!joined || spec.bias || spec.residual || spec.activate)
            n = add_layer(layers, n, &spec, step->name);
    }
    plan_free(p);
    return n;
}

/* ---- Asking --------------------------------------------------------------------------------- */

static void shape_text(const library_convolution_spec *s, char *text, size_t size)
{
    snprintf(text, size, "%zu to %zu, %dx%dx%d stride %d, %zux%zux%zu%s%s%s", s->in_channels,
             s->out_channels, s->kernel[0], s->kernel[1], s->kernel[2], s->stride[0], s->in_dim[0],
             s->in_dim[1], s->in_dim[2], s->bias ? " + bias" : "", s->residual ? " + residual" : "",
             s->activate ? " + activation" : "");
}

/* Does a plan keep the promises of the header? */
static void check_plan(const library_convolution *c, const library_convolution_spec *s)
{
    if (library_convolution_workspace(c) > LIBRARY_CONVOLUTION_MAX_WORKSPACE)
        stop(library_convolution_describe(c), "its workspace is beyond the limit");
    if (s->type == ELEMENT_F32 && !s->tf32 && strstr(library_convolution_describe(c), "tensor"))
        stop(library_convolution_describe(c), "it rounds float32 factors");
}

/* Candidates that work, up to MAX_COUNTED; `first` describes the preferred one. */
static unsigned count_plans(convolution_library *l, const library_convolution_spec *s, char *first,
                            size_t size)
{
    unsigned n = 0;
    dm_status status = DM_OK;
    dm_error err = {0};
    snprintf(first, size, "none");
    for (; n < MAX_COUNTED && status == DM_OK; n += status == DM_OK) {
        library_convolution *c = NULL;
        status = library_convolution_create(l, s, n, &c, &err);
        if (status == DM_OK && n == 0)
            snprintf(first, size, "%s", library_convolution_describe(c));
        if (status == DM_OK)
            check_plan(c, s);
        else if (status != DM_ERROR_UNSUPPORTED)
            stop("refused in another way than by UNSUPPORTED", err.what);
        library_convolution_free(c);
    }
    return n;
}

/* One cell of the table. */
static void ask_alone(table *t, convolution_library *l, const char *row,
                      const library_convolution_spec *s)
{
    char first[512];
    unsigned n = count_plans(l, s, first, sizeof first);
    t->asked++;
    t->missing += n == 0;
    fprintf(t->out, "\t%s", first);
    if (n == 0)
        fprintf(stderr, "no plan: %s, batch %u\n", row, s->samples);
}

/* "eng7_k24=21, tensor cores, compiled at run time\n..." -> the first, and how many. */
static void ask_joined(table *t, convolution_library *l, const char *row,
                       const library_convolution_spec *s)
{
    char text[8192];
    dm_error err = {0};
    if (library_convolution_offers(l, s, text, sizeof text, &err) != DM_OK)
        stop(row, err.what);
    size_t n = 0;
    for (const char *c = text; *c; c++)
        n += *c == '\n';
    text[strcspn(text, "\n")] = '\0';
    t->asked++;
    t->missing += n == 0;
    fprintf(t->out, "\t%s\t%zu", n ? text : "none", n);
}

static void ask_layers(table *t, const char *device, convolution_library *l, const dm_model *model)
{
    static layer layers[MAX_LAYERS];
    size_t n = find_layers(model, t->joined, layers);
    if (n == 0)
        stop(dm_model_name(model), "no convolution is for cuDNN");
    for (size_t i = 0; i < n; i++)
        for (size_t type = 0; type < N_TYPES; type++) {
            library_convolution_spec s = layers[i].spec;
            char shape[160], row[2048];
            s.type = types[type].type;
            s.tf32 = types[type].tf32;
            shape_text(&s, shape, sizeof shape);
            snprintf(row, sizeof row, "%s\t%s\t%s\t%s\t%s", device, model->graph.name,
                     layers[i].names, shape, types[type].name);
            fprintf(t->out, "%s", row);
            for (size_t b = 0; b < N_BATCHES; b++) {
                s.samples = batches[b];
                /* The batch changes little in which joined engines there are. */
                if (t->joined && s.samples == 8)
                    ask_joined(t, l, row, &s);
                else if (!t->joined)
                    ask_alone(t, l, row, &s);
            }
            fprintf(t->out, "\n");
        }
}

/* ---- What must hold besides ----------------------------------------------------------------- */

static library_convolution_spec example(element_type type)
{
    library_convolution_spec s = {.type = type,
                                  .samples = 8,
                                  .in_channels = 32,
                                  .out_channels = 32,
                                  .groups = 1,
                                  .slope = 0.2f};
    for (int a = 0; a < 3; a++) {
        s.in_dim[a] = s.out_dim[a] = 16;
        s.kernel[a] = 3;
        s.stride[a] = s.dilation[a] = s.pad_begin[a] = s.pad_end[a] = 1;
    }
    return s;
}

/* The choice for a spec depends on nothing that was asked before. */
static void check_repeatable(convolution_library *l)
{
    char first[512], second[512], between[512];
    library_convolution_spec a = example(ELEMENT_BF16), b = example(ELEMENT_F16);
    count_plans(l, &a, first, sizeof first);
    count_plans(l, &b, between, sizeof between);
    count_plans(l, &a, second, sizeof second);
    if (strcmp(first, second))
        stop(first, "asked again, another engine is preferred");
}

static void check_refusals(convolution_library *l)
{
    convolution_library *other = NULL;
    library_convolution *c = NULL;
    library_convolution_spec s = example(ELEMENT_BF16);
    dm_error err = {0};
    if (convolution_library_open_for("{}", &other, &err) != DM_ERROR_VALUE || other || !err.what[0])
        stop("no device", "a description without content was taken");
    if (library_convolution_create(l, &s, 1000, &c, &err) != DM_ERROR_UNSUPPORTED || c)
        stop("candidate 1000", "there is such a plan");
    s.out_dim[0] = 15;
    if (library_convolution_create(l, &s, 0, &c, &err) != DM_ERROR_UNSUPPORTED || c)
        stop("an impossible size", "there is such a plan");
    s = example(ELEMENT_BF16);
    if (library_convolution_create(l, &s, 0, &c, &err) != DM_OK ||
        library_convolution_run(c, &s, &s, NULL, NULL, &s, NULL, NULL, &err) !=
            DM_ERROR_UNSUPPORTED)
        stop("a plan without a device", "it ran");
    library_convolution_free(c);
}

/* Plan or refusal, and nothing else. Once: compiling takes seconds. */
static void check_joined(convolution_library *l)
{
    library_convolution_spec s = example(ELEMENT_BF16);
    library_convolution *c = NULL;
    dm_error err = {0};
    s.bias = s.activate = true;
    dm_status status = library_convolution_create(l, &s, 0, &c, &err);
    printf("joined, made without a driver: %s\n",
           status == DM_OK ? library_convolution_describe(c) : err.what);
    if (status != DM_OK && status != DM_ERROR_UNSUPPORTED)
        stop("a joined plan", err.what);
    library_convolution_free(c);
    s.precompiled = true;
    char text[8192];
    status = library_convolution_offers(l, &s, text, sizeof text, &err);
    if (status != DM_OK || strstr(text, "compiled"))
        stop("precompiled engines", status == DM_OK ? text : err.what);
}

/* ---- All of it ------------------------------------------------------------------------------ */

static convolution_library *open_device(const char *folder, const char *file)
{
    char path[4096], text[8192];
    convolution_library *l = NULL;
    dm_error err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, file);
    FILE *f = fopen(path, "rb");
    if (!f)
        stop(path, "cannot be opened");
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    return convolution_library_open_for(text, &l, &err) == DM_OK ? l : stop(path, err.what);
}

/* A driver's library is needed to list engines compiled at run time; the toolkit's stub does. */
static bool load_driver(void)
{
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL))
        return true;
#ifdef DOSEMAP_CUDA_STUBS
    return dlopen(DOSEMAP_CUDA_STUBS "/libcuda.so", RTLD_NOW | RTLD_GLOBAL) != NULL;
#else
    return false;
#endif
}

static void fill_table(table *t, const char *version, const char *devices, const char *weights)
{
    fprintf(t->out, "device (cuDNN %s)\tnetwork\tlayers\tconvolution\ttype\t%s\n", version,
            t->joined ? "engine offered first, batch 8\tengines offered"
                      : "batch 1\tbatch 8\tbatch 64");
    for (size_t d = 0; d < N_DEVICES; d++) {
        char name[16];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(device_files[d] + 7, "."),
                 device_files[d] + 7);
        convolution_library *l = open_device(devices, device_files[d]);
        if (!t->joined)
            check_refusals(l);
        if (!t->joined)
            check_repeatable(l);
        else if (d == 1)
            check_joined(l);
        for (size_t w = 0; w < N_WEIGHTS; w++) {
            dm_model *model = load_model(weights, weights_files[w]);
            ask_layers(t, name, l, model);
            dm_model_free(model);
        }
        convolution_library_free(l);
    }
}

int main(int argc, char **argv)
{
    table t = {.out = stdout, .joined = argc > 1 && strcmp(argv[1], "--joined") == 0};
    char version[32];
    dm_error err = {0};
    argv += t.joined;
    argc -= t.joined;
    if (argc < 3 || argc > 4)
        stop("usage", "cudnn_plans [--joined] DEVICE_FOLDER WEIGHTS_FOLDER [TABLE]");
    if (t.joined && !load_driver()) {
        printf("skipped: no libcuda.so.1, and no stub of it\n");
        return 77;
    }
    if (convolution_library_probe(version, &err) != DM_OK)
        stop("cuDNN", err.what);
    if (argc > 3 && !(t.out = fopen(argv[3], "w")))
        stop(argv[3], "cannot be written");
    fill_table(&t, version, argv[1], argv[2]);
    if (t.out != stdout && fclose(t.out))
        stop(argv[3], "cannot be written");
    printf("cuDNN %s: %zu convolutions asked for, %zu without %s\n", version, t.asked, t.missing,
           t.joined ? "an engine" : "a plan");
    return t.missing > 0 && !t.joined;
}
