# SPDX-License-Identifier: Apache-2.0
"""Each operator of weights/FORMAT.md, between two convolutions, against PyTorch's functions.

The network is: Conv 1 -> C with an asymmetric kernel, the operators under test, and Conv -> 1.
Where they change the size, a Slice and a Pad bring it back to the tile's. Kernels, strides,
paddings and scales differ between the axes, so that exchanged axes show; all cases run with `xyz`
and `zyx`.
"""

import numpy as np
import pytest

pytest.importorskip("monai", reason="PyTorch and MONAI are missing: peers are not compared")

import torch
from images import RAS_AFFINE, uptake
from make_test_models import write_graph
from peer import sliding_window
from program import assert_close, predict
from torch.nn import functional as F

CHANNELS = 6
TILE = (18, 24, 12)
RNG = np.random.default_rng(11)


def weight(*shape):
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    return torch.from_numpy(RNG.normal(0, (2.0 / fan_in) ** 0.5, shape).astype(np.float32))


def vector(low, high, n=CHANNELS):
    return torch.from_numpy(RNG.uniform(low, high, n).astype(np.float32))


# name -> (nodes: [(op, weights after x, attributes)], weights, reference(x, *weights))
CASES = {}


def case(name, op, attributes, reference, **weights):
    CASES[name] = ([(op, list(weights), attributes)], weights, reference)


def pads3(begin, end=None):
    """ONNX pads as F.pad wants them: last axis first, begin and end."""
    end = begin if end is None else end
    return [v for axis in (2, 1, 0) for v in (begin[axis], end[axis])]


# Convolutions -------------------------------------------------------------------------------------
W = weight(7, CHANNELS, 3, 5, 1)
B = vector(-0.5, 0.5, 7)
case(
    "conv",
    "Conv",
    {"kernel_shape": [3, 5, 1], "pads": [1, 2, 0, 1, 2, 0]},
    lambda x, w, b: F.conv3d(x, w, b, padding=(1, 2, 0)),
    w=W,
    b=B,
)
case(
    "conv without bias, uneven padding",
    "Conv",
    {"kernel_shape": [2, 4, 3], "pads": [1, 1, 2, 0, 2, 0]},
    lambda x, w: F.conv3d(F.pad(x, pads3((1, 1, 2), (0, 2, 0))), w),
    w=weight(5, CHANNELS, 2, 4, 3),
)
case(
    "conv, strides",
    "Conv",
    {"kernel_shape": [3, 2, 3], "strides": [3, 2, 1], "pads": [1, 0, 1, 1, 0, 1]},
    lambda x, w, b: F.conv3d(x, w, b, stride=(3, 2, 1), padding=(1, 0, 1)),
    w=weight(7, CHANNELS, 3, 2, 3),
    b=B,
)
case(
    "conv, dilations",
    "Conv",
    {"kernel_shape": [3, 3, 4], "dilations": [2, 3, 1], "pads": [2, 3, 1, 2, 3, 2]},
    lambda x, w: F.conv3d(F.pad(x, pads3((2, 3, 1), (2, 3, 2))), w, dilation=(2, 3, 1)),
    w=weight(5, CHANNELS, 3, 3, 4),
)
case(
    "conv, groups",
    "Conv",
    {"kernel_shape": [3, 1, 3], "pads": [1, 0, 1, 1, 0, 1], "group": 3},
    lambda x, w, b: F.conv3d(x, w, b, padding=(1, 0, 1), groups=3),
    w=weight(9, 2, 3, 1, 3),
    b=vector(-0.5, 0.5, 9),
)
case(
    "conv, depthwise",
    "Conv",
    {"kernel_shape": [3, 5, 3], "pads": [1, 2, 1, 1, 2, 1], "group": CHANNELS},
    lambda x, w: F.conv3d(x, w, padding=(1, 2, 1), groups=CHANNELS),
    w=weight(CHANNELS, 1, 3, 5, 3),
)
case(
    "conv, all attributes",
    "Conv",
    {
        "kernel_shape": [2, 3, 3],
        "strides": [1, 2, 3],
        "dilations": [3, 2, 1],
        "pads": [3, 1, 0, 0, 2, 2],
        "group": 2,
    },
    lambda x, w, b: F.conv3d(
        F.pad(x, pads3((3, 1, 0), (0, 2, 2))), w, b, stride=(1, 2, 3), dilation=(3, 2, 1), groups=2
    ),
    w=weight(4, 3, 2, 3, 3),
    b=vector(-0.5, 0.5, 4),
)
case(
    "transposed",
    "ConvTranspose",
    {"kernel_shape": [2, 3, 1], "strides": [2, 3, 1]},
    lambda x, w, b: F.conv_transpose3d(x, w, b, stride=(2, 3, 1)),
    w=weight(CHANNELS, 5, 2, 3, 1),
    b=vector(-0.5, 0.5, 5),
)
case(
    "transposed, overlapping, padded",
    "ConvTranspose",
    {
        "kernel_shape": [3, 4, 3],
        "strides": [2, 2, 1],
        "pads": [1, 1, 1, 1, 1, 1],
        "output_padding": [1, 0, 0],
    },
    lambda x, w: F.conv_transpose3d(
        x, w, stride=(2, 2, 1), padding=(1, 1, 1), output_padding=(1, 0, 0)
    ),
    w=weight(CHANNELS, 5, 3, 4, 3),
)
case(
    "transposed, groups",
    "ConvTranspose",
    {"kernel_shape": [2, 2, 3], "strides": [2, 1, 2], "pads": [0, 0, 1, 0, 0, 1], "group": 2},
    lambda x, w, b: F.conv_transpose3d(x, w, b, stride=(2, 1, 2), padding=(0, 0, 1), groups=2),
    w=weight(CHANNELS, 2, 2, 2, 3),
    b=vector(-0.5, 0.5, 4),
)
case(
    "transposed, dilations",
    "ConvTranspose",
    {"kernel_shape": [3, 2, 2], "dilations": [1, 2, 3], "pads": [1, 1, 1, 1, 1, 2]},
    lambda x, w: F.conv_transpose3d(x, w, padding=(1, 1, 1), dilation=(1, 2, 3))[..., :-1],
    w=weight(CHANNELS, 5, 3, 2, 2),
)

