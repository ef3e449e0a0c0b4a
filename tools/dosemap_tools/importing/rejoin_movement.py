# SPDX-License-Identifier: Apache-2.0
"""What moves numbers without changing them: repeats, channel pads, shuffles of space and channels.

Chains of such nodes are run once on the positions of the numbers. What comes out says where each
number of the result is from, and that is compared with what weights/FORMAT.md has: a copy, a
Concat, a Conv or ConvTranspose with a kernel of ones and zeros, a Resize to the nearest voxel.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from dosemap_tools.importing.graph_edit import (
    RESHAPES,
    Editor,
    Shape,
    attribute,
    constant,
    elements,
    in_order,
    is_constant,
    is_onnx,
    made_by,
    shape_of,
    skip_reshapes,
)
from dosemap_tools.importing.rejoin_resampling import chosen_along_axes, gather_nd

_MAX_POSITIONS = 1 << 26  # int32 each; of the source and of the result
_MAX_KERNEL = 1 << 24
_BROADCASTING = frozenset({"Add", "Mul", "Sub"})


def rejoin_movement(editor: Editor) -> None:
    """Replace what moves numbers by what weights/FORMAT.md has."""
    skip_reshapes(editor)
    for node in list(editor.graph):
        if is_onnx(node) and node.op_type == "Expand":
            _let_broadcast(editor, node)
    for node in reversed(list(editor.graph)):
        if node.graph is not None and is_onnx(node) and node.op_type in _MOVES:
            _replace(editor, node)


def _let_broadcast(editor: Editor, node: ir.Node) -> None:
    """Let Add, Mul and Sub do what an Expand to the other operand's size does."""
    source, value = node.inputs[0], node.outputs[0]
    small, full = shape_of(source), shape_of(value)
    if source is None or small is None or full is None or len(small) != len(full) != 5:
        return
    if small[2:] != (1, 1, 1) or small[1] not in (1, full[1]):
        return
    for use in list(value.uses()):
        reader = use.node
        if not is_onnx(reader) or reader.op_type not in _BROADCASTING:
            continue
        other = reader.inputs[1 - use.idx]
        if other is not value and shape_of(other) == full:
            reader.replace_input_with(use.idx, source)
            editor.count("Expand left to broadcasting")
    editor.prune(value)


# --------------------------------------------------------------------------------------------------
# Where the numbers come from

Positions = np.ndarray  # int32: position in the source, counted from 1, 0 for a constant zero


