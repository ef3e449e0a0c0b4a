# SPDX-License-Identifier: Apache-2.0
"""What tools/make_wheel made, as files: $DOSEMAP_WHEELS is its folder."""

import base64
import email
import hashlib
import os
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from dosemap_tools import __version__

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("DOSEMAP_WHEELS", "no-folder"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="$DOSEMAP_WHEELS is not set")
# Of the machine: glibc, and what auditwheel's policies allow.
SYSTEM = re.compile(r"(ld-linux-.*|lib(c|m|dl|rt|pthread|mvec|gcc_s|stdc\+\+|z))\.so\.\d+")
(VERSION,) = re.findall(
    r"project\(dosemap VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text()
)
INFO = f"dosemap-{VERSION}.dist-info"


@pytest.fixture(scope="module")
def wheel():
    (path,) = FOLDER.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


@pytest.fixture(scope="module")
def names(wheel):
    return [name for name in wheel.namelist() if not name.endswith("/")]


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    wheel.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def programs(unpacked):
    """Everything that the loader reads."""
    files = [path for path in unpacked.rglob("*") if path.is_file()]
    return [path for path in files if path.open("rb").read(4) == b"\x7fELF"]


@pytest.fixture(scope="module")
def sdist():
    (path,) = FOLDER.glob("*.tar.gz")
    with tarfile.open(path) as file:
        yield file


def of_the_repository(*pathspecs):
    listed = subprocess.run(
        ["git", "ls-files", *pathspecs], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split("\n")
    return {name for name in listed if name}


def in_packages():
    """The files of the packages by their names in the wheel; `networks` is a link to models/."""
    folders = {
        "python/dosemap/": "dosemap/",
        "tools/dosemap_tools/": "dosemap_tools/",
        "models/": "dosemap_tools/networks/",
    }
    return {
        name.replace(folder, package, 1)
        for folder, package in folders.items()
        for name in of_the_repository(folder)
        if name != "tools/dosemap_tools/networks"
    }


# Names and metadata ------------------------------------------------------------------------------
def test_name_and_size(wheel, sdist):
    name = Path(wheel.filename).name
    tag = re.fullmatch(rf"dosemap-{VERSION}-(cp3\d+-\w+)-manylinux_2_(\d+)_x86_64\.whl", name)
    assert tag, name
    assert tag[1] in {"cp310-cp310", "cp311-cp311", "cp312-abi3"}, name
    assert 17 <= int(tag[2]) <= 41
    assert os.path.getsize(wheel.filename) < (60e6 if is_for_cuda(wheel) else 16e6)
    assert Path(sdist.name).name == f"dosemap-{VERSION}.tar.gz"
    assert os.path.getsize(sdist.name) < 1.5e6
    assert __version__ == VERSION


def is_for_cuda(wheel):
    return "dosemap/lib/dosemap/libdosemap-cuda.so" in wheel.namelist()


def test_metadata(wheel):
    told = email.message_from_string(wheel.read(f"{INFO}/METADATA").decode())
    assert (told["Name"], told["Version"], told["Requires-Python"]) == (
        "dosemap",
        VERSION,
        ">=3.10",
    )
    assert told["License-Expression"] == "Apache-2.0" and told["License-File"] == "LICENSE"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told.get_payload().strip() == (ROOT / "python/README.md").read_text().strip()
    needed = [line for line in told.get_all("Requires-Dist") if "extra ==" not in line]
    assert [re.match(r"[\w-]+", line)[0] for line in needed] == ["numpy"]
    extras = {"notebook", "monai", "import", "torch", "all"}
    assert set(told.get_all("Provides-Extra")) == extras


def test_record(wheel, names):
    listed = {}
    for line in wheel.read(f"{INFO}/RECORD").decode().splitlines():
        name, digest, size = line.rsplit(",", 2)
        listed[name] = (digest, size)
    assert sorted(names) == sorted(listed)
    for name, (digest, size) in listed.items():
        if name != f"{INFO}/RECORD":
            content = wheel.read(name)
            made = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={made}", str(len(content))), name


# Content -----------------------------------------------------------------------------------------
def test_packages_are_complete(wheel, names):
    held = {name for name in names if name.endswith((".py", ".pyi", ".json", "py.typed"))}
    assert held - {f"{INFO}/sboms/auditwheel.cdx.json"} == in_packages()
    assert {"dosemap/py.typed", "dosemap/_core.pyi", "dosemap_tools/networks/dosegan.json"} <= held
    (core,) = (name for name in names if name.startswith("dosemap/_core.") and ".so" in name)
    assert core.endswith(".abi3.so") == ("abi3" in Path(wheel.filename).name)
    program = wheel.getinfo("dosemap/bin/dosemap")
    assert (program.external_attr >> 16) & 0o111 == 0o111


def test_nothing_else_is_in_it(names):
    ours = in_packages()
    kinds = (
        r"dosemap/(bin/dosemap|lib/libdosemap\.so\.0|lib/dosemap/libdosemap-cuda\.so|_core\..*so)",
        r"dosemap/share/dosemap/[\w-]+\.safetensors\.zst",
        r"dosemap/share/doc/dosemap/bundled/[\w.+-]+",
        r"dosemap\.libs/lib[\w.-]+",
        rf"{INFO}/.*",
    )
    other = [n for n in names if n not in ours and not any(re.fullmatch(k, n) for k in kinds)]
    assert other == []
    weights = {PurePosixPath(name).name for name in of_the_repository("weights/*.zst")}
    assert {PurePosixPath(n).name for n in names if n.endswith(".zst")} == weights


def test_each_bundled_library_has_its_licence(wheel, names):
    folder = "dosemap/share/doc/dosemap/bundled"
    rows = wheel.read(f"{folder}/bundled.tsv").decode().splitlines()[1:]
    table = [row.split("\t") for row in rows if not row.startswith("(in ")]
    assert all(wheel.read(f"{folder}/{owner}.txt").strip() for _, owner, _ in table)
    # auditwheel calls libdnnl.so.2 libdnnl-12345678.so.2.6.
    of_table = {library.split(".so")[0] for library, _, _ in table}
    held = {
        re.sub(r"-[0-9a-f]{8}\.so.*", "", PurePosixPath(n).name) for n in names if ".libs/" in n
    }
    assert held == of_table and {"libdnnl", "libgomp", "libnifti2", "libisal"} <= held
    assert any(row.startswith("(in libdosemap-cuda.so)") for row in rows) == is_for_cuda(wheel)


def test_libraries_come_from_the_wheel(unpacked, programs):
    assert len(programs) >= 10
    bundled = {path.name for path in unpacked.rglob("*.so*")}
    for path in programs:
        told = subprocess.run(
            ["objdump", "-p", str(path)], capture_output=True, text=True, check=True
        ).stdout
        for needed in re.findall(r"^\s+NEEDED\s+(\S+)", told, re.MULTILINE):
            assert SYSTEM.fullmatch(needed) or needed in bundled, (path.name, needed)
        for paths in re.findall(r"^\s+(?:RPATH|RUNPATH)\s+(\S+)", told, re.MULTILINE):
            assert all(part.startswith("$ORIGIN") for part in paths.split(":")), (path.name, paths)
        assert "  RUNPATH" not in told, path.name  # LD_LIBRARY_PATH would come before it
        symbols = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=False)
        assert "no symbols" in symbols.stderr, path.name


