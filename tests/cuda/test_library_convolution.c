/* SPDX-License-Identifier: Apache-2.0 */
/* What all implementations of library_convolution.h check alike, and the one that stands in for
 * cuDNN where CUDA is emulated: it must be right before anything is compared with it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "compare.h"
#include "emulation.h"
#include "library_convolution_reference.h"
#include "plan_interpreter.h"
#include "predict/cuda/library_convolution.h"

enum { GUARD = 64 };

/* ---- Specs and versions --------------------------------------------------------------------- */

static library_convolution_spec spec_of(size_t in, size_t out, const size_t dim[3], int kernel,
                                        int stride, int pad)
{
    library_convolution_spec s = {
        .samples = 1, .in_channels = in, .out_channels = out, .groups = 1, .slope = 0.2f};
    for (int a = 0; a < 3; a++) {
        s.in_dim[a] = dim[a];
        s.kernel[a] = kernel;
        s.stride[a] = stride;
        s.dilation[a] = 1;
        s.pad_begin[a] = s.pad_end[a] = pad;
        s.out_dim[a] = (dim[a] + (size_t)(2 * pad - kernel)) / (size_t)stride + 1;
    }
    return s;
}

static const size_t cube8[3] = {8, 8, 8};

static void check_refused(library_convolution_spec s, const char *word)
{
    dm_error err = {0};
    assert_int_equal(library_convolution_check(&s, &err), DM_ERROR_UNSUPPORTED);
    if (!strstr(err.what, word))
        fail_msg("'%s' is not in '%s'", word, err.what);
}

#define REFUSED(change, word)                                                                      \
    do {                                                                                           \
        library_convolution_spec s = spec_of(8, 8, cube8, 3, 1, 1);                                \
        change;                                                                                    \
        check_refused(s, word);                                                                    \
    } while (0)

static void test_nonsense_is_refused(void **state)
{
    (void)state;
    library_convolution_spec good = spec_of(8, 8, cube8, 3, 1, 1);
    assert_int_equal(library_convolution_check(&good, NULL), DM_OK);
    REFUSED(s.type = (element_type)7, "element type is 7");
    REFUSED((s.type = ELEMENT_BF16, s.tf32 = true), "TF32");
    REFUSED(s.samples = 0, "samples is 0");
    REFUSED(s.in_channels = 0, "input channels is 0");
    REFUSED(s.out_channels = 0, "output channels is 0");
    REFUSED(s.groups = 0, "groups is 0");
    REFUSED(s.groups = 3, "input channels is 8");
    REFUSED((s.groups = 4, s.out_channels = 6), "output channels is 6");
    REFUSED(s.in_dim[1] = 0, "input's extent is 0");
    REFUSED(s.kernel[2] = 0, "kernel's extent is 0");
    REFUSED(s.stride[0] = -1, "stride is -1");
    REFUSED(s.dilation[0] = 0, "dilation is 0");
    REFUSED(s.pad_begin[0] = -1, "padding before is -1");
    REFUSED(s.pad_end[2] = -2, "padding behind is -2");
    REFUSED(s.out_dim[0] = 9, "is 9");
    REFUSED((s.kernel[0] = 11, s.out_dim[0] = 0), "output's extent");
    REFUSED((s.activate = true, s.slope = NAN), "slope");
    REFUSED(s.samples = 1u << 22, "the input has 2^31");
    REFUSED((s.samples = 1u << 17, s.out_channels = 32), "the output has 2^31");
    REFUSED(s.samples = UINT32_MAX, "2^31");
    /* Without an activation its slope says nothing. */
    good.slope = NAN;
    assert_int_equal(library_convolution_check(&good, NULL), DM_OK);
}

static void check_version(size_t version, bool fit, const char *words)
{
    dm_error err = {0};
    assert_int_equal(convolution_library_check_version(version, &err),
                     fit ? DM_OK : DM_ERROR_DEVICE);
    if (!fit && (!strstr(err.what, words) || !err.remedy[0]))
        fail_msg("'%s' is not in '%s'; %s", words, err.what, err.remedy);
}

