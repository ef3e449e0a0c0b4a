# SPDX-License-Identifier: Apache-2.0
"""ONNX files: read as onnx reads them, or refused with the reason; run by ONNX Runtime."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx_ir", reason="onnx and onnx_ir are missing: ONNX files are not tested")

import onnx
import onnx_ir as ir
from dosemap_tools.importing import onnx_file, onnx_wire
from dosemap_tools.importing.network import NetworkImportError
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(5)
SHAPE = ("N", 3, 6, 7, 5)


def conv_weights(out=4, inner=3):
    return {
        "w": RNG.normal(0, 0.3, (out, inner, 3, 3, 3)).astype(np.float32),
        "b": RNG.normal(0, 0.3, out).astype(np.float32),
    }


def tensors(arrays):
    return [numpy_helper.from_array(values, name) for name, values in arrays.items()]


def make_model(nodes=None, weights=None, *, opset=20, batch="N", kind=TensorProto.FLOAT, **options):
    """Return y = Relu(Conv(x)), or the network of other nodes and weights."""
    if nodes is None:
        nodes = [
            helper.make_node("Conv", ["x", "w", "b"], ["t"], name="conv", pads=[1] * 6),
            helper.make_node("Relu", ["t"], ["y"], name="relu"),
        ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", kind, (batch, *SHAPE[1:]))],
        [helper.make_tensor_value_info("y", kind, [None] * 5)],
        tensors(conv_weights()) if weights is None else weights,
    )
    options.setdefault("ir_version", 10)
    options.setdefault("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph, **options)


def save(folder, model, name="m.onnx"):
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(path, *words):
    with pytest.raises(NetworkImportError) as caught:
        onnx_file.load(path)
    text = str(caught.value)
    for word in (path.name, *words):
        assert word in text, text
    assert caught.value.remedy, text
    assert "\n" not in text
    return text


def all_values(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


# What is read -------------------------------------------------------------------------------------
def test_reads_what_onnx_reads(tmp_path):
    model = make_model()
    path = save(tmp_path, model)
    loaded = onnx_file.load(path)
    assert [node.op_type for node in loaded.graph] == ["Conv", "Relu"]
    assert loaded.graph.opset_imports == {"": 20}
    expected = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = all_values(loaded)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    inputs, outputs = onnx_file.describe(loaded)
    assert inputs == [("x", SHAPE, "FLOAT")]
    assert outputs[0][0] == "y"
    onnx.checker.check_model(ir.serde.serialize_model(loaded))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT16", "INT32", "INT64"],
)
def test_types_and_fields_of_values(tmp_path, kind, raw):
    number = getattr(TensorProto, kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    shapes = {"small": (5,), "big": (3, 1000), "empty": (0, 4), "scalar": ()}
    made = []
    for name, shape in shapes.items():
        values = RNG.integers(0, 100, shape).astype(dtype)
        content = values.tobytes() if raw else values.flatten().tolist()
        made.append(helper.make_tensor(name, number, shape, content, raw=raw))
    loaded = all_values(
        onnx_file.load(save(tmp_path, make_model(weights=tensors(conv_weights()) + made)))
    )
    for tensor in made:
        np.testing.assert_array_equal(loaded[tensor.name], numpy_helper.to_array(tensor))
        assert loaded[tensor.name].shape == shapes[tensor.name]


def test_constants_subgraphs_and_functions(tmp_path):
    big, branch = RNG.normal(size=(4, 2000)).astype(np.float32), RNG.normal(size=500).astype("f")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(branch))],
        "then",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [500])],
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], name="k", value=numpy_helper.from_array(big)),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=inner),
        helper.make_node("twice", ["x"], ["t"], domain="mine"),
        helper.make_node("Identity", ["t"], ["y"]),
    ]
    function = helper.make_function(
        "mine",
        "twice",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(big[:, :1500])),
            helper.make_node("Add", ["a", "a"], ["b"]),
        ],
        [helper.make_opsetid("", 20)],
    )
    model = make_model(
        nodes,
        [numpy_helper.from_array(np.array(True), "yes")],
        functions=[function],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)],
    )
    loaded = onnx_file.load(save(tmp_path, model))
    by_op = {node.op_type: node for node in loaded.graph}
    np.testing.assert_array_equal(by_op["Constant"].attributes["value"].value.numpy(), big)
    for name in ("then_branch", "else_branch"):
        constant = by_op["If"].attributes[name].as_graph()[0]
        np.testing.assert_array_equal(constant.attributes["value"].value.numpy(), branch)
    constant = loaded.functions[("mine", "twice", "")][0]
    np.testing.assert_array_equal(constant.attributes["value"].value.numpy(), big[:, :1500])


def test_weights_that_are_inputs_too(tmp_path):
    model = make_model(ir_version=3, opset=8)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    inputs, _ = onnx_file.describe(onnx_file.load(save(tmp_path, model)))
    assert [name for name, *_ in inputs] == ["x"]


def test_sizes_of_minus_one_are_open(tmp_path):
    inputs, _ = onnx_file.describe(onnx_file.load(save(tmp_path, make_model(batch=-1))))
    assert inputs == [("x", (None, *SHAPE[1:]), "FLOAT")]


def test_outputs_without_shape(tmp_path):
    model = make_model()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert onnx_file.describe(onnx_file.load(save(tmp_path, model)))[1][0][0] == "y"


def with_external(folder, location="m.data", *, data=None, **entries):
    """Return a model whose weight w lies in another file."""
    weights = tensors(conv_weights())
    content = weights[0].raw_data
    if data is not None:
        data.parent.mkdir(exist_ok=True)
        data.write_bytes(b"#" * 16 + content)
    weights[0].ClearField("raw_data")
    weights[0].data_location = TensorProto.EXTERNAL
    told = {"location": location, "offset": 16, "length": len(content), **entries}
    for key, value in told.items():
        if value is not None:
            weights[0].external_data.add(key=key, value=str(value))
    return make_model(weights=weights), np.frombuffer(content, "<f4").reshape(4, 3, 3, 3, 3)


@pytest.mark.parametrize("location", ["m.data", "below/m.data", "./below/../m.data"])
def test_external_data(tmp_path, location):
    (tmp_path / "below").mkdir()
    model, expected = with_external(tmp_path, location, data=tmp_path / location)
    np.testing.assert_array_equal(all_values(onnx_file.load(save(tmp_path, model)))["w"], expected)


def test_external_data_by_a_link_in_the_folder_and_without_length(tmp_path):
    model, expected = with_external(tmp_path, "link", data=tmp_path / "m.data", length=None)
    (tmp_path / "link").symlink_to("m.data")
    np.testing.assert_array_equal(all_values(onnx_file.load(save(tmp_path, model)))["w"], expected)


def test_the_model_itself_may_be_a_link(tmp_path):
    model = make_model()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "m.onnx").symlink_to(save(tmp_path / "b", model))
    found = all_values(onnx_file.load(tmp_path / "a" / "m.onnx"))
    np.testing.assert_array_equal(found["w"], numpy_helper.to_array(model.graph.initializer[0]))


# What is refused ----------------------------------------------------------------------------------
def test_external_data_outside(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for location in (
        "../m.data",
        str(tmp_path / "m.data"),
        "link",
        "linked/m.data",
        "sub/../../m.data",
    ):
        model, _ = with_external(folder, location, data=tmp_path / "m.data")
        if location == "link":
            (folder / "link").symlink_to(tmp_path / "m.data")
            (folder / "linked").symlink_to(tmp_path)
        refused(save(folder, model), "tensor w", repr(location), "outside the model's folder")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "none.data"}, ["none.data", "is not there"]),
        ({"location": "."}, ["is not there"]),
        ({"location": "m\0data"}, ["tensor w"]),
        ({"location": "x" * 5000}, ["tensor w"]),
        ({"location": "loop"}, ["tensor w"]),
        ({"offset": 17}, ["bytes 17 to 1313 of m.data, which has 1312"]),
        ({"offset": -1}, ["offset '-1'"]),
        ({"offset": "1_6"}, ["offset '1_6'"]),
        ({"offset": 10**30}, ["offset"]),
        ({"offset": 10**17}, ["which has 1312"]),
        ({"length": 1292}, ["should have 1296 bytes; it has 1292"]),
        ({"length": 10**10}, ["should have 1296 bytes"]),
    ],
)
def test_external_data_that_are_not_there(tmp_path, entries, words):
    (tmp_path / "loop").symlink_to("loop")
    model, _ = with_external(tmp_path, data=tmp_path / "m.data", **entries)
    refused(save(tmp_path, model), *words)


def test_values_in_two_places(tmp_path):
    model, _ = with_external(tmp_path, data=tmp_path / "m.data")
    model.graph.initializer[0].raw_data = b"\0" * 1296
    refused(save(tmp_path, model), "tensor w", "more than one place")
    model.graph.initializer[0].raw_data = b"\0" * 8
    refused(save(tmp_path, model), "tensor w", "more than one place")
    model = make_model()
    model.graph.initializer[0].float_data.extend([1.0] * 324)
    refused(save(tmp_path, model), "tensor w", "more than one place")
    model = make_model()
    model.graph.initializer[1].float_data.extend([1.0] * 4)
    refused(save(tmp_path, model), "tensor b", "raw_data and float_data")


def test_a_place_claimed_in_the_file_itself(tmp_path):
    model, _ = with_external(tmp_path, "", data=tmp_path / "m.data")
    refused(save(tmp_path, model), "tensor w", "bytes 16 to 1312 of m.onnx")


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        ([10_000_000_000 // 4], ["10000000000 bytes", "it has 1296"]),
        ([1 << 62, 1 << 62], ["bytes; it has 1296"]),
        ([-1, 324], ["[-1, 324]"]),
        ([0, 324], ["should have 0 bytes"]),
        ([1] * 40, ["has the shape"]),
        ([325], ["should have 1300 bytes; it has 1296"]),
    ],
)
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_dims_that_claim_more(tmp_path, dims, words, place):
    model = make_model()
    tensor = model.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if place == "attribute":
        node = helper.make_node("Constant", [], ["w"], name="k", value=tensor)
        model.graph.node.insert(0, node)
        del model.graph.initializer[0]
        words = ["node k (Constant), attribute value", *words]
    refused(save(tmp_path, model), *words)


def test_values_that_are_missing(tmp_path):
    for count in (0, 3, 5):
        weights = tensors(conv_weights())
        weights[1].ClearField("raw_data")
        weights[1].float_data.extend([0.5] * count)
        path = save(tmp_path, make_model(weights=weights))
        refused(path, "tensor b", f"should have 4 values; it has {count}")


@pytest.mark.parametrize(
    ("kind", "name"), [("STRING", "STRING"), ("INT4", "INT4"), ("FLOAT8E4M3FN", "FLOAT8E4M3FN"),
                       ("COMPLEX64", "COMPLEX64"), (0, "UNDEFINED"), (99, "number 99")]
)  # fmt: skip
def test_types_that_no_network_has(tmp_path, kind, name):
    weights = tensors(conv_weights())
    weights[1].data_type = getattr(TensorProto, kind) if isinstance(kind, str) else kind
    refused(save(tmp_path, make_model(weights=weights)), "tensor b", name)


def test_floats_that_are_said_to_be_something_else(tmp_path):
    weights = tensors(conv_weights())
    values = numpy_helper.to_array(weights[0]).flatten()
    weights[0].CopyFrom(helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 3, 3, 3), values))
    weights[0].data_type = TensorProto.INT32
    refused(save(tmp_path, make_model(weights=weights)), "tensor w", "INT32", "float_data")


def test_sparse_weights(tmp_path):
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.arange(2)), [324])
    model = make_model()
    model.graph.sparse_initializer.append(sparse)
    refused(save(tmp_path, model), "'w' are sparse")
    model = make_model()
    model.graph.node.append(helper.make_node("Constant", [], ["k"], name="k", sparse_value=sparse))
    refused(save(tmp_path, model), "node k (Constant)", "sparse")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(m, "ir_version", 99), ["ir_version 99", "newer onnx"]),
        (lambda m: setattr(m.opset_import[0], "version", 999), ["opset 999", "opset_version=20"]),
        (lambda m: setattr(m.opset_import[0], "version", 0), ["opset 0"]),
        (lambda m: setattr(m.opset_import[0], "domain", "mine"), ["which opset of ONNX"]),
        (lambda m: m.ClearField("opset_import"), ["holds no ONNX model"]),
        (lambda m: m.training_info.add(), ["training information", "module.eval()"]),
        (
            lambda m: setattr(m.graph.node[0], "domain", "com.microsoft"),
            ["node conv (Conv)", "com.microsoft::Conv"],
        ),
        (lambda m: setattr(m.graph.node[0], "op_type", "Convolve"), ["Convolve"]),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nothing"), ["nothing", "conv"]),
        (lambda m: m.graph.node[1].output.__setitem__(0, "t"), ["'t'"]),
        (lambda m: m.graph.node.reverse(), ["sorted"]),
        (lambda m: setattr(m.graph.output[0], "name", "other"), ["other"]),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), ["w initializer name"]),
        (lambda m: m.graph.initializer.add(name="t", data_type=1, dims=[0]), ["'t'"]),
        (lambda m: m.graph.node[0].attribute.add(name="colour", i=1, type=2), ["colour"]),
    ],
)  # fmt: skip
def test_models_that_break_the_rules(tmp_path, change, words):
    model = make_model()
    change(model)
    refused(save(tmp_path, model), *words)


def test_functions_that_never_end(tmp_path):
    standard = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]

    def function(name, calls):
        nodes, source = [], "a"
        for i, called in enumerate(calls):
            target = "b" if i == len(calls) - 1 else f"v{i}"
            nodes.append(helper.make_node(called, [source], [target], domain="mine"))
            source = target
        return helper.make_function("mine", name, ["a"], ["b"], nodes, standard)

    leaf = helper.make_function(
        "mine", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], standard
    )
    call = [helper.make_node("f9", ["x"], ["y"], domain="mine")]
    doubling = [leaf, *(function(f"f{i}", [f"f{i - 1}"] * 10) for i in range(1, 10))]
    path = save(tmp_path, make_model(call, functions=doubling, opset_imports=standard))
    refused(path, "nodes; 100000 are allowed")
    circle = [function("f9", ["f8"]), function("f8", ["f9"])]
    path = save(tmp_path, make_model(call, functions=circle, opset_imports=standard))
    refused(path, "calls itself")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ["git lfs pull"]),
        (b"<!DOCTYPE html><html></html>", ["HTML", "download the file itself"]),
        (b"  \n<html>", ["HTML"]),
        (b"PK\x03\x04abc", ["zip archive", ".pt2"]),
        (b"\x1f\x8babc", ["gzip"]),
        (b"\x28\xb5\x2f\xfdabc", ["dosemap weights file"]),
        (b'{"irVersion": "10"}', ["JSON", "binary"]),
        (b"ir_version: 10\ngraph {}", ["ONNX as text"]),
        (b"\xff" * 100, ["damaged or cut off"]),
        (b"\x08\x0a", ["holds no ONNX model"]),
        (b"\x3a\x00\x42\x00", ["opset 0"]),
        (b"\x0b\x00", ["damaged"]),
        (b"\x3a\x7f\x00", ["127 bytes are claimed"]),
    ],
)
def test_files_that_are_no_models(tmp_path, content, words):
    refused(save(tmp_path, content), *words)


def test_paths_that_are_no_files(tmp_path):
    refused(tmp_path, "is a folder")
    refused(tmp_path / "none.onnx", "no such file")
    refused(Path("/dev/null"), "no ordinary file")


def test_cut_off_and_damaged_files(tmp_path):
    """At each cut and after each damage: an error that is ours, or a model."""
    whole = make_model().SerializeToString()
    for length in range(1, len(whole), 7):
        refused(save(tmp_path, whole[:length]))
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        path = save(tmp_path, bytes(damaged))
        try:
            all_values(onnx_file.load(path))
            outcomes.add("read")
        except NetworkImportError as error:
            assert str(path) in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    for _ in range(200):
        refused(save(tmp_path, rng.bytes(int(rng.integers(1, 300)))))


def nested(depth):
    """Return the bytes of a model with `depth` subgraphs in each other."""
    graph = b""
    for _ in range(depth):
        attribute = b"\x32" + onnx_wire.encode_varint(len(graph)) + graph
        node = b"\x2a" + onnx_wire.encode_varint(len(attribute)) + attribute
        graph = b"\x0a" + onnx_wire.encode_varint(len(node)) + node
    return b"\x3a" + onnx_wire.encode_varint(len(graph)) + graph + b"\x42\x02\x10\x14"


def test_parts_in_parts(tmp_path):
    refused(save(tmp_path, nested(3000)), "more than 48 parts inside each other")
    refused(save(tmp_path, nested(20)), "more than 48 parts inside each other")


BOUNDED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from dosemap_tools.importing import network, onnx_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    model = onnx_file.load(sys.argv[2])
    total = sum(int(v.const_value.numpy().nbytes) for v in model.graph.initializers.values())
    print("read", total)
except network.NetworkImportError as error:
    print("refused", str(error)[-300:])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def in_a_process(path):
    """Return what load says, and by how many MB its process grew."""
    tools = Path(onnx_file.__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(tools), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (120, 120)),
    )
    *lines, grown = result.stdout.splitlines()
    return " ".join(lines), int(grown)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (b"\x0a\x00", "more than 1000000 parts"),  # nodes
        (b"\x5a\x00", "more than 1000000 parts"),  # inputs
        (b"\x12\x00", "more than 1000000 parts"),  # names of the graph
        (b"\xfa\x7f\x00", "more than 1000000 parts"),  # a field that nobody knows
    ],
)
def test_many_small_parts_take_bounded_memory(tmp_path, part, words):
    content = part * 1_500_000
    model = b"\x3a" + onnx_wire.encode_varint(len(content)) + content + b"\x42\x02\x10\x14"
    said, grown = in_a_process(save(tmp_path, model))
    assert said.startswith("refused"), said
    assert words in said
    assert grown < 150, f"{grown} MB"


def test_many_nodes_take_bounded_memory(tmp_path):
    node = b"\x0a\x00" * 900_000
    model = b"\x3a" + onnx_wire.encode_varint(len(node)) + node + b"\x42\x02\x10\x14"
    said, grown = in_a_process(save(tmp_path, model))
    assert "900000 nodes; 100000 are allowed" in said
    assert grown < 300, f"{grown} MB"


def test_large_text_takes_bounded_memory(tmp_path):
    said, grown = in_a_process(save(tmp_path, make_model(doc_string="x" * (65 << 20))))
    assert "beside raw tensors" in said
    assert grown < 200, f"{grown} MB"


def test_tensors_are_views_of_the_file(tmp_path):
    weights = tensors(conv_weights())
    weights += [numpy_helper.from_array(np.ones(25_000_000, np.float32), "large")]
    said, grown = in_a_process(save(tmp_path, make_model(weights=weights)))
    assert said == f"read {100_000_000 + 1296 + 16}"
    assert grown < 30, f"{grown} MB for a file of 100 MB"


# What runs ----------------------------------------------------------------------------------------
def expected_of(path, values):
    weights = {k: v.astype(np.float64) for k, v in all_values(onnx_file.load(path)).items()}
    padded = np.pad(values.astype(np.float64), [(0, 0), (0, 0)] + [(1, 1)] * 3)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3), (2, 3, 4))
    result = np.einsum("ncxyzijk,ocijk->noxyz", windows, weights["w"])
    return np.maximum(result + weights["b"][:, None, None, None], 0)


@pytest.mark.parametrize("batch", ["N", 1, 2, -1])
@pytest.mark.parametrize("runtime", [True, False])
def test_original(tmp_path, monkeypatch, batch, runtime):
    if runtime:
        pytest.importorskip("onnxruntime")
    else:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = save(tmp_path, make_model(batch=batch))
    original = onnx_file.OnnxOriginal(path)
    assert ("ONNX Runtime is not installed" in original.description) == (not runtime)
    values = RNG.normal(size=(3, *SHAPE[1:])).astype(np.float32)
    (result,) = original.run([values])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected_of(path, values), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(original.run([values])[0], result)
    assert original.output_names == ["y"]


@pytest.mark.parametrize("beside", [False, True])
def test_original_behind_a_link(tmp_path, beside):
    """As in a cache of downloads: the name is a link to a file of another folder."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "names").mkdir()
    (tmp_path / "blobs").mkdir()
    model = make_model()
    if beside:
        model, _ = with_external(tmp_path, data=tmp_path / "names" / "m.data")
        gain = numpy_helper.from_array(np.full((4, 6, 7, 5), 2, np.float32), "gain")
        model.graph.initializer.append(gain)
        model.graph.node[1].output[0] = "r"
        model.graph.node.append(helper.make_node("Mul", ["r", "gain"], ["y"]))
    path = tmp_path / "names" / "m.onnx"
    path.symlink_to(save(tmp_path / "blobs", model, "0123"))
    values = RNG.normal(size=(2, *SHAPE[1:])).astype(np.float32)
    (result,) = onnx_file.OnnxOriginal(path).run([values])
    expected = expected_of(path, values) * (2 if beside else 1)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_original_in_float16(tmp_path):
    pytest.importorskip("onnxruntime")
    weights = tensors({k: v.astype(np.float16) for k, v in conv_weights().items()})
    path = save(tmp_path, make_model(weights=weights, kind=TensorProto.FLOAT16))
    values = RNG.normal(size=(2, *SHAPE[1:])).astype(np.float16).astype(np.float32)
    (result,) = onnx_file.OnnxOriginal(path).run([values])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected_of(path, values), rtol=1e-2, atol=1e-2)


def test_original_that_does_not_run(tmp_path):
    pytest.importorskip("onnxruntime")
    path = save(tmp_path, make_model())
    original = onnx_file.OnnxOriginal(path)
    with pytest.raises(NetworkImportError, match=r"ONNX Runtime .* cannot run it"):
        original.run([np.zeros((1, 2, 6, 7, 5), np.float32)])
    with pytest.raises(NetworkImportError, match="2 arrays for its 1 inputs"):
        original.run([np.zeros((1, *SHAPE[1:]), np.float32)] * 2)
