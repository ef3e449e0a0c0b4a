# SPDX-License-Identifier: Apache-2.0
"""Folders that are missing or closed, disks that are full, names that are taken."""

import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import BIN, QUICK, SUV_78, assert_refused, dosemap

OUTPUTS = ("out.nii", "out.json", "out_dvh.tsv", "out_organs.tsv")


@pytest.fixture
def command(pet: Path, labels: Path, tiny: Path, tmp_path: Path) -> list[object]:
    """All four outputs, but for the place to write them to."""
    return ["predict", pet, *SUV_78, *QUICK, "-m", tiny, "--labels", labels]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder / "out.nii"


def as_nobody() -> None:
    """In the child: root may write to folders that are read-only."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def nobody_can_run() -> bool:
    try:
        version = subprocess.run(
            [BIN, "--version"], preexec_fn=as_nobody, stdout=subprocess.DEVNULL
        )
    except (PermissionError, subprocess.SubprocessError):
        return False
    return version.returncode == 0


@pytest.fixture
def public(pet: Path, labels: Path, tiny: Path) -> Iterator[Path]:
    """A folder that another user can read, with the inputs: pytest's are for their owner only."""
    if not nobody_can_run():
        pytest.skip(f"another user cannot run {BIN}")
    with tempfile.TemporaryDirectory(prefix="dosemap-disk-") as folder:
        place = Path(folder)
        for path in (pet, labels, tiny):
            (place / path.name).write_bytes(path.read_bytes())
        place.chmod(0o755)
        yield place


@pytest.fixture
def public_command(public: Path, pet: Path, labels: Path, tiny: Path) -> list[object]:
    return ["predict", public / pet.name, *SUV_78, *QUICK, "-m", public / tiny.name,
            "--labels", public / labels.name]  # fmt: skip


# ---- Folders


