# SPDX-License-Identifier: Apache-2.0
"""dosemap._core refuses what it cannot use, and says why; nothing crashes."""

import copy
import itertools
import os
import pickle

import dosemap
import numpy as np
import pytest
from dosemap import _core
from dosemap_tools import nifti

ROWS = [4.0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 4, 0]


@pytest.fixture(scope="module")
def tiny(tiny_path):
    return _core.Model.load(tiny_path)


@pytest.fixture
def data():
    return np.ones((9, 8, 10), np.float32, order="F")


@pytest.fixture
def view(data):
    return _core.Volume.view(data, ROWS)


@pytest.fixture
def info():
    info = _core.PetInfo()
    info.units, info.body_weight_kg = "suv", 78.7
    return info


class NoArray:
    """Says that it is one."""

    def __dlpack__(self, **options):
        raise SystemError("no")

    def __dlpack_device__(self):
        return (1, 0)


ARRAYS_REFUSED = {
    "None": None,
    "list": [[[1.0]]],
    "text": "abc",
    "no array": NoArray(),
    "C order": np.ones((3, 4, 5), np.float32),
    "strided": np.ones((6, 4, 5), np.float32, order="F")[::2],
    "reversed": np.ones((3, 4, 5), np.float32, order="F")[::-1],
    "broadcast": np.broadcast_to(np.float32(1), (3, 4, 5)),
    "2D": np.ones((3, 4), np.float32, order="F"),
    "4D": np.ones((3, 4, 5, 1), np.float32, order="F"),
    "0D": np.float32(1),
    "float64": np.ones((3, 4, 5), order="F"),
    "float16": np.ones((3, 4, 5), np.float16, order="F"),
    "int32": np.ones((3, 4, 5), np.int32, order="F"),
    "bool": np.ones((3, 4, 5), bool, order="F"),
    "complex": np.ones((3, 4, 5), np.complex64, order="F"),
    "object": np.full((3, 4, 5), None, order="F"),
    "big-endian": np.ones((3, 4, 5), ">f4", order="F"),
    "structured": np.ones((3, 4, 5), [("a", "f4")], order="F"),
    "bytes": b"0123456789ab",
}


@pytest.mark.parametrize("name", ARRAYS_REFUSED)
def test_arrays_that_are_no_volume(name):
    """TypeError, with what would be one; nothing is converted behind the caller's back."""
    with pytest.raises(TypeError, match=r"dtype=float32, shape=\(\*, \*, \*\), order='F'"):
        _core.Volume.view(ARRAYS_REFUSED[name], ROWS)


def test_arrays_that_have_no_voxel_or_no_place():
    empty = np.ones((3, 0, 5), np.float32, order="F")
    for array in (empty, np.ones((0, 0, 0), np.float32)):
        with pytest.raises(dosemap.InvalidValueError):
            _core.Volume.view(array, ROWS)
    raw = np.zeros(4 * 60 + 1, np.uint8)
    unaligned = raw[1:].view(np.float32).reshape((3, 4, 5), order="F")
    assert unaligned.flags.f_contiguous
    with pytest.raises(dosemap.InvalidValueError, match="aligned"):
        _core.Volume.view(unaligned, ROWS)


def test_what_may_be_an_array(data):
    """Read-only, a single voxel, of another library by the buffer protocol, a view of a view."""
    fixed = data.copy(order="F")
    fixed.flags.writeable = False
    memory = memoryview(bytearray(4 * 60)).cast("B").cast("f", (3, 4, 5))
    assert _core.Volume.view(fixed, ROWS).dim == (9, 8, 10)
    assert _core.Volume.view(np.ones((1, 1, 1), np.float32), ROWS).dim == (1, 1, 1)
    first = _core.Volume.view(data, ROWS)
    again = _core.Volume.view(first.data, ROWS)
    assert np.shares_memory(np.asarray(again.data), data)
    with pytest.raises(TypeError):
        _core.Volume.view(memory, ROWS)  # C order


