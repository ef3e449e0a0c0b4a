# SPDX-License-Identifier: Apache-2.0
"""State dicts: .pt, .pth, .ckpt and .bin of PyTorch, and .safetensors.

A checkpoint may hold several (EMA, generator and discriminator), nested, with prefixes that
wrappers have put before the names. The one that fits the network is taken, and said so; where
several fit, the user has to choose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dosemap_tools.importing.archive import is_archive, open_archive, strict_json
from dosemap_tools.importing.network import NetworkImportError

if TYPE_CHECKING:
    import torch

MAX_BYTES = 4 << 30  # of all weights together, as weights/FORMAT.md has it
_MAX_HEADER = 16 << 20
_MAX_DEPTH = 4  # of dicts in dicts
_SHOWN = 20
_COUNTER = ".num_batches_tracked"  # BatchNorm counts for training only
_RESAVE = "save it again with a current PyTorch: torch.save(model.state_dict(), 'weights.pt')"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
_DTYPES |= {"I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "<?"}
_WIDENED = {"F16", "BF16", "F64", "torch.float16", "torch.bfloat16", "torch.float64"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Stored:
    """A tensor as a safetensors file has it, mapped from the file."""

    dtype: str
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape."""
        return self.values.shape

    def float32(self) -> np.ndarray:
        """Return its values; float32 ones are not copied."""
        if self.dtype == "BF16":
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        if self.dtype[0] in "IUB":
            return self.values
        return self.values.astype(np.float32, copy=False)


class Checkpoint(Mapping[str, Any]):
    """The state dicts of a file, by the keys that lead to them; seen as the largest of them."""

    def __init__(
        self, path: Path, held: dict[str, dict[str, Any]], key: str | None, prefix: str | None
    ) -> None:
        self.path, self.held, self.prefix = path, held, prefix
        if key is not None:
            if key not in held:
                choice = ", ".join(repr(name) for name in held)
                raise NetworkImportError(
                    f"no state dict is at --key {key!r}",
                    where=str(path),
                    remedy=f"there are some at {choice}",
                )
            self.held = {key: held[key]}
        self._shown = max(self.held.values(), key=len)

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        """Return a tensor of the largest state dict."""
        return self._shown[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names of the largest state dict."""
        return iter(self._shown)

    def __len__(self) -> int:
        """Return how many tensors the largest state dict has."""
        return len(self._shown)


def load(path: Path, key: str | None = None, prefix: str | None = None) -> Checkpoint:
    """Read a file that holds state dicts; nothing in it is executed.

    key: where the state dict is, such as `state_dict` or `networks.generator`; prefix: what its
    names begin with. Both are found out where they are not given; see `fit`.
    """
    if path.suffix.lower() == ".safetensors":
        held = {"": dict(_safetensors(path))}
    else:
        held = dict(_state_dicts(_torch_content(path), "", set()))
    held = {place: tensors for place, tensors in held.items() if tensors}
    if not held:
        raise NetworkImportError("holds no state dict", where=str(path), remedy=_RESAVE)
    return Checkpoint(path, held, key, prefix)


def load_state_dict(
    path: Path, wanted: Shapes, key: str | None = None, prefix: str | None = None
) -> dict[str, Any]:
    """Return the weights of the network whose tensors have the shapes `wanted`."""
    return fit(load(path, key, prefix), wanted, str(path))


# Reading ------------------------------------------------------------------------------------------
def _torch_content(path: Path) -> Any:  # noqa: ANN401
    """Return what a file of torch.save holds, its tensors mapped from the file."""
    if not is_archive(path):
        _refuse_old(path)
    archive = open_archive(path)
    names = archive.members
    if any(name.startswith("models/") for name in names):
        remedy = "give it the ending .pt2"
        raise NetworkImportError("it is an exported program", where=str(path), remedy=remedy)
    if "byteorder" in names and archive.read("byteorder", 16) != b"little":
        raise NetworkImportError("its numbers are big-endian", where=str(path), remedy=_RESAVE)
    from dosemap_tools.importing.pickle_check import NUMPY_DTYPES, NUMPY_SCALAR, check_pickle

    check_pickle(archive)
    import torch

    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    numbers = [(scalar, name) for name in NUMPY_SCALAR]
    numbers += [(np.dtype, "numpy.dtype"), *(type(np.dtype(name)) for name in NUMPY_DTYPES)]
    try:
        with torch.serialization.safe_globals(numbers):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # its reader raises many kinds
        lines = str(error).strip().splitlines() or [repr(error)]
        raise NetworkImportError(
            f"cannot be read as a state dict: {lines[0]}", where=str(path), remedy=_RESAVE
        ) from error


def _refuse_old(path: Path) -> None:
    """Say what a file is that does not begin as those of a current PyTorch do."""
    with path.open("rb") as file:
        head = file.read(512)
    what = "is no file of torch.save"
    if head[257:262] == b"ustar":
        what = "is a tar file, as PyTorch before 0.4 wrote them"
    elif head[:1] == b"\x80":
        what = "is a plain pickle (PyTorch before 1.6, or another program), which could run code"
    raise NetworkImportError(what, where=str(path), remedy=_RESAVE)


def _state_dicts(
    content: object, place: str, seen: set[int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, tensors) of every dict that holds tensors."""
    if not isinstance(content, Mapping) or place.count(".") > _MAX_DEPTH or id(content) in seen:
        return
    seen.add(id(content))
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and hasattr(v, "numel")}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _state_dicts(value, f"{place}.{key}" if place else key, seen)


