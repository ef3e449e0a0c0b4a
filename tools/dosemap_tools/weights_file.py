# SPDX-License-Identifier: Apache-2.0
"""Writes and reads dosemap weights files (weights/FORMAT.md).

A weights file is a safetensors file inside one Zstandard frame. The safetensors header is written
here rather than by the safetensors package, because that one orders tensors and metadata as it
pleases, and the same network should give the same bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import xxhash
except ImportError:  # where PyTorch is on a cluster, say: decode(..., check=False) does without
    xxhash = None

FORMAT_VERSION = "1"
# Weights hardly compress: on 24 MB of normal numbers level 6 takes 0.07 s and level 19 7 s, and the
# file is 0.03 % smaller. The constructed weights, nearly all zero, stay below 6 kB.
ZSTD_LEVEL = 6
MAX_HEADER_BYTES = 8 << 20
MAX_DATA_BYTES = 4 << 30
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Json = dict[str, Any]


class WeightsFileError(ValueError):
    """A weights file, or what should become one, breaks the format."""


@dataclass
class WeightsFile:
    """Content of a weights file; tensors are widened to float32."""

    graph: Json
    card: Json
    provenance: Json
    tensors: dict[str, np.ndarray]
    dtype: str
    xxh64: str


def to_bf16_bits(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, ties to even; the bits as uint16. NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype("<u2")


def from_bf16_bits(bits: np.ndarray) -> np.ndarray:
    """Widen bfloat16 bits (uint16) to float32."""
    return (bits.astype("<u4") << 16).view("<f4")


def encode_tensor(name: str, values: np.ndarray, dtype: str) -> memoryview:
    """Return one tensor's bytes as the file has it; no copy where it lies in memory like that."""
    if values.ndim > 5:
        raise WeightsFileError(f"tensor {name} has {values.ndim} dimensions; at most 5 are allowed")
    if values.size == 0:
        raise WeightsFileError(f"tensor {name} has shape {values.shape}; no dimension may be 0")
    if not np.all(np.isfinite(values)):
        raise WeightsFileError(f"tensor {name} holds NaN or infinity; the weights are not usable")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, dtype="<f4")
        if dtype == "F32":
            encoded = widened = single
        elif dtype == "F16":
            encoded = widened = single.astype("<f2")
        else:
            encoded = to_bf16_bits(single)
            widened = from_bf16_bits(encoded)
    if not np.all(np.isfinite(widened)):
        raise WeightsFileError(f"tensor {name} holds values too large for {dtype}; use F32")
    return memoryview(encoded).cast("B")


def _checksum(section: bytes | memoryview) -> str:
    return _new_checksum(section).hexdigest()


def _new_checksum(start: bytes | memoryview = b"") -> xxhash.xxh64:
    if xxhash is None:
        raise WeightsFileError("the Python package xxhash is missing, which makes the checksum")
    return xxhash.xxh64(start, seed=0)


def _json_text(value: Any) -> str:  # noqa: ANN401
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _header(metadata: Mapping[str, str], entries: Json) -> bytes:
    """Return the header with its length before it."""
    header = _json_text({"__metadata__": metadata, **entries}).encode()
    header += b" " * (-len(header) % 8)  # the data section starts at a multiple of 8
    if len(header) > MAX_HEADER_BYTES:
        raise WeightsFileError(
            f"the header has {len(header)} bytes; {MAX_HEADER_BYTES} are allowed"
        )
    return len(header).to_bytes(8, "little") + header


def _pieces(
    graph: Json, card: Json, provenance: Json, tensors: Mapping[str, np.ndarray], dtype: str
) -> tuple[int, Iterator[bytes | memoryview]]:
    """Return the number of bytes of the safetensors file, and its pieces, one tensor at a time.

    The checksum stands before what it is of, so that every tensor is encoded twice: twice the time
    of a copy instead of a second network in memory.
    """
    if dtype not in _ITEM_BYTES:
        raise WeightsFileError(f"dtype is {dtype!r}; use one of {sorted(_ITEM_BYTES)}")
    entries: Json = {}
    offset, checksum = 0, _new_checksum()
    for name in sorted(tensors):
        data = encode_tensor(name, np.asarray(tensors[name]), dtype)
        entries[name] = {
            "dtype": dtype,
            "shape": [int(n) for n in np.shape(tensors[name])],
            "data_offsets": [offset, offset + data.nbytes],
        }
        checksum.update(data)
        offset += data.nbytes
    if offset > MAX_DATA_BYTES:
        raise WeightsFileError(f"the weights have {offset} bytes; {MAX_DATA_BYTES} are allowed")
    metadata = {
        "dosemap.format": FORMAT_VERSION,
        "dosemap.graph": _json_text(graph),
        "dosemap.card": _json_text(card),
        "dosemap.provenance": _json_text(provenance),
        "dosemap.xxh64": checksum.hexdigest(),
    }
    header = _header(metadata, entries)

    def pieces() -> Iterator[bytes | memoryview]:
        yield header
        for name in sorted(tensors):
            yield encode_tensor(name, np.asarray(tensors[name]), dtype)

    return len(header) + offset, pieces()


def encode(
    graph: Json,
    card: Json,
    provenance: Json,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "F32",
) -> bytes:
    """Return the bytes of the safetensors file (not compressed). Tensors lie sorted by name."""
    _, pieces = _pieces(graph, card, provenance, tensors, dtype)
    return b"".join(pieces)


