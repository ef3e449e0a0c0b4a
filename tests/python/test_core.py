# SPDX-License-Identifier: Apache-2.0
"""dosemap._core does what the program does, and holds on to what it borrows."""

import gc
import json
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import dosemap
import numpy as np
import pytest
from dosemap import _core
from dosemap_tools import nifti
from program import ROOT, assert_dose

ROWS = [-4.0, 0, 0, 70, 0, -4, 0, 60, 0, 0, 5, -100]
SUV = ("--units", "suv", "--body-weight", "78.7")


@pytest.fixture(scope="module")
def tiny(tiny_path):
    return _core.Model.load(tiny_path)


@pytest.fixture
def view(pet_data):
    return _core.Volume.view(pet_data, ROWS)


def suv_info():
    info = _core.PetInfo()
    info.units, info.body_weight_kg = "suv", 78.7
    return info


def predictor(model, **options):
    return _core.Predictor(model, **{"device": "cpu", "threads": 1, **options})


def bits(array):
    return np.asarray(array).view(np.uint32)


def test_files_are_those_of_the_program(tmp_path, tiny, tiny_path, pet, labels, program):
    """Dose map and tables byte for byte; the sidecar but for times and the command line."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    program("predict", pet, "-o", theirs / "dose.nii.gz", "--model", tiny_path, "--labels", labels,
            "--activity", "7.4", "--vx", "1,2", "--threads", "1", "--quiet")  # fmt: skip
    volume, structures = _core.Volume.read(pet), _core.Labels.read(labels)
    result = predictor(tiny, v_thresholds=[1, 2]).run(
        volume, _core.PetInfo.read(pet), labels=structures, activity_gbq=7.4
    )
    result.write(ours / "dose.nii.gz", pet_path=pet, labels_path=labels)
    names = ["dose.nii.gz", "dose_dvh.tsv", "dose_organs.tsv"]
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert sorted(os.listdir(ours)) == sorted([*names, "dose.json"]) == sorted(os.listdir(theirs))
    assert list(_core.output_paths(ours / "dose.nii.gz")) == [
        str(ours / name) for name in ("dose.nii.gz", "dose.json", "dose_dvh.tsv", "dose_organs.tsv")
    ]
    assert _core.prediction_is_complete(ours / "dose.nii.gz")
    assert not _core.prediction_is_complete(ours / "other.nii.gz")
    mine, its = (json.loads((at / "dose.json").read_text()) for at in (ours, theirs))
    assert mine["PET"] == its["PET"] and mine["Model"] == its["Model"]
    kept = json.loads(result.provenance_json)
    assert kept["PET"]["Units"] == its["PET"]["Units"]


def test_arrays_are_predicted_as_files_are(tmp_path, tiny, pet_data, affine, view):
    """The dose of the known kernel, on the array itself; Gy by the patient's own activity."""
    ready = predictor(tiny, tile="whole")
    per_activity = np.asarray(ready.run(view, suv_info()).dose.data)
    path = tmp_path / "pet.nii"
    nifti.write(path, pet_data, affine)
    of_file = ready.run(_core.Volume.read(path), suv_info()).dose
    assert np.array_equal(bits(of_file.data), bits(per_activity))
    assert of_file.affine == view.affine == ROWS
    # The network's axes run with RAS, the image's x and y against it.
    padded = np.pad(pet_data, 1)
    own, after_x, before_z = (
        padded[1 + x : 38 + x, 1:34, 1 + z : 21 + z] for x, z in ((0, 0), (1, 0), (0, 1))
    )
    assert_dose(per_activity, 0.5 * own + 0.25 * after_x + 0.25 * before_z)
    in_gy = np.asarray(ready.run(view, suv_info(), activity_gbq=7.4).dose.data)
    assert_dose(in_gy, 7.4 * np.float64(per_activity))


def test_what_the_program_says(program, tiny, tiny_path, constructed_path):
    assert _core.version() in program("--version")
    assert json.loads(_core.doctor_json()).keys() == json.loads(program("doctor", "--json")).keys()
    described = json.loads(tiny.describe(tile=(16, 8, 8)))
    assert described == json.loads(program("inspect", tiny_path, "--json", "--tile", "16,8,8"))
    same, difference = tiny.compare(_core.Model.load(tiny_path))
    assert same and json.loads(difference)
    other = _core.Model.load(os.fsencode(constructed_path))
    assert not tiny.compare(other, as_json=False)[0]
    assert json.loads(tiny.card_json)["name"] == json.loads(tiny.graph_json)["name"] == tiny.name
    assert tiny.path == str(tiny_path)
    assert tiny.takes("uptake") and not tiny.takes("hu")


