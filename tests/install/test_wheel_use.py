# SPDX-License-Identifier: Apache-2.0
"""The wheel that tools/make_wheel made ($DOSEMAP_WHEELS), installed: without and with packages.

The environment is new each time; `full` sees the packages of the tests' Python, too, so that
nothing is fetched.
"""

import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("DOSEMAP_WHEELS", "no-folder"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="$DOSEMAP_WHEELS is not set")
ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "weights/dosegan-16-constructed.safetensors.zst"
CLEAN = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "2", "MPLBACKEND": "agg"}


class Environment:
    """A virtual environment with the wheel and nothing else, or with `packages` as well."""

    def __init__(self, folder, packages=None):
        venv.create(folder, with_pip=False)
        self.home = folder / "home"  # caches of others go there
        self.home.mkdir()
        self.bin = folder / "bin"
        (wheel,) = FOLDER.glob("*.whl")
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python")]
        options = ["-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *options, str(wheel)], check=True)
        self.site = Path(self.python("import sysconfig; print(sysconfig.get_path('purelib'))"))
        self.package = self.site / "dosemap"
        if packages:
            (self.site / "packages.pth").write_text(f"{packages}\n")

    def run(self, *command, status=0, **environment):
        """Return what a command prints, with nothing of this process's environment."""
        words = [str(word) for word in command]
        done = subprocess.run(
            [str(self.bin / words[0]), *words[1:]],
            env=CLEAN | {"HOME": str(self.home), "DOSEMAP_MODEL": str(SMALL)} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == status, (words, done.returncode, done.stdout + done.stderr)
        return done.stdout.strip() if status == 0 else done.stderr

    def python(self, code, *arguments, **environment):
        return self.run("python", "-I", "-c", code, *arguments, **environment)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    import numpy

    return Environment(tmp_path_factory.mktemp("full"), Path(numpy.__file__).parents[1])


@pytest.fixture(scope="module")
def example(full, tmp_path_factory):
    """The example PET, made by `dosemap example`: a command from beside the script."""
    folder = tmp_path_factory.mktemp("example")
    written = full.run("dosemap", "example", folder).splitlines()
    assert all(Path(name).is_file() for name in written) and len(written) == 4
    return folder / "sub-example"


# Without numpy and nibabel -----------------------------------------------------------------------
PREDICT = """
import sys, dosemap
pet, labels, out = sys.argv[1:]
result = dosemap.load_model().predict(pet, labels=labels, overlap=0, activity_gbq=7.4)
result.save(out)
print(result.dvh[0].mean)
try:
    result.dose
except dosemap.MissingPackageError as error:
    print(error)
assert not {"numpy", "nibabel", "pandas", "matplotlib", "tqdm"} & set(sys.modules)
"""


def test_files_need_no_other_package(bare, example, tmp_path):
    pet, labels = f"{example}_pet.nii.gz", f"{example}_dseg.nii.gz"
    mean, missing = bare.python(PREDICT, pet, labels, tmp_path / "a.nii.gz").splitlines()
    assert float(mean) > 0
    assert "numpy" in missing and "pip install numpy" in missing
    bare.run("dosemap", "predict", pet, "--labels", labels, "--overlap", "0", "--activity", "7.4",
             "-o", tmp_path / "b.nii.gz")  # fmt: skip
    for end in (".nii.gz", "_dvh.tsv", "_organs.tsv"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()


# With them ---------------------------------------------------------------------------------------
ARRAYS = """
import sys, nibabel, numpy as np, dosemap
pet, labels = sys.argv[1:]
model = dosemap.load_model()
of_file = model.predict(pet, labels=labels, overlap=0)
image = nibabel.load(pet)
values = np.asarray(image.dataobj, np.float64)
again = model.predict(values, affine=image.affine, labels=nibabel.load(labels), overlap=0,
                      **dosemap.pet_info(pet))
assert again.dose.dtype == np.float32 and again.dose.shape == image.shape
assert again.dose.tobytes() == of_file.dose.tobytes() and float(again.dose.max()) > 0
assert (again.to_nifti().affine == image.affine).all()
table = again.organ_table()
assert len(table) == len(again.dvh) > 3
print(type(table).__module__, again.plot())
"""


def test_arrays_tables_and_figures(full, example):
    printed = full.python(ARRAYS, f"{example}_pet.nii.gz", f"{example}_dseg.nii.gz")
    assert printed.startswith("pandas") and "Figure" in printed


def test_an_import_is_proven_with_the_program_of_the_wheel(full, tmp_path):
    network, card = tmp_path / "network.onnx", tmp_path / "card.json"
    again_file = tmp_path / "again.safetensors.zst"
    full.run("dosemap", "export", SMALL, "-o", network)
    graph = json.loads(full.run("dosemap", "inspect", SMALL, "--json"))
    card.write_text(json.dumps(CARD))
    printed = full.run("dosemap", "import", network, "--card", card, "-o", again_file)
    assert "relative L2" in printed
    again = json.loads(full.run("dosemap", "inspect", again_file, "--json"))
    assert again["parameters"] == graph["parameters"]


CARD = {
    "name": "again", "version": "1", "summary": "An example.", "licence": "Apache-2.0",
    "trained": False, "training": "None.", "limitations": "Of no use.",
    "patch_size": [32, 32, 32], "voxel_size_mm": None, "spatial_axes": "xyz", "orientation": "RAS",
    "inputs": [{"name": "pet", "quantity": "uptake"}],
    "outputs": [{"name": "dose", "quantity": "dose_per_activity"}],
}  # fmt: skip


# The program -------------------------------------------------------------------------------------
def test_everything_is_found_in_the_package(bare):
    told = json.loads(bare.run("dosemap", "doctor", "--json", DOSEMAP_MODEL=""))
    told_here = bare.python(
        "import dosemap; print(dosemap.doctor()['model']['default'])", DOSEMAP_MODEL=""
    )
    weights = bare.package / "share/dosemap/dosegan-constructed.safetensors.zst"
    assert told["model"]["default"] == told_here == str(weights)
    module = bare.package / "lib/dosemap/libdosemap-cuda.so"
    if module.exists():
        assert told["cuda"]["module"] == str(module)
    maps = bare.python("import dosemap; print(open('/proc/self/maps').read())")
    loaded = set(re.findall(r"\s(/\S+\.so\S*)", maps))
    ours = {
        Path(name).name.split("-")[0].split(".")[0] for name in loaded if str(bare.site) in name
    }
    assert {"libdosemap", "libdnnl", "libgomp", "libnifti2", "libisal", "libzstd"} <= ours


def test_the_program_is_not_taken_in_by_other_libraries(bare, tmp_path):
    (tmp_path / "libdosemap.so.0").write_bytes(b"another one")
    bare.run("dosemap", "--version", LD_LIBRARY_PATH=str(tmp_path))
    bare.python("import dosemap", LD_LIBRARY_PATH=str(tmp_path))


def test_signals_status_and_commands_on_path(bare, tmp_path):
    """The script becomes the program: as if that had been started itself."""
    other = tmp_path / "dosemap-shows"
    other.write_text('#!/bin/sh\ngrep SigIgn /proc/self/status\necho "$@"\necho "$PATH"\nexit 3\n')
    other.chmod(0o755)
    path = f"{tmp_path}:{CLEAN['PATH']}"
    script, itself = (
        subprocess.run(
            [str(program), "shows", "a b", "--c"],
            env=CLEAN | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        for program in (bare.bin / "dosemap", bare.package / "bin/dosemap")
    )
    assert script.returncode == itself.returncode == 3, script.stderr
    assert script.stdout.splitlines()[1:] == ["a b --c", path]
    assert script.stdout == itself.stdout  # Python ignores SIGPIPE, the program does not


def test_scripts(full):
    for name in ("import", "export", "construct", "example"):
        assert full.run("dosemap", name, "--help") == full.run(f"dosemap-{name}", "--help")
    assert full.run("dosemap", "--version").endswith(
        full.python("import dosemap; print(dosemap.__version__)")
    )


# Types -------------------------------------------------------------------------------------------
PROGRAM = """
from pathlib import Path

import dosemap

def mean_doses(pet: Path, labels: Path) -> dict[str, float]:
    model = dosemap.load_model()
    result = model.predict(pet, labels=labels, activity_gbq=7.4, progress=lambda share, stage: None)
    files: list[Path] = result.save("dose.nii.gz")
    assert result.dvh is not None and files and result.dose.ndim == 3
    return {structure.name: structure.mean for structure in result.dvh}
"""


def test_types(full, tmp_path):
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    for text, status in ((PROGRAM, 0), (PROGRAM.replace("7.4", "'7.4 GBq'"), 1)):
        program.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--python-executable",
             str(full.bin / "python"), "--cache-dir", str(tmp_path / "cache"), str(program)],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
    assert '"str"' in done.stdout
