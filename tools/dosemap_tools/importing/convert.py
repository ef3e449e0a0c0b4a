# SPDX-License-Identifier: Apache-2.0
"""From an ONNX model to the graph of weights/FORMAT.md: simplify, rejoin, lower, name the ports."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from dosemap_tools.importing.graph_builder import GraphBuilder, Made
from dosemap_tools.importing.lower import lower
from dosemap_tools.importing.network import Network, NetworkImportError, Port, Statement, Tensor
from dosemap_tools.importing.rejoin import rejoin
from dosemap_tools.importing.simplify import simplify

# Limits of weights/FORMAT.md that a network can meet long before the program reads it.
MAX_NODES = 4096
MAX_DATA_BYTES = 4 << 30


def convert(model: ir.Model, statement: Statement, where: str) -> Network:
    """Return the network that `model` computes on patches of the stated size.

    model: changed in place, and no longer of use afterwards. where: its file, for messages.
    """
    stated_channels = sum(port.channels for port in statement.inputs)
    originals = simplify(model, statement.spatial_shape, stated_channels, where)
    notes = rejoin(model)
    _refuse_unused_inputs(model, where)
    ports = (*statement.inputs, *statement.outputs)
    builder = GraphBuilder(model, originals, [port.name for port in ports], where)
    inputs = _bind_inputs(builder, model.graph.inputs, statement.inputs, where)
    made = lower(model, builder)
    outputs = _name_outputs(builder, model.graph.outputs, made, statement.outputs, where)
    builder.finish()
    _check_limits(builder, where)
    return Network(
        graph=_graph(statement, builder),
        tensors=builder.tensors,
        inputs=inputs,
        outputs=outputs,
        notes=[*notes, *builder.notes],
    )


def _graph(statement: Statement, builder: GraphBuilder) -> dict:
    voxel_size = statement.voxel_size_mm
    return {
        "graph_version": 1,
        "name": statement.name,
        "spatial_axes": statement.spatial_axes,
        "orientation": statement.orientation,
        "patch_size": list(statement.patch_size),
        "voxel_size_mm": None if voxel_size is None else list(voxel_size),
        "inputs": [port.json() for port in statement.inputs],
        "outputs": [port.json() for port in statement.outputs],
        "nodes": builder.nodes,
    }


def _refuse_unused_inputs(model: ir.Model, where: str) -> None:
    for value in model.graph.inputs:
        if not value.uses() and value not in model.graph.outputs:
            raise NetworkImportError(
                f"input '{value.name}' is used by nothing",
                where=where,
                remedy="export the network without that input",
            )


def _shared_out(
    kind: str, tensors: Sequence[tuple[str, Sequence[int], int]], ports: Sequence[Port], where: str
) -> list[list[Port]]:
    """Return which ports each tensor (name, shape, channels) is made of, in order."""
    left = list(ports)
    result: list[list[Port]] = []
    for _, _, channels in tensors:
        taken: list[Port] = []
        while left and sum(port.channels for port in taken) < channels:
            taken.append(left.pop(0))
        result.append(taken)
    fits = all(
        sum(port.channels for port in taken) == channels
        for taken, (_, _, channels) in zip(result, tensors, strict=True)
    )
    if fits and not left:
        return result
    has = ", ".join(
        f"'{name}' with {channels} channel{'s' * (channels != 1)} {list(shape)}"
        for name, shape, channels in tensors
    )
    stated = ", ".join(f"'{p.name}' ({p.channels} channel{'s' * (p.channels != 1)})" for p in ports)
    raise NetworkImportError(
        f"the network's {kind}s are {has}; stated are {stated}",
        where=where,
        remedy=f"state one --{kind} for each channel or group of channels, in that order",
    )


def _bind_inputs(
    builder: GraphBuilder, values: Sequence[ir.Value], ports: Sequence[Port], where: str
) -> list[Tensor]:
    """Make each input tensor of its ports: the port itself, or a Concat of several."""
    shapes = [builder.shape(value) for value in values]
    described = [(v.name or "", s[1:], s[1]) for v, s in zip(values, shapes, strict=True)]
    tensors = []
    for value, shape, own in zip(
        values, shapes, _shared_out("input", described, ports, where), strict=True
    ):
        name = value.name or ""
        if len(own) == 1:
            builder.bind(value, own[0].name, shape)
        else:
            attributes = {"axis": 1}
            joined = builder.append(
                "Concat", name, [port.name for port in own], shape, attributes, value_name=name
            )
            builder.bind(value, joined.name, shape)
        tensors.append(_tensor(name, own, shape))
    return tensors


def _name_outputs(
    builder: GraphBuilder,
    values: Sequence[ir.Value],
    made: Sequence[Made],
    ports: Sequence[Port],
    where: str,
) -> list[Tensor]:
    """Let each output tensor be its port, or slice it into several."""
    described = [
        (value.name or "", builder.shape(value)[1:], result.shape[1])
        for value, result in zip(values, made, strict=True)
    ]
    tensors = []
    for value, result, own in zip(
        values, made, _shared_out("output", described, ports, where), strict=True
    ):
        if len(own) == 1:
            builder.make_port(result, own[0].name)
        else:
            _slice_ports(builder, result, own)
        tensors.append(_tensor(value.name or "", own, builder.shape(value)))
    return tensors


def _slice_ports(builder: GraphBuilder, result: Made, ports: Sequence[Port]) -> None:
    begin = 0
    for port in ports:
        end = begin + port.channels
        attributes = {"starts": [begin], "ends": [end], "axes": [1]}
        shape = (result.shape[0], port.channels, *result.shape[2:])
        part = builder.append("Slice", port.name, [result.name], shape, attributes)
        builder.make_port(part, port.name)
        begin = end


def _tensor(name: str, ports: Sequence[Port], shape: Sequence[int]) -> Tensor:
    return Tensor(
        name=name,
        ports=tuple(port.name for port in ports),
        channels=tuple(port.channels for port in ports),
        shape=tuple(shape[1:]),
    )


def _check_limits(builder: GraphBuilder, where: str) -> None:
    count = len(builder.nodes)
    if not 1 <= count <= MAX_NODES:
        raise NetworkImportError(
            f"the network has {count} nodes in the words of the weights file",
            where=where,
            remedy=f"1 to {MAX_NODES} are possible",
        )
    size = sum(4 * tensor.size for tensor in builder.tensors.values())
    if size > MAX_DATA_BYTES:
        raise NetworkImportError(
            f"its weights have {size} bytes in float32",
            where=where,
            remedy=f"a weights file holds at most {MAX_DATA_BYTES}",
        )