# Normalisations -----------------------------------------------------------------------------------
SCALE, SHIFT = vector(0.5, 2.0), vector(-1.0, 1.0)
case(
    "batch norm",
    "BatchNormalization",
    {"epsilon": 1e-2},
    lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b, eps=1e-2),
    s=SCALE,
    b=SHIFT,
    m=vector(-1.0, 1.0),
    v=vector(0.1, 3.0),
)
case(
    "instance norm",
    "InstanceNormalization",
    {"epsilon": 1e-3},
    lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=1e-3),
    s=SCALE,
    b=SHIFT,
)
for groups in (1, 2, 3, 6):
    case(
        f"group norm {groups}",
        "GroupNormalization",
        {"num_groups": groups, "epsilon": 1e-3},
        lambda x, s, b, groups=groups: F.group_norm(x, groups, s, b, eps=1e-3),
        s=SCALE,
        b=SHIFT,
    )

# Pointwise ----------------------------------------------------------------------------------------
case("leaky", "LeakyRelu", {"alpha": 0.3}, lambda x: F.leaky_relu(x, 0.3))
case("leaky, default", "LeakyRelu", {}, lambda x: F.leaky_relu(x, 0.01))
case("relu", "Relu", {}, torch.relu)
case("sigmoid", "Sigmoid", {}, torch.sigmoid)
case("tanh", "Tanh", {}, torch.tanh)
case("softplus", "Softplus", {}, F.softplus)
case("clip", "Clip", {"min": -0.25, "max": 0.5}, lambda x: torch.clamp(x, -0.25, 0.5))
case("clip from below", "Clip", {"min": 0.125}, lambda x: torch.clamp(x, min=0.125))
case("clip from above", "Clip", {"max": -0.125}, lambda x: torch.clamp(x, max=-0.125))
case("identity", "Identity", {}, lambda x: x)
case("elu", "Elu", {"alpha": 0.7}, lambda x: F.elu(x, 0.7))
case("gelu", "Gelu", {}, F.gelu)
case("gelu, tanh", "Gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh"))
case("prelu, one slope", "PRelu", {}, lambda x, s: F.prelu(x, s), s=vector(0.1, 0.4, 1))
case(
    "prelu, slopes",
    "PRelu",
    {},
    lambda x, s: F.prelu(x, s.flatten()),
    s=vector(-0.2, 0.6).reshape(-1, 1, 1, 1),
)
for symbol, op, function in (
    ("+", "Add", torch.add),
    ("*", "Mul", torch.mul),
    ("-", "Sub", torch.sub),
):
    case(f"x {symbol} scalar", op, {}, function, a=torch.tensor(0.7))
    case(f"x {symbol} channels", op, {}, function, a=vector(0.5, 2.0).reshape(-1, 1, 1, 1))
    CASES[f"scalar {symbol} x"] = (
        [(op, ["a", "@"], {})],
        {"a": torch.tensor(0.7)},
        lambda x, a, function=function: function(a, x),
    )

