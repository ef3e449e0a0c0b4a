# SPDX-License-Identifier: Apache-2.0
"""The graph that an ONNX model becomes: its ports, names and weights."""

import json

import numpy as np
import pytest

pytest.importorskip("onnx", reason="ONNX is missing: nothing is imported")

import onnx
from dosemap_tools.importing import convert as conversion
from dosemap_tools.importing.network import NetworkImportError
from imported import (
    check_import,
    imported,
    onnx_model,
    operators,
    ports,
    run_network,
    run_onnx,
    statement,
)
from onnx import helper, numpy_helper
from program import ROOT, assert_close

SHAPE = (6, 5, 4)
F32 = np.float32


def conv(channels_in, channels_out, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.3, (channels_out, channels_in, 3, 3, 3)).astype(F32)


def convolution(source, weight, result, **attributes):
    return ("Conv", [source, weight], [result], {"pads": [1] * 6, **attributes})


def refusal(model, inputs, outputs, shape=SHAPE):
    with pytest.raises(NetworkImportError) as caught:
        imported(model, statement(shape, inputs, outputs))
    return str(caught.value)


def simple(**more):
    nodes = [convolution("x", "w", "y")]
    return onnx_model(nodes, {"w": conv(3, 4)}, inputs={"x": (None, 3, *SHAPE)}, **more)


# Ports --------------------------------------------------------------------------------------------
def test_several_ports_of_one_tensor(tmp_path):
    network = check_import(
        simple(), SHAPE, tmp_path, inputs=ports("in", 1, 2), outputs=ports("out", 1, 2, 1)
    )
    assert operators(network) == ["Concat", "Conv", "Slice", "Slice", "Slice"]
    assert [node["outputs"] for node in network.graph["nodes"][2:]] == [
        ["out0"],
        ["out1"],
        ["out2"],
    ]
    (tensor,), (result,) = network.inputs, network.outputs
    assert (tensor.name, tensor.ports, tensor.channels) == ("x", ("in0", "in1"), (1, 2))
    assert (result.name, result.ports, result.channels) == (
        "y",
        ("out0", "out1", "out2"),
        (1, 2, 1),
    )
    assert tensor.shape == (3, *SHAPE) and result.shape == (4, *SHAPE)


def test_several_tensors(tmp_path):
    nodes = [
        convolution("b", "w", "h"),
        ("Add", ["a", "h"], ["y"], {}),
        ("Relu", ["h"], ["z"], {}),
    ]
    model = onnx_model(
        nodes,
        {"w": conv(2, 1)},
        inputs={"a": (None, 1, *SHAPE), "b": (None, 2, *SHAPE)},
        outputs=("y", "z"),
    )
    network = imported(model, statement(SHAPE, ports("in", 1, 1, 1), ports("out", 1, 1)))
    assert [tensor.ports for tensor in network.inputs] == [("in0",), ("in1", "in2")]
    assert [tensor.ports for tensor in network.outputs] == [("out0",), ("out1",)]
    rng = np.random.default_rng(1)
    patches = [rng.standard_normal((2, n, *SHAPE)).astype(F32) for n in (1, 2)]
    found = run_network(network, patches, tmp_path)
    for result, reference in zip(found, run_onnx(model, patches), strict=True):
        assert_close(result, reference, 1e-6)


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ((2,), (4,), "inputs are 'x' with 3 channels [3, 6, 5, 4]; stated are 'in0' (2 channels)"),
        ((3, 1), (4,), "stated are 'in0' (3 channels), 'in1' (1 channel); state one --input"),
        (
            (3,),
            (3,),
            "outputs are 'y' with 4 channels [4, 6, 5, 4]; stated are 'out0' (3 channels)",
        ),
        ((3,), (2, 3), "state one --output for each channel"),
    ],
)
def test_ports_that_do_not_fit(inputs, outputs, words):
    assert words in refusal(simple(), ports("in", *inputs), ports("out", *outputs))


def test_an_output_twice_and_an_input_as_output(tmp_path):
    nodes = [convolution("x", "w", "y"), ("Identity", ["y"], ["again"], {})]
    nodes += [("Identity", ["x"], ["same"], {})]
    model = onnx_model(
        nodes,
        {"w": conv(3, 2)},
        inputs={"x": (None, 3, *SHAPE)},
        outputs=("y", "again", "same"),
    )
    network = check_import(model, SHAPE, tmp_path, inputs=ports("in", 3))
    assert operators(network) == ["Conv", "Identity", "Identity"]


