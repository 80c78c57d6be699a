"""Registries: string names to constructors, and building one from a config node."""

from __future__ import annotations

import collections.abc
import contextlib
import difflib
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import operator
import os
import re
import sys
import textwrap
import traceback
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvkit import distributed
from cvkit.errors import (
    ConfigError,
    DataError,
    UserError,
    correction,
    nearest,
    raise_together,
    suggest,
    visible,
)
from cvkit.files import user_path

NAME = "NAME"


@dataclass(frozen=True)
class Library:
    """A library's namespace behind a registry.

    Args:
        module: its path.
        read: returns its entries by name.
        left_out: names that it has besides, and why they are no entries.
    """

    module: str
    read: Callable[[], dict[str, Callable]]
    left_out: Mapping[str, str]


class Registry:
    """Named constructors of one kind. Fills itself at the first look-up.

    Args:
        kind: what the entries are, singular, for messages ("model").
        module: the module whose import registers cvkit's own entries.
        offers: facts a run passes to constructors that have a parameter of that name.
        reserved: those of them that a config cannot set.
        required: arguments a config must set even where the constructor has a default.

    A name not registered is looked up in the library that `module` adds with
    `add_library`; the library's own path ("torchvision.models.resnet18") reaches an
    entry that a registered name hides.

    Attributes:
        way_to: given a name that is no entry, returns a hint of how it could be one, or None.
    """

    def __init__(self, kind: str, module: str, offers: tuple[str, ...] = (),
                 reserved: tuple[str, ...] = (), required: tuple[str, ...] = ()):
        self.kind, self.module, self.required = kind, module, required
        self.offers, self.reserved = offers, reserved
        self._entries: dict[str, Callable] = {}
        self._library: Library | None = None
        self._library_entries: dict[str, Callable] | None = None
        self.way_to: Callable[[str], str | None] = lambda name: None
        REGISTRIES[kind] = self

    # -- filling ---------------------------------------------------------------------

    def register(self, name: str | None = None) -> Callable:
        """Decorate a class or function to enter it under `name` (default: its own name).

        Raises:
            ConfigError: the name is taken; the message names both places.
        """
        if name is not None and not isinstance(name, str):
            raise TypeError("write @….register(), with the parentheses")

        def add(entry: Callable) -> Callable:
            key = name or entry.__name__
            if key == "<lambda>":
                raise ConfigError(f"a {self.kind} without a name: {place_of(entry)}",
                                  hint="A lambda needs one: register('its_name')(lambda …).")
            old = self._entries.get(key)
            if old is not None and not _is_reload(old, entry):
                raise ConfigError(f"two {self.kind}s named {key!r}: {place_of(old)} and "
                                  f"{place_of(entry)}",
                                  hint="Rename one, or register it as register('another_name').")
            self._entries[key] = entry
            return entry

        return add

    def add_library(self, module: str, read: Callable[[], dict[str, Callable]],
                    left_out: Mapping[str, str] | None = None) -> None:
        """Let names that are not registered fall back to those that `read()` returns.

        Args:
            left_out: names of the module that are not offered, and why: "takes functions".
        """
        left_out = left_out or {}
        self._library = Library(module, lambda: {
            name: entry for name, entry in read().items() if name not in left_out}, left_out)

    def _fill(self) -> None:
        importlib.import_module(self.module)

    def _from_library(self) -> dict[str, Callable]:
        if self._library_entries is None:
            self._library_entries = self._library.read() if self._library else {}
        return self._library_entries

    # -- looking up ------------------------------------------------------------------

    @property
    def own(self) -> list[str]:
        """The registered names, sorted, without the library's."""
        self._fill()
        return sorted(self._entries)

    @property
    def library(self) -> tuple[str, list[str]] | None:
        """The library's module path and its names that no registered name hides."""
        self._fill()
        if self._library is None:
            return None
        names = sorted(set(self._from_library()) - set(self._entries))
        return self._library.module, names

    def find(self, name: str) -> Callable | None:
        """Return the entry of that name, or None."""
        self._fill()
        if name in self._entries:
            return self._entries[name]
        if self._library and isinstance(name, str):
            return self._from_library().get(name.removeprefix(self._library.module + "."))
        return None

    def get(self, name: str, where: object = None) -> Callable:
        """Return the entry of that name.

        Raises:
            ConfigError: there is none; the message suggests the nearest names.
        """
        entry = self.find(name)
        if entry is None:
            hint = self.way_to(str(name)) or suggest(name, self)
            if self._library and isinstance(name, str):
                module = self._library.module
                reason = self._library.left_out.get(name.removeprefix(module + "."))
                hint = f"That of {module} {reason}. {hint}" if reason else hint
            if not difflib.get_close_matches(str(name).lower(), map(str.lower, self), 1, 0.75):
                hint += ("\n  One of your own: register() above it, and its file in IMPORTS; see "
                         "docs/add_your_own.md")
            raise ConfigError(f"no {self.kind} named {name!r}", where=where, hint=hint)
        return entry

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.own + (self.library[1] if self.library else []))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        library = f" and {len(self.library[1])} of {self.library[0]}" if self.library else ""
        return f"<Registry of {self.kind}s: {', '.join(self.own)}{library}>"

    # -- building --------------------------------------------------------------------

    def check(self, node: Any) -> None:
        """Check a node's name and arguments against the constructor, without building it.

        Raises:
            ConfigError: unknown name or argument, missing argument or wrong type; all
                that is wrong with the node, in one message with file, line and key.
        """
        raise_together(list(self._problems(node)))

    def is_own(self, node: Any) -> bool:
        """Tell whether a node names what a user registered, not cvkit or a library."""
        name, _ = _split(node, self.kind)
        return name in self._entries and not self._entries[name].__module__.startswith("cvkit.")

    def asks_for(self, node: Any, fact: str) -> bool:
        """Tell whether the node's constructor takes `fact` and the config leaves it open."""
        name, arguments = _split(node, self.kind)
        return fact in parameters_of(self.get(name))[0] and fact not in arguments

    def refusal_of(self, item: Any, where: object) -> ConfigError | None:
        """Return what keeps a config's value from being a node of this kind, or None.

        Args:
            where: its place, for what does not know its own.
        """
        if _is_node(item) and isinstance(item[NAME], str):
            return None
        hint = f"See `python tools/registry.py {self.kind}` for what can be named."
        shown = _as_written(item)
        if not isinstance(item, Mapping):
            if isinstance(item, str) and item.isidentifier():
                hint = f"Write {{NAME: {item}}}."
            return ConfigError(f"expected a node {{NAME: …}}, not {_in_yaml(shown)}", where=where,
                               hint=hint)
        where = (where_in(item) if item else None) or where
        if NAME in item:
            return ConfigError(f"the NAME of a {self.kind} is a word, not {_in_yaml(shown[NAME])}",
                               where=where, hint=hint)
        for key in item:
            if key.startswith(f"{NAME}:"):
                hint = f"Write {NAME}: {key[5:]}, with a space after the colon."
            elif key.lower() in ("name", "type", "class"):
                hint = f"Write {NAME}, not {key}."
            elif len(item) == 1 and key in self:
                hint = f"Write {{NAME: {key}, …}}, with its arguments beside the name."
        return ConfigError(f"this {self.kind} has no NAME", where=where, hint=hint)

    def makes(self, kind: type) -> bool:
        """Tell whether entries are classes of that kind, so that a node stands for one."""
        entries = [*self._entries.values(), *self._from_library().values()]
        is_general = kind.__module__ in ("builtins", "typing", "collections.abc")
        return not is_general and any(
            inspect.isclass(entry) and issubclass(entry, kind) for entry in entries)

    def _problems(self, node: Any) -> Iterator[ConfigError]:
        name, arguments = _split(node, self.kind)
        try:
            parameters, is_open = parameters_of(self.get(name, where_in(node, NAME)))
        except ConfigError as error:
            yield error
            return
        settable = [key for key in parameters if key not in self.offers] + [
            key for key in parameters if key in self.offers and key not in self.reserved]
        for key, value in arguments.items():
            if key in self.reserved or (key not in parameters and not is_open):
                hint = suggest(key, settable) or f"{name} takes no arguments."
                meant = next(iter(nearest(key, settable)), None)
                annotation = parameters[meant].annotation if meant else None
                if meant and not accepts(annotation, value, self):
                    hint = hint.replace("? ", f"? It takes {describe_type(annotation, self)}. ", 1)
                yield ConfigError(f"{self.kind} {name} has no argument {key!r}",
                                  where=where_in(node, key), hint=hint)
            elif key in parameters and not accepts(parameters[key].annotation, value, self):
                yield self._wrong_value(f"{key} of {self.kind} {name}", parameters[key].annotation,
                                        value, where_in(node, key))
            for nested in _nested_nodes(value):
                yield from self._problems(nested)
        lacking = [key for key in self.required if key not in parameters and not is_open]
        if lacking:
            yield ConfigError(f"{self.kind} {name} has no argument {lacking[0]!r}, which each "
                              f"{self.kind} needs", where=where_in(node, NAME),
                              hint=f"See {place_of(self.get(name))}")
        missing = [key for key in self.required
                   if is_open and key not in parameters and key not in arguments]
        missing += [key for key, parameter in parameters.items()
                   if key not in arguments and key not in self.offers
                   and (parameter.default is parameter.empty or key in self.required)]
        if missing:
            path = getattr(node, "path", str)  # the dotted key, in a config
            hint = f"Set {', '.join(map(path, missing))}."
            facts = difflib.get_close_matches(missing[0], self.offers)
            if facts and name in self._entries:
                hint = f"Is {facts[0]} meant, which it is given by itself? {hint}"
            entry = self.get(name)
            made = _MADE_BY_FUNCTIONS.get(self.kind)
            if made and inspect.isfunction(entry) and not arguments:
                hint = (f"{name} is called with these, once, to make the {self.kind}. If they are "
                        f"what the {self.kind} is given: {made}.")
            replaced = getattr(node, "replaced", {})
            dropped = [replaced[key] for key in missing if key in replaced]
            if dropped:
                hint = f"Changing NAME dropped {', '.join(dropped)}. {hint}"
            yield ConfigError(f"{self.kind} {name} needs {', '.join(missing)}",
                              where=where_in(node, NAME), hint=hint)

    def _wrong_value(self, argument: str, annotation: Any, value: Any,
                     where: str | None) -> ConfigError:
        kinds = plain_kinds(annotation)
        if not kinds and isinstance(value, (list, tuple)):  # of nodes
            for number, item in enumerate(value):
                place = where and f"{where}.{number}"
                if refusal := self.refusal_of(item, place):
                    return refusal
        shown = repr(_as_written(value))
        hint = _suggest_choice(annotation, value)
        if hint:  # which lists what it can be
            return ConfigError(f"{argument} cannot be {shown}", where=where, hint=hint)
        takes = describe_type(annotation, self)
        if isinstance(value, (list, tuple)) and kinds & {int, float} and list not in kinds:
            takes = f"one number ({takes})"
        if not isinstance(value, str) and not accepts(annotation, [value], self):
            kinds -= {list}  # one of several numbers
        return ConfigError(f"{argument} takes {takes}, not {shown}", where=where,
                           hint=correction(value, kinds) or _nearest_choice(annotation, value))

    def build(self, node: Any, **offered: Any) -> Any:
        """Construct what a node names, with its arguments and the facts it asks for.

        Args:
            node: `{NAME: …, argument: value, …}`, or a bare name.
            offered: facts by name; each reaches a constructor that has a parameter of
                that name which the config does not set. Nodes within arguments are built
                the same way (a list of transforms inside `OneOf`).

        Raises:
            ConfigError: as `check`; or the constructor refuses a value.
        """
        unknown = set(offered) - set(self.offers)
        if unknown:
            raise TypeError(f"{self.kind}s are not offered {', '.join(sorted(unknown))}; "
                            f"arguments go into the node, facts are {', '.join(self.offers)}")
        self.check(node)
        name, arguments = _split(node, self.kind)
        entry = self.get(name)
        parameters, _ = parameters_of(entry)
        arguments = {key: _as_tensor(self._build_nested(value, offered), parameters.get(key))
                     for key, value in arguments.items()}
        facts = {key: value for key, value in offered.items()
                 if key in parameters and key not in arguments}
        # A library's constructor is taken to be right and the value wrong, and so is cvkit's,
        # which hands values on to one; in your own code only a ValueError says so, or a file that
        # an argument names; the rest may be a bug and keeps its traceback.
        try:
            made = entry(**facts, **arguments)
            _refuse_unmade(made)
            return made
        except UserError as error:
            if error.where is None or error.where in parameters:
                named = error.where or (
                    isinstance(error, DataError) and _path_in(error.problem, arguments))
                error.where = where_in(node, named if named in arguments else NAME)
            raise
        except Exception as error:
            path = isinstance(error, OSError) and _path_in(str(error.filename), arguments)
            reason = _reason(error)
            if "__init__() call" in reason:  # of torch's Module: it has to come before assignments
                torch = os.path.dirname(sys.modules["torch"].__file__)
                own = [frame for frame in traceback.extract_tb(error.__traceback__)
                       if not frame.filename.startswith(torch + os.sep)][-1]
                error = ValueError(f"super().__init__() comes before {own.filename}:{own.lineno}")
                reason = str(error)
            if self.is_own(node) and not (path or isinstance(error, ValueError)):
                raise
            named = [key for key in arguments if re.search(rf"\b{re.escape(key)}\b", reason)]
            raise ConfigError(f"{self.kind} {name} cannot be built: {reason}", where=where_in(
                node, path or (named[0] if named else NAME))) from error

    def refuse_without(self, node: Any, part: Any, *methods: str) -> None:
        """Refuse what was built from a node, or will be, if it lacks a method.

        Args:
            part: an object, or its class.
            methods: each as it is called, such as "update(logits, labels)".

        Raises:
            ConfigError: names the first one.
        """
        for form in methods:
            method, *arguments = re.findall(r"\w+", form)
            found = getattr(part, method, None)
            if found is None and inspect.isclass(part) and method in _names_in(part.__init__):
                continue  # set there, so that the object has it
            problem = None if callable(found) else f"has no {method}()"
            if problem is None:
                is_unbound = inspect.isclass(part) and inspect.isfunction(found) and not isinstance(
                    inspect.getattr_static(part, method), staticmethod)
                try:
                    inspect.signature(found, follow_wrapped=False).bind(
                        *[None] * is_unbound, *arguments)
                except TypeError:
                    problem = f"cannot be called as {form}: {place_of(found)}"
                except ValueError:  # of a method without a signature, in C
                    pass
            if problem:
                raise ConfigError(f"{self.kind} {_split(node, self.kind)[0]} {problem}",
                                  where=where_in(node, NAME),
                                  hint=f"A {self.kind} has {', '.join(methods)}.")

    def _build_nested(self, value: Any, offered: dict[str, Any]) -> Any:
        if _is_node(value):
            return self.build(value, **offered)
        if isinstance(value, (list, tuple)) and any(_is_node(item) for item in value):
            return [self.build(item, **offered) for item in value]
        if isinstance(value, (list, tuple)):
            return type(value)(self._build_nested(item, offered) for item in value)
        if isinstance(value, str) and re.match(r"~[\w.-]*/", value):
            return str(user_path(value))
        return value


