# SPDX-License-Identifier: Apache-2.0
"""The examples in the package's documentation, run in a folder with the files that they name."""

import doctest
import importlib
import json
import pkgutil

import numpy as np
import pytest

nib = pytest.importorskip("nibabel", reason="nibabel is missing: the examples' files are not made")

import dosemap
from program import ROOT

MODULES = sorted(
    module.name
    for module in pkgutil.iter_modules(dosemap.__path__)
    if not module.name.startswith("_core")
)
NEEDS = {"_dvh": ["pandas"], "_prediction": ["pandas"], "_plot": ["matplotlib"], "monai": ["monai"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A PET in SUV of a patient of 78.7 kg, a dose map, and two organs, all on one grid."""
    affine = np.array([[-4.0, 0, 0, 60], [0, 4, 0, -50], [0, 0, 5, -200], [0, 0, 0, 1]])
    pet = np.random.default_rng(8).gamma(1.5, 2.0, (32, 24, 20)).astype(np.float32)
    organs = np.zeros(pet.shape, np.uint8)
    organs[4:8, 10:14, 6:12], organs[16:24, 8:18, 8:14] = 1, 2
    pet[organs > 0] *= 4
    for name, data in {"pet": pet, "dose": 0.2 * pet, "organs": organs}.items():
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
    (tmp_path / "organs.tsv").write_text("index\tname\n1\tkidney_left\n2\tliver\n")
    (tmp_path / "dose.json").write_text(json.dumps({"Units": "Gy"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "DOSEMAP_MODEL", str(ROOT / "weights/dosegan-16-constructed.safetensors.zst")
    )
    return tmp_path


@pytest.mark.parametrize("name", ["", *MODULES])
def test_examples(folder, name):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    module = importlib.import_module(f"dosemap.{name}" if name else "dosemap")
    names = {"dosemap": dosemap, "np": np}
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(module, extraglobs=names, optionflags=flags)
    assert outcome.failed == 0


def test_public_names_have_examples(folder):
    """Those that a user calls, or something of theirs."""
    finder = doctest.DocTestFinder()
    for name in dosemap.__all__:
        thing = getattr(dosemap, name)
        if name.startswith("_") or (isinstance(thing, type) and issubclass(thing, Exception)):
            continue
        examples = [e for test in finder.find(thing, name, module=False) for e in test.examples]
        assert examples, f"dosemap.{name} has no example"
