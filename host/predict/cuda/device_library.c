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

/* A plan of the library, or that there is none, for one spec. */
typedef struct library_entry {
    library_convolution_spec spec;
    char *engine; /* that was asked for by name; NULL: the first that computes rightly */
    library_convolution *convolution; /* NULL: none that computes rightly */
    size_t users;                     /* operations of networks */
    struct library_entry *next;
} library_entry;

struct library_plans {
    convolution_library *library;
    library_entry *first; /* used last */
    char rejections[400];
};

/* ---- Keeping -------------------------------------------------------------------------------- */

dm_status library_plans_create(convolution_library *library, library_plans **created, dm_error *err)
{
    library_plans *plans = *created = array_zero(1, sizeof *plans);
    if (!plans)
        return error_memory(err, sizeof *plans, "the library's plans");
    plans->library = library;
    return DM_OK;
}

static void free_entry(library_entry *entry)
{
    library_convolution_free(entry->convolution);
    free(entry->engine);
    free(entry);
}

void library_plans_free(library_plans *plans)
{
    while (plans && plans->first) {
        library_entry *next = plans->first->next;
        free_entry(plans->first);
        plans->first = next;
    }
    free(plans);
}

const char *library_plans_rejections(const library_plans *plans)
{
    return plans->rejections;
}

static void put_first(library_plans *plans, library_entry *entry)
{
    entry->next = plans->first;
    plans->first = entry;
}

static bool is_entry_for(const library_entry *entry, const library_convolution_spec *spec,
                         const char *engine)
{
    bool same =
        engine && entry->engine ? strcmp(entry->engine, engine) == 0 : !engine && !entry->engine;
    return same && library_convolution_same(&entry->spec, spec);
}

/* The entry for a spec, moved to the front; NULL if there is none. */
static library_entry *known(library_plans *plans, const library_convolution_spec *spec,
                            const char *engine)
{
    for (library_entry **at = &plans->first; *at; at = &(*at)->next) {
        library_entry *entry = *at;
        if (is_entry_for(entry, spec, engine)) {
            *at = entry->next;
            put_first(plans, entry);
            return entry;
        }
    }
    return NULL;
}

/* Those behind the first LIBRARY_PLANS_KEPT that nobody uses. */
static void drop_old(library_plans *plans)
{
    size_t n = 0;
    for (library_entry **at = &plans->first; *at;) {
        library_entry *entry = *at;
        if (n++ < LIBRARY_PLANS_KEPT || entry->users > 0) {
            at = &entry->next;
        } else {
            *at = entry->next;
            free_entry(entry);
        }
    }
}

void library_release(library_plans *plans, const library_convolution *convolution)
{
    for (library_entry *e = plans && convolution ? plans->first : NULL; e; e = e->next)
        if (e->convolution == convolution)
            e->users--;
}

/* ---- Finding -------------------------------------------------------------------------------- */

/* Networks of several sizes may say the same. */
static void reject(library_plans *plans, const char *name, const library_convolution *made,
                   const char *reason)
{
    char text[240];
    size_t used = strlen(plans->rejections);
    snprintf(text, sizeof text, "%.60s: %s (%.80s)", name, reason,
             made ? library_convolution_describe(made) : "no plan");
    if (!strstr(plans->rejections, text))
        snprintf(plans->rejections + used, sizeof plans->rejections - used, "%s%s",
                 used ? "; " : "", text);
}

/* Was it the plan that failed, and not the device? */
static bool is_alive(const device_network *net)
{
    (void)cudaGetLastError();
    return cudaStreamSynchronize(net->options.stream) == cudaSuccess;
}

/* The library's refusals and failures are answers; a lack of memory that a smaller batch may mend,
 * and a device that does not work any more, are not. status: of making the plan. A reason, if the
 * answer is that it may not be used. */
static dm_status judge(device_network *net, const library_convolution_spec *spec,
                       const device_convolution *conv, const float *bias, dm_status status,
                       const library_convolution *made, char reason[64], dm_error *err)
{
    reason[0] = '\0';
    if (status == DM_OK && !net->options.dry)
        status = library_check(net, spec, conv, bias, made, reason, err);
    if (status == DM_OK && !reason[0])
        return DM_OK;
    /* Nothing of the plan may be under way when it goes. */
    bool alive = status == DM_OK || status == DM_ERROR_UNSUPPORTED || is_alive(net);
    if (status == DM_ERROR_DEVICE && alive) {
        snprintf(reason, 64, "fails");
        status = DM_OK;
    }
    /* No smaller batch would help; kernels of ours take less. */
    if (status == DM_ERROR_MEMORY && alive && net->options.batch == 1) {
        snprintf(reason, 64, "memory is short");
        status = DM_OK;
    }
    return status;
}

