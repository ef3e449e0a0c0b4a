# SPDX-License-Identifier: Apache-2.0
"""Layers with weights: convolutions, products with matrices, normalisations."""

from __future__ import annotations

import numpy as np

from dosemap_tools.importing.graph_builder import Made
from dosemap_tools.importing.lowering import Rules, Step, without_defaults
from dosemap_tools.importing.network import Json

RULES = Rules()

WINDOW_DEFAULTS: Json = {
    "strides": [1, 1, 1],
    "dilations": [1, 1, 1],
    "pads": [0] * 6,
    "group": 1,
    "output_padding": [0, 0, 0],
    "ceil_mode": 0,
    "count_include_pad": 0,
}


def window(step: Step, kernel: list[int]) -> Json:
    """Return kernel, strides, dilations and pads of a convolution or pool along three axes."""
    attributes: Json = {"kernel_shape": kernel}
    for name, default in (("strides", 1), ("dilations", 1)):
        attributes[name] = [int(v) for v in step.attribute(name, [default] * 3)]
    attributes["pads"] = [int(v) for v in step.attribute("pads", [0] * 6)]
    lengths = {key: len(value) for key, value in attributes.items()}
    if lengths != {"kernel_shape": 3, "strides": 3, "dilations": 3, "pads": 6}:
        step.fail(
            f"its kernel has the shape {kernel}",
            "the graph has three spatial axes; networks for 2-D slices cannot be imported, "
            "a kernel of 1 along the third axis can",
        )
    _same_padding(step, attributes)
    return attributes


def _same_padding(step: Step, attributes: Json) -> None:
    """Write auto_pad as pads: those for the patch, and for all tiles of whole strides more."""
    how = step.attribute("auto_pad", "NOTSET")
    if how == "NOTSET":
        return
    attributes["pads"] = [0] * 6
    if how == "VALID":
        return
    if step.node.op_type == "ConvTranspose" or how not in ("SAME_UPPER", "SAME_LOWER"):
        step.fail(f"its auto_pad is {how}", "give pads and output_padding in numbers")
    for i, size in enumerate(step.shape(0)[2:]):
        stride = attributes["strides"][i]
        extent = (attributes["kernel_shape"][i] - 1) * attributes["dilations"][i] + 1
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        before = total // 2 if how == "SAME_UPPER" else total - total // 2
        attributes["pads"][i], attributes["pads"][i + 3] = before, total - before


@RULES.lowers("Conv", "ConvTranspose")
def convolution(step: Step) -> Made:
    """Lower a convolution; its weight keeps the layout."""
    data, weight_shape = step.data(), step.shape(1)
    if len(weight_shape) != 5:
        step.fail(
            f"its weight has the shape {list(weight_shape)}",
            "the graph has three spatial axes; networks for 2-D slices cannot be imported, "
            "a kernel of 1 along the third axis can",
        )
    attributes = window(step, list(weight_shape[2:]))
    group = attributes["group"] = int(step.attribute("group", 1))
    channels = weight_shape[0]
    if step.node.op_type == "ConvTranspose":
        channels = weight_shape[1] * group
        attributes["output_padding"] = [int(v) for v in step.attribute("output_padding", [0] * 3)]
        if step.attribute("output_shape"):
            step.fail("its size is given as output_shape", "give pads and output_padding instead")
    inputs = [data.name, step.weight(1, "weight")]
    if step.input(2) is not None and not _is_no_bias(step):
        inputs.append(step.weight(2, "bias", (channels,)))
    attributes = without_defaults(attributes, WINDOW_DEFAULTS)
    return step.emit(step.node.op_type, inputs, attributes=attributes)


def _is_no_bias(step: Step) -> bool:
    """Tell whether a bias is zeros that an exporter made up: PyTorch's gives them any shape."""
    name, values = step.parameter(2, "bias")
    return not step.builder.is_original(name) and not values.any()


