# SPDX-License-Identifier: Apache-2.0
"""What an image can be: any array, or an error that says what to do; no copies that need not be."""

import os
import resource
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

nib = pytest.importorskip("nibabel", reason="nibabel is missing: no images of it are made")

import dosemap
from dosemap import _images

SUV = {"units": "suv", "body_weight_kg": 78.7, "overlap": 0, "threads": 1}
AFFINE = np.array([[-4.0, 0, 0, 70], [0, -4, 0, 60], [0, 0, 5, -100], [0, 0, 0, 1]])


@pytest.fixture
def tiny(tiny_path):
    return dosemap.load_model(tiny_path)


@pytest.fixture
def small():
    """Whole numbers below 100, which every type holds."""
    return np.random.default_rng(3).integers(0, 100, (9, 11, 7)).astype(np.float32)


def dose_of(model, image, **keywords):
    return model.predict(image, affine=AFFINE, **SUV, **keywords).dose.tobytes(order="F")


# ---- Arrays --------------------------------------------------------------------------------------

TYPES = [
    "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8", "g",
    ">i2", ">u2", ">i4", ">i8", ">f4", ">f8", "<f4", ">f2",
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_of_number(tiny, small, dtype):
    assert dose_of(tiny, small.astype(dtype)) == dose_of(tiny, small)


def strided(kind, a):
    """The same numbers, otherwise in memory."""
    wide = np.zeros((2 * a.shape[0], 3 * a.shape[1], a.shape[2] + 4), a.dtype)
    wide[::2, ::3, 2:-2] = a
    offset = np.zeros(a.nbytes + 1, np.uint8)[1:].view()
    offset[:] = np.frombuffer(a.tobytes(order="F"), np.uint8)
    return {
        "C order": np.ascontiguousarray(a),
        "Fortran order": np.asfortranarray(a),
        "transposed": np.ascontiguousarray(a.transpose(1, 2, 0)).transpose(2, 0, 1),
        "negative strides": a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
        "one negative stride": np.asfortranarray(a[:, ::-1]).copy(order="F")[:, ::-1],
        "steps": wide[::2, ::3, 2:-2],
        "not aligned": offset.view().view("V1").view(f"{a.dtype.str}").reshape(a.shape, order="F"),
        "read-only": np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        "a field": np.rec.fromarrays([a, a + 1], names="pet,other")["pet"],
        "list": a.tolist(),
        "subclass": a.view(type("Mine", (np.ndarray,), {})),
        "memoryview": memoryview(np.ascontiguousarray(a)),
        "masked, none": np.ma.masked_array(a, mask=False),
        "one frame": a[..., None],
        "two axes of one": a[..., None, None],
    }[kind]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("kind", [
    "C order", "Fortran order", "transposed", "negative strides", "one negative stride", "steps",
    "not aligned", "read-only", "a field", "list", "subclass", "memoryview", "masked, none",
    "one frame", "two axes of one",
])  # fmt: skip
def test_every_layout(tiny, small, kind, dtype):
    array = strided(kind, small.astype(dtype))
    assert dose_of(tiny, array) == dose_of(tiny, small)


def test_strides_of_zero(tiny):
    plane = np.broadcast_to(np.float32(3), (9, 8, 7))
    assert dose_of(tiny, plane) == dose_of(tiny, np.full((9, 8, 7), 3.0))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 9, 7), (9, 1, 7), (9, 7, 1), (2, 1, 1), (31, 2, 3)]
)
@pytest.mark.parametrize("order", "CF")
def test_axes_of_one_voxel(tiny, shape, order):
    data = np.random.default_rng(4).random(shape).astype(np.float32, order=order)
    assert dose_of(tiny, data) == dose_of(tiny, data.astype(np.float64))
    assert tiny.predict(data, affine=AFFINE, **SUV).shape == shape


def test_arrays_are_not_changed(tiny, small):
    for array in (small, np.asfortranarray(small), small.astype(">f8"), small[::-1]):
        before = array.copy()
        tiny.predict(array, affine=AFFINE, **SUV)
        np.testing.assert_array_equal(array, before)


# ---- What is refused -----------------------------------------------------------------------------

