# SPDX-License-Identifier: Apache-2.0
"""The networks of models/, their graphs, the exporter, and the constructed weights in PyTorch."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: the networks are not tested")

import torch
from dosemap_tools import constructed, export, graph, weights_file
from dosemap_tools.make_graphs import graph_files
from dosemap_tools.networks.generator import NETWORKS, Generator, GeneratorConfig
from make_test_models import random_generator, randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CARD = {"name": "x", "version": "1", "summary": "s", "licence": "l", "trained": True}


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
        path = export.NETWORKS_FOLDER / file_name
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


def save(folder, state, name="state.pt"):
    torch.save(state, folder / name)
    (folder / "card.json").write_text(json.dumps(CARD))
    return [
        *("--network", "dosegan-16", "--state-dict", str(folder / name)),
        *("--card", str(folder / "card.json"), "-o", str(folder / "out.safetensors.zst")),
    ]


@pytest.fixture(scope="module")
def state():
    return random_generator("dosegan-16").state_dict()


@pytest.mark.parametrize("kind", ["pt", "safetensors", "checkpoint"])
def test_export(tmp_path, state, kind):
    arguments = save(tmp_path, {"state_dict": state, "epoch": 3} if kind == "checkpoint" else state)
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, tmp_path / "state.safetensors")
        arguments[3] = str(tmp_path / "state.safetensors")
    assert export.main(arguments) == 0
    written = weights_file.read(tmp_path / "out.safetensors.zst")
    assert sorted(written.tensors) == sorted(graph.weight_names(written.graph))
    for name, values in written.tensors.items():
        np.testing.assert_array_equal(values, state[name].numpy())
    assert written.card == CARD
    assert written.graph == export.network_graph("dosegan-16")
    assert len(written.provenance["source"]["xxh64"]) == 16
    first = (tmp_path / "out.safetensors.zst").read_bytes()
    assert export.main(arguments) == 0
    assert (tmp_path / "out.safetensors.zst").read_bytes() == first


def without(state, key):
    return {k: v for k, v in state.items() if k != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "head.bias"), ["missing: head.bias (1,)"]),
        (lambda s: s | {"extra.weight": torch.zeros(2)}, ["unexpected: extra.weight (2,)"]),
        (
            lambda s: s | {"head.weight": torch.zeros(1, 16, 3, 3, 3)},
            ["shape of head.weight: (1, 16, 3, 3, 3), expected (1, 16, 1, 1, 1)"],
        ),
        (lambda s: s | {"head.bias": torch.tensor([float("nan")])}, ["head.bias", "NaN"]),
        (lambda _: [1, 2], ["holds no state dict", "torch.save"]),
    ],
)
def test_export_refuses(tmp_path, state, capsys, change, words):
    assert export.main(save(tmp_path, change(state))) == 1
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "out.safetensors.zst").exists()


class Runs:
    """What a hostile pickle could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_export_executes_nothing(tmp_path, capsys):
    marker = tmp_path / "executed"
    assert export.main(save(tmp_path, {"a": Runs(str(marker))})) == 1
    assert "cannot be read as a state dict" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}', json.dumps(CARD | {"trained": 1})])
def test_export_refuses_card(tmp_path, state, capsys, text):
    arguments = save(tmp_path, state)
    (tmp_path / "card.json").write_text(text)
    assert export.main(arguments) == 1
    assert "card" in capsys.readouterr().err


def test_prelu_slopes_are_stored_per_channel():
    module = randomise(nn.Sequential(nn.Conv3d(1, 3, 1), nn.PReLU(3), nn.Conv3d(3, 1, 1)), 0)
    tensors = export.tensors_for(graph.graph_of(module, "t"), module.state_dict())
    assert tensors["1.weight"].shape == (3, 1, 1, 1)


class Squares(nn.Module):
    def forward(self, x):
        return x**2


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Sequential(nn.Conv3d(1, 1, 3, padding="same")), "padding='same'"),
        (nn.Sequential(nn.Conv3d(1, 1, 3, padding=1, padding_mode="reflect")), "padding_mode"),
        (nn.Sequential(nn.Conv3d(1, 1, 1), nn.InstanceNorm3d(1)), "affine"),
        (nn.Sequential(nn.Softmax(1)), "Softmax"),
        (Squares(), "pow"),
    ],
)
def test_graph_refuses(module, words):
    with pytest.raises(graph.GraphError, match=words):
        graph.graph_of(module, "t")


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
