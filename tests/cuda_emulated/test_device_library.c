/* SPDX-License-Identifier: Apache-2.0 */
/* Which plans of the vendor's library the device's network uses: planted faults are found, and what
 * looking for them takes of the device's memory. */
#define NETWORK_UNDER_TEST "device_worker.h"
#include "../unit/predict/network_case.h"
#include "emulation.h"
#include "library_convolution_reference.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network.h"

/* One convolution of 3^3 to 16 channels, with bias and ReLU if joined. */
static void build_convolution(network_case *k, element_type type, size_t in, bool joined)
{
    case_begin(k, type);
    k->step.kind = STEP_CONV;
    k->node.op = OP_CONV;
    for (int a = 0; a < 3; a++) {
        k->node.kernel[a] = 3;
        k->node.pad_begin[a] = k->node.pad_end[a] = 1;
    }
    k->step.in = case_tensor(k, type, in, 4, 4, 8, 0, 0);
    k->step.out = case_tensor(k, type, 16, 4, 4, 8, 0, 0);
    k->step.weight = case_floats(k, in * 16 * 27);
    if (joined) {
        k->step.bias = case_floats(k, 16);
        case_link(k, CHAIN_RELU, -1, 0);
    }
    case_ends(k);
}

typedef struct made {
    cudaStream_t stream;
    convolution_library *library;
    library_plans *plans;
    device_parameters *parameters;
    device_network *network;
} made;

static void clear(made *m)
{
    device_network_free(m->network);
    device_parameters_free(m->parameters);
    library_plans_free(m->plans);
    convolution_library_free(m->library);
    assert_int_equal(cudaStreamDestroy(m->stream), cudaSuccess);
}

static dm_status make_network(const network_case *k, unsigned batch, bool compile, made *m,
                              dm_error *err)
{
    const device_network_options options = {.batch = batch,
                                            .compile = compile,
                                            .cache_bytes = SIZE_MAX,
                                            .plans = m->plans,
                                            .parameters = m->parameters,
                                            .stream = m->stream};
    return device_network_create(&k->p, &options, &m->network, err);
}

static dm_status make(const network_case *k, unsigned batch, made *m, dm_error *err)
{
    *m = (made){0};
    assert_int_equal(cudaStreamCreate(&m->stream), cudaSuccess);
    assert_int_equal(convolution_library_open(&m->library, err), DM_OK);
    assert_int_equal(library_plans_create(m->library, &m->plans, err), DM_OK);
    assert_int_equal(device_parameters_create(k->p.options.type, &m->parameters, err), DM_OK);
    return make_network(k, batch, true, m, err);
}

/* ---- Faults --------------------------------------------------------------------------------- */

typedef struct fault_case {
    reference_fault fault;
    unsigned candidates;
    element_type type;
    size_t in;
    bool joined;
    const char *way, *rejected; /* beginning of the one, part of the other */
} fault_case;

#define JOINED "library: reference 0 + bias + activation"
#define OWN "kernel_convolution_tensor_core"
#define PLACES "deviates in places by "

/* A product of 27*384 is lost in the sum of all deviations. */
static const fault_case fault_cases[] = {
    {REFERENCE_SOUND, 0, ELEMENT_F32, 32, true, JOINED, ""},
    {REFERENCE_SOUND, 0, ELEMENT_BF16, 32, true, JOINED, ""},
    {REFERENCE_SOUND, 0, ELEMENT_F16, 32, true, JOINED, ""},
    {REFERENCE_SOUND, 0, ELEMENT_BF16, 384, false, "library: reference 0", ""},
    {REFERENCE_NAN, 1, ELEMENT_F32, 32, true, "library: reference 0", "makes a number of NaN"},
    {REFERENCE_NAN, 1, ELEMENT_BF16, 32, true, "library: reference 0", "makes a number of NaN"},
    {REFERENCE_NAN, 9, ELEMENT_F16, 32, true, "library: reference 0", "makes a number of NaN"},
    {REFERENCE_SAMPLE, 1, ELEMENT_BF16, 32, false, "library: reference 1", "deviates by "},
    {REFERENCE_BORDER, 1, ELEMENT_BF16, 32, false, "library: reference 1", PLACES},
    {REFERENCE_BORDER, 9, ELEMENT_BF16, 32, true, OWN, PLACES},
    {REFERENCE_TAP, 1, ELEMENT_BF16, 384, false, "library: reference 1", PLACES},
    {REFERENCE_TAP, 9, ELEMENT_BF16, 384, true, OWN, PLACES},
    {REFERENCE_TAP, 9, ELEMENT_F16, 384, false, OWN, "deviates "},
};

