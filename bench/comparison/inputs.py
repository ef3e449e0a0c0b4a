# SPDX-License-Identifier: Apache-2.0
"""What everybody runs on: weights as a trained network has them, windows and a PET, from a seed."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from dosemap_tools import nifti

CARD = {
    "name": "benchmark",
    "version": "1",
    "summary": "Random weights for benchmarks; means nothing.",
    "licence": "Apache-2.0",
    "trained": False,
    "skip_air": None,
}


def pet_like(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return SUVs [x, y, z]: a body with hot organs and noise, air around it, all float32."""
    rng = np.random.default_rng(seed)
    lines = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    axes = np.meshgrid(*lines, indexing="ij", sparse=True)

    def ellipsoid(middle: np.ndarray, half: np.ndarray) -> np.ndarray:
        return sum(((a - m) / h) ** 2 for a, m, h in zip(axes, middle, half, strict=True)) <= 1

    body = ellipsoid(np.zeros(3), np.array([0.68, 0.46, 0.97]))
    suv = np.where(body, np.float32(0.8), np.float32(0))
    for _ in range(24):
        half = rng.uniform(0.03, 0.2, 3)
        middle = rng.uniform(-1, 1, 3) * np.array([0.42, 0.26, 0.8])
        suv[ellipsoid(middle, half)] = rng.uniform(2, 25)
    noise = rng.standard_normal(shape, dtype=np.float32)
    for axis in range(3):
        noise = (noise + np.roll(noise, 1, axis)) * np.float32(0.7)
    suv = suv + np.float32(0.3) * np.sqrt(suv) * noise
    suv += np.float32(0.01) * rng.random(shape, dtype=np.float32)  # reconstruction noise in air
    return np.maximum(suv, 0).astype(np.float32)


def write_pet(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    """Write a PET in SUV units whose uptake is its SUV, with a sidecar."""
    if path.exists():
        return
    partial = path.with_name("partial-" + path.name)
    content = nifti.encode(pet_like(shape, seed), np.diag([4.0, 4.0, 4.0, 1.0]))
    partial.write_bytes(gzip.compress(content, 1))
    partial.rename(path)


def cut_windows(count: int, edge: list[int], seed: int) -> np.ndarray:
    """Return windows (count, 1, x, y, z) cut from a PET."""
    shape = tuple(max(96, e) for e in edge)
    pet, rng = pet_like(shape, seed), np.random.default_rng(seed)
    windows = []
    for _ in range(count):
        at = [rng.integers(0, n - e + 1) for n, e in zip(shape, edge, strict=True)]
        windows.append(pet[tuple(slice(a, a + e) for a, e in zip(at, edge, strict=True))])
    return np.stack(windows)[:, None]


def make_weights(
    network: str, state_path: Path, weights_path: Path, seed: int, dtype: str = "F32"
) -> None:
    """Write random weights as a state dict and as a weights file; `dtype` is the file's.

    BatchNorm holds the statistics of PET windows, as after training, so that activations are dense
    and of order 1; the last layer is scaled so that a sixth of the doses is cut off by its ReLU.
    """
    import torch
    from dosemap_tools import weights_file
    from dosemap_tools.importing.torch_network import network_graph, tensors_for
    from dosemap_tools.networks.generator import NETWORKS, Generator
    from torch import nn

    torch.manual_seed(seed)
    module = Generator(NETWORKS[network])
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, a=0.2)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.2)
        elif isinstance(layer, nn.BatchNorm3d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
            layer.momentum = None  # the plain mean over all batches
    windows = torch.from_numpy(cut_windows(16, [32, 32, 32], seed))
    with torch.no_grad():
        module.train()
        module(windows)
        module.eval()
        seen: list[torch.Tensor] = []
        hook = module.head.register_forward_hook(lambda _m, _i, out: seen.append(out))
        module(windows)
        hook.remove()
        scale = 1 / seen[0].std()
        module.head.bias.copy_((module.head.bias - seen[0].mean()) * scale + 1)
        module.head.weight.mul_(scale)
    torch.save(module.state_dict(), state_path)
    graph = network_graph(network)
    tensors = tensors_for(graph, module.state_dict())
    weights_file.write(weights_path, graph, CARD, {"made_by": "bench"}, tensors, dtype)
