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


def case_of(name):
    return json.loads((HERE / name / "case.json").read_text())


RUNS = [(name, *limit) for name in CASES for limit in case_of(name)["tolerance"].items()]


@pytest.mark.parametrize(("name", "precision", "tolerance"), RUNS)
def test_case(tmp_path, name, precision, tolerance):
    folder, case = HERE / name, case_of(name)
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
