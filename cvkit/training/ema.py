"""An exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from cvkit.system.saving import load_weights, weights_of


class EMA:
    """Averaged weights: at each update, average = d × average + (1 - d) × weights.

    d = min(decay, (1 + updates) / (10 + updates)), as in TensorFlow's ExponentialMovingAverage,
    so that the random first weights do not linger in short runs. Buffers of floats are averaged
    like weights; those of whole numbers, masks of infinities, and what get_extra_state() returns,
    are copied.

    Args:
        model: whose weights are averaged.
        decay: nearer 1 averages longer.
        every: steps from one update to the next.
        power: instead, d = decay × (part of the training that is over) to this power; 0 for the
            rule above.
        total_steps: of the training, for that.
        goes_on: after each update training goes on from the average, which is Lookahead (Zhang et
            al., 2019).
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 1, power: float = 0.0,
                 total_steps: int = 0, goes_on: bool = False):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.every, self.power = decay, every, power
        self.total_steps, self.goes_on, self.steps = total_steps, goes_on, 0
        self._source = model
        self._weights = list(self.model.parameters()), list(model.parameters())
        self._is_averaged = [buffer.is_floating_point() and buffer.layout is torch.strided
                             and bool(buffer.isfinite().all())
                             for buffer in model.buffers()]
        self._with_extra = [
            pair for pair in zip(self.model.modules(), model.modules())
            if type(pair[0]).get_extra_state is not nn.Module.get_extra_state]

    @torch.no_grad()
    def update(self) -> None:
        """Count a step; if an update is due, move the average towards the model's weights."""
        updates = self.steps // self.every
        self.steps += 1
        if self.steps % self.every:
            return
        decay = (self.decay * (self.steps / self.total_steps)**self.power if self.power else
                 min(self.decay, (1 + updates) / (10 + updates)))
        averages, values = map(list[torch.Tensor], self._weights)
        whole: list[torch.Tensor] = []
        counts: list[torch.Tensor] = []
        for average, value, is_averaged in zip(self.model.buffers(), self._source.buffers(),
                                               self._is_averaged):
            (averages if is_averaged else whole).append(average)
            (values if is_averaged else counts).append(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
        if self.goes_on:
            torch._foreach_copy_(values, averages)
        if whole:
            torch._foreach_copy_(whole, counts)
        for kept, source in self._with_extra:
            kept.set_extra_state(copy.deepcopy(source.get_extra_state()))

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on with."""
        return {"steps": self.steps, "model": weights_of(self.model)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: the averages are of another model.
        """
        self.steps = state["steps"]
        load_weights(self.model, state["model"], "the checkpoint")
