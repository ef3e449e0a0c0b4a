# SPDX-License-Identifier: Apache-2.0
"""Models: loading, what they say of themselves, copies of them, and the network alone."""

import copy
import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil

import dosemap
import numpy as np
import pytest
from patches import read_patches, write_patches
from program import ROOT

SUV = {"units": "suv", "body_weight_kg": 78.7}


@pytest.fixture
def tiny(tiny_path):
    return dosemap.load_model(tiny_path)


# ---- Which one -----------------------------------------------------------------------------------


def test_the_default_is_the_command_lines(tiny_path, constructed_path, monkeypatch):
    monkeypatch.setenv("DOSEMAP_MODEL", str(tiny_path))
    assert dosemap.load_model().name == dosemap.load_model(None).name == "tiny"
    monkeypatch.setenv("DOSEMAP_MODEL", str(constructed_path))
    assert dosemap.load_model().path == str(constructed_path)
    monkeypatch.setenv("DOSEMAP_MODEL", str(tiny_path) + ".none")
    with pytest.raises(dosemap.FileError, match="DOSEMAP_MODEL"):
        dosemap.load_model()


def test_forms_of_a_path(tiny_path, monkeypatch):
    monkeypatch.chdir(tiny_path.parent)
    for path in (tiny_path, str(tiny_path), tiny_path.name):
        assert dosemap.load_model(path).name == "tiny"
        assert dosemap.load_model(path).path == str(path)
    for path in (3, True, [tiny_path], object()):
        with pytest.raises(TypeError, match="path wants a path"):
            dosemap.load_model(path)
    for path in ("", "a\0b"):
        with pytest.raises(dosemap.InvalidValueError):
            dosemap.load_model(path)


def test_files_that_are_no_model(tmp_path, pet):
    for name, content in (("empty", b""), ("text", b"weights"), ("zeros", bytes(1000))):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(dosemap.FormatError) as caught:
            dosemap.load_model(path)
        assert caught.value.where == str(path)
    with pytest.raises(dosemap.Error):
        dosemap.load_model(pet)
    with pytest.raises(dosemap.Error):
        dosemap.load_model(tmp_path)


# ---- What it says --------------------------------------------------------------------------------


def test_what_it_says_of_itself(tiny, tiny_path, pet_ct_path, constructed_path):
    assert repr(tiny) == f"Model('tiny': PET to dose; NOT TRAINED; {tiny_path})"
    assert "PET and CT to dose" in repr(dosemap.load_model(pet_ct_path))
    assert tiny.takes_ct is False and dosemap.load_model(pet_ct_path).takes_ct is True
    assert tiny.card["licence"] == "Apache-2.0" and tiny.card["trained"] is False
    assert tiny.graph["inputs"][0]["quantity"] == "uptake"
    tiny.card["licence"] = "mine"  # of a copy
    assert tiny.card["licence"] == "Apache-2.0"
    assert dosemap.load_model(constructed_path).graph["patch_size"]
    with pytest.raises(AttributeError):
        tiny.name = "other"
    with pytest.raises(AttributeError):
        tiny.something = 1


def test_inspect_and_compare_as_the_program(tiny, tiny_path, constructed_path, program):
    assert tiny.inspect() == json.loads(program("inspect", tiny_path, "--json"))
    other = ROOT / "weights/dosegan-constructed.safetensors.zst"
    model = dosemap.load_model(constructed_path)
    report = json.loads(program("inspect", "--compare", constructed_path, other, "--json"))
    assert model.compare(other) == report and report["same"] is False
    assert model.compare(dosemap.load_model(constructed_path))["same"] is True
    assert model.compare(constructed_path)["same"] is True
    for wrong in (3, None):
        with pytest.raises(TypeError, match="other wants a path"):
            model.compare(wrong)


# ---- Copies --------------------------------------------------------------------------------------


def test_copies(tiny, pet, tmp_path, monkeypatch):
    assert copy.copy(tiny) is tiny and copy.deepcopy({"model": tiny})["model"] is tiny
    again = pickle.loads(pickle.dumps(tiny))
    assert again is not tiny and again.path == tiny.path
    assert again.predict(pet).dose.tobytes() == tiny.predict(pet).dose.tobytes()
    # The file is found from another folder, too.
    shutil.copy(tiny.path, tmp_path / "m.safetensors.zst")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(dosemap.load_model("m.safetensors.zst"))
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).name == "tiny"
    os.remove(tmp_path / "m.safetensors.zst")
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickled)


