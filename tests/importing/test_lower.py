# SPDX-License-Identifier: Apache-2.0
"""Each operator of ONNX that the import takes, in each form, against ONNX Runtime.

Sizes, kernels, strides and pads differ between the axes, so that exchanged axes show.
"""

import numpy as np
import pytest

pytest.importorskip("onnx", reason="ONNX is missing: imports are not compared")

from imported import check_import, onnx_model, operators, ports

RNG = np.random.default_rng(3)
SHAPE = (7, 8, 9)
CHANNELS = 4


def values(*shape, low=-1.0, high=1.0):
    return RNG.uniform(low, high, shape).astype(np.float32)


def integers(*numbers):
    return np.array(numbers, np.int64)


# name -> (nodes, weights, opsets, expected operators); x has CHANNELS channels, y is the output.
CASES = {}


def case(name, nodes, opsets, expected, /, **weights):
    nodes = nodes if isinstance(nodes, list) else [nodes]
    if any("roi" in inputs for _, inputs, _, _ in nodes):
        weights["roi"] = NO_REGION
    CASES[name] = (nodes, weights, opsets, expected)


NO_REGION = np.empty(0, np.float32)  # a Resize of version 11 must name one


def one(kind, *inputs, **attributes):
    return (kind, ["x", *inputs], ["y"], attributes)


# Layers with weights ------------------------------------------------------------------------------
WINDOW = {"strides": [1, 2, 3], "dilations": [2, 1, 1], "pads": [1, 0, 2, 0, 1, 3]}
case(
    "conv",
    one("Conv", "w", "b", kernel_shape=[2, 3, 4], **WINDOW),
    (9, 11, 22),
    ["Conv"],
    w=values(5, 4, 2, 3, 4),
    b=values(5),
)
case(
    "conv of groups without bias or kernel_shape",
    one("Conv", "w", group=2, pads=[0, 1, 2, 0, 1, 2]),
    (11,),
    ["Conv"],
    w=values(6, 2, 1, 3, 5),
)
for how in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    case(
        f"conv {how}",
        one("Conv", "w", auto_pad=how, strides=[1, 2, 3]),
        (11,),
        ["Conv"],
        w=values(3, 4, 2, 3, 4),
    )
case(
    "conv transposed",
    one(
        "ConvTranspose",
        "w",
        "b",
        strides=[2, 3, 2],
        pads=[1, 0, 1, 0, 1, 1],
        output_padding=[1, 2, 0],
        dilations=[1, 1, 2],
        group=2,
    ),
    (9, 11, 22),
    ["ConvTranspose"],
    w=values(4, 3, 2, 3, 4),
    b=values(6),
)
NORM = {"scale": values(4), "bias": values(4)}
case(
    "batch normalisation",
    one("BatchNormalization", "scale", "bias", "mean", "var", epsilon=1e-3),
    (9, 14, 15),
    ["BatchNormalization"],
    **NORM,
    mean=values(4),
    var=values(4, low=0.5),
)
case(
    "instance normalisation",
    one("InstanceNormalization", "scale", "bias", epsilon=1e-3),
    (9, 22),
    ["InstanceNormalization"],
    **NORM,
)
case(
    "group normalisation, scales of channels",
    one("GroupNormalization", "scale", "bias", num_groups=2, epsilon=1e-3),
    (21,),
    ["GroupNormalization"],
    **NORM,
)
case(
    "group normalisation, scales of groups",
    one("GroupNormalization", "scale", "bias", num_groups=2),
    (18,),
    ["GroupNormalization"],
    scale=values(2),
    bias=values(2),
)
FLAT = ("Flatten", ["x"], ["f"], {})
FEATURES = 4 * 7 * 8 * 9
case(
    "flatten and gemm",
    [FLAT, ("Gemm", ["f", "w", "b"], ["y"], {"transB": 1, "alpha": 0.5, "beta": 2.0})],
    (9, 13),
    ["Conv"],
    w=values(5, FEATURES),
    b=values(5),
)
case(
    "flatten and gemm, not transposed",
    [FLAT, ("Gemm", ["f", "w", "b"], ["h"], {}), ("Relu", ["h"], ["y"], {})],
    (11,),
    ["Conv", "Relu"],
    w=values(FEATURES, 5),
    b=values(1, 5),
)
case(
    "matrix product, and one of what came of it",
    [
        FLAT,
        ("MatMul", ["f", "w"], ["h"], {}),
        ("Add", ["h", "b"], ["i"], {}),
        ("MatMul", ["i", "v"], ["y"], {}),
    ],
    (13,),
    ["Conv", "Add", "Conv"],
    w=values(FEATURES, 5),
    b=values(5),
    v=values(5, 2),
)