def test_ct(pet_ct_path, pet_data, view):
    """A CT of half the spacing comes onto the PET's grid, and into the dose."""
    model = _core.Model.load(pet_ct_path)
    assert model.takes("hu")
    fine = [-2.0, 0, 0, 71, 0, -2, 0, 61, 0, 0, 2.5, -101.25]
    hu = np.full([2 * n for n in pet_data.shape], -500, np.float32, order="F")
    hu[:, :9], hu[0, 20, 0] = 200, np.nan
    with pytest.raises(dosemap.InvalidValueError):
        _core.ct_onto_pet(_core.Volume.view(hu, fine), view)
    ct, info = _core.ct_onto_pet(_core.Volume.view(hu, fine), view, nan_to_air=True)
    assert ct.dim == view.dim and info.resampled and info.voxels_to_air == 1
    assert info.dim == hu.shape and info.spacing_mm == (2, 2, 2.5)
    assert (info.lowest, info.highest) == (-500, 200)
    assert info.voxels_covered == info.activity_covered == 1
    dose = predictor(model).run(view, suv_info(), ct, info).dose
    expected = 0.5 * np.float64(pet_data) + np.asarray(ct.data) / 1000.0 + 1
    assert_dose(np.asarray(dose.data), expected)
    with pytest.raises(dosemap.InvalidValueError, match="CT"):
        predictor(model).run(view, suv_info())


