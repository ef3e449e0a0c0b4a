# SPDX-License-Identifier: Apache-2.0
"""Several PETs in one process: read ahead and written behind, as if one after the other."""

import json
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import BIN, MODEL, SUV_78, dosemap

FAST = ("--overlap", "0", "--threads", "2", "--precision", "float32")


def make_pet(path: Path, seed: int, shape: tuple[int, int, int] = (33, 20, 17)) -> Path:
    data = np.random.default_rng(seed).gamma(1.5, 2.0, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1])), path)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> list[Path]:
    """Of several sizes, so that what belongs to one does not fit another."""
    return [make_pet(tmp_path / f"s{i}_pet.nii.gz", i, (20 + 7 * i, 20, 17)) for i in range(6)]


def labels_of(pet: Path) -> Path:
    ids = (np.asanyarray(nib.load(pet).dataobj) > 3).astype(np.uint8)
    path = pet.with_name(pet.name.replace("_pet", "_dseg"))
    nib.save(nib.Nifti1Image(ids, np.diag([4.0, 4, 4, 1])), path)
    return path


def screen(*arguments: object) -> tuple[int, list[str]]:
    """What a user sees: both streams in their order."""
    command = [BIN, "predict", *arguments, *SUV_78, *FAST, "--model", MODEL]
    result = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return result.returncode, result.stdout.splitlines()


def test_same_files_as_one_by_one(pets: list[Path], tmp_path: Path) -> None:
    options = [word for pet in pets for word in ("--labels", labels_of(pet))]
    together = dosemap(
        "predict", *pets, *SUV_78, *FAST, *options, "--out-dir", tmp_path / "together", "--json"
    )
    assert together.returncode == 0, together.stderr
    reports = [json.loads(line) for line in together.stdout.splitlines()]
    assert [report["pet"] for report in reports] == [str(pet) for pet in pets]
    for i, pet in enumerate(pets):
        alone = dosemap(
            "predict", pet, *SUV_78, *FAST, *options[2 * i : 2 * i + 2],
            "--out-dir", tmp_path / "alone", "--quiet",
        )  # fmt: skip
        assert alone.returncode == 0, alone.stderr
        for suffix in ("_dose.nii.gz", "_dose_dvh.tsv", "_dose_organs.tsv"):
            name = pet.name.replace("_pet.nii.gz", suffix)
            a, b = tmp_path / "together" / name, tmp_path / "alone" / name
            assert a.read_bytes() == b.read_bytes(), name
        # The next PET and the last dose map are counted.
        needed = reports[i]["provenance"]["Options"]["MemoryNeeded"]
        one = json.loads((tmp_path / "alone" / f"s{i}_dose.json").read_text())
        voxels = np.prod(nib.load(pet).shape)
        assert needed - one["Options"]["MemoryNeeded"] == 2 * 4 * voxels


def test_messages_in_order(pets: list[Path], tmp_path: Path) -> None:
    """A PET that cannot be read, one that cannot be predicted, one that cannot be written."""
    out = tmp_path / "out"
    (out / "s4_dose.nii.gz").mkdir(parents=True)
    pets[1].write_bytes(pets[1].read_bytes()[:-20])
    spoilt = np.asanyarray(nib.load(pets[2]).dataobj).copy()
    spoilt[1, 2, 3] = np.nan
    nib.save(nib.Nifti1Image(spoilt, np.diag([4.0, 4, 4, 1])), pets[2])
    status, lines = screen(*pets, "--out-dir", out)
    assert status == 1
    seen = [line for line in lines if "dose map" in line or "error" in line]
    assert len(seen) == 6, lines
    for i, words in enumerate(("dose map", "error", "error", "dose map", "error", "dose map")):
        assert words in seen[i] and f"s{i}_" in seen[i], lines
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [
        f"s{i}_dose.nii.gz" for i in (0, 3, 4, 5)
    ]

    (out / "s4_dose.nii.gz").rmdir()
    make_pet(pets[1], 1)
    (out / "s3_dose.json").unlink()
    status, lines = screen(*pets, "--out-dir", out, "--resume")
    assert status == 1
    seen = [line for line in lines if any(w in line for w in ("skipped", "dose map", "error"))]
    for i, words in enumerate(("skipped", "dose map", "error", "dose map", "dose map", "skipped")):
        assert words in seen[i] and f"s{i}_" in seen[i], lines