def test_missing_folder(command: list, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    result = dosemap(*command, "-o", missing / "out.nii")
    assert_refused(result, missing / "out.nii", str(missing), "does not exist")
    assert not missing.exists()


def test_a_file_where_a_folder_should_be(command: list, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for option in (("-o", tmp_path / "file" / "out.nii"), ("--out-dir", tmp_path / "file")):
        result = dosemap(*command, *option)
        assert result.returncode == 1 and "file" in result.stderr and "; " in result.stderr
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("mode", [0o555, 0o444, 0o000])
def test_read_only_folder(public_command: list, public: Path, mode: int) -> None:
    out = public / "results" / "out.nii"
    out.parent.mkdir()
    out.parent.chmod(mode)
    result = dosemap(*public_command, "-o", out, preexec_fn=as_nobody)
    out.parent.chmod(0o755)
    assert_refused(result, out, str(out.parent), "cannot be written to")


def test_read_only_folder_for_a_cohort(public_command: list, public: Path) -> None:
    """A folder that cannot be made is an error of each PET, not a crash."""
    new = public / "closed" / "new"
    new.parent.mkdir()
    new.parent.chmod(0o555)
    result = dosemap(*public_command, "--out-dir", new, preexec_fn=as_nobody)
    new.parent.chmod(0o755)
    assert_refused(result, new / "out.nii", str(new), "does not exist")
    assert not new.exists()


@pytest.mark.parametrize("suffix", ["_pet.nii.gz", "_dseg.nii.gz", "tiny.safetensors.zst"])
def test_inputs_that_may_not_be_read(public_command: list, public: Path, suffix: str) -> None:
    out = public / "results" / "out.nii"
    out.parent.mkdir()
    out.parent.chmod(0o777)
    (closed,) = public.glob("*" + suffix)
    closed.chmod(0)
    result = dosemap(*public_command, "-o", out, preexec_fn=as_nobody)
    closed.chmod(0o644)
    assert_refused(result, out, closed.name, "Permission denied")


# ---- Names that are taken


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_folder_of_the_name(command: list, out: Path, name: str) -> None:
    """Also behind the first file: what was written before is taken back."""
    taken = out.parent / name
    taken.mkdir()
    (taken / "kept").write_text("kept")
    result = dosemap(*command, "-o", out)
    assert result.returncode == 1 and name in result.stderr and "; " in result.stderr, result.stderr
    assert [p.name for p in out.parent.iterdir()] == [name]
    assert (taken / "kept").read_text() == "kept"


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("target", ["/dev/full", "/dev/null"])
def test_a_device_of_the_name(command: list, out: Path, name: str, target: str) -> None:
    """Nothing is put in the place of a device, not even of a link to one."""
    link = out.parent / name
    link.symlink_to(target)
    result = dosemap(*command, "-o", out)
    if name == "out.json":  # the sidecar of an earlier run goes first, and a link is only a link
        assert result.returncode == 0 and not link.is_symlink()
        return
    assert result.returncode == 1 and name in result.stderr and "device" in result.stderr
    assert [p.name for p in out.parent.iterdir()] == [name] and link.is_symlink()


def test_device_as_output(command: list) -> None:
    for device in ("/dev/full", "/dev/null", "/dev/stdout"):
        before = os.stat(device).st_mode
        result = dosemap(*command, "-o", device)
        assert result.returncode == 1 and device in result.stderr, result.stderr
        assert os.stat(device).st_mode == before


@pytest.mark.parametrize("arguments", [("--json",), ("--quiet", "--json"), ()])
def test_report_into_a_full_disk(command: list, out: Path, arguments: tuple[str, ...]) -> None:
    """The files are whole, but whoever waits for the report must learn that it is lost."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [BIN, *map(str, command), "-o", out, *arguments], stdout=full, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
    assert result.returncode == 1 and "standard output" in result.stderr
    assert sorted(p.name for p in out.parent.iterdir()) == sorted(OUTPUTS)


@pytest.mark.parametrize("arguments", [("doctor",), ("predict", "--help"), ("--version",)])
def test_text_into_a_full_disk(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [BIN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 1 and "standard output" in result.stderr


# ---- Full disks


def file_limit(limit: int, ignore: bool) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN if ignore else signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def sizes(command: list, out: Path) -> dict[str, int]:
    """Sizes of the files that a run makes; none is left."""
    assert dosemap(*command, "-o", out).returncode == 0
    found = {p.name: p.stat().st_size for p in out.parent.iterdir()}
    assert sorted(found) == sorted(OUTPUTS)
    for path in out.parent.iterdir():
        path.unlink()
    return found


@pytest.mark.parametrize("ignored", [True, False])
def test_file_size_limit(command: list, out: Path, ignored: bool) -> None:
    """The limit stands in for the full disk. Each file in turn is the one that does not fit: the
    large ones are written first, so a limit below the sidecar's size is met by the dose map; the
    sidecar is met alone where the others are smaller."""
    found = sizes(command, out)
    limits = [0, 1, 351, 352, 353, 2000, *(size - 1 for size in found.values())]
    for limit in limits:
        result = dosemap(*command, "-o", out, preexec_fn=lambda n=limit: file_limit(n, ignored))
        assert_refused(result, out, "File too large", "free space")
    largest = max(found.values()) + 200  # the sidecar may say more the next time
    result = dosemap(*command, "-o", out, preexec_fn=lambda: file_limit(largest, ignored))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", OUTPUTS)
def test_each_file_is_the_one_that_does_not_fit(
    tmp_path: Path, tiny: Path, out: Path, name: str
) -> None:
    """Inputs of such sizes that this file is the first above the limit."""
    voxels = {"out.nii": 32, "out_dvh.tsv": 4, "out_organs.tsv": 4, "out.json": 4}[name]
    shape = (voxels,) * 3
    # Without a dose the DVH has two rows; with one it has a thousand.
    value = 0.0 if name in ("out.json", "out_organs.tsv") else 2.0
    nib.save(nib.Nifti1Image(np.full(shape, value, np.float32), np.eye(4)), tmp_path / "p.nii")
    nib.save(nib.Nifti1Image(np.ones(shape, np.int16), np.eye(4)), tmp_path / "l.nii")
    command = ["predict", tmp_path / "p.nii", *SUV_78, *QUICK, "-m", tiny,
               "--labels", tmp_path / "l.nii"]  # fmt: skip
    if name == "out_organs.tsv":
        command += ["--vx", ",".join(str(x) for x in range(1, 30))]
    found = sizes(command, out)
    order = ("out.nii", "out_dvh.tsv", "out_organs.tsv", "out.json")
    before = [found[n] for n in order[: order.index(name)]]
    limit = found[name] - (100 if name == "out.json" else 1)  # its times vary in length
    assert all(size <= limit for size in before), (found, "the case does not single this file out")
    result = dosemap(*command, "-o", out, preexec_fn=lambda: file_limit(limit, True))
    assert_refused(result, out, f"{name}: cannot write it: File too large")


TMPFS = """
set -e
mount -t tmpfs -o size={kib}k none "$1"
cd "$1"
shift
code=0
"$@" || code=$?
ls -A . >&2
exit $code
"""


def namespaces() -> bool:
    try:
        probe = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs none /mnt"]
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not namespaces(), reason="no user namespaces with tmpfs here (unshare -Urm)")
def test_small_disk(command: list, out: Path) -> None:
    """A real file system that is full at any of the four files: 4 KiB steps, as tmpfs has pages."""
    found = sizes(command, out)
    pages = sum(-(-size // 4096) for size in found.values())
    codes = []
    for size in range(4, 4 * (pages + 3), 4 * max(1, pages // 12)):
        run = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", TMPFS.format(kib=size), "sh", str(out.parent), BIN,
             *map(str, command), "-o", str(out), "--quiet"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = run.stderr.splitlines()
        codes.append(run.returncode)
        if run.returncode == 0:
            assert sorted(lines) == sorted(OUTPUTS)
            continue
        assert run.returncode == 1, run.stderr
        assert len(lines) == 1, ("files stay behind", run.stderr)
        assert "No space left on device" in lines[0] and "free space" in lines[0]
    assert codes[0] == 1 and codes[-1] == 0 and codes == sorted(codes, reverse=True), codes