static void test_faults(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fault_cases / sizeof *fault_cases; i++) {
        const fault_case *c = &fault_cases[i];
        network_case k;
        made m;
        dm_error err = {0};
        build_convolution(&k, c->type, c->in, c->joined);
        reference_convolution_set_fault(c->fault, c->candidates);
        assert_int_equal(make(&k, 5, &m, &err), DM_OK);
        const char *way = device_network_way(m.network, 0),
                   *rejected = library_plans_rejections(m.plans);
        bool alone = strncmp(c->way, JOINED, strlen(JOINED)) != 0;
        if (strncmp(way, c->way, strlen(c->way)) != 0 || (alone && strstr(way, "+")))
            fail_msg("case %d: '%s' (%s)", (int)i, way, rejected);
        if (!strstr(rejected, c->rejected) || (c->rejected[0] == '\0') != (rejected[0] == '\0'))
            fail_msg("case %d: '%s'", (int)i, rejected);
        reference_convolution_set_fault(REFERENCE_SOUND, 0);
        clear(&m);
        case_end(&k);
    }
}

/* ---- Keeping -------------------------------------------------------------------------------- */

/* Another network in the place of the one before; how many plans were made for it. */
static unsigned plans_for(const network_case *k, unsigned batch, bool compile, made *m)
{
    dm_error err = {0};
    unsigned before = reference_convolution_plans();
    device_network_free(m->network);
    assert_int_equal(make_network(k, batch, compile, m, &err), DM_OK);
    return reference_convolution_plans() - before;
}

static void test_plans_are_kept(void **state)
{
    (void)state;
    network_case k;
    made m;
    dm_error err = {0};
    build_convolution(&k, ELEMENT_BF16, 8, true);
    assert_int_equal(make(&k, 1, &m, &err), DM_OK);
    assert_int_equal(plans_for(&k, 1, true, &m), 0);
    for (unsigned batch = 2; batch <= LIBRARY_PLANS_KEPT; batch++)
        assert_int_equal(plans_for(&k, batch, true, &m), 1);
    assert_int_equal(plans_for(&k, 1, true, &m), 0);
    assert_int_equal(plans_for(&k, LIBRARY_PLANS_KEPT + 1, true, &m), 1);
    assert_int_equal(plans_for(&k, 1, true, &m), 0);
    assert_int_equal(plans_for(&k, 2, true, &m), 1); /* was dropped: least recently used */
    clear(&m);
    case_end(&k);
}

/* A plan stays for as long as a network has it, however many others are made. */
static void test_plans_in_use_stay(void **state)
{
    (void)state;
    network_case k;
    made m;
    dm_error err = {0};
    build_convolution(&k, ELEMENT_BF16, 8, true);
    assert_int_equal(make(&k, 3, &m, &err), DM_OK);
    device_network *kept = m.network;
    m.network = NULL;
    for (unsigned batch = 4; batch <= LIBRARY_PLANS_KEPT + 8; batch++)
        plans_for(&k, batch, true, &m);
    assert_int_equal(plans_for(&k, 3, true, &m), 0);
    device_network_free(kept);
    assert_int_equal(plans_for(&k, 4, true, &m), 1);
    clear(&m);
    case_end(&k);
}

/* What is not compiled at run time joins nothing. */
static void test_precompiled(void **state)
{
    (void)state;
    network_case k;
    made m;
    dm_error err = {0};
    build_convolution(&k, ELEMENT_BF16, 32, true);
    assert_int_equal(make(&k, 2, &m, &err), DM_OK);
    assert_non_null(strstr(device_network_way(m.network, 0), JOINED));
    assert_int_equal(plans_for(&k, 2, false, &m), 1);
    assert_string_equal(device_network_way(m.network, 0), "library: reference 0");
    assert_string_equal(library_plans_rejections(m.plans), "");
    clear(&m);
    case_end(&k);
}

/* ---- Memory --------------------------------------------------------------------------------- */

#define PLENTY ((size_t)2 << 30)

/* The most that is taken at one time. */
static size_t peak_of(const network_case *k, unsigned batch)
{
    made m;
    dm_error err = {0};
    emulation_reset_counters();
    assert_int_equal(make(k, batch, &m, &err), DM_OK);
    size_t peak = emulation_counters().device_bytes_peak;
    size_t said = device_network_bytes(m.network) + device_parameters_bytes(m.parameters);
    assert_in_range(peak, said, said + 16 * 512); /* a device allocates multiples of 512 bytes */
    clear(&m);
    return peak;
}