static void test_versions(void **state)
{
    (void)state;
    char text[32];
    check_version(8907, false, "found cuDNN 8.9.7, needed is at least 9.15");
    check_version(90701, false, "found cuDNN 9.7.1, needed is at least 9.15");
    check_version(90800, false, "bfloat16");
    check_version(91499, false, "found cuDNN 9.14.99");
    check_version(91500, true, "");
    check_version(91900, true, "");
    check_version(100000, false, "found cuDNN 10.0.0");
    assert_false(convolution_library_tf32_is_sound(91002));
    assert_false(convolution_library_tf32_is_sound(91500));
    assert_true(convolution_library_tf32_is_sound(91600));
    convolution_library_version_text(91904, text);
    assert_string_equal(text, "9.19.4");
}

static void test_same_specs(void **state)
{
    (void)state;
    library_convolution_spec a = spec_of(8, 8, cube8, 3, 1, 1), b = a;
    b.slope = 0.5f;
    assert_true(library_convolution_same(&a, &b));
    a.activate = b.activate = true;
    assert_false(library_convolution_same(&a, &b));
    b = a;
    b.dilation[2] = 2;
    assert_false(library_convolution_same(&a, &b));
    b = a;
    b.precompiled = true;
    assert_false(library_convolution_same(&a, &b));
    b = a;
    b.residual = true;
    assert_false(library_convolution_same(&a, &b));
}

/* ---- Operands ------------------------------------------------------------------------------- */

/* Pinned memory, which host and device touch alike, between guard zones; NaN bytes everywhere. */
typedef struct buffer {
    unsigned char *block, *data;
    size_t bytes;
} buffer;

static buffer buffer_of(size_t bytes)
{
    buffer b = {.bytes = bytes};
    void *block;
    assert_int_equal(cudaMallocHost(&block, bytes + 2 * GUARD), cudaSuccess);
    memset(block, 0xff, bytes + 2 * GUARD);
    b.block = block;
    b.data = b.block + GUARD;
    return b;
}

static void buffer_free(buffer *b)
{
    for (size_t i = 0; i < GUARD; i++) {
        assert_int_equal(b->block[i], 0xff);
        assert_int_equal(b->data[b->bytes + i], 0xff);
    }
    assert_int_equal(cudaFreeHost(b->block), cudaSuccess);
}

/* Values that every element type holds exactly. */
static double value_at(size_t i, unsigned seed)
{
    uint64_t h = (i + 1) * UINT64_C(0x9e3779b97f4a7c15) + seed * UINT64_C(0xbf58476d1ce4e5b9);
    h ^= h >> 29;
    h *= UINT64_C(0x94d049bb133111eb);
    return (double)((long)(h >> 32 & 127) - 63) / 64;
}

static void fill(buffer *b, element_type type, unsigned seed)
{
    for (size_t i = 0; i < b->bytes / element_size(type); i++)
        element_store(type, b->data + i * element_size(type), value_at(i, seed));
}

typedef struct operands {
    buffer x, weight, bias, residual, y, workspace;
} operands;

static size_t voxels(const size_t dim[3])
{
    return dim[0] * dim[1] * dim[2];
}

static operands operands_of(const library_convolution_spec *s, size_t workspace)
{
    size_t e = element_size(s->type);
    size_t taps = (size_t)s->kernel[0] * (size_t)s->kernel[1] * (size_t)s->kernel[2];
    size_t out = s->samples * voxels(s->out_dim) * s->out_channels;
    operands o = {buffer_of(s->samples * voxels(s->in_dim) * s->in_channels * e),
                  buffer_of(s->out_channels * taps * (s->in_channels / (size_t)s->groups) * e),
                  buffer_of(s->out_channels * sizeof(float)),
                  buffer_of(out * e),
                  buffer_of(out * e),
                  buffer_of(workspace)};
    fill(&o.x, s->type, 1);
    fill(&o.weight, s->type, 2);
    fill(&o.bias, ELEMENT_F32, 3);
    fill(&o.residual, s->type, 4);
    return o;
}

static void operands_free(operands *o)
{
    buffer_free(&o->x);
    buffer_free(&o->weight);
    buffer_free(&o->bias);
    buffer_free(&o->residual);
    buffer_free(&o->y);
    buffer_free(&o->workspace);
}

static dm_status run(const library_convolution *c, const library_convolution_spec *s,
                     const operands *o, cudaStream_t stream, dm_error *err)
{
    return library_convolution_run(
        c, o->x.data, o->weight.data, s->bias ? (const float *)(const void *)o->bias.data : NULL,
        s->residual ? o->residual.data : NULL, o->y.data, o->workspace.data, stream, err);
}

