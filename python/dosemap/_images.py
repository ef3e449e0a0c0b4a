# SPDX-License-Identifier: Apache-2.0
"""Whatever holds an image, as the core's Volume or Labels.

Files, arrays, nibabel's images, MONAI's and TorchIO's. Nothing is copied that is float32 with x as
its fastest axis, as nibabel and dosemap.read() have it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from . import _core, _errors
from ._keywords import is_path, path_of, text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from nibabel.filebasedimages import FileBasedImage  # what the type of nibabel.load() says

    from ._volume import Volume


class SpatialImage(Protocol):
    """What nibabel's images have."""

    @property
    def affine(self) -> Any: ...  # noqa: ANN401
    @property
    def dataobj(self) -> Any: ...  # noqa: ANN401


# An image: a file's name; nibabel's image; dosemap.Volume; MONAI's MetaTensor or TorchIO's image
# with one channel; or an array (x, y, z), whose affine is a keyword of its own.
ImageLike: TypeAlias = (
    "str | os.PathLike[str] | SpatialImage | FileBasedImage | Volume | npt.ArrayLike"
)
# Structures: a label map as file, image or array on the PET's grid; a folder of masks; or a mask
# for each name.
LabelsLike: TypeAlias = "ImageLike | Mapping[str, ImageLike]"
LabelNames: TypeAlias = "str | os.PathLike[str] | Mapping[int, str] | Mapping[str, int] | None"
Affine: TypeAlias = "npt.ArrayLike | None"


@dataclass(frozen=True)
class Image:
    """An image for the core, and the file that it was read from here, whose sidecar counts."""

    volume: _core.Volume
    path: str | None = None


# ---- What kind of object it is, told without importing its package -------------------------------


def _is_nibabel(image: object) -> bool:
    return hasattr(image, "dataobj") and hasattr(image, "affine")


def _is_metatensor(image: object) -> bool:
    return hasattr(image, "detach") and hasattr(image, "affine") and hasattr(image, "meta")


def _is_torchio(image: object) -> bool:
    return hasattr(image, "spatial_shape") and hasattr(image, "affine") and hasattr(image, "data")


def _is_volume(image: object) -> bool:
    return isinstance(getattr(image, "_core", None), _core.Volume)


def _refuse_others(image: object, keyword: str) -> None:
    """Images of packages whose axes are others, rather than taking them the wrong way round."""
    if hasattr(image, "GetDirection"):
        raise TypeError(
            f"{keyword} is {_errors.described(image)}, whose axes are z, y, x in LPS; give its "
            "file, or load it with nibabel"
        )
    if hasattr(image, "PixelData") or hasattr(image, "SOPInstanceUID"):
        raise TypeError(f"{keyword} is DICOM; convert it to NIfTI, for example with dcm2niix")
    if isinstance(image, (list, tuple)) and image and is_path(image[0]):
        raise TypeError(f"{keyword} is a list of paths; take one at a time, in a loop")
    if image is None or isinstance(image, (Mapping, set, frozenset, bytes, bool)):
        wanted = "a file's path, a nibabel image, a dosemap.Volume, or an array with its affine"
        raise _errors.wrong_type(keyword, image, wanted)


# ---- Arrays --------------------------------------------------------------------------------------


def array_of(
    value: Any,  # noqa: ANN401
    keyword: str,
) -> np.ndarray[Any, np.dtype[Any]]:
    """Make an array of real numbers."""
    _errors.numpy(f"{keyword} as an array")
    import numpy as np

    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise _errors.invalid(
            f"{keyword} is a masked array, with {value.mask.sum()} voxels without a value",
            "fill them, for example with .filled(0)",
        )
    if hasattr(value, "detach"):  # a tensor: without gradient, on the host, in a type of numpy's
        value = _host_array(value, keyword)
    try:
        array = np.asarray(value)
    except (TypeError, RuntimeError) as error:
        wanted = f"an array in the memory of this machine ({error})"
        raise _errors.wrong_type(keyword, value, wanted) from None
    except ValueError as error:
        raise _errors.invalid(f"{keyword} is no array: {error}", "give (x, y, z) voxels") from None
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{keyword} has the type {array.dtype}, not real numbers; "
            "convert it, for example with .astype('float32')"
        )
    return array


