# SPDX-License-Identifier: Apache-2.0
"""The module as nvcc made it. Without a driver or a device: a clear answer, and the CPU goes on.
With one: the CPU's dose map.
"""

import ctypes
import json
import os

import pytest
from dosemap_tools import nifti
from program import ROOT, UPTAKE, assert_close, run

CASE = ROOT / "tests/golden/batch-small"
COMMAND = ("predict", CASE / "pet.nii.gz", *UPTAKE, "--model", CASE / "model.safetensors.zst",
           "--quiet")  # fmt: skip


def devices():
    """What the driver says; -1 without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return -1
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return -1
    return count.value


@pytest.fixture(autouse=True)
def built_module(monkeypatch):
    """The module that the program finds by itself."""
    monkeypatch.delenv("DOSEMAP_CUDA_MODULE", raising=False)


def test_doctor_found_the_module_and_cudnn():
    report = json.loads(run("doctor", "--json").stdout)["cuda"]
    assert os.path.basename(report["module"]) == "libdosemap-cuda.so", report
    assert report["emulated"] is False
    assert report["usable"] is (devices() > 0), report
    text = run("doctor")
    assert text.returncode == 0 and report["module"] in text.stdout
    if devices() <= 0:
        missing = "driver" if devices() < 0 else "device"
        assert missing in report["problem"] and report["remedy"], report
        assert report["problem"] in text.stdout and report["remedy"] in text.stdout


def test_predict(tmp_path):
    out = tmp_path / "dose.nii.gz"
    result = run(*COMMAND, "--device", "cuda", "-o", out)
    if devices() <= 0:
        assert result.returncode == 1 and result.stdout == "", result
        assert result.stderr.startswith("dosemap: error: ") and result.stderr.count("\n") == 1
        assert ("driver" if devices() < 0 else "device") in result.stderr
        assert "; " in result.stderr and not list(tmp_path.iterdir())
        return
    assert result.returncode == 0, result.stderr
    assert run(*COMMAND, "--device", "cpu", "-o", tmp_path / "cpu.nii.gz").returncode == 0
    dose, _ = nifti.read(out)
    expected, _ = nifti.read(tmp_path / "cpu.nii.gz")
    assert_close(dose, expected, 1e-5)


def test_auto_goes_on_with_the_cpu(tmp_path):
    out = tmp_path / "dose.nii.gz"
    result = run(*COMMAND, "--device", "auto", "-o", out)
    assert result.returncode == 0 and not result.stderr, result.stderr
    backend = json.loads((tmp_path / "dose.json").read_text())["Backend"]
    assert backend == ("cuda" if devices() > 0 else "cpu")


def account(*options, env=None):
    weights = ROOT / "weights/dosegan-constructed.safetensors.zst"
    options = ("--plan", "cuda", "--precision", "bf16", "--json", *options)
    return run("inspect", weights, *options, env=env)


def test_bytes_of_the_shipped_network():
    """With cuDNN's own plans; neither device nor driver is needed."""
    described = ROOT / "host/predict/cuda/devices/device_sm90.json"
    for options in ((), ("--device-properties", described)):
        library = account("--convolutions", "library", *options)
        assert library.returncode == 0, library.stderr
        found = json.loads(library.stdout)["account"]
        assert 50e6 < found["bytes"] <= 80e6, found["bytes"]
        assert found["library"].startswith("cuDNN 9") and found["batch"] == 64
        assert found["present"] is (devices() > 0 and not options)
        if not found["present"]:
            assert "H100" in found["device"] and found["joined_plans"] == 0
        ways = [row["way"] for row in found["operations"]]
        assert sum(way.startswith("library: eng") for way in ways) >= 15, ways


def test_bytes_without_cudnn(tmp_path):
    nowhere = {"DOSEMAP_CUDNN_DIR": str(tmp_path)}
    own = account("--convolutions", "own", env=nowhere)
    assert own.returncode == 0, own.stderr
    found = json.loads(own.stdout)["account"]
    assert 40e6 < found["bytes"] <= 55e6 and found["library"] is None, found["bytes"]
    library = account("--convolutions", "library", env=nowhere)
    assert library.returncode == 1 and "DOSEMAP_CUDNN_DIR" in library.stderr, library.stderr


@pytest.mark.parametrize("convolutions", ["library", "own"])
def test_kept_account_is_true(convolutions):
    """bench/RESULTS.md says how it is made; another cuDNN may choose otherwise."""
    kept = (ROOT / f"bench/results/cuda-account-{convolutions}.txt").read_text()
    described = ROOT / "host/predict/cuda/devices/device_sm90.json"
    options = ("--plan", "cuda", "--precision", "bf16", "--convolutions", convolutions)
    weights = ROOT / "weights/dosegan-constructed.safetensors.zst"
    made = run("inspect", weights, *options, "--device-properties", described).stdout
    made = made[made.index("Account of ") :]
    version = next(line for line in made.splitlines() if line.startswith("convolutions"))
    if version not in kept.splitlines():
        pytest.skip(f"kept is that of another library: {version}")
    assert made == kept
