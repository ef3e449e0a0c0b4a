# SPDX-License-Identifier: Apache-2.0
"""`dosemap bench`: what it reports and refuses, on the CPU and on the emulated GPU. How fast
anything is, is no matter of tests.
"""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xxhash
from conftest import BIN, SUV_78, assert_refused, dosemap
from emulated_cuda import MODULE, needs_module, settings
from program import ROOT

SMALL = ROOT / "tests/golden/batch-small/model.safetensors.zst"  # patches of 16
QUICK = ("--model", SMALL, "--runs", "1", "--warmup", "1", "--threads", "2")
TINY = (*QUICK, "--size", "19,17,16", "--overlap", "0")
RATES = {
    "patches_per_s", "tflop_per_s", "share_of_multiply_add", "share_of_product", "share_of_copy",
}  # fmt: skip


def bench(*arguments: object, env: dict[str, str] | None = None) -> dict:
    result = dosemap("bench", *arguments, "--json", "-", env=env or {})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def on_device(device: str) -> tuple[tuple[str, str], dict[str, str]]:
    return ("--device", device), settings() if device == "cuda" else {}


def positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < float("inf")


devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_module)])


@pytest.fixture
def pet(tmp_path: Path, affine: np.ndarray) -> Path:
    data = np.random.default_rng(5).gamma(1.5, 2.0, (23, 17, 19)).astype(np.float32)
    path = tmp_path / "in/sub-1_pet.nii"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


# ---- What it reports ----------------------------------------------------------------------------


def documented_keys() -> list[str]:
    page = (ROOT / "bench/README.md").read_text().partition("## What `dosemap bench")[2]
    page = page.partition("\n## ")[0]
    cells = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    return [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]