def _host_array(tensor: Any, keyword: str) -> Any:  # noqa: ANN401
    try:
        tensor = tensor.detach().cpu().resolve_neg()
        return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).numpy()
    except (RuntimeError, TypeError) as error:  # of sparse ones, or without data
        raise _errors.wrong_type(keyword, tensor, f"a tensor with voxels ({error})") from None


def _three_axes(
    array: np.ndarray[Any, np.dtype[Any]], keyword: str, channel_first: bool, header: bool
) -> np.ndarray[Any, np.dtype[Any]]:
    """(x, y, z) of what has more axes of one voxel, or, from a NIfTI header, fewer axes."""
    given = array.shape
    while channel_first and array.ndim > 3 and array.shape[0] == 1:
        array = array[0]
    while not channel_first and array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    while header and 0 < array.ndim < 3:
        array = array[..., None]
    if array.ndim != 3:
        raise _errors.invalid(
            f"{keyword} has the shape {given}, not (x, y, z)", _axes_remedy(given, channel_first)
        )
    if array.size == 0:
        raise _errors.invalid(f"{keyword} has the shape {given}: no voxels", "give an image")
    return array


def _axes_remedy(shape: tuple[int, ...], channel_first: bool) -> str:
    if len(shape) < 3:
        return "give a volume with three axes"
    if shape[0] == 1 and not channel_first:
        return "take the axis of one channel away: image[0]"
    if channel_first:
        return "give one image with one channel"
    return "it looks like several frames: take or average one, for example image[..., 0]"


def affine_of(value: object, keyword: str) -> tuple[float, ...]:
    """Twelve numbers, row by row, of a 4 x 4 (or 3 x 4) matrix from voxel indices to mm in RAS."""
    matrix = array_of(value, keyword)
    if matrix.shape not in ((4, 4), (3, 4)) or matrix.dtype.kind == "b":
        raise _errors.invalid(
            f"{keyword} has the shape {matrix.shape}",
            f"{keyword} is a 4 x 4 matrix (index to mm, RAS)",
        )
    if matrix.shape[0] == 4 and abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        last = ", ".join(f"{x:g}" for x in matrix[3])
        raise _errors.invalid(
            f"the last row of {keyword} is ({last}), not (0, 0, 0, 1)",
            "is it transposed? it takes a column (i, j, k, 1) of voxel indices to mm",
        )
    return tuple(float(x) for x in matrix[:3].ravel())


def _as_float32(array: np.ndarray[Any, np.dtype[Any]], keyword: str) -> npt.NDArray[np.float32]:
    """Round as the C library rounds what it reads; the same memory where that is possible."""
    import numpy as np

    if array.dtype.kind == "b":
        raise TypeError(f"{keyword} has the type bool: a mask, not an image")
    with np.errstate(over="ignore", invalid="ignore"):  # the library names voxels that are infinite
        return np.require(np.asarray(array), np.float32, ["F", "A"])


# ---- Images --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Voxels:
    """An image in memory, before it is known whether its numbers are intensities or labels."""

    array: np.ndarray[Any, np.dtype[Any]]
    affine: tuple[float, ...] | None
    header: bytes | None = None


def _from_nibabel(image: Any, keyword: str) -> _Voxels:  # noqa: ANN401
    header: Any = getattr(image, "header", None)
    kinds = {kind.__name__ for kind in type(header).__mro__}
    if "AnalyzeHeader" in kinds and "Nifti1Header" not in kinds:
        raise _errors.UnsupportedError(
            f"{keyword} is an ANALYZE image, which does not say where left and right are",
            remedy="convert the original to NIfTI",
            status=_errors.UNSUPPORTED,
        )
    if image.affine is None:
        raise _errors.invalid(f"{keyword} has no affine", "give an image that says where it lies")
    array = _three_axes(array_of(image.dataobj, keyword), keyword, False, header=True)
    numbers = affine_of(image.affine, f"the affine of {keyword}")
    units = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
    mm = {"meter": 1000.0, "micron": 0.001}.get(units, 1.0)
    placed = tuple(x * mm for x in numbers)
    return _Voxels(array, placed, _header_bytes(header, image.affine, array.shape))


