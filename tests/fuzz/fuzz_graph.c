/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A graph in JSON, as far as running it. An input is
 *
 *     {"graph": {...}, "weights": {"conv.weight": [2, 1, 3, 3, 3], ...}}
 *
 * with shapes only: values are made here, those of a name with "var" positive. A graph that is
 * accepted is planned for one of its outputs, plainly and optimised, and where that is cheap and well
 * conditioned the interpreter and the CPU's network must find the same result by each plan.
 */
#include <math.h>

#include "base/error.h"
#include "base/json_text.h"
#include "compare.h"
#include "fuzz_file.h"
#include "fuzz_graph.h"
#include "model/graph_parse.h"
#include "plan_interpreter.h"
#include "predict/cpu/network.h"

#define MOST_WEIGHTS ((size_t)1 << 14)
#define MOST_BYTES ((size_t)1 << 22) /* of an arena that is run */
#define MOST_TAPS 2e5                /* reads of all elements of a run */
#define MOST_VALUE 1e6f              /* beyond it, rounding rules the comparison */
#define LEAST_EPSILON 1e-3f          /* below it, a norm of equal voxels blows up their rounding */

/* ---- Weights -------------------------------------------------------------------------------- */

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void fill_tensor(const safetensors *file, const stored_tensor *tensor)
{
    uint32_t state = (uint32_t)tensor->begin + 7;
    for (size_t i = 0; i < tensor->count; i++) {
        float value = (float)next_random(&state) / 8388608.0f - 1.0f;
        if (strstr(tensor->name, "var"))
            value = fabsf(value) + 0.5f;
        memcpy(file->data + tensor->begin + i * sizeof value, &value, sizeof value);
    }
}

static bool make_tensor(const char *name, const json_t *shape, stored_tensor *tensor)
{
    *tensor = (stored_tensor){.name = name, .type = TENSOR_F32, .count = 1};
    tensor->rank = json_array_size(shape);
    bool ok =
        json_is_array(shape) && tensor->rank <= SAFETENSORS_MAX_RANK && *name && strlen(name) < 256;
    for (const char *c = name; *c; c++)
        ok = ok && (unsigned char)*c >= 0x20 && *c != 0x7f;
    for (size_t i = 0; ok && i < tensor->rank; i++) {
        json_int_t n = json_integer_value(json_array_get(shape, i));
        ok = n >= 1 && n <= (json_int_t)MOST_WEIGHTS;
        tensor->shape[i] = ok ? (size_t)n : 1;
        tensor->count *= tensor->shape[i];
        ok = ok && tensor->count <= MOST_WEIGHTS;
    }
    return ok;
}

/* What safetensors_read would give for these shapes; false: it would have refused them, or too
 * large for a fuzzer. */
static bool make_weights(const json_t *shapes, safetensors *file)
{
    const char *name;
    json_t *shape;
    size_t n = json_object_size(shapes);
    memset(file, 0, sizeof *file);
    file->tensors = calloc(n + 1, sizeof *file->tensors);
    FUZZ_CHECK(file->tensors);
    json_object_foreach((json_t *)shapes, name, shape)
    {
        stored_tensor *tensor = &file->tensors[file->n_tensors++];
        if (!make_tensor(name, shape, tensor))
            return false;
        tensor->begin = file->data_size;
        tensor->end = file->data_size += tensor->count * sizeof(float);
        if (file->data_size > MOST_WEIGHTS * sizeof(float))
            return false;
    }
    file->data = malloc(file->data_size + 1);
    FUZZ_CHECK(file->data);
    for (size_t i = 0; i < file->n_tensors; i++)
        fill_tensor(file, &file->tensors[i]);
    return true;
}

bool fuzz_graph_parse(const json_t *root, graph *g)
{
    safetensors weights;
    dm_error err = {0};
    bool made = false;
    if (make_weights(json_object_get(root, "weights"), &weights)) {
        dm_status status = graph_parse(json_object_get(root, "graph"), &weights, "input", g, &err);
        FUZZ_CHECK(status == DM_OK || (err.what[0] && err.status == status));
        made = status == DM_OK;
    }
    safetensors_clear(&weights);
    return made;
}

/* ---- Plans ---------------------------------------------------------------------------------- */

/* Of what a plan is made, but for type, views and whether it is optimised. */
typedef struct plan_source {
    const graph *g;
    const size_t *tile;
    size_t output;
} plan_source;

