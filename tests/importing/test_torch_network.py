# SPDX-License-Identifier: Apache-2.0
"""From a Python class to a trace, to ONNX, and to runs of the original."""

import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: networks are not traced")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is missing: nothing to run")

import onnx_ir
import torch
from dosemap_tools.importing import torch_network as network
from dosemap_tools.importing.checkpoint import load_state_dict
from dosemap_tools.importing.network import NetworkImportError, Statement
from dosemap_tools.networks.generator import NETWORKS
from torch import nn

PATCH = (6, 10, 8)
STATEMENT = Statement("test", PATCH, "zyx", "RAS", (), ())
RNG = np.random.default_rng(2)


def patch(samples=2, channels=1):
    return RNG.standard_normal((samples, channels, *STATEMENT.spatial_shape), np.float32)


def run_onnx(model, inputs):
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [one.name for one in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


class TwoInputs(nn.Module):
    """PET and CT as tensors of their own, outputs in a dict and a list."""

    def __init__(self):
        super().__init__()
        self.pet, self.ct = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(2, 4, 3, padding=1)
        self.norm = nn.InstanceNorm3d(4, affine=True)

    def forward(self, pet, ct):
        x = self.norm(self.pet(pet) + self.ct(ct))
        return {"b": x, "a": [torch.relu(x), (x * 2,)]}


def test_traces_and_translates_several_tensors():
    torch.manual_seed(0)
    module = TwoInputs()
    program, notes = network.export_program(module, [1, 2], STATEMENT)
    assert not notes
    inputs = [patch(3, 1), patch(3, 2)]
    original, traced = network.TorchOriginal(module), network.TorchOriginal(program)
    expected = original.run(inputs)
    assert original.output_names == ["b", "a.0", "a.1.0"]
    assert [values.shape for values in expected] == [(3, 4, 8, 10, 6)] * 3
    model = network.to_onnx(program)
    for found in (traced.run(inputs), run_onnx(model, inputs)):
        assert len(found) == 3
        for values, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(values, wanted, atol=1e-5)
    assert original.description == f"PyTorch {torch.__version__}"
    shapes = [tuple(one.shape)[1:] for one in model.graph.inputs]
    assert shapes == [(1, 8, 10, 6), (2, 8, 10, 6)]


def test_the_module_is_run_as_it_predicts():
    module = (
        nn.Sequential(nn.Conv3d(1, 2, 1), nn.Dropout3d(0.9), nn.BatchNorm3d(2)).double().train()
    )
    first = network.TorchOriginal(module).run([patch()])[0]
    assert first.dtype == np.float32
    assert not module.training
    np.testing.assert_array_equal(module[2].running_mean.numpy(), np.zeros(2))


class ChunksOfTheBatch(nn.Module):
    """Can only be traced for one batch: it is written into a shape."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x):
        outputs = [self.conv(part) for part in x.split([1] * int(x.shape[0]))]
        return torch.cat(outputs)


def test_a_fixed_batch_is_said_and_run_in_parts():
    module = ChunksOfTheBatch()
    program, notes = network.export_program(module, [1], STATEMENT)
    assert len(notes) == 1
    assert "batch is fixed to 1" in notes[0]
    inputs = [patch(3)]
    expected = network.TorchOriginal(module).run(inputs)[0]
    found = network.TorchOriginal(program).run(inputs)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_any_fixed_batch(samples):
    module = nn.Sequential(nn.Conv3d(1, 2, 3)).eval()
    program = torch.export.export(module, (torch.zeros(2, 1, 6, 10, 8),))
    inputs = [RNG.standard_normal((samples, 1, 6, 10, 8), np.float32)]
    expected = network.TorchOriginal(module).run(inputs)[0]
    found = network.TorchOriginal(program).run(inputs)[0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)


class DependsOnValues(nn.Module):
    def forward(self, x):
        return x * 2 if x.max() > 0 else x


class Bessel(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv3d(1, 1, 1), Order())

    def forward(self, x):
        return self.inner(x)


class Order(nn.Module):
    def forward(self, x):
        return torch.special.i0(x)  # has no form in ONNX


def test_says_what_cannot_be_traced(capfd):
    with pytest.raises(NetworkImportError, match="data-dependent") as caught:
        network.export_program(DependsOnValues(), [1], STATEMENT)
    assert "DependsOnValues" in str(caught.value)
    assert "[8, 10, 6] voxels" in str(caught.value)
    with pytest.raises(NetworkImportError, match="channels"):
        network.export_program(nn.Conv3d(2, 1, 1), [3], STATEMENT)
    assert capfd.readouterr() == ("", "")


def test_says_which_operator_onnx_lacks(capfd):
    program, _ = network.export_program(Bessel(), [1], STATEMENT)
    with pytest.raises(NetworkImportError) as caught:
        network.to_onnx(program, "net.pt2")
    message = str(caught.value)
    assert "net.pt2: inner.1: the operator aten.special_i0.default has no form in ONNX" in message
    assert "test_torch_network.py, line" in message
    assert "return torch.special.i0(x)" in message
    assert capfd.readouterr() == ("", "")


def test_says_what_cannot_be_run():
    original = network.TorchOriginal(nn.Conv3d(2, 1, 1))
    with pytest.raises(NetworkImportError, match=r"\[2, 1, 8, 10, 6\].*channels") as caught:
        original.run([patch()])
    assert "Conv3d" in str(caught.value)
    with pytest.raises(NetworkImportError, match=r"weight is not known.*Lazy"):
        network.wanted_shapes(nn.LazyConv3d(1, 1))


def test_is_quiet(capfd):
    program, _ = network.export_program(nn.Conv3d(1, 1, 1), [1], STATEMENT)
    network.to_onnx(program)
    network.TorchOriginal(program).run([patch()])
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in which someone keeps networks."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "nets.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, channels, name='a', *, act=None):\n"
        "        super().__init__()\n"
        "        self.given = (channels, name, act)\n"
        "        self.conv = nn.Conv3d(1, channels[0], 1)\n"
        "def number():\n"
        "    return 3\n"
        "def breaks():\n"
        "    raise OSError('no disk')\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "theirs"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("((4, 8))", ((4, 8), "a", None)),
        (
            "([2], 'x:(y)', act=('relu', {'inplace': True}))",
            ([2], "x:(y)", ("relu", {"inplace": True})),
        ),
        ("(channels=[2, -1], name=None)", ([2, -1], None, None)),
    ],
)
def test_makes_a_module(package, text, given):
    module = network.module_from(f"theirs.nets:Net{text}", package)
    assert module.given == given
    assert not module.training
    assert network.wanted_shapes(module)["conv.weight"] == (given[0][0], 1, 1, 1, 1)


def test_a_network_of_nnunet_and_its_checkpoint(tmp_path):
    pytest.importorskip("dynamic_network_architectures", reason="nnU-Net's networks are missing")
    spec = (
        "dynamic_network_architectures.architectures.unet:PlainConvUNet(1, n_stages=2, "
        "features_per_stage=[4, 6], conv_op=torch.nn.Conv3d, kernel_sizes=3, strides=[1, 2], "
        "n_conv_per_stage=1, num_classes=1, n_conv_per_stage_decoder=1, conv_bias=True, "
        "norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={'affine': True, 'eps': 1e-5}, "
        "nonlin=torch.nn.LeakyReLU, deep_supervision=False)"
    )
    trained, module = network.module_from(spec), network.module_from(spec)
    weights = {f"_orig_mod.{name}": values for name, values in trained.state_dict().items()}
    torch.save({"network_weights": weights, "init_args": {"fold": 0}}, tmp_path / "final.pth")
    wanted = network.wanted_shapes(module)
    network.load_weights(module, load_state_dict(tmp_path / "final.pth", wanted))
    inputs = [patch()]
    expected = network.TorchOriginal(trained).run(inputs)[0]
    np.testing.assert_array_equal(network.TorchOriginal(module).run(inputs)[0], expected)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("theirs.nets", "package.module:Class"),
        ("theirs.nets:Net(open('x'))", "arguments"),
        ("theirs.nets:Net(*[1])", "arguments"),
        ("theirs.nets:Net(**{'channels': [1]})", "arguments"),
        ("theirs.nets:Net(1)(2)", "more than one call"),
        ("theirs.nets:Net(torch.nn.Conv7d)", "Conv7d"),
        ("theirs.nets:Net([torch.nn.Conv3d(1, 1, 1)])", "arguments"),
        ("theirs.nets:Net(no.such.thing)", "No module named"),
        ("theirs.nets:Net([1]", "package.module:Class"),
        ("theirs.nets:Net([1)", "arguments"),
        ("theirs.nets:Net()", "channels"),
        ("theirs.nets:Other()", "has no Other"),
        ("theirs.nets:number()", "is a int"),
        ("theirs.nets:breaks()", "OSError: no disk"),
        ("theirs.missing:Net()", "No module named"),
        ("../theirs:Net()", "package.module:Class"),
    ],
)
def test_refuses_specifications(package, spec, words):
    with pytest.raises(NetworkImportError) as caught:
        network.module_from(spec, package)
    assert words in str(caught.value)


def test_known_networks():
    assert network.network_names() == sorted(NETWORKS)
    with pytest.raises(NetworkImportError, match="choose one of dosegan"):
        network.network_graph("../generator")
    for name in network.network_names():
        graph, module = network.network_graph(name), network.network_module(name)
        tensors = network.tensors_for(graph, module.state_dict())
        wanted = set(network.wanted_shapes(module))
        assert {n for n in wanted if not n.endswith("num_batches_tracked")} == set(tensors)


def test_prelu_slopes_are_stored_per_channel():
    graph = {
        "inputs": [{"name": "pet"}],
        "nodes": [{"op": "PRelu", "inputs": ["pet", "slope"], "outputs": ["dose"]}],
    }
    tensors = network.tensors_for(graph, {"slope": torch.tensor([1.0, 2.0, 3.0])})
    assert tensors["slope"].shape == (3, 1, 1, 1)
    assert network.tensors_for(graph, {"slope": torch.ones(1)})["slope"].shape == (1,)


def test_source_line_is_that_of_the_users_code():
    trace = (
        'File "/home/me/train.py", line 3, in forward\n    return self.net(x)\n'
        'File "/venv/torch/nn/modules/conv.py", line 7, in forward\n    return conv(x)'
    )
    assert network.source_line(trace) == "/home/me/train.py, line 3: return self.net(x)"
    assert network.source_line("") == ""
