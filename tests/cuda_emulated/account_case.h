/* SPDX-License-Identifier: Apache-2.0 */
/* A device's network with all that it needs, dry or not, and its account. Include after cmocka.h. */
#ifndef DOSEMAP_TESTS_ACCOUNT_CASE_H
#define DOSEMAP_TESTS_ACCOUNT_CASE_H

#include "plan_case.h"
#include "predict/cuda/device_account.h"
#include "predict/cuda/device_network_parts.h"

typedef struct network_made {
    cudaStream_t stream;
    convolution_library *library;
    library_plans *plans;
    device_parameters *parameters;
    device_network *net;
} network_made;

typedef struct network_kind {
    unsigned batch;
    size_t cache_bytes;
    bool dry, own, compile, whole_output; /* the last: its head is not joined */
    const device_kernels *kernels;
} network_kind;

static inline network_made make(const plan *p, network_kind w)
{
    network_made m = {0};
    dm_error err = {0};
    if (!w.dry)
        assert_int_equal(cudaStreamCreate(&m.stream), cudaSuccess);
    if (!w.own) {
        assert_int_equal(convolution_library_open(&m.library, &err), DM_OK);
        assert_int_equal(library_plans_create(m.library, &m.plans, &err), DM_OK);
    }
    assert_int_equal(w.dry ? device_parameters_create_dry(p->options.type, &m.parameters, &err)
                           : device_parameters_create(p->options.type, &m.parameters, &err),
                     DM_OK);
    const device_network_options options = {.batch = w.batch,
                                            .join_head = !w.whole_output,
                                            .compile = w.compile,
                                            .cache_bytes = w.cache_bytes,
                                            .plans = m.plans,
                                            .convolutions = w.own ? DM_CONVOLUTIONS_OWN
                                                                  : DM_CONVOLUTIONS_LIBRARY,
                                            .kernels = w.kernels,
                                            .parameters = m.parameters,
                                            .stream = m.stream,
                                            .dry = w.dry};
    if (device_network_create(p, &options, &m.net, &err) != DM_OK)
        fail_msg("%s", err.what);
    return m;
}

static inline void clear(network_made *m)
{
    device_network_free(m->net);
    device_parameters_free(m->parameters);
    library_plans_free(m->plans);
    convolution_library_free(m->library);
    if (m->stream)
        assert_int_equal(cudaStreamDestroy(m->stream), cudaSuccess);
}

static inline device_account account_of(const device_network *net)
{
    device_account account;
    dm_error err = {0};
    assert_int_equal(device_account_make(net, &account, &err), DM_OK);
    return account;
}

#endif
