"""What published weights were trained on, asked without building the model or fetching them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cvkit.registry import MODELS, NAME


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
