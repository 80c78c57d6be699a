"""ResNets for small images (He et al., 2015), as kuangliu/pytorch-cifar has them.

A 3×3 stem without pooling, so that 32×32 images reach the four stages (`layer1` to `layer4`)
as 32, 16, 8 and 4 pixels. BasicBlock only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvkit.registry import MODELS


def make_norm(norm: str, channels: int, groups: int) -> nn.Module:
    """Return the normalisation of a feature map.

    Args:
        norm: batch; layer (over channels and pixels: GroupNorm with one group); or group.
        channels: of the map.
        groups: for norm="group"; must divide the channels.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return nn.GroupNorm(1, channels)
    if norm == "group":
        if channels % groups:
            raise ValueError(f"norm group: groups {groups} does not divide {channels} channels; "
                             f"set MODEL.groups, to {math.gcd(groups, channels)} for example")
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"norm is batch, layer or group, not {norm!r}")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; (N, C_in, H, W) to (N, C, H/stride, W/stride)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, channels, groups)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, padding=1, bias=False)
        self.norm2 = make_norm(norm, channels, groups)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                                          make_norm(norm, channels, groups))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        # Not in place: a CAM may hold on to what is added here.
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Images (N, in_channels, H, W) to logits (N, num_classes).

    Args:
        blocks: per stage.
        num_classes, in_channels: of the data.
        norm: batch, layer (GroupNorm with one group) or group, in every place of the network.
        groups: for norm="group".
        strides: of the four stages; (1, 2, 2, 1) keeps 8×8 maps in layer4.
        width: channels of layer1, doubled in each further stage.
        pool_size: the last map is averaged to so many pixels a side before the linear layer.
    """

    def __init__(self, blocks: tuple[int, ...], num_classes: int = 10, in_channels: int = 3,
                 norm: str = "batch", groups: int = 32,
                 strides: Sequence[int] = (1, 2, 2, 2), width: int = 64, pool_size: int = 1):
        super().__init__()
        if len(strides) != len(blocks):
            raise ValueError(f"strides has one number per stage, {len(blocks)}, not {strides}")
        if min(width, pool_size, *strides) < 1:
            raise ValueError(f"width {width}, pool_size {pool_size} and strides {tuple(strides)} "
                             "are 1 or more")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, padding=1, bias=False)
        self.norm1 = make_norm(norm, width, groups)
        stages, channels = [], width
        for stage, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            layers = []
            for block in range(count):
                out = width * 2**stage
                layers.append(BasicBlock(channels, out, stride if block == 0 else 1, norm, groups))
                channels = out
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = nn.AdaptiveAvgPool2d(pool_size)
        self.fc = nn.Linear(channels * pool_size**2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.pool(x), 1))


@MODELS.register()
def resnet18(**arguments) -> ResNet:
    """ResNet-18 for small images; 11,173,962 parameters for 10 classes. See `ResNet`."""
    return ResNet((2, 2, 2, 2), **arguments)


@MODELS.register()
def resnet34(**arguments) -> ResNet:
    """ResNet-34 for small images; 21,282,122 parameters for 10 classes. See `ResNet`."""
    return ResNet((3, 4, 6, 3), **arguments)
