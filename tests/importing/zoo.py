# SPDX-License-Identifier: Apache-2.0
"""The networks that people train, small, with random weights and random statistics."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from dosemap_tools.importing.torch_network import network_module
from dosemap_tools.networks.generator import Generator, GeneratorConfig
from monai.networks import nets
from torch import nn

SMALL = (16, 24, 8)  # for networks that halve twice; the axes differ, so that none can be swapped
DEEP = (16, 48, 32)  # for those that halve four times


@dataclass(frozen=True)
class Case:
    """A network, the patch it gets, and by which ways it comes besides .pt2 and ONNX."""

    make: Callable[[], nn.Module]
    channels: int = 1
    size: tuple[int, int, int] = SMALL
    also: tuple[str, ...] = ()
    skip: tuple[str, ...] = field(default=())


def nnunet(kind, deep_supervision=False, **options):
    """Return a network as nnU-Net plans it."""
    from dynamic_network_architectures.architectures import unet

    common = {
        "features_per_stage": [6, 10, 14],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": deep_supervision,
        "n_stages": 3,
    }
    blocks = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return getattr(unet, kind)(**(common | {blocks: [1, 2, 2]} | options))


class Pix2Pix(nn.Module):
    """An image-to-image generator: kernels of 4, stride 2 down and up, dilation 2, Tanh."""

    def __init__(self, inputs=1, outputs=1, widths=(5, 9, 12), norm=nn.BatchNorm3d):
        super().__init__()
        first, second, third = widths
        leaky = nn.LeakyReLU(0.2)
        self.down1 = nn.Conv3d(inputs, first, 4, 2, 1)
        self.down2 = nn.Sequential(
            leaky, nn.Conv3d(first, second, 4, 2, 3, dilation=2, bias=False), norm(second)
        )
        self.middle = nn.Sequential(
            leaky, nn.Conv3d(second, third, 4, 1, 3, dilation=2), norm(third), nn.ReLU(),
            nn.Conv3d(third, second, 3, 1, 1), norm(second), nn.Dropout3d(0.5),
        )  # fmt: skip
        self.up2 = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose3d(2 * second, first, 4, 2, 1), norm(first), nn.Dropout(0.5)
        )
        self.up1 = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose3d(2 * first, outputs, 4, 2, 1), nn.Tanh()
        )

    def forward(self, x):
        """Return the image for x."""
        one = self.down1(x)
        two = self.down2(one)
        up = self.up2(torch.cat([self.middle(two), two], 1))
        return self.up1(torch.cat([up, one], 1))


class ChannelAttention(nn.Module):
    """Squeeze and excitation by Linear layers, pixel shuffle, and a mean over channels."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(2, 16, 3, 2, 1)
        self.squeeze = nn.Sequential(nn.Linear(16, 4), nn.PReLU(4), nn.Linear(4, 16), nn.Sigmoid())
        self.last = nn.Conv3d(3, 3, 3, 1, 1)

    def forward(self, x):
        """Return three channels."""
        y = self.first(x)
        weights = self.squeeze(y.mean((2, 3, 4)))
        y = y * weights.view(-1, 16, 1, 1, 1).expand_as(y)
        n, _, a, b, c = y.shape
        up = y.view(n, 2, 2, 2, 2, a, b, c).permute(0, 1, 5, 2, 6, 3, 7, 4)
        up = up.reshape(n, 2, 2 * a, 2 * b, 2 * c)
        return self.last(torch.cat([up, up.mean(1, keepdim=True)], 1))


def five_levels():
    """Return a DoseGAN of five levels with attention gates."""
    return Generator(GeneratorConfig(channels=(3, 5, 6, 7, 9), resample_kernel=(4, 4)))


def unet(inputs, outputs, channels, strides, **options):
    """Return MONAI's UNet."""
    return nets.UNet(3, inputs, outputs, channels, strides, **options)