def _safetensors(path: Path) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors of a safetensors file, whose header is held against the file's size."""

    def refuse(what: str) -> NetworkImportError:
        remedy = "save it again with safetensors.torch.save_file"
        return NetworkImportError(what, where=str(path), remedy=remedy)

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise refuse(f"its header claims {length} bytes; the file has {size}")
        header = strict_json(file.read(length), str(path))
    if not isinstance(header, dict):
        raise refuse("its header is no object")
    header.pop("__metadata__", None)
    data, ends, entries = size - 8 - length, 0, []
    for name, told in header.items():
        try:
            dtype, shape = str(told["dtype"]), [int(n) for n in told["shape"]]
            begin, end = (int(n) for n in told["data_offsets"])
        except (TypeError, KeyError, ValueError) as error:
            raise refuse(f"its header is damaged at {name!a}: {error!r}") from error
        entries.append((begin, end, name, dtype, shape))
    for begin, end, name, dtype, shape in sorted(entries, key=lambda entry: entry[:3]):
        if dtype not in _DTYPES:
            raise refuse(f"{name} is of the type {dtype!a}")
        need = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
        if min(shape, default=0) < 0 or end - begin != need or begin != ends or end > data:
            raise refuse(f"{name} claims {need} bytes at {begin} to {end}; the data have {data}")
        ends = end
        yield name, Stored(dtype, _mapped(path, _DTYPES[dtype], 8 + length + begin, shape))
    if ends != data:
        raise refuse(f"its tensors end at {ends}; the data have {data} bytes")


def _mapped(path: Path, dtype: str, offset: int, shape: list[int]) -> np.ndarray:
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    values = np.memmap(path, dtype, "c", offset, tuple(shape) or (1,)).view(np.ndarray)
    values = values.reshape(shape)
    return values if values.flags.aligned else values.copy()


# Choosing -----------------------------------------------------------------------------------------
@dataclass
class _Fit:
    """One state dict of a file, seen through one prefix."""

    key: str
    prefix: str
    tensors: dict[str, Any]  # by their names without the prefix
    others: list[str]  # what has not the prefix
    faults: list[str]

    def text(self) -> str:
        return f"--key {self.key!r} --prefix {self.prefix!r}"


def fit(
    checkpoint: Checkpoint, wanted: Shapes, source: str, notes: list[str] | None = None
) -> dict[str, Any]:
    """Return the state dict of the network whose tensors have the shapes `wanted`.

    `notes` tells which one was taken, and what was left out.
    """
    tried = [
        _fit(key, prefix, tensors, wanted)
        for key, tensors in checkpoint.held.items()
        for prefix in _prefixes(tensors, wanted, checkpoint.prefix)
    ]
    fitting = [one for one in tried if not one.faults]
    if len(fitting) > 1:
        choice = "; ".join(one.text() for one in fitting)
        raise NetworkImportError(
            f"{len(fitting)} state dicts in it fit the network",
            where=source,
            remedy=f"give {choice}",
        )
    if not fitting:
        raise _misfit(min(tried, key=lambda one: len(one.faults)), source)
    chosen = fitting[0]
    told = notes if notes is not None else []
    if chosen.key:
        told.append(f"the weights are those of {chosen.key!r} in the checkpoint")
    if chosen.prefix:
        told.append(f"{chosen.prefix!r} was taken off the names of the weights")
    if chosen.others:
        roots = sorted({name.split(".", 1)[0] for name in chosen.others})
        shown = ", ".join(roots[:6]) + (", ..." if len(roots) > 6 else "")
        told.append(f"{len(chosen.others)} tensors of other parts were left out: {shown}")
    return _values(chosen, wanted, source, told)


