# SPDX-License-Identifier: Apache-2.0
"""The three kinds of source: what each says of itself, its network, and its original to run."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dosemap_tools.importing.card import Stated, statement_of
from dosemap_tools.importing.network import (
    Json,
    Network,
    NetworkImportError,
    Original,
    Port,
    Statement,
    Tensor,
)
from dosemap_tools.importing.ports import SourceTensor, UsageError

if TYPE_CHECKING:
    import onnx_ir
    from torch import nn
    from torch.export import ExportedProgram

    from dosemap_tools.importing.checkpoint import Checkpoint

STATE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_SHOWN = 8  # tensors of a state dict that a first look lists


_Thing = TypeVar("_Thing")


def _taken(thing: _Thing | None) -> _Thing:
    if thing is None:
        raise RuntimeError("network() and original() are for one call each")
    return thing


class Source(ABC):
    """A file to import from. `network` may be called once, `original` after it."""

    kind: str
    inputs: Sequence[SourceTensor] = ()
    outputs: Sequence[SourceTensor] = ()

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def network(self, stated: Stated) -> tuple[Statement, Network, list[str]]:
        """Return statement, network and notes for people."""

    @abstractmethod
    def original(self) -> Original:
        """Return the network as its own framework runs it, and keep nothing of it."""

    def lines(self) -> list[str]:
        """Return what the file says of itself."""
        rows = [f"input   {tensor.text()}" for tensor in self.inputs]
        return rows + [f"output  {tensor.text()}" for tensor in self.outputs]


def _described(model: onnx_ir.Model) -> tuple[list[SourceTensor], list[SourceTensor]]:
    from dosemap_tools.importing.onnx_file import describe

    def tensors(rows: Sequence[tuple[str, tuple[Any, ...], str]]) -> list[SourceTensor]:
        return [
            SourceTensor(name, tuple(n if isinstance(n, int) else None for n in shape) or None)
            for name, shape, _ in rows
        ]

    inputs, outputs = describe(model)
    return tensors(inputs), tensors(outputs)


class OnnxSource(Source):
    """An ONNX file."""

    kind = "ONNX"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        from dosemap_tools.importing.onnx_file import load

        self._model: onnx_ir.Model | None = load(path)
        self.inputs, self.outputs = _described(self._model)

    def network(self, stated: Stated) -> tuple[Statement, Network, list[str]]:
        """Return statement, network and notes for people."""
        from dosemap_tools.importing.convert import convert

        statement, notes = statement_of(stated, self.inputs, self.outputs)
        model, self._model = self._model, None
        return statement, convert(_taken(model), statement, str(self.path)), notes

    def original(self) -> Original:
        """Return the network as its own framework runs it, and keep nothing of it."""
        from dosemap_tools.importing.onnx_file import OnnxOriginal

        return OnnxOriginal(self.path)


class ProgramSource(Source):
    """A program of torch.export."""

    kind = "torch.export program"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        from dosemap_tools.importing.program_file import load
        from dosemap_tools.importing.torch_network import to_onnx

        self._notes: list[str] = []
        self._program: ExportedProgram | None = load(path, self._notes)
        self._model: onnx_ir.Model | None = to_onnx(self._program, str(path))
        self.inputs, self.outputs = _described(self._model)

    def network(self, stated: Stated) -> tuple[Statement, Network, list[str]]:
        """Return statement, network and notes for people."""
        from dosemap_tools.importing.convert import convert

        statement, notes = statement_of(stated, self.inputs, self.outputs)
        model, self._model = self._model, None
        network = convert(_taken(model), statement, str(self.path))
        return statement, network, self._notes + notes

    def original(self) -> Original:
        """Return the network as its own framework runs it, and keep nothing of it."""
        from dosemap_tools.importing.torch_network import TorchOriginal

        program, self._program = self._program, None
        return TorchOriginal(_taken(program))


class StateSource(Source):
    """A state dict, for a network of models/ or a Python class."""

    kind = "state dict"

    def __init__(
        self, path: Path, network: str | None, key: str | None, prefix: str | None
    ) -> None:
        super().__init__(path)
        from dosemap_tools.importing.checkpoint import load

        self._network_name = network
        self._checkpoint: Checkpoint | None = load(path, key, prefix)
        self._module: nn.Module | None = None

    def lines(self) -> list[str]:
        """Return the first tensors of the state dict."""
        held: Mapping[str, Any] = self._checkpoint or {}
        shapes = [(name, tuple(values.shape)) for name, values in held.items()]
        rows = [f"{name} {shape}" for name, shape in shapes[:_SHOWN]]
        more = len(shapes) - len(rows)
        return rows + [f"... and {more} more tensors"] * (more > 0)

    @staticmethod
    def networks() -> str:
        """Return which networks a state dict can be for."""
        from dosemap_tools.importing.torch_network import network_names

        return f"one of {', '.join(network_names())}, or package.module:Class(arguments)"

    def network(self, stated: Stated) -> tuple[Statement, Network, list[str]]:
        """Return statement, network and notes for people."""
        from dosemap_tools.importing import torch_network

        name = self._network_name or ""
        if ":" not in name:
            return self._known(name, stated)
        from dosemap_tools.importing.convert import convert

        self._module = torch_network.module_from(name, Path.cwd())
        notes = self._give_weights(self._module)
        statement, _ = statement_of(stated, (), ())
        channels = _input_channels(self._module, statement.inputs)
        program, traced = torch_network.export_program(self._module, channels, statement)
        model = torch_network.to_onnx(program, name)
        inputs, outputs = _described(model)
        statement, more = statement_of(stated, inputs, outputs)
        return statement, convert(model, statement, name), notes + traced + more

    def _known(self, name: str, stated: Stated) -> tuple[Statement, Network, list[str]]:
        from dosemap_tools.importing import torch_network

        graph = torch_network.network_graph(name)
        self._module = torch_network.network_module(name)
        notes = self._give_weights(self._module)
        statement, more = statement_of(stated, (), ())
        tensors = torch_network.tensors_for(graph, self._module.state_dict())
        return statement, _known_network(graph, tensors, statement), notes + more

    def _give_weights(self, module: nn.Module) -> list[str]:
        from dosemap_tools.importing import checkpoint, torch_network

        notes: list[str] = []
        held, self._checkpoint = self._checkpoint, None
        wanted = torch_network.wanted_shapes(module)
        fitted = checkpoint.fit(_taken(held), wanted, str(self.path), notes)
        torch_network.load_weights(module, fitted)
        return notes

    def original(self) -> Original:
        """Return the network as its own framework runs it, and keep nothing of it."""
        from dosemap_tools.importing.torch_network import TorchOriginal

        module, self._module = self._module, None
        return TorchOriginal(_taken(module))


def _input_channels(module: nn.Module, ports: Sequence[Port]) -> list[int]:
    """Return the channels of each argument of forward: all ports in one, or one for each."""
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    count = sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
    if count == len(ports):
        return [port.channels for port in ports]
    if count <= 1:
        return [sum(port.channels for port in ports)]
    raise UsageError(
        f"--input is given {len(ports)} times; forward of {type(module).__name__} has {count}"
        " arguments",
        remedy="state one for each argument",
    )


def _known_network(graph: Json, tensors: dict[str, np.ndarray], statement: Statement) -> Network:
    """Return a network of models/ with the names and the meaning that were stated."""
    renamed: dict[str, str] = {}
    for key, ports in (("inputs", statement.inputs), ("outputs", statement.outputs)):
        if [p.channels for p in ports] != [p["channels"] for p in graph[key]]:
            wants = ", ".join(f"{p['name']} ({p['channels']} channel)" for p in graph[key])
            raise UsageError(
                f"--{key[:-1]} does not fit the network {graph['name']}", remedy=f"it has {wants}"
            )
        pairs = zip(graph[key], ports, strict=True)
        renamed |= {own["name"]: port.name for own, port in pairs}
    nodes = [
        {
            **node,
            "inputs": [renamed.get(name, name) for name in node["inputs"]],
            "outputs": [renamed.get(name, name) for name in node["outputs"]],
        }
        for node in graph["nodes"]
    ]
    size = statement.voxel_size_mm
    stated = {
        "name": statement.name,
        "spatial_axes": statement.spatial_axes,
        "orientation": statement.orientation,
        "patch_size": list(statement.patch_size),
        "voxel_size_mm": None if size is None else list(size),
        "inputs": [port.json() for port in statement.inputs],
        "outputs": [port.json() for port in statement.outputs],
        "nodes": nodes,
    }

    def sides(ports: Sequence[Port]) -> list[Tensor]:
        shape = statement.spatial_shape
        return [Tensor(p.name, (p.name,), (p.channels,), (p.channels, *shape)) for p in ports]

    return Network({**graph, **stated}, tensors, sides(statement.inputs), sides(statement.outputs))


def open_source(path: Path, network: str | None, key: str | None, prefix: str | None) -> Source:
    """Read a file of any kind; `network`, `key` and `prefix` are for state dicts."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise NetworkImportError("there is no such file", where=str(path), remedy="check the name")
    if suffix in STATE_SUFFIXES:
        return StateSource(path, network, key, prefix)
    if given := [n for n, v in (("network", network), ("key", key), ("prefix", prefix)) if v]:
        raise UsageError(
            f"--{given[0]} is for state dicts",
            where=str(path),
            remedy="leave it out: the file holds the network itself",
        )
    if suffix == ".onnx":
        return OnnxSource(path)
    if suffix == ".pt2":
        return ProgramSource(path)
    known = ", ".join((".onnx", ".pt2", *STATE_SUFFIXES))
    raise NetworkImportError(
        "is no file that can be imported, by its name",
        where=str(path),
        remedy=f"known are {known}; of other frameworks, export to ONNX",
    )
