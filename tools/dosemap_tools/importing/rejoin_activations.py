# SPDX-License-Identifier: Apache-2.0
"""Activations, however they are spelled.

What computes one tensor from another element by element, with constants, is a function of one
number. It is evaluated in float64 and compared with the activations of weights/FORMAT.md: which
steps it is made of does not matter. The points lie on a grid that is dense near 0, around the
constants in the steps, and where an operand of a step that bends (Relu, Clip, Min, Where, Abs …)
changes its sign from one point to the next; ten points a decade lead on to 1e30. What happens
between two points without such a change is not seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from dosemap_tools.importing.graph_edit import (
    Editor,
    attribute,
    constant,
    in_order,
    is_constant,
    is_float,
    is_onnx,
    shape_of,
)

# What weights/FORMAT.md has, or what lower.py writes in its words one by one.
_PLAIN = {
    *("Add", "Sub", "Mul", "Neg", "Sum", "Mean", "Identity", "Cast", "Dropout"),
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid", "Tanh", "Softplus", "Gelu"),
}
_OTHERS = {
    *("Div", "Pow", "Sqrt", "Exp", "Log", "Erf", "Reciprocal", "Abs", "Sign", "Min", "Max", "Clip"),
    *("Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor"),
    *("Not", "Celu", "Selu", "HardSigmoid", "HardSwish", "Mish", "Softsign", "Swish"),
    "ThresholdedRelu",
}
_ELEMENTWISE = _PLAIN | _OTHERS
_MAX_NODES = 24  # of one activation
_MAX_IN_VAIN = 4000  # different regions that are no activation: no network of people has as many
_TOLERANCE = 5e-7  # float32 constants in it are rounded
_ROUNDING = 1e-12  # of float64, in steps whose result is near 0
_MAX_BENDS = 1024  # between points
_BENT = {"Relu", "LeakyRelu", "PRelu", "Elu", "Celu", "Selu", "Abs", "Sign"}  # at 0
_COMPARING = {"Clip", "Min", "Max", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_FAR = 80.0  # exp of more is not a float32
_FARTHEST = 1e30  # numbers of Bq/mL reach 1e7; squares of more are not a float32

Emit = Callable[["_Writer"], ir.Value]


def rejoin_activations(editor: Editor) -> None:
    """Put activations of weights/FORMAT.md in the place of all their spellings."""
    roots = [n for n in editor.graph if is_onnx(n) and n.op_type in _ELEMENTWISE]
    in_vain: set[tuple] = set()
    for root in reversed(roots):
        if root.graph is None or not is_float(root.outputs[0]):
            continue
        value = root.outputs[0]
        if not value.uses() and not value.is_graph_output():
            continue
        for region in _regions(root):
            key = region.key()
            if key in in_vain or len(in_vain) >= _MAX_IN_VAIN:
                continue
            if _replace(editor, region):
                break
            in_vain.add(key)


class _NotKnownError(Exception):
    """The function cannot be evaluated."""


# What the reference implementation raises for operators, versions and operands it does not know.
_OF_THE_REFERENCE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError),
)


@dataclass
class _Region:
    """Nodes that compute `root` of `x` alone."""

    x: ir.Value
    root: ir.Node
    nodes: list[ir.Node]

    def key(self) -> tuple:
        """Return what regions have in common that are the same function."""
        numbers: dict[ir.Value, object] = {self.x: "x"}
        rows: list[tuple] = []
        for node in self.nodes:
            operands = []
            for value in node.inputs:
                if value is not None and value not in numbers:
                    array = constant(value)
                    small = array is not None and array.size == 1
                    numbers[value] = float(array.reshape(())) if small else id(value)  # type: ignore[union-attr]
                operands.append(None if value is None else numbers[value])
            numbers[node.outputs[0]] = f"node {len(rows)}"
            settings = tuple((a.name, str(a.value)) for a in node.attributes.values())
            rows.append((node.op_type, settings, *operands))
        return (shape_of(self.x), *rows)


def _cast(node: ir.Node) -> str | None:
    """Return the operator that a cast is on float64: none for what cuts numbers off."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None or source.dtype is None or not is_float(result):
        return None
    if source.dtype == ir.DataType.BOOL:
        return "Cast"
    return "Identity" if source.dtype.is_floating_point() else None