# Activations --------------------------------------------------------------------------------------
for kind, attributes in {
    "Relu": {},
    "Sigmoid": {},
    "Tanh": {},
    "Softplus": {},
    "LeakyRelu": {"alpha": 0.3},
    "Elu": {"alpha": 1.5},
}.items():
    case(kind, one(kind, **attributes), (9, 16), [kind])
case("LeakyRelu with its default", one("LeakyRelu"), (9, 16), ["LeakyRelu"])
case("Gelu", one("Gelu"), (20,), ["Gelu"])
for name, bounds, expected in (
    ("both bounds", {"min": -0.25, "max": 500.0}, ["Clip"]),
    ("a lower bound", {"min": 0.3}, ["Clip"]),
    ("an upper bound", {"max": -0.3}, ["Clip"]),
    ("the lower bound 0", {"min": 0.0}, ["Relu"]),
):
    case(f"Clip, {name}, attributes", one("Clip", **bounds), (6, 10), expected)
    case(
        f"Clip, {name}",
        one("Clip", *(key if key in bounds else "" for key in ("min", "max"))),
        (11, 13, 21),
        expected,
        **{key: np.float32(bound) for key, bound in bounds.items()},
    )
case("Gelu by tanh", one("Gelu", approximate="tanh"), (20,), ["Gelu"])
for name, slope in {
    "one": values(1),
    "a scalar": np.float32(0.3),
    "four axes": values(4, 1, 1, 1),
    "five axes": values(1, 4, 1, 1, 1),
    "of equal voxels": np.broadcast_to(values(4, 1, 1, 1), (4, 7, 1, 9)).copy(),
}.items():
    case(f"PRelu, {name}", one("PRelu", "slope"), (9, 16), ["PRelu"], slope=slope)
case(
    "PRelu of features",
    [FLAT, ("MatMul", ["f", "w"], ["h"], {}), ("PRelu", ["h", "s"], ["y"], {})],
    (16,),
    ["Conv", "PRelu"],
    w=values(FEATURES, 5),
    s=values(5),
)

# Arithmetic ---------------------------------------------------------------------------------------
CONSTANTS = {
    "scalar": np.float32(0.7),
    "vector of one": values(1, low=0.5),
    "channels": values(4, 1, 1, 1, low=0.5),
    "channels, five axes": values(1, 4, 1, 1, 1, low=0.5),
    "equal voxels": np.full((1, 1, 7, 8, 9), 0.3, np.float32),
}
for kind, op in {"Add": "Add", "Sub": "Sub", "Mul": "Mul", "Div": "Mul"}.items():
    for name, constant in CONSTANTS.items():
        case(f"{kind} {name}", one(kind, "c"), (9, 14), [op], c=constant)
        if kind != "Div":
            case(f"{kind} to {name}", (kind, ["c", "x"], ["y"], {}), (13,), [op], c=constant)
case(
    "plus nothing, times one",
    [
        ("Add", ["x", "n"], ["a"], {}),
        ("Mul", ["e", "a"], ["b"], {}),
        ("Sub", ["b", "n"], ["c"], {}),
        ("Div", ["c", "e"], ["d"], {}),
        ("Relu", ["d"], ["y"], {}),
    ],
    (13,),
    ["Relu"],
    n=np.float32(0),
    e=np.float32(1),
)
case("Sub from nothing", ("Sub", ["n", "x"], ["y"], {}), (13,), ["Sub"], n=np.float32(0))
case("Neg", one("Neg"), (9, 13), ["Mul"])
case("square", one("Pow", "two"), (9, 13), ["Mul"], two=np.float32(2))
case("cube", one("Pow", "three"), (15,), ["Mul", "Mul"], three=np.float32(3))
HALVES = [("Sigmoid", ["x"], ["s"], {}), ("Tanh", ["x"], ["t"], {})]
for kind in ("Add", "Sub", "Mul"):
    case(
        f"{kind} of two",
        [*HALVES, (kind, ["s", "t"], ["y"], {})],
        (9, 14),
        ["Sigmoid", "Tanh", kind],
    )