/* ---- Against the interpreter of plans ------------------------------------------------------- */

/* (O, taps, I) in `type` to the interpreter's (O, I, taps) in float. */
static float *weights_for_interpreter(const library_convolution_spec *s, const buffer *weight)
{
    size_t per_in = s->in_channels / (size_t)s->groups, e = element_size(s->type);
    size_t taps = weight->bytes / e / s->out_channels / per_in;
    float *w = malloc(weight->bytes / e * sizeof *w);
    for (size_t o = 0; o < s->out_channels; o++)
        for (size_t i = 0; i < per_in; i++)
            for (size_t tap = 0; tap < taps; tap++)
                w[(o * per_in + i) * taps + tap] = (float)element_load(
                    s->type, weight->data + ((o * taps + tap) * per_in + i) * e);
    return w;
}

static double joined(const library_convolution_spec *s, const operands *o, size_t at, double v)
{
    if (s->bias)
        v += element_load(ELEMENT_F32, o->bias.data + at % s->out_channels * sizeof(float));
    if (s->residual)
        v += element_load(s->type, o->residual.data + at * element_size(s->type));
    return s->activate && v < 0 ? (double)s->slope * v : v;
}

/* y as it should be, of every sample, in double rounded to float. */
static float *expected(const library_convolution_spec *s, const operands *o)
{
    graph_node node = {.groups = s->groups};
    float *weight = weights_for_interpreter(s, &o->weight);
    plan_step step = {.kind = STEP_CONV, .node = &node, .weight = weight};
    plan_tensor in = {.channels = s->in_channels, .pitch = s->in_channels, .type = s->type};
    plan_tensor out = {.channels = s->out_channels, .pitch = s->out_channels, .type = s->type};
    for (int a = 0; a < 3; a++) {
        node.kernel[a] = s->kernel[a];
        node.stride[a] = s->stride[a];
        node.dilation[a] = s->dilation[a];
        node.pad_begin[a] = s->pad_begin[a];
        node.pad_end[a] = s->pad_end[a];
        in.dim[a] = s->in_dim[a];
        out.dim[a] = s->out_dim[a];
    }
    size_t n = s->samples * voxels(s->out_dim) * s->out_channels;
    float *y = malloc(n * sizeof *y);
    step_context context = {.step = &step, .in = &in, .out = &out};
    for (size_t i = 0; i < n; i++) {
        size_t voxel = i / s->out_channels, sample = voxel / voxels(s->out_dim);
        size_t at[3] = {voxel / s->out_dim[2] / s->out_dim[1] % s->out_dim[0],
                        voxel / s->out_dim[2] % s->out_dim[1], voxel % s->out_dim[2]};
        context.arena = o->x.data + sample * (o->x.bytes / s->samples);
        y[i] = (float)joined(s, o, i, conv_value(&context, at, i % s->out_channels));
    }
    free(weight);
    return y;
}

static float *result_of(const library_convolution_spec *s, const operands *o, size_t *n)
{
    size_t e = element_size(s->type);
    *n = o->y.bytes / e;
    float *y = malloc(*n * sizeof *y);
    for (size_t i = 0; i < *n; i++)
        y[i] = (float)element_load(s->type, o->y.data + i * e);
    return y;
}

static bool is_right(const library_convolution_spec *s, const operands *o)
{
    /* float32: sums of up to a few thousand products; half types: one rounding more. */
    static const double tolerance[3] = {
        [ELEMENT_F32] = 4e-6, [ELEMENT_BF16] = 0x1p-8, [ELEMENT_F16] = 0x1p-11};
    size_t n;
    float *y = result_of(s, o, &n), *reference = expected(s, o);
    bool right = arrays_close(y, n, reference, n, tolerance[s->type] + 4e-6, tolerance[s->type]);
    free(y);
    free(reference);
    return right;
}

static convolution_library *library;

static library_convolution *plan_of(const library_convolution_spec *s, unsigned candidate)
{
    library_convolution *c = NULL;
    dm_error err = {0};
    if (library_convolution_create(library, s, candidate, &c, &err) != DM_OK)
        fail_msg("%s", err.what);
    return c;
}

