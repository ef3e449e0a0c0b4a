# SPDX-License-Identifier: Apache-2.0
"""What the import refuses: the message names the operator, its node and the nearest that works."""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="ONNX is missing: nothing is imported")

import onnx
from dosemap_tools.importing.network import NetworkImportError
from imported import imported, onnx_model, ports, statement

SHAPE = (7, 8, 9)
CHANNELS = 4
F32 = np.float32


def integers(*numbers):
    return np.array(numbers, np.int64)


# name -> (nodes, opset, weights, words of the message)
REFUSED = {}


def refused(name, nodes, words, opset=20, **weights):
    nodes = nodes if isinstance(nodes, list) else [nodes]
    REFUSED[name] = (nodes, opset, weights, words)


def one(kind, *inputs, **attributes):
    return (kind, ["x", *inputs], ["y"], attributes)


W = np.ones((2, 4, 3, 3, 3), F32)
T = np.ones((4, 2, 3, 3, 3), F32)
V = np.ones(4, F32)
RESIZE = {"s": np.array([1, 1, 2, 2, 2], F32), "roi": np.empty(0, F32)}
FLAT = ("Flatten", ["x"], ["f"], {})
HALVES = [("Sigmoid", ["x"], ["s"], {}), ("Tanh", ["x"], ["t"], {})]
POOLED = ("GlobalAveragePool", ["x"], ["g"], {})

refused(
    "unknown operator", one("Det"), ["(Det)", "does not have", "possible are: Add, AveragePool"]
)
refused(
    "recurrent",
    [
        FLAT,
        ("Unsqueeze", ["f", "i"], ["g"], {}),
        ("LSTM", ["g", "w", "r"], ["y"], {"hidden_size": 3}),
    ],
    ["(LSTM)", "convolutions"],
    i=integers(0),
    w=np.ones((1, 12, 2016), F32),
    r=np.ones((1, 12, 3), F32),
)
refused(
    "clip to a computed bound",
    [("Sigmoid", ["x"], ["m"], {}), ("Clip", ["x", "", "m"], ["y"], {})],
    ["(Clip)", "'m' is computed by the network"],
)
refused(
    "clip of nothing",
    one("Clip", "a", "b"),
    ["(Clip)", "min is 2.0 and its max 1.5"],
    a=F32(2),
    b=F32(1.5),
)
refused("clip to no number", one("Clip", "a"), ["(Clip)", "its min is nan"], a=F32("nan"))
refused("clip to infinity", one("Clip", "a"), ["(Clip)", "its min is inf"], a=F32("inf"))
refused("softmax", one("Softmax", axis=1), ["(Softmax)", "Sigmoid is possible"])
refused("end in classes", one("ArgMax", axis=1), ["(ArgMax)", "take it off the end"])
refused(
    "layer norm",
    one("LayerNormalization", "v", axis=1),
    ["GroupNormalization with one group"],
    v=np.arange(2016, dtype=F32).reshape(4, *SHAPE),
)
refused(
    "reduction",
    one("ReduceMax", "a"),
    ["(ReduceMax)", "all three spatial axes together", "MaxPool"],
    a=integers(1),
)
refused("exp", one("Exp"), ["(Exp)", "Elu"])
refused(
    "the larger of two",
    [*HALVES, ("Max", ["s", "t"], ["y"], {})],
    ["(Max)", "of a value and a number"],
)
refused(
    "quantised",
    [("QuantizeLinear", ["x", "s"], ["q"], {}), ("DequantizeLinear", ["q", "s"], ["y"], {})],
    ["(QuantizeLinear)", "float32"],
    s=F32(0.1),
)
refused("other domain", one("Conv", "w"), ["'com.other'", "standard"], w=W)

