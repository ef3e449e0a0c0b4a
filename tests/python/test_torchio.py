# SPDX-License-Identifier: Apache-2.0
"""predict() takes images of TorchIO and MONAI, and makes of them what it makes of their files."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing, and with it TorchIO and MONAI")
tio = pytest.importorskip("torchio", reason="TorchIO is missing: its images are not tried")
transforms = pytest.importorskip("monai.transforms", reason="MONAI is missing")

import dosemap
from dosemap_tools import nifti
from images import ORIENTATIONS, RAS_AFFINE, stored_as, uptake
from import_networks import Lopsided, network
from make_test_models import write_module

OPTIONS = {"units": "suv", "body_weight_kg": 70.0, "threads": 2}
SHAPE = (17, 11, 20)
LOADERS = {
    "torchio": tio.ScalarImage,
    "monai": transforms.LoadImage(image_only=True, ensure_channel_first=True),
    "monai without channel": transforms.LoadImage(image_only=True),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Every axis has another kernel: exchanged or flipped axes give another dose."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors.zst"
    write_module(path, network(Lopsided), patch_size=(12, 8, 10), orientation="LPS")
    return dosemap.load_model(path)


def pet_file(folder, order=(0, 1, 2), flips=(0, 0, 0)):
    path = folder / "pet.nii.gz"
    nifti.write(path, *stored_as(uptake(SHAPE), RAS_AFFINE, order, flips))
    return path


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS[1::7])
def test_image_is_its_file(tmp_path, model, loader, order, flips):
    path = pet_file(tmp_path, order, flips)
    expected = model.predict(path, **OPTIONS)
    result = model.predict(LOADERS[loader](path), **OPTIONS)
    assert result.dose.shape == expected.dose.shape == tuple(SHAPE[a] for a in order)
    assert result.dose.tobytes() == expected.dose.tobytes()
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-5)


def test_image_that_monai_turned(tmp_path, model):
    """The same dose, turned as the image was."""
    load = LOADERS["monai"]
    turn = transforms.Orientation(axcodes="PIR", labels=None)
    path = pet_file(tmp_path)
    model.predict(path, **OPTIONS).save(tmp_path / "dose.nii")
    expected = turn(load(tmp_path / "dose.nii"))
    result = model.predict(turn(load(path)), **OPTIONS)
    assert result.dose.tobytes("C") == expected[0].numpy().tobytes("C")
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-5)


def test_labels(tmp_path, model):
    """A label map of TorchIO's counts as its file does."""
    path = pet_file(tmp_path, (2, 0, 1), (0, 1, 1))
    ids = np.zeros(SHAPE, np.int16)
    ids[2:9, 3:7, 5:12], ids[10:15, 1:9, 2:6] = 3, 8
    nifti.write(tmp_path / "organs.nii.gz", *stored_as(ids, RAS_AFFINE, (2, 0, 1), (0, 1, 1)))
    names = {3: "liver", 8: "spleen"}
    expected = model.predict(
        path, labels=tmp_path / "organs.nii.gz", label_names=names, **OPTIONS
    ).dvh.records()
    subject = tio.Subject(
        pet=tio.ScalarImage(path), organs=tio.LabelMap(tmp_path / "organs.nii.gz")
    )
    result = model.predict(
        subject["pet"], labels=subject["organs"], label_names=names, **OPTIONS
    ).dvh.records()
    assert [row["name"] for row in result] == ["liver", "spleen"]
    assert result == expected


def test_several_channels_are_refused(tmp_path, model):
    image = tio.ScalarImage(tensor=np.ones((2, 5, 6, 7), np.float32))
    with pytest.raises(dosemap.InvalidValueError, match="2, 5, 6, 7"):
        model.predict(image, **OPTIONS)
