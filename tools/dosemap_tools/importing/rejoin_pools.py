# SPDX-License-Identifier: Apache-2.0
"""Means, sums and maxima over all voxels, or over all channels of a voxel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from dosemap_tools.importing.graph_edit import (
    Editor,
    Shape,
    attribute,
    axes_of,
    elements,
    is_constant,
    is_float,
    is_onnx,
    only_reader,
    shape_of,
)

_SPACE = (2, 3, 4)
_LARGEST_WINDOW = 1024  # of weights/FORMAT.md
_KINDS = ("ReduceMean", "ReduceSum", "ReduceMax")


def rejoin_pools(editor: Editor) -> None:
    """Replace reductions of tensors (N, C, a, b, c) by pools and convolutions."""
    for node in list(editor.graph):
        if node.graph is None or not is_onnx(node) or node.op_type not in _KINDS:
            continue
        x = node.inputs[0]
        shape = shape_of(x)
        if x is None or shape is None or len(shape) != 5 or is_constant(x) or not is_float(x):
            continue
        chain = _reductions(node)
        if not chain or not _is_read(chain[-1][0]):
            continue
        # The longest part of the chain that is whole; what is left is a reduction of its own.
        for last, axes in reversed(chain):
            made = _made(editor, node, x, shape, axes)
            if made is not None:
                _put(editor, last, made)
                editor.count(f"{node.op_type} as {made.producer().op_type}")  # type: ignore[union-attr]
                break


def _is_read(node: ir.Node) -> bool:
    value = node.outputs[0]
    return bool(value.uses()) or value.is_graph_output()


def _made(
    editor: Editor, at: ir.Node, x: ir.Value, shape: Shape, axes: set[int]
) -> ir.Value | None:
    """Write a reduction over `axes`, all of them stated: larger patches have other extents."""
    if axes == set(_SPACE):
        return _over_space(editor, at, x, shape)
    return _over_channels(editor, at, x, shape) if axes == {1} else None


def _reductions(node: ir.Node) -> list[tuple[ir.Node, set[int]]]:
    """Return reductions of one kind behind each other, each with the axes of x taken so far."""
    left = list(range(5))  # axes of x that the value still has
    chain: list[tuple[ir.Node, set[int]]] = []
    taken: set[int] = set()
    following: ir.Node | None = node
    while following is not None:
        axes = axes_of(following, len(left))
        if not axes:
            break
        taken = taken | {left[a] for a in axes}
        chain.append((following, taken))
        if not attribute(following, "keepdims", 1):
            left = [axis for i, axis in enumerate(left) if i not in axes]
        value = following.outputs[0]
        following = only_reader(value)
        if following is None or following.op_type != node.op_type or not is_onnx(following):
            break
        if following.inputs[0] is not value:
            break
    return chain


def _over_space(editor: Editor, at: ir.Node, x: ir.Value, shape: Shape) -> ir.Value | None:
    one = (*shape[:2], 1, 1, 1)
    if at.op_type == "ReduceMax":
        if max(shape[2:]) > _LARGEST_WINDOW:
            return None
        return editor.add("MaxPool", [x], one, at, {"kernel_shape": list(shape[2:])})
    mean = editor.add("GlobalAveragePool", [x], one, at)
    if at.op_type == "ReduceMean":
        return mean
    count = editor.weight(np.array(float(elements(shape[2:]))), f"{at.name}.voxels")
    return editor.add("Mul", [mean, count], one, at)


def _over_channels(editor: Editor, at: ir.Node, x: ir.Value, shape: Shape) -> ir.Value | None:
    if at.op_type == "ReduceMax":
        return None
    factor = 1.0 / shape[1] if at.op_type == "ReduceMean" else 1.0
    kernel = editor.weight(np.full((1, shape[1], 1, 1, 1), factor), f"{at.name}.kernel")
    attributes = {"kernel_shape": [1, 1, 1]}
    return editor.add("Conv", [x, kernel], (shape[0], 1, *shape[2:]), at, attributes)


def _put(editor: Editor, last: ir.Node, made: ir.Value) -> None:
    """Let `made` stand for the output of `last`, which may have fewer axes."""
    value = last.outputs[0]
    shape = shape_of(value)
    if shape is not None and shape != shape_of(made):
        target = editor.weight(np.array(shape), f"{last.name}.shape")
        made = editor.add("Reshape", [made, target], shape, last)
    editor.replace(value, made)
