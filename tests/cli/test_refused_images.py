# SPDX-License-Identifier: Apache-2.0
"""Images, labels and sidecars that are not what they should be; and those that only look like it.

Cut, flipped and hollowed files are tested byte by byte in tests/damage.
"""

import gzip
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import QUICK, SUV_78, assert_refused, dosemap

SHAPE = (5, 4, 3)
AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
Change = Callable[[bytearray], None]


def image_bytes(version: int = 1, dtype: str = "<f4", datatype: int = 16) -> bytearray:
    """A whole .nii of 5x4x3 voxels."""
    head, big = bytearray(352 if version == 1 else 544), "<"
    dim = [3, *SHAPE, 1, 1, 1, 1]
    values = np.arange(np.prod(SHAPE)).astype(dtype)
    rows = [float(x) for x in AFFINE[:3].ravel()]
    bits = 8 * values.itemsize
    if version == 1:
        struct.pack_into(big + "i", head, 0, 348)
        struct.pack_into(big + "8h", head, 40, *dim)
        struct.pack_into(big + "hh", head, 70, datatype, bits)
        struct.pack_into(big + "8f", head, 76, 1, 4, 4, 5, 1, 1, 1, 1)
        struct.pack_into(big + "3f", head, 108, 352, 1, 0)
        head[123] = 2
        struct.pack_into(big + "hh", head, 252, 0, 1)
        struct.pack_into(big + "12f", head, 280, *rows)
        head[344:348] = b"n+1\0"
    else:
        struct.pack_into(big + "i", head, 0, 540)
        head[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(big + "hh", head, 12, datatype, bits)
        struct.pack_into(big + "8q", head, 16, *dim)
        struct.pack_into(big + "8d", head, 104, 1, 4, 4, 5, 1, 1, 1, 1)
        struct.pack_into(big + "q", head, 168, 544)
        struct.pack_into(big + "2d", head, 176, 1, 0)
        struct.pack_into(big + "2i", head, 344, 0, 1)
        struct.pack_into(big + "12d", head, 400, *rows)
        struct.pack_into(big + "i", head, 500, 2)
    return head + values.tobytes()


def put(code: str, offset: int, *values: float) -> Change:
    return lambda data: struct.pack_into("<" + code, data, offset, *values)


def both(*changes: Change) -> Change:
    def change(data: bytearray) -> None:
        for c in changes:
            c(data)

    return change


def whole(content: bytes) -> Change:
    return lambda data: data.__setitem__(slice(None), content)


def zip_bytes() -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pet.nii", bytes(image_bytes()))
    return buffer.getvalue()


NAN, INF = float("nan"), float("inf")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"

# Changes of a NIfTI-1 file, and what the message says.
NIFTI_1: dict[str, tuple[Change, str]] = {
    "5D": (put("8h", 40, 5, 5, 4, 1, 1, 3, 1, 1), "dim[5] is 3"),
    "7D": (put("8h", 40, 7, 5, 4, 1, 1, 1, 1, 3), "dim[7] is 3"),
    "4D": (put("8h", 40, 4, 5, 4, 1, 3, 1, 1, 1), "4D series with 3 frames"),
    "4D of no frames": (put("8h", 40, 4, 5, 4, 3, 0, 1, 1, 1), "dim[4] is 0"),
    **{f"{n} dimensions": (put("h", 40, n), f"dim[0], the number of dimensions, is {n}")
       for n in (0, -1, 8, 32767, -32768)},
    **{f"dim[{d}] = {n}": (put("h", 40 + 2 * d, n), f"dim[{d}] is {n}")
       for d in (1, 2, 3) for n in (0, -1, -32768)},
    **{f"dim[{d}] huge": (put("h", 40 + 2 * d, 32767), "32767") for d in (1, 2, 3)},
    "all dimensions huge": (put("3h", 42, 32767, 32767, 32767), "32767x32767x32767"),
    **{f"datatype {code}": (put("hh", 70, code, bits), f"datatype {code}")
       for code, bits in ((32, 64), (1792, 128), (2048, 256), (128, 24), (2304, 32), (1, 1),
                          (1536, 128), (0, 0), (255, 8), (-1, 8), (77, 16))},
    "bitpix of another type": (put("h", 72, 16), "bitpix is 16"),
    **{f"voxels from byte {at}": (put("f", 108, at), "vox_offset")
       for at in (0, 1, 348, 351, -352, 352.5, NAN, INF, 1e30)},
    "voxels beyond the end": (put("f", 108, 65536), "there are 592 bytes"),
    **{f"sform row {r}, column {c}": (put("f", 280 + 16 * r + 4 * c, bad), f"srow_{'xyz'[r]}[{c}]")
       for r in range(3) for c, bad in ((0, NAN), (1, INF), (2, -INF), (3, NAN))},
    "sform of zeros": (put("12f", 280, *[0] * 12), "size of 0 mm"),
    "qform of NaN": (both(put("hh", 252, 1, 0), put("3f", 256, NAN, 0, 0)), "quatern[0] is nan"),
    "qform that is no rotation": (both(put("hh", 252, 1, 0), put("3f", 256, 2, 0, 0)), "rotation"),
    "pixdim of NaN": (put("f", 80, NAN), "pixdim[1] is nan"),
    "no size": (both(put("hh", 252, 0, 0), put("f", 84, 0)), "pixdim[2], the voxel size, is 0"),
    "slope without intercept": (put("2f", 112, 2, NAN), "scl_inter is nan"),
    "wrong magic": (lambda data: data.__setitem__(slice(344, 348), b"n+3\0"), "6e 2b 33 00"),
    "pair of files": (lambda data: data.__setitem__(slice(344, 348), b"ni1\0"), "pair"),
    "ANALYZE": (lambda data: data.__setitem__(slice(344, 348), b"\0\0\0\0"), "ANALYZE"),
    "header only": (lambda data: data.__delitem__(slice(352, None)), "there are 352 bytes"),
    "one byte short": (lambda data: data.__delitem__(-1), "there are 591 bytes"),
    "empty": (whole(b""), "empty"),
    "one byte": (whole(b"\x5c"), "not a NIfTI file"),
    "DICOM": (whole(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL" * 50), "dcm2niix"),
    "ZIP": (whole(zip_bytes()), "not a NIfTI file"),
    "web page": (whole(b"<!DOCTYPE html><html><body>404</body></html>" * 20), "not a NIfTI file"),
    "Git LFS pointer": (whole(LFS), "not a NIfTI file"),
    "gzip of nothing": (whole(gzip.compress(b"")), "empty"),
    "gzip of gzip": (lambda data: data.__setitem__(slice(None), gzip.compress(gzip.compress(data))),
                     "not a NIfTI file"),
    "gzip with garbage behind": (lambda data: data.__setitem__(slice(None),
                                 gzip.compress(data) + b"garbage"), "behind the gzip stream"),
    "gzip, second member unfinished": (lambda data: data.__setitem__(slice(None),
        gzip.compress(data[:400]) + gzip.compress(data[400:])[:-9]), "gzip stream ends too early"),
    "gzip, second member missing": (lambda data: data.__setitem__(slice(None),
        gzip.compress(data[:400])), "there are 400 bytes"),
    "gzip of an image one byte short": (lambda data: data.__setitem__(slice(None),
        gzip.compress(data[:-1])), "there are 591 bytes"),
    "gzip of wrong length": (lambda data: data.__setitem__(slice(None),
        gzip.compress(data)[:-4] + b"\1\0\0\0"), "gzip"),
}  # fmt: skip

NIFTI_2: dict[str, tuple[Change, str]] = {
    **{f"dim[{d}] = {n}": (put("q", 16 + 8 * d, n), str(n))
       for d in (1, 2, 3) for n in (-(2**63), -1, 0, 2**31, 2**40, 2**62, 2**63 - 1)},
    "product of sizes overflows": (put("3q", 24, 2**32, 2**32, 2**32), "4294967296"),
    "sform of 1e300": (put("d", 400, 1e300), "size of 1e+300 mm"),
    "1e300 mm away": (put("d", 424, 1e300), "1e+300 mm away"),
    "voxels from byte 2^62": (put("q", 168, 2**62), "vox_offset"),
    "wrong line ends": (lambda data: data.__setitem__(slice(8, 12), b"\n\x1a\n\0"), "magic"),
}  # fmt: skip


@pytest.mark.parametrize("name", NIFTI_1)
def test_refused_nifti_1(tmp_path: Path, tiny: Path, out: Path, name: str) -> None:
    change, words = NIFTI_1[name]
    data = image_bytes()
    change(data)
    pet = tmp_path / "sub-1_pet.nii"
    pet.write_bytes(data)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", tiny, "-o", out)
    assert_refused(result, out, "sub-1_pet.nii: ", words)


@pytest.mark.parametrize("name", NIFTI_2)
def test_refused_nifti_2(tmp_path: Path, tiny: Path, out: Path, name: str) -> None:
    change, words = NIFTI_2[name]
    data = image_bytes(2)
    change(data)
    pet = tmp_path / "sub-1_pet.nii"
    pet.write_bytes(data)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", tiny, "-o", out)
    assert_refused(result, out, "sub-1_pet.nii: ", words)


# ---- What looks odd and is read all the same -----------------------------------------------------


def dose_of(tmp_path: Path, tiny: Path, data: bytes, name: str = "p.nii") -> np.ndarray:
    pet, dose = tmp_path / name, tmp_path / "dose.nii"
    pet.write_bytes(data)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", tiny, "-o", dose)
    assert result.returncode == 0, result.stderr
    return nib.load(dose).get_fdata()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


ODD: dict[str, Callable[[bytes], bytes]] = {
    "bytes behind the voxels": lambda d: d + b"what a program left here" * 100,
    "three gzip members": lambda d: packed(d[:7]) + packed(d[7:400]) + packed(d[400:]),
    "an empty gzip member": lambda d: packed(d) + packed(b""),
    "zeros behind the gzip stream": lambda d: packed(d) + bytes(700),
    "five dimensions, two of one": lambda d: d[:40] + struct.pack("<6h", 5, *SHAPE, 1, 1) + d[52:],
    "gzip under the name .nii": packed,
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_whole(tmp_path: Path, tiny: Path, name: str) -> None:
    data = bytes(image_bytes())
    expected = dose_of(tmp_path, tiny, data)
    assert expected.max() > 1
    np.testing.assert_array_equal(dose_of(tmp_path, tiny, ODD[name](data)), expected)


@pytest.mark.parametrize("name", ["p.nii.gz", "p.nii.zst", "p.img", "p", "p.NII", "p.dcm"])
def test_content_decides_not_the_name(tmp_path: Path, tiny: Path, name: str) -> None:
    data = bytes(image_bytes())
    expected = dose_of(tmp_path, tiny, data)
    np.testing.assert_array_equal(dose_of(tmp_path, tiny, data, name), expected)


@pytest.mark.parametrize("slope", [NAN, -INF])
@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [("<u1", 2), ("<i1", 256), ("<i2", 4), ("<u2", 512), ("<i4", 8), ("<u4", 768), ("<i8", 1024),
     ("<u8", 1280), ("<f4", 16), ("<f8", 64)],
)  # fmt: skip
def test_a_slope_that_is_none(
    tmp_path: Path, tiny: Path, dtype: str, datatype: int, slope: float
) -> None:
    """As nibabel does: the values are taken as they are stored, whatever the intercept says."""
    data = image_bytes(1, dtype, datatype)
    put("2f", 112, slope, NAN)(data)
    expected = dose_of(tmp_path, tiny, bytes(image_bytes()))
    np.testing.assert_array_equal(dose_of(tmp_path, tiny, bytes(data)), expected)


# ---- Labels and their names ----------------------------------------------------------------------


def save_labels(path: Path, ids: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(ids, affine), path)


def masks(path: Path, *shapes: tuple[int, ...]) -> None:
    path.mkdir()
    for i, shape in enumerate(shapes):
        save_labels(path / f"organ{i}.nii", np.ones(shape, np.uint8))


MOVED = AFFINE + np.array([[0, 0, 0, 4.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
LABELS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "missing": (lambda p: None, ("labels.nii", "No such file")),
    "empty": (lambda p: p.write_bytes(b""), ("labels.nii", "empty")),
    "cut": (lambda p: p.write_bytes(image_bytes()[:-1]), ("labels.nii", "591 bytes")),
    "another size": (lambda p: save_labels(p, np.ones((5, 4, 4), np.uint8)),
                     ("5x4x3 and 5x4x4", "--resample-labels")),
    "moved by a voxel": (lambda p: save_labels(p, np.ones(SHAPE, np.uint8), MOVED),
                         ("4 mm apart", "--resample-labels")),
    "RGB": (lambda p: p.write_bytes(image_bytes()[:70] + b"\x80\0\x18\0" + image_bytes()[74:]),
            ("labels.nii", "datatype 128")),
    "4D": (lambda p: save_labels(p, np.ones((*SHAPE, 2), np.uint8)), ("labels.nii", "2 frames")),
    "fractions": (lambda p: save_labels(p, np.full(SHAPE, 1.5, np.float32)), ("labels.nii", "1.5")),
    "negative": (lambda p: save_labels(p, np.full(SHAPE, -2, np.int16)), ("labels.nii", "-2")),
    "too large": (lambda p: save_labels(p, np.full(SHAPE, 2**24, np.int32)),
                  ("labels.nii", "16777216")),
    "NaN": (lambda p: save_labels(p, np.full(SHAPE, np.nan, np.float32)), ("labels.nii", "nan")),
    "only background": (lambda p: save_labels(p, np.zeros(SHAPE, np.uint8)),
                        ("labels.nii", "every voxel is 0")),
    "empty folder": (lambda p: masks(p), ("labels.nii", "no .nii")),
    "masks on two grids": (lambda p: masks(p, SHAPE, (5, 4, 2)), ("organ1.nii", "5x4x2")),
    "one broken mask": (lambda p: (masks(p, SHAPE), (p / "x.nii").write_text("mask"))[0],
                        ("x.nii", "not a NIfTI file")),
    "two masks of one name": (lambda p: (masks(p, SHAPE), (p / "organ0.nii.gz").write_bytes(
        gzip.compress((p / "organ0.nii").read_bytes())))[0], ("organ0", "two files")),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_refused_labels(tmp_path: Path, tiny: Path, out: Path, name: str) -> None:
    make, words = LABELS[name]
    pet, labels = tmp_path / "p.nii", tmp_path / "labels.nii"
    pet.write_bytes(image_bytes())
    make(labels)
    command = ("predict", pet, *SUV_78, *QUICK, "-m", tiny, "-o", out, "--labels", labels)
    assert_refused(dosemap(*command), out, *words)


NAMES: dict[str, tuple[str, bytes, str]] = {
    "missing": ("names.json", b"", "No such file"),
    "empty": ("names.json", b" ", "names.json"),
    "a list": ("names.json", b"[1, 2]", "names.json"),
    "id twice": ("names.json", b'{"1": "liver", "1": "spleen"}', "names.json"),
    "no text": ("names.json", b'{"1": null}', "names.json"),
    "not a number": ("names.json", b'{"one": "liver"}', "one"),
    "not UTF-8": ("names.json", b'{"1": "Magen\xe9"}', "names.json"),
    "deep": ("names.json", b'{"1": ' * 5000, "names.json"),
    "TSV without header": ("names.tsv", b"1\tliver\n", "names.tsv"),
    "TSV without a tab": ("names.tsv", b"index\tname\n1 liver\n", "names.tsv"),
    "TSV with an id twice": ("names.tsv", b"index\tname\n1\tliver\n1\tspleen\n", "names.tsv"),
}


@pytest.mark.parametrize("name", NAMES)
def test_refused_label_names(tmp_path: Path, tiny: Path, out: Path, name: str) -> None:
    file, content, words = NAMES[name]
    pet, labels = tmp_path / "p.nii", tmp_path / "labels.nii"
    pet.write_bytes(image_bytes())
    save_labels(labels, np.ones(SHAPE, np.uint8))
    if content:
        (tmp_path / file).write_bytes(content)
    command = ("predict", pet, *SUV_78, *QUICK, "-m", tiny, "-o", out, "--labels", labels)
    assert_refused(dosemap(*command, "--label-names", tmp_path / file), out, file, words)


# ---- The PET's sidecar ---------------------------------------------------------------------------

SIDECARS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "p.json"),
    "a list": (b"[]", "p.json"),
    "a number": (b"7", "p.json"),
    "key twice": (b'{"Units": "Bq/mL", "Units": "SUV"}', "Units"),
    "NaN": (b'{"BodyWeight": NaN}', "p.json"),
    "number too large": (b'{"BodyWeight": 1e999}', "p.json"),
    "not UTF-8": (b'{"Units": "\xff\xfe"}', "p.json"),
    "NUL inside": (b'{"Units": "SUV\\u0000"}', "p.json"),
    "deep": (b'{"a":' * 100_000, "p.json"),
    "very deep lists": (b'{"a":' + b"[" * 5_000_000, "p.json"),
    "many nodes": (b'{"a":[' + b"1," * 3_000_000 + b"1]}", "p.json"),
    "something behind": (b'{"Units": "SUV"} {}', "p.json"),
    "weight as text": (b'{"BodyWeight": "80 kg"}', "BodyWeight"),
    "weight of 0": (b'{"BodyWeight": 0}', "0"),
    "negative weight": (b'{"BodyWeight": -80}', "-80"),
    "unknown unit": (b'{"Units": "counts"}', "counts"),
}


@pytest.mark.parametrize("name", SIDECARS)
def test_refused_sidecar(tmp_path: Path, tiny: Path, out: Path, name: str) -> None:
    content, words = SIDECARS[name]
    pet = tmp_path / "p.nii"
    pet.write_bytes(image_bytes())
    (tmp_path / "p.json").write_bytes(content)
    result = dosemap("predict", pet, "--units", "suv", *QUICK, "-m", tiny, "-o", out)
    assert_refused(result, out, "p.json", words)


@pytest.mark.parametrize(("key", "value"), [("PatientWeight", [80]), ("TracerRadionuclide", 68)])
def test_a_value_of_another_type(
    tmp_path: Path, tiny: Path, out: Path, key: str, value: object
) -> None:
    pet = tmp_path / "p.nii"
    pet.write_bytes(image_bytes())
    (tmp_path / "p.json").write_text(json.dumps({key: value}))
    result = dosemap("predict", pet, "--units", "suv", *QUICK, "-m", tiny, "-o", out)
    assert_refused(result, out, "p.json", key)
