"""Pixels to what a model receives, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Normaliser:
    """Scales pixels to 0–1, subtracts the mean and divides by the deviation, batch by batch.

    Args:
        mean, std: per channel, pixels scaled to 0–1.
        device: where batches go.

    Attributes:
        layout: of the images in memory, channels_last unless it is set.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.mean, self.std, self.device = tuple(mean), tuple(std), device
        self.layout = torch.channels_last
        self._scale = 1 / (255 * torch.tensor(self.std, device=device))
        self._shift = (torch.tensor(self.mean, device=device)
                       / torch.tensor(self.std, device=device))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 (N, H, W, C) into normalised float32 (N, C, H, W)."""
        count, height, width, channels = pixels.shape
        # Working over whole rows is several times faster than over the channels of a pixel.
        rows = pixels.reshape(count, height, width * channels).float()
        rows = rows.mul_(self._scale.repeat(width)).sub_(self._shift.repeat(width))
        # Transposed like this, the images are channels_last in memory.
        images = rows.view(pixels.shape).permute(0, 3, 1, 2)
        images = images.contiguous(memory_format=self.layout)
        if channels == 1 and self.layout == torch.contiguous_format:
            # One channel is contiguous in both layouts, so `contiguous` left the strides of the
            # other, and torch goes by those.
            images = images.flatten(1).unflatten(1, (channels, height, width))
        return images

    def denormalise(self, images: Tensor) -> np.ndarray:
        """Turn what a model receives back into uint8 (N, H, W, C), exactly."""
        return self.pixels_of(images).cpu().numpy()

    def pixels_of(self, images: Tensor) -> Tensor:
        """Return the same where the images are."""
        pixels = (images.float().permute(0, 2, 3, 1) + self._shift) / self._scale
        return pixels.round().clamp(0, 255).byte()