def _prefixes(tensors: Mapping[str, Any], wanted: Shapes, given: str | None) -> list[str]:
    """Return what may stand before the names of the network."""
    if given is not None:
        return [given]
    first = next((name for name in wanted if not name.endswith(_COUNTER)), "")
    found = [name[: -len(first)] for name in tensors if first and name.endswith(first)]
    return [prefix for prefix in found if not prefix or prefix.endswith(".")] or [""]


def _fit(key: str, prefix: str, tensors: Mapping[str, Any], wanted: Shapes) -> _Fit:
    """Hold the names and shapes behind a prefix against those of the network."""
    behind = {name[len(prefix) :]: v for name, v in tensors.items() if name.startswith(prefix)}
    for name, other in getattr(wanted, "same", {}).items():  # safetensors keeps one of the two
        if (name in behind) != (other in behind):
            behind[name] = behind[other] = behind.get(name, behind.get(other))
    others = [name for name in tensors if not name.startswith(prefix)]
    have = {name: tuple(values.shape) for name, values in behind.items()}
    needed = {name for name in wanted if not name.endswith(_COUNTER)}
    strange = {name for name in have if not name.endswith(_COUNTER)} - needed
    faults = [f"missing: {k} {wanted[k]}" for k in sorted(needed - have.keys())]
    faults += [f"unexpected: {k} {have[k]}" for k in sorted(strange)]
    faults += [
        f"shape of {k}: {have[k]}, expected {wanted[k]}"
        for k in sorted(needed & have.keys())
        if have[k] != wanted[k]
    ]
    return _Fit(key, prefix, behind, others, faults)


def _misfit(closest: _Fit, source: str) -> NetworkImportError:
    """Return an error that lists everything that is missing, unexpected or of another shape."""
    shown = [*closest.faults[:_SHOWN]]
    if len(closest.faults) > _SHOWN:
        shown.append(f"… and {len(closest.faults) - _SHOWN} more")
    place = f"its state dict {closest.key!r}" if closest.key else "its state dict"
    place += f" behind the prefix {closest.prefix!r}" if closest.prefix else ""
    return NetworkImportError(
        "\n  ".join([f"{place} does not fit the network:", *shown]),
        where=source,
        remedy="give the network with the arguments it was trained with, or --key and --prefix",
    )


def _values(chosen: _Fit, wanted: Shapes, source: str, notes: list[str]) -> dict[str, Any]:
    """Return the network's weights as float32, after a look at their values."""
    total = sum(4 * math.prod(shape) for shape in wanted.values())
    if total > MAX_BYTES:
        raise NetworkImportError(
            f"its weights have {total} bytes; at most {MAX_BYTES} are read", where=source
        )
    made: dict[str, Any] = {}
    for name in (n for n in wanted if n in chosen.tensors):
        values = chosen.tensors[name]
        made[name] = (
            values.float32() if isinstance(values, Stored) else _dense(values, name, source)
        )
        if not np.isfinite(np.asarray(made[name])).all():
            raise NetworkImportError(
                f"the weight {name} holds NaN or infinite values",
                where=source,
                remedy="the training diverged: take an earlier checkpoint",
            )
    stored = {str(getattr(chosen.tensors[name], "dtype", "")) for name in made}
    for kind in sorted(stored & _WIDENED):
        notes.append(f"weights of type {kind.removeprefix('torch.')} became float32")
    return made


def _dense(values: torch.Tensor, name: str, source: str) -> torch.Tensor:
    """Return a tensor's values; float32 ones are not copied."""
    import torch

    if values.layout != torch.strided or values.is_quantized or values.is_complex():
        raise NetworkImportError(
            f"the weight {name} is sparse, quantised or complex",
            where=source,
            remedy="save plain dense tensors of real numbers",
        )
    values = values.detach()
    return values.float() if values.is_floating_point() else values