def test_forward(tiny):
    """Patches in, patches out, in the network's axes."""
    patches = np.random.default_rng(1).normal(size=(2, 1, 8, 8, 8)).astype(np.float32)
    [(name, array)] = tiny.forward([("pet", patches)], device="cpu", threads=1)
    result = np.asarray(array)
    padded = np.pad(patches[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1), (1, 1)))
    own, before, after = (
        padded[:, 1 + x : 9 + x, 1:9, 1 + z : 9 + z] for x, z in ((0, 0), (-1, 0), (0, 1))
    )
    assert name == "dose" and result.shape == patches.shape and not result.flags.writeable
    expected = np.maximum(0.5 * own + 0.25 * before + 0.25 * after, 0)
    np.testing.assert_allclose(result[:, 0], expected, rtol=1e-5, atol=1e-6)
    del array
    gc.collect()
    np.testing.assert_allclose(result[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_labels(tmp_path, labels, ids, pet_data):
    read = _core.Labels.read(labels)
    voxels = {int(i): int((ids == i).sum()) for i in (1, 3)}
    assert read.structures == [(i, f"label_{i}", n) for i, n in voxels.items()]
    assert read.dim == pet_data.shape and read.affine == ROWS
    # A dict renames what is there, also where two names are exchanged.
    names = {1: "label_3", 3: "label_1", 99: "absent"}
    for named in (_core.Labels.read(labels, names), _core.Labels.from_ids(ids, ROWS, names)):
        assert named.structures == [(i, names[i], n) for i, n in voxels.items()]
    table = tmp_path / "names.json"
    table.write_text('{"1": "liver", "3": "spleen"}')
    for named in (_core.Labels.read(labels, table), _core.Labels.from_ids(ids, ROWS, str(table))):
        assert [name for _, name, _ in named.structures] == ["liver", "spleen"]
    with pytest.raises(dosemap.InvalidValueError):
        _core.Labels.from_ids(ids, ROWS, {1: "one", 3: "one"})
    whole = np.ones(ids.shape, np.uint8, order="F")
    one = np.asfortranarray(ids == 1).view(np.uint8)
    overlapping = _core.Labels.from_masks(["whole", "one"], [whole, one], ROWS)
    assert overlapping.structures == [(1, "whole", ids.size), (2, "one", voxels[1])]
    half = _core.Labels.from_ids(ids, ROWS).resample(
        (18, 16, 20), [-8.0, *ROWS[1:5], -8, *ROWS[6:]]
    )
    assert half.dim == (18, 16, 20) and 0 < half.structures[0][2] < voxels[1]


def test_dvh(tmp_path, pet_data, ids, view, affine, program):
    dvh = _core.Dvh.compute(view, _core.Labels.from_ids(ids, ROWS), [2.0, 1.0], per_activity=True)
    assert len(dvh) == 2
    doses = pet_data[ids == 3]
    one = dvh.structure(1)
    assert (one.id, one.name, one.voxels) == (3, "label_3", doses.size)
    assert math.isclose(one.volume_cm3, doses.size * 0.08, rel_tol=1e-9)
    assert math.isclose(one.mean, doses.mean(dtype=np.float64), rel_tol=1e-6)
    assert (one.minimum, one.maximum) == (doses.min(), doses.max())
    assert one.d98 <= one.d95 <= one.d50 <= one.d2 <= one.maximum
    assert one.v_percent == [pytest.approx(100 * (doses >= x).mean()) for x in (2, 1)]
    histogram = np.asarray(one.histogram)
    assert histogram.dtype == np.uint64 and histogram.sum() == doses.size
    assert math.isclose(one.bin_width, min(0.01, one.maximum / 1000))
    with pytest.raises(IndexError):
        dvh.structure(2)
    with pytest.raises(TypeError):
        dvh.structure(-1)
    # The tables of a dose map's file, by the program.
    nifti.write(tmp_path / "dose.nii", pet_data, affine)
    nifti.write(tmp_path / "ids.nii", ids, affine)
    program("dvh", tmp_path / "dose.nii", "--labels", tmp_path / "ids.nii", "--per-activity",
            "--vx", "2,1", "--quiet", "-o", tmp_path / "its")  # fmt: skip
    for write, name in ((dvh.write_organs, "organs.tsv"), (dvh.write_curves, "dvh.tsv")):
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / f"its_{name}").read_bytes()


def test_pet_info(pet):
    info = _core.PetInfo()
    numbers = ("body_weight_kg", "injected_mbq", "residual_mbq", "half_life_s",
               "injection_time_s", "scan_time_s")  # fmt: skip
    assert info.units is None and info.decay is None
    assert info.radionuclide == info.tracer == info.sidecar == ""
    for name in numbers:
        assert math.isnan(getattr(info, name)), name
        setattr(info, name, 2.5)
        assert getattr(info, name) == 2.5
    for name in ("suv", "bqml", "kbqml", None):
        info.units = name
        assert info.units == name
    for name in ("injection", "start", "none", None):
        info.decay = name
        assert info.decay == name
    info.tracer = "PSMA-11 ☢"
    assert info.tracer == "PSMA-11 ☢"
    info.radionuclide = 15 * "x"
    for refused in ({"units": "mg"}, {"decay": "x"}, {"radionuclide": 16 * "x"}, {"tracer": "a\0"}):
        with pytest.raises(dosemap.InvalidValueError):
            setattr(info, *next(iter(refused.items())))
    assert info.radionuclide == 15 * "x"
    read = _core.PetInfo.read(pet)
    assert (read.units, read.body_weight_kg) == ("suv", 78.7)
    assert read.sidecar == str(pet.with_name("sub-1_pet.json"))
    assert _core.time_parse("01:00:01.5") == 3601.5
    assert _core.half_life_s("Ga-68") == _core.half_life_s("68Ga") > 4000
    assert math.isnan(_core.half_life_s("Xx1"))
    with pytest.raises(dosemap.InvalidValueError):
        _core.time_parse("noon")


def test_volumes(tmp_path, pet, pet_data, view):
    read = _core.Volume.read(pet)
    assert read.dim == pet_data.shape and read.spacing_mm == (4, 4, 5)
    array = np.asarray(read.data)
    assert array.flags.f_contiguous and not array.flags.writeable
    assert np.array_equal(array, pet_data)
    view.write(tmp_path / "out.nii.zst", threads=1)
    again = _core.Volume.read(tmp_path / "out.nii.zst")
    assert again.affine == ROWS and np.array_equal(np.asarray(again.data), pet_data)
    assert _core.grid_difference(view.dim, view.affine, read.dim, read.affine) == ""
    assert "size" in _core.grid_difference(view.dim, view.affine, (1, 2, 3), read.affine)


# ---- Who keeps what ------------------------------------------------------------------------------


class Watched(np.ndarray):
    """An array that can be referred to weakly."""


def test_views_keep_their_array(pet_data):
    array = pet_data.copy(order="F").view(Watched)
    gone = weakref.ref(array)
    before = sys.getrefcount(array)
    volume = _core.Volume.view(array, ROWS)
    assert sys.getrefcount(array) > before
    seen = np.asarray(volume.data)
    assert np.shares_memory(seen, array)
    del array, volume
    gc.collect()
    assert gone() is not None and seen[0, 0, 0] == pet_data[0, 0, 0]
    del seen
    gc.collect()
    assert gone() is None


def test_borrowed_parts_keep_the_whole(tiny_path, view, ids):
    """Arrays of a prediction whose model, predictor and DVH nobody names any more."""
    labels = _core.Labels.from_ids(ids, ROWS)
    model = _core.Model.load(tiny_path)
    ready = predictor(model)
    del model
    gc.collect()
    result = ready.run(view, suv_info(), labels=labels)
    dose, histogram = np.asarray(result.dose.data), np.asarray(result.dvh.structure(0).histogram)
    expected = dose.copy(), histogram.copy()
    del ready, result, labels
    gc.collect()
    # What would have been released is used again.
    noise = [np.full(dose.shape, np.nan, np.float32) for _ in range(8)]
    assert np.array_equal(dose, expected[0]) and np.array_equal(histogram, expected[1])
    del noise


def test_no_reference_is_left(tiny, pet_data, ids):
    """Counts of what is passed in stay what they were, also where the call fails."""
    info, array, structures = suv_info(), pet_data.copy(order="F"), ids.copy(order="F")
    told = []

    def callback(share, stage):
        told.append(share)

    ready = predictor(tiny)

    def use():
        volume = _core.Volume.view(array, ROWS)
        labels = _core.Labels.from_ids(structures, ROWS, {1: "one"})
        ready.run(volume, info, labels=labels, progress=callback)
        with pytest.raises(dosemap.InvalidValueError):
            ready.run(volume, _core.PetInfo(), progress=callback)
        with pytest.raises(TypeError):
            _core.Volume.view(array, ROWS[:11])
        with pytest.raises(TypeError):
            _core.Labels.from_ids(array, ROWS)

    use()
    gc.collect()
    passed = [info, array, structures, callback, tiny, ready]
    before = [sys.getrefcount(one) for one in passed]
    for _ in range(5):
        use()
    gc.collect()
    assert [sys.getrefcount(one) for one in passed] == before
    assert told


EVERYTHING = """
import sys, numpy as np
from dosemap import _core
_core.report_leaks()
model = _core.Model.load(sys.argv[1])
pet = np.asfortranarray(np.ones((9, 8, 8), np.float32))
volume = _core.Volume.view(pet, [4.0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 4, 0])
labels = _core.Labels.from_ids(np.asfortranarray((pet > 0).astype(np.int32)), volume.affine)
info = _core.PetInfo()
info.units, info.body_weight_kg = "suv", 70
ready = _core.Predictor(model, device="cpu", threads=1, v_thresholds=[1])
result = ready.run(volume, info, labels=labels, progress=lambda share, stage: None)
dose, structure = np.asarray(result.dose.data), result.dvh.structure(0)
patches = model.forward([("pet", np.ones((1, 1, 8, 8, 8), np.float32))], device="cpu", threads=1)
for failing in (lambda: ready.run(volume), lambda: _core.Volume.read("/nowhere"), _core.Model):
    try:
        failing()
    except Exception as error:
        kept = error
    else:
        raise SystemExit("nothing was raised")
print("ended", dose.shape)
"""


def test_nothing_is_left_at_the_end(tiny_path):
    """nanobind names what has leaked when the interpreter ends."""
    command = [sys.executable, "-c", EVERYTHING, str(tiny_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ended (9, 8, 8)\n", "")
    leaking = EVERYTHING + "import ctypes; ctypes.pythonapi.Py_IncRef(ctypes.py_object(volume))\n"
    result = subprocess.run([*command[:2], leaking, *command[3:]], capture_output=True, text=True)
    assert "nanobind" in result.stderr and "Volume" in result.stderr, "the report is not on"


AGAIN = """
import sys
import dosemap
from dosemap import _core
first = _core
model = _core.Model.load(sys.argv[1])
for name in [name for name in sys.modules if name.startswith("dosemap")]:
    del sys.modules[name]
import dosemap
assert dosemap._core is not first and dosemap._core.Model is first.Model
assert vars(first).keys() == vars(dosemap._core).keys()
try:
    first.Volume.read("/nowhere")
except dosemap.FileError:
    print(dosemap._core.Predictor(model, device="cpu", threads=1) is not None)
"""


def test_a_second_import(tiny_path):
    """After sys.modules was emptied, as tools that load code anew do: the same types."""
    command = [sys.executable, "-W", "error", "-c", AGAIN, str(tiny_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, "True\n", "")


SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
from dosemap import _core
model = _core.Model.load(sys.argv[1])
try:
    failed = interpreters.run_string(interpreters.create(), "from dosemap import _core")
except Exception as error:
    failed = error  # before Python 3.13, which returns it
print("subinterpreter" in str(failed))
print(_core.Model.load(sys.argv[1]).compare(model)[0])
"""


def test_no_subinterpreters(tiny_path):
    command = [sys.executable, "-c", SUBINTERPRETER, str(tiny_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (0, "True\nTrue\n"), result.stderr


def test_types_are_those_of_the_module(tmp_path):
    """python/dosemap/_core.pyi is what tools/python_stub makes."""
    pytest.importorskip("nanobind", reason="nanobind is missing: stubs are not made")
    build = Path(_core.__file__).parents[2]
    made = tmp_path / "_core.pyi"
    command = [ROOT / "tools/python_stub", sys.executable, build, made]
    subprocess.run(command, check=True, timeout=120)
    committed = (ROOT / "python/dosemap/_core.pyi").read_text()
    assert committed == made.read_text(), "run tools/python_stub PYTHON BUILD"
