"""ResNet-9 for small images: David Page's network of DAWNBench 2018 (davidcpage/cifar10-fast).

Unlike his, it pools before the normalisation and not after the ReLU, and its logits have a bias;
`scale` 0.125 divides them by 8 as he does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvkit.models.resnet import make_norm
from cvkit.registry import MODELS


class ConvBlock(nn.Module):
    """3×3 convolution, 2×2 max pooling if asked for, normalisation, ReLU.

    (N, C_in, H, W) to (N, C, H, W), pooled (N, C, H/2, W/2).
    """

    def __init__(self, in_channels: int, channels: int, norm: str, groups: int,
                 pool: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.norm = make_norm(norm, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.pool(self.conv(x))))


class ResidualBlock(nn.Module):
    """Two ConvBlocks whose output is added to their input, (N, C, H, W) both."""

    def __init__(self, channels: int, norm: str, groups: int):
        super().__init__()
        self.block1 = ConvBlock(channels, channels, norm, groups)
        self.block2 = ConvBlock(channels, channels, norm, groups)

    def forward(self, x: Tensor) -> Tensor:
        # Not in place: a CAM may hold on to either.
        return x + self.block2(self.block1(x))


@MODELS.register("resnet9")
class ResNet9(nn.Module):
    """ResNet-9 for small images; 6,573,130 parameters for 10 classes.

    Images (N, in_channels, H, W), 8×8 pixels or more, to logits (N, num_classes). `prep`, `layer1`,
    `layer2` and `layer3` make maps of 32, 16, 8 and 4 pixels from 32×32; the maximum of each
    channel of the last (at that size, max pooling by 4) goes into the linear layer.

    Args:
        num_classes, in_channels: of the data.
        norm: batch, layer (GroupNorm with one group) or group, in every place of the network.
        groups: for norm="group".
        width: channels of prep, doubled in each further stage.
        scale: what logits are multiplied by. At 1 they are so large that the first loss is twice
            that of guessing, and rates above 0.005 diverge.

    Raises:
        ValueError: width or scale is too small.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: str = "batch",
                 groups: int = 32, width: int = 64, scale: float = 1.0):
        super().__init__()
        if width < 1:
            raise ValueError(f"width is 1 or more, not {width}")
        if scale <= 0:
            raise ValueError(f"scale is above 0, not {scale}")
        self.prep = ConvBlock(in_channels, width, norm, groups)
        self.layer1 = nn.Sequential(ConvBlock(width, 2 * width, norm, groups, pool=True),
                                    ResidualBlock(2 * width, norm, groups))
        self.layer2 = ConvBlock(2 * width, 4 * width, norm, groups, pool=True)
        self.layer3 = nn.Sequential(ConvBlock(4 * width, 8 * width, norm, groups, pool=True),
                                    ResidualBlock(8 * width, norm, groups))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(8 * width, num_classes)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return self.scale * self.fc(torch.flatten(self.pool(x), 1))
