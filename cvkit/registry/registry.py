"""Registries: string names to constructors, and building one from a config node."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cvkit.errors import ConfigError, UserError, raise_together, where_in
from cvkit.registry import refusals
from cvkit.registry.construction import argument_of, construct, lack_of, reason_of
from cvkit.registry.signatures import NAME, as_tensor, is_node, parameters_of, place_of, values_of
from cvkit.system.files import user_path
from cvkit.system.text import plural


class Registry:
    """Named constructors of one kind. Fills itself at the first look-up.

    Args:
        kind: what the entries are, singular, for messages ("model").
        module: the module whose import registers cvkit's own entries.
        offers: facts a run passes to constructors that have a parameter of that name.
        reserved: those of them that a config cannot set.
        required: arguments a config must set even where the constructor has a default.
        beside: keys that any node may have besides its constructor's arguments, read by whoever
            builds from it: by name their type and meaning.

    A name not registered is looked up in the library that `module` adds with
    `add_library`; the library's own path ("torchvision.models.resnet18") reaches an
    entry that a registered name hides.

    Attributes:
        further: given a node whose name is known, yields what is wrong with it besides.

    An entry that builds the nodes of an argument itself has an attribute `nodes`: by argument what
    yields their problems, called as `nodes[key](node, key)`.
    """

    def __init__(self, kind: str, module: str, offers: tuple[str, ...] = (),
                 reserved: tuple[str, ...] = (), required: tuple[str, ...] = (),
                 beside: Mapping[str, tuple[Any, str]] | None = None):
        self.kind, self.module, self.required = kind, module, required
        self.beside = beside or {}
        self.offers, self.reserved = offers, reserved
        self.further: Callable[[Mapping[str, Any]], Iterable[ConfigError]] = lambda node: ()
        self._entries: dict[str, Callable] = {}
        self._prefixed: dict[str, tuple[Callable, Callable]] = {}
        self.add_library("", dict)
        REGISTRIES[kind] = self

    # -- registering -----------------------------------------------------------------

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
                raise ConfigError(f"two {self.kinds} named {key!r}: {place_of(old)} and "
                                  f"{place_of(entry)}",
                                  hint="Rename one, or register it as register('another_name').")
            self._entries[key] = entry
            return entry

        return add

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

    def add_library(self, module: str, read: Callable[[], dict[str, Callable]],
                    left_out: Mapping[str, str] | None = None) -> None:
        """Let names that are not registered fall back to those that `read()` returns.

        Args:
            left_out: names of the module that are not offered, and why: "takes functions".
        """
        self._module_of_library, self._left_out = module, left_out or {}
        self._from_library = functools.cache(lambda: {
            name: entry for name, entry in read().items() if name not in self._left_out})

    def add_prefixed(self, prefix: str, find: Callable[[str], Callable | None],
                     names: Callable[[str], list[str]]) -> None:
        """Look names that begin with `prefix.` up in a further library, which has many.

        They are not among those that the registry lists and counts.

        Args:
            find: given the rest of a name, returns a constructor, or None.
            names: given the rest of a name, which may be misspelt, returns those that it may be.
        """
        self._prefixed[prefix] = find, names

    def _short(self, name: str) -> str:
        """Return the name that an entry has within the library."""
        return str(name).removeprefix(f"{self._module_of_library}.")

    def hidden_by(self, name: str) -> str | None:
        """Return the whole name of what the library has under the name of an entry, or None."""
        whole = f"{self._module_of_library}.{name}"
        return whole if name in self._entries and self.find(whole) is not None else None

    def _fill(self) -> None:
        importlib.import_module(self.module)

    # -- looking up ------------------------------------------------------------------

    @property
    def own(self) -> list[str]:
        """The registered names, sorted, without the library's."""
        self._fill()
        return sorted(self._entries)

    @property
    def prefixes(self) -> list[str]:
        """The prefixes of further libraries, see `add_prefixed`."""
        self._fill()
        return list(self._prefixed)

    @property
    def library(self) -> tuple[str, list[str]] | None:
        """The library's module path and its names that no registered name hides."""
        own = set(self.own)
        names = sorted(set(self._from_library()) - own)
        return (self._module_of_library, names) if self._module_of_library else None

    def find(self, name: str) -> Callable | None:
        """Return the entry of that name, or None."""
        self._fill()
        if name in self._entries:
            return self._entries[name]
        prefix, _, rest = str(name).partition(".")
        if prefix in self._prefixed:
            return self._prefixed[prefix][0](rest)
        return self._from_library().get(self._short(name))

    def names_like(self, name: str) -> list[str]:
        """Return the names among which one that is no entry may be meant."""
        prefix, _, rest = str(name).partition(".")
        if prefix not in self._prefixed:
            return list(self)
        return [f"{prefix}.{each}" for each in self._prefixed[prefix][1](rest)]

    def get(self, name: str, where: object = None) -> Callable:
        """Return the entry of that name.

        Raises:
            ConfigError: there is none; the message suggests the nearest names.
        """
        entry = self.find(name)
        if entry is None:
            reason = self._left_out.get(self._short(name))
            why = f"That of {self._module_of_library} {reason}. " if reason else ""
            raise refusals.no_entry(self, name, why, where)
        return entry

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.own + (self.library[1] if self.library else []))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def kinds(self) -> str:
        """The plural of `kind`."""
        return plural(2, self.kind).removeprefix("2 ")

    def __repr__(self) -> str:
        library = f" and {len(self.library[1])} of {self.library[0]}" if self.library else ""
        return f"<Registry of {self.kinds}: {', '.join(self.own)}{library}>"

    def makes(self, kind: type) -> bool:
        """Tell whether entries are classes of that kind, so that a node stands for one."""
        entries = [*self._entries.values(), *self._from_library().values()]
        is_general = kind.__module__ in ("builtins", "typing", "collections.abc")
        return not is_general and any(
            inspect.isclass(entry) and issubclass(entry, kind) for entry in entries)

    # -- checking a node -------------------------------------------------------------

    def refusal_of(self, item: Any, where: object) -> ConfigError | None:
        """Return what keeps a config's value from being a node of this kind, or None.

        Args:
            where: its place, for what does not know its own.
        """
        is_named = is_node(item) and isinstance(item[NAME], str)
        return None if is_named else refusals.no_node(self, item, where)

    def _node(self, node: Any) -> Mapping[str, Any]:
        """Return a node, or that of a bare name."""
        node = {NAME: node} if isinstance(node, str) else node
        if refusal := self.refusal_of(node, where_in(node)):
            raise refusal
        return node

    def is_own(self, node: Any) -> bool:
        """Tell whether a node names what a user registered, not cvkit or a library."""
        entry = self._entries.get(self._node(node)[NAME])
        return entry is not None and not entry.__module__.startswith("cvkit.")

    def asks_for(self, node: Any, fact: str, is_needed: bool = False) -> bool:
        """Tell whether the node's constructor takes `fact` and the config leaves it open.

        Args:
            is_needed: whether only a parameter without a default counts.
        """
        node = self._node(node)
        parameter = parameters_of(self.get(node[NAME]))[0].get(fact)
        return parameter is not None and fact not in node and not (
            is_needed and parameter.default is not parameter.empty)

    def check(self, node: Any) -> None:
        """Check a node's name and arguments against the constructor, without building it.

        Raises:
            ConfigError: unknown name or argument, missing argument or wrong type; all
                that is wrong with the node, in one message with file, line and key.
        """
        raise_together(list(self.problems(node)))

    def problems(self, node: Any) -> Iterator[ConfigError]:
        """Yield what `check` would raise, one by one."""
        try:
            node = self._node(node)
            entry = self.get(node[NAME], where_in(node, NAME))
        except ConfigError as error:
            yield error
            return
        parameters, is_open = parameters_of(entry)
        kinds = {key: kind for key, (kind, _) in self.beside.items()} | {
            key: parameter.annotation for key, parameter in parameters.items()}
        for key, value in node.items():
            if key == NAME:
                continue
            if key in self.reserved or (key not in kinds and not is_open):
                yield refusals.no_argument(self, node, key, kinds)
            elif key in kinds:
                values = values_of(kinds[key], self.makes)
                if not values.fit(value):
                    yield refusals.wrong_value(self, node, key, values)
                elif key in _nodes_of(entry):
                    yield from _nodes_of(entry)[key](node, key)
            if key in _nodes_of(entry):
                continue
            for nested in filter(is_node, value if isinstance(value, (list, tuple)) else [value]):
                yield from self.problems(nested)
        # A constructor that takes any argument takes those that each one needs.
        unnamed = [key for key in self.required if key not in parameters]
        if unnamed and not is_open:
            yield ConfigError(f"{self.kind} {node[NAME]} has no argument {unnamed[0]!r}, which "
                              f"each {self.kind} needs", where_in(node, NAME),
                              f"See {place_of(entry)}")
        needed = unnamed * is_open + [key for key, parameter in parameters.items() if (
            key in self.required or parameter.default is parameter.empty)]
        if missing := [key for key in needed if key not in node and key not in self.offers]:
            yield refusals.missing(self, node, missing)
        yield from self.further(node)

    # -- building it -----------------------------------------------------------------

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
        if unknown := sorted(set(offered) - set(self.offers)):
            raise TypeError(f"{self.kinds} are not offered {', '.join(unknown)}; arguments go into "
                            f"the node, facts are {', '.join(self.offers)}")
        self.check(node)
        node = self._node(node)
        entry = self.get(node[NAME])
        parameters, _ = parameters_of(entry)
        arguments = {key: value if key in _nodes_of(entry) else as_tensor(
                         self._build_nested(value, offered), parameters.get(key))
                     for key, value in node.items() if key not in (NAME, *self.beside)}
        facts = {key: value for key, value in offered.items()
                 if key in parameters and key not in arguments}
        try:
            return construct(entry, {**facts, **arguments})
        except UserError as error:
            if error.where is None or error.where in parameters:
                key = error.where or argument_of(error, arguments)
                error.where = where_in(node, key if key in arguments else NAME)
            raise
        except Exception as error:
            # A library's constructor is taken to be right and the value wrong, and so is cvkit's,
            # which hands values on to one. In your own code only a ValueError says so, or a file
            # that an argument names; the rest may be a bug and keeps its traceback.
            key = argument_of(error, arguments)
            is_no_bug = isinstance(error, ValueError) or (isinstance(error, OSError) and key)
            if self.is_own(node) and not is_no_bug:
                raise
            raise ConfigError(f"{self.kind} {node[NAME]} cannot be built: {reason_of(error)}",
                              where_in(node, key or NAME)) from error

    def _build_nested(self, value: Any, offered: dict[str, Any]) -> Any:
        if is_node(value):
            return self.build(value, **offered)
        if isinstance(value, (list, tuple)):
            built = [self._build_nested(item, offered) for item in value]
            return built if any(map(is_node, value)) else type(value)(built)
        is_path = isinstance(value, str) and re.match(r"~[\w.-]*/", value)
        return str(user_path(value)) if is_path else value

    def refuse_without(self, node: Any, part: Any, *methods: str) -> None:
        """Refuse what was built from a node, or will be, if it lacks a method.

        Args:
            part: an object, or its class.
            methods: each as it is called, such as "update(logits, labels)".

        Raises:
            ConfigError: names the first one.
        """
        for problem in filter(None, (lack_of(part, method) for method in methods)):
            raise ConfigError(f"{self.kind} {self._node(node)[NAME]} {problem}",
                              where_in(node, NAME), f"A {self.kind} has {', '.join(methods)}.")


def _nodes_of(entry: Callable) -> Mapping[str, Callable[..., Iterator[ConfigError]]]:
    return getattr(entry, "nodes", {})


def _is_reload(old: Callable, new: Callable) -> bool:
    """Tell a notebook cell run again, or a file imported again, from a second definition."""
    if (old.__module__, old.__qualname__) != (new.__module__, new.__qualname__):
        return False
    if old.__module__ == "__main__" or place_of(old) == place_of(new):
        return True
    # Its line moves where the file was edited in between.
    with contextlib.suppress(OSError, TypeError, KeyError):
        source = inspect.getsource(sys.modules[new.__module__])
        return len(re.findall(rf"^\s*(?:class|def)\s+{new.__name__}\b", source, re.MULTILINE)) == 1
    return False


REGISTRIES: dict[str, Registry] = {}
