# SPDX-License-Identifier: Apache-2.0
"""The network of a weights file as an ONNX model.

The model computes what the network computes: its inputs and outputs are the ports' values after
the intensity transforms, in the network's own axes. What ONNX has no words for (quantities, units,
transforms, orientation, card) is in the model's metadata, as in the weights file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

from dosemap_tools import __version__, weights_file

Json = dict[str, Any]

# The first that has every operator: GroupNormalization with a scale per channel came last.
OPSET = 21
IR_VERSION = 10  # the one of that opset's release
TO_THE_END = (1 << 31) - 1
_SPATIAL = [2, 3, 4]
_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


def _graph_names(graph: Json) -> set[str]:
    names = {port["name"] for port in graph["inputs"]}
    for node in graph["nodes"]:
        names.update(node["inputs"], node["outputs"])
    return names


def _is_size_free(node: Json) -> bool:
    """Return whether a node means the same for patches of other sizes."""
    attributes = node.get("attributes", {})
    if node["op"] == "Slice":
        axes = attributes.get("axes", [])
        ranges = zip(axes, attributes["starts"], attributes["ends"], strict=True)
        return all(
            axis == 1 or (start >= 0 and (end < 0 or end >= TO_THE_END))
            for axis, start, end in ranges
        )
    return node["op"] != "Resize" or all(_is_exact(s) for s in attributes.get("scales", [math.nan]))


def _is_exact(scale: float) -> bool:
    """Return whether ONNX's float32 holds a scale, so that sizes and positions are the same."""
    return float(np.float32(scale)) == scale