def _header_bytes(header: Any, affine: npt.ArrayLike, shape: tuple[int, ...]) -> bytes | None:  # noqa: ANN401
    """Give the header as it would lie in a file, where it says the same as the image.

    With it, what is written has the same forms, and the affine the same bits, as from the file.
    """
    import numpy as np

    # Without a form nibabel takes x as going to the left, NIfTI to the right: the image is right.
    if not (
        hasattr(header, "get_sform") and (header["sform_code"] > 0 or header["qform_code"] > 0)
    ):
        return None
    dim = (*header.get_data_shape(), 1, 1, 1)[:3]
    if dim != shape or not np.array_equal(header.get_best_affine(), affine):
        return None
    return bytes(header.binaryblock) + bytes([len(header.extensions) > 0, 0, 0, 0])


def _from_metatensor(image: Any, keyword: str) -> _Voxels:  # noqa: ANN401
    import numpy as np

    array = _three_axes(array_of(image, keyword), keyword, True, header=False)
    matrix = array_of(image.affine, f"the affine of {keyword}")
    if "LPS" in str(image.meta.get("space", "RAS")):
        matrix = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    return _Voxels(array, affine_of(matrix, f"the affine of {keyword}"))


def _from_torchio(image: Any, keyword: str) -> _Voxels:  # noqa: ANN401
    array = _three_axes(array_of(image.data, keyword), keyword, True, header=False)
    return _Voxels(array, affine_of(image.affine, f"the affine of {keyword}"))


def _voxels_of(image: object, affine: Affine, keyword: str) -> _Voxels:
    """Any image in memory but dosemap's own."""
    read = (
        _from_nibabel if _is_nibabel(image)
        else _from_torchio if _is_torchio(image)
        else _from_metatensor if _is_metatensor(image)
        else None
    )  # fmt: skip
    if read:
        _no_affine(affine, keyword, "the image has its own")
        return read(image, keyword)
    _refuse_others(image, keyword)
    array = _three_axes(array_of(image, keyword), keyword, False, header=False)
    return _Voxels(array, None if affine is None else affine_of(affine, _affine_word(keyword)))


def _affine_word(keyword: str) -> str:
    return "ct_affine" if keyword == "ct" else "affine"


def _no_affine(affine: Affine, keyword: str, reason: str) -> None:
    if affine is not None:
        word = _affine_word(keyword)
        raise _errors.invalid(
            f"{word} is given, but {keyword} needs none: {reason}", f"leave {word} out"
        )


def _view(voxels: _Voxels, affine: tuple[float, ...], keyword: str) -> _core.Volume:
    data = _as_float32(voxels.array, keyword)
    if voxels.header:
        # One that no file could have says nothing: the image's own affine counts.
        with suppress(_errors.FormatError, _errors.UnsupportedError, _errors.InvalidValueError):
            return _core.Volume.view(data, affine, voxels.header)
    try:
        return _core.Volume.view(data, affine)
    except _errors.InvalidValueError as error:
        raise _errors.invalid(f"{keyword}: {error.what}", error.remedy) from None


def volume_of(
    image: object, affine: Affine = None, keyword: str = "image", like: _core.Volume | None = None
) -> Image:
    """Any image as the core's volume. An array without affine lies on the grid of `like`."""
    if is_path(image):
        path = path_of(keyword, image)
        _no_affine(affine, keyword, "the file has its own")
        return Image(_core.Volume.read(path), path)
    if _is_volume(image):
        _no_affine(affine, keyword, "the volume has its own")
        return Image(image._core)  # type: ignore[attr-defined]
    voxels = _voxels_of(image, affine, keyword)
    place = voxels.affine or _place_of_array(voxels.array.shape, keyword, like)
    return Image(_view(voxels, place, keyword))


