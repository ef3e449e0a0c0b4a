/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_check.h"

#include <stdio.h>

#include "base/available_memory.h"
#include "base/error.h"

#define REMEDY "see 'dosemap doctor', or use --device cpu"

/* After an error of this kind nothing runs any more in this process. */
static bool is_lasting(cudaError_t code)
{
    switch (code) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorECCUncorrectable:
    case cudaErrorAssert:
        return true;
    default:
        return false;
    }
}

dm_status device_check(cudaError_t code, const char *doing, dm_error *err)
{
    if (code == cudaSuccess)
        return DM_OK;
    (void)cudaGetLastError(); /* else the next launch would report it again */
    if (code == cudaErrorMemoryAllocation)
        return error_set(err, DM_ERROR_MEMORY, NULL,
                         "close other programs that use the GPU, or use --device cpu",
                         "the device ran out of memory while %s", doing);
    return error_set(
        err, DM_ERROR_DEVICE, NULL,
        is_lasting(code)
            ? "run the command again; if it fails again, use --device cpu and report it"
            : "see 'dosemap doctor', or use --device cpu",
        "CUDA failed while %s: %s (%s)", doing, cudaGetErrorString(code), cudaGetErrorName(code));
}

void device_add_remedy(dm_status status, dm_error *err)
{
    if (status != DM_OK && err && !err->remedy[0])
        snprintf(err->remedy, sizeof err->remedy, "%s", REMEDY);
}

dm_status device_alloc(void **data, size_t bytes, const char *what, dm_error *err)
{
    char wanted[SIZE_TEXT], left[SIZE_TEXT];
    size_t free_bytes = 0, total = 0;
    *data = NULL;
    if (bytes == 0)
        return DM_OK;
    cudaError_t code = cudaMalloc(data, bytes);
    if (code == cudaSuccess)
        return DM_OK;
    *data = NULL;
    (void)cudaGetLastError();
    if (code != cudaErrorMemoryAllocation)
        return device_check(code, "allocating memory", err);
    if (cudaMemGetInfo(&free_bytes, &total) != cudaSuccess)
        (void)cudaGetLastError();
    return error_set(err, DM_ERROR_MEMORY, NULL,
                     "close other programs that use the GPU, use a smaller --tile or --batch, or "
                     "--device cpu",
                     "%s needs %s of the device's memory, of which %s is free", what,
                     size_text((double)bytes, wanted), size_text((double)free_bytes, left));
}

void device_free(void *data)
{
    if (data && cudaFree(data) != cudaSuccess)
        (void)cudaGetLastError();
}

/* From pageable memory the last part may still be on its way when cudaMemcpy returns, and streams
 * that do not wait for the default one would not see it. */
dm_status device_copy_up(void *data, const void *host, size_t bytes, const char *doing,
                         dm_error *err)
{
    cudaError_t code = cudaMemcpy(data, host, bytes, cudaMemcpyHostToDevice);
    if (code == cudaSuccess)
        code = cudaStreamSynchronize(NULL);
    return device_check(code, doing, err);
}

dm_status device_upload(const void *host, size_t bytes, const char *what, void **data,
                        dm_error *err)
{
    dm_status status = device_alloc(data, bytes, what, err);
    if (status == DM_OK && bytes > 0)
        status = device_copy_up(*data, host, bytes, what, err);
    if (status != DM_OK) {
        device_free(*data);
        *data = NULL;
    }
    return status;
}