def test_affines(data):
    for rows in (ROWS[:11], [*ROWS, 1], [], None, "abcdefghijkl", 12 * ["1"], 12 * [None], 4.0):
        with pytest.raises(TypeError):
            _core.Volume.view(data, rows)
    for value in (np.nan, np.inf, -np.inf, 1e300):
        for at in range(12):
            rows = [*ROWS[:at], value, *ROWS[at + 1 :]]
            with pytest.raises(dosemap.InvalidValueError):
                _core.Volume.view(data, rows)
    for rows in (12 * [0], [*ROWS[:4], *ROWS[:4], *ROWS[8:]]):
        with pytest.raises(dosemap.InvalidValueError):
            _core.Volume.view(data, rows)
    assert _core.Volume.view(data, np.array(ROWS)).affine == ROWS


@pytest.mark.parametrize("order", ["C", "F"])
def test_labels(order):
    ids = np.ones((3, 4, 5), np.int64, order=order)
    for array in (ids, ids.astype(np.uint8), ids.astype(np.float32), None, ids[0].astype("i4")):
        with pytest.raises(TypeError):
            _core.Labels.from_ids(array, ROWS)
    good = np.ones((3, 4, 5), np.int32, order="F")
    for names in ({"1": "a"}, {1: 2}, {1: None}, 5, [1], {2**40: "a"}):
        with pytest.raises(TypeError):
            _core.Labels.from_ids(good, ROWS, names)
    for names in ({1: ""}, {1: "a\tb"}, {1: "a\0b"}):
        with pytest.raises(dosemap.InvalidValueError):
            _core.Labels.from_ids(good, ROWS, names)
    with pytest.raises(TypeError):
        _core.Labels.from_ids(good, ROWS, {1: "\udcff"})
    with pytest.raises(dosemap.FileError):
        _core.Labels.from_ids(good, ROWS, "/nowhere/names.json")
    with pytest.raises(dosemap.InvalidValueError):
        _core.Labels.from_ids(np.ones((3, 0, 5), np.int32, order="F"), ROWS)


def test_masks():
    mask = np.ones((3, 4, 5), np.uint8, order="F")
    other = np.ones((3, 5, 4), np.uint8, order="F")
    for names, masks, words in (
        (["a"], [mask, mask], "1 names"),
        ([], [], "no mask"),
        (["a", "b"], [mask, other], "3 x 5 x 4"),
        (["a", "a"], [mask, mask], "a"),
        (["a\0"], [mask], "NUL"),
    ):
        with pytest.raises(dosemap.InvalidValueError, match=words):
            _core.Labels.from_masks(names, masks, ROWS)
    for masks in ([mask.astype(bool)], [np.ascontiguousarray(mask)], [None], mask[0], None):
        with pytest.raises(TypeError):
            _core.Labels.from_masks(["a"], masks, ROWS)


def test_sizes():
    labels = _core.Labels.from_ids(np.ones((3, 4, 5), np.int32, order="F"), ROWS)
    for dim in ((0, 1, 1), (2**40, 2**40, 2**40), (2**63, 1, 1)):
        with pytest.raises((dosemap.InvalidValueError, dosemap.OutOfMemoryError)):
            labels.resample(dim, ROWS)
    for dim in ((1, 1), (1, 1, 1, 1), (1.5, 1, 1), (-1, 1, 1), (2**64, 1, 1), None, "abc"):
        with pytest.raises(TypeError):
            labels.resample(dim, ROWS)


