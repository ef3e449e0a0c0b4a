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
from dosemap_tools.export import tensors_for
from dosemap_tools.graph import graph_of
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


def write_module(path, module, name="test", dtype="F32", **graph_options):
    """Write a module as a weights file."""
    graph = graph_of(module, name, **graph_options)
    provenance = {"made_by": "tests/support/make_test_models.py"}
    weights_file.write(
        path, graph, CARD, provenance, tensors_for(graph, module.state_dict()), dtype
    )


def write_graph(path, nodes, weights, **graph_options):
    """Write a network given as nodes (op, inputs, output, attributes) and arrays."""
    graph = graph_of(nn.Sequential(nn.Identity()), "test", **graph_options)
    graph["nodes"] = [
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
    weights_file.write(path, graph, CARD, {"made_by": "tests"}, arrays)


def main():
    """Write all kinds of CONFIGS into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for kind in CONFIGS:
        write_module(folder / f"{kind}.safetensors.zst", random_generator(kind), kind)


if __name__ == "__main__":
    main()
