"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Averaged weights: after each step, average = d × average + (1 - d) × weights.

    d = min(decay, (1 + steps) / (10 + steps)), as in TensorFlow's ExponentialMovingAverage,
    so that the random first weights do not linger in short runs. Buffers of whole numbers
    are copied, those of floats averaged like weights.

    Args:
        model: whose weights are averaged.
        decay: nearer 1 averages longer.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.steps = decay, 0
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._whole = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        averages, weights = zip(*self._floats)
        torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, count in self._whole:
            average.copy_(count)
