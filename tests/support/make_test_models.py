# SPDX-License-Identifier: Apache-2.0
"""Generators with random weights, as PyTorch modules and as weights files.

    python tests/support/make_test_models.py FOLDER

writes one small network of each kind; the tests call the functions.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from dosemap_tools import weights_file
from dosemap_tools.importing.network import UNITS, Port, Statement
from dosemap_tools.importing.torch_network import export_program, tensors_for, to_onnx
from dosemap_tools.networks.generator import Generator, GeneratorConfig

SMALL, HALF = (4, 6, 8, 12), (16, 32, 64, 128)
CONFIGS = {
    "batch": GeneratorConfig(channels=SMALL, final="none"),
    "instance": GeneratorConfig(channels=SMALL, norm="instance", final="none"),
    "group": GeneratorConfig(channels=(4, 8, 8, 12), norm="group", groups=2, final="none"),
    "dilated": GeneratorConfig(channels=SMALL, kernel=4, dilation=2, final="none"),
    "strided": GeneratorConfig(channels=SMALL, resample_kernel=(4, 4), final="none"),
    "dosegan-16": GeneratorConfig(channels=HALF, final="none"),
    "dosegan-16-instance": GeneratorConfig(channels=HALF, norm="instance", final="none"),
    "dosegan-16-group": GeneratorConfig(channels=HALF, norm="group", final="none"),
}
CARD = {
    "name": "test",
    "version": "1",
    "summary": "Random weights for tests; means nothing.",
    "licence": "Apache-2.0",
    "trained": False,
    "skip_air": None,
}


def randomise(module, seed):
    """Give every weight a random value at which signals neither die nor grow."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.2)
        elif isinstance(layer, nn.BatchNorm3d | nn.InstanceNorm3d | nn.GroupNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
        if isinstance(layer, nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2.0)
    return module.eval()


def random_generator(kind, seed=0):
    """Return a random generator of one of CONFIGS."""
    return randomise(Generator(CONFIGS[kind]), seed)


def statement_of(
    name="test",
    *,
    patch_size=(32, 32, 32),
    voxel_size_mm=None,
    spatial_axes="xyz",
    orientation="RAS",
    quantity="uptake",
    input_intensity=(),
    output_intensity=(),
):
    """Return what is stated of a network with a PET as input and a dose as output."""
    pet = Port("pet", quantity, UNITS[quantity], 1, tuple(input_intensity))
    dose = Port("dose", "dose_per_activity", UNITS["dose_per_activity"], 1, tuple(output_intensity))
    patch = tuple(int(n) for n in patch_size)
    return Statement(name, patch, spatial_axes, orientation, (pet,), (dose,), voxel_size_mm)


def graph_of(statement, nodes):
    """Return the graph of some nodes."""
    voxel_mm = statement.voxel_size_mm
    return {
        "graph_version": 1,
        "name": statement.name,
        "spatial_axes": statement.spatial_axes,
        "orientation": statement.orientation,
        "patch_size": list(statement.patch_size),
        "voxel_size_mm": None if voxel_mm is None else [float(v) for v in voxel_mm],
        "inputs": [port.json() for port in statement.inputs],
        "outputs": [port.json() for port in statement.outputs],
        "nodes": nodes,
    }


_CONVERTED = {}  # nodes of modules that differ in their weights alone


def converted(module, statement):
    """Return nodes and weights of a module; modules that are alike are converted once."""
    from dosemap_tools.importing.convert import convert

    state = module.state_dict()
    key = (type(module), repr(module), statement.spatial_shape)
    if key not in _CONVERTED:
        program, _ = export_program(module, [1], statement)
        network = convert(to_onnx(program), statement, statement.name)
        if not network.tensors.keys() <= state.keys():
            return network.graph["nodes"], network.tensors
        _CONVERTED[key] = network.graph["nodes"]
    nodes = _CONVERTED[key]
    return nodes, tensors_for(graph_of(statement, nodes), state)


def write_module(path, module, name="test", dtype="F32", **options):
    """Write a module as a weights file; options are those of statement_of."""
    statement = statement_of(name, **options)
    nodes, tensors = converted(module, statement)
    provenance = {"made_by": "tests/support/make_test_models.py"}
    weights_file.write(path, graph_of(statement, nodes), CARD, provenance, tensors, dtype)


def write_graph(path, nodes, weights, **options):
    """Write a network given as nodes (op, inputs, output, attributes) and arrays."""
    nodes = [
        {
            "op": op,
            "name": f"n{i}",
            "inputs": list(inputs),
            "outputs": [out],
            "attributes": attributes,
        }
        for i, (op, inputs, out, attributes) in enumerate(nodes)
    ]
    arrays = {k: np.asarray(v, np.float32) for k, v in weights.items()}
    graph = graph_of(statement_of(**options), nodes)
    weights_file.write(path, graph, CARD, {"made_by": "tests"}, arrays)


def main():
    """Write all kinds of CONFIGS into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in CONFIGS:
        write_module(folder / f"{kind}.safetensors.zst", random_generator(kind), kind)


if __name__ == "__main__":
    main()