def test_channels_that_the_file_leaves_open_are_those_stated(tmp_path):
    model = simple()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "C"
    check_import(model, SHAPE, tmp_path, inputs=ports("in", 1, 2))


def test_a_size_that_the_file_leaves_open_is_the_patch(tmp_path):
    model = simple()
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "S"
    network = check_import(model, (8, 9, 10), tmp_path, inputs=ports("in", 3))
    assert network.graph["patch_size"] == [10, 9, 8]
    assert network.inputs[0].shape == (3, 8, 9, 10)


def test_inputs_that_cannot_be():
    stated = ports("in", 3), ports("out", 4)
    words = refusal(simple(), *stated, shape=(6, 5, 5))
    assert "input 'x' is made for patches of 6 x 5 x 4 voxels, not 6 x 5 x 5" in words
    flat = onnx_model([("Relu", ["x"], ["y"], {})], inputs={"x": (None, 3, 6, 5)})
    assert "input 'x' has 4 dimensions" in refusal(flat, *stated)
    whole = simple()
    whole.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert "input 'x' is of type INT64" in refusal(whole, *stated)
    unused = onnx_model(
        [convolution("x", "w", "y")],
        {"w": conv(3, 4)},
        inputs={"x": (None, 3, *SHAPE), "extra": (None, 1, *SHAPE)},
    )
    words = refusal(unused, ports("in", 3, 1), stated[1])
    assert "input 'extra' is used by nothing" in words


def test_outputs_that_cannot_be():
    stated = ports("in", 3), ports("out", 4)
    weights = {"w": conv(3, 4), "c": conv(1, 4)}
    constant = onnx_model(
        [convolution("x", "w", "y"), ("Identity", ["c"], ["z"], {})],
        weights,
        inputs={"x": (None, 3, *SHAPE)},
        outputs=("y", "z"),
    )
    assert "output 'z' does not depend on its inputs" in refusal(constant, *stated)
    joined = onnx_model(
        [convolution("x", "w", "h"), ("Reshape", ["h", "n"], ["y"], {})],
        {**weights, "n": np.array([4, 1, *SHAPE])},
        inputs={"x": (1, 3, *SHAPE)},
    )
    assert "not one per sample" in refusal(joined, *stated)


# Training -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["BatchNormalization", "Dropout", "old BatchNormalization"])
def test_training_mode_is_refused(how):
    norm = {name: np.ones(3, F32) for name in ("s", "b", "m", "v")}
    if how == "Dropout":
        nodes = [("Dropout", ["x", "r", "t"], ["y"], {})]
        weights, opset = {"r": F32(0.5), "t": np.bool_(True)}, 13
    elif how == "BatchNormalization":
        nodes = [(how, ["x", *norm], ["y", "m1", "v1"], {"training_mode": 1})]
        weights, opset = norm, 15
    else:
        nodes = [("BatchNormalization", ["x", *norm], ["y", "m1", "v1", "m2", "v2"], {})]
        weights, opset = norm, 9
    model = onnx_model(nodes, weights, opset=opset, inputs={"x": (None, 3, *SHAPE)})
    words = refusal(model, ports("in", 3), ports("out", 3))
    assert "is in training mode; call model.eval()" in words and "node_0" in words


# Names --------------------------------------------------------------------------------------------
def scope(*steps):
    return "/".join(f"{path}: {kind}" for path, kind in steps)


def test_names_follow_the_modules():
    layer = "torch.nn.modules.conv.Conv3d"
    model = onnx_model(
        [
            convolution("x", "w", "conv3d"),
            convolution("conv3d", "v", "conv3d_1"),
            ("Add", ["conv3d_1", "conv3d"], ["add_7"], {}),
            ("Mul", ["add_7", "conv3d"], ["add_9"], {}),
            ("Add", ["add_9", "conv3d"], ["y"], {}),
        ],
        {"w": conv(3, 2), "v": conv(2, 2)},
        inputs={"x": (None, 3, *SHAPE)},
    )
    top = ("", "net.Net")
    scopes = [
        (
            top,
            ("down", "torch.nn.modules.container.Sequential"),
            ("down.0", layer),
            ("conv3d", "a"),
        ),
        (top, ("down.0", layer), ("conv3d_1", "a")),
        (top, ("block", "net.Block"), ("add_7", "aten.add.Tensor")),
        (top, ("block", "net.Block"), ("mul_", "aten.mul_.Tensor")),
        (top, ("add_8", "aten.add.Tensor")),
    ]
    for node, steps in zip(model.graph.node, scopes, strict=True):
        node.metadata_props.add(key="namespace", value=scope(*steps))
    graph = imported(model, statement(SHAPE, ports("in", 3), ports("out", 2))).graph
    assert [node["name"] for node in graph["nodes"]] == [
        "down.0",
        "down.0_1",
        "add",
        "mul",
        "add_1",
    ]
    values = [node["outputs"][0] for node in graph["nodes"]]
    assert values == ["down_0", "down_0_1", "add", "mul", "out0"]


