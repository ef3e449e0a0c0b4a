/* SPDX-License-Identifier: Apache-2.0 */
/* What the device's network is said to move, against the memory that its launches touch under the
 * emulation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "account_case.h"

/* ---- Memory that is touched ------------------------------------------------------------------ */

/* Pages of the network's memory are closed before a launch, and opened for reading or writing when
 * they are first read or written. */
enum { RANGES = 2 };
static struct {
    unsigned char *begin[RANGES], *end[RANGES]; /* whole pages of arena and scratch */
    size_t page;
    atomic_size_t read, written; /* pages */
    struct sigaction before;
    device_account counted;
    account_sum sum; /* of the launch that is watched */
    bool armed;
    size_t failed;
    size_t n_kinds;
    const char *kinds[32]; /* that were watched */
} watch;

static bool is_watched(const unsigned char *at)
{
    for (int r = 0; r < RANGES; r++)
        if (at >= watch.begin[r] && at < watch.end[r])
            return true;
    return false;
}

#ifdef __x86_64__
#define CAN_WATCH 1
static bool was_written(const void *context)
{
    return ((const ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] & 2;
}
#else
#define CAN_WATCH 0
static bool was_written(const void *context)
{
    (void)context;
    return false;
}
#endif

/* Several threads may come for one page: it counts once for each, of which there is one here. */
static void on_fault(int number, siginfo_t *info, void *context)
{
    unsigned char *at = info->si_addr;
    if (!is_watched(at)) {
        watch.before.sa_sigaction(number, info, context);
        return;
    }
    unsigned char *page = at - (uintptr_t)at % watch.page;
    if (was_written(context)) {
        atomic_fetch_add(&watch.written, 1);
        mprotect(page, watch.page, PROT_READ | PROT_WRITE);
    } else {
        atomic_fetch_add(&watch.read, 1);
        mprotect(page, watch.page, PROT_READ);
    }
}

static void set_access(int access)
{
    for (int r = 0; r < RANGES; r++)
        if (watch.end[r] > watch.begin[r])
            assert_int_equal(
                mprotect(watch.begin[r], (size_t)(watch.end[r] - watch.begin[r]), access), 0);
}

static void begin_launch(cudaStream_t stream)
{
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    watch.read = watch.written = 0;
    watch.sum = (account_sum){0};
    watch.counted.now = &watch.sum;
    set_access(PROT_NONE);
}

/* Where an operand begins or ends within a page, the page counts whole. */
static bool close_to(const char *name, const char *what, size_t pages, double bytes)
{
    double touched = (double)(pages * watch.page), edges = 8.0 * (double)watch.page;
    if (touched >= bytes - edges && touched <= bytes + edges)
        return true;
    fprintf(stderr, "%s: %s %.0f bytes, counted %.0f\n", name, what, touched, bytes);
    return false;
}

static void end_launch(const char *name, cudaStream_t stream)
{
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    size_t read = watch.read, written = watch.written;
    set_access(PROT_READ | PROT_WRITE);
    /* What is scratch of a normalisation or the library's workspace is small here. */
    bool close = close_to(name, "read", read, watch.sum.read) &&
                 close_to(name, "wrote", written, watch.sum.written);
    watch.failed += !close;
    for (size_t i = 0; i < watch.n_kinds; i++)
        if (strcmp(watch.kinds[i], name) == 0)
            return;
    watch.kinds[watch.n_kinds++] = name;
}

static cudaStream_t counting(void)
{
    return (cudaStream_t)(void *)&watch.counted;
}

/* A launch by the kernel that runs, and its count. */
#define WATCHED(name, parameters, ...)                                                             \
    static cudaError_t watched_##name parameters                                                   \
    {                                                                                              \
        if (!watch.armed) /* while the network is made */                                          \
            return device_kernels_run.name(__VA_ARGS__, stream);                                   \
        begin_launch(stream);                                                                      \
        cudaError_t code = device_kernels_run.name(__VA_ARGS__, stream);                           \
        assert_int_equal(device_kernels_count.name(__VA_ARGS__, counting()), cudaSuccess);         \
        end_launch(#name, stream);                                                                 \
        return code;                                                                               \
    }

WATCHED(zero, (void *data, size_t bytes, cudaStream_t stream), data, bytes)
WATCHED(pointwise,
        (const device_tensor *in, const device_tensor *out, unsigned samples,
         const device_epilogue *epilogue, cudaStream_t stream),
        in, out, samples, epilogue)
WATCHED(normalise_statistics,
        (const device_tensor *in, unsigned samples, unsigned groups, float epsilon,
         float *statistics, void *workspace, cudaStream_t stream),
        in, samples, groups, epsilon, statistics, workspace)
WATCHED(normalise_apply,
        (const device_tensor *in, const device_tensor *out, unsigned samples, unsigned groups,
         const float *statistics, const float *scale, const float *shift,
         const device_epilogue *epilogue, cudaStream_t stream),
        in, out, samples, groups, statistics, scale, shift, epilogue)
WATCHED(pool,
        (const device_pool *windows, const device_tensor *in, const device_tensor *out,
         unsigned samples, const device_epilogue *epilogue, cudaStream_t stream),
        windows, in, out, samples, epilogue)
WATCHED(take_voxels,
        (const device_axis_map axis[3], unsigned channel_begin, unsigned channel_step, float fill,
         const device_tensor *in, const device_tensor *out, unsigned samples,
         const device_epilogue *epilogue, cudaStream_t stream),
        axis, channel_begin, channel_step, fill, in, out, samples, epilogue)
WATCHED(interpolate,
        (const device_axis_map axis[3], const device_tensor *in, const device_tensor *out,
         unsigned samples, const device_epilogue *epilogue, cudaStream_t stream),
        axis, in, out, samples, epilogue)
#define CONVOLUTION                                                                                \
    (const device_convolution *c, const device_tensor *in, const device_tensor *out,               \
     unsigned samples, const device_epilogue *epilogue, cudaStream_t stream)
WATCHED(convolution, CONVOLUTION, c, in, out, samples, epilogue)
WATCHED(convolution_first, CONVOLUTION, c, in, out, samples, epilogue)
WATCHED(convolution_tensor_core, CONVOLUTION, c, in, out, samples, epilogue)
WATCHED(convolution_halo, CONVOLUTION, c, in, out, samples, epilogue)
WATCHED(unfold,
        (const int kernel[3], const device_tensor *blocks, const device_tensor *out,
         unsigned samples, const device_epilogue *epilogue, cudaStream_t stream),
        kernel, blocks, out, samples, epilogue)
WATCHED(attention_gate,
        (const device_gate *gate, const device_tensor *coarse, const device_tensor *skip,
         const device_tensor *out, unsigned samples, cudaStream_t stream),
        gate, coarse, skip, out, samples)

static dm_status watched_library(const library_convolution *used, const void *x, const void *weight,
                                 const float *bias, const void *residual, void *y, void *workspace,
                                 cudaStream_t stream, dm_error *err)
{
    begin_launch(stream);
    dm_status status =
        device_kernels_run.library(used, x, weight, bias, residual, y, workspace, stream, err);
    assert_int_equal(device_kernels_count.library(used, x, weight, bias, residual, y, workspace,
                                                  counting(), err),
                     DM_OK);
    end_launch("library", stream);
    return status;
}

static const device_kernels watched = {.zero = watched_zero,
                                       .pointwise = watched_pointwise,
                                       .normalise_statistics = watched_normalise_statistics,
                                       .normalise_apply = watched_normalise_apply,
                                       .pool = watched_pool,
                                       .take_voxels = watched_take_voxels,
                                       .interpolate = watched_interpolate,
                                       .convolution = watched_convolution,
                                       .convolution_first = watched_convolution_first,
                                       .convolution_tensor_core = watched_convolution_tensor_core,
                                       .convolution_halo = watched_convolution_halo,
                                       .unfold = watched_unfold,
                                       .attention_gate = watched_attention_gate,
                                       .library = watched_library};

static void watch_memory(int range, void *data, size_t bytes)
{
    uintptr_t begin = ((uintptr_t)data + watch.page - 1) / watch.page * watch.page;
    uintptr_t end = ((uintptr_t)data + bytes) / watch.page * watch.page;
    watch.begin[range] = (unsigned char *)begin;
    watch.end[range] = (unsigned char *)(end > begin ? end : begin);
}

static cudaError_t fill(void *context, const device_tensor *input, unsigned first, unsigned samples,
                        cudaStream_t stream)
{
    (void)context, (void)first;
    return cudaMemsetAsync(input->data, 0, samples * input->sample * element_size(input->type),
                           stream);
}

static cudaError_t take(void *context, const device_tensor *output, unsigned first,
                        unsigned samples, cudaStream_t stream)
{
    (void)context, (void)output, (void)first, (void)samples, (void)stream;
    return cudaSuccess;
}

/* Launches of the graph, each of which touches what it is said to. */
static void watch_network(const graph_builder *b, element_type type, bool own, bool compile)
{
    plan *p = build(b, (plan_case){.type = type, .reads = true, .writes = true});
    network_made m = make(p, (network_kind){.batch = 2,
                                            .cache_bytes = SIZE_MAX,
                                            .own = own,
                                            .compile = compile,
                                            .whole_output = true,
                                            .kernels = &watched});
    const network_ends ends = {.fill = fill, .take = take};
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    dm_error err = {0};
    watch.failed = 0;
    watch.page = (size_t)sysconf(_SC_PAGESIZE);
    watch_memory(0, m.net->arena, m.net->layout.bytes);
    watch_memory(1, m.net->scratch, m.net->scratch_bytes);
    assert_int_equal(sigaction(SIGSEGV, &action, &watch.before), 0);
    watch.armed = true;
    if (device_network_launch(m.net, &ends, &err) != DM_OK)
        fail_msg("%s", err.what);
    watch.armed = false;
    assert_int_equal(sigaction(SIGSEGV, &watch.before, NULL), 0);
    assert_int_equal(watch.failed, 0);
    clear(&m);
    plan_free(p);
}

static bool was_watched(const char *kind)
{
    for (size_t i = 0; i < watch.n_kinds; i++)
        if (strcmp(watch.kinds[i], kind) == 0)
            return true;
    return false;
}

/* A gate as attention U-Nets have it, of 16 channels. */
static int build_gate(graph_builder *b, int coarse, int skip)
{
    int sum = build_binary(b, OP_ADD, build_conv(b, coarse, 8, 1), build_conv(b, skip, 8, 1));
    int map = build_unary(b, OP_SIGMOID, build_conv(b, build_unary(b, OP_RELU, sum), 1, 1));
    return build_binary(b, OP_MUL, skip, map);
}

/* Every kind of launch, on tensors of hundreds of pages, and no views: these share pages. */
static void build_all_kinds(graph_builder *b)
{
    build_begin(b, 1, (const size_t[]){16, 16, 32}, 5);
    graph_node resize = build_attributes(OP_RESIZE);
    resize.resize = RESIZE_LINEAR;
    resize.scales[0] = resize.scales[1] = resize.scales[2] = 2;
    graph_node pad = build_attributes(OP_PAD);
    pad.pad_begin[0] = 2;
    pad.pad_end[0] = 1;
    graph_node slice = build_attributes(OP_SLICE);
    slice.slice_begin[0] = 1;
    slice.slice_end[0] = 17;
    int a = build_unary(b, OP_LEAKY_RELU, build_conv(b, b->input, 16, 3));
    int n = build_norm(b, OP_INSTANCE_NORM, a, 16);
    int c = build_unary(b, OP_RELU, build_binary(b, OP_ADD, build_conv(b, n, 16, 3), a));
    int coarse = build_up(b, build_down(b, c, 32), 16);
    int gated = build_gate(b, coarse, c);
    graph_node pool = build_attributes(OP_MAX_POOL);
    for (int axis = 0; axis < 3; axis++)
        pool.kernel[axis] = pool.stride[axis] = 2;
    int fine = build_with(b, &resize, build_with(b, &pool, gated));
    int cut = build_with(b, &slice, build_with(b, &pad, build_unary(b, OP_TANH, fine)));
    build_output(b, build_conv(b, build_binary(b, OP_ADD, cut, c), 1, 3));
}

static void test_launches_touch_what_is_counted(void **state)
{
    (void)state;
    static graph_builder b;
    if (!CAN_WATCH)
        skip();
    build_all_kinds(&b);
    watch_network(&b, ELEMENT_F32, false, false);
    watch_network(&b, ELEMENT_F32, false, true);
    watch_network(&b, ELEMENT_BF16, true, false);
    static const char *const kinds[] = {"pointwise",
                                        "normalise_statistics",
                                        "normalise_apply",
                                        "pool",
                                        "take_voxels",
                                        "interpolate",
                                        "convolution",
                                        "convolution_first",
                                        "unfold",
                                        "attention_gate",
                                        "convolution_tensor_core",
                                        "convolution_halo",
                                        "library"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!was_watched(kinds[i]))
            fail_msg("%s was not watched", kinds[i]);
    build_end(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_launches_touch_what_is_counted)};
    /* The test itself closes and opens memory, and pages count once. */
    setenv("DOSEMAP_EMULATED_PROTECT", "0", 1);
    setenv("DOSEMAP_EMULATED_THREADS", "1", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
