"""A model together with what is done to its images before it, and to its logits after it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class InferenceGraph(nn.Module):
    """Images, uint8 (N, H, W, C), to probabilities, float32 (N, classes).

    Args:
        model: of normalised images (N, C, H, W) to logits; it is copied, onto the CPU, and left
            alone.
        mean, std: per channel, pixels scaled to 0–1.
        precision: fp32, or fp16: the weights of two or more dimensions, nearly all of a model, are
            stored in half as many bytes. It computes in fp32 all the same: processors do that
            faster than in fp16, values cannot overflow, and onnxruntime 1.32 crashes on a
            transformer in fp16.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float],
                 precision: str = "fp32"):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False).to("cpu").to(
            memory_format=torch.contiguous_format)
        if precision == "fp16":
            for weight in self.model.parameters():
                if weight.ndim > 1 and weight.dtype == torch.float32:
                    weight.data = weight.data.half()
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
        halves = {name: weight.float() for name, weight in self.model.named_parameters()
                  if weight.dtype == torch.float16}
        logits = torch.func.functional_call(self.model, halves, (self.normalise(images),))
        return logits.float().softmax(1)
