"""What published weights have in common: their images, a new last layer, what does not fit."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from cvkit.registry import MODELS, NAME
from cvkit.system.text import and_more


class TrainedOn(NamedTuple):
    """The images that weights were trained on.

    Attributes:
        name: of the weights, in words.
        mean, std: per channel, of pixels in 0–1, with which they were normalised.
        size: (height, width) in pixels; None if it is not known.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None


def trained_on(node: Mapping[str, Any]) -> TrainedOn | None:
    """Return what the weights of a MODEL were trained on, or None: it has none, or none is known.

    A registered constructor says so by its attribute `trained_on`, a function of the node.
    """
    ask = getattr(MODELS.find(node[NAME]), "trained_on", None)
    return None if ask is None else ask(node)


def has_pretrained(node: Mapping[str, Any]) -> bool:
    """Tell whether a MODEL begins with published weights."""
    return node.get("weights") is not None or bool(node.get("pretrained"))


def begins_trained(node: Mapping[str, Any]) -> bool:
    """Tell whether a MODEL begins with weights that were trained, wherever they are from."""
    return has_pretrained(node) or bool(node.get("INIT_FROM"))


def begin_small(model: nn.Module, new: Container[str]) -> None:
    """Let new last layers beside trained ones begin no larger than torch's linear layers do.

    EfficientNets begin with some ten times that, which suits training from scratch: beside trained
    weights the first loss is three times that of guessing, and what was learned is lost over it.

    Args:
        model: whose weights are loaded.
        new: names of those that are not.
    """
    for name, module in model.named_modules():
        if f"{name}.weight" not in new or not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        weight = module.weight.detach()
        if weight.ndim == 4 and weight.shape[2:] != (1, 1):  # no last layer
            continue
        if weight.numel() > 1 and weight.std() > (inputs := weight[0].numel())**-0.5:
            weight *= (3 * inputs)**-0.5 / weight.std()


def misfit(error: RuntimeError, name: str, arguments: Iterable[str],
           switch: str) -> ValueError | None:
    """Return what `load_state_dict` refuses in short, or None of another error.

    Args:
        name: of the weights.
        arguments: of the config, with which they may fit no longer.
        switch: the argument that asks for weights.
    """
    reason = str(error)
    keys = re.findall(r'(?<=size mismatch for )[^:\s]+|(?<=")[^"\s]+(?=")', reason)
    if "loading state_dict" not in reason or not keys:
        return None
    hint = f"; leave out {', '.join(arguments)} or {switch}" if arguments else ""
    return ValueError(f"{len(keys)} keys of the weights {name} do not fit: "
                      f"{and_more(keys, 10)}{hint}")
