# SPDX-License-Identifier: Apache-2.0
"""Reads ONNX files, and runs them as ONNX Runtime does.

Whatever the file claims is compared with what is there before it is believed; nothing outside the
file's own folder is read. Tensors are views of the mapped file: a network of 100 MB needs little
more than what its graph does.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir import serde

from dosemap_tools.importing.exact_norms import has_norms, make_exact
from dosemap_tools.importing.network import NetworkImportError
from dosemap_tools.importing.onnx_wire import WireError, without_big_tensors

MAX_NODES = 100_000  # with functions written out; a dosemap graph has at most 4096
MAX_OWN_BYTES = 2 << 30  # protobuf's own limit
# ONNX Runtime: where the weights of a model that is given as bytes are.
_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"
STANDARD_DOMAINS = ("", "ai.onnx")

_EXPORT_AGAIN = "export the network again with torch.onnx.export"
# First bytes of files that people give by mistake, what they are, and what to do.
_NOT_ONNX = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run: git lfs pull"),
    (b"<", "an HTML or XML page, not a model", "download the file itself, not the page about it"),
    (
        b"PK\x03\x04",
        "a zip archive",
        "name a PyTorch file .pt, .pth, .ckpt or .pt2; unpack any other archive first",
    ),
    (b"\x1f\x8b", "compressed by gzip", "uncompress it first"),
    (
        b"\x28\xb5\x2f\xfd",
        "compressed by Zstandard",
        "a dosemap weights file needs no import; uncompress any other first",
    ),
    (b"\x89HDF", "an HDF5 (Keras) file", "convert it with tf2onnx"),
    (b"{", "JSON text", "write it as binary: onnx.save(onnx.load(file), 'model.onnx')"),
    (
        b"ir_version:",
        "ONNX as text",
        "write it as binary: onnx.save(onnx.load(file), 'model.onnx')",
    ),
)

_T = onnx.TensorProto
_ITEM_BYTES: dict[int, int] = {
    _T.FLOAT: 4, _T.DOUBLE: 8, _T.FLOAT16: 2, _T.BFLOAT16: 2, _T.BOOL: 1,
    _T.INT8: 1, _T.INT16: 2, _T.INT32: 4, _T.INT64: 8,
    _T.UINT8: 1, _T.UINT16: 2, _T.UINT32: 4, _T.UINT64: 8,
}  # fmt: skip
# In which field the values of a type lie when they are not raw.
_VALUE_FIELDS: dict[int, str] = {
    _T.FLOAT: "float_data", _T.DOUBLE: "double_data", _T.INT64: "int64_data",
    _T.UINT32: "uint64_data", _T.UINT64: "uint64_data",
}  # fmt: skip
_ALL_VALUE_FIELDS = (
    "raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data",
    "string_data",
)  # fmt: skip


def _type_name(number: int) -> str:
    try:
        return _T.DataType.Name(number)
    except ValueError:
        return f"number {number}"


@dataclass(frozen=True)
class _Place:
    """Where the data of a tensor lie."""

    path: Path
    offset: int


class _Reader:
    """Checks one file and makes its model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.maps: dict[Path, mmap.mmap] = {}
        self.places: list[_Place] = []

    def fail(self, what: str, remedy: str, node: str = "") -> NetworkImportError:
        where = f"{self.path}: {node}" if node else str(self.path)
        return NetworkImportError(what, where=where, remedy=remedy)

    # The file ----------------------------------------------------------------------------------
    def mapped(self, path: Path) -> mmap.mmap:
        if path not in self.maps:
            with path.open("rb") as file:
                self.maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self.maps[path]

    def proto(self) -> onnx.ModelProto:
        """Return the model, the big tensors replaced by their places."""
        if self.path.is_dir():
            raise self.fail("is a folder", "name the .onnx file in it")
        if not self.path.exists():
            raise self.fail("there is no such file", "check the name")
        if not self.path.is_file():
            raise self.fail("is no ordinary file", "copy the model into one")
        size = self.path.stat().st_size
        if size == 0:
            raise self.fail("is empty", "copy or download it again")
        data = self.mapped(self.path)
        beginning = data[:4096].lstrip()
        for start, what, remedy in _NOT_ONNX:
            if beginning.startswith(start):
                raise self.fail(f"is {what}", remedy)
        if size > MAX_OWN_BYTES:
            raise self.fail(
                f"has {size} bytes; an ONNX file has at most {MAX_OWN_BYTES}",
                "save it with external data: onnx.save(…, save_as_external_data=True)",
            )
        try:
            proto = onnx.ModelProto.FromString(without_big_tensors(data))
        except (WireError, DecodeError) as error:
            raise self.fail(
                f"is no ONNX file, or is damaged or cut off: {error}",
                "copy, download or export it again",
            ) from error
        if not proto.HasField("graph") or not proto.opset_import:
            raise self.fail(
                "holds no ONNX model (no graph, or no opset_import)",
                "name an .onnx file as torch.onnx.export writes it",
            )
        return proto

    # Versions and domains ------------------------------------------------------------------------
    def check_versions(self, proto: onnx.ModelProto) -> None:
        newest = onnx.defs.onnx_opset_version()
        known = f"onnx {onnx.__version__}, which is installed, knows"
        if proto.ir_version > onnx.IR_VERSION:
            raise self.fail(
                f"ir_version {proto.ir_version} is newer than the {onnx.IR_VERSION} that {known}",
                f"install a newer onnx, or {_EXPORT_AGAIN}(…, opset_version=20)",
            )
        imports = list(proto.opset_import)
        for function in proto.functions:
            imports += function.opset_import
        for entry in imports:
            if entry.domain in STANDARD_DOMAINS and not 1 <= entry.version <= newest:
                raise self.fail(
                    f"opset {entry.version} is not one of the 1 to {newest} that {known}",
                    f"install a newer onnx, or {_EXPORT_AGAIN}(…, opset_version=20)",
                )
        if not any(entry.domain in STANDARD_DOMAINS for entry in proto.opset_import):
            raise self.fail("does not say which opset of ONNX it uses", _EXPORT_AGAIN)
        if proto.training_info:
            raise self.fail(
                "holds training information (training_info)",
                "export the network for inference: module.eval(), then torch.onnx.export",
            )

    def check_nodes(self, proto: onnx.ModelProto) -> None:
        """Refuse operators of unknown domains, and functions that call themselves or explode."""
        functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
        if len(functions) != len(proto.functions):
            raise self.fail("defines a function twice", _EXPORT_AGAIN)
        sizes: dict[tuple[str, str, str], int] = {}

        def size_of(key: tuple[str, str, str], callers: tuple[Any, ...]) -> int:
            if key in callers or len(callers) > 64:
                raise self.fail(f"the function {key[1]} calls itself", _EXPORT_AGAIN)
            if key not in sizes:
                sizes[key] = count(functions[key].node, (*callers, key))
            return sizes[key]

        def count(nodes: Sequence[onnx.NodeProto], callers: tuple[Any, ...]) -> int:
            total = 0
            for node in _all_nodes(nodes):
                key = (node.domain, node.op_type, node.overload)
                if key in functions:
                    total += size_of(key, callers)
                elif node.domain not in STANDARD_DOMAINS:
                    raise self.fail(
                        f"operator {node.domain}::{node.op_type} is not of the ONNX standard",
                        "export without custom operators or fused ones (no optimised ONNX Runtime"
                        " model)",
                        _node_name(node),
                    )
                total += 1
            return total

        total = count(proto.graph.node, ())
        if total > MAX_NODES:
            raise self.fail(f"has {total} nodes; {MAX_NODES} are allowed", _EXPORT_AGAIN)

    # Tensors -------------------------------------------------------------------------------------
    def check_tensors(self, proto: onnx.ModelProto) -> None:
        for graph in _all_graphs(proto):
            if graph.sparse_initializer:
                name = graph.sparse_initializer[0].values.name
                raise self.fail(
                    f"the weights {name!r} are sparse", "export them dense", f"tensor {name}"
                )
            for tensor in graph.initializer:
                self.check_tensor(tensor, f"tensor {tensor.name}")
        for node in _every_node(proto):
            for attribute in node.attribute:
                where = f"{_node_name(node)}, attribute {attribute.name}"
                if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                    raise self.fail("the tensor is sparse", "export it dense", where)
                for tensor in (attribute.t, *attribute.tensors):
                    if tensor.data_type or tensor.dims or attribute.type == attribute.TENSOR:
                        self.check_tensor(tensor, where)

    def check_tensor(self, tensor: onnx.TensorProto, where: str) -> None:
        """Compare what a tensor claims with what is there."""
        if tensor.data_type not in _ITEM_BYTES:
            raise self.fail(
                f"holds values of type {_type_name(tensor.data_type)}",
                "export weights as float32, float16 or bfloat16 (no quantised network)",
                where,
            )
        if any(n < 0 for n in tensor.dims) or len(tensor.dims) > 16:
            raise self.fail(f"has the shape {list(tensor.dims)[:16]}", _EXPORT_AGAIN, where)
        if tensor.HasField("segment"):
            raise self.fail("is one segment of a tensor", _EXPORT_AGAIN, where)
        count = math.prod(tensor.dims)
        wanted = count * _ITEM_BYTES[tensor.data_type]
        if tensor.data_location == _T.EXTERNAL:
            self.check_external(tensor, wanted, where)
            return
        field = _VALUE_FIELDS.get(tensor.data_type, "int32_data")
        held = [name for name in _ALL_VALUE_FIELDS if len(getattr(tensor, name))]
        found = len(tensor.raw_data) if held == ["raw_data"] else len(getattr(tensor, field))
        claims = wanted if held == ["raw_data"] else count
        what = "bytes" if held == ["raw_data"] else "values"
        if len(held) > 1 or (held and held[0] not in ("raw_data", field)):
            raise self.fail(
                f"of type {_type_name(tensor.data_type)} has its values in {' and '.join(held)}",
                _EXPORT_AGAIN,
                where,
            )
        if found != claims:
            raise self.fail(
                f"of shape {list(tensor.dims)} should have {claims} {what}; it has {found}",
                "the file is damaged or made up: copy, download or export it again",
                where,
            )

    def check_external(self, tensor: onnx.TensorProto, wanted: int, where: str) -> None:
        """Note where the data of a tensor lie; its location becomes the number of the note."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        numbers = [entries.get("offset", "0"), entries.get("length", str(wanted))]
        if len(entries) != len(tensor.external_data) or any(
            getattr(tensor, name) for name in _ALL_VALUE_FIELDS
        ):
            raise self.fail("has its values in more than one place", _EXPORT_AGAIN, where)
        if not all(n.isascii() and n.isdigit() and len(n) < 19 for n in numbers):
            raise self.fail(
                f"has the offset {numbers[0]!r} and the length {numbers[1]!r} in its file",
                _EXPORT_AGAIN,
                where,
            )
        offset, length = (int(n) for n in numbers)
        field = entries.get("field", "raw_data")
        type_field = _VALUE_FIELDS.get(tensor.data_type)
        location = entries.get("location", "")
        if location == "" and field not in ("raw_data", type_field):
            raise self.fail(
                f"of type {_type_name(tensor.data_type)} has its values in {field}",
                _EXPORT_AGAIN,
                where,
            )
        path = self.external_path(location, where) if location else self.path
        size = path.stat().st_size
        if length != wanted:
            raise self.fail(
                f"of shape {list(tensor.dims)} should have {wanted} bytes; it has {length}",
                "the file is damaged or made up: copy, download or export it again",
                where,
            )
        if offset + length > size:
            raise self.fail(
                f"lies at bytes {offset} to {offset + length} of {path.name}, which has {size}",
                f"copy {path.name} again, as a whole",
                where,
            )
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=str(len(self.places)))
        self.places.append(_Place(path, offset))

    def external_path(self, location: str, where: str) -> Path:
        """Return the file that holds the data: one in the model's own folder or below."""
        folder = self.path.parent.resolve()
        remedy = f"put the data beside {self.path.name} and export the network again if need be"
        try:
            path = (folder / location).resolve()
            inside = not os.path.isabs(location) and path.is_relative_to(folder)
            ordinary = inside and path.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, loops of links
            raise self.fail(f"has its data in {location!r}: {error}", remedy, where) from error
        if not inside:
            raise self.fail(
                f"has its data in {location!r}, outside the model's folder", remedy, where
            )
        if not ordinary:
            raise self.fail(f"has its data in {location!r}, which is not there", remedy, where)
        return path

    def put_back(self, proto: onnx.ModelProto) -> Path:
        """Let big tensors be found in the file again: weights stay in it, others are put back.

        Returns the folder in which locations are meant. ONNX Runtime opens nothing outside it:
        where the file is a link to another folder and has data beside the link, all is put back.
        """
        entries = [e for t in _all_tensors(proto) for e in t.external_data if e.key == "location"]
        beside = any(entry.value for entry in entries)
        own = self.path.resolve()
        folder = self.path.parent.resolve() if beside else own.parent
        for tensor in proto.graph.initializer if own.parent == folder else ():
            for entry in list(tensor.external_data):
                if entry.key == "location" and not entry.value:
                    entry.value = own.name
                elif entry.key == "field":
                    tensor.external_data.remove(entry)
        for tensor in _all_tensors(proto):
            told = {entry.key: entry.value for entry in tensor.external_data}
            if told.get("location") == "":
                begin = int(told["offset"])
                tensor.raw_data = self.mapped(self.path)[begin : begin + int(told["length"])]
                tensor.ClearField("data_location")
                del tensor.external_data[:]
        return folder

    # Names ---------------------------------------------------------------------------------------
    def check_rules(self, proto: onnx.ModelProto) -> None:
        """Let onnx check names, order, attributes and numbers of inputs."""
        probe = onnx.ModelProto()
        probe.CopyFrom(proto)
        for tensor in _all_tensors(probe):  # the checker opens external data: it gets none
            if tensor.data_location == _T.EXTERNAL:
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                del tensor.dims[:]
                tensor.dims.append(0)
        for graph in _all_graphs(probe):  # where a shape is missing, nothing else is wrong
            for value in (*graph.input, *graph.output):
                if value.type.HasField("tensor_type"):
                    value.type.tensor_type.shape.SetInParent()
        try:
            onnx.checker.check_model(probe)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise self.fail(
                f"breaks ONNX's rules: {' '.join(lines)[:500]}",
                "export it again, or ask its maker for a valid file",
            ) from error

    # The model -----------------------------------------------------------------------------------
    def view(self, tensor: ir.ExternalTensor) -> ir.Tensor:
        """Return an external tensor as a view of the mapped file."""
        shape = tensor.shape.numpy()
        kind = tensor.dtype.numpy().newbyteorder("<")
        if math.prod(shape) == 0:
            values = np.zeros(shape, kind)
        else:
            place = self.places[int(str(tensor.location))]
            data = self.mapped(place.path)
            values = np.frombuffer(data, kind, math.prod(shape), place.offset).reshape(shape)
        return ir.Tensor(values, dtype=tensor.dtype, name=tensor.name, doc_string=tensor.doc_string)

    def model(self) -> ir.Model:
        proto = self.proto()
        self.check_versions(proto)
        self.check_nodes(proto)
        self.check_tensors(proto)
        self.check_rules(proto)
        _open_sizes(proto)
        try:
            model = serde.deserialize_model(proto)
        except Exception as error:
            raise self.fail(
                f"cannot be read: {str(error).splitlines()[-1][:500]}", _EXPORT_AGAIN
            ) from error
        graphs = [*model.graphs(), *(function.graph for function in model.functions.values())]
        for graph in graphs:
            for value in graph.initializers.values():
                if isinstance(value.const_value, ir.ExternalTensor):
                    value.const_value = self.view(value.const_value)
            for node in graph:
                _replace_external(node, self.view)
        # Before IR version 4 weights were inputs, too: with a value given they are none.
        for value in list(model.graph.inputs):
            if value.name in model.graph.initializers:
                model.graph.inputs.remove(value)
        return model


