/* SPDX-License-Identifier: Apache-2.0 */
/* What is said about the memory of a worker, against what it has: one
 * convolution at a time. */
#include "network_case.h"
#include "predict/cpu/cpu_info.h"
#include "predict/tile_choice.h"

#define MIB 1048576.0

enum { Z = 8, Y = 96, X = 96 };

typedef struct layer {
    const char *name;
    size_t in, out;
    int kernel, stride;
    bool wide_in, wide_out; /* part of a tensor with twice the channels */
    const chain_op *chain;
    size_t n_chain;
    enum { DENSE, WIDE, BROADCAST } operand;
    bool transposed;
} layer;

#define CHAIN(...)                                                                                 \
    .chain = (const chain_op[]){__VA_ARGS__},                                                      \
    .n_chain = sizeof((const chain_op[]){__VA_ARGS__}) / sizeof(chain_op)

static const layer layers[] = {
    {"plain", 32, 32, .kernel = 3, .stride = 1},
    {"plain, direct", 5, 7, .kernel = 3, .stride = 1},
    {"reads and writes views", 32, 32, 3, 1, .wide_in = true, .wide_out = true},
    {"reads and writes views, direct", 5, 7, 3, 1, .wide_in = true, .wide_out = true},
    {"sum", 32, 32, 3, 1, CHAIN(CHAIN_ADD_TENSOR, CHAIN_RELU)},
    {"sum with a view", 32, 32, 3, 1, CHAIN(CHAIN_ADD_TENSOR, CHAIN_RELU), .operand = WIDE},
    {"sum, direct", 5, 7, 3, 1, CHAIN(CHAIN_ADD_TENSOR, CHAIN_RELU)},
    {"sum with a view, direct", 5, 7, 3, 1, CHAIN(CHAIN_ADD_TENSOR), .operand = WIDE},
    {"sum with one voxel, direct", 5, 7, 3, 1, CHAIN(CHAIN_ADD_TENSOR), .operand = BROADCAST},
    {"sum with one voxel", 32, 32, 3, 1, CHAIN(CHAIN_ADD_TENSOR), .operand = BROADCAST},
    {"five links", 32, 32, 3, 1,
     CHAIN(CHAIN_RELU, CHAIN_LEAKY_RELU, CHAIN_RELU, CHAIN_LEAKY_RELU, CHAIN_RELU)},
    {"sigmoid", 32, 32, 3, 1, CHAIN(CHAIN_SIGMOID)},
    {"product", 32, 32, 3, 1, CHAIN(CHAIN_MUL_TENSOR)},
    {"product, direct", 5, 7, 3, 1, CHAIN(CHAIN_MUL_TENSOR)},
    {"slopes that differ", 32, 32, 3, 1, CHAIN(CHAIN_PRELU)},
    {"slopes that differ, direct", 5, 7, 3, 1, CHAIN(CHAIN_PRELU)},
    {"affine", 32, 32, 3, 1, CHAIN(CHAIN_AFFINE)},
    {"strided", 32, 32, 2, 2, CHAIN(CHAIN_ADD_TENSOR, CHAIN_RELU), .operand = WIDE},
    {"strided, from and to views", 32, 32, 2, 2, .wide_in = true, .wide_out = true},
    {"voxelwise", 32, 32, .kernel = 1, .stride = 1},
    {"voxelwise, sum", 32, 32, 1, 1, CHAIN(CHAIN_ADD_TENSOR, CHAIN_RELU)},
    {"voxelwise, product of views", 32, 32, 1, 1, .wide_in = true, .wide_out = true,
     CHAIN(CHAIN_MUL_TENSOR), .operand = WIDE},
    {"transposed", 32, 16, 2, 2, .transposed = true},
    {"transposed, sum with a view", 32, 16, 2, 2, .wide_out = true, CHAIN(CHAIN_ADD_TENSOR),
     .operand = WIDE, .transposed = true},
    {"transposed, not in blocks", 16, 16, 4, 2, .transposed = true},
};

