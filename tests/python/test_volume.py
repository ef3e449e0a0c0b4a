# SPDX-License-Identifier: Apache-2.0
"""dosemap.read() and Volume: what nibabel reads, without a copy."""

import gc
import gzip
import itertools
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

nib = pytest.importorskip("nibabel", reason="nibabel is missing: there is nothing to compare with")

import dosemap
from emulated_cuda import not_sanitized
from program import ROOT

AFFINE = np.array([[-4.0, 0, 0, 60], [0, 4, 0, -50], [0, 0, 5, -200], [0, 0, 0, 1]])
OBLIQUE = np.array([[1.9, 0.3, 0, 5], [-0.3, 1.9, 0.1, 7], [0, -0.1, 3.0, 9], [0, 0, 0, 1.0]])
SHAPE = (7, 5, 3)
DATA = Path(os.environ.get("DOSEMAP_TEST_DATA") or ROOT.parent / "shared/data")


def numbers(kind="f4", shape=SHAPE, seed=0):
    values = np.random.default_rng(seed).normal(0, 40, shape)
    return (np.abs(values) if np.dtype(kind).kind == "u" else values).astype(kind)


@pytest.fixture
def path(tmp_path):
    nib.save(nib.Nifti1Image(numbers(), AFFINE), tmp_path / "image.nii.gz")
    return tmp_path / "image.nii.gz"


@pytest.fixture
def volume(path):
    return dosemap.read(path)


def assert_as_nibabel(path):
    """Every voxel, rounded once from what nibabel scales in double."""
    volume, image = dosemap.read(path), nib.load(path)
    expected = image.get_fdata(dtype=np.float64).astype(np.float32)
    assert volume.shape == image.shape[:3]
    np.testing.assert_array_equal(volume.data, expected.reshape(volume.shape))
    np.testing.assert_allclose(volume.affine, image.affine, rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(volume.spacing_mm, nib.affines.voxel_sizes(image.affine), rtol=1e-6)


# ---- As nibabel reads it -------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [(None, None), (0.25, -3.0), (-2.0, 1000.0)])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_datatypes(tmp_path, kind, order, scaling):
    image = nib.Nifti1Image(numbers(kind), OBLIQUE, nib.Nifti1Header(endianness=order), dtype=kind)
    image.header.set_slope_inter(*scaling)
    nib.save(image, tmp_path / "image.nii")
    assert nib.load(tmp_path / "image.nii").header.endianness == order
    assert_as_nibabel(tmp_path / "image.nii")


@pytest.mark.parametrize("ends", [".nii", ".nii.gz"])
@pytest.mark.parametrize("make", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (7, 1, 13), (31, 17, 2), (4, 3, 2, 1), (4, 3, 2, 1, 1)]
)
def test_files(tmp_path, ends, make, shape):
    nib.save(make(numbers(shape=shape), OBLIQUE), tmp_path / f"image{ends}")
    assert_as_nibabel(tmp_path / f"image{ends}")


def test_orientations(tmp_path):
    """Stored axes in every order and direction: data and affine are the file's, not turned."""
    for axes, signs in itertools.product(
        itertools.permutations(range(3)), itertools.product((-1, 1), repeat=3)
    ):
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) * signs)[:, axes] * (2, 3, 4)
        affine[:3, 3] = 10, -20, 30
        nib.save(nib.Nifti1Image(numbers(), affine), tmp_path / "image.nii")
        assert_as_nibabel(tmp_path / "image.nii")


def test_only_a_qform(tmp_path):
    image = nib.Nifti1Image(numbers(), None)
    image.set_qform(AFFINE, code=1)
    nib.save(image, tmp_path / "image.nii")
    assert_as_nibabel(tmp_path / "image.nii")
    np.testing.assert_allclose(dosemap.read(tmp_path / "image.nii").affine, AFFINE, atol=1e-4)


def test_content_counts_not_the_name(tmp_path, path):
    (tmp_path / "renamed").write_bytes(path.read_bytes())
    assert np.array_equal(dosemap.read(tmp_path / "renamed").data, numbers())


@pytest.mark.parametrize(
    "name",
    ["pet_fdg/STS_001_PET_image.nii.gz", "pet_fdg/STS_001_PET_mask.nii.gz",
     "pet_fdg/STS_013_PET_image.nii.gz", "lu177_spect/spect_001.nii.gz"],
)  # fmt: skip
def test_real_images(tmp_path, name):
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{path} is missing; name the folder of real images in DOSEMAP_TEST_DATA")
    assert_as_nibabel(path)
    volume = dosemap.read(path)
    volume.save(tmp_path / "copy.nii.zst")
    again = dosemap.read(tmp_path / "copy.nii.zst")
    assert np.array_equal(again.data, volume.data, equal_nan=True)
    assert np.array_equal(again.affine, volume.affine)


