# SPDX-License-Identifier: Apache-2.0
"""Killed and interrupted: files are whole, and a second run finishes the rest.

Every step of the writing is tried in tests/damage/test_killed_writer.c; here the program is killed
at points in time that are spread over its whole run.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xxhash
from conftest import BIN, SUV_78, dosemap, write_tiny_model

KILLS = int(os.environ.get("DOSEMAP_TEST_KILLS", "40"))
SHAPE = (64, 64, 64)
FILES = ("out.nii.gz", "out_dvh.tsv", "out_organs.tsv")
FAST = ("--overlap", "0", "--threads", "2", "--quiet")


def save(path: Path, data: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, np.diag([4.0, 4.0, 5.0, 1.0])), path)
    return path


@pytest.fixture
def command(tmp_path: Path, tiny: Path) -> list[object]:
    """A run long enough to be interrupted, with all four outputs."""
    rng = np.random.default_rng(5)
    pet = save(tmp_path / "p.nii", rng.gamma(1.5, 2, SHAPE).astype(np.float32))
    ids = np.zeros(SHAPE, np.uint8)
    ids[10:30, 10:30, 10:30], ids[40:50, 40:50, 40:50] = 1, 2
    labels = save(tmp_path / "l.nii", ids)
    return ["predict", pet, *SUV_78, *FAST, "-m", tiny, "--labels", labels]


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen([str(BIN), *map(str, arguments)], stderr=subprocess.PIPE, text=True)


def content(folder: Path, names: tuple[str, ...] = FILES) -> dict[str, bytes | None]:
    return {n: (folder / n).read_bytes() if (folder / n).exists() else None for n in names}


def assert_sidecar_is_true(sidecar: Path) -> None:
    """It is whole, and the dose map beside it has the checksum that it names."""
    for output in json.loads(sidecar.read_text())["Outputs"]:
        path = sidecar.with_name(output["File"])
        if output["Role"] == "dose" or path.exists():
            assert xxhash.xxh64_hexdigest(path.read_bytes(), seed=0) == output["XXH64"]


def test_kill_at_any_time(command: list, tmp_path: Path) -> None:
    """SIGKILL: each file is the old one, the new one or missing, but the dose map is never missing;
    what stays behind is hidden and does not hinder the next run."""
    folder = tmp_path / "results"
    folder.mkdir()
    out = folder / "out.nii.gz"
    times = []
    for activity in ("6", "7.4"):
        began = time.monotonic()
        assert dosemap(*command, "-o", out, "-a", activity).returncode == 0
        times.append(time.monotonic() - began)
        if activity == "6":
            old, old_sidecar = content(folder), (folder / "out.json").read_bytes()
    new = content(folder)
    assert old["out.nii.gz"] != new["out.nii.gz"]
    died, before, after, leftovers = 0, 0, 0, 0
    for i in range(KILLS):
        for name, data in old.items():
            (folder / name).write_bytes(data)
        (folder / "out.json").write_bytes(old_sidecar)
        process = start(*command, "-o", out, "-a", "7.4")
        try:
            process.wait(timeout=1.1 * min(times) * (i + 0.5) / KILLS)
        except subprocess.TimeoutExpired:
            process.kill()
            died += 1
        process.communicate()
        now = content(folder)
        assert now["out.nii.gz"] in (old["out.nii.gz"], new["out.nii.gz"]), f"at point {i}"
        for name in FILES:
            assert now[name] in (None, old[name], new[name]), f"{name} at point {i}"
        if (folder / "out.json").exists():
            assert_sidecar_is_true(folder / "out.json")
        before += now["out.nii.gz"] == old["out.nii.gz"]
        after += now["out.nii.gz"] == new["out.nii.gz"]
        stray = {p.name for p in folder.iterdir()} - {*FILES, "out.json"}
        assert all(n.startswith(".out") and n.endswith(".partial") for n in stray), stray
        leftovers = len(stray)
    assert died > KILLS / 4 and before > 0, (died, before, after)
    print(f"{died} killed of {KILLS}: {before} left the old map, {after} the new one, "
          f"{leftovers} partial files")  # fmt: skip
    assert dosemap(*command, "-o", out, "-a", "7.4").returncode == 0
    assert content(folder) == new
    assert_sidecar_is_true(folder / "out.json")
    assert len(set(folder.iterdir())) == 4 + leftovers, "partial files of others are left alone"


def test_leftovers_are_no_labels_and_no_inputs(command: list, tmp_path: Path) -> None:
    """A partial file in a folder of masks is not taken for one; one of the same process number is
    stepped around."""
    masks = tmp_path / "masks"
    masks.mkdir()
    save(masks / "kidney.nii", np.ones(SHAPE, np.uint8))
    (masks / ".kidney.nii.77.partial").write_bytes(b"half a file")
    (masks / ".liver.nii").write_bytes(b"hidden")
    out = tmp_path / "out.nii"
    result = dosemap(*command[: command.index("--labels")], "--labels", masks, "-o", out)
    assert result.returncode == 0, result.stderr
    assert "kidney" in (tmp_path / "out_organs.tsv").read_text()


def state(process: subprocess.Popen) -> str:
    """T: stopped, Z: ended."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_in_the_middle_of_a_file(
    tmp_path: Path, tiny: Path, number: signal.Signals
) -> None:
    """A partial file is there when the signal comes, and gone when the process is."""
    rng = np.random.default_rng(8)
    pet = save(tmp_path / "p.nii", rng.gamma(1.5, 2, (160, 160, 160)).astype(np.float32))
    folder = tmp_path / "results"
    folder.mkdir()
    for _ in range(5):
        process = start("predict", pet, *SUV_78, "--tile", "80", *FAST, "-m", tiny, "-o",
                        folder / "out.nii.gz")  # fmt: skip
        while not list(folder.glob(".*.partial")) and process.poll() is None:
            pass
        process.send_signal(signal.SIGSTOP)
        while state(process) not in "TZ":
            pass
        in_the_middle = list(folder.glob(".*.partial"))
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        process.communicate()
        if in_the_middle:
            assert process.returncode == 128 + number
            assert list(folder.glob(".*")) == []
            return
    pytest.fail("no file was caught half written, five times")


