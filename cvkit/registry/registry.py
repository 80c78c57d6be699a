"""Registries: string names to constructors, and building one from a config node."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvkit.errors import ConfigError, DataError, UserError, raise_together, where_in
from cvkit.registry.signatures import (
    NAME,
    NODES,
    accepts,
    as_tensor,
    describe_type,
    forms_of,
    is_node,
    parameters_of,
    place_of,
)
from cvkit.system.files import user_path
from cvkit.system.text import correction, nearest, suggest


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

    @contextlib.contextmanager
    def temporarily(self) -> Iterator[Registry]:
        """Forget at the end of a `with` what is registered within it, as a test wants it.

        A file of IMPORTS that is first imported within is not imported again afterwards: its
        entries are gone for good.
        """
        self._fill()
        entries = dict(self._entries)
        try:
            yield self
        finally:
            self._entries = entries

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
        if is_node(item) and isinstance(item[NAME], str):
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
                if meant and not accepts(annotation, value, self.makes):
                    takes = describe_type(annotation, self.makes)
                    hint = hint.replace("? ", f"? It takes {takes}. ", 1)
                yield ConfigError(f"{self.kind} {name} has no argument {key!r}",
                                  where=where_in(node, key), hint=hint)
            elif key in parameters and not accepts(parameters[key].annotation, value, self.makes):
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
        forms = forms_of(annotation, self.makes)
        kinds = {form.kind for form in forms}
        values = value if isinstance(value, (list, tuple)) else [value]
        if NODES in kinds and values is value:
            for number, item in enumerate(values):
                if refusal := self.refusal_of(item, where and f"{where}.{number}"):
                    return refusal
        takes = describe_type(annotation, self.makes)
        if values is value and kinds & {int, float} and list not in kinds:
            takes = f"one number ({takes})"
        if not isinstance(value, str) and not accepts(annotation, [value], self.makes):
            kinds.discard(list)
        words = [word for form in forms for word in form.words]
        near = [nearest(item, words) for item in values
                if isinstance(item, str) and item not in words]
        hint = correction(value, kinds) or next(
            (f"Did you mean {names[0]}?" for names in near if names), None)
        return ConfigError(f"{argument} takes {takes}, not {_as_written(value)!r}", where=where,
                           hint=hint)

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
        arguments = {key: as_tensor(self._build_nested(value, offered), parameters.get(key))
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
        if is_node(value):
            return self.build(value, **offered)
        if isinstance(value, (list, tuple)) and any(is_node(item) for item in value):
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


def _as_written(value: Any) -> Any:
    """Return a value with its nodes as dicts and its lists as lists, for messages."""
    if isinstance(value, Mapping):
        return {key: _as_written(item) for key, item in value.items()}
    return [_as_written(item) for item in value] if isinstance(value, (list, tuple)) else value


def _in_yaml(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _nested_nodes(value: Any) -> list[Any]:
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if is_node(item)]


def _split(node: Any, kind: str) -> tuple[str, dict[str, Any]]:
    """Return a node's name and its arguments."""
    if isinstance(node, str):
        return node, {}
    if not is_node(node) or not isinstance(node[NAME], str):
        raise ConfigError(f"a {kind} is a node {{NAME: …}}, not {_as_written(node)!r}",
                          where=where_in(node))
    return node[NAME], {key: value for key, value in node.items() if key != NAME}


def _is_reload(old: Callable, new: Callable) -> bool:
    """Tell a notebook cell run again, or a file imported again, from a second definition."""
    same_name = (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)
    return same_name and (old.__module__ == "__main__" or place_of(old) == place_of(new))


REGISTRIES: dict[str, Registry] = {}