def test_names_are_what_the_format_allows(tmp_path):
    """Names of ports, weights and values that would be the same, too long or not printable."""
    nodes = [
        convolution("x", "w", "out0"),
        convolution("out0", "in0", "a\x07b" + "c" * 500),
        ("Relu", ["a\x07b" + "c" * 500], ["y"], {}),
    ]
    model = onnx_model(nodes, {"w": conv(1, 2), "in0": conv(2, 1)}, inputs={"x": (None, 1, *SHAPE)})
    patch = np.random.default_rng(0).standard_normal((2, 1, *SHAPE)).astype(F32)
    (expected,) = run_onnx(model, [patch])
    for node in model.graph.node:
        node.name = "same"
    network = imported(model, statement(SHAPE, ports("in", 1), ports("out", 1)))
    assert_close(run_network(network, [patch], tmp_path)[0], expected, 1e-6)
    nodes = network.graph["nodes"]
    assert [node["name"] for node in nodes] == ["same", "same_1", "same_2"]
    assert [node["outputs"][0][:6] for node in nodes] == ["out0_1", "a_bccc", "out0"]
    assert sorted(network.tensors) == ["in0_1", "w"]


def test_the_source_line_of_an_error():
    model = onnx_model([("Det", ["x"], ["y"], {})])
    trace = 'File "/nets/mine.py", line 12, in forward\n    return det(x)\n'
    trace += 'File "/lib/torch/nn/modules/linear.py", line 125, in forward\n'
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value=trace)
    words = refusal(model, ports("in", 3), ports("out", 1), shape=(7, 8, 9))
    assert "(from /nets/mine.py, line 12)" in words


@pytest.mark.parametrize("name", ["dosegan", "dosegan-16"])
def test_the_reference_networks_are_their_graphs(name):
    """PyTorch's export of a reference network becomes models/NAME.json, node for node."""
    torch = pytest.importorskip("torch", reason="PyTorch is missing: nothing is exported")
    from dosemap_tools.importing.convert import convert
    from dosemap_tools.importing.network import Port, Statement
    from dosemap_tools.networks.generator import NETWORKS, Generator

    network = Generator(NETWORKS[name]).eval()
    patch = torch.zeros(2, 1, 32, 32, 32)
    shapes = ({0: torch.export.Dim("N", min=1, max=64)},)
    program = torch.export.export(network, (patch,), dynamic_shapes=shapes)
    model = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False).model
    pet = Port("pet", "uptake", "g/mL")
    dose = Port("dose", "dose_per_activity", "Gy/GBq")
    stated = Statement(name, (32, 32, 32), "xyz", "RAS", (pet,), (dose,))
    found = convert(model, stated, "net.onnx")
    assert found.graph == json.loads((ROOT / "models" / f"{name}.json").read_text())
    parameters = dict(network.state_dict())
    assert all(np.array_equal(found.tensors[k], parameters[k].numpy()) for k in found.tensors)
    left_out = [k for k in parameters if k not in found.tensors]
    assert all(k.endswith("num_batches_tracked") for k in left_out)


# Weights ------------------------------------------------------------------------------------------
def test_a_weight_of_two_nodes_is_one_tensor(tmp_path):
    nodes = [convolution("x", "w", "a"), convolution("a", "w", "y", dilations=[2] * 3)]
    nodes[1][3]["pads"] = [2] * 6
    model = onnx_model(nodes, {"w": conv(3, 3)}, inputs={"x": (None, 3, *SHAPE)})
    network = check_import(model, SHAPE, tmp_path, inputs=ports("in", 3))
    assert list(network.tensors) == ["w"]


