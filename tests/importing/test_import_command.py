# SPDX-License-Identifier: Apache-2.0
"""dosemap-import: what it writes for each kind of source, and that it writes nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: imports are not tested")
pytest.importorskip("onnxscript", reason="ONNX is missing: imports are not tested")

import torch
from dosemap_tools import nifti, weights_file
from images import RAS_AFFINE, uptake
from import_networks import (
    PATCH,
    Two,
    bring_in,
    card_file,
    left_in,
    network,
    write_onnx,
    write_program,
)
from make_test_models import random_generator
from program import BINARY, assert_close, predict, relative_l2, run

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("onnx") / "lopsided.onnx", network())


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setenv("DOSEMAP_BIN", str(BINARY))


# Imports ------------------------------------------------------------------------------------------
def sides(folder, suffix):
    """Return a network as a source of each kind, with options for it."""
    module = network(seed=4)
    path = Path(folder) / f"net{suffix}"
    if suffix == ".onnx":
        return module, write_onnx(path, module), ()
    if suffix == ".pt2":
        write_program(path, module)
        return module, path, ()
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(module.state_dict(), path)
    else:
        state = module.state_dict()
        lightning = {"state_dict": {f"net.{k}": v for k, v in state.items()}, "epoch": 3}
        torch.save(lightning if suffix == ".ckpt" else state, path)
    spec = "import_networks:Lopsided(channels=5)"
    return module, path, ("--network", spec)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt", ".pth", ".ckpt", ".safetensors"])
def test_every_kind_of_source(tmp_path, capsys, suffix):
    module, source, options = sides(tmp_path, suffix)
    steps = ("--input-intensity", "clip=0:20 log1p", "--output-intensity", "expm1")
    status, made = bring_in(tmp_path, source, *options, *steps, "--json")
    said = capsys.readouterr()
    assert status == 0, said.err
    assert left_in(tmp_path) == sorted(["card.json", source.name, made.name])

    result, file = json.loads(said.out), weights_file.read(made)
    assert file.graph["inputs"][0]["intensity"] == [{"clip": [0.0, 20.0]}, {"log1p": True}]
    assert file.graph["outputs"][0]["intensity"] == [{"expm1": True}]
    assert (file.graph["patch_size"], file.graph["name"]) == (list(PATCH), "tested")
    assert {k: file.card[k] for k in ("version", "licence", "trained", "skip_air")} == {
        "version": "2", "licence": "Apache-2.0", "trained": False, "skip_air": None,
    }  # fmt: skip
    assert "inputs" not in file.card and "patch_size" not in file.card
    shown = file.card["import"]["proof"]
    assert result["proof"] == shown
    for row in shown["deviations"]:
        assert 0 <= row["relative_l2"] <= 1e-5 and row["original_maximum"] > 0
    assert [row["patch"] for row in shown["deviations"]] == ["normal", "as imaged"]
    own = weights_file.file_checksum(source)
    assert file.card["import"]["source"]["xxh64"] == file.provenance["source"]["xxh64"] == own
    assert file.provenance["versions"]["numpy"] == np.__version__
    assert str(tmp_path) not in json.dumps([file.card, file.provenance])

    # And the program says of a volume what PyTorch says of it.
    volume = uptake(PATCH, seed=2)
    seen = torch.from_numpy(np.log1p(np.clip(volume, 0, 20)))[None, None]
    with torch.no_grad():
        reference = np.expm1(module(seen)[0, 0].numpy())
    assert_close(predict(tmp_path, volume, RAS_AFFINE, made), reference, 1e-5)


def test_the_same_import_gives_the_same_bytes(tmp_path, lopsided):
    first, one = bring_in(tmp_path, lopsided, out="one.safetensors.zst")
    second, two = bring_in(tmp_path, lopsided, out="two.safetensors.zst")
    assert first == second == 0
    assert one.read_bytes() == two.read_bytes()


def test_a_network_of_models(tmp_path, capsys):
    module = random_generator("dosegan-16")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    card = {
        "patch_size": [16, 16, 16],
        "spatial_axes": "zyx",
        "inputs": [{"name": "image", "quantity": "suv"}],
        "outputs": [{"name": "map", "quantity": "dose_per_activity"}],
    }
    status, made = bring_in(tmp_path, tmp_path / "state.pt", "--network", "dosegan-16", card=card)
    assert status == 0, capsys.readouterr().err
    graph = weights_file.read(made).graph
    assert graph["spatial_axes"] == "zyx" and graph["inputs"][0]["quantity"] == "suv"
    assert graph["nodes"][0]["inputs"][0] == "image" and graph["nodes"][-1]["outputs"] == ["map"]
    written = weights_file.read(made).tensors
    for name, values in module.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written[name], values.numpy())


def test_several_inputs_and_outputs(tmp_path, capsys):
    source = write_onnx(tmp_path / "two.onnx", network(Two, seed=1), 1, 2)
    card = {
        "inputs": [
            {"quantity": "uptake"},
            {"quantity": "hu", "intensity": [{"scale": 1e-3, "offset": 0.0}]},
            {"name": "depth", "quantity": "other", "unit": "mm"},
        ],
        "outputs": [
            {"quantity": "dose_per_activity"},
            {"name": "spread", "quantity": "other", "unit": "Gy"},
            {"name": "image", "quantity": "other", "unit": "1"},
        ],
    }
    status, made = bring_in(tmp_path, source, card=card)
    assert status == 0, capsys.readouterr().err
    file = weights_file.read(made)
    assert [p["name"] for p in file.graph["inputs"]] == ["pet", "ct", "depth"]
    rows = file.card["import"]["proof"]["deviations"]
    assert [row["output"] for row in rows[::2]] == ["dose", "spread", "image"]
    assert max(row["relative_l2"] for row in rows) <= 1e-5


def test_a_module_with_several_inputs(tmp_path, capsys):
    torch.save(network(Two, seed=1).state_dict(), tmp_path / "two.pt")
    options = ("--network", "import_networks:Two")
    ports = ("--input", "uptake", "--input", "ct:other:1:2", "--output", "dose:other:1:2")
    status, made = bring_in(
        tmp_path, tmp_path / "two.pt", *options, *ports, "--output", "x:other:1"
    )
    assert status == 0, capsys.readouterr().err
    assert [p["channels"] for p in weights_file.read(made).graph["inputs"]] == [1, 2]
    status, _ = bring_in(tmp_path, tmp_path / "two.pt", *options, *ports, "--input", "more:other:1")
    assert status == 2 and "has 2 arguments" in capsys.readouterr().err


def test_units_that_are_converted(tmp_path, lopsided):
    """A network in cGy/GBq that saw %IA/mL: its doses are converted, its input too."""
    ports = ("--input", "uptake:%IA/mL", "--output", "dose_per_activity:cGy/GBq")
    status, made = bring_in(tmp_path, lopsided, *ports)
    assert status == 0
    file = weights_file.read(made)
    assert file.graph["inputs"][0]["intensity"] == [{"scale": 1 / 787, "offset": 0.0}]
    assert file.graph["outputs"][0]["unit"] == "Gy/GBq"
    assert "1 cGy/GBq is 0.01 Gy/GBq" in "".join(file.card["import"]["notes"])
    volume = uptake(PATCH, seed=3)
    with torch.no_grad():
        reference = 0.01 * network()(torch.from_numpy(volume / 787)[None, None])[0, 0].numpy()
    assert_close(predict(tmp_path, volume, RAS_AFFINE, made), reference, 1e-5)


@pytest.mark.parametrize(("dtype", "low", "high"), [("F16", 1e-5, 1e-2), ("BF16", 1e-4, 5e-2)])
def test_half_precision_says_what_rounding_changes(tmp_path, lopsided, dtype, low, high, capsys):
    status, made = bring_in(tmp_path, lopsided, "--dtype", dtype)
    assert status == 0
    file = weights_file.read(made)
    shown = file.card["import"]["proof"]
    assert file.dtype == dtype and shown["rounded_to"] == dtype
    assert max(row["relative_l2"] for row in shown["deviations"]) <= 1e-5
    for row in shown["rounding"]:
        assert low < row["relative_l2"] < high
    assert f"with weights in {dtype}:" in capsys.readouterr().out


def test_a_real_patch_is_proven_too(tmp_path, lopsided):
    nifti.write(tmp_path / "pet.nii.gz", uptake((20, 20, 20)), RAS_AFFINE)
    status, made = bring_in(tmp_path, lopsided, "--patch-file", tmp_path / "pet.nii.gz")
    assert status == 0
    rows = weights_file.read(made).card["import"]["proof"]["deviations"]
    assert [row["patch"] for row in rows] == ["normal", "as imaged", "given"]


def test_quiet_and_report(tmp_path, lopsided, capsys):
    assert bring_in(tmp_path, lopsided, "--quiet")[0] == 0
    said = capsys.readouterr()
    assert said.out == said.err == ""
    assert bring_in(tmp_path, lopsided, "--quantity", "suv", "--unit", "kg/L")[0] == 0
    said = capsys.readouterr().out
    for words in ("pet: 1 x suv in g/mL", "14 x 10 x 6", "ONNX Runtime", "relative L2", "written:"):
        assert words in said, words


# Nothing is left ----------------------------------------------------------------------------------
def test_a_network_that_is_not_the_original_is_not_written(tmp_path, lopsided, capsys, monkeypatch):
    """One weight is changed by a thousandth on the way: what was there before stays."""
    write = weights_file.write

    def write_wrongly(path, graph, card, provenance, tensors, dtype="F32"):
        name = max(tensors, key=lambda n: tensors[n].size)
        values = tensors[name].copy()
        values.flat[np.argmax(np.abs(values))] *= 1.001
        write(path, graph, card, provenance, {**tensors, name: values}, dtype)

    (tmp_path / "net.safetensors.zst").write_bytes(b"before")
    monkeypatch.setattr(weights_file, "write", write_wrongly)
    status, made = bring_in(tmp_path, lopsided)
    said = capsys.readouterr().err
    assert status == 1 and "is not the original" in said and "relative L2" in said
    assert made.read_bytes() == b"before"
    assert left_in(tmp_path) == ["card.json", made.name]

    assert bring_in(tmp_path, lopsided, "--tolerance", "1e-2")[0] == 0
    assert weights_file.read(made).card["import"]["proof"]["tolerance_relative_l2"] == 1e-2


def test_out_must_not_be_the_source(tmp_path, capsys):
    weights_file.write(tmp_path / "a.safetensors", {}, {}, {}, {"x": np.ones(1)})
    status, _ = bring_in(tmp_path, tmp_path / "a.safetensors", out="a.safetensors")
    assert status == 2 and "the source itself" in capsys.readouterr().err
    status, _ = bring_in(tmp_path, tmp_path / "a.safetensors", out="none/a.safetensors")
    assert status == 1 and "folder is not there" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path, lopsided, number):
    waiting = tmp_path / "program"
    waiting.write_text(f"#!/bin/sh\ntouch {tmp_path}/running\nexec sleep 60\n")
    waiting.chmod(0o755)
    card = card_file(tmp_path)
    out = tmp_path / "net.safetensors.zst"
    out.write_bytes(b"before")
    arguments = [str(lopsided), "-o", str(out), "--card", str(card), "--dosemap", str(waiting)]
    environment = {**os.environ, "PYTHONPATH": str(TOOLS)}
    running = subprocess.Popen(
        [sys.executable, "-m", "dosemap_tools.importing.command", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not (tmp_path / "running").exists():
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    assert any(name.startswith(".net") for name in left_in(tmp_path)), "it is at work"
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + number and "Traceback" not in said
    assert out.read_bytes() == b"before"
    assert left_in(tmp_path) == ["card.json", out.name, "program", "running"]


def test_dosemap_finds_it_on_path(tmp_path, lopsided):
    script = tmp_path / "bin/dosemap-import"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m dosemap_tools.importing.command "$@"\n')
    script.chmod(0o755)
    environment = {"PATH": f"{script.parent}:{os.environ['PATH']}", "PYTHONPATH": str(TOOLS)}
    out = tmp_path / "net.safetensors.zst"
    done = run("import", lopsided, "-o", out, "--card", card_file(tmp_path), env=environment)
    assert done.returncode == 0, done.stderr
    assert "written:" in done.stdout
    assert run("import", lopsided, env=environment).returncode == 2
    assert "import  " in run("inspect", out).stdout


# Axes ---------------------------------------------------------------------------------------------
def by_hand(module, path, loader):
    """The whole volume as the network of someone who trained with that loader sees it; RAS or LPS.

    nibabel's arrays are [x, y, z], SimpleITK's [z, y, x]. Both are given in the orientation that
    was stated, and so is the result.
    """
    volume, _ = nifti.read(path)
    array = volume if loader == "nibabel" else np.ascontiguousarray(volume.T)
    with torch.no_grad():
        result = module(torch.from_numpy(array)[None, None])[0, 0].numpy()
    return result if loader == "nibabel" else result.T


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("loader", "axes", "orientation"),
    [("nibabel", "xyz", "RAS"), ("SimpleITK", "zyx", "LPS"), ("SimpleITK", "zyx", "RAS")],
)
def test_axes_and_orientation_are_those_that_were_stated(
    tmp_path, suffix, loader, axes, orientation
):
    """And exchanged ones give something else: the network's three axes are all different."""
    module, source, options = sides(tmp_path, suffix)
    patch = PATCH if axes == "xyz" else PATCH[::-1]  # the file is of one patch in its own axes
    volume = uptake(patch, seed=7)
    affine = RAS_AFFINE if orientation == "RAS" else RAS_AFFINE @ np.diag([-1.0, -1.0, 1.0, 1.0])
    nifti.write(tmp_path / "in.nii", volume, affine)
    reference = by_hand(module, tmp_path / "in.nii", loader)

    def dose(spatial_axes, points, size, name):
        card = {"spatial_axes": spatial_axes, "orientation": points, "patch_size": list(size)}
        status, made = bring_in(tmp_path, source, *options, card=card, out=f"{name}.safetensors")
        assert status == 0
        whole = ("--tile", "whole", "--force-tile", "--skip-air", "off")
        return predict(tmp_path, volume, affine, made, *whole)

    assert_close(dose(axes, orientation, patch, "right"), reference, 1e-5)
    other_axes = "zyx" if axes == "xyz" else "xyz"
    swapped = dose(other_axes, orientation, patch[::-1], "axes")
    assert relative_l2(swapped, reference) > 0.1
    mirrored = dose(axes, "LPS" if orientation == "RAS" else "RAS", patch, "orientation")
    assert relative_l2(mirrored, reference) > 0.1
