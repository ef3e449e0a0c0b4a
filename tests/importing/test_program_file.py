# SPDX-License-Identifier: Apache-2.0
"""Exported programs: what they compute stays, and what files may hide is neither run nor read."""

import contextlib
import copy
import io
import json
import pickle
import resource
import zipfile

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: its programs are not read")

import torch
from dosemap_tools.importing import program_file
from dosemap_tools.importing.network import NetworkImportError
from dosemap_tools.importing.program_checks import RefusalError, expression
from dosemap_tools.importing.torch_network import TorchOriginal, quiet, to_onnx
from torch import nn


class Network(nn.Module):
    """Parameters, buffers of both kinds, a constant tensor, sizes that depend on the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.shared = self.conv
        self.register_buffer("scale", torch.rand(4, 1, 1, 1), persistent=False)
        self.register_buffer("columns", torch.rand(3, 5).t())

    def forward(self, pet, weight: float = 2.0, *, extra=None):
        x = torch.relu_(self.norm(self.conv(pet))) * self.scale * weight
        x = x + torch.tensor([0.5])
        flat = x.reshape(pet.shape[0] * 2, -1).reshape(x.shape)
        return {"dose": flat, "none": extra, "more": [x.mean((2, 3, 4)), self.columns * 2]}


PATCH = torch.rand(2, 1, 6, 5, 4)


def exported(module=None, patch=PATCH, **options):
    options.setdefault("dynamic_shapes", {"pet": {0: torch.export.Dim("N", min=1, max=9)}})
    with quiet(), torch.no_grad():
        return torch.export.export((module or Network()).eval(), (patch,), **options)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    with quiet():
        torch.export.save(exported(), path)
    return path


def test_computes_what_the_module_does(good):
    original = TorchOriginal(program_file.load(good))
    for samples in (1, 3):
        patch = torch.rand(samples, 1, 6, 5, 4)
        with torch.no_grad():
            expected = Network().eval()(patch)
        found = original.run([patch.numpy()])
        assert len(found) == 3
        for values, wanted in zip(found, [expected["dose"], *expected["more"]], strict=True):
            np.testing.assert_array_equal(values, wanted.numpy())


def test_weights_are_mapped_and_shared_with_onnx(good):
    program = program_file.load(good)
    weight = program.state_dict["conv.weight"]
    with torch.no_grad():
        assert torch.equal(weight, Network().conv.weight)
    values = [v.const_value.numpy() for v in to_onnx(program).graph.initializers.values()]
    assert sum(np.shares_memory(one, weight.detach().numpy()) for one in values) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    module = nn.Sequential(nn.Conv3d(1, 3, 3), nn.PReLU()).to(dtype)
    with quiet():
        program = exported(module, PATCH.to(dtype), dynamic_shapes=None)
        torch.export.save(program, tmp_path / "net.pt2")
    notes = []
    program = program_file.load(tmp_path / "net.pt2", notes)
    found = TorchOriginal(program).run([PATCH[:1].numpy()])[0]
    with torch.no_grad():
        expected = module.float()(PATCH[:1]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert any(str(dtype).removeprefix("torch.") in note for note in notes)


class Layers(nn.Module):
    """What decompositions take apart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.down = nn.Sequential(nn.Conv3d(1, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.PReLU(4))
        self.up = nn.Sequential(nn.Upsample(scale_factor=2, mode="trilinear"), nn.GELU())
        self.out = nn.Sequential(
            nn.InstanceNorm3d(4), nn.Dropout3d(), nn.Conv3d(4, 1, 1), nn.SiLU()
        )

    def forward(self, pet):
        return self.out(self.up(self.down(pet)))


@pytest.mark.parametrize("table", [{}, None], ids=["core", "all"])
def test_decomposed_programs(tmp_path, table):
    patch = torch.rand(2, 1, 6, 8, 4)
    with quiet():
        program = exported(Layers(), patch).run_decompositions(table)
        torch.export.save(program, tmp_path / "net.pt2")
    found = TorchOriginal(program_file.load(tmp_path / "net.pt2")).run([patch[:1].numpy()])[0]
    with torch.no_grad():
        expected = Layers().eval()(patch[:1]).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_programs_from_a_gpu(tmp_path, good):
    def change(program, content):
        for name in ("models/model.json", "data/weights/model_weights_config.json"):
            text = json.dumps(program) if "models" in name else content[name].decode()
            there = text.replace('{"type": "cpu", "index": null}', '{"type": "cuda", "index": 1}')
            assert there != text
            if "models" in name:
                program.clear()
                program.update(json.loads(there))
            else:
                content[name] = there.encode()

    program = program_file.load(altered(good, tmp_path / "net.pt2", change))
    with torch.no_grad():
        expected = Network().eval()(PATCH)["dose"].numpy()
    np.testing.assert_array_equal(TorchOriginal(program).run([PATCH.numpy()])[0], expected)


# Files that mean harm -----------------------------------------------------------------------------
def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}


