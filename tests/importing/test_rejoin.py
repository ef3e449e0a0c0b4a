# SPDX-License-Identifier: Apache-2.0
"""Decomposed layers: every spelling becomes the operator of weights/FORMAT.md, near misses do not.

The yardstick is ONNX Runtime on the model before and after: rejoin() gives valid ONNX.
"""

import io
import logging
import re
import warnings
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from dosemap_tools.importing.graph_edit import Editor
from dosemap_tools.importing.rejoin import rejoin
from dosemap_tools.importing.rejoin_pools import rejoin_pools
from dosemap_tools.importing.simplify import simplify
from imported import check_import, ports
from onnx import numpy_helper
from torch import nn

SIZE = (6, 5, 3)
NORMS = ("InstanceNormalization", "GroupNormalization")
# What lower.py writes node by node: the pointwise operators of weights/FORMAT.md, and constants.
FORMAT = {
    *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Relu", "LeakyRelu", "PRelu", "Elu", "Sigmoid"),
    *("Tanh", "Softplus", "Gelu", "Clip", "Identity"),
}


def written(body, opset=20, channels=4, size=SIZE, batch=1, result=None, **constants):
    """Return a model of statements in ONNX's text form, from x to y; constants by name."""
    shape = ",".join(map(str, (batch, channels, *size)))
    after = ",".join(map(str, result)) if result else shape
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
    g (float[{shape}] x) => (float[{after}] y) {{ {body} }}"""
    proto = onnx.parser.parse_model(text)
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [v.name for v in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def newer(model):
    """Let new nodes mean what they say: ONNX has one version for a whole graph."""
    changed = {"Dropout", "Pad", "ReduceMax", "ReduceMean", "ReduceSum", "Resize", "Slice"}
    if not changed & {node.op_type for node in model.graph}:
        model.opset_imports[""] = max(21, model.opset_imports[""])
        for node in model.graph:
            node.version = None


def rejoined(model, scale=3.0, tolerance=1e-6):
    """Return how often each operator stands in the rejoined model, and the notes."""
    value = model.graph.inputs[0]
    channels = value.shape[1] if isinstance(value.shape[1], int) else 1
    simplify(model, tuple(value.shape[2:]), channels, "test")
    shapes = [tuple(v.shape) for v in model.graph.inputs]
    generator = np.random.default_rng(3)
    inputs = [(scale * generator.normal(size=s)).astype(np.float32) for s in shapes]
    before = run(model, inputs)
    names = [v.name for v in model.graph.outputs]
    notes = rejoin(model)
    newer(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [v.name for v in model.graph.outputs] == names
    for a, b in zip(before, run(model, inputs), strict=True):
        assert a.shape == b.shape and np.isfinite(b).all()
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(a).max())
    return Counter(node.op_type for node in model.graph), notes


def dynamo(module, x, optimize=False, decompose=False):
    program = torch.export.export(
        module, (x,), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=64)},), strict=False
    )
    if decompose:
        program = program.run_decompositions()
    return torch.onnx.export(program, dynamo=True, optimize=optimize, verbose=False).model


def script(module, x, opset):
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        (x,),
        buffer,
        dynamo=False,
        opset_version=opset,
        dynamic_axes={"x": {0: "N"}},
        input_names=["x"],
    )
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


WAYS = {
    "dynamo": dynamo,
    "optimised": lambda m, x: dynamo(m, x, optimize=True),
    "decomposed": lambda m, x: dynamo(m, x, decompose=True),
    "script9": lambda m, x: script(m, x, 9),
    "script13": lambda m, x: script(m, x, 13),
    "script17": lambda m, x: script(m, x, 17),
    "script20": lambda m, x: script(m, x, 20),
}


class Each(nn.Module):
    """Applies modules to the same tensor; one output for each."""

    def __init__(self, modules):
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, x):
        return tuple(module(x) for module in self.parts)


def from_torch(module, way, channels=4, size=SIZE):
    torch.manual_seed(1)
    for layer in module.modules():
        if getattr(layer, "weight", None) is not None and layer.weight.ndim == 1:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            if getattr(layer, "bias", None) is not None:
                nn.init.uniform_(layer.bias, -1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            return WAYS[way](module.eval(), torch.randn(2, channels, *size))
        finally:
            logging.disable(logging.NOTSET)


def rejoined_each(modules, way, **options):
    """Return how often each operator stands in the way to each output, and the notes."""
    model = from_torch(Each(modules), way)
    _, notes = rejoined(model, **options)
    counts = []
    for value in model.graph.outputs:
        nodes, waiting = {}, [value.producer()]
        while waiting:
            node = waiting.pop()
            if node is not None and id(node) not in nodes:
                nodes[id(node)] = node
                waiting += [v.producer() for v in node.inputs if v is not None]
        counts.append(Counter(n.op_type for n in nodes.values() if n.op_type != "Identity"))
    return counts, notes


class ChannelsLayerNorm(nn.Module):
    def __init__(self, affine):
        super().__init__()
        self.norm = nn.LayerNorm([4, *SIZE], 1e-3 if affine else 1e-5, elementwise_affine=False)
        self.weight = nn.Parameter(torch.rand(4, 1, 1, 1)) if affine else None

    def forward(self, x):
        y = self.norm(x)
        return y if self.weight is None else y * self.weight + 0.5


TORCH_NORMS = {
    "group": (lambda: nn.GroupNorm(2, 4), "GroupNormalization"),
    "group-plain": (lambda: nn.GroupNorm(2, 4, 1e-4, affine=False), "GroupNormalization"),
    "group-of-all": (lambda: nn.GroupNorm(1, 4, eps=1e-3), "GroupNormalization"),
    "group-of-one": (lambda: nn.GroupNorm(4, 4), "InstanceNormalization"),
    "instance": (lambda: nn.InstanceNorm3d(4, affine=True), "InstanceNormalization"),
    "instance-plain": (lambda: nn.InstanceNorm3d(4), "InstanceNormalization"),
    "layer-plain": (lambda: ChannelsLayerNorm(False), "GroupNormalization"),
    "layer": (lambda: ChannelsLayerNorm(True), "GroupNormalization"),
}


@pytest.mark.parametrize("way", WAYS)
def test_norms_of_torch(way):
    counts, _ = rejoined_each([make() for make, _ in TORCH_NORMS.values()], way)
    found = dict(zip(TORCH_NORMS, counts, strict=True))
    assert found == {name: {kind: 1} for name, (_, kind) in TORCH_NORMS.items()}


# Spellings by hand: a norm over `axes` of x with `eps`, affine by w and b.
MEAN = "m = ReduceMean <keepdims=1> (x, axes) d = Sub (x, m) "
SPELLINGS = {
    "sqrt-div": MEAN
    + """p = Pow (d, two) v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps)
        s = Sqrt (e) n = Div (d, s) a = Mul (n, w) y = Add (a, b)""",
    "reciprocal": MEAN
    + """p = Mul (d, d) v = ReduceMean <keepdims=1> (p, axes) e = Add (eps, v)
        s = Sqrt (e) r = Reciprocal (s) n = Mul (r, d) a = Mul (w, n) y = Add (b, a)""",
    "power": MEAN
    + """p = Mul (d, d) v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps)
        r = Pow (e, minus_half) n = Mul (d, r) a = Mul (n, w) y = Add (a, b)""",
    "moments": """m = ReduceMean <keepdims=1> (x, axes) q = Mul (x, x)
        u = ReduceMean <keepdims=1> (q, axes) k = Mul (m, m) v = Sub (u, k) e = Add (v, eps)
        s = Sqrt (e) r = Reciprocal (s) f = Mul (r, w) g = Mul (x, f) h = Mul (m, f)
        i = Sub (b, h) y = Add (g, i)""",
    "sums": """t = ReduceSum <keepdims=1> (x, axes) m = Div (t, count) d = Sub (x, m)
        p = Mul (d, d) u = ReduceSum <keepdims=1> (p, axes) v = Div (u, count) e = Add (v, eps)
        s = Sqrt (e) n = Div (d, s) a = Mul (n, w) y = Add (a, b)""",
    "dropped": """m = ReduceMean <keepdims=0> (x, axes) c = Reshape (m, kept) d = Sub (x, c)
        p = Mul (d, d) v = ReduceMean <keepdims=0> (p, axes) e = Add (v, eps) s = Sqrt (e)
        r = Reciprocal (s) f = Unsqueeze (r, axes) n = Mul (d, f) a = Mul (n, w) y = Add (a, b)""",
    "unbiased": MEAN
    + """p = Mul (d, d) v = ReduceMean <keepdims=1> (p, axes) z = Mul (v, more)
        e = Add (z, eps) s = Sqrt (e) n = Div (d, s) a = Mul (n, w) y = Add (a, b)""",
    "pool": """m = GlobalAveragePool (x) d = Sub (x, m) p = Mul (d, d) v = GlobalAveragePool (p)
        e = Add (v, eps) s = Sqrt (e) n = Div (d, s) a = Mul (n, w) y = Add (a, b)""",
    "negative": MEAN
    + """p = Mul (d, d) v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps)
        s = Sqrt (e) o = Neg (s) n = Div (d, o) g = Neg (w) a = Mul (n, g) y = Add (a, b)""",
    "expanded": """m = ReduceMean <keepdims=1> (x, axes) c = Expand (m, shape) d = Sub (x, c)
        p = Mul (d, d) v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps) s = Sqrt (e)
        t = Expand (s, shape) n = Div (d, t) a = Mul (n, w) y = Add (a, b)""",
}
W, B = np.array([0.5, 1.5, -0.7, 0.0]), np.array([0.1, -0.2, 0.3, 0.4])
NUMBERS = {"eps": 1e-3, "two": 2.0, "minus_half": -0.5, "more": 90 / 89, "shape": [1, 4, *SIZE]}


def spelled(name, axes=(2, 3, 4), affine=(4, 1, 1, 1), **options):
    body = options.pop("body", None) or SPELLINGS[name]
    count = float(np.prod([(1, 4, *SIZE)[a] for a in axes]))
    constants = (
        NUMBERS
        | {
            "axes": list(axes),
            "count": count,
            "w": W.reshape(affine),
            "b": B.reshape(affine),
            "kept": [1 if a in axes else n for a, n in enumerate((1, 4, *SIZE))],
        }
        | options.pop("constants", {})
    )
    read = set(re.findall(r"\w+", " ".join(re.findall(r"\(.*?\)", body))))
    constants = {k: v for k, v in constants.items() if k in read}
    return written(body, **options, **constants)


@pytest.mark.parametrize("affine", [(4, 1, 1, 1), (1, 4, 1, 1, 1)])
@pytest.mark.parametrize("name", SPELLINGS)
def test_instance_norm_in_steps(name, affine):
    kinds, _ = rejoined(spelled(name, affine=affine))
    assert kinds == {"InstanceNormalization": 1}


@pytest.mark.parametrize("name", [n for n in SPELLINGS if n != "pool"])
def test_group_of_all_in_steps(name):
    kinds, notes = rejoined(spelled(name, axes=(1, 2, 3, 4)))
    assert kinds == {"GroupNormalization": 1} and notes == ["GroupNormalization re-joined: 1"]


def test_axes_as_attributes():
    body = SPELLINGS["sqrt-div"].replace("keepdims=1> (x, axes)", "keepdims=1, axes=[2,3,4]> (x)")
    body = body.replace("keepdims=1> (p, axes)", "keepdims=1, axes=[-1,-2,-3]> (p)")
    kinds, _ = rejoined(spelled("", body=body, opset=13))
    assert kinds == {"InstanceNormalization": 1}


IN_GROUPS = """g = Reshape (x, grouped) m = ReduceMean <keepdims=1> (g, last) d = Sub (g, m)
    p = Mul (d, d) v = ReduceMean <keepdims=1> (p, last) e = Add (v, eps) s = Sqrt (e)
    n = Div (d, s) {inside} z = Reshape ({end}, shape) {outside}"""
GROUPED = {
    "rows": ([1, 2, 180], [2], (2, 1), 2),
    "axes": ([1, 2, 2, 90], [2, 3], (2, 2, 1), 2),
    "space": ([1, 2, 2, *SIZE], [2, 3, 4, 5], (2, 2, 1, 1, 1), 2),
    "folded": ([4, 90], [1], (4, 1), 4),
    "in batch": ([1, 4, 90], [0, 2], (4, 1), 4),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", GROUPED)
def test_groups_in_steps(name, inside):
    grouped, last, affine, groups = GROUPED[name]
    steps = "a = Mul (n, w) c = Add (a, b)"
    body = IN_GROUPS.format(
        inside=steps if inside else "",
        end="c" if inside else "n",
        outside="y = Identity (z)" if inside else "a = Mul (z, w) y = Add (a, b)",
    )
    values = (W[: np.prod(affine)], B[: np.prod(affine)])
    shape = affine if inside else (4, 1, 1, 1)
    values = (v.reshape(shape) for v in (values if inside else (W, B)))
    w, b = values
    model = written(
        body,
        grouped=grouped,
        last=last,
        eps=1e-4,
        shape=[1, 4, *SIZE],
        w=w,
        b=b,
    )
    kinds, _ = rejoined(model)
    assert kinds == {"InstanceNormalization" if groups == 4 else "GroupNormalization": 1}


def test_group_of_a_channel_that_lost_its_axis():
    body = """c = Gather <axis=1> (x, third) u = Unsqueeze (c, one) g = Reshape (u, flat)
        n = InstanceNormalization <epsilon=1e-3> (g, ones, zeros) z = Reshape (n, shape)
        a = Mul (z, w) y = Add (a, b)"""
    model = written(
        body, result=(1, 1, *SIZE), third=np.array(2), one=[1], flat=[1, 1, 90], w=0.5, b=0.1,
        ones=np.ones(1), zeros=np.zeros(1), shape=[1, 1, *SIZE],
    )  # fmt: skip
    kinds, _ = rejoined(model)
    assert kinds == {"Conv": 1, "InstanceNormalization": 1}


def test_batch_norm_of_own_statistics():
    body = """g = Reshape (x, grouped) m = ReduceMean <keepdims=0> (g, axes)
        k = ReduceMean <keepdims=1> (g, axes) d = Sub (g, k) p = Mul (d, d)
        v = ReduceMean <keepdims=0> (p, axes)
        n = BatchNormalization <epsilon=1e-3> (g, w, b, m, v) y = Reshape (n, shape)"""
    constants = {"grouped": [1, 8, *SIZE], "axes": [0, 2, 3, 4], "shape": [2, 4, *SIZE]}
    own = {"w": np.tile(W, 2), "b": np.tile(B, 2)}
    kinds, _ = rejoined(written(body, batch=2, **constants, **own))
    assert kinds == {"InstanceNormalization": 1}
    other = {"w": np.arange(8.0), "b": np.tile(B, 2)}  # each sample its own scale
    kinds, _ = rejoined(written(body, batch=2, **constants, **other))
    assert not any(kinds[n] for n in NORMS)


NEAR_NORMS = {
    "two axes": spelled("sqrt-div", axes=(3, 4)),
    "channels alone": spelled("sqrt-div", axes=(1,)),
    "fourth power": spelled("sqrt-div", constants={"two": 4.0}),
    "cube root": spelled("power", constants={"minus_half": -1 / 3}),
    "deviation plus epsilon": spelled(
        "",
        body=MEAN
        + """p = Mul (d, d)
        v = ReduceMean <keepdims=1> (p, axes) s = Sqrt (v) e = Add (s, eps) n = Div (d, e)
        a = Mul (n, w) y = Add (a, b)""",
    ),
    "no epsilon": spelled("sqrt-div", constants={"eps": 0.0}),
    "variance of more": spelled(
        "",
        body=MEAN
        + """p = Mul (d, d)
        v = ReduceMean <keepdims=1> (p, more_axes) e = Add (v, eps) s = Sqrt (e) n = Div (d, s)
        a = Mul (n, w) y = Add (a, b)""",
        constants={"more_axes": [1, 2, 3, 4]},
    ),
    "another mean": spelled(
        "",
        body="""o = Relu (x) m = ReduceMean <keepdims=1> (o, axes)
        d = Sub (x, m) p = Mul (d, d) v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps)
        s = Sqrt (e) n = Div (d, s) a = Mul (n, w) y = Add (a, b)""",
    ),
    "not centred": spelled(
        "",
        body="""p = Mul (x, x) v = ReduceMean <keepdims=1> (p, axes)
        e = Add (v, eps) s = Sqrt (e) n = Div (x, s) a = Mul (n, w) y = Add (a, b)""",
    ),
    "centred in part": spelled(
        "",
        body=MEAN
        + """p = Mul (d, d)
        v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps) s = Sqrt (e) n = Div (x, s)
        a = Mul (n, w) y = Add (a, b)""",
    ),
    "half the mean": spelled(
        "",
        body="""m = ReduceMean <keepdims=1> (x, axes) h = Mul (m, eps)
        d = Sub (x, h) p = Mul (d, d) v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps)
        s = Sqrt (e) n = Div (d, s) a = Mul (n, w) y = Add (a, b)""",
    ),
    "groups across channels": written(
        IN_GROUPS.format(inside="", end="n", outside="y = Identity (z)"),
        grouped=[1, 3, 120],
        last=[2],
        eps=1e-3,
        shape=[1, 4, *SIZE],
    ),
    "channels last": written(
        """t = Transpose <perm=[0,2,3,4,1]> (x)
        m = ReduceMean <keepdims=1> (t, axes) d = Sub (t, m) p = Mul (d, d)
        v = ReduceMean <keepdims=1> (p, axes) e = Add (v, eps) s = Sqrt (e) n = Div (d, s)
        y = Transpose <perm=[0,4,1,2,3]> (n)""",
        axes=[2, 3],
        eps=1e-3,
    ),
}


@pytest.mark.parametrize("name", NEAR_NORMS)
def test_what_is_no_norm_stays(name):
    kinds, notes = rejoined(NEAR_NORMS[name])
    assert not any(kinds[n] for n in NORMS)
    assert not any("Normalization" in note for note in notes)
    assert kinds["Div"] or kinds["Pow"]


def test_affine_per_voxel_is_not_taken_in():
    scale = np.linspace(0.5, 1.5, 4 * 90).reshape(4, *SIZE)
    model = spelled("sqrt-div", constants={"w": scale})
    kinds, _ = rejoined(model)
    assert kinds == {"InstanceNormalization": 1, "Mul": 1, "Add": 1}
    body = "y = LayerNormalization <axis=1, epsilon=1e-3> (x, w, b)"
    kinds, _ = rejoined(written(body, w=scale, b=np.zeros((4, *SIZE))))
    assert kinds == {"LayerNormalization": 1}


def test_readers_in_between_keep_what_they_read():
    body = SPELLINGS["sqrt-div"].replace("y = Add (a, b)", "f = Add (a, b) y = Mul (f, d)")
    kinds, _ = rejoined(spelled("", body=body))
    assert kinds == {"InstanceNormalization": 1, "GlobalAveragePool": 1, "Sub": 1, "Mul": 1}
    body = SPELLINGS["sqrt-div"].replace("y = Add (a, b)", "f = Add (a, b) y = Mul (f, n)")
    kinds, _ = rejoined(spelled("", body=body))
    assert kinds == {"InstanceNormalization": 1, "Mul": 2, "Add": 1}


def test_affine_in_several_steps():
    body = """n = InstanceNormalization <epsilon=1e-3> (x, ones, zeros) a = Mul (n, w)
        c = Div (a, half) e = Sub (b, c) f = Identity (e) y = Add (f, one)"""
    constants = {"ones": np.ones(4), "zeros": np.zeros(4), "half": 0.5, "one": 1.0}
    kinds, _ = rejoined(
        written(body, **constants, w=W.reshape(4, 1, 1, 1), b=B.reshape(4, 1, 1, 1))
    )
    assert kinds == {"InstanceNormalization": 1}


def test_names_of_parameters_stay():
    model = from_torch(nn.GroupNorm(2, 4), "dynamo")
    simplify(model, SIZE, 4, "test")
    rejoin(model)
    node = next(n for n in model.graph if n.op_type == "GroupNormalization")
    sources = [v.meta.get("pkg.onnxscript.optimizer.folded_from") for v in node.inputs[1:]]
    assert "weight" in sources[0] and "bias" in sources[1]


# --------------------------------------------------------------------------------------------------
# Activations

CLIP = Counter(["Clip"])
ACTIVATIONS = {
    "relu": (nn.ReLU, Counter(["Relu"])),
    "relu6": (nn.ReLU6, CLIP),
    "hardtanh": (lambda: nn.Hardtanh(-1.5, 2.0), CLIP),
    "hardsigmoid": (nn.Hardsigmoid, CLIP + Counter(["Add"])),
    "hardswish": (nn.Hardswish, CLIP + Counter(["Add", "Mul"])),
    "leaky": (lambda: nn.LeakyReLU(0.2), Counter(["LeakyRelu"])),
    "elu": (lambda: nn.ELU(0.7), Counter(["Elu"])),
    "celu": (lambda: nn.CELU(0.7), Counter(["Elu", "Mul", "Mul"])),
    "selu": (nn.SELU, Counter(["Elu", "Mul"])),
    "prelu": (nn.PReLU, Counter(["PRelu"])),
    "prelu per channel": (lambda: nn.PReLU(4), Counter(["PRelu"])),
    "threshold": (lambda: nn.Threshold(0.0, 0.0), Counter(["Relu"])),
    "silu": (nn.SiLU, Counter(["Mul", "Sigmoid"])),
    "gelu": (nn.GELU, Counter(["Gelu"])),
    "gelu tanh": (lambda: nn.GELU("tanh"), Counter(["Gelu"])),
    "mish": (nn.Mish, Counter(["Mul", "Softplus", "Tanh"])),
    "softplus": (nn.Softplus, Counter(["Softplus"])),
    "softplus beta": (lambda: nn.Softplus(2.0, 40.0), Counter(["Softplus", "Mul", "Mul"])),
    "sigmoid": (nn.Sigmoid, Counter(["Sigmoid"])),
    "log sigmoid": (nn.LogSigmoid, Counter(["Softplus", "Mul", "Mul"])),
    "tanh": (nn.Tanh, Counter(["Tanh"])),
    "tanhshrink": (nn.Tanhshrink, Counter(["Tanh", "Sub"])),
}


@pytest.mark.parametrize("way", WAYS)
def test_activations_of_torch(way):
    cases = dict(ACTIVATIONS)
    if way == "script9":
        del cases["celu"]  # came with opset 12
    if way == "decomposed":
        cases["prelu"] = (nn.PReLU, Counter(["LeakyRelu"]))  # nothing says that it was learnt
    modules = [make() for make, _ in cases.values()]
    counts, _ = rejoined_each(modules, way, scale=6.0, tolerance=2e-6)
    for (name, (_, expected)), found in zip(cases.items(), counts, strict=True):
        assert set(found) <= FORMAT, name
        # Exporters multiply by 1, which lower.py leaves out, and divide where others multiply.
        factors = sum((found - expected)[kind] for kind in ("Mul", "Div"))
        rest = [{k: n for k, n in c.items() if k not in ("Mul", "Div")} for c in (found, expected)]
        assert rest[0] == rest[1], name
        assert factors <= 2, name


HAND = {
    "relu by max": ("y = Max (x, zero)", Counter(["Relu"])),
    "relu by clip": ("y = Clip (x, zero)", Counter(["Relu"])),
    "relu by clip up to the largest": ("y = Clip (x, zero, largest)", Counter(["Relu"])),
    "relu by where": ("c = Less (x, zero) y = Where (c, zero, x)", Counter(["Relu"])),
    "relu by a mask": (
        "c = Greater (x, zero) f = Cast <to=1> (c) y = Mul (x, f)",
        Counter(["Relu"]),
    ),
    "leaky by max": ("a = Mul (x, tenth) y = Max (a, x)", Counter(["LeakyRelu"])),
    "leaky by parts": (
        "a = Max (x, zero) b = Min (x, zero) c = Mul (b, tenth) y = Add (a, c)",
        Counter(["LeakyRelu"]),
    ),
    "leaky reversed": (
        "c = LessOrEqual (x, zero) a = Mul (tenth, x) y = Where (c, a, x)",
        Counter(["LeakyRelu"]),
    ),
    "prelu": (
        "c = Greater (x, zero) a = Mul (slopes, x) y = Where (c, x, a)",
        Counter(["PRelu"]),
    ),
    "elu": (
        """c = Greater (x, zero) n = Min (x, zero) e = Exp (n) f = Sub (e, one) g = Mul (f, tenth)
        y = Where (c, x, g)""",
        Counter(["Elu"]),
    ),
    "sigmoid": ("n = Neg (x) e = Exp (n) d = Add (one, e) y = Div (one, d)", Counter(["Sigmoid"])),
    "silu": (
        "n = Neg (x) e = Exp (n) d = Add (e, one) y = Div (x, d)",
        Counter(["Mul", "Sigmoid"]),
    ),
    "softplus": ("e = Exp (x) d = Add (one, e) y = Log (d)", Counter(["Softplus"])),
    "softplus to a threshold": (
        "e = Exp (x) d = Add (one, e) l = Log (d) c = Greater (x, twenty) y = Where (c, x, l)",
        Counter(["Softplus"]),
    ),
    "gelu": (
        """a = Div (x, root) e = Erf (a) f = Add (e, one) g = Mul (x, f) y = Mul (g, half)""",
        Counter(["Gelu"]),
    ),
    "gelu halved first": (
        """a = Mul (x, unroot) e = Erf (a) f = Add (one, e) g = Mul (half, x) y = Mul (f, g)""",
        Counter(["Gelu"]),
    ),
    "gelu tanh": (
        """c = Pow (x, three) k = Mul (c, cubic) s = Add (x, k) i = Mul (s, scale) t = Tanh (i)
        f = Add (t, one) g = Mul (x, half) y = Mul (g, f)""",
        Counter(["Gelu"]),
    ),
    "abs": ("y = Abs (x)", Counter(["LeakyRelu"])),
    "clip below alone": ("y = Clip (x, half)", CLIP),
    "clip above alone": ("y = Clip (x, , half)", CLIP),
    "clip by min and max": ("a = Max (x, tenth) y = Min (a, one)", CLIP),
    "clip far below one": ("y = Clip (x, tiny)", CLIP),
    "after other steps": (
        "p = Mul (x, twenty) q = Add (p, half) c = Greater (q, zero) y = Where (c, q, zero)",
        Counter(["Mul", "Add", "Relu"]),
    ),
    "before other steps": (
        "c = Greater (x, zero) r = Where (c, x, zero) p = Mul (r, tenth) y = Add (p, half)",
        Counter(["Relu", "Mul", "Add"]),
    ),
    "read in between": (
        "e = Exp (x) d = Add (one, e) l = Log (d) n = Neg (x) s = Sub (l, n) y = Mul (s, l)",
        Counter(["Softplus", "Neg", "Sub", "Mul"]),
    ),
}
VALUES = {
    "zero": 0.0, "tenth": 0.1, "half": 0.5, "one": 1.0, "three": 3.0, "twenty": 20.0,
    "largest": 3.4028234663852886e38, "root": 2**0.5, "unroot": 0.5**0.5, "cubic": 0.044715,
    "scale": (2 / np.pi) ** 0.5, "slopes": np.array([0.1, 0.2, -0.3, 0.0]).reshape(4, 1, 1, 1),
    "low": 2.0, "off": 0.72, "tiny": 1e-7, "narrow": 0.004, "place": 60.015, "ten": 10.0,
    "far": 2.5e6,
}  # fmt: skip


def by_hand(body, **options):
    read = set(re.findall(r"\w+", " ".join(re.findall(r"\(.*?\)", body))))
    return written(body, **{k: v for k, v in VALUES.items() if k in read}, **options)


@pytest.mark.parametrize("name", HAND)
def test_activations_in_steps(name):
    body, expected = HAND[name]
    kinds, notes = rejoined(by_hand(body), scale=6.0)
    written_later = {"Div": "Mul"}  # by a constant
    found = Counter(written_later.get(kind, kind) for kind in kinds.elements())
    assert found == expected
    assert len(notes) >= 1


@pytest.mark.parametrize("opset", [6, 10])
def test_clip_with_attributes(opset):
    kinds, _ = rejoined(written("y = Clip <min = -1.0, max = 1.0> (x)", opset=opset))
    assert kinds == CLIP


NEAR_ACTIVATIONS = {
    "threshold too low": (
        "e = Exp (x) d = Add (one, e) l = Log (d) c = Greater (x, low) y = Where (c, x, l)",
        "Where",
    ),
    "bend off zero": ("c = Greater (x, tenth) a = Mul (x, half) y = Where (c, x, a)", "Where"),
    "gelu with another root": (
        "a = Mul (x, off) e = Erf (a) f = Add (e, one) g = Mul (x, f) y = Mul (g, half)",
        "Erf",
    ),
    "square beyond one": ("c = Greater (x, one) a = Mul (x, x) y = Where (c, a, x)", "Where"),
    "log of two plus": ("e = Exp (x) d = Add (low, e) y = Log (d)", "Log"),
    "softsign": ("a = Abs (x) d = Add (a, one) y = Div (x, d)", "Div"),
    "step": ("c = Greater (x, zero) y = Where (c, one, zero)", "Where"),
    "another tensor": (
        "r = GlobalAveragePool (x) c = Greater (r, zero) y = Where (c, x, zero)",
        "Where",
    ),
    "whole numbers": ("i = Cast <to=6> (x) y = Cast <to=1> (i)", "Cast"),
    "a peak between points": (
        """r = Relu (x) a = Mul (x, three) b = Sub (a, place) c = Abs (b) d = Sub (narrow, c)
        e = Relu (d) f = Mul (e, ten) y = Add (r, f)""",
        "LeakyRelu",  # of Abs alone
    ),
    "a step far away": (
        "r = Relu (x) c = Greater (x, far) y = Where (c, zero, r)",
        "Where",
    ),
    "per voxel": ("c = Greater (x, zero) a = Mul (x, field) y = Where (c, x, a)", "Where"),
}


@pytest.mark.parametrize("name", NEAR_ACTIVATIONS)
def test_what_is_no_activation_stays(name):
    body, left = NEAR_ACTIVATIONS[name]
    extra = {"field": np.linspace(0, 1, 90).reshape(SIZE)} if "field" in body else {}
    kinds, _ = rejoined(by_hand(body, **extra))
    assert kinds[left] == (2 if left == "Cast" else 1)


# --------------------------------------------------------------------------------------------------
# Reductions, repeats, pads, shuffles

POOLED = {
    "mean": ("y = ReduceMean <keepdims=1> (x, space)", (1, 1, 1), {"GlobalAveragePool": 1}),
    "mean of negative axes": (
        "y = ReduceMean <keepdims=1> (x, behind)",
        (1, 1, 1),
        {"GlobalAveragePool": 1},
    ),
    "mean, axes gone": (
        "m = ReduceMean <keepdims=0> (x, space) y = Unsqueeze (m, space)",
        (1, 1, 1),
        {"GlobalAveragePool": 1},
    ),
    "mean, one axis after the other": (
        """a = ReduceMean <keepdims=0> (x, last) b = ReduceMean <keepdims=0> (a, last)
        c = ReduceMean <keepdims=0> (b, last) y = Reshape (c, one_voxel)""",
        (1, 1, 1),
        {"GlobalAveragePool": 1},
    ),
    "sum": ("y = ReduceSum <keepdims=1> (x, space)", (1, 1, 1), {"GlobalAveragePool": 1, "Mul": 1}),
    "maximum": ("y = ReduceMax <keepdims=1, axes=[2,3,4]> (x)", (1, 1, 1), {"MaxPool": 1}),
    "mean of channels": ("y = ReduceMean <keepdims=1> (x, channel)", None, {"Conv": 1}),
    "sum of channels": ("y = ReduceSum <keepdims=1> (x, channel)", None, {"Conv": 1}),
}
PLACES = {
    "space": [2, 3, 4], "behind": [-3, -1, -2], "last": [-1], "channel": [1],
    "one_voxel": [1, 4, 1, 1, 1],
}  # fmt: skip


def chosen(body, **constants):
    read = set(re.findall(r"\w+", " ".join(re.findall(r"\(.*?\)", body))))
    return {k: v for k, v in (PLACES | constants).items() if k in read}


@pytest.mark.parametrize("name", POOLED)
def test_reductions(name):
    body, size, expected = POOLED[name]
    result = (1, 4, *size) if size else (1, 1, *SIZE)
    opset = 17 if "axes=" in body else 20
    model = written(body, opset, result=result, **chosen(body))
    kinds, notes = rejoined(model, tolerance=2e-6)
    assert kinds == expected and len(notes) == 1


NEAR_POOLS = {
    "two axes": ("y = ReduceMean <keepdims=1> (x, places)", [2, 3], (1, 4, 1, 1, 3)),
    "channels too": ("y = ReduceMean <keepdims=1> (x, places)", [1, 2, 3, 4], (1, 1, 1, 1, 1)),
    "another kind": ("y = ReduceL2 <keepdims=1> (x, places)", [2, 3, 4], (1, 4, 1, 1, 1)),
    "batch": ("y = ReduceMean <keepdims=1> (x, places)", [0], (1, 4, *SIZE)),
}


@pytest.mark.parametrize("name", NEAR_POOLS)
def test_what_is_no_pool_stays(name):
    body, places, result = NEAR_POOLS[name]
    model = written(body, result=result, places=places, batch=2 if name == "batch" else 1)
    kinds, notes = rejoined(model)
    assert sum(n for kind, n in kinds.items() if kind.startswith("Reduce")) == 1 and notes == []


def test_mean_of_two_kinds_is_not_joined():
    body = "a = ReduceMean <keepdims=1> (x, last) y = ReduceSum <keepdims=1> (a, others)"
    kinds, _ = rejoined(written(body, result=(1, 4, 1, 5, 1), last=[4], others=[2]))
    assert kinds == {"ReduceMean": 1, "ReduceSum": 1}


@pytest.mark.parametrize("kind", ["Mean", "Sum"])
def test_reductions_over_space_then_channels(kind):
    body = f"a = Reduce{kind} <keepdims=1> (x, space) y = Reduce{kind} <keepdims=1> (a, channel)"
    kinds, _ = rejoined(written(body, result=(1, 1, 1, 1, 1), **chosen(body)), tolerance=2e-6)
    expected = {"GlobalAveragePool": 1, "Conv": 1} | ({"Mul": 1} if kind == "Sum" else {})
    assert kinds == expected


def test_axes_of_extent_one_are_no_pool_unless_reduced():
    size = (8, 6, 1)
    body = "m = ReduceMean <keepdims=1> (x, places) y = Mul (x, m)"
    kinds, notes = rejoined(written(body, size=size, places=[2, 3]))
    assert kinds == {"ReduceMean": 1, "Mul": 1} and notes == []
    kinds, _ = rejoined(written(body, size=size, places=[2, 3, 4]))
    assert kinds == {"GlobalAveragePool": 1, "Mul": 1}


@pytest.mark.parametrize("axes", ["none", "not known"])
def test_reduction_of_no_axes_is_no_pool(axes):
    size = (1, 1, 1)
    body = "m = ReduceMax <keepdims=1, noop_with_empty_axes=1> (x) y = Add (m, x)"
    model = written(body, size=size)
    if axes == "not known":
        body = "m = ReduceMax <keepdims=1> (x, places) y = Add (m, x)"
        model = written(body, size=size, places=[2])
        places = ir.Value(name="chosen", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        model.graph.inputs.append(places)
        model.graph.node(0).replace_input_with(1, places)
    rejoin_pools(Editor(model.graph))
    assert [node.op_type for node in model.graph] == ["ReduceMax", "Add"]


SHUFFLE, UNSHUFFLE = [0, 1, 5, 2, 6, 3, 7, 4], [0, 1, 3, 5, 7, 2, 4, 6]
MOVED = {
    "tile": ("y = Tile (x, times)", {"times": [1, 3, 1, 1, 1]}, 4, (12, *SIZE), {"Concat": 1}),
    "expand one channel": (
        "y = Expand (x, wide)",
        {"wide": [1, 5, *SIZE]},
        1,
        (5, *SIZE),
        {"Concat": 1},
    ),
    "expand and tile": (
        "e = Expand (x, wide) y = Tile (e, times)",
        {"wide": [1, 1, 1, 1, 1], "times": [1, 5, 1, 1, 1]},
        1,
        (5, *SIZE),
        {"Concat": 1},
    ),
    "repeat each channel": (
        """u = Unsqueeze (x, two) e = Tile (u, times) y = Reshape (e, after)""",
        {"two": [2], "times": [1, 1, 3, 1, 1, 1], "after": [1, 12, *SIZE]},
        4,
        (12, *SIZE),
        {"Conv": 1},
    ),
    "pad channels": (
        "y = Pad (x, pads)",
        {"pads": [0, 1, 0, 0, 0, 0, 2, 0, 0, 0]},
        4,
        (7, *SIZE),
        {"Conv": 1},
    ),
    "choose channels": ("y = Gather <axis=1> (x, which)", {"which": [2, 0, 0]}, 4, (3, *SIZE),
                        {"Conv": 1}),
    "shuffle channels": (
        "a = Reshape (x, two) b = Transpose <perm=[0,2,1,3,4,5]> (a) y = Reshape (b, after)",
        {"two": [1, 2, 2, *SIZE], "after": [1, 4, *SIZE]},
        4,
        (4, *SIZE),
        {"Conv": 1},
    ),
    "pixel shuffle": (
        f"a = Reshape (x, eight) b = Transpose <perm={SHUFFLE}> (a) y = Reshape (b, after)",
        {"eight": [1, 2, 2, 3, 1, 6, 5, 3], "after": [1, 2, 12, 15, 3]},
        12,
        (2, 12, 15, 3),
        {"ConvTranspose": 1},
    ),
    "space to channels": (
        f"a = Reshape (x, eight) b = Transpose <perm={UNSHUFFLE}> (a) y = Reshape (b, after)",
        {"eight": [1, 4, 3, 2, 1, 5, 3, 1], "after": [1, 40, 3, 1, 3]},
        4,
        (40, 3, 1, 3),
        {"Conv": 1},
    ),
    "row into channels": (
        "y = Reshape (x, after)",
        {"after": [1, 24, 1, 5, 3]},
        4,
        (24, 1, 5, 3),
        {"Conv": 1},
    ),
    "repeat voxels": (
        """a = Reshape (x, eight) b = Expand (a, large) y = Reshape (b, after)""",
        {"eight": [1, 4, 6, 1, 5, 1, 3, 1], "large": [1, 4, 6, 2, 5, 1, 3, 3],
         "after": [1, 4, 12, 5, 9]},
        4,
        (4, 12, 5, 9),
        {"Resize": 1},
    ),
    "there and back": (
        "a = Reshape (x, flat) b = Unsqueeze (a, one) c = Squeeze (b, one) y = Reshape (c, after)",
        {"flat": [1, 360], "one": [1], "after": [1, 4, *SIZE]},
        4,
        (4, *SIZE),
        {"Identity": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_moves(name):
    body, constants, channels, result, expected = MOVED[name]
    kinds, _ = rejoined(written(body, channels=channels, result=(1, *result), **constants))
    assert kinds == expected


def test_moves_behind_what_cannot_be_followed():
    body = 'p = Pad <mode="reflect"> (x, pads) y = Tile (p, times)'
    pads = [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    model = written(body, pads=pads, times=[1, 2, 1, 1, 1], result=(1, 8, 7, 5, 5))
    kinds, _ = rejoined(model)
    assert kinds == {"Pad": 1, "Concat": 1}


STAYS = {
    "wrong order": (
        "a = Reshape (x, eight) b = Transpose <perm=[0,1,2,5,3,6,4,7]> (a) y = Reshape (b, after)",
        {"eight": [1, 2, 2, 3, 1, 6, 5, 3], "after": [1, 2, 12, 15, 3]},
        (2, 12, 15, 3),
    ),
    "axes exchanged": ("y = Transpose <perm=[0,1,3,2,4]> (x)", {}, (12, 5, 6, 3)),
    "channels into a row": ("y = Reshape (x, after)", {"after": [1, 6, 12, 5, 3]}, (6, 12, 5, 3)),
    "along space": ("y = Tile (x, times)", {"times": [1, 1, 2, 1, 1]}, (12, 12, 5, 3)),
    "pad with ones": (
        "y = Pad (x, pads, one)",
        {"pads": [0, 1, 0, 0, 0, 0, 0, 0, 0, 0], "one": 1.0},
        (13, *SIZE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_is_no_move_of_the_format_stays(name):
    body, constants, result = STAYS[name]
    model = written(body, channels=12, result=(1, *result), **constants)
    before = Counter(node.op_type for node in model.graph)
    kinds, notes = rejoined(model)
    assert kinds == before and notes == []


RESAMPLED = {
    "linear": (lambda: nn.Upsample(scale_factor=2, mode="trilinear"), {"Resize": 1}),
    "linear, corners": (
        lambda: nn.Upsample(scale_factor=(1, 2, 3), mode="trilinear", align_corners=True),
        {"Resize": 1},
    ),
    "linear, smaller": (lambda: nn.Upsample(size=(4, 7, 2), mode="trilinear"), {"Resize": 1}),
    "nearest": (lambda: nn.Upsample(scale_factor=2), {"Resize": 1}),
    "nearest, any size": (lambda: nn.Upsample(size=(7, 4, 3)), {"Resize": 1}),
    "reflected": (lambda: nn.ReflectionPad3d((1, 2, 0, 0, 3, 1)), {"Pad": 1}),
    "repeated edge": (lambda: nn.ReplicationPad3d((1, 2, 0, 0, 3, 1)), {"Pad": 1}),
    "every other": (lambda: EveryOther(), {"Slice": 1}),
}  # fmt: skip


class EveryOther(nn.Module):
    def forward(self, x):
        return x[:, :, torch.tensor([1, 3, 5])]


def test_resampling_in_core_operators():
    counts, _ = rejoined_each([make() for make, _ in RESAMPLED.values()], "decomposed")
    assert dict(zip(RESAMPLED, counts, strict=True)) == {k: v for k, (_, v) in RESAMPLED.items()}


CHOOSE = "t = Transpose <perm=[2,0,1,3,4]> (x) g = GatherND (t, where) "
BACK = "Transpose <perm=[1,2,0,3,4]>"
NEAR_RESAMPLING = {
    "wrapped round": (CHOOSE + f"y = {BACK} (g)", [5, 0, 1, 2, 3, 4]),
    "reversed": (CHOOSE + f"y = {BACK} (g)", [5, 4, 3, 2, 1, 0]),
    "reflected twice as far": (CHOOSE + f"y = {BACK} (g)", [2, 1, 1, 0, 1, 2]),
    "weights of another interpolation": (
        CHOOSE + f"b = {BACK} (g) d = Sub (b, x) w = Mul (d, half) y = Add (x, w)",
        [1, 2, 3, 4, 5, 5],
    ),
}


@pytest.mark.parametrize("name", NEAR_RESAMPLING)
def test_what_is_no_resampling_stays(name):
    body, where = NEAR_RESAMPLING[name]
    options = {"half": 0.5} if "half" in body else {}
    kinds, notes = rejoined(written(body, where=np.array(where)[:, None], **options))
    assert kinds["GatherND"] == 1 and notes == []


def test_expand_is_left_to_broadcasting():
    body = "m = GlobalAveragePool (x) e = Expand (m, full) a = Mul (x, e) y = Sub (e, a)"
    kinds, notes = rejoined(written(body, full=[1, 4, *SIZE]))
    assert kinds == {"GlobalAveragePool": 1, "Mul": 1, "Sub": 1}
    assert notes == ["Expand left to broadcasting: 2"]
    body = "m = GlobalAveragePool (x) e = Expand (m, full) y = Relu (e)"
    kinds, _ = rejoined(written(body, full=[1, 4, *SIZE]))
    assert kinds == {"GlobalAveragePool": 1, "Resize": 1, "Relu": 1}


def test_several_outputs_of_one_value_keep_their_names():
    model = written("a = Reshape (x, flat) y = Reshape (a, after)", flat=[1, 360],
                    after=[1, 4, *SIZE])  # fmt: skip
    kinds, _ = rejoined(model)
    assert kinds == {"Identity": 1}
    assert [v.name for v in model.graph.outputs] == ["y"]


# --------------------------------------------------------------------------------------------------
# Through the program

PROGRAM = {
    **{name: spelled(name) for name in ("sqrt-div", "moments", "unbiased")},
    "all channels": spelled("power", axes=(1, 2, 3, 4)),
    "groups": written(
        IN_GROUPS.format(inside="", end="n", outside="a = Mul (z, w) y = Add (a, b)"),
        grouped=[1, 2, 180], last=[2], eps=1e-4, shape=[1, 4, *SIZE],
        w=W.reshape(4, 1, 1, 1), b=B.reshape(4, 1, 1, 1),
    ),
    **{name: by_hand(body) for name, (body, _) in HAND.items()},
    **{
        name: written(body, 17 if "axes=" in body else 20, **chosen(body),
                      result=(1, 4, *size) if size else (1, 1, *SIZE))
        for name, (body, size, _) in POOLED.items()
    },
    **{
        name: written(body, channels=channels, result=(1, *result), **constants)
        for name, (body, constants, channels, result, _) in MOVED.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAM)
def test_program_computes_the_same(name, tmp_path):
    model = ir.to_proto(PROGRAM[name])
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    check_import(model, SIZE, tmp_path, inputs=ports("in", channels), samples=1)