# ---- A cohort


def save_cohort(folder: Path) -> list[Path]:
    rng = np.random.default_rng(6)
    folder.mkdir()
    return [
        save(folder / f"sub-{i}_pet.nii", rng.gamma(1.5, 2, SHAPE).astype(np.float32))
        for i in range(6)
    ]


@pytest.fixture
def cohort(tmp_path: Path) -> list[Path]:
    return save_cohort(tmp_path / "in")


@dataclass
class Finished:
    """A run of the cohort that nobody interrupted."""

    command: list[object]
    pets: int
    results: Path
    seconds: float


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("cohort")
    pets = save_cohort(folder / "in")
    tiny = write_tiny_model(folder / "tiny.safetensors.zst")
    ids = np.zeros(SHAPE, np.uint8)
    ids[10:30, 10:30, 10:30] = 1
    labels = save(folder / "l.nii", ids)
    command = ["predict", *pets, *SUV_78, "--overlap", "0.5", "--threads", "1", "--quiet",
               "-m", tiny, *[x for _ in pets for x in ("--labels", labels)]]  # fmt: skip
    began = time.monotonic()
    assert dosemap(*command, "--out-dir", folder / "whole").returncode == 0
    seconds = time.monotonic() - began
    assert len(list((folder / "whole").iterdir())) == 4 * len(pets)
    return Finished(command, len(pets), folder / "whole", seconds)


def without_times(sidecar: Path) -> dict:
    """Nor with the memory that happened to be free."""
    root = json.loads(sidecar.read_text())
    for key in ("Seconds", "CommandLine"):
        root.pop(key, None)
    root["Options"].pop("MemoryLimit", None)
    return root


