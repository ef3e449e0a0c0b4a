# SPDX-License-Identifier: Apache-2.0
"""Volumes without numpy: NIfTI-1 read and written, a large phantom, and how far two are apart."""

from __future__ import annotations

import gzip
import math
import random
import struct
from array import array
from dataclasses import dataclass
from operator import mul, sub
from pathlib import Path

from gpucheck.jobs import WrongError

_KINDS = {2: ("B", 1), 4: ("h", 2), 8: ("i", 4), 16: ("f", 4), 64: ("d", 8), 512: ("H", 2)}


@dataclass(frozen=True)
class Volume:
    """Values with x fastest, as stored; `scaled` applies what the header says."""

    shape: tuple[int, ...]
    values: array[float]
    slope: float
    offset: float

    def scaled(self) -> array[float]:
        """Return the values that are meant."""
        if self.slope in (0.0, 1.0) and self.offset == 0.0:
            return self.values
        return array("d", (self.slope * v + self.offset for v in self.values))


def read(path: Path) -> Volume:
    """Read a little-endian NIfTI-1 file."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if struct.unpack_from("<i", content)[0] != 348:
        raise WrongError(f"{path} is no little-endian NIfTI-1 file")
    count, *extents = struct.unpack_from("<8h", content, 40)
    (kind,) = struct.unpack_from("<h", content, 70)
    begin, slope, offset = struct.unpack_from("<3f", content, 108)
    code, size = _KINDS[kind]
    shape = tuple(extents[:count])
    values = array(code)
    values.frombytes(content[int(begin) : int(begin) + size * math.prod(shape)])
    if len(values) != math.prod(shape):
        raise WrongError(f"{path} is cut short")
    return Volume(shape, values, slope, offset)


def distance(result: Path, reference: Path) -> float:
    """Return the relative L2 distance; refuse NaN, infinity, other extents, and all zeros."""
    a, b = read(result), read(reference)
    if a.shape != b.shape:
        raise WrongError(f"{result.name} has {a.shape} voxels, {reference.name} {b.shape}")
    x, y = a.scaled(), b.scaled()
    norm = math.fsum(map(mul, y, y))
    difference = array("d", map(sub, x, y))
    apart = math.fsum(map(mul, difference, difference))
    if not math.isfinite(apart) or not math.isfinite(norm):
        raise WrongError(f"{result.name} or {reference.name} holds NaN or infinity")
    if norm == 0:
        raise WrongError(f"{reference.name} is zero everywhere: a comparison would say nothing")
    return math.sqrt(apart / norm)


def _plane(shape: tuple[int, int], middle: float, noise: random.Random) -> array[float]:
    """Return a slice through a body with hot organs, with noise and air around it."""
    nx, ny = shape
    plane = array("h", bytes(2 * nx * ny))
    organs = [
        (noise.uniform(-0.4, 0.4), noise.uniform(-0.25, 0.25), noise.uniform(0.05, 0.2), level)
        for level in (2000, 5000, 12000)
    ]
    half_x, half_y = 0.68 * (1 - 0.3 * middle), 0.46 * (1 - 0.3 * middle)
    for j in range(ny):
        y = 2 * j / ny - 1
        for i in range(nx):
            x = 2 * i / nx - 1
            if (x / half_x) ** 2 + (y / half_y) ** 2 > 1:
                plane[i + nx * j] = int(noise.random() * 8)  # the reconstruction's noise in air
                continue
            value = 600.0
            for ox, oy, radius, level in organs:
                if (x - ox) ** 2 + (y - oy) ** 2 < radius * radius:
                    value = level
            plane[i + nx * j] = int(value * (0.75 + 0.5 * noise.random()))
    return plane


def write_phantom(path: Path, shape: tuple[int, int, int], seed: int = 1) -> None:
    """Write a PET in SUV, int16 with a slope as scanners write it, at 2 mm, unless it is there.

    A few planes are made and repeated, shifted along y, so that it takes seconds.
    """
    if path.exists():
        return
    nx, ny, nz = shape
    noise = random.Random(seed)
    made = [_plane((nx, ny), abs(2 * k / 23 - 1), noise) for k in range(min(24, nz))]
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, nx, ny, nz, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 2, 2, 2, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, 352, 0.001, 0)
    header[123] = 2  # mm
    struct.pack_into("<2h", header, 252, 0, 1)
    for row, at in enumerate((280, 296, 312)):
        struct.pack_into("<4f", header, at, *(2.0 if row == column else 0.0 for column in range(4)))
    header[344:348] = b"n+1\0"
    partial = path.with_name("partial-" + path.name)
    with gzip.open(partial, "wb", 1) as out:
        out.write(header)
        for k in range(nz):
            plane = made[(k * len(made)) // nz]
            shift = nx * (k % 7)
            out.write((plane[shift:] + plane[:shift]).tobytes())
    partial.rename(path)
