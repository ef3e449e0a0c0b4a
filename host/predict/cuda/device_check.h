/* SPDX-License-Identifier: Apache-2.0 */
/* What the CUDA runtime answers, as a dm_status with words; and memory on the device. */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_CHECK_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_CHECK_H

#include <cuda_runtime_api.h>

#include "dosemap.h"

/* DM_OK for cudaSuccess. doing: "copying the PET to the device". Out of memory is DM_ERROR_MEMORY,
 * all else DM_ERROR_DEVICE. */
dm_status device_check(cudaError_t code, const char *doing, dm_error *err);

/* For errors of parts that know what went wrong, but not what to do without them. */
void device_add_remedy(dm_status status, dm_error *err);

/* `what` names it in messages, with the bytes wanted and the bytes that are free. *data is NULL on
 * failure and for 0 bytes. Aligned to 256 bytes. */
dm_status device_alloc(void **data, size_t bytes, const char *what, dm_error *err);
void device_free(void *data); /* NULL is fine */

/* Has arrived when it returns, for all streams. */
dm_status device_copy_up(void *data, const void *host, size_t bytes, const char *doing,
                         dm_error *err);
/* Allocates and copies from the host; waits for the copy. */
dm_status device_upload(const void *host, size_t bytes, const char *what, void **data,
                        dm_error *err);

#endif
