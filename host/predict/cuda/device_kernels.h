/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All that the device's network enqueues. It goes through this table, so that a launch can be
 * counted (device_account.h) instead of run: by the same code, with the operands that a run passes.
 */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_KERNELS_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_KERNELS_H

#include "kernels/kernels.h"
#include "predict/cuda/library_convolution.h"

/* Each as the function of kernels.h or library_convolution.h that has its name. */
typedef struct device_kernels {
    cudaError_t (*zero)(void *data, size_t bytes, cudaStream_t stream);
    cudaError_t (*pointwise)(const device_tensor *in, const device_tensor *out, unsigned samples,
                             const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*normalise_statistics)(const device_tensor *in, unsigned samples, unsigned groups,
                                        float epsilon, float *statistics, void *workspace,
                                        cudaStream_t stream);
    cudaError_t (*normalise_apply)(const device_tensor *in, const device_tensor *out,
                                   unsigned samples, unsigned groups, const float *statistics,
                                   const float *scale, const float *shift,
                                   const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*global_average)(const float *statistics, const device_tensor *out,
                                  unsigned samples, const device_epilogue *epilogue,
                                  cudaStream_t stream);
    cudaError_t (*pool)(const device_pool *pool, const device_tensor *in, const device_tensor *out,
                        unsigned samples, const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*take_voxels)(const device_axis_map axis[3], unsigned channel_begin,
                               unsigned channel_step, float fill, const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*interpolate)(const device_axis_map axis[3], const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream);
    /* convolution, convolution_first, convolution_tensor_core and convolution_halo are alike. */
    cudaError_t (*convolution)(const device_convolution *convolution, const device_tensor *in,
                               const device_tensor *out, unsigned samples,
                               const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*convolution_first)(const device_convolution *convolution, const device_tensor *in,
                                     const device_tensor *out, unsigned samples,
                                     const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*convolution_tensor_core)(const device_convolution *convolution,
                                           const device_tensor *in, const device_tensor *out,
                                           unsigned samples, const device_epilogue *epilogue,
                                           cudaStream_t stream);
    cudaError_t (*convolution_halo)(const device_convolution *convolution, const device_tensor *in,
                                    const device_tensor *out, unsigned samples,
                                    const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*unfold)(const int kernel[3], const device_tensor *blocks,
                          const device_tensor *out, unsigned samples,
                          const device_epilogue *epilogue, cudaStream_t stream);
    cudaError_t (*attention_gate)(const device_gate *gate, const device_tensor *coarse,
                                  const device_tensor *skip, const device_tensor *out,
                                  unsigned samples, cudaStream_t stream);
    dm_status (*library)(const library_convolution *convolution, const void *x, const void *weight,
                         const float *bias, const void *residual, void *y, void *workspace,
                         cudaStream_t stream, dm_error *err);
} device_kernels;

/* Those that run. */
extern const device_kernels device_kernels_run;

#endif
