# SPDX-License-Identifier: Apache-2.0
"""Runs `dosemap predict` on an array, as a user would on a file."""

import os
import subprocess
from pathlib import Path

import numpy as np
from dosemap_tools import nifti

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("DOSEMAP_BIN", ROOT / "build/cpu/host/dosemap"))
# At this body weight the uptake is the SUV.
UPTAKE = ("--units", "suv", "--body-weight", "78.7")


def run(*arguments, env=None):
    """Run the program; whatever it answers, it must not crash."""
    if not BINARY.is_file():
        raise FileNotFoundError(f"{BINARY} is not built; name the program in DOSEMAP_BIN")
    result = subprocess.run(
        [str(BINARY), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert result.returncode in (0, 1, 2), (result.returncode, result.stderr)
    return result


def predict(folder, pet, affine, model, *options):
    """Write `pet` (x, y, z), predict, and return the dose map; its grid must be the PET's."""
    source, target = Path(folder) / "in.nii", Path(folder) / "out.nii"
    nifti.write(source, np.asarray(pet, np.float32), affine)
    options = (*UPTAKE, *options) if "--units" not in options else options
    result = run("predict", source, "-o", target, "--model", model, "--quiet", *options)
    assert result.returncode == 0, result.stderr
    dose, dose_affine = nifti.read(target)
    assert dose.shape == pet.shape
    np.testing.assert_allclose(dose_affine, affine, atol=1e-4)
    return dose


def relative_l2(result, reference):
    """Norm of the difference over the norm of the reference, in double."""
    assert result.shape == reference.shape
    assert np.all(np.isfinite(result)), "the result holds NaN or infinity"
    result, reference = np.float64(result), np.float64(reference)
    scale = np.linalg.norm(reference)
    assert scale > 0, "the reference is zero everywhere: the comparison would say nothing"
    return np.linalg.norm(result - reference) / scale


def assert_close(result, reference, tolerance):
    """Relative L2 at most `tolerance`; names the worst voxel."""
    error = relative_l2(result, reference)
    worst = np.unravel_index(np.argmax(np.abs(result - reference)), result.shape)
    assert error <= tolerance, (
        f"relative L2 {error:.3g} > {tolerance:.3g}; worst at {tuple(map(int, worst))}:"
        f" {result[worst]:.7g}, expected {reference[worst]:.7g}"
    )


def assert_dose(result, reference):
    """|a - b| <= 1e-6 max + 1e-4 |ref| for every voxel, written so that NaN fails."""
    reference = np.float64(reference)
    allowed = 1e-6 * np.abs(reference).max() + 1e-4 * np.abs(reference)
    wrong = ~(np.abs(np.float64(result) - reference) <= allowed)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{int(wrong.sum())} voxels differ; first {at}: {result[at]}, expected {reference[at]}"
        )