# ---- Arrays --------------------------------------------------------------------------------------


def test_data_is_a_view(volume):
    data = volume.data
    assert data.dtype == np.float32 and data.shape == volume.shape == SHAPE
    assert data.flags.f_contiguous and not data.flags.writeable and not data.flags.owndata
    assert np.shares_memory(data, volume.data) and np.shares_memory(data, np.asarray(volume))
    with pytest.raises(ValueError, match="read-only"):
        data[0, 0, 0] = 1
    with pytest.raises(ValueError):
        data.flags.writeable = True


def test_data_outlives_the_volume(path):
    data = dosemap.read(path).data[1:, ::2]
    gc.collect()
    rubbish = [np.full(SHAPE, 7, np.float32) for _ in range(1000)]
    assert np.array_equal(data, numbers()[1:, ::2]) and len(rubbish) == 1000


def test_affine_belongs_to_the_caller(volume):
    affine = volume.affine
    assert affine.shape == (4, 4) and affine.dtype == np.float64
    affine[:] = 0
    assert np.array_equal(volume.affine, AFFINE)


def test_numpy_takes_it(volume):
    assert np.asarray(volume, np.float32) is not None
    assert np.shares_memory(np.asarray(volume, np.float32), volume.data)
    double = np.asarray(volume, dtype="f8")
    assert double.dtype == np.float64 and np.array_equal(double, numbers())
    copy = np.array(volume)
    assert copy.flags.writeable and not np.shares_memory(copy, volume.data)
    assert copy.flags.f_contiguous
    copy[0, 0, 0] += 1
    assert np.array_equal(volume.data, numbers())
    assert float(np.max(volume)) == numbers().max()


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="numpy 1 cannot say it")
def test_numpy_must_not_copy(volume):
    assert np.shares_memory(np.asarray(volume, copy=False), volume.data)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(volume, dtype=np.float64, copy=False)
    assert not np.shares_memory(np.asarray(volume, copy=True), volume.data)


def test_nibabel_takes_it(tmp_path, volume):
    image = volume.to_nifti()
    assert np.shares_memory(np.asarray(image.dataobj), volume.data)
    assert np.array_equal(image.affine, AFFINE) and image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm" and image.header["sform_code"] == 1
    nib.save(image, tmp_path / "nibabel.nii")
    assert_as_nibabel(tmp_path / "nibabel.nii")


def test_repr(volume):
    assert repr(volume) == "Volume(7 x 5 x 3 voxels of 4 x 4 x 5 mm)"


# ---- Saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [".nii", ".nii.gz", ".nii.zst"])
def test_save(tmp_path, ends):
    """Voxels, and the header's codes and matrices, stay."""
    image = nib.Nifti1Image(numbers("i2"), OBLIQUE)
    image.set_qform(OBLIQUE, code=3, strip_shears=True)
    image.set_sform(OBLIQUE, code=2)
    image.header.set_slope_inter(0.5, 1)
    nib.save(image, tmp_path / "in.nii")
    dosemap.read(tmp_path / "in.nii").save(tmp_path / f"out{ends}")
    if ends != ".nii.zst":  # which nibabel reads with an extra package only
        saved, source = nib.load(tmp_path / f"out{ends}"), nib.load(tmp_path / "in.nii")
        assert np.array_equal(saved.get_fdata(), source.get_fdata())
        assert saved.header["qform_code"] == 3 and saved.header["sform_code"] == 2
        assert np.allclose(saved.get_qform(), source.get_qform(), atol=1e-5)
    again = dosemap.read(tmp_path / f"out{ends}")
    assert np.array_equal(again.data, dosemap.read(tmp_path / "in.nii").data)
    assert np.array_equal(again.affine, dosemap.read(tmp_path / "in.nii").affine)


def test_threads_change_no_byte(tmp_path, volume):
    volume.save(tmp_path / "one.nii.gz", threads=1)
    volume.save(str(tmp_path / "three.nii.gz"), threads=3)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "three.nii.gz").read_bytes()


def test_saving_over_its_own_file(tmp_path, volume, path):
    volume.save(path)
    assert np.array_equal(dosemap.read(path).data, volume.data)
    assert np.array_equal(volume.data, numbers())


