# SPDX-License-Identifier: Apache-2.0
"""Files of patches, as `dosemap forward` reads and writes them (safetensors)."""

import json
import struct
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def write_patches(path: Path, arrays: Arrays, **changed: object) -> Path:
    """A safetensors file; `changed` replaces what its header says of the first tensor."""
    header: dict[str, dict[str, object]] = {}
    data = b""
    for name, values in arrays.items():
        encoded = np.ascontiguousarray(values).tobytes()
        dtype = {"float32": "F32", "float16": "F16", "int64": "I64"}[str(values.dtype)]
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [len(data), len(data) + len(encoded)],
        }
        data += encoded
    if changed:
        next(iter(header.values())).update(changed)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def read_patches(path: Path) -> tuple[Arrays, dict[str, str]]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(raw[begin:end], "<f4").reshape(entry["shape"])
    assert sum(a.nbytes for a in arrays.values()) == len(raw) - 8 - length
    return arrays, metadata
