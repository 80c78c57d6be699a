"""What a constructor takes: its parameters, and which values of a config fit their annotations."""

from __future__ import annotations

import collections.abc
import enum
import functools
import inspect
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cvkit.system.text import nearest, suggest

NAME = "NAME"
Makes = Callable[[type], bool]


def is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and NAME in value


def place_of(entry: Callable) -> str:
    """Return "file:line" of a class or function."""
    entry = inspect.unwrap(entry)
    try:
        return f"{inspect.getsourcefile(entry)}:{inspect.getsourcelines(entry)[1]}"
    except (OSError, TypeError):
        return f"{entry.__module__}.{entry.__qualname__}"


def parameters_of(entry: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return a constructor's keyword parameters, and whether it takes any others.

    A function that takes `**kwargs` and is annotated to return a class passes them on to
    that class (as torchvision's model functions do): the class's optional parameters count.
    """
    entry = inspect.unwrap(entry, stop=lambda wrapped: hasattr(wrapped, "__signature__"))
    signature = inspect.signature(entry)
    maker = entry.__init__ if inspect.isclass(entry) else entry
    if getattr(maker, "__module__", None) == "torch.nn.modules.module":  # no __init__ of its own
        return {}, False
    names = {**vars(sys.modules.get(entry.__module__, typing)), **getattr(maker, "__globals__", {})}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {key: value.replace(annotation=_resolved(value.annotation, names))
             for key, value in signature.parameters.items() if value.kind in kinds}
    if entry.__module__.startswith("torch.optim"):
        found = {key: value.replace(annotation=_of_one_group(value.annotation))
                 for key, value in found.items()}
    is_open = any(value.kind is value.VAR_KEYWORD for value in signature.parameters.values())
    returned = _resolved(signature.return_annotation, names)
    if is_open and inspect.isclass(returned) and returned is not signature.empty:
        inner, _ = parameters_of(returned)
        found |= {key: value for key, value in inner.items()
                  if key not in found and value.default is not value.empty}
        is_open = False
    return found, is_open


def _resolved(annotation: Any, names: dict[str, Any]) -> Any:
    """Return what an annotation in quotes stands for; as it is, if only type checkers know."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {**vars(collections.abc), **names})
    except (NameError, AttributeError, TypeError, SyntaxError):
        return annotation


def _of_one_group(annotation: Any) -> Any:
    """Return an annotation of torch.optim without what is for several groups of weights.

    A rate may also be a tensor, or a list with one for each group; a config has one for all.
    """
    items = typing.get_args(annotation)
    if _is_union(annotation) and float in items:
        return functools.reduce(operator.or_, [
            item for item in items
            if not (_is_tensor(item) or typing.get_origin(item) is list)])  # also typing.List
    if typing.get_origin(annotation) is tuple:
        return tuple[tuple(map(_of_one_group, items))]
    return annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_tensor(annotation: Any) -> bool:
    return getattr(annotation, "__name__", "") == "Tensor"


_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def accepts(annotation: Any, value: Any, makes: Makes | None = None) -> bool:
    """Tell whether a value from a config can be meant for a parameter so annotated.

    Only what is surely wrong is refused (a word for a number); an annotation that says
    nothing about plain values accepts everything.

    Args:
        makes: tells for which classes a node of the registry may stand, see `Registry.makes`.
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_union(annotation):
        known = [item for item in arguments if not isinstance(item, (str, typing.ForwardRef))]
        return any(accepts(item, value, makes) for item in known or arguments)
    if origin is typing.Literal:
        return value in arguments
    kind = origin or annotation
    if kind is None or kind is type(None):
        return value is None
    if not inspect.isclass(kind):
        return True
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in _LISTS:
        if not isinstance(value, (list, tuple)):
            return False
        is_fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
        if is_fixed and len(value) != len(arguments):
            return False
        items = arguments if is_fixed else arguments[:1] * len(value)
        return all(accepts(item, part, makes) for item, part in zip(items, value))
    if kind in _PLAIN:
        return isinstance(value, kind)
    if _is_tensor(kind):  # lists of numbers become tensors where they are used
        return isinstance(value, (list, tuple)) and all(accepts(float, item) for item in value)
    if kind is collections.abc.Callable or (makes and makes(kind)):
        return is_node(value)
    return True


def as_tensor(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Return a list of numbers as the tensor that a parameter is annotated with (class weights)."""
    if parameter is None or not isinstance(value, (list, tuple)):
        return value
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    if not any(map(_is_tensor, kinds)):
        return value
    import torch

    return torch.tensor(value, dtype=torch.float32)


def describe_type(annotation: Any, makes: Makes | None = None) -> str:
    """Return what a config can write for an annotation: "float or null", "[int, int]".

    Args:
        makes: tells for which classes a node of the registry may stand, see `Registry.makes`.
    """
    forms = dict.fromkeys(_forms(annotation, makes))
    return " or ".join(forms) or "what a config cannot write"


def _forms(annotation: Any, makes: Makes | None) -> list[str]:
    """Return the alternatives that an annotation leaves to a config."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_union(annotation):
        plain = [item for item in arguments if not _is_tensor(item)]
        are_numbers = {int, float} & set(plain)
        return [form for item in (plain if are_numbers else arguments)
                for form in _forms(item, makes)]
    if origin is typing.Literal:
        words = ["null" if item is None else str(item) for item in arguments]
        return [f"one of {', '.join(words)}" if len(words) > 1 else words[0]]
    kind = origin or annotation
    if kind is None or kind is type(None):
        return ["null"]
    if kind in _LISTS:
        items = [" or ".join(dict.fromkeys(_forms(item, makes)))
                 for item in arguments if item is not Ellipsis]
        if not items:
            return ["list"]
        if not all(items):
            return []
        if kind is tuple and Ellipsis not in arguments:
            return [f"[{', '.join(items)}]"]
        if items[0].startswith("one of "):
            return [f"a list, each {items[0]}"]
        return [f"list[{items[0]}]"]
    if kind in _PLAIN:
        return ["mapping" if kind is dict else kind.__name__]
    if _is_tensor(kind):
        return ["list[float]"]
    if inspect.isclass(kind) and issubclass(kind, (Path, os.PathLike)):
        return ["str"]
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        return ["one of " + ", ".join(kind.__members__)]
    is_made = makes and inspect.isclass(kind) and makes(kind)
    return ["{NAME: …}"] if is_made else []


def plain_kinds(annotation: Any) -> set[type]:
    """Return the types of plain values that an annotation leaves; `list` for every list."""
    if _is_union(annotation):
        return set().union(*map(plain_kinds, typing.get_args(annotation)))
    kind = typing.get_origin(annotation) or annotation
    if kind in _LISTS:
        return {list} if _forms(annotation, None) else set()
    return {plain for plain in _PLAIN if plain is (type(None) if kind is None else kind)}


def suggest_choice(annotation: Any, value: Any) -> str | None:
    """Return what was meant by a value, or a list item, that is none of the choices."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is list and arguments and isinstance(value, (list, tuple)):
        return next((suggest_choice(arguments[0], item) for item in value
                     if not accepts(arguments[0], item)), None)
    is_choice = typing.get_origin(annotation) is typing.Literal
    return suggest(value, arguments, listed=20) if is_choice else None


def nearest_choice(annotation: Any, value: Any) -> str | None:
    """Return which of the words was meant that stand beside other values: `find` by "Find"."""
    words = [word for item in typing.get_args(annotation)
             if typing.get_origin(item) is typing.Literal for word in typing.get_args(item)]
    near = nearest(value, map(str, words)) if isinstance(value, str) else []
    return f"Did you mean {near[0]}?" if near else None
