/* SPDX-License-Identifier: Apache-2.0 */
/* Whole networks in workers: against the plan interpreter, in several threads at once, again and
 * again, without allocation; and plans that a CPU cannot run. */
#include <pthread.h>

#include "network_case.h"
#include "predict/cpu/convert.h"

#define MODEL TEST_GOLDEN_DIR "/../../weights/dosegan-16-constructed.safetensors.zst"

/* ---- Counting allocations ------------------------------------------------------------------- */

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTS_ALLOCATIONS 1
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
static volatile size_t allocations;

void *malloc(size_t size)
{
    allocations++;
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    allocations++;
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    allocations++;
    return __libc_realloc(p, size);
}

int posix_memalign(void **p, size_t alignment, size_t size)
{
    allocations++;
    *p = __libc_memalign(alignment, size);
    return *p ? 0 : 12;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    allocations++;
    return __libc_memalign(alignment, size);
}
#endif

/* ---- A network ------------------------------------------------------------------------------ */

typedef struct fixture {
    dm_model *model;
    plan *p;
    network *net;
} fixture;

static uint32_t state_of_random = 1;
static float next_random(void)
{
    state_of_random = state_of_random * 1664525u + 1013904223u;
    return (float)(state_of_random >> 8) / (float)(1 << 23) - 1.0f;
}

/* Random weights of a size that keeps activations near 1; variances stay positive. */
static void randomise(graph *g)
{
    for (size_t v = 0; v < g->n_values; v++) {
        graph_value *value = &g->values[v];
        size_t fan_in = value->rank > 1 ? value->count / value->shape[0] : 1;
        float size = value->rank > 1 ? sqrtf(6.0f / (float)fan_in) : 0.5f;
        for (size_t i = 0; value->is_weight && i < value->count; i++)
            value->data[i] = value->rank > 1 ? size * next_random() : 1.0f + size * next_random();
    }
}

static void set_up(fixture *f, const size_t tile[3], element_type type, bool optimise)
{
    dm_error err = {0};
    memset(f, 0, sizeof *f);
    if (dm_model_load(MODEL, &f->model, &err) != DM_OK)
        fail_msg("%s: %s", err.where, err.what);
    state_of_random = 7;
    randomise(&f->model->graph);
    plan_options options = {
        .tile = {tile[0], tile[1], tile[2]}, .type = type, .optimise = optimise};
    network_plan_needs(&options);
    assert_int_equal(plan_build(&f->model->graph, &options, &f->p, &err), DM_OK);
    if (network_create(f->p, 1, &f->net, &err) != DM_OK)
        fail_msg("%s", err.what);
}

static void tear_down(fixture *f)
{
    network_free(f->net);
    plan_free(f->p);
    dm_model_free(f->model);
}

static size_t elements(const plan *p, int tensor)
{
    const plan_tensor *t = &p->tensors[tensor];
    return tensor_voxels(t) * t->channels;
}

static void make_input(const fixture *f, uint32_t seed, float *input)
{
    state_of_random = seed;
    for (size_t i = 0; i < elements(f->p, f->p->input); i++)
        input[i] = bf16_to_float(bf16_from_float(2 + 2 * next_random()));
}

static void run(const fixture *f, worker *w, const float *input, float *output)
{
    dm_error err = {0};
    tensor_fill(&f->p->tensors[f->p->input],
                (unsigned char *)worker_input(w) - f->p->tensors[f->p->input].offset, input);
    if (worker_run(w, &err) != DM_OK)
        fail_msg("%s", err.what);
    memcpy(output, worker_output(w), elements(f->p, f->p->output) * sizeof *output);
}

static float *floats(size_t n)
{
    float *p = malloc(n * sizeof *p);
    assert_non_null(p);
    memset(p, 0xff, n * sizeof *p);
    return p;
}

static worker *new_worker(const fixture *f)
{
    dm_error err = {0};
    worker *w;
    assert_int_equal(worker_create(f->net, &w, &err), DM_OK);
    return w;
}

/* ---- Tests ---------------------------------------------------------------------------------- */

