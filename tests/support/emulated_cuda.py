# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend on the CPU: its module built with the emulated toolkit, and how its results are
compared with the CPU backend's.
"""

import json
import os
from pathlib import Path

import pytest

MODULE = os.environ.get("DOSEMAP_EMULATED_CUDA_MODULE")
# Address sanitizer makes the emulation many times slower: what is large runs without.
SANITIZED = os.environ.get("DOSEMAP_SANITIZED") == "1"

needs_module = pytest.mark.skipif(
    not MODULE, reason="name the emulated CUDA module in DOSEMAP_EMULATED_CUDA_MODULE"
)
not_sanitized = pytest.mark.skipif(SANITIZED, reason="too slow with sanitizers")


def settings(**emulation):
    """Environment of the program; `order=3` sets DOSEMAP_EMULATED_ORDER."""
    named = {f"DOSEMAP_EMULATED_{key.upper()}": str(value) for key, value in emulation.items()}
    return {"DOSEMAP_CUDA_MODULE": str(MODULE), **named}


def table(path):
    header, *rows = (line.split("\t") for line in Path(path).read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def curves(path):
    """Of a DVH table: structure -> doses, volumes in cm3, both as the file orders them."""
    found = {}
    for row in table(path):
        if "n/a" in row.values():  # a structure without voxels
            found[row["id"], row["name"]] = ([], [])
            continue
        dose = next(float(value) for key, value in row.items() if key.startswith("dose_"))
        doses, volumes = found.setdefault((row["id"], row["name"]), ([], []))
        doses.append(dose)
        volumes.append(float(row["volume_cm3"]))
    return found


def assert_curves_within_a_bin(path, reference_path):
    """Cumulative: at each dose the volume lies between the reference's one bin away."""
    result, reference = curves(path), curves(reference_path)
    assert list(result) == list(reference)
    for name, (doses, volumes) in result.items():
        expected_doses, expected = reference[name]
        assert abs(len(doses) - len(expected_doses)) <= 1, name
        n = min(len(doses), len(expected_doses))
        if n < 2:
            assert (doses, volumes) == (expected_doses, expected), name
            continue
        width = expected_doses[1] - expected_doses[0]
        for i in range(n):
            assert abs(doses[i] - expected_doses[i]) <= 1e-4 * doses[i] + 1e-3 * width, (name, i)
            above, below = expected[max(i - 1, 0)], expected[min(i + 1, len(expected) - 1)]
            assert below <= volumes[i] <= above, (name, i, volumes[i], expected[i])


def assert_same_organs(path, reference_path):
    """Volumes are the same, doses within a bin of the histogram (1/1000 of the maximum)."""
    result, reference = table(path), table(reference_path)
    assert len(result) == len(reference) > 0
    for row, expected in zip(result, reference, strict=True):
        highest = next(v for k, v in expected.items() if k.startswith("max_"))
        maximum = 0 if highest == "n/a" else float(highest)
        for key, value in row.items():
            if key.partition("_")[0] in ("mean", "min", "max", "d2", "d50", "d95", "d98", "d2cc"):
                if value == expected[key]:  # "n/a" among them
                    continue
                width = 0.01 if maximum >= 10 else maximum / 1000
                limit = 1e-5 * maximum if key.startswith(("mean", "min", "max")) else width
                assert abs(float(value) - float(expected[key])) <= limit * 1.001, (key, row)
            else:
                assert value == expected[key], (key, row, expected)


def provenance(path):
    return json.loads(Path(path).read_text())
