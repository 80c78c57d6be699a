"""What a state comes to once it is saved: plain values, and a trial of reading it again."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cvkit.errors import CheckpointError
from cvkit.system.text import and_more

# How torch ends the name of what get_extra_state returns.
EXTRA_STATE = "_extra_state"


def plain(state: Any) -> Any:
    """Return a state with Python's numbers in the place of NumPy's, which no checkpoint holds."""
    def number(value: Any) -> Any:
        is_one = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
        return value.item() if is_one and hasattr(value, "item") else value

    return with_each(state, number)


def with_each(state: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of nested dicts and lists with each value within, and each key, changed."""
    if isinstance(state, dict):
        # A Counter, or an OrderedDict, stays one.
        changed = copy.copy(state)
        changed.clear()
        changed.update({change(key): with_each(value, change) for key, value in state.items()})
        return changed
    if type(state) in (list, tuple):
        return type(state)(with_each(item, change) for item in state)
    return change(state)


# Tensors of more numbers than this are what takes time and memory, and are all alike.
_SMALL = 10_000


def reread(state: Any) -> Any:
    """Return what a state comes to once it is saved and loaded, without a file: on the CPU.

    Large dense tensors, which every checkpoint can hold, are copied instead, which is quicker.

    Raises:
        Exception: of pickle or torch, if it holds more than tensors and plain values.
    """
    large: dict[str, torch.Tensor] = {}

    def without_bulk(value: Any) -> Any:
        if (isinstance(value, torch.Tensor) and value.layout is torch.strided
                and not value.is_quantized and value.numel() > _SMALL):
            name = f"\0large tensor {len(large)}"
            large[name] = value.detach()
            return name
        return value

    file = io.BytesIO()
    torch.save(with_each(state, without_bulk), file)
    file.seek(0)
    found = torch.load(file, map_location="cpu", weights_only=True)
    return with_each(found, lambda value: large[value].to("cpu", copy=True) if (
        isinstance(value, str) and value in large) else value)


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a model or a loss, extra state as a copy without NumPy's numbers."""
    state = module.state_dict()
    for name in state:
        if name.endswith(EXTRA_STATE):
            state[name] = plain(copy.deepcopy(state[name]))
    return state


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str,
                 what: str = "model") -> None:
    """Load weights, all of them.

    Args:
        source, what: they are from and for, in words.

    Raises:
        CheckpointError: names or shapes differ; the first few are listed.
    """
    own = model.state_dict()
    differences = [f"{name} is missing" for name in own if name not in weights]
    differences += [f"{name} is not in the {what}" for name in weights if name not in own]
    differences += [f"{name} is {tuple(weights[name].shape)}, the {what}'s {tuple(own[name].shape)}"
                    for name in own if name in weights and not name.endswith(EXTRA_STATE)
                    and weights[name].shape != own[name].shape]
    if differences:
        raise CheckpointError(f"{source} does not fit the {what}: {and_more(differences, 4, '; ')}")
    model.load_state_dict(weights)
