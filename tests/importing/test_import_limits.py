# SPDX-License-Identifier: Apache-2.0
"""Imports of files that are large, and of files that are made to do harm."""

import json
import os
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: imports are not tested")
onnx = pytest.importorskip("onnx", reason="ONNX is missing: imports are not tested")
pytest.importorskip("onnxscript", reason="ONNX is missing: imports are not tested")

import torch
from import_networks import PATCH, card_file, left_in, network, write_onnx, write_program
from program import BINARY
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20
# Virtual memory: PyTorch's libraries alone map some GB. A file that claims 10 GB does not fit.
ADDRESS_SPACE = 12 << 30
WIDE = 480  # channels; four 3x3x3 convolutions of them are 99.8 MB


class Wide(nn.Module):
    """A network whose weights, not its voxels, take the memory."""

    def __init__(self, channels=WIDE):
        super().__init__()
        layers = [nn.Conv3d(1, channels, 4, 2, 1), nn.LeakyReLU(0.1)]
        for _ in range(4):
            layers += [nn.Conv3d(channels, channels, 3, padding=1), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose3d(channels, 1, 4, 2, 1))

    def forward(self, x):
        return self.layers(x)


# Running ------------------------------------------------------------------------------------------
def _tree(process):
    """The process and its children, theirs too."""
    found = [process]
    for process in found:
        for tasks in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += [int(child) for child in tasks.read_text().split()]
            except OSError:  # it has ended
                continue
    return found


def _memory(process):
    """Its own share of memory in bytes: what several use is shared among them."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    lines = [line.split() for line in text.splitlines()]
    return 1024 * sum(int(line[1]) for line in lines if line[0] == "Pss:")


def start(folder, source, *options, path=""):
    environment = os.environ | {
        "DOSEMAP_BIN": str(BINARY),
        "PYTHONPATH": os.pathsep.join((str(ROOT / "tools"), str(Path(__file__).parent), path)),
    }
    command = [sys.executable, "-m", "dosemap_tools.importing.command", str(source)]
    command += ["-o", str(folder / "net.safetensors.zst"), *map(str, options)]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE,) * 2),
    )


def run(folder, source, *options):
    """Import in a process of its own; return status, message, peak memory and seconds."""
    begin, peak = time.monotonic(), 0
    running = start(folder, source, *options, path=str(Path(__file__).parents[1] / "support"))
    while running.poll() is None:
        peak = max(peak, sum(map(_memory, _tree(running.pid))))
        time.sleep(0.02)
    return running.returncode, running.stderr.read(), peak, time.monotonic() - begin


# Large --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A network of 99.8 MB and a small one of the same layers, as files of each kind."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    for name, channels in (("large", WIDE), ("small", 4)):
        module = Wide(channels).eval()
        torch.save(module.state_dict(), folder / f"{name}.pt")
        write_onnx(folder / f"{name}.onnx", module, patch=(16, 16, 16))
        write_program(folder / f"{name}.pt2", module, patch=(16, 16, 16))
    return folder


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".pt"])
def test_a_network_of_100_mb_takes_less_than_three_times_that(tmp_path, wide, suffix):
    """More than a small network does, which is what Python and its libraries take."""
    card = ("--card", card_file(tmp_path, patch_size=[16, 16, 16]))
    peaks = []
    for name, channels in (("small", 4), ("large", WIDE)):
        spec = ("--network", f"test_import_limits:Wide({channels})") * (suffix == ".pt")
        status, said, peak, seconds = run(tmp_path, wide / f"{name}{suffix}", *card, *spec)
        assert status == 0, said
        print(f"{name}{suffix}: {peak / MB:.0f} MiB, {seconds:.1f} s")
        peaks.append(peak)
    size = (wide / "large.pt").stat().st_size
    assert 99e6 < size < 101e6
    assert peaks[1] - peaks[0] < 3 * size
    made = tmp_path / "net.safetensors.zst"
    assert 80e6 < made.stat().st_size < size, "all weights are in it"


# Harmful ------------------------------------------------------------------------------------------
class Marker:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def rewritten(source, target, change):
    """A zip file again, with members changed by change(name, content)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def pickle_in_checkpoint(folder, marker):
    state = network().state_dict()
    torch.save({"state_dict": state, "callbacks": Marker(marker)}, folder / "a.ckpt")
    return folder / "a.ckpt"


def plain_pickle(folder, marker):
    (folder / "a.pt").write_bytes(pickle.dumps({"weight": Marker(marker)}))
    return folder / "a.pt"


def old_pickle(folder, marker):
    state = network().state_dict() | {"extra": Marker(marker)}
    torch.save(state, folder / "a.pth", _use_new_zipfile_serialization=False)
    return folder / "a.pth"


