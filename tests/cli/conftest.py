# SPDX-License-Identifier: Apache-2.0
"""The program as a user runs it: a runner, a small PET, labels on it."""

import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("DOSEMAP_BIN", ROOT / "build/cpu/host/dosemap"))
MODEL = ROOT / "weights/dosegan-16-constructed.safetensors.zst"
K_GY_PER_GBQ = 0.027  # of the constructed weights, per unit of uptake


def dosemap(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DOSEMAP_MODEL": str(MODEL), **kwargs.pop("env", {})}
    result = subprocess.run(
        [str(BIN), *map(str, args)], env=env, capture_output=True, text=True, timeout=300, **kwargs
    )
    assert result.returncode in (0, 1, 2), (result.returncode, result.stderr)
    return result


@pytest.fixture
def pet_data() -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.gamma(1.5, 2.0, (37, 33, 20)).astype(np.float32)


@pytest.fixture
def affine() -> np.ndarray:
    return np.array([[-4.0, 0, 0, 70], [0, -4, 0, 60], [0, 0, 5, -100], [0, 0, 0, 1]])


@pytest.fixture
def pet(tmp_path: Path, pet_data: np.ndarray, affine: np.ndarray) -> Path:
    """An SUV image of a patient of 78.7 kg when run with SUV_78: uptake equals SUV."""
    path = tmp_path / "in" / "sub-1_pet.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(pet_data, affine), path)
    return path


@pytest.fixture
def labels(pet: Path, pet_data: np.ndarray, affine: np.ndarray) -> Path:
    ids = np.zeros(pet_data.shape, np.uint8)
    ids[5:20, 5:20, 5:15] = 1
    ids[25:30, 10:20, 5:15] = 3
    path = pet.with_name("sub-1_dseg.nii.gz")
    nib.save(nib.Nifti1Image(ids, affine), path)
    return path


SUV_78 = ("--units", "suv", "--body-weight", "78.7")
QUICK = ("--overlap", "0", "--threads", "2")
