"""What a constructor takes: its parameters, and the values that fit their annotations."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

NAME = "NAME"


def is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and NAME in value


def plain(value: Any) -> Any:
    """Return a value with its nodes as dicts and its lists as lists."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


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
    # A class of torch without an __init__ of its own takes nothing; that of all modules may be
    # wrapped, as torch's compiler does.
    owner = next((base for base in inspect.getmro(entry) if "__init__" in vars(base)), None) if (
        inspect.isclass(entry)) else None
    if getattr(owner, "__module__", None) == "torch.nn.modules.module":
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


def declare(entry: Any, parameters: Iterable[inspect.Parameter], is_open: bool = False,
            returned: Any = inspect.Signature.empty) -> None:
    """Set what a constructor takes by name, where its own lines do not say so.

    Args:
        entry: a function or class. To a type checker a function has no such attribute.
        parameters: of it, those that are needed first.
        is_open: whether it takes any others.
        returned: what is annotated as returned.
    """
    found = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in parameters]
    if is_open:
        found.append(inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD))
    entry.__signature__ = inspect.Signature(found, return_annotation=returned)


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
        return types.GenericAlias(tuple, tuple(map(_of_one_group, items)))
    return annotation


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


# -- values ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """The values that a parameter takes from a config.

    Args:
        text: how they are written, "float or null" or "[int, int]"; empty if they cannot be.
        fit: tells whether a value is one of them.
        kinds: their types: `list` for all lists, `Mapping` for nodes, `NODES` for lists of nodes.
        words: of a choice, or of a list of choices.
    """

    text: str
    fit: Callable[[Any], bool] = lambda value: True
    kinds: frozenset[type] = frozenset()
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text or "what a config cannot write"


NODES = list[Mapping]
_PLAIN = {bool: "bool", int: "int", float: "float", str: "str", dict: "mapping", type(None): "null"}
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def values_of(annotation: Any, makes: Callable[[type], bool] = lambda kind: False) -> Values:
    """Return the values that a parameter with an annotation takes.

    Only what is surely wrong is none of them (a word for a number): an annotation that says
    nothing about plain values leaves everything.

    Args:
        makes: tells for which classes a node of the registry may stand, see `Registry.makes`.
    """
    kind = typing.get_origin(annotation) or (type(None) if annotation is None else annotation)
    inner = typing.get_args(annotation)
    if _is_union(annotation):
        known = [item for item in inner if not isinstance(item, (str, typing.ForwardRef))]
        each = [values_of(item, makes) for item in known or inner]
        return Values(" or ".join(dict.fromkeys(values.text for values in each if values.text)),
                      lambda value: any(values.fit(value) for values in each),
                      frozenset().union(*(values.kinds for values in each)), _words(each))
    if kind is typing.Literal:
        words = tuple("null" if word is None else str(word) for word in inner)
        text = f"one of {', '.join(words)}" if len(words) > 1 else words[0]
        return Values(text, lambda value: value in inner, words=words)
    if not inspect.isclass(kind):
        return Values("")
    if kind in _LISTS:
        each = [values_of(item, makes) for item in inner if item is not Ellipsis]
        return _lists_of(each, has_as_many=kind is tuple and len(each) == len(inner) > 0)
    if kind in _PLAIN:
        kinds = (int, float) if kind is float else kind
        return Values(_PLAIN[kind], lambda value: isinstance(value, kinds) and (
            isinstance(value, bool) == (kind is bool)), frozenset([kind]))
    if _is_tensor(kind):
        return values_of(list[float])
    if makes(kind) or kind is collections.abc.Callable:
        return Values("{NAME: …}" if makes(kind) else "", is_node, frozenset([Mapping]))
    if issubclass(kind, enum.Enum):
        return Values(f"one of {', '.join(kind.__members__)}")
    return Values("str" if issubclass(kind, os.PathLike) else "")


def _lists_of(each: list[Values], has_as_many: bool) -> Values:
    """Return lists of as many items as there are values here, or else of any number of the one."""
    def fit(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or (has_as_many and len(value) != len(each)):
            return False
        expected = each if has_as_many else each * len(value)
        return all(values.fit(item) for values, item in zip(expected, value))

    texts = [values.text for values in each]
    text = f"[{', '.join(texts)}]" if has_as_many else f"list[{texts[0]}]" if texts else "list"
    kind = NODES if any(Mapping in values.kinds for values in each) else list
    return Values(text if all(texts) else "", fit, frozenset([kind]), _words(each))


def _words(each: list[Values]) -> tuple[str, ...]:
    return tuple(word for values in each for word in values.words)


def accepts(annotation: Any, value: Any) -> bool:
    """Tell whether a value from a config can be meant for a parameter so annotated."""
    return values_of(annotation).fit(value)


def describe_type(annotation: Any) -> str:
    """Return what a config can write for an annotation: "float or null", "[int, int]"."""
    return str(values_of(annotation))


def _is_tensor(annotation: Any) -> bool:
    return getattr(annotation, "__name__", "") == "Tensor"


def as_tensor(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Return a list of numbers as the tensor that a parameter is annotated with (class weights)."""
    annotation = parameter.annotation if parameter else None
    kinds = typing.get_args(annotation) or (annotation,)
    if not (isinstance(value, (list, tuple)) and any(map(_is_tensor, kinds))):
        return value
    import torch

    return torch.tensor(value, dtype=torch.float32)
