/* SPDX-License-Identifier: Apache-2.0 */
/* The backends of this build, and which one a device name means. */
#include "predict/backend.h"

#include <string.h>

#include "base/error.h"

dm_status backend_select(const char *device, const backend **chosen, dm_error *err)
{
    *chosen = NULL;
    if (!device || strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0) {
        *chosen = &cpu_backend;
        return DM_OK;
    }
    if (strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0)
        return error_set(err, DM_ERROR_DEVICE, NULL,
                         "use --device cpu, or a dosemap built with -DDOSEMAP_CUDA=ON",
                         "this dosemap was built without CUDA (device '%s')", device);
    return error_set(err, DM_ERROR_VALUE, NULL, "use auto, cpu, cuda, or cuda:N",
                     "there is no device '%s'", device);
}
