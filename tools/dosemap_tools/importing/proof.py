# SPDX-License-Identifier: Apache-2.0
"""Proves an import: the original and `dosemap forward` on the same patches, number by number.

Patches are in the network's own values. One is drawn from a normal distribution; the other is what
predict would show: for PET mostly zero with hot spots, for CT air, tissue and bone, through the
port's intensity transform. One patch of the user's own images can be added.
"""

from __future__ import annotations

import math
import os
import shutil
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dosemap_tools import nifti
from dosemap_tools.importing.network import (
    Arrays,
    Json,
    NetworkImportError,
    Original,
    Port,
    Statement,
    Tensor,
)
from dosemap_tools.importing.ports import UsageError, apply_intensity
from dosemap_tools.program import bundled_program

TOLERANCE = 1e-5  # relative L2 of float32 weights
# What rounding the weights may change, relative L2. An element is off by up to 2^-11 and 2^-8 of
# itself; dosegan-16 of tools/example_import is off by 5e-4 and 5e-3.
ROUNDING = {"F16": 1e-2, "BF16": 5e-2}
PATCHES = ("normal", "as imaged")
# How the program is asked to compute: on the CPU, and not by minimal filtering, whose weights take
# up to eight times the memory, and with which a PlainConvUNet of 66 MB is 9.5e-6 from PyTorch
# instead of 5.3e-6.
_EXACTLY = ("--device", "cpu", "--convolutions", "library", "--quiet")
# Outputs that differ less between patches show nothing of the way from input to output.
_SILENT = 1e-6


@dataclass(frozen=True)
class Deviation:
    """How far the program is from the original, for one output and one patch."""

    output: str
    patch: str
    relative_l2: float
    maximum: float
    original_maximum: float

    def json(self) -> Json:
        """Return it as the card has it."""
        rounded = {k: float(f"{v:.3g}") for k, v in asdict(self).items() if isinstance(v, float)}
        return {"output": self.output, "patch": self.patch, **rounded}

    def text(self) -> str:
        """Return a line for people."""
        return (
            f"{self.output:12}  {self.patch:12}  relative L2 {self.relative_l2:.2e}"
            f"  maximum {self.maximum:.2e} of {self.original_maximum:.4g}"
        )