def assert_same_results(folder: Path, reference: Path) -> None:
    """Byte for byte, but for the times in the sidecars."""
    names = sorted(p.name for p in reference.iterdir())
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == names
    for name in names:
        if name.endswith(".json"):
            assert without_times(folder / name) == without_times(reference / name), name
        else:
            assert (folder / name).read_bytes() == (reference / name).read_bytes(), name


def interrupt(finished: Finished, folder: Path, number: signal.Signals) -> subprocess.Popen:
    """Signals a run of the cohort that has finished one PET; again where it was too fast for us."""
    for _ in range(3):
        shutil.rmtree(folder, ignore_errors=True)
        process = start(*finished.command, "--out-dir", folder)
        deadline = time.monotonic() + 20 * finished.seconds + 10
        while not list(folder.glob("*_dose.json")) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(finished.seconds / finished.pets / 2)
        if process.poll() is None:
            process.send_signal(number)
            return process
        process.communicate()
    pytest.fail("the cohort was finished before the signal, three times")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_cohort_is_resumed(
    finished: Finished, tmp_path: Path, number: signal.Signals
) -> None:
    command, whole, folder = finished.command, finished.results, tmp_path / "interrupted"
    process = interrupt(finished, folder, number)
    process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    done = {p.name for p in folder.glob("*_dose.json")}
    assert 0 < len(done) < finished.pets, done
    for path in folder.iterdir():
        if number != signal.SIGKILL:
            assert path.name[0] != ".", "a partial file stays behind"
        if path.name[0] != "." and path.suffix != ".json":
            assert path.read_bytes() == (whole / path.name).read_bytes(), path.name
    for name in done:
        assert_sidecar_is_true(folder / name)

    kept = {n: (folder / n).stat().st_mtime_ns for n in done}
    second = dosemap(*command, "--out-dir", folder, "--resume")
    assert second.returncode == 0, second.stderr
    assert {n: (folder / n).stat().st_mtime_ns for n in done} == kept, "made again"
    assert_same_results(folder, whole)


def test_resume_does_not_trust_damaged_results(
    cohort: list[Path], tiny: Path, tmp_path: Path
) -> None:
    """Maps and sidecars that are cut, changed or missing are made again, the others are not."""
    command = ["predict", *cohort, *SUV_78, *FAST, "-m", tiny, "--out-dir"]
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    assert dosemap(*command, whole).returncode == 0
    assert dosemap(*command, folder).returncode == 0

    def change(name: str, new: bytes | None) -> None:
        (folder / name).unlink() if new is None else (folder / name).write_bytes(new)

    flipped = bytearray((folder / "sub-1_dose.nii").read_bytes())
    flipped[1000] ^= 1
    change("sub-0_dose.nii", (folder / "sub-0_dose.nii").read_bytes()[:-1])
    change("sub-1_dose.nii", bytes(flipped))
    change("sub-2_dose.nii", None)
    change("sub-3_dose.json", (folder / "sub-3_dose.json").read_bytes()[:100])
    change("sub-4_dose.json", None)
    kept = (folder / "sub-5_dose.nii").stat().st_mtime_ns
    assert dosemap(*command, folder, "--resume").returncode == 0
    assert_same_results(folder, whole)
    assert (folder / "sub-5_dose.nii").stat().st_mtime_ns == kept


def test_a_bad_pet_does_not_stop_the_cohort(cohort: list[Path], tiny: Path, tmp_path: Path) -> None:
    cohort[1].write_bytes(cohort[1].read_bytes()[:-5])
    cohort[3].unlink()
    folder = tmp_path / "results"
    result = dosemap("predict", *cohort, *SUV_78, *FAST, "-m", tiny, "--out-dir", folder)
    assert result.returncode == 1
    errors = result.stderr.splitlines()
    assert len(errors) == 2 and "sub-1_pet" in errors[0] and "sub-3_pet" in errors[1]
    assert sorted(p.name for p in folder.glob("*.nii")) == [
        f"sub-{i}_dose.nii" for i in (0, 2, 4, 5)
    ]
