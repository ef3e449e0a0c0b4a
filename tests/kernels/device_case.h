/* SPDX-License-Identifier: Apache-2.0 */
/* Is there a device to test on? The emulation always has one. */
#ifndef DOSEMAP_TESTS_DEVICE_CASE_H
#define DOSEMAP_TESTS_DEVICE_CASE_H

#include <stdio.h>

#include <cuda_runtime.h>

/* For main() to return unless it is 0: 77, which ctest counts as skipped. */
static inline int skipped_without_device(void)
{
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error == cudaSuccess && devices > 0)
        return 0;
    fprintf(stderr, "skipped: no GPU to run on (%s)\n",
            error == cudaSuccess ? "the driver has none" : cudaGetErrorString(error));
    return 77;
}

#endif