refused(
    "2-D convolution",
    [("Reshape", ["x", "n"], ["f"], {}), ("Conv", ["f", "w"], ["y"], {})],
    ["(Conv)", "[1, 28, 8, 9]", "five axes"],
    n=integers(0, 28, 8, 9),
    w=np.ones((2, 28, 3, 3), F32),
)
refused(
    "negative pads",
    one("ConvTranspose", "w", pads=[-1, 0, 0, 0, 0, 0]),
    ["(ConvTranspose)", "must not contain negative values"],
    w=T,
)
refused("computed weight", [POOLED, ("Conv", ["x", "g"], ["y"], {})], ["(Conv)", "'g'", "computed"])
refused(
    "transposed auto_pad",
    one("ConvTranspose", "t", auto_pad="SAME_UPPER"),
    ["auto_pad is SAME_UPPER", "output_padding"],
    t=T,
)
refused(
    "transposed to a size",
    one("ConvTranspose", "t", output_shape=[9, 10, 11]),
    ["output_shape", "pads and output_padding"],
    t=T,
)
refused(
    "product of two",
    [FLAT, ("Transpose", ["f"], ["g"], {"perm": [1, 0]}), ("MatMul", ["f", "g"], ["y"], {})],
    ["(MatMul)", "[1, 2016] by [2016, 1]", "constant matrix"],
)
refused(
    "product along the last axis",
    one("MatMul", "w"),
    ["(MatMul)", "[1, 4, 7, 8, 9] by [9, 5]"],
    w=np.ones((9, 5), F32),
)
refused(
    "groups that do not divide",
    one("GroupNormalization", "v", "v", num_groups=3),
    ["3 groups", "4 channels"],
    opset=21,
    v=V,
)