static plan *make_plan(const plan_source *from, element_type type, bool optimise, unsigned views)
{
    plan *p = NULL;
    dm_error err = {0};
    plan_options options = {.type = type,
                            .conv_reads_views = views & 1,
                            .conv_writes_views = views & 2,
                            .optimise = optimise,
                            .output = from->output};
    memcpy(options.tile, from->tile, sizeof options.tile);
    dm_status status = plan_build(from->g, &options, &p, &err);
    fuzz_check_result(status, p, &err);
    return p;
}

static double tensor_elements(const plan_tensor *t)
{
    return (double)t->dim[0] * (double)t->dim[1] * (double)t->dim[2] * (double)t->channels;
}

static bool is_cheap(const plan *p)
{
    double taps = 0;
    for (size_t s = 0; s < p->n_steps; s++) {
        const plan_step *step = &p->steps[s];
        double each = 1 + (double)step->n_chain;
        for (int a = 0; a < 3 && step->node; a++)
            each *= step->node->kernel[a];
        if (step->kind == STEP_CONV || step->kind == STEP_CONV_TRANSPOSE)
            each *= (double)p->tensors[step->in].channels;
        taps +=
            each * tensor_elements(&p->tensors[step->out]) + tensor_elements(&p->tensors[step->in]);
    }
    return taps <= MOST_TAPS && p->arena_bytes <= MOST_BYTES;
}

static bool is_well_made(const graph *g)
{
    bool ok = true;
    for (size_t n = 0; n < g->n_nodes; n++) {
        op_kind op = g->nodes[n].op;
        bool norm = op == OP_BATCH_NORM || op == OP_INSTANCE_NORM || op == OP_GROUP_NORM;
        ok = ok && (!norm || g->nodes[n].epsilon >= LEAST_EPSILON);
    }
    return ok;
}

static float *make_input(const plan *p)
{
    const plan_tensor *t = &p->tensors[p->input];
    size_t n = tensor_voxels(t) * t->channels;
    float *input = malloc(n * sizeof *input);
    uint32_t state = 1;
    FUZZ_CHECK(input);
    for (size_t i = 0; i < n; i++)
        input[i] = (float)next_random(&state) / 8388608.0f - 1.0f;
    return input;
}

typedef struct result {
    float *values;
    size_t n;
    float largest, largest_inside; /* of the output; of all steps, INFINITY if not finite */
} result;

static float largest_of(const float *values, size_t n)
{
    float largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fabsf(values[i]) <= MOST_VALUE ? fmaxf(largest, fabsf(values[i])) : INFINITY;
    return largest;
}

/* The plain plan step by step: nothing lies over anything there. */
static result run_plain(const plan *p, const float *input)
{
    result r = {0};
    const plan_tensor *out = &p->tensors[p->output];
    unsigned char *arena = malloc(p->arena_bytes);
    FUZZ_CHECK(arena);
    memset(arena, 0xff, p->arena_bytes);
    tensor_fill(&p->tensors[p->input], arena, input);
    for (size_t s = 0; s < p->n_steps; s++) {
        const plan_tensor *t = &p->tensors[p->steps[s].out];
        interpret_step(p, &p->steps[s], arena);
        for (size_t v = 0; v < tensor_voxels(t); v++)
            for (size_t c = 0; c < t->channels; c++) {
                size_t at = (v * t->pitch + t->channel_start + c) * element_size(t->type);
                float value = (float)element_load(t->type, arena + t->offset + at);
                r.largest_inside = fmaxf(r.largest_inside, largest_of(&value, 1));
            }
    }
    r.n = tensor_voxels(out) * out->channels;
    r.values = malloc(r.n * sizeof *r.values);
    FUZZ_CHECK(r.values);
    tensor_read(out, arena, r.values);
    r.largest = largest_of(r.values, r.n);
    free(arena);
    return r;
}

/* Half precision shows how much rounding can do: where it does much, float32 is not compared. */
static bool is_well_conditioned(const plan_source *from, const float *input, const result *r)
{
    plan *half = make_plan(from, ELEMENT_BF16, false, 3);
    FUZZ_CHECK(half);
    result rough = run_plain(half, input);
    double worst = 0;
    for (size_t i = 0; i < r->n; i++)
        worst = fmax(worst, fabs((double)rough.values[i] - (double)r->values[i]));
    free(rough.values);
    plan_free(half);
    return isfinite(r->largest_inside) && isfinite(rough.largest_inside) &&
           worst <= 0.25 * (double)r->largest;
}

