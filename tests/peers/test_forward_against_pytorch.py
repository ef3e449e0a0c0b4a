# SPDX-License-Identifier: Apache-2.0
"""`dosemap forward` against the module in PyTorch: no tiling, no intensity transform between."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is missing: networks are not compared")

import torch
from make_test_models import random_generator, write_module
from patches import read_patches, write_patches
from program import assert_close, run

SIZE = (16, 24, 32)  # unequal, so that exchanged axes show


@pytest.mark.parametrize("axes", ["xyz", "zyx"])
@pytest.mark.parametrize("kind", ["batch", "instance", "dilated"])
def test_the_same_tensors(tmp_path, kind, axes):
    module = random_generator(kind, seed=3)
    size = SIZE if axes == "xyz" else SIZE[::-1]  # of the patch, which is in x, y, z
    write_module(tmp_path / "m.safetensors", module, spatial_axes=axes, patch_size=size)
    x = np.random.default_rng(5).gamma(0.5, 4.0, (2, 1, *SIZE)).astype(np.float32)
    write_patches(tmp_path / "in.safetensors", {"pet": x})
    result = run(
        "forward",
        tmp_path / "m.safetensors",
        tmp_path / "in.safetensors",
        "-o",
        tmp_path / "out.safetensors",
        "--device",
        "cpu",
    )
    assert result.returncode == 0, result.stderr
    made, _ = read_patches(tmp_path / "out.safetensors")
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert_close(made["dose"], expected, 1e-5)
