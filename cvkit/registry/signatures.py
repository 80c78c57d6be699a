"""What a constructor takes: its parameters, and the values that fit their annotations."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


# -- parameters --------------------------------------------------------------------------


def parameters_of(entry: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return a constructor's keyword parameters, and whether it takes any others.

    A function that takes `**kwargs` and is annotated to return a class passes them on to
    that class (as torchvision's model functions do): the class's optional parameters count.
    """
    entry = inspect.unwrap(entry, stop=lambda wrapped: hasattr(wrapped, "__signature__"))
    signature = inspect.signature(entry)
    maker = entry.__init__ if inspect.isclass(entry) else entry
    # A class of torch without an __init__ of its own takes nothing.
    if getattr(maker, "__module__", None) == "torch.nn.modules.module":
        return {}, False
    names = {**vars(sys.modules.get(entry.__module__, typing)), **getattr(maker, "__globals__", {})}
    found, is_open = {}, False
    for key, value in signature.parameters.items():
        annotation = _resolved(value.annotation, names)
        if entry.__module__.startswith("torch.optim"):
            annotation = _of_one_group(annotation)
        if value.kind in (value.POSITIONAL_OR_KEYWORD, value.KEYWORD_ONLY):
            found[key] = value.replace(annotation=annotation)
        is_open = is_open or value.kind is value.VAR_KEYWORD
    returned = _resolved(signature.return_annotation, names)
    if is_open and inspect.isclass(returned) and returned is not signature.empty:
        inner, _ = parameters_of(returned)
        return found | {key: value for key, value in inner.items()
                        if key not in found and value.default is not value.empty}, False
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
        return float | None if type(None) in items else float
    if typing.get_origin(annotation) is tuple:
        return tuple[tuple(map(_of_one_group, items))]
    return annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


# -- values ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """One of the forms that a value for a parameter can have.

    Args:
        text: how a config writes it, such as "int" or "[int, int]"; empty if it cannot.
        fits: tells whether a value has it.
        kind: its type: `list` for every list, `Mapping` for a node, `NODES` for a list of them;
            None for what is no plain value.
        words: the choices for the value, or for the items of a list, as a config writes them.
    """

    text: str
    fits: Callable[[Any], bool]
    kind: Any = None
    words: tuple[str, ...] = ()


NODES = list[Mapping]
_PLAIN = {bool: "bool", int: "int", float: "float", str: "str", dict: "mapping", type(None): "null"}
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def forms_of(annotation: Any, makes: Makes | None = None) -> list[Form]:
    """Return the forms that an annotation leaves to a value from a config.

    Only what is surely wrong has none of them (a word for a number): an annotation that says
    nothing about plain values leaves everything.

    Args:
        makes: tells for which classes a node of the registry may stand, see `Registry.makes`.
    """
    kind = typing.get_origin(annotation) or (type(None) if annotation is None else annotation)
    inner = typing.get_args(annotation)
    if _is_union(annotation):
        known = [item for item in inner if not isinstance(item, (str, typing.ForwardRef))]
        return [form for item in known or inner for form in forms_of(item, makes)]
    if kind is typing.Literal:
        words = tuple("null" if word is None else str(word) for word in inner)
        text = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
        return [Form(text, lambda value: value in inner, words=words)]
    if not inspect.isclass(kind):
        return [Form("", lambda value: True)]
    if kind in _PLAIN:
        kinds = (int, float) if kind is float else kind
        return [Form(_PLAIN[kind], lambda value: isinstance(value, kinds) and (
            isinstance(value, bool) == (kind is bool)), kind)]
    if kind in _LISTS:
        items = [forms_of(item, makes) for item in inner if item is not Ellipsis]
        return [_list_of(items, is_fixed=kind is tuple and len(items) == len(inner) > 0)]
    if _is_tensor(kind):
        return forms_of(list[float])
    if kind is collections.abc.Callable:
        return [Form("", is_node, Mapping)]
    if makes and makes(kind):
        return [Form("{NAME: …}", is_node, Mapping)]
    text = "str" if issubclass(kind, os.PathLike) else (
        f"one of {', '.join(kind.__members__)}" if issubclass(kind, enum.Enum) else "")
    return [Form(text, lambda value: True)]


def _list_of(items: list[list[Form]], is_fixed: bool) -> Form:
    """Return the form of lists: of as many items as have forms here, or of any number like one."""
    def fits(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or (is_fixed and len(value) != len(items)):
            return False
        each = items if is_fixed else items * len(value)
        return all(any(form.fits(part) for form in forms) for forms, part in zip(each, value))

    texts = [_joined(forms) for forms in items]
    inside = [form for forms in items for form in forms]
    if is_fixed:
        text = f"[{', '.join(texts)}]"
    elif any(text.startswith("one of ") for text in texts):
        text = f"a list, each {texts[0]}"
    else:
        text = f"list[{texts[0]}]" if texts else "list"
    return Form(text if all(texts) else "", fits,
                NODES if any(form.kind is Mapping for form in inside) else list,
                tuple(word for form in inside for word in form.words))


def _joined(forms: list[Form]) -> str:
    return " or ".join(dict.fromkeys(form.text for form in forms if form.text))


def accepts(annotation: Any, value: Any, makes: Makes | None = None) -> bool:
    """Tell whether a value from a config can be meant for a parameter so annotated.

    Args:
        makes: as for `forms_of`.
    """
    return any(form.fits(value) for form in forms_of(annotation, makes))


def describe_type(annotation: Any, makes: Makes | None = None) -> str:
    """Return what a config can write for an annotation: "float or null", "[int, int]".

    Args:
        makes: as for `forms_of`.
    """
    return _joined(forms_of(annotation, makes)) or "what a config cannot write"


def _is_tensor(annotation: Any) -> bool:
    return getattr(annotation, "__name__", "") == "Tensor"


def as_tensor(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Return a list of numbers as the tensor that a parameter is annotated with (class weights)."""
    if parameter is None or not isinstance(value, (list, tuple)):
        return value
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    if not any(map(_is_tensor, kinds)):
        return value
    import torch

    return torch.tensor(value, dtype=torch.float32)