static void check_values(const float *values, const result *r, const char *by)
{
    double atol = 1e-3 * (double)r->largest + 1e-5 * (double)r->largest_inside;
    if (!arrays_close(values, r->n, r->values, r->n, atol, 0)) {
        fprintf(stderr, "%s: another result than the plain plan\n", by);
        abort();
    }
}

/* oneDNN has no transposed convolution whose result goes a whole stride beyond its taps, as output
 * padding without padding can ask for where the dilation is larger than the stride. */
static bool may_be_unsupported(const graph *g)
{
    for (size_t n = 0; n < g->n_nodes; n++)
        for (int a = 0; a < 3; a++) {
            const graph_node *node = &g->nodes[n];
            if (node->op == OP_CONV_TRANSPOSE &&
                node->output_padding[a] - node->pad_end[a] >= node->stride[a])
                return true;
        }
    return false;
}

static void run_network(const plan *p, const float *input, const result *r)
{
    network *net = NULL;
    worker *w = NULL;
    dm_error err = {0};
    dm_status status = network_create(p, 1, &net, &err);
    fuzz_check_result(status, net, &err);
    if (status == DM_ERROR_UNSUPPORTED && may_be_unsupported(p->graph))
        return;
    FUZZ_CHECK(status == DM_OK);
    FUZZ_CHECK(worker_create(net, &w, &err) == DM_OK);
    memset(worker_arena(w), 0xff, p->arena_bytes);
    tensor_fill(&p->tensors[p->input], worker_arena(w), input);
    FUZZ_CHECK(worker_run(w, &err) == DM_OK);
    check_values(worker_output(w), r, "the CPU's network");
    worker_free(w);
    network_free(net);
}

static void run_optimised(const plan_source *from, const float *input, const result *r,
                          size_t which)
{
    plan_options cpu = {0};
    network_plan_needs(&cpu);
    unsigned views = (cpu.conv_reads_views ? 1u : 0u) | (cpu.conv_writes_views ? 2u : 0u);
    float *output = malloc(r->n * sizeof *output);
    plan *p = make_plan(from, ELEMENT_F32, true, which % 4);
    FUZZ_CHECK(p && output);
    interpret_plan(p, input, output);
    check_values(output, r, "the interpreter");
    plan_free(p);
    if (which % 3 == 0) { /* oneDNN makes its kernels anew each time, which is slow */
        p = make_plan(from, ELEMENT_F32, true, views);
        FUZZ_CHECK(p);
        run_network(p, input, r);
        plan_free(p);
    }
    free(output);
}

static void plan_and_run(const graph *g, const size_t tile[3], size_t which)
{
    const plan_source from = {g, tile, which % g->n_outputs};
    plan *plain = make_plan(&from, ELEMENT_F32, false, 3);
    for (unsigned views = 0; views < 4; views++) {
        plan *p = make_plan(&from, views % 2 ? ELEMENT_BF16 : ELEMENT_F32, true, views);
        FUZZ_CHECK(!p == !plain);
        /* Of half the size, but the output may need a copy to convert. */
        FUZZ_CHECK(!p || p->options.type != ELEMENT_F32 || p->arena_bytes <= plain->arena_bytes);
        plan_free(p);
    }
    if (plain && is_cheap(plain) && is_well_made(g)) {
        float *input = make_input(plain);
        result r = run_plain(plain, input);
        if (is_well_conditioned(&from, input, &r))
            run_optimised(&from, input, &r, which);
        free(r.values);
        free(input);
    }
    plan_free(plain);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *root = NULL;
    graph g;
    dm_error err = {0};
    if (json_parse((const char *)data, size, "input", &root, &err) == DM_OK &&
        fuzz_graph_parse(root, &g)) {
        size_t which = 0, tile[3];
        for (size_t i = 0; i < size; i++)
            which = which * 31 + data[i];
        for (size_t a = 0; a < 3; a++)
            tile[a] = g.patch[2 - a];
        plan_and_run(&g, tile, which);
        tile[which % 3] += g.total_stride[which % 3];
        plan_and_run(&g, tile, which / 3);
        graph_clear(&g);
    }
    json_decref(root);
    return 0;
}
