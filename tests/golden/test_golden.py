# SPDX-License-Identifier: Apache-2.0
"""Results of PyTorch + MONAI, kept here, against the program: no PyTorch needed.

`make_golden.py` made them.
"""

import json
from pathlib import Path

import pytest
from dosemap_tools import nifti
from program import assert_close, predict

HERE = Path(__file__).resolve().parent
CASES = sorted(path.parent.name for path in HERE.glob("*/case.json"))


def test_there_are_cases():
    assert len(CASES) >= 10


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", CASES)
def test_case(tmp_path, name, precision, tolerance):
    folder = HERE / name
    case = json.loads((folder / "case.json").read_text())
    pet, affine = nifti.read(folder / "pet.nii.gz")
    expected, _ = nifti.read(folder / "expected.nii.gz")
    dose = predict(
        tmp_path,
        pet,
        affine,
        folder / "model.safetensors.zst",
        *("--tile", ",".join(map(str, case["tile"])), "--overlap", case["overlap"]),
        *("--blend", case["blend"], "--skip-air", "off", "--precision", precision),
        *("--threads", 1, "--force-tile"),
    )
    assert_close(dose, expected, tolerance)
