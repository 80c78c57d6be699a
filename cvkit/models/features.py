"""The last layer of a model, its head, and what that is given: a description of each image."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

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
    logits, calls = _last_calls(model, images, 1)
    if not calls or calls[-1].outputs != logits.shape[1]:
        raise RunError("the model's logits are not those of a last linear layer or convolution, "
                       "so it has no features before it")
    features = calls[-1].input.float()
    return features.mean((2, 3)) if features.ndim == 4 else torch.flatten(features, 1)


def head_of(model: nn.Module, image_shape: Sequence[int]) -> str:
    """Return the name of the layer that makes the logits; all before it is the backbone.

    Args:
        model: is asked once, in evaluation mode.
        image_shape: (channels, height, width) of what it takes.

    Raises:
        ConfigError: there is no such layer, or there are two side by side.
    """
    image = torch.zeros(1, *image_shape, device=next(model.parameters()).device)
    with torch.no_grad(), in_evaluation_mode(model), random_numbers_kept(image.device):
        logits, calls = _last_calls(model, image, 2)
        first, last = (calls[0], calls[-1]) if calls else (None, None)
        if first and last and first.outputs == last.outputs == logits.shape[1] and not (
                f"{first.name}.".startswith(f"{last.name}.")):
            # Side by side, the one has no say in what the other is given.
            _, again = _last_calls(model, image, 1, changed=first.name)
            if torch.equal(again[-1].input, last.input):
                raise ConfigError(
                    f"the model makes its logits by two layers, {first.name} and {last.name}: none "
                    "of them is the head",
                    hint=f"Name them: '!{first.name}' and '!{last.name}' in place of backbone.")
    if last is None or last.outputs != logits.shape[1]:
        raise ConfigError("the model has no head that could be told from its backbone: its logits "
                          "are not those of a last linear layer or convolution",
                          hint="Name its parts themselves: their names stand in "
                               "model.named_modules().")
    return last.name


class _Call(NamedTuple):
    """A linear layer or convolution at work."""

    name: str
    input: Tensor
    outputs: int


def _last_calls(model: nn.Module, images: Tensor, count: int,
                changed: str = "") -> tuple[Tensor, list[_Call]]:
    """Return the logits, and so many of the last calls of linear layers and convolutions.

    Args:
        changed: name of a layer that is to return something else.
    """
    # All of them would be as much memory as a training takes.
    calls = deque[_Call](maxlen=count)

    def note(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> Tensor | None:
            calls.append(_Call(name, inputs[0], module.weight.shape[0]))
            return output + torch.rand_like(output) if name == changed else None
        return hook

    handles = [layer.register_forward_hook(note(name))
               for name, layer in model.named_modules()
               if isinstance(layer, (nn.Linear, nn.Conv2d))]
    try:
        logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, list(calls)