NO_NUMBERS = {
    "complex": np.ones((4, 4, 4), complex),
    "object": np.full((4, 4, 4), None, object),
    "numbers as objects": np.ones((4, 4, 4), object),
    "text": np.full((4, 4, 4), "1"),
    "bytes": np.full((4, 4, 4), b"1"),
    "structured": np.zeros((4, 4, 4), "f4,f4"),
    "dates": np.zeros((4, 4, 4), "M8[s]"),
    "durations": np.zeros((4, 4, 4), "m8[s]"),
    "bool": np.ones((4, 4, 4), bool),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_no_numbers(tiny, kind):
    with pytest.raises(TypeError, match=r"pet has the type .*(astype|mask)"):
        tiny.predict(NO_NUMBERS[kind], affine=AFFINE, **SUV)


@pytest.mark.parametrize("shape, words", [
    ((), "three axes"), ((5,), "three axes"), ((5, 5), "three axes"), ((0, 5, 5), "no voxels"),
    ((5, 5, 0), "no voxels"), ((5, 5, 5, 2), "several frames"), ((2, 5, 5, 5), "several frames"),
    ((5, 5, 5, 0), "several frames"), ((1, 5, 5, 5), r"image\[0\]"),
    ((1, 1, 5, 5, 5), r"image\[0\]"),
])  # fmt: skip
def test_other_shapes(tiny, shape, words):
    with pytest.raises(dosemap.InvalidValueError, match=words) as caught:
        tiny.predict(np.zeros(shape, np.float32), affine=AFFINE, **SUV)
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_voxels_that_are_no_numbers(tiny, small, value, dtype):
    data = small.astype(dtype)
    data[5, 10, 3] = value
    with pytest.raises(dosemap.InvalidValueError, match=r"voxel \(5, 10, 3\).*nan_to_zero=True"):
        tiny.predict(data, affine=AFFINE, **SUV)
    clean = np.where(np.isfinite(data), data, 0)
    assert dose_of(tiny, data, nan_to_zero=True) == dose_of(tiny, clean)


@pytest.mark.filterwarnings("error")
def test_numbers_beyond_float32(tiny, small):
    """As the file of such numbers: infinite, and named; numpy does not warn besides."""
    data = small.astype(np.float64)
    data[1, 2, 3] = 1e300
    with pytest.raises(dosemap.InvalidValueError, match=r"voxel \(1, 2, 3\) of the PET is inf"):
        tiny.predict(data, affine=AFFINE, **SUV)


def test_voxels_without_a_value(tiny, small):
    with pytest.raises(dosemap.InvalidValueError, match=r"with \d+ voxels without a value.*filled"):
        tiny.predict(np.ma.masked_less(small, 10), affine=AFFINE, **SUV)


class Raises:
    """An array of another device."""

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")


@pytest.mark.parametrize("pet", [
    None, True, 3j, {}, {"pet": 1}, set(), b"pet.nii", object(), print, Raises(), slice(3),
    [[1], [2, 3]], ["a", "b"], [object()],
])  # fmt: skip
def test_what_is_no_image(tiny, pet):
    with pytest.raises((TypeError, dosemap.InvalidValueError), match="pet"):
        tiny.predict(pet, affine=AFFINE, **SUV)


def test_images_of_others(tiny):
    for paths in (["a.nii", "b.nii"], (Path("a.nii"),)):
        with pytest.raises(TypeError, match="pet is a list of paths; take one at a time"):
            tiny.predict(paths, **SUV)
    simpleitk = types.SimpleNamespace(GetDirection=None, GetSpacing=None)
    with pytest.raises(TypeError, match="z, y, x in LPS; give its file"):
        tiny.predict(simpleitk, **SUV)
    with pytest.raises(TypeError, match="dcm2niix"):
        tiny.predict(types.SimpleNamespace(PixelData=b"", Rows=1), **SUV)
    analyze = nib.AnalyzeImage(np.zeros((4, 4, 4), np.float32), AFFINE)
    with pytest.raises(dosemap.UnsupportedError, match="ANALYZE"):
        tiny.predict(analyze, **SUV)


@pytest.mark.parametrize("path", ["", "a\0b", "\ud800", os.fsdecode(b"\xff"), "x" * 5000])
def test_names_of_no_file(tiny, path):
    with pytest.raises(dosemap.Error):
        tiny.predict(path, **SUV)


# ---- Affines -------------------------------------------------------------------------------------


def test_forms_of_an_affine(tiny, small):
    expected = dose_of(tiny, small)
    for affine in (
        AFFINE.tolist(), AFFINE.astype(np.float32), AFFINE.astype(int), AFFINE[:3],
        np.asfortranarray(AFFINE), AFFINE[::-1].copy()[::-1],
    ):  # fmt: skip
        p = tiny.predict(small, affine=affine, **SUV)
        assert p.dose.tobytes(order="F") == expected
        np.testing.assert_array_equal(p.affine, AFFINE)


@pytest.mark.parametrize("affine, words", [
    (None, "affine is missing.*nibabel"),
    (np.eye(3), r"shape \(3, 3\)"),
    (np.zeros(16), r"shape \(16,\)"),
    (AFFINE.T, "transposed"),
    (np.zeros((4, 4)), "last row"),
    (np.diag([1, 1, 0, 1]), "size of 0 mm"),
    (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "degenerate"),
    (np.diag([1, np.nan, 1, 1]), "nan"),
    (np.diag([1, 1e9, 1, 1]), r"1e\+09 mm"),
])  # fmt: skip
def test_affines_that_are_none(tiny, small, affine, words):
    with pytest.raises(dosemap.InvalidValueError, match=words) as caught:
        tiny.predict(small, affine=affine, **SUV)
    assert "affine" in str(caught.value) and caught.value.remedy


@pytest.mark.parametrize(
    "affine", ["RAS", np.full((4, 4), "1"), np.eye(4, dtype=complex), object()]
)
def test_affines_that_are_no_matrix(tiny, small, affine):
    with pytest.raises((TypeError, dosemap.InvalidValueError), match="affine"):
        tiny.predict(small, affine=affine, **SUV)


def test_an_affine_too_many(tiny, pet, small):
    for image in (pet, dosemap.read(pet), nib.load(pet)):
        with pytest.raises(
            dosemap.InvalidValueError, match=r"affine is given, but .*leave affine out"
        ):
            tiny.predict(image, affine=AFFINE, **SUV)


# ---- Labels --------------------------------------------------------------------------------------


def refuse_labels(model, pet, labels, words, kind=dosemap.InvalidValueError, **keywords):
    with pytest.raises(kind, match=words):
        model.predict(pet, labels=labels, **SUV, **keywords)


def test_labels_that_are_none(tiny, pet, ids):
    for value in (-1, 2**24, 2.5, np.nan, np.inf):
        bad = ids.astype(np.float64)
        bad[4, 5, 6] = value
        refuse_labels(
            tiny, pet, bad, r"labels: voxel \(4, 5, 6\) is .*whole numbers from 0 to 16777215"
        )
    bad = ids.astype(np.int64)
    bad[7, 8, 9] = -(2**40)
    refuse_labels(tiny, pet, bad, r"voxel \(7, 8, 9\) is -1099511627776")
    refuse_labels(tiny, pet, np.zeros_like(ids), "every voxel is 0")
    refuse_labels(tiny, pet, ids[:-1], r"labels has the shape \(36, 33, 20\).*\(37, 33, 20\)")
    refuse_labels(tiny, pet, ids.astype(complex), "labels has the type", TypeError)
    refuse_labels(tiny, pet, {}, "empty dict")
    refuse_labels(tiny, pet, {1: ids}, "names of masks", TypeError)
    refuse_labels(tiny, pet, {"a": ids == 1, "b": ids[1:] == 1}, r"labels\['b'\].*shape")
    refuse_labels(tiny, pet, {"a\tb": ids == 1}, "name")
    refuse_labels(tiny, pet, {"": ids == 1}, "name")
    refuse_labels(tiny, pet, {"\udcff": ids == 1}, "UTF-8")
    refuse_labels(
        tiny, pet, {"a": np.where(ids == 1, np.nan, 1.0)}, r"labels\['a'\]: voxel \(5, 5, 5\)"
    )
    refuse_labels(tiny, pet, True, "labels", TypeError)
    refuse_labels(tiny, pet, "nowhere.nii.gz", "nowhere.nii.gz", FileNotFoundError)


def test_masks_of_different_grids(tiny, pet, ids):
    one, other = (
        nib.Nifti1Image((ids > 0).astype(np.uint8), a) for a in (AFFINE, AFFINE * [2, 2, 2, 1])
    )
    refuse_labels(
        tiny, pet, {"one": one, "other": other}, r"labels\['other'\] does not lie on the grid"
    )


def test_names_that_are_none(tiny, pet, ids, labels):
    for form in (ids, labels):
        for names, words, kind in (
            ({1: 2}, "names by id", TypeError),
            ({"a": "b"}, "names by id", TypeError),
            ({1.5: "a"}, "names by id", TypeError),
            (["a"], "label_names wants", TypeError),
            (3, "label_names wants", TypeError),
            ({1: "a", 3: "a"}, "twice", dosemap.InvalidValueError),
            ({1: "a\n"}, "name", dosemap.InvalidValueError),
            ({1: "\udcff"}, "UTF-8", dosemap.InvalidValueError),
            ({1: "a\0"}, "NUL", dosemap.InvalidValueError),
            ({10**20: "a"}, "the id 100000000000000000000", dosemap.InvalidValueError),
            ({-1: "a"}, "the id -1", dosemap.InvalidValueError),
            ("nowhere.json", "nowhere.json", FileNotFoundError),
        ):
            refuse_labels(tiny, pet, form, words, kind, label_names=names)
    refuse_labels(tiny, pet, {"a": ids == 1}, "leave label_names out", label_names={1: "b"})
    for keywords in ({"label_names": {1: "a"}}, {"resample_labels": True}, {"vx": (1,)}):
        with pytest.raises(dosemap.InvalidValueError, match="is given without labels"):
            tiny.predict(pet, **keywords)


def test_a_mask_is_one_structure(tiny, pet, ids):
    dvh = tiny.predict(pet, labels=ids == 3, label_names={1: "kidney"}).dvh
    assert dvh.names == ["kidney"] and dvh[0].voxels == (ids == 3).sum()


# ---- No copies -----------------------------------------------------------------------------------


def test_what_is_not_copied(tiny, small, pet, tmp_path):
    fortran = np.asfortranarray(small)
    fortran.flags.writeable = False
    for array in (fortran, fortran[..., None]):
        assert np.shares_memory(_images.volume_of(array, AFFINE).volume.data, fortran)
    image = nib.Nifti1Image(fortran, AFFINE)
    assert np.shares_memory(np.asarray(_images.volume_of(image).volume.data), fortran)
    volume = dosemap.read(pet)
    assert _images.volume_of(volume).volume is volume._core
    assert np.shares_memory(
        np.asarray(_images.volume_of(volume.data, AFFINE).volume.data), volume.data
    )
    nib.save(image, tmp_path / "plain.nii")
    mapped = np.asanyarray(nib.load(tmp_path / "plain.nii").dataobj)  # voxels stay in the file
    assert isinstance(mapped, np.memmap)
    assert np.shares_memory(np.asarray(_images.volume_of(mapped, AFFINE).volume.data), mapped)
    for copied in (small, small.astype(np.float64), fortran[::-1]):
        view = np.asarray(_images.volume_of(copied, AFFINE).volume.data)
        assert not np.shares_memory(view, copied)
    ids = np.asfortranarray(small.astype(np.int32))
    assert np.shares_memory(_images._ids_of(ids, "labels"), ids)
    mask = np.asfortranarray(small > 50)
    assert np.shares_memory(_images._mask_of(mask, "labels"), mask)


def test_an_array_lives_as_long_as_it_is_needed():
    data = np.asfortranarray(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    volume = dosemap.Volume(_images.volume_of(data, AFFINE).volume)
    expected = data.copy()
    del data
    np.testing.assert_array_equal(volume.data, expected)


MEMORY = """
import resource, sys
import numpy as np
import dosemap
from dosemap import _images
shape = (256, 256, 256)
data = np.zeros(shape, np.dtype(sys.argv[1]), order=sys.argv[2])
data += 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_images.volume_of(data, np.eye(4))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("dtype, order, mib", [("<f4", "F", 4), ("<f4", "C", 68), ("<f8", "F", 68),
                                               (">f4", "F", 68), ("<i2", "C", 68)])  # fmt: skip
def test_memory_of_a_conversion(dtype, order, mib):
    """64 MiB of voxels: none, or one copy of them."""
    assert resource.getpagesize() > 0
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, dtype, order], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < mib


# ---- nibabel's, MONAI's and TorchIO's ------------------------------------------------------------


def test_nibabel_images_of_any_kind(tiny, small):
    expected = dose_of(tiny, small)
    images = [
        kind(small, AFFINE)
        for kind in (
            nib.Nifti1Image,
            nib.Nifti2Image,
            nib.Nifti1Pair,
            nib.MGHImage,
            nib.Spm99AnalyzeImage,
        )
        if kind is not nib.Spm99AnalyzeImage
    ]
    for image in (*images, images[0].slicer[:], nib.funcs.concat_images([images[0]])):
        assert tiny.predict(image, **SUV).dose.tobytes(order="F") == expected
    frames = nib.funcs.concat_images([images[0]] * 2)
    with pytest.raises(dosemap.InvalidValueError, match="several frames"):
        tiny.predict(frames, **SUV)
    with pytest.raises(dosemap.InvalidValueError, match="no affine"):
        tiny.predict(nib.MGHImage(small, AFFINE).__class__(small, None), **SUV)


class Tensor:
    """As torch's, as far as it matters: on another device, with a gradient, in bfloat16."""

    def __init__(self, array, dtype="torch.float32", steps=()):
        self.array, self.dtype, self.steps = array, dtype, steps

    def _next(self, name, dtype=None):
        return type(self)(self.array, dtype or self.dtype, (*self.steps, name))

    def detach(self):
        return self._next("detach")

    def cpu(self):
        return self._next("cpu")

    def resolve_neg(self):
        return self._next("resolve_neg")

    def float(self):
        return self._next("float", "torch.float32")

    def numpy(self):
        assert self.steps[:2] == ("detach", "cpu") and self.dtype == "torch.float32"
        return self.array


class MetaTensor(Tensor):
    affine = Tensor(AFFINE)
    meta = {"space": "RAS"}  # noqa: RUF012


class LpsTensor(MetaTensor):
    affine = Tensor(np.diag([-1.0, -1, 1, 1]) @ AFFINE)
    meta = {"space": "LPS"}  # noqa: RUF012


def test_tensors(tiny, small):
    expected = dose_of(tiny, small)
    assert dose_of(tiny, Tensor(small)) == expected
    assert dose_of(tiny, Tensor(small, "torch.bfloat16")) == expected
    for tensor in (MetaTensor(small[None]), MetaTensor(small[None, None]), LpsTensor(small[None])):
        p = tiny.predict(tensor, **SUV)
        assert p.dose.tobytes(order="F") == expected
        np.testing.assert_array_equal(p.affine, AFFINE)
    for two_channels in (
        np.stack([small, small]),
        small[:2, ..., None],
        small[None, :2, ..., None],
    ):
        with pytest.raises(dosemap.InvalidValueError, match="one channel"):
            tiny.predict(MetaTensor(two_channels), **SUV)
    slice_of_one = small[:, :, :1]
    assert tiny.predict(MetaTensor(slice_of_one[None]), **SUV).shape == slice_of_one.shape
    with pytest.raises(dosemap.InvalidValueError, match=r"image\[0\]"):
        tiny.predict(Tensor(small[None]), affine=AFFINE, **SUV)


def test_images_that_are_dicts(tiny, small, pet, tmp_path):
    """TorchIO's, which are no dict of masks for that."""

    class Image(dict):
        spatial_shape, affine, data, path = small.shape, AFFINE, Tensor(small[None]), None

    assert tiny.predict(Image(), **SUV).dose.tobytes(order="F") == dose_of(tiny, small)

    class Labels(Image):
        data = Tensor((small[None] > 50).astype(np.int16))

    (structure,) = tiny.predict(small, affine=AFFINE, labels=Labels(), **SUV).dvh
    assert structure.voxels == (small > 50).sum()


def test_real_tensors(tiny, small):
    torch = pytest.importorskip("torch", reason="PyTorch is missing")
    expected = dose_of(tiny, small)
    tensor = torch.from_numpy(small.copy())
    plain = tensor.clone()
    negated = torch._neg_view(-plain)
    for form in (tensor.requires_grad_(), plain, plain.double(), plain.bfloat16(), negated):
        assert dose_of(tiny, form) == expected
    for form in (plain.to("meta"), plain.to_sparse()):
        with pytest.raises(TypeError, match="pet wants a tensor with voxels"):
            dose_of(tiny, form)
