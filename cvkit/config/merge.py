"""The one rule by which base files, files and the command line are laid on each other."""

from __future__ import annotations

from typing import Any

from cvkit.config.dialect import flow
from cvkit.config.tree import Config, dotted
from cvkit.errors import ConfigError
from cvkit.registry import NAME
from cvkit.system.text import plural, suggest


def merge(base: Any, over: Any) -> Any:
    """Return `over` laid on `base`, by the one rule for base files, files and command line.

    Nodes merge key by key; a node whose NAME changes is replaced with all its arguments;
    anything else, lists included, is replaced whole.
    """
    if not (isinstance(base, Config) and isinstance(over, Config)):
        return over
    merged = Config()
    merged.__dict__["replaced"] = {**base.replaced, **over.replaced}
    is_replaced = NAME in over and NAME in base and over[NAME] != base[NAME]
    for key, value in base.items():
        if is_replaced and key != NAME:
            merged.replaced[key] = f"{flow(key)} {flow(value)} of {base.origin(key)}"
        else:
            merged.put(key, value, base.origin(key))
    for key, value in over.items():
        merged.put(key, merge(merged.get(key), value), over.origin(key))
    return merged


def at_key(base: Any, parts: list[str], value: Any, origin: str, path: str = "") -> Any:
    """Return what sets a value under a dotted key when it is merged over `base`.

    Args:
        base: what the key is looked up in; a number in the key counts the items of a list.
        parts: of the key, such as DATA, TRAIN_TRANSFORMS, 1 and size.
        value: as `adopt` returns it.
        origin: where it is set.
        path: the dotted key of `base`.

    Raises:
        ConfigError: a number stands for no item of a list.
    """
    if not parts:
        return value
    first, *rest = parts
    inner = dotted(path, first)
    if not (path and first.isdecimal()):
        node, below = Config(), base.get(first) if isinstance(base, Config) else None
        node.put(first, at_key(below, rest, value, origin, inner), origin)
        return node
    if not isinstance(base, list):
        raise ConfigError(f"{path} is not a list, its items have no numbers",
                          where=f"{origin} {inner}",
                          hint=suggest(first, base) if isinstance(base, Config) else None)
    if int(first) >= len(base):
        numbers = f"they count from 0 to {len(base) - 1}" if base else "it is empty"
        raise ConfigError(f"{path} has {plural(len(base), 'item')}; {numbers}",
                          where=f"{origin} {inner}",
                          hint=f"To add one, give the whole list: {path} '[…]'")
    items, number = list(base), int(first)
    items[number] = merge(items[number], at_key(items[number], rest, value, origin, inner))
    return items