def _is_plain(node: ir.Node) -> bool:
    if node.op_type == "Div":
        return is_constant(node.inputs[1])
    if node.op_type == "Pow":
        exponent = constant(node.inputs[1])
        return exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2.0
    return node.op_type in _PLAIN


def _regions(root: ir.Node) -> list[_Region]:
    """Return the parts of the graph that end in `root` and begin in one value."""
    reached: dict[int, ir.Node] = {id(root): root}
    waiting, starts = [root], {}
    while waiting and len(reached) <= _MAX_NODES:
        for value in waiting.pop(0).inputs:
            if value is None or is_constant(value):
                continue
            if is_float(value):
                starts[id(value)] = value
            node = value.producer()
            if node is None or not is_onnx(node) or node.op_type not in _ELEMENTWISE:
                continue
            if id(node) not in reached:
                reached[id(node)] = node
                waiting.append(node)
    if all(_is_plain(n) and n.op_type not in ("Tanh", "Pow") for n in reached.values()):
        return []
    regions = [r for x in starts.values() if (r := _region(root, x)) is not None]
    # First those with nothing around them that the program has, and of those the largest.
    return sorted(regions, key=lambda r: (sum(map(_is_plain, r.nodes)), -len(r.nodes)))


def _region(root: ir.Node, x: ir.Value) -> _Region | None:
    """Return the nodes between x and root, or None if root needs something else, too."""
    shape = shape_of(x)
    nodes: dict[int, ir.Node] = {}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in nodes:
            continue
        if not is_onnx(node) or node.op_type not in _ELEMENTWISE or len(nodes) >= _MAX_NODES:
            return None
        if shape is None or shape_of(node.outputs[0]) != shape:
            return None
        if node.op_type == "Cast" and _cast(node) is None:
            return None
        nodes[id(node)] = node
        for value in node.inputs:
            if value is None or is_constant(value) or value is x:
                continue
            producer = value.producer()
            if producer is None:
                return None
            waiting.append(producer)
    order = in_order(root, nodes)
    # Steps that the program has are left as they are unless one operator stands for many of them.
    if all(map(_is_plain, order)) and len(order) < 5:
        return None
    return _Region(x, root, order)


# --------------------------------------------------------------------------------------------------
# What the function is


