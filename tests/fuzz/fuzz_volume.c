/* SPDX-License-Identifier: Apache-2.0 */
#include "dosemap.h"
#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    dm_error err = {0};
    dm_volume *volume = NULL;
    int fd = fuzz_file_open(data, size, path);
    dm_status status = dm_volume_read(path, &volume, &err);
    if ((status == DM_OK) != (volume != NULL) || (status != DM_OK && !err.what[0]))
        abort();
    dm_volume_free(volume);
    close(fd);
    return 0;
}
