# SPDX-License-Identifier: Apache-2.0
"""What dosemap-export writes computes what the weights file does, and leads back to it."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is missing: exports are not run")
pytest.importorskip("torch", reason="PyTorch is missing: exports are not compared with it")

import onnx
import torch
from dosemap_tools import exporting, weights_file
from exported import (
    CARD,
    PROVENANCE,
    RNG,
    export,
    forward,
    imported,
    make_graph,
    port,
    random_inputs,
    session_run,
    shape_of_graph,
    spatial,
    write,
)
from program import ROOT, assert_close

SHIPPED = sorted((ROOT / "weights").glob("*.safetensors.zst"))


# Whole networks -----------------------------------------------------------------------------------
def pet_ct_graph(axes="zyx"):
    """Two inputs, one of two channels, and three outputs of which one is no volume."""
    conv = {"kernel_shape": [3, 1, 3], "pads": [1, 0, 1, 1, 0, 1]}
    nodes = [
        ("Concat", ["pet", "ct"], "both", {"axis": 1}),
        ("Conv", ["both", "first", "bias"], "wide", conv),
        ("InstanceNormalization", ["wide", "scale", "bias"], "normal", {"epsilon": 1e-3}),
        ("MaxPool", ["normal"], "half", {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
        ("Resize", ["half"], "full", {"mode": "linear", "scales": [2.0, 2.0, 2.0]}),
        ("Sub", ["full", "pet"], "rest", {}),
        ("Conv", ["full", "last", ""], "dose", {"kernel_shape": [1, 1, 1]}),
        ("GlobalAveragePool", ["rest"], "mean", {}),
    ]
    weights = {
        "first": RNG.normal(0, 0.3, (5, 3, 3, 1, 3)),
        "bias": RNG.normal(size=5),
        "scale": RNG.uniform(0.5, 2, 5),
        "last": RNG.normal(size=(1, 5, 1, 1, 1)),
    }
    inputs = [
        port("pet", "uptake", "g/mL", 1, [{"scale": 0.1, "offset": 0.0}, {"clip": [0, 9]}]),
        port("ct", "hu", "HU", 2),
    ]
    outputs = [
        port("dose", "dose_per_activity", "Gy/GBq", 1, [{"expm1": True}]),
        port("rest", channels=5),
        port("mean", channels=5),
    ]
    return make_graph(nodes, inputs, outputs, axes, (8, 6, 10)), weights


def test_functions_of_onnx_behind_each_other(tmp_path):
    """onnx infers no shape behind GroupNormalization, which is a function there."""
    norm = {"num_groups": 3, "epsilon": 1e-3}
    nodes = [
        ("GroupNormalization", ["x", "s", "b"], "a", norm),
        ("Gelu", ["a"], "g", {}),
        ("MaxPool", ["g"], "p", {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2], "ceil_mode": 1}),
        ("GroupNormalization", ["p", "s", "b"], "n", norm),
        ("Resize", ["n"], "y", {"mode": "linear", "scales": [5 / 3, 2.0, 2.0]}),
    ]
    graph = make_graph(nodes, [port("x", channels=6)], [port("y", channels=6)], patch=(7, 9, 6))
    weights = {"s": RNG.uniform(0.5, 2, 6), "b": RNG.normal(size=6)}
    source = write(tmp_path / "m.safetensors", graph, weights)
    out = export(source)
    onnx.checker.check_model(out, full_check=True)
    inputs = random_inputs(graph)
    assert_close(session_run(out, inputs)["y"], forward(source, graph, inputs)["y"], 1e-5)


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
def test_several_ports(tmp_path, axes):
    graph, weights = pet_ct_graph(axes)
    source = write(tmp_path / "m.safetensors", graph, weights)
    out = export(source)
    onnx.checker.check_model(out, full_check=True)
    network = imported(out, graph)
    again = tmp_path / "again.safetensors"
    weights_file.write(again, network.graph, CARD, PROVENANCE, network.tensors)
    for sizes in (spatial(graph), (4, 14, 6)):
        inputs = random_inputs(graph, sizes, samples=3)
        expected = forward(source, graph, inputs)
        computed, back = session_run(out, inputs), forward(again, graph, inputs)
        for name in ("dose", "rest", "mean"):
            assert_close(computed[name], expected[name], 1e-5)
            np.testing.assert_array_equal(back[name], expected[name])


def test_ports_and_metadata(tmp_path):
    graph, weights = pet_ct_graph()
    model = onnx.load(export(write(tmp_path / "m.safetensors.zst", graph, weights)))
    pet, ct = model.graph.input
    assert pet.doc_string == (
        'uptake in g/mL, after the intensity steps {"scale": 0.1, "offset": 0.0}, {"clip": [0, 9]}'
    )
    assert ct.doc_string == "hu in HU"
    assert model.graph.output[0].doc_string.startswith("dose_per_activity in Gy/GBq, before")
    shapes = [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    free = ["size_z", "size_y", "size_x"]
    assert shapes == [
        ["N", 1, *free], ["N", 2, *free], ["N", 1, *free], ["N", 5, *free], ["N", 5, 0, 0, 0]
    ]  # fmt: skip
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(props["dosemap.graph"]) == graph
    assert json.loads(props["dosemap.card"]) == CARD
    assert json.loads(props["dosemap.provenance"]) == PROVENANCE
    assert "(N, channels, z, y, x) of a grid in RAS order" in model.graph.doc_string
    assert "intensity steps" in model.graph.doc_string


@pytest.mark.parametrize(
    ("op", "attributes", "free"),
    [
        ("Slice", {"starts": [1, 0, 2], "ends": [-1, -2, 2**31 - 1], "axes": [2, 3, 4]}, True),
        ("Slice", {"starts": [0], "ends": [3], "axes": [1]}, True),
        ("Slice", {"starts": [0, 0], "ends": [5, 3], "axes": [1, 2]}, False),
        ("Slice", {"starts": [-3], "ends": [2**31 - 1], "axes": [4]}, False),
        ("Resize", {"mode": "nearest", "scales": [0.5, 2.0, 1.25]}, True),
        ("Resize", {"mode": "nearest", "scales": [1 / 3, 2.0, 1.0]}, False),
        ("Resize", {"mode": "nearest", "sizes": [8, 6, 10]}, False),
        ("Relu", {}, True),
    ],
)
def test_sizes_are_free_where_nothing_names_one(tmp_path, op, attributes, free):
    graph = make_graph(
        [(op, ["x"], "y", attributes)], [port("x", channels=6)], [], patch=(8, 6, 10)
    )
    graph["outputs"] = [port("y", channels=3 if attributes.get("axes") == [1] else 5)]
    if graph["outputs"][0]["channels"] == 5 and attributes.get("axes") != [1, 2]:
        graph["outputs"][0]["channels"] = 6
    source = write(tmp_path / "m.safetensors", graph, {})
    out = export(source)
    dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims][2:] == (
        ["size_x", "size_y", "size_z"] if free else [8, 6, 10]
    )
    inputs = random_inputs(graph, (12, 16, 20) if free else None)
    assert_close(session_run(out, inputs)["y"], forward(source, graph, inputs)["y"], 1e-6)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name.split(".")[0])
def test_shipped_weights_run(tmp_path, path):
    file = weights_file.read(path)
    (tmp_path / "m.safetensors.zst").symlink_to(path)
    out = export(tmp_path / "m.safetensors.zst", "m.onnx")
    sizes = (32, 48, 32) if "16" in path.name else (32, 32, 32)
    name, made = (file.graph[k][0]["name"] for k in ("inputs", "outputs"))
    uptake = RNG.gamma(1.0, 5.0, (1, 1, *sizes)).astype(np.float32)
    computed = session_run(out, {name: uptake})[made]
    assert_close(computed, forward(path, file.graph, {name: uptake})[made], 1e-6)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name.split(".")[0])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_shipped_weights_come_back(tmp_path, path, dtype):
    original = weights_file.read(path)
    (tmp_path / "m.safetensors.zst").symlink_to(path)
    out = export(tmp_path / "m.safetensors.zst", "m.onnx", "--dtype", dtype)
    onnx.checker.check_model(out, full_check=True)
    network = imported(out, original.graph)
    found, expected = network.graph, original.graph
    assert {k: v for k, v in found.items() if k != "nodes"} == {
        k: v for k, v in expected.items() if k != "nodes"
    }
    tensors = original.tensors
    if dtype == "BF16":
        rounded = weights_file.to_bf16_bits
        tensors = {k: weights_file.from_bf16_bits(rounded(v)) for k, v in tensors.items()}
    np.testing.assert_equal(dict(network.tensors), tensors)
    assert shape_of_graph(found, network.tensors) == shape_of_graph(expected, tensors)


def test_names_that_would_collide(tmp_path):
    nodes = [
        ("Pad", ["n0.pads"], "n0.value", {"pads": [1, 0, 0, 0, 2, 0]}),
        ("PRelu", ["n0.value", "n0.axes"], "n0.pads_", {}),
    ]
    graph = make_graph(nodes, [port("n0.pads", channels=2)], [port("n0.pads_", channels=2)])
    source = write(tmp_path / "m.safetensors", graph, {"n0.axes": np.float32(0.3)})
    for dtype in ("F32", "F16"):
        out = export(source, "out.onnx", "--dtype", dtype)
        onnx.checker.check_model(out, full_check=True)
        inputs = random_inputs(graph)
        expected = forward(source, graph, inputs)["n0.pads_"]
        assert_close(
            session_run(out, inputs)["n0.pads_"], expected, 1e-6 if dtype == "F32" else 1e-3
        )


# Weights ------------------------------------------------------------------------------------------
def test_large_weights_lie_beside_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "EXTERNAL_ABOVE", 500)
    graph, weights = pet_ct_graph()
    source = write(tmp_path / "m.safetensors.zst", graph, weights)
    inputs = random_inputs(graph)
    expected = forward(source, graph, inputs)["dose"]
    inside = export(source, "inside.onnx", "--dtype", "BF16")
    beside = export(source, "beside.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {
        "m.safetensors.zst", "inside.onnx", "beside.onnx", "beside.onnx.data"
    }  # fmt: skip
    assert "beside.onnx.data" in capsys.readouterr().out
    assert (tmp_path / "beside.onnx.data").stat().st_size == 4 * sum(
        v.size for v in weights.values()
    )
    onnx.checker.check_model(beside, full_check=True)
    assert_close(session_run(beside, inputs)["dose"], expected, 1e-5)
    assert_close(session_run(inside, inputs)["dose"], expected, 2e-2)
    network = imported(beside, graph)
    for name, values in weights.items():
        np.testing.assert_array_equal(network.tensors[name], values.astype(np.float32))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("network", sorted(p.stem for p in (ROOT / "models").glob("*.json")))
def test_state_dict_comes_back(tmp_path, network, dtype):
    from dosemap_tools.networks.generator import NETWORKS, Generator
    from safetensors.torch import load_file

    torch.manual_seed(4)
    module = Generator(NETWORKS[network])
    with torch.no_grad():
        for name, values in module.state_dict().items():
            if values.is_floating_point():
                values.uniform_(0.5, 1.5) if "running_var" in name else values.normal_()
    state = module.state_dict()
    graph = json.loads(((ROOT / "models") / f"{network}.json").read_text())
    tensors = {k: v.numpy() for k, v in state.items() if v.is_floating_point()}
    source = write(tmp_path / "m.safetensors.zst", graph, tensors)
    out = export(source, "back.safetensors", "--dtype", dtype)
    found = load_file(out)
    type_of = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    other = Generator(NETWORKS[network])
    other.load_state_dict(found, strict=True)
    for name, values in other.state_dict().items():
        if values.is_floating_point():
            assert found[name].dtype == type_of
            assert torch.equal(values, state[name].to(type_of).float())
    about = json.loads((tmp_path / "back.json").read_text())
    assert about == {"graph": graph, "card": CARD, "provenance": PROVENANCE}


def test_slopes_are_a_vector_again(tmp_path):
    from safetensors.torch import load_file

    module = torch.nn.Sequential(torch.nn.Conv3d(1, 3, 1), torch.nn.PReLU(3), torch.nn.PReLU())
    nodes = [
        ("Conv", ["x", "0.weight", "0.bias"], "a", {"kernel_shape": [1, 1, 1]}),
        ("PRelu", ["a", "1.weight"], "b", {}),
        ("PRelu", ["b", "2.weight"], "c", {}),
        ("Mul", ["c", "gain"], "d", {}),
    ]
    state = {k: v.detach().numpy() for k, v in module.state_dict().items()}
    arrays = state | {
        "1.weight": state["1.weight"].reshape(3, 1, 1, 1),
        "gain": np.ones((3, 1, 1, 1)),
    }
    graph = make_graph(nodes, [port("x")], [port("d", channels=3)])
    out = export(write(tmp_path / "m.safetensors.zst", graph, arrays), "back.safetensors")
    found = load_file(out)
    assert found.pop("gain").shape == (3, 1, 1, 1)
    module.load_state_dict(found, strict=True)
    assert found["1.weight"].shape == (3,)


# The command --------------------------------------------------------------------------------------
@pytest.fixture
def source(tmp_path):
    graph, weights = pet_ct_graph()
    return write(tmp_path / "m.safetensors", graph, weights)


def fails(capsys, *arguments):
    assert exporting.main([str(a) for a in arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dosemap-export: ")
    assert said.err.count("\n") == 1, said.err
    return said.err


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("m.safetensors", [], ["is the weights file itself", "another name"]),
        ("link.safetensors", [], ["is the weights file itself"]),
        ("out.pt", [], ["neither .onnx nor .safetensors", "--format"]),
        ("out.safetensors.zst", [], ["neither .onnx nor .safetensors"]),
        ("folder", ["--format", "onnx"], ["is a folder"]),
        ("none/out.onnx", [], ["there is no folder"]),
        ("out.json", ["--format", "safetensors"], ["the same name"]),
    ],
)
def test_targets_that_are_refused(tmp_path, source, capsys, out, options, words):
    (tmp_path / "link.safetensors").symlink_to(source)
    (tmp_path / "folder").mkdir()
    before = source.read_bytes()
    message = fails(capsys, source, "-o", tmp_path / out, *options)
    for word in (out, *words):
        assert word in message
    assert source.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", "link.safetensors", "folder"}


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x28\xb5\x2f\xfd" + b"\0" * 50, None])
def test_sources_that_are_refused(tmp_path, capsys, content):
    path = tmp_path / "m.safetensors.zst"
    if content is not None:
        path.write_bytes(content)
    message = fails(capsys, path, "-o", tmp_path / "out.onnx")
    assert str(path) in message
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("out", ["out.onnx", "out.safetensors"])
@pytest.mark.parametrize(
    "change",
    [
        lambda g: g.pop("nodes"),
        lambda g: g["nodes"][1].pop("op"),
        lambda g: g["nodes"].append(3),
    ],
)
def test_graphs_that_are_not_valid(tmp_path, capsys, change, out):
    graph, weights = pet_ct_graph()
    change(graph)
    path = write(tmp_path / "m.safetensors", graph, weights)
    message = fails(capsys, path, "-o", tmp_path / out)
    assert "graph is not valid" in message
    assert "dosemap inspect" in message
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_values_too_large_for_half_precision(tmp_path, capsys):
    graph, weights = pet_ct_graph()
    weights["last"][0, 2] = 1e6
    path = write(tmp_path / "m.safetensors", graph, weights)
    for out in ("out.onnx", "out.safetensors"):
        message = fails(capsys, path, "-o", tmp_path / out, "--dtype", "F16")
        assert "tensor last holds values too large for F16" in message
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("out", ["out.onnx", "out.safetensors"])
def test_nothing_is_left_of_a_write_that_fails(tmp_path, source, capsys, monkeypatch, out):
    monkeypatch.setattr(exporting, "EXTERNAL_ABOVE", 500)
    (tmp_path / out).write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting.os, "fsync", full)
    assert "No space left" in fails(capsys, source, "-o", tmp_path / out)
    assert (tmp_path / out).read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"m.safetensors", out}


def command(*arguments, **options):
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "dosemap_tools.exporting", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_nobody_reads_what_is_said(tmp_path, source):
    read, write_end = os.pipe()
    os.close(read)
    process = command(source, "-o", tmp_path / "out.onnx", stdout=write_end)
    os.close(write_end)
    assert process.communicate(timeout=120) == (None, "")
    assert process.returncode == 0
    onnx.checker.check_model(tmp_path / "out.onnx")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing(tmp_path, source, monkeypatch, number):
    def stopped(*_):
        assert len(list(tmp_path.iterdir())) == 2  # what is written so far has another name
        signal.raise_signal(number)

    monkeypatch.setattr(exporting.os, "fsync", stopped)
    with pytest.raises(SystemExit) as caught:
        exporting.main([str(source), "-o", str(tmp_path / "out.onnx")])
    assert caught.value.code == 128 + number
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_is_said_and_how_the_files_are(tmp_path, source, capsys):
    out = export(source)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"wrote {out}"
    assert any("input pet (N, 1, size_z, size_y, size_x): uptake in g/mL" in line for line in said)
    assert "metadata" in said[-1]
    assert out.stat().st_mode & 0o777 == 0o644
    first = out.read_bytes()
    assert export(source).read_bytes() == first
