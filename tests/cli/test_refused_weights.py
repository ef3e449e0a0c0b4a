# SPDX-License-Identifier: Apache-2.0
"""Weights files that break the format of weights/FORMAT.md, one fault each."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard
from conftest import (
    QUICK,
    SUV_78,
    TINY_CARD,
    assert_refused,
    dosemap,
    tiny_graph,
    tiny_weights,
)

Graph = dict
Change = Callable[[dict], object]


def container(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def parts() -> tuple[dict, Graph, bytes]:
    """The header, the graph that belongs into it, and the data of a good file."""
    data = tiny_weights()["w"].tobytes()
    header = {
        "__metadata__": {
            "dosemap.format": "1",
            "dosemap.card": json.dumps(TINY_CARD),
            "dosemap.provenance": "{}",
            "dosemap.xxh64": xxhash.xxh64_hexdigest(data, seed=0),
        },
        "w": {"dtype": "F32", "shape": [1, 1, 3, 3, 3], "data_offsets": [0, len(data)]},
    }
    return header, tiny_graph(), data


def with_header(change: Change) -> bytes:
    header, graph, data = parts()
    header["__metadata__"]["dosemap.graph"] = json.dumps(graph)
    change(header)
    return container(json.dumps(header).encode(), data)


def with_tensor(**fields: object) -> bytes:
    return with_header(lambda header: header["w"].update(fields))


def with_metadata(**fields: object) -> bytes:
    given = {f"dosemap.{key}": value for key, value in fields.items()}
    return with_header(lambda header: header["__metadata__"].update(given))


def with_graph(change: Change) -> bytes:
    graph = tiny_graph()
    change(graph)
    return with_metadata(graph=json.dumps(graph))


def with_node(**fields: object) -> bytes:
    return with_graph(lambda graph: graph["nodes"][0].update(fields))


def with_attributes(**fields: object) -> bytes:
    return with_graph(lambda graph: graph["nodes"][0]["attributes"].update(fields))


def two_tensors(first: list[int], second: list[int]) -> bytes:
    def change(header: dict) -> None:
        header["w"]["data_offsets"] = first
        header["v"] = {**header["w"], "data_offsets": second}

    return with_header(change)


def cyclic(graph: Graph) -> None:
    """The first node takes the second one's output, the second one the first one's."""
    graph["nodes"][0]["inputs"] = ["dose", "w"]


def text_with(old: bytes, new: bytes) -> bytes:
    """The good file with a piece of its header's text replaced."""
    good = with_header(lambda header: None)
    assert good.count(old) >= 1
    header = good[8 : 8 + int.from_bytes(good[:8], "little")].replace(old, new, 1)
    return container(header, parts()[2])


def packed(data: bytes, **kwargs: object) -> bytes:
    return zstandard.ZstdCompressor(**kwargs).compress(data)


BIG = 2**31

FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "ends after 0"),
    "text": (lambda: b"these are not weights, but words\n" * 9, "header would have"),
    "PyTorch's pickle": (lambda: b"PK\3\4" + bytes(200), "header would have"),
    "header of 2 GiB": (lambda: container(b"{}", b"", BIG), "2147483648"),
    "header of 2 GiB, compressed": (lambda: packed(container(b"{}", b"", BIG)), "2147483648"),
    "header of 2^63 bytes": (lambda: container(b"{}", b"", 2**63), "9223372036854775808"),
    "header of 2^64-1 bytes": (lambda: container(b"{}", b"", 2**64 - 1), "18446744073709551615"),
    "header of no bytes": (lambda: container(b"", b"", 0), "have 0 bytes"),
    "header longer than the file": (lambda: container(b"{}", b"", 8_000_000), "8000000 bytes"),
    "header that is a list": (lambda: container(b"[]"), "'{'"),
    "header cut short": (lambda: container(b'{"w": '), "malformed JSON"),
    "header with something behind": (lambda: container(b"{} {}"), "end of file expected"),
    "deep header": (lambda: container(b'{"a":' * 100_000), "64 levels"),
    "8 MiB of brackets": (lambda: container(b'{"a":' + b"[" * (8 * 2**20 - 5)), "64 levels"),
    "8 MiB of numbers": (lambda: container(b'{"a":[' + b"1," * 4_000_000 + b"1]}"),
                         "1000000 nodes"),
    "key twice": (lambda: text_with(b'"w": {', b'"w": {}, "w": {'), "duplicate"),
    "metadata twice": (lambda: text_with(b'"dosemap.format"', b'"dosemap.format": "1", '
                                         b'"dosemap.format"'), "duplicate"),
    "NaN": (lambda: text_with(b"[1, 1, 3", b"[NaN, 1, 3"), "NaN"),
    "not UTF-8": (lambda: text_with(b'"w"', b'"\xff"'), "UTF-8"),
    "64 MiB of zeros": (lambda: packed(bytes(2**26)), "have 0 bytes"),
    "bytes behind": (lambda: with_header(lambda h: None) + b"x", "bytes behind the data"),
    "data missing": (lambda: with_header(lambda h: None)[:-1], "ends after 107"),
    "two frames": (lambda: packed(with_header(lambda h: None)) + packed(b"x"), "bytes behind"),
    "no dosemap file": (lambda: container(b"{}"), "dosemap.format"),
    # Tensors
    "shape with another product": (lambda: with_tensor(shape=[1, 1, 3, 3, 2]), "needs 72 bytes"),
    "shape with another order": (lambda: with_tensor(shape=[3, 1, 1, 3, 3]), "shape"),
    "six dimensions": (lambda: with_tensor(shape=[1, 1, 1, 3, 3, 3]), "0 to 5"),
    "size 0": (lambda: with_tensor(shape=[0, 1, 3, 3, 3]), "size 1 of its shape"),
    "negative size": (lambda: with_tensor(shape=[-1, -1, 3, 3, 3]), "size 1 of its shape"),
    "fraction as size": (lambda: with_tensor(shape=[1.0, 1, 3, 3, 3]), "size 1 of its shape"),
    "sizes that overflow": (lambda: with_tensor(shape=[2**62, 4, 3, 3, 3]), "elements"),
    "sizes beyond memory": (lambda: with_tensor(shape=[2**40, 1, 3, 3, 3]), "elements"),
    "size of 30 digits": (lambda: with_tensor(shape=[10**30]), "too big integer"),
    "shape that is a word": (lambda: with_tensor(shape="27"), "shape"),
    "dtype F64": (lambda: with_tensor(dtype="F64"), "F64"),
    "dtype that is a number": (lambda: with_tensor(dtype=32), "'w'"),
    "another key": (lambda: with_tensor(extra=1), "'w'"),
    "offsets out of range": (lambda: with_tensor(data_offsets=[108, 216]), "begins at byte 108"),
    "offsets beyond 4 GiB": (lambda: with_tensor(data_offsets=[2**40, 2**40 + 108]),
                             "1099511627884"),
    "offsets reversed": (lambda: with_tensor(data_offsets=[108, 0]), "data_offsets"),
    "negative offsets": (lambda: with_tensor(data_offsets=[-108, 0]), "data_offsets"),
    "one offset": (lambda: with_tensor(data_offsets=[0]), "data_offsets"),
    "fractions as offsets": (lambda: with_tensor(data_offsets=[0.0, 108.0]), "data_offsets"),
    "overlapping tensors": (lambda: two_tensors([0, 108], [100, 208]), "with no overlap"),
    "the same bytes twice": (lambda: two_tensors([0, 108], [0, 108]), "with no overlap"),
    "a gap": (lambda: two_tensors([0, 108], [112, 220]), "with no gap"),
    "tensor that is a number": (lambda: with_header(lambda h: h.update(w=7)), "'w'"),
    "name with a line end": (lambda: with_header(lambda h: h.update({"a\nb": h.pop("w")})), "name"),
    # Metadata
    "format 2": (lambda: with_metadata(format="2"), "'2'"),
    "format 1.0": (lambda: with_metadata(format="1.0"), "'1.0'"),
    "format as a number": (lambda: with_metadata(format=1), "dosemap.format"),
    "no graph": (lambda: with_header(lambda h: h["__metadata__"].pop("dosemap.graph")),
                 "dosemap.graph"),
    "another checksum": (lambda: with_metadata(xxh64="0123456789abcdef"), "0123456789abcdef"),
    "no checksum": (lambda: with_metadata(xxh64=""), "XXH64"),
    "card that is no JSON": (lambda: with_metadata(card="{"), "dosemap.card"),
    "card that is a list": (lambda: with_metadata(card="[]"), "card"),
    "deep card": (lambda: with_metadata(card="[" * 1000), "64 levels"),
    "provenance that is no JSON": (lambda: with_metadata(provenance="me"), "dosemap.provenance"),
    # The graph
    "graph that is no JSON": (lambda: with_metadata(graph="nodes:"), "dosemap.graph"),
    "graph that is a list": (lambda: with_metadata(graph="[]"), "graph"),
    "deep graph": (lambda: with_metadata(graph='{"a":' * 1000), "64 levels"),
    "key twice in the graph": (lambda: with_metadata(
        graph=json.dumps(tiny_graph()).replace('"name"', '"name": "x", "name"', 1)), "duplicate"),
    "graph_version 2": (lambda: with_graph(lambda g: g.update(graph_version=2)), "2"),
    "graph_version as text": (lambda: with_graph(lambda g: g.update(graph_version="1")),
                              "graph_version"),
    "unknown key": (lambda: with_graph(lambda g: g.update(color="red")), "color"),
    "missing key": (lambda: with_graph(lambda g: g.pop("patch_size")), "patch_size"),
    "patch of 0": (lambda: with_graph(lambda g: g.update(patch_size=[8, 0, 8])), "patch_size"),
    "patch of 2^31": (lambda: with_graph(lambda g: g.update(patch_size=[BIG] * 3)), "patch_size"),
    "voxels of 0 mm": (lambda: with_graph(lambda g: g.update(voxel_size_mm=[4, 4, 0])),
                       "voxel_size_mm"),
    "no nodes": (lambda: with_graph(lambda g: g.update(nodes=[])), "nodes"),
    "4097 nodes": (lambda: with_graph(lambda g: g.update(nodes=g["nodes"] * 2049)), "4096"),
    "unknown operator": (lambda: with_node(op="Einsum"), "Einsum"),
    "operator in lower case": (lambda: with_node(op="conv"), "conv"),
    "cyclic graph": (lambda: with_graph(cyclic), "dose"),
    "node that takes itself": (lambda: with_node(inputs=["h", "w"]), "'h'"),
    "unknown input": (lambda: with_node(inputs=["pet", "w2"]), "w2"),
    "output twice": (lambda: with_graph(lambda g: g["nodes"][1].update(outputs=["h"])), "h"),
    "no output of the graph": (lambda: with_graph(lambda g: g["nodes"].pop()), "dose"),
    "unused weight": (lambda: with_graph(lambda g: g["nodes"].pop(0) and
                                         g["nodes"][0].update(inputs=["pet"])), "'w'"),
    "kernel of another shape": (lambda: with_attributes(kernel_shape=[3, 3, 1]), "kernel_shape"),
    "kernel of 2^31": (lambda: with_attributes(kernel_shape=[3, 3, BIG]), "kernel_shape"),
    "stride of 0": (lambda: with_attributes(strides=[1, 1, 0]), "strides"),
    "negative pads": (lambda: with_attributes(pads=[-1] * 6), "pads"),
    "pads of 2^31": (lambda: with_attributes(pads=[BIG] * 6), "pads"),
    "group of 0": (lambda: with_attributes(group=0), "group"),
    "group of 3": (lambda: with_attributes(group=3), "group"),
    "unknown attribute": (lambda: with_attributes(auto_pad="SAME"), "auto_pad"),
    "fraction as attribute": (lambda: with_attributes(strides=[1.0, 1, 1]), "strides"),
    "output smaller than the input": (lambda: with_attributes(pads=[0] * 6), "output"),
    "two channels in": (lambda: with_graph(lambda g: g["inputs"][0].update(channels=2)),
                        "2 input channels"),
    "2^40 channels": (lambda: with_graph(lambda g: g["inputs"][0].update(channels=2**40)),
                      "channels"),
    "unknown quantity": (lambda: with_graph(lambda g: g["inputs"][0].update(quantity="counts")),
                         "counts"),
    "scale of 1e400": (lambda: text_with(b'intensity\\": []',
                                         b'intensity\\": [{\\"scale\\": 1e400}]'), "overflow"),
    "orientation with two lefts": (lambda: with_graph(lambda g: g.update(orientation="LRS")),
                                   "LRS"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_refused(pet: Path, out: Path, tmp_path: Path, name: str) -> None:
    make, words = FILES[name]
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(make())
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", weights, "-o", out)
    assert_refused(result, out, "w.safetensors", words)


def test_the_good_file_is_read(pet: Path, out: Path, tmp_path: Path) -> None:
    """What the files above differ from by one fault each."""
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(with_header(lambda header: None))
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", weights, "-o", out)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(pet: Path, out: Path, tmp_path: Path, value: float) -> None:
    data = np.array([value] * 27, np.float32).tobytes()
    weights = tmp_path / "w.safetensors"
    good = with_metadata(xxh64=xxhash.xxh64_hexdigest(data, seed=0))
    weights.write_bytes(good[: -len(data)] + data)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", weights, "-o", out)
    assert_refused(result, out, "w.safetensors", "'w'", f"{value:g}")


def test_missing_and_folder(pet: Path, out: Path, tmp_path: Path) -> None:
    for weights, words in ((tmp_path / "nowhere", "No such file"), (tmp_path, "folder")):
        result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", weights, "-o", out)
        assert_refused(result, out, str(weights), words)
