# SPDX-License-Identifier: Apache-2.0
"""State dicts of all kinds, the right one of a checkpoint, and files that mean harm."""

import collections
import json
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: its files are not read")

import torch
from dosemap_tools.importing import checkpoint
from dosemap_tools.importing.network import NetworkImportError
from dosemap_tools.importing.torch_network import load_weights, wanted_shapes
from program import ROOT
from safetensors.torch import save_file, save_model
from torch import nn


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 1, 1))


def discriminator():
    return nn.Sequential(nn.Conv3d(2, 8, 4), nn.Conv3d(8, 1, 4))


WANTED = wanted_shapes(network())


def prefixed(state, prefix):
    return collections.OrderedDict((prefix + name, values) for name, values in state.items())


def read(path, **options):
    notes = []
    held = checkpoint.load(path, **options)
    return checkpoint.fit(held, WANTED, str(path), notes), notes


def assert_is(found, state):
    assert found.keys() == state.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(np.asarray(values), state[name].numpy())


STATE = network().state_dict()
OTHER = prefixed(discriminator().state_dict(), "discriminator.")
OPTIMISER = {"state": {0: {"exp_avg": torch.ones(4, 1, 3, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
CHECKPOINTS = {
    "plain": (STATE, []),
    "parameters": (dict(network().named_parameters()) | dict(network().named_buffers()), []),
    "data parallel": (prefixed(STATE, "module."), ["'module.'"]),
    "compiled": (prefixed(STATE, "_orig_mod.module."), ["'_orig_mod.module.'"]),
    "Lightning": (
        {
            "epoch": 3,
            "state_dict": prefixed(STATE, "generator.") | OTHER,
            "optimizer_states": [OPTIMISER],
            "lr_schedulers": [{"milestones": collections.Counter({3: 1})}],
            "hyper_parameters": {"lr": 0.1, "channels": (4, 8)},
            "loops": {"fit_loop": {"state_dict": {}}},
        },
        ["'state_dict'", "'generator.'", "4 tensors of other parts were left out: discriminator"],
    ),
    "nnU-Net": (
        {"network_weights": STATE, "optimizer_state": OPTIMISER, "current_epoch": 1000},
        ["'network_weights'"],
    ),
    "two networks": (
        {"netG": STATE, "netD": discriminator().state_dict(), "step": 5},
        ["'netG'"],
    ),
    "nested": ({"networks": {"g": {"weights": STATE}}}, ["'networks.g.weights'"]),
    "half": ({name: v.half() if v.is_floating_point() else v for name, v in STATE.items()}, []),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("ending", ["pt", "bin", "ckpt"])
def test_finds_the_state_dict(tmp_path, kind, ending):
    content, words = CHECKPOINTS[kind]
    path = tmp_path / f"net.{ending}"
    torch.save(content, path)
    found, notes = read(path)
    expected = dict(STATE)
    if kind == "half":
        expected = {k: v.half().float() if v.is_floating_point() else v for k, v in STATE.items()}
    assert_is(found, expected)
    for word in words:
        assert any(word in note for note in notes), notes
    assert kind != "half" or any("float16" in note for note in notes)
    assert kind != "plain" or not notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_safetensors(tmp_path, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in STATE.items()}
    save_file(prefixed(state, "module."), tmp_path / "net.safetensors")
    found, notes = read(tmp_path / "net.safetensors")
    assert_is(found, {k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    assert any("became float32" in note for note in notes) == (dtype != torch.float32)


def test_safetensors_need_no_pytorch(tmp_path):
    save_file(STATE, tmp_path / "net.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from dosemap_tools.importing import checkpoint\n"
        f"print(len(checkpoint.load(Path({str(tmp_path / 'net.safetensors')!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tools", capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == len(STATE)


def test_weights_are_those_of_the_module(tmp_path):
    torch.save(prefixed(STATE, "module."), tmp_path / "net.pt")
    found, _ = read(tmp_path / "net.pt")
    torch.manual_seed(7)
    module = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 1, 1))
    load_weights(module, found)
    patch = torch.rand(2, 1, 5, 5, 5)
    with torch.no_grad():
        assert torch.equal(module(patch), network().eval()(patch))


class Shared(nn.Module):
    """A layer under two names, and a tensor in two layers, as nnU-Net's networks have them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(2, 2, 1)
        self.again, self.second = self.first, nn.Conv3d(2, 2, 1)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.again(x))


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_tensors_that_are_the_same(tmp_path, ending):
    torch.manual_seed(5)
    trained, path = Shared(), tmp_path / f"net.{ending}"
    if ending == "pt":
        torch.save(trained.state_dict(), path)
    else:
        save_model(trained, str(path))
        assert len(checkpoint.load(path)) == 3
    module = Shared()
    load_weights(module, checkpoint.load_state_dict(path, wanted_shapes(module)))
    patch = torch.rand(1, 2, 3, 3, 3)
    with torch.no_grad():
        assert torch.equal(module(patch), trained(patch))


def test_counters_of_batch_norm_are_not_needed(tmp_path):
    state = {k: v for k, v in STATE.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "net.pt")
    assert_is(read(tmp_path / "net.pt")[0], state)


def refusal(path, **options):
    with pytest.raises(NetworkImportError) as caught:
        read(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_asks_which_one(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"state_dict": STATE, "ema": prefixed(STATE, "model.")}, path)
    message = refusal(path)
    assert "--key 'state_dict' --prefix ''" in message
    assert "--key 'ema' --prefix 'model.'" in message
    assert_is(read(path, key="ema")[0], STATE)
    assert_is(read(path, key="ema", prefix="model.")[0], STATE)
    assert "no state dict is at --key 'best'" in refusal(path, key="best")
    assert "missing" in refusal(path, key="ema", prefix="net.")


def changed(**changes):
    return {k: v for k, v in (dict(STATE) | changes).items() if v is not None}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (changed(**{"2.bias": None}), ["missing: 2.bias (1,)"]),
        (changed(**{"extra.weight": torch.zeros(2)}), ["unexpected: extra.weight (2,)"]),
        (
            changed(**{"2.weight": torch.zeros(1, 4, 3, 3, 3)}),
            ["shape of 2.weight: (1, 4, 3, 3, 3), expected (1, 4, 1, 1, 1)"],
        ),
        (changed(**{"2.bias": torch.tensor([float("nan")])}), ["2.bias", "NaN", "earlier"]),
        (changed(**{"2.bias": torch.tensor([float("-inf")])}), ["2.bias", "infinite"]),
        (changed(**{"2.bias": torch.zeros(1).to_sparse()}), ["sparse", "to_dense"]),
        (
            changed(**{"2.bias": torch.quantize_per_tensor(torch.zeros(1), 0.1, 0, torch.qint8)}),
            ["quantised"],
        ),
        (changed(**{"2.bias": torch.zeros(1, dtype=torch.complex64)}), ["ComplexFloatStorage"]),
        (changed(**{"0.weight": torch.zeros(1).expand(4, 1, 3, 3, 3)}), ["claims 108 elements"]),
        ([1, 2], ["holds no state dict", "torch.save"]),
        ({"best": np.zeros(3)} | STATE, ["numpy", "any code", "model.state_dict()"]),
        (network(), ["Sequential", "any code", "safetensors"]),
    ],
)
def test_refuses(tmp_path, state, words):
    torch.save(state, tmp_path / "net.pt")
    message = refusal(tmp_path / "net.pt")
    assert all(word in message for word in words), message


NUMBERS = [np.float32(0.5), np.float64(3), np.int64(-7), np.uint8(200), np.bool_(True)]


def test_numbers_of_numpy(tmp_path):
    """As nnU-Net keeps them beside its weights."""
    state = {"network_weights": STATE, "logging": {"dice": NUMBERS}, "_best_ema": NUMBERS[1]}
    torch.save(state, tmp_path / "checkpoint_final.pth")
    found, _ = read(tmp_path / "checkpoint_final.pth")
    assert_is(found, {name: t for name, t in STATE.items() if name in found})
    assert found.keys() >= {"0.weight", "1.running_var", "2.bias"}


class Calls:
    """A call of a function of numpy that its numbers need, with other arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


SCALAR = np.float64(0).__reduce__()[0]


@pytest.mark.parametrize(
    "hostile",
    [
        Calls(SCALAR, np.dtype("f8"), b"short"),
        Calls(SCALAR, np.dtype("O"), b"12345678"),
        Calls(SCALAR, np.dtype("V1000"), b"0" * 1000),
        Calls(np.dtype, "f8,f8"),
        Calls(np.dtype, [("a", "f8")]),
        Calls(np.dtype, "f8", False, True, {"a": 1}),
    ],
)
def test_refuses_what_is_no_number(tmp_path, hostile):
    torch.save(STATE | {"a": hostile}, tmp_path / "net.pt")
    message = refusal(tmp_path / "net.pt")
    assert "numpy" in message or "dtype" in message, message


def with_pickle(path, data):
    """Write a checkpoint whose pickle is `data`."""
    torch.save(STATE, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as whole, zipfile.ZipFile(path, "w") as made:
        for name in whole.namelist():
            made.writestr(name, data if name.endswith("data.pkl") else whole.read(name))


COPIES = [b"h\x03h\x01\x85R"] * 999


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x02" + b"}" * (5 << 20) + b".", "steps"),
        (  # a list of pairs, of which each step of five bytes makes a dict
            b"\x80\x02}q\x00(X\x01\x00\x00\x00w]q\x01(" + b"K\x01K\x02\x86" * 20000
            + b"eu]q\x02(ccollections\nOrderedDict\nq\x03h\x01\x85R" + b"".join(COPIES) + b"e.",
            "items",
        ),
    ],
)  # fmt: skip
def test_refuses_what_grows(tmp_path, data, words):
    path = tmp_path / "net.pt"
    with_pickle(path, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert "more than" in message and words in message, message
    assert grown < 100_000, f"{grown} kB more"


class Runs:
    """What a hostile pickle could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", [2, 4])
def test_executes_nothing(tmp_path, protocol):
    marker, path = tmp_path / "executed", tmp_path / "net.pt"
    torch.save(STATE | {"a": Runs(str(marker))}, path, pickle_protocol=protocol)
    message = refusal(path)
    assert "open" in message or "STACK_GLOBAL" in message or "FRAME" in message
    assert "weights.pt" in message
    path.write_bytes(pickle.dumps({"a": Runs(str(marker))}))
    assert "plain pickle" in refusal(path)
    assert not marker.exists()


def test_refuses_old_files(tmp_path):
    path = tmp_path / "net.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    assert "before 1.6" in refusal(path)
    (tmp_path / "member").write_bytes(b"x")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "member", "sys_info")
    assert "tar" in refusal(path)
    torch.jit.script(network()).save(str(path))
    assert "TorchScript" in refusal(path)
    torch.export.save(torch.export.export(network().eval(), (torch.zeros(1, 1, 5, 5, 5),)), path)
    assert ".pt2" in refusal(path)
    path.write_bytes(b"")
    assert "no file of torch.save" in refusal(path)


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def write_zip(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content:
            archive.writestr(name, data)


def overlapping(path, content, root):
    """Write an archive that lists a member inside of another one, a second time."""
    inner = zipfile.ZipInfo(f"{root}/inner")
    inner.file_size = inner.compress_size = 4
    inner.CRC = 0
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.writestr(f"{root}/outer", inner.FileHeader() + b"data")
        outer = archive.getinfo(f"{root}/outer")
        inner.header_offset = outer.header_offset + 30 + len(outer.filename)
        archive.filelist.append(inner)
    return path


def hostile_archives(folder, good):
    """Yield (name of the attack, file, words of the refusal)."""
    path = folder / "net.pt"
    content = members(good)

    def put(extra=(), compression=zipfile.ZIP_STORED):
        write_zip(path, [*content.items(), *extra], compression)
        return path

    root = next(iter(content)).split("/")[0]
    yield "bomb", put([(f"{root}/x", bytes(1 << 20))], zipfile.ZIP_DEFLATED), "is compressed"
    with pytest.warns(UserWarning, match="Duplicate"):
        yield "twice", put([(f"{root}/data.pkl", b"x")]), "twice"
    yield "climbs", put([(f"{root}/../../x", b"x")]), "is called"
    yield "absolute", put([("/etc/x", b"x")]), "is called"
    yield "elsewhere", put([("other/x", b"x")]), "one folder"
    data = put().read_bytes()
    path.write_bytes(data + b"x")
    yield "followed", path, "follows it"
    path.write_bytes(data[:-100])
    yield "cut", path, "cut off"
    yield "overlap", overlapping(path, content, root), "overlaps another member"
    end = bytearray(data)
    struct.pack_into("<H", end, len(end) - 12, 3)
    path.write_bytes(end)
    yield "count", path, "archive"
    sizes = bytearray(data)
    at = sizes.rindex(b"PK\1\2")
    struct.pack_into("<II", sizes, at + 20, 10 << 26, 10 << 26)
    path.write_bytes(sizes)
    yield "size", path, "reaches beyond"
    name = bytearray(data)
    name[30] ^= 1
    path.write_bytes(name)
    yield "local name", path, "differs"


def test_refuses_hostile_archives(tmp_path):
    torch.save(STATE, tmp_path / "good.pt")
    seen = 0
    for attack, path, words in hostile_archives(tmp_path, tmp_path / "good.pt"):
        if attack == "count":  # which the directory's length contradicts, or its reader notices
            with pytest.raises(NetworkImportError):
                read(path)
        else:
            assert words in refusal(path), attack
        seen += 1
    assert seen == 11


class Steps:
    """A pickle written step by step."""

    def __init__(self):
        self.data = b"\x80\x02"

    def call(self, name, arguments):
        module, _, function = name.rpartition(".")
        self.data += f"c{module}\n{function}\n".encode() + arguments + b"R"
        return self

    def file(self, path, storage=b""):
        content = {"net/data.pkl": self.data + b".", "net/byteorder": b"little"}
        content |= {"net/version": b"3\n", "net/data/0": storage}
        write_zip(path, content.items())
        return path


def storage(elements, key=b"0", kind=b"FloatStorage"):
    return (
        b"(U\x07storagectorch\n"
        + kind
        + b"\nU\x01"
        + key
        + b"U\x03cpu\x8a\x08"
        + struct.pack("<q", elements)
        + b"tQ"
    )


def tensor(elements, sizes, strides, offset=0):
    def numbers(values):
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in values) + b"t"

    return (
        b"("
        + storage(elements)
        + b"\x8a\x08"
        + struct.pack("<q", offset)
        + numbers(sizes)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)Rt"
    )


TENSOR = "torch._utils._rebuild_tensor_v2"
BIG = 10 << 30
CLAIMS = {
    "storage": (tensor(BIG // 4, [BIG // 4], [1]), "claims 10737418240 bytes; the file has 16"),
    "expanded": (tensor(4, [BIG], [0]), "claims 10737418240 elements; its storage has 4"),
    "longer": (tensor(4, [BIG], [1]), "claims 10737418240 elements; its storage has 4"),
    "offset": (tensor(4, [2], [1], BIG), "its storage has 4"),
    "stride": (tensor(4, [2, 2], [1, BIG]), "its storage has 4"),
    "negative": (tensor(4, [-2], [1]), "negative"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_refuses_claims_in_bounded_memory(tmp_path, claim):
    arguments, words = CLAIMS[claim]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = Steps().call(TENSOR, arguments).file(tmp_path / "net.pt", bytes(16))
    assert words in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_the_archive_of_the_claims_is_one_that_would_be_read(tmp_path):
    steps = Steps()
    steps.data += b"}U\x01a"
    steps.call(TENSOR, tensor(4, [4], [1]))
    steps.data += b"s"
    path = steps.file(tmp_path / "net.pt", np.arange(4, dtype="f4").tobytes())
    found = checkpoint.load(path)
    np.testing.assert_array_equal(next(iter(found.values())).numpy(), np.arange(4))


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (
            Steps().call("builtins.bytearray", b"(\x8a\x05" + (BIG).to_bytes(5, "little") + b"t"),
            "bytearray",
        ),
        (
            Steps().call("torch.FloatTensor", b"(\x8a\x05" + (BIG).to_bytes(5, "little") + b"t"),
            "FloatTensor",
        ),
        (Steps().call("os.system", b"(U\x04truet"), "os.system"),
        (Steps().call("torch.nn.parameter.Parameter", b")"), "Parameter"),
    ],
    ids=["bytearray", "tensor", "system", "parameter"],
)
def test_refuses_calls(tmp_path, steps, words):
    assert words in refusal(steps.file(tmp_path / "net.pt"))


def test_refuses_keys_that_take_for_ever(tmp_path):
    steps = Steps()
    steps.data += b"})" + b"q\x00h\x00\x86" * 200  # pairs of pairs: 2^200 steps to hash
    steps.data += b"Ns"
    assert "a key of the type tuple" in refusal(steps.file(tmp_path / "net.pt"))


def safetensors_file(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "length", "words"),
    [
        ({"a": entry()}, BIG, "header claims 10737418240 bytes"),
        ({"a": entry(shape=(BIG // 4,), end=BIG)}, None, "claims 10737418240 bytes"),
        ({"a": entry(shape=(BIG // 4,))}, None, "claims 10737418240 bytes"),
        ({"a": entry(), "b": entry()}, None, "b claims 8 bytes at 0"),
        ({"a": entry(shape=(1,), end=4)}, None, "end at 4"),
        ({"a": entry(shape=(-1, -2))}, None, "a claims"),
        ({"a": entry(dtype="X")}, None, "type 'X'"),
        ({"a": {"dtype": "F32"}}, None, "damaged at 'a'"),
        ({"a": 3}, None, "damaged at 'a'"),
        (b'{"a": 1, "a": 2}', None, "twice"),
        (b"[1]", None, "no object"),
        (b"[" * 100000, None, "JSON"),
        (b"{}", None, "end at 0"),
    ],
)
def test_refuses_safetensors(tmp_path, header, length, words):
    path = safetensors_file(tmp_path / "net.safetensors", header, bytes(8), length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_every_damaged_byte_is_refused_or_harmless(tmp_path):
    torch.save(STATE, tmp_path / "good.pt")
    good, path = (tmp_path / "good.pt").read_bytes(), tmp_path / "net.pt"
    rng = np.random.default_rng(5)
    for _ in range(300):
        data = bytearray(good)
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            read(path)
        except NetworkImportError as error:
            assert str(path) in str(error)
