# SPDX-License-Identifier: Apache-2.0
"""dosemap-import: what it asks for, how options and cards are read, and what they may not be."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: imports are not tested")
pytest.importorskip("onnxscript", reason="ONNX is missing: imports are not tested")

import torch
from dosemap_tools.importing import command
from dosemap_tools.importing.ports import (
    StatedPort,
    UsageError,
    apply_intensity,
    parse_port,
    parse_steps,
    unit_factor,
)
from import_networks import bring_in, card_file, left_in, network, write_onnx
from program import BINARY


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("onnx") / "lopsided.onnx", network())


@pytest.fixture(autouse=True)
def program(monkeypatch):
    monkeypatch.setenv("DOSEMAP_BIN", str(BINARY))


# Asking -------------------------------------------------------------------------------------------
def test_everything_that_is_missing_is_asked_for_at_once(lopsided, capsys):
    assert command.main([str(lopsided)]) == 2
    said = capsys.readouterr().err
    for option in (
        *("-o", "--input", "--output", "--spatial-axes", "--orientation", "--voxel-size"),
        *("--name", "--version", "--summary", "--licence", "--trained"),
    ):
        assert f"  {option} " in said, option
    assert "(N, 1, 14, 10, 6)" in said and "lopsided.onnx: ONNX" in said
    assert "  --patch " not in said, "the file says it"
    assert "  --training " not in said, "asked for where --trained is yes"


def test_what_is_stated_is_not_asked_for(tmp_path, lopsided, capsys):
    card = card_file(tmp_path, orientation=..., outputs=..., trained=True)
    options = ("--card", str(card), "-o", str(tmp_path / "n.safetensors"), "--orientation", "RAS")
    assert command.main([str(lopsided), *options]) == 2
    asked = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  --")]
    assert [line.split()[0] for line in asked] == ["--output", "--training"]


def test_a_state_dict_is_asked_for_its_network(tmp_path, capsys):
    torch.save(network().state_dict(), tmp_path / "state.pt")
    assert command.main([str(tmp_path / "state.pt")]) == 2
    said = capsys.readouterr().err
    assert "first.weight (5, 1, 5, 3, 1)" in said
    assert "--network NAME" in said and "dosegan-16" in said and "  --patch " in said


BAD_OPTIONS = [
    (("--input", "activity"), "--input is 'activity'", "dose_per_activity"),
    (("--input", "pet:suv:g/mL:x"), "number of channels", ""),
    (("--quantity", "suv", "--input", "suv"), "--quantity", "state several by --input"),
    (("--unit", "g/mL"), "--quantity", ""),
    (("--input", "uptake", "--input", "ct:hu"), "2 times for 1 channels", "x (N, 1, 14, 10, 6)"),
    (("--input-intensity", "sigmoid"), "--input-intensity is 'sigmoid'", "log1p"),
    (("--input-intensity", "clip=5:1"), "clip=5:1", ""),
    (("--input-intensity", "scale=nan"), "scale=nan", ""),
    (("--input-intensity", "ct:log1p"), "ct:log1p", "the ports are: pet"),
    (("--patch", "32,32"), "--patch is '32,32'", ""),
    (("--patch", "0"), "--patch is '0'", ""),
    (("--voxel-size", "4,4,-4"), "--voxel-size", ""),
    (("--orientation", "RRS"), "--orientation is 'RRS'", ""),
    (("--name", "@/nowhere"), "/nowhere", "--name"),
    (("--summary", " "), "--summary is empty", ""),
    (("--skip-air", "nan"), "--skip-air", ""),
    (("--tolerance", "0"), "--tolerance", ""),
    (("--network", "dosegan"), "--network is for state dicts", ""),
    (("--key", "state_dict"), "--key is for state dicts", ""),
    (("-o", "net.onnx"), "-o is 'net.onnx'", ".safetensors.zst"),
    (("-o", ".safetensors.zst"), "-o is", ""),
]


@pytest.mark.parametrize(
    ("options", "words", "remedy"),
    BAD_OPTIONS,
    ids=lambda v: v if isinstance(v, str) else " ".join(v),
)
def test_an_option_that_is_wrong(tmp_path, lopsided, capsys, options, words, remedy):
    status, _ = bring_in(tmp_path, lopsided, *options)
    said = capsys.readouterr().err
    assert status == 2 and words in said and remedy in said, said
    assert left_in(tmp_path) == ["card.json"]


BAD_UNITS = [
    (("--input", "uptake:Bq/mL"), "activity that was injected"),
    (("--input", "suv:%"), "known units: g/mL, kg/L"),
    (("--output", "dose_per_activity:Gy"), "mGy/MBq"),
    (("--output", "other"), "such as other:mm"),
    (("--output", "dose_per_activity:Gy/0GBq"), "mGy/MBq"),
]


@pytest.mark.parametrize(("options", "words"), BAD_UNITS)
def test_a_unit_that_is_not_known(tmp_path, lopsided, capsys, options, words):
    status, _ = bring_in(tmp_path, lopsided, *options)
    assert status == 2 and words in capsys.readouterr().err
    assert left_in(tmp_path) == ["card.json"]


BAD_CARDS = [
    ({"inputs": [{"quantity": "suv", "unit": "Bq/mL"}]}, "activity that was injected"),
    ({"name": ""}, "'name'"),
    ({"trained": "yes"}, "'trained'"),
    ({"training": [1]}, "'training'"),
    ({"spatial_axes": "zxy"}, "'spatial_axes'"),
    ({"orientation": "XYZ"}, "'orientation'"),
    ({"patch_size": [32, 32]}, "'patch_size'"),
    ({"patch_size": [32.0, 32, 32]}, "'patch_size'"),
    ({"patch_size": [2000, 32, 32]}, "'patch_size'"),
    ({"voxel_size_mm": [4, 4, 0]}, "'voxel_size_mm'"),
    ({"inputs": {}}, "'inputs'"),
    ({"inputs": [{"quantity": "light"}]}, "is no port"),
    ({"inputs": [{"quantity": "suv", "intensity": [{"gamma": 2}]}]}, "'intensity'"),
    ({"inputs": [{"quantity": "suv", "intensity": [{"log1p": False}]}]}, "'intensity'"),
    ({"inputs": [{"quantity": "suv", "intensity": [{"clip": [1]}]}]}, "'intensity'"),
    ({"inputs": [{"quantity": "suv", "scale": 2}]}, "unknown"),
    ({"inputs": [{"quantity": "suv", "channels": -1}]}, "'channels'"),
    ({"outputs": [{"quantity": "other", "unit": "1", "name": ""}]}, "'name'"),
    ({"skip_air": "off"}, "'skip_air'"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_CARDS, ids=lambda v: str(v))
def test_a_card_that_is_wrong(tmp_path, lopsided, capsys, changes, words):
    status, _ = bring_in(tmp_path, lopsided, card=changes)
    said = capsys.readouterr().err
    assert status == 1 and words in said and "card.json" in said, said
    assert left_in(tmp_path) == ["card.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": NaN}', '{"a": 1, "a": 2}', "[" * 10**5])
def test_a_card_that_is_no_json(tmp_path, lopsided, capsys, text):
    (tmp_path / "c.json").write_text(text)
    out = tmp_path / "n.safetensors.zst"
    assert command.main([str(lopsided), "--card", str(tmp_path / "c.json"), "-o", str(out)]) == 1
    assert "c.json: cannot be read as a card" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [("net.h5", "known are .onnx, .pt2"), ("none.onnx", "no such file"), ("bad.onnx", "bad.onnx")],
)
def test_a_source_that_is_none(tmp_path, capsys, name, words):
    if name != "none.onnx":
        (tmp_path / name).write_bytes(b"something")
    before = left_in(tmp_path)
    status, _ = bring_in(tmp_path, tmp_path / name)
    assert status == 1 and words in capsys.readouterr().err
    assert left_in(tmp_path) == sorted([*before, "card.json"])


# Words --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("suv", StatedPort("pet", "suv", "g/mL")),
        ("ct:hu", StatedPort("ct", "hu", "HU")),
        ("uptake:%IA/mL", StatedPort("pet", "uptake", "%IA/mL")),
        ("map:dose_per_activity:mGy/MBq:1", StatedPort("map", "dose_per_activity", "mGy/MBq", 1)),
        ("other:1", StatedPort("input", "other", "1")),
        ("suv:suv::4", StatedPort("suv", "suv", "g/mL", 4)),
    ],
)
def test_ports(text, port):
    assert parse_port(text, "--input") == port


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("log1p", ("", [{"log1p": True}])),
        ("none", ("", [])),
        ("scale=0.1", ("", [{"scale": 0.1, "offset": 0.0}])),
        ("offset=-2,scale=3", ("", [{"scale": 3.0, "offset": -2.0}])),
        ("clip=0:50 sqrt", ("", [{"clip": [0.0, 50.0]}, {"sqrt": True}])),
        ("ct:clip=-1e3:1e3 expm1", ("ct", [{"clip": [-1e3, 1e3]}, {"expm1": True}])),
        ("pet: square", ("pet", [{"square": True}])),
    ],
)
def test_intensity_steps(text, steps):
    assert parse_steps(text, "--input-intensity") == steps


@pytest.mark.parametrize("text", ["scale", "scale=", "scale=1,scale=2", "clip=1", "log1p=2", "a:b"])
def test_intensity_steps_that_are_none(text):
    with pytest.raises(UsageError):
        parse_steps(text, "--input-intensity")


@pytest.mark.parametrize(
    ("quantity", "unit", "factor"),
    [
        ("dose_per_activity", "Gy/GBq", 1),
        ("dose_per_activity", "mGy/MBq", 1),
        ("dose_per_activity", "cGy/GBq", 0.01),
        ("dose_per_activity", "Gy/MBq", 1000),
        ("dose_per_activity", "mGy/Bq", 1e6),
        ("dose_per_activity", "rad/mCi", 0.01 / 0.037),
        ("dose_per_activity", "Gy/7.4GBq", 1 / 7.4),
        ("uptake", "%IA/mL", 787),
        ("hu", "HU", 1),
        ("other", "anything", 1),
    ],
)
def test_units(quantity, unit, factor):
    assert unit_factor(quantity, unit) == pytest.approx(factor, rel=1e-12)


def test_intensity_is_what_predict_applies():
    values = np.float32([0, 1, 4])
    steps = [{"clip": [0.5, 3]}, {"log1p": True}, {"scale": 2.0, "offset": 1.0}, {"square": True}]
    expected = (2 * np.log1p(np.clip([0, 1, 4], 0.5, 3)) + 1) ** 2
    np.testing.assert_allclose(apply_intensity(values, steps), expected, rtol=1e-6)
    np.testing.assert_allclose(apply_intensity(values, [{"sqrt": True}, {"expm1": True}]),
                               np.expm1([0, 1, 2]), rtol=1e-6)  # fmt: skip