/* The first candidate that computes rightly. */
static dm_status try_candidates(device_network *net, const char *name, library_entry *entry,
                                const device_convolution *conv, const float *bias, dm_error *err)
{
    for (unsigned candidate = 0; candidate < CANDIDATES; candidate++) {
        library_convolution *made = NULL;
        char reason[64];
        dm_status status = library_convolution_create(net->options.plans->library, &entry->spec,
                                                      candidate, &made, err);
        status = judge(net, &entry->spec, conv, bias, status, made, reason, err);
        if (status == DM_OK && !reason[0]) {
            entry->convolution = made;
            return DM_OK;
        }
        bool last = status != DM_OK || !made || strcmp(reason, "memory is short") == 0;
        if (status == DM_OK)
            reject(net->options.plans, name, made, reason);
        library_convolution_free(made);
        if (last)
            return status == DM_ERROR_UNSUPPORTED ? DM_OK : status;
    }
    return DM_OK;
}

dm_status library_try(device_network *net, const library_convolution_spec *spec, unsigned n,
                      const device_convolution *conv, const float *bias, library_convolution **made,
                      char reason[64], dm_error *err)
{
    dm_error refusal = {0};
    dm_status status =
        library_convolution_create(net->options.plans->library, spec, n, made, &refusal);
    status = judge(net, spec, conv, bias, status, *made, reason, &refusal);
    if (status != DM_OK || reason[0]) {
        library_convolution_free(*made);
        *made = NULL;
    }
    if (status == DM_ERROR_UNSUPPORTED)
        return DM_OK;
    if (status != DM_OK && err)
        *err = refusal;
    return status;
}

/* The plan that the layer names, if it computes rightly. */
static dm_status try_tuned(device_network *net, const char *name, library_entry *entry,
                           const tuned_layer *layer, const device_convolution *conv,
                           const float *bias, dm_error *err)
{
    library_convolution *made = NULL;
    char reason[64];
    dm_status status = library_convolution_find(net->options.plans->library, &entry->spec,
                                                layer->engine, layer->saved, &made, err);
    bool offered = status != DM_ERROR_UNSUPPORTED;
    status = judge(net, &entry->spec, conv, bias, status, made, reason, err);
    if (status == DM_OK && !reason[0]) {
        entry->convolution = made;
        return DM_OK;
    }
    if (status == DM_OK || !offered)
        reject(net->options.plans, name, made, offered ? reason : "not offered any more");
    library_convolution_free(made);
    return offered ? status : DM_OK;
}

/* Takes note of an answer to `spec`, or gives it up. */
static dm_status keep(library_plans *plans, library_entry *entry, dm_status status)
{
    if (status == DM_OK) {
        put_first(plans, entry);
        drop_old(plans);
    } else {
        free_entry(entry);
    }
    return status;
}

/* layer: NULL for the first one that computes rightly. */
static dm_status find(device_network *net, const char *name, const library_convolution_spec *spec,
                      const tuned_layer *layer, const device_convolution *conv, const float *bias,
                      const library_convolution **found, dm_error *err)
{
    library_plans *plans = net->options.plans;
    dm_error ignored = {0}; /* of refusals */
    *found = NULL;
    if (!plans)
        return DM_OK;
    library_entry *entry = known(plans, spec, layer ? layer->engine : NULL);
    if (!entry) {
        entry = array_zero(1, sizeof *entry);
        if (!entry)
            return error_memory(err, sizeof *entry, "the library's plans");
        memcpy(&entry->spec, spec, sizeof *spec);
        entry->engine = layer ? strdup(layer->engine) : NULL;
        dm_status status = layer && !entry->engine
                               ? error_memory(&ignored, sizeof *entry, "the library's plans")
                           : layer ? try_tuned(net, name, entry, layer, conv, bias, &ignored)
                                   : try_candidates(net, name, entry, conv, bias, &ignored);
        if (keep(plans, entry, status) != DM_OK) {
            if (err)
                *err = ignored;
            return status;
        }
    }
    *found = entry->convolution;
    entry->users += entry->convolution != NULL;
    return DM_OK;
}

dm_status library_find(device_network *net, const char *name, const library_convolution_spec *spec,
                       const device_convolution *conv, const float *bias,
                       const library_convolution **found, dm_error *err)
{
    return find(net, name, spec, NULL, conv, bias, found, err);
}

dm_status library_find_tuned(device_network *net, const char *name,
                             const library_convolution_spec *spec, const tuned_layer *layer,
                             const device_convolution *conv, const float *bias,
                             const library_convolution **found, dm_error *err)
{
    return find(net, name, spec, layer, conv, bias, found, err);
}