def _reshape(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    shape = shape_of(node.outputs[0])
    return None if shape is None else inputs[0].reshape(shape)


def _transpose(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    return np.transpose(inputs[0], attribute(node, "perm", None))


def _expand(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    shape = shape_of(node.outputs[0])
    return None if shape is None else np.broadcast_to(inputs[0], shape)


def _tile(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    repeats = constant(node.inputs[1])
    return None if repeats is None else np.tile(inputs[0], [int(n) for n in repeats])


def _pad(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    pads, value = attribute(node, "pads", None), attribute(node, "value", 0.0)
    if len(node.inputs) > 1:
        known = constant(node.inputs[1])
        pads = None if known is None else [int(n) for n in known]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        number = constant(node.inputs[2])
        value = math.nan if number is None else float(number.reshape(-1)[0])
    if attribute(node, "mode", "constant") != "constant" or pads is None or value != 0:
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes = constant(node.inputs[3])
        if axes is None:
            return None
        full = [0] * (2 * inputs[0].ndim)
        for i, axis in enumerate(axes):
            full[int(axis)], full[int(axis) + inputs[0].ndim] = pads[i], pads[i + len(axes)]
        pads = full
    rank = inputs[0].ndim
    if min(pads) < 0 or any(pads[i] or pads[i + rank] for i in range(rank) if i != 1):
        return None  # the program pads space itself
    return np.pad(inputs[0], [(pads[i], pads[i + rank]) for i in range(rank)])


def _gather(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    indices = constant(node.inputs[1])
    if indices is None:
        return None
    return np.take(inputs[0], indices.astype(np.int64), axis=attribute(node, "axis", 0))


def _gather_nd(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    indices = constant(node.inputs[1])
    if indices is None or attribute(node, "batch_dims", 0):
        return None
    return gather_nd(inputs[0], indices)


def _slice(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    if len(node.inputs) < 3:
        return None
    parts = [None if v is None else constant(v) for v in node.inputs[1:]]
    starts, ends = parts[0], parts[1]
    if starts is None or ends is None:
        return None
    given = parts[2] if len(parts) > 2 else None
    axes = np.arange(len(starts)) if given is None else given
    steps = parts[3] if len(parts) > 3 and parts[3] is not None else np.ones(len(starts))
    cut: list[slice] = [slice(None)] * inputs[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        last = None if step < 0 and end < -inputs[0].shape[int(axis)] else int(end)
        cut[int(axis)] = slice(int(start), last, int(step))
    return inputs[0][tuple(cut)]


def _concat(node: ir.Node, inputs: list[Positions]) -> Positions | None:
    return np.concatenate(inputs, axis=attribute(node, "axis", 1))


_Move = Callable[[ir.Node, list[Positions]], "Positions | None"]
# Those that make a chain worth replacing, and those that may lie in one.
_MOVES: dict[str, _Move] = {
    **dict.fromkeys(RESHAPES, _reshape),
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Gather": _gather,
    "GatherND": _gather_nd,
}
_INSIDE: dict[str, _Move] = {**_MOVES, "Slice": _slice, "Concat": _concat}


def _source_of(root: ir.Node, *, nearest: bool) -> tuple[ir.Value, list[ir.Node]] | None:
    """Return the 5-D tensor whose numbers `root` moves, and the nodes in between.

    nearest: the last such tensor, not the first.
    """
    nodes: dict[int, ir.Node] = {}
    sources: dict[int, ir.Value] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        nodes[id(node)] = node
        for number, value in enumerate(node.inputs):
            if value is None or is_constant(value) or (number and node.op_type != "Concat"):
                continue
            maker = made_by(value, *_INSIDE)
            # Slices and concatenations of their own are left to the program.
            five = len(shape_of(value) or ()) == 5
            if maker is not None and not (five and (nearest or maker.op_type not in _MOVES)):
                if id(maker) not in nodes:
                    waiting.append(maker)
            else:
                sources[id(value)] = value
    if len(sources) != 1:
        return None
    return next(iter(sources.values())), in_order(root, nodes)


def _positions(source: ir.Value, nodes: list[ir.Node], whole: Shape) -> Positions | None:
    known = {source: np.arange(1, elements(whole) + 1, dtype=np.int32).reshape(whole)}
    for node in nodes:
        used = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        inputs = [known.get(v) for v in used if v is not None]
        if any(i is None for i in inputs):
            return None
        moved = _INSIDE[node.op_type](node, [i for i in inputs if i is not None])
        if moved is None or moved.shape != shape_of(node.outputs[0]):
            return None
        known[node.outputs[0]] = moved
    return known[nodes[-1].outputs[0]]


# --------------------------------------------------------------------------------------------------
# What that is


def _replace(editor: Editor, root: ir.Node) -> bool:
    return any(_replace_chain(editor, root, nearest=nearest) for nearest in (False, True))


def _replace_chain(editor: Editor, root: ir.Node, *, nearest: bool) -> bool:
    after = shape_of(root.outputs[0])
    found = _source_of(root, nearest=nearest)
    if found is None or after is None or len(after) != 5:
        return False
    source, nodes = found
    before = shape_of(source)
    if before is None or len(before) != 5 or before[0] != after[0]:
        return False
    if max(elements(before), elements(after)) > _MAX_POSITIONS:
        return False
    try:
        positions = _positions(source, nodes, before)
    except (ValueError, IndexError, TypeError):  # a malformed node: lower.py says what it is
        return False
    if positions is None or not _stays_in_batch(positions, before):
        return False
    return any(
        rule(editor, root, source, positions)
        for rule in (_copied, _repeated, _picked, _spread, _gathered, _chosen)
    )


def _stays_in_batch(positions: Positions, shape: Shape) -> bool:
    """Return whether each patch of the batch is made of its own numbers."""
    size = math.prod(shape[1:])
    return all(
        bool(((patch == 0) | ((patch > n * size) & (patch <= (n + 1) * size))).all())
        for n, patch in enumerate(positions)
    )


def _copied(editor: Editor, root: ir.Node, source: ir.Value, positions: Positions) -> bool:
    """Remove what moves nothing."""
    shape = shape_of(source)
    if positions.shape != shape or not (positions == _count(shape)).all():
        return False
    editor.replace(root.outputs[0], source)
    return True


def _count(shape: Shape) -> Positions:
    return np.arange(1, elements(shape) + 1, dtype=np.int32).reshape(shape)


def _repeated(editor: Editor, root: ir.Node, source: ir.Value, positions: Positions) -> bool:
    """Write repeats along the channels as a Concat of the same value."""
    shape = shape_of(source) or ()
    times = positions.shape[1] // shape[1]
    if positions.shape[1] % shape[1] or times < 2 or positions.shape[2:] != shape[2:]:
        return False
    if not (positions.reshape(shape[0], times, *shape[1:]) == _count(shape)[:, None]).all():
        return False
    made = editor.add("Concat", [source] * times, positions.shape, root, {"axis": 1})
    editor.replace(root.outputs[0], made)
    editor.count(f"{root.op_type} along channels as Concat")
    return True


def _voxels(shape: Shape) -> np.ndarray:
    return np.arange(math.prod(shape[2:]), dtype=np.int32).reshape(shape[2:])


def _picked(editor: Editor, root: ir.Node, source: ir.Value, positions: Positions) -> bool:
    """Write channels that are picked, or zeros, as a convolution of one voxel."""
    shape = shape_of(source) or ()
    if positions.shape[2:] != shape[2:]:
        return False
    size = math.prod(shape[2:])
    channel = (positions[0, :, 0, 0, 0] - 1) // size  # -1: zeros
    kernel = np.zeros((positions.shape[1], shape[1], 1, 1, 1), np.float32)
    if kernel.size > _MAX_KERNEL:
        return False
    kernel[channel >= 0, channel[channel >= 0]] = 1
    expected = channel[:, None, None, None] * size + _voxels(shape) + 1
    expected[channel < 0] = 0
    if not _every_batch(positions, expected, shape):
        return False
    _convolution(editor, root, "Conv", source, kernel, positions.shape, {})
    editor.count(f"{root.op_type} along channels as Conv")
    return True


def _every_batch(positions: Positions, expected: Positions, shape: Shape) -> bool:
    """Return whether each patch of the batch has the positions of `expected`, in itself."""
    size = math.prod(shape[1:])
    return all(
        bool((patch == np.where(expected > 0, expected + number * size, 0)).all())
        for number, patch in enumerate(positions)
    )


def _convolution(
    editor: Editor,
    root: ir.Node,
    kind: str,
    source: ir.Value,
    kernel: np.ndarray,
    shape: Shape,
    attributes: dict,
) -> None:
    weight = editor.weight(kernel, f"{root.name or root.outputs[0].name}.kernel")
    given = {"kernel_shape": list(kernel.shape[2:])} | attributes
    made = editor.add(kind, [source, weight], shape, root, given)
    editor.replace(root.outputs[0], made)


def _factors(large: Shape, small: Shape) -> tuple[int, ...] | None:
    """Return how many times larger each spatial axis is, where that is a whole number."""
    if any(n % m for n, m in zip(large[2:], small[2:], strict=True)):
        return None
    return tuple(n // m for n, m in zip(large[2:], small[2:], strict=True))


def _spread(editor: Editor, root: ir.Node, source: ir.Value, positions: Positions) -> bool:
    """Write channels that are spread over space (pixel shuffle) as ConvTranspose."""
    shape, after = shape_of(source) or (), positions.shape
    factors = _factors(after, shape)
    if factors is None or math.prod(factors) == 1 or shape[1] != after[1] * math.prod(factors):
        return False
    size = math.prod(shape[2:])
    block = positions[0, :, : factors[0], : factors[1], : factors[2]]
    if block.min() < 1:
        return False
    channel = (block - 1) // size
    voxel = _voxels(shape)
    for axis, factor in enumerate(factors):
        voxel = np.repeat(voxel, factor, axis=axis)
    expected = np.tile(channel, [1, *shape[2:]]) * size + voxel + 1
    if not _every_batch(positions, expected.astype(np.int32), shape):
        return False
    kernel = np.zeros((shape[1], after[1], *factors), np.float32)
    if kernel.size > _MAX_KERNEL:
        return False
    kernel[(channel, *np.indices(channel.shape))] = 1
    _convolution(editor, root, "ConvTranspose", source, kernel, after, {"strides": list(factors)})
    editor.count("pixel shuffle as ConvTranspose")
    return True


def _gathered(editor: Editor, root: ir.Node, source: ir.Value, positions: Positions) -> bool:
    """Write voxels that are gathered into channels as a strided Conv."""
    shape, after = shape_of(source) or (), positions.shape
    factors = _factors(shape, after)
    if factors is None or math.prod(factors) == 1 or after[1] != shape[1] * math.prod(factors):
        return False
    first = positions[0, :, 0, 0, 0] - 1
    if first.min() < 0:
        return False
    place = np.stack(np.unravel_index(first, shape[1:]))
    if any((place[1 + axis] >= factors[axis]).any() for axis in range(3)):
        return False
    corners = _voxels(shape)[tuple(slice(None, None, f) for f in factors)]
    expected = first[:, None, None, None] + corners + 1
    if not _every_batch(positions, expected.astype(np.int32), shape):
        return False
    kernel = np.zeros((after[1], shape[1], *factors), np.float32)
    if kernel.size > _MAX_KERNEL:
        return False
    kernel[(np.arange(after[1]), *place)] = 1
    _convolution(editor, root, "Conv", source, kernel, after, {"strides": list(factors)})
    editor.count("space to channels as Conv")
    return True


def _chosen(editor: Editor, root: ir.Node, source: ir.Value, positions: Positions) -> bool:
    """Write voxels that are chosen along the axes, the same in each channel."""
    shape, after = shape_of(source) or (), positions.shape
    if shape[1] != after[1]:
        return False
    places = np.unravel_index(np.maximum(positions[0, 0] - 1, 0), shape[1:])
    along = [places[1][:, 0, 0], places[2][0, :, 0], places[3][0, 0, :]]
    expected = _count((1, *shape[1:]))[0]
    for axis, chosen in enumerate(along):
        expected = np.take(expected, chosen, axis=axis + 1)
    if not _every_batch(positions, expected, shape):
        return False
    found = chosen_along_axes(editor, root, source, along, after)
    if found is None:
        return False
    editor.replace(root.outputs[0], found[1])
    editor.count(found[0])
    return True
