# SPDX-License-Identifier: Apache-2.0
"""An example PSMA-like PET with organ labels and a BIDS-PET sidecar, from a seed.

A phantom, no patient: ellipsoids whose uptake follows published 68Ga-PSMA-11 medians (Gafita et al.
2022; tumour, bladder and background are assumed), blurred to 6 mm FWHM, with noise.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from dosemap_tools import nifti

SPACING_MM = 4.0
SHAPE = (96, 80, 128)
FWHM_MM = 6.0
INJECTED_MBQ = 118.4
WEIGHT_KG = 84.0
HALF_LIFE_S = 67.71 * 60  # 68Ga
DELAY_S = 3600.0  # from injection to the scan's start

# id, name, centre and half-axes in mm (to the right, front, head of the middle), SUV
Organ = tuple[int, str, tuple[float, float, float], tuple[float, float, float], float]
BODY: Organ = (0, "body", (0, 0, 0), (165, 125, 400), 0.6)
ORGANS: list[Organ] = [
    (5, "liver", (75, 5, 20), (70, 75, 80), 3.7),
    (1, "spleen", (-105, -50, 35), (25, 35, 48), 5.3),
    (2, "kidney_right", (62, -60, -75), (27, 26, 55), 26.0),
    (3, "kidney_left", (-62, -60, -55), (27, 26, 55), 26.0),
    (21, "urinary_bladder", (0, 35, -205), (35, 30, 28), 15.0),
    (207, "parotid_gland_left", (-55, -5, 215), (12, 18, 24), 10.0),
    (208, "parotid_gland_right", (55, -5, 215), (12, 18, 24), 10.0),
    (301, "lesion_node", (-35, -30, -150), (9, 9, 11), 18.0),
    (302, "lesion_bone", (20, -75, 60), (13, 12, 12), 16.0),
]


def voxel_centres() -> list[np.ndarray]:
    """Return R, A, S coordinates (mm) of the voxels; the grid's axes point to L, P, S."""
    axes = [(np.arange(n) - (n - 1) / 2) * SPACING_MM for n in SHAPE]
    axes[0], axes[1] = -axes[0], -axes[1]
    return list(np.meshgrid(*axes, indexing="ij", sparse=True))


def inside(organ: Organ, centres: list[np.ndarray]) -> np.ndarray:
    """Return the voxels whose centre lies in an organ's ellipsoid."""
    _, _, middle, half_axes, _ = organ
    terms = zip(centres, middle, half_axes, strict=True)
    return sum(((c - m) / h) ** 2 for c, m, h in terms) <= 1.0


def blur(image: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """Convolve with a Gaussian along each axis; outside the image is 0."""
    sigma = fwhm_mm / SPACING_MM / np.sqrt(8 * np.log(2))
    reach = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in range(3):
        image = np.apply_along_axis(np.convolve, axis, image, kernel, mode="same")
    return image


def make_suv(labels: np.ndarray, centres: list[np.ndarray], seed: int) -> np.ndarray:
    """Return the PET as SUV: uptake, blurred, with noise that grows as its square root."""
    rng = np.random.default_rng(seed)
    suv = np.where(inside(BODY, centres), BODY[4], 0.0)
    for organ in ORGANS:
        suv[labels == organ[0]] = organ[4] * rng.normal(1.0, 0.05)
    suv = blur(suv, FWHM_MM)
    noise = blur(rng.standard_normal(SHAPE), FWHM_MM)
    return np.maximum(0.0, suv + 0.25 * np.sqrt(suv) * noise)


def sidecar() -> dict[str, object]:
    """Return the BIDS-PET sidecar; times are seconds after TimeZero, the scan's start."""
    return {
        "Manufacturer": "none (phantom)",
        "ManufacturersModelName": "ellipsoids",
        "Units": "Bq/mL",
        "TracerName": "PSMA-11",
        "TracerRadionuclide": "Ga68",
        "InjectedRadioactivity": INJECTED_MBQ,
        "InjectedRadioactivityUnits": "MBq",
        "InjectedMass": "n/a",
        "InjectedMassUnits": "n/a",
        "SpecificRadioactivity": "n/a",
        "SpecificRadioactivityUnits": "n/a",
        "ModeOfAdministration": "bolus",
        "TimeZero": "10:30:00",
        "ScanStart": 0,
        "InjectionStart": -DELAY_S,
        "FrameTimesStart": [0],
        "FrameDuration": [1200],
        "AcquisitionMode": "static",
        "ImageDecayCorrected": True,
        "ImageDecayCorrectionTime": 0,
        "ReconMethodName": "none",
        "ReconMethodParameterLabels": ["none"],
        "ReconFilterType": "Gaussian",
        "ReconFilterSize": FWHM_MM,
        "AttenuationCorrection": "none",
        "PatientWeight": WEIGHT_KG,
    }


def write(folder: str | os.PathLike[str], seed: int = 1) -> list[Path]:
    """Write PET, sidecar, labels and their names into a folder, and return the four paths."""
    centres = voxel_centres()
    labels = np.zeros(SHAPE, np.int16)
    for organ in ORGANS:
        labels[inside(organ, centres)] = organ[0]
    suv = make_suv(labels, centres, seed)
    activity_at_scan = INJECTED_MBQ * 1e6 * 2.0 ** (-DELAY_S / HALF_LIFE_S)
    bqml = suv * activity_at_scan / (WEIGHT_KG * 1e3)

    affine = np.diag([-SPACING_MM, -SPACING_MM, SPACING_MM, 1.0])
    affine[:3, 3] = [float(c.flat[0]) for c in centres]
    slope = float(np.float32(bqml.max() / 32767))
    stored = np.minimum(np.rint(bqml / slope), 32767).astype(np.int16)
    rows = [f"{organ[0]}\t{organ[1]}\n" for organ in sorted(ORGANS)]

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ("pet.nii.gz", "pet.json", "dseg.nii.gz", "dseg.tsv")
    paths = [folder / f"sub-example_{name}" for name in names]
    note = "phantom, made by dosemap tools/make_example"
    nifti.write(paths[0], stored, affine, slope=slope, description=note)
    paths[1].write_text(json.dumps(sidecar(), indent=2) + "\n")
    nifti.write(paths[2], labels, affine, description=note)
    paths[3].write_text("index\tname\n" + "".join(rows))
    return paths
