# SPDX-License-Identifier: Apache-2.0
"""Bad input: a clear error, exit 1, no output file, no crash."""

import gzip
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import BIN, MODEL, QUICK, SUV_78, assert_refused, dosemap

Damage = Callable[[Path], None]


def rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    change(data)
    path.write_bytes(gzip.compress(bytes(data), mtime=0))


def header_int16(offset: int, value: int) -> Damage:
    def damage(path: Path) -> None:
        def change(data: bytearray) -> None:
            data[offset : offset + 2] = value.to_bytes(2, "little", signed=True)

        rewrite(path, change)

    return damage


def header_float(offset: int, value: float) -> Damage:
    def damage(path: Path) -> None:
        def change(data: bytearray) -> None:
            data[offset : offset + 4] = np.float32(value).tobytes()

        rewrite(path, change)

    return damage


def keep(share: float) -> Damage:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return damage


def wrong_magic(path: Path) -> None:
    rewrite(path, lambda data: data.__setitem__(slice(344, 348), b"xx1\0"))


def truncate_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1000], mtime=0))


DAMAGED_PETS: dict[str, tuple[Damage, str]] = {
    "missing": (lambda p: p.unlink(), "No such file"),
    "folder": (lambda p: (p.unlink(), p.mkdir())[0], "sub-1_pet"),
    "empty": (lambda p: p.write_bytes(b"") and None, "empty"),
    "random": (lambda p: p.write_bytes(np.random.default_rng(1).bytes(5000)) and None, "NIfTI"),
    "text": (lambda p: p.write_text("this is not an image\n" * 50) and None, "NIfTI"),
    "gzip cut in half": (keep(0.5), "sub-1_pet"),
    "gzip cut at the end": (lambda p: p.write_bytes(p.read_bytes()[:-4]) and None, "sub-1_pet"),
    "data too short": (truncate_inside, "sub-1_pet"),
    "wrong magic": (wrong_magic, "magic"),
    "complex": (header_int16(70, 32), "datatype"),
    "RGB": (header_int16(70, 128), "datatype"),
    "unknown datatype": (header_int16(70, 77), "datatype"),
    "zero dimension": (header_int16(44, 0), "dim"),
    "negative dimension": (header_int16(44, -5), "dim"),
    "huge dimension": (header_int16(44, 32767), "sub-1_pet"),
    "NaN affine": (header_float(280, float("nan")), "sub-1_pet"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED_PETS)
def test_damaged_pet(pet: Path, out: Path, name: str) -> None:
    damage, word = DAMAGED_PETS[name]
    damage(pet)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-o", out)
    assert_refused(result, out, "sub-1_pet.nii.gz", word)


def test_two_frames(pet: Path, out: Path, pet_data: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(np.stack([pet_data, pet_data], -1), affine), pet)
    assert_refused(dosemap("predict", pet, *SUV_78, "-o", out), out, "2 frames", pet.name)


def test_suv_without_body_weight(pet: Path, out: Path) -> None:
    result = dosemap("predict", pet, "--units", "suv", "-o", out)
    assert_refused(result, out, "--body-weight")


def test_no_units(pet: Path, out: Path) -> None:
    assert_refused(dosemap("predict", pet, "--body-weight", "70", "-o", out), out, "--units")


def test_activity_concentration_without_injected_activity(pet: Path, out: Path) -> None:
    result = dosemap("predict", pet, "--units", "bqml", "-o", out)
    assert_refused(result, out, "--injected")


def test_damaged_sidecar(pet: Path, out: Path) -> None:
    pet.with_name("sub-1_pet.json").write_text('{"Units": "Bq/mL", ')
    result = dosemap("predict", pet, *SUV_78, "-o", out)
    assert_refused(result, out, "sub-1_pet.json", "line 1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_voxel(
    pet: Path, out: Path, pet_data: np.ndarray, affine: np.ndarray, value: float
) -> None:
    pet_data[11, 12, 13] = value
    nib.save(nib.Nifti1Image(pet_data, affine), pet)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-o", out)
    assert_refused(result, out, "11, 12, 13", "--nan-to-zero", pet.name)
    assert dosemap("predict", pet, *SUV_78, *QUICK, "--nan-to-zero", "-o", out).returncode == 0
    dose = nib.load(out).get_fdata()
    assert abs(dose[11, 12, 13]) < 1e-6 * dose.max() and np.isfinite(dose).all()


def test_labels_on_another_grid(
    pet: Path, labels: Path, out: Path, pet_data: np.ndarray, affine: np.ndarray
) -> None:
    moved = affine.copy()
    moved[0, 3] += 8.0  # two voxels
    ids = np.asanyarray(nib.load(labels).dataobj)
    nib.save(nib.Nifti1Image(ids, moved), labels)
    command = ("predict", pet, *SUV_78, *QUICK, "--labels", labels, "-o", out)
    assert_refused(dosemap(*command), out, "grid", "--resample-labels")
    assert dosemap(*command, "--resample-labels").returncode == 0


def test_labels_that_are_not_whole_numbers(pet: Path, labels: Path, out: Path) -> None:
    image = nib.load(labels)
    nib.save(nib.Nifti1Image(image.get_fdata().astype(np.float32) * 0.5, image.affine), labels)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "--labels", labels, "-o", out)
    assert_refused(result, out, labels.name, "0.5")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_weights(pet: Path, out: Path, tmp_path: Path, share: float) -> None:
    weights = tmp_path / "model.safetensors.zst"
    weights.write_bytes(MODEL.read_bytes())
    keep(share)(weights)
    result = dosemap("predict", pet, *SUV_78, "--model", weights, "-o", out)
    assert_refused(result, out, "model.safetensors.zst")


