# SPDX-License-Identifier: Apache-2.0
"""Collects nodes and weights of a graph in the words of weights/FORMAT.md, and names them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer import FOLDED_FROM_KEY

from dosemap_tools.importing.network import Json, NetworkImportError
from dosemap_tools.importing.simplify import static_shape

_FLOATS = {
    ir.DataType.FLOAT: "",
    ir.DataType.FLOAT16: "widened from float16",
    ir.DataType.BFLOAT16: "widened from bfloat16",
    ir.DataType.DOUBLE: "rounded from float64",
}
_LONGEST_NAME = 240  # bytes; 255 are possible, and a number may follow


@dataclass(frozen=True)
class Made:
    """A value of the network as the graph has it.

    The network may see the same elements in other axes: (N, C) where the graph has
    (N, C, 1, 1, 1), or what `reshaped_by` made of them.
    """

    name: str
    shape: tuple[int, ...]  # (N, C, a, b, c)
    reshaped_by: str = ""  # the node, for messages


def node_label(node: ir.Node) -> tuple[str, str]:
    """Return a node's name and that of its value: where it stands in the model's own code.

    PyTorch's exporter writes "encoder: a.Encoder/encoder.conv: torch.nn.modules.conv.Conv3d/conv3d:
    aten.conv3d.default". A layer's operator has the layer's path, another the function's name.
    """
    scopes = [s.partition(": ") for s in node.metadata_props.get("namespace", "").split("/")]
    value = node.outputs[0].name or node.op_type
    if len(scopes) < 2:
        return node.name or value, value
    path, _, kind = scopes[-2]
    layer = kind.startswith("torch.nn.modules.") and ".container." not in kind
    if not (layer and path):
        path = re.sub(r"_*\d*$", "", scopes[-1][0])  # counted anew
    path = path or node.name or value
    return path, path.replace(".", "_")


def source_line(node: ir.Node) -> str:
    """Return the line of the model's code that made a node, where the file has it."""
    trace = node.metadata_props.get("pkg.torch.onnx.stack_trace", "")
    frames = re.findall(r'File "([^"\n]{1,500})", line (\d{1,9})', trace)
    own = [frame for frame in frames if "/torch/nn/modules/" not in frame[0]]
    return "{}, line {}".format(*(own or frames)[-1]) if frames else ""


def _clean(name: str) -> str:
    """Return a name as the format allows it: 1 to 255 bytes without control characters."""
    printable = "".join(c if c.isprintable() else "_" for c in name) or "_"
    return printable.encode(errors="replace")[:_LONGEST_NAME].decode(errors="ignore")


def _unique(name: str, *taken: Collection[str]) -> str:
    name = _clean(name)
    result, n = name, 0
    while any(result in names for names in taken):
        n += 1
        result = f"{name}_{n}"
    return result