_MADE_BY_FUNCTIONS = {"loss": "register a function that returns it, or a torch.nn.Module",
                      "metric": "register a class with update(logits, labels) and compute()",
                      "scheduler": "return LambdaLR(optimizer, it) from a function that is "
                                   "registered"}
# What torch's classes have once they are initialised.
_MADE = {"Module": "_parameters", "Optimizer": "param_groups", "LRScheduler": "optimizer"}


def _refuse_unmade(made: Any) -> None:
    """Refuse an object whose class forgets to initialise the one of torch that it is derived from.

    Raises:
        ValueError: says where.
    """
    for base in type(made).__mro__:
        attribute = _MADE.get(base.__name__) if base.__module__.startswith("torch.") else None
        if attribute and not hasattr(made, attribute):
            raise ValueError(f"super().__init__() of {base.__name__} was not called: "
                             f"{place_of(type(made))}")


def _names_in(function: Callable) -> tuple[str, ...]:
    """Return the attributes and globals that a function names."""
    return getattr(getattr(function, "__code__", None), "co_names", ())


def _path_in(text: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the argument whose value, a path, stands in a message, or None."""
    return next((key for key, value in arguments.items() if isinstance(value, str) and re.search(
        rf"(?<!\w){re.escape(str(Path(value)))}(?!\w)", text)), None)


def _reason(error: Exception) -> str:
    """Return why a constructor refused its arguments."""
    checked = error.__cause__  # of pydantic, which takes four lines a value, for albumentations
    if hasattr(checked, "errors"):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}, not {each['input']!r}"
                         for each in checked.errors())
    return str(error).strip() or type(error).__name__


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and NAME in value


def _as_written(value: Any) -> Any:
    """Return a value with its nodes as dicts and its lists as lists, for messages."""
    if isinstance(value, Mapping):
        return {key: _as_written(item) for key, item in value.items()}
    return [_as_written(item) for item in value] if isinstance(value, (list, tuple)) else value


def _in_yaml(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _nested_nodes(value: Any) -> list[Any]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if _is_node(item)]


def _split(node: Any, kind: str) -> tuple[str, dict[str, Any]]:
    """Return a node's name and its arguments."""
    if isinstance(node, str):
        return node, {}
    if not _is_node(node) or not isinstance(node[NAME], str):
        raise ConfigError(f"a {kind} is a node {{NAME: …}}, not {_as_written(node)!r}",
                          where=where_in(node))
    return node[NAME], {key: value for key, value in node.items() if key != NAME}


def where_in(node: Any, key: str | None = None) -> str | None:
    """Return "file:line DOTTED.KEY" of a config node's key, or None outside a config."""
    where = getattr(node, "where", None)
    return where(key) if callable(where) else None


def place_of(entry: Callable) -> str:
    """Return "file:line" of a class or function."""
    entry = inspect.unwrap(entry)
    try:
        return f"{inspect.getsourcefile(entry)}:{inspect.getsourcelines(entry)[1]}"
    except (OSError, TypeError):
        return f"{entry.__module__}.{entry.__qualname__}"


def _is_reload(old: Callable, new: Callable) -> bool:
    """Tell a notebook cell run again, or a file imported again, from a second definition."""
    same_name = (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return same_name and (old.__module__ == "__main__" or place_of(old) == place_of(new))


# -- signatures ------------------------------------------------------------------------


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


def accepts(annotation: Any, value: Any, registry: Registry | None = None) -> bool:
    """Tell whether a value from a config can be meant for a parameter so annotated.

    Only what is surely wrong is refused (a word for a number); an annotation that says
    nothing about plain values accepts everything.

    Args:
        registry: whose nodes may stand for objects.
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_union(annotation):
        known = [item for item in arguments if not isinstance(item, (str, typing.ForwardRef))]
        return any(accepts(item, value, registry) for item in known or arguments)
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
        return all(accepts(item, part, registry) for item, part in zip(items, value))
    if kind in _PLAIN:
        return isinstance(value, kind)
    if _is_tensor(kind):  # lists of numbers become tensors where they are used
        return isinstance(value, (list, tuple)) and all(accepts(float, item) for item in value)
    if kind is collections.abc.Callable or (registry and registry.makes(kind)):
        return _is_node(value)
    return True


def _as_tensor(value: Any, parameter: inspect.Parameter | None) -> Any:
    """Return a list of numbers as the tensor that a parameter is annotated with (class weights)."""
    if parameter is None or not isinstance(value, (list, tuple)):
        return value
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    if not any(map(_is_tensor, kinds)):
        return value
    import torch

    return torch.tensor(value, dtype=torch.float32)


def describe_type(annotation: Any, registry: Registry | None = None) -> str:
    """Return what a config can write for an annotation: "float or null", "[int, int]".

    Args:
        registry: whose nodes may stand for objects.
    """
    forms = dict.fromkeys(_forms(annotation, registry))
    return " or ".join(forms) or "what a config cannot write"


def _forms(annotation: Any, registry: Registry | None) -> list[str]:
    """Return the alternatives that an annotation leaves to a config."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_union(annotation):
        plain = [item for item in arguments if not _is_tensor(item)]
        are_numbers = {int, float} & set(plain)
        return [form for item in (plain if are_numbers else arguments)
                for form in _forms(item, registry)]
    if origin is typing.Literal:
        words = ["null" if item is None else str(item) for item in arguments]
        return [f"one of {', '.join(words)}" if len(words) > 1 else words[0]]
    kind = origin or annotation
    if kind is None or kind is type(None):
        return ["null"]
    if kind in _LISTS:
        items = [" or ".join(dict.fromkeys(_forms(item, registry)))
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
    is_made = registry and inspect.isclass(kind) and registry.makes(kind)
    return ["{NAME: …}"] if is_made else []


def plain_kinds(annotation: Any) -> set[type]:
    """Return the types of plain values that an annotation leaves; `list` for every list."""
    if _is_union(annotation):
        return set().union(*map(plain_kinds, typing.get_args(annotation)))
    kind = typing.get_origin(annotation) or annotation
    if kind in _LISTS:
        return {list} if _forms(annotation, None) else set()
    return {plain for plain in _PLAIN if plain is (type(None) if kind is None else kind)}


def _suggest_choice(annotation: Any, value: Any) -> str | None:
    """Return what was meant by a value, or a list item, that is none of the choices."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is list and arguments and isinstance(value, (list, tuple)):
        return next((_suggest_choice(arguments[0], item) for item in value
                     if not accepts(arguments[0], item)), None)
    is_choice = typing.get_origin(annotation) is typing.Literal
    return suggest(value, arguments, listed=20) if is_choice else None


def _nearest_choice(annotation: Any, value: Any) -> str | None:
    """Return which of the words was meant that stand beside other values: `find` by "Find"."""
    words = [word for item in typing.get_args(annotation)
             if typing.get_origin(item) is typing.Literal for word in typing.get_args(item)]
    near = nearest(value, map(str, words)) if isinstance(value, str) else []
    return f"Did you mean {near[0]}?" if near else None


# -- a user's own files ----------------------------------------------------------------


def import_user_code(names: Iterable[str], where: object = None, is_told: bool = True) -> None:
    """Import a config's `IMPORTS`: paths of Python files, or names of modules.

    The one door through which code comes that is not installed with cvkit. What is imported is
    printed, once; a run folder supplies none. Modules are looked for in the current folder as well,
    what a file imports itself beside that file.

    Args:
        names: of files and modules.
        where: they are named, for messages.
        is_told: False prints nothing, in a worker process of one that did.

    Raises:
        ConfigError: there is no such file or module, or it lies in a run folder.
    """
    for name in names:
        if name.endswith(".py"):
            _import_file(user_path(name), where, is_told)
        else:
            _import_module(name, where, is_told)


_code: dict[str, str] = {}  # files that were imported, and what tells their content from others


def user_code() -> dict[str, str]:
    """Return what tells the files that were imported, by path, from edited ones."""
    return dict(_code)


def edited_since(code: Mapping[str, str]) -> list[str]:
    """Return the names of imported files whose content is another than `user_code` said."""
    return sorted(os.path.basename(path) for path, content in _code.items()
                  if code.get(path, content) != content)


def _file_of(module: Any) -> str:
    """Return the file of a module; nothing is asked of one that loads what it is asked for."""
    return getattr(module, "__dict__", {}).get("__file__") or ""


@contextlib.contextmanager
def _code_noted(origin: str | None) -> Iterator[None]:
    """Note a file that is imported meanwhile, and what it imports from its folder."""
    before = set(sys.modules)
    yield
    if not origin or not os.path.isfile(origin):
        return
    folder = os.path.join(os.path.dirname(os.path.abspath(origin)), "")
    files = {origin, *(_file_of(sys.modules[name]) for name in set(sys.modules) - before)}
    for path in map(os.path.abspath, files):
        if path.startswith(folder) and path.endswith(".py"):
            _code[path] = hashlib.sha1(Path(path).read_bytes()).hexdigest()


def _import_file(path: Path, where: object, is_told: bool) -> None:
    if not os.path.isfile(path):  # which takes what no path can be as well
        raise ConfigError(f"no file {path}", where=where,
                          hint="Paths in IMPORTS are relative to the config that lists them, on "
                               "the command line to where you are. A run folder holds no code: to "
                               "open a run, its files have to be where they were, or IMPORTS "
                               "\"[elsewhere/my.py]\" says where they are.")
    _refuse_run_folder(path, where)
    path = path.resolve()
    module_name = f"cvkit_user_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    is_imported = str(path) in map(_file_of, [*sys.modules.values()])  # by another file, perhaps
    if module_name not in sys.modules and not is_imported:
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        if str(path.parent) not in sys.path:  # as Python does for a script, but last
            sys.path.append(str(path.parent))
        names = [module_name]
        beside = importlib.util.find_spec(path.stem) if path.stem.isidentifier() else None
        if beside is not None and beside.origin == str(path):  # as what lies beside it calls it
            names.append(path.stem)
        sys.modules.update(dict.fromkeys(names, module))
        _say_imported(str(path), is_told)
        try:
            with _mistakes_of_syntax_told(where), _code_noted(str(path)):
                spec.loader.exec_module(module)
        except BaseException:
            for name in names:
                del sys.modules[name]
            raise


def _import_module(name: str, where: object, is_told: bool) -> None:
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts) or parts[0] in (
            "__main__", *sys.stdlib_module_names):
        raise ConfigError(f"{name!r} cannot be a module of yours", where=where,
                          hint="IMPORTS takes modules, or paths that end in .py; names of Python's "
                               "own modules are taken.")
    if name in sys.modules:
        return
    here = Path.cwd()
    if run_folder_of(here) is None and "" not in sys.path and str(here) not in sys.path:
        sys.path.append(str(here))
    wholes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for whole in wholes:  # a.b is looked for by importing a, so where a lies is seen to first
        if whole in sys.modules:
            continue
        try:
            spec = importlib.util.find_spec(whole)
        except ModuleNotFoundError as error:
            if error.name not in wholes:
                raise
            spec = None
        if spec is None:
            inside = run_folder_of(here)
            hint = ("IMPORTS takes modules, or paths that end in .py." if inside is None else
                    f"None is looked for in {inside}: run folders supply no code.")
            raise ConfigError(f"no module named {name!r}", where=where, hint=hint)
        for place in (spec.origin, *(spec.submodule_search_locations or ())):
            if place:
                _refuse_run_folder(Path(place), where)
        _say_imported(spec.origin or whole, is_told)
        with _mistakes_of_syntax_told(where), _code_noted(spec.origin):
            importlib.import_module(whole)


@contextlib.contextmanager
def _mistakes_of_syntax_told(where: object) -> Iterator[None]:
    try:
        yield
    except SyntaxError as error:
        raise ConfigError(f"{error.filename}:{error.lineno}: {error.msg}", where=where) from error


def _say_imported(what: str, is_told: bool) -> None:
    if is_told and distributed.is_main():
        print(f"imported   {visible(what)}")


_opened: set[Path] = set()  # folders that were opened as runs, whatever they hold


def take_no_code_from(folder: Path) -> None:
    """Let no code be imported from a folder from now on."""
    _opened.add(folder.resolve())


def run_folder_of(path: Path) -> Path | None:
    """Return the run folder that a path lies in, as it is written or as its links lead, or None."""
    for start in (Path(os.path.abspath(path)), path.resolve()):
        for folder in (start, *start.parents):
            is_like_one = (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()
            if folder in _opened or is_like_one:
                return folder
    return None


def _refuse_run_folder(path: Path, where: object) -> None:
    folder = run_folder_of(path)
    if folder is not None:
        raise ConfigError(f"{path} lies in the run folder {folder}, which supplies no code",
                          where=where, hint="Read the file; if you trust it, copy it elsewhere and "
                                            "name that copy in IMPORTS.")


# -- the registries --------------------------------------------------------------------

REGISTRIES: dict[str, Registry] = {}

DATASETS = Registry("dataset", "cvkit.data.datasets", offers=("seed",))
TRANSFORMS = Registry("transform", "cvkit.data.transforms",
                      offers=("data_mean", "data_std", "num_classes"),
                      reserved=("data_mean", "data_std", "num_classes"))
MODELS = Registry("model", "cvkit.models", offers=("num_classes", "in_channels", "image_size"))
LOSSES = Registry("loss", "cvkit.losses", offers=("num_classes",))
OPTIMIZERS = Registry("optimizer", "cvkit.optimizers", offers=("params", "fused"),
                      reserved=("params",), required=("lr",))
SCHEDULERS = Registry("scheduler", "cvkit.schedulers", offers=(
    "optimizer", "epochs", "steps_per_epoch", "total_steps", "T_max", "max_lr"),
                      reserved=("optimizer",))
METRICS = Registry("metric", "cvkit.metrics", offers=("classes", "num_classes"),
                   reserved=("classes", "num_classes"))
WRITERS = Registry("writer", "cvkit.writers", offers=("folder", "config"),
                   reserved=("folder", "config"))
_SHOWN = ("compared", "range_test", "run", "runs", "predictions", "model", "loaders", "data",
          "config")
VISUALIZERS = Registry("visualizer", "cvkit.visualizers", offers=_SHOWN, reserved=_SHOWN)


# -- in words ----------------------------------------------------------------------------


def get_registry(kind: str) -> Registry:
    """Return the registry of a kind; its plural will do.

    Raises:
        ConfigError: there is no such kind.
    """
    for registry in REGISTRIES.values():
        if kind.lower() in (registry.kind, f"{registry.kind}s", f"{registry.kind}es"):
            return registry
    owner = next((registry.kind for registry in REGISTRIES.values() if kind in registry), None)
    hint = (f"It is {'an' if owner == 'optimizer' else 'a'} {owner}: python tools/registry.py "
            f"{owner} {kind}" if owner else suggest(kind, REGISTRIES))
    raise ConfigError(f"no registry of {kind!r}", hint=hint)


def overview(registry: Registry) -> str:
    """Return a registry's own names with the first line of their docstrings, and its library's."""
    width = max((len(name) for name in registry.own), default=0)
    lines = [f"{registry.kind}:"]
    for name in registry.own:
        summary = (inspect.getdoc(registry.get(name)) or "").split("\n")[0]
        lines.append(f"  {name:<{width}}  {summary}".rstrip())
    if registry.library:
        module, names = registry.library
        lines += textwrap.wrap(f"from {module}: {', '.join(names)}", 98, initial_indent="  ",
                               subsequent_indent="    ", break_long_words=False)
    return "\n".join(lines)


def describe(registry: Registry, name: str) -> str:
    """Return an entry's arguments with defaults, its docstring and where it is defined."""
    entry = registry.get(name)
    parameters, is_open = parameters_of(entry)
    lines = [f"{registry.kind} {name}", f"defined in {place_of(entry)}", "", "arguments:"]
    for key, parameter in parameters.items():
        needs_value = key in registry.required or parameter.default is parameter.empty
        default = ("offered by the run" if key in registry.offers
                   else "required" if needs_value else f"default {parameter.default!r}")
        kind = ("" if parameter.annotation is parameter.empty
                else f" ({describe_type(parameter.annotation, registry)})")
        lines.append(f"  {key}{kind}: {default}")
    if is_open:
        lines.append("  and others, unchecked")
    elif not parameters:
        lines.append("  none")
    lines += ["", inspect.getdoc(entry) or "No docstring."]
    returned = inspect.signature(entry).return_annotation
    if inspect.isfunction(entry) and entry.__module__.startswith("cvkit.") and returned:
        returned = getattr(sys.modules[entry.__module__], str(returned), None)
        if inspect.isclass(returned):  # the class that the function hands its arguments to
            lines += ["", f"{returned.__name__}: {inspect.getdoc(returned)}"]
    return "\n".join(lines)