# Pools --------------------------------------------------------------------------------------------
case(
    "max pool",
    "MaxPool",
    {"kernel_shape": [2, 3, 1], "strides": [2, 3, 1]},
    lambda x: F.max_pool3d(x, (2, 3, 1), (2, 3, 1)),
)
case(
    "max pool, padded, dilated",
    "MaxPool",
    {
        "kernel_shape": [3, 2, 3],
        "strides": [1, 2, 2],
        "pads": [1, 1, 1, 1, 1, 1],
        "dilations": [2, 1, 1],
    },
    lambda x: F.max_pool3d(x, (3, 2, 3), (1, 2, 2), (1, 1, 1), (2, 1, 1)),
)
case(
    "max pool, ceil",
    "MaxPool",
    {"kernel_shape": [3, 2, 4], "strides": [2, 3, 3], "ceil_mode": 1},
    lambda x: F.max_pool3d(x, (3, 2, 4), (2, 3, 3), ceil_mode=True),
)
for count in (0, 1):
    case(
        f"average pool, padded, count_include_pad {count}",
        "AveragePool",
        {
            "kernel_shape": [3, 2, 4],
            "strides": [2, 2, 1],
            "pads": [1, 0, 2, 1, 0, 2],
            "count_include_pad": count,
        },
        lambda x, count=count: F.avg_pool3d(
            x, (3, 2, 4), (2, 2, 1), (1, 0, 2), count_include_pad=bool(count)
        ),
    )
case(
    "average pool, ceil",
    "AveragePool",
    {"kernel_shape": [3, 2, 4], "strides": [2, 3, 3], "ceil_mode": 1},
    lambda x: F.avg_pool3d(x, (3, 2, 4), (2, 3, 3), ceil_mode=True),
)
CASES["global average pool"] = (
    [("GlobalAveragePool", [], {}), ("Mul", ["@x"], {})],
    {},
    lambda x: x * x.mean((2, 3, 4), keepdim=True),
)

# Size ---------------------------------------------------------------------------------------------
for torch_mode, mode in (("nearest", "nearest"), ("trilinear", "linear")):
    corners = {"align_corners": False} if mode == "linear" else {}
    coordinates = "half_pixel" if mode == "linear" else "asymmetric"
    case(
        f"resize, {mode}, scales",
        "Resize",
        {
            "mode": mode,
            "scales": [2.0, 1.0, 3.0],
            "coordinate_transformation_mode": coordinates,
            "nearest_mode": "floor",
        },
        lambda x, m=torch_mode, c=corners: F.interpolate(x, scale_factor=(2, 1, 3), mode=m, **c),
    )
    case(
        f"resize, {mode}, sizes down",
        "Resize",
        {
            "mode": mode,
            "sizes": [9, 8, 7],
            "coordinate_transformation_mode": coordinates,
            "nearest_mode": "floor",
        },
        lambda x, m=torch_mode, c=corners: F.interpolate(x, size=(9, 8, 7), mode=m, **c),
    )