class _Curve:
    """Values of a region on points: one column, or one per channel."""

    def __init__(self, region: _Region, opset: int) -> None:
        self.points = _points(region)
        self.columns = 1
        constants: dict[ir.Value, np.ndarray] = {}
        shape = shape_of(region.x) or ()
        for value in (v for n in region.nodes for v in n.inputs if v is not None and v.name):
            if not is_constant(value) or value in constants:
                continue
            array = constant(value)
            if array is None or (array.size > 1 and (len(shape) < 2 or array.size != shape[1])):
                raise _NotKnownError
            constants[value] = array
            if array.size > 1:
                self.columns = array.size
        rest = [1] * (len(shape) - 2)

        def evaluate(points: np.ndarray) -> dict[ir.Value, np.ndarray]:
            x = np.tile(points[:, None], (1, self.columns))
            with np.errstate(all="ignore"):
                return _evaluate(region, opset, x.reshape(*x.shape, *rest), constants)

        values = evaluate(self.points)
        # What bends at a sign that changes may do so again between the new points.
        for _ in range(2):
            more = _bends(region, self.points, values, evaluate)
            if not more.size:
                break
            self.points = np.unique(np.concatenate([self.points, more]))
            values = evaluate(self.points)
        y = np.asarray(values[region.root.outputs[0]], np.float64)
        if y.shape[:1] != self.points.shape:
            raise _NotKnownError
        self.values = y.reshape(len(self.points), -1)

    def at(self, point: float) -> float:
        """Return the first column's value at one of the fixed points."""
        return float(self.values[int(np.argmin(np.abs(self.points - point))), 0])

    def is_like(self, other: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Return whether the function is `other` on all points, wherever it is finite itself."""
        near = np.abs(self.points[:, None]) <= _FAR
        with np.errstate(all="ignore"):
            wanted = other(self.points[:, None])
            apart = np.abs(self.values - wanted)
        # Small numbers, and small results of them, are as good as large ones.
        largest = float(np.abs(wanted)[near[:, 0]].max())
        size = np.minimum(np.abs(self.points[:, None]), min(1.0, largest))
        fits = apart <= _TOLERANCE * np.maximum(size, np.abs(wanted)) + _ROUNDING
        return bool((fits | (~near & ~np.isfinite(self.values))).all())


def _points(region: _Region) -> np.ndarray:
    """Return where a function is looked at; beyond _FAR float32 may end before float64 does."""
    own = [0.0]
    for node in region.nodes:
        arrays = [constant(v) for v in node.inputs if is_constant(v)]
        for array in arrays:
            if array is not None and 0 < array.size <= 64:
                own.extend(float(v) for v in array.reshape(-1) if np.isfinite(v))
        for item in node.attributes.values():
            if item.type == ir.AttributeType.FLOAT:
                own.append(float(item.value))
    bends = np.unique(np.abs(np.clip(own, -1e6, 1e6)))[:64]
    around = np.concatenate([bends * f for f in (1 - 1e-6, 1, 1 + 1e-6, 0.5, 2)])
    far = np.geomspace(_FAR, _FARTHEST, 290)
    half = np.concatenate(
        [np.linspace(0, 8, 801), np.linspace(8, _FAR, 289), 10.0 ** np.arange(-8, 0), around, far]
    )
    return np.unique(np.concatenate([-half, half]))


def _bends(
    region: _Region,
    points: np.ndarray,
    values: dict[ir.Value, np.ndarray],
    evaluate: Callable[[np.ndarray], dict[ir.Value, np.ndarray]],
) -> np.ndarray:
    """Return points on both sides of each sign change that lies between two points."""
    found = [points[:0]]
    for node in region.nodes:
        for a, b in _compared(node):
            signs = _signs(values, a, b, len(points))
            at = np.flatnonzero((signs[1:] * signs[:-1] < 0).any(axis=1))
            # What lies between neighbours that are as good as one number is found already.
            wide = np.diff(points)[at] > 1e-9 * np.maximum(1.0, np.abs(points[at]))
            at = at[wide]
            if at.size > _MAX_BENDS:
                raise _NotKnownError
            low, high = points[at], points[at + 1]
            for _ in range(6 if at.size else 0):
                inner = np.linspace(low, high, 33)
                signs = _signs(evaluate(inner.reshape(-1)), a, b, inner.size)
                signs = signs.reshape(*inner.shape, -1)
                first = (signs[1:] * signs[:-1] <= 0).any(axis=2).argmax(axis=0)
                column = np.arange(at.size)
                low, high = inner[first, column], inner[first + 1, column]
            found += [low, high]
    return np.setdiff1d(np.concatenate(found), points)


def _compared(node: ir.Node) -> list[tuple[ir.Value, ir.Value | float]]:
    """Return pairs of numbers: where one becomes larger than the other, the node's result bends."""
    x = node.inputs[0]
    if x is None:
        return []
    if node.op_type in _BENT:
        return [(x, 0.0)]
    limits = [a.value for a in node.attributes.values() if a.type == ir.AttributeType.FLOAT]
    if node.op_type == "ThresholdedRelu":
        return [(x, float(v)) for v in limits or [1.0]]
    if node.op_type == "HardSwish":
        return [(x, -3.0), (x, 3.0)]
    if node.op_type == "HardSigmoid":
        slope, at = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
        return [(x, -at / slope), (x, (1 - at) / slope)] if slope else []
    if node.op_type not in _COMPARING:
        return []
    inputs = [v for v in node.inputs if v is not None and v.name]
    pairs: list[tuple[ir.Value, ir.Value | float]] = list(itertools.combinations(inputs, 2))
    return pairs + [(x, float(v)) for v in limits]


def _signs(
    values: dict[ir.Value, np.ndarray], a: ir.Value, b: ir.Value | float, points: int
) -> np.ndarray:
    """Return the signs of a - b: a row for each point."""
    with np.errstate(all="ignore"):
        left = np.asarray(values[a], np.float64)
        apart = left - (b if isinstance(b, float) else np.asarray(values[b], np.float64))
    if apart.shape[:1] != (points,):  # two constants
        return np.zeros((points, 1))
    return np.nan_to_num(np.sign(apart)).reshape(points, -1)


def _evaluate(
    region: _Region, opset: int, x: np.ndarray, constants: dict[ir.Value, np.ndarray]
) -> dict[ir.Value, np.ndarray]:
    """Return all values in the region by the reference implementation of ONNX."""
    names = {region.x: "x"} | {v: f"c{i}" for i, v in enumerate(constants)}
    feeds = {"x": x}
    for value, array in constants.items():
        wide = array.astype(np.float64) if array.dtype.kind == "f" else array
        feeds[names[value]] = wide
    protos = []
    for number, node in enumerate(region.nodes):
        names[node.outputs[0]] = f"v{number}"
        proto = ir.serde.serialize_node(node)
        if node.op_type == "Cast":
            kind = _cast(node) or ""
            proto = onnx.helper.make_node(kind, [""], [""])
            if kind == "Cast":
                proto.attribute.append(onnx.helper.make_attribute("to", onnx.TensorProto.DOUBLE))
        elif node.op_type == "Dropout":
            proto = onnx.helper.make_node("Identity", [""], [""])
        del proto.input[:], proto.output[:]
        used = node.inputs[:1] if node.op_type in ("Cast", "Dropout") else node.inputs
        proto.input.extend("" if v is None else names[v] for v in used)
        proto.output.append(names[node.outputs[0]])
        proto.domain = ""
        protos.append(proto)
    info, kind_of = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype
    typed = [info(n, kind_of(a.dtype), None) for n, a in feeds.items()]
    inside = [node.outputs[0] for node in region.nodes]
    results = [info(names[v], onnx.TensorProto.DOUBLE, None) for v in inside]
    graph = onnx.helper.make_graph(protos, "f", typed, results)
    versions = [node.version or 0 for node in region.nodes]
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", max(opset, *versions))]
    )
    try:
        outputs = ReferenceEvaluator(model).run(None, feeds)
    except _OF_THE_REFERENCE as error:
        raise _NotKnownError from error
    assert isinstance(outputs, list)
    known = {value: feeds[name] for value, name in names.items() if name in feeds}
    return known | dict(zip(inside, outputs, strict=True))