case(
    "gate of one channel",
    [("Conv", ["x", "w"], ["g"], {}), ("Mul", ["g", "x"], ["y"], {})],
    (14,),
    ["Conv", "Mul"],
    w=values(1, 4, 1, 1, 1),
)
case(
    "gate of one voxel",
    [("GlobalAveragePool", ["x"], ["g"], {}), ("Mul", ["x", "g"], ["y"], {})],
    (14,),
    ["GlobalAveragePool", "Mul"],
)
case(
    "Sum",
    [*HALVES, ("Sum", ["s", "x", "t"], ["y"], {})],
    (8, 13),
    ["Sigmoid", "Tanh", "Add", "Add"],
)
case("Sum of one", [("Sum", ["x"], ["s"], {}), ("Relu", ["s"], ["y"], {})], (13,), ["Relu"])
case(
    "Mean",
    [*HALVES, ("Mean", ["s", "x", "t"], ["y"], {})],
    (8, 13),
    ["Sigmoid", "Tanh", "Add", "Add", "Mul"],
)

# What only names or keeps ---------------------------------------------------------------------
case(
    "identity, dropout, casts",
    [
        ("Identity", ["x"], ["a"], {}),
        ("Dropout", ["a"], ["b"], {}),
        ("Cast", ["b"], ["c"], {"to": 11}),
        ("Cast", ["c"], ["d"], {"to": 1}),
        ("Relu", ["d"], ["y"], {}),
    ],
    (9, 13),
    ["Relu"],
)
case(
    "reshaped and back around an activation",
    [
        ("Reshape", ["x", "flat"], ["a"], {}),
        ("Relu", ["a"], ["b"], {}),
        ("Reshape", ["b", "back"], ["c"], {}),
        ("Neg", ["c"], ["y"], {}),
    ],
    (9, 14),
    ["Relu", "Mul"],
    flat=integers(0, -1, 9),
    back=integers(-1, 4, *SHAPE),
)
case(
    "pooled, squeezed, unsqueezed",
    [
        ("GlobalAveragePool", ["x"], ["a"], {}),
        ("Squeeze", ["a"], ["b"], {"axes": [2, 3, -1]}),
        ("Unsqueeze", ["b"], ["c"], {"axes": [2, 3, 4]}),
        ("Mul", ["x", "c"], ["y"], {}),
    ],
    (11,),
    ["GlobalAveragePool", "Mul"],
)
case(
    "pooled, squeezed, unsqueezed by inputs",
    [
        ("GlobalAveragePool", ["x"], ["a"], {}),
        ("Squeeze", ["a", "out"], ["b"], {}),
        ("Unsqueeze", ["b", "in"], ["c"], {}),
        ("Mul", ["x", "c"], ["y"], {}),
    ],
    (13,),
    ["GlobalAveragePool", "Mul"],
    out=integers(2, 3, 4),
    **{"in": integers(2, 3, 4)},
)
case(
    "transposed without moving",
    [
        ("GlobalAveragePool", ["x"], ["a"], {}),
        ("Transpose", ["a"], ["b"], {"perm": [0, 1, 4, 2, 3]}),
        ("Relu", ["b"], ["y"], {}),
    ],
    (13,),
    ["GlobalAveragePool", "Relu"],
)
case(
    "expanded to itself",
    [("Expand", ["x", "s"], ["a"], {}), ("Relu", ["a"], ["y"], {})],
    (13,),
    ["Relu"],
    s=integers(1, 4, 1, 8, 9),
)
case(
    "an output of fewer axes",
    [("Conv", ["x", "w"], ["a"], {}), ("Squeeze", ["a", "one"], ["y"], {})],
    (13,),
    ["Conv"],
    w=values(1, 4, 1, 1, 1),
    one=integers(1),
)