def write(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"net/{name}", data)
    return path


def altered(good, path, change):
    """Write a program whose JSON, and the archive's members, `change` has had its way with."""
    content = members(good)
    program = json.loads(content["models/model.json"])
    change(program, content)
    content["models/model.json"] = json.dumps(program).encode()
    return write(path, content)


def graph(program):
    return program["graph_module"]["graph"]


class Runs:
    """What a hostile pickle could do."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def code_of(marker):
    return f"open({marker!r}, 'w')"


def in_size(program, content, marker):
    symbol = program["graph_module"]["graph"]["tensor_values"]["pet"]["sizes"][0]
    symbol["as_expr"]["expr_str"] = code_of(marker)


def in_symbol(program, content, marker):
    graph(program)["sym_int_values"]["s"] = {
        "as_expr": {"expr_str": f"Symbol('s1', positive={code_of(marker)})", "hint": None}
    }


def in_name_of_input(program, content, marker):
    bad = f"x=[{code_of(marker)}]"
    graph(program)["inputs"][-3]["as_tensor"]["name"] = bad


def in_name_of_node(program, content, marker):
    graph(program)["nodes"][0]["name"] = f"a = 1\n    {code_of(marker)}\n    b"


def in_name_of_weight(program, content, marker):
    specification = program["graph_module"]["signature"]["input_specs"][0]["parameter"]
    specification["parameter_name"] = f'a"), {code_of(marker)}, ("'


def as_operator(program, content, marker):
    graph(program)["nodes"][0] |= {
        "target": "torch.serialization.os.system",
        "inputs": [{"name": "", "arg": {"as_string": f"touch {marker}"}, "kind": 1}],
    }


def as_aten_operator(program, content, marker):
    graph(program)["nodes"][0] |= {
        "target": "torch.ops.aten.from_file.default",
        "inputs": [
            {"name": "filename", "arg": {"as_string": marker}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
            {"name": "size", "arg": {"as_int": 9}, "kind": 1},
        ],
    }


def as_extension(program, content, marker):
    graph(program)["nodes"][0]["target"] = "#pickle:loads"


def as_attribute(program, content, marker):
    graph(program)["nodes"][0]["target"] = "torch.ops.aten.conv3d.__class__"


def as_higher_order(program, content, marker):
    graph(program)["nodes"][0]["target"] = "torch.ops.higher_order.cond"


def as_argument(program, content, marker):
    argument = {"as_operator": "torch.serialization.os.system"}
    graph(program)["nodes"][0]["inputs"][0]["arg"] = argument


def pickled_weight(program, content, marker):
    config = json.loads(content["data/weights/model_weights_config.json"])
    config["config"]["conv.weight"]["use_pickle"] = True
    content["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    for name in list(content):
        if name.startswith("data/weights/weight_"):
            content[name] = pickle.dumps(Runs(marker))


def old_weights(program, content, marker):
    del content["data/weights/model_weights_config.json"]
    content["data/weights/model.pt"] = pickle.dumps(Runs(marker))


def compiled(program, content, marker):
    content["data/aotinductor/model/wrapper.so"] = b"\x7fELF"


ATTACKS = {
    in_size: "is not plain arithmetic",
    in_symbol: "is not plain arithmetic",
    in_name_of_input: "is no name",
    in_name_of_node: "is no name",
    in_name_of_weight: "names no weight",
    as_operator: "'torch.serialization.os.system' is not one that an import may contain",
    as_aten_operator: "from_file",
    as_extension: "'#pickle:loads'",
    as_attribute: "__class__",
    as_higher_order: "without torch.cond",
    as_argument: "'as_operator' is not supported",
    pickled_weight: "is pickled, which may run code",
    old_weights: "its weights are pickled",
    compiled: "compiled code",
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_refuses_and_runs_nothing(tmp_path, good, attack):
    marker = tmp_path / "executed"
    path = altered(
        good, tmp_path / "net.pt2", lambda program, content: attack(program, content, str(marker))
    )
    with pytest.raises(NetworkImportError, match=r"net\.pt2") as caught:
        program_file.load(path)
    assert ATTACKS[attack] in str(caught.value)
    assert not marker.exists()


def guards(program, content, marker):
    program["guards_code"] = [code_of(marker)]


def sample_inputs(program, content, marker):
    held = io.BytesIO()
    torch.save(Runs(marker), held)
    content["data/sample_inputs/model.pt"] = held.getvalue()


def unused_object(program, content, marker):
    content["data/constants/opaque_obj_0"] = pickle.dumps(Runs(marker))
    config = json.loads(content["data/constants/model_constants_config.json"])
    config["config"]["x"] = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    content["data/constants/model_constants_config.json"] = json.dumps(config).encode()


def metadata(program, content, marker):
    for node in graph(program)["nodes"]:
        node["metadata"]["source_fn_stack"] = "a,torch.serialization.os.system"
        node["metadata"]["custom"] = "]"
        node["metadata"]["stack_trace"] = f'File "x", line 1, in f\r\n{code_of(marker)}\n\0'
    program["graph_module"]["metadata"] = {"custom": "]"}
    program["graph_module"]["treespec_namedtuple_fields"] = {"a": {"field_names": ["b"]}}


def call_structure(program, content, marker):
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["out_spec"] = "[1]"
    signature["forward_arg_names"] = [f"a={code_of(marker)}"]


@pytest.mark.parametrize("extra", [guards, sample_inputs, unused_object, metadata, call_structure])
def test_leaves_out_what_the_network_does_not_need(tmp_path, good, extra):
    marker = tmp_path / "executed"
    path = altered(
        good, tmp_path / "net.pt2", lambda program, content: extra(program, content, str(marker))
    )
    program = program_file.load(path)
    to_onnx(program)
    program.module()(PATCH)  # with all checks that a program carries
    assert not program._guards_code
    with torch.no_grad():
        expected = Network().eval()(PATCH)["dose"].numpy()
    np.testing.assert_array_equal(TorchOriginal(program).run([PATCH.numpy()])[0], expected)
    assert not marker.exists()


@pytest.mark.parametrize("attack", [in_size, guards, sample_inputs], ids=lambda a: a.__name__)
def test_the_attacks_are_real(tmp_path, good, attack):
    """PyTorch's own reader runs these: what the tests above refuse is not harmless anyway."""
    marker = tmp_path / "executed"
    path = altered(
        good, tmp_path / "net.pt2", lambda program, content: attack(program, content, str(marker))
    )
    with quiet(), contextlib.suppress(Exception):
        torch.export.load(path).module()(PATCH)
    assert marker.exists()