case(
    "resize, linear, align_corners",
    "Resize",
    {
        "mode": "linear",
        "sizes": [29, 31, 17],
        "coordinate_transformation_mode": "align_corners",
    },
    lambda x: F.interpolate(x, size=(29, 31, 17), mode="trilinear", align_corners=True),
)
case(
    "resize, nearest, half_pixel, round_prefer_floor",
    "Resize",
    {"mode": "nearest", "scales": [3.0, 2.0, 1.0]},
    # The centre of each output cell lies inside its source cell: as nearest by blocks.
    lambda x: x.repeat_interleave(3, 2).repeat_interleave(2, 3),
)
for mode, torch_mode in (("constant", "constant"), ("reflect", "reflect"), ("edge", "replicate")):
    value = {"value": 0.4} if mode == "constant" else {}
    case(
        f"pad, {mode}",
        "Pad",
        {"pads": [1, 2, 0, 3, 1, 2], "mode": mode, **value},
        lambda x, m=torch_mode, v=value: F.pad(x, pads3((1, 2, 0), (3, 1, 2)), mode=m, **v),
    )
case(
    "slice, space",
    "Slice",
    {"starts": [2, -9, 1], "ends": [14, -1, 1000], "axes": [2, 3, 4], "steps": [1, 2, 3]},
    lambda x: x[:, :, 2:14, -9:-1:2, 1::3],
)
case(
    "slice, channels",
    "Slice",
    {"starts": [1], "ends": [6], "axes": [1], "steps": [2]},
    lambda x: x[:, 1:6:2],
)

# Joins of several tensors -------------------------------------------------------------------------
CASES["concatenate"] = (
    [
        ("Relu", [], {}),
        ("Tanh", ["@x"], {}, "only"),
        ("Concat", ["@1", "@x", "@2"], {"axis": 1}, "only"),
    ],
    {},
    lambda x: torch.cat([torch.relu(x), x, torch.tanh(x)], 1),
)
CASES["residual"] = (
    [
        ("Conv", ["w"], {"kernel_shape": [3, 3, 3], "pads": [1] * 6}),
        ("Add", ["@x"], {}),
        ("Relu", [], {}),
    ],
    {"w": weight(CHANNELS, CHANNELS, 3, 3, 3)},
    lambda x, w: torch.relu(F.conv3d(x, w, padding=1) + x),
)
# Rectifiers of different slopes behind one convolution: oneDNN 2.6 mixes them up.
CASES["two rectifiers"] = (
    [
        ("Conv", ["w"], {"kernel_shape": [1, 1, 1]}),
        ("LeakyRelu", [], {"alpha": 0.5}),
        ("Relu", [], {}),
    ],
    {"w": weight(9, CHANNELS, 1, 1, 1)},
    lambda x, w: torch.relu(F.conv3d(x, w)),
)
CASES["two exponentials"] = (
    [
        ("ConvTranspose", ["w"], {"kernel_shape": [2, 1, 2], "strides": [2, 1, 2]}),
        ("Elu", [], {"alpha": 0.5}),
        ("Elu", [], {"alpha": 2.0}),
    ],
    {"w": weight(CHANNELS, 8, 2, 1, 2)},
    lambda x, w: F.elu(F.elu(F.conv_transpose3d(x, w, stride=(2, 1, 2)), 0.5), 2.0),
)
CASES["squeeze and excitation"] = (
    [
        ("GlobalAveragePool", [], {}),
        ("Conv", ["w"], {"kernel_shape": [1, 1, 1]}),
        ("Sigmoid", [], {}),
        ("Mul", ["@x"], {}),
    ],
    {"w": weight(CHANNELS, CHANNELS, 1, 1, 1)},
    lambda x, w: x * torch.sigmoid(F.conv3d(x.mean((2, 3, 4), keepdim=True), w)),
)
CASES["one-channel gate"] = (
    [("Conv", ["w"], {"kernel_shape": [1, 1, 1]}), ("Sigmoid", [], {}), ("Mul", ["@x"], {})],
    {"w": weight(1, CHANNELS, 1, 1, 1)},
    lambda x, w: x * torch.sigmoid(F.conv3d(x, w)),
)