# Joins and slices ---------------------------------------------------------------------------------
case(
    "Concat",
    [*HALVES, ("Concat", ["s", "x", "t"], ["y"], {"axis": 1})],
    (9, 13),
    ["Sigmoid", "Tanh", "Concat"],
)
case(
    "Concat along the first axis from the end but three",
    [*HALVES, ("Concat", ["t", "x"], ["y"], {"axis": -4})],
    (11,),
    ["Tanh", "Concat"],
)
case(
    "Concat of one",
    [("Concat", ["x"], ["a"], {"axis": 1}), ("Relu", ["a"], ["y"], {})],
    (13,),
    ["Relu"],
)
case(
    "Slice by attributes",
    one("Slice", starts=[1, -3, 0], ends=[3, 1000, 5], axes=[1, 2, 4]),
    (9,),
    ["Slice"],
)
case(
    "Slice by inputs",
    one("Slice", "s", "e", "a", "n"),
    (10, 13),
    ["Slice"],
    s=integers(1, 0, -100),
    e=integers(2**62, -2, 6),
    a=integers(-1, 1, 3),
    n=integers(3, 1, 2),
)
case(
    "Slice of all axes",
    one("Slice", "s", "e"),
    (13,),
    ["Slice"],
    s=integers(0, 1, 2, 3, 4),
    e=integers(9, 3, 4, 5, 6),
)
case(
    "Slice of everything",
    [("Slice", ["x", "s", "e"], ["a"], {}), ("Relu", ["a"], ["y"], {})],
    (13,),
    ["Relu"],
    s=integers(0, 0),
    e=integers(2**62, 2**62),
)
TWO = [("Concat", ["b", "a"], ["y"], {"axis": 1})]
case(
    "Split by attribute",
    [("Split", ["x"], ["a", "b"], {"axis": 1, "split": [1, 3]}), *TWO],
    (9, 11),
    ["Slice", "Slice", "Concat"],
)
case(
    "Split by input",
    [("Split", ["x", "n"], ["a", "b"], {"axis": -4}), *TWO],
    (13, 18),
    ["Slice", "Slice", "Concat"],
    n=integers(1, 3),
)
case(
    "Split into equal parts",
    [("Split", ["x"], ["a", "b"], {"axis": 1}), *TWO],
    (11, 13),
    ["Slice", "Slice", "Concat"],
)
case(
    "Split by number",
    [("Split", ["x"], ["a", "c", "b"], {"axis": 4, "num_outputs": 3}), *TWO],
    (18,),
    ["Slice", "Slice", "Concat"],
)
case("Gather of neighbours", one("Gather", "i", axis=3), (11, 13), ["Slice"], i=integers(-7, 2))
case("Gather of one", one("Gather", "i", axis=1), (13,), ["Slice"], i=np.int64(2))

# Pools --------------------------------------------------------------------------------------------
POOL = {"kernel_shape": [2, 3, 4], "strides": [1, 2, 3], "pads": [1, 0, 2, 0, 1, 3]}
case("MaxPool", one("MaxPool", **POOL), (9, 12), ["MaxPool"])
case(
    "MaxPool with dilations and ceil_mode",
    one("MaxPool", kernel_shape=[2, 3, 4], strides=[2, 2, 3], dilations=[2, 1, 1], ceil_mode=1),
    (11, 22),
    ["MaxPool"],
)
case("AveragePool", one("AveragePool", **POOL), (9, 11, 19), ["AveragePool"])
case(
    "AveragePool, pads counted",
    one("AveragePool", **POOL, count_include_pad=1),
    (11, 19),
    ["AveragePool"],
)
case(
    "AveragePool, ceil_mode",
    one("AveragePool", kernel_shape=[2, 3, 2], strides=[2, 2, 2], ceil_mode=1),
    (11, 19),
    ["AveragePool"],
)
for how in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    case(
        f"MaxPool {how}",
        one("MaxPool", kernel_shape=[2, 3, 4], strides=[2, 2, 1], auto_pad=how),
        (12,),
        ["MaxPool"],
    )
case("GlobalAveragePool", one("GlobalAveragePool"), (9, 22), ["GlobalAveragePool"])
case("GlobalMaxPool", one("GlobalMaxPool"), (9, 22), ["MaxPool"])

# Resize -------------------------------------------------------------------------------------------
# Sizes as exporters give them: batch and channels of the input, then the spatial ones.
SIZES = [
    ("Shape", ["x"], ["shape"], {}),
    ("Slice", ["shape", "zero", "two"], ["start"], {}),
    ("Concat", ["start", "n"], ["full"], {"axis": 0}),
]
LIMITS = {"zero": integers(0), "two": integers(2)}


def sized(**attributes):
    return [*SIZES, one("Resize", "roi", "roi", "full", **attributes)]


