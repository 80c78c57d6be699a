"""What a state comes to once it is saved: plain values, and a trial of reading it again."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any


def plain(state: Any) -> Any:
    """Return a state with Python's numbers in the place of NumPy's, which no checkpoint holds."""
    def number(value: Any) -> Any:
        is_one = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
        return value.item() if is_one and hasattr(value, "item") else value

    return _with_each(state, number)


def _with_each(state: Any, change: Callable[[Any], Any]) -> Any:
    """Return a copy of nested dicts and lists with each value within, and each key, changed."""
    if isinstance(state, dict):
        changed = copy.copy(state)  # a Counter stays one
        changed.clear()
        changed.update({change(key): _with_each(value, change) for key, value in state.items()})
        return changed
    if type(state) in (list, tuple):
        return type(state)(_with_each(item, change) for item in state)
    return change(state)


_SMALL = 10_000  # numbers; larger tensors are what takes time and memory, and all alike


def reread(state: Any) -> Any:
    """Return what a state comes to once it is saved and loaded, without a file: on the CPU.

    Large dense tensors, which every checkpoint can hold, are copied instead, which is quicker.

    Raises:
        Exception: of pickle or torch, if it holds more than tensors and plain values.
    """
    import torch

    large: dict[str, torch.Tensor] = {}

    def without_bulk(value: Any) -> Any:
        if (isinstance(value, torch.Tensor) and value.layout is torch.strided
                and not value.is_quantized and value.numel() > _SMALL):
            name = f"\0large tensor {len(large)}"
            large[name] = value.detach()
            return name
        return value

    file = io.BytesIO()
    torch.save(_with_each(state, without_bulk), file)
    file.seek(0)
    found = torch.load(file, map_location="cpu", weights_only=True)
    return _with_each(found, lambda value: large[value].to("cpu", copy=True) if (
        isinstance(value, str) and value in large) else value)
