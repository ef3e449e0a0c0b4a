# SPDX-License-Identifier: Apache-2.0
"""Each operator of weights/FORMAT.md as ONNX: the same results, and the same operator again."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is missing: exports are not run")
pytest.importorskip("torch", reason="PyTorch is missing: exports are not compared with it")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))

import onnx
import torch
from dosemap_tools import weights_file
from exported import (
    CARD,
    PATCH,
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
    write,
)
from program import assert_close
from test_operators import CASES, CHANNELS, written_nodes


def operator_graph(name, axes):
    nodes, weights, reference = CASES[name]
    written, last = written_nodes(nodes, "pet")
    patch = PATCH if axes == "xyz" else PATCH[::-1]
    with torch.no_grad():
        made = reference(torch.zeros(1, CHANNELS, *PATCH), *weights.values())
    outputs = [port(last, channels=made.shape[1])]
    graph = make_graph(written, [port("pet", channels=CHANNELS)], outputs, axes, patch)
    return graph, weights, reference


# Operators ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("name", CASES)
def test_operator(tmp_path, name, axes):
    graph, weights, reference = operator_graph(name, axes)
    source = write(tmp_path / "m.safetensors.zst", graph, weights)
    out = export(source)
    onnx.checker.check_model(out, full_check=True)
    inputs = random_inputs(graph)
    with torch.no_grad():
        expected = reference(torch.from_numpy(inputs["pet"]), *weights.values()).numpy()
    (written,) = graph["outputs"]
    computed = session_run(out, inputs)[written["name"]]
    assert_close(computed, expected, 1e-5)
    assert_close(computed, forward(source, graph, inputs)[written["name"]], 1e-5)


EXTRA = {
    "max pool, ceil, a window in the padding alone": (
        "MaxPool",
        {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2], "pads": [1] * 6, "ceil_mode": 1},
        [],
        lambda x: torch.max_pool3d(x, 2, 2, 1, ceil_mode=True),
    ),
    "average pool, ceil, padded": (
        "AveragePool",
        {"kernel_shape": [3, 2, 3], "strides": [2, 2, 3], "pads": [1] * 6, "ceil_mode": 1},
        [],
        lambda x: torch.nn.functional.avg_pool3d(
            x, (3, 2, 3), (2, 2, 3), 1, ceil_mode=True, count_include_pad=False
        ),
    ),
    "average pool, ceil, padded and counted": (
        "AveragePool",
        {
            "kernel_shape": [3, 2, 3],
            "strides": [2, 2, 3],
            "pads": [1] * 6,
            "ceil_mode": 1,
            "count_include_pad": 1,
        },
        [],
        lambda x: torch.nn.functional.avg_pool3d(x, (3, 2, 3), (2, 2, 3), 1, ceil_mode=True),
    ),
    "resize, linear, scales that float32 does not hold": (
        "Resize",
        {"mode": "linear", "scales": [5 / 3, 13 / 11, 13 / 7]},
        [],
        lambda x: torch.nn.functional.interpolate(
            x, scale_factor=(5 / 3, 13 / 11, 13 / 7), mode="trilinear"
        ),
    ),
    "resize, nearest, scales that float32 does not hold": (
        "Resize",
        {
            "mode": "nearest",
            "scales": [5 / 3, 13 / 11, 13 / 7],
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        [],
        lambda x: torch.nn.functional.interpolate(x, scale_factor=(5 / 3, 13 / 11, 13 / 7)),
    ),
    "slopes with a batch of one": (
        "PRelu",
        {},
        [RNG.uniform(-0.2, 0.6, (1, CHANNELS, 1, 1, 1))],
        lambda x, s: torch.prelu(x, s.flatten()),
    ),
    "a bias that is left out": (
        "Conv",
        {"kernel_shape": [1, 1, 1]},
        [RNG.normal(size=(3, CHANNELS, 1, 1, 1)), None],
        lambda x, w: torch.conv3d(x, w),
    ),
    "alpha without a point": (
        "Elu",
        {"alpha": 2},
        [],
        lambda x: torch.nn.functional.elu(x, 2.0),
    ),
}


@pytest.mark.parametrize("sizes", [(9, 11, 6), (15, 27, 12), (8, 13, 7)])
@pytest.mark.parametrize("name", EXTRA)
def test_corners_of_operators(tmp_path, name, sizes):
    op, attributes, weights, reference = EXTRA[name]
    arrays = {f"w{i}": np.asarray(w, np.float32) for i, w in enumerate(weights) if w is not None}
    names = [f"w{i}" if w is not None else "" for i, w in enumerate(weights)]
    tensors = [torch.from_numpy(values) for values in arrays.values()]
    made = reference(torch.zeros(1, CHANNELS, *sizes), *tensors)
    graph = make_graph(
        [(op, ["pet", *names], "y", attributes)],
        [port("pet", channels=CHANNELS)],
        [port("y", channels=made.shape[1])],
        patch=sizes,
    )
    source = write(tmp_path / "m.safetensors.zst", graph, arrays)
    out = export(source)
    onnx.checker.check_model(out, full_check=True)
    inputs = random_inputs(graph)
    expected = reference(torch.from_numpy(inputs["pet"]), *tensors).numpy()
    assert_close(session_run(out, inputs)["y"], expected, 1e-5)
    assert_close(forward(source, graph, inputs)["y"], expected, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_operator_comes_back(tmp_path, name):
    graph, weights, _ = operator_graph(name, "zyx")
    source = write(tmp_path / "m.safetensors.zst", graph, weights)
    network = imported(export(source), graph)
    again = tmp_path / "again.safetensors.zst"
    weights_file.write(again, network.graph, CARD, PROVENANCE, network.tensors)
    inputs = random_inputs(graph)
    written = graph["outputs"][0]["name"]
    there, back = (forward(path, graph, inputs)[written] for path in (source, again))
    np.testing.assert_array_equal(there, back)
    if name.endswith("pool, ceil"):  # at this size ONNX has other words for it
        return
    arrays = weights_file.read(source).tensors
    assert shape_of_graph(network.graph, network.tensors) == shape_of_graph(graph, arrays)
