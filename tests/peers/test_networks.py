# SPDX-License-Identifier: Apache-2.0
"""The networks of models/, their graphs, and the constructed weights in PyTorch."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: the networks are not tested")

import torch
from dosemap_tools import constructed
from dosemap_tools.importing.torch_network import NETWORKS_FOLDER
from dosemap_tools.make_graphs import graph_files
from dosemap_tools.networks.generator import NETWORKS, Generator, GeneratorConfig
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize(
    ("name", "million", "gflop"), [("dosegan", 7.946, 15.70), ("dosegan-16", 1.988, 3.94)]
)
def test_size(name, million, gflop):
    module = Generator(NETWORKS[name]).eval()
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(million, abs=5e-4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert module(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 1, 32, 32, 32)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=5e-3)


def test_graphs_are_those_of_the_modules():
    for file_name, text in graph_files().items():
        path = NETWORKS_FOLDER / file_name
        assert path.read_text() == text, f"run python -m dosemap_tools.make_graphs: {file_name}"


@pytest.mark.parametrize("name", NETWORKS)
def test_constructed_weights_in_pytorch(name):
    module = Generator(NETWORKS[name]).eval()
    tensors = constructed.contents(name)[3]
    state = {k: torch.from_numpy(v) for k, v in tensors.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(k.endswith("num_batches_tracked") for k in missing)
    uptake = np.random.default_rng(0).gamma(1.0, 5.0, (1, 1, 32, 32, 32)).astype(np.float32)
    uptake[0, 0, ::3] *= -1
    uptake[0, 0, 0, 0, :4] = (0.0, 1e-30, 1e6, -1e6)
    expected = np.maximum(0.0, 0.027 * uptake.astype(np.float64))
    with torch.no_grad():
        dose = module(torch.from_numpy(uptake)).numpy()
        half = module.bfloat16()(torch.from_numpy(uptake).bfloat16()).float().numpy()
    np.testing.assert_allclose(dose, expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(half, expected, rtol=2 * 2**-8, atol=0)
    assert half.mean() == pytest.approx(expected.mean(), rel=5e-4)


@pytest.mark.parametrize(
    "config",
    [
        {"norm": "layer"},
        {"kernel": 4},
        {"final": "exp"},
        {"resample_kernel": (2, 2)},
    ],
)
def test_generator_refuses(config):
    with pytest.raises(ValueError, match=r"use|keep"):
        Generator(GeneratorConfig(**config))
