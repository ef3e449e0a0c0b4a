# SPDX-License-Identifier: Apache-2.0
"""`dosemap inspect --plan cuda` from outside, with the emulated CUDA module."""

import json
import math
from pathlib import Path

import pytest
from conftest import ROOT, dosemap
from emulated_cuda import needs_module, not_sanitized, settings
from test_pet_ct import write_pet_ct_model

MODEL = ROOT / "weights/dosegan-constructed.safetensors.zst"
DEVICES = ROOT / "host/predict/cuda/devices"
SUMS = ("bytes", "bytes_read", "bytes_written", "weight_bytes", "workspace_bytes", "flop")

pytestmark = needs_module


def inspect(*options: object, **emulation: object):
    return dosemap("inspect", MODEL, "--plan", "cuda", *options, env=settings(**emulation))


def account(*options: object, **emulation: object) -> dict:
    result = inspect("--precision", "bf16", "--json", *options, **emulation)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    found = report["account"]
    assert abs(found["flop"] / report["plan"]["flop"] - 1) < 1e-9
    return found


def test_bytes_of_the_shipped_network() -> None:
    """Layer by layer it is 132 MB, with nothing but convolutions' own operands 40."""
    library = account("--convolutions", "library")
    own = account("--convolutions", "own")
    assert 50e6 < library["bytes"] <= 80e6
    assert 40e6 < own["bytes"] <= 55e6
    assert own["library"] is None and library["library"]
    assert own["library_plans"] == 0 and library["library_plans"] > 15
    for found in (library, own):
        assert found["batch"] == 64 and found["emulated"] and found["present"]
        for key in SUMS:
            total = sum(row[key] for row in found["operations"])
            assert abs(total - found[key]) <= 1e-9 * max(found[key], 1), key
        for row in found["operations"]:
            assert row["way"] and 64 % row["windows"] == 0, row
        assert found["operations"][-1]["way"] == "kernel_head_stitch"


def test_bytes_of_two_images(tmp_path: Path) -> None:
    """Of PET and CT each voxel is read once, and both of its channels are written."""
    model = write_pet_ct_model(tmp_path / "pet_ct.safetensors.zst")
    words = ("inspect", model, "--plan", "cuda", "--precision", "bf16", "--json")
    result = dosemap(*words, env=settings())
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    cut_out = report["account"]["operations"][0]
    voxels = math.prod(report["plan"]["tile"])
    assert cut_out["way"] == "kernel_gather"
    assert cut_out["bytes_read"] == 2 * 4 * voxels and cut_out["bytes_written"] == 2 * 2 * voxels


def test_text() -> None:
    text = inspect("--precision", "bf16").stdout
    start = text.index("\nAccount of ")
    table = text[start:].splitlines()
    assert all(len(line) <= 100 for line in table)
    for words in ("(emulated)", "batches of 64 windows", "kernel_gather", "kernel_attention_gate",
                  "kernel_head_stitch", "MB per window", "GFLOP per window"):  # fmt: skip
        assert words in text[start:], words
    assert "Account of" not in dosemap("inspect", MODEL).stdout


def test_settings_change_the_account() -> None:
    usual, one = account(), account("--batch", 1)
    assert one["batch"] == 1 and one["weight_bytes"] > 10 * usual["weight_bytes"]
    assert one["bytes_read"] == usual["bytes_read"]
    assert account("--windows", 3)["batch"] == 3
    # Enough windows for joined plans, which the library that stands in here has.
    many = account("--windows", 20000)
    assert (
        many["joined_plans"] > 15 and usual["joined_plans"] == 0 and many["bytes"] < usual["bytes"]
    )
    float32 = json.loads(inspect("--json", "--precision", "tf32").stdout)["account"]
    assert 1.9 < float32["bytes"] / usual["bytes"] < 2.1
    large = json.loads(inspect("--json", "--precision", "bf16", "--tile", 64).stdout)["account"]
    assert large["batch"] == 8 and 7.9 < large["bytes"] / usual["bytes"] < 8.1


def test_a_described_device() -> None:
    found = account("--device-properties", DEVICES / "device_sm80.json")
    assert not found["present"] and "A100" in found["device"]
    # 40 MB of second-level cache instead of 50.
    small = json.loads((DEVICES / "device_sm80.json").read_text())
    assert small["l2CacheSize"] == 40 << 20


def test_half_a_cache_is_filled(tmp_path: Path) -> None:
    properties = json.loads((DEVICES / "device_sm90.json").read_text())
    portions = {}
    for megabytes in (1, 50, 5000):
        properties["l2CacheSize"] = megabytes << 20
        path = tmp_path / f"{megabytes}.json"
        path.write_text(json.dumps(properties))
        found = account("--device-properties", path)
        portions[megabytes] = found["operations"][0]["windows"]
    assert portions[1] == 1 < portions[50] < portions[5000] == 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "JSON"),
        ("{}", "deviceName or l2CacheSize is missing"),
        ('{"deviceName": "x", "l2CacheSize": 0}', "is missing"),
        ('{"deviceName": "x", "l2CacheSize": "1"}', "is missing"),
        ("[]", "is missing"),
    ],
)
def test_no_description(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "device.json"
    if content is not None:
        path.write_text(content)
    result = inspect("--device-properties", path)
    assert result.returncode == 1 and result.stdout == ""
    assert words in result.stderr and "device.json" in result.stderr, result.stderr


def test_refusals() -> None:
    for option, value in (("--batch", 8), ("--windows", 8), ("--convolutions", "own"),
                          ("--device-properties", "x.json")):  # fmt: skip
        result = dosemap("inspect", MODEL, option, value)
        assert result.returncode == 2 and "--plan cuda" in result.stderr, result.stderr
    for option, value in (("--batch", 0), ("--batch", 1025), ("--windows", 1.5),
                          ("--windows", "nan"), ("--convolutions", "any")):  # fmt: skip
        assert inspect(option, value).returncode == 2, option
    result = inspect("--tile", 20)
    assert result.returncode == 1 and "20 x 20 x 20" in result.stderr
    result = dosemap(
        "inspect", MODEL, "--plan", "cuda", env={"DOSEMAP_CUDA_MODULE": "/nowhere/module.so"}
    )
    assert result.returncode == 1 and "DOSEMAP_CUDA_MODULE" in result.stderr


def test_no_device_is_needed() -> None:
    """Nothing of the runtime is called that the emulation could refuse: its memory is one byte."""
    found = account(memory=1)
    assert found["bytes"] == account()["bytes"]


@not_sanitized
def test_what_tuning_found(tmp_path: Path) -> None:
    """Of the device that is here; a described one has nothing to do with it."""
    small = ROOT / "tests/golden/batch-small/model.safetensors.zst"
    env = {**settings(), "DOSEMAP_CACHE_DIR": str(tmp_path)}
    batch = ("--precision", "bf16", "--batch", 1)
    described = ("--device-properties", DEVICES / "device_sm90.json")

    def tuned(*options: object) -> bool:
        command = ("inspect", small, "--plan", "cuda", "--json", *batch, *options)
        return json.loads(dosemap(*command, env=env).stdout)["account"]["tuned"]

    assert not tuned()
    bench = ("bench", "--model", small, "--device", "cuda", "--tune", *batch, "--runs", 1)
    result = dosemap(*bench, "--scenario", "single-stream", "--warmup", 1, env=env)
    assert result.returncode == 0, result.stderr
    assert tuned() and not tuned(*described) and not tuned("--convolutions", "own")
