# SPDX-License-Identifier: Apache-2.0
"""Made the golden cases of this folder with PyTorch and MONAI:

    python tests/golden/make_golden.py

Each case is a folder: model.safetensors.zst, pet.nii.gz, expected.nii.gz (float32), case.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
sys.path.insert(0, str(HERE.parents[1] / "tools"))

import monai
import torch
from dosemap_tools import nifti
from dosemap_tools.networks.generator import Generator, GeneratorConfig
from images import RAS_AFFINE, stored_as, uptake
from make_test_models import randomise, write_module
from peer import sliding_window
from torch import nn

TINY = (2, 4, 4)
SAME = ((0, 1, 2), (0, 0, 0))


class Layers(nn.Module):
    """The layers that the generators do not have."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(1, 4, (3, 1, 5), padding=(1, 0, 2))
        self.prelu = nn.PReLU(4)
        self.depthwise = nn.Conv3d(4, 8, 3, padding=1, groups=4)
        self.gelu, self.elu, self.softplus = nn.GELU(), nn.ELU(0.5), nn.Softplus()
        self.largest, self.average = nn.MaxPool3d(2), nn.AvgPool3d(3, 2, 1)
        self.grow = nn.Upsample(scale_factor=2, mode="trilinear")
        self.repeat = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv3d(20, 1, 1)

    def forward(self, pet):
        """Return one channel of the input's size."""
        x = self.prelu(self.stem(pet))
        y = self.gelu(self.depthwise(x))
        fine = self.grow(self.elu(self.average(y)))
        coarse = self.repeat(self.largest(y))
        return self.head(torch.cat([self.softplus(x), fine, coarse], 1))


def generator(seed, **config):
    """Return a tiny random generator."""
    return randomise(Generator(GeneratorConfig(**{"channels": TINY, **config})), seed)


def cases():
    """Yield name, module, volume size, tile, overlap, blend, graph options, storage."""
    none = {"final": "none"}
    yield "batch-gaussian", generator(1, **none), (20, 17, 13), (16,) * 3, 0.5, "gaussian", {}, SAME
    yield "batch-constant", generator(2), (19, 16, 23), (16,) * 3, 0.25, "constant", {}, SAME
    yield "batch-small", generator(3, **none), (11, 1, 20), (16,) * 3, 0.5, "gaussian", {}, SAME
    yield (
        "batch-large-tile",
        generator(4, **none),
        (20, 25, 9),
        (24, 20, 12),
        0.0,
        "constant",
        {},
        SAME,
    )
    yield (
        "instance",
        generator(5, norm="instance", **none),
        (17, 18, 12),
        (16,) * 3,
        0.25,
        "constant",
        {},
        SAME,
    )
    yield (
        "group",
        generator(6, norm="group", groups=2, **none),
        (16, 12, 19),
        (16,) * 3,
        0.75,
        "gaussian",
        {},
        SAME,
    )
    yield (
        "dilated",
        generator(7, kernel=4, dilation=2, **none),
        (18, 16, 17),
        (16,) * 3,
        0.5,
        "gaussian",
        {},
        SAME,
    )
    yield (
        "strided",
        generator(8, resample_kernel=(4, 4), **none),
        (16, 20, 13),
        (16,) * 3,
        0.5,
        "constant",
        {},
        SAME,
    )
    yield "layers", randomise(Layers(), 9), (18, 14, 20), (16, 12, 20), 0.5, "gaussian", {}, SAME
    lps = ((0, 1, 2), (1, 1, 0))
    yield "stored-lps", generator(10, **none), (20, 18, 14), (16,) * 3, 0.5, "gaussian", {}, lps
    sagittal = ((1, 2, 0), (0, 1, 1))
    zyx = {"spatial_axes": "zyx"}
    yield "axes-zyx", generator(11, **none), (20, 17, 14), (16, 20, 12), 0.5, "gaussian", zyx, SAME
    yield (
        "axes-zyx-sagittal",
        generator(12, **none),
        (17, 20, 14),
        (16,) * 3,
        0.25,
        "constant",
        zyx,
        sagittal,
    )


def ends_in_relu(module):
    """Return whether the network's last layer is a ReLU."""
    return isinstance(module, Generator) and module.config.final == "relu"


def main():
    """Write all cases."""
    for name, module, shape, tile, overlap, blend, graph_options, storage in cases():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        volume = uptake(shape, seed=len(name))
        axes = graph_options.get("spatial_axes", "xyz")
        expected = sliding_window(module, volume, tile, overlap, blend, axes)
        write_module(
            folder / "model.safetensors.zst", module, name, patch_size=(16,) * 3, **graph_options
        )
        for file, image in (("pet", volume), ("expected", expected)):
            stored, affine = stored_as(image, RAS_AFFINE, *storage)
            nifti.write(folder / f"{file}.nii.gz", stored.astype(np.float32), affine)
        case = {
            "tile": list(tile),
            "overlap": overlap,
            "blend": blend,
            # Near zero a ReLU turns rounding into all or nothing: float32 only.
            "tolerance": {"float32": 1e-5} | ({} if ends_in_relu(module) else {"bf16": 2e-2}),
            "made_by": "python tests/golden/make_golden.py",
            "versions": {"torch": torch.__version__, "monai": monai.__version__},
        }
        (folder / "case.json").write_text(json.dumps(case, indent=2) + "\n")


if __name__ == "__main__":
    main()
