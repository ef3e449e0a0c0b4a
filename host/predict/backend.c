/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a device name means. */
#include "predict/backend.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "predict/cuda_devices.h"
#include "predict/cuda_module.h"

/* Can the device be used for such convolutions? */
static dm_status probe(const cuda_module *module, int device, dm_convolutions convolutions,
                       cuda_facts *facts, dm_error *err)
{
    dm_error problem = {0};
    dm_status status = module->probe(device, facts, &problem);
    if (status == DM_OK || (convolutions == DM_CONVOLUTIONS_OWN && facts->lacks_library))
        return DM_OK;
    if (err)
        *err = problem;
    return status;
}

/* A device that shares volumes with the first one, and has to compute the same bits. */
static dm_status probe_further(const cuda_module *module, const cuda_devices *devices, int i,
                               const cuda_facts *first, dm_convolutions convolutions, dm_error *err)
{
    char name[32];
    cuda_facts facts = {0};
    int device = devices->number[i];
    dm_status status = probe(module, device, convolutions, &facts, err);
    if (status != DM_OK) {
        snprintf(name, sizeof name, "cuda:%d", device);
        error_at(err, name);
        return status;
    }
    if (strcmp(facts.device, first->device) == 0 &&
        memcmp(facts.capability, first->capability, sizeof facts.capability) == 0)
        return DM_OK;
    return error_set(err, DM_ERROR_DEVICE, NULL,
                     "name devices of one kind; 'nvidia-smi --list-gpus' lists them",
                     "cuda:%d (%s, compute capability %d.%d) and cuda:%d (%s, %d.%d) are not of "
                     "one kind: what they compute would differ in the last bits",
                     devices->number[0], first->device, first->capability[0], first->capability[1],
                     device, facts.device, facts.capability[0], facts.capability[1]);
}

static dm_status select_cuda(const char *name, dm_convolutions convolutions, const backend **chosen,
                             dm_error *err)
{
    const cuda_module *module = NULL;
    cuda_devices devices;
    cuda_facts first = {0};
    dm_status status = cuda_devices_parse(name, &devices, err);
    if (status == DM_OK)
        status = cuda_module_load(&module, err);
    if (status == DM_OK)
        status = probe(module, devices.all ? 0 : devices.number[0], convolutions, &first, err);
    cuda_devices_expand(&devices, first.devices);
    for (int i = 1; i < devices.n && status == DM_OK; i++)
        status = probe_further(module, &devices, i, &first, convolutions, err);
    if (status == DM_OK)
        *chosen = module->backend;
    return status;
}

/* What cannot be used is no error here. */
static const backend *select_auto(dm_convolutions convolutions)
{
    const cuda_module *module;
    cuda_facts facts = {0};
    if (cuda_module_load(&module, NULL) == DM_OK && !module->emulated &&
        probe(module, 0, convolutions, &facts, NULL) == DM_OK)
        return module->backend;
    return &cpu_backend;
}

dm_status backend_select(const char *device, dm_convolutions convolutions, const backend **chosen,
                         dm_error *err)
{
    *chosen = NULL;
    if (!device || strcmp(device, "auto") == 0) {
        *chosen = select_auto(convolutions);
        return DM_OK;
    }
    if (strcmp(device, "cpu") == 0) {
        *chosen = &cpu_backend;
        return DM_OK;
    }
    return select_cuda(device, convolutions, chosen, err);
}

element_type precision_element(dm_precision precision)
{
    return precision == DM_PRECISION_BF16   ? ELEMENT_BF16
           : precision == DM_PRECISION_FP16 ? ELEMENT_F16
                                            : ELEMENT_F32;
}

/* Libraries below count a tensor's voxels in 32 bits and divide by what has overflowed. */
static dm_status check_voxels(const plan *steps, dm_error *err)
{
    for (size_t i = 0; i < steps->n_tensors; i++) {
        const size_t *dim = steps->tensors[i].dim; /* z, y, x */
        size_t plane, voxels;
        if (!size_multiply(dim[1], dim[2], &plane) || !size_multiply(plane, dim[0], &voxels) ||
            voxels > INT32_MAX)
            return error_set(err, DM_ERROR_UNSUPPORTED, NULL, "use a smaller tile",
                             "tensor \"%s\" has %zu x %zu x %zu voxels, more than %d",
                             steps->tensors[i].name, dim[2], dim[1], dim[0], INT32_MAX);
    }
    return DM_OK;
}

dm_status backend_plan(const backend *b, const graph *g, plan_options *options, plan **made,
                       dm_error *err)
{
    b->plan_needs(options);
    dm_status status = plan_build(g, options, made, err);
    if (status == DM_OK)
        status = check_voxels(*made, err);
    if (status != DM_OK) {
        plan_free(*made);
        *made = NULL;
    }
    return status;
}
