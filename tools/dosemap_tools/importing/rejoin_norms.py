# SPDX-License-Identifier: Apache-2.0
"""Normalisations over groups of channels, however they are spelled.

One written in elementary steps is found by algebra instead of by the order of its steps. With x the
tensor, m its mean over some axes, q the mean of its squares and r = (q - m^2 + eps)^(-1/2), every
value of the computation is a sum of terms c x^i m^j q^k r^l with constant c. A value that comes to

    a x r - a m r + b

is a normalisation with scale a and bias b: with (x - m)^2 or x^2 - m^2, with Div, Reciprocal or
Pow, with the affine part inside or outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dosemap_tools.importing.graph_edit import (
    COPIES,
    RESHAPES,
    Editor,
    Shape,
    attribute,
    axes_of,
    constant,
    elements,
    five_axes,
    is_constant,
    is_float,
    is_onnx,
    only_reader,
    per_channel,
    shape_of,
    skip_reshapes,
)

Powers = tuple[int, int, int, int]  # of x, m, q, r
Terms = dict[Powers, np.ndarray]

_X, _ONE = (1, 0, 0, 0), (0, 0, 0, 0)
_MAX_TERMS = 12
_MAX_CONSTANT = 1 << 22  # elements; scales and biases are far smaller


@dataclass(frozen=True)
class _Term:
    """A value in the algebra. kept: it has extent 1 along the reduced axes; dropped: not at all."""

    terms: Terms
    layout: str  # "full", "kept" or "dropped"


def rejoin_norms(editor: Editor) -> None:
    """Put normalisations of weights/FORMAT.md in the place of all their spellings."""
    for node in list(editor.graph):
        if node.op_type in ("ReduceMean", "ReduceSum", "GlobalAveragePool") and is_onnx(node):
            # Again, for another normalisation of the same tensor.
            while node.graph is not None and _Algebra(editor, node).rejoin():
                pass
    for node in list(editor.graph):
        if is_onnx(node) and node.op_type in ("InstanceNormalization", "LayerNormalization"):
            _rejoin_operator(editor, node)
    skip_reshapes(editor)
    for node in list(editor.graph):
        if is_onnx(node) and node.op_type in ("InstanceNormalization", "GroupNormalization"):
            _fold_affine(editor, node)


# --------------------------------------------------------------------------------------------------
# Operators of ONNX on reshaped tensors


def _rejoin_operator(editor: Editor, node: ir.Node) -> None:
    """Replace a normalisation of ONNX that does not work on (N, C, a, b, c), or not per channel."""
    x, y = node.inputs[0], node.outputs[0]
    shape = shape_of(x)
    if x is None or shape is None or len(shape) < 2:
        return
    epsilon = float(attribute(node, "epsilon", 1e-5))
    scale, bias = (constant(v) for v in (*node.inputs[1:3], None, None)[:2])
    rank = len(shape)
    if node.op_type == "InstanceNormalization":
        if rank == 5 and five_axes(x) is x:
            return
        groups = math.prod(shape[:2])
        affine = [None if a is None else a.reshape(-1, *[1] * (rank - 2)) for a in (scale, bias)]
    else:
        axis = int(attribute(node, "axis", -1)) % rank
        if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
            return
        groups = math.prod(shape[:axis])
        bias = np.zeros((), np.float32) if len(node.inputs) < 3 or node.inputs[2] is None else bias
        affine = [scale, bias]
    if affine[0] is None or affine[1] is None:
        return
    made = _normalise(editor, node, x, groups, epsilon, (affine[0], affine[1]), node.inputs[1:3])
    if made is not None:
        editor.replace(y, made)


def _normalise(
    editor: Editor,
    at: ir.Node,
    x: ir.Value,
    groups: int,
    epsilon: float,
    affine: tuple[np.ndarray, np.ndarray],
    made_of: Sequence[ir.Value | None],
) -> ir.Value | None:
    """Return x, or what it was reshaped of, normalised, in the shape of x.

    groups: how many runs of consecutive numbers of x, over the whole batch, are normalised each by
    itself. affine: scale and bias as they meet x. made_of: the constants behind them.
    """
    source, shape = five_axes(x), shape_of(x)
    whole = shape_of(source)
    if shape is None or whole is None or len(whole) != 5 or groups % whole[0]:
        return None
    batch, channels = whole[:2]
    groups //= batch
    if channels % groups or not epsilon > 0:
        return None
    vectors = [_by_channel(array, shape, batch, channels) for array in affine]
    if vectors[0] is None or vectors[1] is None:
        return None
    name = at.name or at.outputs[0].name or "norm"
    inputs = [
        source,
        editor.weight(vectors[0], f"{name}.weight", *made_of),
        editor.weight(vectors[1], f"{name}.bias", *made_of),
    ]
    if groups == channels:
        kind, version = "InstanceNormalization", None
        attributes: dict[str, float] = {}
    else:
        kind, version = "GroupNormalization", 21
        attributes = {"num_groups": groups}
    attributes["epsilon"] = float(epsilon)
    made = editor.add(kind, inputs, whole, at, attributes, version=version)
    editor.count(f"{kind} re-joined")
    if shape == whole:
        return made
    target = editor.weight(np.array(shape), f"{name}.shape")
    return editor.add("Reshape", [made, target], shape, at)


def _by_channel(array: np.ndarray, shape: Shape, batch: int, channels: int) -> np.ndarray | None:
    """Return a constant that meets `shape`, the reshaped (N, C, a, b, c), per channel, or None."""
    array = np.asarray(array, np.float64)
    if array.ndim > len(shape):
        return None
    array = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    if any(n not in (1, m) for n, m in zip(array.shape, shape, strict=True)):
        return None
    known = len(shape)
    while known and array.shape[known - 1] == 1:
        known -= 1
    rows = batch * channels
    flat = np.broadcast_to(array.reshape(array.shape[:known]), shape[:known]).reshape(-1)
    if flat.size < rows:
        if rows % flat.size:
            return None
        flat = np.repeat(flat, rows // flat.size)
    elif flat.size % rows:
        return None
    table = flat.reshape(batch, channels, -1)
    return table[0, :, 0] if (table == table[:1, :, :1]).all() else None


# --------------------------------------------------------------------------------------------------
# The scale and the bias that follow


def _fold_affine(editor: Editor, node: ir.Node) -> None:
    """Take what multiplies and shifts the channels right behind a normalisation into it."""
    scale, bias = constant(node.inputs[1]), constant(node.inputs[2])
    shape = shape_of(node.outputs[0])
    if scale is None or bias is None or shape is None or len(shape) != 5:
        return
    weights = [scale.astype(np.float64), bias.astype(np.float64)]
    if weights[0].shape != (shape[1],) or weights[1].shape != (shape[1],):
        return
    value, made_of = node.outputs[0], list(node.inputs[1:3])
    while (reader := only_reader(value)) is not None:
        step = _affine_step(reader, value, shape[1])
        if step is None or shape_of(reader.outputs[0]) != shape:
            break
        weights = [weights[0] * step[0], weights[1] * step[0] + step[1]]
        value = reader.outputs[0]
        made_of += [v for v in reader.inputs if is_constant(v)]
    if value is node.outputs[0]:
        return
    last = value.producer()
    assert last is not None
    inputs = [
        node.inputs[0],
        editor.weight(weights[0], f"{last.name}.weight", *made_of),
        editor.weight(weights[1], f"{last.name}.bias", *made_of),
    ]
    attributes = {a.name: a.value for a in node.attributes.values()}
    made = editor.add(node.op_type, inputs, shape, last, attributes, version=node.version)
    editor.replace(value, made)


def _affine_step(node: ir.Node, value: ir.Value, channels: int):  # noqa: ANN202
    """Return (factor, shift) per channel of a node that multiplies or shifts `value`, or None."""
    if not is_onnx(node):
        return None
    if node.op_type in COPIES and is_float(node.outputs[0]):
        return np.ones(channels), np.zeros(channels)
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is value
    other = node.inputs[1] if first else node.inputs[0]
    array = constant(other)
    vector = None if array is None else per_channel(array, channels)
    if vector is None:
        return None
    if node.op_type == "Mul":
        return vector, np.zeros(channels)
    if node.op_type == "Add":
        return np.ones(channels), vector
    if node.op_type == "Sub":
        return (np.ones(channels), -vector) if first else (-np.ones(channels), vector)
    return (1 / vector, np.zeros(channels)) if first and (vector != 0).all() else None


# --------------------------------------------------------------------------------------------------
# Elementary steps


class _Algebra:
    """What follows from one mean, in terms of x, m, q and r."""

    def __init__(self, editor: Editor, mean: ir.Node) -> None:
        self.editor = editor
        self.x = mean.inputs[0]
        self.shape = shape_of(self.x) or ()
        self.axes = _reduced_axes(mean, len(self.shape)) if self.shape else None
        self.count = elements(self.shape[a] for a in self.axes) if self.axes else 0
        self.epsilon: float | None = None
        self.values: dict[ir.Value, _Term] = {}
        self.order: list[ir.Value] = []
        self.constants: list[ir.Value] = []

    def rejoin(self) -> bool:
        """Replace a value that is x normalised, if there is one."""
        x = self.x
        if x is None or self.axes is None or is_constant(x) or not is_float(x) or self.count < 2:
            return False
        # The runs of numbers that are normalised lie one behind the other in memory.
        inner = [axis for axis, n in enumerate(self.shape) if n != 1 and axis in self.axes]
        outer = [axis for axis, n in enumerate(self.shape) if n != 1 and axis not in self.axes]
        if outer and inner and max(outer) > min(inner):
            return False
        self._follow(x)
        groups = elements(self.shape) // self.count
        for value in reversed(self._row()):
            node, affine = value.producer(), self._parts(value)
            if node is None or affine is None or self.epsilon is None:
                break
            made = _normalise(self.editor, node, x, groups, self.epsilon, affine, self.constants)
            if made is not None:
                self.editor.replace(value, made)
                return True
        return False

    def _follow(self, x: ir.Value) -> None:
        """Express what is computed from x as far as it goes."""
        self.values[x] = _Term({_X: np.ones(())}, "full")
        waiting = [use.node for use in x.uses()]
        while waiting:  # a node comes again with each operand that gets known
            node = waiting.pop(0)
            if not is_onnx(node) or node.outputs[0] in self.values:
                continue
            term = self._term_of(node)
            if term is None or len(term.terms) > _MAX_TERMS:
                continue
            self.values[node.outputs[0]] = term
            self.order.append(node.outputs[0])
            waiting += [use.node for use in node.outputs[0].uses()]

    def _row(self) -> list[ir.Value]:
        """Return the values that are x normalised, each but the last read by the next alone."""
        fits = [v for v in self.order if self._parts(v) is not None]
        row = fits[:1]
        while row and (reader := only_reader(row[-1])) is not None:
            if reader.outputs[0] not in fits:
                break
            row.append(reader.outputs[0])
        # What nothing reads was found from another mean of the same computation.
        return row if row and (row[-1].uses() or row[-1].is_graph_output()) else []

    def _parts(self, value: ir.Value) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a and b of a value that is a x r - a m r + b, or None."""
        term = self.values[value]
        if term.layout != "full" or shape_of(value) != self.shape:
            return None
        rest = dict(term.terms)
        scale, mean = rest.pop((1, 0, 0, 1), None), rest.pop((0, 1, 0, 1), None)
        bias = rest.pop(_ONE, np.zeros(()))
        if scale is None or mean is None or rest:
            return None
        same = np.abs(scale + mean) <= 1e-6 * np.abs(scale)  # constants are rounded to float32
        return (scale, bias) if bool(same.all()) else None

    # One operator each

    def _term_of(self, node: ir.Node) -> _Term | None:
        kind = node.op_type
        if kind == "BatchNormalization":
            return self._batch_norm(node)
        if kind in ("ReduceMean", "ReduceSum", "GlobalAveragePool"):
            return self._mean(node)
        if kind in RESHAPES or kind == "Expand":
            return self._reshaped(node)
        operands = [self._operand(v) for v in node.inputs if v is not None]
        terms = [t for t in operands if t is not None]
        if len(terms) != len(operands) or not terms:
            return None
        layouts = {t.layout for t in terms if t.layout != "constant"}
        if "dropped" in layouts and len(layouts) > 1:
            return None
        if "dropped" in layouts and any(f.size > 1 for t in terms for f in t.terms.values()):
            return None  # a mean without its axes meets vectors elsewhere than the tensor does
        layout = "full" if "full" in layouts else next(iter(layouts), "full")
        result = self._combine(kind, [t.terms for t in terms])
        if result is None or not self._has_layout(node.outputs[0], layout):
            return None
        return _Term(result, layout)

    def _combine(self, kind: str, terms: list[Terms]) -> Terms | None:
        first = terms[0]
        if kind in COPIES:
            return first
        if kind == "Neg":
            return _scaled(first, -1.0)
        if kind == "Sqrt":
            return self._power(first, 0.5)
        if kind == "Reciprocal":
            return _inverse(first)
        if len(terms) != 2:
            return None
        second = terms[1]
        if kind == "Add":
            return _sum(first, second)
        if kind == "Sub":
            return _sum(first, _scaled(second, -1.0))
        if kind == "Mul":
            return _product(first, second)
        if kind == "Div":
            inverse = _inverse(second)
            return None if inverse is None else _product(first, inverse)
        if kind == "Pow" and set(second) == {_ONE} and second[_ONE].size == 1:
            return self._power(first, float(second[_ONE].reshape(())))
        return None

    def _operand(self, value: ir.Value) -> _Term | None:
        known = self.values.get(value)
        if known is not None:
            return known
        if not is_constant(value) or not is_float(value):
            return None
        shape = shape_of(value)
        if shape is None or elements(shape) > _MAX_CONSTANT:
            return None
        array = constant(value)
        self.constants.append(value)
        return None if array is None else _Term({_ONE: array.astype(np.float64)}, "constant")

    def _has_layout(self, value: ir.Value, layout: str) -> bool:
        shape = shape_of(value)
        if layout != "kept" or shape is None or len(shape) != len(self.shape):
            return shape == self._layout_shape(layout)
        # Along reduced axes a factor per channel, say, may have come in.
        kept = self._layout_shape(layout)
        return all(n in (k, m) for n, k, m in zip(shape, kept, self.shape, strict=True))

    def _layout_shape(self, layout: str) -> Shape:
        axes = self.axes or ()
        if layout == "full":
            return self.shape
        if layout == "kept":
            return tuple(1 if a in axes else n for a, n in enumerate(self.shape))
        return tuple(n for a, n in enumerate(self.shape) if a not in axes)

    def _mean(self, node: ir.Node) -> _Term | None:
        """Return the mean over the same axes: x becomes m, x^2 becomes q."""
        inside = self.values.get(node.inputs[0]) if node.inputs[0] is not None else None
        if inside is None or inside.layout != "full":
            return None
        if _reduced_axes(node, len(self.shape)) != self.axes:
            return None
        result: Terms = {}
        for (x, m, q, r), factor in inside.terms.items():
            # A factor that varies along the reduced axes does not come out of the mean.
            full = factor.reshape((1,) * (len(self.shape) - factor.ndim) + factor.shape)
            if any(full.shape[axis] != 1 for axis in self.axes or ()) or x > 2:
                return None
            powers = (0, m + (x == 1), q + (x == 2), r)
            result = _sum(result, {powers: factor})
        if node.op_type == "ReduceSum":
            result = _scaled(result, float(self.count))
        kept = node.op_type == "GlobalAveragePool" or attribute(node, "keepdims", 1)
        layout = "kept" if kept else "dropped"
        if layout == "dropped" and any(f.size != 1 for f in result.values()):
            return None
        return _Term(result, layout) if self._has_layout(node.outputs[0], layout) else None

    def _reshaped(self, node: ir.Node) -> _Term | None:
        """Return a mean that got its reduced axes back, or was spread along them."""
        inside = self.values.get(node.inputs[0]) if node.inputs[0] is not None else None
        if inside is None:
            return None
        shape = shape_of(node.outputs[0])
        if node.op_type == "Expand":
            full = shape == self.shape and inside.layout == "kept"
            return _Term(inside.terms, "full") if full else None
        kept = shape == self._layout_shape("kept") and inside.layout == "dropped"
        return _Term(inside.terms, "kept") if kept else None

    def _batch_norm(self, node: ir.Node) -> _Term | None:
        """Return a batch normalisation whose mean and variance are computed from x itself."""
        x, scale, bias, mean, variance = (
            None if v is None else self._operand(v) for v in node.inputs[:5]
        )
        if x is None or scale is None or bias is None or mean is None or variance is None:
            return None
        if x.layout != "full" or {mean.layout, variance.layout} != {"dropped"}:
            return None
        if len(self.shape) < 2 or any(
            n != 1 and a != 1 for a, n in enumerate(self.shape) if a not in (self.axes or ())
        ):
            return None  # the vectors lie along the channels
        shifted = _sum(variance.terms, {_ONE: np.asarray(attribute(node, "epsilon", 1e-5))})
        power = self._power(shifted, -0.5)
        if power is None:
            return None
        tail = [1] * (len(self.shape) - 2)
        vectors = [
            {p: f.reshape(-1, *tail) if f.size > 1 else f for p, f in t.terms.items()}
            for t in (scale, bias)
        ]
        centred = _sum(x.terms, _scaled(mean.terms, -1.0))
        return _Term(_sum(_product(_product(centred, power), vectors[0]), vectors[1]), "full")

    def _power(self, terms: Terms, exponent: float) -> Terms | None:
        if exponent == 2.0:
            return _product(terms, terms)
        if exponent == 1.0:
            return terms
        if exponent not in (0.5, -0.5, -1.0):
            return None
        if exponent == -1.0:
            return _inverse(terms)
        # c (q - m^2) + e, which is c r^-2
        rest = dict(terms)
        factor, mean = rest.pop((0, 0, 1, 0), None), rest.pop((0, 2, 0, 0), None)
        shift = rest.pop(_ONE, np.zeros(()))
        if factor is None or mean is None or rest or factor.size != 1 or shift.size != 1:
            return None
        c, e = float(factor.reshape(())), float(shift.reshape(()))
        if not c > 0 or abs(float(mean.reshape(-1)[0]) + c) > 1e-6 * c or mean.size != 1:
            return None
        if self.epsilon is not None and self.epsilon != e / c:
            return None
        self.epsilon = e / c
        return {(0, 0, 0, -1 if exponent > 0 else 1): np.asarray(c**exponent)}


