"""Registries in words, as the command `registry` prints them."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any

from cvkit.errors import ConfigError
from cvkit.registry.refusals import way_to_install
from cvkit.registry.registry import REGISTRIES, Registry
from cvkit.registry.signatures import parameters_of, place_of, values_of
from cvkit.system.command import command
from cvkit.system.text import in_columns, suggest


def get_registry(kind: str) -> Registry:
    """Return the registry of a kind; its plural will do.

    Raises:
        ConfigError: there is no such kind.
    """
    for registry in REGISTRIES.values():
        if kind.lower() in (registry.kind, registry.kinds):
            return registry
    owner = next((registry.kind for registry in REGISTRIES.values() if kind in registry), None)
    hint = (f"It is {'an' if owner == 'optimizer' else 'a'} {owner}: "
            f"{command('registry')} {owner} {kind}" if owner else suggest(kind, REGISTRIES))
    raise ConfigError(f"no registry of {kind!r}", hint=hint)


def overview(registry: Registry) -> str:
    """Return a registry's own names with the first line of their docstrings, and its library's."""
    rows = [(f"  {name}", first_line(registry.get(name))) for name in registry.own]
    lines = [f"{registry.kind}:", *in_columns(rows)]
    if registry.library:
        module, names = registry.library
        lines += textwrap.wrap(f"from {module}: {', '.join(names)}", 98, initial_indent="  ",
                               subsequent_indent="    ", break_long_words=False)
    lines += [f"  from {prefix}, if it is installed: {prefix}.NAME; "
              f"{command('registry')} {registry.kind} {prefix} lists them"
              for prefix in registry.prefixes]
    return "\n".join(lines)


def names_of(registry: Registry, prefix: str) -> str:
    """Return all names of a further library of a registry."""
    names = registry.names_like(f"{prefix}.")
    if not names:
        raise ConfigError(way_to_install(prefix))
    return "\n".join([f"{len(names):,} {registry.kinds} from {prefix}:", *textwrap.wrap(
        ", ".join(names), 98, initial_indent="  ", subsequent_indent="  ",
        break_long_words=False)])


def first_line(entry: Any) -> str:
    """Return what the docstring of an entry begins with."""
    return (inspect.getdoc(entry) or "").partition("\n")[0]


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
                else f" ({values_of(parameter.annotation, registry.makes)})")
        lines.append(f"  {key}{kind}: {default}")
    if is_open:
        lines.append("  and others, unchecked")
    elif not parameters:
        lines.append("  none")
    lines += [f"  {key} ({values_of(kind, registry.makes)}): {doc}"
              for key, (kind, doc) in registry.beside.items()]
    lines += ["", inspect.getdoc(entry) or "No docstring."]
    returned = inspect.signature(entry).return_annotation
    if inspect.isfunction(entry) and entry.__module__.startswith("cvkit.") and returned:
        returned = getattr(sys.modules[entry.__module__], str(returned), None)
        # The function hands its arguments to this class, which says more of them.
        if inspect.isclass(returned):
            lines += ["", f"{returned.__name__}: {inspect.getdoc(returned)}"]
    return "\n".join(lines)
