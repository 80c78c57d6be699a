"""A model together with what is done to its images before it, and to its logits after it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class InferenceGraph(nn.Module):
    """Images, uint8 (N, H, W, C), to probabilities, float32 (N, classes).

    Normalisation and softmax are computed in fp32, whatever the model between them computes in.

    Args:
        model: of normalised images (N, C, H, W) to logits; it is copied, onto the CPU, and left
            alone.
        mean, std: per channel, pixels scaled to 0–1.
        precision: of the copy's weights and what it computes, fp32 or fp16.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float],
                 precision: str = "fp32"):
        super().__init__()
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        self.model = copy.deepcopy(model).requires_grad_(False).to("cpu", self.dtype).to(
            memory_format=torch.contiguous_format)
        deviation = torch.tensor(std)
        # As BatchLoader.normalise has them, to the bit.
        self.register_buffer("scale", 1 / (255 * deviation))
        self.register_buffer("shift", torch.tensor(mean) / deviation)
        self.eval()

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 (N, H, W, C) into normalised float32 (N, C, H, W)."""
        pixels = images.float() * self.scale - self.shift
        if pixels.shape[3] == 1:
            # Permuted, one channel would keep strides that a model's `view` does not take.
            return pixels.squeeze(3).unsqueeze(1)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(self.normalise(images).to(self.dtype))
        return logits.float().softmax(1)
