# SPDX-License-Identifier: Apache-2.0
"""python/examples/monai_bundle as its page has it: MONAI's dose map, and dosemap's both ways."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("monai", reason="MONAI is missing: its bundle is not run")
pytest.importorskip("ignite", reason="ignite is missing: no evaluator of MONAI's")
pytest.importorskip("fire", reason="fire is missing: MONAI's bundles have no command line")
pytest.importorskip("onnxscript", reason="ONNX is missing: no network is imported")

from dosemap_tools import nifti
from emulated_cuda import not_sanitized
from program import BINARY, assert_close, relative_l2

pytestmark = not_sanitized

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "python/examples"
PAGE = (EXAMPLES / "README.md").read_text()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The folder that the example has filled, and what it said."""
    folder = tmp_path_factory.mktemp("examples") / "new/example"
    paths = [*sys.path, str(ROOT / "tools")]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "monai_bundle/bundle_to_dose.py"), str(folder)],
        env=os.environ | {"DOSEMAP_BIN": str(BINARY), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_example(bundle):
    folder, said = bundle
    assert said.splitlines()[-1] == "the same"
    errors = [float(e) for e in re.findall(r"^  (\S+)  (?:the bundle|dosemap)", said, re.MULTILINE)]
    assert len(errors) == 2 and all(0 < error <= 1e-5 for error in errors)  # 0: MONAI twice
    in_monai, _ = nifti.read(folder / "eval/sub-example_pet_dose.nii.gz")
    alone, affine = nifti.read(folder / "dose.nii.gz")
    assert_close(in_monai, alone, 1e-5)
    assert affine.tolist() == nifti.read(folder / "pet/sub-example_pet.nii.gz")[1].tolist()
    # Neither a constant, nor the PET again.
    pet, _ = nifti.read(folder / "pet/sub-example_pet.nii.gz")
    assert alone.std() > 1e-2 and relative_l2(alone, pet) > 0.1
    assert json.loads((folder / "dose.json").read_text())


def test_commands_of_the_page(bundle, monkeypatch, capfd):
    """Typed into a shell in the folder, they do what the example did."""
    folder, _ = bundle
    monkeypatch.chdir(folder)
    first, second = re.findall(
        r"```sh\n(?:cd example\n)?(dosemap import.*?|python -m.*?)```", PAGE, re.S
    )
    expected, _ = nifti.read("eval/sub-example_pet_dose.nii.gz")
    Path("eval/sub-example_pet_dose.nii.gz").unlink()
    monkeypatch.setenv("DOSEMAP_BIN", str(BINARY))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(ROOT / "tools")]))
    importer = f"{sys.executable} -m dosemap_tools.importing.command"
    for line in (
        first.replace("dosemap import", importer),
        second.replace("python", sys.executable),
    ):
        subprocess.run(line, shell=True, check=True, timeout=600)
    found, _ = nifti.read("eval/sub-example_pet_dose.nii.gz")
    assert found.tobytes() == expected.tobytes()

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(code, {})
    alone, _ = nifti.read("dose.nii.gz")
    assert_close(alone, expected, 1e-5)  # the bundle's windows are dosemap's default
