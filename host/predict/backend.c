/* SPDX-License-Identifier: Apache-2.0 */
/* Which backend a device name means. */
#include "predict/backend.h"

#include <string.h>

#include "base/error.h"
#include "predict/cuda_module.h"

/* Can the device be used for such convolutions? */
static dm_status probe(const cuda_module *module, int device, dm_convolutions convolutions,
                       dm_error *err)
{
    cuda_facts facts = {0};
    dm_error problem = {0};
    dm_status status = module->probe(device, &facts, &problem);
    if (status == DM_OK || (convolutions == DM_CONVOLUTIONS_OWN && facts.lacks_library))
        return DM_OK;
    if (err)
        *err = problem;
    return status;
}

static dm_status select_cuda(int device, dm_convolutions convolutions, const backend **chosen,
                             dm_error *err)
{
    const cuda_module *module;
    dm_status status = cuda_module_load(&module, err);
    if (status == DM_OK)
        status = probe(module, device, convolutions, err);
    if (status == DM_OK)
        *chosen = module->backend;
    return status;
}

/* What cannot be used is no error here. */
static const backend *select_auto(dm_convolutions convolutions)
{
    const cuda_module *module;
    if (cuda_module_load(&module, NULL) == DM_OK && !module->emulated &&
        probe(module, 0, convolutions, NULL) == DM_OK)
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
    int number = cuda_device_number(device);
    if (number >= 0)
        return select_cuda(number, convolutions, chosen, err);
    return error_set(err, DM_ERROR_VALUE, NULL, "use auto, cpu, cuda, or cuda:N",
                     "there is no device '%s'", device);
}
