# SPDX-License-Identifier: Apache-2.0
"""Where the steps run: the programs, cuDNN, PyTorch, and how large a volume may be."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDNN_FILE = "libcudnn_graph.so.9"
RANDOM_WEIGHTS = "random.safetensors"  # as bench/compare_gpu calls it


@dataclass(frozen=True)
class Sizes:
    """How much the steps do: on a GPU, and in a dry run on a CPU that emulates one."""

    golden_precisions: tuple[str, ...] = ("float32", "tf32", "bf16", "fp16")
    volume: tuple[int, int, int] = (200, 200, 450)
    volume_windows: int = 4032
    volume_tiles: tuple[str, ...] = ("64", "96", "128", "auto")
    model: Path | None = None
    repeats: int = 5
    bench: tuple[str, ...] = ()
    counted: tuple[tuple[int, int, int], tuple[int, int, int]] = ((80, 80, 80), (80, 80, 144))


SMALL_MODEL = ROOT / "tests/golden/batch-small/model.safetensors.zst"
DRY = Sizes(
    golden_precisions=("float32", "bf16"),
    volume=(40, 33, 30),
    volume_windows=48,
    volume_tiles=("24",),
    model=SMALL_MODEL,
    repeats=2,
    bench=("--size", "24,24,24", "--runs", "2", "--warmup", "1"),
    counted=((16, 16, 16), (16, 16, 32)),
)


@dataclass
class Place:
    """What is there. `emulated` is the module that stands in for the GPU's in a dry run."""

    bundle: Path
    work: Path
    emulated: Path | None = None
    sizes: Sizes = field(default_factory=Sizes)
    cache: Path | None = None
    """Of what tuning finds; beside the results, so that a later run on another machine has both."""

    def __post_init__(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.program = self.bundle / "bin/dosemap"
        self.tests = sorted((self.bundle / "libexec/dosemap").glob("gpu_*"))
        self.images = self.bundle / "share/gpu_check"
        self.python = torch_python()
        self.cudnn = cudnn_folder(self.python)

    @property
    def dry(self) -> bool:
        """Whether a CPU stands in for the GPU."""
        return self.emulated is not None

    def environment(self) -> dict[str, str]:
        """Return what dosemap is told of: cuDNN, what that loads, and a folder for plans."""
        told = {"DOSEMAP_CACHE_DIR": str(self.cache or self.work / "cache")}
        if self.emulated:
            told["DOSEMAP_CUDA_MODULE"] = str(self.emulated)
            told["DOSEMAP_EMULATED_DEVICES"] = "2"
        if self.cudnn:
            told["DOSEMAP_CUDNN_DIR"] = str(self.cudnn)
            # cuDNN looks for the run-time compiler and cuBLAS by name only.
            folders = [self.cudnn, *compiler_folders(self.cudnn)]
            known = os.environ.get("LD_LIBRARY_PATH")
            told["LD_LIBRARY_PATH"] = ":".join([*map(str, folders), *([known] if known else [])])
        return told

    def weights(self) -> tuple[str, ...]:
        """Return the option that names the weights to be timed; zeros would be too fast."""
        carried = self.images / RANDOM_WEIGHTS
        if self.sizes.model:
            return ("--model", str(self.sizes.model))
        return ("--model", str(carried)) if carried.exists() else ()

    def image(self, name: str) -> Path:
        """Return a place for a file that a job makes."""
        return self.work / name


def _answers(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def torch_python() -> str | None:
    """Return a Python that has PyTorch."""
    named = os.environ.get("DOSEMAP_TORCH_PYTHON")
    ours = ROOT / "build/venv/bin/python-with-torch"
    for python in [named] if named else [sys.executable, shutil.which("python3"), str(ours)]:
        find = "import importlib.util as u; print(u.find_spec('torch') is not None)"
        if python and _answers([python, "-c", find]) == "True":
            return python
    return None


def _package_folders(python: str) -> list[Path]:
    find = "import json, sysconfig; print(json.dumps(sysconfig.get_paths()['purelib']))"
    said = _answers([python, "-c", find])
    return sorted(Path(json.loads(said)).glob("nvidia/*/lib")) if said else []


def cudnn_folder(python: str | None) -> Path | None:
    """Return the folder of cuDNN: the named one, PyTorch's, or the toolkit's."""
    named = os.environ.get("DOSEMAP_CUDNN_DIR")
    if named:
        return Path(named)
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders = _package_folders(python) if python else []
    for folder in [*folders, toolkit / "lib64", toolkit / "lib", Path("/usr/lib/x86_64-linux-gnu")]:
        if (folder / CUDNN_FILE).exists():
            return folder
    return None


def compiler_folders(cudnn: Path) -> list[Path]:
    """Return the folders of NVRTC and cuBLAS, beside cuDNN's package or in the toolkit."""
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    folders = [*sorted(cudnn.parent.parent.glob("*/lib")), toolkit / "lib64", toolkit / "lib"]
    return [f for f in folders if any(f.glob("libnvrtc.so*")) or any(f.glob("libcublasLt.so*"))]


def machine_facts() -> dict[str, object]:
    """Return what the machine is, for the results."""
    facts: dict[str, object] = {
        "kernel": platform.release(),
        "glibc": os.confstr("CS_GNU_LIBC_VERSION"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            facts["cpu"] = line.partition(":")[2].strip()
            break
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal"):
            facts["memory_bytes"] = int(line.split()[1]) * 1024
    system = Path("/etc/os-release")
    if system.exists():
        for line in system.read_text().splitlines():
            if line.startswith("PRETTY_NAME="):
                facts["system"] = line.partition("=")[2].strip('"')
    return facts


def commit_facts(root: Path = ROOT) -> dict[str, object]:
    """Return the commit of a checkout; nothing outside of one."""
    git = ["git", "-c", "safe.directory=*", "-C", str(root)]
    commit = _answers([*git, "rev-parse", "HEAD"])
    if not commit:
        return {}
    return {"commit": commit, "changed_files": bool(_answers([*git, "status", "--porcelain"]))}
