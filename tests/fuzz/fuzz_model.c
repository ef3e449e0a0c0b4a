/* SPDX-License-Identifier: Apache-2.0 */
#include "dosemap.h"
#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64], *text = NULL;
    dm_error err = {0};
    dm_model *model = NULL;
    int fd = fuzz_file_open(data, size, path);
    dm_status status = dm_model_load(path, &model, &err);
    if ((status == DM_OK) != (model != NULL) || (status != DM_OK && !err.what[0]))
        abort();
    if (model && dm_model_describe(model, NULL, DM_PRECISION_FLOAT32, true, &text, &err) == DM_OK)
        dm_string_free(text);
    dm_model_free(model);
    close(fd);
    return 0;
}