def tensor_meta(content, name="conv.weight"):
    config = json.loads(content["data/weights/model_weights_config.json"])
    return config, config["config"][name]["tensor_meta"]


def claim(**changes):
    def change(program, content):
        config, meta = tensor_meta(content)
        for key, value in changes.items():
            numbers = isinstance(value, list)
            meta[key] = [{"as_int": n} for n in value] if numbers else {"as_int": value}
        content["data/weights/model_weights_config.json"] = json.dumps(config).encode()

    return change


def number_argument(values):
    def change(program, content):
        for node in graph(program)["nodes"]:
            for argument in node["inputs"]:
                if "as_ints" in argument["arg"]:
                    argument["arg"]["as_ints"] = values

    return change


def other_version(program, content):
    program["schema_version"]["major"] += 1


def a_version_of_nothing(program, content):
    program["schema_version"] = {"major": 0, "minor": 0}


def missing_weight(program, content):
    config, _ = tensor_meta(content)
    del config["config"]["conv.weight"]
    content["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def missing_member(program, content):
    del content["data/weights/weight_0"]


def not_finite(program, content):
    name = max((n for n in content if "/weight_" in n), key=lambda n: len(content[n]))
    values = np.frombuffer(content[name], "f4").copy()
    values[5] = np.nan
    content[name] = values.tobytes()


def range_of_everything(program, content):
    program["range_constraints"] = {"u99999999999": {"min_val": 0, "max_val": None}}


TEN_GB = 10 << 30
REFUSED = {
    "shape": (claim(sizes=[TEN_GB, 1, 3, 3, 3]), "claims 289910292480 elements"),
    "expanded": (claim(sizes=[TEN_GB, 1, 1, 1, 1], strides=[0] * 5), "claims 10737418240 elements"),
    "stride": (claim(strides=[TEN_GB, 1, 1, 1, 1]), "the file has 108"),
    "offset": (claim(storage_offset=1), "the file has 108"),
    "negative": (claim(sizes=[-4, -1, 3, 3, 3]), "negative"),
    "argument": (number_argument([1 << 20, 1 << 20]), "claims a tensor of 1099511627776 elements"),
    "version": (other_version, "export it again with the PyTorch that is installed"),
    "no version": (a_version_of_nothing, "its format has version 0.0"),
    "weight": (missing_weight, "conv.weight' is missing"),
    "member": (missing_member, "is not in the archive"),
    "not finite": (not_finite, "conv.weight holds NaN"),
    "symbols": (range_of_everything, "u99999999999"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_in_bounded_memory(tmp_path, good, case):
    change, words = REFUSED[case]
    path = altered(good, tmp_path / "net.pt2", change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkImportError) as caught:
        program_file.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_refuses_networks_that_learn(tmp_path):
    with quiet():
        program = torch.export.export(nn.Sequential(nn.BatchNorm3d(1)).train(), (PATCH,))
        torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(NetworkImportError, match=r"batch statistics.*eval"):
        program_file.load(tmp_path / "net.pt2")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"version": b"7.3", "serialized_exported_program.json": b"{}"}, "another version"),
        ({"models/other.json": b"{}"}, "not models/model.json"),
        ({"models/model.json": b"{}", "models/b.json": b"{}"}, "2 programs"),
        ({"data.pkl": b"x"}, "a checkpoint"),
        ({"models/model.json": b"{"}, "JSON"),
        ({"models/model.json": b"[" * 100000}, "JSON"),
        ({"models/model.json": b'{"a": NaN}'}, "NaN"),
        ({"models/model.json": b"[]"}, "is no object"),
        ({"models/model.json": b"{}"}, "has no graph_module"),
    ],
)
def test_refuses_what_is_no_program(tmp_path, content, words):
    with pytest.raises(NetworkImportError, match=r"net\.pt2") as caught:
        program_file.load(write(tmp_path / "net.pt2", content))
    assert words in str(caught.value)