def _open_sizes(proto: onnx.ModelProto) -> None:
    """Let sizes be open that some exporters write as -1."""
    for graph in _all_graphs(proto):
        for value in (*graph.input, *graph.output, *graph.value_info):
            for size in value.type.tensor_type.shape.dim:
                if size.dim_value < 0:
                    size.ClearField("dim_value")


def _replace_external(node: ir.Node, view: Callable[[ir.ExternalTensor], ir.Tensor]) -> None:
    for attribute in list(node.attributes.values()):
        if attribute.is_ref():
            continue
        if isinstance(attribute.value, ir.ExternalTensor):
            node.attributes.add(ir.AttrTensor(attribute.name, view(attribute.value)))
        elif attribute.type == ir.AttributeType.TENSORS:
            tensors = [view(t) if isinstance(t, ir.ExternalTensor) else t for t in attribute.value]
            node.attributes.add(ir.AttrTensors(attribute.name, tensors))


def _node_name(node: onnx.NodeProto) -> str:
    name = node.name or (node.output[0] if node.output else "")
    return f"node {name} ({node.op_type})"


def _all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes and those of their subgraphs, which cannot be deep (onnx_wire.MAX_DEPTH)."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def _every_node(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    yield from _all_nodes(proto.graph.node)
    for function in proto.functions:
        yield from _all_nodes(function.node)


