"""The network of airbench, made to train fast (Jordan, 2024, arXiv 2404.00498)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvkit.models.whitening import TrainingImages, WhiteningConv2d
from cvkit.registry import MODELS


def _convolution(in_channels: int, channels: int) -> nn.Conv2d:
    """Return a 3×3 convolution whose first filters hand their channels on as they are."""
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.detach()[:in_channels])
    return convolution


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    # Only the bias learns.
    norm.weight.requires_grad_(False)
    return norm


class ConvGroup(nn.Module):
    """Convolution, 2×2 max pooling, norm, GELU; then convolution, norm, GELU, once or twice.

    (N, C_in, H, W) to (N, C, H/2, W/2). With a depth of 3 what comes before the second convolution
    is added to what the third one returns.
    """

    def __init__(self, in_channels: int, channels: int, depth: int, momentum: float):
        super().__init__()
        self.conv1, self.norm1 = _convolution(in_channels, channels), _norm(channels, momentum)
        self.pool = nn.MaxPool2d(2)
        self.conv2, self.norm2 = _convolution(channels, channels), _norm(channels, momentum)
        if depth == 3:
            self.conv3, self.norm3 = _convolution(channels, channels), _norm(channels, momentum)
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(self.pool(self.conv1(x))))
        out = F.gelu(self.norm2(self.conv2(x)))
        return F.gelu(x + self.norm3(self.conv3(out))) if self.depth == 3 else out


@MODELS.register("airbench")
class Airbench(nn.Module):
    """The network of airbench; 1,972,792 parameters for 10 classes.

    Images (N, in_channels, H, W), 9×9 pixels or more, to logits (N, num_classes). `whiten` is
    computed from training images; `layer1`, `layer2` and `layer3` make maps of 15, 7 and 3 pixels
    from 32×32; the maximum of each channel of the last goes into the linear layer.

    Args:
        num_classes, in_channels: of the data.
        widths: channels of the three layers.
        depth: convolutions of a layer, 2, or 3 with a shortcut around the last two.
        bn_momentum: what part of a batch's statistics goes into BatchNorm's running ones.
        head_std: standard deviation of the last layer's first weights; 0 for what torch gives it.
        scale: what logits are multiplied by; 0 for one over the inputs of the last layer.
        training_images: the whitening is computed of; without it weights are to be loaded.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3,
                 widths: tuple[int, int, int] = (64, 256, 256), depth: int = 2,
                 bn_momentum: float = 0.4, head_std: float = 0.0, scale: float = 1 / 9,
                 training_images: TrainingImages | None = None):
        super().__init__()
        if not 0 < bn_momentum <= 1:
            raise ValueError(f"bn_momentum lies above 0 and up to 1, not {bn_momentum}")
        if head_std < 0:
            raise ValueError(f"head_std is 0 or more, not {head_std}")
        if scale < 0:
            raise ValueError(f"scale is 0 or more, not {scale}")
        if min(widths) < 1:
            raise ValueError(f"widths are 1 or more, not {list(widths)}")
        if depth not in (2, 3):
            raise ValueError(f"depth is 2 or 3, not {depth}")
        self.whiten = WhiteningConv2d(in_channels, training_images=training_images)
        channels = [self.whiten.out_channels, *widths]
        self.layer1, self.layer2, self.layer3 = (
            ConvGroup(before, after, depth, bn_momentum)
            for before, after in zip(channels, widths))
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.head = nn.Linear(widths[2], num_classes, bias=False)
        if head_std:
            with torch.no_grad():
                self.head.weight.mul_(head_std / self.head.weight.std())
        self.scale = scale or 1 / widths[2]

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.gelu(self.whiten(x)))))
        return self.scale * self.head(torch.flatten(self.pool(x), 1))