def _place_of_array(
    shape: tuple[int, ...], keyword: str, like: _core.Volume | None
) -> tuple[float, ...]:
    word = _affine_word(keyword)
    if like is None:
        raise _errors.invalid(
            f"{keyword} is an array, which does not say where its voxels lie; {word} is missing",
            f"give {word}, a 4 x 4 matrix from voxel indices to mm (of nibabel's images: .affine)",
        )
    if shape != tuple(like.dim):
        raise _errors.invalid(
            f"{keyword} has the shape {shape}, the image that it is for {tuple(like.dim)}",
            f"give an array on that grid, or where this one lies: {word}, or a nibabel image",
        )
    return tuple(like.affine)


def files_of(image: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Give the files that an image, or a dict of images, came from, as far as it knows them."""
    if is_path(image):
        path = os.fsdecode(image)
        inside = os.listdir(path) if os.path.isdir(path) else ()  # a folder of masks
        return (path, *(os.path.join(path, name) for name in inside))
    if _is_nibabel(image):
        holders = getattr(image, "file_map", {}).values()
        return tuple(os.fsdecode(h.filename) for h in holders if is_path(h.filename))
    if _is_torchio(image):
        return files_of(getattr(image, "path", None))
    if _is_metatensor(image):
        return files_of(image.meta.get("filename_or_obj"))
    if _is_volume(image):
        return files_of(getattr(image, "_path", None))
    if isinstance(image, Mapping):
        return tuple(file for each in image.values() for file in files_of(each))
    return ()


# ---- Labels --------------------------------------------------------------------------------------

MAX_ID = 16777215  # as in files, which are read as float32


def _first(bad: npt.NDArray[np.bool_], array: np.ndarray[Any, np.dtype[Any]]) -> str:
    """Name the first such voxel, x fastest, with its value."""
    import numpy as np

    flat = int(np.argmax(bad.ravel(order="F")))
    index = tuple(int(i) for i in np.unravel_index(flat, bad.shape, order="F"))
    value = array[index].item()
    return f"voxel {index} is {f'{value:g}' if isinstance(value, float) else value}"


def _ids_of(array: np.ndarray[Any, np.dtype[Any]], keyword: str) -> npt.NDArray[np.int32]:
    import numpy as np

    if array.dtype.kind not in "b":
        bad = ~((array >= 0) & (array <= MAX_ID))
        if array.dtype.kind == "f":
            bad |= array != np.floor(array)
        if bad.any():
            raise _errors.invalid(
                f"{keyword}: {_first(bad, array)}", f"labels are whole numbers from 0 to {MAX_ID}"
            )
    if not array.any():
        raise _errors.invalid(
            f"{keyword}: every voxel is 0", "give a label map with at least one structure"
        )
    return np.require(np.asarray(array), np.int32, ["F", "A"])


def _mask_of(array: np.ndarray[Any, np.dtype[Any]], keyword: str) -> npt.NDArray[np.uint8]:
    import numpy as np

    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _errors.invalid(
            f"{keyword}: {_first(~np.isfinite(array), array)}",
            "a mask holds 0 outside, another number inside",
        )
    inside = np.asarray(array) if array.dtype.kind == "b" else np.asarray(array != 0)
    return np.require(inside, requirements=["F", "A"]).view(np.uint8)


def _names_of(names: Mapping[Any, Any]) -> dict[int, str]:
    """Names by id, also of a table from names to ids, as datasets of nnU-Net have it."""
    by_id: dict[int, str] = {}
    for key, value in names.items():
        number, name = (
            (value, key) if isinstance(key, str) and not isinstance(value, str) else (key, value)
        )
        if isinstance(number, str) and number.isdecimal():
            number = int(number)
        if (
            isinstance(number, bool)
            or not hasattr(number, "__index__")
            or not isinstance(name, str)
        ):
            wanted = "names by id, as in {1: 'liver'}"
            given = f"{_errors.described(key)}: {_errors.described(value)}"
            raise TypeError(f"label_names wants {wanted}, not {given}")
        if int(number) == 0:
            continue  # background
        if not 0 < int(number) < 2**31:
            raise _errors.invalid(
                f"label_names has the id {int(number)}", "ids are whole numbers below 2**31"
            )
        if int(number) in by_id or name in by_id.values():
            raise _errors.invalid(
                f"label_names has {int(number)}: {name!r} twice", "name each once"
            )
        by_id[int(number)] = text("label_names", name, "names of structures")
    return by_id


def _names(names: LabelNames) -> str | dict[int, str] | None:
    if names is None:
        return None
    if isinstance(names, Mapping):
        return _names_of(names)
    if not is_path(names):
        wanted = "a dict such as {1: 'liver'}, a file, or 'totalsegmentator:total'"
        raise _errors.wrong_type("label_names", names, wanted)
    if names == "totalsegmentator":
        raise _errors.invalid(
            "label_names='totalsegmentator' does not say of which task",
            "use 'totalsegmentator:total' or 'totalsegmentator:head_glands_cavities'",
        )
    return path_of("label_names", names)


def labels_of(
    labels: object,
    names: LabelNames,
    resample: bool,
    dim: tuple[int, int, int],
    affine: Sequence[float],
) -> tuple[_core.Labels, str | None]:
    """Structures as the core's labels, and the path if they were read from one.

    Arrays lie on the grid of `dim` and `affine`; whatever lies on another is brought there if
    `resample` says so, and else left for the library to refuse.
    """
    path = None
    if is_path(labels):
        path = path_of("labels", labels)
        made = _core.Labels.read(path, _names(names))
    elif isinstance(labels, Mapping) and not _is_torchio(labels):
        if names is not None:
            raise _errors.invalid(
                "label_names is given, but the masks in labels have names", "leave label_names out"
            )
        made = _from_masks(labels, dim, affine)
    else:
        array, place = _label_voxels(labels, "labels", dim, affine)
        made = _core.Labels.from_ids(_ids_of(array, "labels"), place, _names(names))
    if resample:
        there = made.resample(dim, affine)
        if any(_voxels(made)) and not any(_voxels(there)):
            _errors.warn(
                f"{path or 'labels'}: no structure reaches into the image: are they another "
                "patient's, or is one of the affines wrong?"
            )
        made = there
    return made, path


def _voxels(labels: _core.Labels) -> list[int]:
    return [voxels for _, _, voxels in labels.structures]


def _label_voxels(
    image: object,
    keyword: str,
    dim: tuple[int, int, int],
    affine: Sequence[float],
) -> tuple[np.ndarray[Any, np.dtype[Any]], tuple[float, ...]]:
    if is_path(image) or _is_volume(image):
        volume = volume_of(image, None, keyword).volume
        return array_of(volume.data, keyword), tuple(volume.affine)
    voxels = _voxels_of(image, None, keyword)
    if voxels.affine is None and voxels.array.shape != tuple(dim):
        raise _errors.invalid(
            f"{keyword} has the shape {voxels.array.shape}, the image that it is for {tuple(dim)}",
            "give an array on that image's grid, or a nibabel image with resample_labels=True",
        )
    return voxels.array, voxels.affine or tuple(affine)


def _from_masks(
    masks: Mapping[Any, Any], dim: tuple[int, int, int], affine: Sequence[float]
) -> _core.Labels:
    if not masks:
        raise _errors.invalid("labels is an empty dict", "give a mask for each name")
    arrays: list[npt.NDArray[np.uint8]] = []
    first, grid = "", (dim, tuple(affine))
    for name, mask in masks.items():
        if not isinstance(name, str):
            raise TypeError(f"labels wants names of masks as its keys, not {name!r}")
        text("labels", name, "names of structures")
        keyword = f"labels[{name!r}]"
        array, place = _label_voxels(mask, keyword, dim, affine)
        x, y, z = array.shape
        if not first:
            first, grid = keyword, ((x, y, z), place)
        reason = _core.grid_difference(*grid, (x, y, z), place)
        if reason:
            raise _errors.invalid(
                f"{keyword} does not lie on the grid of {first}: {reason}",
                "bring all masks onto one grid",
            )
        arrays.append(_mask_of(array, keyword))
    return _core.Labels.from_masks(list(masks), arrays, grid[1])