static void check_network(const size_t tile[3], element_type type, bool optimise, double limit)
{
    fixture f;
    set_up(&f, tile, type, optimise);
    worker *w = new_worker(&f);
    size_t n = elements(f.p, f.p->output);
    float *input = floats(elements(f.p, f.p->input)), *got = floats(n), *want = floats(n);
    make_input(&f, 3, input);
    interpret_plan(f.p, input, want);
    run(&f, w, input, got);
    double largest = 0;
    for (size_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)want[i]));
    assert_true(largest > 0.01); /* or there is nothing to compare */
    double deviation = relative_l2(got, want, n);
    if (!(deviation <= limit))
        fail_msg("relative deviation %g", deviation);
    assert_true(arrays_close(got, n, want, n, 10 * limit * largest, 0));
    free(want);
    free(got);
    free(input);
    worker_free(w);
    tear_down(&f);
}

static void test_network_float32(void **state)
{
    (void)state;
    check_network((const size_t[]){8, 8, 8}, ELEMENT_F32, true, 2e-6);
    check_network((const size_t[]){8, 16, 24}, ELEMENT_F32, true, 2e-6);
    check_network((const size_t[]){8, 8, 8}, ELEMENT_F32, false, 2e-6);
}

static void test_network_bf16(void **state)
{
    (void)state;
    if (!network_supports(DM_PRECISION_BF16)) {
        fprintf(stderr, "skipped: no bf16 instructions on this CPU\n");
        skip();
    }
    check_network((const size_t[]){8, 8, 8}, ELEMENT_BF16, true, 0.02);
    check_network((const size_t[]){8, 8, 8}, ELEMENT_BF16, false, 0.02);
}

static void test_no_reference_kernels(void **state)
{
    (void)state;
    for (int t = 0; t < (network_supports(DM_PRECISION_BF16) ? 2 : 1); t++) {
        fixture f;
        set_up(&f, (const size_t[]){32, 32, 32}, t ? ELEMENT_BF16 : ELEMENT_F32, true);
        for (size_t i = 0; i < f.p->n_steps; i++) {
            const char *kernel = network_kernel(f.net, i);
            bool convolution =
                f.p->steps[i].kind == STEP_CONV || f.p->steps[i].kind == STEP_CONV_TRANSPOSE;
            assert_true(convolution == (kernel != NULL));
            if (kernel && strncmp(kernel, "ref", 3) == 0)
                fail_msg("step %s runs in a reference kernel", f.p->steps[i].name);
        }
        tear_down(&f);
    }
}

typedef struct thread_run {
    const fixture *f;
    worker *w;
    uint32_t seed;
    float *input, *output;
} thread_run;

static void *run_in_thread(void *argument)
{
    thread_run *t = argument;
    for (int repeat = 0; repeat < 3; repeat++)
        run(t->f, t->w, t->input, t->output);
    return NULL;
}

/* Four workers at once, each with its own input, give the bytes that one alone gives. */
static void test_threads_give_the_same_bytes(void **state)
{
    (void)state;
    enum { N = 4 };
    fixture f;
    set_up(&f, (const size_t[]){16, 8, 16}, ELEMENT_F32, true);
    size_t n_in = elements(f.p, f.p->input), n = elements(f.p, f.p->output);
    thread_run runs[N];
    pthread_t threads[N];
    worker *alone = new_worker(&f);
    float *want = floats(n);
    for (uint32_t i = 0; i < N; i++) {
        runs[i] = (thread_run){&f, new_worker(&f), i + 1, floats(n_in), floats(n)};
        make_input(&f, runs[i].seed, runs[i].input);
    }
    for (int i = 0; i < N; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_in_thread, &runs[i]), 0);
    for (int i = 0; i < N; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < N; i++) {
        run(&f, alone, runs[i].input, want);
        assert_memory_equal(runs[i].output, want, n * sizeof *want);
    }
    assert_memory_not_equal(runs[0].output, runs[1].output, n * sizeof *want);
    for (int i = 0; i < N; i++) {
        worker_free(runs[i].w);
        free(runs[i].input);
        free(runs[i].output);
    }
    free(want);
    worker_free(alone);
    tear_down(&f);
}

