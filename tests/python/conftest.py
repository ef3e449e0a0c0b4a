# SPDX-License-Identifier: Apache-2.0
"""The package as it lies in the build tree, with a small patient and small networks.

By hand: PYTHONPATH=BUILD/python DOSEMAP_BIN=BUILD/host/dosemap python -m pytest tests/python
"""

import json
from pathlib import Path

import numpy as np
import pytest
from dosemap_tools import nifti, weights_file
from pet_ct_model import write_pet_ct_model
from program import BINARY, ROOT, run

try:
    import dosemap._core  # noqa: F401
except ImportError as error:
    pytest.exit(f"{error}: build the target dosemap_python, and set PYTHONPATH=BUILD/python", 4)

CONSTRUCTED = ROOT / "weights/dosegan-16-constructed.safetensors.zst"
CARD = {"name": "tiny", "version": "1", "summary": "A test.", "licence": "Apache-2.0",
        "trained": False, "skip_air": None}  # fmt: skip


def write_tiny_model(path: Path) -> Path:
    """A 3x3x3 convolution of 8x8x8 voxels: half a voxel and a quarter of two neighbours."""

    def port(name: str, quantity: str, unit: str) -> dict:
        return {"name": name, "quantity": quantity, "unit": unit, "channels": 1, "intensity": []}

    graph = {
        "graph_version": 1,
        "name": "tiny",
        "spatial_axes": "xyz",
        "orientation": "RAS",
        "patch_size": [8, 8, 8],
        "voxel_size_mm": None,
        "inputs": [port("pet", "uptake", "g/mL")],
        "outputs": [port("dose", "dose_per_activity", "Gy/GBq")],
        "nodes": [
            {"op": "Conv", "name": "c", "inputs": ["pet", "w"], "outputs": ["h"],
             "attributes": {"kernel_shape": [3, 3, 3], "pads": [1, 1, 1, 1, 1, 1]}},
            {"op": "Relu", "name": "r", "inputs": ["h"], "outputs": ["dose"]},
        ],
    }  # fmt: skip
    kernel = np.zeros((1, 1, 3, 3, 3), np.float32)
    kernel[0, 0, 1, 1, 1], kernel[0, 0, 0, 1, 1], kernel[0, 0, 1, 1, 2] = 0.5, 0.25, 0.25
    weights_file.write(path, graph, CARD, {"made_by": "tests/python"}, {"w": kernel})
    return path


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that takes no time."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.safetensors.zst")


@pytest.fixture(scope="session")
def pet_ct_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of PET and CT: dose = 0.5 PET + (HU / 1000 + 1)."""
    return write_pet_ct_model(tmp_path_factory.mktemp("pet_ct") / "pet_ct.safetensors.zst")


@pytest.fixture(scope="session")
def constructed_path() -> Path:
    """The shipped network of half the channels."""
    return CONSTRUCTED


@pytest.fixture(scope="session")
def affine() -> np.ndarray:
    return np.array([[-4.0, 0, 0, 70], [0, -4, 0, 60], [0, 0, 5, -100], [0, 0, 0, 1]])


@pytest.fixture(scope="session")
def pet_data() -> np.ndarray:
    """SUV (x, y, z), as files are read: float32, x fastest. No two axes alike."""
    data = np.random.default_rng(7).gamma(1.5, 2.0, (37, 33, 20)).astype(np.float32, order="F")
    data.flags.writeable = False
    return data


@pytest.fixture(scope="session")
def ids(pet_data: np.ndarray) -> np.ndarray:
    """Structures 1 and 3."""
    ids = np.zeros(pet_data.shape, np.int32, order="F")
    ids[5:20, 5:20, 5:15] = 1
    ids[25:30, 10:20, 5:15] = 3
    ids.flags.writeable = False
    return ids


@pytest.fixture
def pet(tmp_path: Path, pet_data: np.ndarray, affine: np.ndarray) -> Path:
    """An image with a sidecar: SUV of a patient of 78.7 kg, whose uptake is the SUV."""
    path = tmp_path / "in" / "sub-1_pet.nii.gz"
    path.parent.mkdir()
    nifti.write(path, pet_data, affine)
    sidecar = {"Units": "g/mL", "SUVType": "BW", "BodyWeight": 78.7}
    (path.parent / "sub-1_pet.json").write_text(json.dumps(sidecar))
    return path


@pytest.fixture
def labels(pet: Path, ids: np.ndarray, affine: np.ndarray) -> Path:
    """A label image beside the PET."""
    path = pet.with_name("sub-1_dseg.nii.gz")
    nifti.write(path, ids.astype(np.uint8), affine)
    return path


@pytest.fixture(scope="session")
def program():
    """Runs the program of the same build: program("predict", pet, "-o", out, ...)."""
    if not BINARY.is_file():
        pytest.exit(f"{BINARY} is not built; name the program in DOSEMAP_BIN", 4)

    def run_well(*arguments: object) -> str:
        result = run(*arguments, env={"DOSEMAP_MODEL": str(CONSTRUCTED)})
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run_well
