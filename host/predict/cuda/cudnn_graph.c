/* SPDX-License-Identifier: Apache-2.0 */
/* What a spec is in cuDNN's words: tensors, operations, and the graph that they make. */
#include "predict/cuda/cudnn_library.h"

/* Channels-last; cuDNN wants sizes and strides as N, C, D, H, W. */
static descriptor tensor(builder *b, int64_t uid, cudnnDataType_t type, size_t samples,
                         size_t channels, const size_t dim[3])
{
    const int64_t c = (int64_t)channels, x = (int64_t)dim[2] * c, y = (int64_t)dim[1] * x;
    const int64_t size[5] = {(int64_t)samples, c, (int64_t)dim[0], (int64_t)dim[1],
                             (int64_t)dim[2]};
    const int64_t stride[5] = {(int64_t)dim[0] * y, 1, y, x, c};
    const int64_t alignment = uid == UID_BIAS ? 4 : LIBRARY_CONVOLUTION_ALIGNMENT;
    const bool between = uid >= UID_BETWEEN;
    descriptor t = cudnn_make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    cudnn_set(b, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    cudnn_set(b, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    cudnn_set(b, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 5, size);
    cudnn_set(b, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 5, stride);
    cudnn_set(b, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    cudnn_set(b, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &between);
    cudnn_finish(b, t, "a tensor");
    return t;
}

static cudnnDataType_t data_type(element_type type)
{
    return type == ELEMENT_F32    ? CUDNN_DATA_FLOAT
           : type == ELEMENT_BF16 ? CUDNN_DATA_BFLOAT16
                                  : CUDNN_DATA_HALF;
}

/* What a step of the chain writes: y behind the last, else a value that stays in registers. */
static descriptor result(builder *b, const library_convolution_spec *s, int steps_left)
{
    return steps_left == 0
               ? tensor(b, UID_Y, data_type(s->type), s->samples, s->out_channels, s->out_dim)
               : tensor(b, UID_BETWEEN + steps_left, CUDNN_DATA_FLOAT, s->samples, s->out_channels,
                        s->out_dim);
}

static void set_triple(builder *b, descriptor d, cudnnBackendAttributeName_t name, const int v[3])
{
    const int64_t wide[3] = {v[0], v[1], v[2]};
    cudnn_set(b, d, name, CUDNN_TYPE_INT64, 3, wide);
}

static descriptor convolution(builder *b, const library_convolution_spec *s, descriptor to)
{
    const cudnnDataType_t type = data_type(s->type), sums = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t axes = 3;
    const float one = 1, zero = 0;
    const size_t kernel[3] = {(size_t)s->kernel[0], (size_t)s->kernel[1], (size_t)s->kernel[2]};
    descriptor x = tensor(b, UID_X, type, s->samples, s->in_channels, s->in_dim);
    descriptor w =
        tensor(b, UID_WEIGHT, type, s->out_channels, s->in_channels / (size_t)s->groups, kernel);

    descriptor c = cudnn_make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    cudnn_set(b, c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    cudnn_set(b, c, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    cudnn_set(b, c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &axes);
    set_triple(b, c, CUDNN_ATTR_CONVOLUTION_DILATIONS, s->dilation);
    set_triple(b, c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, s->stride);
    set_triple(b, c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, s->pad_begin);
    set_triple(b, c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, s->pad_end);
    cudnn_finish(b, c, "the convolution");

    descriptor o = cudnn_make(b, CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
    cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
    cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, to);
    cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, c);
    cudnn_set(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_FLOAT, 1, &one);
    cudnn_set(b, o, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_FLOAT, 1, &zero);
    cudnn_finish(b, o, "the convolution");
    return o;
}

/* to = from + operand, or without an operand LeakyReLU(from). */
static descriptor pointwise(builder *b, const library_convolution_spec *s, descriptor from,
                            descriptor operand, descriptor to)
{
    const cudnnPointwiseMode_t mode = operand ? CUDNN_POINTWISE_ADD : CUDNN_POINTWISE_RELU_FWD;
    const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
    /* A NaN must stay one: it is an error that shows in the dose. */
    const cudnnNanPropagation_t nan = CUDNN_PROPAGATE_NAN;
    const double slope = (double)s->slope;
    descriptor p = cudnn_make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    cudnn_set(b, p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    cudnn_set(b, p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    if (!operand) {
        cudnn_set(b, p, CUDNN_ATTR_POINTWISE_NAN_PROPAGATION, CUDNN_TYPE_NAN_PROPOGATION, 1, &nan);
        cudnn_set(b, p, CUDNN_ATTR_POINTWISE_RELU_LOWER_CLIP_SLOPE, CUDNN_TYPE_DOUBLE, 1, &slope);
    }
    cudnn_finish(b, p, "a joined operation");

    descriptor o = cudnn_make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
    cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, from);
    if (operand)
        cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, operand);
    cudnn_set_descriptor(b, o, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, to);
    cudnn_finish(b, o, "a joined operation");
    return o;
}

descriptor cudnn_graph_of(builder *b, const library_convolution_spec *s)
{
    static const size_t one_voxel[3] = {1, 1, 1};
    int left = s->bias + s->residual + s->activate;
    descriptor value = result(b, s, left), operand, to, operation[4];
    int64_t n = 0;
    operation[n++] = convolution(b, s, value);
    if (s->bias) {
        operand = tensor(b, UID_BIAS, CUDNN_DATA_FLOAT, 1, s->out_channels, one_voxel);
        to = result(b, s, --left);
        operation[n++] = pointwise(b, s, value, operand, to);
        value = to;
    }
    if (s->residual) {
        operand =
            tensor(b, UID_RESIDUAL, data_type(s->type), s->samples, s->out_channels, s->out_dim);
        to = result(b, s, --left);
        operation[n++] = pointwise(b, s, value, operand, to);
        value = to;
    }
    if (s->activate)
        operation[n++] = pointwise(b, s, value, NULL, result(b, s, 0));
    descriptor graph = cudnn_make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (b->library->handle)
        cudnn_set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1,
                  &b->library->handle);
    cudnn_set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n, operation);
    cudnn_finish(b, graph, "the graph");
    return graph;
}