class GraphBuilder:
    """The graph while it is made.

    originals: the file's weights before constants were computed from them. reserved: names of the
    ports, which nothing else may have.
    """

    def __init__(
        self,
        model: ir.Model,
        originals: Mapping[str, ir.TensorProtocol],
        reserved: Sequence[str],
        where: str,
    ) -> None:
        self.where = where
        self.nodes: list[Json] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self._originals = originals
        self._ports = set(reserved)
        self._values = set(reserved)
        self._node_names: set[str] = set()
        self._weight_names = {*originals, *model.graph.initializers}
        self._made: dict[ir.Value, Made] = {}
        self._arrays: dict[ir.Value, tuple[str, np.ndarray]] = {}
        self._registered: dict[tuple[str, tuple[int, ...], str], str] = {}
        self._renamed: dict[str, str] = {}
        self._converted: dict[str, int] = {}

    # Values of the network

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Return the shape of a value of the network, which must be known."""
        shape = static_shape(value)
        if shape is None:
            raise NetworkImportError(
                f"the shape of '{value.name}' does not follow from the patch size",
                where=self.where,
                remedy="export the network again with a fixed patch size",
            )
        return shape

    def bind(self, value: ir.Value, name: str, shape: Sequence[int], by: str = "") -> None:
        """Say what a value of the network is in the graph."""
        self._made[value] = Made(name, tuple(shape), by)

    def made(self, value: ir.Value) -> Made | None:
        """Return what a value of the network is in the graph; None for constants."""
        return self._made.get(value)

    # Nodes

    def append(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        shape: Sequence[int],
        attributes: Json | None = None,
        *,
        value_name: str = "",
    ) -> Made:
        """Add a node; its name and that of its value are made unique."""
        name = _unique(name, self._node_names)
        value = _unique(value_name or name.replace(".", "_"), self._values, self._weight_names)
        self._node_names.add(name)
        self._values.add(value)
        self.nodes.append(
            {
                "op": op,
                "name": name,
                "inputs": list(inputs),
                "outputs": [value],
                "attributes": attributes or {},
            }
        )
        return Made(value, tuple(shape))

    def make_port(self, made: Made, port: str) -> None:
        """Give a value the name of an output port; a value that has such a name is passed on."""
        if made.name in self._renamed or made.name in self._ports:
            made = self.append("Identity", port, [made.name], made.shape)
        self._renamed[made.name] = port

    def finish(self) -> None:
        """Let the ports' names stand in the nodes, and note what was done to the weights."""
        for node in self.nodes:
            for key in ("inputs", "outputs"):
                node[key] = [self._renamed.get(name, name) for name in node[key]]
        self.notes += [
            f"{count} of the weights' tensors {how}" for how, count in self._converted.items()
        ]

    # Weights

    def parameter(self, value: ir.Value, role: str) -> tuple[str, np.ndarray]:
        """Return name and values, float32, of a constant of the network.

        role: the name of one that is none of the file's weights, such as "layer.bias".
        """
        if value not in self._arrays:
            name, array = self._read(value)
            if name not in self._originals:
                name = _unique(role, self._values, self._weight_names)
                self._weight_names.add(name)
            self._arrays[value] = name, array
        return self._arrays[value]

    def is_original(self, name: str) -> bool:
        """Tell whether the file has a weight of that name."""
        return name in self._originals

    def _read(self, value: ir.Value) -> tuple[str, np.ndarray]:
        tensor, name = value.const_value, value.name or ""
        assert tensor is not None
        if tensor.dtype not in _FLOATS:
            raise NetworkImportError(
                f"tensor '{name}' is of type {tensor.dtype.name}",
                where=self.where,
                remedy="export the network in float32; quantised networks cannot be imported",
            )
        if how := _FLOATS[tensor.dtype]:
            self._converted[how] = self._converted.get(how, 0) + 1
        with np.errstate(over="ignore"):
            array = np.asarray(tensor.numpy()).astype(np.float32, copy=False)
        # The smallest and largest are NaN if any is: no array of truths as large as the weights.
        if array.size and not np.isfinite([array.min(), array.max()]).all():
            raise NetworkImportError(
                f"tensor '{name}' holds NaN or infinity",
                where=self.where,
                remedy="the weights are not usable; take a checkpoint from before they broke",
            )
        return self._own_name(value, array) or name, array

    def _own_name(self, value: ir.Value, array: np.ndarray) -> str:
        """Return the parameter's name where a constant is one in another shape only."""
        for source in value.meta.get(FOLDED_FROM_KEY, ()):
            original = self._originals.get(source)
            if original is None or original.size != array.size or original.dtype not in _FLOATS:
                continue
            if np.array_equal(original.numpy().astype(np.float32).ravel(), array.ravel()):
                return source
        return ""

    def add_weight(self, name: str, array: np.ndarray, change: str = "") -> str:
        """Add a tensor and return its name; the same one in the same shape is added once.

        change: what was done to its values, which then stands in its name.
        """
        key = (name, array.shape, change)
        if key not in self._registered:
            wanted = f"{name}.{change}" if change else name
            own = set() if wanted in self._weight_names else self._weight_names
            final = _unique(wanted, self._values, own)
            self._values.add(final)
            self.tensors[final] = array
            self._registered[key] = final
        return self._registered[key]


def plain_shape(shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return a shape in the graph's five axes, None where it has others: (N, C) is one voxel."""
    if len(shape) == 2:
        return (*shape, 1, 1, 1)
    return tuple(shape) if len(shape) == 5 else None


def attribute_number(value: float) -> float:
    """Return a float32 attribute with the fewest digits that mean it: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))