PATHS = {
    "read": lambda path: _core.Volume.read(path),
    "labels": lambda path: _core.Labels.read(path),
    "names": lambda path: _core.Labels.from_ids(np.ones((1, 1, 1), np.int32), ROWS, path),
    "model": lambda path: _core.Model.load(path),
    "outputs": lambda path: _core.output_paths(path),
    "info": lambda path: _core.PetInfo.read(path),
    "complete": lambda path: _core.prediction_is_complete(path),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths(name):
    """Of a wrong type; and such that no file can have them."""

    class Wrong:
        def __fspath__(self):
            return 5

    class Failing:
        def __fspath__(self):
            raise LookupError("no")

    for path in (5, 1.5, [], object(), Wrong(), Failing(), bytearray(b"a")):
        with pytest.raises(TypeError):
            PATHS[name](path)
    for path in ("a\0b", b"a\0b", "\ud800", "a" * 5000 + "\0"):
        with pytest.raises(ValueError, match=r"null byte|surrogates"):
            PATHS[name](path)


def test_names_of_files_that_are_not_utf8(tmp_path, data, view, tiny, tiny_path, info):
    """They are written, read, and named in errors, as os.fsdecode has them."""
    folder = os.fsencode(tmp_path)
    name = os.fsdecode(folder + b"/\xff\xfe.nii.gz")
    view.write(name)
    assert os.listdir(folder) == [b"\xff\xfe.nii.gz"]
    for same in (name, os.fsencode(name), tmp_path / os.fsdecode(b"\xff\xfe.nii.gz")):
        assert np.array_equal(np.asarray(_core.Volume.read(same).data), data)
    assert _core.output_paths(name)[0] == name
    with pytest.raises(dosemap.FileError) as caught:
        _core.Volume.read(name[:-7] + "-gone.nii")
    assert caught.value.where == name[:-7] + "-gone.nii"
    model = os.fsdecode(folder + b"/\xe9.safetensors.zst")
    os.symlink(tiny_path, model)
    loaded = _core.Model.load(model)
    assert loaded.path == model
    result = _core.Predictor(loaded, device="cpu", threads=1).run(view, info)
    result.write(os.fsdecode(folder + b"/\xfd.nii"), pet_path=name)
    assert _core.prediction_is_complete(folder + b"/\xfd.nii")


def test_options(tiny, view, info):
    def make(**options):
        return _core.Predictor(tiny, **{"device": "cpu", "threads": 1, **options})

    for options in (
        {"tile": "half"}, {"tile": (2**62, 8, 8)}, {"overlap": 0.95},
        {"overlap": -1.0}, {"blend": "linear"}, {"skip_air": float("inf")}, {"precision": "int8"},
        {"device": "tpu"}, {"device": "cpu\0"}, {"batch": 2**31}, {"convolutions": "fft"},
        {"v_thresholds": [-1.0]}, {"v_thresholds": [float("nan")]},
    ):  # fmt: skip
        with pytest.raises(dosemap.Error) as caught:
            make(**options).run(view, info)
        assert caught.value.what and caught.value.remedy, options
    for options in (
        {"tile": (8, 8)}, {"tile": 8}, {"tile": (8, 8, 8.5)}, {"tile": (-8, 8, 8)},
        {"overlap": None}, {"overlap": "0"}, {"memory_bytes": -1}, {"memory_bytes": 2**64},
        {"threads": -1}, {"threads": 1.5}, {"batch": 2**32}, {"force_tile": "yes"}, {"device": 0},
        {"v_thresholds": 1.0}, {"v_thresholds": ["a"]}, {"unknown": 1}, {"precision": None},
        {"device": "\udcff"},
    ):  # fmt: skip
        with pytest.raises(TypeError):
            make(**options)
    for wrong in (None, 5, view):
        with pytest.raises(TypeError):
            _core.Predictor(wrong)
    with pytest.raises(TypeError):
        _core.Predictor()


def test_runs(tiny, view, info, data):
    ready = _core.Predictor(tiny, device="cpu", threads=1)
    other = _core.Labels.from_ids(np.ones((3, 4, 5), np.int32, order="F"), ROWS)
    spoiled = data.copy(order="F")
    spoiled[1, 2, 3] = np.nan
    for arguments in (
        {"info": None},
        {"info": _core.PetInfo()},
        {"labels": other},
        {"ct": view},
        {"activity_gbq": 0.0},
        {"activity_gbq": -1.0},
        {"activity_gbq": float("inf")},
        {"pet": _core.Volume.view(spoiled, ROWS)},
    ):
        with pytest.raises(dosemap.InvalidValueError) as caught:
            ready.run(**{"pet": view, "info": info, **arguments})
        assert caught.value.what and caught.value.remedy, arguments
    for arguments in (
        {"pet": None}, {"pet": data}, {"info": {}}, {"ct": data}, {"labels": {}},
        {"activity_gbq": None}, {"activity_gbq": "7"}, {"progress": 5}, {"progress": True},
    ):  # fmt: skip
        with pytest.raises(TypeError):
            ready.run(**{"pet": view, "info": info, **arguments})
    assert np.isfinite(np.asarray(ready.run(view, info).dose.data)).all()


def test_forward(tiny):
    patches = np.ones((1, 1, 8, 8, 8), np.float32)
    for inputs in (
        [], [("ct", patches)], [("pet", patches), ("pet", patches)], [("pet\0", patches)],
        [("pet", patches[:0])], [("pet", patches[..., :0])],
        [("pet", np.ones((1, 2, 8, 8, 8), np.float32))],
        [("pet", patches * np.nan)],
    ):  # fmt: skip
        with pytest.raises(dosemap.Error):
            tiny.forward(inputs, device="cpu", threads=1)
    for inputs in (
        None, patches, [patches], [("pet", patches[0])], [("pet", np.float64(patches))],
        [("pet", np.asfortranarray(np.ones((2, 1, 8, 8, 8), np.float32)))], [(1, patches)],
        {"pet": patches}, [("pet", None)], [("pet", patches, 1)],
    ):  # fmt: skip
        with pytest.raises(TypeError):
            tiny.forward(inputs, device="cpu", threads=1)


def test_files_that_cannot_be_written(tmp_path, tiny, view, info):
    result = _core.Predictor(tiny, device="cpu", threads=1).run(view, info)
    for name in ("dose.txt", "nowhere/dose.nii", ""):
        with pytest.raises(dosemap.Error):
            result.write(tmp_path / name if name else "")
        with pytest.raises(dosemap.Error):
            view.write(tmp_path / name if name else "")
    (tmp_path / "not.nii").write_bytes(b"nothing")
    with pytest.raises(dosemap.FormatError):
        _core.Volume.read(tmp_path / "not.nii")
    nifti.write(tmp_path / "good.nii", np.ones((2, 2, 2), np.float32), np.diag([1, 1, 1, 1]))
    cut = (tmp_path / "good.nii").read_bytes()[:-1]
    (tmp_path / "cut.nii").write_bytes(cut)
    with pytest.raises(dosemap.FormatError):
        _core.Volume.read(tmp_path / "cut.nii")
    assert list(tmp_path.glob("dose*")) == []


CLASSES = [_core.Volume, _core.Labels, _core.CtInfo, _core.Structure, _core.Dvh, _core.Model,
           _core.Prediction]  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES)