FEATURES = (4, 5, 6, 7, 8, 4)
ZOO = {
    "UNet": Case(
        lambda: unet(1, 1, (4, 7, 9), (2, 2), num_res_units=2),
        also=("script", "decomposed", "spatial"),
    ),
    "UNet-batch": Case(
        lambda: unet(2, 3, (5, 7, 9), (2, 1), norm="batch", act="leakyrelu"),
        channels=2,
        also=("script", "decomposed", "static"),
    ),
    "UNet-group": Case(
        lambda: unet(1, 2, (4, 8, 12), (2, 2), norm=("group", {"num_groups": 2}), act="swish"),
        also=("script", "decomposed", "spatial"),
    ),
    "UNet-mish": Case(
        lambda: unet(1, 1, (4, 6), (2,), kernel_size=5, up_kernel_size=3, act="mish", dropout=0.2),
        also=("decomposed",),
        skip=("onnx",),
    ),
    "UNet-gelu": Case(
        lambda: unet(1, 1, (4, 6, 8), (2, 2), act="gelu", norm=None, num_res_units=1),
    ),
    "BasicUNet": Case(lambda: nets.BasicUNet(3, 1, 1, FEATURES), size=DEEP, also=("script",)),
    "BasicUNet-upsampled": Case(
        lambda: nets.BasicUNet(3, 2, 1, FEATURES, upsample="nontrainable", act="relu"),
        channels=2,
        size=DEEP,
    ),
    "BasicUNet-shuffled": Case(
        lambda: nets.BasicUNet(3, 1, 1, (4, 8, 8, 8, 8, 4), upsample="pixelshuffle"),
        size=DEEP,
        skip=("onnx",),
    ),
    "AttentionUnet": Case(
        lambda: nets.AttentionUnet(3, 1, 2, (4, 6, 9), (2, 2)), also=("script", "decomposed")
    ),
    "DynUNet": Case(
        lambda: nets.DynUNet(3, 2, 1, [3, 3, 3], [1, 2, 2], [2, 2], filters=[5, 6, 7]), channels=2
    ),
    "DynUNet-residual": Case(
        lambda: nets.DynUNet(
            3,
            1,
            3,
            [[1, 3, 3], 3, 3],
            [1, [1, 2, 2], 2],
            [[1, 2, 2], 2],
            filters=[4, 7, 9],
            res_block=True,
            deep_supervision=True,
            trans_bias=True,
        ),
        also=("script", "decomposed"),
    ),
    "SegResNet": Case(
        lambda: nets.SegResNet(3, 8, 2, 3, blocks_down=(1, 2), blocks_up=(1,)),
        channels=2,
        also=("script", "decomposed"),
    ),
    "SegResNet-deconv": Case(
        lambda: nets.SegResNet(
            3,
            8,
            1,
            1,
            blocks_down=(1, 1),
            blocks_up=(1,),
            upsample_mode="deconv",
            norm="batch",
            dropout_prob=0.2,
        ),
    ),
    "VNet": Case(lambda: nets.VNet(3, 1, 2), size=(16, 16, 32), also=("script",)),
    "HighResNet": Case(
        lambda: nets.HighResNet(
            3,
            1,
            1,
            layer_params=(
                {"name": "conv_0", "n_features": 6, "kernel_size": 3},
                {"name": "res_1", "n_features": 6, "kernels": (3, 3), "repeat": 2},
                {"name": "res_2", "n_features": 9, "kernels": (3, 3), "repeat": 2},
                {"name": "conv_1", "n_features": 12, "kernel_size": 1},
                {"name": "conv_2", "kernel_size": 1},
            ),
        ),
        also=("script",),
    ),
    "FlexibleUNet-efficientnet": Case(
        lambda: nets.FlexibleUNet(1, 1, "efficientnet-b0", spatial_dims=3), size=(32, 64, 32)
    ),
    "FlexibleUNet-resnet": Case(
        lambda: nets.FlexibleUNet(
            1, 1, "resnet10", spatial_dims=3, decoder_channels=(32, 16, 8, 8, 4)
        ),
        size=(32, 64, 32),
        also=("script",),
    ),
    "PlainConvUNet": Case(
        lambda: nnunet("PlainConvUNet", input_channels=2, num_classes=1),
        channels=2,
        also=("script",),
    ),
    "PlainConvUNet-supervised": Case(
        lambda: nnunet("PlainConvUNet", True, input_channels=1, num_classes=2), also=("decomposed",)
    ),
    "ResidualEncoderUNet": Case(
        lambda: nnunet("ResidualEncoderUNet", input_channels=1, num_classes=1),
        also=("script",),
    ),
    "ResidualEncoderUNet-supervised": Case(
        lambda: nnunet("ResidualEncoderUNet", True, input_channels=1, num_classes=3)
    ),
    "pix2pix": Case(lambda: Pix2Pix(2, 2), channels=2, also=("script", "decomposed", "spatial")),
    "pix2pix-instance": Case(lambda: Pix2Pix(norm=nn.InstanceNorm3d), skip=("onnx",)),
    "DoseGAN-5": Case(five_levels, size=DEEP, also=("script", "decomposed")),
    "ChannelAttention": Case(ChannelAttention, channels=2, also=("script", "decomposed")),
    "dosegan": Case(lambda: network_module("dosegan"), size=(8, 24, 16)),
    "dosegan-16": Case(lambda: network_module("dosegan-16"), size=(8, 24, 16)),
    "Regressor": Case(
        lambda: nets.Regressor((2, *SMALL), (3,), (4, 6), (2, 2)), channels=2, also=("script",)
    ),
    "Regressor-of-table": Case(lambda: nets.Regressor((1, *SMALL), (2, 3), (4, 6), (2, 1))),
}


def randomise(module, seed=0):
    """Give weights, slopes, statistics values at which signals neither die nor grow."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        nn.init.uniform_(tensor, low, high, generator=generator)

    for layer in module.modules():
        weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        if isinstance(weight, torch.Tensor) and weight.ndim > 1:
            nn.init.kaiming_normal_(weight, a=0.2, generator=generator)
            if bias is not None:
                uniform(bias, -0.3, 0.3)
        elif isinstance(layer, nn.PReLU):
            uniform(layer.weight, 0.05, 0.4)
        elif isinstance(weight, torch.Tensor):
            uniform(weight, 0.5, 1.5)
            uniform(bias, -0.3, 0.3)
        if getattr(layer, "running_var", None) is not None:
            uniform(layer.running_mean, -0.3, 0.3)
            uniform(layer.running_var, 0.5, 2.0)
    return module.eval()