def _write_pieces(
    path: str | os.PathLike[str], size: int, pieces: Iterator[bytes | memoryview]
) -> None:
    """Write a file that appears whole or not; compressed unless its name ends in .safetensors.

    One worker: the same bytes as with more of them, but not the same as with none.
    """
    target = Path(path)
    handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if target.name.endswith(".safetensors"):
                for piece in pieces:
                    file.write(piece)
            else:
                import zstandard

                compressor = zstandard.ZstdCompressor(
                    level=ZSTD_LEVEL, threads=1, write_checksum=True, write_content_size=True
                )
                with compressor.stream_writer(file, size=size, closefd=False) as stream:
                    for piece in pieces:
                        stream.write(piece)
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def write(
    path: str | os.PathLike[str],
    graph: Json,
    card: Json,
    provenance: Json,
    tensors: Mapping[str, np.ndarray],
    dtype: str = "F32",
) -> None:
    """Write a weights file; compressed unless `path` ends in .safetensors. It appears whole or not.

    The bytes depend on the arguments and the version of zstd only. Beside `tensors` no more than
    one of them is in memory.
    """
    _write_pieces(path, *_pieces(graph, card, provenance, tensors, dtype))


def rewrite(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    card: Json,
    provenance: Json,
) -> None:
    """Write the weights file `source` again with another card and provenance.

    Graph and weights stay, byte by byte, and go through without being in memory as a whole.
    """
    with open(source, "rb") as file:
        compressed = file.read(4) == _ZSTD_MAGIC
        file.seek(0)
        stream: Any = file
        if compressed:
            import zstandard

            stream = zstandard.ZstdDecompressor().stream_reader(file)
        entries = _strict_json(stream.read(int.from_bytes(stream.read(8), "little")))
        metadata = entries.pop("__metadata__")
        metadata["dosemap.card"] = _json_text(card)
        metadata["dosemap.provenance"] = _json_text(provenance)
        header = _header(metadata, entries)
        size = max((entry["data_offsets"][1] for entry in entries.values()), default=0)

        def pieces() -> Iterator[bytes | memoryview]:
            yield header
            while block := stream.read(1 << 20):
                yield block

        _write_pieces(path, len(header) + size, pieces())


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WeightsFileError("a key occurs twice in an object of the header")
    return result


def _strict_json(text: str | bytes) -> Json:
    def refuse(constant: str) -> None:
        raise WeightsFileError(f"the header holds {constant}, which JSON does not have")

    value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=refuse)
    if not isinstance(value, dict):
        raise WeightsFileError("the header is not a JSON object")
    return value


def _decode(data: memoryview, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype == "F32":
        flat = np.frombuffer(data, dtype="<f4")
    elif dtype == "F16":
        flat = np.frombuffer(data, dtype="<f2").astype("<f4")
    else:
        flat = from_bf16_bits(np.frombuffer(data, dtype="<u2"))
    return flat.reshape(shape).copy()


def decode(data: bytes, *, check: bool = True) -> WeightsFile:
    """Read the bytes of an uncompressed weights file and check them against the format.

    Not its checksum, if `check` is false: for who reads the same file with dosemap as well.
    """
    if len(data) < 8:
        raise WeightsFileError(f"the file has {len(data)} bytes; the header's length alone has 8")
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        raise WeightsFileError(f"the header claims {length} bytes; the file has {len(data)}")
    header = _strict_json(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    version = metadata.get("dosemap.format")
    if version != FORMAT_VERSION:
        raise WeightsFileError(f"dosemap.format is {version!r}; only {FORMAT_VERSION!r} is known")
    section = memoryview(data)[8 + length :]
    if check and _checksum(section) != metadata.get("dosemap.xxh64"):
        raise WeightsFileError("the data section does not have the checksum that the header names")
    tensors: dict[str, np.ndarray] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, (begin, stop) = entry["dtype"], entry["data_offsets"]
        if dtype not in _ITEM_BYTES:
            raise WeightsFileError(f"tensor {name} has dtype {dtype}; use {sorted(_ITEM_BYTES)}")
        count = int(np.prod(entry["shape"], dtype=np.int64))
        if begin != end or stop - begin != count * _ITEM_BYTES[dtype] or stop > len(section):
            raise WeightsFileError(f"tensor {name} lies at {begin} to {stop}; expected from {end}")
        tensors[name] = _decode(section[begin:stop], dtype, entry["shape"])
        end = stop
    if end != len(section):
        raise WeightsFileError(f"{len(section) - end} bytes follow the last tensor")
    return WeightsFile(
        graph=_strict_json(metadata["dosemap.graph"]),
        card=_strict_json(metadata["dosemap.card"]),
        provenance=_strict_json(metadata["dosemap.provenance"]),
        tensors=dict(sorted(tensors.items())),
        dtype="/".join(sorted({entry["dtype"] for entry in header.values()})),
        xxh64=metadata["dosemap.xxh64"],
    )


def decompress(data: bytes) -> bytes:
    """Undo the Zstandard frame, if there is one; its size and checksum must be in it."""
    if not data.startswith(_ZSTD_MAGIC):
        return data
    import zstandard

    parameters = zstandard.get_frame_parameters(data)
    if parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN or not parameters.has_checksum:
        raise WeightsFileError("the Zstandard frame lacks its content size or its checksum")
    return zstandard.ZstdDecompressor().decompress(data)


def file_checksum(path: str | os.PathLike[str]) -> str:
    """Return the XXH64 of a file, 16 hexadecimal digits."""
    digest = _new_checksum()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read(path: str | os.PathLike[str]) -> WeightsFile:
    """Read a weights file, compressed or not."""
    return decode(decompress(Path(path).read_bytes()))