refused(
    "cubic",
    one("Resize", "roi", "s", mode="cubic"),
    ["mode is cubic", "nearest and linear"],
    **RESIZE,
)
refused(
    "rounding up",
    one("Resize", "roi", "s", nearest_mode="ceil"),
    ["nearest_mode is ceil", "floor"],
    **RESIZE,
)
refused(
    "halves up",
    one(
        "Resize",
        "roi",
        "s",
        nearest_mode="round_prefer_ceil",
        coordinate_transformation_mode="asymmetric",
    ),
    ["round_prefer_ceil"],
    **RESIZE,
)
refused(
    "crops while resizing",
    one("Resize", "roi", "s", mode="linear", coordinate_transformation_mode="tf_crop_and_resize"),
    ["tf_crop_and_resize", "half_pixel"],
    s=RESIZE["s"],
    roi=np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], F32),
)
refused(
    "to one voxel",
    one("Resize", "roi", "s", mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    ["pytorch_half_pixel"],
    s=np.array([1, 1, 1 / 7, 1, 1], F32),
    roi=RESIZE["roi"],
)
refused(
    "antialias",
    one("Resize", "roi", "s", mode="linear", antialias=1),
    ["antialias", "AveragePool"],
    s=np.array([1, 1, 1, 0.5, 1], F32),
    roi=RESIZE["roi"],
)
refused(
    "channels resized",
    one("Resize", "roi", "s"),
    ["[1, 8, 7, 8, 9]", "spatial axes only"],
    s=np.array([1, 2, 1, 1, 1], F32),
    roi=RESIZE["roi"],
)
refused(
    "aspect ratio",
    one("Resize", "roi", "", "n", keep_aspect_ratio_policy="not_larger", axes=[2, 3, 4]),
    ["aspect ratio"],
    n=integers(14, 14, 14),
    roi=RESIZE["roi"],
)

refused(
    "wrapped",
    one("Pad", "p", mode="wrap"),
    ["mode is wrap", "reflect and edge"],
    p=integers(0, 0, 1, 0, 0, 0, 0, 0, 0, 0),
)
refused("batch padded", one("Pad", "p"), ["pads the batch", "[1, 0"], p=integers(1, *[0] * 9))
refused(
    "padded and cropped by reflection",
    one("Pad", "p", mode="reflect"),
    ["crop by a slice"],
    p=integers(0, 0, 1, -1, 0, 0, 0, 0, 0, 0),
)
refused(
    "padded with infinity",
    one("Pad", "p", "v"),
    ["inf"],
    p=integers(0, 0, *[1] * 3, *[0] * 5),
    v=F32(-np.inf),
)

refused(
    "joined in space",
    [*HALVES, ("Concat", ["s", "t"], ["y"], {"axis": 2})],
    ["(Concat)", "axis 2", "axis 1"],
)
refused(
    "joined with a constant",
    ("Concat", ["x", "c"], ["y"], {"axis": 1}),
    ["(Concat)", "'c' [1, 1, 7, 8, 9]", "constant"],
    c=np.ones((1, 1, *SHAPE), F32),
)
refused(
    "backwards",
    one("Slice", "s", "e", "a", "n"),
    ["(Slice)", "steps of 1 or more"],
    s=integers(-1),
    e=integers(-100),
    a=integers(2),
    n=integers(-1),
)
refused(
    "computed slice",
    [
        ("ReduceSum", ["x"], ["r"], {}),
        ("Cast", ["r"], ["i"], {"to": 7}),
        ("Reshape", ["i", "one"], ["s"], {}),
        ("Slice", ["x", "s", "e"], ["y"], {}),
    ],
    ["(ReduceSum)"],
    one=integers(1),
    e=integers(9),
)
refused(
    "some of the samples",
    [("Concat", ["x", "x"], ["d"], {"axis": 0}), ("Slice", ["d", "s", "e"], ["y"], {})],
    ["(Concat)", "axis 0"],
    s=integers(0),
    e=integers(1),
)
refused("axes moved", one("Transpose", perm=[0, 2, 1, 3, 4]), ["(Transpose)", "[0, 2, 1, 3, 4]"])
refused(
    "reshaped",
    [("Reshape", ["x", "n"], ["f"], {}), ("InstanceNormalization", ["f", "v", "v"], ["y"], {})],
    ["(InstanceNormalization)", "by 'node_0'", "[1, 4, 7, 8, 9]"],
    n=integers(0, 6, 6, -1, 2),
    v=np.ones(6, F32),
)
refused(
    "made whole numbers",
    [("Cast", ["x"], ["i"], {"to": 7}), ("Cast", ["i"], ["y"], {"to": 1})],
    ["(Cast)", "int64 of float"],
)

refused(
    "a constant per voxel",
    one("Add", "c"),
    ["'c' [1, 1, 7, 8, 9]", "one for each of 4"],
    c=np.arange(504, dtype=F32).reshape(1, 1, *SHAPE),
)
refused("a constant per row", one("Mul", "c"), ["'c' [9]"], c=np.arange(9, dtype=F32))
refused(
    "a constant that enlarges",
    [("Conv", ["x", "w"], ["h"], {}), ("Mul", ["h", "c"], ["y"], {})],
    ["enlarges"],
    w=np.ones((1, 4, 1, 1, 1), F32),
    c=np.ones((4, 1, 1, 1), F32),
)
refused("divided by zero", one("Div", "c"), ["'c' holds zeros"], c=np.array([0], F32))
refused(
    "divided by a value",
    [*HALVES, ("Div", ["t", "s"], ["y"], {})],
    ["(Div)", "by a computed value"],
)
refused("power of a half", one("Pow", "c"), ["(Pow)", "1, 2 and 3"], c=F32(0.3))
refused("means of two shapes", [POOLED, ("Sum", ["x", "g"], ["y"], {})], ["(Sum)", "one shape"])
refused(
    "averages with holes",
    one("AveragePool", kernel_shape=[2] * 3, dilations=[2, 1, 1]),
    ["dilations", "convolution"],
)
refused(
    "where the maximum was",
    [
        ("MaxPool", ["x"], ["m", "i"], {"kernel_shape": [1, 2, 2]}),
        ("Cast", ["i"], ["f"], {"to": 1}),
        ("Add", ["m", "f"], ["y"], {}),
    ],
    ["(MaxPool)", "indices"],
)
refused("2-D windows", one("MaxPool", kernel_shape=[2, 2]), ["(MaxPool)"])
refused(
    "sizes that do not meet",
    [("Conv", ["x", "w"], ["h"], {}), ("Concat", ["x", "h"], ["y"], {"axis": 1})],
    ["(Concat)", "patch size"],
    w=W,
)
refused(
    "a shape that depends on values",
    [("NonZero", ["x"], ["n"], {}), ("Cast", ["n"], ["y"], {"to": 1})],
    ["(NonZero)", "fixed patch size"],
)
refused(
    "10 GB of zeros",
    [("ConstantOfShape", ["n"], ["c"], {}), ("Add", ["x", "c"], ["y"], {})],
    ["(ConstantOfShape)"],
    n=integers(1, 4, 10000, 10000, 7),
)
refused(
    "10 GB by repeating",
    [("Expand", ["v", "n"], ["c"], {}), ("Add", ["x", "c"], ["y"], {})],
    ["(Expand)", "made of constants alone"],
    v=F32(1),
    n=integers(1, 4, 10000, 10000, 7),
)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    nodes, opset, weights, words = REFUSED[name]
    model = onnx_model(nodes, weights, opset=opset, inputs={"x": (None, CHANNELS, *SHAPE)})
    if name == "other domain":
        model.graph.node[0].domain = "com.other"
        model.opset_import.append(onnx.helper.make_opsetid("com.other", 1))
    with pytest.raises(NetworkImportError) as caught:
        imported(model, statement(SHAPE, ports("in", CHANNELS), ports("out", 1)))
    message = str(caught.value)
    assert message.startswith("net.onnx: node '"), message
    assert caught.value.remedy, message
    for word in words:
        assert word in message, message
