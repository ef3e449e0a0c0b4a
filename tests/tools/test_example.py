# SPDX-License-Identifier: Apache-2.0
"""The example PET, its commands, and the small NIfTI module that it writes with. numpy only."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dosemap_tools import example, nifti, phantom
from images import ORIENTATIONS, RAS_AFFINE, back_from, stored_as, uptake

ROOT = Path(__file__).resolve().parents[2]


MAKE = str(ROOT / "tools/make_example")


def make(folder, *options):
    command = [sys.executable, MAKE, str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_example(tmp_path):
    paths = make(tmp_path / "new/folder")
    assert [Path(p).is_file() for p in paths] == [True] * 4
    pet, affine = nifti.read(paths[0])
    labels, labels_affine = nifti.read(paths[2])
    sidecar = json.loads(Path(paths[1]).read_text())
    rows = [line.split("\t") for line in Path(paths[3]).read_text().splitlines()]
    names = {int(index): name for index, name in rows[1:]}
    assert rows[0] == ["index", "name"]
    np.testing.assert_array_equal(affine, labels_affine)
    np.testing.assert_array_equal(np.sign(np.diag(affine)), [-1, -1, 1, 1])
    assert set(np.unique(labels)) == {0, *names}

    # SUV at the scan's start: the activity has decayed for an hour.
    delay = sidecar["ScanStart"] - sidecar["InjectionStart"]
    activity = sidecar["InjectedRadioactivity"] * 1e6 * 2 ** (-delay / (67.71 * 60))
    suv = pet * sidecar["PatientWeight"] * 1e3 / activity
    assert activity < 0.6 * sidecar["InjectedRadioactivity"] * 1e6
    means = {name: suv[labels == index].mean() for index, name in names.items()}
    assert 20 < means["kidney_left"] < 30
    assert 3 < means["liver"] < 4.5
    assert means["spleen"] < means["parotid_gland_left"] < means["kidney_right"]
    assert pet.min() >= 0

    # The liver lies on the patient's right: at positive x (RAS).
    voxels = np.argwhere(labels == 5).mean(axis=0)
    assert (affine @ [*voxels, 1])[0] > 50


def test_seed(tmp_path):
    contents = [
        [Path(p).read_bytes() for p in make(tmp_path / str(i), "--seed", seed)]
        for i, seed in enumerate(("1", "1", "2"))
    ]
    assert contents[0] == contents[1]
    assert contents[0][0] != contents[2][0]
    assert contents[0][1:] == contents[2][1:]


def test_files_are_the_same_by_command_and_by_import(tmp_path, capsys):
    by_launcher = make(tmp_path / "launcher")
    assert example.main([str(tmp_path / "command")]) == 0
    by_command = capsys.readouterr().out.split()
    by_import = phantom.write(tmp_path / "import")
    for paths in zip(by_launcher, by_command, by_import, strict=True):
        contents = {Path(path).read_bytes() for path in paths}
        assert len(contents) == 1, paths


def test_without_numpy(tmp_path):
    # As on a machine where numpy was never installed: importing it fails.
    program = f"""
import runpy, sys
sys.modules["numpy"] = None
sys.argv = ["make_example", {str(tmp_path / "demo")!r}]
runpy.run_path({MAKE!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("dosemap-example: numpy is missing")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "demo").exists()


def test_refusals(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert example.main([str(tmp_path / "file/folder")]) == 1
    assert str(tmp_path / "file/folder") in capsys.readouterr().err
    assert example.main([str(tmp_path / "new"), "--seed=-1"]) == 1
    assert "non-negative" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_round_trip(tmp_path, dtype, suffix):
    data = np.arange(24).reshape(4, 3, 2).astype(dtype)
    nifti.write(tmp_path / f"v{suffix}", data, RAS_AFFINE, slope=0.5)
    values, affine = nifti.read(tmp_path / f"v{suffix}")
    np.testing.assert_array_equal(values, data.astype(np.float32) * 0.5)
    np.testing.assert_allclose(affine, RAS_AFFINE)


def test_nifti_agrees_with_nibabel_in_every_orientation(tmp_path):
    nib = pytest.importorskip("nibabel", reason="nibabel is missing: NIfTI files are not compared")
    angle = 0.3
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    volume = uptake((5, 4, 3))
    for order, flips in ORIENTATIONS:
        for base in (RAS_AFFINE, turn @ RAS_AFFINE):
            stored, affine = stored_as(volume, base, order, flips)
            nifti.write(tmp_path / "v.nii", stored, affine)
            image = nib.load(tmp_path / "v.nii")
            np.testing.assert_allclose(image.get_sform(), affine, atol=1e-4)
            np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)
            np.testing.assert_array_equal(np.asarray(image.dataobj), stored)
            np.testing.assert_array_equal(back_from(stored, order, flips), volume)
            here = np.linalg.inv(affine) @ base @ [1, 2, 1, 1]
            at = tuple(np.rint(here[:3]).astype(int))
            assert stored[at] == volume[1, 2, 1]


def test_nifti_refuses(tmp_path):
    with pytest.raises(ValueError, match="4 dimensions"):
        nifti.write(tmp_path / "v.nii", np.zeros((1, 1, 1, 1), np.float32), RAS_AFFINE)
    (tmp_path / "v.nii").write_bytes(b"x" * 400)
    with pytest.raises(ValueError, match="no little-endian NIfTI-1"):
        nifti.read(tmp_path / "v.nii")