def test_predictions_are_not_pickled(tiny, pet):
    p = tiny.predict(pet)
    for travel in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"save\(\) it, or send its \.dose"):
            travel(p)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(p.dose)), p.dose)


def test_volumes_and_structures_are_pickled(tiny, pet, labels):
    volume = dosemap.read(pet)
    structure = tiny.predict(pet, labels=labels, vx=1).dvh[0]
    for travel in (copy.copy, copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        other = travel(volume)
        np.testing.assert_array_equal(other.data, volume.data)
        np.testing.assert_array_equal(other.affine, volume.affine)
        assert other.data.flags.f_contiguous
        again = travel(travel(structure))
        assert dataclasses.asdict(again) == dataclasses.asdict(structure)
        np.testing.assert_array_equal(again.histogram, structure.histogram)
        for ours, theirs in zip(again.curve(), structure.curve(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert set(dataclasses.asdict(structure)) >= {"name", "mean", "v_percent", "bin_width"}


def dose_in_a_process(model, path):
    return model.predict(path, threads=1).dose


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_pools_of_processes(tiny, pet, method):
    expected = tiny.predict(pet, threads=1).dose
    with multiprocessing.get_context(method).Pool(2) as pool:
        doses = pool.starmap(dose_in_a_process, [(tiny, pet)] * 3)
    for dose in doses:
        np.testing.assert_array_equal(dose, expected)


# ---- The network alone ---------------------------------------------------------------------------


def test_forward_as_the_program(tiny, tiny_path, tmp_path, program):
    rng = np.random.default_rng(6)
    patches = rng.random((3, 1, 8, 8, 8), np.float32)
    source = write_patches(tmp_path / "in.safetensors", {"pet": patches})
    target = tmp_path / "out.safetensors"
    program("forward", tiny_path, source, "-o", target)
    expected = read_patches(target)[0]["dose"]
    assert expected.any()
    for form in (
        {"pet": patches}, patches, patches.astype(np.float64), patches.tolist(),
        np.asfortranarray(patches), patches.astype(">f4"), patches[::-1].copy()[::-1],
    ):  # fmt: skip
        result = tiny.forward(form, threads=1)
        assert list(result) == ["dose"]
        np.testing.assert_array_equal(result["dose"], expected)
        assert result["dose"].dtype == np.float32


def test_forward_of_two_inputs(pet_ct_path):
    model = dosemap.load_model(pet_ct_path)
    rng = np.random.default_rng(7)
    pet, ct = rng.random((2, 2, 1, 8, 8, 8), np.float32)
    dose = model.forward({"ct": ct, "pet": pet})["dose"]
    np.testing.assert_allclose(dose, 0.5 * pet + ct, rtol=1e-5)
    with pytest.raises(TypeError, match="'pet' and 'ct'"):
        model.forward(pet)
    with pytest.raises(dosemap.InvalidValueError, match="ct"):
        model.forward({"pet": pet})
    with pytest.raises(dosemap.InvalidValueError, match="mri"):
        model.forward({"pet": pet, "ct": ct, "mri": ct})


def test_what_forward_refuses(tiny):
    patches = np.ones((1, 1, 8, 8, 8), np.float32)
    for wrong in (patches[0], patches[0, 0], np.ones(())):
        with pytest.raises(dosemap.InvalidValueError, match=r"input 'pet' has the shape"):
            tiny.forward(wrong)
    for wrong in (patches[:, :, :0], patches[:0], np.ones((1, 2, 8, 8, 8))):
        with pytest.raises(dosemap.InvalidValueError):
            tiny.forward(wrong)
    for wrong in (patches.astype(complex), patches.astype(str), None, "pet.nii"):
        with pytest.raises((TypeError, dosemap.InvalidValueError)):
            tiny.forward(wrong)
    with pytest.raises(dosemap.InvalidValueError):
        tiny.forward(patches * np.nan)
    with pytest.raises(TypeError, match="threads wants"):
        tiny.forward(patches, threads="all")
    with pytest.raises(dosemap.InvalidValueError, match="precision='half'"):
        tiny.forward(patches, precision="half")


def test_forward_reports_and_is_cancelled(tiny):
    patches = np.ones((4, 1, 8, 8, 8), np.float32)
    seen = []
    tiny.forward(patches, progress=lambda share, stage: seen.append(share))
    assert seen and seen[-1] == 1
    with pytest.raises(dosemap.CancelledError):
        tiny.forward(patches, progress=lambda share, stage: True)