/* Where a comparison finds no memory: an error if there are smaller batches, else the network does
 * without the library. */
static void test_short_memory(void **state)
{
    (void)state;
    network_case k;
    made m;
    bool seen = false;
    build_convolution(&k, ELEMENT_BF16, 32, true);
    for (unsigned batch = 1; batch <= 4; batch += 3) {
        dm_status before = DM_OK;
        for (size_t bytes = peak_of(&k, batch), step = bytes / 64; bytes > step; bytes -= step) {
            dm_error err = {0};
            emulation_set_memory(bytes);
            dm_status status = make(&k, batch, &m, &err);
            if (status == DM_OK) {
                bool without = strstr(library_plans_rejections(m.plans), "memory is short");
                assert_int_equal(before, DM_OK);
                assert_true(batch == 1 || !without);
                if (without)
                    assert_string_equal(device_network_way(m.network, 0), OWN);
                seen |= without;
            } else {
                assert_int_equal(status, DM_ERROR_MEMORY);
            }
            before = status;
            clear(&m);
            emulation_set_memory(PLENTY);
        }
        assert_int_equal(before, DM_ERROR_MEMORY);
    }
    assert_true(seen);
    case_end(&k);
}

/* Operands and result of a comparison lie where those of the network will. */
static void test_checks_take_no_memory(void **state)
{
    (void)state;
    network_case k;
    build_convolution(&k, ELEMENT_BF16, 32, true);
    size_t in = 4 * 4 * 8 * 32 * 2, out = 4 * 4 * 8 * 16 * 2, weights = 27 * 32 * 16 * 2;
    size_t more = 64 * 1024; /* partial sums, workspace, one sample of the result */
    assert_in_range(peak_of(&k, 100), 100 * (in + out), 100 * (in + out) + weights + more);
    case_end(&k);
}

/* ---- Kernels of ours ------------------------------------------------------------------------ */

/* As with fragments whose elements lie elsewhere: halves of a voxel's channels change places. */
static cudaError_t wrong_halo(const device_convolution *convolution, const device_tensor *in,
                              const device_tensor *out, unsigned samples,
                              const device_epilogue *epilogue, cudaStream_t stream)
{
    device_tensor shifted = *in;
    shifted.data = (char *)in->data + 8 * element_size(in->type);
    shifted.dim[2] -= 1;
    return kernel_convolution(convolution, &shifted, out, samples, epilogue, stream);
}

static void test_wrong_halo(void **state)
{
    (void)state;
    const element_type types[] = {ELEMENT_BF16, ELEMENT_F16};
    device_kernels wrong = device_kernels_run;
    wrong.convolution_halo = wrong_halo;
    for (int i = 0; i < 4; i++) {
        network_case k;
        made m = {0};
        dm_error err = {0};
        case_begin(&k, types[i % 2]);
        k.step.kind = STEP_CONV;
        k.node.op = OP_CONV;
        for (int a = 0; a < 3; a++) {
            k.node.kernel[a] = 3;
            k.node.pad_begin[a] = k.node.pad_end[a] = 1;
        }
        k.step.in = case_tensor(&k, types[i % 2], 32, 4, 8, 16, 0, 0);
        k.step.out = case_tensor(&k, types[i % 2], 16, 4, 8, 16, 0, 0);
        k.step.weight = case_floats(&k, (size_t)32 * 16 * 27);
        case_ends(&k);
        assert_int_equal(cudaStreamCreate(&m.stream), cudaSuccess);
        assert_int_equal(device_parameters_create(types[i % 2], &m.parameters, &err), DM_OK);
        const device_network_options options = {.batch = 1,
                                                .convolutions = DM_CONVOLUTIONS_OWN,
                                                .cache_bytes = SIZE_MAX,
                                                .kernels = i < 2 ? NULL : &wrong,
                                                .parameters = m.parameters,
                                                .stream = m.stream};
        assert_int_equal(device_network_create(&k.p, &options, &m.network, &err), DM_OK);
        assert_string_equal(device_network_way(m.network, 0),
                            i < 2 ? "kernel_convolution_halo" : OWN);
        assert_int_equal(*device_network_rejections(m.network) == '\0', i < 2);
        clear(&m);
        case_end(&k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_plans_are_kept),
        cmocka_unit_test(test_plans_in_use_stay),
        cmocka_unit_test(test_precompiled),
        cmocka_unit_test(test_short_memory),
        cmocka_unit_test(test_checks_take_no_memory),
        cmocka_unit_test(test_wrong_halo),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