def test_objects_are_made_by_the_module_alone(cls, recwarn):
    with pytest.raises(TypeError):
        cls()
    # What skips __init__ has nothing in it, and is asked for nothing.
    empty = cls.__new__(cls)
    for name in dir(cls):
        if not name.startswith("_") and isinstance(getattr(cls, name), property):
            with pytest.raises(TypeError):
                getattr(empty, name)


def test_copies(tiny, view, info):
    ready = _core.Predictor(tiny, device="cpu", threads=1)
    for one, way in itertools.product(
        (tiny, view, ready, info), (copy.copy, copy.deepcopy, pickle.dumps)
    ):
        with pytest.raises(TypeError, match="pickle"):
            way(one)


def test_the_error_factory(monkeypatch):
    """What it makes is raised; what it raises, too; and what is no exception is refused."""
    monkeypatch.setattr(_core, "_error_factory", None)

    def read():
        return _core.Volume.read("/nowhere.nii")

    with pytest.raises(RuntimeError, match=r"^/nowhere"):
        read()
    given = []

    def factory(*arguments):
        given.append(arguments)
        return LookupError("made")

    _core.set_error_factory(factory)
    with pytest.raises(LookupError, match="made"):
        read()
    [(status, where, what, remedy)] = given
    assert (status, where) == (10, "/nowhere.nii") and what and isinstance(remedy, str)
    _core.set_error_factory(lambda *arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        read()
    _core.set_error_factory(lambda *arguments: "text")
    with pytest.raises(TypeError, match="exception"):
        read()
    for wrong in (None, 5):
        with pytest.raises(TypeError):
            _core.set_error_factory(wrong)
