# SPDX-License-Identifier: Apache-2.0
"""DosemapInferer in what MONAI builds around an inferer: configuration, transforms, evaluators."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="PyTorch is missing: its pipelines are not compared")
pytest.importorskip("monai", reason="MONAI is missing: its inferer is not compared")
pytest.importorskip("ignite", reason="ignite is missing: no evaluator of MONAI's")

import torch
from dosemap.monai import DosemapInferer
from dosemap_tools import nifti
from images import RAS_AFFINE, stored_as, uptake
from import_networks import Lopsided, network
from make_test_models import write_module
from monai import transforms
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from program import assert_close, relative_l2

ROI = (12, 16, 10)


@pytest.fixture(scope="module")
def module():
    return network(Lopsided)


@pytest.fixture(scope="module")
def model(module, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors.zst"
    write_module(path, module, patch_size=ROI, quantity="suv", voxel_size_mm=(5.0, 5.0, 5.0))
    return str(path)


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Two files, stored in different ways round."""
    paths = []
    for i, (order, flips) in enumerate([((0, 1, 2), (1, 1, 0)), ((2, 0, 1), (0, 1, 1))]):
        path = tmp_path_factory.mktemp("pets") / f"sub-{i}.nii.gz"
        nifti.write(path, *stored_as(uptake((22, 27, 19), i), RAS_AFFINE, order, flips))
        paths.append(str(path))
    return paths


def preprocessing():
    """As dose networks are fed: turned, resampled, scaled."""
    return transforms.Compose(
        [
            transforms.LoadImaged("image", ensure_channel_first=True),
            transforms.Orientationd("image", axcodes="LPS", labels=None),
            transforms.Spacingd("image", (5.0, 5.0, 5.0)),
            transforms.ScaleIntensityd("image", minv=-1.0, maxv=3.0),
        ]
    )


def evaluated(module, inferer, pets):
    """What an evaluator makes of the PETs, each back on its own grid."""
    before = preprocessing()
    after = transforms.Invertd("pred", before, "image", nearest_interp=False)
    made = []
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": p} for p in pets], before), batch_size=1),
        network=module,
        inferer=inferer,
        postprocessing=transforms.Compose([after, lambda data: made.append(data) or data]),
    )
    evaluator.run()
    return [data["pred"] for data in made]


def test_evaluator(module, model, pets):
    """From file to the PET's own grid; the transforms are undone as they are after MONAI's."""
    expected = evaluated(module, SlidingWindowInferer(ROI, 2, 0.5, "gaussian"), pets)
    results = evaluated(module, DosemapInferer(ROI, 2, 0.5, "gaussian", model=model), pets)
    assert len(results) == len(expected) == 2
    for result, reference, path in zip(results, expected, pets, strict=True):
        assert_close(result.numpy(), reference.numpy(), 1e-5)
        image, affine = nifti.read(path)
        assert result.shape == (1, *image.shape)
        assert torch.allclose(result.affine, torch.from_numpy(affine))
        assert relative_l2(result[0].numpy(), image) > 0.1


def test_configuration(module, model, pets):
    """As a bundle has it: the same keywords, another _target_, and the weights file."""
    keywords = {"roi_size": [*ROI], "sw_batch_size": 2, "overlap": 0.25, "mode": "gaussian"}
    config = {
        "root": os.path.dirname(model),
        "monai": {"_target_": "SlidingWindowInferer", **keywords},
        "ours": {
            **keywords,
            "_target_": "dosemap.monai.DosemapInferer",
            "model": "$@root + '/m.safetensors.zst'",
            "threads": 1,
        },
        "made": "$@ours(@x)",
        "x": torch.from_numpy(uptake((20, 13, 14)))[None, None],
    }
    parser = ConfigParser(config)
    with torch.no_grad():
        expected = parser.get_parsed_content("monai")(config["x"], module)
    assert isinstance(parser.get_parsed_content("ours"), DosemapInferer)
    assert_close(parser.get_parsed_content("made").numpy(), expected.numpy(), 1e-5)


def test_autocast_changes_nothing(model):
    x = torch.from_numpy(uptake((12, 16, 10)))[None, None]
    made = DosemapInferer(ROI, model=model)
    with torch.autocast("cpu", torch.bfloat16):
        result = made(x)
    assert result.dtype == torch.float32 and torch.equal(result, made(x))


def test_default_dtype_and_device_of_torch_do_not_matter(model):
    x = torch.from_numpy(uptake((12, 16, 10)))[None, None]
    expected = DosemapInferer(ROI, model=model)(x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            result = DosemapInferer(ROI, model=model)(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == torch.float32 and torch.equal(result, expected)


def run_python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_dosemap_alone_imports_neither():
    """It is one of many uses of the package, and the slowest to import."""
    imported = run_python(
        "import dosemap, sys; print({'torch', 'monai', 'ignite'} & {*sys.modules})"
    )
    assert imported == "set()\n"


@pytest.mark.parametrize("package", ["torch", "monai"])
def test_a_missing_package_is_named(package):
    said = run_python(
        f"import sys; sys.modules[{package!r}] = None\n"
        "import dosemap\n"
        "try: import dosemap.monai\n"
        "except dosemap.MissingPackageError as error: print(error)\n"
    )
    assert f"pip install {package}" in said and "dosemap.monai needs" in said
