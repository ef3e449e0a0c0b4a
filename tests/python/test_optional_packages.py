# SPDX-License-Identifier: Apache-2.0
"""What works without which package, and what is said of the others."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

OPTIONAL = (
    "numpy",
    "nibabel",
    "pandas",
    "tqdm",
    "matplotlib",
    "torch",
    "monai",
    "torchio",
    "scipy",
)


def python(code, *without, **environment):
    """Run `code` where the packages in `without` cannot be imported; what it prints, as JSON."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({without!r}))\n"
    run = subprocess.run(
        [sys.executable, "-c", blocked + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_nothing_is_imported():
    """And with none of them there, it imports just as well."""
    code = "import dosemap, json; print(json.dumps(sorted(sys.modules)))"
    imported = python(code)
    assert "dosemap" in imported and not set(OPTIONAL) & set(imported)
    assert "dosemap" in python(code, *OPTIONAL)


def test_star_and_names():
    """All that the package says it has, is there, whatever is missing."""
    code = """
        import json
        import dosemap
        names = {}
        exec("from dosemap import *", names)
        print(json.dumps([name for name in dosemap.__all__ if name not in names]))
    """
    assert python(code, *OPTIONAL) == []


def test_from_file_to_file_without_any(tiny_path, pet, labels, tmp_path, program):
    """The same bytes, tables included, on a bare Python."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    words = ("--labels", labels, "--vx", "0.5", "--activity", "7.4", "--model", tiny_path)
    program("predict", pet, "-o", theirs / "out.nii.gz", *words)
    code = f"""
        import json
        import dosemap
        model = dosemap.load_model({str(tiny_path)!r})
        p = model.predict({str(pet)!r}, labels={str(labels)!r}, vx=(0.5,), activity_gbq=7.4)
        files = p.save({str(ours / "out.nii.gz")!r})
        print(json.dumps([
            [file.name for file in files],
            [p.unit, p.shape, p.spacing_mm, repr(p), p.provenance["Model"]["Name"]],
            [p._repr_html_().count("<tr>"), len(p.dvh.records()), p.dvh["label_1"].mean],
            [dosemap.pet_info({str(pet)!r}), dosemap.read({str(pet)!r}).shape],
            [model.graph["name"], "card" in model.inspect(), dosemap.devices()[0].name],
        ]))
    """
    files, prediction, structures, images, rest = python(code, *OPTIONAL)
    assert files == ["out.nii.gz", "out_dvh.tsv", "out_organs.tsv", "out.json"]
    assert prediction[:3] == ["Gy", [37, 33, 20], [4, 4, 5]] and prediction[4] == "tiny"
    assert structures[:2] == [6, 2] and structures[2] > 0
    assert images == [{"units": "suv", "body_weight_kg": 78.7}, [37, 33, 20]]
    assert rest == ["tiny", True, "cpu"]
    for name in files[:-1]:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


MISSING = {
    "p.dose": "numpy",
    "p.affine": "numpy",
    "p.pet.data": "numpy",
    "model.predict([[[1.0]]], affine=[[1]])": "numpy",
    "model.forward({'pet': [1]})": "numpy",
    "p.dvh['label_1'].curve()": "numpy",
    "p.to_nifti()": "nibabel",
    "dosemap.read(pet).to_nifti()": "nibabel",
    "p.organ_table()": "pandas",
    "p.dvh.to_pandas()": "pandas",
    "model.predict(pet, progress=True)": "tqdm",
    "p.plot()": "matplotlib",
    "p.dvh.plot()": "matplotlib",
}


@pytest.mark.parametrize("expression", MISSING)
def test_what_is_said_of_a_package(tiny_path, pet, labels, expression):
    package = MISSING[expression]
    code = f"""
        import json
        import dosemap
        pet = {str(pet)!r}
        model = dosemap.load_model({str(tiny_path)!r})
        p = model.predict(pet, labels={str(labels)!r})
        try:
            {expression}
        except ImportError as error:
            print(json.dumps([type(error).__name__, str(error), error.remedy]))
    """
    kind, text, remedy = python(code, package)
    assert (kind, remedy) == ("MissingPackageError", f"pip install {package}")
    assert package in text and "--" not in text


def test_arrays_without_nibabel(tiny_path):
    code = f"""
        import json
        import dosemap
        import numpy as np
        model = dosemap.load_model({str(tiny_path)!r})
        p = model.predict(np.ones((9, 8, 7)), affine=np.eye(4), units="suv", body_weight_kg=78.7,
                          labels=np.eye(9)[:, :8, None] * np.ones(7))
        print(json.dumps([p.dose.shape, p.dvh.names]))
    """
    assert python(code, "nibabel", "pandas", "tqdm", "matplotlib", "torch") == [
        [9, 8, 7],
        ["label_1"],
    ]


def test_a_package_that_is_broken(tiny_path, pet, tmp_path):
    """The reason is said, not only that it is missing."""
    (tmp_path / "nibabel").mkdir()
    (tmp_path / "nibabel" / "__init__.py").write_text(
        "raise ImportError('libfoo.so: no such file')"
    )
    code = f"""
        import json
        import dosemap
        try:
            dosemap.load_model({str(tiny_path)!r}).predict({str(pet)!r}).to_nifti()
        except dosemap.MissingPackageError as error:
            print(json.dumps(str(error)))
    """
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert "libfoo.so" in python(code, PYTHONPATH=path)
