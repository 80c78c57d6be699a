"""What is told of a node that cannot be built: what is wrong with it, where, and what is meant."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from cvkit.errors import ConfigError, where_in
from cvkit.registry.signatures import NAME, NODES, Values, parameters_of, plain, values_of
from cvkit.system.command import command
from cvkit.system.text import correction, nearest, suggest

# Functions of these kinds are mistaken for what a registered function has to return.
_RETURNED = {"loss": "register a function that returns it, or a torch.nn.Module",
             "metric": "register a class with update(logits, labels) and compute()",
             "scheduler": "return LambdaLR(optimizer, it) from a function that is registered"}


def no_entry(registry: Any, name: str, why: str, where: object) -> ConfigError:
    """Return the message on a name that no entry has; `why` says so of one that was left out."""
    known = registry.names_like(name)
    bare = str(name).rpartition("/")[2]
    further = [f"{prefix}.{bare}" for prefix in registry.prefixes
               if registry.find(f"{prefix}.{bare}") is not None]
    if further:
        return ConfigError(f"no {registry.kind} named {name!r}", where,
                           f"Did you mean {' or '.join(further)}?")
    hint = why + (suggest(name, known) or way_to_install(str(name).partition(".")[0]))
    if not difflib.get_close_matches(str(name).lower(), map(str.lower, known), 1, 0.75):
        hint += ("\n  One of your own: register() above it, and its file in IMPORTS; see "
                 "docs/add_your_own.md")
    return ConfigError(f"no {registry.kind} named {name!r}", where, hint)


def way_to_install(extra: str) -> str:
    """Return how to install a library that lends names under its prefix."""
    return f"{extra} is not installed: pip install {extra}"


def no_node(registry: Any, item: Any, where: object) -> ConfigError:
    """Return what keeps a config's value from being a node: `Registry.refusal_of`."""
    hint = f"See `{command('registry')} {registry.kind}` for what can be named."
    if not isinstance(item, Mapping):
        if isinstance(item, str) and item.isidentifier():
            near = [item] if item in registry else nearest(item, registry.names_like(item))
            hint = (f"Write {{NAME: {near[0]}}}." if near
                    else str(no_entry(registry, item, "", where).hint))
        return ConfigError(f"expected a node {{NAME: …}}, not {_in_yaml(item)}", where, hint)
    # An empty mapping was set nowhere that it knows of.
    where = (where_in(item) if item else None) or where
    if NAME in item:
        return ConfigError(f"the NAME of a {registry.kind} is a string, not {_in_yaml(item[NAME])}",
                           where, hint)
    for key in item:
        if key.startswith(f"{NAME}:"):
            hint = f"Write {NAME}: {key[5:]}, with a space after the colon."
        elif key.lower() in ("name", "type", "class"):
            hint = f"Write {NAME}, not {key}."
        elif len(item) == 1 and key in registry:
            hint = f"Write {{NAME: {key}, …}}, with its arguments beside the name."
    return ConfigError(f"this {registry.kind} has no NAME", where, hint)


def no_argument(registry: Any, node: Mapping[str, Any], key: str,
                kinds: Mapping[str, Any]) -> ConfigError:
    """Return the message on a key that is no argument of what a node names.

    Args:
        kinds: the annotations of those that are, by name.
    """
    settable = [name for name in kinds if name not in registry.reserved]
    hint = suggest(key, settable) or f"{node[NAME]} takes no arguments."
    near = nearest(key, settable)[:1]
    for meant in near:
        values = values_of(kinds[meant], registry.makes)
        if not values.fit(node[key]):
            hint = hint.replace("? ", f"? It takes {values}. ", 1)
    whole = None if near else registry.hidden_by(node[NAME])
    if whole and key in parameters_of(registry.get(whole))[0]:
        hint = f"{whole} has it, another {node[NAME]}. Of this one: {hint}"
    return ConfigError(f"{registry.kind} {node[NAME]} has no argument {key!r}",
                       where_in(node, key), hint)


def wrong_value(registry: Any, node: Mapping[str, Any], key: str, values: Values) -> ConfigError:
    """Return the message on an argument whose value is none that it takes."""
    value, where, kinds, takes = node[key], where_in(node, key), set(values.kinds), str(values)
    items = value if isinstance(value, (list, tuple)) else [value]
    if items is value and NODES in kinds:
        for number, item in enumerate(items):
            if refusal := registry.refusal_of(item, where and f"{where}.{number}"):
                return refusal
    if items is value and kinds & {int, float} and list not in kinds:
        takes = f"one number ({takes})"
    # "Write [0.9]." would be no help where a list of two is taken.
    if not isinstance(value, str) and not values.fit([value]):
        kinds.discard(list)
    near = [name for item in items if isinstance(item, str) and item not in values.words
            for name in nearest(item, values.words)]
    hint = correction(value, kinds) or (f"Did you mean {near[0]}?" if near else None)
    if hint is None and isinstance(value, (str, Mapping)) and values.fit([value]):
        hint = f"Write [{value}]." if isinstance(value, str) else "Write [{…}], a list of one."
    return ConfigError(f"{key} of {registry.kind} {node[NAME]} takes {takes}, not "
                       f"{plain(value)!r}", where, hint)


def missing(registry: Any, node: Mapping[str, Any], keys: list[str]) -> ConfigError:
    """Return the message on arguments that a node does not set and has to."""
    # A node of a config knows its dotted keys, and what a change of its NAME dropped.
    dotted, replaced = getattr(node, "path", str), getattr(node, "replaced", {})
    hint = f"Set {', '.join(map(dotted, keys))}."
    facts = difflib.get_close_matches(keys[0], registry.offers)
    if facts and registry.is_own(node):
        hint = f"Is {facts[0]} meant, which it is given by itself? {hint}"
    returned = _RETURNED.get(registry.kind)
    if returned and len(node) == 1 and inspect.isfunction(registry.get(node[NAME])):
        hint = (f"{node[NAME]} is called with these, once, to make the {registry.kind}. If they "
                f"are what the {registry.kind} is given: {returned}.")
    if dropped := [replaced[key] for key in keys if key in replaced]:
        hint = f"Changing NAME dropped {', '.join(dropped)}. {hint}"
    return ConfigError(f"{registry.kind} {node[NAME]} needs {', '.join(keys)}",
                       where_in(node, NAME), hint)


def _in_yaml(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
