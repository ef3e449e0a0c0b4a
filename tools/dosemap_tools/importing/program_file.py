# SPDX-License-Identifier: Apache-2.0
"""Programs of torch.export (.pt2), loaded without executing anything that is in them.

torch.export.load trusts its file: it evaluates the expressions of symbolic sizes as Python, puts
names into source code that it compiles, unpickles constants and sample inputs, resolves operators
by getattr, and compiles guards. So it never sees the file: program_checks writes the program anew,
with nothing in it but what the network needs, and torch.export.load reads that from memory. The
weights are mapped from the file and put into the program afterwards.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dosemap_tools.importing.archive import Archive, is_archive, open_archive
from dosemap_tools.importing.network import Json, NetworkImportError
from dosemap_tools.importing.program_checks import (
    AGAIN,
    CPU,
    SCALAR_NAMES,
    SCALAR_TYPES,
    STRIDED,
    TO_FLOAT,
    RefusalError,
    integer,
    items,
    layout_of,
    need,
    path_of,
    record,
    rewritten,
    scalar_type,
    short,
)
from dosemap_tools.importing.torch_network import quiet

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

MAX_BYTES = 4 << 30  # of all weights together, as weights/FORMAT.md has it
_MAX_JSON = 32 << 20
_CONFIGS = {  # kind of weights: folder, its list, and how files in it are called
    "state": ("data/weights/", "data/weights/model_weights_config.json", "weight_"),
    "constants": ("data/constants/", "data/constants/model_constants_config.json", "tensor_"),
}


def load(path: Path, notes: list[str] | None = None) -> ExportedProgram:
    """Return the program of a .pt2 file, on the CPU and in float32; `notes` tells what changed."""
    if not is_archive(path):
        raise NetworkImportError("is no .pt2 file", where=str(path), remedy=AGAIN)
    archive = open_archive(path)
    _check_kind(archive)
    try:
        program = rewritten(archive.read_json("models/model.json", _MAX_JSON))
        weights = {kind: _payloads(archive, program, kind) for kind in _CONFIGS}
    except RefusalError as refusal:
        raise NetworkImportError(refusal.what, where=str(path), remedy=refusal.remedy) from None
    import torch

    try:
        with quiet():
            loaded = torch.export.load(_stand_in(program, weights))
    except Exception as error:  # its reader raises many kinds
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise NetworkImportError(
            f"PyTorch {torch.__version__} cannot read the program: {(lines or [repr(error)])[-1]}",
            where=str(path),
            remedy=AGAIN,
        ) from error
    _fill(loaded, archive, weights)
    stored = {payload.dtype for held in weights.values() for payload in held.values()}
    for dtype in sorted(stored & TO_FLOAT):
        (notes if notes is not None else []).append(
            f"weights of type {SCALAR_NAMES[dtype]} became float32, and so did the arithmetic"
        )
    return loaded


def _check_kind(archive: Archive) -> None:
    """Refuse archives that hold something other than one exported program."""
    names = archive.members

    def refuse(what: str, remedy: str) -> None:
        raise NetworkImportError(what, where=str(archive.path), remedy=remedy)

    if any(name.startswith(("data/aotinductor/", "data/executorch/")) for name in names):
        refuse("it holds compiled code, which is never run", "save it with torch.export.save")
    if "data.pkl" in names:
        refuse("it is a checkpoint or TorchScript, not a program", "give it as a state dict")
    models = [name for name in names if name.startswith("models/")]
    if "models/model.json" not in names:
        what = "another version of PyTorch wrote it, or it is no program"
        if models:
            what = f"its program is called {short(models[0])}, not models/model.json"
        refuse(what, "export it again with the PyTorch that is installed here, or to ONNX")
    if len(models) > 1:
        refuse(f"it holds {len(models)} programs", "save the network alone")


class Payload:
    """Where a weight lies in the file, and its form."""

    def __init__(self, archive: Archive, folder: str, told: object) -> None:
        file, pickled, meta = record(told, "path_name", "use_pickle", "tensor_meta")
        need(pickled is False, "is pickled, which may run code", "make it a plain dense tensor")
        dtype, sizes, strides, offset, layout = record(
            meta, "dtype", "sizes", "strides", "storage_offset", "layout"
        )
        layout_of(layout)
        self.dtype = integer(dtype)  # as it is stored
        self.read_as = scalar_type(dtype)
        self.sizes = [integer(record(item, "as_int")[0]) for item in items(sizes)]
        self.strides = [integer(record(item, "as_int")[0]) for item in items(strides)]
        self.start = integer(record(offset, "as_int")[0])
        member = archive.members.get(f"{folder}{file}")
        need(member is not None, f"its file {short(file)} is not in the archive")
        assert member is not None
        self.member = member
        self.bytes = SCALAR_TYPES[self.dtype]
        need(len(self.sizes) == len(self.strides), "its shape is damaged")
        need(min([*self.sizes, *self.strides, self.start, 0]) == 0, "its shape is negative")
        self.is_param = bool(told.get("is_param"))  # type: ignore[attr-defined]
        held = member.size // self.bytes
        elements = math.prod(self.sizes)
        last = sum((n - 1) * s for n, s in zip(self.sizes, self.strides, strict=True))
        claims = f"claims {elements} elements of shape {self.sizes}; the file has {held}"
        need(elements <= held and (elements == 0 or self.start + last < held), claims)

    def meta(self) -> Json:
        """Return its description, with all of its elements in one place."""
        return {
            "dtype": self.read_as,
            "sizes": [{"as_int": n} for n in self.sizes],
            "requires_grad": False,
            "device": dict(CPU),
            "strides": [{"as_int": 0} for _ in self.sizes],
            "storage_offset": {"as_int": 0},
            "layout": STRIDED,
        }


def _payloads(archive: Archive, program: Json, kind: str) -> dict[str, Payload]:
    """Return the weights of one kind that the program uses."""
    folder, config_name, _ = _CONFIGS[kind]
    used = set()
    for item in program["graph_module"]["signature"]["input_specs"]:
        for key, told in item.items():
            if key in ("parameter", "buffer", "tensor_constant"):
                constant = key == "tensor_constant" or told.get("persistent") is False
                if constant == (kind == "constants"):
                    used.add(told.get(f"{key}_name"))
    need(
        config_name in archive.members or not used,
        "its weights are pickled, as older versions of PyTorch did",
    )
    if not used:
        return {}
    (config,) = record(archive.read_json(config_name, _MAX_JSON), "config")
    need(isinstance(config, dict), "its list of weights is damaged")
    found: dict[str, Payload] = {}
    total = 0
    for name in sorted(used):
        need(name in config, f"the weight {short(path_of(name))} is missing")
        try:
            found[name] = Payload(archive, folder, config[name])
        except RefusalError as refusal:
            raise RefusalError(f"the weight {name}: {refusal.what}", refusal.remedy) from None
        total += found[name].bytes * math.prod(found[name].sizes)
    need(total <= MAX_BYTES, f"its weights have {total} bytes; at most {MAX_BYTES} are read")
    return found


def _stand_in(program: Json, weights: Mapping[str, Mapping[str, Payload]]) -> io.BytesIO:
    """Return the archive that torch.export.load reads: each weight is one element, repeated."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: str | bytes) -> None:
            archive.writestr(f"program/{name}", data)

        write("archive_format", "pt2")
        write("archive_version", "0")
        write(".data/version", "6\n")
        write("byteorder", "little")
        write("models/model.json", json.dumps(program, allow_nan=False))
        write("data/sample_inputs/model.pt", b"")
        for kind, (folder, config_name, prefix) in _CONFIGS.items():
            config: Json = {}
            for name, payload in weights[kind].items():
                config[name] = {
                    "path_name": f"{prefix}{payload.read_as}",
                    "is_param": payload.is_param,
                    "use_pickle": False,
                    "tensor_meta": payload.meta(),
                }
            for dtype in sorted({payload.read_as for payload in weights[kind].values()}):
                write(f"{folder}{prefix}{dtype}", bytes(SCALAR_TYPES[dtype]))
            write(config_name, json.dumps({"config": config}))
    content.seek(0)
    return content


