# SPDX-License-Identifier: Apache-2.0
"""What is made beforehand for a machine that lacks it: the package and the GPU tests in one file.

`prepare` makes build/gpu_check/bundle.tar.xz: the parts that cpack packs, the tests of the kernels,
and real images where there are some. `unpack` puts it to where the steps look.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

from gpucheck.place import RANDOM_WEIGHTS, ROOT, commit_facts, torch_python

LIMIT_BYTES = 40_000_000
FACTS = "share/gpu_check/made.json"
# Line numbers for compute-sanitizer, and still small.
CUDA_FLAGS = "-lineinfo -Xfatbin=-compress-all"
# In the tests' folder of real images -> in the bundle.
IMAGES = {
    "pet_fdg/STS_001_PET_image.nii.gz": "sts1_pet.nii.gz",
    "pet_fdg/STS_001_PET_mask.nii.gz": "sts1_dseg.nii.gz",
    "pet_fdg/STS_013_PET_image.nii.gz": "sts13_pet.nii.gz",
    "pet_fdg/STS_013_PET_mask.nii.gz": "sts13_dseg.nii.gz",
    "lu177_spect/spect_002.nii.gz": "spect2_pet.nii.gz",
    "lu177_spect/spect_002.json": "spect2_pet.json",
    "lu177_spect/spect_002_lesions.nii.gz": "spect2_dseg.nii.gz",
}


def has_nvcc() -> bool:
    """Whether the CUDA backend can be compiled here."""
    return bool(shutil.which("nvcc")) or Path("/usr/local/cuda/bin/nvcc").exists()


def _run(*command: object, folder: Path = ROOT) -> None:
    done = subprocess.run([str(c) for c in command], cwd=folder, check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    if done.returncode != 0:
        said = done.stdout[-6000:]
        raise SystemExit(f"{said}\ngpu_check: {' '.join(map(str, command))}: {done.returncode}")


def build(folder: Path, architectures: str, cuda: bool) -> None:
    """Build the package, the GPU tests, and the module that emulates a GPU."""
    preset = "package-cuda" if cuda else "package"
    options = ["-DDOSEMAP_BUILD_TESTS=ON", "-DDOSEMAP_TEST_PYTHON="]
    targets = ["dosemap_cli", "completion_bash", "completion_zsh", "completion_fish"]
    targets += ["dosemap_cuda_emulated"]
    if cuda:
        options += [
            f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
            f"-DCMAKE_CUDA_FLAGS={CUDA_FLAGS}",
        ]
        targets += ["dosemap_cuda", "kernels_gpu"]
    _run("cmake", "--preset", preset, "-B", folder, *options)
    _run("cmake", "--build", folder, "--target", *targets, "--", "--quiet")


def make_weights(folder: Path) -> None:
    """Make the random weights that everybody is timed with, where PyTorch is."""
    python = torch_python()
    if python:
        _run(python, ROOT / "bench/compare_gpu", "--folder", folder, "--prepare")
    elif not (folder / RANDOM_WEIGHTS).exists():
        print("no PyTorch: the bundle will hold no random weights, and zeros are fast")


def install(folder: Path, prefix: Path, images: Path, facts: dict[str, object]) -> None:
    """Install what was built, and lay weights and images beside it."""
    shutil.rmtree(prefix, ignore_errors=True)
    for part in ("Unspecified", "program", "bundled", "gpu_tests"):
        _run(
            "cmake",
            "--install",
            folder / "build",
            "--prefix",
            prefix,
            "--strip",
            "--component",
            part,
        )
    share = prefix / "share/gpu_check"
    share.mkdir(parents=True)
    for source, name in IMAGES.items():
        if (images / source).exists():
            shutil.copyfile(images / source, share / name)
    if (folder / "weights" / RANDOM_WEIGHTS).exists():
        shutil.copyfile(folder / "weights" / RANDOM_WEIGHTS, share / RANDOM_WEIGHTS)
    (prefix / FACTS).write_text(json.dumps(facts, indent=2) + "\n")


def pack(prefix: Path, target: Path) -> int:
    """Pack, the tests one after the other since they are nearly the same; return the bytes."""
    partial = target.with_name("partial-" + target.name)
    # A dictionary that reaches from one test to the next; more effort (6) takes five times as long
    # and saves 2 of 30 MB.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 << 20}]
    with (
        lzma.open(partial, "wb", filters=filters) as out,
        tarfile.open(fileobj=out, mode="w") as tar,
    ):
        tar.add(prefix, arcname=".", filter=_anonymous)
    os.replace(partial, target)
    return target.stat().st_size


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def prepare(folder: Path, architectures: str, images: Path) -> Path:
    """Make the bundle in a folder, and return the build folder."""
    begin, cuda = time.monotonic(), has_nvcc()
    folder.mkdir(parents=True, exist_ok=True)
    built, prefix, target = folder / "build", folder / "made", folder / "bundle.tar.xz"
    if not cuda:
        print("no nvcc: the bundle will hold neither the CUDA module nor the GPU tests")
    build(built, architectures, cuda)
    facts = {**commit_facts(), "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
             "cuda": cuda, "architectures": architectures if cuda else ""}  # fmt: skip
    make_weights(folder / "weights")
    install(folder, prefix, images, facts)
    size = pack(prefix, target)
    shutil.rmtree(prefix)
    print(f"{target}: {size / 1e6:.1f} MB, made in {time.monotonic() - begin:.0f} s")
    if size > LIMIT_BYTES:
        raise SystemExit(f"gpu_check: the bundle is larger than {LIMIT_BYTES / 1e6:.0f} MB")
    return built


def unpack(source: Path, target: Path) -> dict[str, object]:
    """Unpack a bundle, unless it is there already, and return what it says of itself."""
    stamp = f"{source.stat().st_size} {source.stat().st_mtime_ns}"
    kept = target / "unpacked-from"
    if not kept.exists() or kept.read_text() != stamp:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        with tarfile.open(source) as tar:
            tar.extractall(
                target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
            )
        kept.write_text(stamp)
    return json.loads((target / FACTS).read_text())
