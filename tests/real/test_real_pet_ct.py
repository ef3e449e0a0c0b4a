# SPDX-License-Identifier: Apache-2.0
"""Real PETs with their CTs, on grids of their own, through a network whose result is known."""

import json

import numpy as np
import pytest
from images import stored_as
from pet_ct_model import write_pet_ct_model
from program import assert_close, relative_l2
from test_real_data import PETS, data, nib, predict

OPTIONS = ("--units", "suv", "--body-weight", 78.7)  # the uptake is the SUV


def onto_axis(n, spacing, first, ct_n, ct_spacing, ct_first):
    """Weights [n, ct_n] of one axis: the mean over a PET voxel if it is more than 1.5 CT voxels.

    Written as what it is, an integral: the CT is constant over each of its voxels and beyond its
    ends, a box as long as a PET voxel goes over it, and between boxes on CT centres it is linear.
    """
    ratio = spacing / ct_spacing
    at = (first + spacing * np.arange(n) - ct_first) / ct_spacing
    width = ratio if ratio > 1.5 else 1.0
    edges = np.arange(ct_n + 1) - 0.5
    edges[0], edges[-1] = -np.inf, np.inf

    def box(center):
        low = np.clip(edges[:-1], center - width / 2, center + width / 2)
        high = np.clip(edges[1:], center - width / 2, center + width / 2)
        return (high - low) / width

    below, share = np.floor(at), at - np.floor(at)
    return np.array([(1 - s) * box(b) + s * box(b + 1) for b, s in zip(below, share, strict=True)])


def expected_hu(pet, ct):
    """The CT at the PET's voxels; both have their axes along the same directions."""
    hu = ct.get_fdata()
    for axis in range(3):
        weights = onto_axis(
            pet.shape[axis], pet.affine[axis, axis], pet.affine[axis, 3],
            ct.shape[axis], ct.affine[axis, axis], ct.affine[axis, 3],
        )  # fmt: skip
        hu = np.moveaxis(np.tensordot(weights, hu, (1, axis)), 0, axis)
    return hu


@pytest.mark.parametrize("name", PETS)
def test_pet_and_ct(tmp_path, name):
    pet_path = data("pet_fdg", f"{name}_PET_image.nii.gz")
    ct_path = data("pet_fdg", f"{name}_CT_image.nii.gz")
    model = write_pet_ct_model(tmp_path / "m.safetensors.zst")
    pet, ct = nib.load(pet_path), nib.load(ct_path)
    dose = predict(pet_path, tmp_path / "dose.nii", *OPTIONS, "--ct", ct_path, model=model)
    facts = json.loads((tmp_path / "dose.json").read_text())["CT"]
    assert facts["Resampled"] and facts["Size"] == list(ct.shape)
    assert facts["Lowest"] == ct.get_fdata().min() and facts["Highest"] == ct.get_fdata().max()
    assert facts["VoxelsCovered"] > 0.9
    hu = expected_hu(pet, ct)
    expected = 0.5 * pet.get_fdata() + hu / 1000 + 1
    inside = hu > -999
    assert inside.mean() > 0.3  # the patient
    np.testing.assert_allclose(dose.get_fdata()[inside], expected[inside], atol=1e-4)

    # Stored another way round, the same patient.
    order, flips = (2, 0, 1), (1, 0, 1)
    turned = tmp_path / "turned.nii"
    nib.save(nib.Nifti1Image(*stored_as(ct.get_fdata(dtype=np.float32), ct.affine, order, flips)),
             turned)  # fmt: skip
    again = predict(pet_path, tmp_path / "again.nii", *OPTIONS, "--ct", turned, model=model)
    assert_close(again.get_fdata(), dose.get_fdata(), 1e-6)
    # Another patient's position, 20 mm away, is not this one's.
    moved = ct.affine.copy()
    moved[0, 3] += 20
    nib.save(nib.Nifti1Image(ct.get_fdata(dtype=np.float32), moved), turned)
    other = predict(pet_path, tmp_path / "other.nii", *OPTIONS, "--ct", turned, model=model)
    assert relative_l2(other.get_fdata(), dose.get_fdata()) > 0.02
