# SPDX-License-Identifier: Apache-2.0
"""PyTorch networks: from a module or a network of models/ to torch.export, ONNX, and runs of it.

A module is traced for one patch (torch.export) and PyTorch's own exporter translates the trace to
ONNX; there is no table of ATen operators here. Parameters are never copied: the ONNX model refers
to the module's tensors.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import logging
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dosemap_tools.importing.network import Json, NetworkImportError, Statement

if TYPE_CHECKING:
    import onnx_ir
    import torch
    from torch import fx, nn
    from torch.export import ExportedProgram

NETWORKS_FOLDER = Path(__file__).parents[1] / "networks"
_BATCH = 2  # an example batch of 1 would make the tracer believe that 1 is meant
_LARGEST_BATCH = 64
_SPEC = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?:\((.*)\))?", re.DOTALL)
_NOT_SUPPORTED = "express it with the operators of weights/FORMAT.md, or export it to ONNX yourself"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep PyTorch's progress, warnings and logs off the terminal; errors are raised as ever."""
    logger = logging.getLogger("torch")
    level = logger.level
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    levels = [(one, one.level) for one in loggers if one.name.startswith(("torch", "onnx"))]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        for one, _ in levels:
            one.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
            for one, before in levels:
                one.setLevel(before)


def network_names() -> list[str]:
    """Return the networks that models/ defines."""
    return sorted(path.stem for path in NETWORKS_FOLDER.glob("*.json"))


def network_graph(name: str) -> Json:
    """Return the graph of a network of models/; nothing is converted for it."""
    path = NETWORKS_FOLDER / f"{name}.json"
    if not path.is_file():
        choice = ", ".join(network_names())
        raise NetworkImportError(f"there is no network {name!r}", remedy=f"choose one of {choice}")
    return json.loads(path.read_text())


def network_module(name: str) -> nn.Module:
    """Return the PyTorch module of a network of models/, in eval mode."""
    from dosemap_tools.networks.generator import NETWORKS, Generator

    network_graph(name)  # refuses unknown names
    return Generator(NETWORKS[name]).eval()