def test_a_parameter_in_two_shapes(tmp_path):
    """One slope, as PRelu and as Mul want it, after reshaping in the network itself."""
    nodes = [
        ("Unsqueeze", ["slope", "i"], ["four"], {}),
        ("PRelu", ["x", "four"], ["a"], {}),
        ("Reshape", ["slope", "n"], ["five"], {}),
        ("Mul", ["a", "five"], ["b"], {}),
        ("InstanceNormalization", ["b", "slope", "slope"], ["y"], {}),
    ]
    weights = {
        "slope": np.array([0.1, 0.2, 0.3], F32),
        "i": np.array([1, 2, 3]),
        "n": np.array([1, 3, 1, 1, 1]),
    }
    model = onnx_model(nodes, weights, inputs={"x": (None, 3, *SHAPE)})
    network = check_import(model, SHAPE, tmp_path, inputs=ports("in", 3))
    shapes = {name: values.shape for name, values in network.tensors.items()}
    assert shapes == {"slope": (3, 1, 1, 1), "slope_1": (1, 3, 1, 1, 1), "slope_2": (3,)}


@pytest.mark.parametrize("kind", ["FLOAT16", "BFLOAT16", "DOUBLE"])
def test_weights_of_other_widths(tmp_path, kind):
    kind_number = onnx.TensorProto.DataType.Value(kind)
    model = onnx_model(
        [
            ("Cast", ["x"], ["h"], {"to": kind_number}),
            ("Mul", ["h", "w"], ["m"], {}),
            ("Cast", ["m"], ["y"], {"to": 1}),
        ],
        inputs={"x": (None, 3, *SHAPE)},
    )
    exact = np.array([0.5, -1.25, 3.0], F32).reshape(3, 1, 1, 1)
    dtype = helper.tensor_dtype_to_np_dtype(kind_number)
    model.graph.initializer.append(numpy_helper.from_array(exact.astype(dtype), "w"))
    network = imported(model, statement(SHAPE, ports("in", 3), ports("out", 3)))
    assert network.tensors["w"].dtype == F32 and np.array_equal(network.tensors["w"], exact)
    verb = "rounded from float64" if kind == "DOUBLE" else f"widened from {kind.lower()}"
    assert network.notes == [f"1 of the weights' tensors {verb}"]
    x = np.random.default_rng(0).standard_normal((2, 3, *SHAPE)).astype(F32)
    assert_close(run_network(network, [x], tmp_path)[0], x * exact, 1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value):
    broken = conv(3, 4)
    broken[3, 2, 2, 2, 2] = value
    model = onnx_model(
        [convolution("x", "layer.weight", "y")],
        {"layer.weight": broken},
        inputs={"x": (None, 3, *SHAPE)},
    )
    words = refusal(model, ports("in", 3), ports("out", 4))
    assert "tensor 'layer.weight' holds NaN or infinity" in words


def test_doubles_too_large_for_float32():
    model = onnx_model(
        [
            ("Cast", ["x"], ["h"], {"to": 11}),
            ("Mul", ["h", "w"], ["m"], {}),
            ("Cast", ["m"], ["y"], {"to": 1}),
        ],
        {"w": np.array(1e300)},
        inputs={"x": (None, 3, *SHAPE)},
    )
    assert "tensor 'w' holds NaN or infinity" in refusal(model, ports("in", 3), ports("out", 3))


def test_whole_numbers_are_no_weights():
    model = onnx_model(
        [("Cast", ["w"], ["f"], {"to": 1}), convolution("x", "f", "y")],
        {"w": np.ones((4, 3, 3, 3, 3), np.int8)},
        inputs={"x": (None, 3, *SHAPE)},
    )
    # Computed from whole numbers they are weights like any other.
    assert imported(model, statement(SHAPE, ports("in", 3), ports("out", 4))).tensors
    model.graph.node[1].input[1] = "w"
    words = refusal(model, ports("in", 3), ports("out", 4))
    assert "(Conv)" in words and "unsupported type: tensor(int8)" in words


