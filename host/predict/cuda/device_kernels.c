/* SPDX-License-Identifier: Apache-2.0 */
#include "predict/cuda/device_kernels.h"

static cudaError_t zero(void *data, size_t bytes, cudaStream_t stream)
{
    return cudaMemsetAsync(data, 0, bytes, stream);
}

const device_kernels device_kernels_run = {.zero = zero,
                                           .pointwise = kernel_pointwise,
                                           .normalise_statistics = kernel_normalise_statistics,
                                           .normalise_apply = kernel_normalise_apply,
                                           .global_average = kernel_global_average,
                                           .pool = kernel_pool,
                                           .take_voxels = kernel_take_voxels,
                                           .interpolate = kernel_interpolate,
                                           .convolution = kernel_convolution,
                                           .convolution_first = kernel_convolution_first,
                                           .convolution_tensor_core =
                                               kernel_convolution_tensor_core,
                                           .convolution_halo = kernel_convolution_halo,
                                           .unfold = kernel_unfold,
                                           .attention_gate = kernel_attention_gate,
                                           .library = library_convolution_run};
