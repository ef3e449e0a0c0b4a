# SPDX-License-Identifier: Apache-2.0
"""Looking at an ONNX graph and changing it, as rejoining needs it.

All shapes are numbers here (simplify.py sees to it). Nodes that nothing needs any more stay until
the end: whoever replaces a value leaves what made it to the last pass.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import FOLDED_FROM_KEY

Shape = tuple[int, ...]

# The same values in the same order under another shape.
RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# Values as they are; casts are between kinds of floating-point numbers (simplify.py).
COPIES = frozenset({"Identity", "Cast", "Dropout"})


def shape_of(value: ir.Value | None) -> Shape | None:
    """Return a value's shape, or None where it is not known in numbers."""
    if value is None or value.shape is None:
        return None
    dims = tuple(d for d in value.shape if isinstance(d, int))
    return dims if len(dims) == len(value.shape) else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the number or array that a value always is, in its own type."""
    if value is None or value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is known, without reading it."""
    return value is not None and not value.is_graph_input() and value.const_value is not None


def is_float(value: ir.Value) -> bool:
    """Return whether a value's numbers are known to be floating-point ones."""
    return value.dtype is not None and value.dtype.is_floating_point()


def made_by(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """Return the node that makes a value if it is one of ONNX's operators `kinds`."""
    node = None if value is None else value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    return node if node.op_type in kinds else None


def is_onnx(node: ir.Node) -> bool:
    """Return whether a node is an operator of ONNX's own domain."""
    return node.domain in ("", "ai.onnx")


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads a value (once or twice), if nothing else does."""
    readers = {id(use.node): use.node for use in value.uses()}
    if len(readers) != 1 or value.is_graph_output():
        return None
    return next(iter(readers.values()))


def attribute(node: ir.Node, name: str, default):  # noqa: ANN001, ANN201 - as the attribute is
    """Return the value of an attribute, or `default`."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def axes_of(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Return the axes of a reduction, sorted, as attribute or input; None if they are not known."""
    axes = attribute(node, "axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        known = constant(node.inputs[1])
        if known is None:
            return None
        axes = [int(a) for a in known.reshape(-1)]
    if not axes:
        if attribute(node, "noop_with_empty_axes", 0):
            return None
        axes = range(rank)
    return tuple(sorted({int(a) % rank for a in axes}))


def same_numbers(value: ir.Value) -> Iterator[ir.Value]:
    """Yield `value` and those behind it that have the same numbers in the same order."""
    yield value
    node = value.producer()
    while node is not None and is_onnx(node) and node.op_type in RESHAPES | COPIES:
        source = node.inputs[0]
        if source is None or is_constant(source) or not is_float(source):
            return
        yield source
        node = source.producer()


def five_axes(value: ir.Value) -> ir.Value:
    """Return the first tensor (N, C, a, b, c) whose numbers `value` has, else `value`."""
    found = [v for v in same_numbers(value) if len(shape_of(v) or ()) == 5]
    return found[-1] if found else value


def per_channel(array: np.ndarray, channels: int, rank: int = 5) -> np.ndarray | None:
    """Return a constant that meets (N, C, ...) as one number per channel, or None if it is more."""
    if array.ndim > rank:
        return None
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if any(n != 1 for axis, n in enumerate(full.shape) if axis != 1):
        return None
    if full.shape[1] not in (1, channels):
        return None
    return np.broadcast_to(full.reshape(-1), (channels,)).astype(np.float64)


class Editor:
    """Puts new nodes in place of old ones."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.counts: dict[str, int] = {}  # what was done, for people
        self.remarks: list[str] = []
        self._names = {v.name for v in graph.inputs} | set(graph.initializers)
        for node in graph:
            self._names.update(v.name for v in node.outputs)
            self._names.add(node.name)

    def count(self, what: str) -> None:
        """Note that `what` was done once more."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def unique(self, wanted: str) -> str:
        """Return `wanted`, or with a number behind it where the graph has that name."""
        name, number = wanted, 1
        while name in self._names:
            number += 1
            name = f"{wanted}.{number}"
        self._names.add(name)
        return name

    def weight(self, array: np.ndarray, name: str, *made_of: ir.Value | None) -> ir.Value:
        """Return a new constant, float32 or int64.

        made_of: the constants it follows from; where it is one of the network's parameters in
        another shape it keeps that one's name in the end.
        """
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        tensor = ir.tensor(np.asarray(array, kind, order="C"), name=self.unique(name))
        value = ir.Value(name=tensor.name, const_value=tensor)
        value.shape, value.dtype = ir.Shape(tuple(array.shape)), tensor.dtype
        sources: set[str] = set()
        for source in made_of:
            if source is not None:
                sources |= {source.name or "", *source.meta.get(FOLDED_FROM_KEY, ())}
        if sources:
            value.meta[FOLDED_FROM_KEY] = sources
        self.graph.register_initializer(value)
        return value

    def add(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int],
        at: ir.Node,
        attributes: dict | None = None,
        *,
        name: str = "",
        version: int | None = None,
    ) -> ir.Value:
        """Return the output of a new node before `at`, whose name and origin it takes over."""
        node = ir.node(
            kind,
            inputs,
            attributes or {},
            name=self.unique(name or f"{at.name or at.outputs[0].name}"),
            version=version,
            metadata_props=dict(at.metadata_props),
        )
        output = node.outputs[0]
        output.name = self.unique(f"{node.name}.out")
        output.shape, output.dtype = ir.Shape(tuple(shape)), ir.DataType.FLOAT
        self.graph.insert_before(at, node)
        return output

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything that reads `old` read `new`; an output of the graph keeps its name."""
        was_output = old.is_graph_output()
        if was_output and (new.is_graph_output() or new.is_graph_input()):
            node = old.producer()
            assert node is not None
            new = self.add("Identity", [new], shape_of(new) or (), node)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if was_output:
            old.name, new.name = self.unique(f"{old.name}.before"), old.name
        self.prune(old)

    def prune(self, value: ir.Value) -> None:
        """Remove the nodes behind a value that nothing needs."""
        waiting = [value.producer()]
        while waiting:
            node = waiting.pop()
            if node is None or node.graph is None:
                continue
            if not any(v.uses() or v.is_graph_output() for v in node.outputs):
                waiting += [v.producer() for v in node.inputs if v is not None]
                self.graph.remove(node, safe=True)

    def finish(self) -> list[str]:
        """Return what was done, most frequent first."""
        done = sorted(self.counts.items(), key=lambda item: -item[1])
        return [f"{what}: {count}" for what, count in done] + self.remarks


def in_order(root: ir.Node, among: Container[int]) -> list[ir.Node]:
    """Return the nodes behind `root`, and itself, whose ids are in `among`: inputs first."""
    order: dict[int, ir.Node] = {}
    waiting = [root]
    while waiting:
        node = waiting[-1]
        makers = [v.producer() for v in node.inputs if v is not None]
        left = [m for m in makers if m is not None and id(m) in among and id(m) not in order]
        if left and id(node) not in order:
            waiting += left
        else:
            order.setdefault(id(node), waiting.pop())
    return list(order.values())


def elements(shape: Iterable[int]) -> int:
    """Return the number of elements of a shape."""
    return math.prod(shape)


def skip_reshapes(editor: Editor) -> None:
    """Let what reads a tensor that was reshaped and reshaped back read the tensor itself."""
    for node in list(editor.graph):
        if node.graph is not None and is_onnx(node) and node.op_type in RESHAPES:
            value = node.outputs[0]
            same = [v for v in same_numbers(value) if shape_of(v) == shape_of(value) is not None]
            if same and same[-1] is not value:
                editor.replace(value, same[-1])
