# SPDX-License-Identifier: Apache-2.0
"""The weights file: written, read back, and refused where it is damaged. numpy only."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("zstandard", reason="zstandard is missing: weights files are not tested")
pytest.importorskip("xxhash", reason="xxhash is missing: weights files are not tested")

from dosemap_tools import constructed, weights_file
from dosemap_tools.weights_file import WeightsFileError

ROOT = Path(__file__).resolve().parents[2]
GRAPH = {"graph_version": 1, "name": "t", "nodes": []}
CARD = {"name": "t", "skip_air": None, "summary": "größer"}
TENSORS = {
    "b": np.linspace(-2, 2, 24, dtype=np.float32).reshape(1, 2, 3, 4, 1),
    "a": np.float32(0.25),
    "c.one": np.full((1, 1), -3.0, np.float32),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".safetensors.zst"])
@pytest.mark.parametrize(("dtype", "step"), [("F32", 0.0), ("F16", 2**-11), ("BF16", 2**-8)])
def test_round_trip(tmp_path, suffix, dtype, step):
    path = tmp_path / f"w{suffix}"
    weights_file.write(path, GRAPH, CARD, {"made_by": "test"}, TENSORS, dtype)
    read = weights_file.read(path)
    assert (read.graph, read.card, read.provenance) == (GRAPH, CARD, {"made_by": "test"})
    assert read.dtype == dtype
    for name, values in TENSORS.items():
        assert read.tensors[name].shape == np.shape(values)
        np.testing.assert_allclose(read.tensors[name], values, rtol=step, atol=0)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bytes_depend_on_content_only():
    reverse = dict(reversed(list(TENSORS.items())))
    first = weights_file.encode(GRAPH, CARD, {}, TENSORS)
    assert first == weights_file.encode(GRAPH, CARD, {}, reverse)
    length = int.from_bytes(first[:8], "little")
    assert length % 8 == 0
    header = json.loads(first[8 : 8 + length])
    assert [k for k in header if k != "__metadata__"] == ["a", "b", "c.one"]
    assert header["b"] == {"dtype": "F32", "shape": [1, 2, 3, 4, 1], "data_offsets": [4, 100]}


@pytest.mark.parametrize("suffix", [".safetensors", ".safetensors.zst"])
def test_rewrite_changes_the_card_alone(tmp_path, suffix):
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    for path in (first, second):
        weights_file.write(path, GRAPH, CARD, {"made_by": "test"}, TENSORS)
    assert first.read_bytes() == second.read_bytes()
    weights_file.rewrite(first, second, CARD | {"more": "x" * 100}, {"made_by": "again"})
    read, before = weights_file.read(second), weights_file.read(first)
    assert (read.card, read.provenance) == (CARD | {"more": "x" * 100}, {"made_by": "again"})
    assert (read.graph, read.xxh64, read.dtype) == (before.graph, before.xxh64, before.dtype)
    for name, values in before.tensors.items():
        assert read.tensors[name].tobytes() == values.tobytes()
    weights_file.rewrite(second, second, CARD, {"made_by": "test"})
    assert second.read_bytes() == first.read_bytes()


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    """Tensors that are made when they are asked for never lie in memory together."""

    class Lazy(dict):
        def __getitem__(self, name):
            return np.full((1 << 20,), float(name), np.float32)

    tensors = Lazy({str(i): None for i in range(24)})
    tracemalloc.start()
    weights_file.write(tmp_path / "w.safetensors.zst", GRAPH, CARD, {}, tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 4 << 20 <= peak < 16 << 20
    assert weights_file.read(tmp_path / "w.safetensors.zst").tensors["7"][-1] == 7.0


def test_bf16_rounds_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -1.004, 3.4e38], np.float32)
    expected = np.array([1.0, 1.0, 1.015625, -1.0078125, np.inf], np.float32)
    result = weights_file.from_bf16_bits(weights_file.to_bf16_bits(values))
    np.testing.assert_array_equal(result, expected)
    assert np.isnan(weights_file.from_bf16_bits(weights_file.to_bf16_bits(np.float32([np.nan]))))


@pytest.mark.parametrize(
    ("tensors", "dtype", "words"),
    [
        ({"x": np.float32([np.nan])}, "F32", "x holds NaN"),
        ({"x": np.float32([1e6])}, "F16", "too large for F16"),
        ({"x": np.float32([3.4e38])}, "BF16", "too large for BF16"),
        ({"x": np.zeros((1,) * 6)}, "F32", "6 dimensions"),
        ({"x": np.zeros(1)}, "F64", "dtype is 'F64'"),
        ({"x": np.zeros((0, 3))}, "F32", r"shape \(0, 3\)"),
    ],
)
def test_refuses_to_write(tmp_path, tensors, dtype, words):
    with pytest.raises(WeightsFileError, match=words):
        weights_file.write(tmp_path / "w.safetensors", GRAPH, CARD, {}, tensors, dtype)
    assert not list(tmp_path.iterdir())


def damaged():
    good = weights_file.encode(GRAPH, CARD, {}, TENSORS)
    flipped = bytearray(good)
    flipped[-1] ^= 1
    yield "nothing", b"", "0 bytes"
    yield "cut in the header", good[:40], "header claims"
    yield "cut in the data", good[:-4], "checksum"
    yield "one bit", bytes(flipped), "checksum"
    yield "too much", good + b"\0", "checksum"
    yield "version", good.replace(b'format":"1"', b'format":"2"'), "dosemap.format is '2'"
    yield "overlap", good.replace(b"[4,100]", b"[0,100]"), "tensor b lies at 0"
    yield "twice", good.replace(b'"a":{', b'"b":{'), "occurs twice"


@pytest.mark.parametrize(
    ("data", "words"), [d[1:] for d in damaged()], ids=[d[0] for d in damaged()]
)
def test_refuses_to_read(data, words):
    with pytest.raises(WeightsFileError, match=words):
        weights_file.decode(data)


def test_frame_without_checksum_is_refused(tmp_path):
    import zstandard

    data = weights_file.encode(GRAPH, CARD, {}, TENSORS)
    plain = zstandard.ZstdCompressor(write_checksum=False).compress(data)
    (tmp_path / "w.safetensors.zst").write_bytes(plain)
    with pytest.raises(WeightsFileError, match="checksum"):
        weights_file.read(tmp_path / "w.safetensors.zst")


@pytest.mark.parametrize("network", sorted(constructed.CHANNELS))
def test_shipped_weights_are_those_that_the_script_makes(network):
    """The content, not the bytes of the frame, which depend on the version of zstd."""
    path = ROOT / f"weights/{network}-constructed.safetensors.zst"
    made = weights_file.encode(*constructed.contents(network))
    assert weights_file.decompress(path.read_bytes()) == made
    assert path.stat().st_size < 20_000


def test_parts_of_k_are_exact_in_bf16():
    parts = constructed.bf16_parts(0.027)
    assert sum(map(float, parts)) == pytest.approx(0.027, rel=1e-7)
    for part in parts:
        bits = weights_file.to_bf16_bits(np.array([part]))
        assert weights_file.from_bf16_bits(bits)[0] == part


def test_cards_say_what_the_weights_are():
    for network in constructed.CHANNELS:
        card = constructed.card(network)
        text = json.dumps(card)
        assert card["trained"] is False
        assert card["skip_air"] is None
        for words in ("NOT TRAINED", "0.027", "not for clinical decisions", "assumed"):
            assert words in text


def test_without_xxhash_only_the_checksum_is_left_out(monkeypatch):
    data = weights_file.encode(GRAPH, CARD, {"made_by": "test"}, TENSORS)
    monkeypatch.setattr(weights_file, "xxhash", None)
    with pytest.raises(WeightsFileError, match="xxhash is missing"):
        weights_file.decode(data)
    read = weights_file.decode(data, check=False)
    assert read.tensors["b"].tobytes() == TENSORS["b"].tobytes()
    with pytest.raises(WeightsFileError, match="lies at"):
        weights_file.decode(data[:-4], check=False)
