#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From a MONAI bundle to dose maps by dosemap, in two ways, and what they differ from MONAI's.

    python bundle_to_dose.py FOLDER

copies the bundle beside this script to FOLDER, gives it random weights and a phantom's PET, and
then does what README.md in the folder above explains. The network was never trained: its doses mean
nothing. Needs dosemap with its extras monai, import, torch and notebook, and pytorch-ignite.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dosemap
import numpy as np
import torch
from dosemap_tools import nifti, phantom
from monai.bundle import ConfigWorkflow
from monai.networks.nets import UNet

BUNDLE = Path(__file__).resolve().parent / "bundle"
TOLERANCE = 1e-5


def make_bundle(folder: Path, seed: int) -> None:
    """Copy the bundle's configuration and save a network with random weights, as MONAI does."""
    shutil.copytree(BUNDLE, folder, dirs_exist_ok=True)
    told = json.loads((folder / "configs/inference.json").read_text())["network_def"]
    torch.manual_seed(seed)
    network = UNet(**{key: value for key, value in told.items() if key != "_target_"})
    (folder / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), folder / "models/model.pt")


def make_pet(folder: Path) -> Path:
    """Write the phantom's PET in SUV, which is what the bundle was made for; return its path."""
    made = phantom.write(folder / "phantom")
    image = dosemap.read(made[0])
    known = json.loads(made[1].read_text())
    decayed = 2.0 ** (known["InjectionStart"] / phantom.HALF_LIFE_S)
    injected_bq = known["InjectedRadioactivity"] * 1e6 * decayed
    suv = image.data * (known["PatientWeight"] * 1e3 / injected_bq)
    path = folder / "pet" / "sub-example_pet.nii.gz"
    path.parent.mkdir(exist_ok=True)
    nifti.write(path, suv, image.affine)
    return path


def import_network(folder: Path) -> Path:
    """Bring the bundle's network into a weights file, proven to be the same; return its path."""
    told = json.loads((folder / "configs/inference.json").read_text())["network_def"]
    arguments = ", ".join(f"{k}={v!r}" for k, v in told.items() if k != "_target_")
    weights = folder / "models/model.safetensors.zst"
    command = [
        *("dosemap-import", str(folder / "models/model.pt")),
        *("--network", f"monai.networks.nets:{told['_target_']}({arguments})"),
        *("--card", str(folder / "configs/dosemap_card.json")),
        *("-o", str(weights)),
    ]
    print("$", shlex.join(command), flush=True)
    module = [sys.executable, "-m", "dosemap_tools.importing.command"]
    subprocess.run(module + command[1:], check=True)
    return weights


def run_bundle(folder: Path, *more: str) -> np.ndarray:
    """Run the bundle, as `python -m monai.bundle run` does, and return its dose map."""
    files = [str(folder / "configs" / name) for name in ("inference.json", *more)]
    workflow = ConfigWorkflow(
        files, workflow_type="infer", bundle_root=str(folder), output_dir=str(folder / "eval")
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return dosemap.read(folder / "eval/sub-example_pet_dose.nii.gz").data


def predict(folder: Path, weights: Path, pet: Path) -> np.ndarray:
    """Do the same without MONAI, with the bundle's own windows, and return the dose map."""
    window: dict[str, Any] = json.loads((folder / "configs/inference.json").read_text())["inferer"]
    prediction = dosemap.load_model(weights).predict(
        pet,
        units="suv",
        tile=tuple(window["roi_size"]),
        overlap=window["overlap"],
        blend=window["mode"],
    )
    prediction.save(folder / "dose.nii.gz")
    return prediction.dose


def main() -> int:
    """Run the example; 0 where all dose maps are MONAI's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder for the bundle; made if it is missing")
    parser.add_argument("--seed", type=int, default=1, help="of the weights; default: %(default)s")
    options = parser.parse_args()
    make_bundle(options.folder, options.seed)
    pet = make_pet(options.folder)
    weights = import_network(options.folder)
    expected = run_bundle(options.folder)
    results = {
        "the bundle with DosemapInferer": run_bundle(options.folder, "inference_dosemap.json"),
        "dosemap alone, dose.nii.gz": predict(options.folder, weights, pet),
    }
    print("relative L2 to the bundle with SlidingWindowInferer:")
    errors = []
    for name, dose in results.items():
        errors.append(np.linalg.norm(dose - expected) / np.linalg.norm(expected))
        print(f"  {errors[-1]:.2e}  {name}")
    same = max(errors) <= TOLERANCE
    print("the same" if same else f"NOT the same: more than {TOLERANCE:.0e}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
