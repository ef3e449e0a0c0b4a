# SPDX-License-Identifier: Apache-2.0
"""MONAI's sliding window in plain PyTorch, on any device: the same windows, weights and sums.

It is what a user of PyTorch writes who has no MONAI, and what MONAI does: windows in batches, each
result times its weights added to the sum, the weights to another, and one division at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

SIGMA_SHARE = 0.125  # of the window's edge
LEAST_WEIGHT = 1e-3

Network = Callable[[torch.Tensor], torch.Tensor]


def starts(length: int, edge: int, overlap: float) -> list[int]:
    """Return where windows begin on an axis of at least their length; the last is moved inwards."""
    interval = edge if edge == length else max(1, int(edge * (1 - overlap)))
    last = length - edge
    return [min(i * interval, last) for i in range(-(-last // interval) + 1)]


def importance(edge: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the weights of a window's voxels: a Gaussian, clamped from below."""
    weights = torch.ones(1, device=device)
    for n in edge:
        x = torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2
        sigma = SIGMA_SHARE * n
        weights = weights[..., None] * torch.exp(x * x / (-2 * sigma * sigma))
    return weights[0].clamp(min=LEAST_WEIGHT)


def sliding_window(
    pet: torch.Tensor, edge: Sequence[int], overlap: float, batch: int, network: Network
) -> torch.Tensor:
    """Return the dose (X, Y, Z) in float32 of a PET of that size.

    `network`: windows (batch, 1, x, y, z) float32 -> the same, always full batches, so that
    compiled programs and graphs need one size.
    """
    padded_shape = [max(n, e) for n, e in zip(pet.shape, edge, strict=True)]
    before = [(p - n) // 2 for p, n in zip(padded_shape, pet.shape, strict=True)]
    padding = []
    for p, n, b in zip(padded_shape[::-1], pet.shape[::-1], before[::-1], strict=True):
        padding += [b, p - n - b]
    padded = functional.pad(pet, padding)
    lines = [starts(p, e, overlap) for p, e in zip(padded_shape, edge, strict=True)]
    windows = [
        tuple(slice(s, s + e) for s, e in zip(at, edge, strict=True))
        for at in itertools.product(*lines)
    ]
    weights = importance(edge, pet.device)
    total, count = torch.zeros_like(padded), torch.zeros_like(padded)
    for first in range(0, len(windows), batch):
        part = windows[first : first + batch]
        filled = part + part[-1:] * (batch - len(part))
        dose = network(torch.stack([padded[w] for w in filled])[:, None])
        weighted = dose[:, 0].float() * weights
        for i, window in enumerate(part):
            total[window] += weighted[i]
            count[window] += weights
    inside = tuple(slice(b, b + n) for b, n in zip(before, pet.shape, strict=True))
    return (total / count)[inside]
