# SPDX-License-Identifier: Apache-2.0
"""Numbers that no PET should have: taken as they are, or refused with the reason.

The doses are compared with the same convolution by numpy, so `accepted` means `right`.
"""

import json
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import (
    QUICK,
    SUV_78,
    TINY_CARD,
    assert_refused,
    dosemap,
    tiny_graph,
    tiny_weights,
    write_tiny_model,
)
from dosemap_tools import weights_file

WHOLE = ("--tile", "whole", "--threads", "2", "--quiet")
AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
RNG = np.random.default_rng(11)
BASE = RNG.gamma(1.5, 2.0, (13, 11, 9)).astype(np.float32)


def write(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """By hand where nibabel refuses the affine: an sform is twelve numbers."""
    image = nib.Nifti1Image(np.asarray(data, np.float32), AFFINE)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<hh", content, 252, 0, 1)
    struct.pack_into("<12f", content, 280, *affine[:3].ravel())
    path.write_bytes(content)
    return path


def expected(data: np.ndarray) -> np.ndarray:
    """What the tiny network computes, zeros around the volume."""
    v = np.pad(data.astype(np.float64), 1)
    inner = v[1:-1, 1:-1, 1:-1]
    return np.maximum(0, 0.5 * inner + 0.25 * v[:-2, 1:-1, 1:-1] + 0.25 * v[1:-1, 1:-1, 2:])


def highest_nearby(data: np.ndarray, reach: int = 6) -> np.ndarray:
    """The largest magnitude within some voxels: what rounding errors may scale with."""
    result = np.abs(data.astype(np.float64))
    for axis in range(3):
        padded = np.pad(result, [(reach, reach) if a == axis else (0, 0) for a in range(3)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=axis)
        result = windows.max(-1)
    return result


def assert_right(out: Path, data: np.ndarray) -> None:
    dose = np.asanyarray(nib.load(out).dataobj)
    assert dose.shape == data.shape and np.isfinite(dose).all()
    reference = expected(data)
    # Below 1e-38 a float has fewer digits, and the weights of the windows take some of those.
    allowed = 1e-5 * np.abs(reference) + 1e-6 * highest_nearby(data) + 5e-42
    worst = np.unravel_index(np.argmax(np.abs(dose - reference) - allowed), data.shape)
    assert np.all(np.abs(dose - reference) <= allowed), (worst, dose[worst], reference[worst])


# ---- Values


def one(value: float) -> np.ndarray:
    data = BASE.copy()
    data[2, 3, 4] = value
    return data


def checkered(value: float) -> np.ndarray:
    return np.where(np.indices(BASE.shape).sum(0) % 2 == 0, value, -value).astype(np.float32)


VALUES = {
    "1e30 in one voxel": one(1e30),
    "1e30 everywhere": np.full_like(BASE, 1e30),
    "-1e30 in one voxel": one(-1e30),
    "1e30 and -1e30": checkered(1e30),
    "denormals": np.full_like(BASE, 1e-41),
    "denormals of many sizes": (BASE * 1e-42).astype(np.float32),
    "the smallest numbers": checkered(1e-45),
    "1e-38": BASE * np.float32(1e-38),
    "zeros": np.zeros_like(BASE),
    "negative zeros": -np.zeros_like(BASE),
    "a constant": np.full_like(BASE, 2),
    "negative": -BASE,
    "one voxel above zeros": one(7) * (np.indices(BASE.shape).sum(0) == 9),
    "from 1e-30 to 1e30": (10.0 ** RNG.uniform(-30, 30, BASE.shape)).astype(np.float32),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_that_are_taken(tmp_path: Path, tiny: Path, name: str) -> None:
    """With labels, so that the tables see the numbers too."""
    data = VALUES[name]
    pet, labels, out = tmp_path / "p.nii", tmp_path / "l.nii", tmp_path / "out.nii"
    ids = np.zeros(BASE.shape, np.uint8)
    ids[1:6, 1:6, 1:6], ids[8:12, 2:10, 2:7] = 1, 2
    write(pet, data)
    nib.save(nib.Nifti1Image(ids, AFFINE), labels)
    result = dosemap("predict", pet, *SUV_78, *WHOLE, "-m", tiny, "-o", out, "--labels", labels)
    assert result.returncode == 0, result.stderr
    assert_right(out, data)
    dose = nib.load(out).get_fdata()
    lines = (tmp_path / "out_organs.tsv").read_text().splitlines()
    rows = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
    for row in rows:
        inside = dose[ids == int(row["id"])]
        np.testing.assert_allclose(float(row["mean_gy_per_gbq"]), inside.mean(), rtol=1e-4)
        np.testing.assert_allclose(float(row["max_gy_per_gbq"]), inside.max(), rtol=1e-4)
        np.testing.assert_allclose(float(row["min_gy_per_gbq"]), inside.min(), rtol=1e-4)
    curves = (tmp_path / "out_dvh.tsv").read_text().splitlines()
    assert 2 * len(rows) < len(curves) < 250_000
    assert "nan" not in "".join(curves) and "inf" not in "".join(curves)


def test_a_dose_that_overflows(tmp_path: Path, tiny: Path, out: Path) -> None:
    """2^127 is a number, but not with the body weight of 39.35 kg, which doubles it."""
    pet = write(tmp_path / "p.nii", np.full_like(BASE, 2.0**127))
    command = ("predict", pet, "--units", "suv", *WHOLE, "-m", tiny, "-o", out)
    assert_refused(dosemap(*command, "--body-weight", "39.35"), out, "p.nii", "inf", "units")


@pytest.mark.parametrize(("value", "shown"), [(1e300, "inf"), (-1e300, "-inf")])
def test_values_beyond_float32(
    tmp_path: Path, tiny: Path, out: Path, value: float, shown: str
) -> None:
    data = BASE.astype(np.float64)
    data[1, 2, 3] = value
    nib.save(nib.Nifti1Image(data, AFFINE), tmp_path / "p.nii")
    command = ("predict", tmp_path / "p.nii", *SUV_78, *WHOLE, "-m", tiny, "-o", out)
    assert_refused(dosemap(*command), out, "p.nii", "(1, 2, 3)", shown, "--nan-to-zero")


def test_nothing_but_nan(tmp_path: Path, tiny: Path, out: Path) -> None:
    pet = write(tmp_path / "p.nii", np.full_like(BASE, np.nan))
    command = ("predict", pet, *SUV_78, *WHOLE, "-m", tiny, "-o", out)
    assert_refused(dosemap(*command), out, "(0, 0, 0)", "nan", "--nan-to-zero")
    assert dosemap(*command, "--nan-to-zero").returncode == 0
    assert np.all(nib.load(out).get_fdata() == 0)


# ---- Shapes

SHAPES = [(1, 1, 1), (1, 7, 9), (7, 1, 9), (7, 9, 1), (1, 1, 9), (1, 9, 1), (9, 1, 1), (2, 2, 2),
          (31, 3, 1), (1, 37, 5)]  # fmt: skip


@pytest.mark.parametrize("tile", ["whole", "8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_thin_volumes(tmp_path: Path, tiny: Path, shape: tuple[int, ...], tile: str) -> None:
    data = RNG.gamma(1.5, 2.0, shape).astype(np.float32)
    pet, out = write(tmp_path / "p.nii", data), tmp_path / "out.nii"
    result = dosemap("predict", pet, *SUV_78, "--tile", tile, "-m", tiny, "-o", out)
    assert result.returncode == 0, result.stderr
    if tile == "whole" or max(shape) <= 8:
        assert_right(out, data)
    else:  # windows end at zeros of their own
        dose = nib.load(out).get_fdata()
        assert dose.shape == shape and np.isfinite(dose).all() and dose.max() > 0


# ---- Voxel sizes

SIZES = [(0.1, 0.1, 0.1), (50, 50, 50), (0.1, 4, 50), (50, 0.1, 0.1), (1e-5, 1e-5, 1e-5),
         (9e5, 9e5, 9e5), (4.00001, 4, 4)]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_voxel_sizes_on_the_own_grid(tmp_path: Path, tiny: Path, size: tuple[float, ...]) -> None:
    pet, out = write(tmp_path / "p.nii", BASE, np.diag([*size, 1])), tmp_path / "out.nii"
    result = dosemap("predict", pet, *SUV_78, *WHOLE, "-m", tiny, "-o", out)
    assert result.returncode == 0, result.stderr
    assert_right(out, BASE)
    np.testing.assert_allclose(nib.load(out).affine, np.diag([*size, 1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "grid"),
    [((0.1, 0.1, 0.1), (1, 1, 1)), ((50, 50, 50), (163, 138, 113)), ((0.1, 4, 50), (1, 11, 113)),
     ((4.00001, 4, 4), (13, 11, 9)), ((1e-5, 1e-5, 1e-5), (1, 1, 1))],
)  # fmt: skip
def test_voxel_sizes_with_a_model_grid(
    tmp_path: Path, size: tuple[float, ...], grid: tuple[int, ...]
) -> None:
    """A constant becomes the constant but where zeros lie around the model's grid."""
    model = write_tiny_model(tmp_path / "m.safetensors.zst", [4.0, 4.0, 4.0])
    pet = write(tmp_path / "p.nii", np.full_like(BASE, 2), np.diag([*size, 1]))
    out = tmp_path / "out.nii"
    result = dosemap("predict", pet, *SUV_78, *WHOLE, "-m", model, "-o", out)
    assert result.returncode == 0, result.stderr
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert tuple(sidecar["ModelGrid"]["Size"]) == grid, sidecar["ModelGrid"]
    dose = nib.load(out).get_fdata()
    assert np.all((dose >= 0.99) & (dose <= 2 + 1e-5))
    if min(grid) > 1:
        np.testing.assert_allclose(dose[2:-2, 2:-2, 2:-2], 2, rtol=1e-5)


# ---- Affines


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def sheared(degrees: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 1] = 4 * np.tan(np.radians(degrees))
    return affine


def moved(mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] = mm, -mm, mm
    return affine


def column(axis: int, *values: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, axis] = values
    return affine


TAKEN = {
    "turned by 10 degrees": turned(10),
    "turned by 44 degrees": turned(44),
    "sheared by 4.9 degrees": sheared(4.9),
    "a million mm away": moved(1e6),
    "900 km away": moved(9e8),
}
REFUSED = {
    "sheared by 5.1 degrees": (sheared(5.1), "axes x and y meet at 84.9 degrees"),
    "sheared by 45 degrees": (sheared(45), "axes x and y meet at 45 degrees"),
    "sheared the other way": (sheared(-30), "axes x and y meet at 120 degrees"),
    "two axes alike": (column(0, 0, 4, 0), "axes lie in one plane"),
    "two axes nearly alike": (column(0, 1e-9, 4, 0), "axes lie in one plane"),
    "an axis of zeros": (column(1, 0, 0, 0), "size of 0 mm along axis 1"),
    "zeros": (np.zeros((4, 4)), "size of 0 mm along axis 0"),
    "voxels of 1e-7 mm": (column(2, 0, 0, 1e-7), "size of 1e-07 mm along axis 2"),
    "voxels of 10 km": (column(2, 0, 0, 1e7), "size of 1e+07 mm along axis 2"),
    "voxels of 1e38 mm": (column(2, 0, 1e38, 1e38), "mm along axis 2"),
    "10,000 km away": (moved(1e10), "1e+10 mm away"),
    "1e38 mm away": (moved(1e38), "1e+38 mm away"),
    "NaN": (moved(np.nan), "nan"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_affines_that_are_taken(tmp_path: Path, tiny: Path, name: str) -> None:
    pet, out = write(tmp_path / "p.nii", BASE, TAKEN[name]), tmp_path / "out.nii"
    result = dosemap("predict", pet, *SUV_78, *WHOLE, "-m", tiny, "-o", out)
    assert result.returncode == 0, result.stderr
    assert_right(out, BASE)
    np.testing.assert_allclose(nib.load(out).affine, TAKEN[name].astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_affines_that_are_refused(tmp_path: Path, tiny: Path, out: Path, name: str) -> None:
    affine, words = REFUSED[name]
    pet = write(tmp_path / "p.nii", BASE, affine)
    result = dosemap("predict", pet, *SUV_78, *WHOLE, "-m", tiny, "-o", out)
    assert_refused(result, out, "p.nii", words)


def test_left_handed(tmp_path: Path, tiny: Path) -> None:
    """The mirror image of the storage order, not of the patient."""
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = -4, 4 * (BASE.shape[0] - 1)
    pet, out = write(tmp_path / "p.nii", BASE[::-1], flipped), tmp_path / "out.nii"
    result = dosemap("predict", pet, *SUV_78, *WHOLE, "-m", tiny, "-o", out)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(nib.load(out).get_fdata()[::-1], expected(BASE), rtol=1e-5)


# ---- Weights


@pytest.mark.parametrize("factor", [1e38, 3e38])
def test_weights_that_overflow(tmp_path: Path, out: Path, factor: float) -> None:
    """Finite weights whose result is not: refused, never a map of Inf."""
    weights = {"w": tiny_weights()["w"] * np.float32(factor)}
    model = tmp_path / "m.safetensors"
    weights_file.write(model, tiny_graph(), TINY_CARD, {"made_by": "tests"}, weights)
    pet = write(tmp_path / "p.nii", BASE + 10)
    result = dosemap("predict", pet, *SUV_78, *WHOLE, "-m", model, "-o", out)
    assert_refused(result, out, "p.nii", "not finite")


# ---- The command line

OPTIONS = [
    *[("--activity", x) for x in ("nan", "inf", "-1", "0", "1e-9", "201", "1e999", "", "7,4")],
    ("--activity", "7GBq"),
    *[("--body-weight", x) for x in ("nan", "0", "-80", "1e9", "80kg")],
    *[("--overlap", x) for x in ("nan", "-0.1", "0.91", "1", "1e400")],
    *[("--tile", x) for x in ("0", "-8", "8.5", "1e9", "99999999999999999999", "8,8", "8,8,8,8")],
    *[("--tile", x) for x in ("nan", "all")],
    *[("--threads", x) for x in ("0", "-1", "4097", "99999999999999999999", "2.5", "nan")],
    *[("--vx", x) for x in ("nan", "-1", "inf", "1,,2", "five", "")],
    *[("--skip-air", x) for x in ("nan", "inf", "none")],
    ("--precision", "float64"),
    ("--device", "abacus"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_numbers_on_the_command_line(
    tmp_path: Path, tiny: Path, out: Path, option: str, value: str
) -> None:
    pet = write(tmp_path / "p.nii", BASE)
    arguments = {"--units": "suv", "--body-weight": "78.7", option: value}
    flat = [x for pair in arguments.items() for x in pair]
    result = dosemap("predict", pet, *flat, "-m", tiny, "-o", out)
    assert result.returncode in (1, 2), (result.stdout, result.stderr)
    name = {"--body-weight": "weight", "--precision": "precision", "--device": "device",
            "--vx": "vx"}  # fmt: skip
    assert name.get(option, option) in result.stderr.lower(), result.stderr
    assert value in result.stderr or value == "1e9", result.stderr
    assert list(out.parent.iterdir()) == []


def test_quick_options_are_good(tmp_path: Path, tiny: Path, out: Path) -> None:
    """What the cases above differ from by one number."""
    pet = write(tmp_path / "p.nii", BASE)
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-m", tiny, "-o", out)
    assert result.returncode == 0, result.stderr
