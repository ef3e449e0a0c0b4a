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
    return randomise(Generator(GeneratorConfig(**{"channels": TINY} | config)), seed)


def cases():
    """Yield name, module, (volume size, tile, overlap, blend), graph options, storage."""
    none = {"final": "none"}
    cube, large = (16, 16, 16), (24, 20, 12)
    gauss, flat = "gaussian", "constant"

    def plain(name, module, *window):
        return name, module, window, {}, SAME

    def tiny(seed, **config):
        return generator(seed, **none, **config)

    yield plain("batch-gaussian", tiny(1), (20, 17, 13), cube, 0.5, gauss)
    yield plain("batch-constant", generator(2), (19, 16, 23), cube, 0.25, flat)
    yield plain("batch-small", tiny(3), (11, 1, 20), cube, 0.5, gauss)
    yield plain("batch-large-tile", tiny(4), (20, 25, 9), large, 0.0, flat)
    yield plain("instance", tiny(5, norm="instance"), (17, 18, 12), cube, 0.25, flat)
    yield plain("group", tiny(6, norm="group", groups=2), (16, 12, 19), cube, 0.75, gauss)
    yield plain("dilated", tiny(7, kernel=4, dilation=2), (18, 16, 17), cube, 0.5, gauss)
    yield plain("strided", tiny(8, resample_kernel=(4, 4)), (16, 20, 13), cube, 0.5, flat)
    yield plain("layers", randomise(Layers(), 9), (18, 14, 20), (16, 12, 20), 0.5, gauss)
    # Large enough that a convolution is computed in several pieces.
    wide = tiny(13, channels=(8, 8))
    yield plain("pieces", wide, (20, 17, 33), (32, 32, 32), 0.0, flat)

    lps, sagittal = ((0, 1, 2), (1, 1, 0)), ((1, 2, 0), (0, 1, 1))
    zyx = {"spatial_axes": "zyx"}
    yield "stored-lps", tiny(10), ((20, 18, 14), cube, 0.5, gauss), {}, lps
    yield "axes-zyx", tiny(11), ((20, 17, 14), (16, 20, 12), 0.5, gauss), zyx, SAME
    yield "axes-zyx-sagittal", tiny(12), ((17, 20, 14), cube, 0.25, flat), zyx, sagittal


def ends_in_relu(module):
    """Return whether the network's last layer is a ReLU."""
    return isinstance(module, Generator) and module.config.final == "relu"


def main():
    """Write all cases."""
    for name, module, (shape, tile, overlap, blend), graph_options, storage in cases():
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