def tensors_for(graph: Json, state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the weights that `graph` names, as float32 arrays in the shapes of the format."""
    made = {port["name"] for port in graph["inputs"]}
    made |= {output for node in graph["nodes"] for output in node["outputs"]}
    tensors: dict[str, np.ndarray] = {}
    for node in graph["nodes"]:
        for name in (n for n in node["inputs"] if n and n not in made):
            values = state[name]
            if not isinstance(values, np.ndarray):
                values = values.detach().cpu().float().numpy()
            if node["op"] == "PRelu" and values.size > 1:
                values = values.reshape(-1, 1, 1, 1)  # one slope per channel, broadcast over space
            tensors[name] = values.astype(np.float32, copy=False)
    return tensors


def _argument(node: ast.expr) -> object:
    """Return a literal, or the class or function that a dotted name such as torch.nn.Conv3d is."""
    match node:
        case ast.Attribute():
            return pkgutil.resolve_name(ast.unparse(node))
        case ast.Tuple(elts=items):
            return tuple(_argument(item) for item in items)
        case ast.List(elts=items):
            return [_argument(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(keys, values, strict=True)
            return {ast.literal_eval(k): _argument(v) for k, v in pairs if k is not None}
    return ast.literal_eval(node)


def _arguments(text: str, spec: str) -> tuple[list[object], dict[str, object]]:
    """Return the arguments of a call written as text; nothing in them is called."""
    remedy = (
        "arguments are numbers, strings, None, True, False, dotted names such as torch.nn.Conv3d, "
        "and tuples, lists or dicts of them"
    )
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or any(k.arg is None for k in call.keywords):
            raise ValueError("not one call")
        if not isinstance(call.func, ast.Name):
            raise ValueError("more than one call")
        positional = [_argument(argument) for argument in call.args]
        named = {k.arg: _argument(k.value) for k in call.keywords if k.arg}
    except Exception as error:  # a module of a dotted name may raise anything
        raise NetworkImportError(
            f"the arguments of {spec!r} cannot be read: {error}", remedy=remedy
        ) from error
    return positional, named


def module_from(spec: str, folder: Path | None = None) -> nn.Module:
    """Return the module that "package.module:Class(arguments)" describes, in eval mode.

    This imports the named Python module, found in `folder` first, and so EXECUTES the code in it:
    give only code that you would run yourself. Arguments are literals and dotted names.
    """
    match = _SPEC.fullmatch(spec.strip())
    if match is None:
        raise NetworkImportError(
            f"{spec!r} names no network", remedy="write package.module:Class(arguments)"
        )
    from torch import nn

    module_name, class_name, text = match.groups()
    positional, named = _arguments(text or "", spec)
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        make = getattr(importlib.import_module(module_name), class_name, None)
        if make is None:
            raise NetworkImportError(f"{module_name} has no {class_name}", where=spec)
        network = make(*positional, **named)
    except NetworkImportError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise NetworkImportError(
            f"cannot be made: {type(error).__name__}: {error}",
            where=spec,
            remedy="give the folder that its package lies in, and the arguments of its training",
        ) from error
    if not isinstance(network, nn.Module):
        raise NetworkImportError(
            f"is a {type(network).__name__}",
            where=spec,
            remedy="name a class, or a function, that makes a torch.nn.Module",
        )
    return network.eval()


class Wanted(dict[str, tuple[int, ...]]):
    """Name and shape of every tensor in a module's state dict."""

    same: Mapping[str, str]  # names that are another name's tensor, of which files may have one


def wanted_shapes(module: nn.Module) -> Wanted:
    """Return what a state dict of the module holds."""
    import torch

    wanted, first, same = Wanted(), dict[int, str](), dict[str, str]()
    for name, values in module.state_dict(keep_vars=True).items():
        if not isinstance(values, torch.Tensor):
            continue  # what layers of other packages keep for themselves
        if torch.nn.parameter.is_lazy(values):
            raise NetworkImportError(
                f"the shape of {name} is not known before it has run",
                where=type(module).__name__,
                remedy="give all layers their channels instead of Lazy layers",
            )
        wanted[name] = tuple(values.shape)
        if first.setdefault(id(values), name) != name:
            same[name] = first[id(values)]
    wanted.same = same
    return wanted


def load_weights(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the module the weights of a state dict that fits it, without copying float32 ones."""
    import torch

    tensors = {}
    for name, values in state.items():
        tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    module.load_state_dict(tensors, strict=False, assign=True)
    module.float().eval()


def _try_export(
    module: nn.Module, examples: tuple[torch.Tensor, ...], *, dynamic: bool, strict: bool
) -> ExportedProgram:
    import torch

    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
        shapes = tuple({0: batch} for _ in examples)
    with quiet(), torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=shapes, strict=strict)


def export_program(
    module: nn.Module, channels: Sequence[int], statement: Statement
) -> tuple[ExportedProgram, list[str]]:
    """Trace a module for the patch of `statement`; also return notes for people.

    channels: of each input tensor. The batch is dynamic; where the module does not allow that, the
    trace is for batches of 1.
    """
    import torch

    module = module.float().eval()
    failures: list[Exception] = []
    for dynamic, strict in ((True, False), (True, True), (False, False), (False, True)):
        batch = _BATCH if dynamic else 1
        examples = tuple(torch.zeros(batch, c, *statement.spatial_shape) for c in channels)
        try:
            program = _try_export(module, examples, dynamic=dynamic, strict=strict)
        except Exception as failure:  # the tracer raises many kinds, and so does the user's module
            failures.append(failure)
            continue
        note = f"its batch is fixed to 1: {_first_line(failures[0])}" if not dynamic else ""
        return program, [note] if note else []
    error = failures[2]  # the static one: it tells what is wrong besides the batch
    raise NetworkImportError(
        f"torch.export cannot trace it for {list(channels)} channels and a patch of "
        f"{list(statement.spatial_shape)} voxels: {type(error).__name__}: {_first_line(error)}",
        where=type(module).__name__,
        remedy="check channels and patch size; control flow must not depend on voxels' values",
    ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def to_onnx(program: ExportedProgram, where: str = "") -> onnx_ir.Model:
    """Return the program as an ONNX model that refers to the program's own tensors."""
    import torch

    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,  # keeps BatchNormalization, which the C program folds
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps what its own parts raise
        raise _conversion_error(program, error, where) from error
    if made is None:
        raise NetworkImportError("PyTorch's ONNX exporter returned nothing", where=where)
    return made.model


def _conversion_error(
    program: ExportedProgram, error: BaseException, where: str
) -> NetworkImportError:
    """Return what went wrong with the operator, node and source line, where they are known."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    text = "\n".join(str(one) for one in chain)
    found = re.search(r"translating node %(\w+) : .*?target=([\w.]+)\]\(args = ([^\n]*)", text)
    if found is None:
        return NetworkImportError(
            f"PyTorch's ONNX exporter fails: {_first_line(chain[-1])}",
            where=where,
            remedy=_NOT_SUPPORTED,
        )
    name, target, arguments = found.groups()
    node = _node_of(program, name, re.findall(r"%(\w+)", arguments))
    stack = node.meta.get("nn_module_stack") if node is not None else None
    path = list(stack.values())[-1][0] if stack else ""
    return NetworkImportError(
        f"the operator {node.target if node is not None else target} has no form in ONNX",
        where=": ".join(part for part in (where, path or name) if part),
        source=source_line(str(node.meta.get("stack_trace", ""))) if node is not None else "",
        remedy=_NOT_SUPPORTED,
    )


def _node_of(program: ExportedProgram, name: str, arguments: list[str]) -> fx.Node | None:
    """Return the node that the exporter, which has taken operators apart, failed on."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    named = [node for node in calls if node.name == name]
    users = [n for n in calls if arguments and arguments[0] in {i.name for i in n.all_input_nodes}]
    return named[0] if named else users[0] if len(users) == 1 else None


def source_line(stack_trace: str) -> str:
    """Return 'FILE, line N: CODE' of the innermost call in the user's own code."""
    found = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*(?:\n +([^\n]+))?', stack_trace)
    own = [f for f in found if "/torch/nn/" not in f[0].replace("\\", "/")] or found
    if not own:
        return ""
    file, line, code = own[-1]
    return f"{file}, line {line}" + (f": {code.strip()}" if code else "")


class TorchOriginal:
    """A module or an exported program as PyTorch runs it: float32, eval mode, on the CPU."""

    def __init__(self, network: nn.Module | ExportedProgram) -> None:
        import torch

        self.description = f"PyTorch {torch.__version__}"
        self.output_names: list[str] = []  # known after the first run
        self._batch: int | None = None  # None: any
        if isinstance(network, torch.nn.Module):
            self._module = network.float().eval()
            return
        self._batch = _fixed_batch(network)
        with quiet():
            self._module = network.module(check_guards=False)

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for inputs (N, C, a, b, c), float32, in the order of the tensors."""
        samples = len(inputs[0])
        if self._batch in (None, samples):
            return self._run(inputs)
        indices = (
            np.arange(-(-samples // self._batch) * self._batch) % samples
        )  # the last is filled
        batches = indices.reshape(-1, self._batch)
        parts = [self._run([array[batch] for array in inputs]) for batch in batches]
        return [np.concatenate(outputs)[:samples] for outputs in zip(*parts, strict=True)]

    def _run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        import torch

        tensors = [torch.from_numpy(np.array(a, np.float32, order="C")) for a in inputs]
        try:
            with torch.no_grad(), quiet():
                outputs = list(_flat(self._module(*tensors), ""))
        except Exception as error:  # the user's own code may raise anything
            shapes = ", ".join(str(list(array.shape)) for array in inputs)
            raise NetworkImportError(
                f"PyTorch cannot run it on {shapes}: {type(error).__name__}: {_first_line(error)}",
                where=type(self._module).__name__,
                remedy="check the channels and the patch size",
            ) from error
        if not outputs:
            raise NetworkImportError("it returns no tensor", where=type(self._module).__name__)
        self.output_names = [name for name, _ in outputs]
        return [values.float().cpu().contiguous().numpy() for _, values in outputs]


def _fixed_batch(program: ExportedProgram) -> int | None:
    """Return the only batch that a program takes, or None if it takes any."""
    users = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users and hasattr(node.meta["val"], "shape"):
            batch = node.meta["val"].shape[0]
            return batch if isinstance(batch, int) else None
    return None


def _flat(value: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of nested tuples, lists and dicts, in their order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}.{index}" if name else str(index))
