# SPDX-License-Identifier: Apache-2.0
"""Resampling that is spelled out: voxels chosen by tables of indices, sums of them with weights.

PyTorch's core operators have neither interpolation nor padding by reflection; they choose voxels
and multiply them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from dosemap_tools.importing.graph_edit import (
    Editor,
    Shape,
    attribute,
    constant,
    in_order,
    is_constant,
    is_float,
    is_onnx,
    made_by,
    shape_of,
)

_MAX_NODES = 128
_TOLERANCE = 2e-5  # places of voxels are float32, of which the weights keep the fraction
_LINEAR = frozenset({"Add", "Sub", "Mul", "Transpose", "GatherND", "Gather", "Identity"})
_CHOOSING = frozenset({"GatherND", "Gather"})


def gather_nd(data: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return what ONNX's GatherND without batch axes chooses."""
    return data[tuple(np.moveaxis(indices.astype(np.int64), -1, 0))]


# --------------------------------------------------------------------------------------------------
# Voxels of the same channel, chosen along each axis


def chosen_along_axes(
    editor: Editor, at: ir.Node, source: ir.Value, along: list[np.ndarray], shape: Shape
) -> tuple[str, ir.Value] | None:
    """Return name and value of the operator that chooses voxels `along` the three axes."""
    before = shape_of(source) or ()
    sizes = list(zip(along, before[2:], strict=True))
    if all(np.array_equal(v, np.arange(len(v)) * n // len(v)) for v, n in sizes):
        return "nearest voxels as Resize", _resize(editor, at, source, shape, "nearest")
    for mode in ("reflect", "edge"):
        pads = [_pads(v, n, mode) for v, n in sizes]
        known = [p for p in pads if p is not None]
        if len(known) == 3:
            begins, ends = [p for p, _ in known], [q for _, q in known]
            amounts = editor.weight(np.array([0, 0, *begins, 0, 0, *ends]), f"{at.name}.pads")
            made = editor.add("Pad", [source, amounts], shape, at, {"mode": mode})
            return f"chosen voxels as Pad ({mode})", made
    steps = [int(v[1] - v[0]) if len(v) > 1 else 1 for v, _ in sizes]
    if all(
        s > 0 and np.array_equal(v, v[0] + s * np.arange(len(v)))
        for (v, _), s in zip(sizes, steps, strict=True)
    ):
        starts = [int(v[0]) for v, _ in sizes]
        ends = [int(v[-1]) + 1 for v, _ in sizes]
        rows = (starts, ends, [2, 3, 4], steps)
        inputs = [editor.weight(np.array(row), f"{at.name}.slice") for row in rows]
        return "chosen voxels as Slice", editor.add("Slice", [source, *inputs], shape, at)
    return None


def _pads(along: np.ndarray, size: int, mode: str) -> tuple[int, int] | None:
    """Return how many voxels are put before and behind an axis by reflection or repetition."""
    whole = np.flatnonzero(along == 0)
    if not len(whole) or len(along) < size:
        return None
    before = int(along[0]) if mode == "reflect" else int(np.argmax(along != 0)) - 1
    if size == 1:
        before = 0
    after = len(along) - size - before
    if before < 0 or after < 0 or (mode == "reflect" and max(before, after) >= size):
        return None
    expected = np.pad(np.arange(size), (before, after), mode=mode)  # type: ignore[call-overload]
    return (before, after) if np.array_equal(along, expected) else None


def _resize(
    editor: Editor, at: ir.Node, source: ir.Value, shape: Shape, mode: str, corners: bool = False
) -> ir.Value:
    sizes = editor.weight(np.array(shape), f"{at.name}.sizes")
    how = "align_corners" if corners else "half_pixel"
    attributes: dict[str, str] = {"mode": mode, "coordinate_transformation_mode": how}
    if mode == "nearest":
        attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return editor.add("Resize", [source, None, None, sizes], shape, at, attributes)


# --------------------------------------------------------------------------------------------------
# Sums of chosen voxels


def rejoin_interpolation(editor: Editor) -> None:
    """Replace linear interpolation in steps by Resize.

    What is found is linear in its source, and so is Resize: two such that agree on random numbers
    are the same.
    """
    for root in reversed(list(editor.graph)):
        if root.graph is None or not is_onnx(root) or root.op_type != "Add":
            continue
        found = _region(root)
        if found is not None:
            _replace(editor, root, *found)


def _region(root: ir.Node) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return the 5-D tensor of whose voxels `root` is a sum with weights, and the nodes between."""
    nodes: dict[int, ir.Node] = {}
    sources: dict[int, ir.Value] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        nodes[id(node)] = node
        if len(nodes) > _MAX_NODES:
            return None
        for value in _operands(node):
            maker = value.producer()
            if maker is None or not is_onnx(maker) or not _is_linear(maker):
                sources[id(value)] = value
            elif id(maker) not in nodes:
                waiting.append(maker)
    if len(sources) != 1 or not any(n.op_type in _CHOOSING for n in nodes.values()):
        return None
    return next(iter(sources.values())), in_order(root, nodes)


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    for number, value in enumerate(node.inputs):
        indices = number == 1 and node.op_type in _CHOOSING
        if value is not None and not is_constant(value) and not indices:
            yield value


def _is_linear(node: ir.Node) -> bool:
    if node.op_type not in _LINEAR or not is_float(node.outputs[0]):
        return False
    if node.op_type in _CHOOSING:
        return is_constant(node.inputs[1]) and not attribute(node, "batch_dims", 0)
    constants = sum(is_constant(v) for v in node.inputs)
    if node.op_type == "Mul":
        return constants == 1
    # Only sums of voxels that were chosen belong to an interpolation; others end it.
    return constants == 0 and (
        node.op_type not in ("Add", "Sub") or all(_is_linear_maker(v) for v in node.inputs)
    )


def _is_linear_maker(value: ir.Value | None) -> bool:
    return made_by(value, *_LINEAR) is not None


def _replace(editor: Editor, root: ir.Node, source: ir.Value, nodes: list[ir.Node]) -> bool:
    before, after = shape_of(source), shape_of(root.outputs[0])
    if before is None or after is None or len(before) != 5 or len(after) != 5:
        return False
    if before[:2] != after[:2]:
        return False
    x = np.random.default_rng(0).uniform(-1, 1, (1, min(before[1], 2), *before[2:]))
    try:
        result = _evaluate(source, nodes, x)
    except (ValueError, IndexError, TypeError):  # not of such channels alone, or malformed
        return False
    if result is None or result.shape[2:] != after[2:]:
        return False
    for corners in (False, True):
        expected = _interpolated(x, after[2:], corners)
        if result.shape == expected.shape and np.abs(result - expected).max() <= _TOLERANCE:
            made = _resize(editor, root, source, after, "linear", corners)
            editor.replace(root.outputs[0], made)
            editor.count("interpolation as Resize")
            return True
    return False


def _evaluate(source: ir.Value, nodes: list[ir.Node], x: np.ndarray) -> np.ndarray | None:
    """Return what the nodes make of x, which may have fewer channels than the source."""
    known = {source: x}
    for node in nodes:
        operands = []
        for value in node.inputs:
            array = known.get(value) if value is not None else None
            if array is None:
                array = constant(value)
            if array is None:
                return None
            operands.append(array if array.dtype.kind in "iu" else array.astype(np.float64))
        known[node.outputs[0]] = _apply(node, operands)
    return known[nodes[-1].outputs[0]]


def _apply(node: ir.Node, operands: list[np.ndarray]) -> np.ndarray:
    if node.op_type == "Transpose":
        return np.transpose(operands[0], attribute(node, "perm", None))
    if node.op_type == "GatherND":
        return gather_nd(*operands)
    if node.op_type == "Gather":
        return np.take(operands[0], operands[1], axis=attribute(node, "axis", 0))
    if node.op_type == "Identity":
        return operands[0]
    arithmetic = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
    return arithmetic[node.op_type](*operands)


def _interpolated(x: np.ndarray, sizes: Shape, corners: bool) -> np.ndarray:
    """Return x resampled linearly, as Resize with half_pixel or align_corners does."""
    for axis, size in enumerate(sizes, 2):
        length = x.shape[axis]
        index = np.arange(size)
        place = (
            index * (length - 1) / max(size - 1, 1)
            if corners
            else np.clip((index + 0.5) * length / size - 0.5, 0, length - 1)
        )
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, length - 1)
        weight = (place - low).reshape([-1 if a == axis else 1 for a in range(5)])
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    return x
