# SPDX-License-Identifier: Apache-2.0
"""The original of an ONNX file that normalises instances or groups, against float64."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="ONNX is missing: imports are not tested")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is missing: imports are not tested")

from dosemap_tools.importing.onnx_file import OnnxOriginal, load
from onnx import TensorProto, helper, numpy_helper
from program import relative_l2

CHANNELS, EPSILON = 300, 1e-3  # weights of more than 1024 bytes stay in the file


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 1.5, CHANNELS), rng.uniform(-1, 1, CHANNELS)


def hot_spots(*shape):
    """Nearly nothing, and some large values: where sums in float32 go wrong."""
    rng = np.random.default_rng(1)
    return (1 + 30 * (rng.random(shape) > 0.98) * rng.random(shape)).astype(np.float32)


def model(path, version, dtype=TensorProto.FLOAT, rank=5):
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    norm = helper.make_node(
        "InstanceNormalization", ["x", "s", "b"], ["y"], "norm", epsilon=EPSILON
    )
    dims = ["N", CHANNELS, *"abc"[: rank - 2]]
    graph = helper.make_graph(
        [norm],
        "g",
        [helper.make_tensor_value_info("x", dtype, dims)],
        [helper.make_tensor_value_info("y", dtype, dims)],
        [
            numpy_helper.from_array(values.astype(kind), name)
            for name, values in zip("sb", weights(), strict=True)
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    onnx.save(made, path)
    return path


def by_hand(x):
    x, (scale, bias) = x.astype(np.float64), weights()
    axes = tuple(range(2, x.ndim))
    normal = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + EPSILON)
    shape = (-1, *[1] * (x.ndim - 2))
    return normal * np.float32(scale).reshape(shape) + np.float32(bias).reshape(shape)


@pytest.mark.parametrize("version", [15, 17, 18, 22])
@pytest.mark.parametrize("shape", [(2, CHANNELS, 13, 20, 31), (1, CHANNELS, 900)])
def test_sums_are_those_of_float64(tmp_path, monkeypatch, version, shape):
    path = model(tmp_path / "norm.onnx", version, rank=len(shape))
    load(path)
    monkeypatch.chdir(tmp_path)
    for name in (path, "norm.onnx"):  # the weights are found from any folder
        original = OnnxOriginal(name)
        assert "normalisations in float64" in original.description
        x = hot_spots(*shape)
        (y,) = original.run([x])
        assert relative_l2(y, by_hand(x)) < 1e-7


def test_half_precision_stays_what_it_is(tmp_path):
    original = OnnxOriginal(model(tmp_path / "norm.onnx", 18, TensorProto.FLOAT16))
    x = hot_spots(1, CHANNELS, 5, 6, 7).astype(np.float16)
    (y,) = original.run([x])
    assert 1e-5 < relative_l2(y, by_hand(x)) < 2e-3


def test_old_versions_are_run_as_they_are(tmp_path):
    original = OnnxOriginal(model(tmp_path / "norm.onnx", 11))
    assert "float64" not in original.description
    x = hot_spots(1, CHANNELS, 5, 6, 7)
    (y,) = original.run([x])
    assert relative_l2(y, by_hand(x)) < 1e-4


@pytest.mark.parametrize("version", [18, 20, 21, 22])
@pytest.mark.parametrize("shape", [(2, 12, 9, 20, 31), (1, 12, 900)])
def test_groups(tmp_path, version, shape):
    """Up to version 20 a group has a scale, from version 21 on each channel."""
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (2, 12 if version >= 21 else 3))
    norm = helper.make_node(
        "GroupNormalization", ["x", "s", "b"], ["y"], "norm", epsilon=EPSILON, num_groups=3
    )
    graph = helper.make_graph(
        [norm],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *shape[1:]])],
        [numpy_helper.from_array(np.float32(v), n) for n, v in zip("sb", weights, strict=True)],
    )
    imports = [helper.make_opsetid("", version)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), tmp_path / "g.onnx")
    original = OnnxOriginal(tmp_path / "g.onnx")
    assert "in float64" in original.description
    x = hot_spots(*shape)
    z = x.astype(np.float64).reshape(shape[0], 3, -1)
    normal = (z - z.mean(2, keepdims=True)) / np.sqrt(z.var(2, keepdims=True) + EPSILON)
    scale, bias = (np.float32(v).astype(np.float64)[:, None] for v in weights)
    lines = normal if version < 21 else normal.reshape(shape[0], 12, -1)
    expected = (lines * scale + bias).reshape(shape)
    assert relative_l2(original.run([x])[0], expected) < 1e-7