/* What an arena held before does not matter. */
static void test_runs_leave_nothing_behind(void **state)
{
    (void)state;
    fixture f;
    set_up(&f, (const size_t[]){8, 8, 8}, ELEMENT_F32, true);
    size_t n_in = elements(f.p, f.p->input), n = elements(f.p, f.p->output);
    float *input = floats(n_in), *first = floats(n), *again = floats(n);
    worker *w = new_worker(&f);
    make_input(&f, 5, input);
    run(&f, w, input, first);
    memset(worker_arena(w), 0xff, f.p->arena_bytes);
    run(&f, w, input, again);
    assert_memory_equal(first, again, n * sizeof *first);
    assert_true(network_worker_bytes(f.net) > f.p->arena_bytes);
    worker_free(w);
    free(input);
    free(first);
    free(again);
    tear_down(&f);
}

static void test_running_allocates_nothing(void **state)
{
    (void)state;
#ifdef COUNTS_ALLOCATIONS
    fixture f;
    dm_error err = {0};
    set_up(&f, (const size_t[]){8, 8, 8}, ELEMENT_F32, true);
    worker *w = new_worker(&f);
    float *input = floats(elements(f.p, f.p->input)), *output = floats(elements(f.p, f.p->output));
    make_input(&f, 5, input);
    run(&f, w, input, output); /* the first run in a thread may set things up */
    size_t before = allocations;
    for (int i = 0; i < 3; i++)
        assert_int_equal(worker_run(w, &err), DM_OK);
    assert_int_equal(allocations, before);
    free(input);
    free(output);
    assert_true(before > 0); /* the counter counts */
    worker_free(w);
    tear_down(&f);
#else
    skip();
#endif
}

static void test_refuses_fp16(void **state)
{
    (void)state;
    network_case k;
    dm_error err = {0};
    network *net = (network *)&k;
    case_begin(&k, ELEMENT_F16);
    k.step.kind = STEP_COPY;
    k.step.in = case_tensor(&k, ELEMENT_F16, 3, 2, 2, 2, 0, 0);
    k.step.out = case_tensor(&k, ELEMENT_F32, 3, 2, 2, 2, 0, 0);
    k.p.input = k.step.in;
    k.p.output = k.step.out;
    assert_int_equal(network_create(&k.p, 1, &net, &err), DM_ERROR_UNSUPPORTED);
    assert_null(net);
    assert_non_null(strstr(err.what, "fp16"));
    assert_non_null(strstr(err.what, "tensor"));
    assert_non_null(strstr(err.remedy, "--precision float32"));
    case_end(&k);
}

static void test_refuses_ends_that_are_views(void **state)
{
    (void)state;
    for (int end = 0; end < 2; end++) {
        network_case k;
        dm_error err = {0};
        network *net;
        case_begin(&k, ELEMENT_F32);
        k.step.kind = STEP_COPY;
        k.step.in = case_tensor(&k, ELEMENT_F32, 3, 2, 2, 2, end == 0, 0);
        k.step.out = case_tensor(&k, ELEMENT_F32, 3, 2, 2, 2, 0, end == 1);
        k.p.input = k.step.in;
        k.p.output = k.step.out;
        assert_int_equal(network_create(&k.p, 1, &net, &err), DM_ERROR_UNSUPPORTED);
        assert_non_null(strstr(err.what, end ? "output" : "input"));
        assert_non_null(strstr(err.what, "3 of 4 channels"));
        assert_true(err.remedy[0] != '\0');
        case_end(&k);
    }
}

static void test_library_and_precisions(void **state)
{
    (void)state;
    assert_int_equal(strncmp(network_library(), "oneDNN ", 7), 0);
    assert_true(network_supports(DM_PRECISION_FLOAT32));
    assert_false(network_supports(DM_PRECISION_FP16));
    assert_false(network_supports(DM_PRECISION_TF32));
    assert_int_equal(strstr(network_library(), "BF16") != NULL,
                     network_supports(DM_PRECISION_BF16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_network_float32),
        cmocka_unit_test(test_network_bf16),
        cmocka_unit_test(test_no_reference_kernels),
        cmocka_unit_test(test_threads_give_the_same_bytes),
        cmocka_unit_test(test_runs_leave_nothing_behind),
        cmocka_unit_test(test_running_allocates_nothing),
        cmocka_unit_test(test_refuses_fp16),
        cmocka_unit_test(test_refuses_ends_that_are_views),
        cmocka_unit_test(test_library_and_precisions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