/* Runs one plan; is the result right? */
static bool runs_right(const library_convolution_spec *s, unsigned candidate)
{
    dm_error err = {0};
    library_convolution *c = plan_of(s, candidate);
    operands o = operands_of(s, library_convolution_workspace(c));
    if (run(c, s, &o, 0, &err) != DM_OK)
        fail_msg("%s", err.what);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    bool right = is_right(s, &o);
    library_convolution_free(c);
    operands_free(&o);
    return right;
}

static void test_shapes(void **state)
{
    (void)state;
    static const struct shape {
        size_t samples, in, out, dim[3];
        int kernel, stride, dilation, pad, groups;
    } shapes[] = {
        {1, 1, 1, {1, 1, 1}, 1, 1, 1, 0, 1},    {1, 1, 1, {1, 1, 1}, 3, 1, 1, 1, 1},
        {2, 5, 7, {3, 4, 13}, 3, 1, 1, 1, 1},   {1, 16, 32, {4, 5, 6}, 3, 2, 1, 1, 1},
        {3, 8, 17, {7, 5, 11}, 3, 2, 1, 1, 1},  {1, 6, 5, {9, 9, 9}, 3, 1, 2, 2, 1},
        {2, 12, 18, {5, 4, 7}, 3, 1, 1, 1, 3},  {1, 8, 8, {4, 4, 31}, 2, 2, 1, 0, 8},
        {1, 33, 31, {2, 3, 65}, 1, 1, 1, 0, 1}, {1, 20, 16, {5, 5, 5}, 5, 1, 1, 2, 1},
        {2, 64, 64, {3, 3, 3}, 3, 1, 1, 1, 1},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (unsigned variant = 0; variant < 3 * 4 * 2; variant++) {
            const struct shape *h = &shapes[i];
            int reach = h->dilation * (h->kernel - 1) + 1;
            library_convolution_spec s = spec_of(h->in, h->out, h->dim, reach, h->stride, h->pad);
            for (int a = 0; a < 3; a++) {
                s.kernel[a] = h->kernel;
                s.dilation[a] = h->dilation;
            }
            s.groups = h->groups;
            s.samples = (unsigned)h->samples;
            s.type = (element_type)(variant % 3);
            s.bias = variant / 3 % 4 > 0;
            s.activate = variant / 3 % 4 > 1;
            s.residual = variant / 3 % 4 > 2;
            unsigned candidate = s.bias ? 0 : variant / 12;
            if (!runs_right(&s, candidate))
                fail_msg("shape %zu, variant %u", i, variant);
        }
}

static void test_kernels_that_differ_along_axes(void **state)
{
    (void)state;
    const size_t dim[3] = {6, 7, 9};
    library_convolution_spec s = spec_of(4, 6, dim, 1, 1, 0);
    const int kernel[3] = {3, 1, 2}, stride[3] = {1, 2, 3};
    const int before[3] = {0, 0, 2}, behind[3] = {1, 2, 0};
    for (int a = 0; a < 3; a++) {
        s.kernel[a] = kernel[a];
        s.stride[a] = stride[a];
        s.pad_begin[a] = before[a];
        s.pad_end[a] = behind[a];
        s.out_dim[a] =
            (dim[a] + (size_t)(before[a] + behind[a] - kernel[a])) / (size_t)stride[a] + 1;
    }
    assert_true(runs_right(&s, 0));
}

static void test_tf32_rounds_factors(void **state)
{
    (void)state;
    const size_t one[3] = {1, 1, 1};
    library_convolution_spec s = spec_of(1, 1, one, 1, 1, 0);
    for (int tf32 = 0; tf32 < 2; tf32++) {
        s.tf32 = tf32;
        library_convolution *c = plan_of(&s, 0);
        operands o = operands_of(&s, library_convolution_workspace(c));
        element_store(ELEMENT_F32, o.x.data, 1 + 0x1p-12);
        element_store(ELEMENT_F32, o.weight.data, 1);
        assert_int_equal(run(c, &s, &o, 0, NULL), DM_OK);
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        assert_true(element_load(ELEMENT_F32, o.y.data) == (tf32 ? 1 : 1 + 0x1p-12));
        library_convolution_free(c);
        operands_free(&o);
    }
}

static void test_threads_change_no_byte(void **state)
{
    (void)state;
    const size_t dim[3] = {5, 6, 7};
    library_convolution_spec s = spec_of(37, 19, dim, 3, 1, 1);
    library_convolution *c = plan_of(&s, 0);
    operands a = operands_of(&s, library_convolution_workspace(c));
    operands b = operands_of(&s, library_convolution_workspace(c));
    setenv("DOSEMAP_EMULATED_THREADS", "1", 1);
    assert_int_equal(run(c, &s, &a, 0, NULL), DM_OK);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    setenv("DOSEMAP_EMULATED_THREADS", "4", 1);
    assert_int_equal(run(c, &s, &b, 0, NULL), DM_OK);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    unsetenv("DOSEMAP_EMULATED_THREADS");
    assert_memory_equal(a.y.data, b.y.data, a.y.bytes);
    library_convolution_free(c);
    operands_free(&a);
    operands_free(&b);
}

/* ---- Streams -------------------------------------------------------------------------------- */

/* Captured once, a run repeats with what lies in x then. */
static void test_capture(void **state)
{
    (void)state;
    library_convolution_spec s = spec_of(3, 4, cube8, 3, 1, 1);
    library_convolution *c = plan_of(&s, 0);
    operands o = operands_of(&s, library_convolution_workspace(c));
    cudaStream_t stream;
    cudaGraph_t captured;
    cudaGraphExec_t instance;
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    assert_int_equal(run(c, &s, &o, stream, NULL), DM_OK);
    assert_int_equal(cudaStreamEndCapture(stream, &captured), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&instance, captured, 0), cudaSuccess);
    assert_int_equal(o.y.data[0], 0xff);
    for (unsigned seed = 7; seed < 9; seed++) {
        fill(&o.x, s.type, seed);
        memset(o.y.data, 0xff, o.y.bytes);
        assert_int_equal(cudaGraphLaunch(instance, stream), cudaSuccess);
        assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
        assert_true(is_right(&s, &o));
    }
    cudaGraphExecDestroy(instance);
    cudaGraphDestroy(captured);
    cudaStreamDestroy(stream);
    library_convolution_free(c);
    operands_free(&o);
}

