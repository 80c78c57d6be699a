"""The last layer of a model, its head, and what that is given: a description of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cvkit.errors import ConfigError, RunError
from cvkit.models.probing import in_evaluation_mode
from cvkit.system.seeds import random_numbers_kept


def penultimate_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return what the last layer makes logits of, (N, D); maps (N, D, h, w) are averaged.

    Args:
        model: in evaluation mode; the last linear layer or convolution that it calls is taken.
        images: (N, C, H, W), as the model receives them.

    Raises:
        RunError: the model calls no such layer with as many outputs as it has logits.
    """
    found = _last_call(model, images)
    if found is None:
        raise RunError("the model's logits are not those of a last linear layer or convolution, "
                       "so it has no features before it")
    features = found[1].float()
    return features.mean((2, 3)) if features.ndim == 4 else torch.flatten(features, 1)


def head_of(model: nn.Module, image_shape: Sequence[int]) -> str:
    """Return the name of the layer that makes the logits; all before it is the backbone.

    Args:
        model: is asked once, in evaluation mode.
        image_shape: (channels, height, width) of what it takes.

    Raises:
        ConfigError: as `penultimate_features`.
    """
    image = torch.zeros(1, *image_shape, device=next(model.parameters()).device)
    with torch.no_grad(), in_evaluation_mode(model), random_numbers_kept(image.device):
        found = _last_call(model, image)
    if found is None:
        raise ConfigError("the model has no head that could be told from its backbone: its logits "
                          "are not those of a last linear layer or convolution",
                          hint="Name its parts themselves: their names stand in "
                               "model.named_modules().")
    return found[0]


def _last_call(model: nn.Module, images: Tensor) -> tuple[str, Tensor] | None:
    """Return name and input of the layer that makes the logits, or None."""
    calls: list[tuple[str, Tensor, int]] = []

    def note(name: str) -> Any:
        def hook(module: Any, inputs: Any) -> None:
            # All of them would be as much memory as a training takes.
            calls[:] = [(name, inputs[0], module.weight.shape[0])]
        return hook

    handles = [layer.register_forward_pre_hook(note(name))
               for name, layer in model.named_modules()
               if isinstance(layer, (nn.Linear, nn.Conv2d))]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return calls[-1][:2] if calls and calls[-1][2] == logits.shape[1] else None