def test_what_follows_from_weights_is_computed(tmp_path):
    """A weight norm: direction times length, over several steps."""
    nodes = [
        ("ReduceL2", ["v", "axes"], ["norm"], {"keepdims": 1}),
        ("Div", ["v", "norm"], ["unit"], {}),
        ("Mul", ["g", "unit"], ["w"], {}),
        convolution("x", "w", "y"),
    ]
    weights = {
        "v": conv(3, 4),
        "g": np.array([1, 2, 3, 4], F32).reshape(4, 1, 1, 1, 1),
        "axes": np.array([1, 2, 3, 4]),
    }
    model = onnx_model(nodes, weights, inputs={"x": (None, 3, *SHAPE)})
    network = check_import(model, SHAPE, tmp_path, inputs=ports("in", 3))
    assert operators(network) == ["Conv"]


def test_weights_that_old_files_list_as_inputs(tmp_path):
    model = simple()
    kind = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, (4, 3, 3, 3, 3))
    model.graph.input.append(kind)
    network = imported(model, statement(SHAPE, ports("in", 3), ports("out", 4)))
    assert [tensor.name for tensor in network.inputs] == ["x"] and list(network.tensors) == ["w"]


def test_a_branch_that_is_decided_and_one_that_is_not(tmp_path):
    def branches(condition):
        branch = []
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Tanh")):
            result = helper.make_tensor_value_info(kind, onnx.TensorProto.FLOAT, None)
            node = helper.make_node(kind, ["x"], [kind])
            branch.append((name, helper.make_graph([node], name, [], [result])))
        return ("If", [condition], ["y"], dict(branch))

    shape = [
        ("Shape", ["x"], ["s"], {"start": 2, "end": 3}),
        ("Greater", ["s", "five"], ["c"], {}),
        branches("c"),
    ]
    model = onnx_model(shape, {"five": np.array([5])}, inputs={"x": (None, 3, *SHAPE)})
    assert operators(check_import(model, SHAPE, tmp_path, inputs=ports("in", 3))) == ["Relu"]
    largest = [
        ("ReduceMax", ["x"], ["m"], {"keepdims": 0}),
        ("Greater", ["m", "zero"], ["c"], {}),
        branches("c"),
    ]
    model = onnx_model(largest, {"zero": F32(0)}, inputs={"x": (None, 3, *SHAPE)})
    assert "(ReduceMax)" in refusal(model, ports("in", 3), ports("out", 3))


def test_functions_are_inlined(tmp_path):
    body = [
        helper.make_node("Conv", ["a", "b"], ["h"], pads=[1] * 6),
        helper.make_node("Relu", ["h"], ["c"]),
    ]
    function = helper.make_function(
        "local", "Unit", ["a", "b"], ["c"], body, [helper.make_opsetid("", 20)]
    )
    nodes = [("Unit", ["x", "w"], ["h"], {}), ("Unit", ["h", "v"], ["y"], {})]
    model = onnx_model(
        nodes,
        {"w": conv(3, 4), "v": conv(4, 2)},
        inputs={"x": (None, 3, *SHAPE)},
        domains=(("local", 1),),
    )
    for node in model.graph.node:
        node.domain = "local"
    model.functions.append(function)
    network = check_import(model, SHAPE, tmp_path, inputs=ports("in", 3))
    assert operators(network) == ["Conv", "Relu", "Conv", "Relu"]


# Limits -------------------------------------------------------------------------------------------
def test_too_many_nodes():
    nodes = [("LeakyRelu", [f"v{i}"], [f"v{i + 1}"], {}) for i in range(4097)]
    model = onnx_model(nodes, inputs={"v0": (None, 3, *SHAPE)}, outputs=("v4097",))
    words = refusal(model, ports("in", 3), ports("out", 3))
    assert "the network has 4097 nodes" in words and "1 to 4096 are possible" in words


def test_too_many_bytes(monkeypatch):
    monkeypatch.setattr(conversion, "MAX_DATA_BYTES", 1000)
    words = refusal(simple(), ports("in", 3), ports("out", 4))
    assert "its weights have 1296 bytes in float32" in words and "at most 1000" in words


@pytest.mark.parametrize("damage", ["no input", "cycle", "attribute", "unknown source"])
def test_malformed_models(damage):
    model = simple()
    (node,) = model.graph.node
    if damage == "no input":
        del node.input[:]
    elif damage == "cycle":
        node.input[0] = "y"
    elif damage == "attribute":
        node.attribute[0].type = onnx.AttributeProto.STRING
        node.attribute[0].s = b"wide"
        del node.attribute[0].ints[:]
    else:
        node.input[0] = "nowhere"
    words = refusal(model, ports("in", 3), ports("out", 4))
    assert words.startswith("net.onnx: ")
