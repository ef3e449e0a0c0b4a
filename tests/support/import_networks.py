# SPDX-License-Identifier: Apache-2.0
"""Networks to import, as files of each kind, and the command run on them."""

import json
from pathlib import Path

import torch
from dosemap_tools.importing import command
from make_test_models import randomise
from torch import nn

PATCH = (14, 10, 6)
CARD = {
    "name": "tested",
    "version": "2",
    "summary": "For tests; means nothing.",
    "licence": "Apache-2.0",
    "trained": False,
    "spatial_axes": "xyz",
    "orientation": "RAS",
    "patch_size": list(PATCH),
    "voxel_size_mm": None,
    "inputs": [{"quantity": "uptake"}],
    "outputs": [{"quantity": "dose_per_activity"}],
}


class Lopsided(nn.Module):
    """Every axis has another kernel, so that exchanged or flipped axes show."""

    def __init__(self, channels=5, inputs=1, outputs=1):
        super().__init__()
        self.first = nn.Conv3d(inputs, channels, (5, 3, 1), padding=(2, 1, 0))
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.last = nn.Conv3d(channels, outputs, (1, 3, 1), padding=(0, 1, 0))

    def forward(self, x):
        return self.last(nn.functional.leaky_relu(self.norm(self.first(x)), 0.1))


class Two(nn.Module):
    """Two tensors in, two out."""

    def __init__(self):
        super().__init__()
        self.of_pet = Lopsided(3, 1, 2)
        self.of_ct = Lopsided(4, 2, 1)

    def forward(self, pet, ct):
        dose, image = self.of_pet(pet), self.of_ct(ct)
        return dose * image, image


def network(kind=Lopsided, seed=0, **options):
    return randomise(kind(**options), seed).eval()


def write_onnx(path, module, *channels, patch=PATCH):
    examples = tuple(torch.zeros(2, c, *patch) for c in channels or (1,))
    shapes = tuple({0: "batch"} for _ in examples)
    torch.onnx.export(
        module, examples, path, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=shapes,
    )  # fmt: skip
    return path


def write_program(path, module, *channels, patch=PATCH):
    examples = tuple(torch.zeros(2, c, *patch) for c in channels or (1,))
    batch = torch.export.Dim("batch", max=8)
    shapes = tuple({0: batch} for _ in examples)
    torch.export.save(torch.export.export(module, examples, dynamic_shapes=shapes), path)
    return path


def card_file(folder, **changes):
    path = Path(folder) / "card.json"
    content = {k: v for k, v in {**CARD, **changes}.items() if v is not ...}
    path.write_text(json.dumps(content))
    return path


def bring_in(folder, source, *options, card=None, out="net.safetensors.zst"):
    """Import; return the status and where the weights file is or would be."""
    target = Path(folder) / out
    card = ["--card", str(card_file(folder, **(card or {})))]
    arguments = [str(source), "-o", str(target), *card, *map(str, options)]
    return command.main(arguments), target


def left_in(folder):
    return sorted(p.name for p in Path(folder).iterdir())