/* ---- Faults --------------------------------------------------------------------------------- */

static int reset(void **state)
{
    (void)state;
    unsetenv("DOSEMAP_REFERENCE_CONVOLUTION");
    reference_convolution_set_fault(REFERENCE_SOUND, 0);
    reference_convolution_set_joins(true);
    reference_convolution_set_offers(0, 0, 0);
    return 0;
}

static dm_status try_plan(const library_convolution_spec *s, unsigned candidate)
{
    library_convolution *c = NULL;
    dm_status status = library_convolution_create(library, s, candidate, &c, NULL);
    library_convolution_free(c);
    return status;
}

static void test_candidates(void **state)
{
    (void)state;
    library_convolution_spec s = spec_of(8, 8, cube8, 3, 1, 1);
    assert_int_equal(try_plan(&s, 1), DM_OK);
    assert_int_equal(try_plan(&s, 2), DM_ERROR_UNSUPPORTED);
    s.bias = true;
    assert_int_equal(try_plan(&s, 0), DM_OK);
    assert_int_equal(try_plan(&s, 1), DM_ERROR_UNSUPPORTED);
    s.precompiled = true;
    assert_int_equal(try_plan(&s, 0), DM_ERROR_UNSUPPORTED);
    s.precompiled = false;
    reference_convolution_set_joins(false);
    assert_int_equal(try_plan(&s, 0), DM_ERROR_UNSUPPORTED);
}

/* The plan with that description, from `saved`; whether it had to be made anew. */
static bool finds(const library_convolution_spec *s, const char *engine, const char *saved,
                  bool *anew)
{
    library_convolution *c = NULL;
    unsigned made = reference_convolution_plans(), restored = reference_convolution_restored();
    dm_status status = library_convolution_find(library, s, engine, saved, &c, NULL);
    assert_true((status == DM_OK) == (c != NULL));
    assert_true(c || status == DM_ERROR_UNSUPPORTED);
    bool found = c && strcmp(library_convolution_describe(c), engine) == 0;
    *anew = reference_convolution_plans() == made + 1;
    assert_int_equal(reference_convolution_restored() - restored, found && !*anew);
    library_convolution_free(c);
    return found;
}

