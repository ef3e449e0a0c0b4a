# SPDX-License-Identifier: Apache-2.0
"""Writes a weights file in the words of other programs: `dosemap-export`.

    dosemap-export mine.safetensors.zst -o mine.onnx          # ONNX, runs in ONNX Runtime
    dosemap-export mine.safetensors.zst -o mine.safetensors   # a state dict, and mine.json

The state dict has the tensors' names and PyTorch's shapes; the JSON has graph, card and provenance.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dosemap_tools import weights_file
from dosemap_tools.stopping import clean_stop, say

Json = dict[str, Any]

EXTERNAL_ABOVE = 1_800_000_000  # bytes of weights; an ONNX file itself has less than 2 GiB
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


class ExportError(ValueError):
    """A weights file cannot be written elsewhere."""


class _Files:
    """Files that appear together, once all of them are written."""

    def __init__(self) -> None:
        self.partial: list[tuple[Path, Path]] = []

    @contextlib.contextmanager
    def open(self, target: Path) -> Iterator[BinaryIO]:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        self.partial.append((Path(name), target))
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def publish(self) -> None:
        """Give every file its name; the first one opened, which refers to the others, last."""
        for partial, target in reversed(self.partial):
            partial.chmod(0o644)
            partial.replace(target)

    def discard(self) -> None:
        for partial, _ in self.partial:
            partial.unlink(missing_ok=True)


class _GraphFault(Exception):  # noqa: N818
    """The graph is not what weights/FORMAT.md says; dosemap says where, which checks all of it."""


@contextlib.contextmanager
def _graph_trusted() -> Iterator[None]:
    try:
        yield
    except (weights_file.WeightsFileError, OSError, ImportError):
        raise
    except Exception as error:
        raise _GraphFault(
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error


@contextlib.contextmanager
def _together() -> Iterator[_Files]:
    files = _Files()
    try:
        yield files
        files.publish()
    finally:
        files.discard()


def state_dict(file: weights_file.WeightsFile) -> dict[str, np.ndarray]:
    """Return the tensors in PyTorch's shapes: slopes of PReLU are a vector there."""
    slopes = {node["inputs"][1] for node in file.graph["nodes"] if node["op"] == "PRelu"}
    return {
        name: values.reshape(-1) if name in slopes else values
        for name, values in file.tensors.items()
    }


def _write_onnx(file: weights_file.WeightsFile, out: Path, dtype: str) -> list[str]:
    from dosemap_tools import onnx_model

    size = sum(values.size for values in file.tensors.values()) * _ITEM_BYTES[dtype]
    with _together() as files, files.open(out) as stream:
        if size > EXTERNAL_ABOVE:
            beside = out.with_name(out.name + ".data")
            with files.open(beside) as data, _graph_trusted():
                model = onnx_model.build(file, dtype, (data, beside.name))
        else:
            with _graph_trusted():
                model = onnx_model.build(file, dtype)
        stream.write(model.SerializeToString())
    return _described(model, size, f"{out}.data" if size > EXTERNAL_ABOVE else "")


def _described(model: Any, size: int, beside: str) -> list[str]:  # noqa: ANN401
    def port(value: Any) -> str:  # noqa: ANN401
        dims = value.type.tensor_type.shape.dim
        shape = ", ".join(d.dim_param or (str(d.dim_value) if d.dim_value else "?") for d in dims)
        return f"{value.name} ({shape}): {value.doc_string}"

    opset = model.opset_import[0].version
    lines = [
        f"  ONNX, opset {opset}, {len(model.graph.node)} nodes, {size / 1e6:.1f} MB of weights"
    ]
    lines += [f"  weights in {beside}"] if beside else []
    lines += [f"  input {port(value)}" for value in model.graph.input]
    lines += [f"  output {port(value)}" for value in model.graph.output]
    return [*lines, "  Units and intensity steps are metadata, no part of the ONNX graph."]


def _write_safetensors(file: weights_file.WeightsFile, out: Path, dtype: str) -> list[str]:
    from safetensors.numpy import save

    beside = out.with_suffix(".json")
    with _graph_trusted():
        tensors = {
            name: _as_type(weights_file.encode_tensor(name, values, dtype), dtype, values.shape)
            for name, values in state_dict(file).items()
        }
    about = {"graph": file.graph, "card": file.card, "provenance": file.provenance}
    with _together() as files:
        with files.open(out) as stream:
            stream.write(save(tensors, {"format": "pt"}))
        with files.open(beside) as stream:
            text = json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False)
            stream.write(text.encode() + b"\n")
    return [
        f"  {len(tensors)} tensors, {dtype}, by the names and shapes of the state dict",
        f"  graph, card and provenance: {beside}",
    ]


def _as_type(content: memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype != "BF16":
        return np.frombuffer(content, {"F32": "<f4", "F16": "<f2"}[dtype]).reshape(shape)
    import ml_dtypes

    return np.frombuffer(content, ml_dtypes.bfloat16).reshape(shape)


_WRITERS = {"onnx": _write_onnx, "safetensors": _write_safetensors}


def _chosen_format(out: Path, stated: str | None) -> str:
    if stated is not None:
        return stated
    kind = out.suffix.removeprefix(".")
    if kind not in _WRITERS:
        raise ExportError(
            f"{out}: the name ends in neither .onnx nor .safetensors; name the format by --format"
        )
    return kind


def _check_targets(source: Path, out: Path, kind: str) -> None:
    beside = (
        out.with_suffix(".json") if kind == "safetensors" else out.with_name(out.name + ".data")
    )
    if beside == out:
        raise ExportError(f"{out}: the tensors and the JSON would have the same name")
    for target in (out, beside):
        if target.is_dir():
            raise ExportError(f"{target}: is a folder; give the name of a file")
        if target.exists() and target.samefile(source):
            raise ExportError(f"{target}: is the weights file itself; choose another name")
    if not out.parent.is_dir():
        raise ExportError(f"{out}: there is no folder {out.parent}")


def export(source: Path, out: Path, kind: str | None = None, dtype: str = "F32") -> list[str]:
    """Write a weights file as ONNX or as safetensors and JSON; return lines that say what it is."""
    if not source.is_file():
        raise ExportError(f"{source}: there is no such file")
    chosen = _chosen_format(out, kind)
    _check_targets(source, out, chosen)
    try:
        file = weights_file.read(source)
    except OSError:
        raise
    except Exception as error:  # zstandard's, or a header without what it needs
        raise ExportError(
            f"{source}: is no weights file: {error}; see: dosemap inspect {source}"
        ) from error
    try:
        return [f"wrote {out}", *_WRITERS[chosen](file, out, dtype)]
    except _GraphFault as fault:
        raise ExportError(
            f"{source}: its graph is not valid ({fault}); see: dosemap inspect {source}"
        ) from fault


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed."""
    parser = argparse.ArgumentParser(prog="dosemap-export", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a dosemap weights file")
    parser.add_argument("-o", "--output", required=True, type=Path, help=".onnx or .safetensors")
    parser.add_argument("--format", choices=sorted(_WRITERS), help="if not by the name's end")
    parser.add_argument(
        "--dtype", default="F32", choices=sorted(_ITEM_BYTES), help="of the weights"
    )
    options = parser.parse_args(arguments)
    try:
        with clean_stop():
            lines = export(options.model, options.output, options.format, options.dtype)
    except ImportError as error:
        print(f"dosemap-export: {error}; install it: pip install {error.name}", file=sys.stderr)
        return 1
    except (ExportError, weights_file.WeightsFileError, OSError) as error:
        print(f"dosemap-export: {error}", file=sys.stderr)
        return 1
    say("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