# Patches ------------------------------------------------------------------------------------------
def _as_imaged(port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return (channels, a, b, c) such as the port's quantity has, in the network's values."""
    if port.quantity == "other":
        return rng.standard_normal((port.channels, *shape), np.float32)
    centres = np.indices(shape, np.float32)
    if port.quantity == "hu":
        tissue = rng.normal(40.0, 20.0, (port.channels, *shape))
        air = centres[0] < 0.25 * shape[0]
        bone = rng.random(shape) > 0.98
        values = np.where(air, -1000.0, np.where(bone, 700.0, tissue))
    else:
        # Without uptake but for some spots, whose size and height do not depend on the patch.
        values = np.zeros((port.channels, *shape))
        for channel in values:
            for _ in range(6):
                middle = [rng.uniform(0, n) for n in shape]
                squares = [((c - m) / 2.5) ** 2 for c, m in zip(centres, middle, strict=True)]
                channel += rng.uniform(2.0, 30.0) * np.exp(-sum(squares))
        values[values < 0.05] = 0.0
    return apply_intensity(values, port.intensity)


def random_patches(statement: Statement, seed: int) -> dict[str, np.ndarray]:
    """Return (2, channels, a, b, c) for each input port: the patches of PATCHES."""
    rng = np.random.default_rng(seed)
    shape = statement.spatial_shape
    return {
        port.name: np.stack(
            [
                rng.standard_normal((port.channels, *shape), np.float32),
                _as_imaged(port, shape, rng),
            ]
        )
        for port in statement.inputs
    }


def _read_patch(path: Path, axes: str) -> np.ndarray:
    """Return the array of a file in the network's axes; channels, if it has any, come first."""
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.name.endswith((".nii", ".nii.gz")):
            values, _ = nifti.read(path)
            return values if axes == "xyz" else values.T
    except (OSError, ValueError, EOFError, KeyError, struct.error, zlib.error) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or error
        raise NetworkImportError(f"cannot be read as a patch: {reason}", where=str(path)) from error
    raise UsageError("is no .npy, .nii or .nii.gz file", where=str(path))


def _middle(values: np.ndarray, port: Port, statement: Statement, path: Path) -> np.ndarray:
    """Return the patch in the middle of an array, (channels, a, b, c)."""
    have = values.shape if values.ndim == 4 else (1, *values.shape)
    shape = statement.spatial_shape
    fits = len(have) == 4 and have[0] == port.channels
    if not fits or any(n < want for n, want in zip(have[1:], shape, strict=True)):
        raise NetworkImportError(
            f"has the shape {values.shape}",
            where=str(path),
            remedy=f"port {port.name} needs at least ({port.channels}, "
            + f"{', '.join(map(str, shape))}) in the network's axes",
        )
    begins = [(n - want) // 2 for n, want in zip(have[1:], shape, strict=True)]
    cut = tuple(slice(b, b + want) for b, want in zip(begins, shape, strict=True))
    patch = np.asarray(values.reshape(have)[(slice(None), *cut)])
    if patch.dtype.kind not in "fiu" or not np.all(np.isfinite(patch)):
        raise NetworkImportError("holds values that are no finite numbers", where=str(path))
    return patch


def real_patch(statement: Statement, files: Sequence[str]) -> dict[str, np.ndarray]:
    """Return (1, channels, a, b, c) for each input port, cut from the middle of "[PORT=]FILE".

    The files hold the ports' quantities in their own units, as predict sees them.
    """
    patches: dict[str, np.ndarray] = {}
    names = [port.name for port in statement.inputs]
    for text in files:
        name, separator, file = text.partition("=")
        if not separator or name not in names:
            name, file = names[0], text
        port = statement.inputs[names.index(name)]
        values = _middle(
            _read_patch(Path(file), statement.spatial_axes), port, statement, Path(file)
        )
        patches[name] = apply_intensity(values, port.intensity)[None]
    if absent := [name for name in names if name not in patches]:
        raise UsageError(
            f"--patch-file is missing for {', '.join(absent)}",
            remedy="give --patch-file PORT=FILE once for each input",
        )
    return {name: patches[name] for name in names}


# The two sides ------------------------------------------------------------------------------------
def find_program(given: str | None) -> str:
    """Return the dosemap program: named, $DOSEMAP_BIN, installed with this, on PATH, or built."""
    for name, value in (("--dosemap", given), ("$DOSEMAP_BIN", os.environ.get("DOSEMAP_BIN"))):
        if value:
            found = shutil.which(value)
            if found is None:
                raise NetworkImportError(
                    f"{name} is {value!r}, which is no program that can be run",
                    remedy="name the dosemap program",
                )
            return found
    if (bundled := bundled_program()) is not None:
        return str(bundled)
    built = Path(__file__).resolve().parents[3] / "build/cpu/host/dosemap"
    found = shutil.which("dosemap") or shutil.which(str(built))
    if found is None:
        raise NetworkImportError(
            "the dosemap program is not found, which the import is proven with",
            remedy="put it on PATH, or name it by --dosemap FILE or $DOSEMAP_BIN",
        )
    return found


def run_original(original: Original, inputs: Sequence[Tensor], patches: Arrays) -> list[np.ndarray]:
    """Return the original's outputs, one array for each of its tensors."""
    joined = [np.concatenate([patches[p] for p in t.ports], axis=1) for t in inputs]
    outputs = original.run(joined)
    if not all(np.all(np.isfinite(values)) for values in outputs):
        raise NetworkImportError(
            f"the network gives NaN or infinity in {original.description}",
            remedy="its weights or the stated intensity transform do not fit together",
        )
    return outputs


def run_program(program: str, model: Path, patches: Arrays, outputs: Sequence[str]) -> Arrays:
    """Return the outputs of `dosemap forward`, by port."""
    from safetensors.numpy import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="dosemap-proof-") as folder:
        source, target = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in patches.items()}, source)
        command = [program, "forward", str(model), str(source), "-o", str(target), *_EXACTLY]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise NetworkImportError(f"cannot be run: {error}", where=program) from error
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise NetworkImportError(
                f"the program does not run the imported network: {said}", where=program
            )
        found = load_file(target)
    if absent := [name for name in outputs if name not in found]:
        raise NetworkImportError(f"it gives no {', '.join(absent)}", where=program)
    return found


# Comparison ---------------------------------------------------------------------------------------
def _silent(values: np.ndarray) -> bool:
    """Return whether an output (N, ...) is the same, whatever goes in."""
    spread = float(np.max(np.ptp(values, axis=0))) if len(values) > 1 else 0.0
    return not spread > _SILENT * float(np.max(np.abs(values)))