static void test_saved_plans(void **state)
{
    (void)state;
    library_convolution_spec s = spec_of(8, 8, cube8, 3, 1, 1),
                             other = spec_of(8, 16, cube8, 3, 1, 1);
    char *saved = NULL;
    bool anew;
    reference_convolution_set_offers(3, 0, 0);
    library_convolution *c = plan_of(&s, 2);
    assert_int_equal(library_convolution_save(c, &saved, NULL), DM_OK);
    const char *engine = library_convolution_describe(c);
    assert_true(finds(&s, engine, saved, &anew) && !anew);
    assert_true(finds(&s, engine, NULL, &anew) && anew);
    assert_true(finds(&s, engine, "of no use", &anew) && anew);
    assert_true(finds(&other, engine, saved, &anew) && anew);
    assert_false(finds(&s, "reference 3", saved, &anew));
    reference_convolution_set_offers(2, 0, 0);
    assert_false(finds(&s, engine, saved, &anew));
    dm_string_free(saved);
    library_convolution_free(c);
}

static void test_planted_faults(void **state)
{
    (void)state;
    library_convolution_spec s = spec_of(8, 8, cube8, 3, 1, 1);
    reference_convolution_set_fault(REFERENCE_WRONG, 1);
    assert_false(runs_right(&s, 0));
    assert_true(runs_right(&s, 1));
    reference_convolution_set_fault(REFERENCE_STALE, 2);
    assert_false(runs_right(&s, 1));
    reference_convolution_set_fault(REFERENCE_NO_PLAN, 1);
    assert_int_equal(try_plan(&s, 0), DM_ERROR_UNSUPPORTED);
    reference_convolution_set_fault(REFERENCE_FAILS, 1);
    library_convolution *c = plan_of(&s, 0);
    operands o = operands_of(&s, library_convolution_workspace(c));
    assert_int_equal(run(c, &s, &o, 0, NULL), DM_ERROR_DEVICE);
    library_convolution_free(c);
    operands_free(&o);
}

static void test_faults_from_the_environment(void **state)
{
    (void)state;
    convolution_library *other;
    library_convolution_spec s = spec_of(8, 8, cube8, 3, 1, 1);
    setenv("DOSEMAP_REFERENCE_CONVOLUTION", "unjoined,wrong=1", 1);
    assert_int_equal(convolution_library_open(&other, NULL), DM_OK);
    convolution_library_free(other);
    assert_false(runs_right(&s, 0));
    assert_true(runs_right(&s, 1));
    s.bias = true;
    assert_int_equal(try_plan(&s, 0), DM_ERROR_UNSUPPORTED);
}

static void check_misuse(const library_convolution *c, const library_convolution_spec *s,
                         operands o, const char *word)
{
    dm_error err = {0};
    assert_int_equal(run(c, s, &o, 0, &err), DM_ERROR_DEVICE);
    if (!strstr(err.what, word))
        fail_msg("'%s' is not in '%s'", word, err.what);
}

static void test_misuse(void **state)
{
    (void)state;
    library_convolution_spec s = spec_of(8, 8, cube8, 3, 1, 1), plain = s;
    s.residual = true;
    library_convolution *c = plan_of(&s, 0);
    operands o = operands_of(&s, library_convolution_workspace(c)), bad = o;
    bad.x.data += 2;
    check_misuse(c, &s, bad, "aligned");
    bad = o;
    bad.y = bad.x;
    check_misuse(c, &s, bad, "overlaps");
    bad = o;
    bad.y = bad.residual;
    check_misuse(c, &s, bad, "overlaps");
    bad = o;
    bad.workspace = bad.y;
    check_misuse(c, &s, bad, "overlaps");
    bad = o;
    bad.workspace.data = NULL;
    check_misuse(c, &s, bad, "missing");
    check_misuse(c, &plain, o, "missing");
    library_convolution_free(c);
    operands_free(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nonsense_is_refused),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_same_specs),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_kernels_that_differ_along_axes),
        cmocka_unit_test(test_tf32_rounds_factors),
        cmocka_unit_test(test_threads_change_no_byte),
        cmocka_unit_test(test_capture),
        cmocka_unit_test_teardown(test_candidates, reset),
        cmocka_unit_test_teardown(test_saved_plans, reset),
        cmocka_unit_test_teardown(test_planted_faults, reset),
        cmocka_unit_test_teardown(test_faults_from_the_environment, reset),
        cmocka_unit_test_teardown(test_misuse, reset),
    };
    if (convolution_library_open(&library, NULL) != DM_OK)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    convolution_library_free(library);
    return failed;
}