def test_an_output_is_not_read_before_it_is_written(pets: list[Path], tmp_path: Path) -> None:
    """A dose map is no PET, but that is found only where it and its sidecar are there."""
    out = tmp_path / "out"
    result = dosemap(
        "predict", pets[0], out / "s0_dose.nii.gz", pets[1], *SUV_78, *FAST, "--out-dir", out
    )
    assert result.returncode == 1
    assert 's0_dose.json: Units is "Gy/GBq"' in result.stderr
    assert (out / "s1_dose.nii.gz").exists()


def test_many(tmp_path: Path) -> None:
    """Every order of events that a busy machine makes."""
    pets = [make_pet(tmp_path / f"{i:03}_pet.nii", i, (3, 2, 1 + i % 3)) for i in range(60)]
    result = dosemap("predict", *pets, *SUV_78, *FAST, "--out-dir", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    assert [json.loads(line)["pet"] for line in result.stdout.splitlines()] == list(map(str, pets))


def test_labels_count_where_memory_is_short(tmp_path: Path) -> None:
    """Neighbours that leave room for a PET, but not for its labels, stay out: none is refused."""
    pets = [make_pet(tmp_path / f"{i}_pet.nii", i, (60, 60, 60)) for i in range(3)]
    everywhere = tmp_path / "everywhere.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((60, 60, 60), np.uint8), np.diag([4.0, 4, 4, 1])), everywhere)
    options = [*SUV_78, "--overlap", "0", "--threads", "1", "--skip-air", "40"]
    options += [word for _ in pets for word in ("--labels", everywhere)]

    def needed(memory: str, out: Path) -> list[int]:
        result = dosemap("predict", *pets, *options, "--memory", memory, "--out-dir", out, "--json")
        assert result.returncode == 0, result.stderr
        reports = [json.loads(line) for line in result.stdout.splitlines()]
        return [report["provenance"]["Options"]["MemoryNeeded"] for report in reports]

    volume = 4 * 60**3
    wide = needed("2G", tmp_path / "wide")
    alone = wide[0] - 2 * volume
    assert needed(str(alone + volume // 2), tmp_path / "narrow") == [alone] * 3


def peak_of(pets: list[Path], out: Path, memory: str) -> tuple[int, list[int]]:
    command = [BIN, "predict", *pets, *SUV_78, *FAST, "--model", MODEL, "-q", "--out-dir", out]
    # Nearly all is air then: the volumes are what counts.
    command += [f"--memory={memory}", "--skip-air", "20"]
    pid = os.spawnv(os.P_NOWAIT, BIN, [str(word) for word in command])
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    sidecars = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return usage.ru_maxrss * 1024, [s["Options"]["MemoryNeeded"] for s in sidecars]


def test_one_by_one_where_memory_is_short(tmp_path: Path) -> None:
    """Volumes of 7.6 MiB: with --memory the neighbours stay out where they do not fit."""
    shape = (130, 128, 120)
    pets = [make_pet(tmp_path / f"{i}_pet.nii", i, shape) for i in range(3)]
    volume = 4 * int(np.prod(shape))
    peak, needed = peak_of(pets, tmp_path / "wide", "1G")
    assert len(set(needed)) == 1
    narrow = needed[0] - 2 * volume
    short, without = peak_of(pets, tmp_path / "narrow", str(narrow + volume // 2))
    assert without == [narrow] * 3
    libraries = subprocess.run(["ldd", BIN], capture_output=True, text=True, check=True).stdout
    if "libasan" not in libraries and "libtsan" not in libraries:
        assert peak <= needed[0]
        assert short <= narrow
        assert peak - short > volume