class _Writer:
    """Makes the nodes and constants of an ONNX graph from those of a weights file."""

    def __init__(self, graph: Json, shapes: dict[str, tuple[int, ...]]) -> None:
        self.graph = graph
        self.names = _graph_names(graph)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.size_free = all(_is_size_free(node) for node in graph["nodes"])
        x, y, z = graph["patch_size"]
        self.patch = (x, y, z) if graph["spatial_axes"] == "xyz" else (z, y, x)
        self.axes = ("x", "y", "z") if graph["spatial_axes"] == "xyz" else ("z", "y", "x")
        self.weights = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        ]

    def unused(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def constant(self, node: Json, what: str, values: np.ndarray) -> str:
        name = self.unused(f"{node['name']}.{what}")
        self.constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    # Operators whose attributes are inputs in newer versions ---------------------------------
    def resize(self, node: Json, inputs: list[str], attributes: Json) -> Json:
        sizes, scales = attributes.pop("sizes", None), attributes.pop("scales", None)
        if scales is not None and not all(_is_exact(s) for s in scales):
            sizes = self.sizes_for(inputs[0], scales)
            named = [axis for axis in range(3) if sizes[axis]]
            if 0 < len(named) < 3:  # those axes first, alone
                inner = self.unused(f"{node['name']}.resized")
                inputs.append("")
                inputs += [
                    "",
                    self.constant(node, "sizes", np.array([sizes[i] for i in named], np.int64)),
                ]
                given = {**attributes, "axes": [_SPATIAL[axis] for axis in named]}
                self.nodes.append(helper.make_node("Resize", inputs, [inner], inner, **given))
                inputs[:] = [inner]
                scales = [1.0 if sizes[axis] else scales[axis] for axis in range(3)]
            sizes = sizes if len(named) == 3 else None
        if sizes is not None:
            inputs += ["", "", self.constant(node, "sizes", np.array(sizes, np.int64))]
        else:
            inputs += ["", self.constant(node, "scales", np.array(scales, np.float32))]
        return {**attributes, "axes": _SPATIAL}

    def sizes_for(self, source: str, scales: list[float]) -> list[int]:
        """Return the sizes of axes where scales in float32 would give others; 0 for the rest.

        ONNX Runtime multiplies in float32, onnx in float64. Where one of them makes another size
        of it, in * scale is an integer, and a size says the same.
        """
        result = []
        for n, scale in zip(self.shapes_of([source])[0][2:], scales, strict=True):
            single, after = np.float32(scale), math.floor(n * scale)
            same = math.floor(np.float32(n) * single) == math.floor(n * float(single)) == after
            result.append(0 if same else after)
        return result

    def pool(self, node: Json, inputs: list[str], attributes: Json) -> Json:
        """Say ceil_mode by padding where ONNX counts windows that begin behind the input."""
        if not attributes.get("ceil_mode"):
            return attributes
        strides, dilations = (attributes.get(k, [1] * 3) for k in ("strides", "dilations"))
        pads, more = list(attributes.get("pads", [0] * 6)), [0] * 6
        as_onnx = True
        for axis, n in enumerate(self.shapes_of(inputs[:1])[0][2:]):
            extent = (attributes["kernel_shape"][axis] - 1) * dilations[axis] + 1
            room = n + pads[axis] + pads[axis + 3] - extent
            rest = room % strides[axis]
            if rest and (room - rest + strides[axis]) < n + pads[axis]:
                more[axis + 3] = strides[axis] - rest
            elif rest:
                as_onnx = False
        if as_onnx:
            return attributes
        self.size_free = False
        if attributes.pop("count_include_pad", 0):  # what ceil_mode adds does not count
            inner = self.unused(f"{node['name']}.padded")
            padding = {"name": inner, "op": "Pad", "inputs": inputs[:1], "outputs": [inner]}
            self.nodes.append(self.node({**padding, "attributes": {"pads": pads}}))
            inputs[0], pads = inner, [0] * 6
        pads = [given + added for given, added in zip(pads, more, strict=True)]
        return {**attributes, "ceil_mode": 0, "pads": pads}

    def pad(self, node: Json, inputs: list[str], attributes: Json) -> Json:
        value, pads = np.float32(attributes.pop("value", 0)), attributes.pop("pads")
        inputs += [
            self.constant(node, "pads", np.array(pads, np.int64)),
            self.constant(node, "value", np.array(value)),
            self.constant(node, "axes", np.array(_SPATIAL, np.int64)),
        ]
        return attributes

    def slice(self, node: Json, inputs: list[str], attributes: Json) -> Json:
        attributes.setdefault("steps", [1] * len(attributes["starts"]))
        for key in ("starts", "ends", "axes", "steps"):
            inputs.append(self.constant(node, key, np.array(attributes.pop(key), np.int64)))
        return attributes

    def clip(self, node: Json, inputs: list[str], attributes: Json) -> Json:
        for name in ("min", "max"):
            bound = attributes.pop(name, None)
            inputs.append("" if bound is None else self.constant(node, name, np.float32(bound)))
        return attributes

    def node(self, node: Json) -> onnx.NodeProto:
        inputs, attributes = list(node["inputs"]), dict(node.get("attributes", {}))
        rules: dict[str, Callable[[Json, list[str], Json], Json]] = {
            "AveragePool": self.pool,
            "Clip": self.clip,
            "Concat": lambda _, __, given: {"axis": 1, **given},
            "MaxPool": self.pool,
            "Pad": self.pad,
            "Resize": self.resize,
            "Slice": self.slice,
        }
        if node["op"] in rules:
            attributes = rules[node["op"]](node, inputs, attributes)
        made = helper.make_node(node["op"], inputs, list(node["outputs"]), name=node["name"])
        schema = onnx.defs.get_schema(node["op"], OPSET)
        for key, value in attributes.items():
            real = schema.attributes[key].type == onnx.defs.OpSchema.AttrType.FLOAT
            made.attribute.append(helper.make_attribute(key, float(value) if real else value))
        return made

    def cast(self, weight: str) -> onnx.NodeProto:
        """Let every node use a float32 copy of a weight that is stored as something else."""
        wide = self.unused(f"{weight}.float32")
        for node in self.nodes:
            for i, name in enumerate(node.input):
                if name == weight:
                    node.input[i] = wide
        return helper.make_node("Cast", [weight], [wide], name=wide, to=TensorProto.FLOAT)

    # Ports and shapes ------------------------------------------------------------------------
    def shape(self, port: Json, sizes: tuple[Any, ...]) -> list[Any]:
        return ["N", port["channels"], *sizes]

    def shapes_of(self, names: list[str]) -> list[tuple[int, ...]]:
        """Return the shapes that values have for one patch, by the nodes so far."""
        ports = [
            helper.make_tensor_value_info(
                port["name"], TensorProto.FLOAT, [1, port["channels"], *self.patch]
            )
            for port in self.graph["inputs"]
        ]
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        known = {value.name: value for value in (*ports, *self.weights)}
        # onnx infers nothing for a function as which it defines an operator.
        nodes = [
            helper.make_node("InstanceNormalization", n.input, n.output, n.name)
            if n.op_type == "GroupNormalization"
            else n
            for n in self.nodes
        ]
        graph = helper.make_graph(
            nodes,
            "shapes",
            list(known.values()),
            [value for value in outputs if value.name not in known],
            self.constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        known.update({value.name: value for value in inferred.graph.output})
        return [
            tuple(d.dim_value for d in known[name].type.tensor_type.shape.dim) for name in names
        ]


def _port_text(port: Json, role: str) -> str:
    steps = ", ".join(json.dumps(step) for step in port["intensity"])
    unit = f" in {port['unit']}" if port["unit"] else ""
    if not steps:
        return f"{port['quantity']}{unit}"
    done = "after" if role == "input" else "before"
    return f"{port['quantity']}{unit}, {done} the intensity steps {steps}"


def _text(graph: Json) -> str:
    return (
        f"The network alone: tensors are (N, channels, {', '.join(graph['spatial_axes'])}) of a "
        f"grid in {graph['orientation']} order. The intensity steps between quantities and "
        "network, units, orientation, voxel size and card are no part of the graph: they are in "
        "the metadata dosemap.graph, dosemap.card and dosemap.provenance."
    )


def _initializers(
    file: weights_file.WeightsFile,
    dtype: str,
    data: tuple[BinaryIO, str] | None,
) -> Iterator[TensorProto]:
    for name, values in file.tensors.items():
        content = weights_file.encode_tensor(name, values, dtype)
        tensor = TensorProto(name=name, data_type=_TYPES[dtype], dims=values.shape)
        if data is None:
            tensor.raw_data = bytes(content)
        else:
            stream, location = data
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": location, "offset": stream.tell(), "length": content.nbytes}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            stream.write(content)
        yield tensor


def build(
    file: weights_file.WeightsFile, dtype: str = "F32", data: tuple[BinaryIO, str] | None = None
) -> onnx.ModelProto:
    """Return the network of a weights file as an ONNX model with a free batch size.

    The spatial sizes are free, too, where nothing in the graph names a size; else they are the
    patch's. dtype: how weights are stored; they are cast to float32 before they are used. data: a
    stream and its file's name, to which the weights are written rather than into the model.
    """
    graph = file.graph
    writer = _Writer(graph, {name: values.shape for name, values in file.tensors.items()})
    for node in graph["nodes"]:
        writer.nodes.append(writer.node(node))
    found = writer.shapes_of([port["name"] for port in graph["outputs"]])
    free = writer.size_free
    sizes: tuple[Any, ...] = tuple(f"size_{a}" for a in writer.axes) if free else writer.patch
    inputs, outputs = [], []
    for port in graph["inputs"]:
        shape, text = writer.shape(port, sizes), _port_text(port, "input")
        inputs.append(helper.make_tensor_value_info(port["name"], TensorProto.FLOAT, shape, text))
    for port, shape_found in zip(graph["outputs"], found, strict=True):
        same = shape_found[2:] == writer.patch
        inner: tuple[Any, ...] = sizes if same else (None,) * 3 if free else shape_found[2:]
        shape, text = writer.shape(port, inner), _port_text(port, "output")
        outputs.append(helper.make_tensor_value_info(port["name"], TensorProto.FLOAT, shape, text))
    casts = [writer.cast(name) for name in file.tensors] if dtype != "F32" else []
    grouped = [n["outputs"][0] for n in graph["nodes"] if n["op"] == "GroupNormalization"]
    told = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", shape[1], *[None] * 3])
        for name, shape in zip(grouped, writer.shapes_of(grouped), strict=True)
        if all(name != port["name"] for port in graph["outputs"])
    ]
    initializers = [*writer.constants, *_initializers(file, dtype, data)]
    proto = helper.make_graph(
        [*casts, *writer.nodes], graph["name"], inputs, outputs, initializers, _text(graph), told
    )
    model = helper.make_model(
        proto,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="dosemap",
        producer_version=__version__,
        doc_string=str(file.card.get("summary", "")),
    )
    parts = {"graph": graph, "card": file.card, "provenance": file.provenance}
    helper.set_model_props(
        model,
        {f"dosemap.{key}": json.dumps(part, ensure_ascii=False) for key, part in parts.items()},
    )
    return model
