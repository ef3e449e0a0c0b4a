# SPDX-License-Identifier: Apache-2.0
"""The DoseGAN generator: an attention-gated 3D U-Net from PET uptake to absorbed dose.

The project's own reference network in the family of "3D RPT DoseGAN" (Xue et al. 2024), whose
layers are not published. With the default configuration, for one 32x32x32 patch:

    level    channels  voxels   encoder            decoder
      0         32      32^3    2 x ConvUnit 3^3   gate, concatenate, 2 x ConvUnit 3^3, head 1^3
      1         64      16^3    2 x ConvUnit 3^3   gate, concatenate, 2 x ConvUnit 3^3
      2        128       8^3    2 x ConvUnit 3^3   gate, concatenate, 2 x ConvUnit 3^3
      3        256       4^3    2 x ConvUnit 3^3

A ConvUnit is convolution, normalisation, LeakyReLU; the head is followed by ReLU. Between levels a
ConvUnit of stride 2 goes down and a transposed convolution of stride 2 goes up. BatchNorm is the
default because dose is absolute: a patch normalised by its own statistics has lost the scale that
the network must predict from.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn


@dataclass(frozen=True)
class GeneratorConfig:
    """What distinguishes one generator from another; the defaults are `dosegan`."""

    channels: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each level, from full resolution down."""
    norm: str = "batch"
    """`batch`, `instance` or `group`."""
    groups: int = 4
    """Groups of GroupNorm."""
    kernel: int = 3
    """Edge of the convolutions that keep the resolution; 4 needs a dilation of 2."""
    dilation: int = 1
    """Dilation of the same convolutions."""
    resample_kernel: tuple[int, int] = (3, 2)
    """Edges of the kernels that go down and up: (3, 2), or (4, 4) as in image-to-image GANs."""
    slope: float = 0.2
    """Slope of LeakyReLU for negative values."""
    final: str = "relu"
    """Last activation: `relu`, `tanh`, `softplus` or `none`."""


NETWORKS: dict[str, GeneratorConfig] = {
    "dosegan": GeneratorConfig(),
    "dosegan-16": GeneratorConfig(channels=(16, 32, 64, 128)),
}

_FINAL: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "none": nn.Identity,
}


def _norm(config: GeneratorConfig, channels: int) -> nn.Module:
    if config.norm == "batch":
        return nn.BatchNorm3d(channels)
    if config.norm == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if config.norm == "group":
        return nn.GroupNorm(config.groups, channels)
    raise ValueError(f"norm is {config.norm!r}; use 'batch', 'instance' or 'group'")


class ConvUnit(nn.Module):
    """Convolution without bias, normalisation, LeakyReLU."""

    def __init__(
        self,
        config: GeneratorConfig,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        reach = dilation * (kernel - 1)
        if stride == 1 and reach % 2:
            raise ValueError(f"kernel {kernel} with dilation {dilation} cannot keep the size")
        self.conv = nn.Conv3d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=reach // 2,
            dilation=dilation,
            bias=False,
        )
        self.norm = _norm(config, out_channels)
        self.act = nn.LeakyReLU(config.slope)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activated feature map."""
        return self.act(self.norm(self.conv(x)))


class AttentionGate(nn.Module):
    """Weighs each voxel of a skip connection by what the coarser level knows about it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.from_coarse = nn.Conv3d(channels, inner, 1)
        self.from_skip = nn.Conv3d(channels, inner, 1)
        self.psi = nn.Conv3d(inner, 1, 1)
        self.relu = nn.ReLU()
        self.sigmoid = nn.Sigmoid()

    def forward(self, coarse: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """Return `skip` times its attention; both inputs have the same size."""
        joint = self.relu(self.from_coarse(coarse) + self.from_skip(skip))
        return skip * self.sigmoid(self.psi(joint))


class Generator(nn.Module):
    """PET patch (N, 1, X, Y, Z) to dose patch of the same size, a multiple of the stride."""

    def __init__(self, config: GeneratorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GeneratorConfig()
        channels = config.channels
        down, up = config.resample_kernel
        if (down, up) not in ((3, 2), (4, 4)):
            raise ValueError(f"resample_kernel is {config.resample_kernel}; use (3, 2) or (4, 4)")
        if config.final not in _FINAL:
            raise ValueError(f"final is {config.final!r}; use one of {sorted(_FINAL)}")

        def pair(in_channels: int, out_channels: int) -> nn.Sequential:
            same = {"kernel": config.kernel, "dilation": config.dilation}
            return nn.Sequential(
                ConvUnit(config, in_channels, out_channels, **same),
                ConvUnit(config, out_channels, out_channels, **same),
            )

        steps = list(pairwise(channels))
        self.encoder = nn.ModuleList(
            [pair(1, channels[0])] + [pair(coarse, coarse) for _, coarse in steps]
        )
        self.down = nn.ModuleList(
            ConvUnit(config, fine, coarse, kernel=down, stride=2) for fine, coarse in steps
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(coarse, fine, up, stride=2, padding=(up - 2) // 2)
            for fine, coarse in steps
        )
        self.gate = nn.ModuleList(AttentionGate(fine) for fine, _ in steps)
        self.decoder = nn.ModuleList(pair(2 * fine, fine) for fine, _ in steps)
        self.head = nn.Conv3d(channels[0], 1, 1)
        self.final = _FINAL[config.final]()

    def forward(self, pet: torch.Tensor) -> torch.Tensor:
        """Return the dose (Gy/GBq) of each voxel of `pet` (uptake)."""
        skips = []
        x = self.encoder[0](pet)
        for down, encoder in zip(self.down, self.encoder[1:], strict=True):
            skips.append(x)
            x = encoder(down(x))
        for level in reversed(range(len(skips))):
            coarse = self.up[level](x)
            gated = self.gate[level](coarse, skips[level])
            x = self.decoder[level](torch.cat([gated, coarse], dim=1))
        return self.final(self.head(x))
