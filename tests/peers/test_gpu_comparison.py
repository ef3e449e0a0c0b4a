# SPDX-License-Identifier: Apache-2.0
"""bench/compare_gpu on the CPU: its sliding window is MONAI's and dosemap's, its network the
file's; targets are judged by right results only.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is missing: bench/compare_gpu is not tested")
pytest.importorskip("monai", reason="MONAI is missing: the sliding window is not compared")

from dosemap_tools import nifti
from dosemap_tools.networks.generator import NETWORKS, Generator
from images import RAS_AFFINE, uptake
from make_test_models import random_generator, randomise, write_module
from peer import sliding_window as monai_sliding_window
from program import BINARY, ROOT, assert_close, predict

sys.path.insert(0, str(ROOT / "bench"))

from comparison import gpu_measure, gpu_report
from comparison.gpu_peers import DeviceEngine, Way, load_network, way_of
from comparison.peers import Setting
from comparison.sliding_window import sliding_window

# Smaller than the window on one axis, on all; equal; one more; primes.
CASES = [
    ((37, 41, 33), (32, 32, 32), 0.5),
    ((19, 7, 1), (32, 32, 32), 0.5),
    ((32, 35, 65), (32, 32, 32), 0.25),
    ((61, 33, 20), (16, 32, 24), 0.0),
    ((31, 40, 33), (16, 16, 16), 0.7),
]


def mix(x):
    """A network of which each voxel of the result depends on several of the input."""
    return 0.5 * x + 0.3 * torch.roll(x, (1, 2, 3), (2, 3, 4)) - 0.1 * x.mean((2, 3, 4), True)


@pytest.mark.parametrize(("shape", "edge", "overlap"), CASES)
@pytest.mark.parametrize("batch", [1, 7])
def test_sliding_window_is_monais(shape, edge, overlap, batch):
    sizes = set()

    def network(x):
        sizes.add(tuple(x.shape))
        return mix(x)

    volume = uptake(shape, seed=4)
    found = sliding_window(torch.from_numpy(volume), edge, overlap, batch, network).numpy()
    assert_close(found, monai_sliding_window(mix, volume, edge, overlap, "gaussian"), 1e-6)
    assert sizes == {(batch, 1, *edge)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "m.safetensors"
    write_module(path, randomise(Generator(NETWORKS["dosegan-16"]), 5), "dosegan-16")
    return path


WAYS = [
    Way("channels first", "pure", "folded", "eager"),
    Way("channels last", "autocast", "BatchNorm", "eager"),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.arithmetic)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 2e-2)])
def test_volume_is_dosemaps(tmp_path, weights, way, precision, tolerance):
    pet, edge = uptake((35, 33, 16), seed=6), [32, 32, 32]
    tile = ("--tile", 32, "--overlap", 0.5, "--skip-air", "off", "--precision", "float32")
    reference = predict(tmp_path, pet, RAS_AFFINE, weights, *tile)
    source, target = tmp_path / "pet.nii.gz", tmp_path / "dose.nii.gz"
    nifti.write(source, pet, RAS_AFFINE)
    engine = DeviceEngine(weights, precision, Setting(3, 1, 1, way.text()), edge, "cpu")
    times = engine.volume(str(source), str(target), 0.5)
    found, affine = nifti.read(target)
    assert_close(found, reference, tolerance)
    np.testing.assert_allclose(affine, RAS_AFFINE)
    assert times["seconds"] >= times["read"] + times["predict"] > 0
    kind = torch.float32 if precision == "float32" else torch.bfloat16
    assert engine.forward(engine.ready(torch.zeros(1, 1, *edge))).dtype == kind


def test_rates_and_latencies_are_of_this_network(weights):
    engine = DeviceEngine(weights, "float32", Setting(2, 1, 1, WAYS[0].text()), [16] * 3, "cpu")
    windows = uptake((2 * 16, 16, 16)).reshape(2, 1, 16, 16, 16)
    ((count, seconds),) = engine.repeat(windows, 0.01)
    assert count % 2 == 0 and 0 < seconds < 60
    assert engine.facts["windows_per_group"] == count
    latency = engine.latency(windows[:1], 0.01)
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"]


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    write_module(path, random_generator("instance"), "dosegan-16")
    with pytest.raises((ValueError, RuntimeError), match=r"lacks|size mismatch"):
        load_network(path)


def test_ways_survive_their_text():
    for way in (*WAYS, Way("channels last", "pure", "folded", "max-autotune", frozen=True)):
        assert way_of(way.text()) == way


def setting(mode, norm="folded", batch=16):
    return {"batch": batch, "workers": 1, "threads": 1} | {
        "option": Way("channels last", "pure", norm, mode).text()
    }


def bench(precision, rate, edge=32):
    return {"emulated": False, "settings": {"precision": precision, "tile": [edge] * 3}} | {
        "offline": {"patches_per_s": rate, "batch": 64}
    }


def results():
    rows = [
        {"setting": setting("eager"), "rate": 100.0, "difference": 1e-3, "prepare_seconds": 1.0},
        {"setting": setting("eager", "BatchNorm"), "rate": 80.0},
        {"setting": setting("default"), "rate": 200.0, "difference": 1e-3, "prepare_seconds": 9.0},
        {"setting": setting("max-autotune"), "error": "no time"},
    ]
    network = {
        "rows": rows,
        "best": {"eager": setting("eager"), "compile": setting("default")},
        "best_not_folded": {"eager": {"setting": setting("eager", "BatchNorm"), "rate": 80.0}},
        "rounds": {"compile": {"rates": [210.0, 190.0, 200.0]}, "eager": {"rates": [100.0]}},
    }

    def line(seconds, **more):
        return {"seconds": seconds, "parts": [{"read": 0.1}], "joules": [], "setting": None} | more

    volume = {"shape": [8, 8, 8], "bf16": {"dosemap": line([2.0]), "eager": line([5.0])}}
    return {
        "date": "2026-01-01",
        "command": "bench/compare_gpu",
        "commit": "abc",
        "device": {"device": "cuda", "name": "G"},
        "settings": {"edge": [32] * 3, "precisions": ["bf16"]},
        "network": {"bf16": network},
        "volume": volume,
        "dosemap_network": gpu_report.dosemap_rates(
            [
                bench("bf16", 400.0),
                bench("fp16", 1.0) | {"offline": None},
                bench("tf32", 1.0) | {"emulated": True},
                bench("float32", 1.0, edge=64),
            ],
            [32] * 3,
        ),
        "absent": {"TensorRT": "it is not installed"},
        "errors": [],
    }


def test_targets_are_met_or_not():
    found = results()
    assert list(found["dosemap_network"]) == ["bf16"]
    network, volume = gpu_report.targets(found)
    assert (network["found"], network["met"]) == (2.0, True)
    assert (volume["found"], volume["met"]) == (2.5, False)
    found["targets"] = [network, volume]
    text = gpu_report.tables(found)
    assert "2.00 times as fast, wanted 1.5: **met**" in text
    assert "2.50 times as fast, wanted 3.0: **NOT met**" in text
    assert "TensorRT: not compared, it is not installed" in text and "no time" in text


def test_a_wrong_result_or_none_meets_no_target():
    found = results()
    found["volume"]["bf16"]["eager"]["error"] = "its result differs"
    assert len(gpu_report.targets(found)) == 1
    found["dosemap_network"] = {}
    assert gpu_report.targets(found) == []
    on_cpu = results()
    on_cpu["device"]["device"] = "cpu"
    assert gpu_report.targets(on_cpu) == []


def test_best_of_takes_the_fastest_of_a_kind():
    rows = results()["network"]["bf16"]["rows"]
    assert gpu_measure.best_of(rows)["rate"] == 200.0
    assert gpu_measure.best_of(rows, compiled=False)["rate"] == 100.0
    assert gpu_measure.best_of(rows, compiled=False, norm="BatchNorm")["rate"] == 80.0
    assert gpu_measure.best_of(rows[3:]) is None


def test_the_whole_of_it(tmp_path):
    out = tmp_path / "r.json"
    command = [sys.executable, ROOT / "bench/compare_gpu", "--folder", tmp_path, "--device", "cpu"]
    command += ["--quick", "--dosemap", Path(BINARY), "--json", out, "--precisions", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["volume"]["small"]["difference"] <= 1e-5
    for name in ("dosemap", "eager", "compile"):
        row = found["volume"]["float32"][name]
        assert row["seconds"] and row["difference"] <= 2e-5 and "error" not in row, (name, row)
    assert set(found["network"]["float32"]["best"]) == {"eager", "compile"}
    rounds = found["network"]["float32"]["rounds"]
    assert all(rounds[name]["rates"][0] > 0 for name in ("dosemap", "eager", "compile"))
    assert found["errors"] == [] and found["targets"] == []
    assert "Tried on the CPU" in done.stdout