@RULES.lowers("Gemm", "MatMul")
def product(step: Step) -> Made:
    """Lower the product with a matrix: a convolution whose kernel is the whole extent."""
    data, shape = step.any_axes(), step.shape(0)
    is_gemm = step.node.op_type == "Gemm"
    if (
        len(shape) != 2
        or shape[0] != data.shape[0]
        or not step.is_constant(1)
        or len(step.shape(1)) != 2
        or (is_gemm and step.attribute("transA", 0))
    ):
        step.fail(
            f"it multiplies {list(shape)} by {list(step.shape(1))}",
            "a product of (N, F) with a constant matrix, as of Flatten and Linear, is possible; "
            "attention between voxels is not",
        )
    name, matrix = step.parameter(1, "weight")
    alpha = step.number("alpha", 1.0) if is_gemm else 1.0
    if not (is_gemm and step.attribute("transB", 0)):
        matrix = matrix.T
    if alpha != 1:
        matrix = np.float32(alpha) * matrix
    kernel = data.shape[2:]
    weight = np.ascontiguousarray(matrix).reshape(len(matrix), data.shape[1], *kernel)
    inputs = [data.name, step.builder.add_weight(name, weight, "scaled" if alpha != 1 else "")]
    if is_gemm and step.input(2) is not None:
        inputs.append(_bias(step, len(matrix)))
    out = (data.shape[0], len(matrix), 1, 1, 1)
    return step.emit("Conv", inputs, out, {"kernel_shape": list(kernel)})


def _bias(step: Step, channels: int) -> str:
    """Return the bias of a Gemm, one value per channel; it is added after a scaling by beta."""
    beta = step.number("beta", 1.0)
    name, bias = step.parameter(2, "bias")
    if bias.size not in (1, channels) or bias.shape[-1:] not in ((), (1,), (channels,)):
        step.fail(f"its bias has the shape {list(bias.shape)}", f"[{channels}] is possible")
    full = np.broadcast_to(bias.reshape(-1), (channels,))
    if beta != 1:
        return step.builder.add_weight(name, np.float32(beta) * full, "scaled")
    return step.builder.add_weight(name, np.ascontiguousarray(full))


@RULES.lowers("BatchNormalization")
def batch_normalization(step: Step) -> Made:
    """Lower the normalisation by statistics of the training; the program folds it."""
    data = step.data()
    roles = ("weight", "bias", "running_mean", "running_var")
    weights = [step.weight(i + 1, role, (data.shape[1],)) for i, role in enumerate(roles)]
    if any(output.uses() for output in step.node.outputs[1:]):
        step.fail("its statistics are used", "call model.eval() before the export")
    attributes = {"epsilon": step.number("epsilon", 1e-5)}
    return step.emit("BatchNormalization", [data.name, *weights], attributes=attributes, like=data)


@RULES.lowers("InstanceNormalization")
def instance_normalization(step: Step) -> Made:
    """Lower the normalisation by the statistics of each channel."""
    data = step.data()
    weights = [step.weight(i, role, (data.shape[1],)) for i, role in ((1, "weight"), (2, "bias"))]
    attributes = {"epsilon": step.number("epsilon", 1e-5)}
    return step.emit("InstanceNormalization", [data.name, *weights], None, attributes)


@RULES.lowers("GroupNormalization")
def group_normalization(step: Step) -> Made:
    """Lower the normalisation by groups; version 18 has one scale per group, 21 per channel."""
    data = step.data()
    channels, groups = data.shape[1], int(step.attribute("num_groups", 0))
    if groups < 1 or channels % groups:
        step.fail(f"its {groups} groups do not divide {channels} channels", "correct num_groups")
    weights = []
    for i, role in ((1, "weight"), (2, "bias")):
        if step.shape(i) == (channels,):
            weights.append(step.weight(i, role))
            continue
        if step.shape(i) != (groups,) or not step.is_constant(i):
            step.fail(f"its scale has the shape {list(step.shape(i))}", f"[{channels}] is needed")
        name, values = step.parameter(i, role)
        repeated = np.repeat(values, channels // groups)
        weights.append(step.builder.add_weight(name, repeated, "per_channel"))
    attributes = {"num_groups": groups, "epsilon": step.number("epsilon", 1e-5)}
    return step.emit("GroupNormalization", [data.name, *weights], None, attributes)
