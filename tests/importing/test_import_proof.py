# SPDX-License-Identifier: Apache-2.0
"""The proof of an import: what it compares, and that it fails where the two sides differ."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="ONNX is missing: imports are not proven")

from dosemap_tools import nifti
from dosemap_tools.importing import proof
from dosemap_tools.importing.network import NetworkImportError, Port, Statement, Tensor
from dosemap_tools.importing.ports import UsageError
from images import RAS_AFFINE, uptake

PET = Port("pet", "uptake", "g/mL", 1, ({"log1p": True},))
CT = Port("ct", "hu", "HU", 1, ({"scale": 1e-3, "offset": 0.0},))
FEATURES = Port("features", "other", "", 3)
DOSE = Port("dose", "dose_per_activity", "Gy/GBq")
OUTPUTS = [Tensor("y", ("dose",), (1,), (1, 4, 5, 6))]
LABELS = ["normal", "as imaged"]


def statement(inputs=(PET,), axes="xyz", patch=(12, 9, 7)):
    return Statement("net", patch, axes, "RAS", tuple(inputs), (DOSE,))


def values(samples=2, seed=0):
    return np.random.default_rng(seed).standard_normal((samples, 1, 4, 5, 6)).astype(np.float32)


# Patches ------------------------------------------------------------------------------------------
def test_patches_are_what_the_ports_would_be():
    patches = proof.random_patches(statement((PET, CT, FEATURES), "zyx", (32, 24, 20)), 3)
    assert list(patches) == ["pet", "ct", "features"]
    assert [p.shape for p in patches.values()] == [(2, n, 20, 24, 32) for n in (1, 1, 3)]
    for patch in patches.values():
        assert patch.dtype == np.float32 and abs(patch[0].std() - 1) < 0.1
    pet, ct = patches["pet"][1], patches["ct"][1]
    assert 0.3 < np.mean(pet == 0) < 0.99  # mostly nothing
    assert 1.0 < pet.max() <= np.log1p(6 * 30)  # and hot spots, after log1p
    assert ct.min() == pytest.approx(-1.0) and ct.max() == pytest.approx(0.7)
    assert not np.array_equal(patches["features"][0], patches["features"][1])


def test_patches_depend_on_the_seed_alone():
    one, same, other = (proof.random_patches(statement(), seed)["pet"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.all((one != other).any(axis=(1, 2, 3, 4)))


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("suffix", [".npy", ".nii", ".nii.gz"])
def test_a_real_patch_is_the_middle_of_the_file(tmp_path, axes, suffix):
    volume = uptake((20, 11, 8))
    expected = np.log1p(volume[4:16, 1:10, 0:7].astype(np.float64))
    expected = expected if axes == "xyz" else expected.T
    path = tmp_path / f"pet{suffix}"
    if suffix == ".npy":
        np.save(path, volume if axes == "xyz" else np.ascontiguousarray(volume.T))
    else:
        nifti.write(path, volume, RAS_AFFINE)
    (found,) = proof.real_patch(statement(axes=axes), [str(path)]).values()
    assert found.shape == (1, 1, *statement(axes=axes).spatial_shape)
    np.testing.assert_allclose(found[0, 0], expected, rtol=1e-6)


def test_real_patches_of_several_ports(tmp_path):
    np.save(tmp_path / "pet.npy", uptake((12, 9, 7)))
    np.save(tmp_path / "features.npy", np.ones((3, 12, 9, 7), np.int16))
    stated = statement((PET, FEATURES))
    files = [f"features={tmp_path / 'features.npy'}", f"pet={tmp_path / 'pet.npy'}"]
    found = proof.real_patch(stated, files)
    assert list(found) == ["pet", "features"] and found["features"].shape == (1, 3, 12, 9, 7)
    with pytest.raises(UsageError, match="missing for pet"):
        proof.real_patch(stated, files[:1])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("small.npy", np.ones((12, 9, 6)), r"shape \(12, 9, 6\).*at least \(1, 12, 9, 7\)"),
        ("channels.npy", np.ones((2, 12, 9, 7)), r"shape \(2, 12, 9, 7\)"),
        ("flat.npy", np.ones(7), r"shape \(7,\)"),
        ("nan.npy", np.full((12, 9, 7), np.nan), "no finite numbers"),
        ("text.npy", np.full((12, 9, 7), "x"), "no finite numbers"),
        ("objects.npy", np.array([{}], object), "cannot be read"),
        ("damaged.npy", b"\x93NUMPY", "cannot be read"),
        ("damaged.nii", b"", "cannot be read"),
        ("damaged.nii.gz", b"\x1f\x8b\x08\0garbage", "cannot be read"),
        ("patch.png", b"", "no .npy"),
    ],
)
def test_a_real_patch_that_is_none(tmp_path, name, content, words):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(NetworkImportError, match=words) as error:
        proof.real_patch(statement(), [str(path)])
    assert str(path) in str(error.value)


# Comparison ---------------------------------------------------------------------------------------
def test_deviations_are_relative_l2_and_maximum():
    reference = values()
    found = reference.copy()
    found[1, 0, 1, 2, 3] += 0.5
    first, second = proof.compare(OUTPUTS, [reference], {"dose": found}, LABELS)
    assert (first.relative_l2, first.maximum, first.patch) == (0.0, 0.0, "normal")
    norm = np.linalg.norm(reference[1].astype(np.float64))
    assert second.relative_l2 == pytest.approx(0.5 / norm, rel=1e-6)
    assert second.maximum == pytest.approx(0.5, rel=1e-6)
    assert second.original_maximum == pytest.approx(np.abs(reference[1]).max())
    proof.check([first], 1e-5)
    with pytest.raises(NetworkImportError, match=r"dose.*as imaged.*allowed is 1e-05"):
        proof.check([first, second], 1e-5)


def test_each_output_is_compared_with_its_own_channels():
    reference = np.concatenate([values(), values(seed=1)], axis=1)
    outputs = [Tensor("y", ("a", "b"), (1, 1), (2, 4, 5, 6))]
    found = {"a": reference[:, :1], "b": reference[:, 1:]}
    rows = proof.compare(outputs, [reference], found, LABELS)
    assert [(r.output, r.relative_l2) for r in rows] == [("a", 0), ("a", 0), ("b", 0), ("b", 0)]
    exchanged = {"a": found["b"], "b": found["a"]}
    rows = proof.compare(outputs, [reference], exchanged, LABELS)
    assert all(r.relative_l2 > 1 for r in rows)


def test_outputs_that_are_not_voxelwise():
    reference = np.float32([[1, 2], [3, 5]])
    outputs = [Tensor("y", ("value",), (2,), (2,))]
    found = {"value": reference.reshape(2, 2, 1, 1, 1)}
    assert all(r.relative_l2 == 0 for r in proof.compare(outputs, [reference], found, LABELS))


@pytest.mark.parametrize(
    "change",
    [lambda v: -v, np.zeros_like, lambda v: v[:, :, ::-1], lambda v: v * 1.0001, lambda v: v + 1],
)
def test_what_differs_is_above_the_tolerance(change):
    reference = values()
    rows = proof.compare(OUTPUTS, [reference], {"dose": change(reference)}, LABELS)
    with pytest.raises(NetworkImportError, match="not the original"):
        proof.check(rows, proof.TOLERANCE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails(value):
    found = values()
    found[0, 0, 0, 0, 0] = value
    with pytest.raises(NetworkImportError, match="dose holds NaN or infinity in dosemap"):
        proof.compare(OUTPUTS, [values()], {"dose": found}, LABELS)

    class Original:
        description = "Framework 1"

        def run(self, inputs):
            return [found]

    with pytest.raises(NetworkImportError, match="NaN or infinity in Framework 1"):
        proof.run_original(Original(), [Tensor("x", ("pet",), (1,), ())], {"pet": values()})


def test_an_output_that_is_always_the_same_shows_nothing():
    """Zeros of a dead ReLU, a constant, a picture that no input changes: equal, but no proof."""
    picture = np.repeat(values(samples=1), 2, axis=0)
    for reference in (np.zeros_like(picture), np.full_like(picture, 3), picture):
        with pytest.raises(NetworkImportError, match="would show nothing"):
            proof.compare(OUTPUTS, [reference], {"dose": reference}, LABELS)


def test_a_patch_that_gives_zeros_is_measured_by_the_others():
    reference = values()
    reference[1] = 0
    found = reference.copy()
    found[1] = 1e-9
    rows = proof.compare(OUTPUTS, [reference], {"dose": found}, LABELS)
    assert 0 < rows[1].relative_l2 < 1e-8
    found[1] = 1e-3
    rows = proof.compare(OUTPUTS, [reference], {"dose": found}, LABELS)
    with pytest.raises(NetworkImportError, match="as imaged"):
        proof.check(rows, proof.TOLERANCE)


def test_shapes_have_to_be_the_same():
    reference = values()
    with pytest.raises(NetworkImportError, match="in the original"):
        proof.compare(OUTPUTS, [reference[:, :, 1:]], {"dose": reference}, LABELS)
    with pytest.raises(NetworkImportError, match="in dosemap"):
        proof.compare(OUTPUTS, [reference], {"dose": reference[:, :, 1:]}, LABELS)
    with pytest.raises(NetworkImportError, match="gives 2 tensors"):
        proof.compare(OUTPUTS, [reference, reference], {"dose": reference}, LABELS)


# The program --------------------------------------------------------------------------------------
def script(folder, text):
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_program_that_is_named_is_taken(tmp_path, monkeypatch):
    program = script(tmp_path, "exit 0")
    other = tmp_path / "bin"
    other.mkdir()
    script(other, "exit 0")
    (other / "program").rename(other / "dosemap")
    monkeypatch.setenv("PATH", str(other), prepend=":")
    monkeypatch.delenv("DOSEMAP_BIN", raising=False)
    assert proof.find_program(None) == str(other / "dosemap")
    monkeypatch.setenv("DOSEMAP_BIN", program)
    assert proof.find_program(None) == program
    assert proof.find_program(str(other / "dosemap")) == str(other / "dosemap")
    for name, given in (("--dosemap", "/nowhere/dosemap"), ("--dosemap", str(tmp_path))):
        with pytest.raises(NetworkImportError, match=f"{name} is '{given}'"):
            proof.find_program(given)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo dosemap: no such tensor >&2; exit 1", "no such tensor"),
        ("kill -9 $$", "exit status -9"),
    ],
)
def test_a_program_that_fails(tmp_path, text, words):
    with pytest.raises(NetworkImportError, match=words):
        proof.run_program(script(tmp_path, text), tmp_path, {"pet": values()}, ["dose"])
    assert [p.name for p in tmp_path.iterdir()] == ["program"]


def test_a_program_without_the_output(tmp_path):
    copy = script(tmp_path, 'cp "$3" "$5"')
    assert "pet" in proof.run_program(copy, tmp_path, {"pet": values()}, ["pet"])
    with pytest.raises(NetworkImportError, match="gives no dose"):
        proof.run_program(copy, tmp_path, {"pet": values()}, ["dose"])
