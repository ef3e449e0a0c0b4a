# SPDX-License-Identifier: Apache-2.0
# Made by tools/python_stub.
"""dosemap.h for the package; no interface of its own."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy
from numpy.typing import NDArray

def report_leaks() -> None:
    """At the end of the process, name the objects that are left."""

def set_error_factory(factory: Callable[[int, str, str, str], object]) -> None:
    """What makes an exception of status, where, what and remedy."""

def version() -> str: ...
def default_model_path() -> str: ...
def doctor_json() -> str:
    """What this installation has, as `dosemap doctor` says it."""

class Volume:
    """A 3D image in float32 with the place of its voxels."""

    @staticmethod
    def read(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Volume:
        """NIfTI."""

    @staticmethod
    def view(
        data: Annotated[
            NDArray[numpy.float32],
            dict(shape=(None, None, None), order="F", device="cpu", writable=False),
        ],
        affine: Sequence[float],
        header: bytes | None = None,
    ) -> Volume:
        """
        An array (x, y, z), kept and not copied; its place: a NIfTI header, or rows of 3x4.
        """

    def write(
        self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes], threads: int = 0
    ) -> None: ...
    @property
    def dim(self) -> tuple[int, int, int]: ...
    @property
    def affine(self) -> list[float]: ...
    @property
    def spacing_mm(self) -> tuple[float, float, float]: ...
    @property
    def data(
        self,
    ) -> Annotated[Any, dict(dtype="float32", shape=(None, None, None), order="F", writable=False)]:
        """The voxels (x, y, z), not copied, as a buffer that NumPy takes."""

def grid_difference(
    dim_a: tuple[int, int, int],
    affine_a: Sequence[float],
    dim_b: tuple[int, int, int],
    affine_b: Sequence[float],
) -> str:
    """What differs; empty for grids that are alike."""

class Labels:
    """Named structures on a grid, which may overlap."""

    @staticmethod
    def read(
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        names: Mapping[int, str]
        | str
        | bytes
        | os.PathLike[str]
        | os.PathLike[bytes]
        | None = None,
    ) -> Labels:
        """A label image or a folder of masks; names: by id, or a table's path."""

    @staticmethod
    def from_ids(
        ids: Annotated[
            NDArray[numpy.int32],
            dict(shape=(None, None, None), order="F", device="cpu", writable=False),
        ],
        affine: Sequence[float],
        names: Mapping[int, str]
        | str
        | bytes
        | os.PathLike[str]
        | os.PathLike[bytes]
        | None = None,
    ) -> Labels:
        """An id for each voxel (x, y, z), 0 for none."""

    @staticmethod
    def from_masks(
        names: Sequence[str],
        masks: Sequence[
            Annotated[
                NDArray[numpy.uint8],
                dict(shape=(None, None, None), order="F", device="cpu", writable=False),
            ]
        ],
        affine: Sequence[float],
    ) -> Labels:
        """A mask (x, y, z) for each structure, inside where it is not 0."""

    def resample(self, dim: tuple[int, int, int], affine: Sequence[float]) -> Labels: ...
    @property
    def dim(self) -> tuple[int, int, int]: ...
    @property
    def affine(self) -> list[float]: ...
    @property
    def structures(self) -> list[tuple[int, str, int]]:
        """Id, name and number of voxels of each."""