UP = np.array([1, 1, 2, 3, 1], np.float32)
DOWN = np.array([1, 1, 1, 0.5, 1 / 3], np.float32)
case("Upsample", one("Upsample", "s", mode="nearest"), (9,), ["Resize"], s=UP)
case("Upsample, linear", one("Upsample", "s", mode="linear"), (9,), ["Resize"], s=UP)
case("Resize 10", one("Resize", "s", mode="nearest"), (10,), ["Resize"], s=UP)
case("Resize 10, linear", one("Resize", "s", mode="linear"), (10,), ["Resize"], s=UP)
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
for coordinates in (*COORDINATES, "half_pixel_symmetric"):
    opsets = (19,) if coordinates == "half_pixel_symmetric" else (11, 13, 18, 19)
    for mode in ("nearest", "linear"):
        how = {"mode": mode, "coordinate_transformation_mode": coordinates}
        case(
            f"Resize {mode} {coordinates}, scales",
            one("Resize", "roi", "s", **how),
            opsets,
            ["Resize"],
            s=UP,
        )
        case(
            f"Resize {mode} {coordinates}, sizes",
            sized(**how),
            opsets,
            ["Resize"],
            n=integers(14, 16, 9),
            **LIMITS,
        )
FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
case(
    "Resize to less",
    one("Resize", "roi", "s", **FLOOR),
    (11, 13),
    ["Resize"],
    shape=(7, 8, 9),
    s=DOWN,
)
case(
    "Resize by axes",
    one("Resize", "roi", "s", axes=[4, 2], **FLOOR),
    (18, 19),
    ["Resize"],
    s=np.array([3, 2], np.float32),
)
case(
    "Resize to sizes of axes",
    sized(axes=[-1, 2], **FLOOR),
    (18, 19),
    ["Resize"],
    n=integers(18, 21),
    zero=integers(0),
    two=integers(0),
)
case(
    "Resize to an odd size",
    sized(mode="linear"),
    (13,),
    ["Resize"],
    n=integers(10, 11, 13),
    **LIMITS,
)
case(
    "Resize by a fraction",
    one("Resize", "roi", "s", mode="linear"),
    (13,),
    ["Resize"],
    s=np.array([1, 1, 1.3, 1.7, 0.7], np.float32),
)
case(
    "Resize, half up without halves",
    one("Resize", "roi", "s", nearest_mode="round_prefer_ceil"),
    (13,),
    ["Resize"],
    s=UP,
)
case(
    "Resize to itself",
    [*SIZES, ("Resize", ["x", "roi", "roi", "full"], ["a"], {}), ("Relu", ["a"], ["y"], {})],
    (13,),
    ["Relu"],
    n=integers(*SHAPE),
    **LIMITS,
)

# Pad ----------------------------------------------------------------------------------------------
PADS = (0, 0, 1, 2, 0, 0, 0, 3, 0, 4)
case("Pad by attributes", one("Pad", pads=list(PADS), value=0.5), (9,), ["Pad"])
for mode in ("constant", "reflect", "edge"):
    case(f"Pad {mode}", one("Pad", "p", mode=mode), (11, 18), ["Pad"], p=integers(*PADS))
case(
    "Pad with a value",
    one("Pad", "p", "v"),
    (11, 13),
    ["Pad"],
    p=integers(*PADS),
    v=np.float32(-0.3),
)
case(
    "Pad of axes",
    one("Pad", "p", "", "a"),
    (18, 19),
    ["Pad"],
    p=integers(1, 0, 2, 3),
    a=integers(-1, 2),
)
case("Pad that crops", one("Pad", "p"), (13,), ["Slice"], p=integers(*(-n for n in PADS)))
case(
    "Pad that does both",
    one("Pad", "p", "v"),
    (13,),
    ["Slice", "Pad"],
    p=integers(0, 0, 1, -2, 0, 0, 0, 0, -3, 2),
    v=np.float32(2),
)
case(
    "Pad of nothing",
    [("Pad", ["x", "p"], ["a"], {}), ("Relu", ["a"], ["y"], {})],
    (13,),
    ["Relu"],
    p=integers(*[0] * 10),
)


WITHOUT_CHANNELS = ("an output of fewer axes", "Gather of one")  # (N, a, b, c)


@pytest.mark.parametrize("spatial_axes", ["xyz", "zyx"])
@pytest.mark.parametrize(
    ("name", "opset"), [(name, opset) for name, found in CASES.items() for opset in found[2]]
)
def test_operator(tmp_path, name, opset, spatial_axes):
    nodes, weights, _, expected = CASES[name]
    model = onnx_model(nodes, weights, opset=opset, inputs={"x": (None, CHANNELS, *SHAPE)})
    outputs = ports("out", 1) if name in WITHOUT_CHANNELS else None
    network = check_import(
        model,
        SHAPE,
        tmp_path,
        inputs=ports("in", CHANNELS),
        outputs=outputs,
        spatial_axes=spatial_axes,
    )
    assert operators(network) == expected