static int make_tensor(network_case *k, element_type type, size_t channels, const size_t dim[3],
                       bool wide)
{
    return case_tensor(k, type, channels, dim[0], dim[1], dim[2], 0, wide ? channels : 0);
}

static void build(network_case *k, const layer *l, element_type type)
{
    const size_t whole[3] = {Z, Y, X}, one[3] = {1, 1, 1};
    size_t to[3], taps = (size_t)l->kernel * (size_t)l->kernel * (size_t)l->kernel;
    int pad = (l->kernel - l->stride + 1) / 2;
    case_begin(k, type);
    for (int a = 0; a < 3; a++) {
        size_t stride = (size_t)l->stride;
        to[a] = l->transposed ? whole[a] * stride : whole[a] / stride;
        k->node.kernel[a] = l->kernel;
        k->node.stride[a] = l->stride;
        k->node.pad_begin[a] = k->node.pad_end[a] = pad;
    }
    k->node.op = l->transposed ? OP_CONV_TRANSPOSE : OP_CONV;
    k->step.kind = l->transposed ? STEP_CONV_TRANSPOSE : STEP_CONV;
    k->step.in = make_tensor(k, type, l->in, whole, l->wide_in);
    k->step.out = make_tensor(k, type, l->out, to, l->wide_out);
    k->step.weight = case_floats(k, l->in * l->out * taps);
    k->step.bias = case_floats(k, l->out);
    for (size_t i = 0; i < l->n_chain; i++) {
        bool tensor = l->chain[i] == CHAIN_ADD_TENSOR || l->chain[i] == CHAIN_MUL_TENSOR;
        int operand = tensor ? make_tensor(k, type, l->out, l->operand == BROADCAST ? one : to,
                                           l->operand == WIDE)
                             : -1;
        case_link(k, l->chain[i], operand, 0.1f);
    }
    case_ends(k);
}

/* Which links the library refuses, and which kernels it has below AVX-512, is
 * not known to the last. */
static bool is_certain(const layer *l, element_type type)
{
    if (!cpu_has(CPU_AVX512F))
        return false;
    return l->n_chain == 0 || l->chain[0] != CHAIN_ADD_TENSOR ||
           (l->kernel > 1 && type == ELEMENT_F32);
}

/* Not less than it has, and hardly more. */
static void compare_layer(const layer *l, element_type type, unsigned threads)
{
    network_case k;
    network *net;
    dm_error err = {0};
    build(&k, l, type);
    if (network_create(&k.p, threads, &net, &err) != DM_OK)
        fail_msg("%s: %s", l->name, err.what);
    double real = (double)network_worker_bytes(net),
           said = tile_worker_bytes(&k.p) + threads * tile_thread_bytes(&k.p);
    if (!(real <= said) || (is_certain(l, type) && !(said <= real + (threads + 0.5) * MIB)))
        fail_msg("%s, %zu bytes an element, %u threads: a worker has %.2f MiB "
                 "beside its arena of "
                 "%.2f, %.2f were said (%s)",
                 l->name, element_size(type), threads, (real - (double)k.p.arena_bytes) / MIB,
                 (double)k.p.arena_bytes / MIB, (said - (double)k.p.arena_bytes) / MIB,
                 network_kernel(net, 0));
    network_free(net);
    case_end(&k);
}

static void test_one_convolution(void **state)
{
    (void)state;
    if (!cpu_has(CPU_AVX2))
        skip(); /* matrix products, whose buffers are estimated roughly */
    for (size_t i = 0; i < sizeof layers / sizeof layers[0]; i++)
        for (int bf16 = 0; bf16 < (network_supports(DM_PRECISION_BF16) ? 2 : 1); bf16++) {
            compare_layer(&layers[i], bf16 ? ELEMENT_BF16 : ELEMENT_F32, 1);
            compare_layer(&layers[i], bf16 ? ELEMENT_BF16 : ELEMENT_F32, 3);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_convolution)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