def _replace(editor: Editor, region: _Region) -> bool:
    """Replace a region by an activation that is the same function."""
    opset = editor.graph.opset_imports.get("", 1)
    try:
        curve = _Curve(region, opset)
    except _NotKnownError:  # the region stays
        return False
    if curve.values.shape[1] not in (1, curve.columns) or curve.columns < 1:
        return False
    found = _identify(curve)
    if found is None:
        return False
    name, emit, size = found
    if all(map(_is_plain, region.nodes)) and size >= len(region.nodes):
        return False
    new = emit(_Writer(editor, region))
    editor.replace(region.root.outputs[0], new)
    editor.count(f"{name} re-joined")
    return True


def _identify(curve: _Curve) -> tuple[str, Emit, int] | None:
    """Return name, writer and number of nodes of the activation that a curve is."""
    per_channel = _slopes(curve)
    if per_channel is not None:
        return per_channel
    if curve.values.shape[1] > 1:
        if not (curve.values == curve.values[:, :1]).all():
            return None
        curve.values = curve.values[:, :1]
    for candidate in (_smooth, _scaled_elu, _bounded, _softplus, _gated):
        found = candidate(curve)
        if found is not None:
            return found
    return None


def _slopes(curve: _Curve) -> tuple[str, Emit, int] | None:
    """Find Relu, LeakyRelu, PRelu: x above 0, a multiple of it below (of -1: Abs)."""
    at = int(np.argmin(np.abs(curve.points + 1.0)))
    slopes = -curve.values[at]
    if not np.isfinite(slopes).all():
        return None
    if not curve.is_like(lambda x: np.where(x > 0, x, slopes * x)):
        return None
    if (slopes == 0).all():
        return "Relu", lambda w: w("Relu"), 1
    alpha = float(np.float32(slopes[0]))
    if alpha == 1:
        return None
    if (slopes == slopes[0]).all():
        return "LeakyRelu", lambda w: w("LeakyRelu", alpha=alpha), 1
    return "PRelu", lambda w: w.prelu(slopes), 1


