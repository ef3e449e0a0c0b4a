# SPDX-License-Identifier: Apache-2.0
"""dosemap.inspect(): what `dosemap inspect --json` prints."""

import json

import dosemap
import numpy as np
import pytest
from emulated_cuda import needs_module, settings
from own_process import in_own_process
from program import ROOT, run


def program_says(*arguments, env=None):
    result = run("inspect", *arguments, "--json", env=env)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        ({}, ()),
        ({"tile": 16}, ("--tile", "16")),
        ({"tile": (16, 8, 24)}, ("--tile", "16,8,24")),
        ({"tile": np.array([8, 8, 16])}, ("--tile", "8,8,16")),
        ({"precision": "bf16"}, ("--precision", "bf16")),
        ({"precision": "float32", "plan": "cpu"}, ()),
    ],
)
def test_as_the_command_line(tiny_path, keywords, options):
    expected = program_says(tiny_path, *options)
    assert dosemap.inspect(tiny_path, **keywords) == expected
    assert dosemap.inspect(str(tiny_path), **keywords) == expected
    model = dosemap.load_model(tiny_path)
    assert dosemap.inspect(model, **keywords) == expected == model.inspect(**keywords)


def test_other_networks(pet_ct_path, constructed_path):
    for path in (pet_ct_path, constructed_path):
        assert dosemap.inspect(path) == program_says(path)


def test_default_weights(monkeypatch, constructed_path):
    monkeypatch.setenv("DOSEMAP_MODEL", str(constructed_path))
    assert dosemap.inspect() == program_says(constructed_path)
    monkeypatch.setenv("DOSEMAP_MODEL", "no/such/weights")
    with pytest.raises(dosemap.FileError, match="DOSEMAP_MODEL"):
        dosemap.inspect()


CUDA = (
    "import json\n"
    "result = dosemap.inspect({path!r}, plan='cuda', precision='bf16', batch=4, windows=9, "
    "convolutions='own', device_properties={device!r})"
)


@needs_module
def test_plan_of_a_gpu(constructed_path):
    device = ROOT / "host/predict/cuda/devices/device_sm90.json"
    code = CUDA.format(path=str(constructed_path), device=str(device))
    options = ("--plan", "cuda", "--precision", "bf16", "--batch", "4", "--windows", "9",
               "--convolutions", "own", "--device-properties", device)  # fmt: skip
    expected = program_says(constructed_path, *options, env=settings())
    assert expected["account"]["batch"] == 4
    assert in_own_process(code, settings()) == expected


def test_no_plan_of_a_gpu_without_its_module(tiny_path, tmp_path):
    code = (
        f"try:\n    dosemap.inspect({str(tiny_path)!r}, plan='cuda')\n"
        "except dosemap.DeviceError as error:\n    result = str(error)"
    )
    said = in_own_process(code, {"DOSEMAP_CUDA_MODULE": str(tmp_path / "none.so")})
    assert "none.so" in said and "DOSEMAP_CUDA_MODULE" in said


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"tile": 0}, dosemap.InvalidValueError, "tile=0"),
        ({"tile": 70000}, dosemap.InvalidValueError, "65536"),
        ({"tile": (8, 8)}, dosemap.InvalidValueError, "2 numbers"),
        ({"tile": "whole"}, TypeError, "tile wants a number of voxels"),
        ({"tile": 8.5}, TypeError, "tile"),
        ({"precision": "auto"}, dosemap.InvalidValueError, "'auto'.*'float32', 'bf16'"),
        ({"precision": 16}, TypeError, "precision"),
        ({"plan": "gpu"}, dosemap.InvalidValueError, "'gpu'.*'cpu', 'cuda'"),
        ({"plan": None}, TypeError, "plan"),
        ({"batch": 4}, dosemap.InvalidValueError, r"batch= goes with plan='cuda'"),
        ({"windows": 4}, dosemap.InvalidValueError, r"windows= goes with plan='cuda'"),
        ({"convolutions": "own"}, dosemap.InvalidValueError, r"convolutions= goes with"),
        ({"device_properties": "x"}, dosemap.InvalidValueError, r"device_properties= goes with"),
        ({"plan": "cuda", "batch": 0}, dosemap.InvalidValueError, "batch=0"),
        ({"plan": "cuda", "batch": 1025}, dosemap.InvalidValueError, "1024"),
        ({"plan": "cuda", "windows": 1.5}, TypeError, "windows"),
        ({"plan": "cuda", "convolutions": "fast"}, dosemap.InvalidValueError, "'fast'"),
        ({"plan": "cuda", "device_properties": 3}, TypeError, "device_properties"),
        ({"colour": "red"}, TypeError, "colour"),
    ],
)
def test_refusals(tiny_path, keywords, error, words):
    with pytest.raises(error, match=words):
        dosemap.inspect(tiny_path, **keywords)
    with pytest.raises(error, match=words):
        dosemap.load_model(tiny_path).inspect(**keywords)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(dosemap.FileMissingError, match="none"):
        dosemap.inspect(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(dosemap.FormatError) as e:
        dosemap.inspect(tmp_path / "text.safetensors")
    assert e.value.where.startswith(str(tmp_path / "text.safetensors"))
    with pytest.raises(TypeError):
        dosemap.inspect(3)


def test_without_numpy(tiny_path):
    code = f"result = dosemap.inspect({str(tiny_path)!r})"
    assert in_own_process(code, without=["numpy"]) == program_says(tiny_path)