def test_flipped_bits_in_weights(pet: Path, out: Path, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors.zst"
    original = MODEL.read_bytes()
    for position in np.random.default_rng(3).integers(0, len(original), 25):
        damaged = bytearray(original)
        damaged[position] ^= 0x10
        weights.write_bytes(damaged)
        result = dosemap("predict", pet, *SUV_78, "--model", weights, "-o", out)
        assert_refused(result, out, "model.safetensors.zst")


def test_weights_that_are_an_image(pet: Path, out: Path) -> None:
    result = dosemap("predict", pet, *SUV_78, "--model", pet, "-o", out)
    assert_refused(result, out, pet.name)


def test_output_folder_missing(pet: Path, tmp_path: Path) -> None:
    result = dosemap("predict", pet, *SUV_78, "-o", tmp_path / "nowhere" / "out.nii.gz")
    assert result.returncode == 1
    assert "nowhere" in result.stderr


def test_output_name_without_a_format(pet: Path, out: Path) -> None:
    result = dosemap("predict", pet, *SUV_78, "-o", out.with_name("out.img"))
    assert_refused(result, out, "out.img", ".nii")


def test_output_over_the_input(pet: Path) -> None:
    before = pet.read_bytes()
    result = dosemap("predict", pet, *SUV_78, "-o", pet)
    assert result.returncode == 1 and "overwrite" in result.stderr
    assert pet.read_bytes() == before


def test_output_over_the_sidecar(pet: Path, tmp_path: Path) -> None:
    sidecar = pet.with_name("sub-1_pet.json")
    sidecar.write_text('{"Units": "SUV"}')
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-o", pet.with_name("sub-1_pet.nii"))
    assert result.returncode == 1 and "overwrite the PET's sidecar" in result.stderr
    assert sidecar.read_text() == '{"Units": "SUV"}'


def test_output_over_the_names(pet: Path, labels: Path, out: Path) -> None:
    names = out.with_name("out_dvh.tsv")
    names.write_text("index\tname\n1\tkidney\n")
    command = ("predict", pet, *SUV_78, *QUICK, "-o", out, "--label-names", names)
    result = dosemap(*command, "--labels", labels)
    assert result.returncode == 1 and "overwrite the names of the labels" in result.stderr
    assert names.read_text() == "index\tname\n1\tkidney\n"


def test_full_disk(pet: Path, out: Path) -> None:
    """A file-size limit stands in for the full disk: writing fails in the middle."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    result = dosemap("predict", pet, *SUV_78, *QUICK, "-o", out, preexec_fn=limit)
    assert_refused(result, out, "out.nii.gz")


def wait_until_busy(process: subprocess.Popen, seconds: float = 0.5) -> None:
    """Until it has used that much processor time: it has started, and is at work."""
    used = 0.0
    while used < seconds and process.poll() is None:
        time.sleep(0.01)
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_leave_nothing(
    out: Path, tmp_path: Path, affine: np.ndarray, number: signal.Signals
) -> None:
    pet = tmp_path / "large_pet.nii"
    nib.save(nib.Nifti1Image(np.ones((128, 128, 128), np.float32), affine), pet)
    command = [BIN, "predict", pet, *SUV_78, "--model", MODEL, "--overlap", "0.75", "-o", out]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    wait_until_busy(process)
    assert process.poll() is None, "finished before the signal came"
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert list(out.parent.iterdir()) == []


def test_an_ignored_signal_stays_ignored(pet: Path, out: Path) -> None:
    """As under nohup."""
    command = [BIN, "predict", pet, *SUV_78, "--model", MODEL, "--threads", "1", "-o", out]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    time.sleep(0.2)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 0
    assert out.exists()