def written_nodes(nodes, source):
    """Node list for write_graph: '@x' is the input, '@1' the first output, '@' the latest one."""
    result, running = [], source
    for i, (op, rest, attributes, *only) in enumerate(nodes):
        names = [running, *rest] if "@" not in rest and not only else list(rest)
        swap = {"@": running, "@x": source, **{f"@{k + 1}": f"u{k}" for k in range(i)}}
        result.append((op, [swap.get(n, n) for n in names], f"u{i}", attributes))
        running = f"u{i}"
    return result, running


def back_to_tile(size, tile):
    """Nodes' attributes, and the function, that crop and pad a spatial size to the tile's."""
    keep = [min(a, b) for a, b in zip(size, tile, strict=True)]
    rest = [b - a for a, b in zip(keep, tile, strict=True)]
    crop = {"starts": [0, 0, 0], "ends": keep, "axes": [2, 3, 4]}
    pad = {"pads": [0, 0, 0, *rest]}
    return (
        crop,
        pad,
        lambda x: F.pad(x[:, :, : keep[0], : keep[1], : keep[2]], pads3((0, 0, 0), rest)),
    )


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("name", CASES)
def test_operator(tmp_path, name, axes):
    nodes, weights, reference = CASES[name]
    tile = TILE if axes == "xyz" else TILE[::-1]
    first, stem_bias = weight(CHANNELS, 1, 1, 3, 3), vector(-2.0, 0.5)

    def stem(x):
        return F.conv3d(x, first, stem_bias, padding=(0, 1, 1))

    with torch.no_grad():
        middle = reference(stem(torch.zeros(1, 1, *tile)), *weights.values())
    crop, pad, resize = back_to_tile(middle.shape[2:], tile)
    last = weight(1, middle.shape[1], 1, 1, 1)
    written, running = written_nodes(nodes, "stem")
    graph = [
        (
            "Conv",
            ["pet", "first", "stem_bias"],
            "stem",
            {"kernel_shape": [1, 3, 3], "pads": [0, 1, 1, 0, 1, 1]},
        ),
        *written,
    ]
    if tuple(middle.shape[2:]) != tuple(tile):
        graph += [("Slice", [running], "cropped", crop), ("Pad", ["cropped"], "padded", pad)]
        running = "padded"
    graph.append(("Conv", [running, "last"], "dose", {"kernel_shape": [1, 1, 1]}))
    arrays = {"first": first, "stem_bias": stem_bias, "last": last, **weights}
    write_graph(tmp_path / "m.safetensors.zst", graph, arrays, spatial_axes=axes, patch_size=TILE)

    def module(x):
        return F.conv3d(resize(reference(stem(x), *weights.values())), last)

    volume = uptake(TILE, seed=1)
    expected = sliding_window(module, volume, TILE, 0, "constant", axes)
    for precision, tolerance in (("float32", 1e-5), ("bf16", 2e-2)):
        chosen = ("--tile", ",".join(map(str, TILE)), "--overlap", 0, "--blend", "constant")
        chosen += ("--skip-air", "off", "--precision", precision, "--threads", 1)
        dose = predict(tmp_path, volume, RAS_AFFINE, tmp_path / "m.safetensors.zst", *chosen)
        assert_close(dose, expected, tolerance)
