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
        last, axes = _whole_reduction(node)
        # Axes of one voxel are as good as reduced.
        of_space = set(_SPACE) <= axes | {a for a in _SPACE if shape[a] == 1}
        if not last.outputs[0].uses() and not last.outputs[0].is_graph_output():
            continue
        if of_space and not axes & {0, 1}:
            made = _over_space(editor, node, x, shape)
        elif axes == {1}:
            made = _over_channels(editor, node, x, shape)
        else:
            continue
        if made is not None:
            _put(editor, last, made)
            editor.count(f"{node.op_type} as {made.producer().op_type}")  # type: ignore[union-attr]


def _whole_reduction(node: ir.Node) -> tuple[ir.Node, set[int]]:
    """Return the last of reductions of one kind behind each other, and the axes of x they take."""
    left = list(range(5))  # axes of x that the value still has
    taken: set[int] = set()
    last = node
    while True:
        axes = axes_of(last, len(left))
        if axes is None:
            return last, set()
        taken |= {left[a] for a in axes}
        if not attribute(last, "keepdims", 1):
            left = [axis for i, axis in enumerate(left) if i not in axes]
        following = only_reader(last.outputs[0])
        if following is None or following.op_type != node.op_type or not is_onnx(following):
            return last, taken
        if following.inputs[0] is not last.outputs[0]:
            return last, taken
        last = following


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