def _smooth(curve: _Curve) -> tuple[str, Emit, int] | None:
    if curve.is_like(np.tanh):
        return "Tanh", lambda w: w("Tanh"), 1
    if curve.is_like(_sigmoid):
        return "Sigmoid", lambda w: w("Sigmoid"), 1
    if curve.is_like(_gelu):
        return "Gelu", lambda w: w("Gelu", version=20, approximate="none"), 1
    if curve.is_like(_gelu_tanh):
        return "Gelu (tanh)", lambda w: w("Gelu", version=20, approximate="tanh"), 1
    if curve.is_like(lambda x: -_softplus_of(-x)):
        return "LogSigmoid", lambda w: w.times(w("Softplus", w.times(w.x, -1.0)), -1.0), 3
    return None


def _scaled_elu(curve: _Curve) -> tuple[str, Emit, int] | None:
    """Elu, Selu, Celu: s x above 0, s a (exp(b x) - 1) below."""
    s, limit, one = curve.at(1.0), -curve.at(-_FAR), -curve.at(-1.0)
    if not (s > 0 and 0 < one < limit):
        return None
    b = -math.log1p(-one / limit)
    for rounded in (1.0, 1.0 / float(f"{1 / b:.6g}"), float(f"{b:.6g}")):
        if abs(b - rounded) <= 1e-6 * b:
            b = rounded
            break
    a = limit / s
    if not curve.is_like(lambda x: np.where(x > 0, s * x, s * a * np.expm1(b * np.minimum(x, 0)))):
        return None

    def emit(w: _Writer) -> ir.Value:
        inside = w.times(w.x, b)
        return w.times(w("Elu", inside, alpha=float(np.float32(a * b))), s / b)

    return "Elu", emit, 1 + 2 * (b != 1) + (s != b)


def _softplus(curve: _Curve) -> tuple[str, Emit, int] | None:
    half = curve.at(0.0)
    if not half > 0:
        return None
    b = math.log(2.0) / half
    b = 1.0 if abs(b - 1) < 1e-6 else b
    if not curve.is_like(lambda x: _softplus_of(b * x) / b):
        return None
    return "Softplus", lambda w: w.times(w("Softplus", w.times(w.x, b)), 1 / b), 1 + 2 * (b != 1)


def _gated(curve: _Curve) -> tuple[str, Emit, int] | None:
    """Find the number times a bounded function: SiLU, Mish, HardSwish."""
    one = curve.at(1.0)
    if 0.5 < one < 1:
        b = -math.log(1 / one - 1)
        b = 1.0 if abs(b - 1) < 1e-6 else b
        if curve.is_like(lambda x: x * _sigmoid(b * x)):
            return "SiLU", lambda w: w("Mul", w.x, w("Sigmoid", w.times(w.x, b))), 2 + (b != 1)
    if curve.is_like(lambda x: x * np.tanh(_softplus_of(x))):
        return "Mish", lambda w: w("Mul", w.x, w("Tanh", w("Softplus"))), 3
    if curve.is_like(lambda x: x * np.clip(x + 3, 0, 6) / 6):
        return (
            "HardSwish",
            lambda w: w("Mul", w.x, w.times(w.clip(1.0, 3.0, 0.0, 6.0), 1 / 6)),
            6,
        )
    return None


