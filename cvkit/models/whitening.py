"""A first convolution that whitens the patches of the training images, computed and not learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cvkit.registry import LAYERS

# Yields training images as the model receives them, without augmentation, in batches (N, C, H, W).
TrainingImages = Callable[[int], Iterator[Tensor]]
# The covariance of patches has few numbers, and each image many patches.
_IMAGES = 1000


@LAYERS.register()
class WhiteningConv2d(nn.Conv2d):
    """Convolution whose filters whiten patches (Page, 2019; Jordan, 2024, arXiv 2404.00498).

    (N, C, H, W) to (N, 2·C·k², H-k+1, W-k+1). Filters are the eigenvectors of the covariance of
    k×k patches, each divided by the square root of its eigenvalue, then the same ones negated, so
    that no half is lost to what cuts off below zero. They do not learn; the bias does, from 0 on.

    Args:
        in_channels: of what comes in.
        kernel_size: k.
        eps: is added to each eigenvalue, so that noise is not blown up.
        training_images: of which 1,000 are taken; without it the weights are still to be loaded.
    """

    def __init__(self, in_channels: int = 3, kernel_size: int = 2, eps: float = 5e-4,
                 training_images: TrainingImages | None = None):
        if kernel_size < 1:
            raise ValueError(f"kernel_size is 1 or more, not {kernel_size}")
        if eps < 0:
            raise ValueError(f"eps is 0 or more, not {eps}")
        super().__init__(in_channels, 2 * in_channels * kernel_size**2, kernel_size)
        self.weight.requires_grad_(False)
        self.bias = nn.Parameter(torch.zeros(self.out_channels))
        if training_images is not None:
            filters = whitening_filters(training_images(_IMAGES), kernel_size, eps)
            if filters.shape[1] != in_channels:
                raise ValueError(f"in_channels is {in_channels}, and {filters.shape[1]} come in")
            self.weight.copy_(torch.cat([filters, -filters]))


@torch.no_grad()
def whitening_filters(batches: Iterator[Tensor], kernel_size: int, eps: float) -> Tensor:
    """Return filters (C·k², C, k, k), for the largest eigenvalue first; some twice, see below.

    Args:
        batches: images (N, C, H, W).
        kernel_size, eps: see `WhiteningConv2d`.
    """
    total, count, channels = torch.zeros(()), 0, 0
    for images in batches:
        if images.ndim != 4 or min(images.shape[2:]) < kernel_size:
            raise ValueError(f"kernel_size {kernel_size} is more than what comes in has, "
                             f"{'×'.join(map(str, images.shape[1:]))}")
        channels = images.shape[1]
        windows = images.cpu().float().unfold(2, kernel_size, 1).unfold(3, kernel_size, 1)
        patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels * kernel_size**2)
        total, count = total + (patches.T @ patches).double(), count + len(patches)
    # Images are normalised, so that the mean is near 0 and is left as it is.
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(total / count))
    # Where nothing varies, as between the colours of grey images, a filter would return a constant,
    # and a norm after it divide by nothing: what does vary stands there once more.
    varying = max(int((values > eps / 100).sum()), 1)
    filters = (vectors / torch.sqrt(values.clamp(min=0) + eps)).T
    filters = filters[torch.arange(len(values)) % varying]
    return filters.float().reshape(-1, channels, kernel_size, kernel_size)
