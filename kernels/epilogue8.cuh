/* SPDX-License-Identifier: Apache-2.0 */
/*
 * epilogue_apply for eight consecutive channels: what a link is, is decided once for the eight.
 * Bias, scales, shifts and operands come in 16-byte pieces where they are aligned to them, whatever
 * their type; otherwise one by one.
 */
#ifndef DOSEMAP_KERNELS_EPILOGUE8_CUH
#define DOSEMAP_KERNELS_EPILOGUE8_CUH

#include "kernels/epilogue.cuh"

template <class T> __device__ __forceinline__ float8 load8_unaligned(const T *from)
{
    if (reinterpret_cast<uintptr_t>(from) % 16 == 0)
        return load8(from);
    float8 out;
#pragma unroll
    for (int i = 0; i < 8; i++)
        out.v[i] = to_float(from[i]);
    return out;
}

__device__ __forceinline__ float8 fill8(float v)
{
    return {{v, v, v, v, v, v, v, v}};
}

/* Channels c to c + 7 of an operand. */
__device__ __forceinline__ float8 operand_load8(const device_operand &operand, const place &at,
                                                unsigned c)
{
    size_t index = operand_index(operand, at) + c * operand.c;
    if (operand.c == 0)
        return fill8(load_element(operand.data, operand.type, index));
    if (operand.type == ELEMENT_F32)
        return load8_unaligned(static_cast<const float *>(operand.data) + index);
    if (operand.type == ELEMENT_BF16)
        return load8_unaligned(static_cast<const __nv_bfloat16 *>(operand.data) + index);
    return load8_unaligned(static_cast<const __half *>(operand.data) + index);
}

/* With the operation a constant, nothing is left of the choice but its branch. */
template <chain_op OP> __device__ __forceinline__ void combine8(float8 &v, const float8 &t)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        v.v[i] = combine(OP, v.v[i], t.v[i]);
}

template <chain_op OP> __device__ __forceinline__ void activate8(float8 &v, float slope)
{
#pragma unroll
    for (int i = 0; i < 8; i++)
        v.v[i] = activate(OP, v.v[i], slope);
}

__device__ __forceinline__ void combine8_link(const device_link &link, const place &at, unsigned c,
                                              float8 &v)
{
    float8 t = operand_load8(link.operand, at, c);
    if (link.op == CHAIN_ADD_TENSOR)
        combine8<CHAIN_ADD_TENSOR>(v, t);
    else if (link.op == CHAIN_MUL_TENSOR)
        combine8<CHAIN_MUL_TENSOR>(v, t);
    else if (link.op == CHAIN_SUB_TENSOR)
        combine8<CHAIN_SUB_TENSOR>(v, t);
    else
        combine8<CHAIN_RSUB_TENSOR>(v, t);
}

__device__ __forceinline__ void channels8_link(const device_link &link, unsigned c, float8 &v)
{
    float8 scale = link.scale ? load8_unaligned(link.scale + c) : fill8(1.0f);
    if (link.op == CHAIN_PRELU) {
#pragma unroll
        for (int i = 0; i < 8; i++)
            v.v[i] = activate(CHAIN_PRELU, v.v[i], scale.v[i]);
        return;
    }
    float8 shift = link.shift ? load8_unaligned(link.shift + c) : fill8(0.0f);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v.v[i] = scale.v[i] * v.v[i] + shift.v[i];
}

__device__ __forceinline__ void activate8_link(const device_link &link, float8 &v)
{
    switch (link.op) {
    case CHAIN_RELU:
        return activate8<CHAIN_RELU>(v, 0.0f);
    case CHAIN_LEAKY_RELU:
        return activate8<CHAIN_LEAKY_RELU>(v, link.alpha);
    case CHAIN_ELU:
        return activate8<CHAIN_ELU>(v, link.alpha);
    case CHAIN_GELU:
        return activate8<CHAIN_GELU>(v, 0.0f);
    case CHAIN_GELU_TANH:
        return activate8<CHAIN_GELU_TANH>(v, 0.0f);
    case CHAIN_SIGMOID:
        return activate8<CHAIN_SIGMOID>(v, 0.0f);
    case CHAIN_TANH:
        return activate8<CHAIN_TANH>(v, 0.0f);
    case CHAIN_AT_LEAST:
        return activate8<CHAIN_AT_LEAST>(v, link.alpha);
    case CHAIN_AT_MOST:
        return activate8<CHAIN_AT_MOST>(v, link.alpha);
    default:
        return activate8<CHAIN_SOFTPLUS>(v, 0.0f);
    }
}

/* Elements (at, c) to (at, c + 7) of a step's result before they are rounded. */
__device__ __forceinline__ void epilogue_apply8(const device_epilogue &e, const place &at,
                                                unsigned c, float8 &v)
{
    if (e.bias)
        combine8<CHAIN_ADD_TENSOR>(v, load8_unaligned(e.bias + c));
    for (unsigned i = 0; i < e.n; i++) {
        const device_link &link = e.link[i];
        if (link.op <= CHAIN_RSUB_TENSOR)
            combine8_link(link, at, c, v);
        else if (link.op == CHAIN_AFFINE || link.op == CHAIN_PRELU)
            channels8_link(link, c, v);
        else
            activate8_link(link, v);
    }
}

#endif
