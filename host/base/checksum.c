/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/error.h"
#include "base/output_file.h"

#define PIECE ((size_t)1 << 20)

void bytes_checksum(const void *bytes, size_t size, char hex[17])
{
    snprintf(hex, 17, "%016llx", (unsigned long long)XXH64(bytes, size, 0));
}

dm_status file_checksum(const char *path, char hex[17], dm_error *err)
{
    dm_status status = DM_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, DM_ERROR_IO, path, "check the path and its permissions",
                         "cannot open it: %s", strerror(errno));
    char *piece = malloc(PIECE);
    XXH64_state_t *state = XXH64_createState();
    if (!piece || !state || XXH64_reset(state, 0) != XXH_OK) {
        status = error_memory(err, PIECE, "a checksum");
        goto done;
    }
    for (;;) {
        ssize_t n = read(fd, piece, PIECE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            status = error_set(err, DM_ERROR_IO, path, "check the disk", "cannot read it: %s",
                               strerror(errno));
            goto done;
        }
        if (n == 0)
            break;
        XXH64_update(state, piece, (size_t)n);
    }
    snprintf(hex, 17, "%016llx", (unsigned long long)XXH64_digest(state));
done:
    XXH64_freeState(state);
    free(piece);
    close(fd);
    return status;
}
