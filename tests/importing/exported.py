# SPDX-License-Identifier: Apache-2.0
"""Makes weights files, exports them, and runs what came of it."""

import numpy as np
import onnxruntime
from dosemap_tools import exporting, weights_file
from dosemap_tools.importing import onnx_file, proof
from dosemap_tools.importing.convert import convert
from dosemap_tools.importing.network import Port, Statement
from dosemap_tools.onnx_model import TO_THE_END
from program import BINARY

PATCH = (18, 24, 12)
CHANNELS = 6  # of the graph's input, where an end of a Slice is told in numbers
CARD = {"name": "test", "version": "1", "summary": "Random weights.", "trained": False}
PROVENANCE = {"made_by": "tests/importing/test_exporting.py"}
RNG = np.random.default_rng(3)


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
            TO_THE_END if end >= most[axis - 1] else end
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
