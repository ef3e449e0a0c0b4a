# SPDX-License-Identifier: Apache-2.0
"""What this installation can use, and what is in a weights file."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _core, _errors, _keywords

if TYPE_CHECKING:
    from ._model import Model

_CUDNN_FILE = "libcudnn_graph.so.9"  # the part of cuDNN that the library opens


@dataclass(frozen=True)
class Device:
    """Something that a prediction can run on, or could if nothing were missing.

    Attributes:
        name: as ``device=`` of :meth:`Model.predict` wants it: "cpu", "cuda:0", ...
        description: of the hardware.
        memory: bytes, all that the machine or the GPU has; 0 if unknown.
        missing: why it cannot be used, and what to do about that; empty if it can be used.

    Example:
        >>> cpu = dosemap.devices()[0]
        >>> cpu.name, cpu.usable, cpu.memory > 1e8
        ('cpu', True, True)

    """

    name: str
    description: str
    memory: int
    missing: str = ""

    @property
    def usable(self) -> bool:
        """Nothing is missing."""
        return not self.missing


def devices() -> list[Device]:
    """CPU and GPUs, usable or not, with what is missing.

    Where no GPU is found at all, the last entry is "cuda" and says why.

    Example:
        >>> [device.name for device in dosemap.devices() if device.usable]
        ['cpu'...]

    """
    facts = doctor()
    cpu, cuda = facts["cpu"], facts["cuda"]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [Device("cpu", f"{cpu['name']}, {_threads(cpu['threads'])}", memory)]
    for gpu in cuda["gpus"]:
        capability = gpu["compute_capability"]
        description = f"{gpu['device']}, compute capability {capability}" if capability else ""
        found.append(Device(gpu["name"], description, gpu["memory"], _missing(gpu)))
    if not cuda["gpus"]:
        found.append(Device("cuda", "", 0, _missing(cuda)))
    return found


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _missing(facts: dict[str, Any]) -> str:
    if facts["usable"]:
        return ""
    text = "; ".join(facts[key] for key in ("problem", "remedy") if facts[key])
    return _errors.in_python(text)


def doctor() -> dict[str, Any]:
    """Say what this installation can use, as ``dosemap doctor --json`` prints it.

    Versions, libraries, CPU features, GPUs with driver and cuDNN, and where weights are looked
    for; what is missing is said in "problem" and "remedy".

    Example:
        >>> facts = dosemap.doctor()
        >>> facts["version"] == dosemap.__version__, sorted(facts)
        (True, ['cpu', 'cuda', 'libraries', 'model', 'version'])

    """
    use_pypi_cudnn()
    facts: dict[str, Any] = json.loads(_core.doctor_json())
    return facts


def use_pypi_cudnn() -> None:
    """Name the folder of PyPI's cuDNN (nvidia-cudnn-cu13) to the library, if it is there.

    ``DOSEMAP_CUDNN_DIR`` says which cuDNN is taken; if it is set it stays as it is. PyPI's goes
    before the system's: PyTorch takes that one, and a process needs but one.
    """
    if os.environ.get("DOSEMAP_CUDNN_DIR"):
        return
    folder = _pypi_cudnn()
    if folder:
        os.environ["DOSEMAP_CUDNN_DIR"] = folder


def _pypi_cudnn() -> str | None:
    """Its folder, found without importing anything: `nvidia` is a package without code."""
    try:
        package = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):  # something else of that name
        return None
    for place in (package and package.submodule_search_locations) or ():
        folder = Path(place, "cudnn", "lib")
        if (folder / _CUDNN_FILE).is_file():
            return str(folder)
    return None


# ---- Weights files -------------------------------------------------------------------------------

_PRECISIONS = ("float32", "bf16", "fp16", "tf32")
_WAYS = ("auto", "library", "own")


def inspect(
    model: str | os.PathLike[str] | Model | None = None,
    *,
    tile: int | Sequence[int] | None = None,
    precision: str | None = None,
    plan: str = "cpu",
    batch: int | None = None,
    windows: int | None = None,
    convolutions: str | None = None,
    device_properties: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Say what is in a weights file, the plan for one tile, and what it costs.

    As ``dosemap inspect --json`` prints it: card, provenance, graph, parameters, bytes and FLOPs.

    Args:
        model: path of a weights file, or a loaded :class:`Model`; None: the default weights.
        tile: voxels of the plan's tile, along x, y, z or the same along all, 1 to 65536; None: the
            training patch.
        precision: "float32", "bf16", "fp16" or "tf32"; None: "float32".
        plan: "cpu"; or "cuda", with what each operation of a GPU moves and computes, for which
            a build for CUDA is needed, but no GPU. The other arguments go with "cuda" only.
        batch: windows per call of the network, 1 to 1024; None: as a prediction chooses.
        windows: of the volume; None: those of 200 x 200 x 450 voxels.
        convolutions: "auto", "library" or "own"; None: "auto".
        device_properties: path of a GPU's properties as JSON, as cuDNN writes them; None: those
            of the GPU here, else an H100's.

    Example:
        >>> facts = dosemap.inspect(tile=32)
        >>> facts["plan"]["tile"], facts["card"]["licence"]
        ([32, 32, 32], 'Apache-2.0')

    """
    from . import _model

    loaded = model if isinstance(model, _model.Model) else _model.load_model(model)
    return describe(
        loaded._core,
        tile=tile,
        precision=precision,
        plan=plan,
        batch=batch,
        windows=windows,
        convolutions=convolutions,
        device_properties=device_properties,
    )


def describe(
    model: _core.Model,
    *,
    tile: int | Sequence[int] | None = None,
    precision: str | None = None,
    plan: str = "cpu",
    batch: int | None = None,
    windows: int | None = None,
    convolutions: str | None = None,
    device_properties: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """:func:`inspect` of a model of the core, with its checks of the arguments."""
    if isinstance(tile, str):
        raise _errors.wrong_type("tile", tile, "a number of voxels, or three of them")
    edges = _keywords.tile_of(tile)
    assert not isinstance(edges, str)
    of_cuda = {"batch": batch, "windows": windows, "convolutions": convolutions,
               "device_properties": device_properties}  # fmt: skip
    given = [f"{name}=" for name, value in of_cuda.items() if value is not None]
    if _keywords.choice("plan", plan, ("cpu", "cuda")) == "cuda":
        use_pypi_cudnn()
    elif given:
        raise _errors.invalid(f"{given[0]} goes with plan='cuda'", "give both, or leave it out")
    if device_properties is not None:
        device_properties = _keywords.path_of("device_properties", device_properties)
    text = model.describe(
        edges,
        "float32" if precision is None else _keywords.choice("precision", precision, _PRECISIONS),
        True,
        plan,
        _keywords.count("batch", batch, 1024),
        _keywords.count("windows", windows, 10**15),
        "auto" if convolutions is None else _keywords.choice("convolutions", convolutions, _WAYS),
        device_properties,
    )
    facts: dict[str, Any] = json.loads(text)
    return facts
