# SPDX-License-Identifier: Apache-2.0
"""What dosemap-export writes computes what the weights file does, and leads back to it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is missing: exports are not run")
pytest.importorskip("torch", reason="PyTorch is missing: exports are not compared with it")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))

import onnx
import onnxruntime
import torch
from dosemap_tools import exporting, onnx_model, weights_file
from dosemap_tools.importing import onnx_file, proof
from dosemap_tools.importing.convert import convert
from dosemap_tools.importing.network import Port, Statement
from program import BINARY, ROOT, assert_close
from test_operators import CASES, CHANNELS, written_nodes

PATCH = (18, 24, 12)
CARD = {"name": "test", "version": "1", "summary": "Random weights.", "trained": False}
PROVENANCE = {"made_by": "tests/importing/test_exporting.py"}
RNG = np.random.default_rng(3)
SHIPPED = sorted((ROOT / "weights").glob("*.safetensors.zst"))


def port(name, quantity="other", unit="a.u.", channels=1, intensity=()):
    return {
        "name": name,
        "quantity": quantity,
        "unit": unit,
        "channels": channels,
        "intensity": list(intensity),
    }


def make_graph(nodes, inputs, outputs, axes="xyz", patch=PATCH):
    """Nodes: (op, inputs, output, attributes)."""
    return {
        "graph_version": 1,
        "name": "test",
        "spatial_axes": axes,
        "orientation": "RAS",
        "patch_size": list(patch),
        "voxel_size_mm": None,
        "inputs": list(inputs),
        "outputs": list(outputs),
        "nodes": [
            {"op": op, "name": f"n{i}", "inputs": list(names), "outputs": [out], "attributes": has}
            for i, (op, names, out, has) in enumerate(nodes)
        ],
    }


def write(path, graph, weights):
    arrays = {k: np.asarray(v, np.float32) for k, v in weights.items()}
    weights_file.write(path, graph, CARD, PROVENANCE, arrays)
    return path


def spatial(graph):
    x, y, z = graph["patch_size"]
    return (x, y, z) if graph["spatial_axes"] == "xyz" else (z, y, x)


def random_inputs(graph, sizes=None, samples=2):
    sizes = sizes or spatial(graph)
    return {
        p["name"]: RNG.normal(size=(samples, p["channels"], *sizes)).astype(np.float32)
        for p in graph["inputs"]
    }


def export(source, name="out.onnx", *options):
    out = source.parent / name
    assert exporting.main([str(source), "-o", str(out), *options]) == 0
    return out


def session_run(path, inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def forward(path, graph, inputs):
    return proof.run_program(str(BINARY), path, inputs, [p["name"] for p in graph["outputs"]])


def imported(path, graph):
    """Return the network that the import makes of an exported file."""
    statement = Statement(
        name=graph["name"],
        patch_size=tuple(graph["patch_size"]),
        spatial_axes=graph["spatial_axes"],
        orientation=graph["orientation"],
        inputs=tuple(Port(**{**p, "intensity": tuple(p["intensity"])}) for p in graph["inputs"]),
        outputs=tuple(Port(**{**p, "intensity": tuple(p["intensity"])}) for p in graph["outputs"]),
        voxel_size_mm=graph["voxel_size_mm"] and tuple(graph["voxel_size_mm"]),
    )
    return convert(onnx_file.load(path), statement, str(path))


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
        {"mode": "linear", "scales": [5 / 3, 13 / 11, 1 / 3]},
        [],
        lambda x: torch.nn.functional.interpolate(
            x, scale_factor=(5 / 3, 13 / 11, 1 / 3), mode="trilinear"
        ),
    ),
    "resize, nearest, scales that float32 does not hold": (
        "Resize",
        {
            "mode": "nearest",
            "scales": [5 / 3, 13 / 11, 1 / 3],
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        [],
        lambda x: torch.nn.functional.interpolate(x, scale_factor=(5 / 3, 13 / 11, 1 / 3)),
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


@pytest.mark.parametrize("sizes", [(9, 11, 6), (15, 27, 12), (7, 13, 21)])
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


# There and back -----------------------------------------------------------------------------------
DEFAULTS = {
    "strides": [1, 1, 1],
    "dilations": [1, 1, 1],
    "pads": [0] * 6,
    "group": 1,
    "output_padding": [0, 0, 0],
    "epsilon": 1e-5,
    "ceil_mode": 0,
    "count_include_pad": 0,
    "coordinate_transformation_mode": "half_pixel",
    "nearest_mode": "round_prefer_floor",
    "mode": {"Pad": "constant"},
    "value": 0,
    "alpha": {"LeakyRelu": 0.01, "Elu": 1},
    "approximate": "none",
    "axis": 1,
}


def plain_attributes(node, sizes):
    """Return attributes without those that say nothing; numbers as float32 holds them.

    sizes: of the graph's input, which is the node's where ends and sizes are told in numbers.
    """

    def number(value):
        return float(np.float32(value)) if isinstance(value, float) else value

    told = dict(node["attributes"])
    if "sizes" in told:
        told["scales"] = [m / n for m, n in zip(told.pop("sizes"), sizes, strict=True)]
    if told.get("mode") == "linear":
        told.pop("nearest_mode", None)
    if "ends" in told:
        most = [CHANNELS, *sizes]
        told["ends"] = [
            onnx_model.TO_THE_END if end >= most[axis - 1] else end
            for axis, end in zip(told["axes"], told["ends"], strict=True)
        ]
    if set(told.get("steps", ())) == {1}:
        told.pop("steps")
    result = {}
    for key, value in told.items():
        default = DEFAULTS.get(key)
        default = default.get(node["op"]) if isinstance(default, dict) else default
        plain = [number(v) for v in value] if isinstance(value, list) else number(value)
        if plain != number(default):
            result[key] = plain
    return result


def shape_of_graph(graph, tensors):
    """Return the nodes with values numbered in the order of their making, weights by content."""
    numbers = {p["name"]: f"input {i}" for i, p in enumerate(graph["inputs"])}
    rows = []
    for i, node in enumerate(graph["nodes"]):
        names = list(node["inputs"])
        while names and not names[-1]:
            names.pop()
        sources = []
        for name in names:
            weight = tensors.get(name)
            sources.append(
                numbers.get(name, "") if weight is None else np.asarray(weight).tobytes()
            )
        rows.append((node["op"], sources, plain_attributes(node, spatial(graph))))
        numbers[node["outputs"][0]] = f"node {i}"
    return rows, [numbers[p["name"]] for p in graph["outputs"]]


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


def test_what_is_said_and_how_the_files_are(tmp_path, source, capsys):
    out = export(source)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"wrote {out}"
    assert any("input pet (N, 1, size_z, size_y, size_x): uptake in g/mL" in line for line in said)
    assert "metadata" in said[-1]
    assert out.stat().st_mode & 0o777 == 0o644
    first = out.read_bytes()
    assert export(source).read_bytes() == first