def test_refuses_other_files(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"no zip")
    with pytest.raises(NetworkImportError, match=r"is no \.pt2 file"):
        program_file.load(tmp_path / "net.pt2")


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s0', positive=True, integer=True))",
        "Add(FloorDiv(Symbol('s1', integer=True), Integer(2)), Integer(-1))",
        "2*s0 + 1 - s1//2",
        "Eq(Symbol('s0'), Integer(1))",
    ],
)
def test_plain_arithmetic_passes(text):
    assert expression(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "__import__('os')",
        "s0.__class__",
        "(lambda: 1)()",
        "[s0 for s0 in s1]",
        "s0[1]",
        "Symbol('__import__')",
        "Symbol(s0)",
        "Symbol('s0', cls=s1)",
        "Symbol(*s0)",
        "Integer(**s0)",
        "'s0'",
        "10**10**10",
        "LShift(Integer(1), Integer(1000000000000))",
        "Pow(Integer(10), Integer(1000000000000))",
        "9" * 30,
        "exec",
        "s0; s1",
        "s0 if s1 else s2",
        "s0\x00",
        "(" * 900 + "s0" + ")" * 900,
        "-" * 1999 + "1",
        "x" * 3000,
        "",
        None,
        3,
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(RefusalError, match="plain arithmetic"):
        expression(text)


def test_damaged_programs_are_refused_or_harmless(tmp_path, good):
    """Anything in the JSON may be exchanged for anything else."""
    rng = np.random.default_rng(11)
    content = members(good)
    program = json.loads(content["models/model.json"])
    strange = [None, -1, 1 << 70, "x", "", [], {}, [[]], {"as_int": -1}, True, 1.5, "import os"]
    for _ in range(150):
        damaged = copy.deepcopy(program)
        place, key = damaged, None
        while isinstance(place, (dict, list)) and place and (key is None or rng.random() < 0.85):
            parent = place
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.integers(len(place))
            place = parent[key]
        parent[key] = strange[rng.integers(len(strange))]
        content["models/model.json"] = json.dumps(damaged).encode()
        try:
            program_file.load(write(tmp_path / "net.pt2", content))
        except NetworkImportError as error:
            assert "net.pt2" in str(error)
