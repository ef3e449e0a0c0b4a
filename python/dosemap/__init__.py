# SPDX-License-Identifier: Apache-2.0
"""Voxel-wise absorbed-dose maps of 177Lu-PSMA therapy, predicted from the PET before it.

For research; not for clinical decisions.

>>> model = dosemap.load_model()
>>> p = model.predict("pet.nii.gz", units="suv", body_weight_kg=78.7, activity_gbq=7.4,
...                   labels="organs.nii.gz")
>>> p.dose.shape, p.unit
((32, 24, 20), 'Gy')
>>> p.dvh["liver"].mean > 0
True
>>> files = p.save("dose.nii.gz")

Images are given as files, nibabel images, arrays with their affine, :class:`Volume`, MONAI's
MetaTensors or TorchIO's images. Voxel axes are (x, y, z) as in NIfTI, affines go to millimetres in
RAS, doses are in Gy, or in Gy/GBq where no activity is given.

All errors are :class:`dosemap.Error`: what is wrong, with the value, where, and what to do about
it; arguments of a wrong type raise TypeError. Functions that take time release the GIL, and can be
interrupted; models may be used by several threads at once.

numpy is imported when an array is asked for, nibabel, pandas, tqdm and matplotlib where something
needs them: none of them by ``import dosemap``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _core, _errors

_core.set_error_factory(_errors.error_of)

from ._dvh import Dvh, StructureDose, dvh  # noqa: E402
from ._errors import (  # noqa: E402
    CancelledError,
    DeviceError,
    Error,
    FileError,
    FileMissingError,
    FormatError,
    InvalidValueError,
    MissingPackageError,
    OutOfMemoryError,
    UnsupportedError,
)
from ._installation import Device, devices, doctor, inspect  # noqa: E402
from ._keywords import pet_info  # noqa: E402
from ._model import Model, load_model  # noqa: E402
from ._plot import plot_dvh, plot_prediction  # noqa: E402
from ._prediction import Prediction  # noqa: E402
from ._volume import Volume, read  # noqa: E402

__version__ = _core.version()

__all__ = [
    "CancelledError",
    "Device",
    "DeviceError",
    "Dvh",
    "Error",
    "FileError",
    "FileMissingError",
    "FormatError",
    "InvalidValueError",
    "MissingPackageError",
    "Model",
    "OutOfMemoryError",
    "Prediction",
    "StructureDose",
    "UnsupportedError",
    "Volume",
    "__version__",
    "devices",
    "doctor",
    "dvh",
    "inspect",
    "load_model",
    "pet_info",
    "plot_dvh",
    "plot_prediction",
    "read",
]

for _class in (Device, Dvh, Model, Prediction, StructureDose, Volume):
    _class.__module__ = "dosemap"


if not TYPE_CHECKING:  # else every name would be there for those who check types

    def __getattr__(name: str) -> Any:  # noqa: ANN401
        """Say what there is instead of what one would look for first."""
        instead = {
            "predict": "dosemap.load_model().predict(pet, ...)",
            "load": "dosemap.load_model(path) for a network, dosemap.read(path) for an image",
        }
        hint = f"; there is {instead[name]}" if name in instead else ""
        raise AttributeError(f"module 'dosemap' has no attribute {name!r}{hint}")