def _all_graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    yield proto.graph
    for node in _every_node(proto):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def _all_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _all_graphs(proto):
        yield from graph.initializer
    for node in _every_node(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX file; its big tensors are views of the mapped files.

    Raises NetworkImportError for what is no model, claims more than is there or reaches outside its
    folder, for newer versions than the installed onnx knows, and for operators that are not ONNX's.
    Functions are left as they are.
    """
    return _Reader(Path(path)).model()


def describe(model: ir.Model) -> tuple[list[tuple[str, tuple[Any, ...], str]], ...]:
    """Return (name, shape, type) of the inputs, and of the outputs. None: any size."""

    def of(values: Sequence[ir.Value]) -> list[tuple[str, tuple[Any, ...], str]]:
        result = []
        for value in values:
            dims = () if value.shape is None else value.shape.dims
            shape = tuple(d if isinstance(d, int) else d.value for d in dims)
            result.append((value.name or "", shape, str(value.dtype)))
        return result

    return of(model.graph.inputs), of(model.graph.outputs)


class OnnxOriginal:
    """An ONNX file as ONNX Runtime runs it: on the CPU, as it is written, without optimisations.

    The file must have passed `load`. Without ONNX Runtime, onnx's own (slow) reference runs it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        try:
            import onnxruntime  # type: ignore[import-untyped]
        except ImportError:
            self.description = f"onnx.reference {onnx.__version__} (ONNX Runtime is not installed)"
            self._open_reference()
            return
        self.description = f"ONNX Runtime {onnxruntime.__version__}"
        self._open_session(onnxruntime)

    def _open_session(self, onnxruntime: Any) -> None:  # noqa: ANN401
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.use_deterministic_compute = True
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        # A patch of another size, or two, is all that this session sees: nothing to keep.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.log_severity_level = 4
        with self._explained():
            source = self._exact_model(options)
            session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        self._inputs = [(i.name, tuple(i.shape), i.type) for i in session.get_inputs()]
        self.output_names = [o.name for o in session.get_outputs()]
        self._call: Callable[[dict[str, np.ndarray]], Any] = partial(session.run, None)

    def _exact_model(self, options: Any) -> bytes:  # noqa: ANN401
        """Return the model for a session: its weights stay in the file, which is mapped."""
        reader = _Reader(Path(self._path))
        model = reader.proto()
        if has_norms(model):
            make_exact(model)
            self.description += ", its normalisations in float64"
        options.add_session_config_entry(_FOLDER_ENTRY, str(reader.put_back(model)))
        return model.SerializeToString()

    def _open_reference(self) -> None:
        from onnx.reference import ReferenceEvaluator

        with self._explained():
            model = onnx.load(self._path)
            evaluator = ReferenceEvaluator(model)
        inputs = describe(load(self._path))[0]
        self._inputs = [(name, shape, f"tensor({kind.lower()})") for name, shape, kind in inputs]
        self.output_names = list(evaluator.output_names)
        self._call = partial(evaluator.run, None)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # both have classes of errors of their own
            text = " ".join(str(error).split())[:500]
            raise NetworkImportError(
                f"{self.description} cannot run it: {text}",
                where=self._path,
                remedy="a network that does not run anywhere cannot be compared: repair the export",
            ) from error

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for inputs (N, C, a, b, c), float32, in the order of the tensors."""
        if len(inputs) != len(self._inputs):
            raise NetworkImportError(
                f"{len(inputs)} arrays for its {len(self._inputs)} inputs", where=self._path
            )
        samples = len(inputs[0])
        batch = self._inputs[0][1][0]
        step = batch if isinstance(batch, int) and batch > 0 else samples
        parts = []
        for begin in range(0, samples, step):
            # The last batch is filled up with its last patch.
            which = np.minimum(np.arange(begin, begin + step), samples - 1)
            outputs = self._run([array[which] for array in inputs])
            parts.append([values[: samples - begin] for values in outputs])
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        feed = {}
        for (name, _, kind), values in zip(self._inputs, inputs, strict=True):
            dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(kind)
            feed[name] = np.ascontiguousarray(values, dtype=dtype or np.float32)
        with self._explained():
            outputs = self._call(feed)
        return [np.asarray(values, dtype=np.float32) for values in outputs]
