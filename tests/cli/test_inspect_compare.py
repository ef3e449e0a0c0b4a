# SPDX-License-Identifier: Apache-2.0
"""`dosemap inspect --compare A B`: what differs between two weights files."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_CARD, dosemap, tiny_graph, tiny_weights
from dosemap_tools import weights_file

MADE_BY = {"made_by": "tests/cli"}


def write(path: Path, graph: dict, weights: dict, card: dict = TINY_CARD) -> Path:
    weights_file.write(path, graph, card, MADE_BY, weights)
    return path


def compare(a: Path, b: Path) -> dict:
    result = dosemap("inspect", "--compare", a, b, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", tiny_graph(), tiny_weights())


def test_the_same(a: Path, tmp_path: Path) -> None:
    b = write(tmp_path / "b.safetensors.zst", tiny_graph(), tiny_weights())
    report = compare(a, b)
    assert report["same"] is True and report["weights"]["equal"] == 1
    assert report["a"]["file"] == str(a) and report["a"]["xxh64"] == report["b"]["xxh64"]
    text = dosemap("inspect", "--compare", a, b).stdout
    assert "are the same" in text and "differ" in text


def test_weights_that_moved(a: Path, tmp_path: Path) -> None:
    weights = tiny_weights()
    before = weights["w"].copy()
    weights["w"][0, 0, 2, 0, 1] += np.float32(0.125)
    report = compare(a, write(tmp_path / "b.safetensors", tiny_graph(), weights))
    (change,) = report["weights"]["differ"]
    assert report["same"] is False and change["weight"] == "w"
    assert change["largest"] == 0.125
    expected = 0.125 / np.linalg.norm(before)
    assert change["relative_l2"] == pytest.approx(expected, rel=1e-6)
    assert report["weights"]["relative_l2"] == pytest.approx(expected, rel=1e-6)
    assert report["nodes"]["differ"] == [] and report["card"] == [] and report["graph"] == []


def test_card_and_head_of_the_graph(a: Path, tmp_path: Path) -> None:
    graph = tiny_graph([4.0, 4.0, 5.0])
    graph["patch_size"] = [8, 8, 16]
    graph["inputs"][0] |= {"quantity": "suv", "intensity": [{"log1p": True}]}
    card = {**TINY_CARD, "version": "2", "training": "none"}
    report = compare(a, write(tmp_path / "b.safetensors", graph, tiny_weights(), card))
    assert report["card"] == [
        {"key": "version", "a": "1", "b": "2"},
        {"key": "training", "b": "none"},
    ]
    assert {d["key"]: (d["a"], d["b"]) for d in report["graph"]} == {
        "patch_size": ([8, 8, 8], [8, 8, 16]),
        "voxel_size_mm": (None, [4.0, 4.0, 5.0]),
        "inputs[0].quantity": ("uptake", "suv"),
        "inputs[0].intensity": ([], [{"log1p": True}]),
    }
    text = dosemap("inspect", "--compare", a, tmp_path / "b.safetensors").stdout
    assert "patch_size" in text and "[8, 8, 16]" in text and "(not there)" in text


def test_attributes_and_wiring(a: Path, tmp_path: Path) -> None:
    graph = tiny_graph()
    graph["nodes"][0]["attributes"] = {"kernel_shape": [3, 3, 3], "pads": [0, 1, 1, 2, 1, 1],
                                       "strides": [1, 1, 1]}  # fmt: skip
    report = compare(a, write(tmp_path / "b.safetensors", graph, tiny_weights()))
    (change,) = report["nodes"]["differ"]  # strides are as by default
    assert change == {
        "node": "c",
        "what": "pads",
        "a": "1, 1, 1 before and 1, 1, 1 after",
        "b": "0, 1, 1 before and 2, 1, 1 after",
    }
    graph = tiny_graph()
    graph["nodes"][1] |= {"op": "LeakyRelu", "attributes": {"alpha": 0.2}}
    report = compare(a, write(tmp_path / "b.safetensors", graph, tiny_weights()))
    assert report["nodes"]["paired_by"] == "name"
    assert report["nodes"]["differ"] == [
        {"node": "r", "what": "operator", "a": "Relu", "b": "LeakyRelu"}
    ]


def renamed(graph: dict) -> dict:
    graph = copy.deepcopy(graph)
    graph["nodes"][0] |= {"name": "other", "inputs": ["pet", "kernel"], "outputs": ["between"]}
    graph["nodes"][1] |= {"name": "end", "inputs": ["between"]}
    return graph


def test_names_do_not_count(a: Path, tmp_path: Path) -> None:
    weights = {"kernel": tiny_weights()["w"]}
    report = compare(a, write(tmp_path / "b.safetensors", renamed(tiny_graph()), weights))
    assert report["same"] is True
    assert report["nodes"]["renamed"] == 2 and report["weights"]["renamed"] == 1


def test_another_wiring(tmp_path: Path) -> None:
    graph = tiny_graph()
    graph["nodes"][1:] = [
        {"op": "Relu", "name": "r", "inputs": ["h"], "outputs": ["g"]},
        {"op": "Add", "name": "s", "inputs": ["h", "g"], "outputs": ["dose"]},
    ]
    other = copy.deepcopy(graph)
    other["nodes"][2]["inputs"] = ["h", "h"]
    other["nodes"][1]["outputs"] = ["g"]
    other["nodes"].append({"op": "Add", "name": "t", "inputs": ["g", "s"], "outputs": ["dose"]})
    other["nodes"][2]["outputs"] = ["s"]
    a = write(tmp_path / "a.safetensors", graph, tiny_weights())
    report = compare(a, write(tmp_path / "b.safetensors", other, tiny_weights()))
    assert report["same"] is False and report["nodes"]["only_b"] == ["t"]
    assert {"node": "s", "what": "input 2", "a": "g", "b": "h"} in report["nodes"]["differ"]
    swapped = copy.deepcopy(graph)
    swapped["nodes"][2]["inputs"] = ["g", "g"]
    report = compare(a, write(tmp_path / "c.safetensors", swapped, tiny_weights()))
    assert report["nodes"]["paired_by"] == "place"
    assert report["nodes"]["differ"] == [{"node": "s", "what": "input 1", "a": "h", "b": "g"}]


def test_exchanged_outputs(tmp_path: Path) -> None:
    """The same nodes, weights and ports: but dose and sigma are each other's."""
    graph = tiny_graph()
    graph["outputs"].append(graph["outputs"][0] | {"name": "sigma", "quantity": "other"})
    graph["nodes"][1]["inputs"] = ["pet"]
    graph["nodes"][0]["outputs"] = ["sigma"]
    other = copy.deepcopy(graph)
    other["nodes"][0]["outputs"], other["nodes"][1]["outputs"] = ["dose"], ["sigma"]
    a = write(tmp_path / "a.safetensors", graph, tiny_weights())
    report = compare(a, write(tmp_path / "b.safetensors", other, tiny_weights()))
    assert report["same"] is False
    assert report["nodes"]["differ"] == [
        {"node": "dose", "what": "made by", "a": "r", "b": "c"},
        {"node": "sigma", "what": "made by", "a": "c", "b": "r"},
    ]


def test_exchanged_axes_are_the_same_kernels(tmp_path: Path) -> None:
    """A network told in the other axes computes the same; only `spatial_axes` differs."""
    kernel = np.arange(27, dtype=np.float32).reshape(1, 1, 3, 3, 3)
    turned = tiny_graph() | {"spatial_axes": "zyx"}
    a = write(tmp_path / "a.safetensors", tiny_graph(), {"w": kernel})
    b = write(tmp_path / "b.safetensors", turned, {"w": kernel.transpose(0, 1, 4, 3, 2)})
    report = compare(a, b)
    assert [d["key"] for d in report["graph"]] == ["spatial_axes"]
    assert report["weights"]["differ"] == [] and report["weights"]["equal"] == 1


def test_refusals(a: Path, tmp_path: Path) -> None:
    for arguments in ((a,), (a, a, a), (a, a, "--tile", "8"), (a, a, "--plan", "cuda")):
        assert dosemap("inspect", "--compare", *arguments).returncode == 2
    missing = tmp_path / "none.safetensors"
    result = dosemap("inspect", "--compare", a, missing)
    assert result.returncode == 1 and str(missing) in result.stderr and result.stdout == ""
