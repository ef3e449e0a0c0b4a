# SPDX-License-Identifier: Apache-2.0
"""NIfTI-1 volumes with numpy alone, as far as examples and tests need them.

Arrays are indexed [x, y, z]; on disk x is the fastest axis.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np

_CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "u2": 512}
_HEADER_BYTES = 348
_DATA_OFFSET = 352


def _quaternion(affine: np.ndarray) -> tuple[float, tuple[float, float, float]]:
    """Return qfac and (b, c, d) of the rotation in a 4x4 affine without shear."""
    rotation = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    qfac = 1.0 if np.linalg.det(rotation) > 0 else -1.0
    rotation = rotation * [1.0, 1.0, qfac]
    # The quaternion is the eigenvector of this symmetric matrix with the largest eigenvalue
    # (Bar-Itzhack 2000), which is stable for rotations by 180 degrees too.
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    matrix = [
        [xx - yy - zz, xy + yx, xz + zx, zy - yz],
        [xy + yx, yy - xx - zz, yz + zy, xz - zx],
        [xz + zx, yz + zy, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    b, c, d, a = np.linalg.eigh(np.array(matrix) / 3.0)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return qfac, (sign * b, sign * c, sign * d)


def encode(
    data: np.ndarray, affine: np.ndarray, *, slope: float = 0.0, description: str = ""
) -> bytes:
    """Return a NIfTI-1 file; qform and sform both hold `affine` (voxel to RAS millimetres)."""
    kind = data.dtype.str[1:]
    if data.ndim != 3 or kind not in _CODES:
        raise ValueError(f"cannot write {data.ndim} dimensions of {data.dtype}; use 3 of {_CODES}")
    affine = np.asarray(affine, float)
    qfac, quaternion = _quaternion(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    header = bytearray(_DATA_OFFSET)
    struct.pack_into("<i", header, 0, _HEADER_BYTES)
    struct.pack_into("<8h", header, 40, 3, *data.shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, _CODES[kind], 8 * data.dtype.itemsize)
    struct.pack_into("<8f", header, 76, qfac, *spacing, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, _DATA_OFFSET, slope, 0.0)
    struct.pack_into("<B", header, 123, 2)  # millimetres
    header[148:228] = description.encode()[:79].ljust(80, b"\0")
    struct.pack_into("<2h", header, 252, 1, 1)
    struct.pack_into("<6f", header, 256, *quaternion, *affine[:3, 3])
    struct.pack_into("<12f", header, 280, *affine[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header) + np.asarray(data, data.dtype.newbyteorder("<")).tobytes(order="F")


def write(
    path: str | os.PathLike[str],
    data: np.ndarray,
    affine: np.ndarray,
    *,
    slope: float = 0.0,
    description: str = "",
) -> None:
    """Write .nii, or .nii.gz with the same bytes each time."""
    content = encode(data, affine, slope=slope, description=description)
    if str(path).endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
            file.write(content)
        content = buffer.getvalue()
    Path(path).write_bytes(content)


def read(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume as float32 (scaled) and its sform; little-endian NIfTI-1 only."""
    content = Path(path).read_bytes()
    if content.startswith(b"\x1f\x8b"):
        content = gzip.decompress(content)
    size, magic = struct.unpack_from("<i", content, 0)[0], content[344:348]
    if size != _HEADER_BYTES or magic != b"n+1\0":
        raise ValueError(f"{path}: no little-endian NIfTI-1 file")
    dims = struct.unpack_from("<8h", content, 40)
    shape = dims[1:4]
    code = struct.unpack_from("<h", content, 70)[0]
    kind = {v: k for k, v in _CODES.items()}[code]
    offset, slope, intercept = struct.unpack_from("<3f", content, 108)
    if struct.unpack_from("<h", content, 254)[0] <= 0:
        raise ValueError(f"{path}: has no sform")
    affine = np.eye(4)
    affine[:3] = np.reshape(struct.unpack_from("<12f", content, 280), (3, 4))
    count = int(np.prod(shape))
    raw = np.frombuffer(content, "<" + kind, count, int(offset)).reshape(shape, order="F")
    values = raw.astype(np.float32) if slope == 0 else (raw * slope + intercept).astype(np.float32)
    return values, affine
