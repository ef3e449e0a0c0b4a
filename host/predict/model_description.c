/* SPDX-License-Identifier: Apache-2.0 */
/* dm_model_describe: the plan as a backend would have it, and for a CUDA device its account. */
#include <stdlib.h>

#include "base/error.h"
#include "base/json_text.h"
#include "model/describe.h"
#include "predict/cuda_module.h"
#include "predict/predictor.h"

void dm_describe_options_init(dm_describe_options *options)
{
    *options = (dm_describe_options){.precision = DM_PRECISION_FLOAT32};
}

static dm_status check_options(const dm_describe_options *o, dm_error *err)
{
    if ((unsigned)o->precision > DM_PRECISION_FP16)
        return error_set(err, DM_ERROR_VALUE, NULL, "use one of the listed precisions",
                         "there is no precision number %d", (int)o->precision);
    if ((unsigned)o->plan > DM_PLAN_CUDA)
        return error_set(err, DM_ERROR_VALUE, NULL, "use cpu or cuda", "there is no plan number %d",
                         (int)o->plan);
    if ((unsigned)o->convolutions > DM_CONVOLUTIONS_OWN)
        return error_set(err, DM_ERROR_VALUE, NULL, "use auto, library or own",
                         "there is no choice of convolutions number %d", (int)o->convolutions);
    if (o->batch > PREDICT_BATCH_MAX)
        return error_set(err, DM_ERROR_VALUE, NULL, "use fewer windows per call",
                         "batch %u is above %d", o->batch, PREDICT_BATCH_MAX);
    return DM_OK;
}

/* ---- The device's account ------------------------------------------------------------------- */

/* A file's JSON as text, for whom it is meant; NULL without a file. */
static dm_status read_properties(const char *path, char **text, dm_error *err)
{
    json_t *root = NULL;
    *text = NULL;
    dm_status status = path ? json_parse_file(path, &root, err) : DM_OK;
    if (root)
        status = json_print(root, text, err);
    json_decref(root);
    return status;
}

static dm_status make_account(const cuda_module *module, const plan *p,
                              const dm_describe_options *options, plan_account *account,
                              dm_error *err)
{
    char *properties = NULL;
    dm_status status = read_properties(options->device_properties, &properties, err);
    if (status != DM_OK)
        return status;
    const cuda_account_options wanted = {.precision = options->precision,
                                         .batch = options->batch,
                                         .windows = options->windows,
                                         .convolutions = options->convolutions,
                                         .device_properties = properties};
    status = module->account(p, &wanted, account, err);
    dm_string_free(properties);
    if (status == DM_ERROR_VALUE && options->device_properties)
        error_at(err, options->device_properties);
    return status;
}

/* ---- All of it ------------------------------------------------------------------------------ */

static plan_options plan_options_of(const dm_model *model, const dm_describe_options *options,
                                    const cuda_module *module)
{
    int dose = graph_dose_output(&model->graph);
    plan_options made = {.optimise = true, .output = dose < 0 ? 0 : (size_t)dose};
    made.type = precision_element(options->precision);
    for (int a = 0; a < 3; a++)
        made.tile[a] = options->tile[2 - a] ? options->tile[2 - a] : model->graph.patch[2 - a];
    if (module)
        module->backend->plan_needs(&made);
    else
        plan_options_cpu(&made);
    return made;
}

static dm_status describe(const dm_model *model, const dm_describe_options *options,
                          const cuda_module *module, char **text, dm_error *err)
{
    const plan_options wanted = plan_options_of(model, options, module);
    plan *p = NULL;
    plan_account account = {.n_rows = 0};
    dm_precision precision =
        options->precision == DM_PRECISION_AUTO ? DM_PRECISION_FLOAT32 : options->precision;
    dm_status status = plan_build(&model->graph, &wanted, &p, err);
    if (status != DM_OK)
        error_at(err, model->path);
    if (status == DM_OK && module)
        status = make_account(module, p, options, &account, err);
    if (status == DM_OK)
        status = model_describe(model, p, precision_name(precision), module ? &account : NULL,
                                options->as_json, text, err);
    plan_account_clear(&account);
    plan_free(p);
    return status;
}

dm_status dm_model_describe(const dm_model *model, const dm_describe_options *options, char **text,
                            dm_error *err)
{
    dm_describe_options defaults;
    const cuda_module *module = NULL;
    *text = NULL;
    dm_describe_options_init(&defaults);
    if (!options)
        options = &defaults;
    dm_status status = check_options(options, err);
    if (status == DM_OK && options->plan == DM_PLAN_CUDA)
        status = cuda_module_load(&module, err);
    return status == DM_OK ? describe(model, options, module, text, err) : status;
}