def _fill(
    program: ExportedProgram, archive: Archive, weights: Mapping[str, Mapping[str, Payload]]
) -> None:
    """Put the weights, mapped from the file, in the place of the repeated elements."""
    import torch

    if not any(weights.values()):
        return
    with archive.path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for kind, held in (("state", program.state_dict), ("constants", program.constants)):
        for name, payload in weights[kind].items():
            tensor = _mapped(mapped, payload)
            if not np.isfinite(tensor.numpy()).all():
                raise NetworkImportError(
                    f"the weight {name} holds NaN or infinite values",
                    where=str(archive.path),
                    remedy="the training diverged: take an earlier checkpoint",
                )
            if payload.is_param:
                tensor = torch.nn.Parameter(tensor, requires_grad=False)
            held[name] = tensor


def _mapped(mapped: mmap.mmap, payload: Payload) -> torch.Tensor:
    """Return a weight as float32, or as the integers it is; nothing is copied if it can be so."""
    import torch

    dtype = getattr(torch, SCALAR_NAMES[payload.dtype])
    member = payload.member
    if math.prod(payload.sizes) == 0:
        return torch.zeros(payload.sizes, dtype=dtype)
    buffer: Any = mapped
    offset = member.offset
    if offset % payload.bytes:  # PyTorch aligns members to 64 bytes; others may not
        buffer, offset = bytearray(mapped[offset : offset + member.size]), 0
    flat = torch.frombuffer(buffer, dtype=dtype, count=member.size // payload.bytes, offset=offset)
    tensor = flat.as_strided(payload.sizes, payload.strides, payload.start)
    return tensor.float() if payload.dtype in TO_FLOAT else tensor