def _bounded(curve: _Curve) -> tuple[str, Emit, int] | None:
    """Clip, ReLU6, Hardtanh, HardSigmoid: a x + b between two bounds, of which one may lack."""
    y, x = curve.values[:, 0], curve.points
    low, high = float(y[0]), float(y[-1])
    if low == high or not np.isfinite([low, high]).all() or (np.diff(y) * (high - low) < 0).any():
        return None
    inside = (np.abs(y - low) > 0.02 * abs(high - low)) & (
        np.abs(y - high) > 0.02 * abs(high - low)
    )
    if inside.sum() < 2:
        inside = np.abs(x) < 100
        inside &= (y != low) & (y != high)
    if inside.sum() < 2:
        return None
    first, last = np.flatnonzero(inside)[[0, -1]]
    if x[first] == x[last]:
        return None
    a = (y[last] - y[first]) / (x[last] - x[first])
    b = float(y[first] - a * x[first])
    if not (abs(a) < _FARTHEST and abs(b) < _FARTHEST):
        return None
    b = float(np.float32(b))
    if abs(b) < _ROUNDING * max(1.0, abs(float(y[last]))):
        b = 0.0
    a = float(np.float32(a))
    if abs(a - round(a)) < 1e-6 * abs(a):
        a = float(round(a))
    if a <= 0:
        return None
    # A bound that the straight line goes through at the ends of the points is none.
    below = low > a * x[0] + b + 1.0
    above = high < a * x[-1] + b - 1.0
    lo, hi = (low if below else -math.inf), (high if above else math.inf)
    if not (below or above) or not curve.is_like(lambda x: np.clip(a * x + b, lo, hi)):
        return None
    return "Clip", lambda w: w.clip(a, b, lo, hi), 1 + (a != 1) + (b != 0)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _softplus_of(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# --------------------------------------------------------------------------------------------------
# Writing it


class _Writer:
    """Writes nodes in the place of a region; called with an operator, it writes that."""

    def __init__(self, editor: Editor, region: _Region) -> None:
        self.editor, self.root, self.x = editor, region.root, region.x
        self.shape = shape_of(region.x) or ()

    def __call__(
        self,
        kind: str,
        *inputs: ir.Value | None,
        version: int | None = None,
        **attributes: float | str,
    ) -> ir.Value:
        operands = inputs or (self.x,)
        return self.editor.add(
            kind, operands, self.shape, self.root, dict(attributes), version=version
        )

    def number(self, value: float) -> ir.Value:
        """Return a constant scalar."""
        return self.editor.weight(np.array(value), f"{self.root.name}.constant")

    def times(self, value: ir.Value, factor: float) -> ir.Value:
        """Return value * factor."""
        return value if factor == 1 else self("Mul", value, self.number(factor))

    def prelu(self, slopes: np.ndarray) -> ir.Value:
        """Return PRelu with a slope for each channel."""
        tail = [1] * (len(self.shape) - 2)
        weight = self.editor.weight(slopes.reshape(-1, *tail), f"{self.root.name}.slope")
        return self("PRelu", self.x, weight)

    def clip(self, a: float, b: float, low: float, high: float) -> ir.Value:
        """Return a x + b within bounds."""
        value = self.times(self.x, a)
        if b == low and high == math.inf:  # bent where a x is 0
            value = self("Relu", value)
            return value if low == 0 else self("Add", value, self.number(low))
        if b != 0:
            value = self("Add", value, self.number(b))
        bounds = [self.number(bound) if math.isfinite(bound) else None for bound in (low, high)]
        return self("Clip", value, *bounds, version=13)
