# SPDX-License-Identifier: Apache-2.0
"""Real images, where they are present: each goes through the constructed weights, whose result is
known: dose = max(0, 0.027 * uptake) Gy/GBq on the image's own grid.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from images import ORIENTATIONS, back_from
from program import ROOT, assert_dose, run

nib = pytest.importorskip("nibabel", reason="nibabel is missing: real images are not read")

DATA = Path(os.environ.get("DOSEMAP_TEST_DATA") or ROOT.parent / "shared/data")
PETS = ("STS_001", "STS_002", "STS_013")
SPECTS = ("spect_001", "spect_002")
FULL = ROOT / "weights/dosegan-constructed.safetensors.zst"
HALF = ROOT / "weights/dosegan-16-constructed.safetensors.zst"
GY_PER_GBQ = 0.027
WEIGHT_KG = 70.0
QUICK = ("--overlap", "0", "--threads", "2", "--precision", "float32", "--quiet")


def data(*parts):
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"{path} is missing; name the folder of real images in DOSEMAP_TEST_DATA")
    return path


def predict(pet, out, *options, model=HALF):
    result = run("predict", pet, "-o", out, "--model", model, *QUICK, *options)
    assert result.returncode == 0, result.stderr
    return nib.load(out)


def dose_of_suv(suv):
    return np.maximum(0.0, GY_PER_GBQ * 78.7 / WEIGHT_KG * np.float64(suv))


def organ_table(path):
    header, *rows = (line.split("\t") for line in path.read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def mean_of(row):
    return float(next(value for key, value in row.items() if key.lower().startswith("mean")))


def assert_same_grid(image, source):
    assert image.shape == source.shape
    np.testing.assert_allclose(image.affine, source.affine, atol=1e-4)
    for code in ("qform_code", "sform_code"):
        assert int(image.header[code]) == int(source.header[code])


@pytest.mark.parametrize(
    ("name", "model"), [("STS_001", HALF), ("STS_002", FULL), ("STS_013", HALF)]
)
def test_pet_in_suv(tmp_path, name, model):
    pet, mask = (
        data("pet_fdg", f"{name}_PET_image.nii.gz"),
        data("pet_fdg", f"{name}_PET_mask.nii.gz"),
    )
    out = tmp_path / "dose.nii.gz"
    options = ("--units", "suv", "--body-weight", WEIGHT_KG, "--labels", mask)
    image = predict(pet, out, *options, model=model)
    source = nib.load(pet)
    assert_same_grid(image, source)
    expected = dose_of_suv(source.get_fdata())
    assert_dose(image.get_fdata(), expected)

    inside = np.asarray(nib.load(mask).dataobj) != 0
    (row,) = organ_table(tmp_path / "dose_organs.tsv")
    assert mean_of(row) == pytest.approx(expected[inside].mean(), rel=1e-4)
    assert (tmp_path / "dose_dvh.tsv").stat().st_size > 1000
    sidecar = json.loads((tmp_path / "dose.json").read_text())
    assert sidecar["Units"] == "Gy/GBq"


@pytest.mark.parametrize("name", PETS)
def test_pet_in_suv_needs_the_body_weight(tmp_path, name):
    pet = data("pet_fdg", f"{name}_PET_image.nii.gz")
    result = run("predict", pet, "-o", tmp_path / "d.nii.gz", "--model", HALF, "--units", "suv")
    assert result.returncode == 1
    assert "--body-weight" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", PETS)
def test_pet_without_units_is_refused(tmp_path, name):
    pet = data("pet_fdg", f"{name}_PET_image.nii.gz")
    result = run("predict", pet, "-o", tmp_path / "d.nii.gz", "--model", HALF)
    assert result.returncode == 1
    assert "--units" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SPECTS)
def test_spect_in_bqml(tmp_path, name):
    """Bq/mL, corrected to injection, activity in the sidecar: no option is needed."""
    spect = data("lu177_spect", f"{name}.nii.gz")
    lesions = data("lu177_spect", f"{name}_lesions.nii.gz")
    out = tmp_path / "dose.nii.gz"
    image = predict(spect, out, "--labels", lesions)
    source = nib.load(spect)
    assert_same_grid(image, source)
    injected = json.loads(data("lu177_spect", f"{name}.json").read_text())["RadionuclideTotalDose"]
    stored = np.asarray(source.dataobj)
    expected = np.maximum(0.0, GY_PER_GBQ * 78.7e3 / injected * np.float64(stored))
    dose = np.asarray(image.dataobj)
    assert_dose(dose, expected)

    ids = np.asarray(nib.load(lesions).dataobj)
    rows = organ_table(tmp_path / "dose_organs.tsv")
    assert len(rows) == 2
    for index, row in enumerate(rows, start=1):
        assert mean_of(row) == pytest.approx(expected[ids == index].mean(), rel=1e-4)


def test_48_orientations_of_one_pet(tmp_path):
    """However the axes are stored, each voxel of the patient gets the same dose."""
    source = nib.load(data("pet_fdg", "STS_002_PET_image.nii.gz"))
    volume, base = source.get_fdata(dtype=np.float32), source.affine
    assert len({(o, f) for o, f in ORIENTATIONS}) == 48
    first, seen = None, set()
    for order, flips in ORIENTATIONS:
        ornt = [(order.index(a), -1 if flips[order.index(a)] else 1) for a in range(3)]
        image = nib.Nifti1Image(volume, base).as_reoriented(np.array(ornt))
        seen.add(nib.aff2axcodes(image.affine))
        nib.save(image, tmp_path / "pet.nii")
        options = ("--units", "suv", "--body-weight", WEIGHT_KG)
        dose = predict(tmp_path / "pet.nii", tmp_path / "dose.nii", *options)
        assert_same_grid(dose, image)
        back = back_from(np.asarray(dose.dataobj), order, flips)
        first = back if first is None else first
        np.testing.assert_array_equal(back, first)
    assert len(seen) == 48
    assert_dose(first, dose_of_suv(volume))


def test_precisions_agree_in_the_tumour(tmp_path):
    """bf16 rounds each uptake to 8 bits; over a tumour that averages out."""
    pet = data("pet_fdg", "STS_001_PET_image.nii.gz")
    mask = np.asarray(nib.load(data("pet_fdg", "STS_001_PET_mask.nii.gz")).dataobj) != 0
    options = ("--units", "suv", "--body-weight", WEIGHT_KG)
    means = [
        predict(pet, tmp_path / f"{p}.nii", *options, "--precision", p).get_fdata()[mask].mean()
        for p in ("float32", "bf16")
    ]
    assert means[1] == pytest.approx(means[0], rel=2e-3)
    assert means[0] != means[1]


def test_overlap_and_tile_do_not_change_a_local_network(tmp_path):
    pet = data("pet_fdg", "STS_002_PET_image.nii.gz")
    expected = dose_of_suv(nib.load(pet).get_fdata())
    for tile, overlap, blend in itertools.product(("32", "48"), ("0.25", "0.5"), ("gaussian",)):
        options = ("--units", "suv", "--body-weight", WEIGHT_KG, "--tile", tile)
        image = predict(
            pet, tmp_path / "dose.nii", *options, "--overlap", overlap, "--blend", blend
        )
        assert_dose(image.get_fdata(), expected)