def _reduced_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    if node.op_type == "GlobalAveragePool":
        return tuple(range(2, rank))
    return axes_of(node, rank)


def _sum(first: Terms, second: Terms) -> Terms:
    result = dict(first)
    for powers, factor in second.items():
        before = result.pop(powers, None)
        if before is None:
            result[powers] = factor
            continue
        total = before + factor
        if np.any(np.abs(total) > 1e-9 * (np.abs(before) + np.abs(factor))):
            result[powers] = total
    return {p: f for p, f in result.items() if np.any(f != 0)}


def _scaled(terms: Terms, factor: float) -> Terms:
    return {powers: factor * c for powers, c in terms.items()}


def _product(first: Terms, second: Terms) -> Terms:
    result: Terms = {}
    for p, a in first.items():
        for q, b in second.items():
            powers = (p[0] + q[0], p[1] + q[1], p[2] + q[2], p[3] + q[3])
            result = _sum(result, {powers: a * b})
    return result


def _inverse(terms: Terms) -> Terms | None:
    """Return 1 over a constant or a power of r, the only ones that are divided by."""
    if len(terms) != 1:
        return None
    (x, m, q, r), factor = next(iter(terms.items()))
    if x or m or q or np.any(factor == 0):
        return None
    return {(0, 0, 0, -r): 1 / factor}
