# SPDX-License-Identifier: Apache-2.0
"""--tile auto and --memory: what is chosen, what is refused, what is really taken."""

import json
import os
import re
import resource
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import BIN, MODEL, SUV_78, dosemap

FAST = ("--threads", "2", "--precision", "float32")


@pytest.fixture
def larger_pet(tmp_path: Path) -> Path:
    path = tmp_path / "sub-2_pet.nii"
    pet = np.random.default_rng(3).gamma(1.5, 2.0, (72, 64, 80)).astype(np.float32)
    nib.save(nib.Nifti1Image(pet, np.diag([4.0, 4, 4, 1])), path)
    return path


def predict(pet: Path, out: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return dosemap("predict", pet, *SUV_78, *FAST, "-o", out, *options)


def test_chosen_tile_is_reported_and_repeats(larger_pet: Path, tmp_path: Path) -> None:
    """The line on stderr names options that give the same dose map."""
    chosen, again = tmp_path / "chosen.nii", tmp_path / "again.nii"
    result = predict(larger_pet, chosen, "--tile", "auto", "--memory", "150M")
    assert result.returncode == 0, result.stderr
    said = re.search(r"--tile (\d+,\d+,\d+) --overlap (\S+), (\d+) windows", result.stderr)
    assert said, result.stderr
    options = json.loads(chosen.with_suffix(".json").read_text())["Options"]
    assert options["TileChosen"] is True
    assert options["Tile"] == [int(n) for n in said[1].split(",")]
    assert options["Tile"] != [32, 32, 32]
    assert options["MemoryLimit"] == 150 << 20
    assert options["MemoryNeeded"] <= options["MemoryLimit"]
    repeated = predict(larger_pet, again, "--tile", said[1], "--overlap", said[2])
    assert repeated.returncode == 0, repeated.stderr
    assert "--tile" not in repeated.stderr
    assert again.read_bytes() == chosen.read_bytes()


def test_enough_memory_takes_the_whole_volume(larger_pet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii"
    result = predict(larger_pet, out, "--tile", "auto", "--memory", "2GiB", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    provenance = json.loads(result.stdout)["provenance"]
    assert provenance["Options"]["Tile"] == [72, 64, 80]
    assert provenance["Options"]["Overlap"] == 0
    assert provenance["Windows"] == {"Run": 1, "Skipped": 0}


def test_overlap_that_is_given_stays(larger_pet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii"
    options = ("--tile", "auto", "--memory", "150M", "--overlap", "0.25", "--quiet")
    result = predict(larger_pet, out, *options)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert json.loads(out.with_suffix(".json").read_text())["Options"]["Overlap"] == 0.25


@pytest.mark.parametrize(
    ("options", "what", "remedy"),
    [
        # Activations of 456 bytes per voxel; refused before the PET is read.
        (("--tile", "256", "--memory", "500M"), "windows of 256 x 256 x 256", "--tile auto"),
        (("--tile", "whole", "--memory", "115M"), "windows of 72 x 64 x 80", "--tile auto"),
        (("--tile", "auto", "--memory", "20M"), "windows of 32 x 32 x 32", "raise --memory"),
    ],
)
def test_more_than_the_memory(
    larger_pet: Path, tmp_path: Path, options: tuple[str, ...], what: str, remedy: str
) -> None:
    out = tmp_path / "out.nii"
    result = predict(larger_pet, out, *options)
    assert result.returncode == 1
    assert what in result.stderr and remedy in result.stderr
    assert "MiB that --memory allows" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == [larger_pet.name]


def is_sanitized() -> bool:
    libraries = subprocess.run(["ldd", BIN], capture_output=True, text=True, check=True).stdout
    return "libasan" in libraries or "libtsan" in libraries


def test_more_than_the_process_can_have(larger_pet: Path, tmp_path: Path) -> None:
    """Without --memory the limits of the process count."""
    if is_sanitized():
        pytest.skip("sanitizers reserve more address space than any limit")
    out = tmp_path / "out.nii"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    arguments = ["predict", larger_pet, *SUV_78, *FAST, "--model", MODEL, "-o", out]
    refused = subprocess.run(
        [BIN, *arguments, "--tile", "256"], preexec_fn=limit, capture_output=True, text=True
    )
    assert refused.returncode == 1
    assert "that this process can have" in refused.stderr
    assert "--tile auto" in refused.stderr
    assert not out.exists()
    done = subprocess.run(
        [BIN, *arguments, "--tile", "auto"], preexec_fn=limit, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    options = json.loads(out.with_suffix(".json").read_text())["Options"]
    assert options["MemoryNeeded"] <= 0.8 * (1 << 30)


@pytest.mark.parametrize("memory", [115, 150, 400])
def test_memory_is_what_was_said(larger_pet: Path, tmp_path: Path, memory: int) -> None:
    """Peak resident size of the process against the estimate."""
    if is_sanitized():
        pytest.skip("sanitizers take memory of their own")
    out = tmp_path / "out.nii"
    arguments = [BIN, "predict", larger_pet, *SUV_78, *FAST, "--model", MODEL, "-o", out, "-q"]
    pid = os.spawnv(os.P_NOWAIT, BIN, [*map(str, arguments), "--tile=auto", f"--memory={memory}M"])
    _, status, usage = os.wait4(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    needed = json.loads(out.with_suffix(".json").read_text())["Options"]["MemoryNeeded"]
    peak = usage.ru_maxrss * 1024
    assert peak <= memory << 20
    assert 0.6 * needed <= peak <= 1.02 * needed


@pytest.mark.parametrize("size", ["", "4X", "0", "-1G", "1e30G", "G", "4 G", "nan", "4Gb"])
def test_size_that_is_none(size: str) -> None:
    result = dosemap("predict", "a.nii", "-o", "b.nii", f"--memory={size}")
    assert result.returncode == 2
    assert "--memory" in result.stderr
