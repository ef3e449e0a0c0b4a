# SPDX-License-Identifier: Apache-2.0
"""Images as dosemap reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import _core, _errors, _keywords

if TYPE_CHECKING:
    import nibabel
    import numpy as np
    import numpy.typing as npt


class Volume:
    """A 3D image in float32 with its place in space; what :func:`dosemap.read` returns.

    It can be given wherever dosemap takes an image, and to numpy (``np.asarray(volume)``).
    Nothing is copied: ``data`` shows the memory that dosemap works on, and cannot be written to.

    Example:
        >>> volume = dosemap.read("dose.nii.gz")
        >>> volume
        Volume(32 x 24 x 20 voxels of 4 x 4 x 5 mm)
        >>> volume.data.dtype, volume.data.flags.writeable
        (dtype('float32'), False)

    """

    __slots__ = ("__weakref__", "_core", "_path")

    def __init__(self, core: _core.Volume, path: str | None = None) -> None:
        self._core = core
        self._path = path  # of the file that it was read from, which no output may overwrite

    @property
    def data(self) -> npt.NDArray[np.float32]:
        """Voxels, shape (x, y, z), float32, x fastest; values in the file's unit; read-only.

        >>> volume = dosemap.read("dose.nii.gz")
        >>> volume.data.shape, volume.data.flags.f_contiguous
        ((32, 24, 20), True)
        """
        numpy = _errors.numpy("the voxels of an image as an array")
        array: npt.NDArray[np.float32] = numpy.asarray(self._core.data)
        return array

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4 x 4, float64: from a voxel's index (i, j, k, 1) to millimetres in RAS+ space.

        >>> dosemap.read("dose.nii.gz").affine
        array([[  -4.,    0.,    0.,   60.],
               [   0.,    4.,    0.,  -50.],
               [   0.,    0.,    5., -200.],
               [   0.,    0.,    0.,    1.]])
        """
        numpy = _errors.numpy("an affine as an array")
        affine: npt.NDArray[np.float64] = numpy.eye(4)
        affine[:3] = numpy.reshape(self._core.affine, (3, 4))
        return affine

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        x, y, z = self._core.dim
        return x, y, z

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel along x, y, z in millimetres."""
        x, y, z = self._core.spacing_mm
        return x, y, z

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        """Give numpy ``data``: copied where another dtype is asked for, or a copy."""
        numpy = _errors.numpy()
        array: npt.NDArray[Any]
        if copy is None:  # numpy 1 has no None
            array = numpy.asarray(self.data, dtype)
        else:
            array = numpy.array(self.data, dtype=dtype, copy=copy)
        return array

    def to_nifti(self) -> nibabel.Nifti1Image:
        """Nibabel's image of the same voxels, which are not copied, with the same affine.

        >>> dosemap.read("dose.nii.gz").to_nifti().shape
        (32, 24, 20)
        """
        return nifti_image(self.data, self.affine)

    def save(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        """Write float32 NIfTI: ``.nii``, ``.nii.gz`` or ``.nii.zst``, as the name ends.

        The header's qform, sform and codes are those of the file that was read. The file appears
        whole or not at all, and its bytes do not depend on ``threads`` (None: all cores).

        >>> dosemap.read("dose.nii.gz").save("copy.nii.zst")
        >>> dosemap.read("copy.nii.zst").shape
        (32, 24, 20)
        """
        count = _keywords.count("threads", threads, 4096)
        self._core.write(_keywords.path_of("path", path), count)

    def __reduce__(self) -> tuple[Any, ...]:
        return _volume_of, (self.data, self._core.affine, self._path)

    def __repr__(self) -> str:
        voxels = " x ".join(str(n) for n in self.shape)
        edges = " x ".join(f"{mm:.4g}" for mm in self.spacing_mm)
        return f"Volume({voxels} voxels of {edges} mm)"


def _volume_of(data: npt.NDArray[np.float32], affine: Sequence[float], path: str | None) -> Volume:
    """Make a volume of what was pickled; the header's forms are left behind."""
    return Volume(_core.Volume.view(data, affine), path)


def nifti_image(
    data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]
) -> nibabel.Nifti1Image:
    """Both as nibabel has them, in millimetres; nothing is copied."""
    nib = _errors.optional("nibabel", "to_nifti()")
    # NIfTI-1 counts voxels along an axis in 16 bits.
    kind = nib.Nifti1Image if max(data.shape) <= 32767 else nib.Nifti2Image
    image: nibabel.Nifti1Image = kind(data, affine)
    header: Any = image.header
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")  # as what is written here has it
    return image


def read(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI image: ``.nii``, ``.nii.gz`` or ``.nii.zst``, told by content, not by name.

    Any integer or float datatype, either byte order, with the header's slope and intercept
    applied; 3D, or more dimensions of size 1.

    Args:
        path: of the file.

    Raises:
        FileError: it cannot be read.
        FormatError: it is no NIfTI file, or incomplete.
        UnsupportedError: complex or colour values, or a 4D series.

    Example:
        >>> dose = dosemap.read("dose.nii.gz")
        >>> dose.shape, dose.spacing_mm
        ((32, 24, 20), (4.0, 4.0, 5.0))
        >>> float(dose.data.max()) > 1
        True

    """
    name = _keywords.path_of("path", path)
    return Volume(_core.Volume.read(name), name)
