# SPDX-License-Identifier: Apache-2.0
"""The program as a user runs it: a runner, a small PET, labels on it."""

import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dosemap_tools import weights_file

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
    assert "Sanitizer" not in result.stderr and "runtime error" not in result.stderr, result.stderr
    return result


def assert_refused(result: subprocess.CompletedProcess[str], out: Path, *words: str) -> None:
    """Exit 1, one line `dosemap: error: WHERE: WHAT; REMEDY` with the words, and no output."""
    assert result.returncode == 1, (result.returncode, result.stdout, result.stderr)
    assert result.stderr.startswith("dosemap: error: "), result.stderr
    assert "; " in result.stderr and result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr, (word, result.stderr)
    left = list(out.parent.glob("*")) + list(out.parent.glob(".*"))
    assert left == [], left


def tiny_graph(voxel_size_mm: list[float] | None = None) -> dict:
    """A 3x3x3 convolution, 8x8x8 voxels at a time."""
    return {
        "graph_version": 1,
        "name": "tiny",
        "spatial_axes": "xyz",
        "orientation": "RAS",
        "patch_size": [8, 8, 8],
        "voxel_size_mm": voxel_size_mm,
        "inputs": [
            {"name": "pet", "quantity": "uptake", "unit": "g/mL", "channels": 1, "intensity": []}
        ],
        "outputs": [
            {"name": "dose", "quantity": "dose_per_activity", "unit": "Gy/GBq", "channels": 1,
             "intensity": []}
        ],
        "nodes": [
            {"op": "Conv", "name": "c", "inputs": ["pet", "w"], "outputs": ["h"],
             "attributes": {"kernel_shape": [3, 3, 3], "pads": [1, 1, 1, 1, 1, 1]}},
            {"op": "Relu", "name": "r", "inputs": ["h"], "outputs": ["dose"]},
        ],
    }  # fmt: skip


def tiny_weights() -> dict[str, np.ndarray]:
    """Half the voxel and a quarter of two of its neighbours."""
    kernel = np.zeros((1, 1, 3, 3, 3), np.float32)
    kernel[0, 0, 1, 1, 1], kernel[0, 0, 0, 1, 1], kernel[0, 0, 1, 1, 2] = 0.5, 0.25, 0.25
    return {"w": kernel}


TINY_CARD = {"name": "tiny", "version": "1", "summary": "A test.", "licence": "Apache-2.0",
             "trained": False, "skip_air": None}  # fmt: skip


def write_tiny_model(path: Path, voxel_size_mm: list[float] | None = None) -> Path:
    made_by = {"made_by": "tests/cli"}
    weights_file.write(path, tiny_graph(voxel_size_mm), TINY_CARD, made_by, tiny_weights())
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.safetensors.zst")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder / "out.nii.gz"


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
