# SPDX-License-Identifier: Apache-2.0
"""What the parts of the import hand to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

Json = dict[str, Any]
Arrays = Mapping[str, np.ndarray]

# The unit that weights/FORMAT.md has for each quantity; that of `other` is free.
UNITS = {
    "uptake": "g/mL",
    "suv": "g/mL",
    "hu": "HU",
    "dose_per_activity": "Gy/GBq",
    "other": "",
}


class NetworkImportError(ValueError):
    """A source cannot be imported.

    what: what is wrong, with the value that was found. where: the file, and the node in it.
    source: line of the model's own code that made the node, where the file has it. remedy: what to
    do about it.
    """

    def __init__(self, what: str, *, where: str = "", source: str = "", remedy: str = "") -> None:
        self.what, self.where, self.source, self.remedy = what, where, source, remedy
        super().__init__(what)

    def __str__(self) -> str:
        """Return "WHERE: WHAT (from SOURCE); REMEDY"."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        text += f" (from {self.source})" if self.source else ""
        text = f"{text}; {self.remedy}" if self.remedy else text
        # Names come from the file, and could tell a terminal what to do.
        return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True)
class Port:
    """An input or output of the graph, as weights/FORMAT.md has it."""

    name: str
    quantity: str
    unit: str
    channels: int = 1
    intensity: tuple[Json, ...] = ()

    def json(self) -> Json:
        """Return the port as the graph's JSON has it."""
        return {
            "name": self.name,
            "quantity": self.quantity,
            "unit": self.unit,
            "channels": self.channels,
            "intensity": [dict(step) for step in self.intensity],
        }


@dataclass(frozen=True)
class Statement:
    """What a file does not say and the user has to: nothing of it is guessed.

    patch_size and voxel_size_mm: x, y, z. inputs and outputs: in the order of the network's tensors
    and, within a tensor, of its channels.
    """

    name: str
    patch_size: tuple[int, int, int]
    spatial_axes: str  # "xyz" or "zyx"
    orientation: str  # "RAS", ... or "stored"
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    voxel_size_mm: tuple[float, float, float] | None = None

    @property
    def spatial_shape(self) -> tuple[int, int, int]:
        """Return the patch in the network's own axes."""
        x, y, z = self.patch_size
        return (x, y, z) if self.spatial_axes == "xyz" else (z, y, x)


@dataclass
class Tensor:
    """How one tensor of the original is made of ports: their names, side by side along channels."""

    name: str  # in the original
    ports: tuple[str, ...]
    channels: tuple[int, ...]
    shape: tuple[int, ...]  # of the original without the batch, such as (1, 32, 32, 32) or (2,)


@dataclass
class Network:
    """A graph in the words of weights/FORMAT.md with its weights, and how the original sees it."""

    graph: Json
    tensors: dict[str, np.ndarray]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    notes: list[str] = field(default_factory=list)  # what was rewritten, for people


class Original(Protocol):
    """The network as its own framework runs it."""

    description: str  # "PyTorch 2.13.0", "ONNX Runtime 1.31.1"

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the outputs for inputs (N, C, a, b, c), float32, in the order of the tensors."""
        ...