def bomb(path, members):
    """An archive whose members are a GB of zeros each, which compress to a thousandth."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for member in members:
            with archive.open(member, "w", force_zip64=True) as file:
                for _ in range(1024):
                    file.write(bytes(MB))
    assert path.stat().st_size < 4 * MB
    return path


def checkpoint_bomb(folder, marker):
    return bomb(folder / "a.pt", ("archive/data.pkl", "archive/data/0"))


def program_bomb(folder, marker):
    return bomb(folder / "a.pt2", ("a/models/model.json", "a/data/weights/weight_0"))


def edited_onnx(folder, change):
    model = onnx.load(write_onnx(folder / "a.onnx", network()))
    change(max(model.graph.initializer, key=lambda t: len(t.raw_data)))
    (folder / "a.onnx").write_bytes(model.SerializeToString())
    return folder / "a.onnx"


def outside(folder, marker):
    secret = folder.parent / f"{folder.name}_secret.bin"
    secret.write_bytes(bytes(10 * MB))

    def change(tensor):
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"../{secret.name}")

    return edited_onnx(folder, change)


def ten_gigabytes(folder, marker):
    def change(tensor):
        del tensor.dims[:]
        tensor.dims.extend([10, 1 << 14, 1 << 14])

    return edited_onnx(folder, change)


def ten_gigabytes_in_program(folder, marker):
    good = write_program(folder / "good.pt2", network())
    changed = []

    def change(name, content):
        if b'"sizes"' in content and content.lstrip()[:1] == b"{":
            changed.append(name)
            old = b'{"as_int": 5}'
            assert old in content, "the channels"
            return content.replace(old, b'{"as_int": 1000000000}')
        return content

    rewritten(good, folder / "a.pt2", change)
    good.unlink()
    assert changed
    return folder / "a.pt2"


def safetensors_claim(folder, marker):
    entry = {"dtype": "F32", "shape": [10, 1 << 14, 1 << 14], "data_offsets": [0, 10 << 30]}
    header = json.dumps({"weight": entry}).encode()
    (folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    return folder / "a.safetensors"


def header_claim(folder, marker):
    (folder / "a.safetensors").write_bytes((10 << 30).to_bytes(8, "little") + b"{}")
    return folder / "a.safetensors"


def nan_in_onnx(folder, marker):
    def change(tensor):
        tensor.raw_data = np.float32(np.nan).tobytes() + tensor.raw_data[4:]

    return edited_onnx(folder, change)


def nan_in_state(folder, marker):
    state = network().state_dict()
    state["first.weight"][0, 0, 1, 1, 0] = float("inf")
    torch.save(state, folder / "a.pt")
    return folder / "a.pt"


def nan_in_program(folder, marker):
    module = network()
    with torch.no_grad():
        module.last.bias[0] = float("nan")
    return write_program(folder / "a.pt2", module)


def cut_off(folder, marker):
    path = write_onnx(folder / "a.onnx", network())
    path.write_bytes(path.read_bytes()[:-100])
    return path


HARMFUL = [
    (pickle_in_checkpoint, "a pickle that wants to call or build 'posix.mkdir'"),
    (plain_pickle, "is a plain pickle"),
    (old_pickle, "is a plain pickle"),
    (checkpoint_bomb, "'archive/data.pkl' is compressed"),
    (program_bomb, "'a/models/model.json' is compressed"),
    (outside, "outside the model's folder"),
    (ten_gigabytes, "should have 10737418240 bytes"),
    (ten_gigabytes_in_program, "claims 1000000000 elements"),
    (safetensors_claim, "claims 10737418240 bytes"),
    (header_claim, "claims 10737418240 bytes"),
    (nan_in_onnx, "'first.weight' holds NaN or infinity"),
    (nan_in_state, "first.weight holds NaN or infinite"),
    (nan_in_program, "last.bias holds NaN or infinite"),
    (cut_off, "is damaged or cut off: "),
]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """What a good import takes."""
    folder = tmp_path_factory.mktemp("usual")
    source = write_program(folder / "a.pt2", network())
    status, said, peak, _ = run(folder, source, "--card", card_file(folder))
    assert status == 0, said
    return peak


@pytest.mark.parametrize(("make", "words"), HARMFUL, ids=lambda v: getattr(v, "__name__", ""))
def test_a_file_that_is_made_to_do_harm(tmp_path, usual, make, words):
    """Refused with a message; nothing is executed, nothing written, and memory is bounded."""
    marker = tmp_path / "executed"
    source = make(tmp_path, marker)
    card = card_file(tmp_path, patch_size=list(PATCH))
    before = left_in(tmp_path)
    state = source.suffix not in (".onnx", ".pt2")
    options = ("--network", "import_networks:Lopsided") if state else ()
    status, said, peak, _ = run(tmp_path, source, "--card", card, *options)
    assert status == 1, said
    assert said.startswith("dosemap-import: ") and source.name in said and words in said, said
    assert "Traceback" not in said and "DOSEMAP_TRACEBACK" not in said, said
    assert not marker.exists()
    assert left_in(tmp_path) == before
    assert peak < usual + 100 * MB


def test_pickles_in_a_program_are_not_read(tmp_path):
    """torch.export keeps its sample inputs as a pickle, which an import has no use for."""
    marker = tmp_path / "executed"
    good = write_program(tmp_path / "good.pt2", network())
    torch.save(Marker(marker), tmp_path / "evil.pt")
    evil, replaced = (tmp_path / "evil.pt").read_bytes(), []

    def change(name, content):
        if content[:4] != b"PK\x03\x04":
            return content
        replaced.append(name)
        return evil

    source = rewritten(good, tmp_path / "a.pt2", change)
    assert replaced
    status, said, _, _ = run(tmp_path, source, "--card", card_file(tmp_path))
    assert status == 0, said
    assert not marker.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert marker.is_dir(), "the pickle is what it is said to be"
