# SPDX-License-Identifier: Apache-2.0
"""dosemap.devices() and dosemap.doctor(): what can be used here, on emulated GPUs too; and which
cuDNN is taken.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import dosemap
import pytest
from dosemap import _installation
from emulated_cuda import MODULE, needs_module, settings
from own_process import in_own_process
from program import run

LIST = "import dataclasses\nresult = [dataclasses.asdict(d) for d in dosemap.devices()]"
FILE = "libcudnn_graph.so.9"


def program_says(env=None):
    result = run("doctor", "--json", env=env)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_doctor_is_the_command_line_s():
    facts = dosemap.doctor()
    assert facts == program_says({"DOSEMAP_CUDNN_DIR": os.environ.get("DOSEMAP_CUDNN_DIR", "")})


def test_cpu():
    cpu = dosemap.devices()[0]
    facts = dosemap.doctor()["cpu"]
    assert cpu.name == "cpu" and cpu.usable and cpu.missing == ""
    assert facts["name"] in cpu.description and str(facts["threads"]) in cpu.description
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert cpu.memory == int(meminfo["MemTotal"].split()[0]) * 1024
    with pytest.raises(dataclasses.FrozenInstanceError):
        cpu.name = "gpu"
    assert cpu == dosemap.devices()[0] and hash(cpu)


def test_no_gpu_says_why(tmp_path):
    """In the words of Python, and of what cannot be used, not of what is there."""
    env = {"DOSEMAP_CUDA_MODULE": str(tmp_path / "none.so")}
    found = in_own_process(LIST, env)
    assert [d["name"] for d in found] == ["cpu", "cuda"]
    assert found[1]["memory"] == 0 and "DOSEMAP_CUDA_MODULE" in found[1]["missing"]
    assert "--" not in found[1]["missing"]
    assert program_says(env)["cuda"]["problem"] in found[1]["missing"]


@needs_module
def test_one_gpu():
    found = in_own_process(LIST, settings(memory=3 << 30))
    assert [d["name"] for d in found] == ["cpu", "cuda:0"]
    gpu = found[1]
    assert gpu["memory"] == 3 << 30 and gpu["missing"] == "" and "9.0" in gpu["description"]
    facts = in_own_process("result = dosemap.doctor()", settings(memory=3 << 30))
    assert facts["cuda"]["usable"] and facts["cuda"]["module"] == MODULE


@needs_module
def test_several_gpus():
    """Each by the name that device= takes; one that is too old says so."""
    env = settings(devices=3, memory="1000000000,2000000000,3000000000", capability="9.0,7.5,8.6")
    found = in_own_process(LIST, env)
    assert [d["name"] for d in found] == ["cpu", "cuda:0", "cuda:1", "cuda:2"]
    assert [d["memory"] for d in found[1:]] == [1000000000, 2000000000, 3000000000]
    assert [d["missing"] == "" for d in found] == [True, True, False, True]
    assert "7.5" in found[2]["missing"] and "device='cpu'" in found[2]["missing"]


@needs_module
def test_without_its_library():
    """The GPU is there, cuDNN is not: what to do about it is said as Python's keywords."""
    found = in_own_process(LIST, {**settings(), "DOSEMAP_REFERENCE_CONVOLUTION": "absent"})
    assert found[1]["name"] == "cuda:0" and found[1]["memory"] > 0
    assert "convolutions='own'" in found[1]["missing"]


def test_without_numpy():
    code = "result = [d.name for d in dosemap.devices()] + sorted(dosemap.doctor())"
    assert "cpu" in in_own_process(code, without=["numpy", "nibabel", "pandas"])


# ---- Which cuDNN ---------------------------------------------------------------------------------


def make_package(folder, complete=True):
    """PyPI's: files of several distributions in a folder `nvidia` without code."""
    library = folder / "nvidia/cudnn/lib"
    library.mkdir(parents=True)
    if complete:
        (library / FILE).write_bytes(b"")
    return library


@pytest.fixture
def search_path(monkeypatch):
    """Only what the test puts there; `nvidia` has not been found before, and no folder is named."""
    monkeypatch.setenv("DOSEMAP_CUDNN_DIR", "")
    for name in [name for name in sys.modules if name.partition(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    folders = []
    monkeypatch.setattr(sys, "path", folders)
    return folders


def test_cudnn_of_pypi(tmp_path, search_path):
    library = make_package(tmp_path / "site")
    search_path.append(str(tmp_path / "site"))
    _installation.use_pypi_cudnn()
    assert os.environ["DOSEMAP_CUDNN_DIR"] == str(library)
    assert "nvidia" not in sys.modules


def test_cudnn_in_the_second_of_two_folders(tmp_path, search_path):
    """As in a virtual environment with the system's packages: a namespace has several folders."""
    make_package(tmp_path / "a", complete=False)
    library = make_package(tmp_path / "b")
    search_path.extend([str(tmp_path / "a"), str(tmp_path / "b")])
    _installation.use_pypi_cudnn()
    assert os.environ["DOSEMAP_CUDNN_DIR"] == str(library)


def test_cudnn_that_is_named_stays(tmp_path, search_path, monkeypatch):
    make_package(tmp_path)
    search_path.append(str(tmp_path))
    monkeypatch.setenv("DOSEMAP_CUDNN_DIR", "/my/own")
    _installation.use_pypi_cudnn()
    assert os.environ["DOSEMAP_CUDNN_DIR"] == "/my/own"


def test_no_cudnn_of_pypi(tmp_path, search_path):
    make_package(tmp_path, complete=False)
    search_path.append(str(tmp_path))
    _installation.use_pypi_cudnn()
    assert os.environ["DOSEMAP_CUDNN_DIR"] == ""


def test_something_else_called_nvidia(tmp_path, search_path):
    (tmp_path / "nvidia.py").write_text("raise RuntimeError('imported')")
    search_path.append(str(tmp_path))
    _installation.use_pypi_cudnn()
    assert os.environ["DOSEMAP_CUDNN_DIR"] == ""


def test_cudnn_reaches_the_library(tmp_path):
    """What is set in Python, the library's getenv sees."""
    library = make_package(tmp_path)
    code = "dosemap.devices()\nimport ctypes\nlibc = ctypes.CDLL(None)\n"
    code += "libc.getenv.restype = ctypes.c_char_p\n"
    code += "result = libc.getenv(b'DOSEMAP_CUDNN_DIR').decode()"
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "DOSEMAP_CUDNN_DIR": ""}
    assert in_own_process(code, env) == str(library)