def _deviations(
    name: str, found: np.ndarray, reference: np.ndarray, labels: Sequence[str]
) -> list[Deviation]:
    """Return the deviation for each patch; a patch that gives zeros is measured by the others."""
    found, reference = found.astype(np.float64), reference.astype(np.float64)
    norms = [float(np.linalg.norm(patch)) for patch in reference]
    result = []
    for patch, label in enumerate(labels):
        difference = found[patch] - reference[patch]
        scale = norms[patch] or max(norms)
        error = float(np.linalg.norm(difference)) / scale if scale > 0 else math.inf
        worst = float(np.max(np.abs(difference)))
        largest = float(np.max(np.abs(reference[patch])))
        result.append(Deviation(name, label, error, worst, largest))
    return result


def compare(
    outputs: Sequence[Tensor],
    reference: Sequence[np.ndarray],
    found: Arrays,
    labels: Sequence[str],
) -> list[Deviation]:
    """Return the deviations of all outputs; raises where they would show nothing."""
    result: list[Deviation] = []
    if len(outputs) != len(reference):
        raise NetworkImportError(
            f"the original gives {len(reference)} tensors, the import {len(outputs)}"
        )
    for tensor, values in zip(outputs, reference, strict=True):
        samples = len(labels)
        if values.shape != (samples, *tensor.shape):
            raise NetworkImportError(
                f"output {tensor.name} has the shape {values.shape} in the original,"
                f" {(samples, *tensor.shape)} in the import"
            )
        begin = 0
        for port, channels in zip(tensor.ports, tensor.channels, strict=True):
            own = values[:, begin : begin + channels]
            begin += channels
            if _silent(own):
                raise NetworkImportError(
                    f"the output {port} is the same for all patches in the original: comparing it"
                    " would show nothing",
                    remedy="give a patch that it answers to by --patch-file, or other weights",
                )
            result += _port_deviations(port, found[port], own, labels)
    return result


def _port_deviations(
    port: str, found: np.ndarray, own: np.ndarray, labels: Sequence[str]
) -> list[Deviation]:
    if found.size != own.size:
        raise NetworkImportError(
            f"output {port} has the shape {found.shape} in dosemap, {own.shape} in the original"
        )
    if not np.all(np.isfinite(found)):
        raise NetworkImportError(f"output {port} holds NaN or infinity in dosemap")
    return _deviations(port, found.reshape(own.shape), own, labels)


def check(deviations: Sequence[Deviation], tolerance: float) -> None:
    """Raise an error if a deviation is above the tolerance."""
    worst = max(deviations, key=lambda d: d.relative_l2)
    if not worst.relative_l2 <= tolerance:
        raise NetworkImportError(
            f"the imported network is not the original: {worst.text()}; allowed is {tolerance:.0e}",
            remedy="nothing was written; if the network amplifies rounding, state --tolerance",
        )


class Proof:
    """Patches, what the original makes of them, and how far the program is from it."""

    def __init__(
        self, statement: Statement, seed: int, patch_files: Sequence[str], tolerance: float
    ) -> None:
        self.seed, self.tolerance = seed, tolerance
        self.labels = list(PATCHES)
        self.patches: Mapping[str, np.ndarray] = random_patches(statement, seed)
        if patch_files:
            real = real_patch(statement, patch_files)
            self.labels.append("given")
            self.patches = {k: np.concatenate([v, real[k]]) for k, v in self.patches.items()}
        self.reference: list[np.ndarray] = []
        self.description = ""
        self.deviations: list[Deviation] = []
        self.rounding: list[Deviation] = []

    def run_original(self, original: Original, inputs: Sequence[Tensor]) -> None:
        """Keep what the original gives, so that it can be freed before the program runs."""
        self.reference = run_original(original, inputs, self.patches)
        self.description = original.description

    def measure(self, program: str, model: Path, outputs: Sequence[Tensor]) -> list[Deviation]:
        """Return how far the program with the weights file `model` is from the original."""
        names = [port for tensor in outputs for port in tensor.ports]
        found = run_program(program, model, self.patches, names)
        return compare(outputs, self.reference, found, self.labels)

    def json(self, dtype: str) -> Json:
        """Return what the card says of it."""
        result: dict[str, Any] = {
            "original": self.description,
            "compared_with": "dosemap forward, float32, CPU, direct convolutions",
            "seed": self.seed,
            "tolerance_relative_l2": self.tolerance,
            "deviations": [deviation.json() for deviation in self.deviations],
        }
        if self.rounding:
            result["rounded_to"] = dtype
            result["rounding_tolerance_relative_l2"] = ROUNDING[dtype]
            result["rounding"] = [deviation.json() for deviation in self.rounding]
        return result
