/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/cuda_tune.h"

#include <stdio.h>

#include "base/error.h"
#include "base/json_text.h"
#include "predict/cuda/cuda_tuning.h"
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_tune.h"

/* ---- Using what was found ------------------------------------------------------------------- */

void cuda_state_forget_tuning(cuda_state *s)
{
    tuning_free(s->tuning);
    s->tuning = NULL;
    s->tuning_batch = 0;
    s->tuning_problem[0] = '\0';
}

dm_status cuda_state_tuning(cuda_state *s, unsigned batch, dm_error *err)
{
    tuning_key key;
    if (s->convolutions != DM_CONVOLUTIONS_AUTO || s->tuning_batch == batch)
        return DM_OK;
    cuda_state_forget_tuning(s);
    dm_status status = tuning_key_of(s, batch, &key, err);
    if (status == DM_OK)
        status = tuning_load(&key, &s->tuning, s->tuning_problem, err);
    if (status == DM_OK)
        s->tuning_batch = batch;
    return status;
}

/* ---- Finding it ----------------------------------------------------------------------------- */

typedef struct watcher {
    dm_progress progress;
    void *user;
} watcher;

static dm_status report_tuning(void *context, double share, dm_error *err)
{
    const watcher *w = context;
    if (w->progress && w->progress(w->user, share, "tuning") != 0)
        return error_set(err, DM_CANCELLED, NULL, NULL, "cancelled");
    return DM_OK;
}

static dm_status report_preparing(void *context, dm_error *err)
{
    return report_tuning(context, 0, err);
}

static dm_status tune_network(const cuda_state *s, unsigned batch, watcher *w, device_tuned *tuned,
                              dm_error *err)
{
    device_network *net = NULL;
    const device_network_options options = {.batch = batch,
                                            .tf32 = s->tf32,
                                            .join_head = true,
                                            .compile = true,
                                            .cache_bytes = s->cache_bytes,
                                            .plans = s->plans,
                                            .convolutions = DM_CONVOLUTIONS_OWN,
                                            .parameters = s->parameters,
                                            .stream = s->stream,
                                            .go_on = report_preparing,
                                            .context = w};
    const device_tune_options tune = {.go_on = report_tuning, .context = w};
    dm_status status = device_network_create(s->plan, &options, &net, err);
    if (status == DM_OK)
        status = device_network_tune(net, &tune, tuned, err);
    device_network_free(net);
    return status;
}

/* Whatever was looked for before is looked for again. Devices that share volumes do as the first
 * one, where they are alike: what they compute has to be the same. */
static void forget_networks(cuda_state *s)
{
    for (size_t i = s->n_peers + 1; i-- > 0;) {
        cuda_state *each = i > 0 ? s->peer[i - 1] : s; /* last: its device stays the current one */
        (void)cudaSetDevice(each->device);
        device_network_free(each->network);
        each->network = NULL;
        cuda_state_forget_tuning(each);
    }
}

static dm_status save(const tuning_key *key, device_tuned *tuned, char **text, dm_error *err)
{
    char path[TUNING_PATH], checksum[17];
    dm_status status = tuning_save(key, tuned->layers, tuned->n, path, checksum, err);
    if (status != DM_OK || !text)
        return status;
    json_put(&tuned->report, "batch", json_integer((json_int_t)key->batch));
    json_put(&tuned->report, "file", json_string_or_null(path));
    json_put(&tuned->report, "xxh64", json_string(checksum));
    return tuned->report ? json_print(tuned->report, text, err)
                         : error_memory(err, sizeof path, "what tuning found");
}

dm_status cuda_tune(void *state, unsigned batch, dm_progress progress, void *user,
                    char **report_json, dm_error *err)
{
    cuda_state *s = state;
    watcher w = {progress, user};
    device_tuned tuned = {0};
    tuning_key key;
    if (report_json)
        *report_json = NULL;
    if (s->convolutions != DM_CONVOLUTIONS_AUTO)
        return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use --convolutions auto",
                         "tuning chooses between the library's convolutions and our own");
    if (batch == 0)
        batch = cuda_state_batch(s, SIZE_MAX);
    dm_status status = device_check(cudaSetDevice(s->device), "opening the device", err);
    if (status == DM_OK)
        status = tuning_key_of(s, batch, &key, err);
    if (status == DM_OK) /* before it takes minutes */
        status = tuning_check_folder(&key, err);
    if (status != DM_OK)
        return status;
    forget_networks(s);
    status = tune_network(s, batch, &w, &tuned, err);
    if (status == DM_OK)
        status = save(&key, &tuned, report_json, err);
    device_tuned_clear(&tuned);
    return status;
}
