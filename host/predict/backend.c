/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a device name means. */
#include "predict/backend.h"

#include <string.h>

#include "base/error.h"
#include "predict/cuda_module.h"

static dm_status select_cuda(int device, const backend **chosen, dm_error *err)
{
    const cuda_module *module;
    cuda_facts facts;
    dm_status status = cuda_module_load(&module, err);
    if (status == DM_OK)
        status = module->probe(device, &facts, err);
    if (status == DM_OK)
        *chosen = module->backend;
    return status;
}

/* What cannot be used is no error here. */
static const backend *select_auto(void)
{
    const cuda_module *module;
    cuda_facts facts;
    if (cuda_module_load(&module, NULL) == DM_OK && !module->emulated &&
        module->probe(0, &facts, NULL) == DM_OK)
        return module->backend;
    return &cpu_backend;
}

dm_status backend_select(const char *device, const backend **chosen, dm_error *err)
{
    *chosen = NULL;
    if (!device || strcmp(device, "auto") == 0) {
        *chosen = select_auto();
        return DM_OK;
    }
    if (strcmp(device, "cpu") == 0) {
        *chosen = &cpu_backend;
        return DM_OK;
    }
    int number = cuda_device_number(device);
    if (number >= 0)
        return select_cuda(number, chosen, err);
    return error_set(err, DM_ERROR_VALUE, NULL, "use auto, cpu, cuda, or cuda:N",
                     "there is no device '%s'", device);
}
