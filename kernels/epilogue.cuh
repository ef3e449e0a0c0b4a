/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of every step: float value -> bias -> links of the chain -> rounded once -> stored.
 *
 * The result may lie where an operand of the chain, or the input of a pointwise step, lay: each
 * element is read, once, by the thread that writes it. So nothing here is __restrict__ or __ldg.
 * Activation functions by the device's own expf, tanhf, log1pf, erfcf: within 2 ulp of float.
 */
#ifndef DOSEMAP_KERNELS_EPILOGUE_CUH
#define DOSEMAP_KERNELS_EPILOGUE_CUH

#include "kernels/device.cuh"
#include "kernels/kernels.h"

/* Where a thread is: sample, voxel (z, y, x) of the result. */
struct place {
    unsigned sample;
    unsigned z, y, x;
};

/* Of the voxel with that number in a tensor of size dim. */
__device__ __forceinline__ place place_of(unsigned sample, unsigned voxel, const unsigned dim[3])
{
    place p;
    p.sample = sample;
    p.x = voxel % dim[2];
    unsigned row = voxel / dim[2];
    p.y = row % dim[1];
    p.z = row / dim[1];
    return p;
}

/* slope: alpha, or a channel's slope of PRELU. NaN stays NaN. */
__device__ __forceinline__ float activate(chain_op op, float v, float slope)
{
    switch (op) {
    case CHAIN_RELU:
        return v < 0 ? 0 : v;
    case CHAIN_LEAKY_RELU:
    case CHAIN_PRELU:
        return v < 0 ? slope * v : v;
    case CHAIN_ELU:
        return v < 0 ? slope * expm1f(v) : v;
    case CHAIN_GELU: /* erfc, not 1 + erf: gelu(-5) would be lost in the subtraction */
        return 0.5f * v * erfcf(-0.70710678f * v);
    case CHAIN_GELU_TANH:
        /* 0.5 (1 + tanh u) is the logistic function of 2u, which keeps its small values. */
        return v / (1.0f + expf(-1.59576912f * (v + 0.044715f * v * v * v)));
    case CHAIN_SIGMOID:
        return 1.0f / (1.0f + expf(-v));
    case CHAIN_TANH:
        return tanhf(v);
    case CHAIN_SOFTPLUS:
        return (v > 0 ? v : 0) + log1pf(expf(-fabsf(v)));
    case CHAIN_AT_LEAST:
        return v < slope ? slope : v;
    case CHAIN_AT_MOST:
        return v > slope ? slope : v;
    default:
        return v;
    }
}

__device__ __forceinline__ float combine(chain_op op, float v, float t)
{
    switch (op) {
    case CHAIN_ADD_TENSOR:
        return v + t;
    case CHAIN_MUL_TENSOR:
        return v * t;
    case CHAIN_SUB_TENSOR:
        return v - t;
    default:
        return t - v;
    }
}

__device__ __forceinline__ size_t operand_index(const device_operand &operand, const place &at)
{
    return at.sample * operand.sample + at.z * operand.z + at.y * operand.y + at.x * operand.x;
}

/* Element (at, c) of a step's result before it is rounded. */
__device__ __forceinline__ float epilogue_apply(const device_epilogue &e, const place &at,
                                                unsigned c, float v)
{
    if (e.bias)
        v += e.bias[c];
    for (unsigned i = 0; i < e.n; i++) {
        const device_link &link = e.link[i];
        if (link.op <= CHAIN_RSUB_TENSOR)
            v = combine(link.op, v,
                        load_element(link.operand.data, link.operand.type,
                                     operand_index(link.operand, at) + c * link.operand.c));
        else if (link.op == CHAIN_AFFINE)
            v = (link.scale ? link.scale[c] : 1.0f) * v + (link.shift ? link.shift[c] : 0.0f);
        else
            v = activate(link.op, v, link.op == CHAIN_PRELU ? link.scale[c] : link.alpha);
    }
    return v;
}

/* Can eight channels from a multiple of 8 on be moved at once? */
static inline bool tensor_moves_8(const device_tensor *t)
{
    return t->channels % 8 == 0 && t->pitch % 8 == 0 && t->sample % 8 == 0 &&
           reinterpret_cast<uintptr_t>(t->data) % 16 == 0;
}

#endif
