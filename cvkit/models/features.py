"""What the last layer of a model is given: a description of each image, as numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cvkit.errors import RunError


def penultimate_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the last layer makes logits of, (N, D); maps (N, D, h, w) are averaged.

    Args:
        model: in evaluation mode; the last linear layer or convolution that it calls is taken.
        images: (N, C, H, W), as the model receives them.

    Raises:
        RunError: the model calls no such layer with as many outputs as it has logits.
    """
    calls: list[tuple[Tensor, int]] = []

    def note(module: Any, inputs: Any) -> None:
        # All of them would be as much memory as a training takes.
        calls[:] = [(inputs[0], module.weight.shape[0])]

    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not calls or calls[-1][1] != logits.shape[1]:
        raise RunError("the model's logits are not those of a last linear layer or convolution, "
                       "so it has no features before it")
    features = calls[-1][0].float()
    return features.mean((2, 3)) if features.ndim == 4 else torch.flatten(features, 1)
