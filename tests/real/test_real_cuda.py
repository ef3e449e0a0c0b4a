# SPDX-License-Identifier: Apache-2.0
"""Crops of the real images through the CUDA backend on the emulated toolkit, as on the CPU."""

import numpy as np
import pytest
from emulated_cuda import (
    assert_curves_within_a_bin,
    assert_same_organs,
    needs_module,
    provenance,
    settings,
)
from program import assert_close, assert_dose, run
from test_real_data import HALF, PETS, SPECTS, WEIGHT_KG, data, dose_of_suv, nib

CROP = (48, 40, 33)
pytestmark = needs_module


def crop(image, center, path):
    """The box of CROP voxels around the centre, where it was in the patient."""
    begin = [int(max(0, min(c - n // 2, s - n)))
             for c, n, s in zip(center, CROP, image.shape, strict=True)]  # fmt: skip
    box = image.slicer[tuple(slice(b, b + n) for b, n in zip(begin, CROP, strict=True))]
    nib.save(box, path)
    return box


def both(folder, image, *options):
    """Dose maps of the CPU and of the device."""
    doses = []
    for device in ("cpu", "cuda"):
        out = folder / f"{device}.nii.gz"
        result = run(
            "predict", image, "-o", out, "--model", HALF, "--quiet", "--overlap", "0",
            "--device", device, *options, env=settings(),
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert provenance(folder / f"{device}.json")["Backend"] == device
        doses.append(nib.load(out).get_fdata(dtype=np.float32))
    return doses


@pytest.mark.parametrize(("precision", "limit"), [("float32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("name", PETS)
def test_around_the_tumour(tmp_path, name, precision, limit):
    pet = nib.load(data("pet_fdg", f"{name}_PET_image.nii.gz"))
    mask = nib.load(data("pet_fdg", f"{name}_PET_mask.nii.gz"))
    center = np.argwhere(np.asarray(mask.dataobj) != 0).mean(axis=0)
    box = crop(pet, center, tmp_path / "pet.nii.gz")
    crop(mask, center, tmp_path / "mask.nii.gz")
    cpu, cuda = both(
        tmp_path, tmp_path / "pet.nii.gz", "--units", "suv", "--body-weight", WEIGHT_KG,
        "--labels", tmp_path / "mask.nii.gz", "--precision", precision,
    )  # fmt: skip
    assert_close(cuda, cpu, limit)
    if precision == "float32":
        assert_dose(cuda, dose_of_suv(box.get_fdata()))
        assert_curves_within_a_bin(tmp_path / "cuda_dvh.tsv", tmp_path / "cpu_dvh.tsv")
        assert_same_organs(tmp_path / "cuda_organs.tsv", tmp_path / "cpu_organs.tsv")


@pytest.mark.parametrize("name", SPECTS)
def test_spect_in_bqml(tmp_path, name):
    spect = nib.load(data("lu177_spect", f"{name}.nii.gz"))
    lesions = nib.load(data("lu177_spect", f"{name}_lesions.nii.gz"))
    sidecar = data("lu177_spect", f"{name}.json")
    center = np.argwhere(np.asarray(lesions.dataobj) != 0).mean(axis=0)
    crop(spect, center, tmp_path / "spect.nii.gz")
    crop(lesions, center, tmp_path / "lesions.nii.gz")
    (tmp_path / "spect.json").write_text(sidecar.read_text())
    cpu, cuda = both(
        tmp_path, tmp_path / "spect.nii.gz", "--labels", tmp_path / "lesions.nii.gz",
        "--precision", "float32",
    )  # fmt: skip
    assert_close(cuda, cpu, 1e-5)
    assert_curves_within_a_bin(tmp_path / "cuda_dvh.tsv", tmp_path / "cpu_dvh.tsv")
    assert_same_organs(tmp_path / "cuda_organs.tsv", tmp_path / "cpu_organs.tsv")