@devices
def test_everything(device: str) -> None:
    option, env = on_device(device)
    report = bench(*TINY, *option, "--layers", env=env)
    assert list(report) == documented_keys()
    assert (report["schema_version"], report["emulated"]) == (1, device == "cuda")
    assert report["command_line"].startswith("bench --model ")
    tile = report["settings"]["tile"]
    assert (report["settings"]["backend"], tile) == (device, [16, 16, 16])
    assert report["network"]["flop"] > report["network"]["useful_flop"] > 0
    assert report["environment"]["memory_bytes"] > 1e8 and report["environment"]["device"]
    assert positive(report["ceilings"]["copy_bytes_per_s"])
    assert positive(report["ceilings"]["product_flop_per_s"])

    offline, single, volume = (report[k] for k in ("offline", "single_stream", "volume"))
    assert offline["patches_per_run"] >= offline["batch"] * offline["at_once"] >= 1
    assert offline["minimum"] == offline["median"] == offline["seconds"][0]
    rate = offline["patches_per_run"] / offline["median"]
    assert offline["patches_per_s"] == pytest.approx(rate)
    assert offline["tflop_per_s"] == pytest.approx(rate * report["network"]["useful_flop"] * 1e-12)
    moved = sum(layer["bytes"] for layer in report["layers"])
    assert offline["bytes_per_patch"] == pytest.approx(moved)
    latency = single["latency"]
    assert 0 < latency["minimum"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["p99"] <= latency["maximum"] and single["runs"] == 1
    assert (volume["pet"], volume["size"]) == ("synthetic", [19, 17, 16])
    assert (volume["windows"], volume["windows_skipped"], volume["same_bytes"]) == (4, 0, True)
    assert volume["patches_per_s"] == pytest.approx(4 / volume["median"])
    for part in (offline, single, volume):
        assert set(part) >= RATES
    stages = volume["stages"]
    assert ",".join(stages) == "prepare,upload,network,finish,resample,download,dvh"
    assert positive(stages["network"]) and stages["resample"] is stages["dvh"] is None
    assert (stages["upload"] is None) == (stages["download"] is None) == (device == "cpu")
    total = sum(seconds for seconds in stages.values() if seconds)
    assert total <= volume["median"] * 1.001

    assert report["layers_seconds"] == pytest.approx(sum(s["seconds"] for s in report["layers"]))
    for layer in report["layers"]:
        assert layer["name"] and layer["way"] and positive(layer["seconds"]), layer
        assert layer["bytes_per_s"] == pytest.approx(layer["bytes"] / layer["seconds"])
    assert report["error"]["windows"] == 4 and report["error"]["reason"] is None
    assert report["error"]["relative_l2"] <= 1e-5
    assert report["memory"]["host_peak_bytes"] > 1e6
    assert positive(report["memory"]["device_bytes"]) == (device == "cuda")


@needs_module
def test_layers_are_those_of_the_account() -> None:
    """With the bytes and FLOPs that `inspect --plan cuda` lists for the same batch."""
    options = ("--batch", "3", "--precision", "bf16")
    report = bench(*TINY, *options, "--device", "cuda", "--layers", env=settings())
    inspected = dosemap("inspect", SMALL, "--plan", "cuda", *options, "--json", env=settings())
    operations = json.loads(inspected.stdout)["account"]["operations"]
    keys = ("name", "bytes", "flop")
    assert [[x[k] for k in keys] for x in report["layers"]] == [
        [x[k] for k in keys] for x in operations
    ]
    assert report["offline"]["batch"] == 3


@devices
def test_precision(device: str) -> None:
    option, env = on_device(device)
    features = json.loads(dosemap("doctor", "--json").stdout)["cpu"]["precisions"]
    if device == "cpu" and "bf16" not in features:
        pytest.skip("this CPU has no bf16")
    scenario = ("--scenario", "offline", "--precision", "bf16")
    report = bench(*TINY, *option, *scenario, env=env)
    assert report["settings"]["precision"] == "bf16"
    assert 1e-4 < report["error"]["relative_l2"] < 2e-2


@devices
def test_it_measures_what_predict_does(device: str, pet: Path, tmp_path: Path) -> None:
    option, env = on_device(device)
    options = (*SUV_78, "--model", SMALL, *option, "--tile", "24,16,16", "--blend", "constant")
    result = dosemap("predict", pet, *options, "-o", tmp_path / "o.nii", env=env)
    assert result.returncode == 0, result.stderr
    report = bench(pet, *options, "--scenario", "volume", "--runs", "2", env=env)
    volume = report["volume"]
    dose = np.asarray(nib.load(tmp_path / "o.nii").dataobj, np.float32)
    assert volume["output_xxh64"] == xxhash.xxh64_hexdigest(dose.tobytes(order="F"), seed=0)
    assert (volume["pet"], volume["size"]) == (str(pet), [23, 17, 19])
    assert len(volume["seconds"]) == 2 and volume["same_bytes"]
    assert report["offline"] is report["single_stream"] is report["layers"] is None
    assert report["tune"] is report["tuning"] is None


def test_a_pet_is_made_the_same_every_time() -> None:
    options = (*TINY, "--scenario", "volume")
    first, second = (bench(*options)["volume"] for _ in range(2))
    assert first["output_xxh64"] == second["output_xxh64"]
    other = bench(*QUICK, "--overlap", "0", "--size", "17", "--scenario", "volume")["volume"]
    assert other["size"] == [17, 17, 17] and other["output_xxh64"] != first["output_xxh64"]


def test_air_is_skipped() -> None:
    """The body is 0.8 of the volume wide: of ten windows the outermost two are air."""
    options = (*QUICK, "--size", "160,16,16", "--overlap", "0", "--scenario", "volume")
    volume = bench(*options, "--skip-air", "0.1")["volume"]
    assert (volume["windows"], volume["windows_skipped"]) == (8, 2)


def test_runs_are_counted() -> None:
    report = bench(*TINY, "--scenario", "single-stream", "--runs", "7")
    latency = report["single_stream"]["latency"]
    assert report["single_stream"]["runs"] == 7
    assert latency["minimum"] <= latency["mean"] <= latency["maximum"]
    assert latency["p90"] == latency["p99"] == latency["maximum"]  # nearest rank of seven


@needs_module
def test_tune(tmp_path: Path) -> None:
    """What is found is used by this volume, and by later ones of as large a batch."""
    options = (*TINY, "--device", "cuda", "--scenario", "volume")
    env = {**settings(), "DOSEMAP_CACHE_DIR": str(tmp_path / "cache")}
    report = bench(*options, "--tune", env=env)
    batch = report["volume"]["batch"]
    assert report["tune"]["batch"] == batch and report["tune"]["layers"]
    file = Path(report["tuning"]["File"])
    assert file.parent == tmp_path / "cache" and file.is_file()
    later = bench(*options, env=env)
    assert later["tuning"] == report["tuning"] and later["tune"] is None
    summary = dosemap("bench", *options, env=env).stdout
    assert str(file) in summary and report["tuning"]["XXH64"] in summary
    other = bench(*options, "--batch", "3", env=env)
    assert other["volume"]["batch"] == 3 and other["tuning"] is None


@needs_module
def test_several_devices() -> None:
    """Share a volume; the network alone is one device's. The energy is that of both."""
    found = {"LD_LIBRARY_PATH": str(Path(MODULE).parent / "driver")}
    options = (*QUICK, "--size", "16,16,40", "--overlap", "0", "--scenario", "volume")
    one = bench(*options, "--device", "cuda", env={**settings(), **found})["volume"]
    both = (*options, "--device", "cuda:0,1")
    report = bench(*both, env={**settings(devices=2), **found})
    volume = report["volume"]
    assert (volume["output_xxh64"], volume["windows"]) == (one["output_xxh64"], one["windows"])
    assert report["settings"]["device"] == "cuda:0,1"
    assert (one["joules"], volume["joules"]) == pytest.approx((2.5, 5))


@needs_module
def test_energy() -> None:
    """Where the driver's library tells it; the one here counts 2.5 J at each question."""
    options = (*TINY, "--device", "cuda", "--runs", "2")
    found = {"LD_LIBRARY_PATH": str(Path(MODULE).parent / "driver")}
    report = bench(*options, env={**settings(), **found})
    patches = 2 * report["offline"]["patches_per_run"]
    assert report["offline"]["joules_per_patch"] == pytest.approx(2.5 / patches)
    assert report["volume"]["joules"] == pytest.approx(2.5)
    report = bench(*options, env=settings())
    assert report["offline"]["joules_per_patch"] is report["volume"]["joules"] is None


# ---- Where it goes ------------------------------------------------------------------------------


def test_summary_and_file(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    result = dosemap("bench", *TINY, "--layers", "--json", path)
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    assert path.read_text().endswith("}\n") and list(tmp_path.iterdir()) == [path]
    for word in ("windows/s", "one window", "volume", "XXH64", "relative L2", "GFLOP/s", "copy"):
        assert word in result.stdout
    assert report["volume"]["output_xxh64"] in result.stdout
    assert all(layer["name"] in result.stdout for layer in report["layers"])
    assert "emulated" not in result.stdout


@needs_module
def test_the_summary_says_that_a_device_is_emulated() -> None:
    options = (*TINY, "--device", "cuda", "--scenario", "volume")
    result = dosemap("bench", *options, env=settings())
    assert result.returncode == 0, result.stderr
    assert "emulated on the CPU" in result.stdout and "mean nothing" in result.stdout


def test_quiet() -> None:
    result = dosemap("bench", *TINY, "--scenario", "volume", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# ---- What it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scenario", "server"), "all|offline|single-stream|volume"),
        (("--runs", "0"), "from 1 to"),
        (("--runs", "1.5"), "whole number"),
        (("--warmup", "-1"), "from 1 to"),
        (("--size", "20,20"), "not '20,20'"),
        (("--size", "0"), "not '0'"),
        (("--size", "65537"), "not '65537'"),
        (("--tile", "round"), "not 'round'"),
        (("--precision", "int8"), "not 'int8'"),
        (("--convolutions", "cudnn"), "auto|library|own"),
        (("--overlap", "1"), "from 0 to 0.9"),
        (("--units", "Bq/mL"), "suv|bqml|kbqml"),
        (("--output", "o.nii"), "output"),
        (("a.nii", "b.nii"), "one PET"),
        (("a.nii", "--size", "20"), "--size is for a PET that is made"),
        (("--json", ""), "--json wants a file"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    result = dosemap("bench", *arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr
    assert result.stdout == ""


def test_errors_leave_no_file(tmp_path: Path, pet: Path, out: Path) -> None:
    report = ("--json", out)
    for arguments, words in (
        ((*QUICK, tmp_path / "none.nii"), ("none.nii", "cannot")),
        ((*QUICK, pet), ("units", "--units")),
        ((*TINY, "--device", "tpu"), ("there is no device 'tpu'",)),
        ((*TINY, "--tile", "17"), ("multiple",)),
        ((*TINY, "--memory", "1K"), ("memory",)),
        ((*QUICK, "--size", "5000"), ("5000 x 5000 x 5000", "use a smaller --size")),
        ((*TINY, "--convolutions", "own", "--device", "cpu"), ("CUDA devices", "--device cuda")),
        ((*TINY, "--tune", "--device", "cpu"), ("nothing to tune", "cuda")),
        (("--model", tmp_path / "none.zst", "--size", "16"), ("none.zst",)),
    ):
        assert_refused(dosemap("bench", *arguments, *report), out, *words)


def test_a_report_that_cannot_be_written_is_told_before_the_work(tmp_path: Path) -> None:
    result = dosemap("bench", *TINY, "--json", tmp_path / "none/b.json")
    assert result.returncode == 1 and "none/b.json: cannot be written" in result.stderr
    assert result.stdout == ""


def test_inputs_are_not_overwritten(pet: Path, tiny: Path) -> None:
    for file in (pet, tiny):
        content = file.read_bytes()
        result = dosemap("bench", pet, *SUV_78, "--model", tiny, "--json", file)
        assert result.returncode == 2 and "would overwrite" in result.stderr
        assert file.read_bytes() == content


def test_inputs_that_no_argument_names_are_not_overwritten(pet: Path, tiny: Path) -> None:
    sidecar = pet.with_name("sub-1_pet.json")
    sidecar.write_text("{}")
    for file in (sidecar, tiny):
        content = file.read_bytes()
        result = dosemap("bench", pet, *SUV_78, "--json", file, env={"DOSEMAP_MODEL": str(tiny)})
        assert result.returncode == 1 and f"{file}: this report would overwrite" in result.stderr
        assert file.read_bytes() == content


def test_a_report_in_the_place_of_a_folder(tmp_path: Path) -> None:
    result = dosemap("bench", *TINY, "--json", tmp_path)
    assert result.returncode == 1 and "cannot be written: Is a directory" in result.stderr


def test_voxels_that_are_not_finite(pet: Path) -> None:
    image = nib.load(pet)
    data = np.asarray(image.dataobj).copy()
    data[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), pet)
    options = (pet, *SUV_78, *QUICK, "--scenario", "volume", "--overlap", "0")
    result = dosemap("bench", *options)
    assert result.returncode == 1 and "voxel (3, 4, 5) of the PET is nan" in result.stderr
    assert bench(*options, "--nan-to-zero")["volume"]["windows"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    """At once, and nothing is left."""
    path = tmp_path / "b.json"
    arguments = [*map(str, (*TINY, "--runs", "1000", "--json", path))]
    with subprocess.Popen([str(BIN), "bench", *arguments], env=dict(os.environ)) as process:
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    assert list(tmp_path.iterdir()) == []
