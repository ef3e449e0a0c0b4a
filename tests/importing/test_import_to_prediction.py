# SPDX-License-Identifier: Apache-2.0
"""Networks imported by the command, and what the program then does with the weights file."""

import numpy as np
import pytest

pytest.importorskip("monai", reason="PyTorch and MONAI are missing: imports are not tested")
pytest.importorskip("onnxscript", reason="ONNX is missing: imports are not tested")

import torch
from dosemap_tools import nifti, weights_file
from dosemap_tools.importing import proof
from images import RAS_AFFINE, uptake
from import_networks import bring_in, left_in, write_onnx, write_program
from monai.networks import nets
from program import BINARY, UPTAKE, assert_close, predict, run
from torch import nn
from zoo import randomise

PATCH = (16, 16, 16)
WRITERS = {".pt2": write_program, ".onnx": write_onnx}


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setenv("DOSEMAP_BIN", str(BINARY))


def imported(folder, module, suffix, patch=PATCH, **changes):
    """Export a module, import it by the command, and return the weights file."""
    source = WRITERS[suffix](folder / f"source{suffix}", module, patch=patch)
    status, made = bring_in(folder, source, card={"patch_size": list(patch), **changes})
    assert status == 0
    return made


def notes(made):
    return "\n".join(weights_file.read(made).card["import"]["notes"])


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_residual_unet(tmp_path, suffix):
    """From the file to the proof, the card, and a dose map that is PyTorch's."""
    module = randomise(nets.SegResNet(3, 8, 1, 1, blocks_down=(1, 2), blocks_up=(1,)))
    made = imported(tmp_path, module, suffix, name="residual")
    assert left_in(tmp_path) == sorted(["card.json", f"source{suffix}", made.name])
    file = weights_file.read(made)
    assert file.card["name"] == "residual" and file.graph["patch_size"] == list(PATCH)
    source = file.card["import"]["source"]
    assert source["xxh64"] == weights_file.file_checksum(tmp_path / f"source{suffix}")
    assert "predict" not in notes(made) and "skip-air" not in notes(made)
    rows = file.card["import"]["proof"]["deviations"]
    assert [row["patch"] for row in rows] == ["normal", "as imaged"]
    assert all(0 <= row["relative_l2"] <= 1e-5 for row in rows)

    volume = uptake(PATCH, seed=2)
    with torch.no_grad():
        reference = module(torch.from_numpy(volume)[None, None])[0, 0].numpy()
    assert_close(predict(tmp_path, volume, RAS_AFFINE, made), reference, 1e-5)


NUMBERS = {"name": "uptakes", "quantity": "other", "unit": "1"}
DOSE = {"quantity": "dose_per_activity"}


@pytest.mark.parametrize(
    ("suffix", "count", "output", "refusal"),
    [
        (".pt2", 3, NUMBERS, 'its output "uptakes" is other, not dose_per_activity'),
        (".onnx", 3, NUMBERS, 'its output "uptakes" is other, not dose_per_activity'),
        (".pt2", 1, DOSE, 'output "dose" has another size than its input'),
        (".onnx", 1, DOSE, 'output "dose" has another size than its input'),
    ],
    ids=str,
)
def test_a_regressor_is_inspected_and_refused_by_predict(tmp_path, suffix, count, output, refusal):
    """It gives numbers, no map, even where its card calls them a dose."""
    module = randomise(nets.Regressor((1, *PATCH), (count,), (4, 6), (2, 2)))
    made = imported(tmp_path, module, suffix, outputs=[output])
    shown = run("inspect", made)
    assert shown.returncode == 0, shown.stderr
    assert "`dosemap predict` will refuse it" in notes(made)
    assert "tested, version 2" in shown.stdout and f'"file": "source{suffix}"' in shown.stdout

    nifti.write(tmp_path / "pet.nii", uptake(PATCH), RAS_AFFINE)
    before = left_in(tmp_path)
    target = ("-o", tmp_path / "dose.nii", "--model", made)
    refused = run("predict", tmp_path / "pet.nii", *target, *UPTAKE)
    assert refused.returncode != 0
    assert made.name in refused.stderr and refusal in refused.stderr, refused.stderr
    assert left_in(tmp_path) == before


@pytest.mark.parametrize(
    ("inputs", "words"),
    [(["hu"], "one PET"), (["uptake", "suv"], "one PET"), (["suv", "hu"], "")],
    ids=str,
)
def test_what_predict_wants_is_told_before(tmp_path, inputs, words):
    module = randomise(nn.Sequential(nn.Conv3d(len(inputs), 3, 3, padding=1), nn.Conv3d(3, 1, 1)))
    source = write_program(tmp_path / "source.pt2", module, len(inputs), patch=PATCH)
    ports = [{"name": quantity, "quantity": quantity} for quantity in inputs]
    card = {"patch_size": list(PATCH), "inputs": ports, "skip-air": 0.1}
    status, made = bring_in(tmp_path, source, card=card)
    assert status == 0
    assert ("`dosemap predict` will refuse it" in notes(made)) == bool(words)
    assert words in notes(made)
    assert "mean nothing: skip-air" in notes(made)


class Trilinear(nn.Module):
    """Halved by a stride, brought back by trilinear interpolation, which is by a factor."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 6, 3, 2, 1), nn.BatchNorm3d(6), nn.PReLU())
        self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        self.last = nn.Conv3d(7, 1, 3, padding=1)

    def forward(self, x):
        return self.last(torch.cat((x, self.up(self.down(x))), 1))


class Pooled(nn.Module):
    """Halved by the maximum, brought back by a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU())
        self.pool = nn.MaxPool3d(2)
        self.up = nn.ConvTranspose3d(6, 5, 2, 2)
        self.last = nn.Conv3d(11, 1, 3, padding=1)

    def forward(self, x):
        first = self.first(x)
        return self.last(torch.cat((first, self.up(self.pool(first))), 1))


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kind", [Trilinear, Pooled])
def test_tiles_of_twice_the_patch(tmp_path, kind, suffix):
    """What was exported for one patch size is the module at others too, along every axis."""
    module, patch = randomise(kind()), (8, 12, 10)
    made = imported(tmp_path, module, suffix, patch)
    name = weights_file.read(made).graph["outputs"][0]["name"]
    rng = np.random.default_rng(3)
    for axis in range(3):
        size = [n * (1 + (i == axis)) for i, n in enumerate(patch)]
        x = rng.standard_normal((2, 1, *size)).astype(np.float32)
        with torch.no_grad():
            reference = module(torch.from_numpy(x)).numpy()
        found = proof.run_program(str(BINARY), made, {"pet": x}, [name])[name]
        assert_close(found, reference, 1e-5)