class PetInfo:
    """How to quantify a PET. NaN, None and '' are unknown."""

    def __init__(self) -> None: ...
    @staticmethod
    def read(pet_path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> PetInfo:
        """From the sidecar beside the PET."""

    @property
    def units(self) -> str | None: ...
    @units.setter
    def units(self, value: str | None) -> None: ...
    @property
    def decay(self) -> str | None: ...
    @decay.setter
    def decay(self, value: str | None) -> None: ...
    @property
    def body_weight_kg(self) -> float: ...
    @body_weight_kg.setter
    def body_weight_kg(self, arg: float, /) -> None: ...
    @property
    def injected_mbq(self) -> float: ...
    @injected_mbq.setter
    def injected_mbq(self, arg: float, /) -> None: ...
    @property
    def residual_mbq(self) -> float: ...
    @residual_mbq.setter
    def residual_mbq(self, arg: float, /) -> None: ...
    @property
    def half_life_s(self) -> float: ...
    @half_life_s.setter
    def half_life_s(self, arg: float, /) -> None: ...
    @property
    def injection_time_s(self) -> float: ...
    @injection_time_s.setter
    def injection_time_s(self, arg: float, /) -> None: ...
    @property
    def scan_time_s(self) -> float: ...
    @scan_time_s.setter
    def scan_time_s(self, arg: float, /) -> None: ...
    @property
    def radionuclide(self) -> str: ...
    @radionuclide.setter
    def radionuclide(self, arg: str, /) -> None: ...
    @property
    def tracer(self) -> str: ...
    @tracer.setter
    def tracer(self, arg: str, /) -> None: ...
    @property
    def sidecar(self) -> str: ...
    @sidecar.setter
    def sidecar(self, arg: str, /) -> None: ...

class CtInfo:
    """How a CT came onto a PET's grid."""

    @property
    def dim(self) -> tuple[int, int, int]: ...
    @property
    def spacing_mm(self) -> tuple[float, float, float]: ...
    @property
    def lowest(self) -> float: ...
    @property
    def highest(self) -> float: ...
    @property
    def voxels_to_air(self) -> int: ...
    @property
    def resampled(self) -> bool: ...
    @property
    def voxels_covered(self) -> float: ...
    @property
    def activity_covered(self) -> float: ...

def ct_onto_pet(
    ct: Volume, pet: Volume, is_hu: bool = False, nan_to_air: bool = False
) -> tuple[Volume, CtInfo]:
    """A CT in HU onto the PET's grid."""

def time_parse(text: str) -> float:
    """Seconds, of a time of day or with a date."""

def half_life_s(name: str) -> float:
    """NaN if it is not in the list."""

class Structure:
    """Dose and volume of one structure; NaN is undefined."""

    @property
    def name(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def voxels(self) -> int: ...
    @property
    def volume_cm3(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def minimum(self) -> float: ...
    @property
    def maximum(self) -> float: ...
    @property
    def d2(self) -> float: ...
    @property
    def d50(self) -> float: ...
    @property
    def d95(self) -> float: ...
    @property
    def d98(self) -> float: ...
    @property
    def d2cc(self) -> float: ...
    @property
    def bin_width(self) -> float: ...
    @property
    def v_percent(self) -> list[float]: ...
    @property
    def histogram(self) -> Annotated[Any, dict(dtype="uint64", shape=(None,), writable=False)]:
        """Voxels in each dose bin, not copied, as a buffer that NumPy takes."""

class Dvh:
    """Dose-volume histograms of structures."""

    @staticmethod
    def compute(
        dose: Volume,
        labels: Labels,
        v_thresholds: Sequence[float] = [],
        per_activity: bool = False,
        threads: int = 0,
    ) -> Dvh: ...
    def __len__(self) -> int: ...
    def structure(self, index: int) -> Structure: ...
    def write_organs(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None: ...
    def write_curves(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None: ...

class Model:
    """A weights file in memory."""

    @staticmethod
    def load(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Model: ...
    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def card_json(self) -> str: ...
    @property
    def graph_json(self) -> str: ...
    def takes(self, quantity: str) -> bool: ...
    def describe(
        self,
        tile: Sequence[int] | None = None,
        precision: str = "auto",
        as_json: bool = True,
        plan: str = "cpu",
        batch: int = 0,
        windows: int = 0,
        convolutions: str = "auto",
        device_properties: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
    ) -> str: ...
    def compare(self, other: Model, as_json: bool = True) -> tuple[bool, str]:
        """Whether both are alike, and what differs."""

    def forward(
        self,
        inputs: Sequence[
            tuple[
                str,
                Annotated[
                    NDArray[numpy.float32],
                    dict(
                        shape=(None, None, None, None, None),
                        order="C",
                        device="cpu",
                        writable=False,
                    ),
                ],
            ]
        ],
        precision: str = "auto",
        device: str | None = None,
        threads: int = 0,
        convolutions: str = "auto",
        progress: Callable[[float, str], object] | None = None,
    ) -> list[
        tuple[
            str,
            Annotated[
                Any,
                dict(
                    dtype="float32", shape=(None, None, None, None, None), order="C", writable=False
                ),
            ],
        ]
    ]:
        """What the network makes of patches (count, channels, size), by name."""

class Prediction:
    """A dose map with what belongs to it."""

    @property
    def dose(self) -> Volume: ...
    @property
    def dvh(self) -> Dvh | None: ...
    @property
    def provenance_json(self) -> str: ...
    def write(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        pet_path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        ct_path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        labels_path: str | bytes | os.PathLike[str] | os.PathLike[bytes] | None = None,
        command_line: str | None = None,
        threads: int = 0,
    ) -> None:
        """The files of output_paths."""

class Predictor:
    """A model made ready on a device, for many PETs."""

    def __init__(
        self,
        model: Model,
        *,
        tile: Sequence[int] | str | None = None,
        force_tile: bool = False,
        overlap: float = float("nan"),
        memory_bytes: int = 0,
        blend: str = "gaussian",
        skip_air: float = float("nan"),
        precision: str = "auto",
        device: str | None = None,
        threads: int = 0,
        batch: int = 0,
        convolutions: str = "auto",
        nan_to_zero: bool = False,
        v_thresholds: Sequence[float] = [],
        network_values: bool = False,
    ) -> None: ...
    def run(
        self,
        pet: Volume,
        info: PetInfo | None = None,
        ct: Volume | None = None,
        ct_info: CtInfo | None = None,
        labels: Labels | None = None,
        activity_gbq: float = float("nan"),
        progress: Callable[[float, str], object] | None = None,
    ) -> Prediction:
        """Waits for its turn where other threads use the predictor."""

def prediction_is_complete(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> bool: ...
def output_paths(
    path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
) -> tuple[str, str, str, str]:
    """Dose map, sidecar, DVH and organ table of a dose map's path."""