@pytest.mark.parametrize(
    ("name", "keywords", "error", "words"),
    [
        ("image.png", {}, dosemap.InvalidValueError, ".nii"),
        ("none/image.nii", {}, dosemap.FileError, "none/image.nii"),
        ("", {}, dosemap.InvalidValueError, "path"),
        ("image.nii", {"threads": -1}, dosemap.InvalidValueError, "threads=-1"),
        ("image.nii", {"threads": "2"}, TypeError, "threads"),
        (3, {}, TypeError, "path"),
    ],
)
def test_saving_refused(tmp_path, volume, name, keywords, error, words):
    target = tmp_path / name if name and isinstance(name, str) else name
    with pytest.raises(error, match=words):
        volume.save(target, **keywords)
    assert [p.name for p in tmp_path.iterdir()] == ["image.nii.gz"]


# ---- What is no image ----------------------------------------------------------------------------


def test_files_that_are_missing(tmp_path):
    with pytest.raises(dosemap.FileError, match="no-such-file") as e:
        dosemap.read(tmp_path / "no-such-file.nii")
    assert isinstance(e.value, FileNotFoundError) and e.value.where.endswith("no-such-file.nii")
    with pytest.raises(OSError):
        dosemap.read(str(tmp_path))


@pytest.mark.parametrize("value", [None, 3, b"image.nii", numbers(), ["image.nii"]])
def test_paths_that_are_none(value):
    with pytest.raises(TypeError, match="path"):
        dosemap.read(value)


@pytest.mark.parametrize("value", ["", "a\0b.nii"])
def test_names_of_no_file(value):
    with pytest.raises(dosemap.InvalidValueError, match="path"):
        dosemap.read(value)


def test_names_that_are_not_utf8(tmp_path, volume):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.nii")
    volume.save(name)
    assert np.array_equal(dosemap.read(name).data, volume.data)
    with pytest.raises(dosemap.FileMissingError) as e:
        dosemap.read(name + "x")
    assert e.value.where == name + "x"


@pytest.mark.parametrize("kept", [0, 100, 348, 352, 500])
@pytest.mark.parametrize("packed", [False, True])
def test_files_that_are_cut_short(tmp_path, path, kept, packed):
    whole = gzip.decompress(path.read_bytes())
    content = gzip.compress(whole[:kept]) if packed else whole[:kept]
    (tmp_path / "short.nii").write_bytes(content)
    with pytest.raises(dosemap.FormatError) as e:
        dosemap.read(tmp_path / "short.nii")
    assert (
        isinstance(e.value, ValueError) and e.value.where.endswith("short.nii") and e.value.remedy
    )


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 3, 3), np.complex64), np.zeros((3, 3, 3, 2), np.float32),
     np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])],
    ids=["complex", "series", "colour"],
)  # fmt: skip
def test_images_of_another_kind(tmp_path, array):
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "image.nii")
    with pytest.raises(dosemap.UnsupportedError):
        dosemap.read(tmp_path / "image.nii")


# ---- Packages that are missing -------------------------------------------------------------------


def test_without_nibabel(monkeypatch, volume):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(dosemap.MissingPackageError, match="pip install nibabel") as e:
        volume.to_nifti()
    assert isinstance(e.value, ImportError)


def test_without_numpy(monkeypatch, tmp_path, volume):
    """Reading and writing go on."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(dosemap.MissingPackageError, match="pip install numpy"):
        _ = volume.data
    with pytest.raises(dosemap.MissingPackageError, match="pip install numpy"):
        _ = volume.affine
    volume.save(tmp_path / "copy.nii")
    again = dosemap.read(tmp_path / "copy.nii")
    assert again.shape == SHAPE and again.spacing_mm == (4, 4, 5) and "7 x 5 x 3" in repr(again)


# ---- Memory --------------------------------------------------------------------------------------


@not_sanitized  # it keeps what is freed, for a while
def test_nothing_is_kept(tmp_path):
    """200 images of 4 MB each: what stays is a few of them at most."""
    nib.save(nib.Nifti1Image(numbers(shape=(100, 100, 100)), AFFINE), tmp_path / "large.nii")

    def read_many(count):
        for _ in range(count):
            volume = dosemap.read(tmp_path / "large.nii")
            assert volume.data[0, 0, 0] == np.asarray(volume, "f8")[0, 0, 0]

    read_many(5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_many(200)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10
