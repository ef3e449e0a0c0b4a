/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans of the vendor's library that may be trusted: each is compared once with kernel_convolution
 * (device_library_check.c), since the library had versions whose 3D convolutions were wrong.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda/device_network_parts.h"

#define CANDIDATES 4

static void reject(device_network *net, const char *name, const library_convolution *made,
                   const char *reason)
{
    size_t used = strlen(net->rejections);
    snprintf(net->rejections + used, sizeof net->rejections - used, "%s%s: %s (%.80s)",
             used ? "; " : "", name, reason, made ? library_convolution_describe(made) : "no plan");
}

void library_free_entries(device_network *net)
{
    while (net->library) {
        library_entry *next = net->library->next;
        library_convolution_free(net->library->convolution);
        free(net->library);
        net->library = next;
    }
}

static const library_entry *known(const device_network *net, const library_convolution_spec *spec)
{
    for (const library_entry *e = net->library; e; e = e->next)
        if (memcmp(&e->spec, spec, sizeof *spec) == 0)
            return e;
    return NULL;
}

/* Was it the plan that failed, and not the device? */
static bool is_alive(const device_network *net)
{
    (void)cudaGetLastError();
    return cudaStreamSynchronize(net->options.stream) == cudaSuccess;
}

/* The library's refusals and failures are answers; a lack of memory that a smaller batch may mend,
 * and a device that does not work any more, are not. */
static dm_status try_candidates(device_network *net, const char *name, library_entry *entry,
                                const device_convolution *conv, const float *bias, dm_error *err)
{
    for (unsigned candidate = 0; candidate < CANDIDATES; candidate++) {
        library_convolution *made = NULL;
        char reason[64] = "";
        dm_status status =
            library_convolution_create(net->options.library, &entry->spec, candidate, &made, err);
        if (status == DM_OK)
            status = library_check(net, &entry->spec, conv, bias, made, reason, err);
        if (status == DM_OK && !reason[0]) {
            entry->convolution = made;
            return DM_OK;
        }
        if (status == DM_OK)
            reject(net, name, made, reason);
        /* Nothing of the plan may be under way when it goes. */
        bool alive = status == DM_OK || status == DM_ERROR_UNSUPPORTED || is_alive(net);
        if (status == DM_ERROR_DEVICE && alive) {
            reject(net, name, made, "fails");
            status = made ? DM_OK : DM_ERROR_UNSUPPORTED;
        }
        /* No smaller batch would help; kernels of ours take less. */
        if (status == DM_ERROR_MEMORY && alive && net->options.batch == 1) {
            reject(net, name, made, "memory is short");
            status = DM_ERROR_UNSUPPORTED;
        }
        library_convolution_free(made);
        if (status != DM_OK)
            return status == DM_ERROR_UNSUPPORTED ? DM_OK : status;
    }
    return DM_OK;
}

dm_status library_find(device_network *net, const char *name, const library_convolution_spec *spec,
                       const device_convolution *conv, const float *bias,
                       const library_convolution **found, dm_error *err)
{
    const library_entry *old = known(net, spec);
    dm_error ignored = {0}; /* of refusals */
    *found = old ? old->convolution : NULL;
    if (old || !net->options.library)
        return DM_OK;
    library_entry *entry = array_zero(1, sizeof *entry);
    if (!entry)
        return error_memory(err, sizeof *entry, "the library's plans");
    memcpy(&entry->spec, spec, sizeof *spec);
    entry->next = net->library;
    net->library = entry;
    dm_status status = try_candidates(net, name, entry, conv, bias, &ignored);
    *found = entry->convolution;
    if (status != DM_OK && err)
        *err = ignored;
    return status;
}
