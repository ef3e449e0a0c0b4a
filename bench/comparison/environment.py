# SPDX-License-Identifier: Apache-2.0
"""The venv with the peers, the programs under test, and what a reader has to know about both."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import zlib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "bench" / "requirements-bench.txt"
PACKAGES = ("torch", "monai", "openvino", "onnxruntime", "numpy", "nibabel")
_INSIDE = "DOSEMAP_BENCH_INSIDE"


def enter_venv(folder: Path) -> None:
    """Make or complete the peers' venv, and start this command again with its python."""
    if os.environ.get(_INSIDE):
        return
    venv = folder / "venv"
    env = os.environ | {"DOSEMAP_VENV": str(venv)}
    made = subprocess.run(
        [ROOT / "tools" / "python_env"], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    stamp = venv / f"bench-{zlib.crc32(REQUIREMENTS.read_bytes()):08x}"
    if not stamp.exists():
        pip = [venv / "bin" / "pip", "install", "-q", "--disable-pip-version-check"]
        # pip complains about libraries of CUDA, which tools/python_env leaves out on purpose.
        done = subprocess.run([*pip, "-r", REQUIREMENTS], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench/compare: {done.stderr}")
        stamp.touch()
    python = made.stdout.strip()
    os.execve(python, [python, *sys.argv], os.environ | {_INSIDE: "1"})


def build_programs(folder: Path) -> None:
    """Build dosemap and the benchmark programs, Release."""
    build = folder / "ours"
    configure = ["cmake", "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release"]
    configure += ["-DDOSEMAP_BUILD_TESTS=OFF"]
    for command in (configure, ["cmake", "--build", build, "--target", "comparison", "-j"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], file=sys.stderr)
            raise SystemExit(f"bench/compare: {' '.join(map(str, command))} failed")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def commit() -> str:
    """Return the commit, with a mark if files differ from it."""
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return (_output("git", "rev-parse", "--short", "HEAD") or "unknown") + "+" * bool(changed)


def cpu_name() -> str:
    """Return the CPU as /proc/cpuinfo names it, with family and model."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    facts = dict(re.findall(r"^([^\t:]+)\s*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')} model {facts.get('model', '?')})"


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def slug(text: str) -> str:
    """Return a name for a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def without_folder(arguments: list[str]) -> list[str]:
    """Arguments without --build: where things were built says nothing about the figures."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--build"):
            kept.append(argument)
        skip = argument == "--build"
    return kept