def test_the_loader_finds_them_there(unpacked, programs):
    for path in programs:
        told = subprocess.run(
            ["/usr/bin/ldd", str(path)], env={}, capture_output=True, text=True, check=True
        ).stdout
        for library, place in re.findall(r"^\s+(\S+) => (.+?)(?: \(0x.*)?$", told, re.MULTILINE):
            inside = Path(place).resolve().is_relative_to(unpacked.resolve())
            assert inside or SYSTEM.fullmatch(library), (path.name, library, place)


def test_no_folder_of_this_machine_is_named(unpacked):
    folders = [b"/usr/local", str(ROOT).encode() + b"/", str(Path.home()).encode() + b"/"]
    for path in unpacked.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".txt"):
            # Builds are made in /tmp; oneDNN writes there if it is asked to.
            of_ours = [] if "dosemap.libs" in path.parts else [b"/tmp/"]
            content = path.read_bytes()
            named = [text for text in folders + of_ours if text in content]
            assert named == [], path.relative_to(unpacked)


# The sdist ---------------------------------------------------------------------------------------
def test_sdist(sdist):
    top = f"dosemap-{VERSION}/"
    members = sdist.getmembers()
    assert all(member.name.startswith(top) and member.isfile() for member in members)
    held = {member.name.removeprefix(top) for member in members}
    folders = ("host", "kernels", "models", "weights", "python/binding", "python/dosemap")
    wanted = of_the_repository(*folders, "tools/cmake", "tools/dosemap_tools/*.py")
    wanted |= {f"tools/{name}" for name in in_packages() if name.startswith("dosemap_tools/")}
    wanted |= {"CMakeLists.txt", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    wanted |= {"python/CMakeLists.txt", "python/README.md"}
    assert held == wanted
