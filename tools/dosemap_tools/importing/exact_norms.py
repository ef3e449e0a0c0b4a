# SPDX-License-Identifier: Apache-2.0
"""Lets ONNX Runtime normalise instances and groups in float64.

Its own InstanceNormalization sums in float32: on a patch like a PET, many zeros and some large
values, PlainConvUNet comes out 3.1e-5 (relative L2) from float64, 60 times as far as with the sums
in float64, and as PyTorch. GroupNormalization, which ONNX defines by E[x²] - mean², is 1.1e-5 off
on groups of 4 x 64³ normal values with mean 0, and 7e-5 with mean 5. A proof to 1e-5 needs a
reference that is nearer than that to what the file means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_NORMS = ("InstanceNormalization", "GroupNormalization")


def has_norms(model: onnx.ModelProto) -> bool:
    """Return whether a model normalises instances, and make_exact knows how to write that out."""
    return any(_is_known(node, version) for nodes, version in _lists(model) for node in nodes)


def make_exact(model: onnx.ModelProto) -> None:
    """Write every such normalisation out, in float64, for tensors of any rank."""
    for nodes, version in _lists(model):
        made = [part for n, node in enumerate(nodes) for part in _exact(node, n, version)]
        del nodes[:]
        nodes.extend(made)


def _lists(model: onnx.ModelProto) -> Iterable[tuple[list[onnx.NodeProto], int]]:
    """Yield the nodes of the graph and of the functions, each with its version of ONNX."""

    def version(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
        return max(
            (entry.version for entry in imports if entry.domain in ("", "ai.onnx")), default=1
        )

    yield model.graph.node, version(model.opset_import)
    for function in model.functions:
        yield function.node, version(function.opset_import)


def _is_known(node: onnx.NodeProto, version: int) -> bool:
    # Below 15, CastLike is missing, which knows the type of the result. A function's own attributes
    # have no value yet.
    plain = not any(attribute.ref_attr_name for attribute in node.attribute)
    return node.op_type in _NORMS and version >= 15 and plain


def _exact(node: onnx.NodeProto, number: int, version: int) -> list[onnx.NodeProto]:
    if not _is_known(node, version):
        return [node]
    x, scale, bias = node.input
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups = given.get("num_groups", 0)  # 0 is "as it was" for Reshape: a group for each channel
    made: list[onnx.NodeProto] = []

    def add(op: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401
        name = f"{node.output[0]}_exact_{number}_{len(made)}"
        made.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(value: object, dtype: str) -> str:
        return add("Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    def mean(of: str) -> str:
        if version >= 18:
            return add("ReduceMean", of, constant([2], "i8"), keepdims=1)
        return add("ReduceMean", of, axes=[2], keepdims=1)

    def per_channel(weights: str) -> str:
        wide = add("Cast", weights, to=TensorProto.DOUBLE)
        return add("Reshape", wide, constant([-1, 1], "i8"))

    lines = add("Reshape", x, constant([0, groups, -1], "i8"))
    wide = add("Cast", lines, to=TensorProto.DOUBLE)
    centred = add("Sub", wide, mean(wide))
    epsilon = constant(given.get("epsilon", 1e-5), "f8")
    variance = add("Add", mean(add("Mul", centred, centred)), epsilon)
    normal = add("Div", centred, add("Sqrt", variance))
    if groups and version >= 21:  # a scale for each channel; before, one for each group
        normal = add("Reshape", normal, add("Shape", x))
        normal = add("Reshape", normal, constant([0, 0, -1], "i8"))
    scaled = add("Add", add("Mul", normal, per_channel(scale)), per_channel(bias))
    shaped = add("Reshape", add("CastLike", scaled, x), add("Shape", x))
    made.append(helper.make_node("Identity", [shaped], node.output, node.name))
    return made
