/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does convolution_halo.cu compute on this device what convolution.cu does? It has its bf16
 * fragments loaded as fp16's, whose elements lie in the same places on all architectures that are
 * known; CUDA does not promise it for later ones. One layer of 3 x 17 voxels tells.
 */
#include "predict/cuda/device_check.h"
#include "predict/cuda/device_network_parts.h"

#define DOING "checking the convolution with halo"
#define ALIGNMENT 256

enum { DIM_Z = 1, DIM_Y = 3, DIM_X = 17, IN = 16, OUT = 16 };
enum { VOXELS = DIM_Z * DIM_Y * DIM_X, WEIGHTS = OUT * 27 * IN };
enum { PART_X, PART_WEIGHT, PART_Y, PART_REFERENCE, PART_PARTIAL, PARTS };

static device_tensor tensor_of(void *data, unsigned channels, element_type type)
{
    return (device_tensor){.data = data,
                           .sample = (size_t)VOXELS * channels,
                           .pitch = channels,
                           .channels = channels,
                           .dim = {DIM_Z, DIM_Y, DIM_X},
                           .type = type};
}

static cudaError_t run_both(const device_network *net, element_type type, void *const part[PARTS])
{
    cudaStream_t stream = net->options.stream;
    const device_epilogue nothing = {0};
    const device_convolution conv = {.kernel = {3, 3, 3},
                                     .stride = {1, 1, 1},
                                     .dilation = {1, 1, 1},
                                     .pad_begin = {1, 1, 1},
                                     .groups = 1,
                                     .weight = part[PART_WEIGHT]};
    const device_tensor in = tensor_of(part[PART_X], IN, type),
                        out = tensor_of(part[PART_Y], OUT, type),
                        reference = tensor_of(part[PART_REFERENCE], OUT, type);
    cudaError_t code = kernel_fill_random(part[PART_X], (size_t)VOXELS * IN, type, 3, stream);
    if (code == cudaSuccess)
        code = kernel_fill_random(part[PART_WEIGHT], WEIGHTS, type, 4, stream);
    if (code == cudaSuccess) /* where the launch is refused, NaN tells */
        code =
            cudaMemsetAsync(part[PART_Y], 0xff, (size_t)VOXELS * OUT * element_size(type), stream);
    if (code == cudaSuccess) {
        if (net->kernels->convolution_halo(&conv, &in, &out, 1, &nothing, stream) != cudaSuccess)
            (void)cudaGetLastError();
        code = kernel_convolution(&conv, &in, &reference, 1, &nothing, stream);
    }
    if (code == cudaSuccess)
        code = kernel_compare(part[PART_Y], part[PART_REFERENCE], (size_t)VOXELS * OUT, type, 0,
                              part[PART_PARTIAL], stream);
    return code == cudaSuccess ? cudaStreamSynchronize(stream) : code;
}

/* Wrong places give a deviation of about the values themselves; another order of sums, of less than
 * one rounding, 2^-8 at most. */
static dm_status judge(void *partial, bool *right, dm_error *err)
{
    device_deviation parts[DEVICE_COMPARE_BLOCKS];
    unsigned blocks = compare_blocks((size_t)VOXELS * OUT);
    double squares = 0, scale = 0;
    dm_status status = device_check(
        cudaMemcpy(parts, partial, blocks * sizeof *parts, cudaMemcpyDeviceToHost), DOING, err);
    for (unsigned i = 0; status == DM_OK && i < blocks; i++) {
        squares += parts[i].squares;
        scale += parts[i].scale;
    }
    *right = status == DM_OK && scale > 0 && squares <= scale * 0x1p-16;
    return status;
}

/* In the arena, which is idle while the network is made, where it is large enough. */
dm_status own_check_halo(device_network *net, element_type type, bool *right, dm_error *err)
{
    const size_t size = element_size(type),
                 bytes[PARTS] = {size * VOXELS * IN, size * WEIGHTS, size * VOXELS * OUT,
                                 size * VOXELS * OUT,
                                 compare_blocks((size_t)VOXELS * OUT) * sizeof(device_deviation)};
    size_t at[PARTS], all = 0;
    void *part[PARTS], *owned = NULL;
    dm_status status = DM_OK;
    for (int i = 0; i < PARTS; i++) {
        at[i] = all;
        all += (bytes[i] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    *right = false;
    if (all > net->layout.bytes) {
        status = device_alloc(&owned, all, DOING, err);
        net->check.most = all;
    }
    for (int i = 0; i < PARTS; i++)
        part[i] = (owned ? (unsigned char *)owned : net->arena) + at[i];
    if (status == DM_OK)
        status = device_check(run_both(net, type, part), DOING, err);
    if (status == DM_OK)
        status = judge(part[PART_PARTIAL], right, err);
    device_free(owned);
    return status;
}
